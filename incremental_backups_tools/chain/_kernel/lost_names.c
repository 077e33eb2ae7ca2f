#define _GNU_SOURCE
#include "lost_names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_LISTED = 10000, /* as in the twin */
    NS_PER_S = 1000000000,
};

static const char path_start[] = "{\"path\":\"", is_directory[] = "\",\"type\":\"dir\",";
#define LEN(text) (sizeof(text) - 1)

typedef struct {
    size_t offset, len; /* in the level's text */
    uint64_t inode;
} held_name;

/* A directory above a line. */
struct ibt_level {
    char *beginning; /* of the lines of names in it */
    size_t beginning_len;
    enum { AS_IT_WAS, LISTED, UNKNOWN } kind;
    held_name *names; /* of LISTED: the regular files that are there, sorted */
    size_t count, room;
    char *text;
    size_t text_len, text_room;
};

static void
free_level(ibt_level *level)
{
    free(level->beginning);
    free(level->names);
    free(level->text);
}

void
ibt_lost_names_free(ibt_lost_names *self)
{
    while (self->count)
        free_level(&self->levels[--self->count]);
    free(self->levels);
    free(self->source);
    *self = (ibt_lost_names){0};
}

/* Room for *count* items and one more in an array. */
static int
make_room(void **items, size_t *room, size_t count, size_t item_len)
{
    if (count < *room)
        return 0;
    size_t larger = *room ? 2 * *room : 16;
    void *moved = reallocarray(*items, larger, item_len);
    if (!moved)
        return ENOMEM;
    *items = moved;
    *room = larger;
    return 0;
}

static int
starts_with(const char *line, size_t len, const char *beginning, size_t beginning_len)
{
    return len >= beginning_len && memcmp(line, beginning, beginning_len) == 0;
}

/* Leave the directories that a line does not lie in. */
static void
leave(ibt_lost_names *self, const char *line, size_t len)
{
    while (self->count) {
        ibt_level *last = &self->levels[self->count - 1];
        if (starts_with(line, len, last->beginning, last->beginning_len))
            return;
        free_level(last);
        self->count--;
    }
}

/* Whether a line says this number of a field, which is given as ,"name": */
static int
has_number(const char *line, size_t len, const char *field, int64_t number)
{
    char digits[24];
    int digits_len = snprintf(digits, sizeof digits, "%lld", (long long)number);
    const char *at = memmem(line, len, field, strlen(field));
    if (!at)
        return 0;
    at += strlen(field);
    size_t left = len - (size_t)(at - line);
    return starts_with(at, left, digits, (size_t)digits_len) && left > (size_t)digits_len &&
           (at[digits_len] == ',' || at[digits_len] == '}');
}

static int64_t
nanoseconds(struct timespec time)
{
    return (int64_t)time.tv_sec * NS_PER_S + time.tv_nsec;
}

static int
is_as_it_was(const struct stat *info, const char *line, size_t len)
{
    return has_number(line, len, ",\"mtime_ns\":", nanoseconds(info->st_mtim)) &&
           has_number(line, len, ",\"ctime_ns\":", nanoseconds(info->st_ctim)) &&
           has_number(line, len, ",\"inode\":", (int64_t)info->st_ino);
}

