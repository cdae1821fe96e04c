/* thread.h - what the files of the thread pool's binding share. */
#ifndef PLAIT_THREAD_H
#define PLAIT_THREAD_H

#include "future.h"
#include "histogram.h"

/* Why a running task is asked to stop. */
enum plait_asked {
    PLAIT_ASKED_NOTHING,
    PLAIT_ASKED_CANCEL,
    PLAIT_ASKED_TIMEOUT,
};

struct plait_crew_worker;

/* What a future's thread has to do. Freed when the future is done. */
struct plait_task {
    struct pl_job job;
    struct plait_future *future;      /* owns */
    struct plait_crew_worker *worker; /* borrows; NULL while nobody has begun it */
    int64_t posted_at;
    int64_t started_at;
    int64_t timeout_ns; /* from its start; 0: none */
    int64_t deadline;   /* while it runs with a timeout; else 0 */
    PyObject *kwnames;  /* owns, or NULL */
    PyObject *context;  /* owns, or NULL */
    Py_ssize_t npos;
    Py_ssize_t nargs; /* with keyword arguments */
    uint32_t retries;
    int32_t priority;
    uint8_t asked;    /* enum plait_asked */
    bool sent;        /* an exception was sent to its thread */
    PyObject *args[]; /* one free for vectorcall's use, then nargs, owned */
};

/* A thread of a crew, on its own stack. */
struct plait_crew_worker {
    struct plait_crew_worker *next;
    struct plait_crew_worker **at;
    struct plait_crew *crew; /* borrows: the thread's call holds it */
    struct plait_task *task; /* borrows; what it runs. While it is set, it may be stopped */
    struct pl_berth *owed;   /* those who wait for its last task's end, still to be called */
    struct pl_loop *owed_to; /* borrows: the loop that does; pl_loop_call keeps it from ending */
    unsigned long ident;
    uint64_t done;
    int64_t attached_at; /* when it got the interpreter's lock at the latest */
    int64_t ended_at;    /* when its last task ended */
    uint32_t generation; /* the crew's that it has seen */
};

/* plait._core.Crew: the pool without its public face. Threads refer to it, and futures that
 * are not done; so a pool may be dropped while it has work.
 *
 * All fields but `core` are guarded by the interpreter's lock. What a build without it needs
 * instead: a lock of the crew's around the list of workers and a task's end, so that
 * request_stop and end_task exclude each other; and the futures' own. */
struct plait_crew {
    PyObject_HEAD
    struct pl_crew core;
    struct plait_state *state; /* borrows: the type keeps the module */
    struct plait_crew_worker *workers;
    PyObject *initializer; /* NULL: none */
    PyObject *initargs;
    PyObject *start;  /* called with the crew and a ticket: starts a thread that calls _run */
    PyObject *watch;  /* called with the crew: the same for _watch */
    PyObject *fail;   /* called with the crew and an initializer's exception: gives the pool's */
    PyObject *broken; /* exception: why nothing works any more */
    struct pl_berth *watcher; /* borrows: where the one that watches deadlines sleeps */
    int64_t watch_until;      /* the deadline that it sleeps for */
    int64_t idle_ns;
    uint32_t generation; /* moves when threads are to look at how many are wanted */
    bool open;
    bool closed;
    bool exiting; /* closed by the interpreter's end */
    bool forked;  /* this is a child's copy */
    bool refuses; /* a full line raises instead of blocking */
    bool carries; /* context variables */
    bool gentle;  /* running tasks are not sent exceptions */
    bool watched; /* a thread watches deadlines */
    uint64_t submitted;
    uint64_t done;
    uint64_t failed; /* of done: with an exception */
    uint64_t cancelled;
    uint64_t timed_out;
    uint64_t retried;
    uint64_t unstarted; /* threads that could not be started */
    struct plait_histogram waits;
    struct plait_histogram runs;
};

#define PLAIT_CREW(o) ((struct plait_crew *)(o))

/* threadtask.c */
static inline int64_t plait_crew_now(void)
{
    return pl_sys_default()->now();
}
/* What came of a task; steals result and error, of which one is NULL. */
void plait_task_end(struct plait_crew *crew, struct plait_crew_worker *me, struct plait_task *task,
                    PyObject *result, PyObject *error);
/* Calls those who wait for the end of this thread's last task. Needs no lock. */
void plait_crew_pay(struct plait_crew_worker *me);
/* Asks a task to stop, by an exception in its thread, too, if it runs and the crew is not gentle.
 * Runs no Python. */
void plait_task_ask_stop(struct plait_crew *crew, struct plait_task *task, enum plait_asked why);
/* What this thread is in a crew, or NULL. */
struct plait_crew_worker *plait_crew_worker_here(struct plait_state *state);
extern const struct plait_keeper plait_crew_keeper;
/* Options of one task. */
struct plait_task_options {
    int64_t timeout_ns;
    int32_t priority;
    uint32_t retries;
    PyObject *name; /* borrows, or NULL */
};
/* A new future, or NULL with an exception set. `push`: never blocks for a full line. */
struct plait_future *plait_crew_submit(struct plait_crew *crew, PyObject *const *args,
                                       Py_ssize_t nargs, PyObject *kwnames,
                                       const struct plait_task_options *options, bool push,
                                       uint32_t **late);
/* Starts threads for what waits, as many as are wanted. */
int plait_crew_start_wanted(struct plait_crew *crew);
void plait_crew_close(struct plait_crew *crew);
/* Cancels what nobody has begun, or fails it with an exception. */
void plait_crew_clear_line(struct plait_crew *crew, PyObject *exception);
/* Asks all running tasks to stop: list of their names, or NULL with an exception set. */
PyObject *plait_crew_stop_running(struct plait_crew *crew);
PyObject *plait_crew_wait_room(PyObject *self, PyObject *ignored);
/* False with an exception set when the crew cannot be used by this process. */
bool plait_crew_usable(struct plait_crew *crew);
PyObject *plait_task_name(struct plait_future *f);

/* threadrun.c: the threads' own. */
PyObject *plait_crew_run(PyObject *self, PyObject *ignored);
PyObject *plait_crew_watch(PyObject *self, PyObject *ignored);

#endif /* PLAIT_THREAD_H */
