/* generators_task.c - plait.generators.Task: a running generator, as people and asyncio see it.
 *
 * Towards asyncio a task is a future: it has the methods that asyncio calls and takes part in
 * its handshake (_asyncio_future_blocking), so await, gather, wait, shield and timeouts work
 * without an asyncio.Task or Future in between. Cancelling who awaits it cancels it, as usual.
 *
 * Sections: making; asking and telling; awaiting; debugging; the types; module functions.
 */
#include "generators.h"

#include "args.h"

#include <stddef.h>

#define TASK(o) ((TaskObject *)(o))

typedef struct {
    PyObject_HEAD
    TaskObject *task; /* owns; NULL when done */
    bool waited;
} AwaitObject;

/* ---- making ------------------------------------------------------------- */

TaskObject *plait_gen_task_new(LoopObject *loop, PyObject *gen, PyObject *name)
{
    PyTypeObject *type = loop->state->gen_task_type;
    TaskObject *t = TASK(type->tp_alloc(type, 0));
    if (t == NULL)
        return NULL;
    t->fresh = true;
    t->loop = (LoopObject *)Py_NewRef(loop);
    t->gen = Py_NewRef(gen);
    t->context = PyContext_CopyCurrent();
    t->name = name != NULL ? Py_NewRef(name) : PyObject_GetAttrString(gen, "__qualname__");
    if (t->context == NULL || t->name == NULL) {
        Py_DECREF(t);
        return NULL;
    }
    return t;
}

/* ---- asking and telling ------------------------------------------------- */

/* Tasks belong to the loop's thread: from another, one would be changed under its feet. */
static int check_thread(TaskObject *t, const char *method)
{
    PyObject *id = t->loop->thread_id;
    if (id == NULL || !PyLong_Check(id) || PyLong_AsUnsignedLong(id) == PyThread_get_thread_ident())
        return 0;
    PyErr_Format(PyExc_RuntimeError,
                 "%s() of a task can be called from its loop's thread only: use "
                 "loop.call_soon_threadsafe(task.%s, ...)",
                 method, method);
    return -1;
}

bool plait_gen_cancel(TaskObject *t)
{
    if (t->state == GEN_DONE)
        return false;
    if (t->closing)
        return true;
    t->closing = true;
    if (t->state == GEN_RUNNING)
        return true;
    /* What it owns is closed before it, at its turn. */
    if (t->state == GEN_WAITING && !t->owns_joined)
        plait_gen_unhook(t, true);
    plait_gen_enqueue(t);
    return true;
}

PyDoc_STRVAR(cancel_doc,
             "cancel($self, /, msg=None)\n--\n\n"
             "Close the generator at the next turn of the task.\n\n"
             "GeneratorExit is thrown in at its yield; its `finally` blocks run, and cannot wait:\n"
             "a yield in one raises RuntimeError there. To ask a generator for an end that takes\n"
             "time, throw() an exception of your own.\n\n"
             "Args:\n"
             "    msg: ignored; asyncio passes it.\n\n"
             "Returns:\n"
             "    bool: False when the task has ended already.\n\n"
             "Raises:\n"
             "    RuntimeError: called from another thread than the loop's.");

static PyObject *task_cancel(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    PyObject *message;
    if (plait_args_keyword("cancel", args, nargs, kwnames, 0, "msg", &message) < 0 ||
        check_thread(TASK(self), "cancel") < 0)
        return NULL;
    return PyBool_FromLong(plait_gen_cancel(TASK(self)));
}

PyDoc_STRVAR(throw_doc,
             "throw($self, exception, /)\n--\n\n"
             "Throw an exception in at the yield where the task waits, at its next turn.\n\n"
             "The generator may catch it and go on. What it waited for is given up.\n\n"
             "Args:\n"
             "    exception (BaseException): an instance.\n\n"
             "Returns:\n"
             "    bool: False when the task has ended, or is being closed, already.\n\n"
             "Raises:\n"
             "    RuntimeError: the task itself calls it, or another thread than the loop's.");

