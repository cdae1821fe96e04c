/* test_bulk.c - large messages that arrive together are read a few at a time, and what follows
 * from each runs before the next ones are read.
 */
#include "pl_test.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define STREAMS 6
#define MESSAGE 100000

struct user {
    struct pl_stream stream;
    struct pl_op after; /* what follows from a read */
    struct fixture *f;
    int peer;
    size_t got;
    bool closed;
};

struct fixture {
    struct pl_loop loop;
    struct user users[STREAMS];
    char buf[2 * MESSAGE];
    int reads;
    int waiting;      /* reads whose `after` has not run */
    int most_waiting; /* the most of them at a time */
    struct user *aborts;
};

static struct user *of(struct pl_stream *s)
{
    return PL_CONTAINER_OF(s, struct user, stream);
}

static void *room(struct pl_stream *s, size_t hint, size_t *len)
{
    (void)hint;
    *len = sizeof(of(s)->f->buf);
    return of(s)->f->buf;
}

static void follow(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    PL_CONTAINER_OF(op, struct user, after)->f->waiting--;
}

static void on_read(struct pl_stream *s, void *buf, ssize_t n)
{
    (void)buf;
    struct user *u = of(s);
    struct fixture *f = u->f;
    CHECK_CMP(n, >, 0);
    u->got += (size_t)n;
    if (u->got < MESSAGE)
        return;
    CHECK_EQ(u->got, MESSAGE);
    f->reads++;
    if (++f->waiting > f->most_waiting)
        f->most_waiting = f->waiting;
    CHECK_OK(pl_loop_enqueue(&f->loop, &u->after));
    for (int i = 0; f->aborts == u && i < STREAMS; i++)
        pl_stream_abort(&f->users[i].stream);
}

static void again(struct pl_stream *s, void *buf)
{
    (void)s;
    (void)buf;
}

static void drained(struct pl_stream *s)
{
    (void)s;
}

static void failed(struct pl_stream *s, int error)
{
    (void)s;
    CHECK_OK(error);
}

static void on_closed(struct pl_stream *s)
{
    of(s)->closed = true;
}

static const struct pl_stream_ops ops = {
    .room = room,
    .read = on_read,
    .again = again,
    .drained = drained,
    .failed = failed,
    .closed = on_closed,
};

static void send_all(struct fixture *f, size_t size)
{
    static char message[MESSAGE];
    for (int i = 0; i < STREAMS; i++) {
        f->users[i].got = MESSAGE - size;
        CHECK_EQ(write(f->users[i].peer, message, size), (ssize_t)size);
    }
    f->reads = f->most_waiting = 0;
}

/* Streams whose last messages were of this size. */
static void start(struct fixture *f, size_t size)
{
    memset(f, 0, sizeof(*f));
    CHECK_OK(pl_test_loop(&f->loop, NULL));
    for (int i = 0; i < STREAMS; i++) {
        struct user *u = &f->users[i];
        int pair[2];
        CHECK_SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
        CHECK_SYS(fcntl(pair[0], F_SETFL, O_NONBLOCK));
        u->f = f;
        u->after.run = follow;
        u->peer = pair[1];
        CHECK_OK(pl_stream_open(&f->loop, &u->stream, pair[0], true, &ops));
        CHECK_OK(pl_stream_read_start(&u->stream));
    }
    for (int round = 0; round < 2; round++) {
        send_all(f, size);
        RUN_UNTIL(&f->loop, f->reads == STREAMS && f->waiting == 0);
    }
}

static void end(struct fixture *f)
{
    for (int i = 0; i < STREAMS; i++) {
        struct user *u = &f->users[i];
        int fd = u->stream.io.fd;
        if (!u->stream.dead)
            pl_stream_abort(&u->stream);
        RUN_UNTIL(&f->loop, u->closed);
        CHECK_SYS(close(fd));
        CHECK_SYS(close(u->peer));
    }
    pl_loop_fini(&f->loop);
}

static void large_messages_take_turns(void)
{
    struct fixture f;
    start(&f, MESSAGE);
    send_all(&f, MESSAGE);
    uint64_t polls = f.loop.stats.polls;
    RUN_UNTIL(&f.loop, f.reads == STREAMS);
    CHECK_EQ(f.most_waiting, 1);
    /* They were told of together, and nobody was asked again. */
    if (strcmp(pl_loop_backend_name(&f.loop), "epoll") == 0)
        CHECK_EQ(f.loop.stats.polls - polls, 1);
    CHECK(!f.loop.unreported);
    RUN_UNTIL(&f.loop, f.waiting == 0);
    CHECK_EQ(pl_loop_timeout(&f.loop), -1);
    end(&f);
}

