/* test_uring_output.c - what the ring sends of a stream when the kernel takes no more at once, and
 * the connections that it makes.
 */
#include "uring_support.h"

#if PL_HAVE_IO_URING

#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pl_uring_poller.h"

/* ---- a stream that writes ---------------------------------------------------- */

#define BIG ((size_t)4 << 20)

static char *big; /* BIG bytes of byte_at */

struct writer {
    struct pl_stream stream;
    int fd, peer;
    int drains, closed, failed;
    size_t written, arrived;
    int owned; /* chunks whose owner the core has */
    void (*on_drained)(struct writer *w);
};

static int late; /* owners that came back by release_late */

static struct writer *writer_of(struct pl_stream *s)
{
    return PL_CONTAINER_OF(s, struct writer, stream);
}

static void *no_room(struct pl_stream *s, size_t hint, size_t *len)
{
    (void)s, (void)hint, (void)len;
    return NULL;
}

static void no_read(struct pl_stream *s, void *buf, ssize_t n)
{
    (void)s, (void)buf, (void)n;
}

static void no_again(struct pl_stream *s, void *buf)
{
    (void)s, (void)buf;
}

static void on_drained(struct pl_stream *s)
{
    struct writer *w = writer_of(s);
    w->drains++;
    if (w->on_drained != NULL)
        w->on_drained(w);
}

static void on_failed(struct pl_stream *s, int error)
{
    CHECK_EQ(writer_of(s)->failed, 0);
    writer_of(s)->failed = error;
}

static void on_release(struct pl_stream *s, void *owner)
{
    CHECK(owner == writer_of(s));
    writer_of(s)->owned--;
}

static void on_closed(struct pl_stream *s)
{
    CHECK_EQ(writer_of(s)->closed, 0);
    writer_of(s)->closed++;
}

/* The stream may be no more. */
static void on_release_late(struct pl_loop *loop, void *owner)
{
    (void)loop;
    late++;
    ((struct writer *)owner)->owned--;
}

static const struct pl_stream_ops writer_ops = {
    .room = no_room,
    .read = no_read,
    .again = no_again,
    .drained = on_drained,
    .failed = on_failed,
    .release = on_release,
    .closed = on_closed,
    .release_late = on_release_late,
};

static void open_writer(struct pl_loop *loop, struct writer *w)
{
    if (big == NULL) {
        big = malloc(BIG);
        CHECK(big != NULL);
        for (size_t i = 0; i < BIG; i++)
            big[i] = byte_at(i);
    }
    int fds[2];
    CHECK_SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    memset(w, 0, sizeof(*w));
    w->fd = fds[0];
    w->peer = fds[1];
    late = 0;
    CHECK_OK(pl_stream_open(loop, &w->stream, fds[0], true, &writer_ops));
    /* As of a connection: the ring knows of its descriptor. */
    CHECK_OK(pl_stream_read_start(&w->stream));
    turn(loop);
}

/* Writes the next bytes of the stream. */
static void write_next(struct writer *w, size_t n)
{
    CHECK_CMP(w->written + n, <=, BIG);
    struct pl_chunk chunk = {.data = big + w->written, .len = n, .owner = w};
    CHECK_OK(pl_stream_write(&w->stream, &chunk, 1));
    w->written += n;
    w->owned++;
}

/* Receives up to n bytes at the other end and checks them. How many there were. */
static size_t receive(struct writer *w, size_t n)
{
    static char buf[1 << 16];
    size_t sum = 0;
    while (sum < n) {
        size_t most = n - sum < sizeof(buf) ? n - sum : sizeof(buf);
        ssize_t got = recv(w->peer, buf, most, MSG_DONTWAIT);
        if (got <= 0)
            break;
        CHECK(memcmp(buf, big + w->arrived, (size_t)got) == 0);
        w->arrived += (size_t)got;
        sum += (size_t)got;
    }
    return sum;
}

static void receive_all(struct pl_loop *loop, struct writer *w)
{
    while (w->arrived < w->written) {
        (void)receive(w, SIZE_MAX);
        turn(loop);
    }
}

/* Fills the socket: the rest is the ring's. */
static void block(struct pl_loop *loop, struct writer *w, size_t n)
{
    write_next(w, n);
    turn(loop);
    CHECK(w->stream.blocked);
    CHECK(w->stream.sending != NULL);
    CHECK_EQ(loop->poller->unanswered, 1);
}

