/* The Python face of plain.c. No state: nothing is kept in the module. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "plain.h"

typedef struct {
    ibt_plain_run run;
    uint64_t data_tar_len, sig_tar_len; /* of the volumes before */
    long long begin_ns, fine_ns, coarse_ns;
    PyObject *owner_of;
    PyObject *items, *digests, *sig_digests; /* tuples of our own: nobody can change them while owner_of runs */
    PyObject *kept;                          /* what owner_of gave */
    ibt_owner *owners;
    ibt_plain_file *files;
    Py_buffer *contents;
    Py_ssize_t owner_count, content_count;
} batch;

static void
free_batch(batch *self)
{
    for (Py_ssize_t i = 0; i < self->content_count; i++)
        PyBuffer_Release(&self->contents[i]);
    PyMem_Free(self->contents);
    PyMem_Free(self->files);
    PyMem_Free(self->owners);
    Py_XDECREF(self->items);
    Py_XDECREF(self->digests);
    Py_XDECREF(self->sig_digests);
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

/* 32 bytes, or NULL with an exception. */
static const uint8_t *
digest_at(PyObject *digests, Py_ssize_t i)
{
    PyObject *digest = PyTuple_GET_ITEM(digests, i);
    if (PyBytes_Check(digest) && PyBytes_GET_SIZE(digest) == IBT_DIGEST_LEN)
        return (const uint8_t *)PyBytes_AS_STRING(digest);
    PyErr_SetString(PyExc_ValueError, "a digest is 32 bytes");
    return NULL;
}

static int
can_vouch(const batch *self, const ibt_plain_file *file)
{
    int is_coarse = file->mtime_ns % 1000000000 == 0 && file->ctime_ns % 1000000000 == 0;
    int64_t newest = file->mtime_ns > file->ctime_ns ? file->mtime_ns : file->ctime_ns;
    return newest <= self->begin_ns - (is_coarse ? self->coarse_ns : self->fine_ns);
}

/* Fill file number *i*: 1 where it is plain, 0 where it is not, -1 with an exception. */
static int
parse_file(batch *self, Py_ssize_t i, int *mode, long long *uid, long long *gid)
{
    ibt_plain_file *file = &self->files[i];
    PyObject *item = PyTuple_GET_ITEM(self->items, i);
    const char *name, *signature;
    Py_ssize_t number, name_len, signature_len;
    int new_mode;
    long long new_uid, new_gid, mtime_ns, ctime_ns;
    unsigned long long inode, dev;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a file is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "ny#iLLLLKKy*z#", &number, &name, &name_len, &new_mode, &new_uid, &new_gid, &mtime_ns,
                          &ctime_ns, &inode, &dev, &self->contents[i], &signature, &signature_len))
        return -1;
    self->content_count++;
    file->name = (ibt_text){name, (size_t)name_len};
    file->content = (ibt_text){self->contents[i].buf, (size_t)self->contents[i].len};
    file->signature = (ibt_text){signature, signature ? (size_t)signature_len : 0};
    file->mtime_ns = mtime_ns;
    file->ctime_ns = ctime_ns;
    file->inode = inode;
    file->dev = dev;
    file->is_vouched = can_vouch(self, file);
    file->digest = digest_at(self->digests, i);
    file->sig_digest = file->digest && signature ? digest_at(self->sig_digests, i) : file->digest;
    if (!file->sig_digest)
        return -1;
    if (!ibt_is_plain(&self->run, file))
        return 0;
    if (i == 0 || new_mode != *mode || new_uid != *uid || new_gid != *gid) {
        int found = find_owner(self, new_mode, new_uid, new_gid);
        if (found <= 0)
            return found;
        *mode = new_mode;
        *uid = new_uid;
        *gid = new_gid;
    }
    file->owner = &self->owners[self->owner_count - 1];
    return 1;
}

/* Fill the files and their offsets, up to the first that is not plain; return how many, -1 with an exception. */
static Py_ssize_t
parse_files(batch *self)
{
    Py_ssize_t count = PyTuple_GET_SIZE(self->items);
    if (PyTuple_GET_SIZE(self->digests) != count || PyTuple_GET_SIZE(self->sig_digests) != count) {
        PyErr_SetString(PyExc_ValueError, "each file has a digest, and one of its signature");
        return -1;
    }
    self->files = PyMem_Calloc((size_t)count + 1, sizeof *self->files);
    self->contents = PyMem_Calloc((size_t)count + 1, sizeof *self->contents);
    self->owners = PyMem_Calloc((size_t)count + 1, sizeof *self->owners);
    self->kept = PyList_New(0);
    if (!self->files || !self->contents || !self->owners || !self->kept) {
        PyErr_NoMemory();
        return -1;
    }
    uint64_t data_end = self->data_tar_len, sig_end = self->sig_tar_len;
    int mode = -1;
    long long uid = -1, gid = -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        int is_plain = parse_file(self, i, &mode, &uid, &gid);
        if (is_plain <= 0)
            return is_plain < 0 ? -1 : i;
        ibt_plain_file *file = &self->files[i];
        file->data_offset = data_end + IBT_TAR_BLOCK_LEN;
        data_end += ibt_member_len(file->content.len);
        file->sig_offset = sig_end + IBT_TAR_BLOCK_LEN;
        if (file->signature.data)
            sig_end += ibt_member_len(file->signature.len);
    }
    return count;
}

