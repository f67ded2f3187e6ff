/*
 * A library for LD_PRELOAD under which the machine's clock (CLOCK_REALTIME) is CHAOS_CLOCK_AHEAD_S seconds ahead: what
 * a program sees that is started after an outage of that length. If CHAOS_CLOCK_FILE names a file, the seconds are those
 * in it, or none while there is no such file: a clock that goes wrong while the program runs. The time that passes
 * (CLOCK_MONOTONIC) is left alone, and so are the times of files.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);
static time_t ahead;
static const char *path;

/* Whoever asks for the time before the constructors have run configures it, too. */
__attribute__((constructor)) static void configure(void) {
    const char *seconds = getenv("CHAOS_CLOCK_AHEAD_S");
    if (seconds) ahead = atol(seconds);
    path = getenv("CHAOS_CLOCK_FILE");
    real = (__typeof__(real))dlsym(RTLD_NEXT, "clock_gettime");
    if (!real) {
        fprintf(stderr, "clock: libc has no clock_gettime\n");
        abort();
    }
}

static time_t difference(void) {
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return ahead;
    char text[32];
    time_t seconds = fgets(text, sizeof text, file) ? atol(text) : 0;
    fclose(file);
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real) configure();
    int result = real(clock, now);
    if (!result && clock == CLOCK_REALTIME) now->tv_sec += difference();
    return result;
}
