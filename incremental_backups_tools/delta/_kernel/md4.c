/* MD4 (RFC 1320): the strong sum of signatures older than librsync 1.0. Broken as a hash; read, never the
 * default. */
#include <string.h>

#include "kernel.h"

#define F(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))
#define G(x, y, z) (((x) & (y)) | ((z) & ((x) | (y))))
#define H(x, y, z) ((x) ^ (y) ^ (z))
#define STEP(f, a, b, c, d, word, constant, shift)               \
    do {                                                         \
        uint32_t sum = (a) + f(b, c, d) + m[word] + UINT32_C(constant); \
        (a) = sum << (shift) | sum >> (32 - (shift));            \
    } while (0)

static void
compress(uint32_t state[4], const uint8_t *block)
{
    static const uint8_t round2[4] = {0, 1, 2, 3}, round3[4] = {0, 2, 1, 3};
    uint32_t m[16];
    for (int i = 0; i < 16; i++)
        m[i] = (uint32_t)block[4 * i] | (uint32_t)block[4 * i + 1] << 8 | (uint32_t)block[4 * i + 2] << 16
            | (uint32_t)block[4 * i + 3] << 24;
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    for (int i = 0; i < 16; i += 4) {
        STEP(F, a, b, c, d, i, 0, 3);
        STEP(F, d, a, b, c, i + 1, 0, 7);
        STEP(F, c, d, a, b, i + 2, 0, 11);
        STEP(F, b, c, d, a, i + 3, 0, 19);
    }
    for (int i = 0; i < 4; i++) {
        int word = round2[i];
        STEP(G, a, b, c, d, word, 0x5a827999, 3);
        STEP(G, d, a, b, c, word + 4, 0x5a827999, 5);
        STEP(G, c, d, a, b, word + 8, 0x5a827999, 9);
        STEP(G, b, c, d, a, word + 12, 0x5a827999, 13);
    }
    for (int i = 0; i < 4; i++) {
        int word = round3[i];
        STEP(H, a, b, c, d, word, 0x6ed9eba1, 3);
        STEP(H, d, a, b, c, word + 8, 0x6ed9eba1, 9);
        STEP(H, c, d, a, b, word + 4, 0x6ed9eba1, 11);
        STEP(H, b, c, d, a, word + 12, 0x6ed9eba1, 15);
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

void
ibt_md4(const uint8_t *data, size_t len, uint8_t out[IBT_STRONG_MAX])
{
    uint32_t state[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
    uint8_t last[128] = {0};
    size_t rest = len % 64, padded = rest < 56 ? 64 : 128;
    for (size_t i = 0; i < len - rest; i += 64)
        compress(state, data + i);
    if (rest)
        memcpy(last, data + len - rest, rest);
    last[rest] = 0x80;
    for (int i = 0; i < 8; i++)
        last[padded - 8 + i] = (uint8_t)((uint64_t)len << 3 >> (8 * i));
    for (size_t i = 0; i < padded; i += 64)
        compress(state, last + i);
    memset(out, 0, IBT_STRONG_MAX);
    for (int i = 0; i < 16; i++)
        out[i] = (uint8_t)(state[i / 4] >> (8 * (i % 4)));
}
