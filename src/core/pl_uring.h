/* pl_uring.h - one io_uring: its two rings, without a library in between.
 *
 * Source: io_uring(7), io_uring_setup(2), io_uring_enter(2), io_uring_register(2).
 * liburing would add a run-time dependency to every wheel, and its calls would bypass the
 * system-call table, by which the tests take io_uring away from a running program.
 */
#ifndef PL_URING_H
#define PL_URING_H

#include "pl_base.h"
#include "pl_sys.h"

#include <linux/io_uring.h>
#include <stdatomic.h>

struct pl_uring {
    const struct pl_sys *sys;
    int fd;
    uint32_t features; /* IORING_FEAT_* */
    uint32_t setup;    /* IORING_SETUP_* */
    uint32_t queued;   /* entries filled in and not submitted */
    uint32_t sq_entries;
    uint32_t sq_mask;
    uint32_t cq_mask;
    /* Shared with the kernel. */
    _Atomic uint32_t *sq_head;
    _Atomic uint32_t *sq_tail;
    _Atomic uint32_t *sq_flags;
    _Atomic uint32_t *cq_head;
    _Atomic uint32_t *cq_tail;
    struct io_uring_cqe *cqes;
    struct io_uring_sqe *sqes;
    void *rings;
    size_t rings_size;
    size_t sqes_size;
    uint8_t supported[32]; /* bit per operation code */
};

/* Flags of Linux 6.1 (a build may have older headers): the ring has one thread that submits, and
 * the kernel completes requests only while that thread waits for it. */
#define PL__URING_DEFERRED (1u << 13)
#define PL__URING_SINGLE (1u << 12)
/* The kernel says in the ring when it has such work. */
#define PL__URING_TASKRUN_FLAG (1u << 9)
#define PL__URING_SQ_TASKRUN (1u << 2)

/* -ENOSYS, -EPERM, -EACCES, -ENOMEM, -EMFILE: io_uring is not to be had; -EINVAL: the kernel
 * does not know the flags; -EOPNOTSUPP: it lacks features of 5.11. completions 0: twice the
 * entries. */
int pl__uring_init(struct pl_uring *ring, const struct pl_sys *sys, uint32_t entries,
                   uint32_t completions, uint32_t flags) PL_MUST_CHECK;

/* Starts a ring that was made with IORING_SETUP_R_DISABLED; the calling thread is its own. */
int pl__uring_enable(struct pl_uring *ring) PL_MUST_CHECK;

/* Closes the ring, which must have nothing in flight unless its memory outlives it. Safe in a
 * child after a fork: the parent's ring is not touched. */
void pl__uring_fini(struct pl_uring *ring);

static inline bool pl__uring_supports(const struct pl_uring *ring, unsigned op)
{
    return op < sizeof(ring->supported) * 8 && (ring->supported[op / 8] & 1u << (op % 8)) != 0;
}

/* An empty entry to fill in, or NULL when all are taken: submit first. */
struct io_uring_sqe *pl__uring_sqe(struct pl_uring *ring);

/* Hands the filled entries to the kernel and waits for `least` completions, at most
 * timeout_ns (-1: for ever). Number submitted, or -errno; -ETIME when the time is over. */
int pl__uring_enter(struct pl_uring *ring, uint32_t least, int64_t timeout_ns) PL_MUST_CHECK;

/* A request that the kernel has not taken loses its descriptor, which is about to be closed, and
 * may be another's when it is taken: it will fail with EBADF. */
void pl__uring_disarm(struct pl_uring *ring, uint64_t user_data);

/* The oldest completion that has not been seen, or NULL. It is the caller's until
 * pl__uring_seen. */
static inline struct io_uring_cqe *pl__uring_peek(struct pl_uring *ring)
{
    /* relaxed: only this side writes it. */
    uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
    /* acquire: pairs with the kernel's release of a filled entry. */
    if (head == atomic_load_explicit(ring->cq_tail, memory_order_acquire))
        return NULL;
    return &ring->cqes[head & ring->cq_mask];
}

static inline void pl__uring_seen(struct pl_uring *ring)
{
    uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
    /* release: the kernel may overwrite the entry only after it has been read. */
    atomic_store_explicit(ring->cq_head, head + 1, memory_order_release);
}

/* Whether completions wait in the kernel because the ring was full: enter fetches them. */
static inline bool pl__uring_overflown(struct pl_uring *ring)
{
    /* relaxed: a hint; enter synchronises. */
    return (atomic_load_explicit(ring->sq_flags, memory_order_relaxed) & IORING_SQ_CQ_OVERFLOW) !=
           0;
}

/* How many completions have not been seen. */
static inline uint32_t pl__uring_ready(struct pl_uring *ring)
{
    /* acquire: as in pl__uring_peek; relaxed: only this side writes it. */
    return atomic_load_explicit(ring->cq_tail, memory_order_acquire) -
           atomic_load_explicit(ring->cq_head, memory_order_relaxed);
}

/* Whether the kernel has completions to make, or to fetch, which only a call to enter does. A
 * ring without PL__URING_TASKRUN_FLAG does not know. */
static inline bool pl__uring_has_work(struct pl_uring *ring)
{
    /* relaxed: a hint; enter synchronises. */
    return (ring->setup & PL__URING_TASKRUN_FLAG) == 0 ||
           (atomic_load_explicit(ring->sq_flags, memory_order_relaxed) &
            (IORING_SQ_CQ_OVERFLOW | PL__URING_SQ_TASKRUN)) != 0;
}

/* Whether entries wait that the kernel has not taken. */
static inline bool pl__uring_unsubmitted(struct pl_uring *ring)
{
    return ring->queued > 0 || atomic_load_explicit(ring->sq_tail, memory_order_relaxed) !=
                                   atomic_load_explicit(ring->sq_head, memory_order_relaxed);
}

#endif /* PL_URING_H */
