/* The fast loops against the plain ones that define them. */
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#define REQUIRE(condition) \
    do {                   \
        if (!(condition))  \
            abort();       \
    } while (0)

static void
check_weak(enum ibt_weak kind, const uint8_t *data, size_t size)
{
    REQUIRE(ibt_weak_sum(kind, data, size) == ibt_weak_sum_plain(kind, data, size));
    for (size_t block_len = 1; block_len < size; block_len = block_len * 3 + 1) {
        size_t count = size - block_len;
        uint32_t *fast = malloc(count * sizeof *fast), *plain = malloc(count * sizeof *plain);
        REQUIRE(fast && plain);
        uint32_t sum = ibt_weak_sum(kind, data, block_len);
        ibt_weak_roll(kind, sum, data, block_len, count, fast);
        ibt_weak_roll_plain(kind, sum, data, block_len, count, plain);
        REQUIRE(memcmp(fast, plain, count * sizeof *fast) == 0);
        REQUIRE(fast[count - 1] == ibt_weak_sum_plain(kind, data + count, block_len));
        REQUIRE(ibt_weak_shrink(kind, sum, data[0], block_len) == ibt_weak_sum_plain(kind, data + 1, block_len - 1));
        free(fast);
        free(plain);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t count = data[0] % IBT_LANES + 1;
    data++, size--;
    check_weak(IBT_ROLLSUM, data, size);
    check_weak(IBT_RABINKARP, data, size);
    size_t len = size / count;
    uint8_t lanes[IBT_LANES][IBT_STRONG_MAX], alone[IBT_STRONG_MAX];
    ibt_blake2b_lanes(data, len, count, lanes);
    for (size_t i = 0; i < count; i++) {
        ibt_blake2b(data + i * len, len, alone);
        REQUIRE(memcmp(lanes[i], alone, sizeof alone) == 0);
    }
    return 0;
}
