/* Making new files, many in one call, without Python. The contract of a file is in _twin.py. */
#ifndef IBT_CREATE_H
#define IBT_CREATE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    IBT_CANCELLED = -2,      /* not begun: the disk failed at one before it */
    IBT_HAS_ATTRIBUTES = -1, /* was given attributes that somebody must take away; removed again */
};

typedef struct {
    int dir_fd;
    const char *temporary;   /* name that is not there yet, one component */
    const char *final;       /* name to rename it to; NULL leaves it where it is */
    const void *content;
    size_t content_len;
    mode_t first_mode;       /* before umask, from the first moment on */
    mode_t mode;
    int64_t uid, gid;        /* -1 leaves them */
    int64_t mtime_ns;
    int check_attributes;
} ibt_new_file;

/* Returns 0, an errno, or one of the above; but for 0 nothing is left of the file. */
int ibt_create_file(const ibt_new_file *file);

/* Whether after this errno the next file would only fail likewise. */
int ibt_is_fatal(int error);

#endif
