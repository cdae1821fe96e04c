/* future.c - the future of a pool's task: concurrent.futures.Future with its state in C.
 *
 * The base type here has the layout and the methods; the type that people see inherits from
 * it and from concurrent.futures.Future, so isinstance holds. What that class keeps in
 * Python (a condition, a list of waiters) is made when someone asks for it, and from then on
 * the state changes only with the condition held, as concurrent.futures.wait relies on.
 *
 * future_end.c decodes results and tells everyone of the end.
 *
 * What the pool has to do for a future goes through the table of its kind, the keeper.
 *
 * `await` makes a future of the running loop and fills it in when the result comes. So any
 * loop can wait, several can, and cancelling a waiting task cancels the wait at once.
 */
#include "future_end.h"

#define FUTURE(o) ((struct plait_future *)(o))

static struct plait_state *state_of(PyObject *self)
{
    return plait_state_of_type(Py_TYPE(self));
}

struct plait_future *plait_future_new(struct plait_state *state, const struct plait_keeper *keeper)
{
    struct plait_future *f = FUTURE(state->future_type->tp_alloc(state->future_type, 0));
    if (f != NULL)
        f->keeper = keeper;
    return f;
}

/* What the keeper does may run any code, the end of the future included, which gives up its
 * reference to the pool: each call holds one of its own. */
static int keeper_cancel(struct plait_future *f)
{
    PyObject *pool = Py_NewRef(f->pool);
    int cancelled = f->keeper->cancel(pool, f);
    Py_DECREF(pool);
    return cancelled;
}

/* Sees to it that the end is noticed without a thread that waits. */
static int keeper_watch(struct plait_future *f)
{
    if (plait_future_done(f) || f->pool == NULL)
        return 0;
    PyObject *pool = Py_NewRef(f->pool);
    int error = f->keeper->watch(pool, f);
    Py_DECREF(pool);
    return error;
}

/* ---- methods ---- */

/* The one optional argument `timeout` in seconds, as a deadline of the monotonic clock, -1
 * for none. */
static int parse_timeout(const char *name, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *kwnames, int64_t *deadline)
{
    PyObject *timeout = Py_None;
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (nargs + nkw > 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most 1 argument (%zd given)", name,
                     nargs + nkw);
        return -1;
    }
    if (nargs + nkw == 1)
        timeout = args[0];
    if (nkw == 1 &&
        PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "timeout") != 0) {
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", name,
                     PyTuple_GET_ITEM(kwnames, 0));
        return -1;
    }
    *deadline = -1;
    if (timeout == Py_None)
        return 0;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (!(seconds > 0))
        seconds = 0;
    if (seconds < 1e9)
        *deadline = pl_sys_default()->now() + (int64_t)(seconds * 1e9);
    return 0;
}

/* Waits until f is done and decoded. -1 with an exception set. */
static int await_end(struct plait_state *state, struct plait_future *f, int64_t deadline)
{
    if (!plait_future_done(f)) {
        if (f->pool == NULL) {
            PyErr_SetString(PyExc_RuntimeError, "this future belongs to no pool");
            return -1;
        }
        PyObject *pool = Py_NewRef(f->pool);
        int error = f->keeper->wait(pool, f, deadline);
        Py_DECREF(pool);
        if (error < 0)
            return -1;
    }
    if (f->state == PLAIT_CANCELLED) {
        PyErr_SetNone(state->cancelled_error);
        return -1;
    }
    return plait_future_decode(state, f);
}

static PyObject *future_result(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    struct plait_future *f = FUTURE(self);
    struct plait_state *state = state_of(self);
    int64_t deadline;
    if (state == NULL || parse_timeout("result", args, nargs, kwnames, &deadline) < 0)
        return NULL;
    if (await_end(state, f, deadline) < 0)
        return NULL;
    if (f->exception != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(f->exception), f->exception);
        return NULL;
    }
    return Py_XNewRef(f->result);
}

static PyObject *future_exception(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames)
{
    struct plait_future *f = FUTURE(self);
    struct plait_state *state = state_of(self);
    int64_t deadline;
    if (state == NULL || parse_timeout("exception", args, nargs, kwnames, &deadline) < 0)
        return NULL;
    if (await_end(state, f, deadline) < 0)
        return NULL;
    return Py_NewRef(f->exception != NULL ? f->exception : Py_None);
}

