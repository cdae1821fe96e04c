/* test_stream.c - streams: reading and corked writing. */
#include "stream_support.h"

#include <unistd.h>

/* ---- reading --------------------------------------------------------------- */

static void reads_what_arrives_then_the_end(void)
{
    struct fixture f;
    start(&f);
    f.u.got = malloc(1024);
    CHECK_EQ(write(f.peer, "hello", 5), 5);
    turn(&f);
    CHECK_EQ(f.u.rooms, 0); /* nothing before read_start */
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    fault.interrupt = 2;
    turn(&f);
    CHECK_EQ(f.u.last_read, 5);
    CHECK(memcmp(f.u.got, "hello", 5) == 0);
    close(f.peer);
    f.peer = -1;
    turn(&f);
    CHECK(f.u.eof);
    int calls = f.u.reads;
    turns(&f, 3);
    CHECK_EQ(f.u.reads, calls);
    if (f.loop.backend->input == NULL)
        CHECK_EQ(f.u.rooms, f.u.reads + f.u.agains);
    CHECK_OK(pl_stream_read_start(&f.u.stream)); /* harmless after the end */
    turns(&f, 2);
    CHECK_EQ(f.u.reads, calls);
    end(&f);
}

static ssize_t recv_again(int fd, void *buf, size_t len, int flags)
{
    (void)fd;
    (void)buf;
    (void)len;
    (void)flags;
    return -EAGAIN;
}

static ssize_t recv_reset(int fd, void *buf, size_t len, int flags)
{
    (void)fd;
    (void)buf;
    (void)len;
    (void)flags;
    return -ECONNRESET;
}

static void a_vain_event_gives_the_buffer_back(void)
{
    struct fixture f;
    start(&f);
    if (f.loop.backend->input != NULL) {
        end(&f);
        PL_SKIP("the backend receives, so recv is not called");
    }
    f.sys.recv = recv_again;
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    CHECK_EQ(write(f.peer, "x", 1), 1);
    turn(&f);
    CHECK_EQ(f.u.rooms, 1);
    CHECK_EQ(f.u.agains, 1);
    CHECK_EQ(f.u.reads, 0);
    end(&f);
}

static void a_failed_read_is_told_once(void)
{
    struct fixture f;
    start(&f);
    if (f.loop.backend->input != NULL) {
        end(&f);
        PL_SKIP("the backend receives, so recv is not called");
    }
    f.sys.recv = recv_reset;
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    CHECK_EQ(write(f.peer, "x", 1), 1);
    turns(&f, 3);
    CHECK_EQ(f.u.reads, 1);
    CHECK_EQ(f.u.last_read, -ECONNRESET);
    CHECK_EQ(f.u.closes, 0);
    end(&f);
}

static void stop_reading(struct user *u)
{
    pl_stream_read_stop(&u->stream);
}

static void no_read_comes_after_read_stop(void)
{
    struct fixture f;
    start(&f);
    if (f.loop.backend->input != NULL) {
        end(&f);
        PL_SKIP("the backend receives, so recv is not called");
    }
    f.u.on_read = stop_reading;
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    fault.limit = 1;
    CHECK_EQ(write(f.peer, "abc", 3), 3);
    turns(&f, 4);
    CHECK_EQ(f.u.reads, 1);
    /* Stopped while its event is in the ready queue already. */
    f.u.on_read = NULL;
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    CHECK_OK(pl_loop_wait(&f.loop, -1));
    CHECK_OK(pl_loop_collect(&f.loop));
    pl_stream_read_stop(&f.u.stream);
    CHECK_OK(pl_loop_run(&f.loop, NULL));
    CHECK_EQ(f.u.reads, 1);
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    turns(&f, 2);
    CHECK_EQ(f.u.reads, 3);
    end(&f);
}

static void a_read_may_close_or_abort(void)
{
    void (*acts[])(struct user *) = {close_it, abort_it};
    for (size_t i = 0; i < PL_ARRAY_LEN(acts); i++) {
        struct fixture f;
        start(&f);
        f.u.on_read = acts[i];
        CHECK_OK(pl_stream_read_start(&f.u.stream));
        CHECK_EQ(write(f.peer, "abc", 3), 3);
        turns(&f, 3);
        CHECK_EQ(f.u.reads, 1);
        CHECK_EQ(f.u.closes, 1);
        CHECK_EQ(pl_stream_read_start(&f.u.stream), PL_ECLOSED);
        end(&f);
    }
}

/* ---- writing ---------------------------------------------------------------- */

static struct fixture *writing;

static void write_thrice(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op;
    CHECK_OK(write_text(writing, "one ", &owners[0]));
    CHECK_OK(write_text(writing, "two ", &owners[1]));
    CHECK_OK(write_text(writing, "three", &owners[2]));
    CHECK_EQ(fault.sends, 0);
    CHECK_EQ(writing->u.stream.queued, 13);
}

