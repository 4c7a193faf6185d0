/* As allocations.c, for the operators of C++: prints `ready PID`, makes and destroys objects for each line of its stdin,
 * and says what is left of them.
 */
#include <cstdio>
#include <cstdlib>
#include <new>
#include <unistd.h>

extern "C" {
__attribute__((visibility("default"))) void *enif_alloc(size_t size) { return malloc(size); }
__attribute__((visibility("default"))) void *driver_alloc(size_t size) { return malloc(size); }
}

struct Small {
    char bytes[48];
};
struct alignas(64) Aligned {
    char bytes[192];
};

static void *volatile kept[64];

__attribute__((noinline)) static void make_objects()
{
    size_t outstanding = 0, blocks = 0, allocated = 0;
    int count = 0;
    for (int i = 0; i < 10; i++) {
        kept[count++] = new Small;
        kept[count++] = new char[1000];
        kept[count++] = new (std::nothrow) Small;
        kept[count++] = new Aligned;
        outstanding += sizeof(Small) + 1000 + sizeof(Small) + sizeof(Aligned);
        blocks += 4;
        Small *volatile temporary = new Small;
        delete temporary;
        char *volatile bytes = new char[500];
        delete[] bytes;
        allocated += sizeof(Small) + 500;
    }
    allocated += outstanding;
    printf("objects outstanding=%zu blocks=%zu allocated=%zu\n", outstanding, blocks, allocated);
}

int main()
{
    static char in[BUFSIZ], out[BUFSIZ], line[64];
    setvbuf(stdin, in, _IOLBF, sizeof in);
    setvbuf(stdout, out, _IOLBF, sizeof out);
    free(malloc(1));
    printf("ready %d\n", static_cast<int>(getpid()));
    while (fgets(line, sizeof line, stdin)) make_objects();
}
