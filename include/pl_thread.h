/* pl_thread.h - a crew: a line of jobs for threads, and the places where idle threads sleep.
 *
 * The crew makes no threads. It says when one is wanted, and counts: whoever posts a job
 * learns whether a thread will come for it, or that one more should be started. A thread is
 *     looking   it has nothing to do and will look at the line before anything else
 *     idle      it sleeps in its berth
 *     at work   it took a job, and has not said that it looks again
 * and the idle one that lay down last is called first: its caches are warm, and those below
 * it get to sleep long enough to be let go.
 *
 * All functions may be called by any thread at any time, except where it says otherwise;
 * none of them calls back, and none but pl_crew_rest, pl_crew_await, pl_crew_wait_room and
 * pl_berth_sleep blocks.
 */
#ifndef PL_THREAD_H
#define PL_THREAD_H

#include "pl_base.h"
#include "pl_sys.h"

#include <stdatomic.h>

/* ---- a place to sleep ---- */

/* Used once: prepared, slept in by one thread, called by another. After the call that
 * pl_berth_call made, the memory is the sleeper's: the caller does not touch it again. */
struct pl_berth {
    struct pl_berth *next; /* in a list of the user's */
    _Atomic uint32_t word; /* enum pl_berth_word */
};

enum pl_berth_word {
    PL_BERTH_READY,
    PL_BERTH_DOZING, /* it sleeps for a moment, and then looks at the word */
    PL_BERTH_ASLEEP,
    PL_BERTH_CALLED,
};

static inline void pl_berth_prepare(struct pl_berth *berth)
{
    berth->next = NULL;
    /* Relaxed: who calls this berth learns of it later, and in order. */
    atomic_store_explicit(&berth->word, PL_BERTH_READY, memory_order_relaxed);
}

static inline bool pl_berth_called(struct pl_berth *berth)
{
    /* Acquire: partner is pl_berth_call's exchange. */
    return atomic_load_explicit(&berth->word, memory_order_acquire) == PL_BERTH_CALLED;
}

/* Sleeps until it is called: 0. -ETIMEDOUT after timeout_ns (-1: never), -EINTR. It may be
 * entered again after either. */
int pl_berth_sleep(const struct pl_sys *sys, struct pl_berth *berth,
                   int64_t timeout_ns) PL_MUST_CHECK;

/* Ends the sleep, or prevents it. Once. */
void pl_berth_call(const struct pl_sys *sys, struct pl_berth *berth);

/* ---- the crew ---- */

struct pl_band;

/* A job in the line. Embedded in what it belongs to. */
struct pl_job {
    struct pl_job *next;
    struct pl_job *prev;
    struct pl_band *band; /* NULL: in no line */
};

/* The jobs of one priority, in the order of posting. */
struct pl_band {
    struct pl_job *first;
    struct pl_job *last;
    int32_t priority;
};

struct pl_crew_config {
    const struct pl_sys *sys; /* borrows; NULL for pl_sys_default() */
    uint32_t threads;         /* at most so many */
    uint32_t room;            /* jobs that may wait in the line; 0: no bound */
    uint32_t cpus;            /* 0: what sched_getaffinity says */
};

struct pl_crew {
    const struct pl_sys *sys;
    _Atomic uint32_t lock; /* guards all but the atomics; held for a few instructions */
    _Atomic uint32_t queued;
    _Atomic uint32_t kicks;
    _Atomic uint32_t spinners; /* threads that spin for a job: 0 or 1 */
    _Atomic uint32_t watchers; /* others that spin for a job's end: 0 or 1 */
    _Atomic uint32_t posts_on; /* the cores of who posted, and of who rested, last */
    _Atomic uint32_t rests_on;
    _Atomic int32_t credit; /* what spinning has been worth lately */
    _Atomic uint32_t busy;  /* threads at work: threads - nidle - looking */
    _Atomic bool doze;      /* pl_crew_post_late is used: idle threads doze at first */
    uint32_t threads;       /* that exist or are about to */
    uint32_t max;
    uint32_t looking;
    uint32_t nidle;
    uint32_t room;
    uint32_t cpus;
    bool closed;
    struct pl_berth *idle;       /* last in, first out */
    struct pl_berth *room_first; /* who wait for room, first in, first out */
    struct pl_berth *room_last;
    struct pl_band common;  /* priority 0 */
    struct pl_band **bands; /* owns: the other priorities that have jobs, highest first */
    uint32_t nbands;
    uint32_t bands_cap;
    uint64_t calls; /* figures */
};

