/*
 * Makes a store slow: preloaded into vmtwin, it lets all writes to files below
 * $VMTWIN_BENCH_SLOW_DIR together have no more than $VMTWIN_BENCH_SLOW_BYTES per
 * second. It holds the writing thread back, as a slow disk that keeps nothing in
 * memory would. Writes to anything else are not touched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *dir;
static uint64_t bytes_per_s, free_at_ns;

__attribute__((constructor)) static void begin(void) {
    const char *rate = getenv("VMTWIN_BENCH_SLOW_BYTES");
    dir = getenv("VMTWIN_BENCH_SLOW_DIR");
    bytes_per_s = rate ? strtoull(rate, NULL, 10) : 0;
}

static int is_slow(int fd) {
    char link[32], path[4096];
    if (!dir || !bytes_per_s) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    size_t dir_len = strlen(dir);
    return !strncmp(path, dir, dir_len) && path[dir_len] == '/';
}

/* Takes the next place in the queue of all writes and sleeps until it has passed. */
static ssize_t held_back(int fd, ssize_t written) {
    struct timespec t;
    if (written <= 0 || !is_slow(fd)) return written;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t now = (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
    pthread_mutex_lock(&lock);
    if (free_at_ns < now) free_at_ns = now;
    free_at_ns += (uint64_t)written * 1000000000u / bytes_per_s;
    uint64_t until = free_at_ns;
    pthread_mutex_unlock(&lock);
    t.tv_sec = until / 1000000000u;
    t.tv_nsec = until % 1000000000u;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) {}
    return written;
}

/* The real function of the same name. */
#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return held_back(fd, real(fd, data, size));
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return held_back(fd, real(fd, parts, count));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    return held_back(fd, real(fd, data, size, at));
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    REAL(ssize_t, "pwritev64", int, const struct iovec *, int, off64_t);
    return held_back(fd, real(fd, parts, count, at));
}
