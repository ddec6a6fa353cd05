/*
 * The program that a test guest runs. It numbers its writes, so that memory and
 * disks taken at different instants give themselves away.
 *
 * For n = 1, 2, 3, ...: n goes to memory (a counter, and a run of stamped
 * pages), then to disk 1, then to disk 2, each write durable before the next.
 * So at every instant  memory >= disk1 >= disk2 >= memory - 1.
 *
 * Block 0 of a disk is its header; n also goes to block 1 + (n-1) % SLOTS, before
 * the header. Memory knows what every block holds. Before each number the ticker
 * reads back the header, the slot to be written and some slots before it (all of
 * them for a report) and compares; a difference ("skew") means that memory and
 * disks are not of one instant. crates/testkit/src/ledger.rs reads the same layout
 * on the host.
 *
 * Parameters come from the kernel's command line as vmtwin.NAME=VALUE:
 *   mode        count | load | ext4 | idle | debian (only the heartbeat on ttyS1)
 *   rate_hz     numbers per second, 0 = as fast as the disks go
 *   dirty_mib   MiB of memory stamped per second
 *   memory_mib  size of the stamped working set
 *   console_ms  time between two lines on ttyS0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define WORDS (BLOCK / 8)
#define SLOTS 1024u
#define LOOK_BACK 8u /* slots that are read again before each number */
#define RUN 64u      /* blocks per read */
#define MAX_SAID 20u /* differences that are printed, of all that are counted */
#define MAX_DISKS 8
#define MAGIC 0x6b7469776d763176ull /* "v1vmwitk" */

/* The layout of a block on disk; all words are little-endian. */
struct block {
    uint64_t magic;
    uint64_t n;
    uint64_t disk;           /* 1, 2, ... */
    uint64_t flags;          /* bit 0: the ticker ended in order */
    uint64_t fill[WORDS - 5]; /* n again and again */
    uint64_t sum;            /* of all words before */
};

struct page {
    uint64_t index; /* place in the working set */
    uint64_t n;     /* the number that stamped it; 0 = not stamped yet */
    uint64_t fill[WORDS - 2];
};

static char mode[16] = "idle";
static uint64_t rate_hz = 10, dirty_mib = 1, memory_mib = 4, console_ms = 1000;

static int disks[MAX_DISKS];
static uint64_t slots[MAX_DISKS];
static int disk_count;

