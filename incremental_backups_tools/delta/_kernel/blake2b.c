/* BLAKE2b with a digest of 32 bytes and no key (RFC 7693), as librsync uses it.
 *
 * One message cannot be hashed by several lanes at once, but the blocks of a file can: all have one length,
 * so their compressions run in step, each in one lane of a vector. blake2b_lanes.h is that loop, compiled
 * for 8 lanes (AVX-512) and 4 lanes (AVX2); the plain loop here serves everywhere and defines what both must
 * give.
 */
#include <string.h>

#include "kernel.h"
#include "simd.h"

enum { CHUNK = 128 };  /* bytes taken in by one compression */

static const uint64_t iv[8] = {
    UINT64_C(0x6a09e667f3bcc908), UINT64_C(0xbb67ae8584caa73b), UINT64_C(0x3c6ef372fe94f82b),
    UINT64_C(0xa54ff53a5f1d36f1), UINT64_C(0x510e527fade682d1), UINT64_C(0x9b05688c2b3e6c1f),
    UINT64_C(0x1f83d9abfb41bd6b), UINT64_C(0x5be0cd19137e2179),
};

/* Parameter block: digest of 32 bytes, no key, fanout 1, depth 1. */
#define PARAMETERS UINT64_C(0x01010020)

/* Which message words each round takes, in order; rounds 10 and 11 repeat 0 and 1. */
#define ROUNDS(ROUND)                                               \
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)     \
    ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)     \
    ROUND(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4)     \
    ROUND(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8)     \
    ROUND(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13)     \
    ROUND(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9)     \
    ROUND(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11)     \
    ROUND(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10)     \
    ROUND(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5)     \
    ROUND(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0)     \
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)     \
    ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)

#define MIX(a, b, c, d, x, y)      \
    do {                           \
        a = a + b + (x);           \
        d = ROTATE(d ^ a, 32);     \
        c = c + d;                 \
        b = ROTATE(b ^ c, 24);     \
        a = a + b + (y);           \
        d = ROTATE(d ^ a, 16);     \
        c = c + d;                 \
        b = ROTATE(b ^ c, 63);     \
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

#define ROTATE(x, n) ((x) >> (n) | (x) << (64 - (n)))

static uint64_t
read64le(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return value;
#else
    value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
#endif
}

static void
compress(uint64_t h[8], const uint8_t *chunk, uint64_t counted, int is_last)
{
    uint64_t v[16], m[16];
    for (int i = 0; i < 16; i++)
        m[i] = read64le(chunk + 8 * i);
    for (int i = 0; i < 8; i++) {
        v[i] = h[i];
        v[i + 8] = iv[i];
    }
    v[12] ^= counted;
    if (is_last)
        v[14] = ~v[14];
    ROUNDS(ROUND)
    for (int i = 0; i < 8; i++)
        h[i] ^= v[i] ^ v[i + 8];
}

void
ibt_blake2b(const uint8_t *data, size_t len, uint8_t out[IBT_STRONG_MAX])
{
    uint64_t h[8];
    uint8_t last[CHUNK] = {0};
    memcpy(h, iv, sizeof h);
    h[0] ^= PARAMETERS;
    size_t done = 0;
    for (; len - done > CHUNK; done += CHUNK)
        compress(h, data + done, done + CHUNK, 0);
    if (len - done)
        memcpy(last, data + done, len - done);
    compress(h, last, len, 1);
    for (int i = 0; i < IBT_STRONG_MAX; i++)
        out[i] = (uint8_t)(h[i / 8] >> (8 * (i % 8)));
}

#undef ROTATE

#if IBT_X86
#define LANES 8
#define TARGET IBT_AVX512
#define NAME lanes8
#include "blake2b_lanes.h"
#undef LANES
#undef TARGET
#undef NAME

#define LANES 4
#define TARGET IBT_AVX2
#define NAME lanes4
#include "blake2b_lanes.h"
#undef LANES
#undef TARGET
#undef NAME
#endif

void
ibt_blake2b_lanes(const uint8_t *data, size_t len, size_t count, uint8_t out[IBT_LANES][IBT_STRONG_MAX])
{
    size_t done = 0;
#if IBT_X86
    /* A vector with lanes to spare costs about as much as two blocks hashed alone. */
    if (ibt_has_avx512() && count > 1) {
        lanes8(data, len, count, out);
        return;
    }
    if (ibt_has_avx2())
        for (; count - done > 1; done += count - done < 4 ? count - done : 4)
            lanes4(data + done * len, len, count - done < 4 ? count - done : 4, out + done);
#endif
    for (; done < count; done++)
        ibt_blake2b(data + done * len, len, out[done]);
}
