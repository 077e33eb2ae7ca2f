/* Comparing a cached line with a stat, without making anything of the line. */
#include "listing.h"

#include <string.h>

enum { NS_PER_S = 1000000000, PERMISSIONS = 07777 };

typedef struct {
    const uint8_t *at, *end;
} cursor;

typedef struct {
    const uint8_t *at;
    size_t len;
} span;

static int
take(cursor *c, uint8_t byte)
{
    if (c->at == c->end || *c->at != byte)
        return 0;
    c->at++;
    return 1;
}

/* A JSON string; *text* is what stands between the quotes, escapes as they are. */
static int
take_string(cursor *c, span *text)
{
    if (!take(c, '"'))
        return 0;
    const uint8_t *start = c->at;
    while (c->at < c->end && *c->at != '"')
        c->at += *c->at == '\\' ? 2 : 1;
    if (c->at >= c->end)
        return 0;
    *text = (span){start, (size_t)(c->at - start)};
    c->at++;
    return 1;
}

static int
take_plain(cursor *c)
{
    const uint8_t *start = c->at;
    while (c->at < c->end && *c->at != ',' && *c->at != '}' && *c->at != ']')
        c->at++;
    return c->at > start;
}

/* An array or object, with all that is in it. */
static int
take_nested(cursor *c)
{
    size_t depth = 0;
    span ignored;
    do {
        if (c->at == c->end)
            return 0;
        if (*c->at == '"') {
            if (!take_string(c, &ignored))
                return 0;
            continue;
        }
        if (*c->at == '[' || *c->at == '{')
            depth++;
        else if (*c->at == ']' || *c->at == '}')
            depth--;
        c->at++;
    } while (depth);
    return 1;
}

static int
take_value(cursor *c, span *value)
{
    const uint8_t *start = c->at;
    if (c->at == c->end)
        return 0;
    if (*c->at == '"')
        return take_string(c, value);
    int taken = *c->at == '[' || *c->at == '{' ? take_nested(c) : take_plain(c);
    *value = (span){start, (size_t)(c->at - start)};
    return taken;
}

static int
is_text(span value, const char *text)
{
    return value.len == strlen(text) && memcmp(value.at, text, value.len) == 0;
}

static int
is_number(span value, __int128 expected)
{
    size_t i = 0;
    int negative = value.len && value.at[0] == '-';
    __int128 number = 0;
    if (negative)
        i++;
    if (i == value.len || value.len - i > 20)
        return 0;
    for (; i < value.len; i++) {
        if (value.at[i] < '0' || value.at[i] > '9')
            return 0;
        number = 10 * number + (value.at[i] - '0');
    }
    return (negative ? -number : number) == expected;
}

static const char *
type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "dir";
    case S_IFLNK:
        return "symlink";
    case S_IFIFO:
        return "fifo";
    case S_IFCHR:
        return "char";
    case S_IFBLK:
        return "block";
    default:
        return NULL;
    }
}

/* What stands in JSON as it is. Bytes that are no UTF-8 cannot be in a line, so they never agree. */
static int
is_written_plainly(const char *name, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == '"' || name[i] == '\\')
            return 0;
    return 1;
}

static __int128
nanoseconds(struct timespec time)
{
    return (__int128)time.tv_sec * NS_PER_S + time.tv_nsec;
}

enum { TYPE = 1, MODE = 2, UID = 4, GID = 8, SIZE = 16, MTIME = 32, CTIME = 64, INODE = 128 };

/* The bit of *key*, 0 for one that does not matter, -1 for one that must not be there. */
static int
bit_of(span key)
{
    static const struct {
        const char *key;
        int bit;
    } known[] = {{"type", TYPE},       {"mode", MODE},         {"uid", UID},     {"gid", GID},    {"size", SIZE},
                 {"mtime_ns", MTIME},  {"ctime_ns", CTIME},    {"inode", INODE}, {"link_of", -1}, {"link_of_b64", -1},
                 {"path", -1},         {"path_b64", -1},       {"op", -1},       {"unstable", -1}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is_text(key, known[i].key))
            return known[i].bit;
    return 0;
}

static int
value_agrees(int bit, span value, const char *type, const struct stat *info)
{
    switch (bit) {
    case TYPE:
        return is_text(value, type);
    case MODE:
        return is_number(value, info->st_mode & PERMISSIONS);
    case UID:
        return is_number(value, info->st_uid);
    case GID:
        return is_number(value, info->st_gid);
    case SIZE:
        return is_number(value, info->st_size);
    case MTIME:
        return is_number(value, nanoseconds(info->st_mtim));
    case CTIME:
        return is_number(value, nanoseconds(info->st_ctim));
    case INODE:
        return is_number(value, info->st_ino);
    default:
        return 1;
    }
}

int
ibt_line_agrees(const uint8_t *line, size_t len, const char *path, size_t path_len, const char *name,
                size_t name_len, const struct stat *info)
{
    static const char start[] = "{\"path\":\"";
    const size_t start_len = sizeof start - 1;
    const char *type = type_name(info->st_mode);
    if (!type || len < start_len + path_len + name_len + 1 || memcmp(line, start, start_len) != 0 ||
        memcmp(line + start_len, path, path_len) != 0 || memcmp(line + start_len + path_len, name, name_len) != 0)
        return 0;
    if (!is_written_plainly(path, path_len) || !is_written_plainly(name, name_len))
        return 0;
    cursor c = {line + start_len + path_len + name_len, line + len};
    if (!take(&c, '"'))
        return 0;
    int seen = 0;
    while (take(&c, ',')) {
        span key, value;
        if (!take_string(&c, &key) || !take(&c, ':') || !take_value(&c, &value))
            return 0;
        int bit = bit_of(key);
        if (bit < 0 || (seen & bit) || !value_agrees(bit, value, type, info))
            return 0;
        seen |= bit;
    }
    const int needed = TYPE | MODE | UID | GID | MTIME | CTIME | INODE | (S_ISREG(info->st_mode) ? SIZE : 0);
    return take(&c, '}') && c.at == c.end && seen == needed;
}

ibt_agreement
ibt_listing_compare(const ibt_listing *listing, size_t first, const char *prefix, size_t prefix_len,
                    const uint8_t *lines, size_t lines_len, size_t offset)
{
    ibt_agreement found = {.end = offset};
    for (size_t i = first; i < listing->count && found.end < lines_len; i++) {
        const ibt_name *name = &listing->names[i];
        if (S_ISDIR(name->info.st_mode) || name->info.st_nlink > 1)
            break;
        const uint8_t *line = lines + found.end;
        const uint8_t *newline = memchr(line, '\n', lines_len - found.end);
        if (!newline || !ibt_line_agrees(line, (size_t)(newline - line), prefix, prefix_len, name->name,
                                         name->name_len, &name->info))
            break;
        found.names++;
        found.end = (size_t)(newline - lines) + 1;
        if (S_ISREG(name->info.st_mode)) {
            found.files++;
            found.bytes += name->info.st_size;
        }
    }
    return found;
}
