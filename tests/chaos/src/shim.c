/*
 * A library for LD_PRELOAD that stands between a program and the files of one directory. It does two things.
 *
 * It records what a power loss would leave (CHAOS_IMAGE is set). Bytes reach the image when fsync or fdatasync of
 * their file returns, names when fsync of their directory returns, and nothing else reaches it:
 *   objects/<inode>.<generation>  the durable bytes of a file; a reused inode gets the next generation;
 *   names/<inode of a directory>  its durable names, replaced atomically: `f <inode> <generation> <name>` or
 *                                 `d <inode> <name>`;
 *   forgotten/<inode>.<generation>  what a failed sync forgot of a file and nobody has written since: pairs of off_t,
 *                                 replaced atomically; no file = nothing.
 * The recorder is stricter than most file systems: fsync of a new file does not make its name durable.
 * A program that goes on with the image of one that was killed finds in the page cache what that one wrote and did not
 * sync: the first sync of a file that the program did not create covers all of it, but for what is forgotten: the
 * kernel takes those pages for clean, shows them to everybody and writes them only when they are written again. (A page
 * that is written again goes to the disk as a whole; here only the bytes that are written again do.)
 * CHAOS_LIE_AFTER=<n> makes the disk a liar: after n syncs of files the bytes no longer reach the image.
 *
 * It injects faults while the file CHAOS_FAULT exists, by the word in it:
 *   enospc  every write, growth and creation fails, the first write of every two only after half of its bytes;
 *   full    only growth and creation fail, so that space that was allocated before is still writable;
 *   erofs   everything that changes a file or a name fails;
 *   eio     every sync fails, and as on Linux what it should have written is forgotten: a later sync does not
 *           write it, only writing it again does, in this program or in the next one on the image;
 *   deadly  the same, and the first sync of a file that forgets a byte other than zero kills the program with SIGKILL
 *           before it returns, so that nothing is done about the failure;
 *   flaky   one sync in three does so, and as on Linux every other descriptor of the file that was open then hears of
 *           it once, at its next sync; who syncs through a descriptor that somebody else uses, too, never hears of it.
 *
 * What it does not see: mmap, system calls that bypass libc, files that are moved into the directory from outside,
 * sync() and O_SYNC (which therefore count as not durable). The directory itself always exists.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

enum fault { NONE, ENOSPC_ALL, ENOSPC_GROWTH, EROFS_ALL, EIO_SYNC, EIO_DEADLY, EIO_FLAKY };

#define FDS_MAX 65536
/* Beyond the end of any file. */
#define OFF_MAX ((off_t)LLONG_MAX)

struct range {
    off_t from, to;
};

struct ranges {
    struct range *at;
    size_t count, capacity;
};

struct file {
    ino_t inode;
    unsigned generation;
    /* What was written since the last sync. */
    struct ranges dirty;
    /* What failed syncs forgot, as it is in the image. */
    struct ranges forgotten;
    /* Failed syncs so far. */
    unsigned failures;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct file *files;
static size_t file_count, file_capacity;
static unsigned long short_writes, flaky_syncs;
/* Failures of its file that a descriptor has heard of. */
static unsigned heard[FDS_MAX];
static const char *data_dir, *image_dir, *fault_path;
static long syncs, lie_after = -1;

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "shim: libc has no %s\n", name);
        abort();
    }
    return found;
}

static void die(const char *what) {
    fprintf(stderr, "shim: %s: %s\n", what, strerror(errno));
    abort();
}

__attribute__((constructor)) static void configure(void) {
    data_dir = getenv("CHAOS_DATA");
    image_dir = getenv("CHAOS_IMAGE");
    fault_path = getenv("CHAOS_FAULT");
    const char *lie = getenv("CHAOS_LIE_AFTER");
    if (lie) lie_after = atol(lie);
}

/* ---- which files it is about ---- */