static void writes_of_one_callback_are_one_call(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    writing = &f;
    struct pl_op op = {write_thrice};
    CHECK_OK(pl_loop_enqueue(&f.loop, &op));
    turn(&f);
    CHECK_EQ(fault.sends, 1);
    CHECK_EQ(f.u.releases, 3);
    CHECK_EQ(f.u.stream.queued, 0);
    CHECK_EQ(f.u.drains, 1);
    expect_peer(&f, "one two three");
    end(&f);
}

static void a_write_outside_of_callbacks_is_flushed(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    CHECK_OK(write_text(&f, "late", &owners[0]));
    CHECK_EQ(pl_loop_timeout(&f.loop), 0); /* the loop does not sleep over it */
    turn(&f);
    expect_peer(&f, "late");
    /* At once by request, or when much waits. */
    CHECK_OK(write_text(&f, "now", NULL));
    pl_stream_flush(&f.u.stream);
    expect_peer(&f, "now");
    static char big[PL_STREAM_FLUSH + 1];
    struct pl_chunk chunk = {.data = big, .len = sizeof(big)};
    CHECK_OK(pl_stream_write(&f.u.stream, &chunk, 1));
    CHECK_CMP(f.u.stream.queued, <, sizeof(big));
    end(&f);
}

/* What was corked goes out with a large write, and its writer may have been told to wait. */
static void a_large_write_drains_what_was_corked(void)
{
    static char big[PL_STREAM_FLUSH];
    struct fixture f;
    start(&f);
    struct pl_chunk chunk = {.data = big, .len = sizeof(big)};
    CHECK_OK(write_text(&f, "corked", NULL));
    CHECK_OK(pl_stream_write(&f.u.stream, &chunk, 1));
    CHECK_EQ(f.u.stream.queued, 0);
    CHECK_EQ(f.u.drains, 0); /* never from within a call */
    turn(&f);
    CHECK_EQ(f.u.drains, 1);
    turn(&f);
    CHECK_EQ(f.u.drains, 1);
    end(&f);
}

static void empty_chunks_are_released_at_once(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    CHECK_OK(write_text(&f, "", &owners[0]));
    CHECK_EQ(owners[0], 1);
    CHECK_EQ(f.u.stream.queued, 0);
    CHECK_EQ(pl_loop_timeout(&f.loop), -1);
    CHECK_OK(pl_stream_write(&f.u.stream, NULL, 0));
    end(&f);
}

static void write_four(struct user *u)
{
    struct pl_chunk chunks[4];
    for (int i = 0; i < 4; i++)
        chunks[i] = (struct pl_chunk){.data = &"abcd"[i], .len = 1, .owner = &owners[i]};
    CHECK_OK(pl_stream_write(&u->stream, chunks, 4));
}

/* What the release of an empty chunk does finds the rest of its call in order. */
static void the_release_of_an_empty_chunk_may_do_anything(void)
{
    static void (*const acts[])(struct user *) = {write_four, abort_it};
    for (size_t i = 0; i < PL_ARRAY_LEN(acts); i++) {
        struct fixture f;
        start(&f);
        memset(owners, 0, sizeof(owners));
        f.u.on_release = acts[i];
        struct pl_chunk chunks[] = {{.data = "", .len = 0, .owner = &owners[4]},
                                    {.data = "x", .len = 1, .owner = &owners[5]},
                                    {.data = "y", .len = 1, .owner = &owners[6]}};
        CHECK_OK(pl_stream_write(&f.u.stream, chunks, 3));
        turns(&f, 2);
        if (acts[i] == write_four)
            expect_peer(&f, "xyabcd");
        else
            CHECK_EQ(f.u.closes, 1);
        CHECK(f.loop.corked == NULL);
        CHECK_EQ(f.u.releases, acts[i] == write_four ? 7 : 3);
        end(&f);
    }
}

/* A random mix of sizes against short writes, interruptions and a full kernel buffer: the
 * bytes arrive, in order, and each owner comes back once. */
static void every_byte_arrives_in_order(void)
{
    enum { N = 64, SIZE = 8192 };
    static char data[N][SIZE];
    uint64_t seed = 7;
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    fault.limit = 1000;
    size_t total = 0;
    uint8_t next = 0;
    for (int i = 0; i < N; i++) {
        size_t len = 1 + pl_test_random(&seed) % SIZE;
        for (size_t k = 0; k < len; k++)
            data[i][k] = (char)next++;
        total += len;
        struct pl_chunk chunk = {.data = data[i], .len = len, .owner = &owners[i]};
        CHECK_OK(pl_stream_write(&f.u.stream, &chunk, 1));
        if (i % 5 == 0)
            fault.interrupt = 2;
        if (i % 7 == 0)
            fault.refuse = 1;
    }
    pl_stream_close(&f.u.stream); /* writes the rest first */
    uint8_t expected = 0;
    size_t received = 0;
    while (received < total) {
        turn(&f);
        char buf[3000];
        ssize_t n = recv(f.peer, buf, sizeof(buf), 0);
        if (n < 0) {
            CHECK_EQ(errno, EAGAIN);
            continue;
        }
        CHECK_CMP(n, >, 0);
        for (ssize_t k = 0; k < n; k++)
            CHECK_EQ((uint8_t)buf[k], expected++);
        received += (size_t)n;
    }
    turns(&f, 2);
    CHECK_EQ(f.u.closes, 1);
    CHECK_EQ(f.u.releases, N);
    CHECK_EQ(write_text(&f, "more", NULL), PL_ECLOSED);
    CHECK(f.u.stream.chunks == f.u.stream.inlined); /* an idle stream holds no memory */
    end(&f);
}

