/* A delta between two buffers. What both begin and end with is copied. Between, every STEP-th window of the old bytes
 * is in an index by its hash, and the new bytes are gone over from front to back: where the window at a position is in
 * the index, or the old bytes go on where the last copy would, the longest match, lengthened to both sides, becomes a
 * copy. A match is compared byte for byte, so that a hash that is wrong costs time and nothing else.
 *
 * Time is linear whatever the bytes: a position compares CANDIDATES windows and the one that goes on, each for
 * less than a copy's shortest length where it becomes none; a match that becomes one is compared with so many others
 * of at most its length, and no byte is copied twice.
 */
#include <string.h>

#include "kernel.h"

/* Chosen by what deltas between releases of Linux take after compression. Between windows every 4 bytes and every 8
 * lies a hundredth; shortest matches of 20 to 32 bytes differ by as much, 48 take 5 in a hundred more; more than 8
 * candidates spare a thousandth. */
enum {
    WINDOW = 16,
    STEP = 4,
    SHORTEST = 24,    /* of a match that the index finds: a command of 5 to 9 bytes, which do not compress */
    CONTINUED = 16,   /* of one that goes on beside the last copy */
    ENOUGH = 1024,    /* where going on gives as much, the index is not asked */
    CANDIDATES = 8,
};
#define NONE UINT32_MAX

typedef struct {
    const uint8_t *old, *new;
    size_t old_len, end;     /* no match reaches beyond end in new */
    uint32_t *first;         /* by hash: the first window of old that has it, by its number */
    uint32_t *next;          /* by window: the next one with its hash */
    unsigned shift;
    uint64_t compared;
} pair;

typedef struct {
    size_t new_pos, old_pos, length;
} match;

typedef struct {
    uint8_t *out;
    match copy;              /* the last one, not written yet: another may go on where it ends */
    const uint8_t *new;
} writer;

#define LEAST(left, right) ((left) < (right) ? (left) : (right))

