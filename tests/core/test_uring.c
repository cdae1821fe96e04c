/* test_uring.c - the io_uring backend: receiving and accepting in the ring, and whose files it
 * holds.
 */
#include "uring_support.h"

#if PL_HAVE_IO_URING

#include <arpa/inet.h>
#include <fcntl.h>
#include <unistd.h>

#include "pl_uring_poller.h"

/* ---- receiving ----------------------------------------------------------------- */

static void small_messages_need_no_receive(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    struct reader r;
    int peer = open_reader(&loop, &r, true);
    size_t sent = 0;
    for (int i = 0; i < 5000; i++) {
        send_some(peer, &sent, 1 + (size_t)i % 900);
        RUN_UNTIL(&loop, r.got == sent);
    }
    CHECK_EQ(kernel.recvs, 0);
    close_reader(&loop, &r, peer);
    pl_loop_fini(&loop);
}

/* Sizes of all orders, pauses at any moment, both kinds of user: every byte comes, in order. */
static void what_is_sent_arrives_in_order(void)
{
    NEED_RING();
    for (int borrows = 0; borrows < 2; borrows++) {
        struct pl_sys sys = system_with_less();
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        enum { STREAMS = 40 };
        static struct reader r[STREAMS];
        int peer[STREAMS];
        size_t sent[STREAMS] = {0};
        for (int i = 0; i < STREAMS; i++)
            peer[i] = open_reader(&loop, &r[i], borrows);
        uint64_t seed = 7 + (uint64_t)borrows;
        for (int step = 0; step < 6000; step++) {
            uint64_t x = pl_test_random(&seed);
            int i = (int)(x % STREAMS);
            unsigned scale = (unsigned)(x >> 16) % 17;
            if (sent[i] < 4u << 20)
                send_some(peer[i], &sent[i], (x >> 32) % ((uint64_t)1 << scale) + 1);
            switch ((x >> 8) % 8) {
            case 0:
                pl_stream_read_stop(&r[i].stream);
                break;
            case 1:
                r[i].stop_at = r[i].got + 1;
                break;
            case 2:
            case 3:
                r[i].stop_at = 0;
                CHECK_OK(pl_stream_read_start(&r[i].stream));
                break;
            default:
                turn(&loop);
            }
        }
        for (int i = 0; i < STREAMS; i++) {
            r[i].stop_at = 0;
            CHECK_OK(pl_stream_read_start(&r[i].stream));
            close(peer[i]);
            RUN_UNTIL(&loop, r[i].ended);
            CHECK_EQ(r[i].last, 0);
            CHECK_EQ(r[i].got, sent[i]);
            close_reader(&loop, &r[i], -1);
        }
        pl_loop_fini(&loop);
    }
}

/* Those that do not read keep none of the buffers that all share. */
static void streams_that_wait_hold_no_buffers(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    enum { STREAMS = 300 };
    static struct reader r[STREAMS];
    static int peer[STREAMS];
    static size_t sent[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        peer[i] = open_reader(&loop, &r[i], true);
        sent[i] = 0;
    }
    turn(&loop);
    /* Five rounds of a message each, for streams that have stopped: more than there are. */
    for (int i = 0; i < STREAMS; i++)
        pl_stream_read_stop(&r[i].stream);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < STREAMS; i++)
            send_some(peer[i], &sent[i], 700);
        turn(&loop);
    }
    struct reader other;
    int other_peer = open_reader(&loop, &other, true);
    size_t other_sent = 0;
    turn(&loop);
    kernel.recvs = 0;
    for (int i = 0; i < 600; i++) {
        send_some(other_peer, &other_sent, 100);
        RUN_UNTIL(&loop, other.got == other_sent);
    }
    CHECK_EQ(kernel.recvs, 0); /* buffers were there all the time */
    for (int i = 0; i < STREAMS; i++) {
        CHECK_EQ(r[i].got, 0);
        CHECK_OK(pl_stream_read_start(&r[i].stream));
        RUN_UNTIL(&loop, r[i].got == sent[i]);
        close_reader(&loop, &r[i], peer[i]);
    }
    close_reader(&loop, &other, other_peer);
    pl_loop_fini(&loop);
}

/* More messages at once than there are buffers. */
static void out_of_buffers_it_goes_on(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    enum { STREAMS = 450, EACH = 3 };
    static struct reader r[STREAMS];
    static int peer[STREAMS];
    static size_t sent[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        peer[i] = open_reader(&loop, &r[i], true);
        sent[i] = 0;
    }
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < STREAMS; i++)
            send_some(peer[i], &sent[i], 2048 * EACH);
        for (int i = 0; i < STREAMS; i++)
            RUN_UNTIL(&loop, r[i].got == sent[i]);
    }
    for (int i = 0; i < STREAMS; i++)
        close_reader(&loop, &r[i], peer[i]);
    pl_loop_fini(&loop);
}

