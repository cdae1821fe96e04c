/* test_oom.c - out of memory is an ordinary error.
 *
 * The ladder: a scenario is run with a budget of 0 allocations, then 1, 2, ... until it
 * succeeds. On every rung a failure must say -ENOMEM, leave the object as it was, and
 * nothing may leak (a count of blocks here, and the sanitizers).
 */
#include "pl_internal.h"
#include "pl_test.h"

#include <fcntl.h>
#include <unistd.h>

static int budget;
static int blocks;

static void *lean_alloc(size_t size)
{
    if (budget == 0)
        return NULL;
    budget--;
    blocks++;
    return malloc(size);
}

static void *lean_realloc(void *ptr, size_t size)
{
    if (budget == 0)
        return NULL;
    budget--;
    blocks += ptr == NULL;
    return realloc(ptr, size);
}

static void lean_free(void *ptr)
{
    blocks -= ptr != NULL;
    free(ptr);
}

static struct pl_sys lean(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.alloc = lean_alloc;
    sys.realloc = lean_realloc;
    sys.free = lean_free;
    blocks = 0;
    return sys;
}

static int ran;

static void count(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op;
    ran++;
}

static void making_a_loop(void)
{
    struct pl_sys sys = lean();
    struct pl_loop loop;
    int first_free = dup(0);
    close(first_free);
    for (int rung = 0;; rung++) {
        budget = rung;
        int r = pl_test_loop(&loop, &sys);
        if (r == 0)
            break;
        CHECK_EQ(r, -ENOMEM);
        CHECK_EQ(blocks, 0);
        int fd = dup(0);
        CHECK_EQ(fd, first_free); /* no descriptor is left */
        close(fd);
        pl_loop_fini(&loop); /* half-built is accepted */
    }
    CHECK_CMP(blocks, >, 0);
    pl_loop_fini(&loop);
    CHECK_EQ(blocks, 0);
}

static void growing_the_ready_queue(void)
{
    enum { N = 1000 };
    struct pl_sys sys = lean();
    struct pl_loop loop;
    budget = 100;
    CHECK_OK(pl_test_loop(&loop, &sys));
    struct pl_op op = {count};
    int queued = 0;
    int refused = 0;
    while (queued < N) {
        budget = 0;
        int r = pl_loop_enqueue(&loop, &op);
        if (r == -ENOMEM) {
            refused++;
            budget = 1;
            r = pl_loop_enqueue(&loop, &op);
        }
        CHECK_OK(r);
        queued++;
        CHECK_EQ(pl_queue_len(&loop.ready), queued);
    }
    CHECK_CMP(refused, >=, 4);
    ran = 0;
    CHECK_EQ(pl_loop_run(&loop, NULL), N);
    CHECK_EQ(ran, N);
    pl_loop_fini(&loop);
    CHECK_EQ(blocks, 0);
}

static void growing_the_timers(void)
{
    enum { N = 200 };
    struct pl_sys sys = lean();
    struct pl_loop loop;
    static struct pl_timer timers[N];
    budget = 100;
    CHECK_OK(pl_test_loop(&loop, &sys));
    int refused = 0;
    for (int i = 0; i < N; i++) {
        timers[i] = (struct pl_timer){.op.run = count};
        budget = 0;
        int r = pl_timer_start(&loop, &timers[i], 1);
        if (r == -ENOMEM) {
            CHECK(!pl_timer_active(&timers[i]));
            refused++;
            budget = 1;
            r = pl_timer_start(&loop, &timers[i], 1);
        }
        CHECK_OK(r);
        /* Moving one needs no memory. */
        budget = 0;
        CHECK_OK(pl_timer_start(&loop, &timers[i / 2], 1));
    }
    CHECK_CMP(refused, >=, 3);
    /* Expiry meets a ready queue that cannot grow: nothing is lost, it comes later. */
    ran = 0;
    budget = 0;
    CHECK_EQ(pl_loop_collect(&loop), -ENOMEM);
    CHECK_OK(pl_loop_run(&loop, NULL));
    CHECK_CMP(ran, <, N);
    budget = 100;
    while (ran < N)
        CHECK_OK(pl_loop_once(&loop));
    CHECK_EQ(ran, N);
    pl_loop_fini(&loop);
    CHECK_EQ(blocks, 0);
}

