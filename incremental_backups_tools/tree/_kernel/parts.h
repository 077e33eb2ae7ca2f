/* What module.c puts together. */
#ifndef IBT_PARTS_H
#define IBT_PARTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <sys/stat.h>

/* The os.stat_result that says what *info* does. */
PyObject *ibt_make_stat_result(PyObject *type, const struct stat *info);

/* Slots for what each part adds to the module: 0, or -1 with an exception. */
int ibt_add_listing(PyObject *module);
int ibt_add_reading(PyObject *module);

#endif
