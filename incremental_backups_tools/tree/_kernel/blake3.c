/* BLAKE3, unkeyed, 32 bytes (https://github.com/BLAKE3-team/BLAKE3-specs), of many messages at once.
 *
 * A message is cut into chunks of 1024 bytes, the leaves of a binary tree; two values make a parent's block. One short
 * message has too few nodes to fill a vector, but many of them have: chunks of all messages are hashed side by side,
 * then all parents of the lowest level, and so on. blake3_lanes.h is that loop, compiled for 16 lanes (AVX-512), 8
 * (AVX2), and 4 (whatever else the compiler has vectors for); the plain loop here serves everywhere and defines what
 * they must give.
 */
#include "blake3.h"

#include <string.h>

#include "simd.h"

enum {
    BLOCK = 64,
    CHUNK = 1024,
    MAX_CHUNKS = IBT_BLAKE3_MAX / CHUNK,
    MAX_LANES = 16,
};

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

/* A chunk, or a parent, whose one block is the values of its children. */
typedef struct {
    const uint8_t *data;
    uint8_t *out; /* its value, or the digest where it is the root */
    size_t len, block_count;
    uint32_t counter, first_flags, last_flags;
} node;

static const uint32_t iv[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                               0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

/* Which message words each round takes, in order. */
#define ROUNDS(ROUND)                                           \
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) \
    ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8) \
    ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1) \
    ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6) \
    ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4) \
    ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7) \
    ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)

#define MIX(a, b, c, d, x, y)    \
    do {                         \
        a += b + (x);            \
        d = ROTATE(d ^ a, 16);   \
        c += d;                  \
        b = ROTATE(b ^ c, 12);   \
        a += b + (y);            \
        d = ROTATE(d ^ a, 8);    \
        c += d;                  \
        b = ROTATE(b ^ c, 7);    \
    } while (0);

#define ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15) \
    MIX(v[0], v[4], v[8], v[12], m[s0], m[s1])                                      \
    MIX(v[1], v[5], v[9], v[13], m[s2], m[s3])                                      \
    MIX(v[2], v[6], v[10], v[14], m[s4], m[s5])                                     \
    MIX(v[3], v[7], v[11], v[15], m[s6], m[s7])                                     \
    MIX(v[0], v[5], v[10], v[15], m[s8], m[s9])                                     \
    MIX(v[1], v[6], v[11], v[12], m[s10], m[s11])                                   \
    MIX(v[2], v[7], v[8], v[13], m[s12], m[s13])                                    \
    MIX(v[3], v[4], v[9], v[14], m[s14], m[s15])

#define ROTATE(x, n) ((x) >> (n) | (x) << (32 - (n)))

