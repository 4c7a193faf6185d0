/* Linked-in driver `stacks_drv`: takes memory in each of its callbacks. An order is eight bytes, the number of blocks
 * and the bytes of each, 32 bits big endian.
 *
 *   port_command(Port, ORDER)           output       -> store -> keep_block -> malloc
 *   erlang:port_call(Port, 0, ORDER)    call         -> store -> keep_block -> malloc
 *   port_control(Port, OPERATION, ORDER)
 *     0 LOST          the number of bytes kept so far, 64 bits big endian
 *     1 CONTROL       control      -> store -> keep_block -> malloc
 *     2 TIMEOUT       timeout      -> store -> ..., 1 ms later
 *     3 ASYNC         async_work   -> store -> ..., in an async thread
 *     4 READY_ASYNC   ready_async  -> store -> ..., when an async thread has done nothing
 *     5 ALLOC         control      -> take_alloc -> driver_alloc
 *     6 REALLOC       control      -> take_realloc -> driver_realloc
 *     7 ALLOC_BINARY  control      -> take_alloc_binary -> driver_alloc_binary
 *
 * What is not done at once is reported to the port's owner as the data `done`.
 */
#include <erl_driver.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FRAME __attribute__((noinline, noclone))

enum { LOST, CONTROL, TIMEOUT, ASYNC, READY_ASYNC, ALLOC, REALLOC, ALLOC_BINARY };
enum { ORDER_BYTES = 8 };

struct order {
    unsigned operation;
    uint32_t blocks, bytes;
};

struct state {
    ErlDrvPort port;
    struct order later;
};

static atomic_ullong lost_bytes;
static void *volatile last_block;
/* There is something to do after each call, so that the caller's frame stays. */
static volatile unsigned passed;

static FRAME void keep_block(size_t bytes) {
    void *block = malloc(bytes);
    if (block == NULL)
        abort();
    memset(block, 0x5a, bytes);
    last_block = block;
    atomic_fetch_add(&lost_bytes, bytes);
}

static FRAME void take_alloc(size_t bytes) {
    last_block = driver_alloc(bytes);
    passed++;
}

static FRAME void take_realloc(size_t bytes) {
    last_block = driver_realloc(driver_alloc(8), bytes);
    passed++;
}

static FRAME void take_alloc_binary(size_t bytes) {
    last_block = driver_alloc_binary((ErlDrvSizeT)bytes);
    passed++;
}

static FRAME void store(const struct order *order) {
    for (uint32_t i = 0; i < order->blocks; i++)
        keep_block(order->bytes);
    passed++;
}

static uint32_t word(const char *text) {
    const unsigned char *bytes = (const unsigned char *)text;
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static struct order read_order(unsigned operation, const char *text) {
    struct order order = {operation, word(text), word(text + 4)};
    return order;
}

static ErlDrvData start(ErlDrvPort port, char *command) {
    (void)command;
    struct state *state = driver_alloc(sizeof *state);
    if (state == NULL)
        return ERL_DRV_ERROR_GENERAL;
    memset(state, 0, sizeof *state);
    state->port = port;
    return (ErlDrvData)state;
}

static void stop(ErlDrvData data) {
    driver_free(data);
}

static FRAME void output(ErlDrvData data, char *text, ErlDrvSizeT length) {
    (void)data;
    if (length == ORDER_BYTES) {
        struct order order = read_order(0, text);
        store(&order);
    }
    passed++;
}

static FRAME void timeout(ErlDrvData data) {
    struct state *state = (struct state *)data;
    store(&state->later);
    driver_output(state->port, "done", 4);
}

static FRAME void async_work(void *data) {
    struct order *order = data;
    if (order->operation == ASYNC)
        store(order);
    passed++;
}

static FRAME void ready_async(ErlDrvData data, ErlDrvThreadData job) {
    struct state *state = (struct state *)data;
    struct order *order = (struct order *)job;
    if (order->operation == READY_ASYNC)
        store(order);
    driver_free(order);
    driver_output(state->port, "done", 4);
}

static void begin_async(struct state *state) {
    struct order *job = driver_alloc(sizeof *job);
    if (job == NULL)
        abort();
    *job = state->later;
    driver_async(state->port, NULL, async_work, job, driver_free);
}

static FRAME ErlDrvSSizeT control(ErlDrvData data, unsigned operation, char *text, ErlDrvSizeT length, char **answer,
                                  ErlDrvSizeT room) {
    struct state *state = (struct state *)data;
    if (operation == LOST && room >= 8) {
        unsigned long long lost = atomic_load(&lost_bytes);
        for (int i = 0; i < 8; i++)
            (*answer)[i] = (char)(lost >> (56 - 8 * i));
        return 8;
    }
    if (length != ORDER_BYTES)
        return -1;
    state->later = read_order(operation, text);
    switch (operation) {
    case CONTROL: store(&state->later); break;
    case TIMEOUT: driver_set_timer(state->port, 1); break;
    case ASYNC:
    case READY_ASYNC: begin_async(state); break;
    case ALLOC:
    case REALLOC:
    case ALLOC_BINARY:
        for (uint32_t i = 0; i < state->later.blocks; i++) {
            if (operation == ALLOC) take_alloc(state->later.bytes);
            if (operation == REALLOC) take_realloc(state->later.bytes);
            if (operation == ALLOC_BINARY) take_alloc_binary(state->later.bytes);
        }
        break;
    default: return -1;
    }
    return 0;
}

/* Both terms are in the external format: the order as a binary, which begins after six bytes, and the answer 1. */
static FRAME ErlDrvSSizeT call(ErlDrvData data, unsigned operation, char *text, ErlDrvSizeT length, char **answer,
                               ErlDrvSizeT room, unsigned *flags) {
    (void)data, (void)flags;
    if (length != 6 + ORDER_BYTES || room < 3)
        return -1;
    struct order order = read_order(operation, text + 6);
    store(&order);
    memcpy(*answer, "\203a\1", 3);
    return 3;
}

static ErlDrvEntry entry = {
    .start = start,
    .stop = stop,
    .output = output,
    .driver_name = "stacks_drv",
    .control = control,
    .timeout = timeout,
    .ready_async = ready_async,
    .call = call,
    .extended_marker = ERL_DRV_EXTENDED_MARKER,
    .major_version = ERL_DRV_EXTENDED_MAJOR_VERSION,
    .minor_version = ERL_DRV_EXTENDED_MINOR_VERSION,
};

DRIVER_INIT(stacks_drv) {
    return &entry;
}