static void close_writer(struct pl_loop *loop, struct writer *w)
{
    if (w->closed == 0) {
        pl_stream_abort(&w->stream);
        RUN_UNTIL(loop, w->closed == 1);
    }
    RUN_UNTIL(loop, w->owned == 0);
    close(w->fd);
    if (w->peer >= 0)
        close(w->peer);
}

/* ---- sends ------------------------------------------------------------------- */

/* The direct call for what fits at once, the ring for all else. */
static void what_does_not_fit_is_sent_without_calls(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    struct writer w;
    open_writer(&loop, &w);
    write_next(&w, 1000);
    turn(&loop);
    CHECK_EQ(kernel.sends, 1);
    CHECK_EQ(receive(&w, SIZE_MAX), 1000);
    block(&loop, &w, BIG - 1000);
    CHECK_EQ(kernel.sends, 2);
    kernel.enters = 0;
    int pieces = 0;
    size_t queued = w.stream.queued;
    while (w.arrived < BIG) {
        pieces += receive(&w, SIZE_MAX) > 0;
        turn(&loop);
        CHECK_CMP(w.stream.queued, <=, queued); /* flow control sees each piece */
        queued = w.stream.queued;
    }
    RUN_UNTIL(&loop, w.stream.queued == 0);
    CHECK_EQ(kernel.sends, 2);
    CHECK_CMP(w.drains, >, pieces / 2);
    CHECK_CMP(kernel.enters, <=, 2 * pieces + 2);
    CHECK_EQ(w.owned, 0);
    CHECK_EQ(late, 0);
    CHECK_EQ(w.stream.io.want & PL_WRITABLE, 0);
    close_writer(&loop, &w);
    pl_loop_fini(&loop);
}

/* Writes of all sizes, more than go into one request, while the other end reads now and then. */
static void what_is_written_arrives_in_order(void)
{
    NEED_RING();
    enum { WRITERS = 6 };
    static struct writer w[WRITERS];
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    for (int i = 0; i < WRITERS; i++)
        open_writer(&loop, &w[i]);
    kernel.alloc_size = sizeof(struct pl_sending);
    uint64_t seed = 11;
    for (int step = 0; step < 8000; step++) {
        uint64_t x = pl_test_random(&seed);
        struct writer *one = &w[x % WRITERS];
        switch ((x >> 8) % 5) {
        case 0:
            (void)receive(one, (x >> 16) % 300000);
            break;
        case 1:
            turn(&loop);
            break;
        default: {
            size_t n = (x >> 32) % ((size_t)1 << ((x >> 16) % 18)) + 1;
            if (one->written + n <= BIG)
                write_next(one, n);
        }
        }
        if (x >> 60 == 0)
            kernel.alloc_fails = 1; /* without memory for a request it waits for room */
    }
    kernel.alloc_fails = 0;
    for (int i = 0; i < WRITERS; i++) {
        CHECK_OK(pl_stream_shutdown(&w[i].stream));
        receive_all(&loop, &w[i]);
        RUN_UNTIL(&loop, peer_sees_end(w[i].peer));
        CHECK_EQ(w[i].owned, 0);
        close_writer(&loop, &w[i]);
    }
    CHECK_EQ(late, 0);
    pl_loop_fini(&loop);
}

static void a_close_waits_for_what_is_on_its_way(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct writer w;
    open_writer(&loop, &w);
    block(&loop, &w, BIG / 2);
    write_next(&w, BIG / 2);
    pl_stream_close(&w.stream);
    turn(&loop);
    CHECK_EQ(w.closed, 0);
    receive_all(&loop, &w);
    RUN_UNTIL(&loop, w.closed == 1);
    CHECK_EQ(w.failed, 0);
    close_writer(&loop, &w);
    pl_loop_fini(&loop);
}

/* The memory is the kernel's until it has answered, whatever becomes of the stream. */
static void an_abort_leaves_the_memory_until_the_answer(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    for (int how = 0; how < 4; how++) {
        struct writer w;
        open_writer(&loop, &w);
        block(&loop, &w, BIG / 2);
        write_next(&w, 10); /* not on its way */
        if (how % 2) {
            kernel.enter_error = -EAGAIN; /* the cancel goes with the next call */
            kernel.enter_fails = true;
        }
        if (how < 2)
            pl_stream_abort(&w.stream);
        else
            pl_stream_forget(&w.stream);
        CHECK_EQ(w.owned, 1);
        CHECK_EQ(late, 0);
        CHECK(w.stream.sending == NULL);
        kernel.enter_error = 0;
        kernel.enter_fails = false;
        if (how % 2 == 0) {
            close(w.fd); /* and the descriptor is the caller's at once */
            (void)receive(&w, SIZE_MAX);
            CHECK(peer_sees_end(w.peer));
        }
        RUN_UNTIL(&loop, late == 1);
        CHECK_EQ(w.owned, 0);
        if (how < 2)
            RUN_UNTIL(&loop, w.closed == 1);
        if (how % 2)
            close(w.fd);
        close(w.peer);
    }
    pl_loop_fini(&loop);
}

