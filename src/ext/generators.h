/* generators.h - the scheduler of plait.generators: what its files share.
 *
 *   generators.c          the scheduler: stepping, finishing, closing
 *   generators_io.c       sockets: trying, waiting, descriptors that were closed
 *   generators_wait.c     waiting for time, tasks and futures, and giving up a wait
 *   generators_request.c  Request, and the functions that make one
 *   generators_task.c     Task: what people and asyncio see of it
 *
 * All of it runs in the loop's thread, with the interpreter attached.
 */
#ifndef PLAIT_EXT_GENERATORS_H
#define PLAIT_EXT_GENERATORS_H

#include "loop.h"

#include <structmember.h>

enum gen_kind {
    GEN_RECV,
    GEN_RECV_INTO,
    GEN_SEND,
    GEN_ACCEPT,
    GEN_CONNECT,
    GEN_SLEEP,
    GEN_WAIT,
    GEN_SPAWN,
    GEN_JOIN,
    GEN_TIMEOUT,
};

/* plait.generators.Request: what a generator yields. Immutable for its maker, who may yield
 * the same one again; the fields below `busy` belong to the task that waits for it. */
typedef struct {
    PyObject_HEAD
    PyObject *target; /* socket, future, generator, task; for timeout a request or generator */
    PyObject *arg;    /* bytes to send, buffer, address, name; else NULL */
    double seconds;   /* sleep and timeout; infinite for none */
    Py_ssize_t n;     /* most bytes to receive */
    uint8_t kind;
    bool shield; /* wait: the future is not cancelled with the wait */
    bool busy;
    bool has_view;
    Py_ssize_t sent;
    Py_buffer view;
} RequestObject;

enum gen_state {
    GEN_READY,   /* its op is in the ready queue, or about to be */
    GEN_RUNNING, /* the generator runs */
    GEN_WAITING, /* for `request` */
    GEN_DONE,
};

/* plait.generators.Task. The loop's list of live tasks owns one reference to it, until it is
 * done and no op of it (post, timer) is in the loop's hands: so ops own nothing. */
typedef struct task_object {
    PyObject_HEAD
    struct pl_post post;      /* its place in the ready queue; a post where that has no memory */
    struct pl_timer timer;    /* the end of a sleep or a timeout */
    LoopObject *loop;         /* owns */
    struct task_object *prev; /* the list of live tasks, oldest first; borrows */
    struct task_object *next;
    PyObject *gen;          /* owns; NULL when done */
    PyObject *context;      /* owns; NULL when done */
    PyObject *name;         /* owns */
    PyObject *value;        /* owns; what the next step sends, or the result */
    PyObject *exc;          /* owns; what the next step throws, or the exception it ended with */
    PyObject *source;       /* owns; the task that `exc` is from: seen when thrown in; or NULL */
    RequestObject *request; /* owns; what it waits for */
    /* How it waits: at most one of these three is set. */
    struct gen_fd *fd;          /* borrows */
    struct task_object *joined; /* borrows: the request, or `owns_joined`, keeps it alive */
    PyObject *waiter;           /* owns; the callback that a future has */
    PyObject *future;           /* owns; the future that has it */
    /* Tasks that wait for this one, in the order of coming, linked by theirs. */
    struct task_object *first_joiner;
    struct task_object *last_joiner;
    struct task_object *prev_joiner;
    struct task_object *next_joiner;
    PyObject *callbacks; /* owns; list of (function, context), or NULL */
    PyObject *weakrefs;
    uint32_t stale_timers; /* expired ones in the ready queue that mean nothing any more */
    uint8_t state;
    uint8_t refusals; /* yields of a generator that was being closed */
    bool listed;      /* in the list of live tasks */
    bool queued;      /* post's op is in the loop's hands */
    bool timed;       /* timer is started, or expired and not run */
    bool owns_joined; /* `joined` was started for this task by timeout, and is owned */
    bool fresh;       /* has not been stepped */
    bool closing;     /* to be closed at its next step */
    bool exiting;     /* GeneratorExit has been thrown in */
    bool cancelled;   /* ended by that */
    bool retrieved;   /* someone has seen the exception */
    bool blocking;    /* asyncio's handshake */
} TaskObject;

/* What the loop knows of a descriptor that generators have waited for. It stays registered
 * with the poller when nobody waits, and gives way to anyone else who wants the descriptor
 * (pl_io.idle). The memory lasts as long as the loop and serves every socket that gets the
 * number: a weak reference tells which one it stands for. */
