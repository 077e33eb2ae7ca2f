/* Which lines of an index are of files that may have lost their names since. The contract is that of the class of the
 * same name in _lost_names_twin.py, line for line.
 *
 * Nothing here knows Python or reads outside of the lengths that it is given, whatever the bytes are. */
#ifndef IBT_LOST_NAMES_H
#define IBT_LOST_NAMES_H

#include <stddef.h>

typedef struct {
    size_t begin, end; /* in the block; the newline does not count */
} ibt_span;

typedef struct ibt_level ibt_level;

/* Where a pass over an index is. All zeros, but for the source, is its start. */
typedef struct {
    char *source; /* path of the directory that the index was of; free() is called for it */
    ibt_level *levels; /* the directories above the last line, outermost first */
    size_t count, room;
} ibt_lost_names;

typedef struct {
    ibt_span *spans; /* the caller's to free */
    size_t count, room;
} ibt_spans;

/* Go on with some lines, each with its newline, and add those that are wanted to *found*. 0, or ENOMEM. */
int ibt_lost_names_of(ibt_lost_names *self, const char *block, size_t len, ibt_spans *found);
void ibt_lost_names_free(ibt_lost_names *self);

#endif
