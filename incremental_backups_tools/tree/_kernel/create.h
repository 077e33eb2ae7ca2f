/* Making new files, many in one call, without Python. The contract of a file is in _twin.py. */
#ifndef IBT_CREATE_H
#define IBT_CREATE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "blake3.h"

enum {
    IBT_OTHER_CONTENT = -3,  /* the content has another digest: nothing was made */
    IBT_CANCELLED = -2,      /* not begun: the disk failed at one before it */
    IBT_HAS_ATTRIBUTES = -1, /* was given attributes that somebody must take away; removed again */
};

typedef struct {
    int dir_fd;
    const char *temporary;   /* name that is not there yet, one component */
    const char *final;       /* name to rename it to; NULL leaves it where it is */
    const void *content;
    size_t content_len;
    const uint8_t *digest;   /* BLAKE3 that the content must have, IBT_BLAKE3_LEN bytes; NULL is one that none has */
    mode_t first_mode;       /* before umask, from the first moment on */
    mode_t mode;
    int64_t uid, gid;        /* -1 leaves them */
    int64_t mtime_ns;
    int check_attributes;
} ibt_new_file;

/* Whether each content has its digest, and at most IBT_BLAKE3_MAX bytes: codes[i] becomes 0 or IBT_OTHER_CONTENT.
 * messages and digests have room for count; what they are given is of no use to anybody. */
void ibt_check_contents(const ibt_new_file *files, size_t count, ibt_message *messages, uint8_t *digests, int *codes);

/* Returns 0, an errno, or IBT_HAS_ATTRIBUTES; but for 0 nothing is left of the file. */
int ibt_create_file(const ibt_new_file *file);

/* Whether after this errno the next file would only fail likewise. */
int ibt_is_fatal(int error);

#endif