int pl_crew_init(struct pl_crew *crew, const struct pl_crew_config *config) PL_MUST_CHECK;

/* No thread may be left, and the line is empty. Accepts a zeroed crew. */
void pl_crew_fini(struct pl_crew *crew);

enum pl_posted {
    PL_POSTED = 0, /* a thread comes, or all are at work and there may be no more */
    PL_START = 1,  /* the caller is to start a thread; it counts already, as looking */
};

/* Posts a job; higher priorities go first, equal ones in order. enum pl_posted, -EAGAIN when
 * there is no room and `push` is not set, -ENOMEM for a priority that is new, PL_ECLOSED. */
int pl_crew_post(struct pl_crew *crew, struct pl_job *job, int32_t priority,
                 bool push) PL_MUST_CHECK;

/* As pl_crew_post, by one who holds what the job needs and is about to let go of it: a thread
 * that were woken now would run into that lock, and on this very core take turns with the caller
 * for nothing. When the thread that comes is dozing, *word is what to wake it with by
 * sys->futex_wake as soon as the lock is free; else NULL. Without that it gets up by itself, a
 * millisecond later at most. */
int pl_crew_post_late(struct pl_crew *crew, struct pl_job *job, int32_t priority, bool push,
                      uint32_t **word) PL_MUST_CHECK;

/* Whether one more thread should be started for what waits; if so, it counts already. */
bool pl_crew_want(struct pl_crew *crew);

/* The thread that pl_crew_post or pl_crew_want asked for could not be started: how many
 * there are now. */
uint32_t pl_crew_unstart(struct pl_crew *crew);

/* Takes a job out of the line: true when it was still there. */
bool pl_crew_withdraw(struct pl_crew *crew, struct pl_job *job);

/* Takes the first job out of the line, not in order to do it. NULL when it is empty. */
struct pl_job *pl_crew_revoke(struct pl_crew *crew);

/* Sleeps until the line has room, is closed (PL_ECLOSED) or timeout_ns is over
 * (-ETIMEDOUT); -EINTR. Another one may have taken the room when this returns. */
int pl_crew_wait_room(struct pl_crew *crew, int64_t timeout_ns) PL_MUST_CHECK;

/* Nothing can be posted any more. All idle threads are called. */
void pl_crew_close(struct pl_crew *crew);

bool pl_crew_closed(struct pl_crew *crew);

/* At most so many threads from now on; those in excess leave when they look. */
void pl_crew_resize(struct pl_crew *crew, uint32_t max);

/* A thread that spins for a job waits a moment before it takes notice of one: who posts
 * mostly holds a lock that the job needs, and is about to let go of it. This tells that it
 * has. */
static inline void pl_crew_kick(struct pl_crew *crew)
{
    /* Relaxed: a hint; who misses it goes on after a moment. */
    if (atomic_load_explicit(&crew->spinners, memory_order_relaxed) != 0)
        (void)atomic_fetch_add_explicit(&crew->kicks, 1, memory_order_relaxed);
}

/* pl_berth_sleep for one who waits for the end of a job and has let go of what the job needs:
 * kicks, and spins first when a core is to spare. */
int pl_crew_await(struct pl_crew *crew, struct pl_berth *berth, int64_t timeout_ns) PL_MUST_CHECK;

/* ---- a thread of the crew ---- */

/* The thread that was at work looks again. */
void pl_crew_look(struct pl_crew *crew);

/* The next job: the thread is at work. NULL: it is still looking. Jobs that were posted
 * before pl_crew_close are given out, too. */
struct pl_job *pl_crew_take(struct pl_crew *crew);

/* Spins and then sleeps as long as there is nothing: 0 when the thread should look,
 * -ETIMEDOUT when timeout_ns (-1: never) is over. It is looking before and afterwards. */
int pl_crew_rest(struct pl_crew *crew, int64_t timeout_ns) PL_MUST_CHECK;

/* A looking thread would like to end. False when it must not, since jobs wait; true: it is
 * counted no more, and is not to touch the crew again. */
bool pl_crew_leave(struct pl_crew *crew);

/* As pl_crew_leave, but only when there are more threads than wanted. Looks at nothing else,
 * for the others will do the jobs. */
bool pl_crew_excess(struct pl_crew *crew);

/* A thread ends out of its job. */
void pl_crew_quit(struct pl_crew *crew);

#endif /* PL_THREAD_H */
