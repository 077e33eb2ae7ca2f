/* Applying a delta to a basis that is held whole. */
#include <string.h>

#include "kernel.h"

enum { MAGIC_LEN = 4, COMMANDS = 128 };

static int
fits(const ibt_command *command, size_t delta_len, size_t basis_len)
{
    /* Neither sum wraps: ibt_parse() has seen to that. */
    return command->offset + command->length <= (command->kind == IBT_COPY ? basis_len : delta_len);
}

int
ibt_patched_len(const uint8_t *delta, size_t delta_len, size_t basis_len, uint64_t max_len, uint64_t *length)
{
    ibt_command commands[COMMANDS];
    enum ibt_parse_status status = IBT_PARSE_MORE;
    uint64_t next = MAGIC_LEN, total = 0;
    if (delta_len < MAGIC_LEN || memcmp(delta, "rs\x02\x36", MAGIC_LEN) != 0)
        return -1;
    while (status == IBT_PARSE_MORE) {
        size_t count;
        if (next >= delta_len)
            return -1;
        status = ibt_parse(delta + next, delta_len - (size_t)next, next, commands, COMMANDS, &count, &next);
        if (status == IBT_PARSE_MORE && count == 0)
            return -1;
        for (size_t i = 0; i < count; i++) {
            if (!fits(&commands[i], delta_len, basis_len) || commands[i].length > max_len - total)
                return -1;
            total += commands[i].length;
        }
    }
    *length = total;
    return status == IBT_PARSE_END && next == delta_len ? 0 : -1;
}

void
ibt_apply(const uint8_t *delta, size_t delta_len, const uint8_t *basis, uint8_t *out)
{
    ibt_command commands[COMMANDS];
    enum ibt_parse_status status = IBT_PARSE_MORE;
    uint64_t next = MAGIC_LEN;
    while (status == IBT_PARSE_MORE) {
        size_t count;
        status = ibt_parse(delta + next, delta_len - (size_t)next, next, commands, COMMANDS, &count, &next);
        for (size_t i = 0; i < count; i++) {
            const uint8_t *from = commands[i].kind == IBT_COPY ? basis : delta;
            memcpy(out, from + commands[i].offset, commands[i].length);
            out += commands[i].length;
        }
    }
}
