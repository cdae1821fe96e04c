/* pl_stream.c - connected streams: reading, corked writing, half-close, close.
 *
 * Reading. One receive for each time the poller reports the descriptor, into the room
 * that the user gives; the registration is level-triggered and stays. Stopping to read
 * costs nothing: the registration is dropped only when an event comes in vain.
 *
 * Writing. Chunks are queued and flushed when the running callback ends, in one call,
 * without asking the poller first. Only when the kernel takes less than all is
 * PL_WRITABLE asked for, or the rest given to the backend, if that can send by itself. What it
 * sends stays the first of the queue until it has ended; a stream that ends before leaves the
 * owners of those chunks with the backend.
 *
 * Ends. close: write the rest, and what `drained` makes the user add, then `closed`; abort:
 * drop the rest, then `closed`. Both only mark the stream and queue its op: `closed` never comes
 * from within a call of the user's. The same op tells of events, of a failed write, and of the end,
 * so whichever is due is looked up in the stream's fields, in this order.
 *
 * Re-entrancy. Every callback may call any function here. After each one the fields are
 * read anew, and nothing is held across it but the stream itself, whose memory lasts
 * until `closed` returns.
 */
#include "pl_internal.h"

#include <errno.h>
#include <string.h>

#define IOV_BATCH 64
/* What is joined for send(2), which does it for less than sendmsg(2) does for the pieces. */
#define JOIN_MAX 1024
#define FIRST_HINT 4096
#define MAX_HINT (1u << 20)

static void stream_run(struct pl_loop *loop, struct pl_op *op);

int pl_stream_open(struct pl_loop *loop, struct pl_stream *stream, int fd, bool is_socket,
                   const struct pl_stream_ops *ops)
{
    struct pl_io io;
    int r = pl_io_open(loop, &stream->io, fd, is_socket ? PL_IO_STREAM : PL_IO_LEVEL, stream_run);
    if (r < 0)
        return r;
    io = stream->io;
    *stream = (struct pl_stream){
        .io = io,
        .loop = loop,
        .ops = ops,
        .chunks = stream->inlined,
        .chunk_cap = PL_STREAM_INLINE,
        .hint = FIRST_HINT,
        .is_socket = is_socket,
    };
    return 0;
}

/* ---- the poller --------------------------------------------------------- */

/* Asks for what the fields want. A failure (-ENOMEM, -ENOSPC) is told as a failed write:
 * without events the stream is lost. */
static void rewatch(struct pl_stream *s, unsigned want)
{
    if (want == s->io.want)
        return;
    int r = pl_io_watch(s->loop, &s->io, want);
    if (r < 0 && s->error == 0) {
        s->error = r;
        pl__io_enqueue(s->loop, &s->io);
    }
}

/* What the backend has received and the stream has not taken is not reported by itself. */
static void report_more(struct pl_stream *s)
{
    const struct pl_backend_ops *backend = s->loop->backend;
    if (backend->has_more == NULL || !backend->has_more(s->loop, s->io.fd))
        return;
    s->io.ready |= PL_READABLE;
    pl__io_enqueue(s->loop, &s->io);
}

int pl_stream_read_start(struct pl_stream *s)
{
    if (s->dead || s->closing)
        return PL_ECLOSED;
    if (s->eof || s->reading)
        return 0;
    if (!(s->io.want & PL_READABLE)) {
        int r = pl_io_watch(s->loop, &s->io, s->io.want | PL_READABLE);
        if (r < 0)
            return r;
    }
    s->reading = true;
    if (s->io.mode == PL_IO_STREAM)
        report_more(s);
    return 0;
}

void pl_stream_read_stop(struct pl_stream *s)
{
    s->reading = false;
}

/* ---- the write queue ---------------------------------------------------- */

static struct pl_chunk *chunk_at(struct pl_stream *s, uint32_t i)
{
    return &s->chunks[(s->chunk_head + i) & (s->chunk_cap - 1)];
}

