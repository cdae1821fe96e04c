/* stream_support.c - see stream_support.h. */
#include "stream_support.h"

#include <sys/socket.h>
#include <unistd.h>

/* ---- what the kernel is made to do --------------------------------------- */

struct stream_fault fault;

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

int owners[64];

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

const struct pl_stream_ops user_ops = {
    .room = room,
    .read = on_read,
    .again = on_again,
    .drained = on_drained,
    .failed = on_failed,
    .release = on_release,
    .closed = on_closed,
    .release_late = on_release_late,
};

bool borrows(void)
{
    const char *name = getenv("PL_TEST_BACKEND");
    return name != NULL && strcmp(name, "uring-borrows") == 0;
}

void start(struct fixture *f)
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
    CHECK_OK(pl_stream_open(&f->loop, &f->u.stream, f->fd, true, &user_ops));
    f->u.stream.borrows = borrows();
}

void turn(struct fixture *f)
{
    /* Where the backend receives, an end of a request may come between event and read. */
    int n = f->loop.backend->input != NULL ? 3 : 1;
    while (n-- > 0) {
        CHECK_OK(pl_loop_wait(&f->loop, 0));
        CHECK_OK(pl_loop_collect(&f->loop));
        CHECK_OK(pl_loop_run(&f->loop, NULL));
    }
}

void turns(struct fixture *f, int n)
{
    while (n-- > 0)
        turn(f);
}

void end(struct fixture *f)
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

int write_text(struct fixture *f, const char *text, int *owner)
{
    struct pl_chunk chunk = {.data = text, .len = strlen(text), .owner = owner};
    return pl_stream_write(&f->u.stream, &chunk, 1);
}

void start_blocked(struct fixture *f)
{
    start(f);
    memset(owners, 0, sizeof(owners));
    fault.refuse = 1;
    CHECK_OK(write_text(f, "a", &owners[0]));
    CHECK_OK(pl_loop_run(&f->loop, NULL));
    CHECK(f->u.stream.blocked);
}

void expect_peer(struct fixture *f, const char *text)
{
    char buf[4096] = {0};
    ssize_t n = recv(f->peer, buf, sizeof(buf) - 1, 0);
    CHECK_EQ(n, strlen(text));
    CHECK(strcmp(buf, text) == 0);
}

void close_it(struct user *u)
{
    pl_stream_close(&u->stream);
}

void abort_it(struct user *u)
{
    pl_stream_abort(&u->stream);
}
