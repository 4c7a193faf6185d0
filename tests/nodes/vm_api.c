/* NIF library `vm_api`: asks the VM for memory in each way that native code has, and keeps or gives back
 * known numbers of bytes.
 *
 * `take(Way, Bytes, Blocks)` keeps blocks for good, `churn(Way, Bytes, Blocks)` gives each back at once, and
 * `hand_out(Way, Bytes, Blocks)` returns a list of terms that hold the blocks until the garbage collector takes them.
 * Each way ends in a function of its own that is not inlined: take_enif_alloc, take_driver_alloc, ... All return or
 * count the bytes that were asked for.
 */
#include <erl_driver.h>
#include <erl_nif.h>
#include <string.h>
#include <time.h>

#define FRAME __attribute__((noinline, noclone))

static ErlNifResourceType *resource_type;
static ErlNifResourceType *watched_type;
static void *volatile last_block;

static FRAME void *seen(void *block, size_t bytes) {
    if (block != NULL)
        memset(block, 0x5a, bytes);
    last_block = block;
    return block;
}

static FRAME void *take_enif_alloc(size_t bytes) {
    return seen(enif_alloc(bytes), bytes);
}

/* Grows a block from half its size; only the last size is kept. */
static FRAME void *take_enif_realloc(size_t bytes) {
    void *half = enif_realloc(NULL, bytes / 2);
    return seen(enif_realloc(half, bytes), bytes);
}

static FRAME void *take_enif_alloc_resource(size_t bytes) {
    return seen(enif_alloc_resource(resource_type, bytes), bytes);
}

/* One with a callback for monitors, so that the VM puts its own data behind the user's. */
static FRAME void *take_watched_resource(size_t bytes) {
    return seen(enif_alloc_resource(watched_type, bytes), bytes);
}

static FRAME int take_enif_alloc_binary(size_t bytes, ErlNifBinary *binary) {
    return enif_alloc_binary(bytes, binary) && seen(binary->data, bytes) != NULL;
}

static FRAME int take_enif_realloc_binary(size_t bytes, ErlNifBinary *binary) {
    return enif_alloc_binary(bytes / 2, binary) && enif_realloc_binary(binary, bytes)
        && seen(binary->data, bytes) != NULL;
}

static FRAME void *take_enif_make_new_binary(ErlNifEnv *env, size_t bytes, ERL_NIF_TERM *term) {
    return seen(enif_make_new_binary(env, bytes, term), bytes);
}

static FRAME void *take_driver_alloc(size_t bytes) {
    return seen(driver_alloc(bytes), bytes);
}

static FRAME void *take_driver_realloc(size_t bytes) {
    void *half = driver_realloc(NULL, bytes / 2);
    return seen(driver_realloc(half, bytes), bytes);
}

static FRAME ErlDrvBinary *take_driver_alloc_binary(size_t bytes) {
    ErlDrvBinary *binary = driver_alloc_binary(bytes);
    if (binary != NULL)
        seen(binary->orig_bytes, bytes);
    return binary;
}

static FRAME ErlDrvBinary *take_driver_realloc_binary(size_t bytes) {
    ErlDrvBinary *binary = driver_realloc_binary(driver_alloc_binary(bytes / 2), bytes);
    if (binary != NULL)
        seen(binary->orig_bytes, bytes);
    return binary;
}

enum way {
    ENIF_ALLOC, ENIF_REALLOC, RESOURCE, WATCHED, ALLOC_BINARY, REALLOC_BINARY, NEW_BINARY, DRIVER_ALLOC,
    DRIVER_REALLOC, DRIVER_BINARY, DRIVER_REALLOC_BINARY, WAYS
};

