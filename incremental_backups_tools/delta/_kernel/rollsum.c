/* Weak sums: librsync's rollsum (an Adler-like pair of 16-bit sums) and rabin-karp (a polynomial modulo
 * 2^32).
 *
 * rollsum     s1 = sum of (byte + 31), s2 = sum of s1 after each byte; sum = s2 << 16 | s1
 * rabin-karp  h = 1 at first, then h * M + byte
 */
#include "kernel.h"
#include "simd.h"

#define ROLLSUM_OFFSET 31u
#define RK_SEED 1u
#define RK_MULT UINT32_C(0x08104225)
#define RK_INVERSE UINT32_C(0x98f009ad)  /* RK_MULT * RK_INVERSE = 1 modulo 2^32 */
#define RK_ADJUST ((RK_MULT - 1) * RK_SEED)  /* what the seed adds when a byte leaves the window */

enum {
    STRIDE = 64,  /* partial sums kept side by side by the fast block loop */
    GROUP = 128,  /* positions rolled at once by the fast rolling loop */
};

static uint32_t
rk_power(size_t exponent)
{
    uint32_t result = 1, square = RK_MULT;
    for (; exponent; exponent >>= 1, square *= square)
        if (exponent & 1)
            result *= square;
    return result;
}

IBT_INLINE uint32_t
rollsum_plain(const uint8_t *data, size_t len)
{
    uint32_t s1 = 0, s2 = 0;
    for (size_t i = 0; i < len; i++) {
        s1 += data[i] + ROLLSUM_OFFSET;
        s2 += s1;
    }
    return s2 << 16 | (s1 & 0xffff);
}

IBT_INLINE uint32_t
rk_plain(uint32_t hash, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++)
        hash = hash * RK_MULT + data[i];
    return hash;
}

uint32_t
ibt_weak_sum_plain(enum ibt_weak kind, const uint8_t *data, size_t len)
{
    return kind == IBT_ROLLSUM ? rollsum_plain(data, len) : rk_plain(RK_SEED, data, len);
}

/* STRIDE polynomials side by side, each over every STRIDE-th byte, joined at the end. */
IBT_INLINE uint32_t
rk_fast(const uint8_t *data, size_t len)
{
    uint32_t part[STRIDE] = {0};
    size_t whole = len - len % STRIDE;
    if (whole == 0)
        return rk_plain(RK_SEED, data, len);
    uint32_t power = rk_power(STRIDE);
    for (size_t i = 0; i < whole; i += STRIDE)
        for (size_t j = 0; j < STRIDE; j++)
            part[j] = part[j] * power + data[i + j];
    uint32_t hash = 0;
    for (size_t j = 0; j < STRIDE; j++)
        hash = hash * RK_MULT + part[j];
    return rk_plain(hash + rk_power(whole) * RK_SEED, data + whole, len - whole);
}

/* A byte at distance d from the end of the block is counted d times in s2. */
IBT_INLINE uint32_t
rollsum_fast(const uint8_t *data, size_t len)
{
    uint32_t s1 = 0, s2 = 0;
    size_t whole = len - len % STRIDE;
    for (size_t i = 0; i < whole; i += STRIDE) {
        uint32_t sum = 0, weighted = 0;
        for (uint32_t j = 0; j < STRIDE; j++) {
            uint32_t value = data[i + j] + ROLLSUM_OFFSET;
            sum += value;
            weighted += (STRIDE - j) * value;
        }
        s2 += STRIDE * s1 + weighted;
        s1 += sum;
    }
    for (size_t i = whole; i < len; i++) {
        s1 += data[i] + ROLLSUM_OFFSET;
        s2 += s1;
    }
    return s2 << 16 | (s1 & 0xffff);
}

IBT_INLINE uint32_t
weak_sum_body(enum ibt_weak kind, const uint8_t *data, size_t len)
{
    return kind == IBT_ROLLSUM ? rollsum_fast(data, len) : rk_fast(data, len);
}

