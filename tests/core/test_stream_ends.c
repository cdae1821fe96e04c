/* test_stream_ends.c - every kind of end of a stream: shutdown, close, abort, and being forgotten.
 */
#include "stream_support.h"

#include <fcntl.h>
#include <unistd.h>

static void shutdown_waits_for_the_queue(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    fault.refuse = 1;
    CHECK_OK(write_text(&f, "last", &owners[0]));
    CHECK_OK(pl_stream_shutdown(&f.u.stream));
    CHECK_OK(pl_stream_shutdown(&f.u.stream)); /* twice is once */
    CHECK_EQ(write_text(&f, "x", NULL), -EPIPE);
    turns(&f, 3);
    expect_peer(&f, "last");
    char byte;
    CHECK_EQ(recv(f.peer, &byte, 1, 0), 0);
    /* The other direction lives. */
    f.u.got = malloc(16);
    CHECK_EQ(write(f.peer, "reply", 5), 5);
    turn(&f);
    CHECK_EQ(f.u.last_read, 5);
    end(&f);
}

static void shutdown_without_output_is_at_once(void)
{
    struct fixture f;
    start(&f);
    CHECK_OK(pl_stream_shutdown(&f.u.stream));
    char byte;
    CHECK_EQ(recv(f.peer, &byte, 1, 0), 0);
    pl_stream_close(&f.u.stream);
    CHECK_EQ(f.u.closes, 0); /* never from within the call */
    CHECK_EQ(pl_stream_shutdown(&f.u.stream), PL_ECLOSED);
    turn(&f);
    CHECK_EQ(f.u.closes, 1);
    end(&f);
}

static void abort_drops_and_releases(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    fault.refuse = 1;
    for (int i = 0; i < 20; i++)
        CHECK_OK(write_text(&f, "dropped", &owners[i]));
    pl_stream_flush(&f.u.stream);
    pl_stream_abort(&f.u.stream);
    CHECK_EQ(f.u.releases, 20);
    CHECK_EQ(f.u.closes, 0);
    pl_stream_abort(&f.u.stream);
    pl_stream_close(&f.u.stream);
    turns(&f, 3);
    CHECK_EQ(f.u.closes, 1);
    char byte;
    CHECK_EQ(recv(f.peer, &byte, 1, 0), -1); /* nothing was sent, and the fd is open */
    end(&f);
}

static void abort_of_a_corked_stream(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    CHECK_OK(write_text(&f, "a", &owners[0]));
    CHECK(f.loop.corked == &f.u.stream);
    pl_stream_abort(&f.u.stream);
    CHECK(f.loop.corked == NULL);
    CHECK_EQ(owners[0], 1);
    end(&f);
}

/* A release in the middle of a long queue's accounting ends the stream, or writes. */
static void a_release_may_abort(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    for (int i = 0; i < 10; i++)
        CHECK_OK(write_text(&f, "0123456789", &owners[i]));
    f.u.on_release = abort_it;
    turns(&f, 3);
    CHECK_EQ(f.u.releases, 10);
    CHECK_EQ(f.u.stream.queued, 0);
    CHECK_EQ(f.u.closes, 1);
    end(&f);
}

static void write_more(struct user *u)
{
    struct pl_chunk chunks[40];
    for (int i = 0; i < 40; i++)
        chunks[i] = (struct pl_chunk){.data = "+", .len = 1, .owner = &owners[20 + i]};
    CHECK_OK(pl_stream_write(&u->stream, chunks, 40)); /* the ring grows */
}

static void a_release_may_write(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    CHECK_OK(write_text(&f, "ab", &owners[0]));
    CHECK_OK(write_text(&f, "cd", &owners[1]));
    f.u.on_release = write_more;
    turns(&f, 3);
    expect_peer(&f, "abcd++++++++++++++++++++++++++++++++++++++++");
    CHECK_EQ(f.u.releases, 42);
    CHECK_EQ(f.u.stream.queued, 0);
    end(&f);
}

static void a_drained_may_close(void)
{
    struct fixture f;
    start(&f);
    f.u.on_drained = close_it;
    CHECK_OK(write_text(&f, "bye", NULL));
    turns(&f, 2);
    CHECK_EQ(f.u.closes, 1);
    expect_peer(&f, "bye");
    end(&f);
}

