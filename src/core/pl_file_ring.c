/* pl_file_ring.c - file operations by io_uring.
 *
 * Each submit is one call to the kernel. What the page cache holds, the kernel completes
 * within that call, and the completion is found in the ring at once. What it does not hold it
 * reads by itself, and the ring becomes readable when that is done; completions that have
 * been taken out of the ring by then are no reason to wake up.
 */
#include "pl_file_ring.h"

#include <errno.h>

#if PL_HAVE_IO_URING

#include "pl_uring.h"

#include <fcntl.h>

#define ENTRIES 64
/* Younger than many headers: asked of the kernel by its number. */
#define OP_FTRUNCATE 55
/* The kernel takes no more in one call either. */
#define MAX_TRANSFER 0x7ffff000u

struct pl_file_ring {
    struct pl_uring uring;
    int event_fd; /* borrows */
    uint32_t inflight;
    struct pl_file_req *done;
    struct pl_file_req **done_tail;
};

int pl__file_ring_new(const struct pl_sys *sys, int event_fd, struct pl_file_ring **out)
{
    struct pl_file_ring *ring = sys->alloc(sizeof(*ring));
    if (ring == NULL)
        return -ENOMEM;
    *ring = (struct pl_file_ring){.event_fd = event_fd};
    ring->done_tail = &ring->done;
    int r = pl__uring_init(&ring->uring, sys, ENTRIES, 0, IORING_SETUP_CLAMP);
    if (r < 0) {
        sys->free(ring);
        return r;
    }
    /* A filter may allow the call that makes a ring and refuse the one that uses it. A kernel that
     * is short of something now is asked again with the first operation. */
    r = pl__uring_enter(&ring->uring, 0, 0);
    if (r < 0 && r != -EAGAIN && r != -EBUSY && r != -EINTR && r != -ENOMEM) {
        pl__file_ring_free(ring);
        return r;
    }
    *out = ring;
    return 0;
}

int pl__file_ring_fd(const struct pl_file_ring *ring)
{
    return ring->uring.fd;
}

void pl__file_ring_free(struct pl_file_ring *ring)
{
    const struct pl_sys *sys = ring->uring.sys;
    pl__uring_fini(&ring->uring);
    sys->free(ring);
}

/* Moves what has ended to the list. */
static void drain(struct pl_file_ring *ring)
{
    for (;;) {
        struct io_uring_cqe *cqe = pl__uring_peek(&ring->uring);
        if (cqe == NULL) {
            if (!pl__uring_overflown(&ring->uring) || pl__uring_enter(&ring->uring, 0, 0) < 0 ||
                pl__uring_peek(&ring->uring) == NULL)
                return;
            continue;
        }
        struct pl_file_req *req = (struct pl_file_req *)(uintptr_t)cqe->user_data;
        int64_t result = cqe->res;
        pl__uring_seen(&ring->uring);
        if (req == NULL)
            continue; /* the answer to a cancel request */
        ring->inflight--;
        req->place = PL_FILE_NOWHERE;
        req->result = result;
        req->next = NULL;
        *ring->done_tail = req;
        ring->done_tail = &req->next;
    }
}

/* Makes the queue's descriptor readable. */
static void tell(struct pl_file_ring *ring)
{
    uint64_t one = 1;
    (void)ring->uring.sys->write(ring->event_fd, &one, sizeof(one)); /* full: readable already */
}

/* Enters the kernel without waiting. When it is short of something (EAGAIN, EBUSY, ENOMEM),
 * entries stay in the ring and go with the next call; the eventfd, written here, makes the
 * queue's user come back, and take makes that call. */
static void push(struct pl_file_ring *ring)
{
    if (pl__uring_enter(&ring->uring, 0, 0) < 0)
        tell(ring);
}

unsigned pl__file_opcode(enum pl_file_op op)
{
    switch (op) {
    case PL_FILE_OPEN:
        return IORING_OP_OPENAT;
    case PL_FILE_CLOSE:
        return IORING_OP_CLOSE;
    case PL_FILE_READ:
        return IORING_OP_READ;
    case PL_FILE_WRITE:
        return IORING_OP_WRITE;
    case PL_FILE_SYNC:
    case PL_FILE_DATASYNC:
        return IORING_OP_FSYNC;
    case PL_FILE_TRUNCATE:
        break;
    }
    return OP_FTRUNCATE;
}

