/* threadtask.c - the tasks of a thread pool: posting, stopping, ending, waiting.
 *
 * The line and the sleeping are the core's (pl_thread.h). A thread takes a task, calls the
 * function (threadrun.c), ends the future. Two rules keep the interpreter's lock from being fought
 * for:
 *
 * - A thread that has ended a task calls those who wait for it only when it has let go of the
 *   lock, if the line is empty, and it does not let go as long as there are tasks. So one who
 *   waits finds the lock free; or, while there is more to do, gets it when the interpreter's
 *   switch interval says so.
 * - One who begins to wait says so to the core when it has let go (pl_crew_await), since a
 *   thread that spins for a job holds back until then.
 *
 * Stopping. A running task is asked to stop by a flag, which plait.stop_requested() reads,
 * and by an asynchronous exception in its thread, TaskStopped. The exception must not hit
 * what runs next in that thread. Sending is done with the interpreter's lock held, and only
 * while worker->task is the task. When the function has returned, its thread takes
 * worker->task away and then takes back what may have been sent and not been raised yet; it
 * has the lock from the return on, and runs no Python in between.
 *
 * A task that was asked to stop ends as stopped, whatever it returns: cancel() has said so.
 *
 * Sections: names and errors, the end of a task, stopping, posting, what futures ask.
 */
#include "budget.h"
#include "channel.h"
#include "thread.h"

#include <errno.h>

/* ---- names and errors ---- */

bool plait_crew_usable(struct plait_crew *crew)
{
    if (crew->forked) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this pool belongs to the parent process: make a new one after fork");
        return false;
    }
    if (!crew->open) {
        PyErr_SetString(PyExc_RuntimeError, "this pool is not open");
        return false;
    }
    return true;
}

static bool accepts(struct plait_crew *crew)
{
    if (!plait_crew_usable(crew))
        return false;
    if (crew->broken != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(crew->broken), crew->broken);
        return false;
    }
    if (crew->closed) {
        PyErr_SetString(PyExc_RuntimeError,
                        crew->exiting ? "cannot schedule new futures after interpreter shutdown"
                                      : "cannot schedule new futures after shutdown");
        return false;
    }
    return true;
}

PyObject *plait_task_name(struct plait_future *f)
{
    if (f->name != NULL)
        return Py_NewRef(f->name);
    if (f->fn == NULL)
        return PyUnicode_FromString("?");
    return plait_function_name(f->fn);
}

/* ---- the end of a task ---- */

static void call_sleepers(struct pl_berth *berth)
{
    while (berth != NULL) {
        struct pl_berth *next = berth->next; /* the berth is its sleeper's right after */
        pl_berth_call(pl_sys_default(), berth);
        berth = next;
    }
}

/* Gives up what the function was called with. Runs any code. */
static void drop_arguments(struct plait_task *task)
{
    Py_ssize_t n = task->nargs;
    task->nargs = task->npos = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        Py_CLEAR(task->args[1 + i]);
    Py_CLEAR(task->kwnames);
    Py_CLEAR(task->context);
}

static void free_task(struct plait_task *task)
{
    drop_arguments(task);
    PyMem_Free(task);
}

/* Someone who sleeps in result(). */
struct sleeper {
    struct pl_berth berth;
    bool claimed; /* off the list: a call is under way, or was made */
};

static struct pl_berth *claim_sleepers(struct plait_future *f)
{
    struct pl_berth *list = f->sleepers;
    f->sleepers = NULL;
    for (struct pl_berth *b = list; b != NULL; b = b->next)
        PL_CONTAINER_OF(b, struct sleeper, berth)->claimed = true;
    return list;
}

void plait_crew_pay(struct plait_crew_worker *me)
{
    struct pl_berth *sleepers = me->owed;
    struct pl_loop *loop = me->owed_to;
    me->owed = NULL;
    me->owed_to = NULL;
    call_sleepers(sleepers);
    if (loop != NULL)
        pl_loop_call(loop);
}

