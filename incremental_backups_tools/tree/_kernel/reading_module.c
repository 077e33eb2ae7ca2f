/* Reader and Reading: files of a directory that a thread of its own reads and signs, while Python does something else. */
#include "listing_object.h"
#include "parts.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* With shorter ones a signature could be longer than what it signs. */
enum { MIN_BLOCK_LEN = 64 };

typedef struct reading_object reading_object;

typedef struct {
    PyObject_HEAD
    ibt_signing signing;
    pthread_mutex_t lock;      /* of all that follows, and of is_done of the readings */
    pthread_cond_t begun, done;
    reading_object *first, *last; /* that wait for the thread */
    pthread_t thread;
    int has_thread, is_closed;
} reader_object;

struct reading_object {
    PyObject_HEAD
    reader_object *reader;
    listing_object *listing;
    reading_object *next;
    int is_running; /* as Python knows it, is_done as the thread does */
    int is_done;
    int dir_fd; /* the thread's own, which it closes */
    size_t first, end, max_len;
    ibt_read_file *files; /* all this memory is the caller's: a thread that allocated would get an arena */
    char *room;
    size_t room_len, count;
    ibt_read_table table;
};

static void
read_files(reading_object *self)
{
    self->count = ibt_read_range(&self->listing->listing, self->first, self->end, self->dir_fd, self->max_len,
                                 &self->reader->signing, self->files, self->room);
    close(self->dir_fd);
}

