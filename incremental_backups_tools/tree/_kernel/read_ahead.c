#define _GNU_SOURCE
#include "listing.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

enum {
    STAT_BLOCK_LEN = 512,
    GRAIN = 4096, /* no shorter file is stored as one with holes */
    SIGNATURE_HEADER_LEN = 12,
    HASHED_AT_ONCE = 32,
};

static int
has_attributes(int fd)
{
    ssize_t len = flistxattr(fd, NULL, 0);
    if (len < 0)
        /* What a file system says that has none. */
        return errno != ENOTSUP && errno != ENODATA && errno != EPERM && errno != EACCES && errno != ENOSYS;
    return len > 0;
}

static int
has_flags(int fd)
{
    union {
        long room;
        int flags;
    } got = {0}; /* declared with a long, the call fills an int */
    if (ioctl(fd, FS_IOC_GETFLAGS, &got) != 0)
        return errno != ENOTTY && errno != ENOTSUP && errno != EINVAL && errno != ENOSYS && errno != EPERM &&
               errno != EACCES;
    return (got.flags & (FS_APPEND_FL | FS_IMMUTABLE_FL | FS_NODUMP_FL)) != 0;
}

static int
read_exactly(int fd, char *content, size_t len)
{
    while (len) {
        ssize_t taken = read(fd, content, len);
        if (taken < 0 && errno == EINTR)
            continue;
        if (taken <= 0)
            return 0;
        content += taken;
        len -= (size_t)taken;
    }
    return 1;
}

static int
is_same_time(struct timespec before, struct timespec after)
{
    return before.tv_sec == after.tv_sec && before.tv_nsec == after.tv_nsec;
}

static int
is_same_state(const struct stat *before, const struct stat *after)
{
    return before->st_ino == after->st_ino && before->st_dev == after->st_dev && before->st_size == after->st_size &&
           is_same_time(before->st_mtim, after->st_mtim) && is_same_time(before->st_ctim, after->st_ctim);
}

static int
is_plain(const struct stat *info, size_t max_len)
{
    return S_ISREG(info->st_mode) && info->st_nlink == 1 && (uint64_t)info->st_size <= max_len &&
           (info->st_size <= GRAIN || info->st_blocks >= (info->st_size + STAT_BLOCK_LEN - 1) / STAT_BLOCK_LEN);
}

static int
read_open(int fd, off_t len, ibt_read_file *file)
{
    struct stat after;
    return fstat(fd, &file->info) == 0 && is_plain(&file->info, (size_t)len) && file->info.st_size == len &&
           !has_attributes(fd) && !has_flags(fd) && read_exactly(fd, file->content, (size_t)len) &&
           fstat(fd, &after) == 0 && is_same_state(&file->info, &after);
}

static int
read_named(int dir_fd, const ibt_name *name, ibt_read_file *file)
{
    /* O_NONBLOCK: opening a FIFO that took the file's place must not wait for a writer. */
    int fd = openat(dir_fd, name->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    int is_read = read_open(fd, name->info.st_size, file);
    close(fd);
    return is_read;
}

/* The length of the blocks that a file of *len* bytes is signed by, 0 where it is not, and of its signature. */
static size_t
block_len_of(const ibt_signing *signing, size_t len, size_t *signature_len)
{
    size_t bits = 0;
    while (len >> bits)
        bits++;
    size_t block_len = bits < IBT_SIZE_CLASSES ? signing->block_lens[bits] : 0;
    size_t record_len = IBT_WEAK_LEN + signing->format.strong_len;
    *signature_len = block_len ? SIGNATURE_HEADER_LEN + (len + block_len - 1) / block_len * record_len : 0;
    return block_len;
}

static uint8_t *
put_big_endian(uint8_t *out, uint32_t number)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        *out++ = (uint8_t)(number >> shift);
    return out;
}

/* The signature of *len* bytes of content, as librsync writes it, to *out*. */
static void
sign(const ibt_signing *signing, size_t block_len, const char *content, size_t len, uint8_t *out)
{
    ibt_format format = signing->format;
    format.block_len = (uint32_t)block_len;
    out = put_big_endian(out, signing->magic);
    out = put_big_endian(out, format.block_len);
    out = put_big_endian(out, format.strong_len);
    signing->hash_blocks(&format, (const uint8_t *)content, len, out);
}

/* The digests of what was read, of many files side by side: most are too short to fill a vector alone. */
static void
hash_files(ibt_read_file *files, size_t count)
{
    ibt_message messages[2 * HASHED_AT_ONCE];
    size_t waiting = 0;
    for (ibt_read_file *file = files; file < files + count; file++) {
        messages[waiting++] = (ibt_message){(const uint8_t *)file->content, (size_t)file->info.st_size, file->digest};
        if (file->signature)
            messages[waiting++] = (ibt_message){file->signature, file->signature_len, file->sig_digest};
        if (waiting >= 2 * HASHED_AT_ONCE - 1) {
            ibt_blake3_many(messages, waiting);
            waiting = 0;
        }
    }
    ibt_blake3_many(messages, waiting);
}

ibt_reading_plan
ibt_plan_reading(const ibt_listing *listing, size_t first, const ibt_read_limits *limits, const ibt_signing *signing)
{
    ibt_reading_plan plan = {first, 0, 0};
    size_t total = 0, signature_len;
    for (; plan.end < listing->count && plan.files < limits->max_files && total < limits->max_total; plan.end++) {
        const struct stat *info = &listing->names[plan.end].info;
        if (S_ISDIR(info->st_mode))
            break;
        if (is_plain(info, limits->max_len)) {
            plan.files++;
            total += (size_t)info->st_size;
            block_len_of(signing, (size_t)info->st_size, &signature_len);
            plan.room += (size_t)info->st_size + signature_len;
        }
    }
    return plan;
}

size_t
ibt_read_range(const ibt_listing *listing, size_t first, size_t end, int dir_fd, size_t max_len,
               const ibt_signing *signing, ibt_read_file *files, char *room)
{
    size_t count = 0;
    for (size_t i = first; i < end; i++) {
        const ibt_name *name = &listing->names[i];
        ibt_read_file *file = &files[count];
        file->content = room;
        if (!is_plain(&name->info, max_len) || !read_named(dir_fd, name, file))
            continue;
        size_t len = (size_t)file->info.st_size;
        size_t block_len = block_len_of(signing, len, &file->signature_len);
        file->signature = block_len ? (uint8_t *)room + len : NULL;
        if (block_len)
            sign(signing, block_len, file->content, len, file->signature);
        room += len + file->signature_len;
        file->number = i;
        file->name = name->name;
        file->name_len = name->name_len;
        count++;
    }
    hash_files(files, count);
    return count;
}
