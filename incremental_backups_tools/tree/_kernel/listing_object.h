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
    size_t readers; /* threads that read what it lists; it must not change meanwhile */
} listing_object;

/* A Reading of the names from *first* up to *end*, whose thread is running; NULL with an exception.
 * *signing* is the tuple that Listing.read_ahead is given. */
PyObject *ibt_start_reading(listing_object *listing, size_t first, size_t end, int dir_fd, size_t max_len,
                            PyObject *signing);

#endif
