/* backend_epoll.c - waiting for descriptors with epoll.
 *
 * wait runs without any lock of the binding's, so it touches the poller alone; report
 * then hands the events on. An event batch that could not be handed on whole (out of
 * memory) is kept and continued, because edge-triggered events are told only once.
 *
 * The io_uring backend keeps such a set as well: see backend_uring.c.
 */
#include "pl_internal.h"

#include <errno.h>

/* ---- a set -------------------------------------------------------------- */

int pl__epoll_open(struct pl_epoll_set *set, const struct pl_sys *sys)
{
    set->sys = sys;
    set->count = set->next = 0;
    set->fd = sys->epoll_create();
    return set->fd < 0 ? set->fd : 0;
}

void pl__epoll_close(struct pl_epoll_set *set)
{
    if (set->fd >= 0)
        (void)set->sys->close(set->fd); /* nothing to do about a failure */
    set->fd = -1;
}

int pl__epoll_watch(struct pl_epoll_set *set, int fd, uint64_t key, unsigned want,
                    enum pl_io_mode mode, bool *known)
{
    const struct pl_sys *sys = set->sys;
    struct epoll_event ev = {.data.u64 = key};

    if (want == 0) {
        /* A registration with no events would still report hang-ups, for ever. */
        int r = sys->epoll_ctl(set->fd, EPOLL_CTL_DEL, fd, &ev);
        if (r < 0 && r != -ENOENT && r != -EBADF && r != -EPERM)
            return r;
        *known = false;
        return 0;
    }
    if (want & PL_READABLE)
        ev.events |= EPOLLIN;
    if (want & PL_WRITABLE)
        ev.events |= EPOLLOUT;
    if (mode == PL_IO_EDGE)
        ev.events |= EPOLLET;
    if (mode == PL_IO_SHARED) {
        /* It cannot be modified, and adding it anew is what puts it at the end of the line. */
        ev.events = EPOLLIN | EPOLLEXCLUSIVE;
        (void)sys->epoll_ctl(set->fd, EPOLL_CTL_DEL, fd, &ev); /* mostly there; else nothing lost */
        *known = false;
    }

    /* What we believe may be wrong, when the descriptor was closed and reused, or dup'ed,
     * behind our back: the kernel's answer decides. */
    int r = sys->epoll_ctl(set->fd, *known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev);
    if (r == -ENOENT && *known)
        r = sys->epoll_ctl(set->fd, EPOLL_CTL_ADD, fd, &ev);
    else if (r == -EEXIST && !*known)
        r = sys->epoll_ctl(set->fd, EPOLL_CTL_MOD, fd, &ev);
    if (r < 0)
        return r;
    *known = true;
    return 0;
}

void pl__epoll_forget(struct pl_epoll_set *set, int fd)
{
    struct epoll_event ev = {0};
    /* Fails when the descriptor has been closed already, which forgot it as well. */
    (void)set->sys->epoll_ctl(set->fd, EPOLL_CTL_DEL, fd, &ev);
}

int pl__epoll_fetch(struct pl_epoll_set *set, int64_t timeout_ns)
{
    if (set->next < set->count)
        return set->count - set->next;
    int n = set->sys->epoll_wait(set->fd, set->events, PL__EPOLL_EVENTS, timeout_ns);
    set->next = 0;
    set->count = n < 0 ? 0 : n;
    return n;
}

int pl__epoll_report(struct pl_epoll_set *set, struct pl_loop *loop)
{
    while (set->next < set->count && !pl__io_full(loop)) {
        const struct epoll_event *ev = &set->events[set->next];
        int r = pl__io_report(loop, ev->data.u64, pl__io_events(ev->events));
        if (r < 0)
            return r;
        set->next++;
    }
    return 0;
}

/* ---- the backend -------------------------------------------------------- */

struct pl_poller {
    struct pl_epoll_set set;
};

static int epoll_create_poller(struct pl_loop *loop)
{
    struct pl_poller *p = loop->sys->alloc(sizeof(*p));
    if (p == NULL)
        return -ENOMEM;
    int r = pl__epoll_open(&p->set, loop->sys);
    if (r < 0) {
        loop->sys->free(p);
        return r;
    }
    loop->poller = p;
    return 0;
}

static void epoll_destroy(struct pl_loop *loop)
{
    if (loop->poller == NULL)
        return;
    pl__epoll_close(&loop->poller->set);
    loop->sys->free(loop->poller);
    loop->poller = NULL;
}

static int epoll_watch(struct pl_loop *loop, int fd, uint64_t key, unsigned want,
                       enum pl_io_mode mode, bool *known)
{
    return pl__epoll_watch(&loop->poller->set, fd, key, want, mode, known);
}

static void epoll_forget(struct pl_loop *loop, int fd)
{
    pl__epoll_forget(&loop->poller->set, fd);
}

static int epoll_wait_events(struct pl_loop *loop, int64_t timeout_ns)
{
    return pl__epoll_fetch(&loop->poller->set, timeout_ns);
}

static int epoll_report(struct pl_loop *loop)
{
    return pl__epoll_report(&loop->poller->set, loop);
}

const struct pl_backend_ops pl__backend_epoll = {
    .name = "epoll",
    .create = epoll_create_poller,
    .destroy = epoll_destroy,
    .watch = epoll_watch,
    .forget = epoll_forget,
    .wait = epoll_wait_events,
    .report = epoll_report,
};
