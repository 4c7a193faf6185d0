/* A library without any tie to Erlang, which the NIF library `scenario` opens: library_take -> malloc. */
#include <stdlib.h>
#include <string.h>

__attribute__((visibility("default"), noinline)) void *library_take(size_t bytes) {
    void *block = malloc(bytes);
    if (block != NULL)
        memset(block, 0x5a, bytes);
    return block;
}