static PyObject *future_cancel(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    struct plait_future *f = FUTURE(self);
    (void)args;
    (void)nargs;
    (void)kwnames; /* asyncio passes msg=, which nobody here reads */
    if (plait_future_done(f))
        return PyBool_FromLong(f->state == PLAIT_CANCELLED);
    if (f->state == PLAIT_SETTLING)
        return PyBool_FromLong(f->cancelling);
    if (f->pool == NULL)
        Py_RETURN_FALSE;
    int cancelled = keeper_cancel(f);
    return cancelled < 0 ? NULL : PyBool_FromLong(cancelled);
}

static bool is_running(const struct plait_future *f)
{
    if (f->state == PLAIT_SETTLING)
        return !f->cancelling;
    return !plait_future_done(f) && f->pool != NULL && f->keeper->running(f->pool, f);
}

static PyObject *future_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(FUTURE(self)->state == PLAIT_CANCELLED);
}

static PyObject *future_running(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(is_running(FUTURE(self)));
}

static PyObject *future_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_future *f = FUTURE(self);
    /* Someone who asks again and again without waiting must see the end, too. */
    if (!plait_future_done(f) && f->pool != NULL && f->keeper->peek != NULL) {
        PyObject *pool = Py_NewRef(f->pool);
        f->keeper->peek(pool);
        Py_DECREF(pool);
    }
    return PyBool_FromLong(plait_future_done(f));
}

/* Makes the list of an audience. Making one may run finalizers, and these may end the future:
 * so the caller looks at its state afterwards. */
static int need_list(PyObject **list)
{
    if (*list != NULL)
        return 0;
    PyObject *made = PyList_New(0);
    if (made == NULL)
        return -1;
    if (*list == NULL)
        *list = made;
    else
        Py_DECREF(made);
    return 0;
}