IBT_DISPATCH(extern, uint32_t, ibt_weak_sum, weak_sum_body, (enum ibt_weak kind, const uint8_t *data, size_t len),
             (kind, data, len))

/* Both sums of the pair follow their bytes by addition alone: no faster loop is needed. */
IBT_INLINE void
rollsum_roll(uint32_t sum, const uint8_t *data, size_t block_len, size_t count, uint32_t *sums)
{
    uint32_t s1 = sum & 0xffff, s2 = sum >> 16;
    for (size_t i = 0; i < count; i++) {
        s1 += (uint32_t)data[i + block_len] - data[i];
        s2 += s1 - (uint32_t)block_len * (data[i] + ROLLSUM_OFFSET);
        sums[i] = s2 << 16 | (s1 & 0xffff);
    }
}

IBT_INLINE void
rk_roll_plain(uint32_t sum, const uint8_t *data, size_t block_len, size_t count, uint32_t *sums)
{
    uint32_t leaving = rk_power(block_len);
    for (size_t i = 0; i < count; i++) {
        sum = sum * RK_MULT + data[i + block_len] - leaving * (data[i] + RK_ADJUST);
        sums[i] = sum;
    }
}

void
ibt_weak_roll_plain(enum ibt_weak kind, uint32_t sum, const uint8_t *data, size_t block_len, size_t count,
                    uint32_t *sums)
{
    if (kind == IBT_ROLLSUM)
        rollsum_roll(sum, data, block_len, count, sums);
    else
        rk_roll_plain(sum, data, block_len, count, sums);
}

/* The plain loop waits for a multiplication at every byte.  With u[k] what the k-th step adds,
 *
 *     sum[j] = M^j * (sum[0] + M^-1 u[1] + ... + M^-j u[j])
 *
 * so that the multiplications become two loops without dependencies, which the compiler turns into vector
 * instructions, and only an addition is left between one byte and the next. */
IBT_INLINE void
rk_roll_fast(uint32_t sum, const uint8_t *data, size_t block_len, size_t count, uint32_t *sums)
{
    uint32_t power[GROUP], inverse[GROUP], step[GROUP];
    uint32_t leaving = rk_power(block_len), adjust = leaving * RK_ADJUST;
    for (uint32_t j = 0, p = 1, q = 1; j < GROUP; j++) {
        power[j] = p *= RK_MULT;
        inverse[j] = q *= RK_INVERSE;
    }
    for (; count >= GROUP; count -= GROUP, data += GROUP, sums += GROUP) {
        for (size_t j = 0; j < GROUP; j++)
            step[j] = (data[j + block_len] - leaving * data[j] - adjust) * inverse[j];
        for (size_t j = 0; j < GROUP; j++)
            step[j] = sum += step[j];
        for (size_t j = 0; j < GROUP; j++)
            sums[j] = step[j] * power[j];
        sum = sums[GROUP - 1];
    }
    rk_roll_plain(sum, data, block_len, count, sums);
}

IBT_INLINE void
weak_roll_body(enum ibt_weak kind, uint32_t sum, const uint8_t *data, size_t block_len, size_t count, uint32_t *sums)
{
    if (kind == IBT_ROLLSUM)
        rollsum_roll(sum, data, block_len, count, sums);
    else
        rk_roll_fast(sum, data, block_len, count, sums);
}

IBT_DISPATCH(extern, void, ibt_weak_roll, weak_roll_body,
             (enum ibt_weak kind, uint32_t sum, const uint8_t *data, size_t block_len, size_t count, uint32_t *sums),
             (kind, sum, data, block_len, count, sums))

uint32_t
ibt_weak_shrink(enum ibt_weak kind, uint32_t sum, uint8_t first, size_t len)
{
    if (kind == IBT_RABINKARP)
        return sum - rk_power(len - 1) * (first + RK_ADJUST);
    uint32_t value = first + ROLLSUM_OFFSET;
    uint32_t s1 = (sum & 0xffff) - value, s2 = (sum >> 16) - (uint32_t)len * value;
    return s2 << 16 | (s1 & 0xffff);
}
