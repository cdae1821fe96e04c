/* threadrun.c - the life of a thread of the pool, and of the one that watches deadlines.
 *
 * A thread takes tasks as long as there are any and keeps the interpreter's lock meanwhile, as
 * threadtask.c tells with the rules for stopping, too. The watcher exists only while some running
 * task has a deadline, or had one seconds ago.
 */
#include "budget.h"
#include "thread.h"

#include <errno.h>

/* A thread that runs C functions only gives others the interpreter's lock so often. */
#define SWITCH_NS 5000000
/* The thread that watches deadlines ends when there were none for so long. */
#define WATCH_IDLE_NS (INT64_C(10) * PL_NSEC_PER_SEC)

/* ---- running ---- */

static void call_watcher(struct plait_crew *crew)
{
    struct pl_berth *berth = crew->watcher;
    crew->watcher = NULL;
    if (berth != NULL)
        pl_berth_call(pl_sys_default(), berth);
}

/* Sees to it that a thread watches deadlines. Runs Python: the task that needs it has not got
 * its deadline yet, for a stop would end this instead. */
static void need_watcher(struct plait_crew *crew)
{
    if (crew->watched)
        return;
    crew->watched = true;
    PyObject *told = PyObject_CallOneArg(crew->watch, (PyObject *)crew);
    if (told == NULL) {
        crew->watched = false;
        PyErr_WriteUnraisable((PyObject *)crew); /* the task runs without its timeout */
    }
    Py_XDECREF(told);
}

static void run_task(struct plait_crew *crew, struct plait_crew_worker *me, struct plait_task *task)
{
    struct plait_future *f = task->future;
    PyObject *fn = Py_NewRef(f->fn);
    PyObject *result;
    PyObject *error;
    int64_t now = plait_crew_now();
    plait_histogram_add(&crew->waits, now - task->posted_at);
    task->started_at = now;
    task->worker = me;
    f->state = PLAIT_POSTED;
    for (;;) {
        if (task->timeout_ns > 0) {
            need_watcher(crew);
            now = plait_crew_now();
            task->deadline = now + task->timeout_ns;
            if (task->deadline < crew->watch_until)
                call_watcher(crew);
        }
        result = NULL;
        if (task->asked != PLAIT_ASKED_NOTHING) {
            /* Asked for by what ran here, the last exception's destructors or the start of the
             * watcher, when nothing could be sent. */
            error = PyObject_CallNoArgs(crew->state->task_stopped);
            if (error == NULL)
                error = plait_take_exception();
            break;
        }
        me->task = task; /* from here on it may be stopped; no Python but the task's runs */
        if (task->context == NULL || PyContext_Enter(task->context) == 0) {
            result = PyObject_Vectorcall(fn, task->args + 1,
                                         (size_t)task->npos | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                         task->kwnames);
            if (result == NULL && task->kwnames != NULL)
                plait_hint_options(fn, task->kwnames);
            error = result == NULL ? plait_take_exception() : NULL;
            if (task->context != NULL && PyContext_Exit(task->context) < 0)
                PyErr_WriteUnraisable(fn);
        } else {
            error = plait_take_exception();
        }
        /* Nobody sends from here on; and what was sent is not to be raised in what follows. */
        me->task = NULL;
        task->deadline = 0;
        if (task->sent) {
            task->sent = false;
            (void)PyThreadState_SetAsyncExc(me->ident, NULL);
            plait_budget_step_aside(crew->state, me->ident, false);
        }
        now = plait_crew_now();
        if (error == NULL || task->retries == 0 || task->asked != PLAIT_ASKED_NOTHING ||
            crew->forked || !PyErr_GivenExceptionMatches(error, PyExc_Exception))
            break;
        task->retries--;
        crew->retried++;
        Py_CLEAR(error);
    }
    plait_histogram_add(&crew->runs, now - task->started_at);
    Py_DECREF(fn);
    plait_task_end(crew, me, task, result, error);
    me->ended_at = now;
}

/* False: the initializer failed, and the crew is broken. */
static bool initialize(struct plait_crew *crew)
{
    if (crew->initializer == NULL)
        return true;
    PyObject *told = PyObject_Call(crew->initializer, crew->initargs, NULL);
    if (told != NULL) {
        Py_DECREF(told);
        return true;
    }
    PyObject *error = plait_take_exception();
    PyObject *broken = PyObject_CallFunctionObjArgs(crew->fail, crew, error, NULL);
    Py_XDECREF(error);
    if (broken == NULL)
        broken = plait_take_exception();
    if (crew->broken == NULL)
        crew->broken = Py_NewRef(broken);
    plait_crew_close(crew);
    plait_crew_clear_line(crew, broken);
    Py_DECREF(broken);
    return false;
}

