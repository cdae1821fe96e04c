/* pool_parent.h - what the files of the pool's parent share with each other. */
#ifndef PLAIT_POOL_PARENT_H
#define PLAIT_POOL_PARENT_H

#include "pool.h"

#define POOL(o) ((struct plait_pool *)(o))
#define FUTURE(o) ((struct plait_future *)(o))

/* ---- pool.c ---- */

/* False with an exception set when the pool cannot be used by this process or any more. */
bool plait_pool_usable(struct plait_pool *pool);
/* The same for new tasks. */
bool plait_pool_accepts(struct plait_pool *pool);
/* Takes a task back that no worker has begun. True: nobody will run it, and the caller ends
 * the future; the reference of the queue or the cell is the caller's then. */
bool plait_pool_withdraw(struct plait_pool *pool, struct plait_future *f);

/* ---- pool_ends.c ---- */

/* The argument as a future of this pool's that is not done, borrowed; else NULL, with an exception
 * set or not. */
struct plait_future *plait_pool_own_future(struct plait_pool *pool, PyObject *arg);
/* Methods of the type. */
PyObject *plait_pool_do_rest(PyObject *self, PyObject *arg);
PyObject *plait_pool_do_give_up(PyObject *self, PyObject *arg);
PyObject *plait_pool_do_ask_stop(PyObject *self, PyObject *args);
PyObject *plait_pool_do_holder(PyObject *self, PyObject *arg);
PyObject *plait_pool_do_end_stopped(PyObject *self, PyObject *arg);
PyObject *plait_pool_do_bury(PyObject *self, PyObject *arg);
PyObject *plait_pool_do_recall(PyObject *self, PyObject *ignored);
PyObject *plait_pool_do_withdraw(PyObject *self, PyObject *arg);
PyObject *plait_pool_do_cancel_now(PyObject *self, PyObject *arg);

/* ---- pool_send.c ---- */

/* A call to be made in a worker; borrows everything. */
struct plait_call {
    PyObject *fn;
    PyObject *const *args;
    Py_ssize_t nargs;
    PyObject *kwnames;
    PyObject *name;  /* for errors, or NULL */
    PyObject *order; /* what plait._options keeps with the future, or NULL */
    int32_t priority;
    uint16_t how; /* 0 or PLAIT_EACH */
    bool again;   /* a failure goes to the policy first */
};

/* submit for all ways in: a new future, or NULL with an exception set. */
struct plait_future *plait_pool_submit(struct plait_pool *pool, const struct plait_call *call);
/* Another try of a resting future: 1 when it is under way, 0 when it was cancelled meanwhile,
 * -1 with an exception set and the future as it was. */
int plait_pool_resubmit(struct plait_pool *pool, struct plait_future *f,
                        const struct plait_call *call);
/* Takes a future out of its rest; what its last try came to is dropped. */
void plait_pool_unrest(struct plait_future *f);
/* Moves queued tasks to the board as long as it has room. */
void plait_pool_feed(struct plait_pool *pool);

/* ---- pool_queue.c ---- */

/* Adds an encoded task; the queue takes a reference of its own. -1 with an exception set. */
int plait_queue_add(struct plait_pool *pool, struct plait_future *f);
/* The next in turn, borrowed, or NULL. It may have been cancelled. */
struct plait_future *plait_queue_first(const struct plait_pool *pool);
/* Takes that one out: the queue's reference is the caller's. Not for an empty queue. */
struct plait_future *plait_queue_take(struct plait_pool *pool);
/* Takes tasks of a lower priority, which no worker has begun, from the board into the queue. */
void plait_queue_recall(struct plait_pool *pool, int32_t priority);
static inline bool plait_queue_empty(const struct plait_pool *pool)
{
    return pool->queue_first == NULL && pool->nheap == 0;
}

/* ---- pool_collect.c ---- */

/* Gives a reference up. If it is the last one, the object goes when the lead is down: its end
 * may run code of the user's, which may wait for this pool. */
void plait_pool_drop(struct plait_pool *pool, PyObject *object);
/* Whether plait_pool_notify has something to do. */
static inline bool plait_pool_has_news(const struct plait_pool *pool)
{
    return PyList_GET_SIZE(pool->notify) > 0 || PyList_GET_SIZE(pool->dropped) > 0;
}

/* Takes all that is there off the board, and fills the board again. */
void plait_pool_collect(struct plait_pool *pool);
/* One finished cell. */
void plait_pool_finish(struct plait_pool *pool, uint32_t cell, uint32_t seat);
/* Deaths, and workers that broke the rules: policy, so Python's. -1 with an exception set. */
int plait_pool_tend(struct plait_pool *pool, uint32_t tags);
/* Collects what is there, without waiting, and notifies. */
void plait_pool_peek(PyObject *self);

/* ---- pool_figures.c ---- */

/* Methods of the type. */
PyObject *plait_pool_figures(PyObject *self, PyObject *ignored);
PyObject *plait_pool_running(PyObject *self, PyObject *ignored);

/* ---- pool_wait.c ---- */

void plait_pool_wake_waiter(struct plait_waiter *waiter);
/* Has the helper look, wherever it sleeps. */
void plait_pool_call_helper(struct plait_pool *pool);
/* Wakes whoever sleeps for the pool's wait descriptor. */
void plait_pool_kick(struct plait_pool *pool);
/* The lead is free: the first real waiter gets it, or the helper when it is needed. */
void plait_pool_hand_over(struct plait_pool *pool);
/* Wakes the threads that wait for a future that is done now. */
void plait_pool_wake_for(struct plait_pool *pool, struct plait_future *f);
int plait_pool_wait_for(PyObject *self, struct plait_future *f, int64_t deadline);
/* Methods of the type. */
PyObject *plait_pool_on_ready(PyObject *self, PyObject *ignored);
PyObject *plait_pool_help(PyObject *self, PyObject *timed_out);
PyObject *plait_pool_wake_helper(PyObject *self, PyObject *ignored);
PyObject *plait_pool_wait_idle(PyObject *self, PyObject *timeout);

#endif /* PLAIT_POOL_PARENT_H */