/* The number may belong to another connection when the ring takes the request at last. */
static void what_was_not_submitted_does_not_reach_another(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    for (int how = 0; how < 2; how++) {
        struct writer w;
        open_writer(&loop, &w);
        write_next(&w, BIG / 2);
        CHECK(w.stream.sending != NULL); /* in the ring, and not in the kernel */
        kernel.enter_error = -EAGAIN;
        kernel.enter_fails = true;
        if (how == 0)
            pl_stream_abort(&w.stream);
        else
            pl_stream_forget(&w.stream);
        int other[2];
        CHECK_OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, other));
        CHECK_EQ(dup2(other[0], w.fd), w.fd);
        kernel.enter_error = 0;
        kernel.enter_fails = false;
        RUN_UNTIL(&loop, late == 1);
        char byte;
        CHECK_EQ(recv(other[1], &byte, 1, 0), -1);
        CHECK_EQ(errno, EAGAIN);
        if (how == 0)
            RUN_UNTIL(&loop, w.closed == 1);
        close(other[0]);
        close(other[1]);
        close(w.fd);
        close(w.peer);
    }
    pl_loop_fini(&loop);
}

static void the_end_of_a_loop_gives_back_what_is_on_its_way(void)
{
    NEED_RING();
    for (int submitted = 0; submitted < 2; submitted++) {
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, NULL));
        struct writer w;
        open_writer(&loop, &w);
        write_next(&w, BIG / 2); /* the request is in the ring, and not in the kernel */
        CHECK(w.stream.sending != NULL);
        if (submitted)
            turn(&loop);
        pl_stream_forget(&w.stream);
        pl_loop_fini(&loop);
        CHECK_EQ(late, 1);
        CHECK_EQ(w.owned, 0);
        close(w.fd);
        close(w.peer);
    }
}

static void a_failed_send_is_told(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    for (int aborted = 0; aborted < 2; aborted++) {
        struct writer w;
        open_writer(&loop, &w);
        pl_stream_read_stop(&w.stream);
        block(&loop, &w, BIG / 2);
        close(w.peer);
        w.peer = -1;
        if (aborted) {
            /* The answer has come, and the stream ends before it looks. */
            CHECK_OK(pl_loop_wait(&loop, -1));
            CHECK_OK(pl_loop_collect(&loop));
        } else {
            RUN_UNTIL(&loop, w.failed != 0);
            CHECK(w.failed == -EPIPE || w.failed == -ECONNRESET);
            CHECK_EQ(w.owned, 0);
            CHECK_EQ(w.stream.queued, 0);
        }
        close_writer(&loop, &w);
    }
    pl_loop_fini(&loop);
}

static void write_more(struct writer *w)
{
    /* What goes out at once is not told of. */
    while (w->stream.queued == 0 && w->written + 100000 <= BIG)
        write_next(w, 100000);
}

/* A user that writes whenever there is less to send never loses its turn. */
static void a_writer_that_goes_on_when_drained(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct writer w;
    open_writer(&loop, &w);
    w.on_drained = write_more;
    block(&loop, &w, 1000000);
    while (w.written + 100000 <= BIG) {
        (void)receive(&w, SIZE_MAX);
        turn(&loop);
    }
    receive_all(&loop, &w);
    close_writer(&loop, &w);
    pl_loop_fini(&loop);
}

static void *finish_elsewhere(void *arg)
{
    struct writer *w = arg;
    receive_all(w->stream.loop, w);
    return NULL;
}

