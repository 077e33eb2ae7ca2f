#define _GNU_SOURCE
#include "create.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum {
    NAMES_LEN = 4096,
    NS_PER_S = 1000000000,
    PERMISSIONS = 07777,
};

int
ibt_is_fatal(int error)
{
    return error == ENOSPC || error == EDQUOT || error == EROFS || error == EIO;
}

void
ibt_check_contents(const ibt_new_file *files, size_t count, ibt_message *messages, uint8_t *digests, int *codes)
{
    size_t wanted = 0;
    for (size_t i = 0; i < count; i++)
        if (files[i].digest && files[i].content_len <= IBT_BLAKE3_MAX)
            messages[wanted++] =
                (ibt_message){files[i].content, files[i].content_len, digests + i * IBT_BLAKE3_LEN};
    ibt_blake3_many(messages, wanted);
    for (size_t i = 0; i < count; i++)
        codes[i] = files[i].digest && files[i].content_len <= IBT_BLAKE3_MAX &&
                           memcmp(digests + i * IBT_BLAKE3_LEN, files[i].digest, IBT_BLAKE3_LEN) == 0
                       ? 0
                       : IBT_OTHER_CONTENT;
}

static int
write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t written = write(fd, data, len);
        if (written < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        data += written;
        len -= (size_t)written;
    }
    return 0;
}

/* Attributes that grant something, or that programs set. A security label is the system's to give. */
static int
is_foreign(const char *name)
{
    return strncmp(name, "user.", 5) == 0 || strncmp(name, "trusted.", 8) == 0 ||
           strcmp(name, "system.posix_acl_access") == 0 || strcmp(name, "system.posix_acl_default") == 0 ||
           strcmp(name, "security.capability") == 0;
}

static int
check_attributes(int fd)
{
    char names[NAMES_LEN];
    ssize_t len = flistxattr(fd, names, sizeof names);
    if (len < 0)
        /* What a file system without attributes says; anything else is for the careful way to tell of. */
        return errno == ENOTSUP || errno == ENODATA || errno == EPERM || errno == EACCES || errno == ENOSYS
                   ? 0
                   : IBT_HAS_ATTRIBUTES;
    for (const char *name = names; name < names + len; name += strlen(name) + 1)
        if (is_foreign(name))
            return IBT_HAS_ATTRIBUTES;
    return 0;
}

/* Owner before mode, since a change of owner clears bits of it; the time last, since all else changes it. */
static int
apply_metadata(int fd, const ibt_new_file *file)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return errno;
    int other_owner = (file->uid >= 0 && (uid_t)file->uid != info.st_uid) ||
                      (file->gid >= 0 && (gid_t)file->gid != info.st_gid);
    if (other_owner && fchown(fd, (uid_t)file->uid, (gid_t)file->gid) != 0)
        return errno;
    if ((other_owner || (info.st_mode & PERMISSIONS) != file->mode) && fchmod(fd, file->mode) != 0)
        return errno;
    int64_t seconds = file->mtime_ns / NS_PER_S, rest = file->mtime_ns % NS_PER_S;
    if (rest < 0) {
        seconds -= 1;
        rest += NS_PER_S;
    }
    struct timespec time = {.tv_sec = (time_t)seconds, .tv_nsec = (long)rest};
    return futimens(fd, (const struct timespec[2]){time, time}) != 0 ? errno : 0;
}

int
ibt_create_file(const ibt_new_file *file)
{
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int fd;
    do
        fd = openat(file->dir_fd, file->temporary, flags, file->first_mode);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return errno;
    int error = write_all(fd, file->content, file->content_len);
    if (!error && file->check_attributes)
        error = check_attributes(fd);
    if (!error)
        error = apply_metadata(fd, file);
    if (close(fd) != 0 && errno != EINTR && !error)
        error = errno;
    if (!error && file->final && renameat(file->dir_fd, file->temporary, file->dir_fd, file->final) != 0)
        error = errno;
    if (error)
        unlinkat(file->dir_fd, file->temporary, 0);
    return error;
}
