/* uring_support.c - see uring_support.h. */
#include "uring_support.h"

#if PL_HAVE_IO_URING

#include <linux/io_uring.h>
#include <poll.h>
#include <sys/socket.h>

/* ---- a kernel that has less ------------------------------------------------ */

struct lesser_kernel kernel;

static int less_setup(uint32_t entries, struct io_uring_params *params)
{
    if (kernel.setup_error != 0)
        return kernel.setup_error;
    if (kernel.known_flags != 0 && (params->flags & ~kernel.known_flags) != 0)
        return -EINVAL;
    int r = pl_sys_default()->uring_setup(entries, params);
    params->features &= ~kernel.features_off;
    if (r >= 0) {
        kernel.setups++;
        kernel.setup_flags = params->flags;
    }
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
    kernel.enters++;
    kernel.enter_flags = flags;
    if (submit > kernel.most_submitted)
        kernel.most_submitted = submit;
    if (kernel.enter_error != 0) {
        int r = kernel.enter_error;
        if (!kernel.enter_fails)
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

static ssize_t counting_send(int fd, const void *buf, size_t len, int flags)
{
    kernel.sends++;
    return pl_sys_default()->send(fd, buf, len, flags);
}

static ssize_t counting_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    kernel.sends++;
    return pl_sys_default()->sendmsg(fd, msg, flags);
}

static void *less_alloc(size_t size)
{
    if (kernel.alloc_fails > 0 && (kernel.alloc_size == 0 || kernel.alloc_size == size)) {
        kernel.alloc_fails--;
        return NULL;
    }
    return pl_sys_default()->alloc(size);
}

struct pl_sys system_with_less(void)
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
    sys.send = counting_send;
    sys.sendmsg = counting_sendmsg;
    sys.alloc = less_alloc;
    return sys;
}

int open_loop(struct pl_loop *loop, const struct pl_sys *sys)
{
    return pl_loop_init(loop, &(struct pl_loop_config){.sys = sys, .backend = PL_BACKEND_URING});
}

bool usable(void)
{
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    bool all = loop.backend->input != NULL;
    pl_loop_fini(&loop);
    return all;
}

/* ---- a stream that checks what it reads ------------------------------------- */

char byte_at(size_t n)
{
    return (char)(n * 131 + (n >> 9));
}

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

void reader_on_read(struct pl_stream *s, void *buf, ssize_t n)
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

static void on_release_late(struct pl_loop *loop, void *owner)
{
    (void)loop, (void)owner;
}

static void on_closed(struct pl_stream *s)
{
    reader_of(s)->closed++;
}

const struct pl_stream_ops reader_ops = {
    .room = room,
    .read = reader_on_read,
    .again = on_again,
    .drained = on_drained,
    .failed = on_failed,
    .release = on_release,
    .closed = on_closed,
    .release_late = on_release_late,
};

int open_reader(struct pl_loop *loop, struct reader *r, bool borrows)
{
    int fds[2];
    CHECK_OK(
        pl_sys_default()->socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    memset(r, 0, sizeof(*r));
    CHECK_OK(pl_stream_open(loop, &r->stream, fds[0], true, &reader_ops));
    r->stream.borrows = borrows;
    CHECK_OK(pl_stream_read_start(&r->stream));
    return fds[1];
}

void close_reader(struct pl_loop *loop, struct reader *r, int peer)
{
    pl_stream_abort(&r->stream);
    RUN_UNTIL(loop, r->closed == 1);
    close(r->stream.io.fd);
    if (peer >= 0)
        close(peer);
}

void send_some(int fd, size_t *sent, size_t n)
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

void turn(struct pl_loop *loop)
{
    int r = pl_loop_wait(loop, 0);
    if (r != -EINTR)
        CHECK_OK(r);
    CHECK_OK(pl_loop_collect(loop));
    CHECK_OK(pl_loop_run(loop, NULL));
}

bool peer_sees_end(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char c;
    CHECK_SYS(poll(&p, 1, 0));
    return (p.revents & POLLIN) != 0 && recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

void *work(void *arg)
{
    struct stint *s = arg;
    for (int i = 0; i < 20; i++) {
        send_some(s->peer, s->sent, i % 5 == 0 ? 20000 : 500);
        RUN_UNTIL(s->loop, s->r->got == *s->sent);
    }
    return NULL;
}

/* ---- connections ------------------------------------------------------------ */

int listening(struct sockaddr_in *addr, int backlog)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK_SYS(fd);
    CHECK_SYS(bind(fd, (struct sockaddr *)addr, sizeof(*addr)));
    CHECK_SYS(listen(fd, backlog));
    socklen_t len = sizeof(*addr);
    CHECK_SYS(getsockname(fd, (struct sockaddr *)addr, &len));
    return fd;
}

int connected_to(const struct sockaddr_in *addr)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_SYS(fd);
    CHECK_SYS(connect(fd, (const struct sockaddr *)addr, sizeof(*addr)));
    return fd;
}

#else

typedef int no_uring_here; /* ISO C has no empty files */

#endif
