/* The records of a signature: weak and strong sum of each block. */
#include <string.h>

#include "kernel.h"

void
ibt_strong_sum(enum ibt_strong kind, const uint8_t *data, size_t len, uint8_t out[IBT_STRONG_MAX])
{
    if (kind == IBT_MD4)
        ibt_md4(data, len, out);
    else
        ibt_blake2b(data, len, out);
}

void
ibt_strong_lanes(enum ibt_strong kind, const uint8_t *data, size_t len, size_t count,
                 uint8_t out[IBT_LANES][IBT_STRONG_MAX])
{
    if (kind == IBT_BLAKE2B)
        ibt_blake2b_lanes(data, len, count, out);
    else
        for (size_t i = 0; i < count; i++)
            ibt_md4(data + i * len, len, out[i]);
}

static uint8_t *
put_record(const ibt_format *format, uint8_t *record, uint32_t weak, const uint8_t *strong)
{
    for (int i = 0; i < IBT_WEAK_LEN; i++)
        record[i] = (uint8_t)(weak >> (24 - 8 * i));
    memcpy(record + IBT_WEAK_LEN, strong, format->strong_len);
    return record + IBT_WEAK_LEN + format->strong_len;
}

void
ibt_hash_blocks(const ibt_format *format, const uint8_t *data, size_t len, uint8_t *records)
{
    uint8_t strong[IBT_LANES][IBT_STRONG_MAX];
    size_t block_len = format->block_len;
    while (len >= block_len) {
        size_t count = len / block_len < IBT_LANES ? len / block_len : IBT_LANES;
        ibt_strong_lanes(format->strong, data, block_len, count, strong);
        for (size_t i = 0; i < count; i++) {
            uint32_t weak = ibt_weak_sum(format->weak, data + i * block_len, block_len);
            records = put_record(format, records, weak, strong[i]);
        }
        data += count * block_len;
        len -= count * block_len;
    }
    if (len) {
        ibt_strong_sum(format->strong, data, len, strong[0]);
        put_record(format, records, ibt_weak_sum(format->weak, data, len), strong[0]);
    }
}