static void small_messages_do_not(void)
{
    struct fixture f;
    start(&f, 1000);
    send_all(&f, 1000);
    RUN_UNTIL(&f.loop, f.reads == STREAMS && f.waiting == 0);
    CHECK_EQ(f.most_waiting, STREAMS);
    end(&f);
}

static void the_next_wait_does_not_sleep(void)
{
    struct fixture f;
    start(&f, MESSAGE);
    send_all(&f, MESSAGE);
    CHECK_OK(pl_loop_once(&f.loop));
    CHECK(f.loop.unreported);
    CHECK_EQ(pl_loop_timeout(&f.loop), 0);
    CHECK_OK(pl_loop_wait(&f.loop, -1));
    RUN_UNTIL(&f.loop, f.reads == STREAMS && f.waiting == 0);
    end(&f);
}

static void a_stream_may_end_before_its_turn(void)
{
    struct fixture f;
    start(&f, MESSAGE);
    f.aborts = &f.users[0];
    send_all(&f, MESSAGE);
    RUN_UNTIL(&f.loop, f.aborts->closed && f.waiting == 0 && !f.loop.unreported);
    CHECK_CMP(f.reads, <, STREAMS);
    end(&f);
}

/* ---- a descriptor whose event is held while its watch changes ---- */

struct watched {
    struct pl_io io;
    int peer;
    int calls;
};

static void on_watched(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct watched *w = PL_CONTAINER_OF(op, struct watched, io.op);
    w->io.queued = false;
    w->io.ready = 0;
    w->calls++;
    char byte;
    CHECK_EQ(read(w->io.fd, &byte, 1), 1);
}

/* The poller has told that it is readable, but that is not passed on before the large messages. */
static void start_held(struct fixture *f, struct watched *w, enum pl_io_mode mode)
{
    int pair[2];
    start(f, MESSAGE);
    CHECK_SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    CHECK_SYS(fcntl(pair[0], F_SETFL, O_NONBLOCK));
    *w = (struct watched){.peer = pair[1]};
    CHECK_OK(pl_io_open(&f->loop, &w->io, pair[0], mode, on_watched));
    CHECK_OK(pl_io_watch(&f->loop, &w->io, PL_READABLE));
    send_all(f, MESSAGE);
    CHECK_EQ(write(w->peer, "x", 1), 1);
    CHECK_OK(pl_loop_once(&f->loop));
    CHECK(f->loop.unreported);
    CHECK_EQ(w->calls, 0);
}

static void end_held(struct fixture *f, struct watched *w)
{
    RUN_UNTIL(&f->loop, f->reads == STREAMS && f->waiting == 0);
    CHECK_EQ(pl_loop_timeout(&f->loop), -1);
    int fd = w->io.fd;
    pl_io_close(&f->loop, &w->io);
    CHECK_SYS(close(fd));
    CHECK_SYS(close(w->peer));
    end(f);
}

static const enum pl_io_mode modes[] = {PL_IO_LEVEL, PL_IO_EDGE};

static void a_new_watch_hears_nothing_of_before(void)
{
    for (size_t i = 0; i < PL_ARRAY_LEN(modes); i++) {
        struct fixture f;
        struct watched w;
        char byte;
        start_held(&f, &w, modes[i]);
        CHECK_OK(pl_io_watch(&f.loop, &w.io, 0));
        CHECK_EQ(read(w.io.fd, &byte, 1), 1);
        CHECK_OK(pl_io_watch(&f.loop, &w.io, PL_READABLE));
        RUN_UNTIL(&f.loop, f.reads == STREAMS && f.waiting == 0);
        CHECK_EQ(write(w.peer, "x", 1), 1);
        RUN_UNTIL(&f.loop, w.calls == 1);
        end_held(&f, &w);
    }
}

static void a_new_watch_hears_what_is_still_so(void)
{
    for (size_t i = 0; i < PL_ARRAY_LEN(modes); i++) {
        struct fixture f;
        struct watched w;
        start_held(&f, &w, modes[i]);
        CHECK_OK(pl_io_watch(&f.loop, &w.io, PL_READABLE));
        RUN_UNTIL(&f.loop, w.calls == 1);
        end_held(&f, &w);
    }
}

static const struct pl_test tests[] = {
    PL_TEST(large_messages_take_turns),           PL_TEST(small_messages_do_not),
    PL_TEST(the_next_wait_does_not_sleep),        PL_TEST(a_stream_may_end_before_its_turn),
    PL_TEST(a_new_watch_hears_nothing_of_before), PL_TEST(a_new_watch_hears_what_is_still_so),
};
PL_TEST_MAIN(tests)