static void *
run(void *argument)
{
    reader_object *self = argument;
    pthread_mutex_lock(&self->lock);
    for (;;) {
        while (!self->first && !self->is_closed)
            pthread_cond_wait(&self->begun, &self->lock);
        reading_object *reading = self->first;
        if (!reading)
            break;
        self->first = reading->next;
        pthread_mutex_unlock(&self->lock);
        read_files(reading);
        pthread_mutex_lock(&self->lock);
        reading->is_done = 1; /* from here on it may be freed */
        pthread_cond_broadcast(&self->done);
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

/* Signals are for the threads of Python, which they interrupt. */
static int
start_thread(reader_object *self)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = pthread_create(&self->thread, NULL, run, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    self->has_thread = error == 0;
    return error;
}

/* Have the thread read: 0; or an error where there is none and can be none. */
static int
begin(reading_object *reading)
{
    reader_object *self = reading->reader;
    if (self->is_closed || (!self->has_thread && start_thread(self) != 0))
        return -1;
    reading->is_running = 1;
    reading->listing->readers++;
    pthread_mutex_lock(&self->lock);
    if (self->first)
        self->last->next = reading;
    else
        self->first = reading;
    self->last = reading;
    pthread_cond_signal(&self->begun);
    pthread_mutex_unlock(&self->lock);
    return 0;
}

static void
wait_for_thread(reading_object *reading)
{
    if (!reading->is_running)
        return;
    reader_object *self = reading->reader;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&self->lock);
    while (!reading->is_done)
        pthread_cond_wait(&self->done, &self->lock);
    pthread_mutex_unlock(&self->lock);
    Py_END_ALLOW_THREADS
    reading->is_running = 0;
    reading->listing->readers--;
}

static void
reading_dealloc(reading_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    wait_for_thread(self);
    free(self->files);
    free(self->room);
    Py_XDECREF(self->listing);
    Py_XDECREF(self->reader);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
parse_signing(ibt_signing *result, PyObject *signing)
{
    unsigned int magic;
    int strong_len, weak, strong;
    PyObject *block_lens;
    if (!PyTuple_Check(signing)) {
        PyErr_SetString(PyExc_TypeError, "how to sign is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(signing, "IiiiO!", &magic, &strong_len, &weak, &strong, &PyTuple_Type, &block_lens))
        return -1;
    Py_ssize_t classes = PyTuple_GET_SIZE(block_lens);
    if (strong_len < 1 || strong_len > IBT_STRONG_MAX || (weak != IBT_RABINKARP && weak != IBT_ROLLSUM) ||
        strong != IBT_BLAKE2B || classes > IBT_SIZE_CLASSES) {
        PyErr_SetString(PyExc_ValueError, "signatures cannot be made so");
        return -1;
    }
    result->magic = magic;
    result->format = (ibt_format){.weak = weak, .strong = strong, .strong_len = (uint32_t)strong_len};
    for (Py_ssize_t bits = 0; bits < classes; bits++) {
        unsigned long len = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(block_lens, bits));
        if (PyErr_Occurred())
            return -1;
        if (len > INT32_MAX || (len && len < MIN_BLOCK_LEN)) {
            PyErr_SetString(PyExc_ValueError, "a block is too long or too short");
            return -1;
        }
        result->block_lens[bits] = (uint32_t)len;
    }
    return 0;
}

static const ibt_signing_functions *
signing_functions_of(PyObject *module)
{
    PyObject *capsule = PyObject_GetAttrString(module, "signing_functions");
    if (!capsule)
        return NULL;
    const ibt_signing_functions *functions = PyCapsule_GetPointer(capsule, IBT_SIGNING_FUNCTIONS);
    Py_DECREF(capsule); /* the module keeps it, and what it points to is static */
    return functions;
}

static PyObject *
reader_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *signing;
    if (keywords && PyDict_GET_SIZE(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Reader takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O:Reader", &signing))
        return NULL;
    PyObject *module = PyType_GetModule(type);
    const ibt_signing_functions *functions = module ? signing_functions_of(module) : NULL;
    reader_object *self = functions ? (reader_object *)type->tp_alloc(type, 0) : NULL;
    if (!self)
        return NULL;
    pthread_mutex_init(&self->lock, NULL); /* neither fails on Linux */
    pthread_cond_init(&self->begun, NULL);
    pthread_cond_init(&self->done, NULL);
    self->signing.hash_blocks = functions->hash_blocks;
    if (parse_signing(&self->signing, signing) != 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* End the thread, once it has read what it was given. */
static PyObject *
reader_close(reader_object *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&self->lock);
    self->is_closed = 1;
    pthread_cond_signal(&self->begun);
    pthread_mutex_unlock(&self->lock);
    if (self->has_thread) {
        self->has_thread = 0;
        Py_BEGIN_ALLOW_THREADS
        pthread_join(self->thread, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static void
reader_dealloc(reader_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(reader_close(self, NULL));
    pthread_mutex_destroy(&self->lock);
    pthread_cond_destroy(&self->begun);
    pthread_cond_destroy(&self->done);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The module's class *name*. */
static PyTypeObject *
class_named(listing_object *listing, const char *name)
{
    PyObject *module = PyType_GetModule(Py_TYPE(listing));
    return module ? (PyTypeObject *)PyObject_GetAttrString(module, name) : NULL;
}

static reading_object *
new_reading(listing_object *listing, PyObject *reader)
{
    PyTypeObject *reader_type = class_named(listing, "Reader");
    if (reader_type && !Py_IS_TYPE(reader, reader_type)) {
        PyErr_SetString(PyExc_TypeError, "files are read by a Reader");
        Py_CLEAR(reader_type);
    }
    PyTypeObject *type = reader_type ? class_named(listing, "Reading") : NULL;
    reading_object *self = type ? (reading_object *)type->tp_alloc(type, 0) : NULL;
    Py_XDECREF(reader_type);
    Py_XDECREF(type);
    if (self) {
        self->reader = (reader_object *)Py_NewRef(reader);
        self->listing = (listing_object *)Py_NewRef((PyObject *)listing);
    }
    return self;
}

PyObject *
ibt_start_reading(listing_object *listing, size_t first, int dir_fd, const ibt_read_limits *limits,
                  PyObject *reader)
{
    reading_object *self = new_reading(listing, reader);
    if (!self)
        return NULL;
    ibt_reading_plan plan = ibt_plan_reading(&listing->listing, first, limits, &self->reader->signing);
    self->first = first;
    self->end = plan.end;
    self->max_len = limits->max_len;
    if (!plan.files)
        return (PyObject *)self;
    self->files = calloc(plan.files + 1, sizeof *self->files); /* one to try in */
    self->room = malloc(plan.room + 1);
    self->room_len = plan.room;
    if (!self->files || !self->room) {
        PyErr_NoMemory();
        goto failed;
    }
    self->dir_fd = fcntl(dir_fd, F_DUPFD_CLOEXEC, 0);
    if (self->dir_fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto failed;
    }
    if (begin(self) != 0) {
        Py_BEGIN_ALLOW_THREADS /* no room for a thread: at once, then */
        read_files(self);
        Py_END_ALLOW_THREADS
    }
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static long long
nanoseconds(struct timespec time)
{
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

static PyObject *
file_tuple(reading_object *self, const ibt_read_file *file)
{
    const struct stat *info = &file->info;
    Py_ssize_t start = file->content - self->room;
    PyObject *room = PyMemoryView_FromObject((PyObject *)self);
    PyObject *content = room ? PySequence_GetSlice(room, start, start + (Py_ssize_t)info->st_size) : NULL;
    Py_XDECREF(room);
    if (!content)
        return NULL;
    return Py_BuildValue("ny#iLLLLKKNy#y#y#", (Py_ssize_t)file->number, file->name, (Py_ssize_t)file->name_len,
                         (int)(info->st_mode & 07777), (long long)info->st_uid, (long long)info->st_gid,
                         nanoseconds(info->st_mtim), nanoseconds(info->st_ctim), (unsigned long long)info->st_ino,
                         (unsigned long long)info->st_dev, content, (const char *)file->signature,
                         (Py_ssize_t)file->signature_len, (const char *)file->digest, (Py_ssize_t)IBT_BLAKE3_LEN,
                         file->signature ? (const char *)file->sig_digest : NULL, (Py_ssize_t)IBT_BLAKE3_LEN);
}

static Py_ssize_t
reading_length(reading_object *self)
{
    wait_for_thread(self);
    return (Py_ssize_t)self->count;
}

/* The file at a position, or NULL with an exception. */
static const ibt_read_file *
file_at(reading_object *self, PyObject *position)
{
    Py_ssize_t i = PyNumber_AsSsize_t(position, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    if (i < 0 || i >= reading_length(self)) {
        PyErr_SetString(PyExc_IndexError, "so many files were not read");
        return NULL;
    }
    return &self->files[i];
}

static PyObject *
reading_file(reading_object *self, PyObject *position)
{
    const ibt_read_file *file = file_at(self, position);
    return file ? file_tuple(self, file) : NULL;
}

static PyObject *
reading_number(reading_object *self, PyObject *position)
{
    const ibt_read_file *file = file_at(self, position);
    return file ? PyLong_FromSize_t(file->number) : NULL;
}

static PyObject *
reading_table(reading_object *self, void *Py_UNUSED(closure))
{
    self->table = (ibt_read_table){self->files, (size_t)reading_length(self)};
    return PyCapsule_New(&self->table, IBT_READ_TABLE, NULL);
}

/* Contents are views of the memory that they were read into. */
static int
reading_buffer(reading_object *self, Py_buffer *view, int flags)
{
    if (self->is_running) {
        PyErr_SetString(PyExc_BufferError, "files are being read");
        view->obj = NULL;
        return -1;
    }
    return PyBuffer_FillInfo(view, (PyObject *)self, self->room, self->room ? (Py_ssize_t)self->room_len : 0, 1, flags);
}

static PyObject *
reading_end(reading_object *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(self->end);
}

static PyObject *
reading_most_bytes(reading_object *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(self->room_len);
}

static PyMethodDef reading_methods[] = {
    {"file", (PyCFunction)reading_file, METH_O, NULL},
    {"number", (PyCFunction)reading_number, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reading_members[] = {
    {"end", (getter)reading_end, NULL, NULL, NULL},
    {"most_bytes", (getter)reading_most_bytes, NULL, NULL, NULL},
    {"table", (getter)reading_table, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot reading_slots[] = {
    {Py_tp_dealloc, reading_dealloc},
    {Py_tp_methods, reading_methods},
    {Py_sq_length, reading_length},
    {Py_bf_getbuffer, reading_buffer},
    {Py_tp_getset, reading_members},
    {0, NULL},
};

static PyType_Spec reading_spec = {
    .name = "incremental_backups_tools.tree._native.Reading",
    .basicsize = sizeof(reading_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = reading_slots,
};

static PyMethodDef reader_methods[] = {
    {"close", (PyCFunction)reader_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "incremental_backups_tools.tree._native.Reader",
    .basicsize = sizeof(reader_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

static int
add_class(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int failed = type ? PyModule_AddObjectRef(module, name, type) : -1;
    Py_XDECREF(type);
    return failed;
}

int
ibt_add_reading(PyObject *module)
{
    PyObject *delta = PyImport_ImportModule("incremental_backups_tools.delta._native");
    PyObject *functions = delta ? PyObject_GetAttrString(delta, "signing_functions") : NULL;
    int failed = functions ? PyModule_AddObjectRef(module, "signing_functions", functions) : -1;
    Py_XDECREF(functions);
    Py_XDECREF(delta);
    if (failed || add_class(module, &reader_spec, "Reader") != 0)
        return -1;
    return add_class(module, &reading_spec, "Reading");
}
