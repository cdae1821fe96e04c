/* future.h - the future of a pool's task, and what it asks of its pool.
 *
 * One type serves every kind of pool. What differs between them is behind a table of
 * functions, the keeper: the pool that has the task. A future refers to it until it is done.
 */
#ifndef PLAIT_FUTURE_H
#define PLAIT_FUTURE_H

#include "state.h"

enum plait_future_state {
    PLAIT_QUEUED,   /* nobody has begun the task; for a process pool: in its private queue */
    PLAIT_POSTED,   /* on the board of a process pool; in a thread's hands */
    PLAIT_SETTLING, /* ended, but those who hold its condition have not seen it yet */
    PLAIT_CANCELLED,
    PLAIT_FINISHED,
};

/* How a task was stopped, if it was. */
enum plait_stopped {
    PLAIT_NOT_STOPPED,
    PLAIT_STOPPED_QUEUED,    /* it never began */
    PLAIT_STOPPED_EXCEPTION, /* an exception ended it */
    PLAIT_STOPPED_KILLED,    /* its worker process was killed */
};

struct plait_future;

/* What a future whose task runs is to end as, whatever the task still comes to. */
enum plait_stop {
    PLAIT_STOP_NONE,
    PLAIT_STOP_CANCEL, /* cancelled */
    PLAIT_STOP_FAIL,   /* with the exception that it has already */
};

/* What a future asks of the pool that has its task. `pool` is borrowed for the call; it is
 * the one that the future refers to, and the future is not done when a call begins. */
struct plait_keeper {
    /* Waits until f is done, or until the deadline (monotonic nanoseconds; -1: none). 0, or
     * -1 with an exception set: TimeoutError, or what a signal's handler raised. */
    int (*wait)(PyObject *pool, struct plait_future *f, int64_t deadline);
    /* future.cancel(): takes the task back, or begins to stop it. 1: it is cancelled or will
     * be; 0: it goes on; -1 with an exception set. */
    int (*cancel)(PyObject *pool, struct plait_future *f);
    /* Whether someone has begun the task. */
    bool (*running)(PyObject *pool, const struct plait_future *f);
    /* The future has an audience now (a callback, a loop, concurrent.futures.wait): sees to
     * it that the end is noticed although no thread waits. 0, or -1 with an exception set. */
    int (*watch)(PyObject *pool, struct plait_future *f);
    /* A loop has begun to wait: before `watch`. May be NULL. */
    int (*attach)(PyObject *pool, PyObject *loop);
    /* f left SETTLING: wakes the threads that wait for it. */
    void (*wake)(PyObject *pool, struct plait_future *f);
    /* done() asks: collects what is there without waiting. May be NULL. */
    void (*peek)(PyObject *pool);
    /* f has got its exception from the pool itself: ends it and notifies. */
    void (*failed)(PyObject *pool, struct plait_future *f);
};

struct plait_future {
    PyObject_HEAD
    const struct plait_keeper *keeper; /* borrows: static */
    PyObject *pool;                    /* owns until done */
    uint8_t state;
    uint8_t kind;    /* of the undecoded result; 0: decoded */
    bool watched;    /* counted in pool->watched, */
    bool looped;     /* and in pool->looped */
    bool cancelling; /* SETTLING will end in CANCELLED */
    uint8_t stopped; /* enum plait_stopped */
    PyObject *fn;    /* what it runs: for names in errors */
    PyObject *name;  /* str that it was given by options, or NULL */
    PyObject *result;
    PyObject *exception;
    PyObject *callbacks; /* list of callables, or NULL */
    PyObject *waiters;   /* list of (loop, asyncio future), or NULL */
    PyObject *condition; /* these two only when concurrent.futures.wait asks for them */
    PyObject *cf_waiters;

    /* A thread pool's. */
    struct plait_task *task;   /* borrows: what there is to do; NULL once it is done */
    struct pl_berth *sleepers; /* borrows: threads in result() */

    /* A process pool's. */
    struct plait_future *next; /* in the pool's queue */
    PyObject *order;           /* what plait._options knows about the task, or NULL */
    uint64_t turn;             /* in which it was submitted, among those with a priority */
    int32_t priority;
    uint8_t stop; /* enum plait_stop: how it is to end */
    bool again;   /* its order has tries left: an exception goes to policy first */
    bool resting; /* QUEUED, but in no queue: waits for its next try */
    uint16_t task_kind;
    uint32_t nblocks;      /* lent with the task once it is posted */
    unsigned long decoder; /* thread that decodes the result; 0: none */
    uint32_t cell;
    struct pl_block *blocks; /* owns (PyMem) while queued */
    PyObject *message;       /* bytes: the task while queued, the result while undecoded */
    PyObject *block;         /* or the block that holds the result's message */
    PyObject *buffers;       /* list of blocks: out-of-band buffers of the result */
};

/* A new future without a pool; the caller gives it one (f->pool, owned) or its end. */
struct plait_future *plait_future_new(struct plait_state *state, const struct plait_keeper *keeper);
static inline bool plait_future_done(const struct plait_future *f)
{
    return f->state >= PLAIT_CANCELLED;
}
/* Ends a future whose result (or exception) has been stored: done at once, or SETTLING if
 * someone might hold its condition, with the rest left to plait_future_notify. */
void plait_future_end(struct plait_future *f, bool cancelled);
/* True when someone must be told of the end: then plait_future_notify is called, without
 * any lock or role held, since it runs the user's code. */
static inline bool plait_future_has_audience(const struct plait_future *f)
{
    return f->callbacks != NULL || f->waiters != NULL || f->condition != NULL;
}
void plait_future_notify(struct plait_state *state, struct plait_future *f);
/* As plait_future_notify, if all that there is to do is to tell one of plait's own loops; false:
 * it is not, and nothing was done. What *owed is set to, unless NULL, is to be given to
 * pl_loop_call as soon as the interpreter's lock is free, and no Python may run before. */
bool plait_future_leave(struct plait_state *state, struct plait_future *f, struct pl_loop **owed);
/* Reports the exception that is set and can be raised nowhere; but Ctrl+C comes once more, to be
 * raised in the main thread's next step. */
void plait_unraisable(PyObject *where);
/* The event loop that runs in this thread, or None: a new reference. */
PyObject *plait_running_loop(struct plait_state *state);
/* What a task is called that was given no name: a str, even if `function` does not tell. */
PyObject *plait_function_name(PyObject *function);
/* Takes the exception that is set, normalised and with its traceback: a new reference; NULL
 * when none is set. */
PyObject *plait_take_exception(void);
/* -1 with an exception set when fn is a coroutine or generator function: what a call of it makes
 * cannot leave a process (hints.c). */
int plait_refuse_frames(PyObject *fn);
/* An exception is set that a call of fn raised with keyword arguments `given` (tuple or dict): if
 * that was because they are options of a pool's tasks, it says how these are given. */
void plait_hint_options(PyObject *fn, PyObject *given);
/* A new future of `loop` that gets this one's end; cancelling it cancels this one. */
PyObject *plait_future_for_loop(struct plait_state *state, struct plait_future *f, PyObject *loop);

#endif /* PLAIT_FUTURE_H */
