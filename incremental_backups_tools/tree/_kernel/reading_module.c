/* A Reading: files of a directory that a thread of its own reads and signs, while Python does something else. */
#include "listing_object.h"
#include "parts.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    listing_object *listing;
    pthread_t thread;
    int is_running;
    int dir_fd; /* the thread's own, which it closes */
    size_t first, end, max_len;
    ibt_signing signing;
    ibt_read_file *files; /* all this memory is the caller's: a thread that allocated would get an arena */
    char *room;
    size_t room_len, count;
} reading_object;

static void *
run(void *argument)
{
    reading_object *self = argument;
    self->count = ibt_read_range(&self->listing->listing, self->first, self->end, self->dir_fd, self->max_len,
                                 &self->signing, self->files, self->room);
    close(self->dir_fd);
    return NULL;
}

/* Signals are for the threads of Python, which they interrupt. */
static int
start_thread(reading_object *self)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = pthread_create(&self->thread, NULL, run, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static void
wait_for_thread(reading_object *self)
{
    if (!self->is_running)
        return;
    Py_BEGIN_ALLOW_THREADS
    pthread_join(self->thread, NULL);
    Py_END_ALLOW_THREADS
    self->is_running = 0;
    self->listing->readers--;
}

static void
reading_dealloc(reading_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    wait_for_thread(self);
    free(self->files);
    free(self->room);
    Py_XDECREF(self->listing);
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
        if (len > INT32_MAX) {
            PyErr_SetString(PyExc_ValueError, "a block is too long");
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

PyObject *
ibt_start_reading(listing_object *listing, size_t first, int dir_fd, const ibt_read_limits *limits,
                  PyObject *signing)
{
    PyObject *module = PyType_GetModule(Py_TYPE(listing));
    const ibt_signing_functions *functions = module ? signing_functions_of(module) : NULL;
    PyObject *type = functions ? PyObject_GetAttrString(module, "Reading") : NULL;
    if (!type)
        return NULL;
    reading_object *self = (reading_object *)((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, 0);
    Py_DECREF(type);
    if (!self)
        return NULL;
    if (parse_signing(&self->signing, signing) != 0)
        goto failed;
    self->listing = (listing_object *)Py_NewRef((PyObject *)listing);
    self->signing.hash_blocks = functions->hash_blocks;
    self->first = first;
    self->max_len = limits->max_len;
    ibt_reading_plan plan = ibt_plan_reading(&listing->listing, first, limits, &self->signing);
    self->end = plan.end;
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
    if (start_thread(self) == 0) {
        self->is_running = 1;
        listing->readers++;
        return (PyObject *)self;
    }
    Py_BEGIN_ALLOW_THREADS /* no room for another thread: at once, then */
    run(self);
    Py_END_ALLOW_THREADS
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
file_tuple(reading_object *self, const ibt_read_file *file, PyObject *room)
{
    const ibt_name *name = &self->listing->listing.names[file->number];
    const struct stat *info = &file->info;
    Py_ssize_t start = file->content - self->room;
    PyObject *content = PySequence_GetSlice(room, start, start + (Py_ssize_t)info->st_size);
    if (!content)
        return NULL;
    return Py_BuildValue("ny#iLLLLKKNy#", (Py_ssize_t)file->number, name->name, (Py_ssize_t)name->name_len,
                         (int)(info->st_mode & 07777), (long long)info->st_uid, (long long)info->st_gid,
                         nanoseconds(info->st_mtim), nanoseconds(info->st_ctim), (unsigned long long)info->st_ino,
                         (unsigned long long)info->st_dev, content, (const char *)file->signature,
                         (Py_ssize_t)file->signature_len);
}

static PyObject *
reading_files(reading_object *self, PyObject *Py_UNUSED(ignored))
{
    wait_for_thread(self);
    PyObject *room = PyMemoryView_FromObject((PyObject *)self);
    PyObject *result = room ? PyList_New((Py_ssize_t)self->count) : NULL;
    for (size_t i = 0; result && i < self->count; i++) {
        PyObject *file = file_tuple(self, &self->files[i], room);
        if (file)
            PyList_SET_ITEM(result, (Py_ssize_t)i, file);
        else
            Py_CLEAR(result);
    }
    Py_XDECREF(room);
    return result;
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

static PyMethodDef reading_methods[] = {
    {"files", (PyCFunction)reading_files, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reading_members[] = {
    {"end", (getter)reading_end, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot reading_slots[] = {
    {Py_tp_dealloc, reading_dealloc},
    {Py_tp_methods, reading_methods},
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

int
ibt_add_reading(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &reading_spec, NULL);
    PyObject *delta = type ? PyImport_ImportModule("incremental_backups_tools.delta._native") : NULL;
    PyObject *functions = delta ? PyObject_GetAttrString(delta, "signing_functions") : NULL;
    int failed = -1;
    if (functions && PyModule_AddObjectRef(module, "signing_functions", functions) == 0)
        failed = PyModule_AddObjectRef(module, "Reading", type);
    Py_XDECREF(functions);
    Py_XDECREF(delta);
    Py_XDECREF(type);
    return failed;
}