static uint32_t
read32le(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static void
compress(uint32_t h[8], const uint8_t *block, uint32_t counter, uint32_t len, uint32_t flags)
{
    uint32_t v[16], m[16];
    for (int i = 0; i < 16; i++)
        m[i] = read32le(block + 4 * i);
    for (int i = 0; i < 8; i++)
        v[i] = h[i];
    for (int i = 0; i < 4; i++)
        v[i + 8] = iv[i];
    v[12] = counter;
    v[13] = 0; /* the counter's upper half: messages are short */
    v[14] = len;
    v[15] = flags;
    ROUNDS(ROUND)
    for (int i = 0; i < 8; i++)
        h[i] = v[i] ^ v[i + 8];
}

static void
hash_node(const node *one)
{
    uint32_t h[8];
    memcpy(h, iv, sizeof h);
    for (size_t number = 0; number < one->block_count; number++) {
        uint8_t block[BLOCK] = {0};
        size_t left = one->len - number * BLOCK, len = left < BLOCK ? left : BLOCK;
        if (len)
            memcpy(block, one->data + number * BLOCK, len);
        uint32_t flags = (number ? 0 : one->first_flags) | (number + 1 < one->block_count ? 0 : one->last_flags);
        compress(h, block, one->counter, (uint32_t)len, flags);
    }
    for (int i = 0; i < IBT_BLAKE3_LEN; i++)
        one->out[i] = (uint8_t)(h[i / 4] >> (8 * (i % 4)));
}

#undef ROTATE

#if IBT_X86
#define LANES 16
#define TARGET IBT_AVX512
#define NAME lanes16
#include "blake3_lanes.h"
#undef LANES
#undef TARGET
#undef NAME

#define LANES 8
#define TARGET IBT_AVX2
#define NAME lanes8
#include "blake3_lanes.h"
#undef LANES
#undef TARGET
#undef NAME
#endif

#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && !defined(IBT_PLAIN)
#define HAS_LANES4 1
#define LANES 4
#define TARGET
#define NAME lanes4
#include "blake3_lanes.h"
#undef LANES
#undef TARGET
#undef NAME
#else
#define HAS_LANES4 0
#endif

typedef void hash_nodes_function(const node *nodes, size_t count);

static void
hash_nodes_plain(const node *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hash_node(&nodes[i]);
}

/* What hashes up to *lanes* nodes at once. */
typedef struct {
    hash_nodes_function *hash;
    size_t lanes;
} engine;

static engine
best_engine(void)
{
#if IBT_X86
    if (ibt_has_avx512())
        return (engine){lanes16, 16};
    if (ibt_has_avx2())
        return (engine){lanes8, 8};
#endif
#if HAS_LANES4
    return (engine){lanes4, 4};
#else
    return (engine){hash_nodes_plain, MAX_LANES};
#endif
}

/* Nodes of about one length that wait until they fill a vector. */
typedef struct {
    node nodes[MAX_LANES];
    size_t count;
} batch;

static void
flush(const engine *engine, batch *batch)
{
    if (batch->count > 1)
        engine->hash(batch->nodes, batch->count);
    else
        hash_nodes_plain(batch->nodes, batch->count); /* a vector costs as much with one lane as with all */
    batch->count = 0;
}

static void
add(const engine *engine, batch *batch, node node)
{
    batch->nodes[batch->count++] = node;
    if (batch->count == engine->lanes)
        flush(engine, batch);
}

static size_t
chunk_count(const ibt_message *message)
{
    return message->len > CHUNK ? (message->len + CHUNK - 1) / CHUNK : 1;
}

static node
chunk_node(const ibt_message *message, size_t number, size_t count, uint8_t *out)
{
    size_t len = message->len - number * CHUNK;
    len = len < CHUNK ? len : CHUNK;
    return (node){
        .data = message->data + number * CHUNK,
        .out = out,
        .len = len,
        .block_count = len > BLOCK ? (len + BLOCK - 1) / BLOCK : 1,
        .counter = (uint32_t)number,
        .first_flags = CHUNK_START,
        .last_flags = count == 1 ? CHUNK_END | ROOT : CHUNK_END,
    };
}

/* The values of a message with several chunks that make up one level of its tree. */
typedef struct {
    uint8_t (*values)[IBT_BLAKE3_LEN];
    size_t count;
    uint8_t *digest;
} tree;

/* The parent of two values next to each other; the digest where there are no others. */
static node
parent_node(const tree *tree, size_t pair)
{
    int is_root = tree->count == 2;
    return (node){
        .data = tree->values[2 * pair],
        .out = is_root ? tree->digest : tree->values[pair],
        .len = BLOCK,
        .block_count = 1,
        .first_flags = PARENT,
        .last_flags = is_root ? ROOT : 0,
    };
}

/* Hash all chunks, and say where the values of those are that are not the only ones of their message. */
static size_t
hash_chunks(const engine *engine, const ibt_message *messages, size_t count, uint8_t (*values)[IBT_BLAKE3_LEN],
            tree *trees)
{
    batch whole = {.count = 0}, partial = {.count = 0};
    size_t tree_count = 0;
    for (size_t i = 0; i < count; i++) {
        size_t chunks = chunk_count(&messages[i]);
        if (chunks > 1)
            trees[tree_count++] = (tree){values, chunks, messages[i].out};
        for (size_t number = 0; number < chunks; number++) {
            uint8_t *out = chunks > 1 ? *values++ : messages[i].out;
            node node = chunk_node(&messages[i], number, chunks, out);
            add(engine, node.len == CHUNK ? &whole : &partial, node);
        }
    }
    flush(engine, &whole);
    flush(engine, &partial);
    return tree_count;
}

/* Put the value of each pair of values to the front, and an odd last one behind them, until one is left of each. A
 * value is put where none is that a later batch still needs. */
static void
hash_parents(const engine *engine, tree *trees, size_t count)
{
    size_t left = count;
    while (left) {
        batch parents = {.count = 0};
        for (size_t i = 0; i < count; i++)
            for (size_t pair = 0; pair < trees[i].count / 2; pair++)
                add(engine, &parents, parent_node(&trees[i], pair));
        flush(engine, &parents);
        left = 0;
        for (tree *tree = trees; tree < trees + count; tree++) {
            if (tree->count > 1 && tree->count % 2)
                memcpy(tree->values[tree->count / 2], tree->values[tree->count - 1], IBT_BLAKE3_LEN);
            tree->count = (tree->count + 1) / 2;
            left += tree->count > 1;
        }
    }
}

static void
hash_group(const engine *engine, const ibt_message *messages, size_t count)
{
    uint8_t values[MAX_CHUNKS][IBT_BLAKE3_LEN];
    tree trees[MAX_CHUNKS / 2];
    hash_parents(engine, trees, hash_chunks(engine, messages, count, values, trees));
}

static void
hash_all(const engine *engine, const ibt_message *messages, size_t count)
{
    while (count) {
        size_t taken = 0, chunks = 0;
        while (taken < count && chunks + chunk_count(&messages[taken]) <= MAX_CHUNKS)
            chunks += chunk_count(&messages[taken++]);
        hash_group(engine, messages, taken);
        messages += taken;
        count -= taken;
    }
}

void
ibt_blake3_many(const ibt_message *messages, size_t count)
{
    engine engine = best_engine();
    hash_all(&engine, messages, count);
}

void
ibt_blake3_many_plain(const ibt_message *messages, size_t count)
{
    engine engine = {hash_nodes_plain, MAX_LANES};
    hash_all(&engine, messages, count);
}