static PyObject *
content_members(const batch *self, Py_ssize_t count)
{
    size_t room = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        room += ibt_member_len(self->files[i].content.len);
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    char *out = result ? PyBytes_AS_STRING(result) : NULL;
    for (Py_ssize_t i = 0; result && i < count; i++) {
        const ibt_plain_file *file = &self->files[i];
        out = ibt_write_member(out, &self->run, file, file->owner, file->content);
    }
    return result;
}

static PyObject *
signature_members(const batch *self, Py_ssize_t count)
{
    size_t room = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (self->files[i].signature.data)
            room += ibt_member_len(self->files[i].signature.len);
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    char *out = result ? PyBytes_AS_STRING(result) : NULL;
    for (Py_ssize_t i = 0; result && i < count; i++) {
        const ibt_plain_file *file = &self->files[i];
        if (file->signature.data)
            out = ibt_write_member(out, &self->run, file, &self->run.sig_owner, file->signature);
    }
    return result;
}

typedef char *write_function(char *out, const ibt_plain_run *run, const ibt_plain_file *file);

/* What *write* makes of the files, one after the other; where *parts* is a list, also each one's, appended to it:
 * its length, or itself where it *is_kept*. */
static PyObject *
written(const batch *self, Py_ssize_t count, write_function *write, PyObject *parts, int is_kept)
{
    size_t room = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        room += ibt_line_room(&self->run, &self->files[i]);
    char *lines = PyMem_Malloc(room + 1), *out = lines;
    if (!lines)
        return PyErr_NoMemory();
    int failed = 0;
    for (Py_ssize_t i = 0; i < count && !failed; i++) {
        char *end = write(out, &self->run, &self->files[i]);
        if (parts) {
            PyObject *part = is_kept ? PyBytes_FromStringAndSize(out, end - out) : PyLong_FromSsize_t(end - out);
            failed = !part || PyList_Append(parts, part) != 0;
            Py_XDECREF(part);
        }
        out = end;
    }
    PyObject *result = failed ? NULL : PyBytes_FromStringAndSize(lines, out - lines);
    PyMem_Free(lines);
    return result;
}

static PyObject *
encode_batch(batch *self)
{
    Py_ssize_t count = parse_files(self);
    if (count < 0)
        return NULL;
    PyObject *members = content_members(self, count), *signatures = signature_members(self, count);
    PyObject *index_lens = PyList_New(0), *encodings = PyList_New(0), *result = NULL;
    PyObject *state = written(self, count, ibt_write_state_line, NULL, 0);
    PyObject *index = index_lens ? written(self, count, ibt_write_index_line, index_lens, 0) : NULL;
    PyObject *all = encodings ? written(self, count, ibt_write_encoding, encodings, 1) : NULL;
    if (members && signatures && state && index && all)
        result = Py_BuildValue("nOOOOOO", count, members, signatures, state, index, index_lens, encodings);
    Py_XDECREF(members);
    Py_XDECREF(signatures);
    Py_XDECREF(index_lens);
    Py_XDECREF(encodings);
    Py_XDECREF(state);
    Py_XDECREF(index);
    Py_XDECREF(all);
    return result;
}

static PyObject *
native_encode_plain(PyObject *module, PyObject *args)
{
    (void)module;
    batch self = {0};
    PyObject *items, *digests, *sig_digests;
    Py_ssize_t prefix_len, data_file_len, sig_file_len, permissions_len, rest_len;
    unsigned long long data_tar_len, sig_tar_len;
    ibt_plain_run *run = &self.run;
    if (!PyArg_ParseTuple(args, "OOOy#(y#K)(y#K)(y#y#I)O(LLL):encode_plain", &items, &digests, &sig_digests,
                          &run->prefix.data, &prefix_len, &run->data_file.data, &data_file_len, &data_tar_len,
                          &run->sig_file.data, &sig_file_len, &sig_tar_len, &run->sig_owner.permissions,
                          &permissions_len, &run->sig_owner.rest, &rest_len, &run->sig_owner.sum, &self.owner_of,
                          &self.begin_ns, &self.fine_ns, &self.coarse_ns) ||
        check_header(&run->sig_owner, permissions_len, rest_len) != 0)
        return NULL;
    run->prefix.len = (size_t)prefix_len;
    run->data_file.len = (size_t)data_file_len;
    run->sig_file.len = (size_t)sig_file_len;
    self.data_tar_len = data_tar_len;
    self.sig_tar_len = sig_tar_len;
    self.items = PySequence_Tuple(items);
    self.digests = self.items ? PySequence_Tuple(digests) : NULL;
    self.sig_digests = self.digests ? PySequence_Tuple(sig_digests) : NULL;
    PyObject *result = self.sig_digests ? encode_batch(&self) : NULL;
    free_batch(&self);
    return result;
}

static PyMethodDef methods[] = {
    {"encode_plain", native_encode_plain, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
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
    .m_doc = "What plain files are in archives and lists, in C; incremental_backups_tools.chain._plain_twin says what.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
