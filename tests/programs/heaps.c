/* A process whose C library says what its heap holds: the truth for the tests of the walk through it.
 *
 * Prints `ready PID`, does what each line of stdin says, and answers with one line. `figures` answers with what
 * `mallinfo2` and `malloc_info` say (mallinfo(3), malloc_info(3)), in bytes:
 *
 *   figures arena=BYTES uordblks=BYTES fordblks=BYTES fsmblks=BYTES hblks=CHUNKS hblkhd=BYTES keepcost=BYTES
 *           systems=BYTES,BYTES,...
 *
 * It ends at the end of stdin.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Not in glibc before 2.33. */
extern struct mallinfo2 mallinfo2(void) __attribute__((weak));

/* What the compiler cannot see through. */
static void *volatile kept;

static void *block_of(size_t size)
{
    char *block = malloc(size);
    if (!block) abort();
    memset(block, 0xa5, size);
    kept = block;
    return block;
}

static unsigned random_of(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Blocks of all sizes; of each three, one is freed again. */
static void fragment(unsigned seed, int count)
{
    void **blocks = block_of(count * sizeof *blocks);
    for (int i = 0; i < count; i++) blocks[i] = block_of(1 + random_of(&seed) % (i % 16 ? 700 : 40000));
    for (int i = 0; i < count; i += 3) free(blocks[i]);
}

/* Blocks of one size, freed in an order that has nothing to do with their addresses. */
static void free_shuffled(size_t size, int count)
{
    unsigned seed = 7;
    void **blocks = mmap(NULL, count * sizeof *blocks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (blocks == MAP_FAILED) abort();
    for (int i = 0; i < count; i++) blocks[i] = block_of(size);
    /* So that the last of them does not border on the top, into which it would be merged. */
    block_of(24);
    for (int i = count - 1; i > 0; i--) {
        int other = random_of(&seed) % (i + 1);
        void *block = blocks[i];
        blocks[i] = blocks[other];
        blocks[other] = block;
    }
    for (int i = 0; i < count; i++) free(blocks[i]);
    if (munmap(blocks, count * sizeof *blocks)) abort();
}

static void small_frees(void)
{
    void *blocks[8][20];
    for (int size = 0; size < 8; size++)
        for (int i = 0; i < 20; i++) blocks[size][i] = block_of(16 * size + 20);
    for (int size = 0; size < 8; size++)
        for (int i = 0; i < 20; i++) free(blocks[size][i]);
}

static void mapped_chunks(void)
{
    for (int i = 0; i < 30; i++) block_of((4 << 20) + i * 100000);
    /* The second of each pair leaves a hole, which the next mapping may or may not fill. */
    for (int i = 0; i < 10; i++) {
        void *gone = block_of(40 << 20);
        block_of(33 << 20);
        free(gone);
    }
    void *grown = realloc(block_of(35 << 20), 70 << 20);
    void *aligned[4] = {memalign(64, 36 << 20), memalign(4096, 36 << 20), memalign(1 << 18, 37 << 20), valloc(38 << 20)};
    if (!grown || !aligned[0] || !aligned[1] || !aligned[2] || !aligned[3]) abort();
    kept = grown;
    for (int i = 0; i < 4; i++) {
        memset(aligned[i], 0x5a, 3 << 20);
        kept = aligned[i];
    }
}

static sem_t done;

static void *worker(void *argument)
{
    fragment((unsigned)(uintptr_t)argument + 1, 20000);
    small_frees();
    /* Freed at the top, more than is kept there. */
    void *blocks[200];
    for (int i = 0; i < 200; i++) blocks[i] = block_of(60000);
    for (int i = 0; i < 200; i++) free(blocks[i]);
    sem_post(&done);
    for (;;) pause();
    return NULL;
}

static void start_threads(int count)
{
    for (uintptr_t i = 0; i < (uintptr_t)count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)i)) abort();
    }
    for (int i = 0; i < count; i++) sem_wait(&done);
}

static void *churn(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    void *blocks[512] = {NULL};
    for (;;) {
        unsigned i = random_of(&seed) % 512;
        free(blocks[i]);
        blocks[i] = block_of(1 + random_of(&seed) % 3000);
    }
    return NULL;
}

static void start_churn(int count)
{
    for (uintptr_t i = 1; i <= (uintptr_t)count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, churn, (void *)i)) abort();
    }
}

static char xml[1 << 16], figures[1 << 12];
static FILE *xml_file;

/* The number behind the first `before` of each arena. */
static void list(const char *name, const char *before)
{
    char *end = figures + strlen(figures);
    end += sprintf(end, " %s=", name);
    const char *comma = "";
    for (char *heap = strstr(xml, "<heap"); heap; heap = strstr(heap + 1, "<heap")) {
        char *found = strstr(heap, before);
        if (!found) abort();
        end += sprintf(end, "%s%lu", comma, strtoul(found + strlen(before), NULL, 10));
        comma = ",";
    }
}

static void say_figures(void)
{
    /* Nothing that is called between these two allocates. */
    rewind(xml_file);
    if (malloc_info(0, xml_file) || fflush(xml_file)) abort();
    char *end = figures;
    if (mallinfo2) {
        struct mallinfo2 info = mallinfo2();
        end += sprintf(end, "figures arena=%zu uordblks=%zu fordblks=%zu fsmblks=%zu hblks=%zu hblkhd=%zu keepcost=%zu",
                       info.arena, info.uordblks, info.fordblks, info.fsmblks, info.hblks, info.hblkhd, info.keepcost);
    } else {
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
        struct mallinfo info = mallinfo();
        sprintf(end, "figures arena=%u uordblks=%u fordblks=%u fsmblks=%u hblks=%u hblkhd=%u keepcost=%u", info.arena,
                info.uordblks, info.fordblks, info.fsmblks, info.hblks, info.hblkhd, info.keepcost);
    }
    list("systems", "<system type=\"current\" size=\"");
    puts(figures);
}

int main(void)
{
    char line[256];
    static char in[BUFSIZ], out[BUFSIZ], xml_buffer[BUFSIZ];
    setvbuf(stdin, in, _IOLBF, sizeof in);
    setvbuf(stdout, out, _IOLBF, sizeof out);
    xml_file = fmemopen(xml, sizeof xml, "w");
    if (!xml_file || setvbuf(xml_file, xml_buffer, _IOFBF, sizeof xml_buffer) || sem_init(&done, 0, 0)) abort();
    printf("ready %d\n", (int)getpid());
    while (fgets(line, sizeof line, stdin)) {
        int count = 0;
        if (!strcmp(line, "figures\n")) {
            say_figures();
            continue;
        }
        if (sscanf(line, "threads %d", &count) == 1) start_threads(count);
        else if (sscanf(line, "churn %d", &count) == 1) start_churn(count);
        else if (sscanf(line, "shuffled %d", &count) == 1) free_shuffled(72, count);
        else if (!strcmp(line, "fragment\n")) fragment(99, 60000);
        else if (!strcmp(line, "small\n")) small_frees();
        else if (!strcmp(line, "mapped\n")) mapped_chunks();
        else if (!strcmp(line, "sbrk\n")) {
            if (sbrk(70000) == (void *)-1) abort();
            fragment(3, 3000);
        } else {
            puts("error");
            continue;
        }
        puts("done");
    }
    return 0;
}