struct gen_fd {
    struct pl_io io;
    PyObject *weak;     /* owns; a weak reference to the socket, or NULL */
    PyObject *held;     /* borrows; the socket while somebody is sure to keep it, else NULL */
    PyObject *given;    /* owns; the last message that was received, or NULL: see keep_given */
    TaskObject *reader; /* borrows; live while they wait */
    TaskObject *writer;
    uint32_t hint;   /* how much the last receive brought */
    bool dry;        /* a receive now would find nothing, as far as we know */
    bool connecting; /* writer waits for a connection */
};

struct gen_loop {
    TaskObject *first; /* live tasks, oldest first; owns one reference to each */
    TaskObject *last;
    TaskObject *running;
    struct gen_fd **fds; /* owns, and each in it; indexed by descriptor */
    uint32_t nfds;
    uint32_t waiting_fds;  /* tasks that wait for a descriptor */
    uint64_t steps;        /* of generators, ever */
    uint64_t swept_at;     /* steps at the last sweep */
    struct pl_timer sweep; /* see generators_io.c */
    LoopObject *loop;      /* borrows */
    bool closing;
};

/* What became of a request. */
enum gen_outcome {
    GEN_FAILED = -1, /* an exception is set, to be thrown in */
    GEN_BLOCKED = 0, /* the task waits */
    GEN_GOT = 1,     /* *value is there */
    GEN_AGAIN = 2,   /* the task is to be queued again, and gets None then */
};

/* generators.c */
/* The loop's scheduler, made at first use; NULL with an exception set. */
struct gen_loop *plait_generators_of(LoopObject *loop);
/* A new task in the ready queue; borrows all. name may be NULL. */
TaskObject *plait_gen_start(LoopObject *loop, PyObject *gen, PyObject *name);
/* 0 when gen is a generator that nobody has started; else -1 with an exception that names
 * `what`, the function that was given it. */
int plait_gen_check(const char *what, PyObject *gen);
/* Queues a task that has `value` or `exc`. Cannot fail. */
void plait_gen_enqueue(TaskObject *t);
/* The task's wait is over (see plait_gen_unhook): runs it now. */
void plait_gen_step(TaskObject *t);
/* Moves the exception that is set to t->exc. */
void plait_gen_take_error(TaskObject *t);
/* Closes now a task that does not run, and before it those that it owns. */
void plait_gen_close_now(TaskObject *t);
/* Lets go of a task that has ended, unless the loop still has an op of it. */
void plait_gen_release(TaskObject *t);
/* The loop's part: see loop.c. close runs the generators' `finally` blocks, drop only lets
 * go. */
int plait_generators_visit(LoopObject *loop, visitproc visit, void *arg);
void plait_generators_close(LoopObject *loop);
void plait_generators_drop(LoopObject *loop);

/* generators_io.c */
enum gen_outcome plait_gen_io_begin(TaskObject *t, RequestObject *rq, PyObject **value);
/* t does not wait for its descriptor any more. */
void plait_gen_io_unhook(TaskObject *t);
/* After steps: sees to it that waits for descriptors closed meanwhile end. */
void plait_gen_io_watch_closing(struct gen_loop *g);

/* generators_wait.c */
enum gen_outcome plait_gen_begin(TaskObject *t, RequestObject *rq, PyObject **value);
/* Takes a waiting task out of what it waits for; t->request is dropped. `abandoned`: what it
 * waited for has not come, so a future is cancelled with the wait. */
void plait_gen_unhook(TaskObject *t, bool abandoned);
void plait_gen_tell_joiners(TaskObject *t);
void plait_gen_unlink_joiner(TaskObject *t);
int plait_gen_wait_types(PyObject *module, struct plait_state *state);

/* generators_request.c */
int plait_gen_request_type(PyObject *module, PyObject *functions, struct plait_state *state);
/* The request is done with: gives back what it held while it was busy. */
void plait_gen_request_end(RequestObject *rq);
/* The request behind a timeout, else itself. */
static inline RequestObject *plait_gen_inner(RequestObject *rq, struct plait_state *state)
{
    if (rq->kind == GEN_TIMEOUT && Py_IS_TYPE(rq->target, state->gen_request_type))
        return (RequestObject *)rq->target;
    return rq;
}

/* generators_task.c */
TaskObject *plait_gen_task_new(LoopObject *loop, PyObject *gen, PyObject *name);
/* Asks for a task's end at its next step. False when it is done. */
bool plait_gen_cancel(TaskObject *t);
/* Schedules the done callbacks. */
void plait_gen_call_back(TaskObject *t);
int plait_gen_task_type(PyObject *module, PyObject *functions, struct plait_state *state);
/* Adds functions, bound to the module, to `functions`, a namespace in it. */
int plait_gen_add_functions(PyObject *module, PyObject *functions, PyMethodDef *defs);
/* Sets the exception that a task which was cancelled gives those that join it. */
void plait_gen_set_cancelled(struct plait_state *state, PyObject *what);

#endif /* PLAIT_EXT_GENERATORS_H */
