/* generators_wait.c - waiting for time, tasks and futures; and giving up a wait.
 *
 * Sections: outcomes; the timer; joining; futures; beginning and ending a wait; the type of
 * the callbacks that futures get.
 *
 * A task waits for one thing at a time, so the tasks that wait for tasks form chains. A join
 * that would close a circle is refused, and therefore no circle ever exists: every chain
 * ends in a task that runs or waits for something outside.
 */
#include "generators.h"
#include "pool.h"

#include <errno.h>
#include <math.h>

/* The callback that a future is given. Owns the task until it has been called. */
typedef struct {
    PyObject_HEAD
    TaskObject *task; /* owns; NULL once nobody waits */
    bool foreign;     /* the future may end in another thread */
} WaiterObject;

/* ---- the timer ---------------------------------------------------------- */

static void timer_run(struct pl_loop *core, struct pl_op *op);

/* Seconds from now as a deadline of the core; rounds up and clamps. */
static int64_t deadline_in(struct pl_loop *core, double seconds)
{
    int64_t now = pl_loop_now(core);
    double ns = ceil(seconds * 1e9);
    if (ns >= 9.2e18 - (double)now)
        return INT64_MAX;
    return ns <= 0 ? now : now + (int64_t)ns;
}

static int start_timer(TaskObject *t, double seconds)
{
    struct pl_loop *core = &t->loop->core;
    t->timer.op.run = timer_run;
    if (pl_timer_start(core, &t->timer, deadline_in(core, seconds)) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    t->timed = true;
    return 0;
}

static void stop_timer(TaskObject *t)
{
    if (!t->timed)
        return;
    t->timed = false;
    if (!pl_timer_stop(&t->loop->core, &t->timer))
        t->stale_timers++; /* its op is in the ready queue already, and runs for nothing */
}

static void set_timeout_error(const RequestObject *rq)
{
    PyObject *what = PyObject_Repr(rq->target);
    PyObject *seconds = PyFloat_FromDouble(rq->seconds);
    if (what != NULL && seconds != NULL)
        PyErr_Format(PyExc_TimeoutError, "%U took longer than %S seconds", what, seconds);
    Py_XDECREF(what);
    Py_XDECREF(seconds);
}

static void timer_run(struct pl_loop *core, struct pl_op *op)
{
    (void)core;
    TaskObject *t = PL_CONTAINER_OF(op, TaskObject, timer.op);
    if (t->stale_timers > 0) {
        t->stale_timers--;
        if (t->state == GEN_DONE && !t->queued)
            plait_gen_release(t);
        return;
    }
    t->timed = false;
    if (t->state != GEN_WAITING)
        return; /* told to close: it does not matter any more */
    RequestObject *rq = t->request;
    struct plait_state *state = t->loop->state;
    if (plait_gen_inner(rq, state)->kind == GEN_SLEEP &&
        (rq->kind == GEN_SLEEP || plait_gen_inner(rq, state)->seconds <= rq->seconds)) {
        plait_gen_unhook(t, false);
        plait_gen_step(t);
        return;
    }
    Py_INCREF(t);
    Py_INCREF(rq);
    set_timeout_error(rq);
    bool waits = t->request == rq; /* what it waits for may have a repr that ends the wait */
    Py_DECREF(rq);
    if (!waits) {
        PyErr_Clear();
        Py_DECREF(t);
        return;
    }
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    if (t->owns_joined) {
        /* Its end queues this task, with what it ended with; an error of its own comes before
         * the timeout. */
        plait_gen_close_now(t->joined);
        if (t->exc != NULL && !PyErr_GivenExceptionMatches(t->exc, state->gen_cancelled)) {
            Py_XDECREF(type);
            Py_XDECREF(exc);
            Py_XDECREF(tb);
            Py_DECREF(t);
            return;
        }
    }
    if (t->state == GEN_WAITING)
        plait_gen_unhook(t, true);
    PyErr_Restore(type, exc, tb);
    plait_gen_take_error(t);
    if (!t->queued)
        plait_gen_step(t);
    Py_DECREF(t);
}

/* ---- joining ------------------------------------------------------------ */

void plait_gen_set_cancelled(struct plait_state *state, PyObject *what)
{
    PyErr_Format(state->gen_cancelled, "%.200R was cancelled", what);
}

/* What a task that is DONE gives those that join it. */
static enum gen_outcome outcome_of_task(TaskObject *joined, PyObject **value)
{
    if (joined->cancelled) {
        plait_gen_set_cancelled(joined->loop->state, joined->name);
        return GEN_FAILED;
    }
    if (joined->exc != NULL) {
        joined->retrieved = true;
        PyErr_SetObject((PyObject *)Py_TYPE(joined->exc), joined->exc);
        return GEN_FAILED;
    }
    *value = Py_NewRef(joined->value);
    return GEN_GOT;
}

static void link_joiner(TaskObject *t, TaskObject *joined)
{
    t->joined = joined;
    t->next_joiner = NULL;
    t->prev_joiner = joined->last_joiner;
    if (joined->last_joiner != NULL)
        joined->last_joiner->next_joiner = t;
    else
        joined->first_joiner = t;
    joined->last_joiner = t;
}

void plait_gen_unlink_joiner(TaskObject *t)
{
    TaskObject *joined = t->joined;
    if (t->prev_joiner != NULL)
        t->prev_joiner->next_joiner = t->next_joiner;
    else
        joined->first_joiner = t->next_joiner;
    if (t->next_joiner != NULL)
        t->next_joiner->prev_joiner = t->prev_joiner;
    else
        joined->last_joiner = t->prev_joiner;
    t->prev_joiner = t->next_joiner = NULL;
    t->joined = NULL;
    if (t->owns_joined) {
        t->owns_joined = false;
        Py_DECREF(joined);
    }
}

static enum gen_outcome refuse_circle(TaskObject *t, TaskObject *joined)
{
    PyObject *text = PyUnicode_FromFormat("deadlock: %U waits for %U", t->name, joined->name);
    for (TaskObject *next = joined->joined; text != NULL && joined != t; next = joined->joined) {
        Py_SETREF(text, PyUnicode_FromFormat("%U, which waits for %U", text, next->name));
        joined = next;
    }
    if (text != NULL)
        PyErr_SetObject(t->loop->state->gen_deadlock, text);
    Py_XDECREF(text);
    return GEN_FAILED;
}

static enum gen_outcome begin_join(TaskObject *t, TaskObject *joined, PyObject **value)
{
    if (joined->state == GEN_DONE)
        return outcome_of_task(joined, value);
    if (joined->loop != t->loop) {
        PyErr_Format(PyExc_ValueError, "join(): the task %U belongs to another loop", joined->name);
        return GEN_FAILED;
    }
    for (TaskObject *next = joined; next != NULL; next = next->joined) {
        if (next == t)
            return refuse_circle(t, joined);
    }
    link_joiner(t, joined);
    return GEN_BLOCKED;
}

void plait_gen_tell_joiners(TaskObject *t)
{
    while (t->first_joiner != NULL) {
        TaskObject *joiner = t->first_joiner;
        PyObject *value = NULL;
        bool seen = t->retrieved;
        Py_INCREF(t);
        enum gen_outcome outcome = outcome_of_task(t, &value);
        /* Seen is the error when it is thrown in; a joiner that is closed before that does not
         * see it. */
        t->retrieved = seen;
        if (outcome == GEN_FAILED) {
            plait_gen_take_error(joiner);
            joiner->source = Py_NewRef(t);
        } else {
            Py_XSETREF(joiner->value, value);
        }
        plait_gen_unhook(joiner, false);
        plait_gen_enqueue(joiner);
        Py_DECREF(t);
    }
}

/* A generator under a timeout runs as a task of its own that this one owns. */
static enum gen_outcome begin_owned(TaskObject *t, PyObject *gen)
{
    if (plait_gen_check("timeout", gen) < 0)
        return GEN_FAILED;
    TaskObject *child = plait_gen_start(t->loop, gen, NULL);
    if (child == NULL)
        return GEN_FAILED;
    link_joiner(t, child);
    t->owns_joined = true;
    return GEN_BLOCKED;
}

/* ---- futures ------------------------------------------------------------ */

static int truth_of(PyObject *obj, PyObject *method)
{
    PyObject *answer = PyObject_CallMethodNoArgs(obj, method);
    int is = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return is;
}

/* What a future that is done gives those that wait for it. */
static enum gen_outcome outcome_of_future(struct plait_state *state, PyObject *future,
                                          PyObject **value)
{
    int cancelled = truth_of(future, state->gen_str_cancelled);
    if (cancelled != 0) {
        if (cancelled > 0)
            plait_gen_set_cancelled(state, future);
        return GEN_FAILED;
    }
    *value = PyObject_CallMethodNoArgs(future, state->gen_str_result);
    return *value == NULL ? GEN_FAILED : GEN_GOT;
}

static enum gen_outcome watch_future(TaskObject *t, PyObject *future, bool foreign)
{
    struct plait_state *state = t->loop->state;
    WaiterObject *w = PyObject_GC_New(WaiterObject, state->gen_waiter_type);
    if (w == NULL)
        return GEN_FAILED;
    w->task = (TaskObject *)Py_NewRef(t);
    w->foreign = foreign;
    PyObject_GC_Track(w);
    PyObject *added =
        PyObject_CallMethodOneArg(future, state->gen_str_add_done_callback, (PyObject *)w);
    if (added == NULL) {
        Py_CLEAR(w->task);
        Py_DECREF(w);
        return GEN_FAILED;
    }
    Py_DECREF(added);
    t->waiter = (PyObject *)w;
    t->future = Py_NewRef(future);
    return GEN_BLOCKED;
}

static enum gen_outcome begin_future(TaskObject *t, PyObject *future, PyObject **value)
{
    struct plait_state *state = t->loop->state;
    int done = truth_of(future, state->str_done);
    if (done != 0)
        return done < 0 ? GEN_FAILED : outcome_of_future(state, future, value);
    if (PyObject_TypeCheck(future, state->future_type)) {
        /* Its pool brings the result to this loop itself, without a thread in between. */
        PyObject *here =
            plait_future_for_loop(state, (struct plait_future *)future, (PyObject *)t->loop);
        if (here == NULL)
            return GEN_FAILED;
        enum gen_outcome outcome = begin_future(t, here, value);
        Py_DECREF(here);
        return outcome;
    }
    if (PyObject_TypeCheck(future, (PyTypeObject *)state->gen_cf_future))
        return watch_future(t, future, true);
    PyObject *loop = PyObject_CallMethodNoArgs(future, state->gen_str_get_loop);
    if (loop == NULL)
        return GEN_FAILED;
    bool ours = loop == (PyObject *)t->loop;
    Py_DECREF(loop);
    if (!ours) {
        PyErr_Format(PyExc_ValueError, "wait(): %R belongs to another loop", future);
        return GEN_FAILED;
    }
    return watch_future(t, future, false);
}

/* The wait for a future is given up: with it goes the future, as in asyncio, unless the
 * request says otherwise. `cancelled` is the one to cancel, or NULL; `future`, which has our
 * callback, may be its stand-in on this loop. */
static void leave_future(TaskObject *t, PyObject *future, PyObject *waiter, PyObject *cancelled)
{
    struct plait_state *state = t->loop->state;
    Py_CLEAR(((WaiterObject *)waiter)->task);
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyObject *told;
    if (!PyObject_TypeCheck(future, (PyTypeObject *)state->gen_cf_future)) {
        told = PyObject_CallMethodOneArg(future, state->gen_str_remove_done_callback, waiter);
        if (told == NULL)
            PyErr_WriteUnraisable(future);
        Py_XDECREF(told);
    }
    if (cancelled != NULL) {
        told = PyObject_CallMethodNoArgs(cancelled, state->gen_str_cancel);
        if (told == NULL)
            PyErr_WriteUnraisable(cancelled);
        Py_XDECREF(told);
    }
    PyErr_Restore(type, exc, tb);
}

/* ---- beginning and ending a wait ---------------------------------------- */

static enum gen_outcome begin_spawn(TaskObject *t, RequestObject *rq, PyObject **value)
{
    if (plait_gen_check("spawn", rq->target) < 0)
        return GEN_FAILED;
    *value = (PyObject *)plait_gen_start(t->loop, rq->target, rq->arg);
    return *value == NULL ? GEN_FAILED : GEN_GOT;
}

static enum gen_outcome begin_timeout(TaskObject *t, RequestObject *rq, PyObject **value)
{
    RequestObject *inner = plait_gen_inner(rq, t->loop->state);
    bool sleeps = inner != rq && inner->kind == GEN_SLEEP;
    if (sleeps && inner->seconds > rq->seconds)
        return start_timer(t, rq->seconds) < 0 ? GEN_FAILED : GEN_BLOCKED;
    enum gen_outcome outcome =
        inner == rq ? begin_owned(t, rq->target) : plait_gen_begin(t, inner, value);
    if (outcome != GEN_BLOCKED)
        return outcome;
    if (sleeps || isinf(rq->seconds) || start_timer(t, rq->seconds) == 0)
        return GEN_BLOCKED;
    /* Without memory for the timer it must not wait. */
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    if (t->owns_joined) {
        TaskObject *child = t->joined;
        Py_INCREF(child);
        plait_gen_unlink_joiner(t);
        (void)plait_gen_cancel(child);
        Py_DECREF(child);
    }
    t->request = (RequestObject *)Py_NewRef(rq);
    plait_gen_unhook(t, true);
    PyErr_Restore(type, exc, tb);
    return GEN_FAILED;
}

enum gen_outcome plait_gen_begin(TaskObject *t, RequestObject *rq, PyObject **value)
{
    if (PL_UNLIKELY(rq->busy)) {
        PyErr_Format(PyExc_RuntimeError, "%R is waited for by another task", rq);
        return GEN_FAILED;
    }
    switch ((enum gen_kind)rq->kind) {
    case GEN_RECV:
    case GEN_RECV_INTO:
    case GEN_SEND:
    case GEN_ACCEPT:
    case GEN_CONNECT:
        return plait_gen_io_begin(t, rq, value);
    case GEN_SLEEP:
        if (rq->seconds <= 0)
            return GEN_AGAIN;
        return start_timer(t, rq->seconds) < 0 ? GEN_FAILED : GEN_BLOCKED;
    case GEN_WAIT:
        return begin_future(t, rq->target, value);
    case GEN_SPAWN:
        return begin_spawn(t, rq, value);
    case GEN_JOIN:
        return begin_join(t, (TaskObject *)rq->target, value);
    case GEN_TIMEOUT:
        return begin_timeout(t, rq, value);
    }
    PyErr_SetString(PyExc_SystemError, "a request of no kind");
    return GEN_FAILED;
}

void plait_gen_unhook(TaskObject *t, bool abandoned)
{
    RequestObject *rq = t->request;
    t->request = NULL;
    stop_timer(t);
    if (t->fd != NULL)
        plait_gen_io_unhook(t);
    if (t->joined != NULL)
        plait_gen_unlink_joiner(t);
    PyObject *waiter = t->waiter;
    PyObject *future = t->future;
    t->waiter = t->future = NULL;
    RequestObject *inner = rq == NULL ? NULL : plait_gen_inner(rq, t->loop->state);
    if (waiter != NULL) {
        if (abandoned)
            leave_future(t, future, waiter, inner == NULL || inner->shield ? NULL : inner->target);
        Py_DECREF(waiter);
        Py_DECREF(future);
    }
    if (inner != NULL)
        plait_gen_request_end(inner);
    Py_XDECREF(rq);
}

/* ---- the callbacks that futures get ------------------------------------- */

/* The future is done. In another thread, or in the loop's own at any moment, the first call
 * only sends word to the loop; the second does the work. */
static PyObject *waiter_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    WaiterObject *w = (WaiterObject *)self;
    (void)kwargs;
    if (w->task == NULL || PyTuple_GET_SIZE(args) != 1)
        Py_RETURN_NONE;
    TaskObject *t = w->task;
    PyObject *future = PyTuple_GET_ITEM(args, 0);
    struct plait_state *state = t->loop->state;
    if (w->foreign) {
        w->foreign = false;
        PyObject *loop = Py_NewRef(t->loop);
        PyObject *handle = PyObject_CallMethodObjArgs(loop, state->gen_str_call_soon_threadsafe,
                                                      self, future, NULL);
        Py_DECREF(loop);
        if (handle == NULL && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
            PyErr_Clear(); /* the loop is closed, and its tasks with it */
            Py_RETURN_NONE;
        }
        return handle;
    }
    w->task = NULL;
    if (t->waiter == self && t->state == GEN_WAITING) {
        PyObject *value = NULL;
        enum gen_outcome outcome = outcome_of_future(state, future, &value);
        if (t->waiter != self || t->state != GEN_WAITING) {
            /* A future of the program's own class has ended the wait by its methods. */
            PyErr_Clear();
            Py_XDECREF(value);
        } else {
            if (outcome == GEN_FAILED)
                plait_gen_take_error(t);
            else
                Py_XSETREF(t->value, value);
            plait_gen_unhook(t, false);
            plait_gen_step(t);
        }
    }
    Py_DECREF(t);
    Py_RETURN_NONE;
}

