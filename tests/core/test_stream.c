/* test_stream.c - streams: reading, corked writing, half-close, and every kind of end.
 *
 * The kernel's part is injected: calls are counted, cut short, interrupted, or fail.
 */
#include "pl_internal.h"
#include "pl_test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- what the kernel is made to do --------------------------------------- */

static struct {
    int sends; /* send and sendmsg */
    int recvs;
    size_t limit;  /* a call takes or gives no more than this; 0: no limit */
    int interrupt; /* this many calls say EINTR first */
    int refuse;    /* this many sends say EAGAIN first */
    int error;     /* what every send says, if not 0 */
    int ctl_error; /* what every epoll_ctl says, if not 0 */
} fault;

static int before_call(bool sending)
{
    if (fault.interrupt > 0) {
        fault.interrupt--;
        return -EINTR;
    }
    if (sending && fault.error != 0)
        return fault.error;
    if (sending && fault.refuse > 0) {
        fault.refuse--;
        return -EAGAIN;
    }
    return 0;
}

static size_t cut(size_t len)
{
    return fault.limit != 0 && len > fault.limit ? fault.limit : len;
}

static ssize_t fault_send(int fd, const void *buf, size_t len, int flags)
{
    fault.sends++;
    int r = before_call(true);
    return r < 0 ? r : pl_sys_default()->send(fd, buf, cut(len), flags);
}

static ssize_t fault_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    fault.sends++;
    int r = before_call(true);
    if (r < 0)
        return r;
    if (fault.limit == 0)
        return pl_sys_default()->sendmsg(fd, msg, flags);
    return pl_sys_default()->send(fd, msg->msg_iov[0].iov_base, cut(msg->msg_iov[0].iov_len),
                                  flags);
}

static ssize_t fault_recv(int fd, void *buf, size_t len, int flags)
{
    fault.recvs++;
    int r = before_call(false);
    return r < 0 ? r : pl_sys_default()->recv(fd, buf, cut(len), flags);
}

static int fault_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    if (fault.ctl_error != 0 && op != EPOLL_CTL_DEL)
        return fault.ctl_error;
    return pl_sys_default()->epoll_ctl(epfd, op, fd, event);
}

/* ---- a user of a stream --------------------------------------------------- */

struct user {
    struct pl_stream stream;
    char buf[65536];
    char *got;
    size_t got_len;
    int rooms, reads, agains, drains, closes, releases;
    int failed;
    ssize_t last_read;
    bool eof;
    /* What a callback does, once. */
    void (*on_read)(struct user *u);
    void (*on_release)(struct user *u);
    void (*on_drained)(struct user *u);
    void (*on_failed)(struct user *u);
};

struct fixture {
    struct pl_sys sys;
    struct pl_loop loop;
    struct user u;
    int fd;
    int peer;
};

static struct user *of(struct pl_stream *s)
{
    return PL_CONTAINER_OF(s, struct user, stream);
}

static void *room(struct pl_stream *s, size_t hint, size_t *len)
{
    CHECK_CMP(hint, >, 0);
    CHECK_EQ(of(s)->closes, 0);
    of(s)->rooms++;
    *len = sizeof(of(s)->buf);
    return of(s)->buf;
}

static void on_read(struct pl_stream *s, void *buf, ssize_t n)
{
    struct user *u = of(s);
    CHECK(buf == u->buf || n <= 0 || s->borrows);
    u->reads++;
    u->last_read = n;
    if (n > 0 && u->got != NULL) {
        memcpy(u->got + u->got_len, buf, (size_t)n);
        u->got_len += (size_t)n;
    }
    if (n == 0)
        u->eof = true;
    void (*act)(struct user *) = u->on_read;
    if (act != NULL)
        act(u);
}

static void on_again(struct pl_stream *s, void *buf)
{
    CHECK(buf == of(s)->buf);
    of(s)->agains++;
}

static void on_drained(struct pl_stream *s)
{
    of(s)->drains++;
    if (of(s)->on_drained != NULL)
        of(s)->on_drained(of(s));
}

static void on_failed(struct pl_stream *s, int error)
{
    CHECK_CMP(error, <, 0);
    CHECK_EQ(of(s)->failed, 0);
    of(s)->failed = error;
    if (of(s)->on_failed != NULL)
        of(s)->on_failed(of(s));
}

static void on_release(struct pl_stream *s, void *owner)
{
    struct user *u = of(s);
    int *count = owner;
    CHECK_EQ(*count, 0); /* once each */
    ++*count;
    u->releases++;
    void (*act)(struct user *) = u->on_release;
    u->on_release = NULL;
    if (act != NULL)
        act(u);
}

