/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs one fuzz target's entry point without libFuzzer, as part of the normal test run.
 *
 * Model: every regular file below the arguments (directories are walked) is one seed, the empty
 * input is one more. First each seed is run as it is; then FUZZ_MUTATIONS inputs (2000 unless told)
 * are made from the seeds in turn by a few random edits. The random numbers come from a seeded
 * xorshift, so that a run is the same on every machine and a failure comes back.
 *
 * Bounds: mutations stop after FUZZ_SECONDS (10 unless told); one input may take 20 s; an input is
 * at most INPUT_MAX bytes. Each input lies in a block of exactly its size, so that address
 * sanitizer sees a read one byte beyond it.
 *
 * Failures: where the process dies (signal, sanitizer, hang), the input that did it is written to
 * "<program>.crash" in the working directory and named on stderr. A corpus that is not there is
 * said and is no failure: then only the empty input is mutated.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define INPUT_MAX ((size_t)8 << 20)
#define GROWTH_MAX 64 /* bytes that one mutation may add */
#define SEEDS_MAX 4096
#define INPUT_SECONDS 20

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

struct seed {
    char *path; /* NULL: the empty input */
    uint8_t *data;
    size_t len;
};

static struct seed seeds[SEEDS_MAX];
static size_t n_seeds;
static uint64_t random_state = 0x9E3779B97F4A7C15ULL;

/* What is being run now, for the report when we die in it. */
static struct {
    const uint8_t *data;
    size_t len;
    const char *seed;
    const char *program;
} current;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static size_t random_below(size_t n)
{
    return n == 0 ? 0 : (size_t)(random_next() % n);
}

static void say(const char *text)
{
    ssize_t r = write(STDERR_FILENO, text, strlen(text));
    (void)r;
}

/* Runs while the process is dying: async-signal-safe calls only. */
static void report_death(void)
{
    if (current.data == NULL)
        return;
    char path[256] = "";
    strncat(path, current.program, sizeof(path) - 8);
    strncat(path, ".crash", 7);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t done = 0;
    while (fd >= 0 && done < current.len) {
        ssize_t n = write(fd, current.data + done, current.len - done);
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    say("\nfuzz driver: died in an input made from seed ");
    say(current.seed);
    say(fd >= 0 ? "\nfuzz driver: the input is in ./" : "\nfuzz driver: could not write ./");
    say(path);
    say("\n");
    current.data = NULL;
}

static void on_signal(int sig)
{
    if (sig == SIGALRM)
        say("\nfuzz driver: one input took too long\n");
    report_death();
    signal(sig, SIG_DFL);
    raise(sig);
}

static void watch_for_death(void)
{
    if (__sanitizer_set_death_callback != NULL)
        __sanitizer_set_death_callback(report_death);
    static const int without_sanitizer[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
    for (size_t i = 0; i < sizeof(without_sanitizer) / sizeof(int); i++) {
        if (__sanitizer_set_death_callback == NULL)
            signal(without_sanitizer[i], on_signal);
    }
    signal(SIGALRM, on_signal);
}

static void run(const uint8_t *data, size_t len, const char *name)
{
    uint8_t *copy = malloc(len);
    if (copy == NULL && len > 0)
        abort();
    if (len > 0)
        memcpy(copy, data, len);
    current.data = copy;
    current.len = len;
    current.seed = name;
    alarm(INPUT_SECONDS);
    LLVMFuzzerTestOneInput(copy, len);
    alarm(0);
    current.data = NULL;
    free(copy);
}

static void add_seed(const char *path, size_t size)
{
    if (n_seeds == SEEDS_MAX || size > INPUT_MAX)
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint8_t *data = malloc(size + 1);
    if (fd < 0 || data == NULL) {
        fprintf(stderr, "fuzz driver: %s: %s\n", path, strerror(errno));
        exit(1);
    }
    size_t len = 0;
    ssize_t n;
    while (len < size && (n = read(fd, data + len, size - len)) > 0)
        len += (size_t)n;
    close(fd);
    seeds[n_seeds++] = (struct seed){.path = strdup(path), .data = data, .len = len};
}

static int on_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)ftw;
    if (type == FTW_F && S_ISREG(st->st_mode))
        add_seed(path, (size_t)st->st_size);
    return 0;
}