/* ---- whose file it is ------------------------------------------------------------ */

static void ignore(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct pl_io *io = PL_CONTAINER_OF(op, struct pl_io, op);
    io->queued = false;
    io->ready = 0;
}

static void a_closed_descriptor_is_closed(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    /* A stream's, as soon as its place is given up: the loop need not run again. */
    struct reader r;
    int peer = open_reader(&loop, &r, true);
    turn(&loop);
    pl_stream_abort(&r.stream);
    close(r.stream.io.fd);
    CHECK(peer_sees_end(peer));
    RUN_UNTIL(&loop, r.closed == 1);
    close(peer);
    /* One that waits for room to write. */
    peer = open_reader(&loop, &r, true);
    static char big[1 << 20];
    CHECK_OK(pl_stream_write(&r.stream, &(struct pl_chunk){.data = big, .len = sizeof(big)}, 1));
    turn(&loop);
    CHECK(r.stream.blocked);
    pl_stream_abort(&r.stream);
    close(r.stream.io.fd);
    while (recv(peer, big, sizeof(big), MSG_DONTWAIT) > 0) {
    }
    CHECK(peer_sees_end(peer));
    RUN_UNTIL(&loop, r.closed == 1);
    close(peer);
    /* The program's own, closed behind the loop's back. */
    int fds[2];
    CHECK_SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
    struct pl_io io;
    CHECK_OK(pl_io_open(&loop, &io, fds[0], PL_IO_LEVEL, ignore));
    CHECK_OK(pl_io_watch(&loop, &io, PL_READABLE));
    turn(&loop);
    close(fds[0]);
    CHECK(peer_sees_end(fds[1]));
    pl_io_close(&loop, &io);
    close(fds[1]);
    pl_loop_fini(&loop);
}

/* More than the ring takes at once, while the kernel takes none. */
static void what_could_not_be_cancelled_is_later(void)
{
    NEED_RING();
    enum { N = 300 };
    static struct reader readers[N];
    static int peers[N];
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    for (int i = 0; i < N; i++)
        peers[i] = open_reader(&loop, &readers[i], true);
    while (loop.poller->dirty != 0)
        turn(&loop);
    kernel.enter_error = -EAGAIN;
    kernel.enter_fails = true;
    for (int i = 0; i < N; i++) {
        pl_stream_abort(&readers[i].stream);
        close(readers[i].stream.io.fd);
    }
    /* The last number is used again before the ring knows of the end. */
    struct reader again;
    int fd = readers[N - 1].stream.io.fd, pair[2];
    CHECK_SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
    CHECK_SYS(dup2(pair[0], fd));
    memset(&again, 0, sizeof(again));
    CHECK_OK(pl_stream_open(&loop, &again.stream, fd, true, &reader_ops));
    CHECK_EQ(pl_stream_read_start(&again.stream), -ENOMEM);
    kernel.enter_error = 0;
    kernel.enter_fails = false;
    CHECK_OK(pl_stream_read_start(&again.stream));
    for (int i = 0; i < N; i++)
        RUN_UNTIL(&loop, peer_sees_end(peers[i]) && readers[i].closed == 1);
    size_t sent = 0;
    send_some(pair[1], &sent, 300);
    RUN_UNTIL(&loop, again.got == sent);
    close_reader(&loop, &again, pair[1]);
    close(pair[0]);
    for (int i = 0; i < N; i++)
        close(peers[i]);
    pl_loop_fini(&loop);
}

/* A descriptor that is closed and opened again between two waits is another one. */
static void a_reused_number_is_another_stream(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    for (int i = 0; i < 200; i++) {
        struct reader old, new;
        int old_peer = open_reader(&loop, &old, true);
        turn(&loop);
        size_t old_sent = 1000; /* bytes that the next stream would object to */
        send_some(old_peer, &old_sent, 500);
        if (i % 2)
            CHECK_OK(pl_loop_wait(&loop, -1)); /* received, and not collected */
        pl_stream_forget(&old.stream);
        int fd = old.stream.io.fd;
        close(fd);
        int peer = open_reader(&loop, &new, true);
        CHECK_EQ(new.stream.io.fd, fd);
        size_t sent = 0;
        send_some(peer, &sent, 300);
        RUN_UNTIL(&loop, new.got == sent);
        CHECK_EQ(old.got, 0);
        close(old_peer);
        close_reader(&loop, &new, peer);
    }
    pl_loop_fini(&loop);
}

struct server {
    struct pl_listener l;
    int accepted, closed, starved;
};

