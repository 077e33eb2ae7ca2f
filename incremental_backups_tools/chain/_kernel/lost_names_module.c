/* The Python face of lost_names.c. */
#include "chain_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lost_names.h"

typedef struct {
    PyObject_HEAD
    ibt_lost_names names;
    int is_busy; /* while the interpreter's lock is not held */
} lost_names_object;

static void
lost_names_dealloc(lost_names_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ibt_lost_names_free(&self->names);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
lost_names_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    const char *source; /* without NUL */
    static char *names[] = {"", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y:LostNames", names, &source))
        return NULL;
    lost_names_object *self = (lost_names_object *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->names.source = strdup(source);
    if (!self->names.source) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static PyObject *
lines_of(const char *block, const ibt_spans *found)
{
    PyObject *lines = PyList_New((Py_ssize_t)found->count);
    for (size_t i = 0; lines && i < found->count; i++) {
        const ibt_span *span = &found->spans[i];
        PyObject *line = PyBytes_FromStringAndSize(block + span->begin, (Py_ssize_t)(span->end - span->begin));
        if (line)
            PyList_SET_ITEM(lines, (Py_ssize_t)i, line);
        else
            Py_CLEAR(lines);
    }
    return lines;
}

static PyObject *
lost_names_of(lost_names_object *self, PyObject *block)
{
    char *data;
    Py_ssize_t len;
    if (PyBytes_AsStringAndSize(block, &data, &len) != 0)
        return NULL;
    if (self->is_busy) {
        PyErr_SetString(PyExc_ValueError, "another thread is at it");
        return NULL;
    }
    ibt_spans found = {0};
    int error;
    self->is_busy = 1;
    Py_BEGIN_ALLOW_THREADS
    error = ibt_lost_names_of(&self->names, data, (size_t)len, &found);
    Py_END_ALLOW_THREADS
    self->is_busy = 0;
    PyObject *lines = error ? PyErr_NoMemory() : lines_of(data, &found);
    free(found.spans);
    return lines;
}

static PyMethodDef lost_names_methods[] = {
    {"of", (PyCFunction)lost_names_of, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lost_names_slots[] = {
    {Py_tp_new, lost_names_new},
    {Py_tp_dealloc, lost_names_dealloc},
    {Py_tp_methods, lost_names_methods},
    {0, NULL},
};

static PyType_Spec lost_names_spec = {
    .name = "incremental_backups_tools.chain._native.LostNames",
    .basicsize = sizeof(lost_names_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = lost_names_slots,
};

int
ibt_add_lost_names(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &lost_names_spec, NULL);
    int failed = type ? PyModule_AddObjectRef(module, "LostNames", type) : -1;
    Py_XDECREF(type);
    return failed;
}
