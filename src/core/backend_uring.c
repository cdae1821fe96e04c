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
 * Sections: the ring; the set; input; requests; files; the backend's functions; completions.
 */
#include "pl_internal.h"

#include <errno.h>

#if PL_HAVE_IO_URING
#include <linux/io_uring.h>
#endif

#if PL_HAVE_IO_URING && defined(IORING_RECV_MULTISHOT)

#include "pl_file_ring.h"
#include "pl_uring.h"
#include "pl_uring_bufs.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define ENTRIES 256
#define COMPLETIONS 4096
#define FIRST_CAPACITY 64
/* Younger than many headers: asked of the kernel by their numbers. */
#define OP_EPOLL_WAIT 59
#define SETUP_SUBMIT_ALL (1u << 7)
#define SETUP_COOP_TASKRUN (1u << 8)
/* Reads that bring less than this go into the kernel's choice of buffers. */
#define SMALL (PL__BUF_SIZE / 2)
/* How many completions are looked through for one that came at once. */
#define NEWEST 16

/* What a completion is of; in user_data together with the descriptor and its generation. */
enum request {
    REQUEST_NONE, /* what nobody waits for: the answer to a cancel */
    REQUEST_SET,  /* the epoll set has events */
    REQUEST_READABLE,
    REQUEST_WRITABLE,
    REQUEST_RECEIVE,
    REQUEST_ACCEPT,
    REQUEST_FILE, /* with the address of its struct pl_file_req in the place of a descriptor */
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
    uint8_t want;       /* of enum pl_io_events */
    uint8_t in;         /* enum request that is in the ring: for reading, or NONE */
    bool in_cancelled;  /* and its end was asked for */
    bool out;           /* REQUEST_WRITABLE is in the ring */
    bool open;          /* has a place in the loop's table */
    bool large;         /* what comes is too large for the kernel's buffers */
    bool ended;         /* `error` says how */
    bool dirty;         /* in the list of those to tell the ring of */
    int32_t next_dirty; /* descriptor + 1 */
    int32_t error;
    uint16_t at; /* how much of the first buffer has been taken */
    struct pl_buf_list received;
    struct spilled *spilled; /* owns; before what is in `received` */
    /* Accepted and not taken: descriptors + 1, linked through the entries of their own. */
    int32_t first_accepted;
    int32_t last_accepted;
    int32_t next_accepted;
};

static const struct pl_backend_ops backend_uring_polling;

struct pl_poller {
    const struct pl_sys *sys; /* borrows */
    struct pl_uring ring;
    struct pl_epoll_set set;
    struct pl_uring_bufs bufs;
    struct ring_fd *fds; /* owns */
    uint32_t nfds;
    int32_t dirty;   /* descriptor + 1 */
    uint32_t files;  /* file operations that have not been told of */
    bool receives;   /* the ring has the buffers */
    bool set_asked;  /* a request for the set is in the ring */
    bool enabled;    /* the ring has a thread */
    pthread_t owner; /* that thread, when enabled */
};

static uint64_t name_request(enum request kind, int fd, uint32_t generation)
{
    return (generation & GENERATION_MASK) << (KIND_BITS + FD_BITS) | (uint64_t)(uint32_t)fd
                                                                         << KIND_BITS |
           kind;
}

static void mark_dirty(struct pl_poller *p, int fd)
{
    struct ring_fd *f = &p->fds[fd];
    if (f->dirty)
        return;
    f->dirty = true;
    f->next_dirty = p->dirty;
    p->dirty = fd + 1;
}

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

