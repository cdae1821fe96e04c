/* loop.c - plait._core.Loop: the hot methods of the event loop, and its run.
 *
 * Sections: checks and errors; transports and forks; the run; what a closed loop drops; the
 * type. Scheduling is in loop_schedule.c.
 *
 * The type is the C half of plait.Loop, which adds the rest of asyncio's interface by
 * inheriting, after this type, from the interpreter's own selector loop. The members
 * _closed, _debug, _stopping, _task_factory and _thread_id are that class's attributes,
 * kept here so that both halves see one copy.
 *
 * What the core holds (handles in the queue and the heap, watches, transports) is owned
 * through references that the binding took when it handed them over. traverse visits
 * them, so that a loop dropped without close, and all that hangs on it, is collected.
 */
#include "loop.h"

#include "args.h"
#include "connect.h"
#include "following.h"
#include "generators.h"
#include "rota.h"
#include "watch.h"

#include <errno.h>
#include <structmember.h>

/* Polls left out in a row while callbacks are ready, and for how long at most: asking the
 * kernel costs more than a short callback does. */
#define MAX_SKIPPED_POLLS 64
#define MAX_SKIPPED_NS 50000
/* With more callbacks than this in one iteration, asking is cheap beside them. */
#define MANY_CALLBACKS 16
/* While iterations between two looks at the clock take less than this, three go without one. */
#define QUICK_NS 8000

/* ---- checks and errors -------------------------------------------------- */

int plait_loop_check(LoopObject *loop)
{
    if (PL_LIKELY(!loop->closed && loop->core_ready))
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
    return -1;
}

void plait_loop_handle_error(LoopObject *loop, PyObject *message, const char *key1,
                             PyObject *value1, const char *key2, PyObject *value2)
{
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb != NULL && exc != NULL)
        (void)PyException_SetTraceback(exc, tb);
    if (exc == NULL || PyErr_GivenExceptionMatches(exc, PyExc_SystemExit) ||
        PyErr_GivenExceptionMatches(exc, PyExc_KeyboardInterrupt)) {
        if (loop->raised == NULL)
            loop->raised = Py_XNewRef(exc);
        loop->halt = 1;
        goto done;
    }
    PyObject *context = Py_BuildValue("{s:O, s:O}", "message", message != NULL ? message : Py_None,
                                      "exception", exc);
    if (context == NULL || (key1 != NULL && PyDict_SetItemString(context, key1, value1) < 0) ||
        (key2 != NULL && PyDict_SetItemString(context, key2, value2) < 0)) {
        PyErr_WriteUnraisable((PyObject *)loop);
        Py_XDECREF(context);
        goto done;
    }
    PyObject *result = PyObject_CallMethodOneArg((PyObject *)loop,
                                                 loop->state->str_call_exception_handler, context);
    Py_DECREF(context);
    if (result == NULL) {
        /* The handler lets SystemExit and KeyboardInterrupt through. */
        if (loop->raised == NULL) {
            PyObject *t2, *e2, *tb2;
            PyErr_Fetch(&t2, &e2, &tb2);
            PyErr_NormalizeException(&t2, &e2, &tb2);
            if (tb2 != NULL)
                (void)PyException_SetTraceback(e2, tb2);
            loop->raised = e2;
            Py_XDECREF(t2);
            Py_XDECREF(tb2);
        } else {
            PyErr_WriteUnraisable((PyObject *)loop);
        }
        loop->halt = 1;
    }
    Py_XDECREF(result);
done:
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
}

void plait_loop_report_slow(LoopObject *loop, PyObject *what, int64_t t0)
{
    double seconds = (double)(loop->core.sys->now() - t0) / (double)PL_NSEC_PER_SEC;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyObject *number = PyFloat_FromDouble(seconds);
    PyObject *result = NULL;
    if (number != NULL)
        result = PyObject_CallMethodObjArgs((PyObject *)loop, loop->state->str_report_slow, what,
                                            number, NULL);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)loop);
    Py_XDECREF(result);
    Py_XDECREF(number);
    PyErr_Restore(type, exc, tb);
}

/* ---- transports and forks ------------------------------------------------ */

