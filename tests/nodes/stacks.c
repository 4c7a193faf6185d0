/* NIF library `stacks`: takes memory at the end of stacks that are known frame by frame.
 *
 *   leak(Way, Blocks, Bytes)            on a normal scheduler; `leak_dirty_cpu` and `leak_dirty_io` are the same
 *     chain    leak -> chain_one -> chain_two -> chain_three -> chain_four -> keep_block -> malloc
 *     freed    leak -> churn_one -> churn_two -> malloc, and free of the same block
 *     recurse  leak -> begin_recursion -> recurse, 25 times -> keep_block -> malloc
 *     sort     leak -> sort_pair -> qsort of the C library -> compare_pair -> keep_block -> malloc
 *     large    leak -> begin_large -> large_frame, 3 times 24 KiB of stack -> keep_block -> malloc
 *   leak_thread(Blocks, Bytes)          in a thread of enif_thread_create, named "stacks_thread"
 *     leak_thread -> start_thread -> enif_thread_create
 *     thread_main -> thread_block -> chain_four -> keep_block -> malloc
 *   leak_pthread(Blocks, Bytes)         in a thread of pthread_create
 *     leak_pthread -> start_pthread -> pthread_create
 *     pthread_main -> thread_block -> chain_four -> keep_block -> malloc
 *   take(Way, Blocks, Bytes)            by the VM's own interface: a list of what the caller has to hold
 *     alloc | realloc | resource | alloc_binary    take -> take_WAY -> enif_...
 *     new_binary                                   take -> take_new_binary -> enif_make_new_binary
 *
 * Each of them does all of its `Blocks` blocks of `Bytes` bytes before it returns. `lost/0` is the number of bytes that
 * `leak...` has kept so far, `held/0` that of `take`.
 */
#define _GNU_SOURCE
#include "any_release.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { RECURSIONS = 24, LARGE_FRAMES = 3, LARGE_FRAME_BYTES = 24 * 1024 };

static atomic_ullong lost_bytes, held_bytes;
static void *volatile last_block;
static ErlNifResourceType *resource_type;

static FRAME int keep_block(size_t bytes) {
    void *block = malloc(bytes);
    if (block == NULL)
        return 0;
    memset(block, 0x5a, bytes);
    last_block = block;
    atomic_fetch_add(&lost_bytes, bytes);
    return 1;
}

#define LINK(NAME, NEXT)                      \
    static FRAME int NAME(size_t bytes) {     \
        int taken = NEXT(bytes);              \
        AFTER_CALL();                         \
        return taken;                         \
    }

LINK(chain_four, keep_block)
LINK(chain_three, chain_four)
LINK(chain_two, chain_three)
LINK(chain_one, chain_two)

static FRAME int churn_two(size_t bytes) {
    void *block = malloc(bytes);
    if (block == NULL)
        return 0;
    memset(block, 0x5a, bytes);
    last_block = block;
    free(block);
    return 1;
}

LINK(churn_one, churn_two)

static FRAME int recurse(size_t bytes, int depth) {
    int taken = depth == 0 ? keep_block(bytes) : recurse(bytes, depth - 1);
    AFTER_CALL();
    return taken;
}

static FRAME int begin_recursion(size_t bytes) {
    int taken = recurse(bytes, RECURSIONS);
    AFTER_CALL();
    return taken;
}

/* The C library compares a pair once or more often; the block is taken the first time. */
struct entry {
    int key;
    size_t *wanted;
};

static FRAME int compare_pair(const void *left, const void *right) {
    const struct entry *one = left, *other = right;
    if (*one->wanted != 0 && keep_block(*one->wanted))
        *one->wanted = 0;
    AFTER_CALL();
    return one->key - other->key;
}

static FRAME int sort_pair(size_t bytes) {
    size_t wanted = bytes;
    struct entry pair[2] = {{2, &wanted}, {1, &wanted}};
    qsort(pair, 2, sizeof pair[0], compare_pair);
    return wanted == 0 && pair[0].key == 1;
}

/* Like the VM's own frame above each NIF, these have pages that nobody touches. */
static FRAME int large_frame(size_t bytes, int depth) {
    volatile char space[LARGE_FRAME_BYTES];
    space[0] = (char)depth;
    int taken = depth == 1 ? keep_block(bytes) : large_frame(bytes, depth - 1);
    AFTER_CALL();
    return taken && space[0] == (char)depth;
}

static FRAME int begin_large(size_t bytes) {
    int taken = large_frame(bytes, LARGE_FRAMES);
    AFTER_CALL();
    return taken;
}

static const struct {
    const char *name;
    int (*take)(size_t);
} ways[] = {
    {"chain", chain_one}, {"freed", churn_one},     {"recurse", begin_recursion},
    {"sort", sort_pair},  {"large", begin_large},
};

static int order(ErlNifEnv *env, const ERL_NIF_TERM argv[], unsigned long *blocks, unsigned long *bytes) {
    return enif_get_ulong(env, argv[0], blocks) && enif_get_ulong(env, argv[1], bytes) && *bytes > 0;
}

static ERL_NIF_TERM outcome(ErlNifEnv *env, int taken) {
    return taken ? enif_make_atom(env, "ok") : enif_raise_exception(env, enif_make_atom(env, "enomem"));
}

static FRAME ERL_NIF_TERM leak(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    char way[16];
    unsigned long blocks, bytes;
    if (!enif_get_atom(env, argv[0], way, sizeof way, ERL_NIF_LATIN1) || !order(env, argv + 1, &blocks, &bytes))
        return enif_make_badarg(env);
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        if (strcmp(ways[i].name, way) != 0)
            continue;
        int taken = 1;
        while (blocks-- > 0)
            taken &= ways[i].take(bytes);
        return outcome(env, taken);
    }
    return enif_make_badarg(env);
}

