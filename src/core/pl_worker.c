/* pl_worker.c - worker processes without an interpreter: start by fork, supervise, stop.
 *
 * Each worker has a pidfd in the pool's wait set, so a death wakes whoever waits for
 * results. A worker that lived for less than YOUNG counts against a series: its successor
 * waits for a time that doubles with each one, kept by a timerfd in the same set.
 */
#include "pl_pool_internal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define YOUNG PL_NSEC_PER_SEC
#define BACK_OFF_FIRST (PL_NSEC_PER_SEC / 100)
#define BACK_OFF_DOUBLINGS 8
#define TAG_WORKER 0u

struct worker {
    pid_t pid; /* 0: none */
    int pidfd;
    uint32_t seat;
    int64_t born;
};

struct pl_workers {
    struct pl_pool *pool; /* borrows */
    pl_worker_main main;
    void *arg;
    void (*lost)(struct pl_pool *pool, uint32_t cell, int status, void *arg);
    uint32_t n;
    uint32_t young_deaths; /* in a row */
    int64_t not_before;    /* of the next start */
    int timerfd;
    struct worker all[];
};

static void run_child(struct pl_workers *workers, uint32_t seat, uint64_t low_mark, pid_t parent)
{
    struct pl_pool *pool = workers->pool;
    struct pl_member member;
    /* Die with the parent; it may be dead already, before the kernel knew what we want. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
        _exit(127);
    (void)signal(SIGINT, SIG_IGN); /* Ctrl+C is the parent's to handle */
    if (pl_member_init(&member, pool->sys, pool->base, pool->layout.total, pool->eventfd, seat,
                       low_mark) < 0)
        _exit(127);
    _exit(workers->main(&member, workers->arg));
}

static int start_one(struct pl_workers *workers, struct worker *worker)
{
    struct pl_pool *pool = workers->pool;
    const struct pl_sys *sys = pool->sys;
    uint32_t seat;
    uint32_t unused;
    uint64_t low_mark;
    int error = pl_pool_seat(pool, &seat, &low_mark);
    if (error < 0)
        return error;
    pid_t parent = getpid();
    pid_t pid = sys->fork();
    if (pid == 0)
        run_child(workers, seat, low_mark, parent);
    error = pid;
    if (pid < 0)
        goto no_fork;
    int pidfd = error = sys->pidfd_open(pid);
    if (error < 0)
        goto no_pidfd;
    error = pl_pool_watch(pool, pidfd, TAG_WORKER);
    if (error < 0)
        goto no_watch;
    *worker = (struct worker){.pid = pid, .pidfd = pidfd, .seat = seat, .born = sys->now()};
    return 0;

no_watch:
    (void)sys->close(pidfd);
no_pidfd : {
    siginfo_t info;
    (void)sys->kill(pid, SIGKILL); /* our own child, not reaped: the pid is its */
    while (sys->waitid(P_PID, (id_t)pid, &info, WEXITED, NULL) == -EINTR)
        ;
}
no_fork:
    /* It cannot have claimed a task that is still to be told: killed at once, it may have
     * claimed one all the same, so the burial is the ordinary one. */
    while (pl_pool_bury(pool, seat, &unused) != PL_BURIED)
        pl_pool_release(pool, unused);
    return error;
}

/* Starts what is missing, unless it is too early. */
static int fill(struct pl_workers *workers)
{
    const struct pl_sys *sys = workers->pool->sys;
    int result = 0;
    for (uint32_t i = 0; i < workers->n; i++) {
        if (workers->all[i].pid != 0)
            continue;
        int64_t now = sys->now();
        if (now < workers->not_before) {
            int64_t left = workers->not_before - now;
            struct itimerspec when = {
                .it_value = {.tv_sec = left / PL_NSEC_PER_SEC, .tv_nsec = left % PL_NSEC_PER_SEC}};
            if (timerfd_settime(workers->timerfd, 0, &when, NULL) < 0)
                result = -errno;
            break;
        }
        int error = start_one(workers, &workers->all[i]);
        if (error < 0) {
            workers->not_before = now + PL_NSEC_PER_SEC / 10;
            result = error;
        }
    }
    return result;
}