/* The order of a directory is not the same everywhere; the run shall be. */
static int by_path(const void *a, const void *b)
{
    const struct seed *x = a;
    const struct seed *y = b;
    return strcmp(x->path, y->path);
}

/* One edit of the bytes at data (room for GROWTH_MAX more); returns the new length. */
static size_t edit(uint8_t *data, size_t len)
{
    static const uint64_t values[] = {0,      1,          0x7F,       0x80,       0xFF,      0x7FFF,
                                      0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, UINT64_MAX};
    size_t at = random_below(len);
    size_t n = 1 + random_below(8);
    switch (random_below(6)) {
    case 0:
        if (len > 0)
            data[at] ^= (uint8_t)(1U << random_below(8));
        return len;
    case 1:
        if (len > 0)
            data[at] = (uint8_t)random_next();
        return len;
    case 2: /* a number that parsers get wrong, in either byte order */
        for (size_t i = 0, v = random_below(sizeof(values) / sizeof(values[0])),
                    big = random_below(2);
             i < n && at + i < len; i++)
            data[at + i] = (uint8_t)(values[v] >> (8 * (big ? n - 1 - i : i)));
        return len;
    case 3: /* cut out */
        n = n < len - at ? n : len - at;
        memmove(data + at, data + at + n, len - at - n);
        return len - n;
    case 4: /* cut off */
        return at;
    default: /* put in */
        memmove(data + at + n, data + at, len - at);
        for (size_t i = 0; i < n; i++)
            data[at + i] =
                len > 0 && random_below(2) ? data[random_below(len)] : (uint8_t)random_next();
        return len + n;
    }
}

static void mutate_and_run(const struct seed *seed, uint8_t *scratch)
{
    size_t len = seed->len;
    if (len > 0)
        memcpy(scratch, seed->data, len);
    for (size_t edits = 1 + random_below(GROWTH_MAX / 8); edits > 0; edits--)
        len = edit(scratch, len);
    run(scratch, len, seed->path != NULL ? seed->path : "(empty)");
}

static unsigned long env_number(const char *name, unsigned long otherwise)
{
    const char *text = getenv(name);
    char *end = NULL;
    if (text == NULL || *text == '\0')
        return otherwise;
    unsigned long value = strtoul(text, &end, 10);
    if (*end != '\0') {
        fprintf(stderr, "fuzz driver: %s=%s is not a number\n", name, text);
        exit(2);
    }
    return value;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void load_seeds(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (nftw(argv[i], on_file, 16, FTW_PHYS) < 0)
            fprintf(stderr, "fuzz driver: no corpus at %s: %s\n", argv[i], strerror(errno));
    }
    qsort(seeds, n_seeds, sizeof(seeds[0]), by_path);
    if (n_seeds < SEEDS_MAX)
        seeds[n_seeds++] = (struct seed){0};
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    current.program = slash != NULL ? slash + 1 : argv[0];
    if (LLVMFuzzerInitialize != NULL)
        LLVMFuzzerInitialize(&argc, &argv);
    watch_for_death();
    load_seeds(argc, argv);

    double start = now();
    for (size_t i = 0; i < n_seeds; i++)
        run(seeds[i].data, seeds[i].len, seeds[i].path != NULL ? seeds[i].path : "(empty)");

    unsigned long wanted = env_number("FUZZ_MUTATIONS", 2000), done = 0;
    double end = start + (double)env_number("FUZZ_SECONDS", 10);
    uint8_t *scratch = malloc(INPUT_MAX + GROWTH_MAX + 1);
    if (scratch == NULL)
        abort();
    while (done < wanted && now() < end)
        mutate_and_run(&seeds[done++ % n_seeds], scratch);
    free(scratch);

    printf("%s: %zu seeds, %lu of %lu mutations, %.1f s\n", current.program, n_seeds, done, wanted,
           now() - start);
    for (size_t i = 0; i < n_seeds; i++) {
        free(seeds[i].path);
        free(seeds[i].data);
    }
    return 0;
}
