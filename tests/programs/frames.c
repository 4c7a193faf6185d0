/* A process that says where it was called from, in the middle of a call of qsort or in a signal handler.
 *
 * Prints `registers PC SP FP LR PROCESS`, then `caller ADDRESS` for each return address that the C library finds, then
 * `end`. It ends at the end of stdin.
 */
#define _GNU_SOURCE
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

static int by_signal;

static void show(void)
{
    ucontext_t here;
    void *callers[64];
    char end;
    if (getcontext(&here)) abort();
    int count = backtrace(callers, 64);
#if defined __x86_64__
    greg_t *registers = here.uc_mcontext.gregs;
    printf("registers %llu %llu %llu 0 %llu\n", registers[REG_RIP], registers[REG_RSP], registers[REG_RBP],
           registers[REG_R13]);
#elif defined __aarch64__
    mcontext_t *registers = &here.uc_mcontext;
    printf("registers %llu %llu %llu %llu %llu\n", registers->pc, registers->sp, registers->regs[29],
           registers->regs[30], registers->regs[21]);
#endif
    for (int i = 1; i < count; i++) printf("caller %lu\n", (unsigned long)callers[i]);
    puts("end");
    fflush(stdout);
    while (read(0, &end, 1) > 0) continue;
    exit(0);
}

static void handle(int signal)
{
    (void)signal;
    show();
}

static int compare(const void *a, const void *b)
{
    if (by_signal) raise(SIGUSR1);
    else show();
    return *(const int *)a - *(const int *)b;
}

int main(int count, char **arguments)
{
    int numbers[] = {3, 1, 2};
    by_signal = count > 1 && !strcmp(arguments[1], "signal");
    signal(SIGUSR1, handle);
    qsort(numbers, 3, sizeof *numbers, compare);
    return numbers[0];
}
