/* backend_uring.c - waiting for descriptors, receiving and accepting with an io_uring.
 *
 * The program's own descriptors (add_reader, calls on sockets, children, the loop's wake-up)
 * are in an epoll set, and the ring waits for the set. A request in the ring would hold the
 * file: a program that closes a socket which it still watches, or which a call has left
 * registered, would close nothing, and the peer would wait for the end of the stream. The
 * set costs no call of its own: since Linux 6.15 the ring fetches its events.
 *
 * The loop's own sockets (streams, listeners) have requests in the ring. Small messages are
 * received into buffers that the kernel picks, by one request for many of them; for large
 * ones, which would be copied twice, the ring tells when the socket is readable, once per
 * read. What is wanted of a descriptor is noted, and the ring told of the difference in the
 * call that waits. Giving a descriptor up is done at once, so that the kernel holds its file
 * no more when its owner closes it.
 *
 * A completion names descriptor, generation (see pl_io.c) and kind of its request; there is
 * one request of a kind at a time, so what names another generation is of a closed one.
 *
 * The ring belongs to the thread that waits first, because the kernel completes requests
 * only for the one that submits them; when another thread runs the loop, it gets a ring of
 * its own.
 *
 * Sections: the ring; the set; requests; the backend's functions; completions. What has been
 * received waits in pl_uring_input.c; pl_uring_files.c has the file operations.
 */
#include "pl_internal.h"

#include <errno.h>

#if PL_HAVE_IO_URING
#include <linux/io_uring.h>
#endif

#if PL_HAVE_IO_URING && defined(IORING_RECV_MULTISHOT)

#include "pl_uring_poller.h"

#include <string.h>
#include <sys/mman.h>

#define ENTRIES 256
#define COMPLETIONS 4096
#define FIRST_CAPACITY 64
/* Younger than many headers: asked of the kernel by their numbers. */
#define OP_EPOLL_WAIT 59
#define SETUP_SUBMIT_ALL (1u << 7)
#define SETUP_COOP_TASKRUN (1u << 8)

static const struct pl_backend_ops backend_uring_polling;

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
    /* A child after a fork has no business with them; failing does no harm. */
    (void)p->sys->madvise(p->ring.rings, p->ring.rings_size, MADV_DONTFORK);
    (void)p->sys->madvise(p->ring.sqes, p->ring.sqes_size, MADV_DONTFORK);
    p->enabled = false;
    p->set_asked = false;
    p->receives = (p->ring.setup & PL__URING_DEFERRED) != 0 && p->bufs.base != NULL &&
                  pl__bufs_register(&p->bufs, &p->ring) == 0;
    return 0;
}

/* Neither fails: the lock is an ordinary one, and never taken twice. */
static void lock_changes(struct pl_poller *p)
{
    (void)pthread_mutex_lock(&p->changes);
}

static void unlock_changes(struct pl_poller *p)
{
    (void)pthread_mutex_unlock(&p->changes);
}

