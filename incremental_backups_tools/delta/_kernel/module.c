/* The Python face of the kernel: buffers in, bytes and numbers out. The contract of each function is its
 * twin's, in _twin.py.
 *
 * No state: nothing is kept in the module, so it loads into any number of interpreters, with or without a
 * GIL.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernel.h"

#define TABLE_NAME "incremental_backups_tools.delta._native.table"

enum {
    BATCH = 4096,                /* matches or commands returned by one call */
    MAX_BLOCK_LEN = 1 << 30,
    MIN_UNLOCKED_LEN = 1 << 16,  /* making fewer bytes takes no longer than meeting others at the lock */
};

typedef struct {
    ibt_table table;
    Py_buffer records;
} table_owner;

static int
check_format(ibt_format *format, Py_ssize_t block_len, Py_ssize_t strong_len, int weak, int strong)
{
    Py_ssize_t strong_max = strong == IBT_MD4 ? 16 : IBT_STRONG_MAX;
    if (weak != IBT_ROLLSUM && weak != IBT_RABINKARP) {
        PyErr_SetString(PyExc_ValueError, "unknown weak sum");
        return -1;
    }
    if (strong != IBT_MD4 && strong != IBT_BLAKE2B) {
        PyErr_SetString(PyExc_ValueError, "unknown strong sum");
        return -1;
    }
    if (block_len < 1 || block_len > MAX_BLOCK_LEN || strong_len < 1 || strong_len > strong_max) {
        PyErr_SetString(PyExc_ValueError, "block_len or strong_len out of range");
        return -1;
    }
    *format = (ibt_format){
        .weak = weak, .strong = strong, .block_len = (uint32_t)block_len, .strong_len = (uint32_t)strong_len};
    return 0;
}