static int reserve(struct pl_stream *s, uint32_t n)
{
    if (PL_LIKELY(s->chunk_cap - s->chunk_len >= n))
        return 0;
    uint32_t cap = s->chunk_cap;
    while (cap - s->chunk_len < n) {
        if (cap > UINT32_MAX / 4)
            return -ENOMEM;
        cap *= 2;
    }
    struct pl_chunk *chunks = s->loop->sys->alloc(cap * sizeof(*chunks));
    if (chunks == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->chunk_len; i++)
        chunks[i] = *chunk_at(s, i);
    if (s->chunks != s->inlined)
        s->loop->sys->free(s->chunks);
    s->chunks = chunks;
    s->chunk_cap = cap;
    s->chunk_head = 0;
    return 0;
}

/* Back to the inlined chunks, so that an idle stream holds no memory. */
static void shrink(struct pl_stream *s)
{
    s->chunk_head = 0;
    if (s->chunks == s->inlined)
        return;
    s->loop->sys->free(s->chunks);
    s->chunks = s->inlined;
    s->chunk_cap = PL_STREAM_INLINE;
}

static void pop_chunk(struct pl_stream *s)
{
    void *owner = chunk_at(s, 0)->owner;
    s->chunk_head++;
    s->chunk_len--;
    if (owner != NULL)
        s->ops->release(s, owner);
}

/* What the backend sends goes on without us, or has ended unnoticed. */
static void leave_sending(struct pl_stream *s)
{
    struct pl_sending *sending = s->sending;
    if (sending == NULL)
        return;
    s->sending = NULL;
    if (sending->in.ended) {
        s->loop->sys->free(sending);
        return;
    }
    for (uint32_t i = 0; i < sending->n; i++) {
        struct pl_chunk *c = chunk_at(s, i);
        sending->owners[i] = c->owner;
        c->owner = NULL;
    }
    /* Relaxed: `unsend` tells of it. */
    atomic_store_explicit(&sending->stream, NULL, memory_order_relaxed);
    sending->release = s->ops->release_late;
    s->loop->backend->unsend(s->loop, sending);
}

static void drop_queue(struct pl_stream *s)
{
    s->queued = 0;
    while (s->chunk_len > 0)
        pop_chunk(s);
    shrink(s);
}

static void consume(struct pl_stream *s, size_t n)
{
    s->queued -= n;
    /* Releasing an owner may abort the stream, which drops the rest. */
    while (n > 0 && s->chunk_len > 0) {
        struct pl_chunk *c = chunk_at(s, 0);
        if (n < c->len) {
            c->data += n;
            c->len -= n;
            return;
        }
        n -= c->len;
        pop_chunk(s);
    }
}

/* The first chunks, at most `most`; *len is how many bytes that are. */
static uint32_t first_chunks(struct pl_stream *s, struct iovec *iov, uint32_t most, size_t *len)
{
    uint32_t n = s->chunk_len < most ? s->chunk_len : most;
    *len = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct pl_chunk *c = chunk_at(s, i);
        iov[i] = (struct iovec){.iov_base = (void *)(uintptr_t)c->data, .iov_len = c->len};
        *len += c->len;
    }
    return n;
}

/* One call to the kernel with as much of the queue as fits. Bytes written or -errno;
 * *asked is how many were offered. */
static ssize_t send_some(struct pl_stream *s, size_t *asked)
{
    const struct pl_sys *sys = s->loop->sys;
    struct pl_chunk *first = chunk_at(s, 0);
    if (s->chunk_len == 1) {
        *asked = first->len;
        return s->is_socket ? sys->send(s->io.fd, first->data, first->len, MSG_NOSIGNAL)
                            : sys->write(s->io.fd, first->data, first->len);
    }
    struct iovec iov[IOV_BATCH];
    uint32_t n = first_chunks(s, iov, IOV_BATCH, asked);
    if (!s->is_socket)
        return sys->writev(s->io.fd, iov, (int)n);
    if (*asked <= JOIN_MAX) {
        char joined[JOIN_MAX];
        char *end = joined;
        for (uint32_t i = 0; i < n; i++) {
            memcpy(end, iov[i].iov_base, iov[i].iov_len);
            end += iov[i].iov_len;
        }
        return sys->send(s->io.fd, joined, *asked, MSG_NOSIGNAL);
    }
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
    return sys->sendmsg(s->io.fd, &msg, MSG_NOSIGNAL);
}

