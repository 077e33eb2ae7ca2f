/* Delta parsing: any bytes, cut at any place; what comes out must be commands that the format allows. */
#include <stdlib.h>

#include "kernel.h"

enum { CAP = 64 };

#define REQUIRE(condition) \
    do {                   \
        if (!(condition))  \
            abort();       \
    } while (0)

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
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
