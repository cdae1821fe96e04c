/* backend_uring.c - waiting for descriptors with an io_uring.
 *
 * The program's own descriptors (add_reader, calls on sockets, children, the loop's wake-up)
 * are in an epoll set, and the ring waits for the set. A request in the ring would hold the
 * file: a program that closes a socket which it still watches, or which a call has left
 * registered, would close nothing, and the peer would wait for the end of the stream. The
 * set costs no call of its own: since Linux 6.15 the ring fetches its events.
 *
 * The ring belongs to the thread that waits first, because the kernel completes requests
 * only for the one that submits them; when another thread runs the loop, it gets a ring of
 * its own.
 */
#include "pl_internal.h"

#include <errno.h>

#if PL_HAVE_IO_URING

#include "pl_uring.h"

#include <pthread.h>
#include <sys/mman.h>

#define ENTRIES 256
#define COMPLETIONS 4096
/* Younger than many headers: asked of the kernel by their numbers. */
#define OP_EPOLL_WAIT 59
#define SETUP_SUBMIT_ALL (1u << 7)
#define SETUP_COOP_TASKRUN (1u << 8)

enum request {
    REQUEST_SET = 1, /* the epoll set has events */
};

struct pl_poller {
    const struct pl_sys *sys;
    struct pl_uring ring;
    struct pl_epoll_set set;
    bool set_asked;  /* a request for the set is in the ring */
    bool enabled;    /* the ring has a thread */
    pthread_t owner; /* that thread, when enabled */
};

/* ---- the ring ----------------------------------------------------------- */

static int open_ring(struct pl_poller *p)
{
    /* Best first; a kernel that does not know a flag says so. */
    static const uint32_t setups[] = {
        PL__URING_SINGLE | PL__URING_DEFERRED | PL__URING_TASKRUN_FLAG | SETUP_SUBMIT_ALL, /* 6.1 */
        SETUP_COOP_TASKRUN | PL__URING_TASKRUN_FLAG | SETUP_SUBMIT_ALL, /* 5.19 */
        0,
    };
    int r = -EINVAL;
    for (size_t i = 0; i < PL_ARRAY_LEN(setups) && r == -EINVAL; i++) {
        r = pl__uring_init(&p->ring, p->sys, ENTRIES, COMPLETIONS,
                           setups[i] | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED);
    }
    if (r < 0)
        return r;
    /* A child after a fork has no business with them; failing is no harm. */
    (void)p->sys->madvise(p->ring.rings, p->ring.rings_size, MADV_DONTFORK);
    (void)p->sys->madvise(p->ring.sqes, p->ring.sqes_size, MADV_DONTFORK);
    p->enabled = false;
    p->set_asked = false;
    return 0;
}

/* Makes the ring this thread's. 0, or -errno. */
static int own_ring(struct pl_poller *p)
{
    if (p->enabled) {
        /* Closing the old one ends its requests; what had completed has been reported. */
        pl__uring_fini(&p->ring);
        int r = open_ring(p);
        if (r < 0)
            return r;
    }
    int r = pl__uring_enable(&p->ring);
    if (r < 0)
        return r;
    p->enabled = true;
    p->owner = pthread_self();
    return 0;
}

/* An entry to fill in, or NULL when the kernel takes none now. */
static struct io_uring_sqe *entry(struct pl_poller *p, uint64_t user_data)
{
    struct io_uring_sqe *sqe = pl__uring_sqe(&p->ring);
    if (sqe == NULL) {
        if (pl__uring_enter(&p->ring, 0, 0) <= 0)
            return NULL; /* what fills the ring is submitted by the next wait */
        sqe = pl__uring_sqe(&p->ring);
    }
    if (sqe != NULL)
        sqe->user_data = user_data;
    return sqe;
}

/* ---- the set ------------------------------------------------------------ */

static void ask_set(struct pl_poller *p)
{
    struct io_uring_sqe *sqe = entry(p, REQUEST_SET);
    if (sqe == NULL)
        return;
    sqe->fd = p->set.fd;
    if (pl__uring_supports(&p->ring, OP_EPOLL_WAIT)) {
        /* The batch is the kernel's until the completion comes: it is asked for only when
         * all of the last one has been reported. */
        sqe->opcode = OP_EPOLL_WAIT;
        sqe->addr = (uint64_t)(uintptr_t)p->set.events;
        sqe->len = PL__EPOLL_EVENTS;
    } else {
        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->poll32_events = EPOLLIN;
    }
    p->set_asked = true;
}

