/* call.c - one call of a task, to be awaited.
 *
 * A call that ran inline holds its value or its error, and awaiting it is over at once: no
 * future, no turn of the loop. One that was placed elsewhere passes on to what runs there.
 */
#include "call.h"

#include "stop.h"

struct call {
    PyObject_HEAD
    PyObject *value;           /* owns; NULL before the end, and when there is an error */
    PyObject *error;           /* owns; an exception instance */
    PyObject *inner;           /* owns; what to await when it was placed elsewhere */
    PyObject *fn;              /* owns; for messages */
    struct plait_state *state; /* borrows: the type keeps the module */
    bool seen;                 /* the error has been looked at */
};

#define CALL(o) ((struct call *)(o))

PyObject *plait_take_error(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL && value != NULL)
        (void)PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

static void raise_error(PyObject *error)
{
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
}

/* Raises the error where the call is awaited. A StopIteration would pass for the end there, and
 * its value for the call's: so, as in a generator, it becomes the cause of a RuntimeError. */
static void raise_awaited(struct call *call)
{
    call->seen = true;
    if (!PyErr_GivenExceptionMatches(call->error, PyExc_StopIteration)) {
        raise_error(call->error);
        return;
    }
    PyObject *error = PyObject_CallFunction(
        PyExc_RuntimeError, "s", "the task raised StopIteration, which cannot be awaited");
    if (error == NULL)
        return;
    PyException_SetCause(error, Py_NewRef(call->error));
    raise_error(error);
    Py_DECREF(error);
}

/* A call that runs elsewhere is awaited through what runs there; only who takes the Call for an
 * iterator gets here. */
static PyObject *not_ended(void)
{
    PyErr_SetString(PyExc_TypeError, "a plait.Call that has not ended is no iterator: await it");
    return NULL;
}

static PyObject *call_next(PyObject *self)
{
    struct call *call = CALL(self);
    if (call->inner != NULL)
        return not_ended();
    if (call->error != NULL) {
        raise_awaited(call);
        return NULL;
    }
    if (call->value == Py_None)
        return NULL; /* the end, with None */
    plait_stop_raise(call->state, call->value);
    return NULL;
}

static PySendResult call_send(PyObject *self, PyObject *Py_UNUSED(sent), PyObject **result)
{
    struct call *call = CALL(self);
    *result = NULL;
    if (call->inner != NULL) {
        (void)not_ended();
        return PYGEN_ERROR;
    }
    if (call->error != NULL) {
        raise_awaited(call);
        return PYGEN_ERROR;
    }
    *result = Py_NewRef(call->value);
    return PYGEN_RETURN;
}

static PyObject *call_await(PyObject *self)
{
    struct call *call = CALL(self);
    if (call->inner == NULL)
        return Py_NewRef(self);
    return PyObject_CallMethodNoArgs(call->inner, call->state->str_dunder_await);
}

static PyObject *call_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct call *call = CALL(self);
    return call->inner == NULL ? Py_NewRef(Py_True)
                               : PyObject_CallMethod(call->inner, "done", NULL);
}

static PyObject *call_cancel(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct call *call = CALL(self);
    return call->inner == NULL ? Py_NewRef(Py_False)
                               : PyObject_CallMethod(call->inner, "cancel", NULL);
}

static PyObject *call_result(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct call *call = CALL(self);
    if (nargs > 1)
        return PyErr_Format(PyExc_TypeError, "result() takes at most 1 argument (%zd given)",
                            nargs);
    if (call->inner != NULL)
        return PyObject_CallMethod(call->inner, "result", "O", nargs == 1 ? args[0] : Py_None);
    if (call->error != NULL) {
        call->seen = true;
        raise_error(call->error);
        return NULL;
    }
    return Py_NewRef(call->value);
}

static PyObject *call_where(PyObject *self, void *Py_UNUSED(closure))
{
    struct call *call = CALL(self);
    return call->inner == NULL ? PyUnicode_FromString("inline")
                               : PyObject_GetAttrString(call->inner, "where");
}

