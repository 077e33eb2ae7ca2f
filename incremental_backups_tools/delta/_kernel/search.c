/* What of a new file is in the old one.
 *
 * The search is always in one of two states.
 *
 * Aligned: a match has just ended (or a step begins). The windows that follow side by side are likely
 * matches too, so up to IBT_LANES of them are taken at once: their weak sums are looked up, and those that
 * lead the run with a candidate are strong-summed side by side. Only where the next window has none does the
 * search fall back to
 *
 * Rolling: the weak sum of the window at every byte, in runs of RUN windows: roll, then filter, then look up
 * the few that the filter let through, until one has a block's strong sum too.
 */
#include <string.h>

#include "kernel.h"
#include "simd.h"

enum { RUN = 1024 };  /* windows rolled at once: their sums stay in the first-level cache */

static int
budget_allows(const ibt_search *search, size_t pos, size_t bytes)
{
    return search->false_bytes + bytes <= 2 * (search->base + pos + bytes);
}

static void
count_false_alarms(ibt_search *search, size_t windows, size_t bytes)
{
    search->false_alarms += windows;
    search->false_bytes += bytes;
}

/* Append a match, or lengthen the last one. */
static void
add_match(ibt_search *search, uint64_t basis, size_t length)
{
    if (search->match_count) {
        ibt_match *last = &search->matches[search->match_count - 1];
        if (last->pos + last->length == search->pos && last->basis + last->length == basis) {
            last->length += length;
            search->pos += length;
            return;
        }
    }
    search->matches[search->match_count++] = (ibt_match){.pos = search->pos, .basis = basis, .length = length};
    search->pos += length;
}

static int
has_room(const ibt_search *search)
{
    return search->match_cap - search->match_count >= IBT_LANES;
}

static int
is_next_block(const ibt_table *table, uint64_t block, uint32_t weak)
{
    return block < table->block_count && ibt_read32be(ibt_table_record(table, block)) == weak;
}

/* The block with these sums: the one that continues the last match, where it has them, so that copies join.
 * */
static uint64_t
find_block(const ibt_table *table, uint64_t next, uint32_t weak, const uint8_t *strong)
{
    if (is_next_block(table, next, weak)
        && memcmp(ibt_table_record(table, next) + IBT_WEAK_LEN, strong, table->format.strong_len) == 0)
        return next;
    return ibt_table_find(table, weak, strong);
}

/* The record of the window at pos where the caller has hashed it already; *run is how many follow it side by
 * side. */
static const uint8_t *
known_record(const ibt_table *table, const ibt_search *search, size_t pos, size_t *run)
{
    size_t block_len = table->format.block_len;
    if (!search->known || pos < search->known_first || (pos - search->known_first) % block_len)
        return NULL;
    size_t index = (pos - search->known_first) / block_len;
    if (index >= search->known_count)
        return NULL;
    *run = search->known_count - index;
    return search->known + index * (IBT_WEAK_LEN + table->format.strong_len);
}

/* Windows side by side from pos on that may match; at least one unless pos itself has no candidate. */
typedef struct {
    size_t count;
    uint32_t weak[IBT_LANES];
    uint8_t strong[IBT_LANES][IBT_STRONG_MAX];
    int is_known;  /* strong[] is filled from what the caller knows */
} lanes;

static void
collect_lanes(const ibt_table *table, const ibt_search *search, lanes *found)
{
    size_t block_len = table->format.block_len, stride = IBT_WEAK_LEN + table->format.strong_len;
    size_t room = (search->len - search->pos) / block_len, known_run = 0;
    const uint8_t *known = known_record(table, search, search->pos, &known_run);
    size_t limit = room < IBT_LANES ? room : IBT_LANES;
    if (known && known_run < limit)
        limit = known_run;
    uint64_t next = search->next_block;
    found->is_known = known != NULL;
    for (size_t i = 0; i < limit && search->pos + i * block_len < search->stop; i++) {
        const uint8_t *window = search->data + search->pos + i * block_len;
        uint32_t weak =
            known ? ibt_read32be(known + i * stride) : ibt_weak_sum(table->format.weak, window, block_len);
        found->weak[i] = weak;
        if (!is_next_block(table, next == IBT_NO_BLOCK ? next : next + i, weak) && !ibt_table_has(table, weak))
            break;
        if (known)
            memcpy(found->strong[i], known + i * stride + IBT_WEAK_LEN, table->format.strong_len);
        found->count++;
    }
}

/* Take the windows at pos, side by side, while they match. Returns how many did. With 0, *weak is the weak
 * sum at pos, which is decided: no match begins there. */
static size_t
match_aligned(const ibt_table *table, ibt_search *search, uint32_t *weak)
{
    size_t block_len = table->format.block_len;
    lanes found = {.count = 0};
    collect_lanes(table, search, &found);
    *weak = found.weak[0];
    size_t count = found.count;
    if (!found.is_known) {
        while (count && !budget_allows(search, search->pos, count * block_len))
            count--;
        if (count)
            ibt_strong_lanes(table->format.strong, search->data + search->pos, block_len, count, found.strong);
        search->strong_bytes += count * block_len;
    }
    size_t matched = 0;
    for (; matched < count; matched++) {
        uint64_t block = find_block(table, search->next_block, found.weak[matched], found.strong[matched]);
        if (block == IBT_NO_BLOCK)
            break;
        add_match(search, block * block_len, block_len);
        search->next_block = block + 1;
    }
    if (!found.is_known)
        count_false_alarms(search, count - matched, (count - matched) * block_len);
    return matched;
}

