/* test_uring.c - what only the io_uring backend does: receiving and accepting in the ring, whose
 * files it holds, moving between threads, and a kernel that refuses.
 */
#include "pl_internal.h"
#include "pl_test.h"

#if PL_HAVE_IO_URING

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a kernel that has less ------------------------------------------------ */

static struct {
    int setup_error;       /* what every io_uring_setup says, if not 0 */
    uint32_t known_flags;  /* flags of setup that it knows; 0: all */
    uint32_t features_off; /* features that it has not */
    int register_error;    /* what io_uring_register of `register_op` says, if not 0 */
    uint32_t register_op;
    int hide_op; /* an operation that the probe does not show; -1: none */
    int mmap_error;
    int memfd_error;
    int enter_error; /* what the next io_uring_enter says, once */
    int recvs;
} kernel;

static int less_setup(uint32_t entries, struct io_uring_params *params)
{
    if (kernel.setup_error != 0)
        return kernel.setup_error;
    if (kernel.known_flags != 0 && (params->flags & ~kernel.known_flags) != 0)
        return -EINVAL;
    int r = pl_sys_default()->uring_setup(entries, params);
    params->features &= ~kernel.features_off;
    return r;
}

static int less_register(int fd, uint32_t op, void *arg, uint32_t n)
{
    if (kernel.register_error != 0 && op == kernel.register_op)
        return kernel.register_error;
    int r = pl_sys_default()->uring_register(fd, op, arg, n);
    if (r >= 0 && op == IORING_REGISTER_PROBE && kernel.hide_op >= 0)
        ((struct io_uring_probe *)arg)->ops[kernel.hide_op].flags = 0;
    return r;
}

static int less_enter(int fd, uint32_t submit, uint32_t least, uint32_t flags, const void *arg,
                      size_t size)
{
    if (kernel.enter_error != 0) {
        int r = kernel.enter_error;
        kernel.enter_error = 0;
        return r;
    }
    return pl_sys_default()->uring_enter(fd, submit, least, flags, arg, size);
}

static int less_mmap(int fd, size_t size, int64_t offset, void **out)
{
    return kernel.mmap_error != 0 ? kernel.mmap_error
                                  : pl_sys_default()->mmap_ring(fd, size, offset, out);
}

static int less_memfd(const char *name)
{
    return kernel.memfd_error != 0 ? kernel.memfd_error : pl_sys_default()->memfd_create(name);
}

static ssize_t counting_recv(int fd, void *buf, size_t len, int flags)
{
    kernel.recvs++;
    return pl_sys_default()->recv(fd, buf, len, flags);
}

static struct pl_sys system_with_less(void)
{
    struct pl_sys sys = *pl_sys_default();
    memset(&kernel, 0, sizeof(kernel));
    kernel.hide_op = -1;
    sys.uring_setup = less_setup;
    sys.uring_register = less_register;
    sys.uring_enter = less_enter;
    sys.mmap_ring = less_mmap;
    sys.memfd_create = less_memfd;
    sys.recv = counting_recv;
    return sys;
}

static int open_loop(struct pl_loop *loop, const struct pl_sys *sys)
{
    return pl_loop_init(loop,
                        &(struct pl_loop_config){.sys = sys, .backend = PL_BACKEND_URING});
}

/* Whether this machine's kernel gives a loop all of the backend. */
static bool usable(void)
{
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    bool all = loop.backend->input != NULL;
    pl_loop_fini(&loop);
    return all;
}

#define NEED_RING()                                                                                \
    do {                                                                                           \
        if (!usable())                                                                             \
            PL_SKIP("this kernel has no io_uring, or an old one");                                 \
    } while (0)

/* ---- a stream that checks what it reads ------------------------------------- */

/* The n-th byte of every stream here. */
static char byte_at(size_t n)
{
    return (char)(n * 131 + (n >> 9));
}

struct reader {
    struct pl_stream stream;
    char buf[32768];
    size_t got;
    size_t stop_at; /* stops reading when this much has come; 0: never */
    int reads, closed;
    ssize_t last;
    bool ended;
};

