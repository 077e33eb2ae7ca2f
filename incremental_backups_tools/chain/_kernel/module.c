/* The Python face of plain.c, and the module. */
#include "chain_parts.h"

#include <string.h>

#include "listing.h"
#include "plain.h"

typedef struct {
    const ibt_hashing_functions *hashing;
} module_state;

/* A volume that members are for: how long its tar is before, how many bytes it still takes, and where to append them. */
typedef struct {
    uint64_t tar_len, room, added;
    PyObject *out;
} volume;

typedef struct {
    const module_state *state;
    ibt_plain_run run;
    volume whole, sigvault;
    long long begin_ns, fine_ns, coarse_ns;
    PyObject *owner_of;
    PyObject *kept; /* what owner_of gave */
    const ibt_read_file *read;
    Py_ssize_t read_count;
    Py_ssize_t noted_len; /* shorter files get no row */
    Py_buffer filter;
    ibt_owner *owners;
    ibt_plain_file *files;
    Py_ssize_t owner_count;
} batch;

static void
free_batch(batch *self)
{
    if (self->filter.obj)
        PyBuffer_Release(&self->filter);
    PyMem_Free(self->files);
    PyMem_Free(self->owners);
    Py_XDECREF(self->kept);
}

static int
check_header(const ibt_owner *owner, Py_ssize_t permissions_len, Py_ssize_t rest_len)
{
    if (owner->permissions && permissions_len == IBT_PERMISSIONS_LEN && rest_len == IBT_REST_LEN)
        return 0;
    PyErr_SetString(PyExc_ValueError, "these are no pieces of a tar header");
    return -1;
}

/* The owner of files with these numbers; 0 where they are of none that is plain, -1 with an exception. */
static int
find_owner(batch *self, int mode, long long uid, long long gid)
{
    PyObject *got = PyObject_CallFunction(self->owner_of, "iLL", mode, uid, gid);
    if (!got)
        return -1;
    if (got == Py_None) {
        Py_DECREF(got);
        return 0;
    }
    int failed = PyList_Append(self->kept, got);
    Py_DECREF(got);
    if (failed)
        return -1;
    if (!PyTuple_Check(got)) {
        PyErr_SetString(PyExc_TypeError, "an owner is a tuple");
        return -1;
    }
    ibt_owner *owner = &self->owners[self->owner_count];
    Py_ssize_t permissions_len, rest_len, line_len, encoding_len;
    if (!PyArg_ParseTuple(got, "y#y#Iy#y#", &owner->permissions, &permissions_len, &owner->rest, &rest_len,
                          &owner->sum, &owner->line.data, &line_len, &owner->encoding.data, &encoding_len) ||
        check_header(owner, permissions_len, rest_len) != 0)
        return -1;
    owner->line.len = (size_t)line_len;
    owner->encoding.len = (size_t)encoding_len;
    self->owner_count++;
    return 1;
}

static int
can_vouch(const batch *self, const ibt_plain_file *file)
{
    int is_coarse = file->mtime_ns % 1000000000 == 0 && file->ctime_ns % 1000000000 == 0;
    int64_t newest = file->mtime_ns > file->ctime_ns ? file->mtime_ns : file->ctime_ns;
    return newest <= self->begin_ns - (is_coarse ? self->coarse_ns : self->fine_ns);
}

