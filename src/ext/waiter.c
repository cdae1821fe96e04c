/* waiter.c - ThreadWaiter: a thread that waits in a channel, a lock, a limiter or an event.
 *
 * Waking, and the end of the wait, are C: what stops a task's thread by an exception between two
 * of its steps finds no step in them. Such an exception cannot reach a thread that sleeps, so
 * plait_waiter_kick gets it up: the wait returns to Python, which raises what is due there and
 * otherwise waits on.
 *
 * Everything but the sleep itself happens with the interpreter's lock held.
 */
#include "channel.h"

#include <stddef.h>
#include <structmember.h>

struct thread_waiter {
    PyObject_HEAD
    struct plait_state *state;   /* borrows */
    struct plait_wait wait;      /* in a channel's list */
    PyObject *channel;           /* owns: its list may have the wait */
    PyThread_type_lock lock;     /* owns; held by nobody and everybody until someone wakes it */
    struct thread_waiter **slot; /* of the list of sleepers: what points here; NULL: awake */
    struct thread_waiter *next;  /* in that list */
    unsigned long ident;         /* who sleeps */
    bool woken;
    bool gone;
    bool kicked;
};

#define WAITER(o) ((struct thread_waiter *)(o))
#define WAITER_OF(w) PL_CONTAINER_OF(w, struct thread_waiter, wait)

static bool wake(struct thread_waiter *w)
{
    if (w->gone || w->woken)
        return false;
    w->woken = true;
    if (!w->kicked) /* else it is up already */
        PyThread_release_lock(w->lock);
    return true;
}

bool plait_waiter_wake(struct plait_wait *wait)
{
    if (wake(WAITER_OF(wait)))
        return true;
    (void)plait_waits_settle(wait);
    return false;
}

struct plait_wait *plait_waiter_of(struct plait_state *state, PyObject *waiter, PyObject *channel)
{
    if (!PyObject_TypeCheck(waiter, state->thread_waiter_type)) {
        PyErr_Format(PyExc_TypeError, "a ThreadWaiter is wanted, not %s", Py_TYPE(waiter)->tp_name);
        return NULL;
    }
    plait_waits_remove(&WAITER(waiter)->wait);
    Py_XSETREF(WAITER(waiter)->channel, Py_NewRef(channel));
    return &WAITER(waiter)->wait;
}

void plait_waiter_renew(struct plait_wait *wait)
{
    struct thread_waiter *w = WAITER_OF(wait);
    w->woken = w->kicked = false;
    (void)PyThread_acquire_lock(w->lock, NOWAIT_LOCK); /* whether it had to be or not */
}

void plait_waiter_kick(struct plait_state *state, unsigned long ident)
{
    for (struct thread_waiter *w = state->scope.sleepers; w != NULL; w = w->next) {
        if (w->ident == ident && !w->woken && !w->kicked) {
            w->kicked = true;
            PyThread_release_lock(w->lock);
        }
    }
}

/* What a thread that is gone was handed is for the next. */
static void hand_on(struct thread_waiter *w)
{
    struct plait_waits *list = w->wait.woken;
    if (!plait_waits_settle(&w->wait))
        return;
    if (PyObject_TypeCheck(w->channel, w->state->tokens_type))
        plait_tokens_give((struct plait_tokens *)w->channel);
    else if (PyObject_TypeCheck(w->channel, w->state->channel_base_type))
        (void)plait_waits_wake(list);
}

/* _threads_gone(): in a child after a fork, which has the thread that forked and no other. */
static PyObject *threads_gone(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    struct plait_scope_state *scope = &plait_state_of_module(module)->scope;
    struct thread_waiter **sleepers = &scope->sleepers;
    scope->forks++;
    for (struct thread_waiter *w = *sleepers; w != NULL; w = w->next) {
        w->gone = true;
        plait_waits_remove(&w->wait);
    }
    while (*sleepers != NULL) {
        struct thread_waiter *w = *sleepers;
        *sleepers = w->next;
        w->slot = NULL;
        w->next = NULL;
        hand_on(w); /* it stays where it is: the thread's own references are never given up */
    }
    Py_RETURN_NONE;
}

/* ---- the wait ---- */

static PyObject *waiter_wake(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(wake(WAITER(self)));
}

static void fall_asleep(struct thread_waiter *w)
{
    struct thread_waiter **list = &w->state->scope.sleepers;
    w->ident = PyThread_get_thread_ident();
    w->kicked = false;
    w->next = *list;
    w->slot = list;
    if (w->next != NULL)
        w->next->slot = &w->next;
    *list = w;
}