/* Takes one block; gives it back where `keep` is 0. The term holds it where it can be held by one. */
static FRAME int one(ErlNifEnv *env, enum way way, size_t bytes, int keep, ERL_NIF_TERM *term) {
    void *block = NULL;
    ErlNifBinary binary;
    ErlDrvBinary *driver_binary;
    switch (way) {
    case ENIF_ALLOC:
    case ENIF_REALLOC:
        block = way == ENIF_ALLOC ? take_enif_alloc(bytes) : take_enif_realloc(bytes);
        if (!keep)
            enif_free(block);
        return block != NULL;
    case RESOURCE:
    case WATCHED:
        block = way == RESOURCE ? take_enif_alloc_resource(bytes) : take_watched_resource(bytes);
        if (term != NULL)
            *term = enif_make_resource(env, block);
        if (!keep || term != NULL)
            enif_release_resource(block);
        return block != NULL;
    case ALLOC_BINARY:
    case REALLOC_BINARY:
        if (!(way == ALLOC_BINARY ? take_enif_alloc_binary(bytes, &binary) : take_enif_realloc_binary(bytes, &binary)))
            return 0;
        if (term != NULL)
            *term = enif_make_binary(env, &binary);
        else if (!keep)
            enif_release_binary(&binary);
        return 1;
    case NEW_BINARY:
        return term != NULL && take_enif_make_new_binary(env, bytes, term) != NULL;
    case DRIVER_ALLOC:
    case DRIVER_REALLOC:
        block = way == DRIVER_ALLOC ? take_driver_alloc(bytes) : take_driver_realloc(bytes);
        if (!keep)
            driver_free(block);
        return block != NULL;
    case DRIVER_BINARY:
    case DRIVER_REALLOC_BINARY:
        driver_binary = way == DRIVER_BINARY ? take_driver_alloc_binary(bytes) : take_driver_realloc_binary(bytes);
        if (driver_binary != NULL && !keep)
            driver_free_binary(driver_binary);
        return driver_binary != NULL;
    default:
        return 0;
    }
}

static int order(ErlNifEnv *env, const ERL_NIF_TERM argv[], unsigned *way, unsigned long *bytes, unsigned long *blocks) {
    return enif_get_uint(env, argv[0], way) && *way < WAYS && enif_get_ulong(env, argv[1], bytes)
        && enif_get_ulong(env, argv[2], blocks);
}

static ERL_NIF_TERM blocks_of(ErlNifEnv *env, const ERL_NIF_TERM argv[], int keep) {
    unsigned way;
    unsigned long bytes, blocks;
    if (!order(env, argv, &way, &bytes, &blocks))
        return enif_make_badarg(env);
    for (unsigned long i = 0; i < blocks; i++)
        if (!one(env, way, bytes, keep, NULL))
            return enif_make_badarg(env);
    return enif_make_uint64(env, bytes * blocks);
}

static ERL_NIF_TERM take(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return blocks_of(env, argv, 1);
}

static ERL_NIF_TERM churn(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    return blocks_of(env, argv, 0);
}

static ERL_NIF_TERM hand_out(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    unsigned way;
    unsigned long bytes, blocks;
    if (!order(env, argv, &way, &bytes, &blocks))
        return enif_make_badarg(env);
    ERL_NIF_TERM list = enif_make_list(env, 0);
    for (unsigned long i = 0; i < blocks; i++) {
        ERL_NIF_TERM term;
        if (!one(env, way, bytes, 1, &term))
            return enif_make_badarg(env);
        list = enif_make_list_cell(env, term, list);
    }
    return list;
}

static ErlNifSInt64 thread_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (ErlNifSInt64)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Makes `count` pairs of enif_alloc and enif_free; returns the nanoseconds of CPU time that the thread took for them. */
static ERL_NIF_TERM pairs(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    unsigned long count;
    if (!enif_get_ulong(env, argv[0], &count))
        return enif_make_badarg(env);
    ErlNifSInt64 begin = thread_ns();
    for (unsigned long i = 0; i < count; i++) {
        void *block = enif_alloc(64 + i % 512);
        last_block = block;
        enif_free(block);
    }
    return enif_make_int64(env, thread_ns() - begin);
}

static void down(ErlNifEnv *env, void *object, ErlNifPid *pid, ErlNifMonitor *monitor) {
    (void)env, (void)object, (void)pid, (void)monitor;
}

static int load(ErlNifEnv *env, void **data, ERL_NIF_TERM info) {
    (void)data, (void)info;
    ErlNifResourceTypeInit watched = {.down = down};
    resource_type = enif_open_resource_type(env, NULL, "plain", NULL, ERL_NIF_RT_CREATE, NULL);
    watched_type = enif_open_resource_type_x(env, "watched", &watched, ERL_NIF_RT_CREATE, NULL);
    return resource_type == NULL || watched_type == NULL;
}

static ErlNifFunc functions[] = {
    {"take_blocks", 3, take, 0},
    {"churn_blocks", 3, churn, 0},
    {"hand_out_blocks", 3, hand_out, 0},
    {"pairs", 1, pairs, 0},
};

ERL_NIF_INIT(vm_api, functions, load, NULL, NULL, NULL)
