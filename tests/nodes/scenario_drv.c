/* Linked-in driver `scenario_drv`: keeps the memory that it is sent orders for. Its ports have no state of their own.
 *
 *   port_command(Port, <<0, Blocks:32, Bytes:32>>)   output -> keep_malloc -> malloc
 *   port_command(Port, <<1, Blocks:32, Bytes:32>>)   output -> keep_driver_alloc -> driver_alloc
 */
#include <erl_driver.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FRAME __attribute__((noinline, noclone))

static void *volatile last_block;
/* There is something to do after each call, so that the caller's frame stays. */
static volatile unsigned passed;

static FRAME void touch(void *block, size_t bytes) {
    if (block == NULL)
        abort();
    memset(block, 0x5a, bytes);
    last_block = block;
}

static FRAME void keep_malloc(size_t bytes) {
    touch(malloc(bytes), bytes);
    passed++;
}

static FRAME void keep_driver_alloc(size_t bytes) {
    touch(driver_alloc(bytes), bytes);
    passed++;
}

static uint32_t word(const char *text) {
    const unsigned char *bytes = (const unsigned char *)text;
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static ErlDrvData start(ErlDrvPort port, char *command) {
    (void)command;
    return (ErlDrvData)port;
}

static FRAME void output(ErlDrvData data, char *text, ErlDrvSizeT length) {
    (void)data;
    if (length != 9)
        return;
    uint32_t bytes = word(text + 5);
    for (uint32_t left = word(text + 1); left > 0; left--) {
        if (text[0] == 0)
            keep_malloc(bytes);
        else
            keep_driver_alloc(bytes);
    }
    passed++;
}

static ErlDrvEntry entry = {
    .start = start,
    .output = output,
    .driver_name = "scenario_drv",
    .extended_marker = ERL_DRV_EXTENDED_MARKER,
    .major_version = ERL_DRV_EXTENDED_MAJOR_VERSION,
    .minor_version = ERL_DRV_EXTENDED_MINOR_VERSION,
};

DRIVER_INIT(scenario_drv) {
    return &entry;
}
