/* The NIF interface as OTP 23 has it, so that one build of a library loads on that release and on each later one. */
#ifndef ANY_RELEASE_H
#define ANY_RELEASE_H

#include <erl_nif.h>

#undef ERL_NIF_MINOR_VERSION
#define ERL_NIF_MINOR_VERSION 15
#undef ERL_NIF_MIN_ERTS_VERSION
#define ERL_NIF_MIN_ERTS_VERSION "erts-10.4"

/* A function that is a frame of its own on each stack. A function that calls another and returns at once would leave its
 * frame to it, so there is something to do after each call: AFTER_CALL. */
#define FRAME __attribute__((noinline, noclone))
static volatile unsigned passed;
#define AFTER_CALL() (passed = passed + 1)

#endif
