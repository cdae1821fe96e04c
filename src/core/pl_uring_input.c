/* pl_uring_input.c - what the ring has received and accepted, until the stream or listener takes
 * it. See backend_uring.c.
 */
#include <errno.h>

#if PL_HAVE_IO_URING
#include <linux/io_uring.h>
#endif

#if PL_HAVE_IO_URING && defined(IORING_RECV_MULTISHOT)

#include "pl_uring_poller.h"

#include <string.h>

/* Reads that bring less than this go into the kernel's choice of buffers. */
#define SMALL (PL__BUF_SIZE / 2)

static bool has_input(const struct ring_fd *f)
{
    return f->spilled != NULL || f->received.first != PL__BUF_NONE || f->ended ||
           f->first_accepted != 0;
}

void pl__ring_spill(struct pl_poller *p, struct ring_fd *f)
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

enum pl_input_kind pl__ring_input(struct pl_loop *loop, int fd, uint32_t hint, struct pl_input *in)
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
            pl__mark_dirty(p, fd);
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

void pl__ring_take(struct pl_loop *loop, int fd, size_t n, struct pl_lent *lent)
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

void pl__ring_give_back(struct pl_loop *loop, struct pl_lent *lent)
{
    struct pl_poller *p = loop->poller;
    if (lent->buffer >= 0)
        pl__bufs_give(&p->bufs, (uint16_t)lent->buffer);
    if (lent->heap != NULL)
        p->sys->free(lent->heap);
}

int pl__ring_accept(struct pl_loop *loop, int fd)
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
    pl__mark_dirty(p, fd);
    return f->error;
}

bool pl__ring_has_more(struct pl_loop *loop, int fd)
{
    struct pl_poller *p = loop->poller;
    return (uint32_t)fd < p->nfds && p->fds[fd].open && has_input(&p->fds[fd]);
}

void pl__ring_drop_input(struct pl_poller *p, struct ring_fd *f)
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

#endif

typedef int pl__uring_input_file; /* ISO C has no empty files */