/* Between two runs nothing is under way: the ring is its thread's. */
static void another_thread_sends_the_rest(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct writer w;
    open_writer(&loop, &w);
    for (int i = 0; i < 3; i++) {
        turn(&loop); /* the ring is this thread's now */
        block(&loop, &w, BIG / 4);
        pl_loop_park(&loop, -1);
        write_next(&w, 1000); /* outside of a run: it waits its turn */
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, finish_elsewhere, &w), 0);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        RUN_UNTIL(&loop, w.stream.queued == 0);
    }
    CHECK_EQ(w.owned, 0);
    /* Without the pause the ring is not given up: its memory is in use. */
    turn(&loop);
    block(&loop, &w, BIG - w.written);
    loop.poller->owner = (pthread_t)0;
    CHECK_EQ(pl_loop_wait(&loop, 0), -EBUSY);
    loop.poller->owner = pthread_self();
    pl_loop_park(&loop, -1);
    /* Nor is anything started then. */
    receive_all(&loop, &w);
    pl_loop_park(&loop, -1);
    close_writer(&loop, &w);
    pl_loop_fini(&loop);
}

/* Between two runs the ring may not send, so the poller is asked for room; not any more when the
 * ring sends. */
static void nobody_is_asked_for_room_while_it_sends(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct writer w;
    open_writer(&loop, &w);
    pl_loop_park(&loop, -1);
    write_next(&w, BIG);
    pl_stream_flush(&w.stream);
    CHECK(w.stream.blocked);
    CHECK(w.stream.sending == NULL);
    CHECK(w.stream.io.want & PL_WRITABLE);
    while (w.stream.sending == NULL) {
        (void)receive(&w, SIZE_MAX);
        turn(&loop);
    }
    CHECK(!(w.stream.io.want & PL_WRITABLE));
    CHECK(w.stream.io.want & PL_READABLE);
    receive_all(&loop, &w);
    close_writer(&loop, &w);
    pl_loop_fini(&loop);
}

static pid_t forked;

static void fork_here(struct pl_stream *s, void *owner)
{
    on_release(s, owner);
    forked = fork();
    CHECK_SYS(forked);
    if (forked > 0)
        return;
    pl_loop_after_fork(s->loop);
    writer_of(s)->drains = 0;
}

static void a_child_of_a_release_sends_no_rest(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct writer w;
    open_writer(&loop, &w);
    struct pl_stream_ops forking = writer_ops;
    forking.release = fork_here;
    block(&loop, &w, BIG / 2);
    write_next(&w, BIG / 2); /* waits behind what the ring sends */
    w.stream.ops = &forking;
    while (w.owned == 2) {
        (void)receive(&w, SIZE_MAX);
        turn(&loop);
        if (w.owned == 1 && forked == 0)
            _exit(w.stream.error == 0 && w.failed == 0 && w.drains == 0 ? 0 : 1);
    }
    w.stream.ops = &writer_ops;
    int status;
    CHECK_SYS(waitpid(forked, &status, 0));
    CHECK_EQ(status, 0);
    receive_all(&loop, &w); /* in order, and once */
    char more;
    CHECK_EQ(recv(w.peer, &more, 1, MSG_DONTWAIT), -1);
    close_writer(&loop, &w);
    pl_loop_fini(&loop);
}

static void a_fork_while_it_sends(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    struct writer w, gone;
    open_writer(&loop, &w);
    open_writer(&loop, &gone);
    block(&loop, &w, BIG);
    write_next(&gone, BIG);
    CHECK(gone.stream.sending != NULL);
    kernel.enter_error = -EAGAIN;
    pl_stream_forget(&gone.stream);
    CHECK_EQ(gone.owned, 1);
    struct pl_connect connect = {.done = NULL};
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK_OK(pl_connect_start(&loop, &connect, fd, (struct sockaddr *)&addr, sizeof(addr)));
    pid_t pid = fork();
    CHECK_SYS(pid);
    if (pid == 0) {
        pl_loop_after_fork(&loop);
        if (w.stream.sending != NULL || connect.at != NULL || late != 1 || gone.owned != 0)
            _exit(1);
        pl_connect_cancel(&loop, &connect);
        pl_stream_forget(&w.stream);
        pl_loop_fini(&loop);
        _exit(w.owned == 0 && late == 1 ? 0 : 2);
    }
    int status;
    CHECK_SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 0);
    pl_connect_cancel(&loop, &connect);
    close(fd);
    receive_all(&loop, &w);
    close_writer(&loop, &w);
    RUN_UNTIL(&loop, gone.owned == 0);
    CHECK_EQ(late, 1);
    close(gone.fd);
    close(gone.peer);
    pl_loop_fini(&loop);
}

