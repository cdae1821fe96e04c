/* test_stream_fork.c - what a stream has still to send belongs to the parent of a fork. */
#include "stream_support.h"

#include <sys/wait.h>
#include <unistd.h>

/* The event that there is room again is in the ready queue when the process forks: the rest is the
 * parent's to send, whatever the child runs. */
static void a_forked_child_sends_no_rest(void)
{
    struct fixture f;
    start_blocked(&f);
    CHECK_OK(write_text(&f, "b", &owners[1]));
    while (!f.u.stream.io.queued) {
        CHECK_CMP(pl_loop_wait(&f.loop, PL_NSEC_PER_SEC), >=, 0);
        CHECK_OK(pl_loop_collect(&f.loop));
    }
    int sends = fault.sends;
    pid_t pid = fork();
    if (pid == 0) {
        pl_loop_after_fork(&f.loop);
        (void)pl_loop_run(&f.loop, NULL);
        (void)pl_loop_run(&f.loop, NULL);
        _exit(fault.sends == sends && f.u.stream.queued == 2 ? 0 : 1);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    turns(&f, 2);
    expect_peer(&f, "ab");
    end(&f);
}

static pid_t forked;

static void fork_here(struct user *u)
{
    forked = fork();
    CHECK_SYS(forked);
    if (forked == 0)
        pl_loop_after_fork(u->stream.loop);
}

/* A release that forks, while the rest of the queue waits for the next call, for room, or for
 * nothing: the child sends none of it, hears nothing of it, and does not shut what both have. */
static void a_child_of_a_release_sends_no_rest(void)
{
    enum { CHUNKS = 70 };
    static int many[CHUNKS];
    const struct {
        size_t limit;
        int left; /* in the child */
    } cases[] = {{0, CHUNKS - 64}, {1, CHUNKS - 1}};
    for (size_t i = 0; i < PL_ARRAY_LEN(cases); i++) {
        struct fixture f;
        start(&f);
        memset(many, 0, sizeof(many));
        f.u.on_release = fork_here;
        fault.limit = cases[i].limit;
        char text[CHUNKS + 1] = {0};
        for (int k = 0; k < CHUNKS; k++) {
            CHECK_OK(write_text(&f, "x", &many[k]));
            text[k] = 'x';
        }
        CHECK_OK(pl_loop_run(&f.loop, NULL));
        if (forked == 0) {
            (void)pl_loop_run(&f.loop, NULL);
            (void)pl_loop_run(&f.loop, NULL);
            bool kept = (int)f.u.stream.chunk_len == cases[i].left && f.u.stream.error == 0;
            _exit(fault.sends == 1 && kept && f.u.failed == 0 && f.u.drains == 0 ? 0 : 1);
        }
        int status;
        CHECK_EQ(waitpid(forked, &status, 0), forked);
        CHECK_EQ(status, 0);
        fault.limit = 0;
        turns(&f, 4);
        expect_peer(&f, text);
        end(&f);
    }
}

static void a_child_of_the_last_release_shuts_nothing(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    f.u.on_release = fork_here;
    CHECK_OK(write_text(&f, "a", &owners[0]));
    CHECK_OK(pl_stream_shutdown(&f.u.stream));
    pl_stream_flush(&f.u.stream);
    if (forked == 0)
        _exit(f.u.stream.shut_pending && !f.u.stream.shut ? 0 : 1);
    CHECK(f.u.stream.shut);
    int status;
    CHECK_EQ(waitpid(forked, &status, 0), forked);
    CHECK_EQ(status, 0);
    expect_peer(&f, "a");
    end(&f);
}

static const struct pl_test tests[] = {
    PL_TEST(a_forked_child_sends_no_rest),
    PL_TEST(a_child_of_a_release_sends_no_rest),
    PL_TEST(a_child_of_the_last_release_shuts_nothing),
};
PL_TEST_MAIN(tests)