static void uncork(struct pl_stream *s)
{
    if (!s->corked)
        return;
    struct pl_stream **at = &s->loop->corked;
    while (*at != s)
        at = &(*at)->cork_next;
    *at = s->cork_next;
    s->cork_next = NULL;
    s->corked = false;
}

/* Out of the poller for good; `closed` is queued, and may be the next that runs: what is corked is
 * flushed after it. */
static void die(struct pl_stream *s)
{
    if (s->dead)
        return;
    uncork(s);
    s->dead = true;
    s->closing = true;
    s->reading = false;
    leave_sending(s);
    pl_io_close(s->loop, &s->io);
    pl__io_enqueue(s->loop, &s->io);
}

/* The queue fell empty: what had to wait for that happens now. */
static void after_flush(struct pl_stream *s)
{
    shrink(s);
    if (s->shut_pending) {
        s->shut_pending = false;
        s->shut = true;
        /* The peer may be gone already; reading tells. */
        (void)s->loop->sys->shutdown(s->io.fd, SHUT_WR);
    }
    /* The user may be waiting for room with more to send: stream_run asks before it ends. */
    if (s->closing)
        pl__io_enqueue(s->loop, &s->io);
}

/* Why a write failed: the socket tells its error once, and the backend's receive may have had
 * it, so that the write learns no more than that the pipe is broken. */
static int reason_of(struct pl_stream *s, int error)
{
    const struct pl_backend_ops *backend = s->loop->backend;
    struct pl_input in;
    if (error == -EPIPE && backend->input != NULL && s->io.mode == PL_IO_STREAM &&
        backend->input(s->loop, s->io.fd, s->hint, &in) == PL_INPUT_END && in.error < 0)
        return in.error;
    return error;
}

static void fail_write(struct pl_stream *s, int error)
{
    s->error = reason_of(s, error);
    drop_queue(s);
    /* `failed` comes from the ready queue: the user may be in the middle of a call to us. */
    pl__io_enqueue(s->loop, &s->io);
}

/* The kernel takes no more now: the backend sends the rest, or tells when there is room. */
static void wait_for_room(struct pl_stream *s)
{
    const struct pl_backend_ops *backend = s->loop->backend;
    s->blocked = true;
    if (backend->send != NULL && s->io.mode == PL_IO_STREAM && s->ops->release_late != NULL) {
        struct iovec iov[PL__SEND_BATCH];
        size_t len;
        uint32_t n = first_chunks(s, iov, PL__SEND_BATCH, &len);
        s->sending = backend->send(s->loop, s->io.fd, iov, n);
    }
    if (s->sending == NULL) {
        rewatch(s, s->io.want | PL_WRITABLE);
        return;
    }
    /* Relaxed: for this thread; another one reads only whether it is NULL. */
    atomic_store_explicit(&s->sending->stream, s, memory_order_relaxed);
    /* Watched since the backend could not send the last time: nobody would listen. */
    rewatch(s, s->io.want & ~(unsigned)PL_WRITABLE);
}

/* In a child that a release has forked: what is left to send, and what follows from it, is the
 * parent's. Nothing ever tells that there is room, as for what is corked at a fork. */
static void stay_behind(struct pl_stream *s)
{
    s->flushing = false;
    s->blocked = true;
}

