/* The Python face of create.c. No state: nothing is kept in the module. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "blake3.h"
#include "create.h"
#include "parts.h"

/* The objects that one file's fields point into. */
typedef struct {
    PyObject *item;
    Py_buffer content;
} file_owner;

static int
parse_file(PyObject *item, ibt_new_file *file, file_owner *owner)
{
    int first_mode, mode;
    long long uid, gid, mtime_ns;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a file is a tuple");
        return -1;
    }
    const char *temporary, *final, *digest;
    Py_ssize_t temporary_len, final_len, digest_len;
    if (!PyArg_ParseTuple(item, "iy#z#y*z#iiLLLp:create_files", &file->dir_fd, &temporary, &temporary_len, &final,
                          &final_len, &owner->content, &digest, &digest_len, &first_mode, &mode, &uid, &gid, &mtime_ns,
                          &file->check_attributes))
        return -1;
    owner->item = Py_NewRef(item);
    if (strlen(temporary) != (size_t)temporary_len || (final && strlen(final) != (size_t)final_len) ||
        strchr(temporary, '/') || (final && strchr(final, '/'))) {
        PyErr_SetString(PyExc_ValueError, "a name must be one component without NUL");
        return -1;
    }
    file->temporary = temporary;
    file->final = final;
    file->content = owner->content.buf;
    file->content_len = (size_t)owner->content.len;
    file->digest = digest && digest_len == IBT_BLAKE3_LEN ? (const uint8_t *)digest : NULL;
    file->first_mode = (mode_t)first_mode;
    file->mode = (mode_t)mode;
    file->uid = uid;
    file->gid = gid;
    file->mtime_ns = mtime_ns;
    return 0;
}

static PyObject *
list_of_codes(const int *codes, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *code = PyLong_FromLong(codes[i]);
        if (code)
            PyList_SET_ITEM(list, i, code);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *
native_create_files(PyObject *module, PyObject *arg)
{
    (void)module;
    PyObject *result = NULL;
    ibt_new_file *files = NULL;
    file_owner *owners = NULL;
    ibt_message *messages = NULL;
    uint8_t *digests = NULL;
    int *codes = NULL;
    Py_ssize_t count = 0;
    /* A tuple of its own: nobody can change it while the lock is released. */
    PyObject *items = PySequence_Tuple(arg);
    if (!items)
        return NULL;
    count = PyTuple_GET_SIZE(items);
    files = PyMem_Calloc((size_t)count + 1, sizeof *files);
    owners = PyMem_Calloc((size_t)count + 1, sizeof *owners);
    messages = PyMem_Calloc((size_t)count + 1, sizeof *messages);
    digests = PyMem_Calloc((size_t)count + 1, IBT_BLAKE3_LEN);
    codes = PyMem_Calloc((size_t)count + 1, sizeof *codes);
    if (!files || !owners || !messages || !digests || !codes) {
        PyErr_NoMemory();
        goto exit;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (parse_file(PyTuple_GET_ITEM(items, i), &files[i], &owners[i]) != 0)
            goto exit;
    Py_BEGIN_ALLOW_THREADS
    int is_fatal = 0;
    ibt_check_contents(files, (size_t)count, messages, digests, codes);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (codes[i] == 0)
            codes[i] = is_fatal ? IBT_CANCELLED : ibt_create_file(&files[i]);
        is_fatal = is_fatal || ibt_is_fatal(codes[i]);
    }
    Py_END_ALLOW_THREADS
    result = list_of_codes(codes, count);
exit:
    for (Py_ssize_t i = 0; owners && i < count; i++) {
        PyBuffer_Release(&owners[i].content);
        Py_XDECREF(owners[i].item);
    }
    PyMem_Free(files);
    PyMem_Free(owners);
    PyMem_Free(messages);
    PyMem_Free(digests);
    PyMem_Free(codes);
    Py_DECREF(items);
    return result;
}

/* The digest of each of some messages, by every loop that there is: for tests. */
static PyObject *
native_blake3_many(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *given, *result = NULL;
    int is_plain;
    if (!PyArg_ParseTuple(args, "Op:blake3_many", &given, &is_plain))
        return NULL;
    PyObject *items = PySequence_Tuple(given);
    Py_ssize_t count = items ? PyTuple_GET_SIZE(items) : 0;
    ibt_message *messages = PyMem_Calloc((size_t)count + 1, sizeof *messages);
    uint8_t *digests = PyMem_Calloc((size_t)count + 1, IBT_BLAKE3_LEN);
    if (!items || !messages || !digests) {
        if (items)
            PyErr_NoMemory();
        goto exit;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        char *data;
        Py_ssize_t len;
        if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(items, i), &data, &len) != 0)
            goto exit;
        if (len > IBT_BLAKE3_MAX) {
            PyErr_SetString(PyExc_ValueError, "a message is too long");
            goto exit;
        }
        messages[i] = (ibt_message){(const uint8_t *)data, (size_t)len, digests + i * IBT_BLAKE3_LEN};
    }
    (is_plain ? ibt_blake3_many_plain : ibt_blake3_many)(messages, (size_t)count);
    result = PyList_New(count);
    for (Py_ssize_t i = 0; result && i < count; i++) {
        PyObject *digest = PyBytes_FromStringAndSize((const char *)messages[i].out, IBT_BLAKE3_LEN);
        if (digest)
            PyList_SET_ITEM(result, i, digest);
        else
            Py_CLEAR(result);
    }
exit:
    PyMem_Free(messages);
    PyMem_Free(digests);
    Py_XDECREF(items);
    return result;
}

static int
add_hashing_functions(PyObject *module)
{
    static ibt_hashing_functions functions = {ibt_blake3_many};
    PyObject *capsule = PyCapsule_New(&functions, IBT_HASHING_FUNCTIONS, NULL);
    int failed = capsule ? PyModule_AddObjectRef(module, "hashing_functions", capsule) : -1;
    Py_XDECREF(capsule);
    return failed;
}

static PyMethodDef methods[] = {
    {"create_files", native_create_files, METH_O, "create_files(files) -> codes"},
    {"blake3_many", native_blake3_many, METH_VARARGS, "blake3_many(messages, is_plain) -> digests"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_hashing_functions},
    {Py_mod_exec, ibt_add_listing},
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
    .m_name = "incremental_backups_tools.tree._native",
    .m_doc = "Making new files in C; incremental_backups_tools.tree._twin says what it does.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
