/* pl_child.c - the end of a child process, told by a pidfd in the poller.
 *
 * A pidfd becomes readable when the process ends and stays bound to it, so that neither
 * SIGCHLD nor a thread is needed, and a reused pid cannot be mistaken for it.
 */
#include "pl_internal.h"

#include <errno.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static void child_run(struct pl_loop *loop, struct pl_op *op);

int pl_child_watch(struct pl_loop *loop, struct pl_child *child, pid_t pid)
{
    int fd = loop->sys->pidfd_open(pid);
    if (fd < 0)
        return fd;
    child->loop = loop;
    child->pid = pid;
    child->pidfd = fd;
    child->reaped = false;
    int r = pl_io_open(loop, &child->io, fd, PL_IO_LEVEL, child_run);
    if (r < 0)
        goto fail_open;
    r = pl_io_watch(loop, &child->io, PL_READABLE);
    if (r < 0)
        goto fail_watch;
    return 0;

fail_watch:
    pl_io_close(loop, &child->io);
fail_open:
    (void)loop->sys->close(fd);
    child->pidfd = -1;
    return r;
}

static void release(struct pl_child *child)
{
    pl_io_close(child->loop, &child->io);
    (void)child->loop->sys->close(child->pidfd);
    child->pidfd = -1;
}

void pl_child_unwatch(struct pl_child *child)
{
    if (child->pidfd >= 0)
        release(child);
}

static int wait_status(const siginfo_t *info)
{
    switch (info->si_code) {
    case CLD_EXITED:
        return (info->si_status & 0xff) << 8;
    case CLD_DUMPED:
        return (info->si_status & 0x7f) | 0x80;
    default:
        return info->si_status & 0x7f;
    }
}

static void child_run(struct pl_loop *loop, struct pl_op *op)
{
    struct pl_child *child = PL_CONTAINER_OF(op, struct pl_child, io.op);
    child->io.queued = false;
    if (child->pidfd < 0)
        return; /* unwatched while queued */

    siginfo_t info = {0};
    struct rusage usage = {0};
    int r;
    do {
        r = loop->sys->waitid(P_PIDFD, (id_t)child->pidfd, &info, WEXITED | WNOHANG, &usage);
    } while (r == -EINTR);
    if (r == 0 && info.si_pid == 0)
        return; /* not yet: the registration is level-triggered and stays */
    release(child);
    child->reaped = r == 0;
    child->exited(child, r == 0 ? wait_status(&info) : r, &usage);
}