/* Ends a future whose outcome is stored, and tells everyone; but the threads that sleep for it,
 * and a loop, are left to `me`, to be called when it pays (NULL: they are called here). No Python
 * runs in between. Takes over the task's reference. */
static void end_future(struct plait_crew *crew, struct plait_future *f, bool cancelled,
                       struct plait_crew_worker *me)
{
    if (cancelled)
        crew->cancelled++;
    plait_future_end(f, cancelled);
    bool audience = plait_future_has_audience(f);
    if (f->state != PLAIT_SETTLING) {
        struct pl_berth *sleepers = claim_sleepers(f);
        if (me != NULL && !audience)
            me->owed = sleepers;
        else
            call_sleepers(sleepers);
    }
    if (!audience)
        Py_CLEAR(f->pool);
    else if (me == NULL || !plait_future_leave(crew->state, f, &me->owed_to))
        plait_future_notify(crew->state, f);
    Py_DECREF(f);
}

static PyObject *timeout_error(struct plait_crew *crew, struct plait_future *f,
                               struct plait_task *task, PyObject *cause)
{
    PyObject *name = plait_task_name(f);
    PyObject *error = NULL;
    if (name != NULL)
        error = PyObject_CallFunction(crew->state->task_timeout, "Od", name,
                                      (double)task->timeout_ns / 1e9);
    if (error == NULL)
        error = plait_take_exception();
    else if (cause != NULL)
        PyException_SetCause(error, Py_NewRef(cause));
    Py_XDECREF(name);
    return error;
}

void plait_task_end(struct plait_crew *crew, struct plait_crew_worker *me, struct plait_task *task,
                    PyObject *result, PyObject *error)
{
    struct plait_future *f = task->future;
    PyObject *extra = NULL;
    drop_arguments(task);
    if (task->asked == PLAIT_ASKED_TIMEOUT)
        extra = timeout_error(crew, f, task, error);
    /* From here to end_future no Python runs: `asked` is final. */
    f->task = NULL;
    bool cancelled = task->asked == PLAIT_ASKED_CANCEL;
    if (task->asked != PLAIT_ASKED_NOTHING && error != NULL &&
        PyErr_GivenExceptionMatches(error, crew->state->task_stopped))
        f->stopped = PLAIT_STOPPED_EXCEPTION;
    if (extra != NULL) {
        f->exception = extra;
        extra = NULL;
        crew->timed_out++;
    } else if (!cancelled) {
        f->exception = error;
        f->result = result;
        error = result = NULL;
    }
    if (!cancelled) {
        crew->done++;
        crew->failed += f->exception != NULL;
    }
    me->done++;
    end_future(crew, f, cancelled, me);
    PyMem_Free(task);
    if (error != NULL || result != NULL)
        plait_crew_pay(me); /* what goes now may run Python */
    Py_XDECREF(error);
    Py_XDECREF(result);
}

/* ---- stopping ---- */

void plait_task_ask_stop(struct plait_crew *crew, struct plait_task *task, enum plait_asked why)
{
    if (task->asked == PLAIT_ASKED_NOTHING)
        task->asked = (uint8_t)why;
    struct plait_crew_worker *worker = task->worker;
    if (worker == NULL || worker->task != task || crew->gentle)
        return;
    task->sent = true;
    plait_budget_step_aside(crew->state, worker->ident, true);
    (void)PyThreadState_SetAsyncExc(worker->ident, crew->state->task_stopped);
    plait_waiter_kick(crew->state, worker->ident);
}

/* A task that has been taken out of the line. */
static void end_unbegun(struct plait_crew *crew, struct plait_task *task, PyObject *exception)
{
    struct plait_future *f = task->future;
    f->task = NULL;
    if (exception != NULL) {
        f->exception = Py_NewRef(exception);
        crew->done++;
        crew->failed++;
    } else {
        f->stopped = PLAIT_STOPPED_QUEUED;
    }
    end_future(crew, f, exception == NULL, NULL);
    free_task(task);
}