/* ---- connects ---------------------------------------------------------------- */

struct client {
    struct pl_connect connect;
    int fd;
    int told, result;
};

static void on_connected(struct pl_connect *c, int result)
{
    struct client *client = PL_CONTAINER_OF(c, struct client, connect);
    CHECK(c->at == NULL);
    client->told++;
    client->result = result;
}

static int begin(struct pl_loop *loop, struct client *c, const struct sockaddr_in *addr)
{
    *c = (struct client){.connect.done = on_connected};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK_SYS(c->fd);
    return pl_connect_start(loop, &c->connect, c->fd, (const struct sockaddr *)addr, sizeof(*addr));
}

static struct sockaddr_in anywhere(void)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* A listener that takes no more: connecting to it takes long. */
static int full_listener(struct sockaddr_in *addr, int clients[3])
{
    int fd = listening(addr, 0);
    for (int i = 0; i < 3; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        CHECK_SYS(clients[i]);
        (void)connect(clients[i], (struct sockaddr *)addr, sizeof(*addr));
    }
    return fd;
}

static void it_connects_and_tells_of_refusals(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct sockaddr_in addr = anywhere();
    int fd = listening(&addr, 64);
    struct client c;
    CHECK_EQ(begin(&loop, &c, &addr), -EAGAIN); /* the loop has not run */
    close(c.fd);
    turn(&loop);
    enum { MANY = 32 };
    struct client many[MANY];
    for (int i = 0; i < MANY; i++)
        CHECK_OK(begin(&loop, &many[i], &addr));
    for (int i = 0; i < MANY; i++) {
        RUN_UNTIL(&loop, many[i].told == 1);
        CHECK_EQ(many[i].result, 0);
        CHECK_EQ(send(many[i].fd, "x", 1, 0), 1);
        close(many[i].fd);
    }
    close(fd);
    CHECK_OK(begin(&loop, &c, &addr));
    RUN_UNTIL(&loop, c.told == 1);
    CHECK_EQ(c.result, -ECONNREFUSED);
    close(c.fd);
    c.told = 0; /* and a descriptor that is closed */
    CHECK_OK(pl_connect_start(&loop, &c.connect, c.fd, (struct sockaddr *)&addr, sizeof(addr)));
    RUN_UNTIL(&loop, c.told == 1);
    CHECK_EQ(c.result, -EBADF);
    CHECK(loop.poller->inflight == NULL);
    pl_loop_fini(&loop);
}

static void a_cancelled_connect_tells_nothing(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    turn(&loop);
    struct sockaddr_in addr = anywhere(), full = anywhere();
    int clients[3];
    int fd = listening(&addr, 64), full_fd = full_listener(&full, clients);
    for (int when = 0; when < 5; when++) {
        struct client c;
        kernel.enter_error = when == 0 ? -EAGAIN : 0;
        CHECK_OK(begin(&loop, &c, when == 2 || when == 4 ? &full : &addr));
        switch (when) {
        case 0: /* before the kernel has seen it */
            break;
        case 1: /* done, and not collected */
            CHECK_OK(pl_loop_wait(&loop, -1));
            break;
        case 2: /* under way */
            turn(&loop);
            break;
        case 3: /* about to tell */
            CHECK_OK(pl_loop_wait(&loop, -1));
            CHECK_OK(pl_loop_collect(&loop));
            break;
        case 4: /* under way, and the kernel takes no cancel now */
            turn(&loop);
            kernel.enter_error = -EAGAIN;
            break;
        }
        CHECK_EQ(c.told, 0);
        pl_connect_cancel(&loop, &c.connect);
        pl_connect_cancel(&loop, &c.connect); /* once more does nothing */
        CHECK(c.connect.at == NULL);
        close(c.fd);
        RUN_UNTIL(&loop, loop.poller->inflight == NULL);
        CHECK_EQ(c.told, 0);
    }
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    close(full_fd);
    close(fd);
    pl_loop_fini(&loop);
}

struct crossing {
    struct pl_loop *loop;
    pthread_mutex_t lock; /* the binding's, which a wait goes without */
    struct client clients[8];
    atomic_bool over;
};

