/* NIF library `stacks_ssl`: takes memory in functions that libcrypto calls back.
 *
 *   leak(once, ...)  leak -> call_once -> CRYPTO_THREAD_run_once -> pthread_once of the C library -> first_time
 *                    -> take_wanted -> keep_block -> malloc
 *   leak(sort, ...)   leak -> sort_stack -> OPENSSL_sk_sort -> qsort of the C library -> compare_entries -> take_wanted
 *                    -> keep_block -> malloc
 *   leak(bio, ...)    leak -> write_bio -> BIO_write -> bio_written -> take_wanted -> keep_block -> malloc
 *
 * `leak(Way, Blocks, Bytes)` keeps `Blocks` blocks of `Bytes` bytes; `lost/0` is the sum of all so far.
 *
 * The libcrypto is the one that Erlang's crypto has loaded, of OpenSSL 3 or 1.1, so nothing of OpenSSL is needed to build.
 */
#include "any_release.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_ullong lost_bytes;
static void *volatile last_block;

/* crypto.h, stack.h and bio.h of OpenSSL 1.1 and later. */
static struct {
    int (*run_once)(pthread_once_t *once, void (*first_time)(void));
    void *(*sk_new)(int (*compare)(const void *, const void *));
    int (*sk_push)(void *stack, const void *entry);
    void (*sk_sort)(void *stack);
    void (*sk_free)(void *stack);
    void *(*bio_meth_new)(int type, const char *name);
    int (*bio_meth_set_write)(void *method, int (*write)(void *, const char *, int));
    void *(*bio_new)(const void *method);
    void (*bio_set_init)(void *bio, int init);
    int (*bio_write)(void *bio, const void *text, int length);
    int (*bio_free)(void *bio);
    void (*bio_meth_free)(void *method);
} crypto;

static const struct {
    const char *name;
    void *place;
} symbols[] = {
    {"CRYPTO_THREAD_run_once", &crypto.run_once},
    {"OPENSSL_sk_new", &crypto.sk_new},
    {"OPENSSL_sk_push", &crypto.sk_push},
    {"OPENSSL_sk_sort", &crypto.sk_sort},
    {"OPENSSL_sk_free", &crypto.sk_free},
    {"BIO_meth_new", &crypto.bio_meth_new},
    {"BIO_meth_set_write", &crypto.bio_meth_set_write},
    {"BIO_new", &crypto.bio_new},
    {"BIO_set_init", &crypto.bio_set_init},
    {"BIO_write", &crypto.bio_write},
    {"BIO_free", &crypto.bio_free},
    {"BIO_meth_free", &crypto.bio_meth_free},
};

static FRAME int keep_block(size_t bytes) {
    void *block = malloc(bytes);
    if (block == NULL)
        return 0;
    memset(block, 0x5a, bytes);
    last_block = block;
    atomic_fetch_add(&lost_bytes, bytes);
    return 1;
}

/* What libcrypto calls back takes a block if it finds one wanted. */
struct entry {
    int key;
    size_t *wanted;
};

static FRAME void take_wanted(size_t *wanted) {
    if (*wanted != 0 && keep_block(*wanted))
        *wanted = 0;
    AFTER_CALL();
}

/* The function that is called once gets no argument. */
static _Thread_local size_t wanted_once;

static FRAME void first_time(void) {
    take_wanted(&wanted_once);
    AFTER_CALL();
}

static FRAME int call_once(size_t bytes) {
    pthread_once_t once = PTHREAD_ONCE_INIT;
    wanted_once = bytes;
    return crypto.run_once(&once, first_time) == 1 && wanted_once == 0;
}

/* The entries of a stack are pointers. */
static FRAME int compare_entries(const void *one, const void *other) {
    const struct entry *const *left = one, *const *right = other;
    take_wanted((*left)->wanted);
    AFTER_CALL();
    return (*left)->key - (*right)->key;
}

static FRAME int sort_stack(size_t bytes) {
    size_t wanted = bytes;
    struct entry entries[2] = {{2, &wanted}, {1, &wanted}};
    void *stack = crypto.sk_new(compare_entries);
    if (stack == NULL)
        return 0;
    crypto.sk_push(stack, &entries[0]);
    crypto.sk_push(stack, &entries[1]);
    crypto.sk_sort(stack);
    crypto.sk_free(stack);
    return wanted == 0;
}

static FRAME int bio_written(void *bio, const char *text, int length) {
    (void)bio;
    size_t wanted;
    memcpy(&wanted, text, sizeof wanted);
    take_wanted(&wanted);
    return wanted == 0 ? length : -1;
}

static FRAME int write_bio(size_t bytes) {
    void *method = crypto.bio_meth_new(127, "stacks");
    if (method == NULL || !crypto.bio_meth_set_write(method, bio_written))
        return 0;
    void *bio = crypto.bio_new(method);
    crypto.bio_set_init(bio, 1);
    int written = bio == NULL ? 0 : crypto.bio_write(bio, &bytes, (int)sizeof bytes);
    crypto.bio_free(bio);
    crypto.bio_meth_free(method);
    return written == (int)sizeof bytes;
}

static const struct {
    const char *name;
    int (*take)(size_t);
} ways[] = {{"once", call_once}, {"sort", sort_stack}, {"bio", write_bio}};

static FRAME ERL_NIF_TERM leak(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    char way[16];
    unsigned long blocks, bytes;
    if (!enif_get_atom(env, argv[0], way, sizeof way, ERL_NIF_LATIN1) || !enif_get_ulong(env, argv[1], &blocks) ||
        !enif_get_ulong(env, argv[2], &bytes) || bytes == 0)
        return enif_make_badarg(env);
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        if (strcmp(ways[i].name, way) != 0)
            continue;
        int taken = 1;
        while (blocks-- > 0)
            taken &= ways[i].take(bytes);
        return enif_make_atom(env, taken ? "ok" : "false");
    }
    return enif_make_badarg(env);
}

static ERL_NIF_TERM lost(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc, (void)argv;
    return enif_make_uint64(env, atomic_load(&lost_bytes));
}

static int load(ErlNifEnv *env, void **data, ERL_NIF_TERM info) {
    (void)env, (void)data, (void)info;
    void *library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL)
        library = dlopen("libcrypto.so.1.1", RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL)
        return 1;
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *found = dlsym(library, symbols[i].name);
        if (found == NULL)
            return 2;
        memcpy(symbols[i].place, &found, sizeof found);
    }
    return 0;
}

static ErlNifFunc functions[] = {
    {"leak", 3, leak, 0},
    {"lost", 0, lost, 0},
};

ERL_NIF_INIT(stacks_ssl, functions, load, NULL, NULL, NULL)
