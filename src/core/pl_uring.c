/* pl_uring.c - setting up, filling and draining one io_uring. */
#if PL_HAVE_IO_URING

#include "pl_uring.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

/* Features of Linux 5.10 and older that are taken for granted, and waiting with a timeout,
 * which came with 5.11. */
#define NEEDED                                                                                     \
    (IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE |                    \
     IORING_FEAT_RW_CUR_POS | IORING_FEAT_EXT_ARG)

static int probe(struct pl_uring *ring)
{
    enum { OPS = sizeof(ring->supported) * 8 };
    size_t size = sizeof(struct io_uring_probe) + OPS * sizeof(struct io_uring_probe_op);
    struct io_uring_probe *p = ring->sys->alloc(size);
    if (p == NULL)
        return -ENOMEM;
    memset(p, 0, size);
    int r = ring->sys->uring_register(ring->fd, IORING_REGISTER_PROBE, p, OPS);
    if (r >= 0) {
        for (unsigned i = 0; i < p->ops_len && i < OPS; i++) {
            unsigned op = p->ops[i].op;
            if ((p->ops[i].flags & IO_URING_OP_SUPPORTED) != 0 && op < OPS)
                ring->supported[op / 8] |= (uint8_t)(1u << (op % 8));
        }
    }
    ring->sys->free(p);
    return r;
}

int pl__uring_init(struct pl_uring *ring, const struct pl_sys *sys, uint32_t entries,
                   uint32_t completions, uint32_t flags)
{
    struct io_uring_params params = {.flags = flags, .cq_entries = completions};
    if (completions > 0)
        params.flags |= IORING_SETUP_CQSIZE;
    *ring = (struct pl_uring){.sys = sys, .fd = -1};
    int r = sys->uring_setup(entries, &params);
    if (r < 0)
        return r;
    ring->fd = r;
    ring->features = params.features;
    ring->setup = params.flags;
    if ((params.features & NEEDED) != NEEDED) {
        r = -EOPNOTSUPP;
        goto fail;
    }
    size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    ring->rings_size = sq_size > cq_size ? sq_size : cq_size;
    r = sys->mmap_ring(ring->fd, ring->rings_size, IORING_OFF_SQ_RING, &ring->rings);
    if (r < 0)
        goto fail;
    ring->sqes_size = params.sq_entries * sizeof(struct io_uring_sqe);
    void *sqes;
    r = sys->mmap_ring(ring->fd, ring->sqes_size, IORING_OFF_SQES, &sqes);
    if (r < 0)
        goto fail;
    ring->sqes = sqes;

    char *base = ring->rings;
    ring->sq_entries = params.sq_entries;
    ring->sq_mask = params.sq_entries - 1;
    ring->cq_mask = params.cq_entries - 1;
    ring->sq_head = (_Atomic uint32_t *)(void *)(base + params.sq_off.head);
    ring->sq_tail = (_Atomic uint32_t *)(void *)(base + params.sq_off.tail);
    ring->sq_flags = (_Atomic uint32_t *)(void *)(base + params.sq_off.flags);
    ring->cq_head = (_Atomic uint32_t *)(void *)(base + params.cq_off.head);
    ring->cq_tail = (_Atomic uint32_t *)(void *)(base + params.cq_off.tail);
    ring->cqes = (struct io_uring_cqe *)(void *)(base + params.cq_off.cqes);
    /* Entry i of the submission ring is always entry i of the array. */
    uint32_t *array = (uint32_t *)(void *)(base + params.sq_off.array);
    for (uint32_t i = 0; i < params.sq_entries; i++)
        array[i] = i;
    r = probe(ring);
    if (r < 0)
        goto fail;
    return 0;

fail:
    pl__uring_fini(ring);
    return r;
}

void pl__uring_fini(struct pl_uring *ring)
{
    if (ring->sqes != NULL)
        (void)ring->sys->munmap(ring->sqes, ring->sqes_size);
    if (ring->rings != NULL)
        (void)ring->sys->munmap(ring->rings, ring->rings_size);
    if (ring->fd >= 0)
        (void)ring->sys->close(ring->fd);
    ring->sqes = NULL;
    ring->rings = NULL;
    ring->fd = -1;
}

int pl__uring_enable(struct pl_uring *ring)
{
    return ring->sys->uring_register(ring->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

struct io_uring_sqe *pl__uring_sqe(struct pl_uring *ring)
{
    /* acquire: pairs with the kernel's release when it has read an entry. */
    uint32_t head = atomic_load_explicit(ring->sq_head, memory_order_acquire);
    /* relaxed: only this side writes it. */
    uint32_t tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed) + ring->queued;
    if (tail - head >= ring->sq_entries)
        return NULL;
    struct io_uring_sqe *sqe = &ring->sqes[tail & ring->sq_mask];
    memset(sqe, 0, sizeof(*sqe));
    ring->queued++;
    return sqe;
}

void pl__uring_disarm(struct pl_uring *ring, uint64_t user_data)
{
    /* acquire: as in pl__uring_sqe. The kernel reads entries in the calls of this thread only. */
    uint32_t at = atomic_load_explicit(ring->sq_head, memory_order_acquire);
    uint32_t tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed) + ring->queued;
    for (; at != tail; at++)
        if (ring->sqes[at & ring->sq_mask].user_data == user_data)
            ring->sqes[at & ring->sq_mask].fd = -1;
}

int pl__uring_enter(struct pl_uring *ring, uint32_t least, int64_t timeout_ns)
{
    uint32_t tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed);
    if (ring->queued > 0) {
        /* release: the kernel reads the entries after the tail. */
        atomic_store_explicit(ring->sq_tail, tail + ring->queued, memory_order_release);
        tail += ring->queued;
        ring->queued = 0;
    }
    /* What an interrupted call left is submitted by the next one. */
    uint32_t submit = tail - atomic_load_explicit(ring->sq_head, memory_order_acquire);
    struct __kernel_timespec limit = {.tv_sec = timeout_ns / PL_NSEC_PER_SEC,
                                      .tv_nsec = timeout_ns % PL_NSEC_PER_SEC};
    struct io_uring_getevents_arg arg = {
        .sigmask_sz = _NSIG / 8,
        .ts = timeout_ns < 0 ? 0 : (uint64_t)(uintptr_t)&limit,
    };
    unsigned flags = IORING_ENTER_EXT_ARG;
    /* Deferred work is done in calls that ask for events, and nowhere else. */
    if (least > 0 || (ring->setup & PL__URING_DEFERRED) != 0 || pl__uring_overflown(ring))
        flags |= IORING_ENTER_GETEVENTS;
    return ring->sys->uring_enter(ring->fd, submit, least, flags, &arg, sizeof(arg));
}

#else

typedef int pl__no_uring_here; /* ISO C has no empty files */

#endif
