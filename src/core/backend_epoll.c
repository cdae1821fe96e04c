/* backend_epoll.c - waiting for descriptors with epoll.
 *
 * wait runs without any lock of the binding's, so it touches the poller alone; report
 * then hands the events on. An event batch that could not be handed on whole (out of
 * memory) is kept and continued, because edge-triggered events are told only once.
 */
#include "pl_internal.h"

#include <errno.h>

#define MAX_EVENTS 256

struct pl_poller {
    int epfd;
    int count; /* events in the batch */
    int next;  /* the first that has not been reported */
    struct epoll_event events[MAX_EVENTS];
};

static int epoll_create_poller(struct pl_loop *loop)
{
    struct pl_poller *p = loop->sys->alloc(sizeof(*p));
    if (p == NULL)
        return -ENOMEM;
    p->count = p->next = 0;
    p->epfd = loop->sys->epoll_create();
    if (p->epfd < 0) {
        int error = p->epfd;
        loop->sys->free(p);
        return error;
    }
    loop->poller = p;
    return 0;
}

static void epoll_destroy(struct pl_loop *loop)
{
    if (loop->poller == NULL)
        return;
    (void)loop->sys->close(loop->poller->epfd); /* nothing to do about a failure */
    loop->sys->free(loop->poller);
    loop->poller = NULL;
}

static int epoll_watch(struct pl_loop *loop, int fd, uint64_t key, unsigned want,
                       enum pl_io_mode mode, bool *known)
{
    const struct pl_sys *sys = loop->sys;
    int epfd = loop->poller->epfd;
    struct epoll_event ev = {.data.u64 = key};

    if (want == 0) {
        /* A registration with no events would still report hang-ups, for ever. */
        int r = sys->epoll_ctl(epfd, EPOLL_CTL_DEL, fd, &ev);
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
        (void)sys->epoll_ctl(epfd, EPOLL_CTL_DEL, fd, &ev); /* mostly there; else nothing lost */
        *known = false;
    }

    /* What we believe may be wrong, when the descriptor was closed and reused, or dup'ed,
     * behind our back: the kernel's answer decides. */
    int r = sys->epoll_ctl(epfd, *known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev);
    if (r == -ENOENT && *known)
        r = sys->epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev);
    else if (r == -EEXIST && !*known)
        r = sys->epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev);
    if (r < 0)
        return r;
    *known = true;
    return 0;
}

static void epoll_forget(struct pl_loop *loop, int fd)
{
    struct epoll_event ev = {0};
    /* Fails when the descriptor has been closed already, which forgot it as well. */
    (void)loop->sys->epoll_ctl(loop->poller->epfd, EPOLL_CTL_DEL, fd, &ev);
}

static int epoll_wait_events(struct pl_loop *loop, int64_t timeout_ns)
{
    struct pl_poller *p = loop->poller;
    if (p->next < p->count)
        return p->count - p->next;
    int n = loop->sys->epoll_wait(p->epfd, p->events, MAX_EVENTS, timeout_ns);
    p->next = 0;
    p->count = n < 0 ? 0 : n;
    return n;
}

static int epoll_report(struct pl_loop *loop)
{
    struct pl_poller *p = loop->poller;
    while (p->next < p->count) {
        const struct epoll_event *ev = &p->events[p->next];
        unsigned events = 0;
        if (ev->events & EPOLLIN)
            events |= PL_READABLE;
        if (ev->events & EPOLLOUT)
            events |= PL_WRITABLE;
        /* Either direction learns the reason by trying. */
        if (ev->events & (EPOLLERR | EPOLLHUP))
            events |= PL_READABLE | PL_WRITABLE | PL_HANGUP;
        int r = pl__io_report(loop, ev->data.u64, events);
        if (r < 0)
            return r;
        p->next++;
    }
    return 0;
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
