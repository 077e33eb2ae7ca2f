/* BLAKE3 of many short messages at once, without Python, IO or memory of its own. */
#ifndef IBT_BLAKE3_H
#define IBT_BLAKE3_H

#include <stddef.h>
#include <stdint.h>

enum {
    IBT_BLAKE3_LEN = 32,
    IBT_BLAKE3_MAX = 1 << 20, /* bytes of the longest message */
};

typedef struct {
    const uint8_t *data;
    size_t len;   /* at most IBT_BLAKE3_MAX */
    uint8_t *out; /* IBT_BLAKE3_LEN bytes */
} ibt_message;

/* Write the unkeyed digest of each message to its out. The outs may lie anywhere but in the messages. Takes some
 * 50 KiB of stack. */
typedef void ibt_blake3_many_function(const ibt_message *messages, size_t count);
ibt_blake3_many_function ibt_blake3_many;

/* What the module's attribute hashing_functions, a capsule of this name, points to: for other extensions. */
#define IBT_HASHING_FUNCTIONS "incremental_backups_tools.tree._native.hashing_functions"
typedef struct {
    ibt_blake3_many_function *blake3_many;
} ibt_hashing_functions;

/* The same, one compression after the other: what the function above must give. */
ibt_blake3_many_function ibt_blake3_many_plain;

#endif