static inline uint64_t
read_word(const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static inline uint32_t
hash_window(const uint8_t *bytes, unsigned shift)
{
    uint64_t mixed = read_word(bytes) * UINT64_C(0x9E3779B97F4A7C15) + read_word(bytes + 8);
    return (uint32_t)(mixed * UINT64_C(0xD6E8FEB86659FD93) >> shift);
}

static size_t
match_forward(const uint8_t *left, const uint8_t *right, size_t len)
{
    size_t same = 0;
    while (len - same >= 8 && read_word(left + same) == read_word(right + same))
        same += 8;
    while (same < len && left[same] == right[same])
        same++;
    return same;
}

/* The same before left and right. */
static size_t
match_backward(const uint8_t *left, const uint8_t *right, size_t len)
{
    size_t same = 0;
    while (len - same >= 8 && read_word(left - same - 8) == read_word(right - same - 8))
        same += 8;
    while (same < len && *(left - same - 1) == *(right - same - 1))
        same++;
    return same;
}

static size_t
window_count(size_t old_len)
{
    return old_len < WINDOW ? 0 : (old_len - WINDOW) / STEP + 1;
}

static unsigned
hash_bits(size_t old_len)
{
    unsigned bits = 4;
    while ((size_t)1 << bits < window_count(old_len))
        bits++;
    return bits;
}

size_t
ibt_exact_index_len(size_t old_len)
{
    return ((size_t)1 << hash_bits(old_len)) + window_count(old_len);
}

size_t
ibt_exact_delta_max(size_t new_len)
{
    /* A copy and the head of the literal after it take less than the copy stands for: magic, a literal, END. */
    return new_len + 4 + 1 + 5;
}

static void
build_index(pair *both, uint32_t *index)
{
    unsigned bits = hash_bits(both->old_len);
    both->shift = 64 - bits;
    both->first = index;
    both->next = index + ((size_t)1 << bits);
    memset(both->first, 0xFF, sizeof *index << bits);
    for (size_t window = window_count(both->old_len); window-- > 0;) {
        uint32_t *slot = &both->first[hash_window(both->old + window * STEP, both->shift)];
        both->next[window] = *slot;
        *slot = (uint32_t)window;
    }
}

/* The longest match of which pos is a part, not before begin; of several the one that goes on where the last copy
 * would, at old_pos, then the first. Its length is 0 where there is none. */
static match
find_match(pair *both, size_t begin, size_t pos, size_t old_pos)
{
    const uint8_t *old = both->old, *here = both->new + pos;
    match best = {0};
    if (old_pos < both->old_len) {
        size_t length = match_forward(old + old_pos, here, LEAST(both->old_len - old_pos, both->end - pos));
        both->compared += length + 1;
        if (length >= CONTINUED)
            best = (match){pos, old_pos, length};
        if (length >= ENOUGH)
            return best;
    }
    uint32_t window = both->first[hash_window(here, both->shift)];
    for (int left = CANDIDATES; left && window != NONE; left--, window = both->next[window]) {
        size_t at = (size_t)window * STEP;
        size_t after = match_forward(old + at, here, LEAST(both->old_len - at, both->end - pos));
        both->compared += after + 1;
        if (after < WINDOW)
            continue;
        size_t before = match_backward(old + at, here, LEAST(at, pos - begin));
        both->compared += before + 1;
        if (after + before >= SHORTEST && after + before > best.length)
            best = (match){pos - before, at - before, after + before};
    }
    return best;
}

/* A number in the fewest bytes; *width becomes 0, 1 or 2 for 1, 2 or 4 of them. */
static uint8_t *
put_number(uint8_t *out, size_t number, unsigned *width)
{
    *width = number < 1 << 8 ? 0 : number < 1 << 16 ? 1 : 2;
    for (unsigned bits = 8u << *width; bits; bits -= 8)
        *out++ = (uint8_t)(number >> (bits - 8));
    return out;
}

static void
put_copy(writer *delta)
{
    unsigned offset_width, length_width;
    if (!delta->copy.length)
        return;
    uint8_t *opcode = delta->out;
    delta->out = put_number(opcode + 1, delta->copy.old_pos, &offset_width);
    delta->out = put_number(delta->out, delta->copy.length, &length_width);
    *opcode = (uint8_t)(0x45 + 4 * offset_width + length_width);
    delta->copy.length = 0;
}

static void
put_literal(writer *delta, size_t begin, size_t end)
{
    size_t length = end - begin;
    if (!length)
        return;
    put_copy(delta);
    if (length <= 64) {
        *delta->out++ = (uint8_t)length;
    } else {
        unsigned width;
        uint8_t *opcode = delta->out;
        delta->out = put_number(opcode + 1, length, &width);
        *opcode = (uint8_t)(0x41 + width);
    }
    memcpy(delta->out, delta->new + begin, length);
    delta->out += length;
}

/* Write what is new from begin on, then the match; return where that ends. */
static size_t
put_match(writer *delta, size_t begin, match found)
{
    put_literal(delta, begin, found.new_pos);
    if (delta->copy.length && delta->copy.old_pos + delta->copy.length == found.old_pos) {
        delta->copy.length += found.length;
    } else {
        put_copy(delta);
        delta->copy = found;
    }
    return found.new_pos + found.length;
}

size_t
ibt_exact_delta(const uint8_t *old, size_t old_len, const uint8_t *new, size_t new_len, uint32_t *index, uint8_t *out,
                uint64_t *compared)
{
    size_t shared = LEAST(old_len, new_len);
    size_t prefix = match_forward(old, new, shared);
    size_t suffix = match_backward(old + old_len, new + new_len, shared - prefix);
    pair both = {.old = old, .new = new, .old_len = old_len, .compared = prefix + suffix + 2};
    prefix = prefix < CONTINUED ? 0 : prefix;
    suffix = suffix < CONTINUED ? 0 : suffix;
    both.end = new_len - suffix;
    memcpy(out, "rs\x02\x36", 4);
    writer delta = {.out = out + 4, .new = new};
    size_t begin = prefix ? put_match(&delta, 0, (match){0, 0, prefix}) : 0;
    size_t pos = begin, next_old = begin;
    if (both.end - pos >= WINDOW)
        build_index(&both, index);
    while (both.end - pos >= WINDOW) {
        match found = find_match(&both, begin, pos, next_old);
        if (found.length) {
            pos = begin = put_match(&delta, begin, found);
            next_old = found.old_pos + found.length;
        } else {
            pos++;
            next_old++;
        }
    }
    put_literal(&delta, begin, both.end);
    if (suffix)
        put_match(&delta, both.end, (match){both.end, old_len - suffix, suffix});
    put_copy(&delta);
    *delta.out++ = 0;
    *compared = both.compared;
    return (size_t)(delta.out - out);
}
