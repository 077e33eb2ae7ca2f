#include "plain.h"

#include <string.h>

static const int64_t NANOSECONDS = 1000000000;
static const int64_t MAX_OCTAL_11 = 077777777777;

/* What a line has besides its path, its owner's fields and the names of volumes: names of fields, digests, numbers. */
enum { LINE_ROOM = 1024 };

int
ibt_is_plain(const ibt_plain_run *run, const ibt_plain_file *file)
{
    if (run->prefix.len + file->name.len > IBT_TAR_NAME_LEN || file->mtime_ns < 0 ||
        file->mtime_ns / NANOSECONDS > MAX_OCTAL_11)
        return 0;
    const ibt_text parts[] = {run->prefix, file->name};
    for (size_t part = 0; part < 2; part++)
        for (size_t i = 0; i < parts[part].len; i++) {
            unsigned char byte = (unsigned char)parts[part].data[i];
            if (byte < ' ' || byte > '~' || byte == '"' || byte == '\\')
                return 0;
        }
    return 1;
}

uint64_t
ibt_member_len(uint64_t len)
{
    return IBT_TAR_BLOCK_LEN + (len + IBT_TAR_BLOCK_LEN - 1) / IBT_TAR_BLOCK_LEN * IBT_TAR_BLOCK_LEN;
}

static char *
put(char *out, const void *data, size_t len)
{
    memcpy(out, data, len);
    return out + len;
}

static char *
put_text(char *out, ibt_text text)
{
    return put(out, text.data, text.len);
}

#define PUT(out, literal) put(out, literal, sizeof(literal) - 1)

static char *
put_number(char *out, uint64_t number)
{
    char digits[20];
    size_t len = 0;
    do {
        digits[sizeof digits - ++len] = (char)('0' + number % 10);
    } while (number /= 10);
    return put(out, digits + sizeof digits - len, len);
}

static char *
put_signed(char *out, int64_t number)
{
    if (number >= 0)
        return put_number(out, (uint64_t)number);
    *out = '-';
    return put_number(out + 1, -(uint64_t)number);
}

static char *
put_hex(char *out, const uint8_t *digest)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < IBT_DIGEST_LEN; i++) {
        *out++ = digits[digest[i] >> 4];
        *out++ = digits[digest[i] & 15];
    }
    return out;
}

/* *count* octal digits and a NUL. */
static char *
put_octal(char *out, uint64_t number, size_t count)
{
    for (size_t i = count; i-- > 0; number >>= 3)
        out[i] = (char)('0' + (number & 7));
    out[count] = '\0';
    return out + count + 1;
}

static uint32_t
sum_of(const char *data, size_t len)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum += (unsigned char)data[i];
    return sum;
}

char *
ibt_write_member(char *out, const ibt_plain_run *run, const ibt_plain_file *file, const ibt_owner *owner,
                 ibt_text data)
{
    char *name = out, *end = out + ibt_member_len(data.len);
    out = put_text(put_text(out, run->prefix), file->name);
    memset(out, 0, (size_t)(name + IBT_TAR_NAME_LEN - out));
    out = put(name + IBT_TAR_NAME_LEN, owner->permissions, IBT_PERMISSIONS_LEN);
    char *numbers = out;
    out = put_octal(out, data.len, 11);
    out = put_octal(out, (uint64_t)(file->mtime_ns / NANOSECONDS), 11);
    uint32_t sum = owner->sum + sum_of(name, IBT_TAR_NAME_LEN) + sum_of(numbers, (size_t)(out - numbers));
    out = put_octal(out, sum, 6);
    *out++ = ' ';
    out = put(out, owner->rest, IBT_REST_LEN);
    out = put_text(out, data);
    memset(out, 0, (size_t)(end - out));
    return end;
}

size_t
ibt_line_room(const ibt_plain_run *run, const ibt_plain_file *file)
{
    return LINE_ROOM + IBT_TAR_NAME_LEN + file->owner->line.len + file->owner->encoding.len +
           2 * (run->data_file.len + run->sig_file.len);
}

/* A location, without the brace that ends it. */
static char *
put_place(char *out, ibt_text file, uint64_t offset, size_t len)
{
    out = PUT(out, "{\"file\":\"");
    out = put_text(out, file);
    out = PUT(out, "\",\"offset\":");
    out = put_number(out, offset);
    out = PUT(out, ",\"length\":");
    return put_number(out, len);
}

