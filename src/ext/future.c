/* future.c - the future of a pool's task: concurrent.futures.Future with its state in C.
 *
 * The base type here has the layout and the methods; the type that people see inherits from
 * it and from concurrent.futures.Future, so isinstance holds. What that class keeps in
 * Python (a condition, a list of waiters) is made when someone asks for it, and from then on
 * the state changes only with the condition held, as concurrent.futures.wait relies on.
 *
 * A result stays as it came, bytes or a block, until someone wants it: whoever collects
 * results for others spends no time in their pickles, and errors in them meet the right one.
 *
 * What the pool has to do for a future goes through the table of its kind, the keeper.
 *
 * `await` makes a future of the running loop and fills it in when the result comes. So any
 * loop can wait, several can, and cancelling a waiting task cancels the wait at once.
 */
#include "loop.h"
#include "pool.h"

#include <string.h>

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

PyObject *plait_take_exception(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (type == NULL)
        return NULL;
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        (void)PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
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

/* ---- decoding ---- */

static void decode_bytes(struct plait_state *state, struct plait_future *f, int kind,
                         const char *data, size_t len, PyObject *buffers)
{
    PyObject *value = NULL;
    if (kind == PLAIT_ATOMS) {
        if (plait_atoms_decode(data, len, &value, 1) == 0)
            PyErr_SetString(PyExc_RuntimeError, "a worker sent a damaged result");
    } else if (kind == PLAIT_ARRAYS) {
        if (plait_arrays_decode(state, data, len, buffers, &value, 1) == 0)
            PyErr_SetString(PyExc_RuntimeError, "a worker sent a damaged result");
    } else {
        value = plait_loads(state, data, len, buffers);
    }
    if (value != NULL && kind == PLAIT_EXCEPTION) {
        Py_SETREF(value, PyObject_CallFunctionObjArgs(state->decode_exception, value,
                                                      f->name == NULL ? Py_None : f->name, NULL));
        if (value != NULL && PyExceptionInstance_Check(value)) {
            if (f->exception != NULL) /* the task was stopped, and this is what it came to */
                PyException_SetCause(f->exception, value);
            else
                f->exception = value;
            return;
        }
        if (value != NULL)
            PyErr_SetString(PyExc_TypeError, "a worker's exception is none");
        Py_CLEAR(value);
    }
    if (value == NULL)
        f->exception = plait_take_exception();
    else
        f->result = value;
}

/* Turns what came into result or exception. Other threads wait for the one that does; what
 * it runs is the user's, and may take any time. */
static int decode(struct plait_state *state, struct plait_future *f)
{
    while (f->decoder != 0) {
        if (f->decoder == PyThread_get_thread_ident()) {
            PyErr_SetString(PyExc_RuntimeError,
                            "the result of a future was asked for while it was unpickled");
            return -1;
        }
        Py_BEGIN_ALLOW_THREADS struct timespec pause = {.tv_nsec = 100000};
        (void)nanosleep(&pause, NULL); /* being interrupted only means looking earlier */
        Py_END_ALLOW_THREADS if (PyErr_CheckSignals() < 0) return -1;
    }
    if (f->kind == 0)
        return 0;
    int kind = f->kind;
    PyObject *message = f->message;
    PyObject *block = f->block;
    PyObject *buffers = f->buffers;
    f->message = f->block = f->buffers = NULL;
    f->decoder = PyThread_get_thread_ident();
    f->kind = 0;
    if (block != NULL) {
        struct plait_block *b = (struct plait_block *)block;
        decode_bytes(state, f, kind, b->data, (size_t)b->size, buffers);
    } else {
        decode_bytes(state, f, kind, PyBytes_AS_STRING(message), (size_t)PyBytes_GET_SIZE(message),
                     buffers);
    }
    f->decoder = 0;
    Py_XDECREF(message);
    Py_XDECREF(block);
    Py_XDECREF(buffers);
    return 0;
}

/* ---- the end ---- */

void plait_future_end(struct plait_future *f, bool cancelled)
{
    /* The state comes before the destructors that fn's end may run: they must not find a
     * future that seems posted, on a slot that may have its next task already. */
    PyObject *fn = f->fn;
    f->fn = NULL;
    f->cancelling = cancelled;
    if (f->condition != NULL)
        f->state = PLAIT_SETTLING;
    else
        f->state = cancelled ? PLAIT_CANCELLED : PLAIT_FINISHED;
    Py_XDECREF(fn);
}

PyObject *plait_running_loop(struct plait_state *state)
{
    if (state->get_running_loop == NULL) {
        PyObject *events = PyImport_ImportModule("asyncio.events");
        if (events == NULL)
            return NULL;
        PyObject *get = PyObject_GetAttrString(events, "_get_running_loop");
        Py_DECREF(events);
        if (get == NULL)
            return NULL;
        /* The import may have let another thread come first. */
        Py_XSETREF(state->get_running_loop, get);
    }
    return PyObject_CallNoArgs(state->get_running_loop);
}

/* Fills in a future of a loop, in that loop's thread. -1 with an exception set. */
static int transfer(struct plait_state *state, struct plait_future *f, PyObject *target)
{
    PyObject *done = PyObject_CallMethodNoArgs(target, state->name_done);
    if (done == NULL)
        return -1;
    int is_done = PyObject_IsTrue(done);
    Py_DECREF(done);
    if (is_done != 0)
        return is_done < 0 ? -1 : 0;
    PyObject *told;
    if (f->state == PLAIT_CANCELLED) {
        told = PyObject_CallMethodNoArgs(target, state->name_cancel);
    } else {
        if (decode(state, f) < 0)
            return -1;
        if (f->exception != NULL)
            told = PyObject_CallMethodOneArg(target, state->name_set_exception, f->exception);
        else
            told = PyObject_CallMethodOneArg(target, state->name_set_result, f->result);
        if (told == NULL && f->exception != NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
            /* A loop's future refuses StopIteration. */
            PyErr_Clear();
            PyObject *error = PyObject_CallFunction(
                PyExc_RuntimeError, "s", "the task raised StopIteration, which cannot be awaited");
            if (error != NULL) {
                PyException_SetCause(error, Py_NewRef(f->exception));
                told = PyObject_CallMethodOneArg(target, state->name_set_exception, error);
                Py_DECREF(error);
            }
        }
    }
    Py_XDECREF(told);
    return told == NULL ? -1 : 0;
}

void plait_unraisable(PyObject *where)
{
    if (!PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        PyErr_WriteUnraisable(where);
        return;
    }
    PyErr_Clear();
    PyErr_SetInterrupt();
}

static void tell_loop(struct plait_state *state, struct plait_future *f, PyObject *pair)
{
    PyObject *loop = PyTuple_GET_ITEM(pair, 0);
    PyObject *target = PyTuple_GET_ITEM(pair, 1);
    PyObject *current = plait_running_loop(state);
    int error;
    if (current == NULL) {
        error = -1;
    } else if (current == loop) {
        error = transfer(state, f, target);
    } else {
        PyObject *method = PyObject_GetAttr((PyObject *)f, state->name_transfer);
        PyObject *args[] = {loop, method, target};
        PyObject *handle = NULL;
        if (method != NULL)
            handle = PyObject_VectorcallMethod(state->name_call_soon_threadsafe, args, 3, NULL);
        error = handle == NULL ? -1 : 0;
        Py_XDECREF(method);
        Py_XDECREF(handle);
        if (error < 0 && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
            /* That loop is closed: nobody waits there any more. */
            PyErr_Clear();
            error = 0;
        }
    }
    Py_XDECREF(current);
    if (error < 0)
        plait_unraisable(target);
}

/* Calls a done-callback. As documented for futures, an Exception is logged; -1 with anything
 * else set. */
static int call_back(PyObject *callback, PyObject *future)
{
    PyObject *told = PyObject_CallOneArg(callback, future);
    if (told != NULL) {
        Py_DECREF(told);
        return 0;
    }
    PyObject *error = plait_take_exception();
    PyObject *helpers = PyImport_ImportModule("plait._pool");
    if (helpers != NULL) {
        told = PyObject_CallMethod(helpers, "log_callback_error", "OO", future, error);
        Py_DECREF(helpers);
    }
    Py_XDECREF(error);
    Py_XDECREF(told);
    return told == NULL ? -1 : 0;
}

/* Leaves SETTLING with the condition held, and tells concurrent.futures.wait and the like. */
static int settle(struct plait_future *f)
{
    PyObject *entered;
    PyObject *interrupt = NULL;
    /* A signal's handler may raise here, in the main thread; but a future that stayed as it is
     * would keep its waiters for ever. So the exception is raised later. */
    while ((entered = PyObject_CallMethod(f->condition, "acquire", NULL)) == NULL) {
        PyObject *error = plait_take_exception();
        Py_XSETREF(interrupt, error);
        if (PyErr_GivenExceptionMatches(error, PyExc_Exception))
            break; /* no lock to be had at all: telling without it is better than not telling */
    }
    f->state = f->cancelling ? PLAIT_CANCELLED : PLAIT_FINISHED;
    const char *method = "add_result";
    if (f->cancelling)
        method = "add_cancelled";
    else if (f->exception != NULL || f->kind == PLAIT_EXCEPTION)
        method = "add_exception";
    for (Py_ssize_t i = 0; f->cf_waiters != NULL && i < PyList_GET_SIZE(f->cf_waiters); i++) {
        PyObject *waiter = Py_NewRef(PyList_GET_ITEM(f->cf_waiters, i));
        PyObject *told = PyObject_CallMethod(waiter, method, "O", f);
        if (told == NULL)
            plait_unraisable(waiter);
        Py_XDECREF(told);
        Py_DECREF(waiter);
    }
    if (entered != NULL) {
        static const char *const last[] = {"notify_all", "release"};
        for (size_t i = 0; i < PL_ARRAY_LEN(last); i++) {
            PyObject *told = PyObject_CallMethod(f->condition, last[i], NULL);
            if (told == NULL)
                plait_unraisable(f->condition);
            Py_XDECREF(told);
        }
        Py_DECREF(entered);
    }
    if (interrupt == NULL)
        return 0;
    PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
    Py_DECREF(interrupt);
    return -1;
}

void plait_future_notify(struct plait_state *state, struct plait_future *f)
{
    Py_INCREF(f);
    if (f->state == PLAIT_SETTLING) {
        if (settle(f) < 0)
            plait_unraisable((PyObject *)f);
        if (f->pool != NULL)
            f->keeper->wake(f->pool, f);
    }
    PyObject *waiters = f->waiters;
    PyObject *callbacks = f->callbacks;
    f->waiters = f->callbacks = NULL;
    Py_CLEAR(f->pool);
    for (Py_ssize_t i = 0; waiters != NULL && i < PyList_GET_SIZE(waiters); i++)
        tell_loop(state, f, PyList_GET_ITEM(waiters, i));
    for (Py_ssize_t i = 0; callbacks != NULL && i < PyList_GET_SIZE(callbacks); i++)
        if (call_back(PyList_GET_ITEM(callbacks, i), (PyObject *)f) < 0)
            plait_unraisable(PyList_GET_ITEM(callbacks, i));
    Py_XDECREF(waiters);
    Py_XDECREF(callbacks);
    Py_DECREF(f);
}

/* Whether call_soon_threadsafe of this loop is the one that loops of plait's are born with. */
static bool is_own_loop(struct plait_state *state, PyObject *loop)
{
    if (!PyObject_TypeCheck(loop, state->loop_type))
        return false;
    PyObject *method = PyObject_GetAttr(loop, state->name_call_soon_threadsafe);
    bool own = method != NULL && PyCFunction_Check(method) &&
               PyCFunction_GET_SELF(method) == loop &&
               PyCFunction_GET_FUNCTION(method) ==
                   (PyCFunction)(void (*)(void))plait_loop_call_soon_threadsafe;
    if (method == NULL)
        PyErr_Clear(); /* the ordinary way meets it again */
    Py_XDECREF(method);
    return own;
}

bool plait_future_leave(struct plait_state *state, struct plait_future *f, struct pl_loop **owed)
{
    if (!plait_future_done(f) || f->callbacks != NULL || f->waiters == NULL ||
        PyList_GET_SIZE(f->waiters) != 1)
        return false;
    PyObject *pair = PyList_GET_ITEM(f->waiters, 0);
    PyObject *loop = PyTuple_GET_ITEM(pair, 0);
    if (!is_own_loop(state, loop))
        return false;
    PyObject *method = PyObject_GetAttr((PyObject *)f, state->name_transfer);
    HandleObject *handle = NULL;
    if (method != NULL)
        handle = plait_loop_prepare_post((LoopObject *)loop, method, PyTuple_GET_ITEM(pair, 1));
    Py_XDECREF(method);
    if (handle == NULL) {
        PyErr_Clear(); /* as above */
        return false;
    }
    PyObject *waiters = f->waiters;
    f->waiters = NULL;
    Py_CLEAR(f->pool);
    struct pl_loop *core = &((LoopObject *)loop)->core;
    *owed = pl_loop_leave(core, &handle->post) ? core : NULL;
    /* The handle has the loop, its future, and f: what goes here is no last reference. */
    Py_DECREF(waiters);
    return true;
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
    return decode(state, f);
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
        if (call_back(callback, self) < 0)
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
    if (state == NULL || transfer(state, FUTURE(self), target) < 0)
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
        if (target != NULL && transfer(state, FUTURE(self), target) < 0)
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
    if (state == NULL || (plait_future_done(f) && decode(state, f) < 0))
        return NULL;
    return Py_NewRef(f->result != NULL ? f->result : Py_None);
}

static PyObject *future_get_exception(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_state *state = state_of(self);
    struct plait_future *f = FUTURE(self);
    if (state == NULL || (plait_future_done(f) && decode(state, f) < 0))
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

static PyObject *future_task_name(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_future *f = FUTURE(self);
    if (f->name != NULL)
        return Py_NewRef(f->name);
    if (f->fn == NULL)
        Py_RETURN_NONE;
    PyObject *name = PyObject_GetAttrString(f->fn, "__qualname__");
    if (name == NULL) {
        PyErr_Clear();
        name = PyObject_Repr(f->fn);
    }
    return name;
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
    if (state == NULL || decode(state, f) < 0)
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
     "Returns:\n    bool: whether it is cancelled, or will be; False when it has ended."},
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
