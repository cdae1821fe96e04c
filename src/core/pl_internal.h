/* pl_internal.h - functions that the core's files share with each other. */
#ifndef PL_INTERNAL_H
#define PL_INTERNAL_H

#include "pl.h"

/* pl_queue.c */
int pl__queue_push(const struct pl_sys *sys, struct pl_queue *q, struct pl_op *op) PL_MUST_CHECK;
int pl__queue_reserve(const struct pl_sys *sys, struct pl_queue *q, uint32_t extra) PL_MUST_CHECK;
void pl__queue_fini(const struct pl_sys *sys, struct pl_queue *q);

static inline struct pl_op *pl__queue_pop(struct pl_queue *q)
{
    return q->slots[q->head++ & q->mask];
}

/* pl_timer.c: moves timers with deadline <= now to the ready queue. */
int pl__timers_expire(struct pl_loop *loop, int64_t now) PL_MUST_CHECK;
void pl__timers_fini(struct pl_loop *loop);

/* pl_io.c: one reported event; the poller's data is what pl__io_key made. */
int pl__io_report(struct pl_loop *loop, uint64_t key, unsigned events) PL_MUST_CHECK;

/* Whether what is left is to be reported by the next collect, see PL_LOOP_BULK. */
static inline bool pl__io_full(struct pl_loop *loop)
{
    loop->unreported = loop->bulk >= PL_LOOP_BULK / PL_IO_WEIGHT;
    return loop->unreported;
}

/* pl_io_watch for nothing, which cannot fail. */
void pl__io_unwatch(struct pl_loop *loop, struct pl_io *io);
void pl__io_fini(struct pl_loop *loop);
/* Queues io's op for a reason other than an event. Cannot fail: without memory for the
 * ready queue it waits in a list of its own until pl__io_collect_late finds some. */
void pl__io_enqueue(struct pl_loop *loop, struct pl_io *io);
int pl__io_collect_late(struct pl_loop *loop) PL_MUST_CHECK;

static inline uint64_t pl__io_key(int fd, uint32_t generation)
{
    return (uint64_t)generation << 32 | (uint32_t)fd;
}

/* pl_busy.c: a sleep has ended, by an event or not. */
void pl__busy_slept(struct pl_busy *busy, int64_t took, bool woken);

/* pl_file.c: an operation in the loop's ring has ended. Without `loop` the queue's user is not
 * told, and it cannot fail. -ENOMEM: nothing has happened. */
int pl__file_done(struct pl_loop *loop, struct pl_file_req *req, int64_t result) PL_MUST_CHECK;

/* pl_stream.c: writes what is corked, the stream that was corked first first. */
void pl__stream_flush_corked(struct pl_loop *loop);
/* Whether that is how the op of a stream runs. */
bool pl__stream_runs(void (*run)(struct pl_loop *loop, struct pl_op *op));
/* In a child after a fork: the parent writes it. */
void pl__stream_hold_corked(struct pl_loop *loop);

enum pl_input_kind {
    PL_INPUT_YOURS, /* the stream is to receive by itself */
    PL_INPUT_NONE,  /* it was told in vain */
    PL_INPUT_DATA,
    PL_INPUT_END, /* of the stream, in order or by an error */
};

struct pl_input {
    const char *data; /* borrows; until take, or any other call to the backend */
    size_t len;
    int error; /* of PL_INPUT_END: 0 or -errno */
};

/* Received bytes that outlive their place in the queue: one of the two. */
struct pl_lent {
    int buffer; /* of the backend's; -1: none */
    void *heap; /* owns; NULL: none */
};

/* What a backend does by itself in memory of its own, so that nobody has to wait for the kernel's
 * answer: its user may go away before. */
struct pl_inflight {
    struct pl_inflight *prev, *next;
    uint8_t kind;   /* the backend's */
    bool cancelled; /* its end was asked for */
    bool ended;     /* the kernel has answered */
    int result;     /* then: a count or -errno */
};

#define PL__SEND_BATCH 8

/* The first chunks of a stream on their way. Once ended, it is the stream's to free. */
struct pl_sending {
    struct pl_inflight in;
    /* Borrows; NULL when that has gone. Written by any thread that has the binding's lock; the
     * ring's own looks at it in a wait, without that, to know what nobody wants any more. */
    struct pl_stream *_Atomic stream;
    uint32_t n;
    struct iovec iov[PL__SEND_BATCH];
    struct msghdr msg;
    /* When the stream has gone: owns, and gives back by this. */
    void (*release)(struct pl_loop *loop, void *owner);
    void *owners[PL__SEND_BATCH];
};

/* pl_stream.c: tells the stream that its `sending` has ended. */
void pl__stream_sent(struct pl_stream *stream);