void plait_crew_clear_line(struct plait_crew *crew, PyObject *exception)
{
    struct pl_job *job;
    while ((job = pl_crew_revoke(&crew->core)) != NULL)
        end_unbegun(crew, PL_CONTAINER_OF(job, struct plait_task, job), exception);
}

PyObject *plait_crew_stop_running(struct plait_crew *crew)
{
    PyObject *names = PyList_New(0);
    if (names == NULL)
        return NULL;
    /* Asking runs no Python; naming does. So all are asked first. */
    for (struct plait_crew_worker *w = crew->workers; w != NULL; w = w->next)
        if (w->task != NULL)
            plait_task_ask_stop(crew, w->task, PLAIT_ASKED_CANCEL);
    for (Py_ssize_t at = 0;; at++) {
        struct plait_crew_worker *w = crew->workers;
        for (Py_ssize_t i = 0; w != NULL && i < at; i++)
            w = w->next;
        if (w == NULL)
            return names;
        if (w->task == NULL)
            continue;
        PyObject *name = plait_task_name(w->task->future);
        if (name == NULL || PyList_Append(names, name) < 0) {
            Py_XDECREF(name);
            Py_DECREF(names);
            return NULL;
        }
        Py_DECREF(name);
    }
}

void plait_crew_close(struct plait_crew *crew)
{
    crew->closed = true;
    if (crew->open && !crew->forked)
        pl_crew_close(&crew->core);
}

/* ---- posting ---- */

/* Starts a thread that the core counts already. An interrupt may end that at any point, with
 * the thread there or about to be: so there is a ticket, a list of one, and whoever takes the
 * item out of it decides, the thread when it comes or this when it is told of a failure. */
static int start_thread(struct plait_crew *crew)
{
    PyObject *ticket = Py_BuildValue("[O]", Py_None);
    PyObject *told =
        ticket == NULL ? NULL : PyObject_CallFunctionObjArgs(crew->start, crew, ticket, NULL);
    if (told != NULL) {
        Py_DECREF(told);
        Py_DECREF(ticket);
        return 0;
    }
    PyObject *error = plait_take_exception();
    bool comes = ticket != NULL && PyList_GET_SIZE(ticket) == 0;
    if (!comes) {
        /* Taking it cannot fail: nothing is allocated to empty a list. */
        if (ticket != NULL)
            (void)PyList_SetSlice(ticket, 0, 1, NULL);
        crew->unstarted++;
        (void)pl_crew_unstart(&crew->core);
    }
    Py_XDECREF(ticket);
    /* The threads that there are will do the work; statistics() tells. */
    if (crew->core.threads == 0 || !PyErr_GivenExceptionMatches(error, PyExc_Exception)) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
        return -1;
    }
    Py_DECREF(error);
    return 0;
}

int plait_crew_start_wanted(struct plait_crew *crew)
{
    while (pl_crew_want(&crew->core))
        if (start_thread(crew) < 0)
            return -1;
    return 0;
}

struct plait_crew_worker *plait_crew_worker_here(struct plait_state *state)
{
    return PyThread_tss_get(&state->thread.worker_key);
}