static PyObject *task_throw(PyObject *self, PyObject *exc)
{
    TaskObject *t = TASK(self);
    if (!PyExceptionInstance_Check(exc))
        return PyErr_Format(PyExc_TypeError,
                            "throw(): exception must be an exception instance, not %.200R", exc);
    if (check_thread(t, "throw") < 0)
        return NULL;
    if (t->state == GEN_RUNNING)
        return PyErr_Format(PyExc_RuntimeError, "a task cannot throw() into itself");
    if (t->state == GEN_DONE || t->closing)
        Py_RETURN_FALSE;
    if (t->state == GEN_WAITING) {
        TaskObject *owned = t->owns_joined ? TASK(Py_NewRef(t->joined)) : NULL;
        plait_gen_unhook(t, true);
        if (owned != NULL)
            (void)plait_gen_cancel(owned);
        Py_XDECREF(owned);
    }
    Py_CLEAR(t->value);
    Py_CLEAR(t->source);
    Py_XSETREF(t->exc, Py_NewRef(exc));
    plait_gen_enqueue(t);
    Py_RETURN_TRUE;
}

static PyObject *task_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(TASK(self)->state == GEN_DONE);
}

static PyObject *task_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(TASK(self)->cancelled);
}

static PyObject *task_make_cancelled_error(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyObject_CallNoArgs(TASK(self)->loop->state->gen_asyncio_cancelled);
}

