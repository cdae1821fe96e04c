/* pl_uring_output.c - sends and connects in the ring. See backend_uring.c.
 *
 * What the kernel may still use lies in memory of ours, or is kept alive by it, until the kernel
 * has answered; cancelling asks for that answer. Its user may be gone by then: a send keeps the
 * owners of its bytes, a connect knows that nobody waits. All that has not been told of is in
 * the poller's list.
 */
#include <errno.h>

#if PL_HAVE_IO_URING
#include <linux/io_uring.h>
#endif

#if PL_HAVE_IO_URING && defined(IORING_RECV_MULTISHOT)

#include "pl_uring_poller.h"

#include <string.h>

struct pl_connecting {
    struct pl_inflight in;
    struct pl_op op;
    struct pl_poller *poller; /* borrows; NULL in a child after a fork, whose poller has gone */
    struct pl_connect *_Atomic user; /* borrows; NULL when nobody waits; see pl_sending.stream */
    struct sockaddr_storage addr;
};

static struct pl_sending *sending_of(struct pl_inflight *in)
{
    return PL_CONTAINER_OF(in, struct pl_sending, in);
}

static struct pl_connecting *connecting_of(struct pl_inflight *in)
{
    return PL_CONTAINER_OF(in, struct pl_connecting, in);
}

/* Relaxed, both: what is told of a user that has gone is told by owes_ends, and all else that asks
 * has the binding's lock. */
static struct pl_stream *stream_of(struct pl_inflight *in)
{
    return atomic_load_explicit(&sending_of(in)->stream, memory_order_relaxed);
}

static struct pl_connect *user_of(struct pl_inflight *in)
{
    return atomic_load_explicit(&connecting_of(in)->user, memory_order_relaxed);
}

static void forget_user(struct pl_connecting *c)
{
    atomic_store_explicit(&c->user, NULL, memory_order_relaxed);
}

static uint64_t name_of(const struct pl_inflight *in)
{
    /* The kernel gives programs no addresses with the uppermost bits set. */
    return (uint64_t)(uintptr_t)in << KIND_BITS | in->kind;
}

static void link_in(struct pl_poller *p, struct pl_inflight *in)
{
    in->prev = NULL;
    in->next = p->inflight;
    if (in->next != NULL)
        in->next->prev = in;
    p->inflight = in;
    p->unanswered++;
}

static void unlink_it(struct pl_poller *p, struct pl_inflight *in)
{
    if (in->prev != NULL)
        in->prev->next = in->next;
    else
        p->inflight = in->next;
    if (in->next != NULL)
        in->next->prev = in->prev;
}

/* Between two runs nothing is started: another thread may be the next to run the loop. */
static bool may_start(const struct pl_poller *p)
{
    return pl__ring_is_ours(p) && !p->parked;
}

/* ---- sends -------------------------------------------------------------- */

struct pl_sending *pl__ring_send(struct pl_loop *loop, int fd, const struct iovec *iov, uint32_t n)
{
    struct pl_poller *p = loop->poller;
    if (!may_start(p))
        return NULL;
    struct pl_sending *s = p->sys->alloc(sizeof(*s));
    if (s == NULL)
        return NULL;
    s->in = (struct pl_inflight){.kind = REQUEST_SEND};
    atomic_init(&s->stream, NULL);
    s->n = n;
    memcpy(s->iov, iov, n * sizeof(*iov));
    struct io_uring_sqe *sqe = pl__ring_entry(p, name_of(&s->in));
    if (sqe == NULL) {
        p->sys->free(s);
        return NULL;
    }
    sqe->fd = fd;
    sqe->msg_flags = MSG_NOSIGNAL;
    if (n == 1) {
        sqe->opcode = IORING_OP_SEND;
        sqe->addr = (uint64_t)(uintptr_t)iov->iov_base;
        sqe->len = iov->iov_len > INT32_MAX ? INT32_MAX : (uint32_t)iov->iov_len;
    } else {
        s->msg = (struct msghdr){.msg_iov = s->iov, .msg_iovlen = n};
        sqe->opcode = IORING_OP_SENDMSG;
        sqe->addr = (uint64_t)(uintptr_t)&s->msg;
        sqe->len = 1;
    }
    link_in(p, &s->in);
    return s;
}

static void free_sending(struct pl_loop *loop, struct pl_sending *s)
{
    bool left = stream_of(&s->in) == NULL;
    for (uint32_t i = 0; left && i < s->n; i++) {
        if (s->owners[i] != NULL)
            s->release(loop, s->owners[i]);
    }
    loop->sys->free(s);
}

void pl__ring_unsend(struct pl_loop *loop, struct pl_sending *sending)
{
    pl__ring_end_one(loop->poller, &sending->in);
}

static void sent(struct pl_loop *loop, struct pl_sending *s)
{
    unlink_it(loop->poller, &s->in);
    struct pl_stream *stream = stream_of(&s->in);
    if (stream != NULL)
        pl__stream_sent(stream);
    else
        free_sending(loop, s);
}

/* ---- connects ----------------------------------------------------------- */

static void connect_run(struct pl_loop *loop, struct pl_op *op)
{
    struct pl_connecting *c = PL_CONTAINER_OF(op, struct pl_connecting, op);
    struct pl_connect *user = user_of(&c->in);
    int result = c->in.result;
    if (c->poller != NULL)
        unlink_it(c->poller, &c->in);
    loop->sys->free(c);
    if (user == NULL)
        return;
    user->at = NULL;
    user->done(user, result);
}

