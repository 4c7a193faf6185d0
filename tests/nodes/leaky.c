/* NIF library `leaky`: leaks known numbers of bytes through each way that C has to get memory.
 *
 * Each way is a chain of functions that are not inlined, so that a test can expect them by name on a stack:
 *   leak_malloc -> malloc_blocks -> take_malloc -> malloc
 * and likewise for calloc, realloc, posix_memalign, aligned_alloc, mmap and enif_alloc. `leak_dirty` runs on a
 * dirty CPU scheduler and `leak_thread` in a thread of its own; both end in malloc.
 *
 * Every `leak_X(Bytes, Blocks)` returns the bytes that this way has leaked so far, as asked for from the C library
 * (mmap: whole pages; aligned_alloc: whole multiples of 64). `counters/0` returns all of them.
 */
#include <erl_nif.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FRAME __attribute__((noinline, noclone))

enum kind { MALLOC, CALLOC, REALLOC, POSIX_MEMALIGN, ALIGNED_ALLOC, MMAP, ENIF_ALLOC, DIRTY, THREAD, KINDS };

static const char *const kind_names[KINDS] = {
    "malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "mmap", "enif_alloc", "dirty", "thread",
};

static atomic_ullong leaked[KINDS];

/* Where a block's address goes, so that no compiler removes an allocation that nobody reads. */
static void *volatile last_block;

/* Makes the block resident and counts it. */
static FRAME int lose(enum kind kind, void *block, size_t bytes) {
    if (block == NULL)
        return 0;
    memset(block, 0x5a, bytes);
    last_block = block;
    atomic_fetch_add(&leaked[kind], bytes);
    return 1;
}

static FRAME int take_malloc(enum kind kind, size_t bytes) {
    return lose(kind, malloc(bytes), bytes);
}

static FRAME int take_calloc(enum kind kind, size_t bytes) {
    return lose(kind, calloc(1, bytes), bytes);
}

/* Grows a block from a quarter to its full size; only the last size is lost. */
static FRAME int take_realloc(enum kind kind, size_t bytes) {
    void *block = malloc(bytes / 4 + 1);
    for (int quarters = 2; block != NULL && quarters <= 4; quarters++) {
        void *grown = realloc(block, bytes / 4 * (size_t)quarters + bytes % 4);
        if (grown == NULL)
            free(block);
        block = grown;
    }
    return lose(kind, block, bytes);
}

static FRAME int take_posix_memalign(enum kind kind, size_t bytes) {
    void *block = NULL;
    if (posix_memalign(&block, 256, bytes) != 0)
        return 0;
    return lose(kind, block, bytes);
}

static FRAME int take_aligned_alloc(enum kind kind, size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    return lose(kind, aligned_alloc(64, bytes), bytes);
}

static FRAME int take_mmap(enum kind kind, size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    bytes = (bytes + page - 1) / page * page;
    void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return lose(kind, block == MAP_FAILED ? NULL : block, bytes);
}

static FRAME int take_enif_alloc(enum kind kind, size_t bytes) {
    return lose(kind, enif_alloc(bytes), bytes);
}

/* One frame between the NIF and the taking function for each kind, and the loop over the blocks. */
#define BLOCKS(NAME, TAKE)                                                    \
    static FRAME int NAME(enum kind kind, size_t bytes, unsigned long count) { \
        int taken = 1;                                                        \
        while (count-- > 0)                                                   \
            taken &= TAKE(kind, bytes);                                       \
        return taken;                                                         \
    }

BLOCKS(malloc_blocks, take_malloc)
BLOCKS(calloc_blocks, take_calloc)
BLOCKS(realloc_blocks, take_realloc)
BLOCKS(posix_memalign_blocks, take_posix_memalign)
BLOCKS(aligned_alloc_blocks, take_aligned_alloc)
BLOCKS(mmap_blocks, take_mmap)
BLOCKS(enif_alloc_blocks, take_enif_alloc)

struct order {
    size_t bytes;
    unsigned long count;
    int taken;
};

