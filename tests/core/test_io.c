/* test_io.c - descriptors in the poller: modes, generations, reuse, files. */
#include "pl_internal.h"
#include "pl_test.h"

#include <fcntl.h>
#include <unistd.h>

struct probe {
    struct pl_io io;
    int calls;
    unsigned seen;
    struct probe *close_other;
};

static void probe_run(struct pl_loop *loop, struct pl_op *op)
{
    struct probe *p = PL_CONTAINER_OF(op, struct probe, io.op);
    p->io.queued = false;
    p->calls++;
    p->seen = p->io.ready;
    p->io.ready = 0;
    if (p->close_other != NULL && p->seen != 0) {
        pl_io_close(loop, &p->close_other->io);
        p->close_other = NULL;
    }
}

static void pair(int fds[2])
{
    CHECK_OK(
        pl_sys_default()->socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
}

static void send_byte(int fd)
{
    CHECK_EQ(write(fd, "x", 1), 1);
}

/* One iteration that does not block. */
static void turn(struct pl_loop *loop)
{
    CHECK_OK(pl_loop_wait(loop, 0));
    CHECK_OK(pl_loop_collect(loop));
    CHECK_OK(pl_loop_run(loop, NULL));
}

static void level_repeats_and_edge_does_not(void)
{
    struct pl_loop loop;
    struct probe level = {0};
    struct probe edge = {0};
    int a[2];
    int b[2];
    CHECK_OK(pl_test_loop(&loop, NULL));
    pair(a);
    pair(b);
    CHECK_OK(pl_io_open(&loop, &level.io, a[0], PL_IO_LEVEL, probe_run));
    CHECK_OK(pl_io_open(&loop, &edge.io, b[0], PL_IO_EDGE, probe_run));
    CHECK_OK(pl_io_watch(&loop, &level.io, PL_READABLE));
    CHECK_OK(pl_io_watch(&loop, &edge.io, PL_READABLE));
    turn(&loop);
    CHECK_EQ(level.calls + edge.calls, 0);
    send_byte(a[1]);
    send_byte(b[1]);
    for (int i = 0; i < 3; i++)
        turn(&loop);
    CHECK_EQ(level.calls, 3);
    CHECK_EQ(level.seen, PL_READABLE);
    CHECK_EQ(edge.calls, 1);
    /* Asked anew, an edge that is still there is told once more. */
    CHECK_OK(pl_io_watch(&loop, &edge.io, PL_READABLE));
    turn(&loop);
    turn(&loop);
    CHECK_EQ(edge.calls, 2);
    CHECK_OK(pl_io_watch(&loop, &level.io, PL_READABLE | PL_WRITABLE));
    turn(&loop);
    CHECK_EQ(level.seen, PL_READABLE | PL_WRITABLE);
    int calls = level.calls;
    CHECK_OK(pl_io_watch(&loop, &level.io, 0));
    turn(&loop);
    CHECK_EQ(level.calls, calls);
    pl_io_close(&loop, &level.io);
    pl_io_close(&loop, &edge.io);
    pl_loop_fini(&loop);
    close(a[0]), close(a[1]), close(b[0]), close(b[1]);
}

static void hang_up_is_told(void)
{
    struct pl_loop loop;
    struct probe p = {0};
    int fds[2];
    CHECK_OK(pl_test_loop(&loop, NULL));
    pair(fds);
    CHECK_OK(pl_io_open(&loop, &p.io, fds[0], PL_IO_LEVEL, probe_run));
    CHECK_OK(pl_io_watch(&loop, &p.io, PL_READABLE));
    close(fds[1]);
    turn(&loop);
    CHECK_EQ(p.seen, PL_READABLE | PL_HANGUP);
    CHECK_OK(pl_io_watch(&loop, &p.io, 0)); /* and not for ever */
    int calls = p.calls;
    turn(&loop);
    CHECK_EQ(p.calls, calls);
    pl_io_close(&loop, &p.io);
    pl_loop_fini(&loop);
    close(fds[0]);
}

static void a_place_is_taken_once(void)
{
    struct pl_loop loop;
    struct probe p = {0};
    struct probe q = {0};
    int fds[2];
    CHECK_OK(pl_test_loop(&loop, NULL));
    pair(fds);
    CHECK_EQ(pl_io_open(&loop, &p.io, -1, PL_IO_LEVEL, probe_run), -EBADF);
    CHECK_OK(pl_io_open(&loop, &p.io, fds[0], PL_IO_LEVEL, probe_run));
    CHECK_EQ(pl_io_open(&loop, &q.io, fds[0], PL_IO_LEVEL, probe_run), -EEXIST);
    CHECK(pl_io_find(&loop, fds[0]) == &p.io);
    CHECK(pl_io_find(&loop, fds[1]) == NULL);
    CHECK(pl_io_find(&loop, -1) == NULL);
    CHECK(pl_io_find(&loop, 1 << 20) == NULL);
    pl_io_close(&loop, &p.io);
    pl_io_close(&loop, &p.io); /* harmless */
    CHECK(pl_io_find(&loop, fds[0]) == NULL);
    CHECK_OK(pl_io_open(&loop, &q.io, fds[0], PL_IO_LEVEL, probe_run));
    pl_io_close(&loop, &p.io); /* not its place any more */
    CHECK(pl_io_find(&loop, fds[0]) == &q.io);
    pl_io_close(&loop, &q.io);
    pl_loop_fini(&loop);
    close(fds[0]), close(fds[1]);
}

/* Events fetched for a descriptor that is closed and reused before they are collected
 * must not reach the new one. */
static void an_idle_one_gives_way(void)
{
    struct pl_loop loop;
    struct probe idle = {0};
    struct probe heir = {0};
    int fds[2];
    CHECK_OK(pl_test_loop(&loop, NULL));
    pair(fds);
    CHECK_OK(pl_io_open(&loop, &idle.io, fds[0], PL_IO_LEVEL, probe_run));
    CHECK_OK(pl_io_watch(&loop, &idle.io, PL_READABLE));
    CHECK(pl_io_find(&loop, fds[0]) == &idle.io);
    CHECK_EQ(pl_io_open(&loop, &heir.io, fds[0], PL_IO_LEVEL, probe_run), -EEXIST);

    idle.io.idle = true;
    CHECK(pl_io_find(&loop, fds[0]) == NULL);
    CHECK(pl_io_has_place(&loop, &idle.io));
    /* The event is fetched before the place changes hands: it reaches nobody. */
    send_byte(fds[1]);
    CHECK_OK(pl_loop_wait(&loop, 0));
    CHECK_OK(pl_io_open(&loop, &heir.io, fds[0], PL_IO_LEVEL, probe_run));
    CHECK(!pl_io_has_place(&loop, &idle.io));
    CHECK(pl_io_has_place(&loop, &heir.io));
    CHECK_OK(pl_loop_collect(&loop));
    CHECK_OK(pl_loop_run(&loop, NULL));
    CHECK_EQ(idle.calls + heir.calls, 0);
    CHECK_OK(pl_io_watch(&loop, &heir.io, PL_READABLE));
    turn(&loop);
    CHECK_EQ(idle.calls, 0);
    CHECK_EQ(heir.calls, 1);

    pl_io_close(&loop, &idle.io); /* without effect on the heir */
    CHECK(pl_io_has_place(&loop, &heir.io));
    pl_io_close(&loop, &heir.io);
    pl_loop_fini(&loop);
    close(fds[0]);
    close(fds[1]);
}

static void an_old_event_does_not_reach_a_new_descriptor(void)
{
    struct pl_loop loop;
    struct probe old = {0};
    struct probe new = {0};
    int a[2];
    int b[2];
    CHECK_OK(pl_test_loop(&loop, NULL));
    pair(a);
    pair(b);
    CHECK_OK(pl_io_open(&loop, &old.io, a[0], PL_IO_LEVEL, probe_run));
    CHECK_OK(pl_io_watch(&loop, &old.io, PL_READABLE));
    send_byte(a[1]);
    CHECK_EQ(pl_loop_wait(&loop, -1), 1);
    pl_io_close(&loop, &old.io);
    CHECK_SYS(dup2(b[0], a[0]));
    CHECK_OK(pl_io_open(&loop, &new.io, a[0], PL_IO_LEVEL, probe_run));
    CHECK_OK(pl_io_watch(&loop, &new.io, PL_READABLE));
    CHECK_OK(pl_loop_collect(&loop));
    CHECK_EQ(pl_loop_run(&loop, NULL), 0);
    CHECK_EQ(old.calls + new.calls, 0);
    send_byte(b[1]);
    turn(&loop);
    CHECK_EQ(new.calls, 1);
    pl_io_close(&loop, &new.io);
    pl_loop_fini(&loop);
    close(a[0]), close(a[1]), close(b[0]), close(b[1]);
}

/* One callback closes the other descriptor of the same batch. */
static void closing_within_the_batch(void)
{
    struct pl_loop loop;
    struct probe p[2] = {{{{0}}}};
    int a[2];
    int b[2];
    CHECK_OK(pl_test_loop(&loop, NULL));
    pair(a);
    pair(b);
    CHECK_OK(pl_io_open(&loop, &p[0].io, a[0], PL_IO_LEVEL, probe_run));
    CHECK_OK(pl_io_open(&loop, &p[1].io, b[0], PL_IO_LEVEL, probe_run));
    CHECK_OK(pl_io_watch(&loop, &p[0].io, PL_READABLE));
    CHECK_OK(pl_io_watch(&loop, &p[1].io, PL_READABLE));
    p[0].close_other = &p[1];
    p[1].close_other = &p[0];
    send_byte(a[1]);
    send_byte(b[1]);
    turn(&loop);
    /* Both ops were queued: the closed one runs with nothing ready. */
    CHECK_EQ(p[0].calls + p[1].calls, 2);
    struct probe *closed = pl_io_find(&loop, a[0]) == NULL ? &p[0] : &p[1];
    CHECK_EQ(closed->seen, 0);
    pl_io_close(&loop, &p[0].io);
    pl_io_close(&loop, &p[1].io);
    turn(&loop);
    CHECK_EQ(p[0].calls + p[1].calls, 2);
    pl_loop_fini(&loop);
    close(a[0]), close(a[1]), close(b[0]), close(b[1]);
}

/* The user closes a watched descriptor and gets the same number again, unannounced. */
static void watch_repairs_a_reused_descriptor(void)
{
    struct pl_loop loop;
    struct probe p = {0};
    int a[2];
    int b[2];
    CHECK_OK(pl_test_loop(&loop, NULL));
    pair(a);
    pair(b);
    CHECK_OK(pl_io_open(&loop, &p.io, a[0], PL_IO_LEVEL, probe_run));
    CHECK_OK(pl_io_watch(&loop, &p.io, PL_READABLE));
    CHECK_SYS(dup2(b[0], a[0])); /* the kernel forgets the first registration */
    send_byte(b[1]);
    turn(&loop);
    CHECK_EQ(p.calls, 0);
    CHECK_OK(pl_io_watch(&loop, &p.io, PL_READABLE));
    turn(&loop);
    CHECK_EQ(p.calls, 1);
    close(a[0]);
    CHECK_EQ(pl_io_watch(&loop, &p.io, PL_READABLE), -EBADF);
    pl_io_close(&loop, &p.io);
    pl_loop_fini(&loop);
    close(a[1]), close(b[0]), close(b[1]);
}

static void files_are_refused(void)
{
    struct pl_loop loop;
    struct probe p = {0};
    CHECK_OK(pl_test_loop(&loop, NULL));
    FILE *file = tmpfile();
    CHECK(file != NULL);
    CHECK_OK(pl_io_open(&loop, &p.io, fileno(file), PL_IO_LEVEL, probe_run));
    CHECK_EQ(pl_io_watch(&loop, &p.io, PL_READABLE), -EPERM);
    CHECK_EQ(p.io.want, 0);
    pl_io_close(&loop, &p.io);
    pl_loop_fini(&loop);
    fclose(file);
}

/* More ready descriptors than one poll returns: none starves. */
static void many_descriptors(void)
{
    enum { N = 400 };
    struct pl_loop loop;
    static struct probe p[N];
    static int fds[N][2];
    CHECK_OK(pl_test_loop(&loop, NULL));
    memset(p, 0, sizeof(p));
    for (int i = 0; i < N; i++) {
        pair(fds[i]);
        CHECK_OK(pl_io_open(&loop, &p[i].io, fds[i][0], PL_IO_LEVEL, probe_run));
        CHECK_OK(pl_io_watch(&loop, &p[i].io, PL_READABLE));
        send_byte(fds[i][1]);
    }
    turn(&loop);
    turn(&loop);
    for (int i = 0; i < N; i++) {
        CHECK_CMP(p[i].calls, >=, 1);
        pl_io_close(&loop, &p[i].io);
        close(fds[i][0]), close(fds[i][1]);
    }
    pl_loop_fini(&loop);
}

static const struct pl_test tests[] = {
    PL_TEST(level_repeats_and_edge_does_not),
    PL_TEST(hang_up_is_told),
    PL_TEST(a_place_is_taken_once),
    PL_TEST(an_idle_one_gives_way),
    PL_TEST(an_old_event_does_not_reach_a_new_descriptor),
    PL_TEST(closing_within_the_batch),
    PL_TEST(watch_repairs_a_reused_descriptor),
    PL_TEST(files_are_refused),
    PL_TEST(many_descriptors),
};
PL_TEST_MAIN(tests)