PyDoc_STRVAR(new_transport_doc,
             "_new_transport($self, sock, protocol, waiter, extra, server, context, /)\n--\n\n"
             "Make the transport of a connected, non-blocking stream socket.");

static PyObject *loop_new_transport(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    LoopObject *loop = (LoopObject *)self;
    if (nargs != 6)
        return PyErr_Format(PyExc_TypeError, "_new_transport() takes 6 arguments, got %zd", nargs);
    if (plait_loop_check(loop) < 0)
        return NULL;
    int fd = plait_watch_fd(args[0]);
    if (fd < 0)
        return NULL;
    plait_watch_evict(loop, fd);
    return plait_transport_new(loop, fd, args[0], args[1], args[2], args[3], args[4], args[5], NULL,
                               0);
}

PyDoc_STRVAR(after_fork_doc, "_after_fork($self, /)\n--\n\n"
                             "In a forked child: let go of what the parent's loop uses.");

static PyObject *loop_after_fork(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = (LoopObject *)self;
    if (loop->core_ready)
        pl_loop_after_fork(&loop->core);
    Py_RETURN_NONE;
}

/* ---- the run ------------------------------------------------------------ */

static int poller_failed(LoopObject *loop, int code)
{
    (void)plait_raise(loop->state, code,
                      code == PL_EFORKED ? "cannot run the event loop" : "the poller failed");
    return -1;
}

/* Looks for events for a moment, with the interpreter detached. 1 when there are, or the loop has
 * something to do; 0 to sleep, until *timeout; -1 with an exception set. */
static int look_on(LoopObject *loop, int64_t *timeout)
{
    int r;
    Py_BEGIN_ALLOW_THREADS;
    plait_loop_wake_late(loop, NULL);
    r = pl_loop_busy_poll(&loop->core, *timeout);
    Py_END_ALLOW_THREADS;
    if (r < 0 && r != -EINTR)
        return poller_failed(loop, r);
    if (PyErr_CheckSignals() < 0)
        return -1;
    *timeout = pl_loop_timeout(&loop->core);
    return r != 0 || loop->stopping || *timeout == 0;
}

/* Waits with the interpreter detached. 0, or -1 with an exception set by a signal's
 * handler. */
static int wait_detached(LoopObject *loop, int64_t timeout)
{
    int r;
    if (pl_loop_busy_pays(&loop->core)) {
        r = look_on(loop, &timeout);
        if (r != 0)
            return r < 0 ? -1 : 0;
    }
    Py_BEGIN_ALLOW_THREADS;
    plait_loop_wake_late(loop, NULL);
    r = pl_loop_wait(&loop->core, timeout);
    Py_END_ALLOW_THREADS;
    if (r >= 0 || r == -EINTR)
        return PyErr_CheckSignals();
    return poller_failed(loop, r);
}

static int wait_at_once(LoopObject *loop)
{
    plait_loop_wake_late(loop, NULL);
    int r = pl_loop_wait(&loop->core, 0);
    if (r < 0 && r != -EINTR)
        return poller_failed(loop, r);
    return PyErr_CheckSignals();
}

