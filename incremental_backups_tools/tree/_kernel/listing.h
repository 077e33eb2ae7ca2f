/* The names of a directory with their stats, and whether cached lines say the same of them. Without Python.
 * What the functions do, _listing_twin.py says in Python. */
#ifndef IBT_LISTING_H
#define IBT_LISTING_H

#include "blake3.h"
#include "kernel.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

typedef struct {
    char *name; /* its own memory, ended by NUL */
    size_t name_len;
    struct stat info;
} ibt_name;

typedef struct {
    ibt_name *names;
    size_t count, room;
    struct stat own; /* of the directory, after its names were read */
} ibt_listing;

/* Fill a zeroed listing from an open directory, sorted by the bytes of the names. A name that goes between
 * reading it and lstat is left out. Returns 0 or an errno; ibt_listing_free frees what was read in any case. */
int ibt_listing_read(ibt_listing *listing, int fd);
void ibt_listing_free(ibt_listing *listing);

typedef struct {
    size_t names;  /* how many names agree */
    size_t end;    /* where the line after theirs begins */
    size_t files;  /* regular files among them */
    int64_t bytes; /* and their sizes */
} ibt_agreement;

/* Compare names from number *first* on with the lines from *offset* on, as long as each line, to its newline, is
 * the entry of prefix + name and no field that a change would leave a mark on differs. Directories, sockets and
 * names with several links do not agree with anything: they need a second look. */
ibt_agreement ibt_listing_compare(const ibt_listing *listing, size_t first, const char *prefix, size_t prefix_len,
                                  const uint8_t *lines, size_t lines_len, size_t offset);

/* Whether *line*, without its newline, is the entry of *path* + *name* with what *info* says. */
int ibt_line_agrees(const uint8_t *line, size_t len, const char *path, size_t path_len, const char *name,
                    size_t name_len, const struct stat *info);

typedef struct {
    size_t number; /* in the listing */
    const char *name; /* ended by NUL */
    size_t name_len;
    struct stat info; /* of the opened file */
    char *content; /* info.st_size bytes */
    uint8_t *signature; /* signature_len bytes; NULL where it gets none */
    size_t signature_len;
    uint8_t digest[IBT_BLAKE3_LEN], sig_digest[IBT_BLAKE3_LEN]; /* of the content, and of the signature */
} ibt_read_file;

/* What the attribute table of a Reading, a capsule of this name, points to, as long as the Reading lives. */
#define IBT_READ_TABLE "incremental_backups_tools.tree._native.read_table"
typedef struct {
    const ibt_read_file *files;
    size_t count;
} ibt_read_table;

typedef struct {
    size_t max_files, max_len; /* most files, and most bytes of each: up to IBT_BLAKE3_MAX */
    size_t max_total; /* no further file is begun once there are so many bytes */
} ibt_read_limits;

enum { IBT_SIZE_CLASSES = 64 };

typedef struct {
    ibt_hash_blocks_function *hash_blocks;
    ibt_format format; /* but for its block_len */
    uint32_t magic;    /* that signatures begin with */
    uint32_t block_lens[IBT_SIZE_CLASSES]; /* by the bits of the file's size; 0 is no signature */
} ibt_signing;

typedef struct {
    size_t end; /* the number after the last name to look at */
    size_t files; /* most that will be read */
    size_t room; /* most bytes that they and their signatures take */
} ibt_reading_plan;

/* What one call of ibt_read_range from *first* on is to read: up to the next directory, and no more plain files than
 * the limits allow, as the listing knows them. */
ibt_reading_plan ibt_plan_reading(const ibt_listing *listing, size_t first, const ibt_read_limits *limits,
                                  const ibt_signing *signing);

/* Read, hash and sign the files from number *first* up to *end* into *files*, their contents and signatures into *room*,
 * both as large as the plan says. What is anything but a plain small file at rest is left out, for somebody who looks at it
 * closely: it is not there, no regular file, long, linked, sparse, has another length than it was listed with, has
 * extended attributes or flags that are kept, cannot be read, or changed meanwhile. Returns how many were read. */
size_t ibt_read_range(const ibt_listing *listing, size_t first, size_t end, int dir_fd, size_t max_len,
                      const ibt_signing *signing, ibt_read_file *files, char *room);

#endif