static int waiter_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((WaiterObject *)self)->task);
    return 0;
}

static int waiter_clear(PyObject *self)
{
    Py_CLEAR(((WaiterObject *)self)->task);
    return 0;
}

static void waiter_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)waiter_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *waiter_repr(PyObject *self)
{
    TaskObject *t = ((WaiterObject *)self)->task;
    return t == NULL ? PyUnicode_FromString("<waiter of nobody>")
                     : PyUnicode_FromFormat("<waiter of task %U>", t->name);
}

static PyType_Slot waiter_slots[] = {
    {Py_tp_doc, (void *)"Resumes a generator when the future that it waits for is done."},
    {Py_tp_call, waiter_call},
    {Py_tp_dealloc, waiter_dealloc},
    {Py_tp_traverse, waiter_traverse},
    {Py_tp_clear, waiter_clear},
    {Py_tp_repr, waiter_repr},
    {0, NULL},
};

static PyType_Spec waiter_spec = {
    .name = "plait._core.GeneratorWaiter",
    .basicsize = sizeof(WaiterObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = waiter_slots,
};

int plait_gen_wait_types(PyObject *module, struct plait_state *state)
{
    state->gen_waiter_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &waiter_spec, NULL);
    return state->gen_waiter_type == NULL ? -1 : 0;
}