static void *cancel_elsewhere(void *arg)
{
    struct crossing *x = arg;
    for (int i = 0; i < 8; i += 2) {
        CHECK_EQ(pthread_mutex_lock(&x->lock), 0);
        pl_connect_cancel(x->loop, &x->clients[i].connect);
        /* The ring's thread looks at all of them, if it waits just now. */
        for (int tries = 0; tries < 1000 && atomic_load(&x->loop->poller->owes_ends); tries++)
            sched_yield();
        pl_connect_cancel(x->loop, &x->clients[i + 1].connect);
        CHECK_EQ(pthread_mutex_unlock(&x->lock), 0);
    }
    atomic_store(&x->over, true);
    return NULL;
}

/* ThreadSanitizer sees what both look at. */
static void another_thread_cancels_while_the_rings_waits(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    turn(&loop);
    struct sockaddr_in full = anywhere();
    int fds[3];
    int full_fd = full_listener(&full, fds);
    struct crossing x = {.loop = &loop, .lock = PTHREAD_MUTEX_INITIALIZER};
    for (int i = 0; i < 8; i++)
        CHECK_OK(begin(&loop, &x.clients[i], &full));
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, cancel_elsewhere, &x), 0);
    while (!atomic_load(&x.over) || loop.poller->inflight != NULL) {
        CHECK_CMP(pl_loop_wait(&loop, 0), >=, 0);
        CHECK_EQ(pthread_mutex_lock(&x.lock), 0);
        CHECK_OK(pl_loop_collect(&loop));
        CHECK_OK(pl_loop_run(&loop, NULL));
        CHECK_EQ(pthread_mutex_unlock(&x.lock), 0);
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(x.clients[i].told, 0);
        close(x.clients[i].fd);
    }
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    close(full_fd);
    pl_loop_fini(&loop);
}

static void a_connect_ends_with_the_run_or_the_loop(void)
{
    NEED_RING();
    struct sockaddr_in full = anywhere();
    int clients[3];
    int fd = full_listener(&full, clients);
    for (int run_ends = 0; run_ends < 2; run_ends++) {
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, NULL));
        turn(&loop);
        struct client c;
        CHECK_OK(begin(&loop, &c, &full));
        turn(&loop);
        CHECK_EQ(loop.poller->unanswered, 1);
        if (run_ends) {
            pl_loop_park(&loop, -1);
            CHECK_EQ(c.told, 0);
            RUN_UNTIL(&loop, c.told == 1);
            CHECK_EQ(c.result, -ECANCELED);
        }
        pl_loop_fini(&loop);
        CHECK(c.connect.at == NULL);
        CHECK_EQ(c.told, run_ends);
        close(c.fd);
    }
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    close(fd);
}

static void it_connects_only_where_it_can(void)
{
    NEED_RING();
    struct sockaddr_in addr = anywhere();
    struct client c;
    for (int how = 0; how < 3; how++) {
        struct pl_sys sys = system_with_less();
        if (how == 0)
            kernel.setup_error = -ENOSYS;
        if (how == 1) /* before Linux 6.1 */
            kernel.known_flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED;
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        turn(&loop);
        kernel.alloc_fails = how == 2;
        CHECK_EQ(begin(&loop, &c, &addr), how == 2 ? -ENOMEM : -EAGAIN);
        CHECK(c.connect.at == NULL);
        close(c.fd);
        pl_loop_fini(&loop);
    }
}

static const struct pl_test tests[] = {
    PL_TEST(what_does_not_fit_is_sent_without_calls),
    PL_TEST(what_is_written_arrives_in_order),
    PL_TEST(a_close_waits_for_what_is_on_its_way),
    PL_TEST(an_abort_leaves_the_memory_until_the_answer),
    PL_TEST(what_was_not_submitted_does_not_reach_another),
    PL_TEST(the_end_of_a_loop_gives_back_what_is_on_its_way),
    PL_TEST(a_failed_send_is_told),
    PL_TEST(a_writer_that_goes_on_when_drained),
    PL_TEST(another_thread_sends_the_rest),
    PL_TEST(nobody_is_asked_for_room_while_it_sends),
    PL_TEST(a_child_of_a_release_sends_no_rest),
    PL_TEST(a_fork_while_it_sends),
    PL_TEST(it_connects_and_tells_of_refusals),
    PL_TEST(a_cancelled_connect_tells_nothing),
    PL_TEST(another_thread_cancels_while_the_rings_waits),
    PL_TEST(a_connect_ends_with_the_run_or_the_loop),
    PL_TEST(it_connects_only_where_it_can),
};
PL_TEST_MAIN(tests)

#else

int main(void)
{
    return 77; /* a build without the kernel's header */
}

#endif
