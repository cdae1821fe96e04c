/* pl_file.c - the queue of file operations: the kernel's ring first, threads for the rest.
 *
 * Without a ring, a read is first tried with RWF_NOWAIT, which answers from the page cache or
 * not at all; only what would wait for a disk costs a thread.
 */
#include "pl_file.h"

#include "pl_file_ring.h"
#include "pl_internal.h"
#include "pl_file_threads.h"

#include <errno.h>
#include <unistd.h>

static int watch(struct pl_files *files, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN};
    return files->sys->epoll_ctl(files->poll_fd, EPOLL_CTL_ADD, fd, &ev);
}

int pl_files_init(struct pl_files *files, const struct pl_sys *sys, enum pl_file_engine engine)
{
    *files = (struct pl_files){.sys = sys, .event_fd = -1, .poll_fd = -1, .pid = getpid()};
    files->done_tail = &files->done;
    int r = sys->epoll_create();
    if (r < 0)
        return r;
    files->poll_fd = r;
    r = sys->eventfd(0);
    if (r < 0)
        goto fail;
    files->event_fd = r;
    r = watch(files, files->event_fd);
    if (r < 0)
        goto fail;
    if (engine != PL_FILE_THREADS) {
        r = pl__file_ring_new(sys, files->event_fd, &files->ring);
        if (r == 0)
            r = watch(files, pl__file_ring_fd(files->ring));
        else if (r != -ENOMEM && engine == PL_FILE_AUTO)
            files->why = r;
        if (r < 0 && files->why == 0)
            goto fail;
    }
    if (files->ring == NULL) {
        r = pl__file_threads_new(sys, files->event_fd, &files->threads);
        if (r < 0)
            goto fail;
    }
    return 0;

fail:
    pl_files_fini(files);
    return r;
}

int pl_files_fd(const struct pl_files *files)
{
    return files->poll_fd;
}

const char *pl_files_engine(const struct pl_files *files)
{
    return files->ring != NULL ? "io_uring" : "threads";
}

static int to_thread(struct pl_files *files, struct pl_file_req *req)
{
    if (files->threads == NULL) {
        int r = pl__file_threads_new(files->sys, files->event_fd, &files->threads);
        if (r < 0)
            return r;
    }
    /* Before the call: a thread may end it at once, and the fields are its until then. */
    req->place = PL_FILE_IN_THREADS;
    int r = pl__file_threads_submit(files->threads, req);
    if (r < 0) {
        req->place = PL_FILE_NOWHERE;
        return r;
    }
    files->stats.threads++;
    files->stats.inflight++;
    return 0;
}

/* ---- in the loop's ring -------------------------------------------------- */

static void tell_user(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct pl_files *files = PL_CONTAINER_OF(op, struct pl_files, op);
    files->queued = false;
    files->collectable(files);
}

void pl_files_join(struct pl_files *files, struct pl_loop *loop,
                   void (*collectable)(struct pl_files *files))
{
    files->loop = loop;
    files->op.run = tell_user;
    files->collectable = collectable;
}

int pl__file_done(struct pl_loop *loop, struct pl_file_req *req, int64_t result)
{
    struct pl_files *files = req->files;
    if (loop != NULL && !files->queued) {
        int r = pl_loop_enqueue(loop, &files->op);
        if (r < 0)
            return r;
        files->queued = true;
    }
    req->result = result;
    req->place = PL_FILE_NOWHERE;
    req->next = NULL;
    *files->done_tail = req;
    files->done_tail = &req->next;
    return 0;
}

static void do_nothing(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op;
}

/* The loop may run on without the queue. */
static void leave_loop(struct pl_files *files)
{
    static const struct pl_op nothing = {do_nothing};
    struct pl_queue *ready = files->queued ? &files->loop->ready : NULL;
    for (uint32_t i = 0; ready != NULL && i < pl_queue_len(ready); i++) {
        struct pl_op **slot = &ready->slots[(ready->head + i) & ready->mask];
        if (*slot == &files->op)
            *slot = (struct pl_op *)(uintptr_t)&nothing;
    }
    files->queued = false;
}

/* Whether an operation ends by itself, in the time that a disk takes. */
static bool ends_soon(const struct pl_file_req *req)
{
    switch (req->op) {
    case PL_FILE_READ:
    case PL_FILE_WRITE:
        return req->offset >= 0; /* pipes and terminals have no offsets */
    case PL_FILE_SYNC:
    case PL_FILE_DATASYNC:
        return true;
    default:
        return false;
    }
}