static inline unsigned
lowest_bit(uint64_t bits)
{
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(bits);
#else
    unsigned place = 0;
    for (; !(bits & 1); bits >>= 1)
        place++;
    return place;
#endif
}

/* Which of the sums the filter lets through: their places, ascending. The hits are gathered as bits first,
 * so that no branch has to be guessed and no load waits for the store before it. */
IBT_INLINE size_t
filter_body(const ibt_table *table, const uint32_t *sums, size_t count, uint32_t *places)
{
    const uint64_t *filter = table->filter;
    unsigned shift = table->filter_shift;
    size_t passed = 0;
    for (size_t first = 0; first < count; first += 64) {
        size_t group = count - first < 64 ? count - first : 64;
        uint64_t hits = 0;
        for (size_t i = 0; i < group; i++) {
            uint32_t key = ibt_key(sums[first + i]);
            uint64_t word = filter[(uint64_t)key >> shift];
            hits |= (word >> (key & 63) & word >> (key >> 6 & 63) & 1) << i;
        }
        for (; hits; hits &= hits - 1)
            places[passed++] = (uint32_t)(first + lowest_bit(hits));
    }
    return passed;
}

IBT_DISPATCH(static, size_t, filter_sums, filter_body,
             (const ibt_table *table, const uint32_t *sums, size_t count, uint32_t *places),
             (table, sums, count, places))

/* Whether the window at pos with this weak sum is a block. */
static uint64_t
match_rolling(const ibt_table *table, ibt_search *search, size_t pos, uint32_t weak)
{
    size_t block_len = table->format.block_len;
    uint8_t strong[IBT_STRONG_MAX];
    if (!budget_allows(search, pos, block_len) || !ibt_table_has(table, weak))
        return IBT_NO_BLOCK;
    ibt_strong_sum(table->format.strong, search->data + pos, block_len, strong);
    search->strong_bytes += block_len;
    uint64_t block = find_block(table, search->next_block, weak, strong);
    if (block == IBT_NO_BLOCK)
        count_false_alarms(search, 1, block_len);
    return block;
}

/* Roll on from pos, which is decided and has this weak sum, to the next match or the end. */
static void
roll_to_match(const ibt_table *table, ibt_search *search, uint32_t weak)
{
    size_t block_len = table->format.block_len;
    uint32_t sums[RUN], places[RUN];
    size_t last = search->len - block_len;
    if (last >= search->stop)
        last = search->stop - 1;
    while (search->pos < last) {
        size_t count = last - search->pos < RUN ? last - search->pos : RUN;
        ibt_weak_roll(table->format.weak, weak, search->data + search->pos, block_len, count, sums);
        size_t passed = filter_sums(table, sums, count, places);
        ibt_table_prefetch(table, sums, places, passed);
        for (size_t i = 0; i < passed; i++) {
            size_t pos = search->pos + 1 + places[i];
            uint64_t block = match_rolling(table, search, pos, sums[places[i]]);
            if (block == IBT_NO_BLOCK)
                continue;
            search->pos = pos;
            search->next_block = block + 1;
            add_match(search, block * block_len, block_len);
            return;
        }
        weak = sums[count - 1];
        search->pos += count;
    }
    search->pos = last + 1;
}

void
ibt_search_windows(const ibt_table *table, ibt_search *search)
{
    size_t block_len = table->format.block_len;
    while (search->pos < search->stop && search->len >= block_len && search->pos <= search->len - block_len
           && has_room(search)) {
        uint32_t weak;
        if (match_aligned(table, search, &weak) == 0)
            roll_to_match(table, search, weak);
    }
}

void
ibt_search_tail(const ibt_table *table, ibt_search *search)
{
    uint8_t strong[IBT_STRONG_MAX];
    if (table->block_count == 0 || search->pos >= search->len)
        return;
    uint64_t block = table->block_count - 1;
    const uint8_t *record = ibt_table_record(table, block);
    uint32_t wanted = ibt_read32be(record);
    uint32_t weak = ibt_weak_sum(table->format.weak, search->data + search->pos, search->len - search->pos);
    for (size_t pos = search->pos; pos < search->len; pos++) {
        size_t rest = search->len - pos;
        if (weak == wanted && budget_allows(search, pos, rest)) {
            ibt_strong_sum(table->format.strong, search->data + pos, rest, strong);
            search->strong_bytes += rest;
            if (memcmp(record + IBT_WEAK_LEN, strong, table->format.strong_len) == 0) {
                search->pos = pos;
                add_match(search, block * table->format.block_len, rest);
                return;
            }
            count_false_alarms(search, 1, rest);
        }
        weak = ibt_weak_shrink(table->format.weak, weak, search->data[pos], rest);
    }
}
