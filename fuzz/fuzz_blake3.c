/* The digests of many messages at once against those of the plain loop, in memory that ends where they do. */
#include <stdlib.h>
#include <string.h>

#include "blake3.h"

#define REQUIRE(condition) \
    do {                   \
        if (!(condition))  \
            abort();       \
    } while (0)

enum { MAX_MESSAGES = 40 };

/* The byte that says how long a message is: short ones, and others around the ends of chunks. */
static size_t
length_of(uint8_t byte)
{
    return byte < 128 ? byte : (size_t)(byte - 127) * 512 + byte % 3 - 1;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ibt_message messages[MAX_MESSAGES] = {{0}};
    uint8_t fast[MAX_MESSAGES][IBT_BLAKE3_LEN], plain[MAX_MESSAGES][IBT_BLAKE3_LEN];
    size_t count = 0;
    for (; size && count < MAX_MESSAGES; count++) {
        size_t len = length_of(*data);
        uint8_t *message = malloc(len);
        REQUIRE(message || !len);
        for (size_t i = 0; i < len; i++)
            message[i] = data[i % size];
        messages[count] = (ibt_message){message, len, fast[count]};
        data++, size--;
    }
    ibt_blake3_many(messages, count);
    for (size_t i = 0; i < count; i++)
        messages[i].out = plain[i];
    ibt_blake3_many_plain(messages, count);
    for (size_t i = 0; i < count; i++) {
        REQUIRE(memcmp(fast[i], plain[i], IBT_BLAKE3_LEN) == 0);
        free((void *)messages[i].data);
    }
    return 0;
}