static struct reader *reader_of(struct pl_stream *s)
{
    return PL_CONTAINER_OF(s, struct reader, stream);
}

static void *room(struct pl_stream *s, size_t hint, size_t *len)
{
    (void)hint;
    *len = sizeof(reader_of(s)->buf);
    return reader_of(s)->buf;
}

static void on_read(struct pl_stream *s, void *buf, ssize_t n)
{
    struct reader *r = reader_of(s);
    r->last = n;
    r->reads++;
    if (n <= 0) {
        r->ended = true;
        return;
    }
    for (ssize_t i = 0; i < n; i++)
        CHECK_EQ(((char *)buf)[i], byte_at(r->got + (size_t)i));
    r->got += (size_t)n;
    if (r->stop_at != 0 && r->got >= r->stop_at)
        pl_stream_read_stop(s);
}

static void on_again(struct pl_stream *s, void *buf)
{
    (void)s, (void)buf;
}

static void on_drained(struct pl_stream *s)
{
    (void)s;
}

static void on_failed(struct pl_stream *s, int error)
{
    (void)s, (void)error;
}

static void on_release(struct pl_stream *s, void *owner)
{
    (void)s, (void)owner;
}

static void on_closed(struct pl_stream *s)
{
    reader_of(s)->closed++;
}

static const struct pl_stream_ops ops = {room, on_read, on_again, on_drained,
                                         on_failed, on_release, on_closed};

/* A stream on one end of a new pair; the other end is returned. */
static int open_reader(struct pl_loop *loop, struct reader *r, bool borrows)
{
    int fds[2];
    CHECK_OK(pl_sys_default()->socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                                          fds));
    memset(r, 0, sizeof(*r));
    CHECK_OK(pl_stream_open(loop, &r->stream, fds[0], true, &ops));
    r->stream.borrows = borrows;
    CHECK_OK(pl_stream_read_start(&r->stream));
    return fds[1];
}

static void close_reader(struct pl_loop *loop, struct reader *r, int peer)
{
    pl_stream_abort(&r->stream);
    RUN_UNTIL(loop, r->closed == 1);
    close(r->stream.io.fd);
    if (peer >= 0)
        close(peer);
}

/* Sends the bytes from *sent on, as many as the socket takes of n. */
static void send_some(int fd, size_t *sent, size_t n)
{
    char buf[65536];
    while (n > 0) {
        size_t part = n < sizeof(buf) ? n : sizeof(buf);
        for (size_t i = 0; i < part; i++)
            buf[i] = byte_at(*sent + i);
        ssize_t done = send(fd, buf, part, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done <= 0)
            return;
        *sent += (size_t)done;
        n -= (size_t)done;
    }
}

static void turn(struct pl_loop *loop)
{
    int r = pl_loop_wait(loop, 0);
    if (r != -EINTR)
        CHECK_OK(r);
    CHECK_OK(pl_loop_collect(loop));
    CHECK_OK(pl_loop_run(loop, NULL));
}

/* Whether the other end has been closed, without waiting and without the loop. */
static bool peer_sees_end(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char c;
    CHECK_SYS(poll(&p, 1, 0));
    return (p.revents & POLLIN) != 0 && recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

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

static int listening(struct sockaddr_in *addr)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK_SYS(fd);
    CHECK_SYS(bind(fd, (struct sockaddr *)addr, sizeof(*addr)));
    CHECK_SYS(listen(fd, 64));
    socklen_t len = sizeof(*addr);
    CHECK_SYS(getsockname(fd, (struct sockaddr *)addr, &len));
    return fd;
}

static int connected_to(const struct sockaddr_in *addr)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_SYS(fd);
    CHECK_SYS(connect(fd, (const struct sockaddr *)addr, sizeof(*addr)));
    return fd;
}

