/* pl_uring_poller.h - what the files of the io_uring backend share: backend_uring.c has the
 * idea, pl_uring_input.c what has been received, pl_uring_output.c sends and connects,
 * pl_uring_files.c the file operations.
 */
#ifndef PL_URING_POLLER_H
#define PL_URING_POLLER_H

#include "pl_internal.h"
#include "pl_uring.h"
#include "pl_uring_bufs.h"

#include <pthread.h>

/* What a completion is of; in user_data together with the descriptor and its generation. */
enum request {
    REQUEST_NONE, /* what nobody waits for: the answer to a cancel */
    REQUEST_SET,  /* the epoll set has events */
    REQUEST_READABLE,
    REQUEST_WRITABLE,
    REQUEST_RECEIVE,
    REQUEST_ACCEPT,
    REQUEST_FILE, /* with the address of its struct pl_file_req in the place of a descriptor */
    REQUEST_SEND, /* and these with that of their struct pl_inflight */
    REQUEST_CONNECT,
};

#define KIND_BITS 4
#define FD_BITS 30 /* the kernel has no larger ones */
#define GENERATION_MASK ((UINT64_C(1) << (64 - KIND_BITS - FD_BITS)) - 1)

/* Received bytes in memory of their own: a stream that does not read keeps no buffer. */
struct spilled {
    size_t at;
    size_t len;
    char data[];
};

/* A stream or listener, by its descriptor. */
struct ring_fd {
    uint32_t generation;
    uint8_t mode;
    uint8_t want; /* of enum pl_io_events */
    uint8_t in;   /* enum request that is in the ring: for reading, or NONE */
    /* Bits: each connection pays for what is here. */
    bool in_cancelled : 1; /* and its end was asked for */
    bool out : 1;          /* REQUEST_WRITABLE is in the ring */
    bool open : 1;         /* has a place in the loop's table */
    bool large : 1;        /* what comes is too large for the kernel's buffers */
    bool ended : 1;        /* `error` says how */
    bool dirty : 1;        /* in the list of those to tell the ring of */
    int32_t next_dirty;    /* descriptor + 1 */
    int32_t error;
    struct spilled *spilled; /* owns; before what is in `received` */
    struct pl_buf_list received;
    uint16_t at; /* how much of the first buffer has been taken */
    /* Accepted and not taken: descriptors + 1, linked through the entries of their own. */
    int32_t first_accepted;
    int32_t last_accepted;
    int32_t next_accepted;
};

struct pl_poller {
    const struct pl_sys *sys; /* borrows */
    struct pl_uring ring;
    struct pl_epoll_set set;
    struct pl_uring_bufs bufs;
    struct ring_fd *fds; /* owns */
    uint32_t nfds;
    /* A thread that has the binding's lock may give up a stream while the ring's own waits, without
     * that lock, and tells the ring what has changed: for what both then touch, `fds` and the list
     * of the dirty. All else that touches them does so in the ring's thread, or while it does not
     * wait. Nothing is called with it held but the kernel, to submit. */
    pthread_mutex_t changes;
    _Atomic int32_t dirty;        /* descriptor + 1; changed with the lock, or while nobody waits */
    uint32_t files;               /* file operations that have not been told of */
    struct pl_inflight *inflight; /* owns: sends and connects that have not been told of */
    uint32_t unanswered;          /* those that the kernel has */
    /* Some of them whose user has gone were not cancelled. Set by any thread that has the binding's
     * lock, taken by the ring's own, which waits without it. */
    _Atomic bool owes_ends;
    bool receives;   /* the ring has the buffers */
    bool set_asked;  /* a request for the set is in the ring */
    bool enabled;    /* the ring has a thread */
    bool parked;     /* the loop has stopped to run since the last call to the kernel */
    pthread_t owner; /* that thread, when enabled */
};

static inline uint64_t pl__name_request(enum request kind, int fd, uint32_t generation)
{
    return (generation & GENERATION_MASK) << (KIND_BITS + FD_BITS) |
           (uint64_t)(uint32_t)fd << KIND_BITS | kind;
}