static void on_accepted(struct pl_listener *l, int fd, const struct sockaddr *addr, socklen_t len)
{
    (void)addr, (void)len;
    CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    PL_CONTAINER_OF(l, struct server, l)->accepted++;
    close(fd);
}

static void on_starved(struct pl_listener *l, int error)
{
    PL_CONTAINER_OF(l, struct server, l)->starved = error;
}

static void on_listener_closed(struct pl_listener *l)
{
    PL_CONTAINER_OF(l, struct server, l)->closed++;
}

static void a_closed_listener_frees_its_port(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < 20; i++) {
        int fd = listening(&addr, 64); /* the same port each time */
        struct server s = {.l = {.accepted = on_accepted, .closed = on_listener_closed}};
        CHECK_OK(pl_listener_open(&loop, &s.l, fd));
        turn(&loop);
        pl_listener_close(&s.l);
        close(fd);
        RUN_UNTIL(&loop, s.closed == 1);
    }
    pl_loop_fini(&loop);
}

/* What was accepted and not handed over when the listener closes is closed as well. */
static void connections_nobody_took_are_closed(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int collect = 0; collect < 2; collect++) {
        addr.sin_port = 0;
        int fd = listening(&addr, 64);
        struct server s = {.l = {.accepted = on_accepted, .closed = on_listener_closed}};
        CHECK_OK(pl_listener_open(&loop, &s.l, fd));
        turn(&loop);
        int client = connected_to(&addr);
        CHECK_OK(pl_loop_wait(&loop, -1));
        if (collect)
            CHECK_OK(pl_loop_collect(&loop));
        pl_listener_close(&s.l);
        close(fd);
        RUN_UNTIL(&loop, s.closed == 1);
        CHECK_EQ(s.accepted, 0);
        char c;
        CHECK_CMP(recv(client, &c, 1, 0), <=, 0); /* the end, or a reset */
        close(client);
    }
    pl_loop_fini(&loop);
}

/* Of a socket that the program shares out, nobody has what another one could take. */
static void a_given_listener_leaves_connections_to_others(void)
{
    NEED_RING();
    struct pl_loop loops[2];
    struct server servers[2];
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = listening(&addr, 64);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(open_loop(&loops[i], NULL));
        servers[i] = (struct server){
            .l = {.accepted = on_accepted, .closed = on_listener_closed, .given = true}};
        CHECK_OK(pl_listener_open(&loops[i], &servers[i].l, fd));
        turn(&loops[i]);
    }
    /* The first to ask is busy. */
    for (int i = 1; i <= 5; i++) {
        int client = connected_to(&addr);
        RUN_UNTIL(&loops[1], servers[1].accepted == i);
        close(client);
    }
    for (int i = 0; i < 2; i++) {
        pl_listener_close(&servers[i].l);
        RUN_UNTIL(&loops[i], servers[i].closed == 1);
        pl_loop_fini(&loops[i]);
    }
    close(fd);
}

static void a_starved_listener_can_be_closed(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = listening(&addr, 64);
    struct server s = {
        .l = {.accepted = on_accepted, .starved = on_starved, .closed = on_listener_closed}};
    int client = connected_to(&addr);
    struct rlimit old;
    CHECK_SYS(getrlimit(RLIMIT_NOFILE, &old));
    CHECK_SYS(setrlimit(RLIMIT_NOFILE, &(struct rlimit){.rlim_max = old.rlim_max}));
    CHECK_OK(pl_listener_open(&loop, &s.l, fd));
    turn(&loop);
    CHECK_SYS(setrlimit(RLIMIT_NOFILE, &old));
    CHECK_EQ(s.starved, -EMFILE);
    CHECK(s.l.backing_off);
    turn(&loop);
    pl_listener_close(&s.l);
    RUN_UNTIL(&loop, s.closed == 1);
    CHECK_EQ(s.accepted, 0);
    close(fd);
    close(client);
    pl_loop_fini(&loop);
}

static const struct pl_test tests[] = {
    PL_TEST(small_messages_need_no_receive),
    PL_TEST(what_is_sent_arrives_in_order),
    PL_TEST(streams_that_wait_hold_no_buffers),
    PL_TEST(out_of_buffers_it_goes_on),
    PL_TEST(a_closed_descriptor_is_closed),
    PL_TEST(what_could_not_be_cancelled_is_later),
    PL_TEST(a_reused_number_is_another_stream),
    PL_TEST(a_closed_listener_frees_its_port),
    PL_TEST(connections_nobody_took_are_closed),
    PL_TEST(a_starved_listener_can_be_closed),
    PL_TEST(a_given_listener_leaves_connections_to_others),
};
PL_TEST_MAIN(tests)

#else

int main(void)
{
    return 77; /* a build without the kernel's header */
}

#endif