static struct plait_task *new_task(struct plait_crew *crew, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *kwnames, const struct plait_task_options *options)
{
    Py_ssize_t npos = nargs - 1; /* args[0] is the function */
    Py_ssize_t total = npos + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    struct plait_task *task =
        PyMem_Malloc(sizeof(*task) + (size_t)(total + 1) * sizeof(PyObject *));
    if (task == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    *task = (struct plait_task){
        .timeout_ns = options->timeout_ns,
        .retries = options->retries,
        .priority = options->priority,
        .npos = npos,
        .nargs = total,
    };
    task->args[0] = NULL;
    for (Py_ssize_t i = 0; i < total; i++)
        task->args[1 + i] = Py_NewRef(args[1 + i]);
    task->kwnames = total > npos ? Py_NewRef(kwnames) : NULL;
    if (crew->carries && (task->context = PyContext_CopyCurrent()) == NULL) {
        free_task(task);
        return NULL;
    }
    return task;
}

/* Whether this thread may block: 1, 0 when an event loop runs in it, -1 on error. */
static int no_loop_runs(struct plait_state *state)
{
    PyObject *loop = plait_running_loop(state);
    if (loop == NULL)
        return -1;
    Py_DECREF(loop);
    return loop == Py_None;
}

/* Waits until there is room, or the crew is closed. -1 with what a signal's handler raised. */
static int wait_room(struct plait_crew *crew)
{
    int error;
    Py_BEGIN_ALLOW_THREADS error = pl_crew_wait_room(&crew->core, -1);
    Py_END_ALLOW_THREADS return error == -EINTR && PyErr_CheckSignals() < 0 ? -1 : 0;
}

PyObject *plait_crew_wait_room(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_crew *crew = PLAIT_CREW(self);
    if (!plait_crew_usable(crew) || wait_room(crew) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Puts the task into the line; waits for room when it has to. */
static int post(struct plait_crew *crew, struct plait_task *task, bool push, uint32_t **late)
{
    for (;;) {
        int posted = late == NULL
                         ? pl_crew_post(&crew->core, &task->job, task->priority, push)
                         : pl_crew_post_late(&crew->core, &task->job, task->priority, push, late);
        if (posted >= 0)
            return posted;
        if (posted == -ENOMEM) {
            PyErr_NoMemory();
            return -1;
        }
        if (posted == PL_ECLOSED) {
            if (accepts(crew))
                PyErr_SetString(PyExc_RuntimeError, "cannot schedule new futures after shutdown");
            return -1;
        }
        int may_block = crew->refuses ? 0 : no_loop_runs(crew->state);
        if (may_block <= 0) {
            if (may_block == 0)
                PyErr_Format(crew->state->pool_full, "%u tasks are waiting already (max_pending)%s",
                             crew->core.room,
                             crew->refuses ? ""
                                           : ", and waiting for room would block this thread's "
                                             "event loop: use `await pool.submit_soon(fn, ...)`");
            return -1;
        }
        if (wait_room(crew) < 0 || !accepts(crew))
            return -1;
    }
}

struct plait_future *plait_crew_submit(struct plait_crew *crew, PyObject *const *args,
                                       Py_ssize_t nargs, PyObject *kwnames,
                                       const struct plait_task_options *options, bool push,
                                       uint32_t **late)
{
    if (!accepts(crew))
        return NULL;
    if (!PyCallable_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "fn must be callable, not %.200s", Py_TYPE(args[0])->tp_name);
        return NULL;
    }
    struct plait_task *task = new_task(crew, args, nargs, kwnames, options);
    if (task == NULL)
        return NULL;
    struct plait_future *f = plait_future_new(crew->state, &plait_crew_keeper);
    if (f == NULL) {
        free_task(task);
        return NULL;
    }
    f->fn = Py_NewRef(args[0]);
    f->name = Py_XNewRef(options->name);
    f->pool = Py_NewRef((PyObject *)crew);
    f->task = task;
    task->future = f;
    /* A thread of the crew's own must not wait for room that perhaps only it can make. */
    struct plait_crew_worker *own = plait_crew_worker_here(crew->state);
    push = push || (own != NULL && own->crew == crew);
    task->posted_at = plait_crew_now();
    Py_INCREF(f); /* the line's */
    int posted = post(crew, task, push, late);
    if (posted < 0) {
        Py_DECREF(f);
        goto fail;
    }
    crew->submitted++;
    if (posted == PL_START && start_thread(crew) < 0) {
        if (f->task == task && pl_crew_withdraw(&crew->core, &task->job)) {
            crew->submitted--;
            Py_DECREF(f);
            goto fail;
        }
        /* A thread has come and taken it: only an interrupt is still to be told of. */
        if (!PyErr_ExceptionMatches(PyExc_Exception)) {
            Py_DECREF(f);
            return NULL;
        }
        PyErr_Clear();
    }
    return f;
fail:
    f->task = NULL;
    Py_CLEAR(f->pool);
    Py_DECREF(f);
    free_task(task);
    return NULL;
}

/* ---- what futures ask ---- */

/* A signal that comes while this thread spins, or is about to sleep, has no sleep to interrupt.
 * So the first sleep has an end after which signals are looked for, and so has the first one
 * after each signal. It is long for the sake of the task: to look takes the interpreter's lock. */
#define FIRST_SLEEP_NS (PL_NSEC_PER_SEC / 20)

static int keeper_wait(PyObject *pool, struct plait_future *f, int64_t deadline)
{
    struct plait_crew *crew = PLAIT_CREW(pool);
    if (!plait_crew_usable(crew))
        return -1;
    struct sleeper me = {.claimed = false};
    pl_berth_prepare(&me.berth);
    me.berth.next = f->sleepers;
    f->sleepers = &me.berth;
    int result = 0;
    bool first = true;
    while (!plait_future_done(f)) {
        int64_t left = -1;
        if (deadline >= 0 && (left = deadline - plait_crew_now()) <= 0) {
            PyErr_SetNone(PyExc_TimeoutError);
            result = -1;
            break;
        }
        if (first && (left < 0 || left > FIRST_SLEEP_NS))
            left = FIRST_SLEEP_NS;
        int error;
        Py_BEGIN_ALLOW_THREADS if (first) error = pl_crew_await(&crew->core, &me.berth, left);
        else error = pl_berth_sleep(pl_sys_default(), &me.berth, left);
        Py_END_ALLOW_THREADS if (error < 0 && PyErr_CheckSignals() < 0)
        {
            result = -1;
            break;
        }
        first = error == -EINTR;
    }
    if (!me.claimed) {
        struct pl_berth **at = &f->sleepers;
        while (*at != &me.berth)
            at = &(*at)->next;
        *at = me.berth.next;
    } else if (!pl_berth_called(&me.berth)) {
        /* The call is under way, and must not find this frame gone. */
        Py_BEGIN_ALLOW_THREADS while (pl_berth_sleep(pl_sys_default(), &me.berth, -1) < 0) continue;
        Py_END_ALLOW_THREADS
    }
    return result;
}

static int keeper_cancel(PyObject *pool, struct plait_future *f)
{
    struct plait_crew *crew = PLAIT_CREW(pool);
    struct plait_task *task = f->task;
    if (crew->forked || task == NULL)
        return 0;
    if (f->state == PLAIT_QUEUED) {
        if (!pl_crew_withdraw(&crew->core, &task->job))
            return 0;
        end_unbegun(crew, task, NULL);
        return 1;
    }
    if (task->asked == PLAIT_ASKED_TIMEOUT) {
        plait_task_ask_stop(crew, task, PLAIT_ASKED_TIMEOUT); /* in case that the task caught it */
        return 0;                                             /* it ends as timed out */
    }
    plait_task_ask_stop(crew, task, PLAIT_ASKED_CANCEL);
    return 1;
}

static bool keeper_running(PyObject *Py_UNUSED(pool), const struct plait_future *f)
{
    return f->state == PLAIT_POSTED;
}

static int keeper_watch(PyObject *Py_UNUSED(pool), struct plait_future *Py_UNUSED(f))
{
    return 0; /* the thread that ends the task tells everyone */
}

static void keeper_wake(PyObject *Py_UNUSED(pool), struct plait_future *f)
{
    call_sleepers(claim_sleepers(f));
}

static void keeper_failed(PyObject *pool, struct plait_future *f)
{
    Py_INCREF(f);
    end_future(PLAIT_CREW(pool), f, false, NULL);
}

const struct plait_keeper plait_crew_keeper = {
    .wait = keeper_wait,
    .cancel = keeper_cancel,
    .running = keeper_running,
    .watch = keeper_watch,
    .wake = keeper_wake,
    .failed = keeper_failed,
};
