/* budget.h - calls of Python functions that end when their time is up.
 *
 * budget.c holds the argument why an interrupt meets the right call and nothing else.
 */
#ifndef PLAIT_BUDGET_H
#define PLAIT_BUDGET_H

#include "state.h"

#include <time.h>

struct plait_budget;
struct plait_monitor;

/* What the kernel has counted of a thread. */
struct plait_counts {
    int64_t at;     /* when it was asked; 0: never */
    int64_t cpu_ns; /* that it has run */
    long waits;     /* how often it gave up its processor by itself */
};

/* What a thread's budgeted calls and the monitor share. Lives as long as the monitor. */
struct plait_slot {
    struct plait_monitor *monitor; /* borrows: the slot lies in its list */
    struct plait_slot *next;       /* in that list; written once */

    /* Only the slot's thread uses these. */
    struct plait_budget *top; /* the innermost budget that runs, or NULL */
    uint32_t depth;           /* how many tasks run in this thread, one within the other */
    uint64_t tickets;
    struct plait_counts counts; /* of this thread, a while ago at most */

    /* Shared with the monitor. `word` is a ticket and one of the states of budget.c. */
    _Atomic uint64_t word;
    _Atomic int64_t deadline;
    _Atomic bool posted; /* a pending call for this slot is under way */

    /* Written with the interpreter's lock held, when a thread takes the slot. */
    PyThreadState *tstate; /* borrows; NULL: nobody's, free for the next thread */
    unsigned long ident;
    _Atomic bool in_main; /* pending calls reach this thread */
    _Atomic bool aside;   /* another's asynchronous exception is under way to it */
};

static inline int64_t plait_budget_now(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail for this clock */
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* The calling thread's counts as they are, or were a quarter of a millisecond before `now` at most:
 * asking the kernel costs more than a short call. */
void plait_counts_begin(struct plait_slot *slot, int64_t now, struct plait_counts *begin);

/* How much of a call that took `took` nanoseconds, and began with these counts, is the function's
 * own doing: less than `took` only if it has not waited, but was preempted. */
int64_t plait_counts_cost(const struct plait_counts *begin, int64_t took);

/* The calling thread's slot, made on first use. NULL with an exception set. */
struct plait_slot *plait_slot_get(struct plait_state *state);

/* A thread has one place for an asynchronous exception. Between `true`, which comes before the
 * stop of a thread pool's task is sent, and `false`, when that has ended, budgets of the thread
 * neither send theirs nor take one back. The interpreter's lock is held. */
void plait_budget_step_aside(struct plait_state *state, unsigned long ident, bool aside);

/* Calls fn as a task, without a budget: tasks that it calls are plain calls. */
static inline PyObject *plait_slot_call(struct plait_slot *slot, PyObject *fn,
                                        PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    slot->depth++;
    PyObject *result = PyObject_Vectorcall(fn, args, nargsf, kwnames);
    slot->depth--;
    return result;
}

/* Calls fn, for at most `length` nanoseconds. 0: it ended, *result is a new reference or
 * NULL with its exception set. 1: it was interrupted; it left no result and no exception.
 * *took is the time that it used. With `eager` the end is met exactly, at the price of a wake-up;
 * otherwise it may come some milliseconds later. */
int plait_budget_call(struct plait_state *state, struct plait_slot *slot, PyObject *fn,
                      PyObject *const *args, size_t nargsf, PyObject *kwnames, int64_t length,
                      bool eager, PyObject **result, int64_t *took);

#endif /* PLAIT_BUDGET_H */