/* Makes the ring this thread's. 0, or -errno. */
static int own_ring(struct pl_poller *p)
{
    if (p->enabled) {
        if (p->files > 0)
            return -EBUSY; /* pl_loop_park was not called: their memory is the kernel's */
        /* Closing the old one ends its requests; what had completed has been reported. */
        pl__uring_fini(&p->ring);
        int r = open_ring(p);
        if (r < 0)
            return r;
        for (uint32_t fd = 0; fd < p->nfds; fd++) {
            struct ring_fd *f = &p->fds[fd];
            f->in = REQUEST_NONE;
            f->in_cancelled = f->out = false;
            if (f->open && f->want != 0)
                mark_dirty(p, (int)fd);
        }
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

/* ---- input -------------------------------------------------------------- */

static bool has_input(const struct ring_fd *f)
{
    return f->spilled != NULL || f->received.first != PL__BUF_NONE || f->ended ||
           f->first_accepted != 0;
}

/* Moves what a stream has received out of the kernel's buffers. Without memory it stays. */
static void spill(struct pl_poller *p, struct ring_fd *f)
{
    size_t old = f->spilled != NULL ? f->spilled->len : 0;
    size_t len = old;
    for (uint16_t id = f->received.first; id != PL__BUF_NONE; id = p->bufs.next[id])
        len += p->bufs.len[id];
    if (f->received.first == PL__BUF_NONE)
        return;
    len -= f->at;
    struct spilled *s = p->sys->realloc(f->spilled, sizeof(*s) + len);
    if (s == NULL)
        return;
    if (f->spilled == NULL)
        s->at = 0;
    f->spilled = s;
    s->len = len;
    char *to = s->data + old;
    for (uint16_t id; (id = pl__bufs_pop(&p->bufs, &f->received)) != PL__BUF_NONE; f->at = 0) {
        size_t n = (size_t)p->bufs.len[id] - f->at;
        memcpy(to, pl__bufs_data(&p->bufs, id) + f->at, n);
        to += n;
        pl__bufs_give(&p->bufs, id);
    }
}

static enum pl_input_kind uring_input(struct pl_loop *loop, int fd, uint32_t hint,
                                      struct pl_input *in)
{
    struct pl_poller *p = loop->poller;
    if ((uint32_t)fd >= p->nfds || !p->fds[fd].open)
        return PL_INPUT_YOURS;
    struct ring_fd *f = &p->fds[fd];
    if (f->spilled != NULL) {
        in->data = f->spilled->data + f->spilled->at;
        in->len = f->spilled->len - f->spilled->at;
        return PL_INPUT_DATA;
    }
    if (f->received.first != PL__BUF_NONE) {
        uint16_t id = f->received.first;
        in->data = pl__bufs_data(&p->bufs, id) + f->at;
        in->len = (size_t)p->bufs.len[id] - f->at;
        if (hint == UINT32_MAX && !f->large) {
            f->large = true;
            mark_dirty(p, fd);
        }
        return PL_INPUT_DATA;
    }
    if (f->ended) {
        in->error = f->error;
        return PL_INPUT_END;
    }
    /* What the request takes from the socket comes by its completion, and in order. */
    if (f->in == REQUEST_RECEIVE)
        return PL_INPUT_NONE;
    f->large = hint >= SMALL;
    return PL_INPUT_YOURS;
}

static void uring_take(struct pl_loop *loop, int fd, size_t n, struct pl_lent *lent)
{
    struct pl_poller *p = loop->poller;
    struct ring_fd *f = &p->fds[fd];
    struct pl_lent done = {.buffer = -1};
    if (f->spilled != NULL) {
        f->spilled->at += n;
        if (f->spilled->at == f->spilled->len) {
            done.heap = f->spilled;
            f->spilled = NULL;
        }
    } else {
        f->at = (uint16_t)(f->at + n);
        if (f->at == p->bufs.len[f->received.first]) {
            done.buffer = pl__bufs_pop(&p->bufs, &f->received);
            f->at = 0;
        }
    }
    if (lent != NULL)
        *lent = done;
    else
        loop->backend->give_back(loop, &done);
}

static void uring_give_back(struct pl_loop *loop, struct pl_lent *lent)
{
    struct pl_poller *p = loop->poller;
    if (lent->buffer >= 0)
        pl__bufs_give(&p->bufs, (uint16_t)lent->buffer);
    if (lent->heap != NULL)
        p->sys->free(lent->heap);
}

static int uring_accept(struct pl_loop *loop, int fd)
{
    struct pl_poller *p = loop->poller;
    struct ring_fd *f = &p->fds[fd];
    if (f->first_accepted != 0) {
        int got = f->first_accepted - 1;
        f->first_accepted = p->fds[got].next_accepted;
        return got;
    }
    if (!f->ended)
        return -EAGAIN;
    f->ended = false;
    mark_dirty(p, fd);
    return f->error;
}

static bool uring_has_more(struct pl_loop *loop, int fd)
{
    struct pl_poller *p = loop->poller;
    return (uint32_t)fd < p->nfds && p->fds[fd].open && has_input(&p->fds[fd]);
}

static void drop_input(struct pl_poller *p, struct ring_fd *f)
{
    for (uint16_t id; (id = pl__bufs_pop(&p->bufs, &f->received)) != PL__BUF_NONE;)
        pl__bufs_give(&p->bufs, id);
    p->sys->free(f->spilled);
    f->spilled = NULL;
    /* As the kernel does with those in the queue of a socket that is closed. */
    while (f->first_accepted != 0) {
        int fd = f->first_accepted - 1;
        f->first_accepted = p->fds[fd].next_accepted;
        (void)p->sys->close(fd);
    }
}

/* ---- requests ----------------------------------------------------------- */

static bool ask_cancel(struct pl_poller *p, struct ring_fd *f, int fd, enum request kind)
{
    struct io_uring_sqe *sqe = entry(p, REQUEST_NONE);
    if (sqe == NULL)
        return false;
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    sqe->fd = -1;
    sqe->addr = name_request(kind, fd, f->generation);
    return true;
}

static bool ask(struct pl_poller *p, struct ring_fd *f, int fd, enum request kind)
{
    struct io_uring_sqe *sqe = entry(p, name_request(kind, fd, f->generation));
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
    return p->receives && !f->large ? REQUEST_RECEIVE : REQUEST_READABLE;
}

/* Tells the ring of what has changed for a descriptor. false: it takes no more now. */
static bool settle(struct pl_poller *p, int fd)
{
    struct ring_fd *f = &p->fds[fd];
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
    if (f->open && (f->want & PL_WRITABLE) && !f->out) {
        if (!ask(p, f, fd, REQUEST_WRITABLE))
            return false;
        f->out = true;
    }
    return true;
}

static void settle_all(struct pl_poller *p)
{
    while (p->dirty != 0) {
        int fd = p->dirty - 1;
        if (!settle(p, fd))
            return;
        p->dirty = p->fds[fd].next_dirty;
        p->fds[fd].dirty = false;
    }
}

/* Ends a descriptor's requests before its owner closes it. From another thread than the ring's
 * nothing can be done; the end of the ring does it. */
static void cancel_now(struct pl_poller *p, int fd)
{
    struct ring_fd *f = &p->fds[fd];
    if ((f->in == REQUEST_NONE && !f->out) || !p->enabled ||
        !pthread_equal(p->owner, pthread_self()))
        return;
    if (f->in != REQUEST_NONE && !f->in_cancelled)
        f->in_cancelled = ask_cancel(p, f, fd, f->in);
    if (f->out)
        (void)ask_cancel(p, f, fd, REQUEST_WRITABLE);
    (void)!pl__uring_enter(&p->ring, 0, 0); /* what fails is submitted by the next wait */
}

/* ---- files -------------------------------------------------------------- */

static uint64_t name_file(const struct pl_file_req *req)
{
    /* The kernel gives programs no addresses with the uppermost bits set. */
    return (uint64_t)(uintptr_t)req << KIND_BITS | REQUEST_FILE;
}

static bool is_file(const struct io_uring_cqe *cqe)
{
    return (cqe->user_data & ((1u << KIND_BITS) - 1)) == REQUEST_FILE;
}

/* The i-th completion that has not been seen. */
static struct io_uring_cqe *completion(struct pl_poller *p, uint32_t i)
{
    /* relaxed: only this side writes it. */
    uint32_t head = atomic_load_explicit(p->ring.cq_head, memory_order_relaxed);
    return &p->ring.cqes[(head + i) & p->ring.cq_mask];
}

static int uring_file(struct pl_loop *loop, struct pl_file_req *req)
{
    struct pl_poller *p = loop->poller;
    if (!p->enabled || !pthread_equal(p->owner, pthread_self()) ||
        !pl__uring_supports(&p->ring, pl__file_opcode(req->op)))
        return -EAGAIN;
    struct io_uring_sqe *sqe = entry(p, name_file(req));
    if (sqe == NULL)
        return -EAGAIN;
    pl__file_fill(sqe, req);
    p->files++;
    (void)!pl__uring_enter(&p->ring, 0, 0); /* what fails is submitted by the next wait */
    /* Has it ended within the call? Then it is among the newest. */
    uint32_t n = pl__uring_ready(&p->ring);
    for (uint32_t back = 1; back <= n && back <= NEWEST; back++) {
        struct io_uring_cqe *cqe = completion(p, n - back);
        if (cqe->user_data == name_file(req)) {
            req->result = cqe->res;
            cqe->user_data = REQUEST_NONE;
            p->files--;
            return 1;
        }
    }
    return 0;
}

static void uring_park(struct pl_loop *loop, int64_t timeout_ns)
{
    struct pl_poller *p = loop->poller;
    if (p->files == 0 || !p->enabled || !pthread_equal(p->owner, pthread_self()))
        return;
    int64_t until = timeout_ns < 0 ? -1 : p->sys->now() + timeout_ns;
    for (;;) {
        uint32_t ready = pl__uring_ready(&p->ring);
        uint32_t ended = 0;
        for (uint32_t i = 0; i < ready; i++)
            ended += is_file(completion(p, i));
        /* A full ring takes no more before its completions have been seen. */
        if (ended == p->files || ready > p->ring.cq_mask)
            return;
        int64_t left = until < 0 ? -1 : until - p->sys->now();
        if (until >= 0 && left <= 0)
            return;
        int r = pl__uring_enter(&p->ring, ready + 1, left);
        if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY && r != -ETIME)
            return;
    }
}

static void uring_reap(struct pl_loop *loop)
{
    struct pl_poller *p = loop->poller;
    uint32_t ready = pl__uring_ready(&p->ring);
    for (uint32_t i = 0; i < ready; i++) {
        struct io_uring_cqe *cqe = completion(p, i);
        if (!is_file(cqe))
            continue;
        (void)!pl__file_done(NULL, (struct pl_file_req *)(uintptr_t)(cqe->user_data >> KIND_BITS),
                             cqe->res);
        cqe->user_data = REQUEST_NONE;
        p->files--;
    }
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
    p->dirty = 0;
    p->files = 0;
    int r = pl__epoll_open(&p->set, loop->sys);
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
    loop->sys->free(p);
    return r;
}

static void uring_destroy(struct pl_loop *loop)
{
    struct pl_poller *p = loop->poller;
    if (p == NULL)
        return;
    if (pl_loop_is_ours(loop)) {
        uring_park(loop, -1);
        uring_reap(loop);
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

static int uring_watch(struct pl_loop *loop, int fd, uint64_t key, unsigned want,
                       enum pl_io_mode mode, bool *known)
{
    struct pl_poller *p = loop->poller;
    if (mode < PL_IO_STREAM)
        return pl__epoll_watch(&p->set, fd, key, want, mode, known);
    int r = reserve(p, fd);
    if (r < 0)
        return r;
    struct ring_fd *f = &p->fds[fd];
    if (!f->open) {
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
    mark_dirty(p, fd);
    if (!(want & PL_READABLE)) {
        spill(p, f);
    } else if (has_input(f)) {
        struct pl_io *io = loop->fds[fd].io;
        io->ready |= PL_READABLE;
        pl__io_enqueue(loop, io);
    }
    return 0;
}

static void uring_forget(struct pl_loop *loop, int fd)
{
    struct pl_poller *p = loop->poller;
    if ((uint32_t)fd >= p->nfds || !p->fds[fd].open) {
        pl__epoll_forget(&p->set, fd);
        return;
    }
    p->fds[fd].want = 0;
    cancel_now(p, fd);
}

static void uring_drop(struct pl_loop *loop, int fd)
{
    struct pl_poller *p = loop->poller;
    if ((uint32_t)fd >= p->nfds || !p->fds[fd].open)
        return;
    drop_input(p, &p->fds[fd]);
    p->fds[fd].open = false;
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

/* ---- completions -------------------------------------------------------- */

/* A request that went on has ended, for now: is another one due? */
static void request_over(struct pl_poller *p, struct ring_fd *f, int fd)
{
    f->in = REQUEST_NONE;
    f->in_cancelled = false;
    mark_dirty(p, fd);
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
            spill(p, f);
        if (cqe->res == PL__BUF_SIZE && !f->large) {
            f->large = true;
            mark_dirty(p, fd);
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
        unsigned events = result >= 0 ? pl__io_events((unsigned)result)
                                      : PL_READABLE | PL_WRITABLE;
        int r = pl__io_report(loop, pl__io_key(fd, f->generation), events);
        if (r < 0)
            return r;
    }
    if (kind == REQUEST_READABLE) {
        request_over(loop->poller, f, fd);
    } else {
        f->out = false;
        mark_dirty(loop->poller, fd);
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
    enum request kind = (enum request)(cqe->user_data & ((1u << KIND_BITS) - 1));
    if (kind == REQUEST_NONE)
        return 0;
    if (kind == REQUEST_SET) {
        set_told(p, cqe->res);
        return 0;
    }
    if (kind == REQUEST_FILE) {
        int r = pl__file_done(loop, (struct pl_file_req *)(uintptr_t)(cqe->user_data >> KIND_BITS),
                              cqe->res);
        p->files -= r == 0;
        return r;
    }
    int fd = (int)(cqe->user_data >> KIND_BITS & ((1u << FD_BITS) - 1));
    struct ring_fd *f = &p->fds[fd];
    if (!f->open || name_request(kind, fd, f->generation) != cqe->user_data) {
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
        struct io_uring_cqe *cqe = pl__uring_peek(&p->ring);
        if (cqe == NULL)
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
    .input = uring_input,
    .take = uring_take,
    .give_back = uring_give_back,
    .accept = uring_accept,
    .has_more = uring_has_more,
    .drop = uring_drop,
    .file = uring_file,
    .park = uring_park,
    .reap = uring_reap,
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
    .file = uring_file,
    .park = uring_park,
    .reap = uring_reap,
};

#else /* no header of the kernel's to build with */

static int uring_create(struct pl_loop *loop)
{
    (void)loop;
    return -ENOSYS;
}

const struct pl_backend_ops pl__backend_uring = {.name = "uring", .create = uring_create};

#endif