static int posted_order[256];

struct numbered {
    struct pl_post post;
    int number;
};

static void record(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    posted_order[ran++] = PL_CONTAINER_OF(op, struct numbered, post.op)->number;
}

static void posts_survive(void)
{
    enum { N = 200 };
    struct pl_sys sys = lean();
    struct pl_loop loop;
    static struct numbered nodes[N];
    budget = 100;
    CHECK_OK(pl_test_loop(&loop, &sys));
    for (int i = 0; i < N; i++) {
        nodes[i] = (struct numbered){.post.op.run = record, .number = i};
        pl_loop_post(&loop, &nodes[i].post);
    }
    ran = 0;
    budget = 0;
    CHECK_EQ(pl_loop_once(&loop), -ENOMEM);
    CHECK_EQ(pl_loop_timeout(&loop), 0); /* it does not go to sleep over the rest */
    while (ran < N) {
        int r = pl_loop_once(&loop);
        CHECK(r >= 0 || r == -ENOMEM);
        CHECK_OK(pl_loop_run(&loop, NULL));
    }
    for (int i = 0; i < N; i++)
        CHECK_EQ(posted_order[i], i);
    pl_loop_fini(&loop);
    CHECK_EQ(blocks, 0);
}

static int io_calls;

static void io_run(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct pl_io *io = PL_CONTAINER_OF(op, struct pl_io, op);
    io->queued = false;
    io->ready = 0;
    io_calls++;
}

static void descriptors_grow_and_edges_survive(void)
{
    enum { N = 100 };
    struct pl_sys sys = lean();
    struct pl_loop loop;
    static struct pl_io ios[N];
    static int fds[N][2];
    budget = 100;
    CHECK_OK(pl_test_loop(&loop, &sys));
    int refused = 0;
    for (int i = 0; i < N; i++) {
        CHECK_OK(sys.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds[i]));
        budget = 0;
        int r = pl_io_open(&loop, &ios[i], fds[i][0], PL_IO_EDGE, io_run);
        if (r == -ENOMEM) {
            CHECK(pl_io_find(&loop, fds[i][0]) == NULL);
            refused++;
            budget = 1;
            r = pl_io_open(&loop, &ios[i], fds[i][0], PL_IO_EDGE, io_run);
        }
        CHECK_OK(r);
        CHECK_OK(pl_io_watch(&loop, &ios[i], PL_READABLE));
        CHECK_EQ(write(fds[i][1], "x", 1), 1);
    }
    CHECK_CMP(refused, >=, 1);
    /* Edges are told only once by the kernel: what does not fit is kept. */
    io_calls = 0;
    budget = 0;
    CHECK_EQ(pl_loop_once(&loop), -ENOMEM);
    CHECK_OK(pl_loop_run(&loop, NULL));
    CHECK_CMP(io_calls, <, N);
    for (int i = 0; i < 10 && io_calls < N; i++)
        (void)!pl_loop_once(&loop);
    CHECK_EQ(io_calls, N);
    for (int i = 0; i < N; i++) {
        pl_io_close(&loop, &ios[i]);
        close(fds[i][0]), close(fds[i][1]);
    }
    pl_loop_fini(&loop);
    CHECK_EQ(blocks, 0);
}

/* ---- streams -------------------------------------------------------------- */

static int released, closed_calls;

static void on_release(struct pl_stream *s, void *owner)
{
    (void)s;
    (void)owner;
    released++;
}

static void on_release_late(struct pl_loop *loop, void *owner)
{
    (void)loop;
    (void)owner;
    released++;
}

static void on_closed(struct pl_stream *s)
{
    (void)s;
    closed_calls++;
}

static void on_drained(struct pl_stream *s)
{
    (void)s;
}