/* The fields that both lines begin with. */
static char *
put_common(char *out, const ibt_plain_run *run, const ibt_plain_file *file)
{
    out = PUT(out, "{\"path\":\"");
    out = put_text(put_text(out, run->prefix), file->name);
    out = PUT(out, "\",\"type\":\"file\",");
    out = put_text(out, file->owner->line);
    out = PUT(out, ",\"size\":");
    out = put_number(out, file->content.len);
    out = PUT(out, ",\"mtime_ns\":");
    out = put_signed(out, file->mtime_ns);
    out = PUT(out, ",\"digest\":\"");
    return put_hex(out, file->digest);
}

char *
ibt_write_state_line(char *out, const ibt_plain_run *run, const ibt_plain_file *file)
{
    out = put_common(out, run, file);
    out = PUT(out, "\",\"data\":");
    out = put_place(out, run->data_file, file->data_offset, file->content.len);
    if (file->signature.data) {
        out = PUT(out, "},\"sig\":");
        out = put_place(out, run->sig_file, file->sig_offset, file->signature.len);
        out = PUT(out, ",\"digest\":\"");
        out = put_hex(out, file->sig_digest);
        out = PUT(out, "\"");
    }
    return PUT(out, "}}\n");
}

char *
ibt_write_index_line(char *out, const ibt_plain_run *run, const ibt_plain_file *file)
{
    out = put_common(out, run, file);
    if (file->is_vouched) {
        out = PUT(out, "\",\"ctime_ns\":");
        out = put_signed(out, file->ctime_ns);
        out = PUT(out, ",\"inode\":");
    } else {
        out = PUT(out, "\",\"inode\":");
    }
    out = put_number(out, file->inode);
    out = PUT(out, ",\"dev\":");
    out = put_number(out, file->dev);
    out = PUT(out, ",\"locations\":[");
    out = put_place(out, run->data_file, file->data_offset, file->content.len);
    out = PUT(out, "}],\"sig_locations\":[");
    if (file->signature.data) {
        out = put_place(out, run->sig_file, file->sig_offset, file->signature.len);
        out = PUT(out, "}],\"sig_digest\":\"");
        out = put_hex(out, file->sig_digest);
        out = PUT(out, "\",\"content_digest\":\"");
    } else {
        out = PUT(out, "],\"content_digest\":\"");
    }
    out = put_hex(out, file->digest);
    return PUT(out, "\"}\n");
}

static char *
put_little(char *out, uint64_t number, size_t len)
{
    for (size_t i = 0; i < len; i++, number >>= 8)
        *out++ = (char)(number & 0xFF);
    return out;
}

char *
ibt_write_encoding(char *out, const ibt_plain_run *run, const ibt_plain_file *file)
{
    out = put_little(out, run->prefix.len + file->name.len, 4);
    out = put_text(put_text(out, run->prefix), file->name);
    out = put_text(out, file->owner->encoding);
    out = put_little(out, 8, 4);
    out = put_little(out, file->content.len, 8);
    out = put_little(out, 8, 4);
    out = put_little(out, (uint64_t)file->mtime_ns, 8);
    memset(out, 0xFF, 6 * 4); /* target, link_of, device, flags, xattrs and acl are absent */
    out = put_little(out + 6 * 4, IBT_DIGEST_LEN, 4);
    return put(out, file->digest, IBT_DIGEST_LEN);
}

void
ibt_write_sort_key(char *out, const ibt_plain_run *run, const ibt_plain_file *file)
{
    char *key = out;
    out = put_text(put_text(out, run->prefix), file->name);
    for (; key < out; key++)
        if (*key == '/')
            *key = '\0';
}

void
ibt_add_digest(uint8_t *sum, const uint8_t *digest)
{
    unsigned carry = 0;
    for (size_t i = IBT_DIGEST_LEN; i-- > 0; carry >>= 8) {
        carry += (unsigned)sum[i] + digest[i];
        sum[i] = (uint8_t)carry;
    }
}

int64_t
ibt_digest_prefix(const uint8_t *digest)
{
    uint64_t prefix = 0;
    for (size_t i = 0; i < 8; i++)
        prefix = prefix << 8 | digest[i];
    return (int64_t)prefix;
}

static uint64_t
filter_bit(size_t filter_len, int64_t prefix)
{
    return (uint64_t)prefix & (8 * (uint64_t)filter_len - 1);
}

int
ibt_filter_has(const uint8_t *filter, size_t filter_len, int64_t prefix)
{
    uint64_t bit = filter_bit(filter_len, prefix);
    return filter[bit / 8] >> (bit % 8) & 1;
}

void
ibt_filter_add(uint8_t *filter, size_t filter_len, int64_t prefix)
{
    uint64_t bit = filter_bit(filter_len, prefix);
    filter[bit / 8] |= (uint8_t)(1 << (bit % 8));
}