int pl_workers_start(struct pl_pool *pool, uint32_t n, pl_worker_main main, void *arg,
                     void (*lost)(struct pl_pool *pool, uint32_t cell, int status, void *arg),
                     struct pl_workers **out)
{
    const struct pl_sys *sys = pool->sys;
    if (n < 1 || n > 64 || main == NULL)
        return -EINVAL;
    size_t size = sizeof(struct pl_workers) + n * sizeof(struct worker);
    struct pl_workers *workers = sys->alloc(size);
    if (workers == NULL)
        return -ENOMEM;
    memset(workers, 0, size);
    workers->pool = pool;
    workers->main = main;
    workers->arg = arg;
    workers->lost = lost;
    workers->n = n;
    int error = workers->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (error < 0) {
        error = -errno;
        sys->free(workers);
        return error;
    }
    error = pl_pool_watch(pool, workers->timerfd, TAG_WORKER);
    if (error >= 0)
        error = fill(workers);
    if (error < 0) {
        pl_workers_stop(workers, 0);
        return error;
    }
    *out = workers;
    return 0;
}

/* Reaps a worker that has ended; true when it had. */
static bool reap(struct pl_workers *workers, struct worker *worker, int flags, int *status)
{
    const struct pl_sys *sys = workers->pool->sys;
    siginfo_t info = {0};
    int error;
    do
        error = sys->waitid(P_PID, (id_t)worker->pid, &info, WEXITED | flags, NULL);
    while (error == -EINTR);
    if (error == -ECHILD) /* someone else reaped it */
        *status = 0;
    else if (error < 0 || info.si_pid == 0)
        return false;
    else
        *status = info.si_code == CLD_EXITED ? info.si_status << 8 : info.si_status;
    pl_pool_unwatch(workers->pool, worker->pidfd);
    (void)sys->close(worker->pidfd);
    worker->pid = 0;
    return true;
}

int pl_workers_tend(struct pl_workers *workers,
                    void (*done)(struct pl_pool *pool, uint32_t cell, void *arg))
{
    struct pl_pool *pool = workers->pool;
    uint64_t ticks;
    uint32_t cell;
    uint32_t seat;
    int deaths = 0;
    (void)pool->sys->read(workers->timerfd, &ticks, sizeof(ticks)); /* -EAGAIN: no matter */
    /* Results first: they were there before the deaths that follow. */
    for (;;) {
        int found = pl_pool_next(pool, &cell, &seat);
        if (found == 0)
            break;
        if (found == 1) {
            done(pool, cell, workers->arg);
            continue;
        }
        for (uint32_t i = 0; i < workers->n; i++)
            if (workers->all[i].pid != 0 && workers->all[i].seat == seat)
                (void)pool->sys->pidfd_send_signal(workers->all[i].pidfd, SIGKILL);
    }
    for (uint32_t i = 0; i < workers->n; i++) {
        struct worker *worker = &workers->all[i];
        int status;
        if (worker->pid == 0 || !reap(workers, worker, WNOHANG, &status))
            continue;
        deaths++;
        /* What it finished between the look above and its end. */
        while (pl_pool_next(pool, &cell, &seat) == 1)
            done(pool, cell, workers->arg);
        enum pl_burial end;
        while ((end = pl_pool_bury(pool, worker->seat, &cell)) != PL_BURIED) {
            if (end == PL_FINISHED) {
                done(pool, cell, workers->arg);
                continue;
            }
            if (workers->lost != NULL)
                workers->lost(pool, cell, status, workers->arg);
            pl_pool_release(pool, cell);
        }
        int64_t now = pool->sys->now();
        if (now - worker->born < YOUNG) {
            uint32_t doublings = workers->young_deaths++;
            if (doublings > BACK_OFF_DOUBLINGS)
                doublings = BACK_OFF_DOUBLINGS;
            workers->not_before = now + (BACK_OFF_FIRST << doublings);
        } else {
            workers->young_deaths = 0;
        }
    }
    int error = fill(workers);
    return error < 0 ? error : deaths;
}

void pl_workers_stop(struct pl_workers *workers, int64_t grace_ns)
{
    struct pl_pool *pool = workers->pool;
    const struct pl_sys *sys = pool->sys;
    int status;
    int64_t end = sys->now() + grace_ns;
    pl_pool_close(pool);
    for (uint32_t i = 0; i < workers->n; i++) {
        struct worker *worker = &workers->all[i];
        if (worker->pid == 0)
            continue;
        int64_t left = end - sys->now();
        if (left < 0 || sys->poll_one(worker->pidfd, POLLIN, (int)(left / 1000000) + 1) <= 0)
            (void)sys->pidfd_send_signal(worker->pidfd, SIGKILL);
        (void)reap(workers, worker, 0, &status);
    }
    pl_pool_unwatch(pool, workers->timerfd);
    (void)sys->close(workers->timerfd);
    sys->free(workers);
}

uint32_t pl_workers_pids(const struct pl_workers *workers, pid_t *pids, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < workers->n && n < max; i++)
        if (workers->all[i].pid != 0)
            pids[n++] = workers->all[i].pid;
    return n;
}
