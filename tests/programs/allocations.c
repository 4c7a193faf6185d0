/* A process that knows what it holds: the truth for the tests of the probe.
 *
 * Defines `enif_alloc` and `driver_alloc`, so that beamscope takes it for a VM. Prints `ready PID`, runs each case whose
 * name it reads from stdin, and answers with what a profiler must say of it:
 *
 *   case NAME outstanding=BYTES blocks=BLOCKS allocated=BYTES
 *
 * for the sites whose stack has the function `case_NAME`. It ends at the end of stdin.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CASE __attribute__((noinline)) static void

__attribute__((visibility("default"))) void *enif_alloc(size_t size) { return malloc(size); }
__attribute__((visibility("default"))) void *driver_alloc(size_t size) { return malloc(size); }

/* What the compiler cannot see through. */
static void *volatile kept[4096];
static volatile int kept_count;
static volatile size_t huge = SIZE_MAX / 4;
static void *volatile from_before[8];
static void *volatile mapping_from_before;

static size_t outstanding, blocks, allocated;

static void *keep(void *block, size_t size)
{
    if (!block) abort();
    kept[kept_count] = block;
    kept_count = kept_count + 1;
    outstanding += size;
    allocated += size;
    blocks += 1;
    return block;
}

static void keep_uncounted(void *block)
{
    if (!block) abort();
    kept[0] = block;
}

static void *gone(void *block, size_t size)
{
    if (!block) abort();
    allocated += size;
    return block;
}

CASE case_malloc(void)
{
    for (int i = 0; i < 10; i++) {
        void *block = malloc(100 + i);
        if (i % 3) keep(block, 100 + i);
        else free(gone(block, 100 + i));
    }
    keep(malloc(0), 0);
}

CASE case_failed(void)
{
    if (malloc(huge) || calloc(huge, 1) || realloc(NULL, huge)) abort();
}

CASE case_calloc(void)
{
    keep(calloc(10, 10), 100);
    keep(calloc(1, 300000), 300000);
    if (calloc(huge, 16)) abort();
}

CASE case_realloc_moved(void)
{
    void *block = gone(malloc(100), 100);
    void *wall = gone(malloc(100), 100);
    block = gone(realloc(block, 1 << 20), 1 << 20);
    block = realloc(block, 2 << 20);
    keep(block, 2 << 20);
    free(wall);
}

CASE case_realloc_failed(void)
{
    void *block = keep(malloc(123), 123);
    if (realloc(block, huge)) abort();
    free(gone(realloc(gone(malloc(10), 10), 20), 20));
}

CASE case_realloc_null(void) { keep(realloc(NULL, 77), 77); }

CASE case_realloc_zero(void)
{
    void *block = realloc(gone(malloc(50), 50), 0);
    if (block) keep(block, 0);
}

CASE case_realloc_from_before(void)
{
    keep(realloc(from_before[1], 500), 500);
}

CASE case_reallocarray(void)
{
    keep(reallocarray(NULL, 8, 16), 128);
    if (reallocarray(NULL, huge, 16)) abort();
    free(gone(reallocarray(gone(malloc(8), 8), 1000, 1000), 1000000));
}

CASE case_posix_memalign(void)
{
    void *block = NULL;
    if (posix_memalign(&block, 4096, 300)) abort();
    keep(block, 300);
    if (posix_memalign(&block, 3, 300) != EINVAL) abort();
    if (posix_memalign(&block, 64, 200)) abort();
    free(gone(block, 200));
}

CASE case_aligned(void)
{
    keep(aligned_alloc(256, 512), 512);
    keep(memalign(64, 99), 99);
    free(gone(memalign(64, 98), 98));
#ifdef __GLIBC__
    keep(valloc(1000), 1000);
    keep(pvalloc(1000), 1000);
#endif
}

CASE case_free_from_before(void)
{
    free(from_before[0]);
    free(NULL);
}