int pl__ring_connect(struct pl_loop *loop, struct pl_connect *user, int fd,
                     const struct sockaddr *addr, socklen_t len)
{
    struct pl_poller *p = loop->poller;
    if (!may_start(p) || len > sizeof(struct sockaddr_storage))
        return -EAGAIN;
    struct pl_connecting *c = p->sys->alloc(sizeof(*c));
    if (c == NULL)
        return -ENOMEM;
    c->in = (struct pl_inflight){.kind = REQUEST_CONNECT};
    c->op.run = connect_run;
    c->poller = p;
    atomic_init(&c->user, user);
    memcpy(&c->addr, addr, len);
    struct io_uring_sqe *sqe = pl__ring_entry(p, name_of(&c->in));
    if (sqe == NULL) {
        p->sys->free(c);
        return -EAGAIN;
    }
    sqe->opcode = IORING_OP_CONNECT;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)&c->addr;
    sqe->off = len;
    link_in(p, &c->in);
    user->at = c;
    /* Now, as connect(2) would: what runs next may wait for the other end without us. What fails is
     * submitted by the next wait. */
    (void)!pl__uring_enter(&p->ring, 0, 0);
    return 0;
}

void pl__ring_unconnect(struct pl_loop *loop, struct pl_connect *user)
{
    struct pl_connecting *c = user->at;
    user->at = NULL;
    forget_user(c);
    if (!c->in.ended)
        pl__ring_end_one(loop->poller, &c->in);
}

/* ---- their end ---------------------------------------------------------- */

static bool ask_end(struct pl_poller *p, struct pl_inflight *in)
{
    if (in->cancelled || in->ended)
        return true;
    if (!pl__ring_ask_cancel(p, name_of(in)))
        return false;
    in->cancelled = true;
    return true;
}

void pl__ring_end_one(struct pl_poller *p, struct pl_inflight *in)
{
    /* From another thread, and when the ring takes no more, it is left to what ends all. */
    bool ours = pl__ring_is_ours(p);
    if (ours && ask_end(p, in))
        (void)!pl__uring_enter(&p->ring, 0, 0); /* what fails is submitted by the next wait */
    else
        /* Release: partner is the exchange in pl__ring_pay_ends; the user was taken out before. */
        atomic_store_explicit(&p->owes_ends, true, memory_order_release);
    if (ours)
        pl__uring_disarm(&p->ring, name_of(in));
}

bool pl__ring_end_all(struct pl_poller *p, bool abandoned)
{
    for (struct pl_inflight *in = p->inflight; in != NULL; in = in->next) {
        bool wanted = in->kind == REQUEST_SEND ? stream_of(in) != NULL : user_of(in) != NULL;
        if (!(abandoned && wanted) && !ask_end(p, in))
            return false;
    }
    return true;
}

void pl__ring_pay_ends(struct pl_poller *p)
{
    /* Taken before they are looked at: one that another thread owes meanwhile is paid by the next
     * wait, and not forgotten. Acquire: partner is pl__ring_end_one. */
    if (atomic_exchange_explicit(&p->owes_ends, false, memory_order_acquire) &&
        !pl__ring_end_all(p, true))
        /* Relaxed: for this thread. */
        atomic_store_explicit(&p->owes_ends, true, memory_order_relaxed);
}

int pl__ring_answered(struct pl_loop *loop, const struct io_uring_cqe *cqe)
{
    struct pl_poller *p = loop->poller;
    struct pl_inflight *in = (struct pl_inflight *)(uintptr_t)(cqe->user_data >> KIND_BITS);
    if (in->kind == REQUEST_CONNECT) {
        int r = pl_loop_enqueue(loop, &connecting_of(in)->op);
        if (r < 0)
            return r;
    }
    in->ended = true;
    in->result = cqe->res;
    p->unanswered--;
    loop->stats.events++;
    if (in->kind == REQUEST_SEND)
        sent(loop, sending_of(in));
    return 0;
}

void pl__ring_drop_inflight(struct pl_loop *loop, bool forked)
{
    struct pl_poller *p = loop->poller;
    for (uint32_t i = 0; !forked && p->unanswered > 0 && i < pl__uring_ready(&p->ring); i++) {
        struct io_uring_cqe *cqe = pl__ring_completion(p, i);
        enum request kind = pl__kind_of(cqe);
        if (kind == REQUEST_SEND || kind == REQUEST_CONNECT)
            ((struct pl_inflight *)(uintptr_t)(cqe->user_data >> KIND_BITS))->ended = true;
    }
    while (p->inflight != NULL) {
        struct pl_inflight *in = p->inflight;
        unlink_it(p, in);
        if (in->kind == REQUEST_CONNECT && user_of(in) != NULL)
            user_of(in)->at = NULL;
        if (in->kind == REQUEST_CONNECT && forked && in->ended) {
            connecting_of(in)->poller = NULL; /* the ready queue has it, and may still run it */
            forget_user(connecting_of(in));
            continue;
        }
        /* The child's copy of a stream lives on. */
        if (in->kind == REQUEST_SEND && forked && stream_of(in) != NULL)
            stream_of(in)->sending = NULL;
        if (!forked && !in->ended)
            continue; /* never to be freed: the kernel has not said that it is done */
        if (in->kind == REQUEST_CONNECT)
            p->sys->free(connecting_of(in));
        else
            free_sending(loop, sending_of(in));
    }
}

#endif

typedef int pl__uring_output_file; /* ISO C has no empty files */
