/* NIF library `bench`: what a malloc and free pair costs the thread that calls them, by that thread's CPU clock.
 *
 * `tight` runs pairs one after the other, `paced` in bursts of a millisecond with waits between. Both run for a given
 * time, not for a number of pairs, so that a slow condition takes no longer; both return {Pairs, CpuNs, WallNs}.
 * `deep` is `tight` with 64 bytes at the end of a number of frames, on a normal scheduler.
 * Sizes are spread evenly from the smallest to the largest. `process_cpu/0` is the CPU time of the whole node in ns.
 */
#include <erl_nif.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

struct outcome {
    uint64_t pairs, cpu_ns, wall_ns;
};

static uint64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static __attribute__((noinline)) void pairs(uint64_t count, size_t smallest, size_t largest, uint32_t *random) {
    uint64_t span = largest - smallest + 1;
    while (count-- > 0) {
        *random ^= *random << 13;
        *random ^= *random >> 17;
        *random ^= *random << 5;
        char *block = malloc(smallest + (size_t)(*random * span >> 32));
        if (block != NULL)
            *(volatile char *)block = 1;
        free(block);
    }
}

static struct outcome run_tight(uint64_t wall_ns, size_t smallest, size_t largest) {
    struct outcome outcome = {0, 0, 0};
    uint32_t random = 2463534242u;
    uint64_t begin = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
    do {
        pairs(1000, smallest, largest, &random);
        outcome.pairs += 1000;
        outcome.wall_ns = now(CLOCK_MONOTONIC) - begin;
    } while (outcome.wall_ns < wall_ns);
    outcome.cpu_ns = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
    return outcome;
}

/* The same at the end of `depth` more frames. */
static __attribute__((noinline)) void deep_pairs(unsigned depth, uint64_t count, uint32_t *random) {
    if (depth == 0)
        pairs(count, 64, 64, random);
    else
        deep_pairs(depth - 1, count, random);
    __asm__ volatile("" ::: "memory"); /* no tail call */
}

static struct outcome run_deep(uint64_t wall_ns, unsigned depth) {
    struct outcome outcome = {0, 0, 0};
    uint32_t random = 2463534242u;
    uint64_t begin = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
    do {
        deep_pairs(depth, 1000, &random);
        outcome.pairs += 1000;
        outcome.wall_ns = now(CLOCK_MONOTONIC) - begin;
    } while (outcome.wall_ns < wall_ns);
    outcome.cpu_ns = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
    return outcome;
}

/* Waits count as time but not as CPU: the CPU clock is read around each burst. A late burst starts at once. */
static struct outcome run_paced(uint64_t wall_ns, uint64_t per_ms, size_t smallest, size_t largest) {
    struct outcome outcome = {0, 0, 0};
    uint32_t random = 2463534242u;
    uint64_t begin = now(CLOCK_MONOTONIC);
    for (uint64_t burst = 1; outcome.wall_ns < wall_ns; burst++) {
        uint64_t cpu = now(CLOCK_THREAD_CPUTIME_ID);
        pairs(per_ms, smallest, largest, &random);
        outcome.cpu_ns += now(CLOCK_THREAD_CPUTIME_ID) - cpu;
        outcome.pairs += per_ms;
        uint64_t due = begin + burst * 1000000u;
        struct timespec wake = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)};
        if (now(CLOCK_MONOTONIC) < due)
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
        outcome.wall_ns = now(CLOCK_MONOTONIC) - begin;
    }
    return outcome;
}

static ERL_NIF_TERM outcome_term(ErlNifEnv *env, struct outcome outcome) {
    return enif_make_tuple3(env, enif_make_uint64(env, outcome.pairs), enif_make_uint64(env, outcome.cpu_ns),
                            enif_make_uint64(env, outcome.wall_ns));
}

static int numbers(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[], unsigned long *values) {
    for (int i = 0; i < argc; i++)
        if (!enif_get_ulong(env, argv[i], &values[i]))
            return 0;
    return values[argc - 2] > 0 && values[argc - 2] <= values[argc - 1];
}

static ERL_NIF_TERM tight(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    unsigned long v[3];
    if (!numbers(env, argc, argv, v))
        return enif_make_badarg(env);
    return outcome_term(env, run_tight(v[0] * 1000000u, v[1], v[2]));
}

static ERL_NIF_TERM deep(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    unsigned long v[2];
    if (argc != 2 || !enif_get_ulong(env, argv[0], &v[0]) || !enif_get_ulong(env, argv[1], &v[1]) || v[1] > 100)
        return enif_make_badarg(env);
    return outcome_term(env, run_deep(v[0] * 1000000u, (unsigned)v[1]));
}

static ERL_NIF_TERM paced(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    unsigned long v[4];
    if (!numbers(env, argc, argv, v) || v[1] < 1000)
        return enif_make_badarg(env);
    return outcome_term(env, run_paced(v[0] * 1000000u, v[1] / 1000, v[2], v[3]));
}

static ERL_NIF_TERM process_cpu(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc, (void)argv;
    return enif_make_uint64(env, now(CLOCK_PROCESS_CPUTIME_ID));
}

static ErlNifFunc functions[] = {
    {"tight", 3, tight, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"deep", 2, deep, 0},
    {"paced", 4, paced, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"process_cpu", 0, process_cpu, 0},
};

ERL_NIF_INIT(bench, functions, NULL, NULL, NULL, NULL)