static const struct pl_stream_ops ops = {
    .release = on_release,
    .closed = on_closed,
    .drained = on_drained,
    .release_late = on_release_late,
};

static void a_write_that_cannot_be_queued(void)
{
    struct pl_sys sys = lean();
    struct pl_loop loop;
    struct pl_stream s;
    int fds[2];
    budget = 100;
    CHECK_OK(pl_test_loop(&loop, &sys));
    CHECK_OK(sys.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    CHECK_OK(pl_stream_open(&loop, &s, fds[0], true, &ops));
    struct pl_chunk chunks[9];
    for (int i = 0; i < 9; i++)
        chunks[i] = (struct pl_chunk){.data = "x", .len = 1, .owner = &sys};
    released = closed_calls = 0;
    budget = 0;
    CHECK_OK(pl_stream_write(&s, chunks, PL_STREAM_INLINE)); /* fits into the stream itself */
    CHECK_EQ(pl_stream_write(&s, chunks, 9), -ENOMEM);
    CHECK_EQ(released, 0); /* owners stay the caller's */
    CHECK_EQ(s.queued, PL_STREAM_INLINE);
    budget = 1;
    CHECK_OK(pl_stream_write(&s, chunks, 9));
    CHECK_OK(pl_loop_run(&loop, NULL));
    CHECK_EQ(released, PL_STREAM_INLINE + 9);

    /* The end needs no memory, even when the ready queue is full and cannot grow. */
    struct pl_op op = {count};
    budget = 0;
    while (pl_loop_enqueue(&loop, &op) == 0)
        continue;
    pl_stream_close(&s);
    CHECK_EQ(pl_loop_timeout(&loop), 0);
    CHECK_OK(pl_loop_run(&loop, NULL));
    CHECK_OK(pl_loop_once(&loop));
    CHECK_EQ(closed_calls, 1);
    close(fds[0]), close(fds[1]);
    pl_loop_fini(&loop);
    CHECK_EQ(blocks, 0);
}

/* Several ends that find no place in the ready queue: all come later, none is lost. */
static void many_ends_without_memory(void)
{
    enum { N = 5 };
    struct pl_sys sys = lean();
    struct pl_loop loop;
    struct pl_stream s[N];
    int fds[N][2];
    budget = 100;
    CHECK_OK(pl_test_loop(&loop, &sys));
    for (int i = 0; i < N; i++) {
        CHECK_OK(sys.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds[i]));
        CHECK_OK(pl_stream_open(&loop, &s[i], fds[i][0], true, &ops));
    }
    struct pl_op op = {count};
    budget = 0;
    while (pl_loop_enqueue(&loop, &op) == 0)
        continue;
    closed_calls = 0;
    for (int i = 0; i < N; i++)
        pl_stream_abort(&s[i]);
    CHECK_OK(pl_loop_run(&loop, NULL));
    CHECK_EQ(closed_calls, 0);
    CHECK_EQ(pl_loop_once(&loop), N);
    CHECK_EQ(closed_calls, N);
    for (int i = 0; i < N; i++)
        close(fds[i][0]), close(fds[i][1]);
    pl_loop_fini(&loop);
    CHECK_EQ(blocks, 0);
}

static void no_accept(struct pl_listener *l, int fd, const struct sockaddr *addr, socklen_t len)
{
    (void)l;
    (void)addr;
    (void)len;
    close(fd);
}

static void listener_closed(struct pl_listener *l)
{
    (void)l;
}

static void exited(struct pl_child *child, int status, const struct rusage *usage)
{
    (void)child;
    (void)status;
    (void)usage;
}