CASE case_mmap(void)
{
    size_t page = sysconf(_SC_PAGESIZE);
    char *four = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    keep(four, 4 * page);
    if (munmap(four + page, page)) abort();
    outstanding -= page;
    if (!munmap(four + 1, page)) abort();
    if (mmap(NULL, SIZE_MAX / 2, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) abort();
    char *reserved = mmap(NULL, 1 << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved == MAP_FAILED) abort();
    char *odd = mmap(NULL, page + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    keep(odd, 2 * page);
}

CASE case_mremap(void)
{
    size_t page = sysconf(_SC_PAGESIZE);
    void *small = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    gone(small, page);
    void *large = mremap(small, page, 64 * page, MREMAP_MAYMOVE);
    if (large == MAP_FAILED) abort();
    keep(large, 64 * page);
    if (mremap(large, 64 * page, SIZE_MAX / 2, MREMAP_MAYMOVE) != MAP_FAILED) abort();
}

CASE case_mapping_from_before(void)
{
    size_t page = sysconf(_SC_PAGESIZE);
    /* Only what it grows by is new. */
    void *grown = mremap(mapping_from_before, 8 * page, 10 * page, MREMAP_MAYMOVE);
    if (grown == MAP_FAILED) abort();
    keep(grown, 2 * page);
    /* A file's pages are no memory of the process's own. */
    char name[] = "/tmp/beamscope-test-XXXXXX";
    int file = mkstemp(name);
    if (file < 0 || unlink(name) || ftruncate(file, 100 * page)) abort();
    void *view = mmap(NULL, page, PROT_READ, MAP_SHARED, file, 0);
    if (view == MAP_FAILED || mremap(view, page, 100 * page, MREMAP_MAYMOVE) == MAP_FAILED) abort();
    close(file);
}

CASE case_set_aside(void)
{
    size_t page = sysconf(_SC_PAGESIZE);
    char *reserved = mmap(NULL, 1 << 28, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved == MAP_FAILED || mprotect(reserved + 5 * page, 16 * page, PROT_READ | PROT_WRITE)) abort();
    keep(reserved, 16 * page);
}

CASE case_brk(void)
{
#ifdef __GLIBC__
    if (sbrk(65536) == (void *)-1) abort();
    outstanding = allocated = 65536;
    blocks = 1;
#endif
}

enum { WORKERS = 8, ROUNDS = 4000, SLOTS = 64 };
static _Atomic(void *) slots[SLOTS];
static _Atomic size_t contended_outstanding, contended_blocks, contended_allocated;

static size_t size_of(void *block) { return *(size_t *)block; }

/* Threads hand blocks to each other: what one allocates, another resizes or frees. */
__attribute__((noinline)) static void *contend(void *argument)
{
    unsigned state = (unsigned)(uintptr_t)argument * 2654435761u + 1;
    for (int i = 0; i < ROUNDS; i++) {
        state = state * 1664525u + 1013904223u;
        size_t size = 16 + (state >> 20);
        size_t *block = malloc(size);
        *block = size;
        contended_allocated += size;
        contended_outstanding += size;
        contended_blocks++;
        size_t *other = atomic_exchange(&slots[(state >> 8) % SLOTS], block);
        if (!other) continue;
        contended_outstanding -= size_of(other);
        if (state & 64) {
            size = size_of(other) * 2;
            other = realloc(other, size);
            *other = size;
            contended_allocated += size;
            contended_outstanding += size;
            if (state & 128) continue;
            contended_outstanding -= size;
        }
        contended_blocks--;
        free(other);
    }
    return argument;
}

CASE case_contention(void)
{
    pthread_t threads[WORKERS];
    for (uintptr_t i = 0; i < WORKERS; i++)
        if (pthread_create(&threads[i], NULL, contend, (void *)(i + 1))) abort();
    for (int i = 0; i < WORKERS; i++)
        if (pthread_join(threads[i], NULL)) abort();
    outstanding = contended_outstanding;
    blocks = contended_blocks;
    allocated = contended_allocated;
}

/* glibc gives a thread its arena at its first call, which here is `free`. */
static void *frees_first(void *argument)
{
    free(from_before[2]);
    for (int i = 0; i < 400; i++) keep(malloc(1000), 1000);
    return argument;
}

CASE case_frees_first(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, frees_first, NULL) || pthread_join(thread, NULL)) abort();
}