void pl__file_fill(struct io_uring_sqe *sqe, const struct pl_file_req *req)
{
    sqe->opcode = (uint8_t)pl__file_opcode(req->op);
    sqe->fd = req->fd;
    switch (req->op) {
    case PL_FILE_OPEN:
        sqe->fd = AT_FDCWD;
        sqe->addr = (uint64_t)(uintptr_t)req->path;
        sqe->len = req->mode;
        sqe->open_flags = (uint32_t)(req->flags | O_CLOEXEC);
        break;
    case PL_FILE_READ:
    case PL_FILE_WRITE:
        sqe->addr = (uint64_t)(uintptr_t)req->data;
        sqe->len = req->len > MAX_TRANSFER ? MAX_TRANSFER : (uint32_t)req->len;
        sqe->off = (uint64_t)req->offset; /* -1 means the file's position here, too */
        break;
    case PL_FILE_DATASYNC:
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
        break;
    case PL_FILE_TRUNCATE:
        sqe->off = (uint64_t)req->offset;
        break;
    case PL_FILE_CLOSE:
    case PL_FILE_SYNC:
        break;
    }
}

int pl__file_ring_submit(struct pl_file_ring *ring, struct pl_file_req *req)
{
    if (!pl__uring_supports(&ring->uring, pl__file_opcode(req->op)))
        return -EAGAIN;
    struct io_uring_sqe *sqe = pl__uring_sqe(&ring->uring);
    if (sqe == NULL)
        return -EAGAIN;
    pl__file_fill(sqe, req);
    sqe->user_data = (uint64_t)(uintptr_t)req;
    req->place = PL_FILE_IN_RING;
    ring->inflight++;
    push(ring);
    /* Has it ended within the call? Others that have are kept for take: the ring does not
     * tell of them any more, so the eventfd has to. */
    bool told = ring->done != NULL;
    struct pl_file_req **tail = ring->done_tail;
    drain(ring);
    bool ended = req->place != PL_FILE_IN_RING;
    if (ended) {
        while (*tail != req)
            tail = &(*tail)->next;
        *tail = req->next;
        if (req->next == NULL)
            ring->done_tail = tail;
    }
    if (!told && ring->done != NULL)
        tell(ring);
    return ended;
}

/* Without a free entry nothing is asked, and the operation ends by itself. */
static void ask_cancel(struct pl_file_ring *ring, struct pl_file_req *req, uint32_t flags)
{
    struct io_uring_sqe *sqe = pl__uring_sqe(&ring->uring);
    if (sqe == NULL)
        return;
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->addr = (uint64_t)(uintptr_t)req;
    sqe->cancel_flags = flags;
    push(ring);
}

void pl__file_ring_cancel(struct pl_file_ring *ring, struct pl_file_req *req)
{
    ask_cancel(ring, req, 0);
}

struct pl_file_req *pl__file_ring_take(struct pl_file_ring *ring)
{
    if (pl__uring_unsubmitted(&ring->uring))
        push(ring);
    drain(ring);
    struct pl_file_req *list = ring->done;
    ring->done = NULL;
    ring->done_tail = &ring->done;
    return list;
}

uint32_t pl__file_ring_settle(struct pl_file_ring *ring, int64_t timeout_ns)
{
    const struct pl_sys *sys = ring->uring.sys;
    int64_t until = timeout_ns < 0 ? -1 : sys->now() + timeout_ns;
#ifdef IORING_ASYNC_CANCEL_ANY
    /* Kernels before 5.19 refuse it; the operations then end in their own time. */
    ask_cancel(ring, NULL, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
#endif
    for (;;) {
        drain(ring);
        if (ring->inflight == 0)
            return 0;
        int64_t left = until < 0 ? -1 : until - sys->now();
        if (until >= 0 && left <= 0)
            return ring->inflight;
        int r = pl__uring_enter(&ring->uring, 1, left);
        if (r < 0 && r != -EINTR && r != -ETIME && r != -EAGAIN && r != -EBUSY)
            return ring->inflight;
    }
}

#else /* no header of the kernel's to build with */

int pl__file_ring_new(const struct pl_sys *sys, int event_fd, struct pl_file_ring **out)
{
    (void)sys, (void)event_fd, (void)out;
    return -ENOSYS;
}

/* So there is never a ring for the rest. */
int pl__file_ring_submit(struct pl_file_ring *ring, struct pl_file_req *req)
{
    (void)ring, (void)req;
    return -EAGAIN;
}

void pl__file_ring_cancel(struct pl_file_ring *ring, struct pl_file_req *req)
{
    (void)ring, (void)req;
}

struct pl_file_req *pl__file_ring_take(struct pl_file_ring *ring)
{
    (void)ring;
    return NULL;
}

uint32_t pl__file_ring_settle(struct pl_file_ring *ring, int64_t timeout_ns)
{
    (void)ring, (void)timeout_ns;
    return 0;
}

int pl__file_ring_fd(const struct pl_file_ring *ring)
{
    (void)ring;
    return -1;
}

void pl__file_ring_free(struct pl_file_ring *ring)
{
    (void)ring;
}

#endif