static void get_up(struct thread_waiter *w)
{
    *w->slot = w->next;
    if (w->next != NULL)
        w->next->slot = w->slot;
    w->slot = NULL;
    w->next = NULL;
}

int plait_waiter_sleep(PyObject *self, int64_t end)
{
    struct thread_waiter *w = WAITER(self);
    if (w->slot != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a thread waits by this waiter already");
        return -1;
    }
    if (w->woken)
        return 1;
    PY_TIMEOUT_T us = -1;
    if (end != INT64_MAX) {
        int64_t left = end - pl_sys_default()->now();
        us = left <= 0 ? 0 : left / 1000 + 1;
    }
    Py_INCREF(self);
    fall_asleep(w);
    PyLockStatus status;
    Py_BEGIN_ALLOW_THREADS status = PyThread_acquire_lock_timed(w->lock, us, 1);
    Py_END_ALLOW_THREADS get_up(w);
    bool woken = w->woken;
    bool again = w->kicked || status == PY_LOCK_INTR;
    if (w->kicked && status != PY_LOCK_ACQUIRED)
        (void)PyThread_acquire_lock(w->lock, NOWAIT_LOCK);
    w->kicked = false;
    Py_DECREF(self);
    if (woken)
        return 1;
    if (!again)
        return 0;
    return PyErr_CheckSignals() < 0 ? -1 : PLAIT_LOOK;
}

/* park(seconds): True when woken, False when the time is over, None to look around and call
 * again. Nobody else may be in it. */
static PyObject *waiter_park(PyObject *self, PyObject *arg)
{
    int64_t end = INT64_MAX;
    if (arg != Py_None) {
        double seconds = PyFloat_AsDouble(arg);
        if (seconds == -1.0 && PyErr_Occurred())
            return NULL;
        if (seconds < 3e8)
            end = pl_sys_default()->now() + (seconds <= 0 ? 0 : (int64_t)(seconds * 1e9));
    }
    int told = plait_waiter_sleep(self, end);
    if (told == PLAIT_LOOK)
        Py_RETURN_NONE;
    return told < 0 ? NULL : PyBool_FromLong(told);
}

/* ---- the type ---- */

static PyObject *waiter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "", names))
        return NULL;
    struct plait_state *state = plait_state_of_type(type);
    struct thread_waiter *w = state == NULL ? NULL : WAITER(type->tp_alloc(type, 0));
    if (w == NULL)
        return NULL;
    w->state = state;
    w->wait.thread = true;
    w->lock = PyThread_allocate_lock();
    if (w->lock == NULL) {
        Py_DECREF(w);
        return PyErr_NoMemory();
    }
    (void)PyThread_acquire_lock(w->lock, NOWAIT_LOCK);
    return (PyObject *)w;
}

static void waiter_dealloc(PyObject *self)
{
    struct thread_waiter *w = WAITER(self);
    PyTypeObject *type = Py_TYPE(self);
    plait_waits_remove(&w->wait);
    (void)plait_waits_settle(&w->wait);
    Py_CLEAR(w->channel);
    if (w->lock != NULL) {
        /* A lock is freed open. */
        (void)PyThread_acquire_lock(w->lock, NOWAIT_LOCK);
        PyThread_release_lock(w->lock);
        PyThread_free_lock(w->lock);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef waiter_methods[] = {
    {"wake", waiter_wake, METH_NOARGS,
     "wake($self, /)\n--\n\n"
     "Let the thread go on; False when it has gone away or was woken already."},
    {"_park", waiter_park, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef waiter_members[] = {
    {"woken", T_BOOL, offsetof(struct thread_waiter, woken), 0, "Whether someone woke it."},
    {"gone", T_BOOL, offsetof(struct thread_waiter, gone), 0, "Whether it waits no more."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot waiter_slots[] = {
    {Py_tp_new, waiter_new},
    {Py_tp_dealloc, waiter_dealloc},
    {Py_tp_methods, waiter_methods},
    {Py_tp_members, waiter_members},
    {Py_tp_doc, "A thread that waits. Base of plait's own."},
    {0, NULL},
};

static PyType_Spec waiter_spec = {
    .name = "plait._core.ThreadWaiterBase",
    .basicsize = sizeof(struct thread_waiter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = waiter_slots,
};

static PyMethodDef functions[] = {
    {"_threads_gone", threads_gone, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int plait_waiter_exec(PyObject *module, struct plait_state *state)
{
    if (PyModule_AddFunctions(module, functions) < 0)
        return -1;
    state->thread_waiter_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &waiter_spec, NULL);
    if (state->thread_waiter_type == NULL)
        return -1;
    return PyModule_AddType(module, state->thread_waiter_type);
}