static int is_below(const char *path) {
    size_t length = data_dir ? strlen(data_dir) : 0;
    return length && !strncmp(path, data_dir, length) && (path[length] == '/' || path[length] == 0);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int covers_fd(int fd) {
    int before = errno;
    char path[PATH_MAX];
    int is_ours = data_dir && path_of(fd, path) && is_below(path);
    errno = before;
    return is_ours;
}

static int covers_path(int dir, const char *path) {
    char base[PATH_MAX];
    if (!data_dir || !path) return 0;
    if (path[0] == '/') return is_below(path);
    if (dir == AT_FDCWD) return getcwd(base, sizeof base) && is_below(base);
    return covers_fd(dir);
}

static enum fault fault_now(void) {
    if (!fault_path) return NONE;
    int before = errno;
    char word[16] = {0};
    int fd = REAL(open)(fault_path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, word, sizeof word - 1) < 0) word[0] = 0;
        close(fd);
    }
    errno = before;
    if (!strncmp(word, "enospc", 6)) return ENOSPC_ALL;
    if (!strncmp(word, "full", 4)) return ENOSPC_GROWTH;
    if (!strncmp(word, "erofs", 5)) return EROFS_ALL;
    if (!strncmp(word, "eio", 3)) return EIO_SYNC;
    if (!strncmp(word, "deadly", 6)) return EIO_DEADLY;
    if (!strncmp(word, "flaky", 5)) return EIO_FLAKY;
    return NONE;
}

/* ---- the recorder ---- */

static void object_path(char *path, const struct file *file) {
    snprintf(path, PATH_MAX, "%s/objects/%lu.%u", image_dir, (unsigned long)file->inode, file->generation);
}

static int object_exists(const struct file *file) {
    char path[PATH_MAX];
    object_path(path, file);
    return access(path, F_OK) == 0;
}

static void add_range(struct ranges *ranges, off_t from, off_t to) {
    if (from >= to) return;
    if (ranges->count == ranges->capacity) {
        ranges->capacity = ranges->capacity * 2 + 64;
        ranges->at = realloc(ranges->at, ranges->capacity * sizeof *ranges->at);
        if (!ranges->at) die("realloc");
    }
    ranges->at[ranges->count++] = (struct range){from, to};
}

static void cut_range(struct ranges *ranges, off_t from, off_t to) {
    struct ranges left = {0};
    for (size_t i = 0; i < ranges->count; i++) {
        struct range range = ranges->at[i];
        add_range(&left, range.from, range.to < from ? range.to : from);
        add_range(&left, range.from > to ? range.from : to, range.to);
    }
    free(ranges->at);
    *ranges = left;
}

static void forgotten_path(char *path, const struct file *file) {
    snprintf(path, PATH_MAX, "%s/forgotten/%lu.%u", image_dir, (unsigned long)file->inode, file->generation);
}