/* A descriptor's requests are no longer what they should be: the next wait tells the ring. */
static inline void pl__mark_dirty(struct pl_poller *p, int fd)
{
    struct ring_fd *f = &p->fds[fd];
    if (f->dirty)
        return;
    f->dirty = true;
    /* Relaxed, both: the lock orders it. */
    f->next_dirty = atomic_load_explicit(&p->dirty, memory_order_relaxed);
    atomic_store_explicit(&p->dirty, fd + 1, memory_order_relaxed);
}

/* Whether there is a ring: a thread that takes over may fail to get one of its own. */
static inline bool pl__ring_exists(const struct pl_poller *p)
{
    return p->ring.fd >= 0;
}

/* Whether this thread may use the ring. */
static inline bool pl__ring_is_ours(const struct pl_poller *p)
{
    return p->enabled && pthread_equal(p->owner, pthread_self());
}

static inline enum request pl__kind_of(const struct io_uring_cqe *cqe)
{
    return (enum request)(cqe->user_data & ((1u << KIND_BITS) - 1));
}

/* The i-th completion that has not been seen. */
static inline struct io_uring_cqe *pl__ring_completion(struct pl_poller *p, uint32_t i)
{
    /* relaxed: only this side writes it. */
    uint32_t head = atomic_load_explicit(p->ring.cq_head, memory_order_relaxed);
    return &p->ring.cqes[(head + i) & p->ring.cq_mask];
}

/* backend_uring.c: an entry to fill in, or NULL when the kernel takes none now. */
struct io_uring_sqe *pl__ring_entry(struct pl_poller *p, uint64_t user_data);
/* Asks for the end of a request. false: the ring takes no more now. What has ended already is
 * not found, which does no harm. */
bool pl__ring_ask_cancel(struct pl_poller *p, uint64_t user_data);

/* pl_uring_input.c: of pl_backend_ops. */
enum pl_input_kind pl__ring_input(struct pl_loop *loop, int fd, uint32_t hint, struct pl_input *in);
void pl__ring_take(struct pl_loop *loop, int fd, size_t n, struct pl_lent *lent);
void pl__ring_give_back(struct pl_loop *loop, struct pl_lent *lent);
int pl__ring_accept(struct pl_loop *loop, int fd) PL_MUST_CHECK;
bool pl__ring_has_more(struct pl_loop *loop, int fd);
/* Moves what a stream has received out of the kernel's buffers. Without memory it stays. */
void pl__ring_spill(struct pl_poller *p, struct ring_fd *f);
/* Gives up what was received or accepted. */
void pl__ring_drop_input(struct pl_poller *p, struct ring_fd *f);

/* pl_uring_output.c: of pl_backend_ops. */
struct pl_sending *pl__ring_send(struct pl_loop *loop, int fd, const struct iovec *iov, uint32_t n);
void pl__ring_unsend(struct pl_loop *loop, struct pl_sending *sending);
int pl__ring_connect(struct pl_loop *loop, struct pl_connect *user, int fd,
                     const struct sockaddr *addr, socklen_t len) PL_MUST_CHECK;
void pl__ring_unconnect(struct pl_loop *loop, struct pl_connect *user);
/* Asks for the end of one, now if it can be. */
void pl__ring_end_one(struct pl_poller *p, struct pl_inflight *in);
/* Of all, or of those whose users have gone. false: the ring takes no more now. */
bool pl__ring_end_all(struct pl_poller *p, bool abandoned);
/* Asks for the ends that other threads have left to the ring's. */
void pl__ring_pay_ends(struct pl_poller *p);
/* The completion of one; -ENOMEM: to be called again. */
int pl__ring_answered(struct pl_loop *loop, const struct io_uring_cqe *cqe) PL_MUST_CHECK;
/* The end of the poller: frees what is left, in a child after a fork all of it. */
void pl__ring_drop_inflight(struct pl_loop *loop, bool forked);

/* pl_uring_files.c: of pl_backend_ops, and the completion of one. */
int pl__ring_file(struct pl_loop *loop, struct pl_file_req *req) PL_MUST_CHECK;
void pl__ring_park(struct pl_loop *loop, int64_t timeout_ns);
void pl__ring_reap(struct pl_loop *loop);
int pl__ring_file_done(struct pl_loop *loop, const struct io_uring_cqe *cqe) PL_MUST_CHECK;

#endif /* PL_URING_POLLER_H */