void pl_stream_flush(struct pl_stream *s)
{
    if (s->dead || s->blocked || s->error != 0 || s->flushing)
        return;
    bool forked = s->loop->forked;
    s->flushing = true;
    while (s->chunk_len > 0 && !s->dead) {
        size_t asked;
        ssize_t n = send_some(s, &asked);
        if (n == -EINTR)
            continue;
        if (n < 0 && n != -EAGAIN) {
            fail_write(s, (int)n);
            break;
        }
        if (n > 0)
            consume(s, (size_t)n);
        if (PL_UNLIKELY(s->loop->forked != forked)) {
            stay_behind(s);
            return;
        }
        /* A short write means that the kernel's buffer is full, so a second try would only
         * say EAGAIN. */
        if (!s->dead && (n < 0 || (size_t)n < asked)) {
            wait_for_room(s);
            break;
        }
    }
    s->flushing = false;
    if (s->chunk_len == 0 && !s->dead && s->error == 0)
        after_flush(s);
}

/* Whoever wrote first is answered first. */
static void oldest_first(struct pl_loop *loop)
{
    struct pl_stream *turned = NULL;
    while (loop->corked != NULL) {
        struct pl_stream *s = loop->corked;
        loop->corked = s->cork_next;
        s->cork_next = turned;
        turned = s;
    }
    loop->corked = turned;
}

void pl__stream_flush_corked(struct pl_loop *loop)
{
    oldest_first(loop);
    /* Callbacks made here may cork again: the loop goes on until the list is empty. */
    while (loop->corked != NULL) {
        struct pl_stream *s = loop->corked;
        loop->corked = s->cork_next;
        s->cork_next = NULL;
        s->corked = false;
        size_t before = s->queued;
        bool sent = s->sent;
        bool forked = loop->forked;
        s->sent = false;
        pl_stream_flush(s);
        if (PL_UNLIKELY(loop->forked != forked))
            return; /* see stay_behind; the others are held */
        if ((sent || s->queued < before) && !s->dead && s->error == 0)
            s->ops->drained(s);
    }
}

void pl__stream_hold_corked(struct pl_loop *loop)
{
    while (loop->corked != NULL) {
        struct pl_stream *s = loop->corked;
        loop->corked = s->cork_next;
        s->cork_next = NULL;
        s->corked = false;
        s->blocked = true; /* for ever: nothing tells that there is room */
    }
}

/* What a release does to the stream finds all of the call's chunks in their places. */
static void release_empty(struct pl_stream *s, const struct pl_chunk *chunks, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (chunks[i].len == 0 && chunks[i].owner != NULL)
            s->ops->release(s, chunks[i].owner);
    }
}

int pl_stream_write(struct pl_stream *s, const struct pl_chunk *chunks, uint32_t n)
{
    if (s->dead)
        return PL_ECLOSED;
    if (s->error != 0 || s->shut || s->shut_pending)
        return -EPIPE;
    int r = reserve(s, n);
    if (r < 0)
        return r;
    uint32_t empty = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (chunks[i].len == 0) {
            empty++;
            continue;
        }
        *chunk_at(s, s->chunk_len++) = chunks[i];
        s->queued += chunks[i].len;
    }
    if (s->blocked || s->chunk_len == 0) {
        /* Nothing to be done now. */
    } else if (s->queued > PL_STREAM_FLUSH) {
        /* The user knows of what was corked before, and may wait for it to be sent. */
        if (s->corked)
            s->sent = true;
        pl_stream_flush(s);
    } else if (!s->corked) {
        s->corked = true;
        s->cork_next = s->loop->corked;
        s->loop->corked = s;
    }
    if (PL_UNLIKELY(empty > 0))
        release_empty(s, chunks, n);
    return 0;
}

int pl_stream_shutdown(struct pl_stream *s)
{
    if (s->closing || s->dead)
        return PL_ECLOSED;
    if (s->error != 0)
        return -EPIPE;
    if (s->shut || s->shut_pending)
        return 0;
    s->shut_pending = true;
    if (s->chunk_len == 0)
        after_flush(s);
    return 0;
}

/* ---- the end ------------------------------------------------------------ */

