/* future_end.c - the end of a future: its result decoded, and everyone told.
 *
 * A result stays as it came, bytes or a block, until someone wants it: whoever collects
 * results for others spends no time in their pickles, and errors in them meet the right one.
 *
 * Sections: exceptions, decoding, the end.
 */
#include "future_end.h"

#include "loop.h"

#include <string.h>

/* ---- exceptions ---- */

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

int plait_future_decode(struct plait_state *state, struct plait_future *f)
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

int plait_future_transfer(struct plait_state *state, struct plait_future *f, PyObject *target)
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
        if (plait_future_decode(state, f) < 0)
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
        error = plait_future_transfer(state, f, target);
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

int plait_future_call_back(PyObject *callback, PyObject *future)
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
        if (plait_future_call_back(PyList_GET_ITEM(callbacks, i), (PyObject *)f) < 0)
            plait_unraisable(PyList_GET_ITEM(callbacks, i));
    Py_XDECREF(waiters);
    Py_XDECREF(callbacks);
    Py_DECREF(f);
}

bool plait_future_leave(struct plait_state *state, struct plait_future *f, struct pl_loop **owed)
{
    if (!plait_future_done(f) || f->callbacks != NULL || f->waiters == NULL ||
        PyList_GET_SIZE(f->waiters) != 1)
        return false;
    PyObject *pair = PyList_GET_ITEM(f->waiters, 0);
    PyObject *loop = PyTuple_GET_ITEM(pair, 0);
    if (!plait_loop_is_own(state, loop))
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