static int64_t
nanoseconds(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int
has_owner_of(const ibt_read_file *one, const ibt_read_file *other)
{
    return one->info.st_mode == other->info.st_mode && one->info.st_uid == other->info.st_uid &&
           one->info.st_gid == other->info.st_gid;
}

static void
take_room(volume *self, size_t len, uint64_t *offset)
{
    *offset = self->tar_len + self->added + IBT_TAR_BLOCK_LEN;
    self->added += ibt_member_len(len);
}

/* Fill file number *i* and its offsets: 1 where it is plain and there is room, 0 where not, -1 with an exception. */
static int
fill_file(batch *self, Py_ssize_t i)
{
    const ibt_read_file *read = &self->read[i];
    ibt_plain_file *file = &self->files[i];
    file->name = (ibt_text){read->name, read->name_len};
    file->content = (ibt_text){read->content, (size_t)read->info.st_size};
    file->signature = (ibt_text){(const char *)read->signature, read->signature_len};
    file->mtime_ns = nanoseconds(read->info.st_mtim);
    file->ctime_ns = nanoseconds(read->info.st_ctim);
    file->inode = read->info.st_ino;
    file->dev = read->info.st_dev;
    file->digest = read->digest;
    file->sig_digest = read->sig_digest;
    file->is_vouched = can_vouch(self, file);
    if (!ibt_is_plain(&self->run, file))
        return 0;
    if (i == 0 || !has_owner_of(read, read - 1)) {
        int found = find_owner(self, (int)(read->info.st_mode & 07777), read->info.st_uid, read->info.st_gid);
        if (found <= 0)
            return found;
    }
    file->owner = &self->owners[self->owner_count - 1];
    take_room(&self->whole, file->content.len, &file->data_offset);
    if (file->signature.data)
        take_room(&self->sigvault, file->signature.len, &file->sig_offset);
    return self->whole.added <= self->whole.room && self->sigvault.added <= self->sigvault.room;
}

/* Fill the files up to the first that is not plain, or has no room; return how many, -1 with an exception. */
static Py_ssize_t
fill_files(batch *self)
{
    size_t room = (size_t)self->read_count + 1;
    self->files = PyMem_Calloc(room, sizeof *self->files);
    self->owners = PyMem_Calloc(room, sizeof *self->owners);
    self->kept = PyList_New(0);
    if (!self->files || !self->owners || !self->kept) {
        PyErr_NoMemory();
        return -1;
    }
    Py_ssize_t count = 0;
    for (; count < self->read_count; count++) {
        int is_filled = fill_file(self, count);
        if (is_filled < 0)
            return -1;
        if (!is_filled)
            break;
    }
    return count;
}

/* The length of each member, and of all. */
static PyObject *
member_lens(const batch *self, Py_ssize_t count, int of_signatures, size_t *total)
{
    PyObject *lens = PyList_New(0);
    *total = 0;
    for (Py_ssize_t i = 0; lens && i < count; i++) {
        const ibt_plain_file *file = &self->files[i];
        ibt_text data = of_signatures ? file->signature : file->content;
        if (!data.data)
            continue;
        *total += ibt_member_len(data.len);
        PyObject *len = PyLong_FromUnsignedLongLong(ibt_member_len(data.len));
        if (!len || PyList_Append(lens, len) != 0)
            Py_CLEAR(lens);
        Py_XDECREF(len);
    }
    return lens;
}

/* Make *out* longer; return where what it has gained begins, NULL with an exception. */
static char *
lengthen(PyObject *out, size_t len)
{
    Py_ssize_t before = PyByteArray_GET_SIZE(out);
    return PyByteArray_Resize(out, before + (Py_ssize_t)len) == 0 ? PyByteArray_AS_STRING(out) + before : NULL;
}

static int
append_members(const batch *self, Py_ssize_t count, size_t whole_len, size_t sigvault_len)
{
    char *whole = lengthen(self->whole.out, whole_len);
    char *signatures = whole ? lengthen(self->sigvault.out, sigvault_len) : NULL;
    if (!signatures) {
        if (whole) {
            PyObject *type, *value, *trace;
            PyErr_Fetch(&type, &value, &trace);
            PyByteArray_Resize(self->whole.out, PyByteArray_GET_SIZE(self->whole.out) - (Py_ssize_t)whole_len);
            PyErr_Restore(type, value, trace);
        }
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const ibt_plain_file *file = &self->files[i];
        whole = ibt_write_member(whole, &self->run, file, file->owner, file->content);
        if (file->signature.data)
            signatures = ibt_write_member(signatures, &self->run, file, &self->run.sig_owner, file->signature);
    }
    return 0;
}

typedef char *write_function(char *out, const ibt_plain_run *run, const ibt_plain_file *file);

/* What *write* makes of the files, one after the other, in memory to be freed; *ends gets where each ends. */
static char *
written(const batch *self, Py_ssize_t count, write_function *write, char **ends)
{
    size_t room = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        room += ibt_line_room(&self->run, &self->files[i]);
    char *lines = PyMem_Malloc(room + 1), *out = lines;
    if (!lines)
        return (char *)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++)
        out = ends[i] = write(out, &self->run, &self->files[i]);
    return lines;
}

static PyObject *
lines_of(const batch *self, Py_ssize_t count, write_function *write, char **ends)
{
    char *lines = written(self, count, write, ends);
    PyObject *result =
        lines ? PyBytes_FromStringAndSize(lines, count ? ends[count - 1] - lines : 0) : NULL;
    PyMem_Free(lines);
    return result;
}