/* Makes the ring this thread's. 0, or -errno. */
static int own_ring(struct pl_poller *p)
{
    if (p->enabled || !pl__ring_exists(p)) {
        if (p->files > 0 || p->unanswered > 0)
            return -EBUSY; /* pl_loop_park was not called: their memory is the kernel's */
        /* Closing the old one ends its requests; what had completed has been reported. Where no
         * new one is to be had, the next wait asks again. */
        p->enabled = false;
        pl__uring_fini(&p->ring);
        lock_changes(p);
        for (uint32_t fd = 0; fd < p->nfds; fd++) {
            struct ring_fd *f = &p->fds[fd];
            f->in = REQUEST_NONE;
            f->in_cancelled = f->out = false;
            if (f->open && f->want != 0)
                pl__mark_dirty(p, (int)fd);
        }
        unlock_changes(p);
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

struct io_uring_sqe *pl__ring_entry(struct pl_poller *p, uint64_t user_data)
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
    struct io_uring_sqe *sqe = pl__ring_entry(p, REQUEST_SET);
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

/* ---- requests ----------------------------------------------------------- */

bool pl__ring_ask_cancel(struct pl_poller *p, uint64_t user_data)
{
    struct io_uring_sqe *sqe = pl__ring_entry(p, REQUEST_NONE);
    if (sqe == NULL)
        return false;
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    sqe->fd = -1;
    sqe->addr = user_data;
    return true;
}

static bool ask_cancel(struct pl_poller *p, struct ring_fd *f, int fd, enum request kind)
{
    return pl__ring_ask_cancel(p, pl__name_request(kind, fd, f->generation));
}

static bool ask(struct pl_poller *p, struct ring_fd *f, int fd, enum request kind)
{
    struct io_uring_sqe *sqe = pl__ring_entry(p, pl__name_request(kind, fd, f->generation));
    if (sqe == NULL)
        return false;
    sqe->fd = fd;
    switch (kind) {
    case REQUEST_RECEIVE:
        sqe->opcode = IORING_OP_RECV;
        sqe->ioprio = IORING_RECV_MULTISHOT;
        sqe->flags = IOSQE_BUFFER_SELECT;
        sqe->buf_group = PL__BUF_GROUP;
        break;
    case REQUEST_ACCEPT:
        sqe->opcode = IORING_OP_ACCEPT;
        sqe->ioprio = IORING_ACCEPT_MULTISHOT;
        sqe->accept_flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
        break;
    default:
        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->poll32_events = kind == REQUEST_WRITABLE ? EPOLLOUT : EPOLLIN;
        if (f->mode == PL_IO_SHARED)
            sqe->poll32_events |= EPOLLEXCLUSIVE;
        break;
    }
    return true;
}

/* The request that a descriptor should have for reading. */
static enum request wanted(const struct pl_poller *p, const struct ring_fd *f)
{
    if (!f->open || !(f->want & PL_READABLE) || f->ended)
        return REQUEST_NONE;
    if (f->mode == PL_IO_LISTEN)
        return REQUEST_ACCEPT;
    if (f->mode == PL_IO_SHARED)
        return REQUEST_READABLE;
    return p->receives && !f->large ? REQUEST_RECEIVE : REQUEST_READABLE;
}

/* Asks for the end of all that a descriptor has in the ring. false: it takes no more now. What
 * has ended already is not found, which does no harm. */
static bool end_requests(struct pl_poller *p, struct ring_fd *f, int fd)
{
    if (f->in != REQUEST_NONE && !f->in_cancelled) {
        if (!ask_cancel(p, f, fd, f->in))
            return false;
        f->in_cancelled = true;
    }
    return !f->out || ask_cancel(p, f, fd, REQUEST_WRITABLE);
}

/* Tells the ring of what has changed for a descriptor. false: it takes no more now. */
static bool settle(struct pl_poller *p, int fd)
{
    struct ring_fd *f = &p->fds[fd];
    if (!f->open)
        return end_requests(p, f, fd);
    enum request kind = wanted(p, f);
    /* What tells only once may stay: it finds out that nobody wants it. */
    if (f->in > REQUEST_READABLE && f->in != kind && !f->in_cancelled) {
        if (!ask_cancel(p, f, fd, f->in))
            return false;
        f->in_cancelled = true;
    }
    if (f->in == REQUEST_NONE && kind != REQUEST_NONE) {
        if (!ask(p, f, fd, kind))
            return false;
        f->in = (uint8_t)kind;
    }
    if ((f->want & PL_WRITABLE) && !f->out) {
        if (!ask(p, f, fd, REQUEST_WRITABLE))
            return false;
        f->out = true;
    }
    return true;
}

static void settle_all(struct pl_poller *p)
{
    /* Relaxed, all: the lock orders them. What this look misses is seen by the next wait. */
    if (atomic_load_explicit(&p->dirty, memory_order_relaxed) == 0)
        return;
    lock_changes(p);
    for (int fd; (fd = atomic_load_explicit(&p->dirty, memory_order_relaxed) - 1) >= 0;) {
        if (!settle(p, fd))
            break;
        atomic_store_explicit(&p->dirty, p->fds[fd].next_dirty, memory_order_relaxed);
        p->fds[fd].dirty = false;
    }
    unlock_changes(p);
}

/* Ends a descriptor's requests before its owner closes it. From another thread than the ring's,
 * and when the ring takes no more, that is left to the next wait, or to the end of the ring. */
static void cancel_now(struct pl_poller *p, int fd)
{
    struct ring_fd *f = &p->fds[fd];
    if ((f->in == REQUEST_NONE && !f->out) || !p->enabled)
        return;
    enum request in = f->in;
    if (!pl__ring_is_ours(p)) {
        pl__mark_dirty(p, fd);
        return;
    }
    if (end_requests(p, f, fd))
        (void)!pl__uring_enter(&p->ring, 0, 0); /* what fails is submitted by the next wait */
    else
        pl__mark_dirty(p, fd);
    pl__uring_disarm(&p->ring, pl__name_request(in, fd, f->generation));
    pl__uring_disarm(&p->ring, pl__name_request(REQUEST_WRITABLE, fd, f->generation));
}

/* ---- the backend's functions -------------------------------------------- */

static int uring_create(struct pl_loop *loop)
{
    struct pl_poller *p = loop->sys->alloc(sizeof(*p));
    if (p == NULL)
        return -ENOMEM;
    p->sys = loop->sys;
    p->fds = NULL;
    p->nfds = 0;
    atomic_init(&p->dirty, 0);
    p->files = 0;
    p->inflight = NULL;
    p->unanswered = 0;
    atomic_init(&p->owes_ends, false);
    p->parked = false;
    int r = -pthread_mutex_init(&p->changes, NULL);
    if (r < 0)
        goto fail_lock;
    r = pl__epoll_open(&p->set, loop->sys);
    if (r < 0)
        goto fail_set;
    r = pl__bufs_init(&p->bufs, loop->sys);
    if (r < 0)
        goto fail_bufs;
    r = open_ring(p);
    if (r < 0)
        goto fail_ring;
    /* A filter may allow to make a ring and forbid to use it: the kernel's own answer for one
     * that has not been enabled is EBADFD. */
    r = pl__uring_enter(&p->ring, 0, 0);
    if (r < 0 && r != -EBADFD) {
        pl__uring_fini(&p->ring);
        goto fail_ring;
    }
    loop->poller = p;
    /* Without the features for it the program's way is the streams' as well. */
    loop->backend = p->receives ? &pl__backend_uring : &backend_uring_polling;
    return 0;

fail_ring:
    pl__bufs_fini(&p->bufs);
fail_bufs:
    pl__epoll_close(&p->set);
fail_set:
    (void)pthread_mutex_destroy(&p->changes);
fail_lock:
    loop->sys->free(p);
    return r;
}

static void uring_destroy(struct pl_loop *loop)
{
    struct pl_poller *p = loop->poller;
    if (p == NULL)
        return;
    if (pl_loop_is_ours(loop)) {
        pl__ring_park(loop, -1);
        pl__ring_reap(loop);
        pl__ring_drop_inflight(loop, false);
        (void)pthread_mutex_destroy(&p->changes);
    } else { /* where a thread that the child does not have may hold the lock for ever */
        pl__ring_drop_inflight(loop, true);
        /* A fork leaves these mappings out, so something else may lie there by now. */
        p->ring.rings = NULL;
        p->ring.sqes = NULL;
        p->bufs.base = NULL;
    }
    /* In a child after a fork what was accepted is open here too; all else is its own copy. */
    for (uint32_t fd = 0; fd < p->nfds; fd++) {
        struct ring_fd *f = &p->fds[fd];
        p->sys->free(f->spilled);
        for (int32_t next; f->first_accepted != 0; f->first_accepted = next) {
            next = p->fds[f->first_accepted - 1].next_accepted;
            (void)p->sys->close(f->first_accepted - 1);
        }
    }
    pl__uring_fini(&p->ring);
    pl__bufs_fini(&p->bufs);
    pl__epoll_close(&p->set);
    p->sys->free(p->fds);
    p->sys->free(p);
    loop->poller = NULL;
}

/* Makes room for a descriptor. */
static int reserve(struct pl_poller *p, int fd)
{
    if (PL_LIKELY((uint32_t)fd < p->nfds))
        return 0;
    uint32_t cap = p->nfds == 0 ? FIRST_CAPACITY : p->nfds;
    while (cap <= (uint32_t)fd)
        cap *= 2; /* ends: a descriptor has 30 bits */
    struct ring_fd *fds = p->sys->realloc(p->fds, cap * sizeof(*fds));
    if (fds == NULL)
        return -ENOMEM;
    memset(fds + p->nfds, 0, (cap - p->nfds) * sizeof(*fds));
    for (uint32_t i = p->nfds; i < cap; i++)
        fds[i].received = PL__BUF_LIST_EMPTY;
    p->fds = fds;
    p->nfds = cap;
    return 0;
}

static int watch_by_ring(struct pl_loop *loop, int fd, uint64_t key, unsigned want,
                         enum pl_io_mode mode, bool *known)
{
    struct pl_poller *p = loop->poller;
    int r = reserve(p, fd);
    if (r < 0)
        return r;
    struct ring_fd *f = &p->fds[fd];
    if (!f->open) {
        /* Its requests are found by the old generation, and not afterwards. */
        if (f->dirty && pl__ring_is_ours(p) && !end_requests(p, f, fd))
            return -ENOMEM;
        *f = (struct ring_fd){
            .generation = (uint32_t)(key >> 32),
            .mode = (uint8_t)mode,
            .open = true,
            .dirty = f->dirty,
            .next_dirty = f->next_dirty,
            .received = PL__BUF_LIST_EMPTY,
        };
    }
    f->want = (uint8_t)want;
    *known = true;
    pl__mark_dirty(p, fd);
    if (!(want & PL_READABLE)) {
        pl__ring_spill(p, f);
    } else if (pl__ring_has_more(loop, fd) || (mode == PL_IO_SHARED && f->in != REQUEST_NONE)) {
        /* Of a shared one the ring's poll may have missed what another process left. */
        struct pl_io *io = loop->fds[fd].io;
        io->ready |= PL_READABLE;
        pl__io_enqueue(loop, io);
    }
    return 0;
}

static int uring_watch(struct pl_loop *loop, int fd, uint64_t key, unsigned want,
                       enum pl_io_mode mode, bool *known)
{
    struct pl_poller *p = loop->poller;
    if (mode == PL_IO_LEVEL || mode == PL_IO_EDGE)
        return pl__epoll_watch(&p->set, fd, key, want, mode, known);
    lock_changes(p);
    int r = watch_by_ring(loop, fd, key, want, mode, known);
    unlock_changes(p);
    return r;
}

static void uring_forget(struct pl_loop *loop, int fd)
{
    struct pl_poller *p = loop->poller;
    lock_changes(p);
    bool ours = (uint32_t)fd < p->nfds && p->fds[fd].open;
    if (ours) {
        p->fds[fd].want = 0;
        cancel_now(p, fd);
    }
    unlock_changes(p);
    if (!ours)
        pl__epoll_forget(&p->set, fd);
}

static void uring_drop(struct pl_loop *loop, int fd)
{
    struct pl_poller *p = loop->poller;
    lock_changes(p);
    struct ring_fd *f = (uint32_t)fd < p->nfds ? &p->fds[fd] : NULL;
    if (f != NULL && f->open) {
        pl__ring_drop_input(p, f);
        f->open = false;
        /* Told of it before this, the ring's thread may have left what ends by itself. */
        if ((f->in != REQUEST_NONE || f->out) && p->enabled && !pl__ring_is_ours(p))
            pl__mark_dirty(p, fd);
    }
    unlock_changes(p);
}

static int polling_watch(struct pl_loop *loop, int fd, uint64_t key, unsigned want,
                         enum pl_io_mode mode, bool *known)
{
    return pl__epoll_watch(&loop->poller->set, fd, key, want, mode, known);
}

static void polling_forget(struct pl_loop *loop, int fd)
{
    pl__epoll_forget(&loop->poller->set, fd);
}

/* One call to the kernel at most. */
static int enter(struct pl_poller *p, int64_t timeout_ns)
{
    settle_all(p);
    /* Relaxed: a look; what is missed is seen by the next wait. */
    if (PL_UNLIKELY(atomic_load_explicit(&p->owes_ends, memory_order_relaxed)))
        pl__ring_pay_ends(p); /* the rest by the next wait */
    if (!p->set_asked)
        ask_set(p);
    if (pl__uring_ready(&p->ring) > 0)
        timeout_ns = 0;
    /* After a pause the kernel is asked in any case: a thread that has the number of the ring's
     * may be another one, and is told so here, before it uses the ring for anything else. */
    if (timeout_ns == 0 && !p->parked && !pl__uring_unsubmitted(&p->ring) &&
        !pl__uring_has_work(&p->ring))
        return 0;
    int r = pl__uring_enter(&p->ring, timeout_ns != 0, timeout_ns);
    /* What the other thread's ring has completed is reported before we get our own: nothing may be
     * started in it meanwhile. */
    if (r != -EEXIST)
        p->parked = false;
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
    if (pl__ring_is_ours(p))
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

/* ---- completions -------------------------------------------------------- */

/* A request that went on has ended, for now: is another one due? */
static void request_over(struct pl_poller *p, struct ring_fd *f, int fd)
{
    f->in = REQUEST_NONE;
    f->in_cancelled = false;
    pl__mark_dirty(p, fd);
}

static void end_input(struct ring_fd *f, int result)
{
    switch (result) {
    case -ECANCELED: /* by us, or with the thread that asked */
    case -EINTR:
    case -EAGAIN:
        break;
    default:
        f->ended = true;
        f->error = result;
    }
}

/* Any of these may fail with -ENOMEM, and is then called again with the same completion. */

static int received(struct pl_loop *loop, struct ring_fd *f, int fd, const struct io_uring_cqe *cqe)
{
    struct pl_poller *p = loop->poller;
    bool told = cqe->res >= 0 || (cqe->res != -ENOBUFS && cqe->res != -ECANCELED);
    if (told) {
        int r = pl__io_report(loop, pl__io_key(fd, f->generation), PL_READABLE);
        if (r < 0)
            return r;
    }
    bool has_buffer = (cqe->flags & IORING_CQE_F_BUFFER) != 0;
    uint16_t id = (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
    if (cqe->res > 0) {
        pl__bufs_take(&p->bufs, id, (uint16_t)cqe->res);
        pl__bufs_append(&p->bufs, &f->received, id);
        if (!(f->want & PL_READABLE))
            pl__ring_spill(p, f);
        if (cqe->res == PL__BUF_SIZE && !f->large) {
            f->large = true;
            pl__mark_dirty(p, fd);
        }
    } else if (has_buffer) {
        pl__bufs_give(&p->bufs, id);
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        request_over(p, f, fd);
    if (cqe->res == -ENOBUFS)
        f->large = true; /* the next one by a read of the stream's own */
    else if (cqe->res <= 0)
        end_input(f, cqe->res);
    return 0;
}

static int accepted(struct pl_loop *loop, struct ring_fd *f, int fd, const struct io_uring_cqe *cqe)
{
    struct pl_poller *p = loop->poller;
    if (cqe->res >= 0) {
        int r = reserve(p, cqe->res);
        if (r < 0)
            return r;
        f = &p->fds[fd]; /* moved, perhaps */
    }
    int r = pl__io_report(loop, pl__io_key(fd, f->generation), PL_READABLE);
    if (r < 0)
        return r;
    if (cqe->res >= 0) {
        p->fds[cqe->res].next_accepted = 0;
        if (f->first_accepted == 0)
            f->first_accepted = cqe->res + 1;
        else
            p->fds[f->last_accepted - 1].next_accepted = cqe->res + 1;
        f->last_accepted = cqe->res + 1;
    } else {
        end_input(f, cqe->res);
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        request_over(p, f, fd);
    return 0;
}

static int polled(struct pl_loop *loop, struct ring_fd *f, int fd, enum request kind, int result)
{
    if (result != -ECANCELED) {
        /* A poll that failed is as good as an event: trying tells why. */
        unsigned events = result >= 0 ? pl__io_events((unsigned)result) : PL_READABLE | PL_WRITABLE;
        int r = pl__io_report(loop, pl__io_key(fd, f->generation), events);
        if (r < 0)
            return r;
    }
    if (kind == REQUEST_READABLE) {
        request_over(loop->poller, f, fd);
    } else {
        f->out = false;
        pl__mark_dirty(loop->poller, fd);
    }
    return 0;
}

/* The completion of a request whose descriptor has been given up since. */
static void stale(struct pl_poller *p, enum request kind, const struct io_uring_cqe *cqe)
{
    if (kind == REQUEST_RECEIVE && (cqe->flags & IORING_CQE_F_BUFFER) != 0)
        pl__bufs_give(&p->bufs, (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT));
    else if (kind == REQUEST_ACCEPT && cqe->res >= 0)
        (void)p->sys->close(cqe->res);
}

static int completed(struct pl_loop *loop, const struct io_uring_cqe *cqe)
{
    struct pl_poller *p = loop->poller;
    enum request kind = pl__kind_of(cqe);
    switch (kind) {
    case REQUEST_NONE:
        return 0;
    case REQUEST_SET:
        set_told(p, cqe->res);
        return 0;
    case REQUEST_FILE:
        return pl__ring_file_done(loop, cqe);
    case REQUEST_SEND:
    case REQUEST_CONNECT:
        return pl__ring_answered(loop, cqe);
    default:
        break;
    }
    int fd = (int)(cqe->user_data >> KIND_BITS & ((1u << FD_BITS) - 1));
    struct ring_fd *f = &p->fds[fd];
    if (!f->open || pl__name_request(kind, fd, f->generation) != cqe->user_data) {
        stale(p, kind, cqe);
        return 0;
    }
    switch (kind) {
    case REQUEST_RECEIVE:
        return received(loop, f, fd, cqe);
    case REQUEST_ACCEPT:
        return accepted(loop, f, fd, cqe);
    default:
        return polled(loop, f, fd, kind, cqe->res);
    }
}

static int uring_report(struct pl_loop *loop)
{
    struct pl_poller *p = loop->poller;
    for (;;) {
        int r = pl__epoll_report(&p->set, loop);
        if (r < 0)
            return r;
        struct io_uring_cqe *cqe = pl__ring_exists(p) ? pl__uring_peek(&p->ring) : NULL;
        if (cqe == NULL || pl__io_full(loop))
            return 0;
        r = completed(loop, cqe);
        if (r < 0)
            return r;
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
    .input = pl__ring_input,
    .take = pl__ring_take,
    .give_back = pl__ring_give_back,
    .accept = pl__ring_accept,
    .has_more = pl__ring_has_more,
    .drop = uring_drop,
    .send = pl__ring_send,
    .unsend = pl__ring_unsend,
    .connect = pl__ring_connect,
    .unconnect = pl__ring_unconnect,
    .file = pl__ring_file,
    .park = pl__ring_park,
    .reap = pl__ring_reap,
};

/* For kernels before 6.1: all descriptors are in the epoll set. */
static const struct pl_backend_ops backend_uring_polling = {
    .name = "uring",
    .create = uring_create,
    .destroy = uring_destroy,
    .watch = polling_watch,
    .forget = polling_forget,
    .wait = uring_wait,
    .report = uring_report,
    .file = pl__ring_file,
    .park = pl__ring_park,
    .reap = pl__ring_reap,
};

#else /* no header of the kernel's to build with */

static int uring_create(struct pl_loop *loop)
{
    (void)loop;
    return -ENOSYS;
}

const struct pl_backend_ops pl__backend_uring = {.name = "uring", .create = uring_create};

#endif