static void a_closed_listener_frees_its_port(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < 20; i++) {
        int fd = listening(&addr); /* the same port each time */
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
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int collect = 0; collect < 2; collect++) {
        addr.sin_port = 0;
        int fd = listening(&addr);
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

static void a_starved_listener_can_be_closed(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = listening(&addr);
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

/* ---- threads and forks ------------------------------------------------------------- */

struct stint {
    struct pl_loop *loop;
    struct reader *r;
    int peer;
    size_t *sent;
};

static void *work(void *arg)
{
    struct stint *s = arg;
    for (int i = 0; i < 20; i++) {
        send_some(s->peer, s->sent, i % 5 == 0 ? 20000 : 500);
        RUN_UNTIL(s->loop, s->r->got == *s->sent);
    }
    return NULL;
}

static void another_thread_may_run_it(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct reader r;
    size_t sent = 0;
    struct stint stint = {&loop, &r, open_reader(&loop, &r, true), &sent};
    for (int i = 0; i < 6; i++) {
        if (i % 3 == 2) {
            (void)work(&stint);
            continue;
        }
        /* Two threads after each other, which may well go by the same number. */
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, work, &stint), 0);
        CHECK_EQ(pthread_join(thread, NULL), 0);
    }
    close_reader(&loop, &r, stint.peer);
    pl_loop_fini(&loop);
}

static void a_fork_leaves_the_parent_alone(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct reader r;
    size_t sent = 0;
    int peer = open_reader(&loop, &r, true);
    turn(&loop);
    pid_t pid = fork();
    CHECK_SYS(pid);
    if (pid == 0) {
        pl_loop_after_fork(&loop);
        if (pl_loop_wait(&loop, 0) != PL_EFORKED)
            _exit(1);
        pl_stream_forget(&r.stream);
        pl_loop_fini(&loop);
        struct pl_loop mine;
        if (open_loop(&mine, NULL) < 0)
            _exit(2);
        pl_loop_fini(&mine);
        _exit(0);
    }
    for (int i = 0; i < 100; i++) {
        send_some(peer, &sent, 300);
        RUN_UNTIL(&loop, r.got == sent);
    }
    int status;
    CHECK_SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 0);
    send_some(peer, &sent, 300);
    RUN_UNTIL(&loop, r.got == sent);
    close_reader(&loop, &r, peer);
    pl_loop_fini(&loop);
}

/* ---- files in the loop's ring ---------------------------------------------------------- */

static int told;
static char data[] = "data";

static void collectable(struct pl_files *files)
{
    (void)files;
    told++;
}

static int open_file(void)
{
    char name[] = "/tmp/plait-uring-XXXXXX";
    int fd = mkstemp(name);
    CHECK_SYS(fd);
    CHECK_SYS(unlink(name));
    return fd;
}

