/* The contract of the delta kernel: pure functions over buffers.
 *
 * Nothing here knows Python, does IO, keeps state between calls or has globals; every function may run in any
 * number of threads at once. No function reads or writes outside of the lengths it is given, whatever the
 * bytes are. Memory is only allocated by ibt_table_build(), and freed by ibt_table_free().
 *
 *   rollsum.c   weak sums of a block, and of every window of a run of bytes
 *   blake2b.c   strong sum; eight blocks side by side where the processor can
 *   md4.c       strong sum of old signatures
 *   blocks.c    the records of a signature: weak and strong sum of each block
 *   table.c     from a window's sums to the block that has them
 *   search.c    what of a new file is in the old one
 *   exact.c     a delta of two buffers, where the old bytes are at hand
 *   parse.c     the commands of a delta
 *   apply.c     a delta applied to a basis that is held
 *
 * Each fast loop has a plain one beside it that says the same thing and serves where the fast one is missing.
 */
#ifndef IBT_KERNEL_H
#define IBT_KERNEL_H

#include <stddef.h>
#include <stdint.h>

enum ibt_weak { IBT_ROLLSUM = 0, IBT_RABINKARP = 1 };
enum ibt_strong { IBT_MD4 = 0, IBT_BLAKE2B = 1 };

enum {
    IBT_LANES = 8,        /* blocks hashed side by side */
    IBT_STRONG_MAX = 32,  /* bytes of the longest strong sum: BLAKE2b's, as librsync uses it */
    IBT_WEAK_LEN = 4,     /* bytes of a weak sum in a signature */
};

/* How a signature was made; one of each file. */
typedef struct {
    enum ibt_weak weak;
    enum ibt_strong strong;
    uint32_t block_len;   /* bytes of every block but the last; > 0 */
    uint32_t strong_len;  /* bytes kept of each strong sum; 1 to 16 (MD4) or 32 (BLAKE2b) */
} ibt_format;

/* --- weak sums (rollsum.c) --- */

uint32_t ibt_weak_sum(enum ibt_weak kind, const uint8_t *data, size_t len);
uint32_t ibt_weak_sum_plain(enum ibt_weak kind, const uint8_t *data, size_t len);

/* Slide a window of block_len bytes over data, count bytes far.  sum is the weak sum of data[0, block_len);
 * sums[i] becomes that of data[i + 1, i + 1 + block_len).  Reads data[0, block_len + count). */
void ibt_weak_roll(enum ibt_weak kind, uint32_t sum, const uint8_t *data, size_t block_len, size_t count,
                   uint32_t *sums);
void ibt_weak_roll_plain(enum ibt_weak kind, uint32_t sum, const uint8_t *data, size_t block_len, size_t count,
                         uint32_t *sums);

/* The weak sum of data[1, len) from that of data[0, len): the window shrinks at its front. */
uint32_t ibt_weak_shrink(enum ibt_weak kind, uint32_t sum, uint8_t first, size_t len);

/* --- strong sums (blake2b.c, md4.c) --- */

void ibt_blake2b(const uint8_t *data, size_t len, uint8_t out[IBT_STRONG_MAX]);
/* Blocks data + i * len for i < count <= IBT_LANES, each of len bytes. */
void ibt_blake2b_lanes(const uint8_t *data, size_t len, size_t count, uint8_t out[IBT_LANES][IBT_STRONG_MAX]);
void ibt_md4(const uint8_t *data, size_t len, uint8_t out[IBT_STRONG_MAX]);

/* --- records of a signature (blocks.c) --- */

void ibt_strong_sum(enum ibt_strong kind, const uint8_t *data, size_t len, uint8_t out[IBT_STRONG_MAX]);
void ibt_strong_lanes(enum ibt_strong kind, const uint8_t *data, size_t len, size_t count,
                      uint8_t out[IBT_LANES][IBT_STRONG_MAX]);

/* One record for each block of data, the last of which may be short: weak sum (big-endian), strong sum.
 * records has room for ceil(len / block_len) * (4 + strong_len) bytes. */
typedef void ibt_hash_blocks_function(const ibt_format *format, const uint8_t *data, size_t len, uint8_t *records);
ibt_hash_blocks_function ibt_hash_blocks;

/* What the module's attribute signing_functions, a capsule of this name, points to: for other extensions. */
#define IBT_SIGNING_FUNCTIONS "incremental_backups_tools.delta._native.signing_functions"
typedef struct {
    ibt_hash_blocks_function *hash_blocks;
} ibt_signing_functions;