/* More heights of the stack than the probe has room for. */
__attribute__((noinline)) static int sink_in(int depth)
{
    keep_uncounted(malloc(16));
    if (depth == 0) return 0;
    return sink_in(depth - 1) + 1;
}

static void *deep_main(void *argument)
{
    if (sink_in(69999) != 69999) abort();
    return argument;
}

CASE case_deep(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    if (pthread_attr_init(&attributes) || pthread_attr_setstacksize(&attributes, 64 << 20)) abort();
    if (pthread_create(&thread, &attributes, deep_main, NULL) || pthread_join(thread, NULL)) abort();
    blocks = 70000;
    outstanding = allocated = 16 * blocks;
}

static void *thread_main(void *argument)
{
    free(gone(malloc(2000), 2000));
    keep(malloc(1000), 1000);
    return argument;
}

CASE case_threads(void)
{
    for (int i = 0; i < 50; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, thread_main, NULL)) abort();
        if (pthread_join(thread, NULL)) abort();
    }
}

CASE case_other_thread_frees(void)
{
    void *block = gone(malloc(4000), 4000);
    pthread_t thread;
    if (pthread_create(&thread, NULL, (void *(*)(void *))(void *)free, block)) abort();
    if (pthread_join(thread, NULL)) abort();
}

CASE case_fork(void)
{
    void *block = keep(malloc(600), 600);
    pid_t child = fork();
    if (child == 0) {
        free(block);
        for (int i = 0; i < 100; i++) kept[i] = malloc(700);
        _exit(0);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) abort();
}

/* Each depth of the stack is another key of the probe's; together they are one site for each depth of frames. */
__attribute__((noinline)) static void descend(int depth)
{
    if (depth > 0) {
        descend(depth - 1);
        __asm__ volatile("" ::: "memory");
        return;
    }
    keep(malloc(10), 10);
}

CASE case_depths(void)
{
    for (int depth = 0; depth < 40; depth++) descend(depth);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"malloc", case_malloc},
    {"failed", case_failed},
    {"calloc", case_calloc},
    {"realloc_moved", case_realloc_moved},
    {"realloc_failed", case_realloc_failed},
    {"realloc_null", case_realloc_null},
    {"realloc_zero", case_realloc_zero},
    {"realloc_from_before", case_realloc_from_before},
    {"reallocarray", case_reallocarray},
    {"posix_memalign", case_posix_memalign},
    {"aligned", case_aligned},
    {"free_from_before", case_free_from_before},
    {"mmap", case_mmap},
    {"mremap", case_mremap},
    {"mapping_from_before", case_mapping_from_before},
    {"set_aside", case_set_aside},
    {"brk", case_brk},
    {"other_thread_frees", case_other_thread_frees},
    {"fork", case_fork},
    {"depths", case_depths},
    /* Their blocks have the threads' stacks, and so the functions `thread_main`, `contend`, ... */
    {"threads", case_threads},
    {"contention", case_contention},
    {"deep", case_deep},
    {"frees_first", case_frees_first},
};

int main(void)
{
    char line[256];
    /* So that stdio allocates nothing of its own during a recording. */
    static char in[BUFSIZ], out[BUFSIZ];
    setvbuf(stdin, in, _IOLBF, sizeof in);
    setvbuf(stdout, out, _IOLBF, sizeof out);
    for (size_t i = 0; i < sizeof from_before / sizeof *from_before; i++) from_before[i] = malloc(100);
    mapping_from_before =
        mmap(NULL, 8 * sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_from_before == MAP_FAILED) abort();
    /* The C library keeps a thread's stack and its bookkeeping for the next thread. */
    pthread_t first;
    if (pthread_create(&first, NULL, (void *(*)(void *))(void *)free, NULL) || pthread_join(first, NULL)) abort();
    printf("ready %d\n", (int)getpid());
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            if (strcmp(cases[i].name, line)) continue;
            outstanding = blocks = allocated = 0;
            cases[i].run();
            printf("case %s outstanding=%zu blocks=%zu allocated=%zu\n", line, outstanding, blocks, allocated);
        }
    }
    return 0;
}