static void a_full_kernel_buffer_is_waited_for(void)
{
    struct fixture f;
    start_blocked(&f);
    CHECK_EQ(fault.sends, 1);
    CHECK_OK(write_text(&f, "b", &owners[1])); /* waits behind it: no call */
    CHECK_OK(pl_loop_run(&f.loop, NULL));
    CHECK_EQ(fault.sends, 1);
    turn(&f);
    CHECK_EQ(fault.sends, 2);
    CHECK(!f.u.stream.blocked);
    CHECK_CMP(f.u.drains, >=, 1);
    expect_peer(&f, "ab");
    /* PL_WRITABLE is given up: an idle loop is idle. */
    turn(&f);
    uint64_t events = f.loop.stats.events;
    turns(&f, 3);
    CHECK_EQ(f.loop.stats.events, events);
    end(&f);
}

static void a_failed_write_is_told_from_the_loop(void)
{
    int errors[] = {-EPIPE, -ECONNRESET, -ENOBUFS};
    for (size_t i = 0; i < PL_ARRAY_LEN(errors); i++) {
        struct fixture f;
        start(&f);
        memset(owners, 0, sizeof(owners));
        fault.error = errors[i];
        CHECK_OK(write_text(&f, "a", &owners[0]));
        CHECK_OK(write_text(&f, "b", &owners[1]));
        pl_stream_flush(&f.u.stream);
        CHECK_EQ(f.u.failed, 0); /* never from within the call */
        CHECK_EQ(f.u.stream.queued, 0);
        turns(&f, 2);
        CHECK_EQ(f.u.failed, errors[i]);
        CHECK_EQ(f.u.releases, 2);
        CHECK_EQ(write_text(&f, "c", &owners[2]), -EPIPE);
        CHECK_EQ(owners[2], 0); /* stays ours */
        CHECK_EQ(pl_stream_shutdown(&f.u.stream), -EPIPE);
        CHECK_EQ(f.u.closes, 0);
        pl_stream_close(&f.u.stream);
        turns(&f, 2);
        CHECK_EQ(f.u.closes, 1);
        end(&f);
    }
}

static void a_real_broken_pipe(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    CHECK_OK(pl_stream_read_start(&f.u.stream));
    close(f.peer);
    f.peer = -1;
    f.u.on_failed = close_it;
    CHECK_OK(write_text(&f, "nobody", &owners[0]));
    turns(&f, 3);
    CHECK_EQ(f.u.failed, -EPIPE);
    CHECK_EQ(f.u.closes, 1);
    CHECK_EQ(owners[0], 1);
    end(&f);
}

static void without_the_poller_a_blocked_stream_fails(void)
{
    struct fixture f;
    start(&f);
    if (f.loop.backend->input != NULL) {
        end(&f);
        PL_SKIP("watching takes no call that could fail");
    }
    memset(owners, 0, sizeof(owners));
    fault.refuse = 1;
    fault.ctl_error = -ENOSPC;
    CHECK_OK(write_text(&f, "a", &owners[0]));
    turns(&f, 2);
    CHECK_EQ(f.u.failed, -ENOSPC);
    end(&f);
    CHECK_EQ(owners[0], 1);
}

static const struct pl_test tests[] = {
    PL_TEST(reads_what_arrives_then_the_end),
    PL_TEST(a_vain_event_gives_the_buffer_back),
    PL_TEST(a_failed_read_is_told_once),
    PL_TEST(no_read_comes_after_read_stop),
    PL_TEST(a_read_may_close_or_abort),
    PL_TEST(writes_of_one_callback_are_one_call),
    PL_TEST(a_write_outside_of_callbacks_is_flushed),
    PL_TEST(a_large_write_drains_what_was_corked),
    PL_TEST(empty_chunks_are_released_at_once),
    PL_TEST(the_release_of_an_empty_chunk_may_do_anything),
    PL_TEST(every_byte_arrives_in_order),
    PL_TEST(a_full_kernel_buffer_is_waited_for),
    PL_TEST(a_failed_write_is_told_from_the_loop),
    PL_TEST(a_real_broken_pipe),
    PL_TEST(without_the_poller_a_blocked_stream_fails),
};
PL_TEST_MAIN(tests)