static PyObject *run_until_stopped(LoopObject *loop)
{
    struct pl_loop *core = &loop->core;
    if (plait_loop_check(loop) < 0)
        return NULL;
    if (!pl_loop_is_ours(core))
        return plait_raise(loop->state, PL_EFORKED, "cannot run the event loop");
    int skipped = MAX_SKIPPED_POLLS; /* the first iteration always polls */
    int64_t polled = 0;
    int64_t seen = 0; /* the clock when it was last looked at here */
    bool quick = false;
    for (;;) {
        int64_t timeout = loop->stopping ? 0 : pl_loop_timeout(core);
        if (timeout != 0) {
            if (wait_detached(loop, timeout) < 0)
                return NULL;
            skipped = 0;
        } else {
            bool due = skipped >= MAX_SKIPPED_POLLS || loop->stopping ||
                       pl_queue_len(&core->ready) > MANY_CALLBACKS;
            /* Reading the clock costs as much as a short iteration: a few may go unseen. */
            if (due || !quick || (skipped & 3) == 0) {
                int64_t now = core->sys->now();
                quick = now - seen < QUICK_NS;
                seen = now;
                due = due || now - polled > MAX_SKIPPED_NS;
            }
            skipped++;
            if (due) {
                if (wait_at_once(loop) < 0)
                    return NULL;
                skipped = 0;
                polled = seen;
            }
        }
        if (PL_UNLIKELY(pl_loop_collect(core) < 0))
            return PyErr_NoMemory();
        (void)pl_loop_run(core, &loop->halt);
        if (PL_UNLIKELY(loop->halt)) {
            loop->halt = 0;
            PyObject *raised = loop->raised;
            loop->raised = NULL;
            if (raised != NULL) {
                PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
                Py_DECREF(raised);
            }
            return NULL;
        }
        if (loop->stopping)
            break;
        if (PL_UNLIKELY(loop->closed))
            return PyErr_Format(PyExc_RuntimeError, "Event loop is closed");
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(run_doc, "_run($self, /)\n--\n\n"
                      "Run iterations until _stopping is set; the core of run_forever.");

static PyObject *loop_run(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = (LoopObject *)self;
    /* Relaxed: only this thread acts on what it finds there. */
    atomic_store_explicit(&loop->runs_in, PyThread_get_thread_ident(), memory_order_relaxed);
    PyObject *result = run_until_stopped(loop);
    plait_loop_wake_late(loop, NULL);
    atomic_store_explicit(&loop->runs_in, 0, memory_order_relaxed);
    /* The next run may be another thread's. */
    if (loop->core_ready) {
        Py_BEGIN_ALLOW_THREADS;
        pl_loop_park(&loop->core, -1);
        Py_END_ALLOW_THREADS;
    }
    return result;
}

/* ---- what a closed loop drops ------------------------------------------- */

/* Visits, or gives up, every reference that the core holds for us. */
static int visit_core(LoopObject *loop, visitproc visit, void *arg)
{
    struct pl_loop *core = &loop->core;
    for (uint32_t i = core->ready.head; i != core->ready.tail; i++) {
        struct pl_op *op = core->ready.slots[i & core->ready.mask];
        Py_VISIT(plait_handle_of_op(op));
        /* What has left the table and waits to tell that it is closed. */
        struct pl_stream *stream = pl_stream_of_op(op);
        if (stream != NULL && stream->dead)
            Py_VISIT(plait_transport_of_op(op));
        struct pl_listener *listener = pl_listener_of_op(op);
        if (listener != NULL && !listener->accepting && op == &listener->io.op)
            Py_VISIT(plait_listener_of_op(op));
    }
    /* acquire: pairs with pl_loop_post. Nobody takes the list meanwhile: we have the
     * interpreter's lock. */
    struct pl_post *post = atomic_load_explicit(&core->posts, memory_order_acquire);
    for (; post != NULL; post = post->next)
        Py_VISIT(plait_handle_of_op(&post->op));
    for (post = core->taken; post != NULL; post = post->next)
        Py_VISIT(plait_handle_of_op(&post->op));
    for (uint32_t i = 0; i < pl_timers_places(&core->timers); i++) {
        struct pl_timer *timer = pl_timers_at(&core->timers, i);
        if (timer != NULL)
            Py_VISIT(plait_handle_of_op(&timer->op));
    }
    for (uint32_t i = 0; i < core->nfds; i++) {
        struct pl_io *io = core->fds[i].io;
        if (io == NULL)
            continue;
        struct plait_watch *w = plait_watch_of_io(io);
        if (w != NULL) {
            int r = plait_watch_visit(w, visit, arg);
            if (r != 0)
                return r;
        } else {
            Py_VISIT(plait_transport_of_op(&io->op));
            Py_VISIT(plait_listener_of_op(&io->op));
        }
    }
    return 0;
}

/* Gives up what a queued op owns. An event's op owns nothing, its descriptor's entry does;
 * but what has left the table, and only waits to tell that it is closed, has no entry. */
static void drop_op(LoopObject *loop, struct pl_op *op)
{
    PyObject *owner = plait_handle_of_op(op);
    if (owner != NULL) {
        Py_DECREF(owner);
        return;
    }
    struct plait_watch *watch = plait_watch_of_op(op);
    if (watch != NULL) {
        plait_watch_drop_op(loop, watch);
        return;
    }
    struct pl_stream *stream = pl_stream_of_op(op);
    if (stream != NULL) {
        stream->io.queued = false;
        if (stream->dead)
            plait_transport_drop(plait_transport_of_op(op));
        return;
    }
    struct pl_listener *listener = pl_listener_of_op(op);
    /* Its retry op may be queued before: only the last one ends it. */
    if (listener != NULL && op == &listener->io.op) {
        listener->io.queued = false;
        if (!listener->accepting)
            plait_listener_drop(plait_listener_of_op(op));
    }
}

/* Gives up all that the core holds for us, and closes it. No callback runs, but destructors
 * do: they find core_ready false and a loop that refuses work. An op that starts a transport
 * comes in the queue before the op that ends it, so none is freed while it is queued. */
static void drop_core(LoopObject *loop)
{
    if (!loop->core_ready)
        return;
    loop->core_ready = false;
    struct pl_loop *core = &loop->core;
    pl_loop_after_fork(core);

    for (struct pl_timer *timer; (timer = pl_timers_first(&core->timers)) != NULL;) {
        (void)pl_timer_stop(core, timer);
        Py_XDECREF(plait_handle_of_op(&timer->op)); /* a listener's retry owns nothing */
    }
    /* acquire: pairs with pl_loop_post. */
    struct pl_post *post = atomic_exchange_explicit(&core->posts, NULL, memory_order_acquire);
    for (struct pl_post *next; post != NULL; post = next) {
        next = post->next;
        drop_op(loop, &post->op);
    }
    for (struct pl_post *next; core->taken != NULL; core->taken = next) {
        next = core->taken->next;
        drop_op(loop, &core->taken->op);
    }
    while (pl_queue_len(&core->ready) > 0)
        drop_op(loop, core->ready.slots[core->ready.head++ & core->ready.mask]);
    for (struct pl_io *io = core->late; io != NULL; io = core->late) {
        core->late = io->late;
        drop_op(loop, &io->op);
    }
    for (uint32_t i = 0; i < core->nfds; i++) {
        struct pl_io *io = core->fds[i].io;
        if (io == NULL || io == &core->wake_io)
            continue;
        struct plait_watch *w = plait_watch_of_io(io);
        PyObject *transport = plait_transport_of_op(&io->op);
        if (w != NULL) {
            plait_watch_drop(loop, w);
        } else if (transport != NULL) {
            plait_transport_drop(transport);
        } else {
            PyObject *listener = plait_listener_of_op(&io->op);
            if (listener != NULL)
                plait_listener_drop(listener);
        }
    }
    pl_loop_fini(core);
    plait_generators_drop(loop);
}

PyDoc_STRVAR(close_core_doc, "_close_core($self, /)\n--\n\n"
                             "Give up descriptors, timers and queued callbacks.");

static PyObject *loop_close_core(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = (LoopObject *)self;
    plait_generators_close(loop);
    drop_core(loop);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(use_uring_doc, "_use_uring($self, /)\n--\n\n"
                            "Make the core of a new loop anew, with io_uring where the kernel has\n"
                            "it; return 0, or the number of the error that it was refused with.");

static PyObject *loop_use_uring(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = (LoopObject *)self;
    if (plait_loop_check(loop) < 0)
        return NULL;
    for (uint32_t i = 0; i < loop->core.nfds; i++) {
        struct pl_io *io = loop->core.fds[i].io;
        if (io != NULL && io != &loop->core.wake_io)
            return PyErr_Format(PyExc_RuntimeError, "the loop is in use: it watches %u", i);
    }
    if (pl_loop_timeout(&loop->core) != -1)
        return PyErr_Format(PyExc_RuntimeError, "the loop is in use: callbacks are scheduled");
    struct pl_loop_config config = {.backend = PL_BACKEND_URING};
    pl_loop_fini(&loop->core);
    int r = pl_loop_init(&loop->core, &config);
    if (r < 0) {
        loop->core_ready = false;
        return plait_raise(loop->state, r, "cannot make an event loop");
    }
    return PyLong_FromLong(-(long)loop->core.refused);
}

PyDoc_STRVAR(set_busy_poll_doc,
             "_set_busy_poll($self, nanoseconds, /)\n--\n\n"
             "Set for how long the loop looks for events before it sleeps, at most.");

static PyObject *loop_set_busy_poll(PyObject *self, PyObject *arg)
{
    LoopObject *loop = (LoopObject *)self;
    long long most = PyLong_AsLongLong(arg);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (most < 0 || most > PL_NSEC_PER_SEC)
        return PyErr_Format(PyExc_ValueError, "nanoseconds must be from 0 to 10**9, not %lld",
                            most);
    pl_loop_set_busy(&loop->core, most);
    Py_RETURN_NONE;
}

static PyObject *get_backend(PyObject *self, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(pl_loop_backend_name(&((LoopObject *)self)->core));
}

PyDoc_STRVAR(statistics_doc,
             "statistics($self, /)\n--\n\n"
             "Return counters since the loop was made.\n\n"
             "Returns:\n"
             "    dict[str, int | str]: backend; iterations; polls (calls to the poller);\n"
             "    events (descriptors reported); callbacks (run from the ready queue);\n"
             "    wakeups (by other threads); spins (times that it looked for events before it\n"
             "    slept), spins_met (that found some) and spins_crowded (that others wanted the\n"
             "    processor for); ready and timers (waiting now).");

static PyObject *loop_statistics(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    LoopObject *loop = (LoopObject *)self;
    const struct pl_loop_stats *s = &loop->core.stats;
    const struct pl_busy *busy = &loop->core.busy;
    return Py_BuildValue(
        "{s:s, s:K, s:K, s:K, s:K, s:K, s:K, s:K, s:K, s:I, s:I}", "backend",
        pl_loop_backend_name(&loop->core), "iterations", (unsigned long long)s->iterations, "polls",
        (unsigned long long)s->polls, "events", (unsigned long long)s->events, "callbacks",
        (unsigned long long)s->ops, "wakeups", (unsigned long long)s->wakeups, "spins",
        (unsigned long long)busy->spins, "spins_met", (unsigned long long)busy->hits,
        "spins_crowded", (unsigned long long)busy->crowded, "ready",
        pl_queue_len(&loop->core.ready), "timers", pl_timers_len(&loop->core.timers));
}

/* ---- the type ----------------------------------------------------------- */

/* Whether the class takes its time from a method of its own. -1 with an exception set. */
static int class_has_own_time(PyTypeObject *type)
{
    PyObject *method = PyObject_GetAttrString((PyObject *)type, "time");
    if (method == NULL)
        return -1;
    bool ours = Py_IS_TYPE(method, &PyMethodDescr_Type) &&
                ((PyMethodDescrObject *)method)->d_method->ml_meth == plait_loop_time;
    Py_DECREF(method);
    return !ours;
}

/* Only to see loop.time replaced on an instance: reading the clock then goes through it. */
static int loop_setattr(PyObject *self, PyObject *name, PyObject *value)
{
    LoopObject *loop = (LoopObject *)self;
    int r = PyObject_GenericSetAttr(self, name, value);
    if (r == 0 && PyUnicode_Check(name) && PyUnicode_Compare(name, loop->state->str_time) == 0) {
        int own = value != NULL ? 1 : class_has_own_time(Py_TYPE(self));
        if (own < 0)
            return -1;
        loop->own_time = own;
    }
    return r;
}

static PyObject *loop_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs; /* the Python half checks them */
    struct plait_state *state = plait_state_of_type(type);
    if (state == NULL)
        return NULL;
    LoopObject *loop = (LoopObject *)type->tp_alloc(type, 0);
    if (loop == NULL)
        return NULL;
    loop->state = state;
    int own_time = class_has_own_time(type);
    if (own_time < 0) {
        Py_DECREF(loop);
        return NULL;
    }
    loop->own_time = own_time;
    loop->closed = 1; /* until it is whole: a half-made loop is dropped in silence */
    loop->task_factory = Py_NewRef(Py_None);
    loop->thread_id = Py_NewRef(Py_None);
    loop->read_buffer = PyMem_Malloc(PLAIT_READ_BUFFER);
    if (loop->read_buffer == NULL) {
        Py_DECREF(loop);
        return PyErr_NoMemory();
    }
    int r = pl_loop_init(&loop->core, NULL);
    if (r < 0) {
        Py_DECREF(loop);
        return plait_raise(state, r, "cannot make an event loop");
    }
    loop->core_ready = true;
    loop->closed = 0;
    return (PyObject *)loop;
}

static int loop_traverse(PyObject *self, visitproc visit, void *arg)
{
    LoopObject *loop = (LoopObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(loop->task_factory);
    Py_VISIT(loop->thread_id);
    Py_VISIT(loop->raised);
    for (unsigned i = 0; i < loop->spare_len; i++)
        Py_VISIT(loop->spares[(loop->spare_head + i) % PLAIT_SPARE_FUTURES]);
    Py_VISIT(loop->future_kwargs);
    Py_VISIT(loop->task_args);
    if (loop->generators != NULL) {
        int r = plait_generators_visit(loop, visit, arg);
        if (r != 0)
            return r;
    }
    return loop->core_ready ? visit_core(loop, visit, arg) : 0;
}

static int loop_clear(PyObject *self)
{
    LoopObject *loop = (LoopObject *)self;
    drop_core(loop);
    Py_CLEAR(loop->task_factory);
    Py_CLEAR(loop->thread_id);
    Py_CLEAR(loop->raised);
    while (loop->spare_len > 0) {
        PyObject *spare =
            loop->spares[(loop->spare_head + --loop->spare_len) % PLAIT_SPARE_FUTURES];
        Py_DECREF(spare);
    }
    for (unsigned i = 0; i < PLAIT_SPARE_BYTES; i++)
        Py_CLEAR(loop->spare_bytes[i]);
    Py_CLEAR(loop->future_kwargs);
    Py_CLEAR(loop->task_args);
    Py_CLEAR(loop->window_args);
    Py_CLEAR(loop->window);
    Py_CLEAR(loop->room);
    PyMem_Free(loop->read_buffer);
    loop->read_buffer = NULL;
    return 0;
}

static void loop_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0)
        return;
    PyObject_GC_UnTrack(self);
    (void)loop_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyGetSetDef loop_getset[] = {
    {"backend", get_backend, NULL,
     "How it waits for descriptors: \"epoll\" or \"uring\"; what the kernel allowed, whatever\n"
     "was asked for.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef loop_members[] = {
    {"_closed", T_BOOL, offsetof(LoopObject, closed), 0, "Whether it is closed."},
    {"_debug", T_BOOL, offsetof(LoopObject, debug), 0, "Whether debug mode is on."},
    {"_stopping", T_BOOL, offsetof(LoopObject, stopping), 0, "Whether stop was called."},
    {"_task_factory", T_OBJECT, offsetof(LoopObject, task_factory), 0, "The task factory."},
    {"_thread_id", T_OBJECT, offsetof(LoopObject, thread_id), 0, "The running thread."},
    {NULL, 0, 0, 0, NULL},
};

#define FAST(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef loop_methods[] = {
#define X(name)                                                                                    \
    {#name, FAST(plait_loop_##name), METH_FASTCALL | METH_KEYWORDS, plait_loop_##name##_doc},
    PLAIT_LOOP_FAST_METHODS(X)
#undef X
#define X(name) {#name, plait_loop_##name, METH_NOARGS, plait_loop_##name##_doc},
        PLAIT_LOOP_NOARGS_METHODS(X)
#undef X
            {"_add_reader", FAST(plait_loop_add_reader), METH_FASTCALL | METH_KEYWORDS,
             "_add_reader($self, fd, callback, /, *args)\n--\n\n"
             "Call callback(*args) whenever fd can be read."},
    {"_add_writer", FAST(plait_loop_add_writer), METH_FASTCALL | METH_KEYWORDS,
     "_add_writer($self, fd, callback, /, *args)\n--\n\n"
     "Call callback(*args) whenever fd can be written."},
    {"_remove_reader", plait_loop_remove_reader, METH_O,
     "_remove_reader($self, fd, /)\n--\n\n"
     "Stop watching fd for reading; tell whether it was watched."},
    {"_remove_writer", plait_loop_remove_writer, METH_O,
     "_remove_writer($self, fd, /)\n--\n\n"
     "Stop watching fd for writing; tell whether it was watched."},
    {"_watched", plait_loop_watched, METH_O,
     "_watched($self, fd, /)\n--\n\n"
     "Return (reader, writer), the handles that watch fd, or None."},
    {"_owner_of_fd", plait_loop_owner_of_fd, METH_O,
     "_owner_of_fd($self, fd, /)\n--\n\n"
     "Return the transport or listener that uses fd, or None."},
    {"sock_recv", FAST(plait_loop_sock_recv), METH_FASTCALL | METH_KEYWORDS,
     "sock_recv($self, sock, n)\n--\n\n"
     "Receive up to n bytes; an empty result is the end of the stream."},
    {"sock_recv_into", FAST(plait_loop_sock_recv_into), METH_FASTCALL | METH_KEYWORDS,
     "sock_recv_into($self, sock, buf)\n--\n\n"
     "Receive into a writable buffer; return how many bytes."},
    {"sock_sendall", FAST(plait_loop_sock_sendall), METH_FASTCALL | METH_KEYWORDS,
     "sock_sendall($self, sock, data)\n--\n\n"
     "Send all of data, which must not change meanwhile."},
    {"sock_accept", FAST(plait_loop_sock_accept), METH_FASTCALL | METH_KEYWORDS,
     "sock_accept($self, sock)\n--\n\n"
     "Accept a connection; return (non-blocking socket, address)."},
    {"sock_recvfrom", FAST(plait_loop_sock_recvfrom), METH_FASTCALL | METH_KEYWORDS,
     "sock_recvfrom($self, sock, bufsize)\n--\n\n"
     "Receive a datagram of up to bufsize bytes; return (data, address)."},
    {"sock_recvfrom_into", FAST(plait_loop_sock_recvfrom_into), METH_FASTCALL | METH_KEYWORDS,
     "sock_recvfrom_into($self, sock, buf, nbytes=0)\n--\n\n"
     "Receive a datagram into a writable buffer; return (bytes received, address)."},
    {"sock_sendto", FAST(plait_loop_sock_sendto), METH_FASTCALL | METH_KEYWORDS,
     "sock_sendto($self, sock, data, address)\n--\n\n"
     "Send a datagram; return how many bytes."},
    {"_new_transport", FAST(loop_new_transport), METH_FASTCALL, new_transport_doc},
    {"_after_fork", loop_after_fork, METH_NOARGS, after_fork_doc},
    {"_run", loop_run, METH_NOARGS, run_doc},
    {"_close_core", loop_close_core, METH_NOARGS, close_core_doc},
    {"_use_uring", loop_use_uring, METH_NOARGS, use_uring_doc},
    {"_set_busy_poll", loop_set_busy_poll, METH_O, set_busy_poll_doc},
    {"statistics", loop_statistics, METH_NOARGS, statistics_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot loop_slots[] = {
    {Py_tp_doc, (void *)"The C half of plait.Loop."},
    {Py_tp_new, loop_new},
    {Py_tp_dealloc, loop_dealloc},
    {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},
    {Py_tp_setattro, loop_setattr},
    {Py_tp_members, loop_members},
    {Py_tp_getset, loop_getset},
    {Py_tp_methods, loop_methods},
    {0, NULL},
};

static PyType_Spec loop_spec = {
    .name = "plait._core.Loop",
    .basicsize = sizeof(LoopObject),
    .flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = loop_slots,
};

/* ---- the module's part -------------------------------------------------- */

PyObject *plait_raise(struct plait_state *state, int code, const char *what)
{
    (void)state;
    if (code == -ENOMEM)
        return PyErr_NoMemory();
    if (code > -4096) {
        PyObject *args =
            what == NULL ? Py_BuildValue("(is)", -code, pl_error_text(code))
                         : Py_BuildValue("(iN)", -code,
                                         PyUnicode_FromFormat("%s: %s", what, pl_error_text(code)));
        if (args != NULL) {
            PyErr_SetObject(PyExc_OSError, args); /* chooses the subclass by the number */
            Py_DECREF(args);
        }
        return NULL;
    }
    return PyErr_Format(PyExc_RuntimeError, "%s%s%s", what != NULL ? what : "",
                        what != NULL ? ": " : "", pl_error_text(code));
}

/* Stores module.name in *place. */
static int import_from(const char *module_name, const char *name, PyObject **place)
{
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return -1;
    *place = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return *place == NULL ? -1 : 0;
}

int plait_loop_exec(PyObject *module, struct plait_state *state)
{
    static const struct {
        size_t offset;
        const char *text;
    } names[] = {
#define NAME(field, text) {offsetof(struct plait_state, field), text}
        NAME(str_buffer_updated, "buffer_updated"),
        NAME(str_call_exception_handler, "call_exception_handler"),
        NAME(str_check_callback, "_check_callback"),
        NAME(str_check_thread, "_check_thread"),
        NAME(str_close, "close"),
        NAME(str_connection_lost, "connection_lost"),
        NAME(str_connection_made, "connection_made"),
        NAME(str_create_task_slow, "_create_task_slow"),
        NAME(str_data_received, "data_received"),
        NAME(str_eof_received, "eof_received"),
        NAME(str_get_buffer, "get_buffer"),
        NAME(str_pause_writing, "pause_writing"),
        NAME(str_report_slow, "_report_slow"),
        NAME(str_resume_writing, "resume_writing"),
        NAME(str_set_result, "set_result"),
        NAME(str_done, "done"),
        NAME(str_attach, "_attach"),
        NAME(str_future, "Future"),
        NAME(str_task, "Task"),
        NAME(str_time, "time"),
        NAME(str_accept, "accept"),
        NAME(str_create_future, "create_future"),
        NAME(str_fileno, "fileno"),
        NAME(str_gettimeout, "gettimeout"),
        NAME(str_recvfrom, "recvfrom"),
        NAME(str_recvfrom_into, "recvfrom_into"),
        NAME(str_sendto, "sendto"),
        NAME(str_detach, "_detach"),
#undef NAME
    };
    for (size_t i = 0; i < PL_ARRAY_LEN(names); i++) {
        PyObject **place = (PyObject **)(void *)((char *)state + names[i].offset);
        *place = PyUnicode_InternFromString(names[i].text);
        if (*place == NULL)
            return -1;
    }
    state->kwnames_loop = Py_BuildValue("(N)", PyUnicode_InternFromString("loop"));
    state->kwnames_fileno = Py_BuildValue("(N)", PyUnicode_InternFromString("fileno"));
    if (state->kwnames_loop == NULL || state->kwnames_fileno == NULL)
        return -1;
    if (import_from("asyncio", "Future", &state->asyncio_future) < 0 ||
        import_from("asyncio.futures", "__dict__", &state->asyncio_futures) < 0 ||
        import_from("asyncio.tasks", "__dict__", &state->asyncio_tasks) < 0 ||
        import_from("asyncio", "BufferedProtocol", &state->asyncio_buffered_protocol) < 0 ||
        import_from("asyncio.trsock", "TransportSocket", &state->asyncio_transport_socket) < 0 ||
        import_from("asyncio.format_helpers", "extract_stack", &state->asyncio_extract_stack) < 0 ||
        import_from("socket", "socket", &state->socket_type) < 0 ||
        import_from("asyncio.log", "logger", &state->logger) < 0)
        return -1;
    PyObject *modes;
    if (import_from("asyncio.constants", "_SendfileMode", &modes) < 0)
        return -1;
    state->asyncio_sendfile_mode = PyObject_GetAttrString(modes, "TRY_NATIVE");
    Py_DECREF(modes);
    if (state->asyncio_sendfile_mode == NULL)
        return -1;

    if (plait_handle_types(module, state) < 0 || plait_transport_type(module, state) < 0 ||
        plait_listener_type(module, state) < 0 || plait_clients_type(module, state) < 0 ||
        plait_rota_type(module, state) < 0 || plait_sock_type(module, state) < 0 ||
        plait_connect_type(module) < 0 || plait_following_type(module, state) < 0)
        return -1;
    state->loop_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &loop_spec, NULL);
    if (state->loop_type == NULL || PyModule_AddType(module, state->loop_type) < 0)
        return -1;
    return 0;
}

void plait_loop_clear(struct plait_state *state)
{
#define X(name) plait_free_list_clear(&state->loop.name);
    PLAIT_LOOP_FREE_LISTS(X)
#undef X
}
