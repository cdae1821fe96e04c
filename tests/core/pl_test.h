/* pl_test.h - what the C tests of the core are written with.
 *
 * A test program is a table of functions and PL_TEST_MAIN. Exit code 0: all passed (or
 * some passed and the rest were skipped); 1: a check failed, which ends the program at
 * once; 77: every test was skipped. Arguments name the tests to run.
 *
 * A check prints its place, its text and the values. The system-call table has no context
 * argument, so tests that replace entries keep their state in file statics.
 */
#ifndef PL_TEST_H
#define PL_TEST_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pl.h"

struct pl_test {
    const char *name;
    void (*run)(void);
};

#define PL_TEST(function)                                                                          \
    {                                                                                              \
#function, function                                                                        \
    }

_Noreturn static inline void pl_test_fail(const char *file, int line, const char *text,
                                          const char *values)
{
    fprintf(stderr, "%s:%d: check failed: %s%s%s\n", file, line, text, values[0] ? ": " : "",
            values);
    fflush(NULL);
    exit(1);
}

static inline void pl_test_compare(bool ok, const char *file, int line, const char *text,
                                   intmax_t a, intmax_t b)
{
    if (PL_LIKELY(ok))
        return;
    char values[80];
    snprintf(values, sizeof(values), "%jd and %jd", a, b);
    pl_test_fail(file, line, text, values);
}

static inline void pl_test_ok(intmax_t result, const char *file, int line, const char *text)
{
    if (PL_LIKELY(result >= 0))
        return;
    char values[120];
    snprintf(values, sizeof(values), "%s (%s)", pl_error_name((int)result),
             pl_error_text((int)result));
    pl_test_fail(file, line, text, values);
}

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond))                                                                               \
            pl_test_fail(__FILE__, __LINE__, #cond, "");                                           \
    } while (0)

#define CHECK_CMP(a, op, b)                                                                        \
    do {                                                                                           \
        intmax_t a_ = (intmax_t)(a);                                                               \
        intmax_t b_ = (intmax_t)(b);                                                               \
        pl_test_compare(a_ op b_, __FILE__, __LINE__, #a " " #op " " #b, a_, b_);                  \
    } while (0)

#define CHECK_EQ(a, b) CHECK_CMP(a, ==, b)

/* The result of a call that must not fail. */
#define CHECK_OK(call) pl_test_ok((intmax_t)(call), __FILE__, __LINE__, #call)

/* A libc call that must not fail (-1 and errno). */
#define CHECK_SYS(call)                                                                            \
    do {                                                                                           \
        if ((call) == -1)                                                                          \
            pl_test_fail(__FILE__, __LINE__, #call, strerror(errno));                              \
    } while (0)

/* Makes a loop with the backend that PL_TEST_BACKEND names; sys as in pl_loop_config. Where the
 * kernel refuses io_uring the loop has epoll, and the test is the same as without the name. */
static inline int pl_test_loop(struct pl_loop *loop, const struct pl_sys *sys)
{
    const char *name = getenv("PL_TEST_BACKEND");
    bool uring = name != NULL && strncmp(name, "uring", 5) == 0;
    struct pl_loop_config config = {
        .sys = sys,
        .backend = uring ? PL_BACKEND_URING : PL_BACKEND_EPOLL,
    };
    return pl_loop_init(loop, &config);
}

/* Runs iterations until cond holds; a test that waits for ever is ended by the runner. */
#define RUN_UNTIL(loop, cond)                                                                      \
    do {                                                                                           \
        while (!(cond)) {                                                                          \
            int r_ = pl_loop_once(loop);                                                           \
            if (r_ != -EINTR)                                                                      \
                CHECK_OK(r_);                                                                      \
        }                                                                                          \
    } while (0)

/* Set by PL_SKIP for the runner below. */
struct pl_test_run {
    bool skipped;
};
static struct pl_test_run pl_test_run;

#define PL_SKIP(reason)                                                                            \
    do {                                                                                           \
        printf("  skipped: %s\n", (reason));                                                       \
        pl_test_run.skipped = true;                                                                \
        return;                                                                                    \
    } while (0)

static inline int pl_test_main(const struct pl_test *tests, size_t n, int argc, char **argv)
{
    size_t ran = 0;
    size_t skipped = 0;
    for (size_t i = 0; i < n; i++) {
        bool wanted = argc < 2;
        for (int a = 1; a < argc; a++)
            wanted |= strcmp(argv[a], tests[i].name) == 0;
        if (!wanted)
            continue;
        printf("%s\n", tests[i].name);
        fflush(stdout); /* a crash or fork must not lose or repeat it */
        pl_test_run.skipped = false;
        tests[i].run();
        ran++;
        skipped += pl_test_run.skipped;
    }
    if (ran == 0) {
        fprintf(stderr, "no such test\n");
        return 1;
    }
    printf("%zu run, %zu skipped\n", ran, skipped);
    return ran == skipped ? 77 : 0;
}

#define PL_TEST_MAIN(tests)                                                                        \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return pl_test_main((tests), PL_ARRAY_LEN(tests), argc, argv);                             \
    }

/* A reproducible source of numbers (xorshift64*). */
static inline uint64_t pl_test_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(0x2545F4914F6CDD1D);
}

#endif /* PL_TEST_H */