/* The request for the set has ended with this result. */
static void set_told(struct pl_poller *p, int result)
{
    p->set_asked = false;
    if (result < 0)
        return; /* asked for anew by the next wait */
    if (pl__uring_supports(&p->ring, OP_EPOLL_WAIT)) {
        p->set.next = 0;
        p->set.count = result;
    } else {
        (void)!pl__epoll_fetch(&p->set, 0); /* what fails now is there the next time */
    }
}

/* ---- the backend -------------------------------------------------------- */

static int uring_create(struct pl_loop *loop)
{
    struct pl_poller *p = loop->sys->alloc(sizeof(*p));
    if (p == NULL)
        return -ENOMEM;
    p->sys = loop->sys;
    int r = pl__epoll_open(&p->set, loop->sys);
    if (r < 0)
        goto fail_set;
    r = open_ring(p);
    if (r < 0)
        goto fail_ring;
    loop->poller = p;
    return 0;

fail_ring:
    pl__epoll_close(&p->set);
fail_set:
    loop->sys->free(p);
    return r;
}

static void uring_destroy(struct pl_loop *loop)
{
    struct pl_poller *p = loop->poller;
    if (p == NULL)
        return;
    pl__uring_fini(&p->ring);
    pl__epoll_close(&p->set);
    loop->sys->free(p);
    loop->poller = NULL;
}

static int uring_watch(struct pl_loop *loop, int fd, uint64_t key, unsigned want,
                       enum pl_io_mode mode, bool *known)
{
    return pl__epoll_watch(&loop->poller->set, fd, key, want, mode, known);
}

static void uring_forget(struct pl_loop *loop, int fd)
{
    pl__epoll_forget(&loop->poller->set, fd);
}

/* One call to the kernel at most. */
static int enter(struct pl_poller *p, int64_t timeout_ns)
{
    if (!p->set_asked)
        ask_set(p);
    if (pl__uring_ready(&p->ring) > 0)
        timeout_ns = 0;
    if (timeout_ns == 0 && !pl__uring_unsubmitted(&p->ring) && !pl__uring_has_work(&p->ring))
        return 0;
    int r = pl__uring_enter(&p->ring, timeout_ns != 0, timeout_ns);
    switch (r) {
    case -ETIME:
    case -EAGAIN: /* short of memory, or of room for completions: what is there comes first */
    case -EBUSY:
        return 0;
    case -EINTR:
        return pl__uring_ready(&p->ring) > 0 ? 0 : -EINTR;
    default:
        return r;
    }
}

static int uring_wait(struct pl_loop *loop, int64_t timeout_ns)
{
    struct pl_poller *p = loop->poller;
    if (p->set.next < p->set.count)
        return p->set.count - p->set.next;
    int r = -EEXIST;
    if (p->enabled && pthread_equal(p->owner, pthread_self()))
        r = enter(p, timeout_ns);
    /* EEXIST: another thread's, be it that it has ended and we go by its number. */
    if (r == -EEXIST) {
        if (p->enabled && pl__uring_ready(&p->ring) > 0)
            return (int)pl__uring_ready(&p->ring);
        r = own_ring(p);
        if (r == 0)
            r = enter(p, timeout_ns);
    }
    return r < 0 ? r : (int)pl__uring_ready(&p->ring);
}

static int uring_report(struct pl_loop *loop)
{
    struct pl_poller *p = loop->poller;
    for (;;) {
        int r = pl__epoll_report(&p->set, loop);
        if (r < 0)
            return r;
        struct io_uring_cqe *cqe = pl__uring_peek(&p->ring);
        if (cqe == NULL)
            return 0;
        if (cqe->user_data == REQUEST_SET)
            set_told(p, cqe->res);
        pl__uring_seen(&p->ring);
    }
}

const struct pl_backend_ops pl__backend_uring = {
    .name = "uring",
    .create = uring_create,
    .destroy = uring_destroy,
    .watch = uring_watch,
    .forget = uring_forget,
    .wait = uring_wait,
    .report = uring_report,
};

#else /* no header of the kernel's to build with */

static int uring_create(struct pl_loop *loop)
{
    (void)loop;
    return -ENOSYS;
}

const struct pl_backend_ops pl__backend_uring = {.name = "uring", .create = uring_create};

#endif
