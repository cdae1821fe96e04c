/* pl_file_threads.c - file operations in threads, for kernels without io_uring.
 *
 * One lock guards the list of waiting requests, the list of ended ones and the counters; it
 * is held for a few instructions. Threads are made when a request finds none idle, up to a
 * bound, and end after a while without work. They block all signals: handlers belong to the
 * program's own threads.
 */
#include "pl_file_threads.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

struct pl_file_threads {
    const struct pl_sys *sys;
    pthread_mutex_t lock;
    pthread_cond_t work;  /* something waits, or ending is set */
    pthread_cond_t quiet; /* a thread ended, or an operation did */
    struct pl_file_req *first;
    struct pl_file_req **last;
    struct pl_file_req *done;
    struct pl_file_req **done_tail;
    uint32_t threads;
    uint32_t idle;
    uint32_t running; /* operations */
    int event_fd;     /* borrows */
    bool ending;
};

int64_t pl__file_run(const struct pl_sys *sys, const struct pl_file_req *req)
{
    for (;;) {
        int64_t r = -EINVAL;
        switch (req->op) {
        case PL_FILE_OPEN:
            r = sys->open(req->path, req->flags, req->mode);
            break;
        case PL_FILE_CLOSE:
            /* Linux has closed it even if it says EINTR. */
            r = sys->close(req->fd);
            return r == -EINTR ? 0 : r;
        case PL_FILE_READ:
            r = sys->pread(req->fd, req->data, req->len, req->offset);
            break;
        case PL_FILE_WRITE:
            r = sys->pwrite(req->fd, req->data, req->len, req->offset);
            break;
        case PL_FILE_SYNC:
            r = sys->fsync(req->fd);
            break;
        case PL_FILE_DATASYNC:
            r = sys->fdatasync(req->fd);
            break;
        case PL_FILE_TRUNCATE:
            r = sys->ftruncate(req->fd, req->offset);
            break;
        }
        if (r != -EINTR)
            return r;
    }
}

static void deadline_in(struct timespec *at, int64_t ns)
{
    (void)clock_gettime(CLOCK_MONOTONIC, at);
    int64_t sum = at->tv_nsec + ns % PL_NSEC_PER_SEC;
    at->tv_sec += (time_t)(ns / PL_NSEC_PER_SEC + sum / PL_NSEC_PER_SEC);
    at->tv_nsec = (long)(sum % PL_NSEC_PER_SEC);
}

/* Lock held: the owner takes the list under it, too, so a wake-up is never lost. */
static void add_done(struct pl_file_threads *t, struct pl_file_req *req)
{
    bool first = t->done == NULL;
    req->next = NULL;
    *t->done_tail = req;
    t->done_tail = &req->next;
    if (first) {
        uint64_t one = 1;
        (void)t->sys->write(t->event_fd, &one, sizeof(one)); /* a full counter is readable */
    }
}

static void *serve(void *arg)
{
    struct pl_file_threads *t = arg;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (t->first == NULL && !t->ending) {
            struct timespec until;
            deadline_in(&until, PL_FILE_THREADS_IDLE);
            t->idle++;
            int r = pthread_cond_timedwait(&t->work, &t->lock, &until);
            t->idle--;
            if (r == ETIMEDOUT && t->first == NULL && !t->ending)
                goto leave;
        }
        struct pl_file_req *req = t->first;
        if (req == NULL)
            break;
        t->first = req->next;
        if (t->first == NULL)
            t->last = &t->first;
        t->running++;
        pthread_mutex_unlock(&t->lock);

        int64_t result = pl__file_run(t->sys, req);

        pthread_mutex_lock(&t->lock);
        t->running--;
        req->result = result;
        add_done(t, req);
        pthread_cond_signal(&t->quiet);
    }
leave:
    t->threads--;
    pthread_cond_signal(&t->quiet);
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

