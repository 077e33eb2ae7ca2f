/* What module.c puts together. */
#ifndef IBT_CHAIN_PARTS_H
#define IBT_CHAIN_PARTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Slots for what each part adds to the module: 0, or -1 with an exception. */
int ibt_add_lost_names(PyObject *module);

#endif
