/* Up to LANES nodes of BLAKE3 side by side; included by blake3.c once for each width.
 *
 * Little-endian only. Before each compression the LANES blocks are transposed, so that word i of all of them makes up
 * vector m[i]. Nodes have one block or more: a lane whose node is done goes on with zeros, and its value is kept.
 */
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define VECTOR PASTE(NAME, _vector)
#define LOADED PASTE(NAME, _loaded)
#define TRANSPOSE PASTE(NAME, _transpose)
#define COMPRESS PASTE(NAME, _compress)
#define BLOCKS PASTE(NAME, _blocks)

typedef uint32_t VECTOR __attribute__((vector_size(4 * LANES)));
/* The same in memory, wherever it lies and whatever it is. */
typedef uint32_t LOADED __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (VECTOR){__VA_ARGS__})
#endif
#define ROTATE(x, n) ((x) >> (n) | (x) << (32 - (n)))

/* Exchange what lies off the diagonal between rows *step* apart. */
#define EXCHANGE(rows, step, low, high)                \
    for (int i = 0; i < LANES; i++)                    \
        if (!(i & (step))) {                           \
            VECTOR x = (rows)[i], y = (rows)[i + (step)]; \
            (rows)[i] = low(x, y);                     \
            (rows)[i + (step)] = high(x, y);           \
        }

#if LANES == 16
#define LOW1(x, y) PICK(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define HIGH1(x, y) PICK(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#define LOW2(x, y) PICK(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH2(x, y) PICK(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define LOW4(x, y) PICK(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define HIGH4(x, y) PICK(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define LOW8(x, y) PICK(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define HIGH8(x, y) PICK(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#elif LANES == 8
#define LOW1(x, y) PICK(x, y, 0, 8, 2, 10, 4, 12, 6, 14)
#define HIGH1(x, y) PICK(x, y, 1, 9, 3, 11, 5, 13, 7, 15)
#define LOW2(x, y) PICK(x, y, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH2(x, y) PICK(x, y, 2, 3, 10, 11, 6, 7, 14, 15)
#define LOW4(x, y) PICK(x, y, 0, 1, 2, 3, 8, 9, 10, 11)
#define HIGH4(x, y) PICK(x, y, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define LOW1(x, y) PICK(x, y, 0, 4, 2, 6)
#define HIGH1(x, y) PICK(x, y, 1, 5, 3, 7)
#define LOW2(x, y) PICK(x, y, 0, 1, 4, 5)
#define HIGH2(x, y) PICK(x, y, 2, 3, 6, 7)
#endif

/* LANES rows of LANES words become columns. */
TARGET static inline __attribute__((always_inline)) void
TRANSPOSE(const uint8_t *const rows[LANES], size_t offset, VECTOR out[LANES])
{
    for (int i = 0; i < LANES; i++)
        out[i] = *(const LOADED *)(const void *)(rows[i] + offset);
    EXCHANGE(out, 1, LOW1, HIGH1)
    EXCHANGE(out, 2, LOW2, HIGH2)
#if LANES >= 8
    EXCHANGE(out, 4, LOW4, HIGH4)
#endif
#if LANES >= 16
    EXCHANGE(out, 8, LOW8, HIGH8)
#endif
}

TARGET static inline __attribute__((always_inline)) void
COMPRESS(VECTOR h[8], const uint8_t *const blocks[LANES], VECTOR counter, VECTOR len, VECTOR flags, VECTOR is_used)
{
    VECTOR v[16], m[16];
    for (size_t i = 0; i < 16; i += LANES)
        TRANSPOSE(blocks, 4 * i, m + i);
    for (int i = 0; i < 8; i++)
        v[i] = h[i];
    for (int i = 0; i < 4; i++)
        v[i + 8] = (VECTOR){0} + iv[i];
    v[12] = counter;
    v[13] = (VECTOR){0};
    v[14] = len;
    v[15] = flags;
    ROUNDS(ROUND)
    for (int i = 0; i < 8; i++)
        h[i] = ((v[i] ^ v[i + 8]) & is_used) | (h[i] & ~is_used);
}

/* Block number *number* of each node: where it lies, its length and its flags; is_used is zero where there is none. */
TARGET static inline __attribute__((always_inline)) void
BLOCKS(const node *nodes, size_t count, size_t number, const uint8_t *blocks[LANES], uint8_t partial[LANES][BLOCK],
       VECTOR *len, VECTOR *flags, VECTOR *is_used)
{
    uint32_t lens[LANES] = {0}, all_flags[LANES] = {0}, used[LANES] = {0};
    for (size_t lane = 0; lane < LANES; lane++) {
        blocks[lane] = partial[lane];
        if (lane >= count || number >= nodes[lane].block_count)
            continue;
        const node *one = &nodes[lane];
        size_t offset = number * BLOCK, left = one->len - offset;
        used[lane] = UINT32_MAX;
        all_flags[lane] = (number ? 0 : one->first_flags) | (number + 1 < one->block_count ? 0 : one->last_flags);
        lens[lane] = left < BLOCK ? (uint32_t)left : BLOCK;
        if (left >= BLOCK) {
            blocks[lane] = one->data + offset;
        } else {
            memset(partial[lane], 0, BLOCK);
            if (left)
                memcpy(partial[lane], one->data + offset, left);
        }
    }
    *len = *(const LOADED *)(const void *)lens;
    *flags = *(const LOADED *)(const void *)all_flags;
    *is_used = *(const LOADED *)(const void *)used;
}

TARGET static void
NAME(const node *nodes, size_t count)
{
    const uint8_t *blocks[LANES];
    uint8_t partial[LANES][BLOCK] = {{0}};
    uint32_t counters[LANES] = {0};
    VECTOR h[8], len, flags, is_used;
    size_t longest = 0;
    for (int i = 0; i < 8; i++)
        h[i] = (VECTOR){0} + iv[i];
    for (size_t lane = 0; lane < count; lane++) {
        counters[lane] = nodes[lane].counter;
        longest = nodes[lane].block_count > longest ? nodes[lane].block_count : longest;
    }
    VECTOR counter = *(const LOADED *)(const void *)counters;
    for (size_t number = 0; number < longest; number++) {
        BLOCKS(nodes, count, number, blocks, partial, &len, &flags, &is_used);
        COMPRESS(h, blocks, counter, len, flags, is_used);
    }
    for (size_t lane = 0; lane < count; lane++)
        for (int i = 0; i < 8; i++) {
            uint32_t word = h[i][lane];
            memcpy(nodes[lane].out + 4 * i, &word, 4);
        }
}

#undef LOW1
#undef HIGH1
#undef LOW2
#undef HIGH2
#undef LOW4
#undef HIGH4
#undef LOW8
#undef HIGH8
#undef EXCHANGE
#undef PICK
#undef ROTATE
#undef VECTOR
#undef LOADED
#undef TRANSPOSE
#undef COMPRESS
#undef BLOCKS
#undef PASTE
#undef PASTE_
