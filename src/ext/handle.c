/* handle.c - Handle and TimerHandle: a callback with its arguments and context.
 *
 * Invariants:
 *   - A handle in the ready queue or among the posts owns a reference to itself.
 *   - So does a started timer handle, for the heap; stopping gives it up.
 *   - callback is NULL only after cancel, and then there are no arguments; a handle that is
 *     cancelled while it runs keeps them until the call has returned.
 *   - The types derive from asyncio's, for isinstance; nothing of those classes is run.
 * Runs in the loop's thread, with the interpreter attached. cancel may be called by any
 * thread that holds the interpreter's lock; as in asyncio it does not wake the loop.
 */
#include "args.h"
#include "loop.h"

#include <structmember.h>

/* A thread that waits for the end of a run; lies on its stack. */
struct plait_handle_wait {
    PyThread_type_lock lock; /* released by the runner */
    struct plait_handle_wait *next;
};

static void handle_run(struct pl_loop *core, struct pl_op *op);
static void timer_run(struct pl_loop *core, struct pl_op *op);

/* ---- making ------------------------------------------------------------- */

/* An untracked handle from the list or of new memory, with nothing in it: dealloc leaves it so. */
static inline HandleObject *handle_alloc(struct plait_free_list *list, PyTypeObject *type)
{
    bool fresh = list->len == 0;
    HandleObject *h = (HandleObject *)plait_free_list_new(list, type);
    if (PL_UNLIKELY(h == NULL))
        return NULL;
    if (PL_UNLIKELY(fresh)) {
        h->args = h->callback = h->unused = h->context = h->repr = h->stack = NULL;
        h->spare[0] = h->spare[1] = NULL;
        for (int i = 0; i <= PLAIT_HANDLE_INLINE; i++)
            h->inlined[i] = NULL;
        h->waits = NULL;
    }
    h->nargs = 0;
    h->cancelled = h->running = h->threadsafe = false;
    return h;
}

static int handle_fill(HandleObject *h, LoopObject *loop, PyObject *callback, PyObject *const *args,
                       Py_ssize_t nargs, PyObject *context)
{
    h->loop = (LoopObject *)Py_NewRef(loop);
    /* As in asyncio, None stands for "not given". */
    h->context =
        context != NULL && context != Py_None ? Py_NewRef(context) : PyContext_CopyCurrent();
    if (PL_UNLIKELY(h->context == NULL))
        return -1;
    if (PL_LIKELY(nargs <= PLAIT_HANDLE_INLINE)) {
        for (Py_ssize_t i = 0; i < nargs; i++)
            h->inlined[i + 1] = Py_NewRef(args[i]);
    } else {
        h->args = PyTuple_New(nargs);
        if (h->args == NULL)
            return -1;
        for (Py_ssize_t i = 0; i < nargs; i++)
            PyTuple_SET_ITEM(h->args, i, Py_NewRef(args[i]));
    }
    h->nargs = (uint32_t)nargs;
    h->callback = Py_NewRef(callback);
    if (PL_UNLIKELY(loop->debug)) {
        h->stack = PyObject_CallNoArgs(loop->state->asyncio_extract_stack);
        if (h->stack == NULL)
            return -1;
    }
    return 0;
}

static inline HandleObject *handle_new(LoopObject *loop, PyTypeObject *type, PyObject *callback,
                                       PyObject *const *args, Py_ssize_t nargs, PyObject *context)
{
    HandleObject *h = handle_alloc(&loop->state->loop.handles, type);
    if (PL_UNLIKELY(h == NULL))
        return NULL;
    h->post = (struct pl_post){.op.run = handle_run};
    int r = handle_fill(h, loop, callback, args, nargs, context);
    PyObject_GC_Track(h);
    if (PL_UNLIKELY(r < 0))
        Py_CLEAR(h);
    return h;
}

HandleObject *plait_handle_new(LoopObject *loop, PyObject *callback, PyObject *const *args,
                               Py_ssize_t nargs, PyObject *context)
{
    return handle_new(loop, loop->state->handle_type, callback, args, nargs, context);
}

HandleObject *plait_handle_new_threadsafe(LoopObject *loop, PyObject *callback,
                                          PyObject *const *args, Py_ssize_t nargs,
                                          PyObject *context)
{
    struct plait_state *state = loop->state;
    HandleObject *h =
        handle_new(loop, state->threadsafe_handle_type, callback, args, nargs, context);
    if (h != NULL)
        h->threadsafe = state->loop.safe_handles;
    return h;
}

