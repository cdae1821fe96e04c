/* channel_op.c - what coroutines await of channels, locks and events: calls that look like
 * coroutines themselves.
 *
 * Nothing happens before a call is awaited. Its first step tries; done, it returns at once,
 * without a future or a turn of the loop. Else it joins a list of the channel and yields a
 * future of its loop; woken, it tries again, and waits in front of the others when somebody was
 * faster. A send keeps its item until it is in the ring, and a receive takes one in the step
 * that returns it: so one that is cancelled has done nothing. A token of a lock is handed over
 * when one waits, and given to the next by a call that is cancelled after that.
 *
 * Calls on channels that never have to wait would keep the loop from everything else. So once in
 * STREAK_MAX, a call on a channel lets the loop turn first, before it has done anything.
 *
 * A step runs in the thread of its loop; other threads wake a call by a post to that loop.
 */
#include "channel.h"
#include "coroutine.h"
#include "stop.h"
#include "stream_reader.h"

#include <stddef.h>
#include <string.h>

#define STREAK_MAX 64

enum phase { FRESH, TURNING, WAITING, ENDED };

/* plait._core.StrandCall. */
struct op {
    PyObject_HEAD
    struct plait_state *state; /* borrows: the type keeps the module */
    PyObject *target;          /* owns; NULL at the end */
    PyObject *item;            /* owns; of SEND */
    PyObject *future;          /* owns; what it waits by */
    PyObject *loop;            /* owns; whose future it is */
    struct plait_wait wait;
    uint8_t kind;
    uint8_t phase;
};

#define OP(o) ((struct op *)(o))
#define CHANNEL_OF(op) ((struct channel *)(op)->target)
#define TOKENS_OF(op) ((struct plait_tokens *)(op)->target)
#define EVENT_OF(op) ((struct plait_event *)(op)->target)

static const char *const names[] = {"send",       "receive",   "__anext__", "acquire",
                                    "__aenter__", "__aexit__", "wait"};

/* The class without its package. Static, or the type's. */
static const char *class_name(struct op *op)
{
    const char *name = op->target == NULL ? "Channel" : Py_TYPE(op->target)->tp_name;
    const char *dot = strrchr(name, '.');
    return dot == NULL ? name : dot + 1;
}

/* ---- waking ---- */

/* The loop that runs in this thread, or None. */
static PyObject *running_loop(struct plait_state *state)
{
    return PyObject_CallNoArgs(state->gen_running_loop);
}

/* Sets the future's result. False when it was cancelled; what else goes wrong is told. */
static bool set_result(struct op *op, PyObject *future)
{
    struct plait_state *state = op->state;
    PyObject *told = PyObject_CallMethodOneArg(future, state->str_set_result, Py_None);
    if (told == NULL) {
        if (PyErr_ExceptionMatches(state->gen_invalid_state))
            PyErr_Clear();
        else
            PyErr_WriteUnraisable((PyObject *)op);
        return false;
    }
    Py_DECREF(told);
    if (PyObject_TypeCheck(op->loop, state->loop_type))
        plait_reader_keep((LoopObject *)op->loop, Py_NewRef(future));
    return true;
}

