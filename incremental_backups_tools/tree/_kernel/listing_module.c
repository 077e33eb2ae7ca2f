/* The Python face of listing.c and compare.c. */
#include "listing.h"
#include "listing_object.h"
#include "parts.h"

#include <errno.h>
#include <stdlib.h>

static void
listing_dealloc(listing_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ibt_listing_free(&self->listing);
    Py_XDECREF(self->stat_result);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
listing_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    int fd;
    static char *names[] = {"", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "i:list_directory", names, &fd))
        return NULL;
    listing_object *self = (listing_object *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    PyObject *os = PyImport_ImportModule("os");
    self->stat_result = os ? PyObject_GetAttrString(os, "stat_result") : NULL;
    Py_XDECREF(os);
    if (!self->stat_result) {
        Py_DECREF(self);
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = ibt_listing_read(&self->listing, fd);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static Py_ssize_t
listing_length(listing_object *self)
{
    return (Py_ssize_t)self->listing.count;
}

static const ibt_name *
name_at(listing_object *self, PyObject *number)
{
    Py_ssize_t i = PyNumber_AsSsize_t(number, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    if (i < 0 || (size_t)i >= self->listing.count) {
        PyErr_SetString(PyExc_IndexError, "the listing has no such name");
        return NULL;
    }
    return &self->listing.names[i];
}

static PyObject *
bytes_of(const ibt_name *name)
{
    return PyBytes_FromStringAndSize(name->name, (Py_ssize_t)name->name_len);
}

static PyObject *
listing_name(listing_object *self, PyObject *number)
{
    const ibt_name *name = name_at(self, number);
    return name ? bytes_of(name) : NULL;
}

static PyObject *
listing_stat(listing_object *self, PyObject *number)
{
    const ibt_name *name = name_at(self, number);
    return name ? ibt_make_stat_result(self->stat_result, &name->info) : NULL;
}

static PyObject *
listing_is_dir(listing_object *self, PyObject *number)
{
    const ibt_name *name = name_at(self, number);
    return name ? PyBool_FromLong(S_ISDIR(name->info.st_mode)) : NULL;
}

static PyObject *
listing_own_stat(listing_object *self, PyObject *Py_UNUSED(ignored))
{
    return ibt_make_stat_result(self->stat_result, &self->listing.own);
}

static PyObject *
listing_names(listing_object *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *names = PyList_New((Py_ssize_t)self->listing.count);
    for (size_t i = 0; names && i < self->listing.count; i++) {
        PyObject *name = bytes_of(&self->listing.names[i]);
        if (name)
            PyList_SET_ITEM(names, (Py_ssize_t)i, name);
        else
            Py_CLEAR(names);
    }
    return names;
}

static PyObject *
listing_keep(listing_object *self, PyObject *wanted)
{
    ibt_listing *listing = &self->listing;
    Py_buffer flags;
    if (self->readers) {
        PyErr_SetString(PyExc_ValueError, "its files are being read");
        return NULL;
    }
    if (PyObject_GetBuffer(wanted, &flags, PyBUF_SIMPLE) != 0)
        return NULL;
    if ((size_t)flags.len != listing->count) {
        PyBuffer_Release(&flags);
        PyErr_SetString(PyExc_ValueError, "a byte is needed for each name");
        return NULL;
    }
    size_t kept = 0;
    for (size_t i = 0; i < listing->count; i++) {
        if (((const char *)flags.buf)[i])
            listing->names[kept++] = listing->names[i];
        else
            free(listing->names[i].name);
    }
    listing->count = kept;
    PyBuffer_Release(&flags);
    Py_RETURN_NONE;
}

static PyObject *
listing_compare(listing_object *self, PyObject *args)
{
    Py_ssize_t first, offset;
    Py_buffer prefix, lines;
    if (!PyArg_ParseTuple(args, "ny*y*n:compare", &first, &prefix, &lines, &offset))
        return NULL;
    PyObject *result = NULL;
    if (first < 0 || offset < 0 || offset > lines.len) {
        PyErr_SetString(PyExc_ValueError, "a number or an offset is out of range");
    } else {
        ibt_agreement found = ibt_listing_compare(&self->listing, (size_t)first, prefix.buf, (size_t)prefix.len,
                                                  lines.buf, (size_t)lines.len, (size_t)offset);
        result = Py_BuildValue("nnnL", (Py_ssize_t)found.names, (Py_ssize_t)found.end, (Py_ssize_t)found.files,
                               (long long)found.bytes);
    }
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&lines);
    return result;
}

static PyObject *
listing_agrees(listing_object *self, PyObject *args)
{
    Py_buffer path, line;
    if (!PyArg_ParseTuple(args, "y*y*:agrees", &path, &line))
        return NULL;
    int agrees = ibt_line_agrees(line.buf, (size_t)line.len, path.buf, (size_t)path.len, "", 0, &self->listing.own);
    PyBuffer_Release(&path);
    PyBuffer_Release(&line);
    return PyBool_FromLong(agrees);
}

static PyObject *
listing_read_ahead(listing_object *self, PyObject *args)
{
    Py_ssize_t first, max_files, max_len, max_total;
    int dir_fd;
    PyObject *reader;
    if (!PyArg_ParseTuple(args, "ninnnO:read_ahead", &first, &dir_fd, &max_files, &max_len, &max_total, &reader))
        return NULL;
    if (first < 0 || max_files < 1 || max_len < 0 || max_len > IBT_BLAKE3_MAX || max_total < 0) {
        PyErr_SetString(PyExc_ValueError, "a number is out of range");
        return NULL;
    }
    const ibt_read_limits limits = {(size_t)max_files, (size_t)max_len, (size_t)max_total};
    return ibt_start_reading(self, (size_t)first, dir_fd, &limits, reader);
}

static PyMethodDef listing_methods[] = {
    {"name", (PyCFunction)listing_name, METH_O, NULL},
    {"stat", (PyCFunction)listing_stat, METH_O, NULL},
    {"is_dir", (PyCFunction)listing_is_dir, METH_O, NULL},
    {"names", (PyCFunction)listing_names, METH_NOARGS, NULL},
    {"own_stat", (PyCFunction)listing_own_stat, METH_NOARGS, NULL},
    {"keep", (PyCFunction)listing_keep, METH_O, NULL},
    {"compare", (PyCFunction)listing_compare, METH_VARARGS, NULL},
    {"read_ahead", (PyCFunction)listing_read_ahead, METH_VARARGS, NULL},
    {"agrees", (PyCFunction)listing_agrees, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot listing_slots[] = {
    {Py_tp_new, listing_new},
    {Py_tp_dealloc, listing_dealloc},
    {Py_tp_methods, listing_methods},
    {Py_sq_length, listing_length},
    {0, NULL},
};

static PyType_Spec listing_spec = {
    .name = "incremental_backups_tools.tree._native.Listing",
    .basicsize = sizeof(listing_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = listing_slots,
};

int
ibt_add_listing(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &listing_spec, NULL);
    if (!type)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Listing", type);
    Py_DECREF(type);
    return failed ? failed : ibt_add_reading(module);
}
