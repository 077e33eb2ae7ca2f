/* The tar members, lines and canonical encodings of plain files, without Python. What each is, _plain_twin.py says. */
#ifndef IBT_PLAIN_H
#define IBT_PLAIN_H

#include <stddef.h>
#include <stdint.h>

enum {
    IBT_TAR_BLOCK_LEN = 512,
    IBT_TAR_NAME_LEN = 100,
    IBT_PERMISSIONS_LEN = 24, /* mode, uid and gid of a tar header */
    IBT_REST_LEN = 356,       /* what follows its checksum */
    IBT_DIGEST_LEN = 32,
};

typedef struct {
    const char *data;
    size_t len;
} ibt_text;

/* What files of one mode and owner share. */
typedef struct {
    const char *permissions, *rest; /* of their tar headers */
    uint32_t sum;                   /* what these add to the checksum */
    ibt_text line, encoding;        /* fields of a line, and of the canonical encoding */
} ibt_owner;

typedef struct {
    const ibt_owner *owner;
    ibt_text name, content, signature; /* the signature's data is NULL where there is none */
    int64_t mtime_ns, ctime_ns;
    uint64_t inode, dev;
    const uint8_t *digest, *sig_digest; /* BLAKE3 */
    int is_vouched;                     /* whether its ctime stands in the index */
    uint64_t data_offset, sig_offset;   /* in the tars of their volumes */
} ibt_plain_file;

/* What all files of one run share. */
typedef struct {
    ibt_text prefix;               /* their directory's path with a slash */
    ibt_text data_file, sig_file;  /* names of the volumes */
    ibt_owner sig_owner;           /* of members with signatures; only its header */
} ibt_plain_run;

/* Whether the path stands everywhere as it is, and the time fits in a tar header. */
int ibt_is_plain(const ibt_plain_run *run, const ibt_plain_file *file);

/* How many bytes a member of *len* bytes takes in a tar. */
uint64_t ibt_member_len(uint64_t len);

/* Write the member with *data* under the file's path to *out*; return where the next one begins. */
char *ibt_write_member(char *out, const ibt_plain_run *run, const ibt_plain_file *file, const ibt_owner *owner,
                       ibt_text data);

/* Each writes one line with its newline, or the encoding; returns where it ends. The most that it takes: */
size_t ibt_line_room(const ibt_plain_run *run, const ibt_plain_file *file);
char *ibt_write_state_line(char *out, const ibt_plain_run *run, const ibt_plain_file *file);
char *ibt_write_index_line(char *out, const ibt_plain_run *run, const ibt_plain_file *file);
char *ibt_write_encoding(char *out, const ibt_plain_run *run, const ibt_plain_file *file);

/* The sort key of a file's path, as long as the path. */
void ibt_write_sort_key(char *out, const ibt_plain_run *run, const ibt_plain_file *file);

/* Add a big-endian number of IBT_DIGEST_LEN bytes to *sum*, modulo 2^256. */
void ibt_add_digest(uint8_t *sum, const uint8_t *digest);

/* The first eight bytes of a digest as a signed big-endian number, by which a table of contents has it. */
int64_t ibt_digest_prefix(const uint8_t *digest);

/* A filter of one bit for some bits of a prefix; its length in bytes is a power of two. */
int ibt_filter_has(const uint8_t *filter, size_t filter_len, int64_t prefix);
void ibt_filter_add(uint8_t *filter, size_t filter_len, int64_t prefix);

#endif