static PyObject *
native_weak_sum(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer data;
    int kind;
    if (!PyArg_ParseTuple(args, "y*i:weak_sum", &data, &kind))
        return NULL;
    uint32_t sum;
    Py_BEGIN_ALLOW_THREADS
    sum = ibt_weak_sum(kind == IBT_ROLLSUM ? IBT_ROLLSUM : IBT_RABINKARP, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(sum);
}

static PyObject *
native_strong_sum(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer data;
    int kind;
    if (!PyArg_ParseTuple(args, "y*i:strong_sum", &data, &kind))
        return NULL;
    uint8_t sum[IBT_STRONG_MAX];
    Py_BEGIN_ALLOW_THREADS
    ibt_strong_sum(kind == IBT_MD4 ? IBT_MD4 : IBT_BLAKE2B, data.buf, (size_t)data.len, sum);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyBytes_FromStringAndSize((char *)sum, kind == IBT_MD4 ? 16 : IBT_STRONG_MAX);
}

static PyObject *
native_hash_blocks(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer data;
    Py_ssize_t block_len, strong_len;
    int weak, strong;
    ibt_format format;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*nnii:hash_blocks", &data, &block_len, &strong_len, &weak, &strong))
        return NULL;
    if (check_format(&format, block_len, strong_len, weak, strong) < 0)
        goto exit;
    Py_ssize_t count = data.len / block_len + (data.len % block_len != 0), stride = IBT_WEAK_LEN + strong_len;
    if (count > PY_SSIZE_T_MAX / stride) {
        PyErr_NoMemory();
        goto exit;
    }
    result = PyBytes_FromStringAndSize(NULL, count * stride);
    if (!result)
        goto exit;
    Py_BEGIN_ALLOW_THREADS
    ibt_hash_blocks(&format, data.buf, (size_t)data.len, (uint8_t *)PyBytes_AS_STRING(result));
    Py_END_ALLOW_THREADS
exit:
    PyBuffer_Release(&data);
    return result;
}

static void
free_table(PyObject *capsule)
{
    table_owner *owner = PyCapsule_GetPointer(capsule, TABLE_NAME);
    ibt_table_free(&owner->table);
    PyBuffer_Release(&owner->records);
    PyMem_Free(owner);
}

static PyObject *
native_build_table(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t block_len, strong_len;
    int weak, strong, failed;
    ibt_format format;
    PyObject *capsule = NULL;
    table_owner *owner = PyMem_Calloc(1, sizeof *owner);
    if (!owner)
        return PyErr_NoMemory();
    if (!PyArg_ParseTuple(args, "y*nnii:build_table", &owner->records, &block_len, &strong_len, &weak, &strong)) {
        PyMem_Free(owner);
        return NULL;
    }
    if (check_format(&format, block_len, strong_len, weak, strong) < 0)
        goto exit;
    if (owner->records.len % (IBT_WEAK_LEN + strong_len)) {
        PyErr_SetString(PyExc_ValueError, "records end within a record");
        goto exit;
    }
    size_t count = (size_t)(owner->records.len / (IBT_WEAK_LEN + strong_len));
    Py_BEGIN_ALLOW_THREADS
    failed = ibt_table_build(&owner->table, &format, owner->records.buf, count);
    Py_END_ALLOW_THREADS
    if (failed) {
        PyErr_NoMemory();
        goto exit;
    }
    capsule = PyCapsule_New(owner, TABLE_NAME, free_table);
    if (!capsule)
        ibt_table_free(&owner->table);
exit:
    if (!capsule) {
        PyBuffer_Release(&owner->records);
        PyMem_Free(owner);
    }
    return capsule;
}

static int
check_search(const ibt_search *search, const Py_buffer *known, size_t stride)
{
    if (search->pos > search->len || search->stop > search->len || known->len % (Py_ssize_t)stride) {
        PyErr_SetString(PyExc_ValueError, "search positions or known records out of range");
        return -1;
    }
    return 0;
}

/* search(table, data, pos, stop, base, next_block, false_bytes, known, known_first, is_last) */
static PyObject *
native_search(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *capsule, *result = NULL;
    Py_buffer data, known;
    Py_ssize_t pos, stop, known_first;
    unsigned long long base, false_bytes;
    long long next_block;
    int is_last;
    ibt_match *matches = NULL;
    if (!PyArg_ParseTuple(args, "Oy*nnKLKy*np:search", &capsule, &data, &pos, &stop, &base, &next_block, &false_bytes,
                          &known, &known_first, &is_last))
        return NULL;
    table_owner *owner = PyCapsule_GetPointer(capsule, TABLE_NAME);
    if (!owner)
        goto exit;
    size_t stride = IBT_WEAK_LEN + owner->table.format.strong_len;
    if (pos < 0 || stop < 0 || known_first < 0) {
        PyErr_SetString(PyExc_ValueError, "negative position");
        goto exit;
    }
    ibt_search search = {
        .data = data.buf, .len = (size_t)data.len, .pos = (size_t)pos, .stop = (size_t)stop, .base = base,
        .next_block = next_block < 0 ? IBT_NO_BLOCK : (uint64_t)next_block, .false_bytes = false_bytes,
        .known = known.len ? known.buf : NULL, .known_first = (size_t)known_first,
        .known_count = (size_t)known.len / stride, .match_cap = BATCH,
    };
    if (check_search(&search, &known, stride) < 0)
        goto exit;
    search.matches = matches = PyMem_Malloc(BATCH * sizeof *matches);
    if (!matches) {
        PyErr_NoMemory();
        goto exit;
    }
    int is_full;
    Py_BEGIN_ALLOW_THREADS
    ibt_search_windows(&owner->table, &search);
    is_full = search.match_cap - search.match_count < IBT_LANES;
    if (is_last && !is_full)
        ibt_search_tail(&owner->table, &search);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue(
        "nLKKKy#O", (Py_ssize_t)search.pos, search.next_block == IBT_NO_BLOCK ? -1LL : (long long)search.next_block,
        (unsigned long long)search.false_bytes, (unsigned long long)search.strong_bytes,
        (unsigned long long)search.false_alarms, (char *)matches, (Py_ssize_t)(search.match_count * sizeof *matches),
        is_full ? Py_True : Py_False);
exit:
    PyMem_Free(matches);
    PyBuffer_Release(&data);
    PyBuffer_Release(&known);
    return result;
}

static PyObject *
native_exact_delta(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer old, new;
    PyObject *delta = NULL;
    uint32_t *index = NULL;
    uint64_t compared = 0;
    if (!PyArg_ParseTuple(args, "y*y*:exact_delta", &old, &new))
        return NULL;
    if (old.len > IBT_EXACT_MAX || new.len > IBT_EXACT_MAX) {
        PyErr_SetString(PyExc_ValueError, "more bytes than a delta is made of at once");
        goto exit;
    }
    index = PyMem_Malloc(ibt_exact_index_len((size_t)old.len) * sizeof *index);
    if (!index) {
        PyErr_NoMemory();
        goto exit;
    }
    delta = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)ibt_exact_delta_max((size_t)new.len));
    if (!delta)
        goto exit;
    size_t length;
    Py_BEGIN_ALLOW_THREADS
    length = ibt_exact_delta(old.buf, (size_t)old.len, new.buf, (size_t)new.len, index,
                             (uint8_t *)PyBytes_AS_STRING(delta), &compared);
    Py_END_ALLOW_THREADS
    _PyBytes_Resize(&delta, (Py_ssize_t)length);