/* Descriptors so high that each constructor has to grow the table. */
static void opening_the_rest(void)
{
    struct pl_sys sys = lean();
    struct pl_loop loop;
    int high = 500;
    int fds[2];
    budget = 100;
    CHECK_OK(sys.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    CHECK_SYS(dup2(fds[0], high));

    struct pl_stream s;
    CHECK_OK(pl_test_loop(&loop, &sys));
    budget = 0;
    CHECK_EQ(pl_stream_open(&loop, &s, high, true, &ops), -ENOMEM);
    pl_loop_fini(&loop);

    struct pl_listener l = {.accepted = no_accept, .closed = listener_closed};
    budget = 100;
    CHECK_OK(pl_test_loop(&loop, &sys));
    budget = 0;
    CHECK_EQ(pl_listener_open(&loop, &l, high), -ENOMEM);
    CHECK(pl_io_find(&loop, high) == NULL);
    pl_loop_fini(&loop);

    /* The pidfd takes the lowest free number, so the low ones are used up first. */
    enum { MANY = 80 };
    int filler[MANY];
    struct pl_child child = {.exited = exited};
    budget = 100;
    CHECK_OK(pl_test_loop(&loop, &sys));
    for (int i = 0; i < MANY; i++)
        filler[i] = dup(fds[0]);
    int expected = dup(fds[0]);
    close(expected);
    budget = 0;
    CHECK_EQ(pl_child_watch(&loop, &child, getpid()), -ENOMEM);
    int after = dup(fds[0]);
    CHECK_EQ(after, expected); /* the pidfd is closed */
    close(after);
    for (int i = 0; i < MANY; i++)
        close(filler[i]);
    pl_loop_fini(&loop);
    close(fds[0]), close(fds[1]), close(high);
    CHECK_EQ(blocks, 0);
}

static void read_one(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct pl_io *io = PL_CONTAINER_OF(op, struct pl_io, op);
    io->queued = false;
    io->ready = 0;
    ran++;
    char byte;
    CHECK_EQ(read(io->fd, &byte, 1), 1);
}

/* An event that was fetched, and found no place in the queue, is of the watch of that time. */
static void a_watch_after_a_failed_collect(void)
{
    struct pl_sys sys = lean();
    struct pl_loop loop;
    struct pl_io io;
    struct pl_op op = {.run = count};
    int pipes[2];
    char byte;
    budget = 1000;
    CHECK_OK(pl_test_loop(&loop, &sys));
    CHECK_SYS(pipe2(pipes, O_NONBLOCK));
    CHECK_OK(pl_io_open(&loop, &io, pipes[0], PL_IO_LEVEL, read_one));
    CHECK_OK(pl_io_watch(&loop, &io, PL_READABLE));
    CHECK_EQ(write(pipes[1], "x", 1), 1);
    budget = 0;
    uint32_t filled = 0;
    while (pl_loop_enqueue(&loop, &op) == 0)
        filled++;
    CHECK_CMP(pl_loop_wait(&loop, -1), >, 0);
    CHECK_EQ(pl_loop_collect(&loop), -ENOMEM);

    budget = 1000;
    CHECK_OK(pl_io_watch(&loop, &io, 0));
    CHECK_EQ(read(pipes[0], &byte, 1), 1);
    CHECK_OK(pl_io_watch(&loop, &io, PL_READABLE));
    ran = 0;
    CHECK_EQ(pl_loop_run(&loop, NULL), filled);
    CHECK_EQ(pl_loop_once(&loop), 0);
    CHECK_EQ(pl_loop_timeout(&loop), -1);
    CHECK_EQ(write(pipes[1], "x", 1), 1);
    CHECK_EQ(pl_loop_once(&loop), 1);
    CHECK_EQ(ran, filled + 1);

    pl_io_close(&loop, &io);
    pl_loop_fini(&loop);
    CHECK_SYS(close(pipes[0]));
    CHECK_SYS(close(pipes[1]));
    CHECK_EQ(blocks, 0);
}

static const struct pl_test tests[] = {
    PL_TEST(making_a_loop),
    PL_TEST(growing_the_ready_queue),
    PL_TEST(growing_the_timers),
    PL_TEST(posts_survive),
    PL_TEST(descriptors_grow_and_edges_survive),
    PL_TEST(a_write_that_cannot_be_queued),
    PL_TEST(many_ends_without_memory),
    PL_TEST(opening_the_rest),
    PL_TEST(a_watch_after_a_failed_collect),
};
PL_TEST_MAIN(tests)
