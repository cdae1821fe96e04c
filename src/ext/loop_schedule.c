/* loop_schedule.c - what puts work into the loop: call_soon and its kin, timers, tasks, futures.
 *
 * Runs in the loop's thread, with the interpreter attached; call_soon_threadsafe in any thread.
 */
#include "loop.h"

#include "args.h"

#include <math.h>

static int debug_checks(LoopObject *loop, const char *method, PyObject *callback, bool thread)
{
    PyObject *result;
    if (thread) {
        result = PyObject_CallMethodNoArgs((PyObject *)loop, loop->state->str_check_thread);
        if (result == NULL)
            return -1;
        Py_DECREF(result);
    }
    PyObject *name = PyUnicode_FromString(method);
    if (name == NULL)
        return -1;
    result = PyObject_CallMethodObjArgs((PyObject *)loop, loop->state->str_check_callback, callback,
                                        name, NULL);
    Py_DECREF(name);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static const char *const callback_name[] = {"callback", NULL};
static const char *const call_later_names[] = {"delay", "callback", NULL};
static const char *const call_at_names[] = {"when", "callback", NULL};

const char plait_loop_call_soon_doc[] =
    PyDoc_STR("call_soon($self, callback, *args, context=None)\n--\n\n"
              "Call callback(*args) in the next iteration, after what is scheduled already.\n\n"
              "Args:\n"
              "    callback (Callable): what to call.\n"
              "    context (contextvars.Context | None): where to call it; a copy of the\n"
              "        current context when None.\n\n"
              "Returns:\n"
              "    Handle: to cancel it.\n\n"
              "Raises:\n"
              "    RuntimeError: the loop is closed.\n\n"
              "Only from the loop's thread; see call_soon_threadsafe.");

/* Puts a new handle, or NULL with an exception set, into the queue; only in the loop's thread.
 * Moves the reference to the queue and returns another one. */
static PyObject *enqueue(LoopObject *loop, HandleObject *h)
{
    if (PL_UNLIKELY(h == NULL))
        return NULL;
    /* asyncio has one queue: what call_soon_threadsafe was given before runs before. */
    if (PL_UNLIKELY((pl_loop_has_posts(&loop->core) && pl_loop_take_posts(&loop->core) < 0) ||
                    pl_loop_enqueue(&loop->core, &h->post.op) < 0)) {
        Py_DECREF(h);
        return PyErr_NoMemory();
    }
    return Py_NewRef(h);
}

PyObject *plait_loop_call_soon(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    if (PL_UNLIKELY(nargs < 1 && kwnames != NULL))
        return plait_args_by_name(plait_loop_call_soon, self, "call_soon", callback_name, args,
                                  nargs, kwnames);
    LoopObject *loop = (LoopObject *)self;
    PyObject *context;
    if (plait_args_keyword("call_soon", args, nargs, kwnames, 1, "context", &context) < 0 ||
        plait_loop_check(loop) < 0)
        return NULL;
    if (PL_UNLIKELY(loop->debug) && debug_checks(loop, "call_soon", args[0], true) < 0)
        return NULL;
    return enqueue(loop, plait_handle_new(loop, args[0], args + 1, nargs - 1, context));
}

int plait_loop_soon(LoopObject *loop, PyObject *callback, PyObject *arg, PyObject *context)
{
    if (plait_loop_check(loop) < 0)
        return -1;
    HandleObject *h = plait_handle_new(loop, callback, &arg, arg != NULL, context);
    if (h == NULL)
        return -1;
    if (pl_loop_enqueue(&loop->core, &h->post.op) < 0) {
        Py_DECREF(h);
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

const char plait_loop_call_soon_threadsafe_doc[] =
    PyDoc_STR("call_soon_threadsafe($self, callback, *args, context=None)\n--\n\n"
              "As call_soon, from any thread: wakes the loop when it sleeps.");

PyObject *plait_loop_call_soon_threadsafe(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                          PyObject *kwnames)
{
    if (PL_UNLIKELY(nargs < 1 && kwnames != NULL))
        return plait_args_by_name(plait_loop_call_soon_threadsafe, self, "call_soon_threadsafe",
                                  callback_name, args, nargs, kwnames);
    LoopObject *loop = (LoopObject *)self;
    PyObject *context;
    if (plait_args_keyword("call_soon_threadsafe", args, nargs, kwnames, 1, "context", &context) <
            0 ||
        plait_loop_check(loop) < 0)
        return NULL;
    if (PL_UNLIKELY(loop->debug) && debug_checks(loop, "call_soon_threadsafe", args[0], false) < 0)
        return NULL;
    HandleObject *h = plait_handle_new_threadsafe(loop, args[0], args + 1, nargs - 1, context);
    if (h == NULL)
        return NULL;
    /* The loop's own thread needs no list in between. A signal's handler in Python may be what
     * calls this; but between its last look at the queue and its sleep the loop runs none. */
    if (atomic_load_explicit(&loop->runs_in, memory_order_relaxed) == PyThread_get_thread_ident())
        return enqueue(loop, h);
    Py_INCREF(h); /* the list's */
    pl_loop_post(&loop->core, &h->post);
    return (PyObject *)h;
}

bool plait_loop_is_own(struct plait_state *state, PyObject *loop)
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

void plait_loop_wake_late(LoopObject *loop, uint32_t *word)
{
    uint32_t *before = loop->late;
    loop->late = word;
    if (before != NULL)
        (void)loop->core.sys->futex_wake(before, 1);
}

LoopObject *plait_loop_running_here(struct plait_state *state, PyObject *object)
{
    LoopObject *loop = (LoopObject *)object;
    bool here =
        PyObject_TypeCheck(object, state->loop_type) &&
        /* Relaxed: see the field. */
        atomic_load_explicit(&loop->runs_in, memory_order_relaxed) == PyThread_get_thread_ident();
    return here ? loop : NULL;
}

HandleObject *plait_loop_prepare_post(LoopObject *loop, PyObject *callback, PyObject *arg)
{
    if (loop->debug)
        return NULL;
    HandleObject *h = plait_handle_new_threadsafe(loop, callback, &arg, 1, NULL);
    if (h != NULL && plait_loop_check(loop) < 0)
        Py_CLEAR(h);
    return h;
}

/* The core's deadline for a time of loop.time(). Rounds up, so that a timer is never early,
 * and clamps. */
static int64_t deadline_of(double when)
{
    double ns = ceil(when * 1e9);
    if (!(ns < 9.2e18)) /* nor is what a clock of the program's own may say */
        return INT64_MAX;
    return ns <= 0 ? 0 : (int64_t)ns;
}

static int parse_time(const char *method, const char *name, PyObject *number, double *out)
{
    if (PL_LIKELY(PyFloat_CheckExact(number) &&
                  PyFloat_AS_DOUBLE(number) == PyFloat_AS_DOUBLE(number))) {
        *out = PyFloat_AS_DOUBLE(number);
        return 0;
    }
    if (PyLong_CheckExact(number)) {
        *out = PyLong_AsDouble(number);
        if (PL_LIKELY(*out != -1.0))
            return 0;
        PyErr_Clear(); /* or it is -1 */
    }
    if (number == Py_None) {
        PyErr_Format(PyExc_TypeError, "%s must not be None", name);
        return -1;
    }
    *out = PyFloat_AsDouble(number);
    if (*out == -1.0 && PyErr_Occurred()) {
        /* An integer too large for a float means a very long time. */
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
        PyObject *zero = PyLong_FromLong(0);
        int negative = zero == NULL ? -1 : PyObject_RichCompareBool(number, zero, Py_LT);
        Py_XDECREF(zero);
        if (negative < 0)
            return -1;
        *out = negative ? -INFINITY : INFINITY;
    }
    if (isnan(*out)) {
        PyErr_Format(PyExc_ValueError, "%s(): %s must be a number of seconds, not nan", method,
                     name);
        return -1;
    }
    return 0;
}

static double time_now(LoopObject *loop)
{
    return (double)loop->core.sys->now() * 1e-9;
}

/* What loop.time() answers: the clock, unless a subclass or a test has put a method of its
 * own in the place of ours. 0, or -1 with an exception set. */
static int time_of(LoopObject *loop, double *out)
{
    if (PL_LIKELY(!loop->own_time)) {
        *out = time_now(loop);
        return 0;
    }
    PyObject *number = PyObject_CallMethodNoArgs((PyObject *)loop, loop->state->str_time);
    if (number == NULL)
        return -1;
    *out = PyFloat_AsDouble(number);
    Py_DECREF(number);
    return *out == -1.0 && PyErr_Occurred() ? -1 : 0;
}

/* Starts a timer for `when`, in seconds of loop.time(), which says `now`. Where that is a method
 * of the program's own, the time between them counts from this moment on the core's clock. */
static PyObject *schedule_at(LoopObject *loop, double when, double now, PyObject *callback,
                             PyObject *const *args, Py_ssize_t nargs, PyObject *context)
{
    TimerHandleObject *t = plait_timer_handle_new(loop, when, callback, args, nargs, context);
    if (t == NULL)
        return NULL;
    double deadline = PL_LIKELY(!loop->own_time) ? when : time_now(loop) + (when - now);
    if (pl_timer_start(&loop->core, &t->timer, deadline_of(deadline)) < 0) {
        Py_DECREF(t);
        return PyErr_NoMemory();
    }
    return Py_NewRef(t); /* one reference for the heap, one for the caller */
}

const char plait_loop_call_later_doc[] =
    PyDoc_STR("call_later($self, delay, callback, *args, context=None)\n--\n\n"
              "Call callback(*args) after delay seconds.\n\n"
              "Args:\n"
              "    delay (float): seconds from now; negative means as soon as possible.\n"
              "    callback (Callable): what to call.\n"
              "    context (contextvars.Context | None): as in call_soon.\n\n"
              "Returns:\n"
              "    TimerHandle: to cancel it. Equal times run in the order of these calls.\n\n"
              "Raises:\n"
              "    TypeError: delay is None or no number.\n"
              "    ValueError: delay is nan.\n"
              "    RuntimeError: the loop is closed.");

PyObject *plait_loop_call_later(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    if (PL_UNLIKELY(nargs < 2 && kwnames != NULL))
        return plait_args_by_name(plait_loop_call_later, self, "call_later", call_later_names, args,
                                  nargs, kwnames);
    LoopObject *loop = (LoopObject *)self;
    PyObject *context;
    double delay;
    if (plait_args_keyword("call_later", args, nargs, kwnames, 2, "context", &context) < 0 ||
        parse_time("call_later", "delay", args[0], &delay) < 0 || plait_loop_check(loop) < 0)
        return NULL;
    if (PL_UNLIKELY(loop->debug) && debug_checks(loop, "call_later", args[1], true) < 0)
        return NULL;
    double now;
    if (time_of(loop, &now) < 0)
        return NULL;
    return schedule_at(loop, now + delay, now, args[1], args + 2, nargs - 2, context);
}

const char plait_loop_call_at_doc[] =
    PyDoc_STR("call_at($self, when, callback, *args, context=None)\n--\n\n"
              "Call callback(*args) at `when`, in seconds of loop.time().\n\n"
              "Otherwise as call_later.");

PyObject *plait_loop_call_at(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    if (PL_UNLIKELY(nargs < 2 && kwnames != NULL))
        return plait_args_by_name(plait_loop_call_at, self, "call_at", call_at_names, args, nargs,
                                  kwnames);
    LoopObject *loop = (LoopObject *)self;
    PyObject *context;
    double when;
    if (plait_args_keyword("call_at", args, nargs, kwnames, 2, "context", &context) < 0 ||
        parse_time("call_at", "when", args[0], &when) < 0 || plait_loop_check(loop) < 0)
        return NULL;
    if (PL_UNLIKELY(loop->debug) && debug_checks(loop, "call_at", args[1], true) < 0)
        return NULL;
    double now = 0;
    if (PL_UNLIKELY(loop->own_time) && time_of(loop, &now) < 0)
        return NULL;
    return schedule_at(loop, when, now, args[1], args + 2, nargs - 2, context);
}

const char plait_loop_time_doc[] =
    PyDoc_STR("time($self, /)\n--\n\n"
              "Return the loop's clock: seconds of CLOCK_MONOTONIC, as a float.");

PyObject *plait_loop_time(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyFloat_FromDouble(time_now((LoopObject *)self));
}

const char plait_loop_get_debug_doc[] =
    PyDoc_STR("get_debug($self, /)\n--\n\nTell whether debug mode is on.");

/* In C because every new future asks. */
PyObject *plait_loop_get_debug(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((LoopObject *)self)->debug);
}

/* What a module of asyncio holds under a name at this moment: programs put their own Task or
 * Future there. `names` is the module's dict. */
static PyObject *class_of_asyncio(PyObject *names, PyObject *name)
{
    PyObject *type = PyDict_GetItemWithError(names, name); // borrowed
    if (type != NULL)
        return Py_NewRef(type);
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_AttributeError, "asyncio has no %U any more", name);
    return NULL;
}

/* type(*args, **kwargs), without the ways around for a class whose __new__ does nothing but
 * allocate: such are the interpreter's own Task and Future. */
static PyObject *call_class(PyObject *object, PyObject *args, PyObject *kwargs)
{
    PyTypeObject *type = (PyTypeObject *)object;
    if (PL_UNLIKELY(!Py_IS_TYPE(object, &PyType_Type) || type->tp_new != PyType_GenericNew))
        return PyObject_Call(object, args, kwargs);
    PyObject *made = type->tp_alloc(type, 0);
    if (PL_LIKELY(made != NULL) && PL_UNLIKELY(type->tp_init(made, args, kwargs) < 0))
        Py_CLEAR(made);
    return made;
}

/* type(*args, loop=loop), by a dict that is used again: what the interpreter would make and drop
 * for each call of a class. */
static PyObject *make_with_loop(LoopObject *loop, PyObject *type, PyObject *args)
{
    PyObject *kwargs = plait_loop_kwargs(loop); // borrowed
    if (kwargs == NULL)
        return NULL;
    Py_INCREF(kwargs);
    PyObject *made = call_class(type, args, kwargs);
    /* A class of the program's may have kept it, or written to it. */
    if (PL_UNLIKELY(Py_REFCNT(kwargs) != 2 || PyDict_GET_SIZE(kwargs) != 1) &&
        loop->future_kwargs == kwargs)
        Py_CLEAR(loop->future_kwargs);
    Py_DECREF(kwargs);
    return made;
}

PyObject *plait_loop_kwargs(LoopObject *loop)
{
    if (PL_UNLIKELY(loop->future_kwargs == NULL)) {
        loop->future_kwargs = PyDict_New();
        if (loop->future_kwargs != NULL &&
            PyDict_SetItem(loop->future_kwargs, PyTuple_GET_ITEM(loop->state->kwnames_loop, 0),
                           (PyObject *)loop) < 0)
            Py_CLEAR(loop->future_kwargs);
    }
    return loop->future_kwargs;
}

PyObject *plait_loop_future(LoopObject *loop)
{
    struct plait_state *state = loop->state;
    PyObject *type = class_of_asyncio(state->asyncio_futures, state->str_future);
    if (type == NULL)
        return NULL;
    PyObject *future = make_with_loop(loop, type, state->no_args);
    Py_DECREF(type);
    return future;
}

const char plait_loop_create_future_doc[] = PyDoc_STR("create_future($self, /)\n--\n\n"
                                                      "Return a new asyncio.Future of this loop.");

PyObject *plait_loop_create_future(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return plait_loop_future((LoopObject *)self);
}

const char plait_loop_create_task_doc[] =
    PyDoc_STR("create_task($self, coro, **kwargs)\n--\n\n"
              "Schedule a coroutine as a task and return the asyncio.Task.\n\n"
              "Args:\n"
              "    coro (Coroutine): what to run.\n"
              "    **kwargs: name, context, and what else this Python's asyncio.Task takes.\n\n"
              "Raises:\n"
              "    RuntimeError: the loop is closed.");

/* type(coro, loop=loop), with a tuple that is used again. It is the loop's while nobody uses it. */
static PyObject *make_task(LoopObject *loop, PyObject *type, PyObject *coro)
{
    PyObject *args = loop->task_args;
    loop->task_args = NULL; /* a coroutine's class may call create_task in between */
    /* The collector shows it to whoever asks. */
    if (PL_UNLIKELY(args == NULL || Py_REFCNT(args) != 1)) {
        Py_XDECREF(args);
        args = PyTuple_Pack(1, Py_None);
        if (args == NULL)
            return NULL;
    }
    PyObject *none = PyTuple_GET_ITEM(args, 0);
    PyTuple_SET_ITEM(args, 0, Py_NewRef(coro));
    PyObject *made = make_with_loop(loop, type, args);
    /* A class of the program's may have kept it. */
    if (PL_LIKELY(Py_REFCNT(args) == 1 && loop->task_args == NULL)) {
        PyTuple_SET_ITEM(args, 0, none);
        loop->task_args = args;
        Py_DECREF(coro);
    } else {
        /* The collector leaves out tuples that it saw with nothing in them but None. */
        if (!PyObject_GC_IsTracked(args))
            PyObject_GC_Track(args);
        Py_DECREF(none);
        Py_DECREF(args);
    }
    return made;
}

/* The ordinary case: no factory. Task(coro, loop=self, **kwargs). */
PyObject *plait_loop_create_task(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    LoopObject *loop = (LoopObject *)self;
    struct plait_state *state = loop->state;
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (loop->task_factory != Py_None || loop->debug || nargs != 1 || nkw > 4 ||
        plait_loop_check(loop) < 0) {
        /* The coded-out cases, and the error messages, are the Python half's. */
        PyErr_Clear();
        PyObject *slow = PyObject_GetAttr(self, state->str_create_task_slow);
        if (slow == NULL)
            return NULL;
        PyObject *result = PyObject_Vectorcall(slow, args, (size_t)nargs, kwnames);
        Py_DECREF(slow);
        return result;
    }
    PyObject *stack[8] = {NULL, args[0], self};
    PyObject *type = class_of_asyncio(state->asyncio_tasks, state->str_task);
    if (type == NULL)
        return NULL;
    if (nkw == 0) {
        PyObject *made = make_task(loop, type, args[0]);
        Py_DECREF(type);
        return made;
    }
    PyObject *names = PyTuple_New(nkw + 1);
    if (names == NULL) {
        Py_DECREF(type);
        return NULL;
    }
    PyTuple_SET_ITEM(names, 0, Py_NewRef(PyTuple_GET_ITEM(state->kwnames_loop, 0)));
    for (Py_ssize_t i = 0; i < nkw; i++) {
        PyObject *key = PyTuple_GET_ITEM(kwnames, i); // borrowed
        if (PL_UNLIKELY(plait_args_is(key, "loop"))) {
            /* The task's class would take the last of the two. */
            PyErr_SetString(PyExc_TypeError,
                            "create_task() got an unexpected keyword argument 'loop'");
            Py_DECREF(names);
            Py_DECREF(type);
            return NULL;
        }
        PyTuple_SET_ITEM(names, i + 1, Py_NewRef(key));
        stack[3 + i] = args[1 + i];
    }
    PyObject *task =
        PyObject_Vectorcall(type, stack + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, names);
    Py_DECREF(names);
    Py_DECREF(type);
    return task;
}
