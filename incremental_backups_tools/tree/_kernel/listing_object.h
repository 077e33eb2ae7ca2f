/* The Python objects Listing and Reading. */
#ifndef IBT_LISTING_OBJECT_H
#define IBT_LISTING_OBJECT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "listing.h"

typedef struct {
    PyObject_HEAD
    ibt_listing listing;
    PyObject *stat_result; /* the class */
    size_t readers; /* readings of what it lists; it must not change meanwhile */
} listing_object;

/* A Reading from the name *first* on, which the thread of *reader* has begun or will; NULL with an exception. */
PyObject *ibt_start_reading(listing_object *listing, size_t first, int dir_fd, const ibt_read_limits *limits,
                            PyObject *reader);

#endif
