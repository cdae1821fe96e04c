/* budget_monitor.h - the thread that watches budgets, and what it shares with those that run them.
 *
 * budget.c says how they work together.
 */
#ifndef PLAIT_BUDGET_MONITOR_H
#define PLAIT_BUDGET_MONITOR_H

#include "budget.h"

#include <pthread.h>
#include <stdatomic.h>

/* The low bits of a slot's word; the rest is a ticket. */
enum {
    IDLE = 0,    /* no budget runs */
    ARMED = 1,   /* one runs */
    CLAIMED = 2, /* the monitor is setting an asynchronous exception */
    FIRED = 3,   /* it has set it */
    STATE = 3,
};

#define LOOK_MIN INT64_C(1000000) /* ns between two looks, at least */
#define LOOK_MAX INT64_C(5000000) /* and at most */

struct plait_monitor {
    /* The module's state, each slot in use, the thread and each pending call share it. */
    _Atomic int refs;
    pthread_mutex_t lock; /* guards what follows; never held while waiting for the interpreter */
    pthread_cond_t wake;
    struct plait_slot *_Atomic slots; /* owns; only ever grows, at its head */
    bool running;
    bool stop;
    bool over;           /* the interpreter ends: `stop` stays */
    _Atomic bool parked; /* partner of the exchange in `arm` */
    _Atomic int64_t look;
    pthread_t thread;
    PyInterpreterState *interp; /* borrows: the thread is stopped before it ends */
    PyObject *over_budget;      /* borrows from the module's state, likewise */

    /* The slot that was asked for last; the interpreter's lock guards them. */
    PyThreadState *last_tstate;
    struct plait_slot *last_slot;
};

/* budget_monitor.c */
void plait_monitor_share(struct plait_monitor *m);
void plait_monitor_release(struct plait_monitor *m);
/* Starts the thread, unless it runs, or must not; 0, or -1 with an exception set. */
int plait_monitor_start(struct plait_state *state, struct plait_monitor *m);
/* Has it look at once, and no longer parked. */
void plait_monitor_wake(struct plait_monitor *m);
int plait_monitor_exec(PyObject *module, struct plait_state *state);

/* budget.c: the call with this word has used up its time. Called by the monitor's thread, which
 * makes itself *tstate when it needs the interpreter's lock. */
void plait_budget_fire(struct plait_monitor *m, struct plait_slot *slot, uint64_t word,
                       PyThreadState **tstate);

#endif /* PLAIT_BUDGET_MONITOR_H */
