/* From the sums of a window to the block of the old file that has them. */
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

enum {
    FILTER_MIN_LOG2 = 6,   /* words */
    FILTER_MAX_LOG2 = 20,  /* words of 8 bytes; larger ones no longer pay */
    SCAN_ENTRIES = 8,      /* a shorter bucket is searched from its start */
    RADIX_BITS = 11,
    RADIX = 1 << RADIX_BITS,
};

/* Smallest n with 2^n >= count. */
static unsigned
log2_ceil(uint64_t count)
{
    unsigned bits = 0;
    while (bits < 63 && UINT64_C(1) << bits < count)
        bits++;
    return bits;
}

/* The two bits of a key in its word of the filter. */
static uint64_t
filter_bits(uint32_t key)
{
    return UINT64_C(1) << (key & 63) | UINT64_C(1) << (key >> 6 & 63);
}

static const uint8_t *
strong_of(const ibt_table *table, uint32_t block)
{
    return ibt_table_record(table, block) + IBT_WEAK_LEN;
}

/* Order of blocks with one weak sum: by strong sum, and the earlier block first. */
static int
strong_before(const ibt_table *table, uint32_t a, uint32_t b)
{
    int order = memcmp(strong_of(table, a), strong_of(table, b), table->format.strong_len);
    return order ? order < 0 : a < b;
}

static void
sift_down(const ibt_table *table, ibt_entry *heap, size_t root, size_t count)
{
    ibt_entry moved = heap[root];
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && strong_before(table, heap[child].block, heap[child + 1].block))
            child++;
        if (!strong_before(table, moved.block, heap[child].block))
            break;
        heap[root] = heap[child];
    }
    heap[root] = moved;
}

/* Heapsort: in place, and n log n whatever the signature holds. */
static void
sort_by_strong(const ibt_table *table, ibt_entry *entries, size_t count)
{
    for (size_t root = count / 2; root-- > 0;)
        sift_down(table, entries, root, count);
    for (size_t end = count; end-- > 1;) {
        ibt_entry last = entries[end];
        entries[end] = entries[0];
        entries[0] = last;
        sift_down(table, entries, 0, end);
    }
}

/* Stable radix sort by key; the sorted entries end up in one of the two arrays, which is returned. */
static ibt_entry *
sort_by_key(ibt_entry *entries, ibt_entry *spare, size_t count)
{
    for (unsigned shift = 0; shift < 32; shift += RADIX_BITS) {
        size_t start[RADIX + 1] = {0};
        for (size_t i = 0; i < count; i++)
            start[(entries[i].key >> shift & (RADIX - 1)) + 1]++;
        for (size_t digit = 0; digit < RADIX; digit++)
            start[digit + 1] += start[digit];
        for (size_t i = 0; i < count; i++)
            spare[start[entries[i].key >> shift & (RADIX - 1)]++] = entries[i];
        ibt_entry *sorted = spare;
        spare = entries;
        entries = sorted;
    }
    return entries;
}

/* Sort each run of one key by strong sum and keep the first of equal blocks; returns how many entries are
 * left. */
static size_t
drop_duplicates(const ibt_table *table, ibt_entry *entries, size_t count)
{
    size_t kept = 0;
    for (size_t first = 0, end; first < count; first = end) {
        for (end = first + 1; end < count && entries[end].key == entries[first].key; end++)
            ;
        if (end - first > 1)
            sort_by_strong(table, entries + first, end - first);
        for (size_t i = first; i < end; i++)
            if (i == first
                || memcmp(strong_of(table, entries[i].block), strong_of(table, entries[kept - 1].block),
                          table->format.strong_len) != 0)
                entries[kept++] = entries[i];
    }
    return kept;
}

static void
index_buckets(ibt_table *table, unsigned bucket_log2)
{
    size_t entry = 0;
    for (size_t b = 0; b < (size_t)1 << bucket_log2; b++) {
        table->bucket[b] = (uint32_t)entry;
        while (entry < table->entry_count && (uint64_t)table->entries[entry].key >> table->bucket_shift == b)
            entry++;
    }
    table->bucket[(size_t)1 << bucket_log2] = (uint32_t)entry;
}

