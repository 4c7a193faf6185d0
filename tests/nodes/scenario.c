/* NIF library `scenario`: native memory as nodes use it, leaky and not, beside what leaky.c, leaky_cpp.cc and vm_api.c
 * do.
 *
 *   leak_pool      an allocator of the library's own: leak_pool -> pool_take -> pool_chunk -> mmap
 *   leak_library   a library that is opened by this one: ... -> library_take -> malloc (scenario_lib.c)
 *   leak_worker    a thread that the library has started: worker_main -> worker_take -> malloc
 *   leak_resource  resources that are kept once too often: leak_resource -> take_resource -> enif_alloc_resource
 *
 * Each `leak_X(Bytes, Blocks)` returns the bytes that it has leaked so far; `native_counters/0` returns all of them. The
 * pool counts the chunks that it has mapped.
 *
 * `put(From, Count, Bytes)` fills places of a shelf with blocks, in the stead of those that lie there, `clear(From,
 * Count)` frees them, `resize(From, Count, Bytes)` reallocates them. The rest is said where it stands.
 */
#include "any_release.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_FREE
#define MADV_FREE 8
#endif

enum kind { POOL, LIBRARY, WORKER, RESOURCE, KINDS };

static const char *const kind_names[KINDS] = {"pool", "library", "worker", "resource"};
static atomic_ullong leaked[KINDS];
/* Where a block's address goes, so that no compiler removes an allocation that nobody reads. */
static void *volatile last_block;

static FRAME void *touched(void *block, size_t bytes) {
    if (block != NULL)
        memset(block, 0x5a, bytes);
    last_block = block;
    return block;
}

/* The pool. It is used by one process at a time. */
enum { CHUNK = 1 << 20 };
static char *chunk;
static size_t chunk_left;

static FRAME char *pool_chunk(void) {
    void *mapped = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED)
        return NULL;
    atomic_fetch_add(&leaked[POOL], CHUNK);
    return mapped;
}

static FRAME int pool_take(size_t bytes) {
    if (bytes > CHUNK)
        return 0;
    if (chunk_left < bytes) {
        chunk = pool_chunk();
        chunk_left = chunk == NULL ? 0 : CHUNK;
    }
    if (chunk == NULL)
        return 0;
    touched(chunk, bytes);
    chunk += bytes;
    chunk_left -= bytes;
    return 1;
}

/* The library beside this one. */
static void *(*library_take)(size_t);

static FRAME int library_blocks(size_t bytes) {
    void *block = library_take(bytes);
    if (block == NULL)
        return 0;
    atomic_fetch_add(&leaked[LIBRARY], bytes);
    return 1;
}

/* The thread waits for orders, and who gives one waits for it to be done. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static size_t order_bytes;
static unsigned long order_blocks;
static int worker_is_up;

static FRAME void worker_take(size_t bytes) {
    if (touched(malloc(bytes), bytes) != NULL)
        atomic_fetch_add(&leaked[WORKER], bytes);
}

static FRAME void *worker_main(void *argument) {
    pthread_mutex_lock(&lock);
    for (;;) {
        while (order_blocks == 0)
            pthread_cond_wait(&changed, &lock);
        for (; order_blocks > 0; order_blocks--)
            worker_take(order_bytes);
        pthread_cond_broadcast(&changed);
    }
    return argument;
}

static int worker_blocks(size_t bytes, unsigned long count) {
    pthread_mutex_lock(&lock);
    if (!worker_is_up) {
        pthread_t thread;
        worker_is_up = pthread_create(&thread, NULL, worker_main, NULL) == 0;
        if (worker_is_up)
            pthread_detach(thread);
    }
    order_bytes = bytes;
    order_blocks = worker_is_up ? count : 0;
    pthread_cond_broadcast(&changed);
    while (order_blocks > 0)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return worker_is_up;
}

static ErlNifResourceType *resource_type;

/* The term is dropped; where the resource was kept once more than it is released, it stays. */
static FRAME int take_resource(ErlNifEnv *env, size_t bytes, int keep) {
    void *resource = touched(enif_alloc_resource(resource_type, bytes), bytes);
    if (resource == NULL)
        return 0;
    enif_make_resource(env, resource);
    if (keep) {
        enif_keep_resource(resource);
        atomic_fetch_add(&leaked[RESOURCE], bytes);
    }
    enif_release_resource(resource);
    return 1;
}