static inline uint32_t
ibt_read32be(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* --- table (table.c) --- */

#define IBT_NO_BLOCK UINT64_MAX

typedef struct {
    uint32_t key;    /* the weak sum, mixed: see ibt_key() */
    uint32_t block;
} ibt_entry;

/* Every distinct block of a signature, sorted by weak sum, then strong sum.
 *
 * A lookup is one step into bucket[] and a binary search, so a signature whose weak sums were chosen to
 * collide costs at most log2(block_count) <= 32 comparisons a lookup: that is the cap on candidates for one
 * weak sum, and no candidate is lost by it. Of blocks with equal sums only the first is kept. */
typedef struct {
    ibt_format format;
    const uint8_t *records;  /* borrowed: the caller keeps them as long as the table */
    uint64_t block_count;
    ibt_entry *entries;
    size_t entry_count;
    uint32_t *bucket;        /* entries of bucket b: [bucket[b], bucket[b + 1]) */
    unsigned bucket_shift;   /* bucket of a key: key >> bucket_shift, as 64 bits */
    uint64_t *filter;        /* two bits a key within one word */
    unsigned filter_shift;   /* word of a key: key >> filter_shift, as 64 bits */
} ibt_table;

/* 0; -1 without memory; block_count < 2^32 - 1. */
int ibt_table_build(ibt_table *table, const ibt_format *format, const uint8_t *records, uint64_t block_count);
void ibt_table_free(ibt_table *table);

/* Weak sums are weak in their low bits; a bijection that carries every bit to the top. */
static inline uint32_t
ibt_key(uint32_t weak)
{
    return weak * UINT32_C(0x9E3779B1);
}

/* Ask for the memory that looking up sums[places[i]], i < count, will need: all at once instead of one after
 * another. */
void ibt_table_prefetch(const ibt_table *table, const uint32_t *sums, const uint32_t *places, size_t count);
int ibt_table_has(const ibt_table *table, uint32_t weak);
/* The block with both sums, or IBT_NO_BLOCK. */
uint64_t ibt_table_find(const ibt_table *table, uint32_t weak, const uint8_t *strong);

static inline const uint8_t *
ibt_table_record(const ibt_table *table, uint64_t block)
{
    return table->records + block * (IBT_WEAK_LEN + table->format.strong_len);
}

/* --- search (search.c) --- */

typedef struct {
    uint64_t pos;     /* in the searched data */
    uint64_t basis;   /* in the old file */
    uint64_t length;
} ibt_match;

/* What goes in and comes out of one step of a search over a stream.
 *
 * The budget: a window is strong-summed only while the bytes strong-summed in vain stay within twice the
 * bytes consumed, so that strong-summed bytes never exceed three times the input. Blocks that match are paid
 * by the bytes they consume. A window that the budget refuses is treated as no match: the delta stays right
 * and may get larger. */
typedef struct {
    const uint8_t *data;
    size_t len;
    size_t pos;              /* in: where to begin; out: first position not yet decided */
    size_t stop;             /* no match begins at or after it */
    uint64_t base;           /* offset of data[0] in the stream */
    uint64_t next_block;     /* the block that would continue the last match, or IBT_NO_BLOCK */
    const uint8_t *known;    /* records of blocks of data that have been hashed already, or NULL */
    size_t known_first;      /* where in data the first of them begins; they follow each other */
    size_t known_count;
    uint64_t false_bytes;    /* strong-summed in vain, since the stream's start */
    uint64_t strong_bytes;   /* strong-summed in this step */
    uint64_t false_alarms;   /* windows strong-summed in vain in this step */
    ibt_match *matches;      /* ascending, not overlapping, joined where they continue each other */
    size_t match_cap;
    size_t match_count;
} ibt_search;

/* Search windows of block_len bytes that lie whole in data and begin before stop, until there are none, or
 * until fewer than IBT_LANES places of matches are free: call again with what has been found taken out. */
void ibt_search_windows(const ibt_table *table, ibt_search *search);

/* The end of the stream: data[pos, len) is shorter than a block. Looks for its longest suffix that is the
 * last, short block of the old file; at most one match. */
void ibt_search_tail(const ibt_table *table, ibt_search *search);

/* --- delta of two buffers (exact.c) --- */

enum { IBT_EXACT_MAX = 1 << 30 };  /* bytes of either */

/* Numbers in the index that old_len bytes need, and bytes that a delta of new_len bytes has at most. */
size_t ibt_exact_index_len(size_t old_len);
size_t ibt_exact_delta_max(size_t new_len);
/* Write the delta that makes new of old to out; returns its length. index and out have room as said above,
 * *compared becomes how many bytes were compared, which is bounded by a multiple of new_len alone. */
size_t ibt_exact_delta(const uint8_t *old, size_t old_len, const uint8_t *new, size_t new_len, uint32_t *index,
                       uint8_t *out, uint64_t *compared);

/* --- commands of a delta (parse.c) --- */

enum ibt_command_kind { IBT_LITERAL = 0, IBT_COPY = 1 };

typedef struct {
    uint64_t kind;
    uint64_t offset;  /* of a copy in the basis; of a literal's bytes in the delta */
    uint64_t length;
} ibt_command;

enum ibt_parse_status {
    IBT_PARSE_MORE = 0,     /* all whole commands of data are parsed, or commands is full */
    IBT_PARSE_END = 1,      /* the END command was reached */
    IBT_PARSE_UNKNOWN = 2,  /* a reserved opcode at *next */
    IBT_PARSE_EMPTY = 3,    /* a command of length 0 at *next */
    IBT_PARSE_WRAPS = 4,    /* offset + length at *next does not fit 63 bits */
};

/* Parse commands from data, which lies at offset base of the delta. A literal's bytes are skipped and may
 * lie beyond data. *next becomes the offset in the delta of the first command not parsed. */
enum ibt_parse_status ibt_parse(const uint8_t *data, size_t len, uint64_t base, ibt_command *commands, size_t cap,
                                size_t *count, uint64_t *next);

/* --- applying a delta to a basis that is held (apply.c) --- */

/* Bytes of the file that a delta makes of a basis of basis_len bytes; 0, or -1 where the delta is not whole and sound,
 * copies beyond the basis, or makes more than max_len bytes. */
int ibt_patched_len(const uint8_t *delta, size_t delta_len, size_t basis_len, uint64_t max_len, uint64_t *length);
/* Make that file of a delta that ibt_patched_len() has passed; out has room for it. */
void ibt_apply(const uint8_t *delta, size_t delta_len, const uint8_t *basis, uint8_t *out);

#endif
