/* BLAKE2b of up to LANES blocks side by side; included by blake2b.c once for each width.
 *
 * Little-endian only. Before each compression the LANES chunks are transposed, so that word i of all of them
 * makes up vector m[i]; lanes without a block of their own repeat block 0.
 */
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define VECTOR PASTE(NAME, _vector)
#define LOADED PASTE(NAME, _loaded)
#define TRANSPOSE PASTE(NAME, _transpose)
#define COMPRESS PASTE(NAME, _compress)

typedef uint64_t VECTOR __attribute__((vector_size(8 * LANES)));
/* The same in memory, wherever it lies and whatever it is. */
typedef uint64_t LOADED __attribute__((vector_size(8 * LANES), aligned(1), may_alias));

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (VECTOR){__VA_ARGS__})
#endif
#define ROTATE(x, n) ((x) >> (n) | (x) << (64 - (n)))

/* LANES rows of LANES words become columns. */
#if LANES == 8
TARGET static inline __attribute__((always_inline)) void
TRANSPOSE(const uint8_t *const rows[LANES], size_t offset, VECTOR out[LANES])
{
    VECTOR a[8], b[8];
    for (int i = 0; i < 8; i++)
        a[i] = *(const LOADED *)(const void *)(rows[i] + offset);
    for (int i = 0; i < 8; i += 2) {
        b[i] = PICK(a[i], a[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        b[i + 1] = PICK(a[i], a[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + j] = PICK(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[i + j + 2] = PICK(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        out[i] = PICK(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        out[i + 4] = PICK(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}
#else
TARGET static inline __attribute__((always_inline)) void
TRANSPOSE(const uint8_t *const rows[LANES], size_t offset, VECTOR out[LANES])
{
    VECTOR a[4], b[4];
    for (int i = 0; i < 4; i++)
        a[i] = *(const LOADED *)(const void *)(rows[i] + offset);
    for (int i = 0; i < 4; i += 2) {
        b[i] = PICK(a[i], a[i + 1], 0, 4, 2, 6);
        b[i + 1] = PICK(a[i], a[i + 1], 1, 5, 3, 7);
    }
    for (int i = 0; i < 2; i++) {
        out[i] = PICK(b[i], b[i + 2], 0, 1, 4, 5);
        out[i + 2] = PICK(b[i], b[i + 2], 2, 3, 6, 7);
    }
}
#endif

TARGET static inline __attribute__((always_inline)) void
COMPRESS(VECTOR h[8], const uint8_t *const chunks[LANES], uint64_t counted, int is_last)
{
    VECTOR v[16], m[16];
    for (size_t i = 0; i < 16; i += LANES)
        TRANSPOSE(chunks, 8 * i, m + i);
    for (int i = 0; i < 8; i++) {
        v[i] = h[i];
        v[i + 8] = (VECTOR){0} + iv[i];
    }
    v[12] ^= counted;
    if (is_last)
        v[14] = ~v[14];
    ROUNDS(ROUND)
    for (int i = 0; i < 8; i++)
        h[i] ^= v[i] ^ v[i + 8];
}

TARGET static void
NAME(const uint8_t *data, size_t len, size_t count, uint8_t out[][IBT_STRONG_MAX])
{
    VECTOR h[8];
    const uint8_t *chunks[LANES];
    uint8_t last[LANES][CHUNK];
    for (int i = 0; i < 8; i++)
        h[i] = (VECTOR){0} + iv[i];
    h[0] ^= PARAMETERS;
    for (size_t lane = 0; lane < LANES; lane++)
        chunks[lane] = data + (lane < count ? lane : 0) * len;
    size_t done = 0;
    for (; len - done > CHUNK; done += CHUNK) {
        COMPRESS(h, chunks, done + CHUNK, 0);
        for (size_t lane = 0; lane < LANES; lane++)
            chunks[lane] += CHUNK;
    }
    memset(last, 0, sizeof last);
    for (size_t lane = 0; lane < LANES; lane++) {
        memcpy(last[lane], chunks[lane], len - done);
        chunks[lane] = last[lane];
    }
    COMPRESS(h, chunks, len, 1);
    for (size_t lane = 0; lane < count; lane++)
        for (int i = 0; i < IBT_STRONG_MAX / 8; i++) {
            uint64_t word = h[i][lane];
            memcpy(out[lane] + 8 * i, &word, 8);
        }
}

#undef PICK
#undef ROTATE
#undef VECTOR
#undef LOADED
#undef TRANSPOSE
#undef COMPRESS
#undef PASTE
#undef PASTE_
