/* Delta parsing: any bytes, cut at any place; what comes out must be commands that the format allows. Then the same bytes
 * as a whole delta, applied within memory that ends where its parts do. */
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

enum { CAP = 64 };

#define REQUIRE(condition) \
    do {                   \
        if (!(condition))  \
            abort();       \
    } while (0)

static uint8_t *
exact_memory(size_t size)
{
    uint8_t *memory = malloc(size ? size : 1);
    REQUIRE(memory);
    return memory;
}

static void
check_applying(size_t basis_len, const uint8_t *data, size_t size)
{
    enum { MAX_LEN = 1 << 16 };
    uint8_t *delta = exact_memory(size + 4), *basis = exact_memory(basis_len);
    uint64_t length;
    memcpy(delta, "rs\x02\x36", 4);
    memcpy(delta + 4, data, size);
    memset(basis, 7, basis_len);
    if (ibt_patched_len(delta, size + 4, basis_len, MAX_LEN, &length) == 0) {
        REQUIRE(length <= MAX_LEN);
        uint8_t *out = exact_memory((size_t)length);
        ibt_apply(delta, size + 4, basis, out);
        free(out);
        REQUIRE(!length || ibt_patched_len(delta, size + 4, basis_len, length - 1, &length) < 0);
    }
    free(basis);
    free(delta);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    check_applying(data[0], data + 1, size - 1);
    ibt_command commands[CAP];
    uint64_t base = (uint64_t)data[0] << (data[0] % 56), next = base;
    data++, size--;
    for (;;) {
        size_t count;
        uint64_t start = next;
        enum ibt_parse_status status =
            ibt_parse(data + (start - base), size - (size_t)(start - base), start, commands, CAP, &count, &next);
        REQUIRE(next >= start && count <= CAP);
        for (size_t i = 0; i < count; i++) {
            REQUIRE(commands[i].length > 0);
            REQUIRE(commands[i].offset <= INT64_MAX - commands[i].length);
            REQUIRE(commands[i].kind == IBT_COPY || commands[i].offset > start);
        }
        if (status != IBT_PARSE_MORE || next - base >= size || next == start)
            return 0;
    }
}
