#define _GNU_SOURCE
#include "listing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int
is_self_or_parent(const char *name)
{
    return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0));
}

static int
by_name(const void *left, const void *right)
{
    /* Names have no NUL, and strcmp compares as unsigned bytes. */
    return strcmp(((const ibt_name *)left)->name, ((const ibt_name *)right)->name);
}

static int
add_name(ibt_listing *listing, int fd, const char *name)
{
    struct stat info;
    if (fstatat(fd, name, &info, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : errno;
    if (listing->count == listing->room) {
        size_t room = listing->room ? 2 * listing->room : 32;
        ibt_name *names = reallocarray(listing->names, room, sizeof *names);
        if (!names)
            return ENOMEM;
        listing->names = names;
        listing->room = room;
    }
    char *copy = strdup(name);
    if (!copy)
        return ENOMEM;
    listing->names[listing->count++] = (ibt_name){.name = copy, .name_len = strlen(copy), .info = info};
    return 0;
}

int
ibt_listing_read(ibt_listing *listing, int fd)
{
    /* closedir closes what it is given; the copy shares the position, which may be anywhere. */
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return errno;
    DIR *directory = fdopendir(copy);
    if (!directory) {
        int error = errno;
        close(copy);
        return error;
    }
    rewinddir(directory);
    int error = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (!entry) {
            error = errno;
            break;
        }
        if (!is_self_or_parent(entry->d_name) && (error = add_name(listing, fd, entry->d_name)) != 0)
            break;
    }
    rewinddir(directory); /* for whoever lists it next */
    closedir(directory);
    if (!error && fstat(fd, &listing->own) != 0)
        error = errno;
    if (!error && listing->count)
        qsort(listing->names, listing->count, sizeof *listing->names, by_name);
    return error;
}

void
ibt_listing_free(ibt_listing *listing)
{
    for (size_t i = 0; i < listing->count; i++)
        free(listing->names[i].name);
    free(listing->names);
    *listing = (ibt_listing){0};
}