static int
is_regular(int fd, const struct dirent *entry)
{
    struct stat info;
    if (entry->d_type != DT_UNKNOWN)
        return entry->d_type == DT_REG;
    return fstatat(fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(info.st_mode);
}

static int
add_name(ibt_level *level, const struct dirent *entry)
{
    size_t len = strlen(entry->d_name);
    if (make_room((void **)&level->names, &level->room, level->count, sizeof *level->names) != 0)
        return ENOMEM;
    while (level->text_room - level->text_len < len) {
        size_t larger = level->text_room ? 2 * level->text_room : 1024;
        char *text = realloc(level->text, larger);
        if (!text)
            return ENOMEM;
        level->text = text;
        level->text_room = larger;
    }
    memcpy(level->text + level->text_len, entry->d_name, len);
    level->names[level->count++] = (held_name){level->text_len, len, entry->d_ino};
    level->text_len += len;
    return 0;
}

static int
compare_names(const char *left, size_t left_len, const char *right, size_t right_len)
{
    int order = memcmp(left, right, left_len < right_len ? left_len : right_len);
    return order ? order : (left_len > right_len) - (left_len < right_len);
}

static int
by_name(const void *left, const void *right, void *text)
{
    const held_name *one = left, *other = right;
    return compare_names((char *)text + one->offset, one->len, (char *)text + other->offset, other->len);
}

/* List a directory; closes fd. It stays UNKNOWN where that fails or there are too many names. */
static int
list_files(ibt_level *level, int fd)
{
    DIR *directory = fdopendir(fd);
    if (!directory) {
        close(fd);
        return 0;
    }
    int error = 0;
    size_t seen = 0;
    const struct dirent *entry;
    for (errno = 0; !error && seen <= MAX_LISTED && (entry = readdir(directory)); errno = 0) {
        const char *name = entry->d_name;
        if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
            continue;
        seen++;
        if (is_regular(fd, entry))
            error = add_name(level, entry);
    }
    if (!error && !errno && seen <= MAX_LISTED) {
        if (level->count)
            qsort_r(level->names, level->count, sizeof *level->names, by_name, level->text);
        level->kind = LISTED;
    }
    closedir(directory);
    return error;
}

static int
look_at(const ibt_lost_names *self, ibt_level *level, const char *path, size_t path_len, const char *fields, size_t len)
{
    size_t source_len = strlen(self->source);
    char *full = malloc(source_len + path_len + 2);
    if (!full)
        return ENOMEM;
    memcpy(full, self->source, source_len);
    full[source_len] = '/';
    memcpy(full + source_len + 1, path, path_len);
    full[source_len + 1 + path_len] = 0;
    struct stat info;
    int error = 0;
    if (lstat(full, &info) != 0) {
        level->kind = UNKNOWN;
    } else if (is_as_it_was(&info, fields, len)) {
        level->kind = AS_IT_WAS;
    } else if (S_ISDIR(info.st_mode)) {
        int fd = open(full, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd >= 0)
            error = list_files(level, fd);
    }
    free(full);
    return error;
}

/* Go on in a directory, by its line, in which its path ends at *end*. */
static int
enter(ibt_lost_names *self, const char *line, size_t len, size_t end)
{
    if (make_room((void **)&self->levels, &self->room, self->count, sizeof *self->levels) != 0)
        return ENOMEM;
    ibt_level *level = &self->levels[self->count];
    *level = (ibt_level){.kind = UNKNOWN, .beginning_len = end};
    level->beginning = malloc(end + 1);
    if (!level->beginning)
        return ENOMEM;
    self->count++;
    memcpy(level->beginning, line, end);
    if (!starts_with(line, end, path_start, LEN(path_start)) || memchr(line, '\\', end) || memchr(line, 0, end))
        return 0; /* JSON has the name in another form, or none has written this: it is not asked what is there */
    const char *path = line + LEN(path_start);
    size_t path_len = end - LEN(path_start);
    if (path_len == 1 && *path == '.')
        level->beginning_len = LEN(path_start);
    else
        level->beginning[level->beginning_len++] = '/';
    return look_at(self, level, path, path_len, line + end, len - end);
}

/* Whether the file of a line is there, in the directory *level*, with the inode that it had. */
static int
is_there(const ibt_level *level, const char *line, size_t len)
{
    const char *name = line + level->beginning_len;
    const char *quote = memchr(name, '"', len - level->beginning_len);
    size_t name_len = quote ? (size_t)(quote - name) : 0;
    size_t low = 0, high = level->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const held_name *held = &level->names[middle];
        int order = compare_names(level->text + held->offset, held->len, name, name_len);
        if (order == 0)
            return has_number(line, len, ",\"inode\":", (int64_t)held->inode);
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

static int
go_on(ibt_lost_names *self, const char *block, ibt_span span, ibt_spans *found)
{
    const char *line = block + span.begin;
    size_t len = span.end - span.begin;
    leave(self, line, len);
    const char *end = memmem(line, len, is_directory, LEN(is_directory));
    if (end)
        return enter(self, line, len, (size_t)(end - line));
    const ibt_level *level = self->count ? &self->levels[self->count - 1] : NULL;
    if (level && (level->kind == AS_IT_WAS || (level->kind == LISTED && is_there(level, line, len))))
        return 0;
    if (make_room((void **)&found->spans, &found->room, found->count, sizeof *found->spans) != 0)
        return ENOMEM;
    found->spans[found->count++] = span;
    return 0;
}

int
ibt_lost_names_of(ibt_lost_names *self, const char *block, size_t len, ibt_spans *found)
{
    int error = 0;
    for (size_t begin = 0; begin < len && !error;) {
        const char *newline = memchr(block + begin, '\n', len - begin);
        size_t end = newline ? (size_t)(newline - block) : len;
        error = go_on(self, block, (ibt_span){begin, end}, found);
        begin = end + 1;
    }
    return error;
}