int
ibt_table_build(ibt_table *table, const ibt_format *format, const uint8_t *records, uint64_t block_count)
{
    memset(table, 0, sizeof *table);
    table->format = *format;
    table->records = records;
    table->block_count = block_count;
    if (block_count >= UINT32_MAX || block_count > SIZE_MAX / sizeof(ibt_entry) / 4)
        return -1;

    size_t count = (size_t)block_count;
    unsigned bucket_log2 = log2_ceil(count);
    /* 32 to 64 bits a block: within the second-level cache for all but huge signatures. Beyond that a miss
     * in the filter, of which many are under way at once, is still cheaper than a useless lookup: with 2^20
     * blocks a filter of 1 MiB gives 0.3 GB/s, one of 4 MiB 0.7. */
    unsigned filter_log2 = bucket_log2 > 1 ? bucket_log2 - 1 : 0;
    if (filter_log2 < FILTER_MIN_LOG2)
        filter_log2 = FILTER_MIN_LOG2;
    if (filter_log2 > FILTER_MAX_LOG2)
        filter_log2 = FILTER_MAX_LOG2;
    table->bucket_shift = 32 - bucket_log2;
    table->filter_shift = 32 - filter_log2;

    ibt_entry *entries = malloc((count + 1) * sizeof *entries), *spare = malloc((count + 1) * sizeof *spare);
    table->filter = calloc((size_t)1 << filter_log2, sizeof *table->filter);
    table->bucket = malloc((((size_t)1 << bucket_log2) + 1) * sizeof *table->bucket);
    if (!entries || !spare || !table->filter || !table->bucket) {
        free(entries);
        free(spare);
        ibt_table_free(table);
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t key = ibt_key(ibt_read32be(ibt_table_record(table, i)));
        entries[i] = (ibt_entry){.key = key, .block = (uint32_t)i};
        table->filter[(uint64_t)key >> table->filter_shift] |= filter_bits(key);
    }
    table->entries = sort_by_key(entries, spare, count);
    free(table->entries == entries ? spare : entries);
    table->entry_count = drop_duplicates(table, table->entries, count);
    index_buckets(table, bucket_log2);
    return 0;
}

void
ibt_table_free(ibt_table *table)
{
    free(table->entries);
    free(table->bucket);
    free(table->filter);
    memset(table, 0, sizeof *table);
}

/* First entry with this key or a greater one; *end becomes the end of its bucket. */
static size_t
first_entry(const ibt_table *table, uint32_t key, size_t *end)
{
    size_t bucket = (size_t)((uint64_t)key >> table->bucket_shift);
    size_t low = table->bucket[bucket], high = *end = table->bucket[bucket + 1];
    while (high - low > SCAN_ENTRIES) {
        size_t middle = low + (high - low) / 2;
        if (table->entries[middle].key < key)
            low = middle + 1;
        else
            high = middle;
    }
    while (low < high && table->entries[low].key < key)
        low++;
    return low;
}

void
ibt_table_prefetch(const ibt_table *table, const uint32_t *sums, const uint32_t *places, size_t count)
{
#if defined(__GNUC__)
    for (size_t i = 0; i < count; i++)
        __builtin_prefetch(&table->bucket[(uint64_t)ibt_key(sums[places[i]]) >> table->bucket_shift]);
    for (size_t i = 0; i < count; i++)
        __builtin_prefetch(&table->entries[table->bucket[(uint64_t)ibt_key(sums[places[i]]) >> table->bucket_shift]]);
#else
    (void)table, (void)sums, (void)places, (void)count;
#endif
}

/* Whether the filter has seen this key: false is certain, true may be wrong. */
static int
filter_has(const ibt_table *table, uint32_t key)
{
    uint64_t bits = filter_bits(key);
    return (table->filter[(uint64_t)key >> table->filter_shift] & bits) == bits;
}

int
ibt_table_has(const ibt_table *table, uint32_t weak)
{
    uint32_t key = ibt_key(weak);
    if (!filter_has(table, key))
        return 0;
    size_t end, entry = first_entry(table, key, &end);
    return entry < end && table->entries[entry].key == key;
}

uint64_t
ibt_table_find(const ibt_table *table, uint32_t weak, const uint8_t *strong)
{
    uint32_t key = ibt_key(weak);
    size_t high, low = first_entry(table, key, &high);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const ibt_entry *entry = &table->entries[middle];
        int order = entry->key != key ? 1 : memcmp(strong_of(table, entry->block), strong, table->format.strong_len);
        if (order == 0)
            return entry->block;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return IBT_NO_BLOCK;
}