TimerHandleObject *plait_timer_handle_new(LoopObject *loop, double when, PyObject *callback,
                                          PyObject *const *args, Py_ssize_t nargs,
                                          PyObject *context)
{
    TimerHandleObject *t = (TimerHandleObject *)handle_alloc(&loop->state->loop.timer_handles,
                                                             loop->state->timer_handle_type);
    if (t == NULL)
        return NULL;
    t->handle.post = (struct pl_post){.op.run = handle_run};
    t->timer = (struct pl_timer){.op.run = timer_run};
    t->when = when;
    int r = handle_fill(&t->handle, loop, callback, args, nargs, context);
    PyObject_GC_Track(t);
    if (r < 0)
        Py_CLEAR(t);
    return t;
}

/* ---- running ------------------------------------------------------------ */

static PyObject *const *handle_args(HandleObject *h)
{
    return h->args != NULL ? &PyTuple_GET_ITEM(h->args, 0) : h->inlined + 1;
}

static void drop_args(HandleObject *h)
{
    uint32_t n = h->nargs;
    bool in_tuple = h->args != NULL;
    h->nargs = 0;
    Py_CLEAR(h->args);
    for (uint32_t i = 0; !in_tuple && i < n; i++)
        Py_CLEAR(h->inlined[i + 1]);
}

static void handle_error(HandleObject *h)
{
    LoopObject *loop = h->loop;
    PyObject *exc = NULL, *type = NULL, *tb = NULL;
    PyErr_Fetch(&type, &exc, &tb);
    PyObject *message = PyUnicode_FromFormat("Exception in callback %R", h->callback);
    if (message == NULL)
        PyErr_Clear();
    PyErr_Restore(type, exc, tb);
    plait_loop_handle_error(loop, message, "handle", (PyObject *)h,
                            h->stack != NULL ? "source_traceback" : NULL, h->stack);
    Py_XDECREF(message);
}

/* Lets those go on that wait for the end of the run. */
static void end_waits(HandleObject *h)
{
    while (h->waits != NULL) {
        struct plait_handle_wait *wait = h->waits;
        h->waits = wait->next; /* read before the release: the node is gone afterwards */
        PyThread_release_lock(wait->lock);
    }
}

/* From 3.14 on, asyncio answers another thread that asks about a handle, or cancels it, only
 * when its callback does not run at that moment. 0, or -1 with an exception of a signal
 * handler. */