/* Writes that are synchronised end in the kernel's threads, and not within the call. */
static void files_share_the_ring(void)
{
    NEED_RING();
    enum { FILES = 24 };
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct pl_files files;
    CHECK_OK(pl_files_init(&files, loop.sys, PL_FILE_AUTO));
    pl_files_join(&files, &loop, collectable);
    struct pl_file_req req[FILES];
    int fd = open_file();
    /* Before the loop has run it has no ring of this thread's. */
    memset(req, 0, sizeof(req));
    req[0] = (struct pl_file_req){.op = PL_FILE_SYNC, .fd = fd};
    int r = pl_files_submit(&files, &req[0]);
    CHECK_OK(r);
    CHECK(req[0].place != PL_FILE_IN_LOOP);
    CHECK_EQ(pl_files_settle(&files, -1), 0);
    (void)pl_files_collect(&files);
    CHECK_EQ(files.stats.inflight, 0);

    turn(&loop);
    struct reader reader;
    size_t sent = 0;
    int peer = open_reader(&loop, &reader, true);
    for (int how = 0; how < 3; how++) {
        int inflight = 0, collected = 0;
        told = 0;
        for (int i = 0; i < FILES; i++) {
            req[i] = (struct pl_file_req){.op = i % 2 ? PL_FILE_WRITE : PL_FILE_SYNC,
                                          .fd = fd,
                                          .data = data,
                                          .len = 4,
                                          .offset = 4 * i};
            r = pl_files_submit(&files, &req[i]);
            CHECK_OK(r);
            if (r == 0) {
                inflight++;
                CHECK_EQ(req[i].place, PL_FILE_IN_LOOP);
            }
            send_some(peer, &sent, 10);
        }
        if (how == 1)
            pl_loop_park(&loop, -1); /* all have ended, and nobody has been told */
        if (how == 2)
            CHECK_EQ(pl_files_settle(&files, -1), 0); /* they can be collected at once */
        while (collected < inflight) {
            for (struct pl_file_req *done = pl_files_collect(&files); done != NULL;
                 done = done->next, collected++)
                CHECK_EQ(done->result, done->op == PL_FILE_WRITE ? 4 : 0);
            if (collected < inflight) {
                CHECK(how != 2);
                CHECK_OK(pl_loop_once(&loop));
            }
        }
        CHECK(how == 2 || inflight == 0 || told > 0);
        RUN_UNTIL(&loop, reader.got == sent); /* the completions of others were kept */
        CHECK_EQ(files.stats.inflight, 0);
    }
    close_reader(&loop, &reader, peer);
    /* The loop ends with operations in its ring, the queue after it. */
    for (int i = 0; i < FILES; i++) {
        req[i] = (struct pl_file_req){.op = PL_FILE_SYNC, .fd = fd};
        CHECK_OK(pl_files_submit(&files, &req[i]));
    }
    pl_loop_fini(&loop);
    CHECK_EQ(pl_files_settle(&files, -1), 0);
    (void)pl_files_collect(&files);
    CHECK_EQ(files.stats.inflight, 0);
    pl_files_fini(&files);
    close(fd);
}

/* Another thread than that of the ring: the queue has a ring of its own for that. */
static void *submit_elsewhere(void *arg)
{
    struct pl_files *files = arg;
    int fd = open_file();
    struct pl_file_req req = {.op = PL_FILE_WRITE, .fd = fd, .data = data, .len = 1};
    int r = pl_files_submit(files, &req);
    CHECK_OK(r);
    CHECK(req.place != PL_FILE_IN_LOOP);
    if (r == 0)
        CHECK_EQ(pl_files_settle(files, -1), 0);
    (void)pl_files_collect(files);
    CHECK(req.result == 1 || req.result == -ECANCELED); /* by settle */
    close(fd);
    return NULL;
}

static void files_of_another_thread(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct pl_files files;
    CHECK_OK(pl_files_init(&files, loop.sys, PL_FILE_AUTO));
    pl_files_join(&files, &loop, collectable);
    turn(&loop);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, submit_elsewhere, &files), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    pl_files_fini(&files);
    pl_loop_fini(&loop);
}

/* ---- a kernel that refuses ------------------------------------------------------------ */

/* A few messages of both sizes and a wake-up, whatever the backend. */
static void check_it_works(struct pl_loop *loop)
{
    struct reader r;
    size_t sent = 0;
    int peer = open_reader(loop, &r, true);
    struct stint stint = {loop, &r, peer, &sent};
    (void)work(&stint);
    pl_loop_wake(loop);
    CHECK_OK(pl_loop_wait(loop, -1));
    close(peer);
    RUN_UNTIL(loop, r.ended);
    close_reader(loop, &r, -1);
}