PyObject *plait_crew_run(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_crew *crew = PLAIT_CREW(self);
    struct plait_state *state = crew->state;
    if (!plait_crew_usable(crew))
        return NULL;
    if (plait_crew_worker_here(state) != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a thread of a pool cannot be one of another");
        return NULL;
    }
    struct plait_crew_worker me = {
        .crew = crew,
        .ident = PyThread_get_thread_ident(),
        .attached_at = plait_crew_now(),
        /* Not what it has seen: it may be in excess from the start. */
        .generation = crew->generation - 1,
    };
    if (PyThread_tss_set(&state->thread.worker_key, &me) != 0) {
        (void)pl_crew_unstart(&crew->core);
        return PyErr_NoMemory();
    }
    me.next = crew->workers;
    me.at = &crew->workers;
    if (me.next != NULL)
        me.next->at = &me.next;
    crew->workers = &me;
    (void)initialize(crew);
    for (;;) {
        if (crew->forked)
            break;
        if (me.generation != crew->generation) {
            me.generation = crew->generation;
            if (pl_crew_excess(&crew->core))
                break;
        }
        struct pl_job *job = pl_crew_take(&crew->core);
        if (job != NULL) {
            plait_crew_pay(&me);
            run_task(crew, &me, PL_CONTAINER_OF(job, struct plait_task, job));
            if (crew->forked)
                break;
            /* Before anyone learns of the end: who posts next finds that a thread comes. */
            pl_crew_look(&crew->core);
            if (me.ended_at - me.attached_at > SWITCH_NS) {
                Py_BEGIN_ALLOW_THREADS plait_crew_pay(&me);
                Py_END_ALLOW_THREADS me.attached_at = me.ended_at;
            }
            continue;
        }
        if (crew->closed && pl_crew_leave(&crew->core))
            break;
        int error;
        Py_BEGIN_ALLOW_THREADS plait_crew_pay(&me);
        error = pl_crew_rest(&crew->core, crew->idle_ns);
        Py_END_ALLOW_THREADS me.attached_at = plait_crew_now();
        if (error == -ETIMEDOUT && !crew->forked && pl_crew_leave(&crew->core))
            break;
    }
    plait_crew_pay(&me);
    if (!crew->forked) {
        *me.at = me.next;
        if (me.next != NULL)
            me.next->at = me.at;
        if (crew->closed && crew->workers == NULL)
            call_watcher(crew);
    }
    (void)PyThread_tss_set(&state->thread.worker_key, NULL); /* setting nothing needs no memory */
    Py_RETURN_NONE;
}

/* ---- deadlines ---- */

PyObject *plait_crew_watch(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_crew *crew = PLAIT_CREW(self);
    int64_t last = plait_crew_now(); /* when there was a deadline */
    while (!crew->forked) {
        int64_t now = plait_crew_now();
        int64_t first = INT64_MAX;
        for (struct plait_crew_worker *w = crew->workers; w != NULL; w = w->next) {
            if (w->task == NULL || w->task->deadline == 0 || w->task->asked != PLAIT_ASKED_NOTHING)
                continue;
            last = now;
            if (w->task->deadline <= now)
                plait_task_ask_stop(crew, w->task, PLAIT_ASKED_TIMEOUT);
            else if (w->task->deadline < first)
                first = w->task->deadline;
        }
        if ((crew->closed && crew->workers == NULL) || now - last > WATCH_IDLE_NS)
            break;
        struct pl_berth me;
        pl_berth_prepare(&me);
        crew->watcher = &me;
        crew->watch_until = first;
        int64_t left = first - now < WATCH_IDLE_NS ? first - now : WATCH_IDLE_NS;
        Py_BEGIN_ALLOW_THREADS(void) !pl_berth_sleep(pl_sys_default(), &me, left);
        Py_END_ALLOW_THREADS
            /* Calls are made with the interpreter's lock held: there is none under way. */
            if (crew->watcher == &me) crew->watcher = NULL;
    }
    crew->watched = false;
    crew->watch_until = 0;
    Py_RETURN_NONE;
}
