/* pl_listener.c - accepting connections, with back-off when resources run out.
 *
 * With a rota, other processes accept from the same socket: one connection at a time is
 * taken, and then the listener goes to the end of the line, or steps aside.
 */
#include "pl_internal.h"
#include "pl_rota.h"

#include <errno.h>

#define DEFAULT_BATCH 128

static void listener_run(struct pl_loop *loop, struct pl_op *op);
static void retry_run(struct pl_loop *loop, struct pl_op *op);

int pl_listener_open(struct pl_loop *loop, struct pl_listener *l, int fd)
{
    if (l->batch == 0)
        l->batch = DEFAULT_BATCH;
    if (l->rota != NULL)
        l->batch = 1;
    l->loop = loop;
    l->accepting = true;
    l->backing_off = false;
    l->stepped_back = 0;
    l->retry = (struct pl_timer){.op.run = retry_run};
    enum pl_io_mode mode = l->rota != NULL ? PL_IO_SHARED : l->given ? PL_IO_LEVEL : PL_IO_LISTEN;
    int r = pl_io_open(loop, &l->io, fd, mode, listener_run);
    if (r < 0)
        return r;
    r = pl_io_watch(loop, &l->io, PL_READABLE);
    if (r < 0)
        pl_io_close(loop, &l->io);
    return r;
}

void pl_listener_close(struct pl_listener *l)
{
    if (!l->accepting)
        return;
    l->accepting = false;
    if (pl_timer_stop(l->loop, &l->retry))
        l->backing_off = false; /* else its op is in the ready queue, or it never ran */
    pl_io_close(l->loop, &l->io);
    pl__io_enqueue(l->loop, &l->io);
}

/* Whether accept(2) reports trouble of one connection, or of the network, that the next
 * try may not have. */
static bool passing(int error)
{
    switch (error) {
    case -ECONNABORTED:
    case -EINTR:
    case -EPERM: /* a firewall's rule */
    case -EPROTO:
    case -ENETDOWN:
    case -ENOPROTOOPT:
    case -EHOSTDOWN:
    case -ENONET:
    case -EHOSTUNREACH:
    case -ENETUNREACH:
        return true;
    default:
        return false;
    }
}

static void rest(struct pl_listener *l, int64_t ns)
{
    /* Without memory for the timer the listener stays registered, and tries again at
     * once: busy, but not deaf. */
    if (pl_timer_start(l->loop, &l->retry, pl_loop_now(l->loop) + ns) == 0) {
        l->backing_off = true;
        pl__io_unwatch(l->loop, &l->io);
    }
}

static void back_off(struct pl_listener *l, int error)
{
    rest(l, PL_LISTENER_RETRY);
    if (l->starved != NULL)
        l->starved(l, error);
}

/* After a connection: the next ones are the others', in turn or for a while. */
static void make_way(struct pl_listener *l)
{
    if (!l->accepting || l->backing_off)
        return;
    bool waited = l->stepped_back != 0 && pl_loop_now(l->loop) < l->stepped_back + PL_ROTA_ASIDE;
    l->stepped_back = 0;
    if (pl_rota_took(l->rota, l->loop->open, waited)) {
        rest(l, PL_ROTA_ASIDE);
        l->stepped_back = l->loop->now + PL_ROTA_ASIDE;
    } else {
        int r = pl_io_watch(l->loop, &l->io, PL_READABLE);
        if (r < 0)
            back_off(l, r);
    }
}

static void retry_run(struct pl_loop *loop, struct pl_op *op)
{
    struct pl_listener *l = PL_CONTAINER_OF(op, struct pl_listener, retry.op);
    l->backing_off = false;
    if (!l->accepting) {
        pl__io_enqueue(loop, &l->io); /* closed while this op was queued */
        return;
    }
    int r = pl_io_watch(loop, &l->io, PL_READABLE);
    if (r < 0)
        back_off(l, r);
}

/* A connection with its address; *len 0 when that is not known. -errno. */
static int next_connection(struct pl_listener *l, struct sockaddr_storage *addr, socklen_t *len)
{
    struct pl_loop *loop = l->loop;
    *len = 0;
    if (loop->backend->accept != NULL && l->io.mode == PL_IO_LISTEN)
        return loop->backend->accept(loop, l->io.fd);
    *len = sizeof(*addr);
    return loop->sys->accept4(l->io.fd, (struct sockaddr *)addr, len, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

static void listener_run(struct pl_loop *loop, struct pl_op *op)
{
    struct pl_listener *l = PL_CONTAINER_OF(op, struct pl_listener, io.op);
    l->io.queued = false;
    l->io.ready = 0;
    uint32_t i;
    for (i = 0; i < l->batch && l->accepting && !l->backing_off; i++) {
        struct sockaddr_storage addr;
        socklen_t len;
        int fd = next_connection(l, &addr, &len);
        if (fd >= 0) {
            l->accepted(l, fd, len > 0 ? (struct sockaddr *)&addr : NULL, len);
            if (l->rota != NULL)
                make_way(l);
            continue;
        }
        if (fd == -EAGAIN)
            break;
        if (passing(fd))
            continue;
        if (fd == -EMFILE || fd == -ENFILE || fd == -ENOBUFS || fd == -ENOMEM) {
            back_off(l, fd);
            break;
        }
        pl__io_unwatch(loop, &l->io);
        if (l->failed != NULL)
            l->failed(l, fd);
        break;
    }
    if (i == l->batch && l->accepting && loop->backend->has_more != NULL &&
        loop->backend->has_more(loop, l->io.fd)) {
        l->io.ready = PL_READABLE;
        pl__io_enqueue(loop, &l->io);
    }
    /* The retry op may sit in the ready queue; `closed` then waits for it (retry_run). */
    if (!l->accepting && !l->io.queued && !l->backing_off)
        l->closed(l);
}

void pl_listener_look(struct pl_listener *l)
{
    if (l->rota == NULL || !l->accepting || l->backing_off)
        return;
    int r = pl_io_watch(l->loop, &l->io, PL_READABLE);
    if (r < 0)
        back_off(l, r);
}

void pl_listener_forget(struct pl_listener *l)
{
    l->accepting = false;
    (void)pl_timer_stop(l->loop, &l->retry);
    pl_io_close(l->loop, &l->io);
}

struct pl_listener *pl_listener_of_op(struct pl_op *op)
{
    if (op->run == listener_run)
        return PL_CONTAINER_OF(op, struct pl_listener, io.op);
    if (op->run == retry_run)
        return PL_CONTAINER_OF(op, struct pl_listener, retry.op);
    return NULL;
}
