/* pl_uring_files.c - file operations in the ring of a loop: see pl_files_join. */
#include <errno.h>

#if PL_HAVE_IO_URING
#include <linux/io_uring.h>
#endif

#if PL_HAVE_IO_URING && defined(IORING_RECV_MULTISHOT)

#include "pl_file_ring.h"
#include "pl_uring_poller.h"

/* How many completions are looked through for one that came at once. */
#define NEWEST 16

static uint64_t name_file(const struct pl_file_req *req)
{
    /* The kernel gives programs no addresses with the uppermost bits set. */
    return (uint64_t)(uintptr_t)req << KIND_BITS | REQUEST_FILE;
}

int pl__ring_file(struct pl_loop *loop, struct pl_file_req *req)
{
    struct pl_poller *p = loop->poller;
    /* Parked: the ring may be that of a thread with our number, see uring_wait. */
    if (!pl__ring_is_ours(p) || p->parked ||
        !pl__uring_supports(&p->ring, pl__file_opcode(req->op)))
        return -EAGAIN;
    struct io_uring_sqe *sqe = pl__ring_entry(p, name_file(req));
    if (sqe == NULL)
        return -EAGAIN;
    pl__file_fill(sqe, req);
    p->files++;
    (void)!pl__uring_enter(&p->ring, 0, 0); /* what fails is submitted by the next wait */
    /* Has it ended within the call? Then it is among the newest. */
    uint32_t n = pl__uring_ready(&p->ring);
    for (uint32_t back = 1; back <= n && back <= NEWEST; back++) {
        struct io_uring_cqe *cqe = pl__ring_completion(p, n - back);
        if (cqe->user_data == name_file(req)) {
            req->result = cqe->res;
            cqe->user_data = REQUEST_NONE;
            p->files--;
            return 1;
        }
    }
    return 0;
}

void pl__ring_park(struct pl_loop *loop, int64_t timeout_ns)
{
    struct pl_poller *p = loop->poller;
    p->parked = true;
    if ((p->files == 0 && p->unanswered == 0) || !pl__ring_is_ours(p))
        return;
    int64_t until = timeout_ns < 0 ? -1 : p->sys->now() + timeout_ns;
    for (;;) {
        bool all_asked = pl__ring_end_all(p, false);
        uint32_t ready = pl__uring_ready(&p->ring);
        uint32_t ended = 0;
        for (uint32_t i = 0; i < ready; i++)
            ended += pl__kind_of(pl__ring_completion(p, i)) >= REQUEST_FILE;
        /* A full ring takes no more before its completions have been seen. */
        if (ended == p->files + p->unanswered || ready > p->ring.cq_mask)
            return;
        int64_t left = until < 0 ? -1 : until - p->sys->now();
        if (until >= 0 && left <= 0)
            return;
        int r = pl__uring_enter(&p->ring, all_asked ? ready + 1 : 0, left);
        if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY && r != -ETIME)
            return;
    }
}

void pl__ring_reap(struct pl_loop *loop)
{
    struct pl_poller *p = loop->poller;
    uint32_t ready = p->files > 0 ? pl__uring_ready(&p->ring) : 0;
    for (uint32_t i = 0; i < ready; i++) {
        struct io_uring_cqe *cqe = pl__ring_completion(p, i);
        if (pl__kind_of(cqe) != REQUEST_FILE)
            continue;
        (void)!pl__file_done(NULL, (struct pl_file_req *)(uintptr_t)(cqe->user_data >> KIND_BITS),
                             cqe->res);
        cqe->user_data = REQUEST_NONE;
        p->files--;
    }
}

int pl__ring_file_done(struct pl_loop *loop, const struct io_uring_cqe *cqe)
{
    int r = pl__file_done(loop, (struct pl_file_req *)(uintptr_t)(cqe->user_data >> KIND_BITS),
                          cqe->res);
    if (r == 0)
        loop->poller->files--;
    return r;
}

#endif

typedef int pl__uring_files_file; /* ISO C has no empty files */