int pl__file_threads_new(const struct pl_sys *sys, int event_fd, struct pl_file_threads **out)
{
    struct pl_file_threads *t = sys->alloc(sizeof(*t));
    if (t == NULL)
        return -ENOMEM;
    *t = (struct pl_file_threads){.sys = sys, .event_fd = event_fd};
    t->last = &t->first;
    t->done_tail = &t->done;
    pthread_condattr_t attr;
    int r = pthread_condattr_init(&attr);
    if (r == 0) {
        (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC); /* cannot fail with it */
        r = pthread_mutex_init(&t->lock, NULL);
        if (r == 0)
            r = pthread_cond_init(&t->work, &attr);
        if (r == 0)
            r = pthread_cond_init(&t->quiet, &attr);
        (void)pthread_condattr_destroy(&attr);
    }
    if (r != 0) {
        sys->free(t);
        return -r;
    }
    *out = t;
    return 0;
}

static int add_thread(struct pl_file_threads *t)
{
    sigset_t all, before;
    (void)sigfillset(&all);
    pthread_t id;
    pthread_attr_t attr;
    int r = pthread_attr_init(&attr);
    if (r != 0)
        return -r;
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&id, &attr, serve, t);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attr);
    if (r == 0)
        t->threads++;
    return -r;
}

int pl__file_threads_submit(struct pl_file_threads *t, struct pl_file_req *req)
{
    int r = 0;
    pthread_mutex_lock(&t->lock);
    uint32_t waiting = 0;
    for (const struct pl_file_req *w = t->first; w != NULL && waiting < t->idle; w = w->next)
        waiting++;
    /* Idle threads that a waiting request will take do not count. */
    if (waiting >= t->idle && t->threads < PL_FILE_THREADS_MAX) {
        r = add_thread(t);
        if (r < 0 && t->threads > 0)
            r = 0; /* those that there are will do it */
    }
    if (r == 0) {
        req->next = NULL;
        *t->last = req;
        t->last = &req->next;
        pthread_cond_signal(&t->work);
    }
    pthread_mutex_unlock(&t->lock);
    return r;
}

/* Unlinks a waiting request; NULL for the first of all. Lock held. */
static struct pl_file_req *unlink_waiting(struct pl_file_threads *t, struct pl_file_req *req)
{
    for (struct pl_file_req **p = &t->first; *p != NULL; p = &(*p)->next) {
        if (req != NULL && *p != req)
            continue;
        struct pl_file_req *found = *p;
        *p = found->next;
        if (*p == NULL)
            t->last = p;
        return found;
    }
    return NULL;
}

bool pl__file_threads_withdraw(struct pl_file_threads *t, struct pl_file_req *req, int result)
{
    pthread_mutex_lock(&t->lock);
    bool found = unlink_waiting(t, req) != NULL;
    if (found) {
        req->result = result;
        add_done(t, req);
    }
    pthread_mutex_unlock(&t->lock);
    return found;
}

struct pl_file_req *pl__file_threads_take(struct pl_file_threads *t)
{
    pthread_mutex_lock(&t->lock);
    struct pl_file_req *list = t->done;
    t->done = NULL;
    t->done_tail = &t->done;
    pthread_mutex_unlock(&t->lock);
    return list;
}

uint32_t pl__file_threads_settle(struct pl_file_threads *t, int64_t timeout_ns)
{
    struct timespec until;
    if (timeout_ns >= 0)
        deadline_in(&until, timeout_ns);
    pthread_mutex_lock(&t->lock);
    for (struct pl_file_req *req; (req = unlink_waiting(t, NULL)) != NULL;) {
        req->result = -ECANCELED;
        add_done(t, req);
    }
    int r = 0;
    while (t->running > 0 && r == 0)
        r = timeout_ns < 0 ? pthread_cond_wait(&t->quiet, &t->lock)
                           : pthread_cond_timedwait(&t->quiet, &t->lock, &until);
    uint32_t left = t->running;
    pthread_mutex_unlock(&t->lock);
    return left;
}

void pl__file_threads_end(struct pl_file_threads *t)
{
    pthread_mutex_lock(&t->lock);
    t->ending = true;
    pthread_cond_broadcast(&t->work);
    while (t->threads > 0)
        pthread_cond_wait(&t->quiet, &t->lock);
    pthread_mutex_unlock(&t->lock);
    (void)pthread_mutex_destroy(&t->lock);
    (void)pthread_cond_destroy(&t->work);
    (void)pthread_cond_destroy(&t->quiet);
    t->sys->free(t);
}

void pl__file_threads_after_fork(struct pl_file_threads *t)
{
    /* Neither lock nor conditions are touched: a thread of the parent may have held them. */
    t->sys->free(t);
}