/* A way to wait for descriptors. The functions get the poller that create made. */
struct pl_backend_ops {
    const char *name;
    /* Fails when the kernel has or gives no such thing; nothing is left behind then. */
    int (*create)(struct pl_loop *loop);
    void (*destroy)(struct pl_loop *loop);
    /* Makes the kernel's set for fd be `want`; `known` as in pl_fd_slot, updated. */
    int (*watch)(struct pl_loop *loop, int fd, uint64_t key, unsigned want, enum pl_io_mode mode,
                 bool *known);
    /* Forgets fd; it may be closed already. The kernel holds its file no more afterwards. */
    void (*forget)(struct pl_loop *loop, int fd);
    int (*wait)(struct pl_loop *loop, int64_t timeout_ns);
    /* Passes what wait got to pl__io_report. On -ENOMEM the rest stays for next time, and
     * when pl__io_full says so. */
    int (*report)(struct pl_loop *loop);

    /* The rest is there, all of it or nothing, when the backend receives for the descriptors of
     * mode PL_IO_STREAM, and accepts for those of PL_IO_LISTEN, by itself. */

    /* What there is for a stream that has been reported; hint is how much the last reads
     * brought, UINT32_MAX when the stream has memory of its own to receive into. */
    enum pl_input_kind (*input)(struct pl_loop *loop, int fd, uint32_t hint, struct pl_input *in);
    /* Takes n bytes of what input told. With `lent`, all of them at once, and they stay where
     * they are until give_back. */
    void (*take)(struct pl_loop *loop, int fd, size_t n, struct pl_lent *lent);
    void (*give_back)(struct pl_loop *loop, struct pl_lent *lent);
    /* A connection, or -errno as of accept4(2). */
    int (*accept)(struct pl_loop *loop, int fd);
    /* Whether a stream or listener has more than it took, which is not reported again. */
    bool (*has_more)(struct pl_loop *loop, int fd);
    /* The place of fd is given up: what it had received is dropped. After forget. */
    void (*drop)(struct pl_loop *loop, int fd);

    /* Sends these bytes, which stay where they are until the end: the result tells how many.
     * NULL: not here, or not now. */
    struct pl_sending *(*send)(struct pl_loop *loop, int fd, const struct iovec *iov, uint32_t n);
    /* Asks for the end of one that has not ended; its memory is the backend's again. The kernel
     * holds the file no more afterwards. */
    void (*unsend)(struct pl_loop *loop, struct pl_sending *sending);
    /* As the functions of pl_connect. */
    int (*connect)(struct pl_loop *loop, struct pl_connect *c, int fd, const struct sockaddr *addr,
                   socklen_t len);
    void (*unconnect)(struct pl_loop *loop, struct pl_connect *c);

    /* Starts a file operation that is sure to end by itself. 1: it has ended, req->result tells
     * how; 0: pl__file_done will tell; -EAGAIN: not here, or not now. */
    int (*file)(struct pl_loop *loop, struct pl_file_req *req);
    /* Waits until all of them have ended, and ends what else is in flight, for pl_loop_park. */
    void (*park)(struct pl_loop *loop, int64_t timeout_ns);
    /* Tells of those that have ended now, and not in the next report. */
    void (*reap)(struct pl_loop *loop);
};

extern const struct pl_backend_ops pl__backend_epoll;
extern const struct pl_backend_ops pl__backend_uring;

/* backend_epoll.c: an epoll set with the batch of events that it told last. */
#define PL__EPOLL_EVENTS 256

struct pl_epoll_set {
    const struct pl_sys *sys; /* borrows */
    int fd;                   /* owns; -1 when closed */
    int count;                /* events in the batch */
    int next;                 /* the first that has not been reported */
    struct epoll_event events[PL__EPOLL_EVENTS];
};

int pl__epoll_open(struct pl_epoll_set *set, const struct pl_sys *sys) PL_MUST_CHECK;
void pl__epoll_close(struct pl_epoll_set *set);
/* As the functions of a backend. */
int pl__epoll_watch(struct pl_epoll_set *set, int fd, uint64_t key, unsigned want,
                    enum pl_io_mode mode, bool *known) PL_MUST_CHECK;
void pl__epoll_forget(struct pl_epoll_set *set, int fd);
int pl__epoll_fetch(struct pl_epoll_set *set, int64_t timeout_ns) PL_MUST_CHECK;
int pl__epoll_report(struct pl_epoll_set *set, struct pl_loop *loop) PL_MUST_CHECK;

/* What poll(2) and epoll(7) say, which have the same bits, in our words. */
static inline unsigned pl__io_events(unsigned said)
{
    unsigned events = 0;
    if (said & EPOLLIN)
        events |= PL_READABLE;
    if (said & EPOLLOUT)
        events |= PL_WRITABLE;
    /* Either direction learns the reason by trying. */
    if (said & (EPOLLERR | EPOLLHUP))
        events |= PL_READABLE | PL_WRITABLE | PL_HANGUP;
    return events;
}

#endif /* PL_INTERNAL_H */