static void on_release_late(struct pl_loop *loop, void *owner)
{
    (void)loop;
    int *count = owner;
    CHECK_EQ(*count, 0); /* once each */
    ++*count;
}

static void on_closed(struct pl_stream *s)
{
    CHECK_EQ(of(s)->closes, 0);
    of(s)->closes++;
}

static const struct pl_stream_ops ops = {
    .room = room,
    .read = on_read,
    .again = on_again,
    .drained = on_drained,
    .failed = on_failed,
    .release = on_release,
    .closed = on_closed,
    .release_late = on_release_late,
};

/* Whether the user takes bytes from memory that is not its own. */
static bool borrows(void)
{
    const char *name = getenv("PL_TEST_BACKEND");
    return name != NULL && strcmp(name, "uring-borrows") == 0;
}

static void start(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    memset(&fault, 0, sizeof(fault));
    f->sys = *pl_sys_default();
    f->sys.send = fault_send;
    f->sys.sendmsg = fault_sendmsg;
    f->sys.recv = fault_recv;
    f->sys.epoll_ctl = fault_ctl;
    CHECK_OK(pl_test_loop(&f->loop, &f->sys));
    int fds[2];
    CHECK_OK(f->sys.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    f->fd = fds[0];
    f->peer = fds[1];
    CHECK_OK(pl_stream_open(&f->loop, &f->u.stream, f->fd, true, &ops));
    f->u.stream.borrows = borrows();
}

static void turn(struct fixture *f)
{
    /* Where the backend receives, an end of a request may come between event and read. */
    int n = f->loop.backend->input != NULL ? 3 : 1;
    while (n-- > 0) {
        CHECK_OK(pl_loop_wait(&f->loop, 0));
        CHECK_OK(pl_loop_collect(&f->loop));
        CHECK_OK(pl_loop_run(&f->loop, NULL));
    }
}

static void turns(struct fixture *f, int n)
{
    while (n-- > 0)
        turn(f);
}

static void end(struct fixture *f)
{
    memset(&fault, 0, sizeof(fault));
    if (f->u.closes == 0) {
        pl_stream_abort(&f->u.stream);
        turn(f);
    }
    CHECK_EQ(f->u.closes, 1);
    close(f->fd);
    if (f->peer >= 0)
        close(f->peer);
    pl_loop_fini(&f->loop);
    free(f->u.got);
}

static int write_text(struct fixture *f, const char *text, int *owner)
{
    struct pl_chunk chunk = {.data = text, .len = strlen(text), .owner = owner};
    return pl_stream_write(&f->u.stream, &chunk, 1);
}

/* What the peer has received: compared as text. */
static void expect_peer(struct fixture *f, const char *text)
{
    char buf[4096] = {0};
    ssize_t n = recv(f->peer, buf, sizeof(buf) - 1, 0);
    CHECK_EQ(n, strlen(text));
    CHECK(strcmp(buf, text) == 0);
}

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

static void close_it(struct user *u)
{
    pl_stream_close(&u->stream);
}

static void abort_it(struct user *u)
{
    pl_stream_abort(&u->stream);
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
static int owners[64];

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

static void abort_it(struct user *u);

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

static void a_full_kernel_buffer_is_waited_for(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    fault.refuse = 1;
    CHECK_OK(write_text(&f, "a", &owners[0]));
    CHECK_OK(pl_loop_run(&f.loop, NULL));
    CHECK_EQ(fault.sends, 1);
    CHECK(f.u.stream.blocked);
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

/* The event that there is room again is in the ready queue when the process forks: the rest is the
 * parent's to send, whatever the child runs. */
static void a_forked_child_sends_no_rest(void)
{
    struct fixture f;
    start(&f);
    memset(owners, 0, sizeof(owners));
    fault.refuse = 1;
    CHECK_OK(write_text(&f, "a", &owners[0]));
    CHECK_OK(pl_loop_run(&f.loop, NULL));
    CHECK(f.u.stream.blocked);
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

/* ---- ends -------------------------------------------------------------------- */

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
    CHECK_OK(pl_stream_open(&f.loop, &in->stream, fds[0], false, &ops));
    CHECK_OK(pl_stream_open(&f.loop, &out.stream, fds[1], false, &ops));
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
    PL_TEST(a_forked_child_sends_no_rest),
    PL_TEST(a_child_of_a_release_sends_no_rest),
    PL_TEST(a_child_of_the_last_release_shuts_nothing),
    PL_TEST(a_failed_write_is_told_from_the_loop),
    PL_TEST(a_real_broken_pipe),
    PL_TEST(without_the_poller_a_blocked_stream_fails),
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