static void load_forgotten(struct file *file) {
    char path[PATH_MAX];
    struct range range;
    forgotten_path(path, file);
    int fd = REAL(open)(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return;
    if (fd < 0) die(path);
    while (read(fd, &range, sizeof range) == (ssize_t)sizeof range) add_range(&file->forgotten, range.from, range.to);
    close(fd);
}

static void store_forgotten(const struct file *file) {
    char path[PATH_MAX], temporary[PATH_MAX + 8];
    forgotten_path(path, file);
    snprintf(temporary, sizeof temporary, "%s.new", path);
    ssize_t bytes = (ssize_t)(file->forgotten.count * sizeof *file->forgotten.at);
    int fd = REAL(open)(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || REAL(write)(fd, file->forgotten.at, (size_t)bytes) != bytes) die(path);
    close(fd);
    if (REAL(rename)(temporary, path)) die(path);
}

/* The entry of a file; one that was just created must not take over the bytes of an earlier file of its inode. */
static struct file *entry(ino_t inode, int was_created) {
    struct file *found = NULL;
    for (size_t i = 0; i < file_count; i++)
        if (files[i].inode == inode) found = &files[i];
    if (found && !was_created) return found;
    if (!found) {
        if (file_count == file_capacity) {
            file_capacity = file_capacity * 2 + 64;
            files = realloc(files, file_capacity * sizeof *files);
            if (!files) die("realloc");
        }
        found = &files[file_count++];
        memset(found, 0, sizeof *found);
        found->inode = inode;
    }
    found->dirty.count = found->forgotten.count = 0;
    found->generation = 0;
    while (object_exists(found)) found->generation++;
    if (!was_created) add_range(&found->dirty, 0, OFF_MAX);
    if (!was_created && found->generation > 0) {
        found->generation--;
        load_forgotten(found);
        for (size_t i = 0; i < found->forgotten.count; i++)
            cut_range(&found->dirty, found->forgotten.at[i].from, found->forgotten.at[i].to);
        return found;
    }
    char path[PATH_MAX];
    object_path(path, found);
    int fd = REAL(open)(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) die(path);
    close(fd);
    return found;
}

static void mark(int fd, off_t from, off_t to) {
    struct stat stat;
    int before = errno;
    if (image_dir && from < to && covers_fd(fd) && !fstat(fd, &stat) && S_ISREG(stat.st_mode)) {
        pthread_mutex_lock(&lock);
        struct file *file = entry(stat.st_ino, 0);
        struct ranges *dirty = &file->dirty;
        struct range *last = dirty->count ? &dirty->at[dirty->count - 1] : NULL;
        if (last && from <= last->to && to >= last->from) {
            if (from < last->from) last->from = from;
            if (to > last->to) last->to = to;
        } else {
            add_range(dirty, from, to);
        }
        if (file->forgotten.count) {
            cut_range(&file->forgotten, from, to);
            store_forgotten(file);
        }
        pthread_mutex_unlock(&lock);
    }
    errno = before;
}

static void copy_range(int from_fd, int to_fd, struct range range) {
    static char buffer[1 << 16];
    while (range.from < range.to) {
        size_t want = sizeof buffer;
        if ((off_t)want > range.to - range.from) want = (size_t)(range.to - range.from);
        ssize_t got = pread(from_fd, buffer, want, range.from);
        if (got < 0) die("read a file for its image");
        if (got == 0) return;
        if (REAL(pwrite)(to_fd, buffer, (size_t)got, range.from) != got) die("write an image");
        range.from += got;
    }
}

static void record_file(int fd, struct file *file) {
    struct stat stat;
    char path[PATH_MAX], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    object_path(path, file);
    int from = REAL(open)(link, O_RDONLY | O_CLOEXEC);
    int to = REAL(open)(path, O_WRONLY | O_CLOEXEC);
    /* The size is taken after the sync, and so is at least what the sync covered. */
    if (from < 0 || to < 0 || fstat(fd, &stat) || REAL(ftruncate)(to, stat.st_size)) die(path);
    for (size_t i = 0; i < file->dirty.count; i++) copy_range(from, to, file->dirty.at[i]);
    close(from);
    close(to);
}

/* Whether what was not synced is more than zeros, which are what a disk has where nothing was written. */
static int is_worth_a_death(int fd, const struct ranges *dirty) {
    static char buffer[1 << 16];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int from = REAL(open)(link, O_RDONLY | O_CLOEXEC);
    if (from < 0) die(link);
    int found = 0;
    for (size_t i = 0; i < dirty->count && !found; i++) {
        off_t at = dirty->at[i].from, to = dirty->at[i].to;
        ssize_t got = 1;
        while (at < to && got > 0 && !found) {
            size_t want = to - at < (off_t)sizeof buffer ? (size_t)(to - at) : sizeof buffer;
            got = pread(from, buffer, want, at);
            for (ssize_t j = 0; j < got; j++) found |= buffer[j];
            at += got;
        }
    }
    close(from);
    return found != 0;
}

/* What a failed sync should have written is clean and not on the disk. */
static void forget(struct file *file) {
    for (size_t i = 0; i < file->dirty.count; i++)
        add_range(&file->forgotten, file->dirty.at[i].from, file->dirty.at[i].to);
    if (file->dirty.count) store_forgotten(file);
}

static void record_names(int fd, ino_t inode) {
    char path[PATH_MAX], temporary[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s/names/%lu", image_dir, (unsigned long)inode);
    snprintf(temporary, sizeof temporary, "%s.new", path);
    pthread_mutex_lock(&lock);
    int listing = REAL(open)(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int again = REAL(openat)(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = again < 0 ? NULL : fdopendir(again);
    if (listing < 0 || !dir) die(path);
    for (struct dirent *name = readdir(dir); name; name = readdir(dir)) {
        struct stat stat;
        if (!strcmp(name->d_name, ".") || !strcmp(name->d_name, "..")) continue;
        if (fstatat(dirfd(dir), name->d_name, &stat, AT_SYMLINK_NOFOLLOW)) continue;
        char line[PATH_MAX];
        int length = 0;
        if (S_ISDIR(stat.st_mode))
            length = snprintf(line, sizeof line, "d %lu %s\n", (unsigned long)stat.st_ino, name->d_name);
        else if (S_ISREG(stat.st_mode))
            length = snprintf(line, sizeof line, "f %lu %u %s\n", (unsigned long)stat.st_ino,
                              entry(stat.st_ino, 0)->generation, name->d_name);
        if (REAL(write)(listing, line, (size_t)length) != length) die(path);
    }
    closedir(dir);
    close(listing);
    if (REAL(rename)(temporary, path)) die(path);
    pthread_mutex_unlock(&lock);
}

static int must_fail(enum fault fault) {
    if (fault == EIO_FLAKY) return __sync_fetch_and_add(&flaky_syncs, 1) % 3 == 0;
    return fault == EIO_SYNC || fault == EIO_DEADLY;
}

static int sync_through(int fd, int (*sync)(int)) {
    struct stat stat;
    if (!covers_fd(fd) || fd >= FDS_MAX || fstat(fd, &stat)) return sync(fd);
    enum fault fault = fault_now();
    int fails = must_fail(fault);
    int result = fails ? -1 : sync(fd);
    int error = fails ? EIO : errno;
    if (image_dir && S_ISREG(stat.st_mode)) {
        pthread_mutex_lock(&lock);
        struct file *file = entry(stat.st_ino, 0);
        if (result) {
            file->failures++;
            forget(file);
            if (fault == EIO_DEADLY && is_worth_a_death(fd, &file->dirty)) kill(getpid(), SIGKILL);
        } else if (lie_after < 0 || syncs++ < lie_after) {
            record_file(fd, file);
        }
        /* Either it is on disk now or it is forgotten. */
        file->dirty.count = 0;
        if (!result && heard[fd] < file->failures) {
            result = -1;
            error = EIO;
        }
        heard[fd] = file->failures;
        pthread_mutex_unlock(&lock);
    } else if (image_dir && S_ISDIR(stat.st_mode) && result == 0) {
        record_names(fd, stat.st_ino);
    }
    errno = error;
    return result;
}

int fsync(int fd) { return sync_through(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_through(fd, REAL(fdatasync)); }

/* ---- writes ---- */

/* The error that a change of a file meets, or 0. */
static int refuses(enum fault fault, int grows) {
    if (fault == EROFS_ALL) return EROFS;
    if (fault == ENOSPC_ALL || (fault == ENOSPC_GROWTH && grows)) return ENOSPC;
    return 0;
}

/* Where the next write goes. */
static off_t place(int fd) {
    struct stat stat;
    return fcntl(fd, F_GETFL) & O_APPEND && !fstat(fd, &stat) ? stat.st_size : lseek(fd, 0, SEEK_CUR);
}

/* Answers -1 when the write must fail, otherwise how many bytes it may write. */
static ssize_t admit_write(int fd, size_t count, off_t offset) {
    if (!fault_path || !covers_fd(fd)) return (ssize_t)count;
    enum fault fault = fault_now();
    struct stat stat;
    if (fstat(fd, &stat)) return (ssize_t)count;
    int error = refuses(fault, offset + (off_t)count > stat.st_size);
    if (!error) return (ssize_t)count;
    /* A disk that fills takes the first half: a short write, then the error. */
    if (error == ENOSPC && count > 1 && __sync_fetch_and_add(&short_writes, 1) % 2 == 0) return (ssize_t)(count / 2);
    errno = error;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (!data_dir || !covers_fd(fd)) return REAL(write)(fd, bytes, count);
    off_t offset = place(fd);
    ssize_t admitted = admit_write(fd, count, offset);
    if (admitted < 0) return -1;
    ssize_t written = REAL(write)(fd, bytes, (size_t)admitted);
    if (written > 0) mark(fd, offset, offset + written);
    return written;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    ssize_t admitted = admit_write(fd, count, offset);
    if (admitted < 0) return -1;
    ssize_t written = REAL(pwrite)(fd, bytes, (size_t)admitted, offset);
    if (written > 0) mark(fd, offset, offset + written);
    return written;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) { return pwrite(fd, bytes, count, offset); }

/* Gathered writes go piece by piece: a short one is legal, and so each piece meets the faults by itself. */
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    if (!data_dir || !covers_fd(fd)) return REAL(writev)(fd, pieces, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t written = write(fd, pieces[i].iov_base, pieces[i].iov_len);
        if (written < 0) return total ? total : -1;
        total += written;
        if ((size_t)written < pieces[i].iov_len) break;
    }
    return total;
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset) {
    if (!data_dir || !covers_fd(fd)) return REAL(pwritev)(fd, pieces, count, offset);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t written = pwrite(fd, pieces[i].iov_base, pieces[i].iov_len, offset + total);
        if (written < 0) return total ? total : -1;
        total += written;
        if ((size_t)written < pieces[i].iov_len) break;
    }
    return total;
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t offset) {
    return pwritev(fd, pieces, count, offset);
}

/* Copies inside the kernel would go unseen: callers fall back to write when these answer so. */
ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t count, unsigned flags) {
    if (!covers_fd(out)) return REAL(copy_file_range)(in, in_offset, out, out_offset, count, flags);
    errno = ENOSYS;
    return -1;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    if (!covers_fd(out)) return REAL(sendfile)(out, in, offset, count);
    errno = EINVAL;
    return -1;
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) { return sendfile(out, in, offset, count); }

/* ---- sizes ---- */

int ftruncate(int fd, off_t size) {
    struct stat stat;
    if (!data_dir || !covers_fd(fd) || fstat(fd, &stat)) return REAL(ftruncate)(fd, size);
    int error = refuses(fault_now(), size > stat.st_size);
    /* Shrinking needs no room. */
    if (error && (error == EROFS || size > stat.st_size)) {
        errno = error;
        return -1;
    }
    int result = REAL(ftruncate)(fd, size);
    if (!result) mark(fd, size, stat.st_size);
    return result;
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
    int error = data_dir && covers_fd(fd) ? refuses(fault_now(), 1) : 0;
    if (error) {
        errno = error;
        return -1;
    }
    int result = REAL(fallocate)(fd, mode, offset, length);
    if (!result && mode != 0) mark(fd, offset, offset + length);
    return result;
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }

int posix_fallocate(int fd, off_t offset, off_t length) {
    int error = data_dir && covers_fd(fd) ? refuses(fault_now(), 1) : 0;
    return error ? error : REAL(posix_fallocate)(fd, offset, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

/* ---- names ---- */

static int open_through(int dir, const char *path, int flags, mode_t mode) {
    struct stat stat;
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (!writes || !covers_path(dir, path)) return REAL(openat)(dir, path, flags, mode);
    int existed = !fstatat(dir, path, &stat, 0);
    int creates = !existed && flags & O_CREAT;
    enum fault fault = fault_now();
    errno = fault == EROFS_ALL || creates ? refuses(fault, 1) : 0;
    if (errno) return -1;
    int fd = REAL(openat)(dir, path, flags, mode);
    struct stat after;
    if (fd >= 0 && fd < FDS_MAX && image_dir && !fstat(fd, &after) && S_ISREG(after.st_mode)) {
        pthread_mutex_lock(&lock);
        heard[fd] = entry(after.st_ino, creates)->failures;
        pthread_mutex_unlock(&lock);
        if (existed && flags & O_TRUNC) mark(fd, 0, stat.st_size);
    }
    return fd;
}

#define OPEN(name, parameters, dir)                                                                                    \
    int name parameters {                                                                                              \
        mode_t mode = 0;                                                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_list arguments;                                                                                         \
            va_start(arguments, flags);                                                                                \
            mode = va_arg(arguments, mode_t);                                                                          \
            va_end(arguments);                                                                                         \
        }                                                                                                              \
        return open_through(dir, path, flags, mode);                                                                   \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int at, const char *path, int flags, ...), at)
OPEN(openat64, (int at, const char *path, int flags, ...), at)

int creat(const char *path, mode_t mode) { return open_through(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* Names reach the image by looking at the directory when it is synced, so that these only meet faults. */
static int refuses_name(int dir, const char *path, int grows) {
    int error = covers_path(dir, path) ? refuses(fault_now(), grows) : 0;
    /* Removing and renaming need no room. */
    if (error == ENOSPC && !grows) error = 0;
    if (error) errno = error;
    return error;
}

int rename(const char *from, const char *to) {
    return refuses_name(AT_FDCWD, to, 0) ? -1 : REAL(rename)(from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return refuses_name(to_dir, to, 0) ? -1 : REAL(renameat)(from_dir, from, to_dir, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    return refuses_name(to_dir, to, 0) ? -1 : REAL(renameat2)(from_dir, from, to_dir, to, flags);
}

int unlink(const char *path) { return refuses_name(AT_FDCWD, path, 0) ? -1 : REAL(unlink)(path); }
int unlinkat(int dir, const char *path, int flags) {
    return refuses_name(dir, path, 0) ? -1 : REAL(unlinkat)(dir, path, flags);
}
int rmdir(const char *path) { return refuses_name(AT_FDCWD, path, 0) ? -1 : REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { return refuses_name(AT_FDCWD, path, 1) ? -1 : REAL(mkdir)(path, mode); }
int mkdirat(int dir, const char *path, mode_t mode) {
    return refuses_name(dir, path, 1) ? -1 : REAL(mkdirat)(dir, path, mode);
}