struct thread_order {
    unsigned long blocks, bytes;
    int taken;
};

/* With the body of another function, it would be that function. */
static FRAME int thread_block(size_t bytes) {
    AFTER_CALL();
    int taken = chain_four(bytes);
    AFTER_CALL();
    return taken;
}

static FRAME void *thread_main(void *argument) {
    struct thread_order *order = argument;
    order->taken = 1;
    for (unsigned long i = 0; i < order->blocks; i++)
        order->taken &= thread_block(order->bytes);
    return NULL;
}

static FRAME void *pthread_main(void *argument) {
    struct thread_order *order = argument;
    order->taken = 1;
    for (unsigned long i = 0; i < order->blocks; i++)
        order->taken &= thread_block(order->bytes);
    AFTER_CALL();
    return NULL;
}

static FRAME int start_thread(struct thread_order *order) {
    char name[] = "stacks_thread";
    ErlNifTid thread;
    int failed = enif_thread_create(name, &thread, thread_main, order, NULL);
    return !failed && !enif_thread_join(thread, NULL) && order->taken;
}

static FRAME int start_pthread(struct thread_order *order) {
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, pthread_main, order);
    return !failed && !pthread_join(thread, NULL) && order->taken;
}

static FRAME ERL_NIF_TERM leak_thread(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    struct thread_order asked = {0, 0, 0};
    if (!order(env, argv, &asked.blocks, &asked.bytes))
        return enif_make_badarg(env);
    return outcome(env, start_thread(&asked));
}

static FRAME ERL_NIF_TERM leak_pthread(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    struct thread_order asked = {0, 0, 0};
    if (!order(env, argv, &asked.blocks, &asked.bytes))
        return enif_make_badarg(env);
    return outcome(env, start_pthread(&asked));
}

/* What the VM's interface gives, as a term that the caller holds; `true` where there is none. */
static FRAME ERL_NIF_TERM take_alloc(ErlNifEnv *env, size_t bytes) {
    last_block = enif_alloc(bytes);
    return enif_make_atom(env, last_block == NULL ? "false" : "true");
}

/* Only the second block stays. */
static FRAME ERL_NIF_TERM take_realloc(ErlNifEnv *env, size_t bytes) {
    void *block = enif_alloc(8);
    last_block = block == NULL ? NULL : enif_realloc(block, bytes);
    return enif_make_atom(env, last_block == NULL ? "false" : "true");
}

static FRAME ERL_NIF_TERM take_resource(ErlNifEnv *env, size_t bytes) {
    last_block = enif_alloc_resource(resource_type, bytes);
    return enif_make_atom(env, last_block == NULL ? "false" : "true");
}

static FRAME ERL_NIF_TERM take_alloc_binary(ErlNifEnv *env, size_t bytes) {
    ErlNifBinary binary;
    int taken = enif_alloc_binary(bytes, &binary);
    return enif_make_atom(env, taken ? "true" : "false");
}

static FRAME ERL_NIF_TERM take_new_binary(ErlNifEnv *env, size_t bytes) {
    ERL_NIF_TERM binary;
    unsigned char *content = enif_make_new_binary(env, bytes, &binary);
    return content == NULL ? enif_make_atom(env, "false") : binary;
}

static const struct {
    const char *name;
    ERL_NIF_TERM (*take)(ErlNifEnv *, size_t);
} vm_ways[] = {
    {"alloc", take_alloc},
    {"realloc", take_realloc},
    {"resource", take_resource},
    {"alloc_binary", take_alloc_binary},
    {"new_binary", take_new_binary},
};

static FRAME ERL_NIF_TERM take(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    char way[16];
    unsigned long blocks, bytes;
    if (!enif_get_atom(env, argv[0], way, sizeof way, ERL_NIF_LATIN1) || !order(env, argv + 1, &blocks, &bytes))
        return enif_make_badarg(env);
    for (size_t i = 0; i < sizeof vm_ways / sizeof vm_ways[0]; i++) {
        if (strcmp(vm_ways[i].name, way) != 0)
            continue;
        ERL_NIF_TERM held = enif_make_list(env, 0);
        while (blocks-- > 0) {
            held = enif_make_list_cell(env, vm_ways[i].take(env, bytes), held);
            atomic_fetch_add(&held_bytes, bytes);
        }
        return held;
    }
    return enif_make_badarg(env);
}

static ERL_NIF_TERM lost(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc, (void)argv;
    return enif_make_uint64(env, atomic_load(&lost_bytes));
}

static ERL_NIF_TERM held(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc, (void)argv;
    return enif_make_uint64(env, atomic_load(&held_bytes));
}

static int load(ErlNifEnv *env, void **data, ERL_NIF_TERM info) {
    (void)data, (void)info;
    resource_type = enif_open_resource_type(env, NULL, "stacks_resource", NULL, ERL_NIF_RT_CREATE, NULL);
    return resource_type == NULL;
}

static ErlNifFunc functions[] = {
    {"leak", 3, leak, 0},
    {"leak_dirty_cpu", 3, leak, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"leak_dirty_io", 3, leak, ERL_NIF_DIRTY_JOB_IO_BOUND},
    {"leak_thread", 2, leak_thread, 0},
    {"leak_pthread", 2, leak_pthread, 0},
    {"take", 3, take, 0},
    {"lost", 0, lost, 0},
    {"held", 0, held, 0},
};

ERL_NIF_INIT(stacks, functions, load, NULL, NULL, NULL)
