/* Signatures and the search: any records, any data.  Every match must be a block with both of its sums, matches must
 * not overlap, and the work must stay within its budget.
 *
 * The input: block length, kinds and strong length in four bytes, the number of records in one, records, new file.  The first
 * half of the records is replaced by those of the new file's own blocks, so that matches do occur.
 */
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

enum { CAP = 2 * IBT_LANES };

#define REQUIRE(condition) \
    do {                   \
        if (!(condition))  \
            abort();       \
    } while (0)

static void
check_match(const ibt_table *table, const uint8_t *data, size_t len, const ibt_match *match)
{
    uint32_t block_len = table->format.block_len;
    uint8_t strong[IBT_STRONG_MAX];
    REQUIRE(match->length > 0 && match->pos <= len && match->length <= len - match->pos);
    REQUIRE(match->basis % block_len == 0);
    for (uint64_t done = 0; done < match->length; done += block_len) {
        size_t part = match->length - done < block_len ? (size_t)(match->length - done) : block_len;
        const uint8_t *window = data + match->pos + done;
        uint64_t block = (match->basis + done) / block_len;
        REQUIRE(block < table->block_count);
        REQUIRE(part == block_len || block == table->block_count - 1);
        const uint8_t *record = ibt_table_record(table, block);
        REQUIRE(ibt_read32be(record) == ibt_weak_sum_plain(table->format.weak, window, part));
        ibt_strong_sum(table->format.strong, window, part, strong);
        REQUIRE(memcmp(record + IBT_WEAK_LEN, strong, table->format.strong_len) == 0);
    }
}

/* Search data, in steps, as the caller in Python does. */
static void
search_all(const ibt_table *table, const uint8_t *data, size_t len, const uint8_t *known, size_t known_count)
{
    ibt_match matches[CAP];
    ibt_search search = {
        .data = data, .len = len, .stop = len, .next_block = IBT_NO_BLOCK, .known = known,
        .known_count = known_count, .matches = matches, .match_cap = CAP};
    uint64_t end = 0, strong_bytes = 0;
    int is_full;
    do {
        search.match_count = 0;
        search.strong_bytes = search.false_alarms = 0;
        ibt_search_windows(table, &search);
        is_full = search.match_cap - search.match_count < IBT_LANES;
        if (!is_full)
            ibt_search_tail(table, &search);
        for (size_t i = 0; i < search.match_count; i++) {
            REQUIRE(matches[i].pos >= end);
            end = matches[i].pos + matches[i].length;
            check_match(table, data, len, &matches[i]);
        }
        REQUIRE(search.pos >= end && search.pos <= len);
        strong_bytes += search.strong_bytes;
    } while (is_full);
    REQUIRE(strong_bytes <= 4 * (uint64_t)len);
}

int
LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    if (size < 5)
        return 0;
    ibt_format format = {.weak = input[2] & 1, .strong = input[2] >> 1 & 1};
    format.block_len = ((uint32_t)input[0] | (uint32_t)(input[1] & 3) << 8) + 1;
    format.strong_len = input[3] % (format.strong == IBT_MD4 ? 16u : 32u) + 1;
    size_t stride = IBT_WEAK_LEN + format.strong_len, count = input[4];
    input += 5, size -= 5;
    if (count * stride > size)
        count = size / stride;
    const uint8_t *data = input + count * stride;
    size_t len = size - count * stride, blocks = len / format.block_len;

    uint8_t *records = malloc(count * stride + 1), *known = malloc((blocks + 1) * stride);
    REQUIRE(records && known);
    memcpy(records, input, count * stride);
    ibt_hash_blocks(&format, data, len, known);
    size_t own = count / 2 < blocks ? count / 2 : blocks;
    memcpy(records, known, own * stride);

    ibt_table table;
    REQUIRE(ibt_table_build(&table, &format, records, count) == 0);
    search_all(&table, data, len, NULL, 0);
    search_all(&table, data, len, known, blocks);
    ibt_table_free(&table);
    free(records);
    free(known);
    return 0;
}