static void close_writes_the_rest(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    CHECK_OK(write_text(&f, "rest", &owners[0]));
    pl_stream_close(&f.u.stream);
    CHECK_EQ(f.u.closes, 0);
    turns(&f, 2);
    CHECK_EQ(f.u.closes, 1);
    expect_peer(&f, "rest");
    end(&f);
}

static void add_more(struct user *u)
{
    struct pl_chunk chunk = {.data = "+more", .len = 5, .owner = &owners[1]};
    u->on_drained = NULL;
    CHECK_OK(pl_stream_write(&u->stream, &chunk, 1));
}

/* Flow control may hold a user back at the moment of its close: it is asked again. */
static void a_close_sends_what_drained_adds(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    CHECK_OK(write_text(&f, "rest", &owners[0]));
    pl_stream_close(&f.u.stream);
    f.u.on_drained = add_more;
    turns(&f, 4);
    CHECK_EQ(f.u.closes, 1);
    CHECK_EQ(owners[0] + owners[1], 2);
    expect_peer(&f, "rest+more");
    end(&f);
}

static void a_close_that_cannot_write_still_closes(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    fault.error = -ECONNRESET;
    CHECK_OK(write_text(&f, "rest", &owners[0]));
    pl_stream_close(&f.u.stream);
    turns(&f, 3);
    CHECK_EQ(f.u.closes, 1);
    CHECK_EQ(owners[0], 1);
    end(&f);
}

static void works_on_pipes(void)
{
    struct fixture f;
    start(&f);
    struct user out = {0};
    int fds[2];
    CHECK_SYS(pipe2(fds, O_NONBLOCK | O_CLOEXEC));
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    struct user *in = calloc(1, sizeof(*in));
    in->got = malloc(64);
    CHECK_OK(pl_stream_open(&f.loop, &in->stream, fds[0], false, &user_ops));
    CHECK_OK(pl_stream_open(&f.loop, &out.stream, fds[1], false, &user_ops));
    CHECK_OK(pl_stream_read_start(&in->stream));
    struct pl_chunk chunks[] = {{.data = "pi", .len = 2}, {.data = "pe", .len = 2}};
    CHECK_OK(pl_stream_write(&out.stream, chunks, 2));
    turns(&f, 2);
    CHECK_EQ(in->got_len, 4);
    CHECK(memcmp(in->got, "pipe", 4) == 0);
    pl_stream_close(&in->stream);
    turns(&f, 1);
    CHECK_EQ(in->closes, 1);
    close(fds[0]);
    CHECK_OK(pl_stream_write(&out.stream, chunks, 2));
    turns(&f, 2);
    CHECK_EQ(out.failed, -EPIPE);
    pl_stream_abort(&out.stream);
    turns(&f, 1);
    CHECK_EQ(out.closes, 1);
    close(fds[1]);
    free(in->got);
    free(in);
    end(&f);
}

static void nothing(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op;
}

static void forgetting_calls_release_alone(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    struct pl_op other = {nothing};
    CHECK(pl_stream_of_op(&f.u.stream.io.op) == &f.u.stream);
    CHECK(pl_stream_of_op(&other) == NULL);
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    CHECK_EQ(write(f.peer, "x", 1), 1);
    CHECK_OK(write_text(&f, "a", &owners[0]));
    CHECK_OK(pl_loop_wait(&f.loop, -1));
    pl_stream_forget(&f.u.stream);
    CHECK_EQ(owners[0], 1);
    CHECK(f.loop.corked == NULL);
    CHECK(pl_io_find(&f.loop, f.fd) == NULL);
    turns(&f, 2); /* the event that was fetched finds nobody */
    CHECK_EQ(f.u.rooms + f.u.closes + f.u.failed + f.u.drains, 0);
    f.u.closes = 1; /* for the end of the fixture */
    end(&f);
}

static const struct pl_test tests[] = {
    PL_TEST(shutdown_waits_for_the_queue),
    PL_TEST(shutdown_without_output_is_at_once),
    PL_TEST(abort_drops_and_releases),
    PL_TEST(abort_of_a_corked_stream),
    PL_TEST(a_release_may_abort),
    PL_TEST(a_release_may_write),
    PL_TEST(a_drained_may_close),
    PL_TEST(close_writes_the_rest),
    PL_TEST(a_close_sends_what_drained_adds),
    PL_TEST(a_close_that_cannot_write_still_closes),
    PL_TEST(works_on_pipes),
    PL_TEST(forgetting_calls_release_alone),
};
PL_TEST_MAIN(tests)
