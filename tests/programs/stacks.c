/* A process with threads that say where they are.
 *
 * Prints `ready PID`. To `threads N` it starts N threads and answers with `stacks thread=TID:ADDRESS ...`, the address of
 * a variable on each one's stack. It ends at the end of stdin.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static char answer[1 << 14] = "stacks";
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sem_t done;

static void *say(void *argument)
{
    volatile int local = 0;
    pthread_mutex_lock(&lock);
    sprintf(answer + strlen(answer), " thread=%ld:%lu", syscall(SYS_gettid), (unsigned long)&local);
    pthread_mutex_unlock(&lock);
    sem_post(&done);
    for (;;) pause();
    return argument;
}

int main(void)
{
    char line[256];
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    if (sem_init(&done, 0, 0)) abort();
    printf("ready %d\n", (int)getpid());
    while (fgets(line, sizeof line, stdin)) {
        int count = 0;
        if (sscanf(line, "threads %d", &count) != 1 || count > 100) {
            puts("error");
            continue;
        }
        for (int i = 0; i < count; i++) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, say, NULL)) abort();
        }
        for (int i = 0; i < count; i++) sem_wait(&done);
        puts(answer);
    }
    return 0;
}