static int two(ErlNifEnv *env, const ERL_NIF_TERM argv[], unsigned long *first, unsigned long *second) {
    return enif_get_ulong(env, argv[0], first) && enif_get_ulong(env, argv[1], second);
}

#define LEAK(NAME, KIND, TAKE)                                                      \
    static ERL_NIF_TERM NAME(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) { \
        (void)argc;                                                                 \
        unsigned long bytes, count;                                                 \
        if (!two(env, argv, &bytes, &count) || bytes == 0)                          \
            return enif_make_badarg(env);                                           \
        for (; count > 0; count--)                                                  \
            if (!(TAKE))                                                            \
                return enif_make_badarg(env);                                       \
        return enif_make_uint64(env, atomic_load(&leaked[KIND]));                   \
    }

LEAK(leak_pool, POOL, pool_take(bytes))
LEAK(leak_library, LIBRARY, library_take != NULL && library_blocks(bytes))
LEAK(leak_resource, RESOURCE, take_resource(env, bytes, 1))
LEAK(make_resources, RESOURCE, take_resource(env, bytes, 0))

static ERL_NIF_TERM leak_worker(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    unsigned long bytes, count;
    if (!two(env, argv, &bytes, &count) || !worker_blocks(bytes, count))
        return enif_make_badarg(env);
    return enif_make_uint64(env, atomic_load(&leaked[WORKER]));
}

/* Opens the library at a path. */
static ERL_NIF_TERM open_library(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    char path[4096];
    if (enif_get_string(env, argv[0], path, sizeof path, ERL_NIF_LATIN1) <= 0)
        return enif_make_badarg(env);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return enif_make_badarg(env);
    *(void **)&library_take = dlsym(library, "library_take");
    return enif_make_atom(env, library_take == NULL ? "error" : "ok");
}

enum { PLACES = 1 << 16 };
static void *shelf[PLACES];

static FRAME void shelf_put(unsigned long place, size_t bytes) {
    free(shelf[place]);
    shelf[place] = touched(malloc(bytes), bytes);
}

static FRAME void shelf_resize(unsigned long place, size_t bytes) {
    void *block = realloc(shelf[place], bytes);
    if (block != NULL)
        shelf[place] = touched(block, bytes);
}

static ERL_NIF_TERM on_shelf(ErlNifEnv *env, const ERL_NIF_TERM argv[], int argc, void (*work)(unsigned long, size_t)) {
    unsigned long from, count, bytes = 0;
    if (!two(env, argv, &from, &count) || (argc == 3 && !enif_get_ulong(env, argv[2], &bytes)))
        return enif_make_badarg(env);
    if (from >= PLACES || count > PLACES - from)
        return enif_make_badarg(env);
    for (unsigned long place = from; place < from + count; place++)
        work(place, bytes);
    return enif_make_atom(env, "ok");
}

static FRAME void shelf_clear(unsigned long place, size_t bytes) {
    (void)bytes;
    free(shelf[place]);
    shelf[place] = NULL;
}

static ERL_NIF_TERM put(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    return on_shelf(env, argv, argc, shelf_put);
}

static ERL_NIF_TERM clear(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    return on_shelf(env, argv, argc, shelf_clear);
}

static ERL_NIF_TERM resize(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    return on_shelf(env, argv, argc, shelf_resize);
}

struct share {
    pthread_barrier_t *all_full;
    unsigned long blocks;
    size_t bytes;
    int keep_last;
};

