/* pl_io.c - descriptors and their place in the poller.
 *
 * The loop keeps a table indexed by descriptor. A descriptor stays registered with the
 * kernel for as long as it is open here; the event data is the descriptor together with
 * a generation that pl_io_close raises, and pl_io_watch while there are events that were fetched
 * and not passed on, so that those of a closed one, or of a watch that has ended, find nobody.
 *
 * A user can close a registered descriptor, and get the same number again, without
 * telling us. The kernel then has dropped the registration: the backend notices when it
 * next changes it (ENOENT) and adds the new one.
 */
#include "pl_internal.h"

#include <errno.h>
#include <string.h>

#define FIRST_CAPACITY 64

static int grow(struct pl_loop *loop, uint32_t need)
{
    uint32_t cap = loop->nfds == 0 ? FIRST_CAPACITY : loop->nfds;
    while (cap < need) {
        if (cap > UINT32_MAX / 4)
            return -ENOMEM;
        cap *= 2;
    }
    struct pl_fd_slot *fds = loop->sys->realloc(loop->fds, cap * sizeof(*fds));
    if (fds == NULL)
        return -ENOMEM;
    memset(fds + loop->nfds, 0, (cap - loop->nfds) * sizeof(*fds));
    loop->fds = fds;
    loop->nfds = cap;
    return 0;
}

int pl_io_open(struct pl_loop *loop, struct pl_io *io, int fd, enum pl_io_mode mode,
               void (*run)(struct pl_loop *loop, struct pl_op *op))
{
    if (fd < 0)
        return -EBADF;
    if ((uint32_t)fd >= loop->nfds) {
        int r = grow(loop, (uint32_t)fd + 1);
        if (r < 0)
            return r;
    }
    struct pl_fd_slot *slot = &loop->fds[fd];
    if (slot->io != NULL && !slot->io->idle)
        return -EEXIST;
    if (slot->io != NULL)
        pl_io_close(loop, slot->io);
    *io = (struct pl_io){.op.run = run, .fd = fd, .mode = (unsigned)mode & 0x3fU};
    slot->io = io;
    slot->known = false;
    loop->open++;
    return 0;
}

int pl_io_watch(struct pl_loop *loop, struct pl_io *io, unsigned want)
{
    struct pl_fd_slot *slot = &loop->fds[io->fd];
    /* The kernel is asked even when nothing seems to change: that is what repairs the
     * registration of a reused descriptor, and what re-arms an edge. */
    if (want == 0 && !slot->known) {
        io->want = 0;
        return 0;
    }
    /* What the poller has told and was not passed on yet is of another watch: it tells anew of
     * what is still so. In the other modes, where a backend may work by the generation, the
     * loop's own code is told, which can bear to be told for nothing. */
    uint32_t generation = slot->generation;
    if (PL_UNLIKELY(loop->unreported) && io->mode <= PL_IO_EDGE)
        generation++;
    int r = loop->backend->watch(loop, io->fd, pl__io_key(io->fd, generation), want,
                                 (enum pl_io_mode)io->mode, &slot->known);
    if (r < 0)
        return r;
    slot->generation = generation;
    io->want = (uint8_t)want;
    io->ready &= (uint8_t)(want | PL_HANGUP);
    return 0;
}

void pl__io_unwatch(struct pl_loop *loop, struct pl_io *io)
{
    struct pl_fd_slot *slot = &loop->fds[io->fd];
    if (slot->known)
        loop->backend->forget(loop, io->fd);
    slot->known = false;
    io->want = 0;
    io->ready = 0;
}

void pl_io_close(struct pl_loop *loop, struct pl_io *io)
{
    struct pl_fd_slot *slot = &loop->fds[io->fd];
    if (slot->io != io)
        return;
    if (slot->known)
        loop->backend->forget(loop, io->fd);
    if (loop->backend->drop != NULL)
        loop->backend->drop(loop, io->fd);
    *slot = (struct pl_fd_slot){.generation = slot->generation + 1};
    loop->open--;
    io->want = 0;
    io->ready = 0;
}

struct pl_io *pl_io_find(struct pl_loop *loop, int fd)
{
    struct pl_io *io = fd < 0 || (uint32_t)fd >= loop->nfds ? NULL : loop->fds[fd].io;
    return io == NULL || io->idle ? NULL : io;
}

int pl__io_report(struct pl_loop *loop, uint64_t key, unsigned events)
{
    uint32_t fd = (uint32_t)key;
    uint32_t generation = (uint32_t)(key >> 32);
    if (fd >= loop->nfds)
        return 0;
    struct pl_fd_slot *slot = &loop->fds[fd];
    struct pl_io *io = slot->io;
    if (io == NULL || slot->generation != generation)
        return 0; /* closed since: see the head of the file */
    events &= io->want | PL_HANGUP;
    if (events == 0)
        return 0;
    if (io == &loop->wake_io) {
        loop->stats.wakeups++; /* it has done its work by ending the wait */
        return 0;
    }
    if (!io->queued) {
        int r = pl__queue_push(loop->sys, &loop->ready, &io->op);
        if (r < 0)
            return r;
        io->queued = true;
    }
    io->ready |= (uint8_t)events;
    loop->bulk += io->weight;
    loop->stats.events++;
    return 0;
}

void pl__io_enqueue(struct pl_loop *loop, struct pl_io *io)
{
    if (io->queued)
        return;
    io->queued = true;
    if (pl__queue_push(loop->sys, &loop->ready, &io->op) == 0)
        return;
    io->late = loop->late;
    loop->late = io;
}

int pl__io_collect_late(struct pl_loop *loop)
{
    while (loop->late != NULL) {
        struct pl_io *io = loop->late;
        int r = pl__queue_push(loop->sys, &loop->ready, &io->op);
        if (r < 0)
            return r;
        loop->late = io->late;
        io->late = NULL;
    }
    return 0;
}

void pl__io_fini(struct pl_loop *loop)
{
    loop->sys->free(loop->fds);
    loop->fds = NULL;
    loop->nfds = 0;
}
