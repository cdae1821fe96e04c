/* locks.c - Lock, Limiter and Event for threads and coroutines alike.
 *
 * All is done with the interpreter's lock held and without a step of Python in between: an
 * exception that stops a thread's task, raised between two such steps, finds a token either
 * taken or not. With `with`, too: between the end of __enter__ and the block, and between the
 * block and __exit__, the interpreter looks for no such exception, because both are C.
 *
 * What is freed is handed to who has waited longest; nobody overtakes. One who goes away after
 * it was handed a token gives that to the next.
 */
#include "channel.h"

#include <math.h>
#include <stddef.h>
#include <structmember.h>

#define TOKENS(o) ((struct plait_tokens *)(o))
#define EVENT(o) ((struct plait_event *)(o))

/* ---- threads that wait ---- */

/* Refuses to block the loop that runs in this thread. */
static int check_may_block(struct plait_state *state, const char *what, const char *instead)
{
    PyObject *loop = PyObject_CallNoArgs(state->gen_running_loop);
    if (loop == NULL)
        return -1;
    Py_DECREF(loop);
    if (loop == Py_None)
        return 0;
    PyErr_Format(PyExc_RuntimeError, "%s would block the loop that runs in this thread: %s", what,
                 instead);
    return -1;
}

/* Sleeps on a list until somebody wakes it or, at the earliest at `end`, nobody has: 1 or 0.
 * -1 with an exception: *woken then tells whether what was handed over is to be passed on. */
static int sleep_on(struct plait_state *state, struct plait_waits *list, PyObject *owner,
                    int64_t end, bool *woken)
{
    *woken = false;
    PyObject *waiter = PyObject_CallNoArgs((PyObject *)state->thread_waiter_type);
    struct plait_wait *wait = waiter == NULL ? NULL : plait_waiter_of(state, waiter, owner);
    if (wait == NULL)
        return -1;
    plait_waits_add(list, wait, false);
    int told;
    do {
        told = plait_waiter_sleep(waiter, end);
        if (told == PLAIT_LOOK) {
            /* What is to be raised in this thread is raised by the first step of this. */
            PyObject *none = PyObject_CallNoArgs(state->pause);
            told = none == NULL ? -1 : PLAIT_LOOK;
            Py_XDECREF(none);
        }
    } while (told == PLAIT_LOOK);
    plait_waits_remove(wait);
    *woken = plait_waits_settle(wait);
    Py_DECREF(waiter);
    if (told < 0)
        return -1;
    return *woken;
}

/* The time, by the core's clock, after `seconds` (None: never). -1 with an exception set. */
static int end_of(PyObject *seconds, int64_t *end)
{
    *end = INT64_MAX;
    if (seconds == NULL || seconds == Py_None)
        return 0;
    double value = PyFloat_AsDouble(seconds);
    if (value == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(value)) {
        PyErr_SetString(PyExc_ValueError, "timeout must be a number of seconds or None, not nan");
        return -1;
    }
    if (value < 3e8) {
        int64_t now = pl_sys_default()->now();
        *end = value <= 0 ? now : now + (int64_t)(value * 1e9);
    }
    return 0;
}

/* timeout, by position or name. -1 with an exception set. */
static int timeout_of(const char *method, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *kwnames, PyObject **timeout)
{
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    *timeout = nargs + nkw > 0 ? args[0] : NULL;
    if (nargs + nkw > 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most 1 argument (%zd given)", method,
                     nargs + nkw);
        return -1;
    }
    if (nkw == 1 &&
        PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "timeout") != 0) {
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", method,
                     PyTuple_GET_ITEM(kwnames, 0));
        return -1;
    }
    return 0;
}

/* ---- tokens ---- */

bool plait_tokens_take(struct plait_tokens *t)
{
    if (t->free == 0)
        return false;
    t->free--;
    return true;
}

void plait_tokens_give(struct plait_tokens *t)
{
    if (!plait_waits_wake(&t->waits))
        t->free++;
}

int plait_tokens_release(struct plait_tokens *t)
{
    if (t->free >= t->total) {
        PyErr_SetString(PyExc_RuntimeError,
                        t->lock ? "the lock is released, and nobody has it"
                                : "the limiter is released more often than it was acquired");
        return -1;
    }
    plait_tokens_give(t);
    return 0;
}