/* Fills an arena, and frees all of it but the block at its top, which keeps the rest from the system. */
static FRAME void *fill_and_free(void *argument) {
    struct share *share = argument;
    void **blocks = malloc(share->blocks * sizeof *blocks);
    for (unsigned long i = 0; blocks != NULL && i < share->blocks; i++)
        blocks[i] = touched(malloc(share->bytes), share->bytes);
    pthread_barrier_wait(share->all_full);
    unsigned long kept = share->keep_last ? 1 : 0;
    for (unsigned long i = 0; blocks != NULL && i + kept < share->blocks; i++)
        free(blocks[i]);
    free(blocks);
    return NULL;
}

/* threads(Threads, Blocks, Bytes, KeepLast): each thread has an arena of its own while all of them are full. */
static ERL_NIF_TERM threads(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    enum { MOST = 16 };
    unsigned long count, blocks, bytes, keep_last;
    if (!two(env, argv, &count, &blocks) || !two(env, argv + 2, &bytes, &keep_last) || count == 0 || count > MOST)
        return enif_make_badarg(env);
    pthread_barrier_t all_full;
    pthread_barrier_init(&all_full, NULL, (unsigned)count);
    struct share share = {&all_full, blocks, bytes, keep_last != 0};
    pthread_t started[MOST];
    for (unsigned long i = 0; i < count; i++)
        if (pthread_create(&started[i], NULL, fill_and_free, &share) != 0)
            abort();
    for (unsigned long i = 0; i < count; i++)
        pthread_join(started[i], NULL);
    pthread_barrier_destroy(&all_full);
    return enif_make_atom(env, "ok");
}

static FRAME void *map_touched(size_t bytes) {
    void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return block == MAP_FAILED ? NULL : touched(block, bytes);
}

/* Touches `Bytes` of a new mapping, and leaves it to the kernel to take them back when it needs them. */
static ERL_NIF_TERM lazily_freed(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    unsigned long bytes;
    if (!enif_get_ulong(env, argv[0], &bytes))
        return enif_make_badarg(env);
    void *block = map_touched(bytes);
    if (block == NULL || madvise(block, bytes, MADV_FREE) != 0)
        return enif_make_badarg(env);
    return enif_make_atom(env, "ok");
}

/* Makes `Count` mappings of `Bytes`, and takes each away at once. */
static ERL_NIF_TERM map_and_unmap(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    unsigned long count, bytes;
    if (!two(env, argv, &count, &bytes))
        return enif_make_badarg(env);
    for (; count > 0; count--) {
        void *block = map_touched(bytes);
        if (block != NULL)
            munmap(block, bytes);
    }
    return enif_make_atom(env, "ok");
}

static ERL_NIF_TERM native_counters(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc, (void)argv;
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (int kind = KINDS - 1; kind >= 0; kind--) {
        ERL_NIF_TERM name = enif_make_atom(env, kind_names[kind]);
        ERL_NIF_TERM bytes = enif_make_uint64(env, atomic_load(&leaked[kind]));
        list = enif_make_list_cell(env, enif_make_tuple2(env, name, bytes), list);
    }
    return list;
}

static int load(ErlNifEnv *env, void **data, ERL_NIF_TERM info) {
    (void)data, (void)info;
    resource_type = enif_open_resource_type(env, NULL, "session", NULL, ERL_NIF_RT_CREATE, NULL);
    return resource_type == NULL;
}

static ErlNifFunc functions[] = {
    {"leak_pool", 2, leak_pool, 0},
    {"leak_library", 2, leak_library, 0},
    {"leak_worker", 2, leak_worker, 0},
    {"leak_resource", 2, leak_resource, 0},
    {"make_resources", 2, make_resources, 0},
    {"open_library", 1, open_library, 0},
    {"put", 3, put, 0},
    {"clear", 2, clear, 0},
    {"resize", 3, resize, 0},
    {"threads", 4, threads, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"lazily_freed", 1, lazily_freed, 0},
    {"map_and_unmap", 2, map_and_unmap, 0},
    {"native_counters", 0, native_counters, 0},
};

ERL_NIF_INIT(scenario, functions, load, NULL, NULL, NULL)
