#include "parts.h"

enum { NS_PER_S = 1000000000 };

static PyObject *
nanoseconds(struct timespec time)
{
    long long seconds = time.tv_sec, result;
    if (!__builtin_mul_overflow(seconds, NS_PER_S, &result) && !__builtin_add_overflow(result, time.tv_nsec, &result))
        return PyLong_FromLongLong(result);
    /* Before 1678 or after 2262: some file systems have such times. */
    PyObject *whole = PyLong_FromLongLong(seconds), *factor = PyLong_FromLong(NS_PER_S);
    PyObject *rest = PyLong_FromLong(time.tv_nsec), *product = NULL, *sum = NULL;
    if (whole && factor && rest && (product = PyNumber_Multiply(whole, factor)))
        sum = PyNumber_Add(product, rest);
    Py_XDECREF(whole);
    Py_XDECREF(factor);
    Py_XDECREF(rest);
    Py_XDECREF(product);
    return sum;
}

static PyObject *
seconds(struct timespec time)
{
    return PyFloat_FromDouble((double)time.tv_sec + 1e-9 * (double)time.tv_nsec);
}

PyObject *
ibt_make_stat_result(PyObject *type, const struct stat *info)
{
    /* The order of os.stat_result's fields, those without an index of their own last. */
    PyObject *fields[] = {
        PyLong_FromUnsignedLong(info->st_mode),
        PyLong_FromUnsignedLongLong(info->st_ino),
        PyLong_FromUnsignedLongLong(info->st_dev),
        PyLong_FromUnsignedLongLong(info->st_nlink),
        PyLong_FromUnsignedLong(info->st_uid),
        PyLong_FromUnsignedLong(info->st_gid),
        PyLong_FromLongLong(info->st_size),
        PyLong_FromLongLong(info->st_atim.tv_sec),
        PyLong_FromLongLong(info->st_mtim.tv_sec),
        PyLong_FromLongLong(info->st_ctim.tv_sec),
        seconds(info->st_atim),
        seconds(info->st_mtim),
        seconds(info->st_ctim),
        nanoseconds(info->st_atim),
        nanoseconds(info->st_mtim),
        nanoseconds(info->st_ctim),
        PyLong_FromLong(info->st_blksize),
        PyLong_FromLongLong(info->st_blocks),
        PyLong_FromUnsignedLongLong(info->st_rdev),
    };
    enum { COUNT = sizeof fields / sizeof *fields };
    int missing = 0;
    for (size_t i = 0; i < COUNT; i++)
        missing |= !fields[i];
    PyObject *result = NULL, *tuple = missing ? NULL : PyTuple_New(COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        if (tuple)
            PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, fields[i]);
        else
            Py_XDECREF(fields[i]);
    }
    if (tuple) {
        result = PyObject_CallOneArg(type, tuple);
        Py_DECREF(tuple);
    }
    return result;
}