void pl_stream_close(struct pl_stream *s)
{
    if (s->closing || s->dead)
        return;
    s->closing = true;
    s->reading = false;
    if (s->chunk_len == 0)
        die(s);
    else if (s->blocked)
        rewatch(s, s->sending != NULL ? 0 : PL_WRITABLE);
}

void pl_stream_abort(struct pl_stream *s)
{
    if (s->dead)
        return;
    die(s);
    drop_queue(s);
}

void pl_stream_forget(struct pl_stream *s)
{
    uncork(s);
    s->dead = true;
    s->closing = true;
    s->reading = false;
    leave_sending(s);
    pl_io_close(s->loop, &s->io);
    drop_queue(s);
}

bool pl__stream_runs(void (*run)(struct pl_loop *loop, struct pl_op *op))
{
    return run == stream_run;
}

struct pl_stream *pl_stream_of_op(struct pl_op *op)
{
    return op->run == stream_run ? PL_CONTAINER_OF(op, struct pl_stream, io.op) : NULL;
}

/* ---- events ------------------------------------------------------------- */

/* The next message is likely to be as large as this one. A filled buffer says that more was
 * there; shrinking is slower than growing. */
static void remember_size(struct pl_stream *s, size_t n, size_t len)
{
    size_t seen = n < len ? n : n * 2;
    uint32_t hint = seen > MAX_HINT ? MAX_HINT : (uint32_t)seen;
    s->hint = hint >= s->hint ? hint : s->hint - (s->hint - hint) / 8;
    s->io.weight = (uint8_t)(s->hint / PL_IO_WEIGHT);
}

/* Nothing comes any more: n is 0 or -errno. */
static void read_end(struct pl_stream *s, void *buf, ssize_t n)
{
    s->reading = false;
    s->eof = true;
    rewatch(s, s->io.want & ~(unsigned)PL_READABLE);
    s->ops->read(s, buf, n);
}

/* Hands on bytes that the backend has received. */
static void read_received(struct pl_stream *s, const struct pl_input *in)
{
    struct pl_loop *loop = s->loop;
    int fd = s->io.fd;
    if (s->borrows) {
        struct pl_lent lent;
        loop->backend->take(loop, fd, in->len, &lent);
        report_more(s); /* before the call, which may be the stream's last */
        remember_size(s, in->len, in->len + 1);
        s->ops->read(s, (void *)(uintptr_t)in->data, (ssize_t)in->len);
        loop->backend->give_back(loop, &lent);
        return;
    }
    size_t len = 0;
    void *buf = s->ops->room(s, in->len, &len);
    if (buf == NULL) {
        s->reading = false;
        return;
    }
    struct pl_input now; /* the call may have ended the stream */
    if (loop->backend->input(loop, fd, UINT32_MAX, &now) != PL_INPUT_DATA) {
        s->ops->again(s, buf);
        return;
    }
    size_t n = len < now.len ? len : now.len;
    memcpy(buf, now.data, n);
    loop->backend->take(loop, fd, n, NULL);
    report_more(s);
    s->ops->read(s, buf, (ssize_t)n);
}

/* Whether the backend has dealt with the event. */
static bool read_by_backend(struct pl_stream *s)
{
    const struct pl_backend_ops *backend = s->loop->backend;
    if (backend->input == NULL || s->io.mode != PL_IO_STREAM)
        return false;
    struct pl_input in;
    switch (backend->input(s->loop, s->io.fd, s->borrows ? s->hint : UINT32_MAX, &in)) {
    case PL_INPUT_YOURS:
        return false;
    case PL_INPUT_NONE:
        break;
    case PL_INPUT_DATA:
        read_received(s, &in);
        break;
    case PL_INPUT_END:
        read_end(s, NULL, in.error);
        break;
    }
    return true;
}