/* What the files add to an index digest. */
static PyObject *
digest_of(const batch *self, Py_ssize_t count, char **ends)
{
    uint8_t sum[IBT_DIGEST_LEN] = {0};
    char *encodings = written(self, count, ibt_write_encoding, ends);
    ibt_message *messages = PyMem_Calloc((size_t)count + 1, sizeof *messages);
    uint8_t *digests = PyMem_Calloc((size_t)count + 1, IBT_DIGEST_LEN);
    PyObject *result = NULL;
    if (encodings && messages && digests) {
        const char *begin = encodings;
        for (Py_ssize_t i = 0; i < count; begin = ends[i++])
            messages[i] =
                (ibt_message){(const uint8_t *)begin, (size_t)(ends[i] - begin), digests + i * IBT_DIGEST_LEN};
        self->state->hashing->blake3_many(messages, (size_t)count);
        for (Py_ssize_t i = 0; i < count; i++)
            ibt_add_digest(sum, messages[i].out);
        result = PyBytes_FromStringAndSize((const char *)sum, sizeof sum);
    } else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    PyMem_Free(encodings);
    PyMem_Free(messages);
    PyMem_Free(digests);
    return result;
}

/* The rows of a table of contents: size, beginning of the digest, sort key of the path. The filter has them, too. */
static PyObject *
rows_of(const batch *self, Py_ssize_t count)
{
    PyObject *rows = PyList_New(0);
    for (Py_ssize_t i = 0; rows && i < count; i++) {
        const ibt_plain_file *file = &self->files[i];
        if (file->content.len < (size_t)self->noted_len)
            continue;
        int64_t prefix = ibt_digest_prefix(file->digest);
        ibt_filter_add(self->filter.buf, (size_t)self->filter.len, prefix);
        PyObject *key = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(self->run.prefix.len + file->name.len));
        if (key)
            ibt_write_sort_key(PyBytes_AS_STRING(key), &self->run, file);
        PyObject *row = key ? Py_BuildValue("nLN", (Py_ssize_t)file->content.len, (long long)prefix, key) : NULL;
        if (!row || PyList_Append(rows, row) != 0)
            Py_CLEAR(rows);
        Py_XDECREF(row);
    }
    return rows;
}

static long long
total_len(const batch *self, Py_ssize_t count)
{
    long long total = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        total += (long long)self->files[i].content.len;
    return total;
}

static PyObject *
encode_batch(batch *self)
{
    Py_ssize_t count = fill_files(self);
    char **ends = count < 0 ? NULL : PyMem_Calloc((size_t)count + 1, sizeof *ends);
    if (!ends)
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    size_t whole_len, sigvault_len;
    PyObject *whole_lens = member_lens(self, count, 0, &whole_len);
    PyObject *sigvault_lens = member_lens(self, count, 1, &sigvault_len);
    PyObject *state = lines_of(self, count, ibt_write_state_line, ends);
    PyObject *index = lines_of(self, count, ibt_write_index_line, ends);
    PyObject *digest = digest_of(self, count, ends);
    PyObject *rows = rows_of(self, count), *result = NULL;
    if (whole_lens && sigvault_lens && state && index && digest && rows)
        result = Py_BuildValue("nLOOOOOO", count, total_len(self, count), whole_lens, sigvault_lens, state, index,
                               digest, rows);
    if (result && append_members(self, count, whole_len, sigvault_len) != 0)
        Py_CLEAR(result);
    PyMem_Free(ends);
    Py_XDECREF(whole_lens);
    Py_XDECREF(sigvault_lens);
    Py_XDECREF(state);
    Py_XDECREF(index);
    Py_XDECREF(digest);
    Py_XDECREF(rows);
    return result;
}

/* Where the files of a Reading from *begin* to *end* are: 0, or -1 with an exception. */
static int
find_files(const ibt_read_file **files, PyObject *table, Py_ssize_t begin, Py_ssize_t end)
{
    const ibt_read_table *read = PyCapsule_GetPointer(table, IBT_READ_TABLE);
    if (!read)
        return -1;
    if (begin < 0 || end < begin || (size_t)end > read->count) {
        PyErr_SetString(PyExc_IndexError, "so many files were not read");
        return -1;
    }
    *files = read->count ? read->files + begin : NULL;
    return 0;
}

