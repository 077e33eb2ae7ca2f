/* The commands of a librsync delta.
 *
 *   0x00         END
 *   0x01-0x40    literal of that many bytes, which follow
 *   0x41-0x44    literal; its length follows in 1, 2, 4 or 8 bytes, then the bytes
 *   0x45-0x54    copy; offset in the basis and length follow, each in 1, 2, 4 or 8 bytes
 *   0x55-0xff    reserved
 *
 * All numbers are big-endian.
 */
#include "kernel.h"

enum { SHORT_MAX = 0x40, LITERAL_N1 = 0x41, COPY_N1_N1 = 0x45, RESERVED = 0x55 };

static uint64_t
read_number(const uint8_t *bytes, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value = value << 8 | bytes[i];
    return value;
}

/* Bytes that follow the opcode: of the first number, and of the second. */
static void
parameter_widths(uint8_t opcode, unsigned *first, unsigned *second)
{
    *first = *second = 0;
    if (opcode >= COPY_N1_N1) {
        *first = 1u << (opcode - COPY_N1_N1) / 4;
        *second = 1u << (opcode - COPY_N1_N1) % 4;
    } else if (opcode >= LITERAL_N1) {
        *first = 1u << (opcode - LITERAL_N1);
    }
}

enum ibt_parse_status
ibt_parse(const uint8_t *data, size_t len, uint64_t base, ibt_command *commands, size_t cap, size_t *count,
          uint64_t *next)
{
    size_t pos = 0;
    *count = 0;
    *next = base;
    while (*count < cap && *next - base < len) {
        pos = (size_t)(*next - base);
        uint8_t opcode = data[pos];
        if (opcode == 0) {
            *next += 1;
            return IBT_PARSE_END;
        }
        if (opcode >= RESERVED)
            return IBT_PARSE_UNKNOWN;
        unsigned first, second;
        parameter_widths(opcode, &first, &second);
        if (len - pos - 1 < first + second)
            return IBT_PARSE_MORE;
        uint64_t header_end = *next + 1 + first + second;
        uint64_t number = read_number(data + pos + 1, first);
        ibt_command command = {
            .kind = IBT_LITERAL, .offset = header_end, .length = opcode <= SHORT_MAX ? opcode : number};
        if (opcode >= COPY_N1_N1)
            command = (ibt_command){
                .kind = IBT_COPY, .offset = number, .length = read_number(data + pos + 1 + first, second)};
        if (command.length == 0)
            return IBT_PARSE_EMPTY;
        if (command.offset > INT64_MAX || command.length > INT64_MAX - command.offset)
            return IBT_PARSE_WRAPS;
        commands[(*count)++] = command;
        *next = command.kind == IBT_LITERAL ? header_end + command.length : header_end;
    }
    return IBT_PARSE_MORE;
}