bool plait_op_wake(struct plait_wait *wait)
{
    struct op *op = PL_CONTAINER_OF(wait, struct op, wait);
    struct plait_state *state = op->state;
    PyObject *future = op->future;
    bool woken = false;
    Py_INCREF(op);
    Py_INCREF(future);
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyObject *loop = running_loop(state);
    if (loop == op->loop) {
        woken = set_result(op, future);
    } else if (loop != NULL) {
        /* Its loop is another thread's, or stands still. A closed one has no tasks. */
        PyObject *call = PyObject_GetAttr((PyObject *)op, state->str_wake);
        PyObject *args[] = {op->loop, call};
        PyObject *told = call == NULL
                             ? NULL
                             : PyObject_VectorcallMethod(state->gen_str_call_soon_threadsafe, args,
                                                         2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        woken = told != NULL;
        if (told == NULL) {
            if (PyErr_ExceptionMatches(PyExc_RuntimeError))
                PyErr_Clear();
            else
                PyErr_WriteUnraisable((PyObject *)op);
        }
        Py_XDECREF(told);
        Py_XDECREF(call);
    } else {
        PyErr_WriteUnraisable((PyObject *)op);
    }
    PyErr_Restore(type, error, traceback);
    Py_XDECREF(loop);
    Py_DECREF(future);
    if (!woken)
        (void)plait_waits_settle(wait);
    Py_DECREF(op); /* its last, when its task has gone meanwhile */
    return woken;
}

/* _wake(): what other threads have the loop call. The future may have been cancelled, which then
 * passes the wake-up on. */
static PyObject *op_wake(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct op *op = OP(self);
    if (op->phase == WAITING && op->future != NULL) {
        PyObject *future = Py_NewRef(op->future);
        (void)set_result(op, future);
        Py_DECREF(future);
    }
    Py_RETURN_NONE;
}

/* ---- steps ---- */

static struct plait_waits *list_of(struct op *op)
{
    switch ((enum plait_op_kind)op->kind) {
    case PLAIT_OP_SEND:
        return &CHANNEL_OF(op)->senders;
    case PLAIT_OP_RECEIVE:
    case PLAIT_OP_NEXT:
        return &CHANNEL_OF(op)->receivers;
    case PLAIT_OP_WAIT:
        return &EVENT_OF(op)->waits;
    case PLAIT_OP_ACQUIRE:
    case PLAIT_OP_ENTER:
    case PLAIT_OP_EXIT:
        break;
    }
    return &TOKENS_OF(op)->waits;
}

/* It goes away: what it waited by, and its place. */
static void stop_waiting(struct op *op)
{
    plait_waits_remove(&op->wait);
    Py_CLEAR(op->future);
    Py_CLEAR(op->loop);
}

/* Ends a call that has not done anything. */
static void abandon(struct op *op)
{
    bool was_woken = plait_waits_settle(&op->wait);
    if (op->phase == WAITING)
        stop_waiting(op);
    op->phase = ENDED;
    if (was_woken && op->kind <= PLAIT_OP_NEXT)
        (void)plait_waits_wake(list_of(op));
    else if (was_woken && op->kind != PLAIT_OP_WAIT)
        plait_tokens_give(TOKENS_OF(op));
    Py_CLEAR(op->item);
}

static PySendResult begin_wait(struct op *op, bool in_front, PyObject **out)
{
    struct plait_state *state = op->state;
    PyObject *loop = running_loop(state);
    PyObject *future = NULL;
    if (loop == Py_None)
        PyErr_SetString(PyExc_RuntimeError, "no running event loop");
    else if (loop != NULL)
        future = PyObject_TypeCheck(loop, state->loop_type)
                     ? plait_reader_future((LoopObject *)loop)
                     : PyObject_CallMethodNoArgs(loop, state->str_create_future);
    if (future == NULL || PyObject_SetAttr(future, state->str_blocking, Py_True) < 0) {
        Py_XDECREF(future);
        Py_XDECREF(loop);
        return PYGEN_ERROR;
    }
    if (op->kind <= PLAIT_OP_NEXT)
        CHANNEL_OF(op)->streak = 0;
    op->future = Py_NewRef(future);
    op->loop = loop;
    op->phase = WAITING;
    plait_waits_add(list_of(op), &op->wait, in_front);
    *out = future;
    return PYGEN_NEXT;
}

static int receive(struct op *op, PyObject **out)
{
    int told = plait_channel_pop(CHANNEL_OF(op), out);
    if (told < 0 && op->kind == PLAIT_OP_NEXT)
        PyErr_SetNone(PyExc_StopAsyncIteration);
    else if (told < 0)
        (void)plait_channel_raise_closed("the channel is closed and empty");
    return told;
}

/* 1 with a result, 0 to wait, -1 with an exception. */
static int attempt(struct op *op, bool woken, PyObject **out)
{
    int told = 0;
    switch ((enum plait_op_kind)op->kind) {
    case PLAIT_OP_SEND:
        told = plait_channel_push(CHANNEL_OF(op), op->item);
        break;
    case PLAIT_OP_RECEIVE:
    case PLAIT_OP_NEXT:
        return receive(op, out);
    case PLAIT_OP_ACQUIRE:
    case PLAIT_OP_ENTER:
        told = woken || plait_tokens_take(TOKENS_OF(op)); /* woken: it was handed over */
        break;
    case PLAIT_OP_EXIT:
        told = plait_tokens_release(TOKENS_OF(op)) < 0 ? -1 : 1;
        break;
    case PLAIT_OP_WAIT:
        told = woken || EVENT_OF(op)->set;
        break;
    }
    if (told == 1)
        *out = Py_NewRef(Py_None);
    return told;
}

static PySendResult step(struct op *op, PyObject **out)
{
    *out = NULL;
    if (op->phase == ENDED) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    bool waited = op->phase == WAITING;
    if (op->phase == FRESH && op->kind <= PLAIT_OP_NEXT && ++CHANNEL_OF(op)->streak > STREAK_MAX) {
        CHANNEL_OF(op)->streak = 0;
        op->phase = TURNING;
        *out = Py_NewRef(Py_None);
        return PYGEN_NEXT;
    }
    bool woken = false;
    if (waited) {
        stop_waiting(op);
        woken = plait_waits_settle(&op->wait);
    }
    op->phase = ENDED; /* unless it waits */
    int told = attempt(op, woken, out);
    PySendResult result = told == 1 ? PYGEN_RETURN : PYGEN_ERROR;
    if (told == 0)
        result = begin_wait(op, waited, out);
    if (result != PYGEN_NEXT)
        Py_CLEAR(op->item);
    return result;
}

static PySendResult op_am_send(PyObject *self, PyObject *Py_UNUSED(value), PyObject **out)
{
    return step(OP(self), out);
}

static PyObject *op_iternext(PyObject *self)
{
    PyObject *out;
    PySendResult r = step(OP(self), &out);
    if (r != PYGEN_RETURN)
        return out;
    if (out != Py_None)
        plait_stop_raise(OP(self)->state, out);
    Py_DECREF(out);
    return NULL; /* without an exception: the end, with None */
}

static PyObject *op_send(PyObject *self, PyObject *Py_UNUSED(value))
{
    PyObject *out = op_iternext(self);
    if (out == NULL && !PyErr_Occurred())
        PyErr_SetNone(PyExc_StopIteration);
    return out;
}

static PyObject *op_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct op *op = OP(self);
    if (plait_coroutine_may_throw(nargs, op->phase == ENDED) < 0)
        return NULL;
    abandon(op);
    plait_coroutine_raise(args, nargs);
    return NULL;
}