static void read_some(struct pl_stream *s)
{
    if (read_by_backend(s))
        return;
    size_t len = 0;
    void *buf = s->ops->room(s, s->hint, &len);
    if (buf == NULL) {
        s->reading = false;
        return;
    }
    ssize_t n;
    do {
        n = s->is_socket ? s->loop->sys->recv(s->io.fd, buf, len, 0)
                         : s->loop->sys->read(s->io.fd, buf, len);
    } while (n == -EINTR);

    if (n == -EAGAIN) {
        s->ops->again(s, buf);
        return;
    }
    if (n <= 0) {
        read_end(s, buf, n);
        return;
    }
    remember_size(s, (size_t)n, len);
    s->ops->read(s, buf, n);
}

static void tell_failure(struct pl_stream *s)
{
    if (PL_LIKELY(s->error == 0) || s->told || s->dead)
        return;
    s->told = true;
    s->ops->failed(s, s->error);
    if (s->closing && !s->dead)
        die(s);
}

void pl__stream_sent(struct pl_stream *s)
{
    pl__io_enqueue(s->loop, &s->io);
}

/* Takes over what the backend has sent. Whether that was all that it had been given. */
static bool take_sent(struct pl_stream *s)
{
    struct pl_sending *sending = s->sending;
    int result = sending->in.result;
    size_t asked = 0;
    for (uint32_t i = 0; i < sending->n; i++)
        asked += sending->iov[i].iov_len;
    s->sending = NULL;
    s->loop->sys->free(sending);
    if (result > 0) {
        s->flushing = true; /* what a release makes the user write is for the flush below */
        consume(s, (size_t)result);
        s->flushing = false;
    } else if (result != -EAGAIN && result != -EINTR && result != -ECANCELED) {
        fail_write(s, result < 0 ? result : -EPIPE);
    }
    return result < 0 || (size_t)result == asked;
}

/* There is room in the kernel, or the backend has used it. */
static void write_on(struct pl_stream *s)
{
    size_t before = s->queued;
    s->blocked = false;
    bool all = s->sending == NULL || take_sent(s);
    if (PL_UNLIKELY(s->loop->forked)) {
        stay_behind(s);
        return;
    }
    if (!all && !s->dead && s->chunk_len > 0)
        wait_for_room(s); /* the kernel is full again: nobody needs to ask it */
    else
        pl_stream_flush(s);
    if (PL_UNLIKELY(s->loop->forked))
        return;
    if (!s->blocked && !s->dead)
        rewatch(s, s->io.want & ~(unsigned)PL_WRITABLE);
    if (s->queued < before && !s->dead && s->error == 0)
        s->ops->drained(s);
    /* Now, because the failed write took the socket's error with it: a read would see the end of
     * a stream in order. */
    tell_failure(s);
}

static void stream_run(struct pl_loop *loop, struct pl_op *op)
{
    struct pl_stream *s = PL_CONTAINER_OF(op, struct pl_stream, io.op);
    s->io.queued = false;

    tell_failure(s);
    unsigned ready = s->io.ready;
    s->io.ready = 0;
    /* By its own word, since what is watched meanwhile may clear `ready`. */
    bool room = s->sending != NULL ? s->sending->in.ended : (ready & PL_WRITABLE) != 0;
    /* In a forked child what is queued is the parent's to send, room or not. */
    if (room && s->blocked && !s->dead && !loop->forked)
        write_on(s);
    if ((ready & PL_READABLE) && !s->dead) {
        if (s->reading)
            read_some(s);
        else
            rewatch(s, s->io.want & ~(unsigned)PL_READABLE);
    }
    if (PL_UNLIKELY(s->closing) && !s->dead && s->chunk_len == 0 && s->error == 0) {
        s->ops->drained(s); /* the last chance to write */
        if (!s->dead && s->chunk_len == 0 && s->error == 0) {
            uncork(s); /* its memory is the user's in a moment */
            s->dead = true;
            pl_io_close(s->loop, &s->io);
        }
    }
    /* `closed` is due when the stream has died and no event of it is queued any more: one
     * that died in the calls above has queued its op anew. */
    if (s->dead && !s->io.queued)
        s->ops->closed(s);
}