static void a_refusal_means_epoll(void)
{
    int errors[] = {-ENOSYS, -EPERM, -EACCES, -ENOMEM, -EMFILE, -ENFILE, -EINVAL, -EAGAIN};
    for (size_t i = 0; i < PL_ARRAY_LEN(errors); i++) {
        for (int stage = 0; stage < 4; stage++) {
            struct pl_sys sys = system_with_less();
            switch (stage) {
            case 0:
                kernel.setup_error = errors[i];
                break;
            case 1:
                kernel.mmap_error = errors[i];
                break;
            case 2:
                kernel.memfd_error = errors[i];
                break;
            case 3:
                kernel.register_op = IORING_REGISTER_PROBE;
                kernel.register_error = errors[i];
                break;
            }
            struct pl_loop loop;
            CHECK_OK(open_loop(&loop, &sys));
            CHECK(strcmp(pl_loop_backend_name(&loop), "epoll") == 0);
            CHECK_CMP(loop.refused, <, 0);
            if (stage == 0)
                CHECK_EQ(loop.refused, errors[i]);
            check_it_works(&loop);
            pl_loop_fini(&loop);
        }
    }
}

static void features_that_are_missing_mean_epoll(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    kernel.features_off = IORING_FEAT_EXT_ARG;
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    CHECK(strcmp(pl_loop_backend_name(&loop), "epoll") == 0);
    CHECK_EQ(loop.refused, -EOPNOTSUPP);
    check_it_works(&loop);
    pl_loop_fini(&loop);
}

static void older_kernels_do_with_less(void)
{
    NEED_RING();
    const uint32_t base = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED;
    uint32_t known[] = {base, base | 1u << 7 | 1u << 8 | 1u << 9};
    for (size_t i = 0; i < PL_ARRAY_LEN(known); i++) {
        struct pl_sys sys = system_with_less();
        kernel.known_flags = known[i];
        kernel.hide_op = 59; /* waiting for an epoll set came last */
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        CHECK(strcmp(pl_loop_backend_name(&loop), "uring") == 0);
        CHECK(loop.backend->input == NULL);
        check_it_works(&loop);
        CHECK_CMP(kernel.recvs, >, 0);
        pl_loop_fini(&loop);
    }
    /* Buffers cannot be registered. */
    struct pl_sys sys = system_with_less();
    kernel.register_op = IORING_REGISTER_PBUF_RING;
    kernel.register_error = -EINVAL;
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    CHECK(loop.backend->input == NULL);
    check_it_works(&loop);
    pl_loop_fini(&loop);
}

static void a_shortage_while_it_runs_passes(void)
{
    NEED_RING();
    int errors[] = {-EINTR, -EAGAIN, -EBUSY, -ETIME};
    for (size_t i = 0; i < PL_ARRAY_LEN(errors); i++) {
        struct pl_sys sys = system_with_less();
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        struct reader r;
        size_t sent = 0;
        int peer = open_reader(&loop, &r, true);
        for (int k = 0; k < 50; k++) {
            send_some(peer, &sent, 200);
            kernel.enter_error = errors[i];
            RUN_UNTIL(&loop, r.got == sent);
        }
        kernel.enter_error = errors[i]; /* the cancel that frees the file goes with the next */
        close_reader(&loop, &r, peer);
        pl_loop_fini(&loop);
    }
}

static const struct pl_test tests[] = {
    PL_TEST(small_messages_need_no_receive),
    PL_TEST(what_is_sent_arrives_in_order),
    PL_TEST(streams_that_wait_hold_no_buffers),
    PL_TEST(out_of_buffers_it_goes_on),
    PL_TEST(a_closed_descriptor_is_closed),
    PL_TEST(a_reused_number_is_another_stream),
    PL_TEST(a_closed_listener_frees_its_port),
    PL_TEST(connections_nobody_took_are_closed),
    PL_TEST(a_starved_listener_can_be_closed),
    PL_TEST(another_thread_may_run_it),
    PL_TEST(a_fork_leaves_the_parent_alone),
    PL_TEST(files_share_the_ring),
    PL_TEST(files_of_another_thread),
    PL_TEST(a_refusal_means_epoll),
    PL_TEST(features_that_are_missing_mean_epoll),
    PL_TEST(older_kernels_do_with_less),
    PL_TEST(a_shortage_while_it_runs_passes),
};
PL_TEST_MAIN(tests)

#else

int main(void)
{
    return 77; /* a build without the kernel's header */
}

#endif