/* 0 when the task has ended otherwise than by being cancelled. */
static int check_ended(TaskObject *t)
{
    struct plait_state *state = t->loop->state;
    if (t->state != GEN_DONE) {
        PyErr_Format(state->gen_invalid_state, "the task %U has not ended", t->name);
        return -1;
    }
    if (t->cancelled) {
        PyErr_Format(state->gen_asyncio_cancelled, "the task %U was cancelled", t->name);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(result_doc, "result($self, /)\n--\n\n"
                         "Return what the generator returned, or raise what it raised.\n\n"
                         "Raises:\n"
                         "    asyncio.CancelledError: the task was cancelled.\n"
                         "    asyncio.InvalidStateError: it has not ended.");

static PyObject *task_result(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TaskObject *t = TASK(self);
    if (check_ended(t) < 0)
        return NULL;
    if (t->exc == NULL)
        return Py_NewRef(t->value);
    t->retrieved = true;
    PyErr_SetObject((PyObject *)Py_TYPE(t->exc), t->exc);
    return NULL;
}

PyDoc_STRVAR(exception_doc, "exception($self, /)\n--\n\n"
                            "Return what the generator raised, or None.\n\n"
                            "Raises:\n"
                            "    asyncio.CancelledError: the task was cancelled.\n"
                            "    asyncio.InvalidStateError: it has not ended.");

static PyObject *task_exception(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TaskObject *t = TASK(self);
    if (check_ended(t) < 0)
        return NULL;
    t->retrieved = true;
    return Py_NewRef(t->exc != NULL ? t->exc : Py_None);
}

PyDoc_STRVAR(add_done_callback_doc,
             "add_done_callback($self, fn, /, *, context=None)\n--\n\n"
             "Call fn(task) from the loop when the task has ended; soon, if it has.\n\n"
             "Args:\n"
             "    fn (Callable): what to call.\n"
             "    context (contextvars.Context | None): where; a copy of the current when None.");

static PyObject *task_add_done_callback(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                        PyObject *kwnames)
{
    TaskObject *t = TASK(self);
    PyObject *context;
    if (plait_args_keyword("add_done_callback", args, nargs, kwnames, 1, "context", &context) < 0 ||
        check_thread(t, "add_done_callback") < 0)
        return NULL;
    if (t->state == GEN_DONE) {
        if (plait_loop_check(t->loop) < 0 || plait_loop_soon(t->loop, args[0], self, context) < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    if (t->callbacks == NULL && (t->callbacks = PyList_New(0)) == NULL)
        return NULL;
    PyObject *where =
        context != NULL && context != Py_None ? Py_NewRef(context) : PyContext_CopyCurrent();
    PyObject *pair = where == NULL ? NULL : PyTuple_Pack(2, args[0], where);
    Py_XDECREF(where);
    int r = pair == NULL ? -1 : PyList_Append(t->callbacks, pair);
    Py_XDECREF(pair);
    if (r < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(remove_done_callback_doc, "remove_done_callback($self, fn, /)\n--\n\n"
                                       "Take fn out of the callbacks; return how many there were.");

static PyObject *task_remove_done_callback(PyObject *self, PyObject *fn)
{
    TaskObject *t = TASK(self);
    Py_ssize_t removed = 0;
    PyObject *callbacks = t->callbacks;
    if (callbacks == NULL)
        return PyLong_FromLong(0);
    Py_INCREF(callbacks); /* comparing may run code of the user's */
    for (Py_ssize_t i = PyList_GET_SIZE(callbacks) - 1; i >= 0; i--) {
        if (i >= PyList_GET_SIZE(callbacks))
            continue;
        PyObject *pair = Py_NewRef(PyList_GET_ITEM(callbacks, i));
        int same = PyObject_RichCompareBool(PyTuple_GET_ITEM(pair, 0), fn, Py_EQ);
        Py_DECREF(pair);
        if (same < 0 || (same > 0 && PyList_SetSlice(callbacks, i, i + 1, NULL) < 0)) {
            Py_DECREF(callbacks);
            return NULL;
        }
        removed += same;
    }
    Py_DECREF(callbacks);
    return PyLong_FromSsize_t(removed);
}

void plait_gen_call_back(TaskObject *t)
{
    PyObject *callbacks = t->callbacks;
    t->callbacks = NULL;
    for (Py_ssize_t i = 0; callbacks != NULL && i < PyList_GET_SIZE(callbacks); i++) {
        PyObject *pair = PyList_GET_ITEM(callbacks, i); // borrowed
        if (!t->loop->core_ready || plait_loop_soon(t->loop, PyTuple_GET_ITEM(pair, 0),
                                                    (PyObject *)t, PyTuple_GET_ITEM(pair, 1)) < 0)
            PyErr_WriteUnraisable((PyObject *)t);
    }
    Py_XDECREF(callbacks);
}

static PyObject *task_get_loop(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(TASK(self)->loop);
}

static PyObject *task_get_name(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(TASK(self)->name);
}

static PyObject *get_blocking(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(TASK(self)->blocking);
}

static int set_blocking(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int is = value == NULL ? 0 : PyObject_IsTrue(value);
    if (is < 0)
        return -1;
    TASK(self)->blocking = is != 0;
    return 0;
}

/* ---- awaiting ----------------------------------------------------------- */

static PyObject *task_await(PyObject *self)
{
    AwaitObject *a = PyObject_GC_New(AwaitObject, TASK(self)->loop->state->gen_await_type);
    if (a == NULL)
        return NULL;
    a->task = TASK(Py_NewRef(self));
    a->waited = false;
    PyObject_GC_Track(a);
    return (PyObject *)a;
}

static PySendResult await_send(PyObject *self, PyObject *Py_UNUSED(value), PyObject **out)
{
    AwaitObject *a = (AwaitObject *)self;
    TaskObject *t = a->task;
    *out = NULL;
    if (t == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the wait for a task has ended already");
        return PYGEN_ERROR;
    }
    if (t->state != GEN_DONE) {
        if (a->waited) {
            PyErr_SetString(PyExc_RuntimeError, "await was not used with the task");
            return PYGEN_ERROR;
        }
        a->waited = true;
        t->blocking = true;
        *out = Py_NewRef(t);
        return PYGEN_NEXT;
    }
    a->task = NULL;
    *out = task_result((PyObject *)t, NULL);
    Py_DECREF(t);
    return *out == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

static PyObject *await_next(PyObject *self)
{
    PyObject *out;
    PySendResult r = await_send(self, Py_None, &out);
    if (r != PYGEN_RETURN)
        return out;
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, out);
    Py_DECREF(out);
    if (stop != NULL)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    return NULL;
}

static int await_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((AwaitObject *)self)->task);
    return 0;
}

static int await_clear(PyObject *self)
{
    Py_CLEAR(((AwaitObject *)self)->task);
    return 0;
}

static void await_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)await_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* ---- debugging ---------------------------------------------------------- */

/* The innermost generator that `yield from` leads to. A new reference, or NULL. */
static PyObject *innermost(PyObject *gen)
{
    Py_INCREF(gen);
    for (;;) {
        PyObject *next = PyObject_GetAttrString(gen, "gi_yieldfrom");
        if (next == NULL || !PyGen_CheckExact(next)) {
            if (next == NULL)
                PyErr_Clear();
            Py_XDECREF(next);
            return gen;
        }
        Py_SETREF(gen, next);
    }
}

/* " at FILE:LINE" of a suspended generator, or "". */
static PyObject *place_of(PyObject *gen)
{
    PyObject *inner = innermost(gen);
    PyObject *code = PyObject_GetAttrString(inner, "gi_code");
    PyObject *file = code == NULL ? NULL : PyObject_GetAttrString(code, "co_filename");
    PyObject *frame = file == NULL ? NULL : PyObject_GetAttrString(inner, "gi_frame");
    PyObject *line = NULL;
    if (frame != NULL && frame != Py_None)
        line = PyObject_GetAttrString(frame, "f_lineno");
    PyObject *text = line == NULL || line == Py_None
                         ? PyUnicode_FromString("")
                         : PyUnicode_FromFormat(" at %U:%S", file, line);
    if (line == NULL)
        PyErr_Clear();
    Py_XDECREF(line);
    Py_XDECREF(frame);
    Py_XDECREF(file);
    Py_XDECREF(code);
    Py_DECREF(inner);
    return text;
}

static PyObject *task_repr(PyObject *self)
{
    TaskObject *t = TASK(self);
    const char *head = "<plait.generators.Task";
    if (t->name == NULL || t->loop == NULL)
        return PyUnicode_FromFormat("%s>", head);
    if (t->state == GEN_DONE) {
        if (t->cancelled)
            return PyUnicode_FromFormat("%s %U cancelled>", head, t->name);
        if (t->exc != NULL)
            return PyUnicode_FromFormat("%s %U failed: %.200R>", head, t->name, t->exc);
        return PyUnicode_FromFormat("%s %U returned %.200R>", head, t->name, t->value);
    }
    if (t->state == GEN_RUNNING || t->gen == NULL)
        return PyUnicode_FromFormat("%s %U running>", head, t->name);
    PyObject *place = place_of(t->gen);
    if (place == NULL)
        return NULL;
    PyObject *repr;
    if (t->closing)
        repr = PyUnicode_FromFormat("%s %U to be closed%U>", head, t->name, place);
    else if (t->state == GEN_READY || t->request == NULL)
        repr = PyUnicode_FromFormat("%s %U ready%U>", head, t->name, place);
    else {
        PyObject *request = Py_NewRef((PyObject *)t->request); /* its repr may end the wait */
        repr = PyUnicode_FromFormat("%s %U waits: %.200R%U>", head, t->name, request, place);
        Py_DECREF(request);
    }
    Py_DECREF(place);
    return repr;
}

/* ---- the types ---------------------------------------------------------- */

static int task_traverse(PyObject *self, visitproc visit, void *arg)
{
    TaskObject *t = TASK(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(t->loop);
    Py_VISIT(t->gen);
    Py_VISIT(t->context);
    Py_VISIT(t->name);
    Py_VISIT(t->value);
    Py_VISIT(t->exc);
    Py_VISIT(t->source);
    Py_VISIT(t->request);
    Py_VISIT(t->waiter);
    Py_VISIT(t->future);
    Py_VISIT(t->callbacks);
    if (t->owns_joined)
        Py_VISIT(t->joined);
    return 0;
}

static int task_clear(PyObject *self)
{
    TaskObject *t = TASK(self);
    /* Before the references that keep what it is linked with alive. */
    if (t->fd != NULL && t->loop != NULL && t->loop->generators != NULL)
        plait_gen_io_unhook(t);
    t->fd = NULL;
    if (t->joined != NULL)
        plait_gen_unlink_joiner(t);
    /* The other way round: the collector may have cleared the requests that hold this one. */
    while (t->first_joiner != NULL)
        plait_gen_unlink_joiner(t->first_joiner);
    Py_CLEAR(t->request);
    Py_CLEAR(t->waiter);
    Py_CLEAR(t->future);
    Py_CLEAR(t->gen);
    Py_CLEAR(t->context);
    Py_CLEAR(t->value);
    Py_CLEAR(t->exc);
    Py_CLEAR(t->source);
    Py_CLEAR(t->callbacks);
    return 0;
}

/* An error that nobody has seen is told when nobody can see it any more. */
static void task_finalize(PyObject *self)
{
    TaskObject *t = TASK(self);
    if (t->state != GEN_DONE || t->exc == NULL || t->retrieved || t->loop == NULL)
        return;
    t->retrieved = true;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyObject *message =
        PyUnicode_FromFormat("A generator failed, and nobody joined its task %U", t->name);
    if (message == NULL)
        PyErr_Clear();
    PyErr_SetObject((PyObject *)Py_TYPE(t->exc), t->exc);
    plait_loop_handle_error(t->loop, message, "task", self, NULL, NULL);
    Py_XDECREF(message);
    PyErr_Restore(type, exc, tb);
}

static void task_dealloc(PyObject *self)
{
    TaskObject *t = TASK(self);
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0)
        return;
    PyObject_GC_UnTrack(self);
    if (t->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
#ifdef Py_TRASHCAN_BEGIN
    Py_TRASHCAN_BEGIN(self, task_dealloc) /* a task's result may be a task, and so on */
#endif
        (void) task_clear(self);
    Py_CLEAR(t->name);
    Py_CLEAR(t->loop);
    type->tp_free(self);
    Py_DECREF(type);
#ifdef Py_TRASHCAN_BEGIN
    Py_TRASHCAN_END
#endif
}

#define FAST(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef task_methods[] = {
    {"cancel", FAST(task_cancel), METH_FASTCALL | METH_KEYWORDS, cancel_doc},
    {"throw", task_throw, METH_O, throw_doc},
    {"done", task_done, METH_NOARGS,
     "done($self, /)\n--\n\nTell whether the task has ended, in whatever way."},
    {"cancelled", task_cancelled, METH_NOARGS,
     "cancelled($self, /)\n--\n\nTell whether the task was ended by cancel()."},
    {"result", task_result, METH_NOARGS, result_doc},
    {"exception", task_exception, METH_NOARGS, exception_doc},
    {"add_done_callback", FAST(task_add_done_callback), METH_FASTCALL | METH_KEYWORDS,
     add_done_callback_doc},
    {"remove_done_callback", task_remove_done_callback, METH_O, remove_done_callback_doc},
    {"get_loop", task_get_loop, METH_NOARGS,
     "get_loop($self, /)\n--\n\nReturn the loop that runs it."},
    {"get_name", task_get_name, METH_NOARGS, "get_name($self, /)\n--\n\nReturn its name."},
    {"_make_cancelled_error", task_make_cancelled_error, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "For annotations."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef task_getset[] = {
    {"_asyncio_future_blocking", get_blocking, set_blocking, "asyncio's handshake.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef task_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(TaskObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot task_slots[] = {
    {Py_tp_doc, (void *)"A generator that runs; made by spawn and start. Can be joined by\n"
                        "generators and awaited by coroutines."},
    {Py_tp_dealloc, task_dealloc},
    {Py_tp_finalize, task_finalize},
    {Py_tp_traverse, task_traverse},
    {Py_tp_clear, task_clear},
    {Py_tp_repr, task_repr},
    {Py_tp_methods, task_methods},
    {Py_tp_getset, task_getset},
    {Py_tp_members, task_members},
    {Py_am_await, task_await},
    {Py_tp_iter, task_await},
    {0, NULL},
};

static PyType_Spec task_spec = {
    .name = "plait.generators.Task",
    .basicsize = sizeof(TaskObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = task_slots,
};

static PyType_Slot await_slots[] = {
    {Py_tp_doc, (void *)"What a coroutine that awaits a task delegates to."},
    {Py_tp_dealloc, await_dealloc},
    {Py_tp_traverse, await_traverse},
    {Py_tp_clear, await_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, await_next},
    {Py_am_send, await_send},
    {0, NULL},
};

static PyType_Spec await_spec = {
    .name = "plait._core.GeneratorAwait",
    .basicsize = sizeof(AwaitObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = await_slots,
};

/* ---- module functions --------------------------------------------------- */

/* The plait loop that runs in this thread, a new reference; NULL without an exception when
 * none runs, with one when it is another kind of loop. */
static LoopObject *running_loop(struct plait_state *state, const char *name)
{
    PyObject *loop = PyObject_CallNoArgs(state->gen_running_loop);
    if (loop == NULL)
        return NULL;
    if (PyObject_TypeCheck(loop, state->loop_type))
        return (LoopObject *)loop;
    if (loop != Py_None)
        PyErr_Format(PyExc_RuntimeError,
                     "%s(): generators run on plait's loop, and %R is another: use plait.run() or "
                     "plait.generators.run()",
                     name, loop);
    Py_DECREF(loop);
    return NULL;
}

static PyObject *start_on(LoopObject *loop, PyObject *gen, PyObject *name)
{
    if (name == Py_None)
        name = NULL;
    if (name != NULL && !PyUnicode_Check(name))
        return PyErr_Format(PyExc_TypeError, "start(): name must be a string, not %.200R", name);
    if (plait_gen_check("start", gen) < 0)
        return NULL;
    return (PyObject *)plait_gen_start(loop, gen, name);
}

PyDoc_STRVAR(start_doc,
             "start(gen, /, *, name=None)\n--\n\n"
             "Start a generator on the plait loop that runs in this thread.\n\n"
             "Args:\n"
             "    gen (Generator): not started yet.\n"
             "    name (str | None): for reprs and errors; the generator's own when None.\n\n"
             "Returns:\n"
             "    Task: to be awaited, joined or cancelled. The first step is taken in the\n"
             "    loop's next iteration, in a copy of the current context.\n\n"
             "Raises:\n"
             "    RuntimeError: no loop runs in this thread, or another than plait's.\n"
             "    TypeError: gen is no generator.\n"
             "    ValueError: it runs or has run already.");

static PyObject *start(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *name;
    if (plait_args_keyword("start", args, nargs, kwnames, 1, "name", &name) < 0)
        return NULL;
    if (nargs > 1)
        return PyErr_Format(PyExc_TypeError, "start() takes 1 positional argument, got %zd", nargs);
    LoopObject *loop = running_loop(plait_state_of_module(module), "start");
    if (loop == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "start(): no loop runs in this thread");
        return NULL;
    }
    PyObject *task = start_on(loop, args[0], name);
    Py_DECREF(loop);
    return task;
}

static PyObject *start_on_loop(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct plait_state *state = plait_state_of_module(module);
    if (nargs != 3 || !PyObject_TypeCheck(args[0], state->loop_type))
        return PyErr_Format(PyExc_TypeError, "_start() takes a plait loop, a generator and a name");
    return start_on((LoopObject *)args[0], args[1], args[2]);
}

PyDoc_STRVAR(current_task_doc, "current_task()\n--\n\n"
                               "Return the task whose generator is running, or None.");

static PyObject *current_task(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = running_loop(plait_state_of_module(module), "current_task");
    if (loop == NULL)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    TaskObject *t = loop->generators == NULL ? NULL : loop->generators->running;
    PyObject *task = Py_NewRef(t != NULL ? (PyObject *)t : Py_None);
    Py_DECREF(loop);
    return task;
}

static PyObject *list_tasks(LoopObject *loop)
{
    PyObject *list = PyList_New(0);
    TaskObject *t = list == NULL || loop->generators == NULL ? NULL : loop->generators->first;
    for (; t != NULL; t = t->next) {
        if (t->state != GEN_DONE && PyList_Append(list, (PyObject *)t) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

PyDoc_STRVAR(all_tasks_doc, "all_tasks()\n--\n\n"
                            "Return the tasks of the running loop that have not ended, oldest "
                            "first.\n\n"
                            "Their reprs tell what each waits for, and where.\n\n"
                            "Raises:\n"
                            "    RuntimeError: no plait loop runs in this thread.");

static PyObject *all_tasks(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = running_loop(plait_state_of_module(module), "all_tasks");
    if (loop == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "all_tasks(): no loop runs in this thread");
        return NULL;
    }
    PyObject *list = list_tasks(loop);
    Py_DECREF(loop);
    return list;
}

static PyObject *close_all(PyObject *module, PyObject *loop)
{
    if (!PyObject_TypeCheck(loop, plait_state_of_module(module)->loop_type))
        return PyErr_Format(PyExc_TypeError, "_close() takes a plait loop, not %.200R", loop);
    plait_generators_close((LoopObject *)loop);
    Py_RETURN_NONE;
}

static PyMethodDef functions_of_tasks[] = {
    {"start", FAST(start), METH_FASTCALL | METH_KEYWORDS, start_doc},
    {"current_task", current_task, METH_NOARGS, current_task_doc},
    {"all_tasks", all_tasks, METH_NOARGS, all_tasks_doc},
    {"_start", FAST(start_on_loop), METH_FASTCALL,
     "_start(loop, gen, name, /)\n--\n\nStart a generator on a loop that need not run yet."},
    {"_close", close_all, METH_O,
     "_close(loop, /)\n--\n\nClose all generators of a loop, the youngest first."},
    {NULL, NULL, 0, NULL},
};

int plait_gen_add_functions(PyObject *module, PyObject *functions, PyMethodDef *defs)
{
    PyObject *home = PyUnicode_FromString("plait.generators");
    if (home == NULL)
        return -1;
    for (; defs->ml_name != NULL; defs++) {
        PyObject *function = PyCFunction_NewEx(defs, module, home);
        if (function == NULL || PyObject_SetAttrString(functions, defs->ml_name, function) < 0) {
            Py_XDECREF(function);
            Py_DECREF(home);
            return -1;
        }
        Py_DECREF(function);
    }
    Py_DECREF(home);
    return 0;
}

int plait_gen_task_type(PyObject *module, PyObject *functions, struct plait_state *state)
{
    state->gen_task_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &task_spec, NULL);
    state->gen_await_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &await_spec, NULL);
    if (state->gen_task_type == NULL || state->gen_await_type == NULL)
        return -1;
    return plait_gen_add_functions(module, functions, functions_of_tasks);
}