static FRAME void *thread_main(void *argument) {
    struct order *order = argument;
    order->taken = malloc_blocks(THREAD, order->bytes, order->count);
    return NULL;
}

static FRAME int thread_blocks(enum kind kind, size_t bytes, unsigned long count) {
    (void)kind;
    struct order order = {bytes, count, 0};
    char name[] = "leaky_thread";
    ErlNifTid thread;
    if (enif_thread_create(name, &thread, thread_main, &order, NULL) != 0)
        return 0;
    enif_thread_join(thread, NULL);
    return order.taken;
}

static int arguments(ErlNifEnv *env, const ERL_NIF_TERM argv[], unsigned long *first, unsigned long *second) {
    return enif_get_ulong(env, argv[0], first) && enif_get_ulong(env, argv[1], second);
}

#define LEAK(NAME, KIND, LOOP)                                                           \
    static ERL_NIF_TERM NAME(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {      \
        (void)argc;                                                                      \
        unsigned long bytes, count;                                                      \
        if (!arguments(env, argv, &bytes, &count) || bytes == 0)                         \
            return enif_make_badarg(env);                                                \
        if (!LOOP(KIND, bytes, count))                                                   \
            return enif_raise_exception(env, enif_make_atom(env, "enomem"));             \
        return enif_make_uint64(env, atomic_load(&leaked[KIND]));                        \
    }

LEAK(leak_malloc, MALLOC, malloc_blocks)
LEAK(leak_calloc, CALLOC, calloc_blocks)
LEAK(leak_realloc, REALLOC, realloc_blocks)
LEAK(leak_posix_memalign, POSIX_MEMALIGN, posix_memalign_blocks)
LEAK(leak_aligned_alloc, ALIGNED_ALLOC, aligned_alloc_blocks)
LEAK(leak_mmap, MMAP, mmap_blocks)
LEAK(leak_enif_alloc, ENIF_ALLOC, enif_alloc_blocks)
LEAK(leak_dirty, DIRTY, malloc_blocks)
LEAK(leak_thread, THREAD, thread_blocks)

/* Allocates and frees `count` blocks of 1 to `bytes` bytes, at most 16 of them alive at a time. */
static FRAME int churn_blocks(unsigned long count, size_t bytes) {
    void *alive[16] = {NULL};
    uint32_t random = 2463534242u;
    for (unsigned long i = 0; i < count; i++) {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        size_t size = random % bytes + 1;
        void *block = malloc(size);
        if (block != NULL)
            *(volatile char *)block = 1;
        free(alive[i % 16]);
        alive[i % 16] = block;
    }
    for (int i = 0; i < 16; i++)
        free(alive[i]);
    return 1;
}

static ERL_NIF_TERM churn(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    unsigned long count, bytes;
    if (!arguments(env, argv, &count, &bytes) || bytes == 0)
        return enif_make_badarg(env);
    churn_blocks(count, bytes);
    return enif_make_atom(env, "ok");
}

static ERL_NIF_TERM counters(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc, (void)argv;
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (int kind = KINDS - 1; kind >= 0; kind--) {
        ERL_NIF_TERM name = enif_make_atom(env, kind_names[kind]);
        ERL_NIF_TERM bytes = enif_make_uint64(env, atomic_load(&leaked[kind]));
        list = enif_make_list_cell(env, enif_make_tuple2(env, name, bytes), list);
    }
    return list;
}

static ErlNifFunc functions[] = {
    {"leak_malloc", 2, leak_malloc, 0},
    {"leak_calloc", 2, leak_calloc, 0},
    {"leak_realloc", 2, leak_realloc, 0},
    {"leak_posix_memalign", 2, leak_posix_memalign, 0},
    {"leak_aligned_alloc", 2, leak_aligned_alloc, 0},
    {"leak_mmap", 2, leak_mmap, 0},
    {"leak_enif_alloc", 2, leak_enif_alloc, 0},
    {"leak_dirty", 2, leak_dirty, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"leak_thread", 2, leak_thread, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"churn", 2, churn, 0},
    {"counters", 0, counters, 0},
};

ERL_NIF_INIT(leaky, functions, NULL, NULL, NULL, NULL)