static uint64_t memory_n;
/* What memory says that the header (0) and the slots (1...) hold. */
static uint64_t holds[MAX_DISKS][1 + SLOTS];
static uint64_t skew;
static struct page *pages;
static uint64_t page_count, next_page;
static volatile uint64_t longest_gap_us;
static volatile sig_atomic_t ending, report_wanted;
static pthread_t first_thread;
static int console = 1;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* A signal ends the sleep early. */
static void sleep_until_us(uint64_t at) {
    struct timespec t = {at / 1000000, (at % 1000000) * 1000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* One line, in one write, so that threads do not mix their lines. */
static void say(const char *form, ...) {
    char line[512];
    va_list args;
    va_start(args, form);
    int len = vsnprintf(line, sizeof line - 1, form, args);
    va_end(args);
    line[len++] = '\n';
    if (write(console, line, len) < 0) _exit(3);
}

static void read_parameters(void) {
    char text[4096] = {0};
    FILE *file = fopen("/proc/cmdline", "r");
    if (!file || !fgets(text, sizeof text, file)) return;
    fclose(file);
    for (char *word = strtok(text, " \n"); word; word = strtok(NULL, " \n")) {
        uint64_t value;
        sscanf(word, "vmtwin.mode=%15s", mode);
        if (sscanf(word, "vmtwin.rate_hz=%lu", &value) == 1) rate_hz = value;
        if (sscanf(word, "vmtwin.dirty_mib=%lu", &value) == 1) dirty_mib = value;
        if (sscanf(word, "vmtwin.memory_mib=%lu", &value) == 1) memory_mib = value;
        if (sscanf(word, "vmtwin.console_ms=%lu", &value) == 1) console_ms = value;
    }
}

/* ---- disks ---- */

static uint64_t sum_of(const struct block *block) {
    const uint64_t *word = (const uint64_t *)block;
    uint64_t sum = 0xcbf29ce484222325ull;
    for (unsigned i = 0; i < WORDS - 1; i++) sum = (sum ^ word[i]) * 0x100000001b3ull;
    return sum;
}

static void fill_block(struct block *block, uint64_t n, int disk, uint64_t flags) {
    block->magic = MAGIC;
    block->n = n;
    block->disk = disk + 1;
    block->flags = flags;
    for (unsigned i = 0; i < WORDS - 5; i++) block->fill[i] = n;
    block->sum = sum_of(block);
}

static void fail(const char *what, int disk) {
    say("fail %s disk=%d: %s", what, disk + 1, strerror(errno));
    _exit(4);
}

static uint64_t slot_of(int disk, uint64_t n) {
    return 1 + (n - 1) % slots[disk];
}

static void write_block(int disk, uint64_t index, uint64_t n, uint64_t flags) {
    static struct block block __attribute__((aligned(4096)));
    fill_block(&block, n, disk, flags);
    if (pwrite(disks[disk], &block, BLOCK, index * BLOCK) != BLOCK) fail("write", disk);
    holds[disk][index] = n;
}

/* The number in a block; 0 when there is none, ~0 when it is damaged. */
static uint64_t number_in(const struct block *block, int disk) {
    if (block->magic == 0 && block->sum == 0) return 0;
    if (block->magic != MAGIC || block->disk != (uint64_t)disk + 1 || block->sum != sum_of(block))
        return ~0ull;
    return block->n;
}

/* Reads up to RUN blocks; the result is good until the next call. */
static const struct block *read_blocks(int disk, uint64_t first, uint64_t count) {
    static struct block blocks[RUN] __attribute__((aligned(4096)));
    ssize_t size = count * BLOCK;
    if (pread(disks[disk], blocks, size, first * BLOCK) != size) fail("read", disk);
    return blocks;
}

/* Compares blocks with what memory says that they hold. */
static void check_blocks(int disk, uint64_t first, uint64_t count) {
    const struct block *blocks = read_blocks(disk, first, count);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t found = number_in(&blocks[i], disk), expected = holds[disk][first + i];
        if (found == expected) continue;
        if (skew++ < MAX_SAID)
            say("skew disk=%d block=%lu expected=%lu found=%ld", disk + 1, first + i, expected,
                (long)found);
        holds[disk][first + i] = found;
    }
}

/* Calls `visit` for all blocks of a disk, a run at a time. */
static void visit_all(int disk, void (*visit)(int, uint64_t, uint64_t)) {
    for (uint64_t first = 0; first <= slots[disk]; first += RUN) {
        uint64_t left = slots[disk] + 1 - first;
        visit(disk, first, left < RUN ? left : RUN);
    }
}

static void learn_blocks(int disk, uint64_t first, uint64_t count) {
    const struct block *blocks = read_blocks(disk, first, count);
    for (uint64_t i = 0; i < count; i++) holds[disk][first + i] = number_in(&blocks[i], disk);
}

static void open_disks(void) {
    for (int i = 0; i < MAX_DISKS; i++) {
        char path[] = "/dev/vda";
        uint64_t size_bytes;
        path[7] += i;
        disks[i] = open(path, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
        if (disks[i] < 0) break;
        if (ioctl(disks[i], BLKGETSIZE64, &size_bytes) < 0) fail("size", i);
        slots[i] = size_bytes / BLOCK - 1;
        if (slots[i] > SLOTS) slots[i] = SLOTS;
        visit_all(i, learn_blocks);
        disk_count++;
    }
}

static void put_number(int disk, uint64_t n) {
    uint64_t slot = slot_of(disk, n), back = slot - 1 < LOOK_BACK ? slot - 1 : LOOK_BACK;
    check_blocks(disk, 0, 1);
    check_blocks(disk, slot - back, back + 1);
    write_block(disk, slot, n, 0);
    write_block(disk, 0, n, 0);
}

/* ---- memory ---- */

static uint64_t page_word(uint64_t index, uint64_t n, unsigned i) {
    uint64_t x = (n << 20 ^ index) + i * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 31) * 0xbf58476d1ce4e5b9ull;
    return x ^ x >> 29;
}

static void stamp_page(struct page *page, uint64_t index, uint64_t n) {
    page->index = index;
    page->n = n;
    for (unsigned i = 0; i < WORDS - 2; i++)
        page->fill[i] = i < WORDS / 2 ? page_word(index, n, i) : n;
}

static int page_is_whole(const struct page *page, uint64_t index) {
    if (page->index == 0 && page->n == 0 && page->fill[0] == 0) return 1;
    if (page->index != index) return 0;
    for (unsigned i = 0; i < WORDS - 2; i++)
        if (page->fill[i] != (i < WORDS / 2 ? page_word(index, page->n, i) : page->n)) return 0;
    return 1;
}

static void map_memory(void) {
    page_count = memory_mib * 1048576 / BLOCK;
    if (page_count == 0) return;
    pages = mmap(NULL, page_count * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        say("fail memory: %s", strerror(errno));
        _exit(4);
    }
}

static void stamp_pages(uint64_t n, uint64_t count) {
    for (; count > 0 && page_count > 0; count--) {
        stamp_page(&pages[next_page], next_page, n);
        next_page = (next_page + 1) % page_count;
    }
}

/* Counts pages that are damaged, or stamped later than the page stamped last. */
static uint64_t bad_pages(void) {
    uint64_t bad = 0;
    for (uint64_t i = 0; i < page_count; i++)
        if (!page_is_whole(&pages[i], i) || pages[i].n > memory_n) bad++;
    return bad;
}

/* ---- console ---- */

static void open_console(void) {
    struct termios settings;
    console = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (console < 0) _exit(2);
    tcgetattr(console, &settings);
    cfmakeraw(&settings);
    settings.c_oflag |= OPOST | ONLCR;
    tcsetattr(console, TCSANOW, &settings);
}

/* Appends " disk1=.. disk2=.." as read back, and checks all blocks. */
static void list_disks(char *line, size_t size) {
    line[0] = 0;
    for (int i = 0; i < disk_count; i++) {
        size_t len = strlen(line);
        uint64_t n = number_in(read_blocks(i, 0, 1), i);
        snprintf(line + len, size - len, " disk%d=%ld", i + 1, (long)n);
        visit_all(i, check_blocks);
    }
}

static void report(void) {
    char line[256];
    report_wanted = 0;
    list_disks(line, sizeof line);
    say("report mem=%lu%s skew=%lu pages=%lu bad=%lu", memory_n, line, skew, page_count, bad_pages());
}

static void *listen_for_commands(void *unused) {
    (void)unused;
    char line[64];
    size_t len = 0;
    char c;
    while (read(console, &c, 1) == 1) {
        if (c != '\n' && c != '\r') {
            if (len < sizeof line - 1) line[len++] = c;
            continue;
        }
        line[len] = 0;
        len = 0;
        if (!strcmp(line, "report")) {
            report_wanted = 1;
            pthread_kill(first_thread, SIGUSR1);
        } else if (!strcmp(line, "reset-gap")) longest_gap_us = 0;
        else if (!strcmp(line, "power off")) system("/etc/acpi/PWRF/00000080 typed &");
        else if (line[0]) say("unknown command '%s'", line);
    }
    return NULL;
}

/* 100 Hz: the host times these lines to see how long the guest stood still. */
static void *beat(void *unused) {
    (void)unused;
    int port = open("/dev/ttyS1", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    uint64_t last = now_us(), next = last;
    for (uint64_t sequence = 1; port >= 0; sequence++) {
        char line[32];
        next += 10000;
        sleep_until_us(next);
        uint64_t now = now_us();
        if (now - last > longest_gap_us) longest_gap_us = now - last;
        last = now;
        if (now > next + 10000) next = now;
        int len = snprintf(line, sizeof line, "hb %lu\n", sequence);
        if (write(port, line, len) < 0) break;
    }
    return NULL;
}

static void say_tick(uint64_t n) {
    if (!strcmp(mode, "count"))
        say("count n=%lu", n);
    else
        say("tick n=%lu mem=%lu skew=%lu ms=%lu gap_us=%lu", n, memory_n, skew, now_us() / 1000,
            longest_gap_us);
}

/* ---- modes ---- */

static void on_signal(int signal) {
    if (signal == SIGTERM) ending = 1;
}

/* Reports are made here, between two numbers. */
static void rest_until_us(uint64_t at) {
    do {
        if (report_wanted) report();
        if (now_us() < at) sleep_until_us(at);
    } while (!ending && (report_wanted || now_us() < at));
}

/* Calls `step` with n = first, first+1, ... at the settled rate until told to end. */
static uint64_t run_numbers(uint64_t first, void (*step)(uint64_t)) {
    uint64_t n = first, next = now_us(), said = 0;
    for (; !ending; n++) {
        step(n);
        if (now_us() - said >= console_ms * 1000) {
            said = now_us();
            say_tick(n);
        }
        if (rate_hz > 0) next += 1000000 / rate_hz;
        rest_until_us(next);
        if (now_us() > next + 1000000) next = now_us();
    }
    return n - 1;
}

/* Pages to stamp now, so that memory is dirtied at the settled rate. */
static uint64_t pages_due(void) {
    static uint64_t last, owed_us;
    uint64_t now = now_us(), per_second = dirty_mib * 1048576 / BLOCK, due;
    if (last == 0) last = now;
    owed_us += now - last;
    last = now;
    if (owed_us > 1000000) owed_us = 1000000;
    due = owed_us * per_second / 1000000;
    if (due > 0) owed_us = 0;
    return due;
}

static void number_step(uint64_t n) {
    memory_n = n;
    stamp_pages(n, pages_due());
    for (int i = 0; i < disk_count; i++) put_number(i, n);
}

static uint64_t highest_on_disks(void) {
    uint64_t highest = 0;
    for (int i = 0; i < disk_count; i++)
        if (holds[i][0] != ~0ull && holds[i][0] > highest) highest = holds[i][0];
    return highest;
}

/* Ends in order: the same number, with the mark, on every disk. */
static void mark_clean(uint64_t n) {
    for (int i = 0; i < disk_count && n > 0; i++) write_block(i, 0, n, 1);
}

static void run_counter(void) {
    open_disks();
    uint64_t first = highest_on_disks() + 1;
    memory_n = first - 1;
    say("ready mode=%s disks=%d first=%lu", mode, disk_count, first);
    mark_clean(run_numbers(first, number_step));
}

static FILE *ledger;

static void ledger_step(uint64_t n) {
    memory_n = n;
    stamp_pages(n, pages_due());
    if (fprintf(ledger, "%lu\n", n) < 0 || fflush(ledger) || fsync(fileno(ledger)))
        fail("ledger", 0);
    say("ack n=%lu", n);
}

static uint64_t last_in_ledger(void) {
    uint64_t n = 0;
    FILE *file = fopen("/data/ledger", "r");
    if (!file) return 0;
    while (fscanf(file, "%lu", &n) == 1) {
    }
    fclose(file);
    return n;
}

/* Creates or removes the mark of an orderly end. */
static void set_clean_file(int clean) {
    if (!clean) {
        unlink("/data/clean");
        return;
    }
    FILE *file = fopen("/data/clean", "we");
    if (!file || fprintf(file, "%lu\n", memory_n) < 0 || fsync(fileno(file)) || fclose(file))
        fail("clean", 0);
}

static void run_ledger(void) {
    uint64_t first = last_in_ledger() + 1;
    memory_n = first - 1;
    set_clean_file(0);
    ledger = fopen("/data/ledger", "ae");
    if (!ledger) fail("open ledger", 0);
    say("ready mode=%s disks=1 first=%lu", mode, first);
    run_numbers(first, ledger_step);
    fclose(ledger);
    set_clean_file(1);
}

static void run_idle(void) {
    say("ready mode=idle disks=0 first=0");
    while (!ending) rest_until_us(now_us() + 1000000);
}

static void start_thread(void *(*body)(void *)) {
    pthread_t thread;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    /* Only the first thread is to take the signals. */
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    pthread_create(&thread, NULL, body, NULL);
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
}

int main(void) {
    struct sigaction action = {.sa_handler = on_signal};
    first_thread = pthread_self();
    read_parameters();
    if (!strcmp(mode, "debian")) return beat(NULL) != NULL;
    open_console();
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    map_memory();
    start_thread(listen_for_commands);
    start_thread(beat);
    if (!strcmp(mode, "ext4")) run_ledger();
    else if (!strcmp(mode, "idle")) run_idle();
    else run_counter();
    say("stopped n=%lu", memory_n);
    return 0;
}
