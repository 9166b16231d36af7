/*
 * A witness of what a process asks of the disk: every write, sync and change of a name below one
 * directory, in order, appended to a log. Preloaded into the process under test; the test then works
 * out from the log what a disk may hold after a power cut at any moment.
 *
 * A record: kind (1 octet), file number (4), offset (8), length (8), then so many octets, all in the
 * byte order of the machine. A sync has two records, since only what was written before it began is
 * safe when it ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { MAKE = 1, WRITE, TRUNCATE, SYNC_BEGINS, SYNC_ENDS, UNLINK, RENAME, MAKE_DIRECTORY };

#define FILES 4096
static char directory[4096];
static size_t directory_length;
static int log_file = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* What each descriptor stands for: 0 nothing of ours, else a file number. A file keeps its number for
   as long as it has a name, and is told by its inode; a directory is told by its path. */
static uint32_t number_of[FILES];
static uint32_t next_number = 1;
static struct { ino_t inode; uint32_t number; } known[1 << 16];
static uint32_t known_count;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

static void raw_write(const void *from, size_t length) {
    const char *at = from;
    while (length > 0) {
        long done = syscall(SYS_write, log_file, at, length);
        if (done <= 0) abort();
        at += done;
        length -= (size_t)done;
    }
}

/* With the lock held. */
static void record(enum kind kind, uint32_t number, uint64_t offset, const void *octets, uint64_t length) {
    size_t size = 1 + 4 + 8 + 8 + length;
    char *buffer = malloc(size);
    if (!buffer) abort();
    buffer[0] = (char)kind;
    memcpy(buffer + 1, &number, 4);
    memcpy(buffer + 5, &offset, 8);
    memcpy(buffer + 13, &length, 8);
    if (length) memcpy(buffer + 21, octets, length);
    raw_write(buffer, size);
    free(buffer);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_DIRECTORY");
    const char *log = getenv("POWER_LOG");
    if (!path || !log || strlen(path) >= sizeof directory) return;
    strcpy(directory, path);
    directory_length = strlen(path);
    log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* The part of a path below the directory; NULL for paths elsewhere. The directory itself is "". */
static const char *below(const char *path) {
    if (log_file < 0 || strncmp(path, directory, directory_length) != 0) return NULL;
    if (path[directory_length] == 0) return path + directory_length;
    if (path[directory_length] != '/') return NULL;
    return path + directory_length + 1;
}

static uint32_t number_for(ino_t inode) {
    for (uint32_t i = known_count; i > 0; i--)
        if (known[i - 1].inode == inode) return known[i - 1].number;
    if (known_count == sizeof known / sizeof *known) abort();
    known[known_count].inode = inode;
    known[known_count].number = next_number++;
    return known[known_count++].number;
}

static void forget(ino_t inode) {
    for (uint32_t i = 0; i < known_count; i++)
        if (known[i].inode == inode) known[i].inode = 0;
}

static int opened(int file, const char *path, int existed) {
    const char *name;
    struct stat status;
    if (file < 0 || file >= FILES || !(name = below(path)) || fstat(file, &status) != 0) return file;
    pthread_mutex_lock(&lock);
    if (!existed) forget(status.st_ino); /* an inode number that is used again is another file */
    uint32_t number = number_for(status.st_ino);
    number_of[file] = number;
    record(MAKE, number, S_ISDIR(status.st_mode), name, strlen(name));
    pthread_mutex_unlock(&lock);
    return file;
}

#define OPEN(name, ...)                                                                            \
    mode_t mode = 0;                                                                               \
    if (flags & O_CREAT) {                                                                         \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }                                                                                              \
    int existed = below(path) ? access(path, F_OK) == 0 : 1;                                       \
    return opened(REAL(name)(__VA_ARGS__, mode), path, existed)

int open(const char *path, int flags, ...) { OPEN(open, path, flags); }
int open64(const char *path, int flags, ...) { OPEN(open64, path, flags); }
int openat(int at, const char *path, int flags, ...) { OPEN(openat, at, path, flags); }
int openat64(int at, const char *path, int flags, ...) { OPEN(openat64, at, path, flags); }

int close(int file) {
    if (file >= 0 && file < FILES) number_of[file] = 0;
    return REAL(close)(file);
}

static uint32_t ours(int file) { return file >= 0 && file < FILES ? number_of[file] : 0; }

/* Done and recorded under the lock: the log has the order in which the file has it. */
#define WRITTEN(call, where)                                                                       \
    uint32_t number = ours(file);                                                                  \
    if (!number) return call;                                                                      \
    pthread_mutex_lock(&lock);                                                                     \
    off_t at = where;                                                                              \
    ssize_t done = call;                                                                           \
    if (done > 0) record(WRITE, number, (uint64_t)at, from, (uint64_t)done);                       \
    pthread_mutex_unlock(&lock);                                                                   \
    return done

static off_t position(int file) {
    int append = fcntl(file, F_GETFL) & O_APPEND;
    return lseek(file, 0, append ? SEEK_END : SEEK_CUR);
}

ssize_t write(int file, const void *from, size_t length) { WRITTEN(REAL(write)(file, from, length), position(file)); }
ssize_t pwrite(int file, const void *from, size_t length, off_t offset) { WRITTEN(REAL(pwrite)(file, from, length, offset), offset); }
ssize_t pwrite64(int file, const void *from, size_t length, off64_t offset) { WRITTEN(REAL(pwrite64)(file, from, length, offset), offset); }

/* Not used by what is tested; better an end than a gap. */
ssize_t writev(int file, const struct iovec *parts, int count) {
    if (ours(file)) abort();
    return REAL(writev)(file, parts, count);
}

#define TRUNCATED(name)                                                                            \
    uint32_t number = ours(file);                                                                  \
    if (!number) return REAL(name)(file, length);                                                  \
    pthread_mutex_lock(&lock);                                                                     \
    int result = REAL(name)(file, length);                                                         \
    if (result == 0) record(TRUNCATE, number, (uint64_t)length, NULL, 0);                          \
    pthread_mutex_unlock(&lock);                                                                   \
    return result

int ftruncate(int file, off_t length) { TRUNCATED(ftruncate); }
int ftruncate64(int file, off64_t length) { TRUNCATED(ftruncate64); }

/* The address of a local variable tells a sync from those that other threads have under way. */
#define SYNCED(name)                                                                               \
    uint32_t number = ours(file);                                                                  \
    if (!number) return REAL(name)(file);                                                          \
    pthread_mutex_lock(&lock);                                                                     \
    record(SYNC_BEGINS, number, (uint64_t)(uintptr_t)&number, NULL, 0);                            \
    pthread_mutex_unlock(&lock);                                                                   \
    int result = REAL(name)(file);                                                                 \
    pthread_mutex_lock(&lock);                                                                     \
    if (result == 0) record(SYNC_ENDS, number, (uint64_t)(uintptr_t)&number, NULL, 0);             \
    pthread_mutex_unlock(&lock);                                                                   \
    return result

int fsync(int file) { SYNCED(fsync); }
int fdatasync(int file) { SYNCED(fdatasync); }

int unlink(const char *path) {
    const char *name = below(path);
    if (!name) return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    struct stat status;
    int there = lstat(path, &status) == 0;
    int result = REAL(unlink)(path);
    if (result == 0) {
        if (there) forget(status.st_ino);
        record(UNLINK, 0, 0, name, strlen(name));
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to) {
    const char *name = below(from), *target = below(to);
    if (!name || !target) return REAL(rename)(from, to);
    char both[8192];
    int length = snprintf(both, sizeof both, "%s%c%s", name, 0, target);
    pthread_mutex_lock(&lock);
    int result = REAL(rename)(from, to);
    if (result == 0) record(RENAME, 0, 0, both, (uint64_t)length);
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode) {
    const char *name = below(path);
    if (!name) return REAL(mkdir)(path, mode);
    pthread_mutex_lock(&lock);
    int result = REAL(mkdir)(path, mode);
    if (result == 0) record(MAKE_DIRECTORY, 0, 0, name, strlen(name));
    pthread_mutex_unlock(&lock);
    return result;
}