static PyObject *call_repr(PyObject *self)
{
    struct call *call = CALL(self);
    if (call->inner != NULL)
        return PyUnicode_FromFormat("<plait.Call of %R: %R>", call->fn, call->inner);
    if (call->error != NULL)
        return PyUnicode_FromFormat("<plait.Call of %R: inline, raised %s>", call->fn,
                                    Py_TYPE(call->error)->tp_name);
    return PyUnicode_FromFormat("<plait.Call of %R: inline, returned %s>", call->fn,
                                call->value == NULL ? "nothing" : Py_TYPE(call->value)->tp_name);
}

static int call_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(CALL(self)->value);
    Py_VISIT(CALL(self)->error);
    Py_VISIT(CALL(self)->inner);
    Py_VISIT(CALL(self)->fn);
    return 0;
}

static int call_clear(PyObject *self)
{
    Py_CLEAR(CALL(self)->value);
    Py_CLEAR(CALL(self)->error);
    Py_CLEAR(CALL(self)->inner);
    Py_CLEAR(CALL(self)->fn);
    return 0;
}

/* An error that nobody has looked at is told, not lost. */
static void call_finalize(PyObject *self)
{
    struct call *call = CALL(self);
    if (call->error == NULL || call->seen)
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    call->seen = true;
    raise_error(call->error);
    PyErr_WriteUnraisable(call->fn);
    PyErr_Restore(type, value, traceback);
}

static void call_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (CALL(self)->error != NULL && PyObject_CallFinalizerFromDealloc(self) < 0)
        return;
    PyObject_GC_UnTrack(self);
    struct plait_state *state = CALL(self)->state;
    plait_stop_forget(state);
    (void)call_clear(self);
    /* One whose finalizer has run would not be finalized again. A state that is being cleared has
     * no type any more. */
    if (!PyObject_GC_IsFinalized(self) && state->call_type == type &&
        plait_free_list_park(&state->budget.calls, self))
        return;
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef call_methods[] = {
    {"done", call_done, METH_NOARGS, "done($self, /)\n--\n\nWhether the call has ended."},
    {"cancel", call_cancel, METH_NOARGS,
     "cancel($self, /)\n--\n\nCancel the call where its strand can.\n\n"
     "Returns:\n    bool: whether it will not give a result; False for one that ran inline."},
    {"result", (PyCFunction)(void (*)(void))call_result, METH_FASTCALL,
     "result($self, timeout=None, /)\n--\n\nWait for the end in this thread; return the value.\n\n"
     "Args:\n    timeout: seconds to wait at most; None waits for ever.\n\n"
     "Raises:\n    TimeoutError: it was not done in time.\n"
     "    BaseException: what the function raised."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef call_getset[] = {
    {"where", call_where, NULL, "Where it was placed: \"inline\", \"thread\" or \"process\".",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot call_slots[] = {
    {Py_tp_dealloc, call_dealloc},
    {Py_tp_finalize, call_finalize},
    {Py_tp_traverse, call_traverse},
    {Py_tp_clear, call_clear},
    {Py_tp_methods, call_methods},
    {Py_tp_getset, call_getset},
    {Py_tp_repr, call_repr},
    {Py_tp_iter, PyObject_SelfIter}, /* `yield from` asks for it */
    {Py_tp_iternext, call_next},
    {Py_am_await, call_await},
    {Py_am_send, call_send},
    {Py_tp_doc, "One call of a task: await it, as often as you like."},
    {0, NULL},
};

static PyType_Spec call_spec = {
    .name = "plait.Call",
    .basicsize = sizeof(struct call),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = call_slots,
};

PyObject *plait_call_new(struct plait_state *state, PyObject *fn, PyObject *value, PyObject *error,
                         PyObject *inner)
{
    struct call *call = (struct call *)plait_free_list_new(&state->budget.calls, state->call_type);
    if (call == NULL) {
        Py_XDECREF(value);
        Py_XDECREF(error);
        Py_XDECREF(inner);
        return NULL;
    }
    call->value = value;
    call->error = error;
    call->inner = inner;
    call->fn = Py_NewRef(fn);
    call->state = state;
    call->seen = false;
    PyObject_GC_Track(call);
    return (PyObject *)call;
}

int plait_call_exec(PyObject *module, struct plait_state *state)
{
    state->call_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &call_spec, NULL);
    if (state->call_type == NULL)
        return -1;
    state->str_dunder_await = PyUnicode_InternFromString("__await__");
    if (state->str_dunder_await == NULL)
        return -1;
    return PyModule_AddObjectRef(module, "Call", (PyObject *)state->call_type);
}