static PyObject *op_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (OP(self)->phase != ENDED)
        abandon(OP(self));
    Py_RETURN_NONE;
}

/* ---- the type ---- */

static PyObject *get_name(PyObject *self, void *qualified)
{
    struct op *op = OP(self);
    return qualified == NULL ? PyUnicode_FromString(names[op->kind])
                             : PyUnicode_FromFormat("%s.%s", class_name(op), names[op->kind]);
}

static PyObject *op_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<coroutine object %s.%s at %p>", class_name(OP(self)),
                                names[OP(self)->kind], (void *)self);
}

static int op_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct op *op = OP(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(op->target);
    Py_VISIT(op->item);
    Py_VISIT(op->future);
    Py_VISIT(op->loop);
    return 0;
}

static int op_clear(PyObject *self)
{
    struct op *op = OP(self);
    if (op->target != NULL) {
        abandon(op);
        Py_CLEAR(op->target);
    }
    return 0;
}

static void op_dealloc(PyObject *self)
{
    struct op *op = OP(self);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (PL_UNLIKELY(op->phase == FRESH))
        plait_coroutine_unawaited(type, class_name(op), names[op->kind]);
    if (op->phase != ENDED)
        abandon(op);
    struct plait_state *state = op->state;
    if (op->kind != PLAIT_OP_SEND)
        plait_stop_forget(state);
    Py_CLEAR(op->target); /* may run anything */
    /* A state that is being cleared has no type any more: it would not be freed again. */
    if (state->channel_op_type == type && plait_free_list_park(&state->scope.ops, self))
        return;
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyObject *plait_op_new(struct plait_state *state, PyObject *target, enum plait_op_kind kind,
                       PyObject *item)
{
    struct op *op = OP(plait_free_list_new(&state->scope.ops, state->channel_op_type));
    if (op == NULL)
        return NULL;
    op->state = state;
    op->target = Py_NewRef(target);
    op->item = Py_XNewRef(item);
    op->future = op->loop = NULL;
    op->wait = (struct plait_wait){.thread = false};
    op->kind = (uint8_t)kind;
    op->phase = FRESH;
    PyObject_GC_Track(op);
    return (PyObject *)op;
}

static PyMethodDef op_methods[] = {
    {"send", op_send, METH_O, "send($self, value, /)\n--\n\nGo on, as a coroutine does."},
    {"throw", (PyCFunction)(void (*)(void))op_throw, METH_FASTCALL,
     "throw($self, exception, /)\n--\n\nEnd it with an exception; nothing has been done."},
    {"close", op_close, METH_NOARGS, "close($self, /)\n--\n\nEnd it; nothing has been done."},
    {"_wake", op_wake, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef op_getset[] = {
    {"__name__", get_name, NULL, "The method.", NULL},
    {"__qualname__", get_name, NULL, "The method, with its class.", (void *)"class"},
    {"cr_running", plait_coroutine_running, NULL, "Whether a step of it runs.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot op_slots[] = {
    {Py_tp_doc, (void *)"A call on a channel, a lock or an event under way; await it."},
    {Py_tp_dealloc, op_dealloc},
    {Py_tp_traverse, op_traverse},
    {Py_tp_clear, op_clear},
    {Py_tp_methods, op_methods},
    {Py_tp_getset, op_getset},
    {Py_tp_repr, op_repr},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, op_iternext},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, op_am_send},
    {0, NULL},
};

static PyType_Spec op_spec = {
    .name = "plait._core.StrandCall",
    .basicsize = sizeof(struct op),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = op_slots,
};

int plait_op_exec(PyObject *module, struct plait_state *state)
{
    state->str_wake = PyUnicode_InternFromString("_wake");
    if (state->str_wake == NULL)
        return -1;
    state->channel_op_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &op_spec, NULL);
    if (state->channel_op_type == NULL)
        return -1;
    return PyModule_AddType(module, state->channel_op_type);
}

void plait_scope_clear(struct plait_state *state)
{
    plait_free_list_clear(&state->scope.ops);
}