/* 1 with a token, 0 when the time is over, -1 with an exception set. */
static int acquire_blocking(struct plait_tokens *t, int64_t end)
{
    if (plait_tokens_take(t))
        return 1;
    if (end != INT64_MAX && end <= pl_sys_default()->now())
        return 0;
    if (check_may_block(t->state, t->lock ? "waiting for the lock" : "waiting for the limiter",
                        "use `async with`, or await acquire()") < 0)
        return -1;
    bool woken;
    int told = sleep_on(t->state, &t->waits, (PyObject *)t, end, &woken);
    if (told < 0 && woken)
        plait_tokens_give(t);
    return told;
}

static PyObject *tokens_acquire_blocking(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                         PyObject *kwnames)
{
    PyObject *timeout;
    int64_t end;
    if (timeout_of("acquire_blocking", args, nargs, kwnames, &timeout) < 0 ||
        end_of(timeout, &end) < 0)
        return NULL;
    int told = acquire_blocking(TOKENS(self), end);
    return told < 0 ? NULL : PyBool_FromLong(told);
}

static PyObject *tokens_acquire_nowait(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(plait_tokens_take(TOKENS(self)));
}

static PyObject *tokens_release(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (plait_tokens_release(TOKENS(self)) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *tokens_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (acquire_blocking(TOKENS(self), INT64_MAX) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *tokens_exit(PyObject *self, PyObject *const *Py_UNUSED(args),
                             Py_ssize_t Py_UNUSED(nargs))
{
    return tokens_release(self, NULL);
}

static PyObject *tokens_acquire(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return plait_op_new(TOKENS(self)->state, self, PLAIT_OP_ACQUIRE, NULL);
}

static PyObject *tokens_aenter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return plait_op_new(TOKENS(self)->state, self, PLAIT_OP_ENTER, NULL);
}

static PyObject *tokens_aexit(PyObject *self, PyObject *const *Py_UNUSED(args),
                              Py_ssize_t Py_UNUSED(nargs))
{
    return plait_op_new(TOKENS(self)->state, self, PLAIT_OP_EXIT, NULL);
}

static PyObject *tokens_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"total", "lock", NULL};
    Py_ssize_t total;
    int lock;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "np", names, &total, &lock))
        return NULL;
    struct plait_state *state = plait_state_of_type(type);
    struct plait_tokens *t = state == NULL ? NULL : TOKENS(type->tp_alloc(type, 0));
    if (t == NULL)
        return NULL;
    t->state = state;
    t->total = t->free = total;
    t->lock = lock != 0;
    return (PyObject *)t;
}

/* Of both types: nobody waits, for each who does keeps the object. */
static void base_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define BLOCKING_DOC                                                                               \
    "Args:\n"                                                                                      \
    "    timeout: seconds to wait at most; None for ever.\n\n"                                     \
    "Returns:\n"                                                                                   \
    "    bool: False when the time was over.\n\n"                                                  \
    "Raises:\n"                                                                                    \
    "    ValueError: timeout is nan.\n"                                                            \
    "    RuntimeError: it would have to wait, and a loop runs in this thread."

#define FAST(f) (PyCFunction)(void (*)(void)) f, METH_FASTCALL
#define FAST_KW(f) (PyCFunction)(void (*)(void)) f, METH_FASTCALL | METH_KEYWORDS