/* As pl__file_ring_submit. */
static int to_loop(struct pl_files *files, struct pl_file_req *req)
{
    const struct pl_backend_ops *backend = files->loop != NULL ? files->loop->backend : NULL;
    if (files->ring == NULL || backend == NULL || backend->file == NULL ||
        files->loop->poller == NULL || !ends_soon(req))
        return -EAGAIN;
    req->files = files;
    req->place = PL_FILE_IN_LOOP;
    int r = backend->file(files->loop, req);
    if (r != 0)
        req->place = PL_FILE_NOWHERE;
    return r;
}

/* ---- the queue ------------------------------------------------------------ */

int pl_files_submit(struct pl_files *files, struct pl_file_req *req)
{
    if (files->pid != getpid())
        return PL_EFORKED;
    req->place = PL_FILE_NOWHERE;
    req->next = NULL;
    if (files->ring != NULL) {
        int r = to_loop(files, req);
        if (r == -EAGAIN)
            r = pl__file_ring_submit(files->ring, req);
        if (r == 0) {
            files->stats.ring++;
            files->stats.inflight++;
            return 0;
        }
        if (r > 0) {
            files->stats.at_once++;
            return 1;
        }
    } else if (req->op == PL_FILE_READ) {
        /* Any failure but "not now" would be the same in a thread, except that file systems
         * and kinds of files which do not know the flag are tried there. */
        ssize_t r = files->sys->pread_cached(req->fd, req->data, req->len, req->offset);
        if (r >= 0) {
            req->result = r;
            files->stats.at_once++;
            return 1;
        }
    }
    return to_thread(files, req);
}

void pl_files_cancel(struct pl_files *files, struct pl_file_req *req)
{
    if (req->place == PL_FILE_IN_RING) {
        pl__file_ring_cancel(files->ring, req);
    } else if (req->place == PL_FILE_IN_THREADS &&
               pl__file_threads_withdraw(files->threads, req, -ECANCELED)) {
        /* It is among the ended ones now, and the eventfd has told. */
    }
}

struct pl_file_req *pl_files_collect(struct pl_files *files)
{
    struct pl_file_req *list = NULL;
    struct pl_file_req **tail = &list;
    if (files->pid != getpid())
        return NULL; /* the parent's, and the eventfd is its to read */
    uint64_t count;
    (void)files->sys->read(files->event_fd, &count, sizeof(count)); /* EAGAIN: it was not set */
    if (files->done != NULL) {
        *tail = files->done;
        files->done = NULL;
        files->done_tail = &files->done;
    }
    for (; *tail != NULL; tail = &(*tail)->next)
        files->stats.inflight--;
    if (files->ring != NULL)
        *tail = pl__file_ring_take(files->ring);
    for (; *tail != NULL; tail = &(*tail)->next)
        files->stats.inflight--;
    if (files->threads != NULL)
        *tail = pl__file_threads_take(files->threads);
    for (; *tail != NULL; tail = &(*tail)->next) {
        (*tail)->place = PL_FILE_NOWHERE;
        files->stats.inflight--;
    }
    return list;
}

uint32_t pl_files_settle(struct pl_files *files, int64_t timeout_ns)
{
    int64_t until = timeout_ns < 0 ? -1 : files->sys->now() + timeout_ns;
    uint32_t left = 0;
    struct pl_loop *loop = files->loop;
    if (loop != NULL && loop->poller != NULL && loop->backend->reap != NULL) {
        loop->backend->park(loop, timeout_ns);
        loop->backend->reap(loop);
    }
    if (files->ring != NULL)
        left += pl__file_ring_settle(files->ring, timeout_ns);
    if (files->threads != NULL) {
        int64_t rest = until < 0 ? -1 : until - files->sys->now();
        left += pl__file_threads_settle(files->threads, rest < 0 && until >= 0 ? 0 : rest);
    }
    return left;
}

void pl_files_fini(struct pl_files *files)
{
    if (files->poll_fd < 0)
        return;
    bool ours = files->pid == getpid();
    leave_loop(files);
    if (files->ring != NULL)
        pl__file_ring_free(files->ring);
    if (files->threads != NULL) {
        if (ours)
            pl__file_threads_end(files->threads);
        else
            pl__file_threads_after_fork(files->threads);
    }
    if (files->event_fd >= 0)
        (void)files->sys->close(files->event_fd);
    (void)files->sys->close(files->poll_fd);
    files->poll_fd = files->event_fd = -1;
    files->ring = NULL;
    files->threads = NULL;
}