static int await_run(HandleObject *h)
{
    if (PL_LIKELY(!h->threadsafe || !h->running || h->runner == PyThread_get_thread_ident()))
        return 0;
    struct plait_handle_wait wait = {.lock = PyThread_allocate_lock(), .next = h->waits};
    if (wait.lock == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    (void)PyThread_acquire_lock(wait.lock, WAIT_LOCK);
    h->waits = &wait;
    int result = 0;
    PyLockStatus status;
    do {
        Py_BEGIN_ALLOW_THREADS;
        status = PyThread_acquire_lock_timed(wait.lock, -1, 1);
        Py_END_ALLOW_THREADS;
        result = status == PY_LOCK_INTR ? PyErr_CheckSignals() : 0;
    } while (status == PY_LOCK_INTR && result == 0);
    for (struct plait_handle_wait **at = &h->waits; *at != NULL; at = &(*at)->next) {
        if (*at == &wait) { /* the signal came first */
            *at = wait.next;
            break;
        }
    }
    PyThread_release_lock(wait.lock);
    PyThread_free_lock(wait.lock);
    return result;
}

void plait_handle_call(HandleObject *h)
{
    if (h->cancelled || h->callback == NULL)
        return;
    LoopObject *loop = h->loop;
    int64_t t0 = PL_UNLIKELY(loop->debug) ? loop->core.sys->now() : 0;
    bool outer = !h->running;
    h->running = true;
    if (h->threadsafe)
        h->runner = PyThread_get_thread_ident();
    PyObject *result = NULL;
    if (PyContext_Enter(h->context) == 0) {
        size_t flags = h->args == NULL ? PY_VECTORCALL_ARGUMENTS_OFFSET : 0;
        result = PyObject_Vectorcall(h->callback, handle_args(h), h->nargs | flags, NULL);
        if (PyContext_Exit(h->context) < 0)
            Py_CLEAR(result);
    }
    if (PL_UNLIKELY(result == NULL))
        handle_error(h);
    else
        Py_DECREF(result);
    if (PL_UNLIKELY(t0 != 0))
        plait_loop_report_slow(loop, (PyObject *)h, t0);
    if (outer) {
        h->running = false;
        if (PL_UNLIKELY(h->threadsafe))
            end_waits(h);
        if (h->cancelled) {
            Py_CLEAR(h->callback);
            drop_args(h);
        }
    }
}

static void handle_run(struct pl_loop *core, struct pl_op *op)
{
    (void)core;
    HandleObject *h = PL_CONTAINER_OF(op, HandleObject, post.op);
    plait_handle_call(h);
    Py_DECREF(h);
}

static void timer_run(struct pl_loop *core, struct pl_op *op)
{
    (void)core;
    TimerHandleObject *t = PL_CONTAINER_OF(op, TimerHandleObject, timer.op);
    plait_handle_call(&t->handle);
    Py_DECREF(t);
}

PyObject *plait_handle_of_op(struct pl_op *op)
{
    if (op->run == handle_run)
        return (PyObject *)PL_CONTAINER_OF(op, HandleObject, post.op);
    if (op->run == timer_run)
        return (PyObject *)PL_CONTAINER_OF(op, TimerHandleObject, timer.op);
    return NULL;
}

/* ---- the types ---------------------------------------------------------- */

static int handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    HandleObject *h = (HandleObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(h->loop);
    Py_VISIT(h->callback);
    Py_VISIT(h->context);
    Py_VISIT(h->stack);
    Py_VISIT(h->repr);
    Py_VISIT(h->args);
    for (uint32_t i = 0; h->args == NULL && i < h->nargs; i++)
        Py_VISIT(h->inlined[i + 1]);
    return 0;
}

/* All but the loop. */
static inline void drop_fields(HandleObject *h)
{
    if (h->nargs > 0)
        drop_args(h);
    Py_CLEAR(h->callback);
    Py_CLEAR(h->context);
    if (PL_UNLIKELY(h->stack != NULL || h->repr != NULL)) {
        Py_CLEAR(h->stack);
        Py_CLEAR(h->repr);
    }
}

static int handle_clear(PyObject *self)
{
    HandleObject *h = (HandleObject *)self;
    drop_fields(h);
    Py_CLEAR(h->loop);
    return 0;
}

static void handle_dealloc(PyObject *self)
{
    HandleObject *h = (HandleObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    /* The list's place depends on the version; the offset may be negative. */
    if (PL_UNLIKELY(*(PyObject **)(void *)((char *)self + type->tp_weaklistoffset) != NULL))
        PyObject_ClearWeakRefs(self);
    drop_fields(h);
    /* The loop goes last: with it perhaps the module goes, and its lists. */
    LoopObject *loop = h->loop;
    h->loop = NULL;
    if (PL_LIKELY(loop != NULL)) {
        struct plait_loop_state *lists = &loop->state->loop;
        bool timer = type == loop->state->timer_handle_type;
        bool kept = plait_free_list_park(timer ? &lists->timer_handles : &lists->handles, self);
        Py_DECREF(loop);
        if (PL_LIKELY(kept))
            return;
    }
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(cancel_doc, "cancel($self, /)\n--\n\n"
                         "Cancel the callback; without effect when it has been called.");

static PyObject *handle_cancel(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    HandleObject *h = (HandleObject *)self;
    if (await_run(h) < 0)
        return NULL;
    if (h->cancelled)
        Py_RETURN_NONE;
    h->cancelled = true;
    if (h->running || h->loop == NULL)
        Py_RETURN_NONE;
    /* In debug mode its text stays. */
    PyObject *text = h->loop->debug ? PyObject_Repr(self) : NULL;
    if (text == NULL)
        PyErr_Clear(); /* a repr that fails is no reason not to cancel */
    Py_XSETREF(h->repr, text);
    drop_args(h);
    Py_CLEAR(h->callback);
    Py_RETURN_NONE;
}

static PyObject *timer_cancel(PyObject *self, PyObject *ignored)
{
    TimerHandleObject *t = (TimerHandleObject *)self;
    LoopObject *loop = t->handle.loop;
    PyObject *result = handle_cancel(self, ignored);
    if (loop != NULL && loop->core_ready && pl_timer_stop(&loop->core, &t->timer))
        Py_DECREF(self); /* the heap's reference; the caller holds another */
    return result;
}

PyDoc_STRVAR(cancelled_doc, "cancelled($self, /)\n--\n\nTell whether it has been cancelled.");

static PyObject *handle_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    HandleObject *h = (HandleObject *)self;
    return await_run(h) < 0 ? NULL : PyBool_FromLong(h->cancelled);
}

PyDoc_STRVAR(get_context_doc, "get_context($self, /)\n--\n\n"
                              "Return the contextvars.Context that the callback runs in.");

static PyObject *handle_get_context(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    HandleObject *h = (HandleObject *)self;
    return Py_NewRef(h->context != NULL ? h->context : Py_None);
}

PyDoc_STRVAR(run_doc, "_run($self, /)\n--\n\nCall the callback now, as the loop would.");

static PyObject *handle_run_now(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    plait_handle_call((HandleObject *)self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(when_doc, "when($self, /)\n--\n\n"
                       "Return the time, in seconds of loop.time(), for which it is scheduled.");

static PyObject *timer_when(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyFloat_FromDouble(((TimerHandleObject *)self)->when);
}

static PyObject *get_callback(PyObject *self, void *Py_UNUSED(closure))
{
    HandleObject *h = (HandleObject *)self;
    return Py_NewRef(h->callback != NULL && !h->cancelled ? h->callback : Py_None);
}

static PyObject *get_args(PyObject *self, void *Py_UNUSED(closure))
{
    HandleObject *h = (HandleObject *)self;
    if (h->callback == NULL || h->cancelled)
        Py_RETURN_NONE;
    if (h->args != NULL)
        return Py_NewRef(h->args);
    PyObject *args = PyTuple_New(h->nargs);
    for (uint32_t i = 0; args != NULL && i < h->nargs; i++)
        PyTuple_SET_ITEM(args, i, Py_NewRef(h->inlined[i + 1]));
    return args;
}

static PyObject *get_cancelled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((HandleObject *)self)->cancelled);
}

static PyObject *get_loop(PyObject *self, void *Py_UNUSED(closure))
{
    HandleObject *h = (HandleObject *)self;
    return Py_NewRef(h->loop != NULL ? (PyObject *)h->loop : Py_None);
}

static PyObject *get_stack(PyObject *self, void *Py_UNUSED(closure))
{
    HandleObject *h = (HandleObject *)self;
    return Py_NewRef(h->stack != NULL ? h->stack : Py_None);
}

static PyObject *get_repr(PyObject *self, void *Py_UNUSED(closure))
{
    HandleObject *h = (HandleObject *)self;
    return Py_NewRef(h->repr != NULL ? h->repr : Py_None);
}

static PyObject *get_context(PyObject *self, void *Py_UNUSED(closure))
{
    return handle_get_context(self, NULL);
}

static PyObject *get_when(PyObject *self, void *Py_UNUSED(closure))
{
    return timer_when(self, NULL);
}

static PyObject *get_scheduled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(pl_timer_active(&((TimerHandleObject *)self)->timer));
}

static PyObject *handle_repr(PyObject *self)
{
    HandleObject *h = (HandleObject *)self;
    LoopObject *loop = h->loop;
    PyObject *when = NULL;
    if (h->callback == NULL && h->repr != NULL)
        return Py_NewRef(h->repr);
    if (loop != NULL && Py_IS_TYPE(self, loop->state->timer_handle_type)) {
        PyObject *number = PyFloat_FromDouble(((TimerHandleObject *)self)->when);
        when = number == NULL ? NULL : PyUnicode_FromFormat(" when=%R", number);
        Py_XDECREF(number);
        if (when == NULL)
            return NULL;
    }
    const char *name = when != NULL ? "TimerHandle" : "Handle";
    PyObject *repr;
    if (h->cancelled && h->callback == NULL) {
        repr = PyUnicode_FromFormat("<%s cancelled%V>", name, when, "");
    } else {
        PyObject *args = get_args(self, NULL);
        repr = args == NULL
                   ? NULL
                   : PyUnicode_FromFormat("<%s%s%V %R%R>", name, h->cancelled ? " cancelled" : "",
                                          when, "", h->callback, args);
        Py_XDECREF(args);
    }
    Py_XDECREF(when);
    return repr;
}

/* Timer handles compare by time, as asyncio's do. */
static PyObject *timer_compare(PyObject *a, PyObject *b, int op)
{
    if (!PyObject_TypeCheck(b, Py_TYPE(a)))
        Py_RETURN_NOTIMPLEMENTED;
    double x = ((TimerHandleObject *)a)->when;
    double y = ((TimerHandleObject *)b)->when;
    if (op == Py_EQ || op == Py_NE)
        return PyBool_FromLong((a == b) == (op == Py_EQ));
    Py_RETURN_RICHCOMPARE(x, y, op);
}

static Py_hash_t timer_hash(PyObject *self)
{
    return (Py_hash_t)((uintptr_t)self >> 4);
}

/* What all types have: they derive from asyncio's, not from each other. */
// clang-format off
#define COMMON_METHODS                                                         \
    {"cancelled", handle_cancelled, METH_NOARGS, cancelled_doc},               \
    {"get_context", handle_get_context, METH_NOARGS, get_context_doc},         \
    {"_run", handle_run_now, METH_NOARGS, run_doc}
#define COMMON_GETSET                                                          \
    {"_callback", get_callback, NULL, "The callback, or None once cancelled.", NULL}, \
    {"_args", get_args, NULL, "Its arguments, or None once cancelled.", NULL}, \
    {"_cancelled", get_cancelled, NULL, "Whether it has been cancelled.", NULL}, \
    {"_loop", get_loop, NULL, "The loop.", NULL},                              \
    {"_source_traceback", get_stack, NULL, "Where it was made, in debug mode.", NULL}, \
    {"_repr", get_repr, NULL, "Its text when it was cancelled, in debug mode.", NULL}, \
    {"_context", get_context, NULL, "Where the callback is called.", NULL}
// clang-format on

static PyMethodDef handle_methods[] = {
    {"cancel", handle_cancel, METH_NOARGS, cancel_doc},
    COMMON_METHODS,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef handle_getset[] = {
    COMMON_GETSET,
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, (void *)"A callback in the loop's queue; made by call_soon and its kin."},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_methods, handle_methods},
    {Py_tp_getset, handle_getset},
    {Py_tp_repr, handle_repr},
    {0, NULL},
};