static int
check_filter(const Py_buffer *filter)
{
    size_t len = (size_t)filter->len;
    if (len && !(len & (len - 1)))
        return 0;
    PyErr_SetString(PyExc_ValueError, "the length of a filter is a power of two");
    return -1;
}

static PyObject *
native_encode_plain(PyObject *module, PyObject *args)
{
    batch self = {.state = PyModule_GetState(module)};
    PyObject *table;
    Py_ssize_t begin, end, prefix_len, whole_file_len, sigvault_file_len, permissions_len, rest_len;
    unsigned long long whole_len, whole_room, sigvault_len, sigvault_room;
    ibt_plain_run *run = &self.run;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "Onny#(y#KKO!)(y#KKO!)(y#y#I)O(LLL)nw*:encode_plain", &table, &begin, &end,
                          &run->prefix.data, &prefix_len, &run->data_file.data, &whole_file_len, &whole_len,
                          &whole_room, &PyByteArray_Type, &self.whole.out, &run->sig_file.data, &sigvault_file_len,
                          &sigvault_len, &sigvault_room, &PyByteArray_Type, &self.sigvault.out,
                          &run->sig_owner.permissions, &permissions_len, &run->sig_owner.rest, &rest_len,
                          &run->sig_owner.sum, &self.owner_of, &self.begin_ns, &self.fine_ns, &self.coarse_ns,
                          &self.noted_len, &self.filter))
        return NULL;
    run->prefix.len = (size_t)prefix_len;
    run->data_file.len = (size_t)whole_file_len;
    run->sig_file.len = (size_t)sigvault_file_len;
    self.whole.tar_len = whole_len;
    self.whole.room = whole_room;
    self.sigvault.tar_len = sigvault_len;
    self.sigvault.room = sigvault_room;
    self.read_count = end - begin;
    if (find_files(&self.read, table, begin, end) == 0 && check_header(&run->sig_owner, permissions_len, rest_len) == 0 && check_filter(&self.filter) == 0)
        result = encode_batch(&self);
    free_batch(&self);
    return result;
}

/* Whether the beginning of the digest of *read* is that of one from *first* on before it. */
static int
is_repeated(const ibt_read_file *first, const ibt_read_file *read)
{
    for (; first < read; first++)
        if (memcmp(first->digest, read->digest, 8) == 0)
            return 1;
    return 0;
}

static PyObject *
native_find_seen(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *table;
    Py_ssize_t begin, end, noted_len;
    Py_buffer filter;
    if (!PyArg_ParseTuple(args, "Onnny*:find_seen", &table, &begin, &end, &noted_len, &filter))
        return NULL;
    const ibt_read_file *files;
    int failed = find_files(&files, table, begin, end) != 0 || check_filter(&filter) != 0;
    PyObject *positions = failed ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; positions && i < end - begin; i++) {
        const ibt_read_file *read = &files[i];
        if (read->info.st_size < noted_len ||
            !(ibt_filter_has(filter.buf, (size_t)filter.len, ibt_digest_prefix(read->digest)) ||
              is_repeated(files, read)))
            continue;
        PyObject *position = PyLong_FromSsize_t(begin + i);
        if (!position || PyList_Append(positions, position) != 0)
            Py_CLEAR(positions);
        Py_XDECREF(position);
    }
    PyBuffer_Release(&filter);
    return positions;
}

/* The functions stay as long as the capsule, which the module keeps. */
static int
add_hashing_functions(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    PyObject *tree = PyImport_ImportModule("incremental_backups_tools.tree._native");
    PyObject *capsule = tree ? PyObject_GetAttrString(tree, "hashing_functions") : NULL;
    Py_XDECREF(tree);
    state->hashing = capsule ? PyCapsule_GetPointer(capsule, IBT_HASHING_FUNCTIONS) : NULL;
    int failed = state->hashing ? PyModule_AddObjectRef(module, "hashing_functions", capsule) : -1;
    Py_XDECREF(capsule);
    return failed;
}

static PyMethodDef methods[] = {
    {"encode_plain", native_encode_plain, METH_VARARGS, NULL},
    {"find_seen", native_find_seen, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_hashing_functions},
    {Py_mod_exec, ibt_add_lost_names},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "incremental_backups_tools.chain._native",
    .m_doc = "The loops of a backup in C; the modules _*_twin of incremental_backups_tools.chain say what they do.",
    .m_size = sizeof(module_state),
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