static PyObject *future_add_done_callback(PyObject *self, PyObject *callback)
{
    struct plait_future *f = FUTURE(self);
    if (!plait_future_done(f) && need_list(&f->callbacks) < 0)
        return NULL;
    if (plait_future_done(f)) {
        if (plait_future_call_back(callback, self) < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    if (PyList_Append(f->callbacks, callback) < 0 || keeper_watch(f) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *future_transfer(PyObject *self, PyObject *target)
{
    struct plait_state *state = state_of(self);
    if (state == NULL || plait_future_transfer(state, FUTURE(self), target) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* A loop's future that waited for this one is done: if it was cancelled, so are we. */
static PyObject *future_waiter_done(PyObject *self, PyObject *target)
{
    struct plait_future *f = FUTURE(self);
    if (plait_future_done(f))
        Py_RETURN_NONE;
    PyObject *cancelled = PyObject_CallMethod(target, "cancelled", NULL);
    int was = cancelled == NULL ? -1 : PyObject_IsTrue(cancelled);
    Py_XDECREF(cancelled);
    if (was < 0)
        return NULL;
    if (was != 0 && f->pool != NULL && f->state < PLAIT_SETTLING && keeper_cancel(f) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *plait_future_for_loop(struct plait_state *state, struct plait_future *f, PyObject *loop)
{
    PyObject *target = PyObject_CallMethodNoArgs(loop, state->name_create_future);
    if (target == NULL)
        return NULL;
    PyObject *pair = PyTuple_Pack(2, loop, target);
    PyObject *method = PyObject_GetAttr((PyObject *)f, state->name_waiter_done);
    PyObject *added = NULL;
    int error = -1;
    if (pair == NULL || method == NULL || need_list(&f->waiters) < 0)
        goto out;
    if (plait_future_done(f)) {
        /* Who awaits work of a pool gives way to the loop once at least. */
        PyObject *transfer_to = PyObject_GetAttr((PyObject *)f, state->name_transfer);
        if (transfer_to != NULL)
            added = PyObject_CallMethod(loop, "call_soon", "OO", transfer_to, target);
        Py_XDECREF(transfer_to);
        error = added == NULL ? -1 : 0;
        goto out;
    }
    if (PyList_Append(f->waiters, pair) < 0)
        goto out;
    added = PyObject_CallMethodOneArg(target, state->name_add_done_callback, method);
    if (added == NULL)
        goto out;
    error = 0;
    if (f->pool != NULL && f->keeper->attach != NULL) {
        PyObject *pool = Py_NewRef(f->pool);
        error = f->keeper->attach(pool, loop);
        Py_DECREF(pool);
    }
    if (error == 0)
        error = keeper_watch(f);
out:
    Py_XDECREF(pair);
    Py_XDECREF(method);
    Py_XDECREF(added);
    if (error < 0)
        Py_CLEAR(target);
    return target;
}

static PyObject *future_await(PyObject *self)
{
    struct plait_state *state = state_of(self);
    PyObject *loop = state == NULL ? NULL : plait_running_loop(state);
    if (loop == NULL)
        return NULL;
    if (loop == Py_None) {
        Py_DECREF(loop);
        PyErr_SetString(PyExc_RuntimeError, "a future is awaited, but no event loop is running");
        return NULL;
    }
    PyObject *target;
    if (plait_future_done(FUTURE(self))) {
        /* As with any future: there is nothing to wait for. */
        target = PyObject_CallMethodNoArgs(loop, state->name_create_future);
        if (target != NULL && plait_future_transfer(state, FUTURE(self), target) < 0)
            Py_CLEAR(target);
    } else {
        target = plait_future_for_loop(state, FUTURE(self), loop);
    }
    Py_DECREF(loop);
    if (target == NULL)
        return NULL;
    PyObject *iterator = PyObject_CallMethod(target, "__await__", NULL);
    Py_DECREF(target);
    return iterator;
}

static PyObject *future_get_state(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_future *f = FUTURE(self);
    const char *name = "PENDING";
    if (f->state == PLAIT_FINISHED)
        name = "FINISHED";
    else if (f->state == PLAIT_CANCELLED)
        name = "CANCELLED_AND_NOTIFIED";
    else if (is_running(f))
        name = "RUNNING";
    return PyUnicode_FromString(name);
}

static PyObject *future_get_result(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_state *state = state_of(self);
    struct plait_future *f = FUTURE(self);
    if (state == NULL || (plait_future_done(f) && plait_future_decode(state, f) < 0))
        return NULL;
    return Py_NewRef(f->result != NULL ? f->result : Py_None);
}

static PyObject *future_get_exception(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_state *state = state_of(self);
    struct plait_future *f = FUTURE(self);
    if (state == NULL || (plait_future_done(f) && plait_future_decode(state, f) < 0))
        return NULL;
    return Py_NewRef(f->exception != NULL ? f->exception : Py_None);
}

static PyObject *future_get_condition(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_state *state = state_of(self);
    struct plait_future *f = FUTURE(self);
    if (state == NULL)
        return NULL;
    if (f->condition == NULL) {
        PyObject *condition = PyObject_CallNoArgs(state->condition_type);
        if (condition == NULL)
            return NULL;
        if (f->condition == NULL) /* making one may have let another thread in */
            f->condition = condition;
        else
            Py_DECREF(condition);
    }
    return Py_NewRef(f->condition);
}

static PyObject *future_get_waiters(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_future *f = FUTURE(self);
    if (need_list(&f->cf_waiters) < 0 || keeper_watch(f) < 0)
        return NULL;
    return Py_NewRef(f->cf_waiters);
}

static PyObject *future_get_callbacks(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_future *f = FUTURE(self);
    return f->callbacks == NULL ? PyList_New(0) : Py_NewRef(f->callbacks);
}

static PyObject *future_repr(PyObject *self)
{
    struct plait_future *f = FUTURE(self);
    PyObject *state = future_get_state(self, NULL);
    if (state == NULL)
        return NULL;
    PyObject *text;
    if (f->state == PLAIT_FINISHED && f->exception != NULL)
        text = PyUnicode_FromFormat("<plait.Future at %p state=finished raised %s>", self,
                                    Py_TYPE(f->exception)->tp_name);
    else if (f->state == PLAIT_FINISHED && f->result != NULL)
        text = PyUnicode_FromFormat("<plait.Future at %p state=finished returned %s>", self,
                                    Py_TYPE(f->result)->tp_name);
    else
        text = PyUnicode_FromFormat("<plait.Future at %p state=%U>", self, state);
    Py_DECREF(state);
    return text;
}

/* Sets an exception from outside of a worker: its death, or the end of the pool. */
static PyObject *future_fail(PyObject *self, PyObject *exception)
{
    struct plait_future *f = FUTURE(self);
    /* Only its pool calls this, for a task that nobody has any more. */
    if (plait_future_done(f) || f->exception != NULL || f->pool == NULL)
        Py_RETURN_FALSE;
    f->exception = Py_NewRef(exception);
    PyObject *pool = Py_NewRef(f->pool);
    f->keeper->failed(pool, f);
    Py_DECREF(pool);
    Py_RETURN_TRUE;
}

PyObject *plait_function_name(PyObject *function)
{
    PyObject *fn = Py_NewRef(function); /* its own code may end the future that has it */
    PyObject *name = PyObject_GetAttrString(fn, "__qualname__");
    if (name == NULL || !PyUnicode_Check(name)) {
        PyErr_Clear();
        Py_XDECREF(name);
        name = PyObject_Repr(fn);
    }
    /* A future that could not end for want of a name would be lost, and its worker's seat too. */
    if (name == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
        name = PyUnicode_FromFormat("an object of the type %s", Py_TYPE(fn)->tp_name);
    }
    Py_DECREF(fn);
    return name;
}

static PyObject *future_task_name(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_future *f = FUTURE(self);
    if (f->name != NULL)
        return Py_NewRef(f->name);
    if (f->fn == NULL)
        Py_RETURN_NONE;
    return plait_function_name(f->fn);
}

static PyObject *future_stopped(PyObject *self, void *Py_UNUSED(closure))
{
    switch (FUTURE(self)->stopped) {
    case PLAIT_STOPPED_QUEUED:
        return PyUnicode_FromString("queued");
    case PLAIT_STOPPED_EXCEPTION:
        return PyUnicode_FromString("exception");
    case PLAIT_STOPPED_KILLED:
        return PyUnicode_FromString("killed");
    default:
        Py_RETURN_NONE;
    }
}

static PyObject *future_get_order(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_future *f = FUTURE(self);
    return Py_NewRef(f->order != NULL ? f->order : Py_None);
}

/* What the last try of a resting task came to, for its pool. */
static PyObject *future_peek_exception(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_state *state = state_of(self);
    struct plait_future *f = FUTURE(self);
    if (state == NULL || plait_future_decode(state, f) < 0)
        return NULL;
    return Py_NewRef(f->exception != NULL ? f->exception : Py_None);
}

/* What the future will fail with once its task has stopped. */
static PyObject *future_get_prepared(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_future *f = FUTURE(self);
    return Py_NewRef(f->exception != NULL ? f->exception : Py_None);
}

static PyObject *future_get_ended(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(plait_future_done(FUTURE(self))); /* done() would look for news */
}

static PyObject *future_get_stop(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(FUTURE(self)->stop);
}

static int future_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct plait_future *f = FUTURE(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(f->pool);
    Py_VISIT(f->fn);
    Py_VISIT(f->name);
    Py_VISIT(f->order);
    Py_VISIT(f->buffers);
    Py_VISIT(f->result);
    Py_VISIT(f->exception);
    Py_VISIT(f->callbacks);
    Py_VISIT(f->waiters);
    Py_VISIT(f->condition);
    Py_VISIT(f->cf_waiters);
    return 0;
}

static int future_clear(PyObject *self)
{
    struct plait_future *f = FUTURE(self);
    f->kind = 0;
    Py_CLEAR(f->pool);
    Py_CLEAR(f->fn);
    Py_CLEAR(f->name);
    Py_CLEAR(f->order);
    Py_CLEAR(f->message);
    Py_CLEAR(f->block);
    Py_CLEAR(f->buffers);
    Py_CLEAR(f->result);
    Py_CLEAR(f->exception);
    Py_CLEAR(f->callbacks);
    Py_CLEAR(f->waiters);
    Py_CLEAR(f->condition);
    Py_CLEAR(f->cf_waiters);
    return 0;
}

static void future_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    /* A queued future is owned by its queue, so no blocks are left here. */
    (void)future_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define METHOD(f) (PyCFunction)(void (*)(void)) f

static PyMethodDef future_methods[] = {
    {"result", METHOD(future_result), METH_FASTCALL | METH_KEYWORDS,
     "result($self, timeout=None)\n--\n\nWait for the task and return what it returned.\n\n"
     "Args:\n    timeout: seconds to wait at most; None waits for ever.\n\n"
     "Raises:\n    TimeoutError: the task was not done in time.\n"
     "    CancelledError: the task was cancelled.\n    WorkerDied: its worker process ended."},
    {"exception", METHOD(future_exception), METH_FASTCALL | METH_KEYWORDS,
     "exception($self, timeout=None)\n--\n\nWait for the task and return what it raised, or "
     "None.\n\nArgs:\n    timeout: seconds to wait at most; None waits for ever."},
    {"cancel", METHOD(future_cancel), METH_FASTCALL | METH_KEYWORDS,
     "cancel($self, /, msg=None)\n--\n\nCancel the task; stop it if it runs.\n\n"
     "A task that runs in a worker process gets the exception TaskStopped; if it goes on for\n"
     "longer than the pool's grace, its process is killed. The future ends when the task has\n"
     "really stopped, and until then cancelled() is False although this has returned True;\n"
     "`stopped` then says how. Wait for it by result(), which raises CancelledError.\n\n"
     "Returns:\n    bool: whether it is cancelled, or will be; False when it has ended. A task "
     "with\n"
     "    retries has no further try then."},
    {"cancelled", future_cancelled, METH_NOARGS,
     "cancelled($self, /)\n--\n\nWhether the task was cancelled, and has stopped if it ran."},
    {"running", future_running, METH_NOARGS,
     "running($self, /)\n--\n\nWhether a worker has begun the task and not ended it."},
    {"done", future_done, METH_NOARGS,
     "done($self, /)\n--\n\nWhether the task was cancelled or has ended."},
    {"add_done_callback", future_add_done_callback, METH_O,
     "add_done_callback($self, fn, /)\n--\n\nCall fn(future) when the task ends; at once if it "
     "has."},
    {"_transfer", future_transfer, METH_O, NULL},
    {"_waiter_done", future_waiter_done, METH_O, NULL},
    {"_fail", future_fail, METH_O, NULL},
    {"_peek_exception", future_peek_exception, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef future_getset[] = {
    {"_state", future_get_state, NULL, NULL, NULL},
    {"_result", future_get_result, NULL, NULL, NULL},
    {"_exception", future_get_exception, NULL, NULL, NULL},
    {"_condition", future_get_condition, NULL, NULL, NULL},
    {"_waiters", future_get_waiters, NULL, NULL, NULL},
    {"_done_callbacks", future_get_callbacks, NULL, NULL, NULL},
    {"_task_name", future_task_name, NULL, NULL, NULL},
    {"_order", future_get_order, NULL, NULL, NULL},
    {"_ended", future_get_ended, NULL, NULL, NULL},
    {"_prepared", future_get_prepared, NULL, NULL, NULL},
    {"_stop", future_get_stop, NULL, NULL, NULL},
    {"stopped", future_stopped, NULL,
     "How the task was stopped: \"queued\" (it never began), \"exception\" (raised in it), "
     "\"killed\" (with its worker process), or None.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot future_slots[] = {
    {Py_tp_dealloc, future_dealloc}, {Py_tp_traverse, future_traverse},
    {Py_tp_clear, future_clear},     {Py_tp_methods, future_methods},
    {Py_tp_getset, future_getset},   {Py_tp_repr, future_repr},
    {Py_am_await, future_await},     {0, NULL},
};

static PyType_Spec future_spec = {
    .name = "plait._core.FutureBase",
    .basicsize = sizeof(struct plait_future),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = future_slots,
};

int plait_future_exec(PyObject *module, struct plait_state *state)
{
    PyObject *threading = PyImport_ImportModule("threading");
    if (threading == NULL)
        return -1;
    state->condition_type = PyObject_GetAttrString(threading, "Condition");
    Py_DECREF(threading);
    if (state->condition_type == NULL)
        return -1;
    state->future_base_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &future_spec, NULL);
    if (state->future_base_type == NULL)
        return -1;
    PyObject *futures = PyImport_ImportModule("concurrent.futures");
    if (futures == NULL)
        return -1;
    int error = -1;
    PyObject *base = PyObject_GetAttrString(futures, "Future");
    PyObject *type = NULL;
    state->cancelled_error = PyObject_GetAttrString(futures, "CancelledError");
    state->invalid_state = PyObject_GetAttrString(futures, "InvalidStateError");
    Py_DECREF(futures);
    if (base == NULL || state->cancelled_error == NULL || state->invalid_state == NULL)
        goto out;
    /* Without __slots__ every instance would get a dictionary, and nobody needs one. */
    type = PyObject_CallFunction(
        (PyObject *)&PyType_Type, "s(OO){s:(s),s:s,s:s}", "Future", state->future_base_type, base,
        "__slots__", "__weakref__", "__module__", "plait", "__doc__",
        "The future of a task in a pool: a concurrent.futures.Future that can be awaited.");
    if (type == NULL)
        goto out;
    state->future_type = (PyTypeObject *)type;
    error = PyModule_AddObjectRef(module, "Future", type);
out:
    Py_XDECREF(base);
    return error;
}