/* Not immutable: the bases are not, and from 3.14 on an immutable type must not change with
 * its base. */
#define HANDLE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION)

static PyType_Spec handle_spec = {
    .name = "plait._core.Handle",
    .basicsize = sizeof(HandleObject),
    .flags = HANDLE_FLAGS,
    .slots = handle_slots,
};

static PyType_Spec threadsafe_spec = {
    .name = "plait._core.ThreadsafeHandle",
    .basicsize = sizeof(HandleObject),
    .flags = HANDLE_FLAGS,
    .slots = handle_slots,
};

static PyMethodDef timer_methods[] = {
    {"cancel", timer_cancel, METH_NOARGS, cancel_doc},
    {"when", timer_when, METH_NOARGS, when_doc},
    COMMON_METHODS,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef timer_getset[] = {
    COMMON_GETSET,
    {"_scheduled", get_scheduled, NULL, "Whether it waits for its time.", NULL},
    {"_when", get_when, NULL, "The time for which it is scheduled.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot timer_slots[] = {
    {Py_tp_doc, (void *)"A callback for a later time; made by call_later and call_at."},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_methods, timer_methods},
    {Py_tp_getset, timer_getset},
    {Py_tp_repr, handle_repr},
    {Py_tp_richcompare, timer_compare},
    {Py_tp_hash, timer_hash},
    {0, NULL},
};

static PyType_Spec timer_spec = {
    .name = "plait._core.TimerHandle",
    .basicsize = sizeof(TimerHandleObject),
    .flags = HANDLE_FLAGS,
    .slots = timer_slots,
};

/* Makes a type of ours from a class of asyncio.events. */
static PyTypeObject *derive(PyObject *module, PyType_Spec *spec, PyObject *events, const char *name)
{
    PyObject *base = PyObject_GetAttrString(events, name);
    if (base == NULL)
        return NULL;
    PyTypeObject *type = NULL;
    if (!PyType_Check(base) ||
        ((PyTypeObject *)base)->tp_basicsize > (Py_ssize_t)offsetof(HandleObject, inlined[1]))
        PyErr_Format(PyExc_ImportError, "asyncio.events.%s is not as plait knows it: %R", name,
                     base);
    else
        type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, base);
    Py_DECREF(base);
    if (type != NULL && type->tp_weaklistoffset == 0) {
        PyErr_Format(PyExc_ImportError, "asyncio.events.%s has no weak references", name);
        Py_CLEAR(type);
    }
    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

int plait_handle_types(PyObject *module, struct plait_state *state)
{
    PyObject *events = PyImport_ImportModule("asyncio.events");
    if (events == NULL)
        return -1;
    state->handle_type = derive(module, &handle_spec, events, "Handle");
    if (state->handle_type != NULL)
        state->timer_handle_type = derive(module, &timer_spec, events, "TimerHandle");
    if (state->timer_handle_type != NULL) {
        state->loop.safe_handles = PyObject_HasAttrString(events, "_ThreadSafeHandle");
        state->threadsafe_handle_type =
            state->loop.safe_handles ? derive(module, &threadsafe_spec, events, "_ThreadSafeHandle")
                                     : (PyTypeObject *)Py_NewRef(state->handle_type);
    }
    Py_DECREF(events);
    return state->threadsafe_handle_type == NULL ? -1 : 0;
}