exit:
    PyMem_Free(index);
    PyBuffer_Release(&old);
    PyBuffer_Release(&new);
    return delta ? Py_BuildValue("NK", delta, (unsigned long long)compared) : NULL;
}

static PyObject *
native_parse_commands(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer data;
    unsigned long long base;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*K:parse_commands", &data, &base))
        return NULL;
    ibt_command *commands = PyMem_Malloc(BATCH * sizeof *commands);
    if (!commands) {
        PyErr_NoMemory();
        goto exit;
    }
    size_t count;
    uint64_t next;
    enum ibt_parse_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ibt_parse(data.buf, (size_t)data.len, base, commands, BATCH, &count, &next);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("iKy#", (int)status, (unsigned long long)next, (char *)commands,
                           (Py_ssize_t)(count * sizeof *commands));
exit:
    PyMem_Free(commands);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *
native_apply_delta(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer basis, delta;
    unsigned long long max_len;
    uint64_t length;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*K:apply_delta", &basis, &delta, &max_len))
        return NULL;
    if (max_len > PY_SSIZE_T_MAX)
        max_len = PY_SSIZE_T_MAX;
    if (ibt_patched_len(delta.buf, (size_t)delta.len, (size_t)basis.len, max_len, &length) < 0) {
        result = Py_NewRef(Py_None);
        goto exit;
    }
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!result)
        goto exit;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
    if (length < MIN_UNLOCKED_LEN) {
        ibt_apply(delta.buf, (size_t)delta.len, basis.buf, out);
    } else {
        Py_BEGIN_ALLOW_THREADS
        ibt_apply(delta.buf, (size_t)delta.len, basis.buf, out);
        Py_END_ALLOW_THREADS
    }
exit:
    PyBuffer_Release(&basis);
    PyBuffer_Release(&delta);
    return result;
}

static PyMethodDef methods[] = {
    {"weak_sum", native_weak_sum, METH_VARARGS, "weak_sum(data, kind) -> int"},
    {"strong_sum", native_strong_sum, METH_VARARGS, "strong_sum(data, kind) -> bytes"},
    {"hash_blocks", native_hash_blocks, METH_VARARGS,
     "hash_blocks(data, block_len, strong_len, weak, strong) -> bytes"},
    {"build_table", native_build_table, METH_VARARGS,
     "build_table(records, block_len, strong_len, weak, strong) -> table"},
    {"search", native_search, METH_VARARGS,
     "search(table, data, pos, stop, base, next_block, false_bytes, known, known_first, is_last)\n"
     "-> (pos, next_block, false_bytes, strong_bytes, false_alarms, matches, is_full)"},
    {"exact_delta", native_exact_delta, METH_VARARGS, "exact_delta(old, new) -> (delta, compared)"},
    {"parse_commands", native_parse_commands, METH_VARARGS, "parse_commands(data, base) -> (status, next, commands)"},
    {"apply_delta", native_apply_delta, METH_VARARGS, "apply_delta(basis, delta, max_len) -> bytes | None"},
    {NULL, NULL, 0, NULL},
};

static int
add_signing_functions(PyObject *module)
{
    static ibt_signing_functions functions = {ibt_hash_blocks};
    PyObject *capsule = PyCapsule_New(&functions, IBT_SIGNING_FUNCTIONS, NULL);
    if (!capsule)
        return -1;
    int failed = PyModule_AddObjectRef(module, "signing_functions", capsule);
    Py_DECREF(capsule);
    return failed;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_signing_functions},
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
    .m_name = "incremental_backups_tools.delta._native",
    .m_doc = "The delta kernel in C; incremental_backups_tools.delta._twin says what each function does.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