static PyMethodDef tokens_methods[] = {
    {"acquire", tokens_acquire, METH_NOARGS,
     "acquire($self, /)\n--\n\n"
     "Wait for it, as a coroutine. Cancelling the wait takes nothing."},
    {"acquire_nowait", tokens_acquire_nowait, METH_NOARGS,
     "acquire_nowait($self, /)\n--\n\nTake it if it is free; whether it was."},
    {"acquire_blocking", FAST_KW(tokens_acquire_blocking),
     "acquire_blocking($self, timeout=None)\n--\n\n"
     "Wait for it, blocking this thread.\n\n"
     "A task that is stopped right after this may still have it: ``with`` gives it "
     "back.\n\n" BLOCKING_DOC},
    {"release", tokens_release, METH_NOARGS,
     "release($self, /)\n--\n\n"
     "Give it back. Any strand may do so.\n\n"
     "Raises:\n"
     "    RuntimeError: nobody has it."},
    {"__enter__", tokens_enter, METH_NOARGS, NULL},
    {"__exit__", FAST(tokens_exit), NULL},
    {"__aenter__", tokens_aenter, METH_NOARGS, NULL},
    {"__aexit__", FAST(tokens_aexit), NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef tokens_members[] = {
    {"_free", T_PYSSIZET, offsetof(struct plait_tokens, free), READONLY, NULL},
    {"_total", T_PYSSIZET, offsetof(struct plait_tokens, total), READONLY, NULL},
    {"_waiting", T_PYSSIZET, offsetof(struct plait_tokens, waits.len), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot tokens_slots[] = {
    {Py_tp_new, tokens_new},
    {Py_tp_dealloc, base_dealloc},
    {Py_tp_methods, tokens_methods},
    {Py_tp_members, tokens_members},
    {Py_tp_doc, "A number of tokens and those who wait for one. Base of plait.Lock."},
    {0, NULL},
};

static PyType_Spec tokens_spec = {
    .name = "plait._core.TokensBase",
    .basicsize = sizeof(struct plait_tokens),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = tokens_slots,
};

/* ---- events ---- */

static PyObject *event_set(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    EVENT(self)->set = true;
    while (plait_waits_wake(&EVENT(self)->waits))
        ;
    Py_RETURN_NONE;
}

static PyObject *event_clear(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    EVENT(self)->set = false;
    Py_RETURN_NONE;
}

static PyObject *event_is_set(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(EVENT(self)->set);
}

static PyObject *event_wait(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return plait_op_new(EVENT(self)->state, self, PLAIT_OP_WAIT, NULL);
}

static PyObject *event_wait_blocking(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                     PyObject *kwnames)
{
    struct plait_event *e = EVENT(self);
    PyObject *timeout;
    int64_t end;
    if (timeout_of("wait_blocking", args, nargs, kwnames, &timeout) < 0 ||
        end_of(timeout, &end) < 0)
        return NULL;
    if (e->set)
        Py_RETURN_TRUE;
    if (check_may_block(e->state, "wait_blocking()", "await wait()") < 0)
        return NULL;
    bool woken;
    int told = sleep_on(e->state, &e->waits, self, end, &woken);
    return told < 0 ? NULL : PyBool_FromLong(told);
}

static PyObject *event_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "", names))
        return NULL;
    struct plait_state *state = plait_state_of_type(type);
    struct plait_event *e = state == NULL ? NULL : EVENT(type->tp_alloc(type, 0));
    if (e != NULL)
        e->state = state;
    return (PyObject *)e;
}

static PyMethodDef event_methods[] = {
    {"set", event_set, METH_NOARGS,
     "set($self, /)\n--\n\nPut the flag up and wake all who wait. Any strand may."},
    {"clear", event_clear, METH_NOARGS,
     "clear($self, /)\n--\n\nTake the flag down. Who was woken before goes on all the same."},
    {"is_set", event_is_set, METH_NOARGS, "is_set($self, /)\n--\n\nWhether the flag is up."},
    {"wait", event_wait, METH_NOARGS, "wait($self, /)\n--\n\nWait for the flag, as a coroutine."},
    {"wait_blocking", FAST_KW(event_wait_blocking),
     "wait_blocking($self, timeout=None)\n--\n\n"
     "Wait for the flag, blocking this thread.\n\n" BLOCKING_DOC},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef event_members[] = {
    {"_waiting", T_PYSSIZET, offsetof(struct plait_event, waits.len), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot event_slots[] = {
    {Py_tp_new, event_new},
    {Py_tp_dealloc, base_dealloc},
    {Py_tp_methods, event_methods},
    {Py_tp_members, event_members},
    {Py_tp_doc, "A flag and those who wait for it. Base of plait.Event."},
    {0, NULL},
};

static PyType_Spec event_spec = {
    .name = "plait._core.EventBase",
    .basicsize = sizeof(struct plait_event),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = event_slots,
};

/* _pause_by(fn): a function of Python's that does nothing. */
static PyObject *pause_by(PyObject *module, PyObject *fn)
{
    Py_XSETREF(plait_state_of_module(module)->pause, Py_NewRef(fn));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"_pause_by", pause_by, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int plait_locks_exec(PyObject *module, struct plait_state *state)
{
    state->tokens_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &tokens_spec, NULL);
    if (state->tokens_type == NULL || PyModule_AddType(module, state->tokens_type) < 0)
        return -1;
    state->event_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &event_spec, NULL);
    if (state->event_type == NULL || PyModule_AddType(module, state->event_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
