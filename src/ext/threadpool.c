/* threadpool.c - the two types of a thread pool: Crew, which has the work and the threads,
 * and ThreadPoolBase, which plait.ThreadPool inherits from.
 *
 * The crew is what threads and unfinished futures refer to. The pool refers to the crew and
 * closes it when it is dropped: then the threads do what is in the line, and end.
 */
#include "loop.h"
#include "thread.h"

struct thread_pool {
    PyObject_HEAD
    struct plait_crew *crew; /* owns; NULL before _open */
};

#define POOL(o) ((struct thread_pool *)(o))

/* ---- the crew ---- */

static PyObject *crew_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs; /* __init__ looks at them */
    struct plait_state *state = plait_state_of_type(type);
    if (state == NULL)
        return NULL;
    struct plait_crew *crew = PLAIT_CREW(type->tp_alloc(type, 0));
    if (crew != NULL)
        crew->state = state;
    return (PyObject *)crew;
}

static int import_errors(struct plait_state *state)
{
    if (state->pool_full != NULL)
        return 0;
    PyObject *module = PyImport_ImportModule("plait._exceptions");
    if (module == NULL)
        return -1;
    PyObject *stopped = PyObject_GetAttrString(module, "TaskStopped");
    PyObject *timeout = PyObject_GetAttrString(module, "TaskTimeout");
    PyObject *full = PyObject_GetAttrString(module, "PoolFull");
    Py_DECREF(module);
    if (stopped == NULL || timeout == NULL || full == NULL) {
        Py_XDECREF(stopped);
        Py_XDECREF(timeout);
        Py_XDECREF(full);
        return -1;
    }
    Py_XSETREF(state->task_stopped, stopped);
    Py_XSETREF(state->task_timeout, timeout);
    Py_XSETREF(state->pool_full, full);
    return 0;
}

static int crew_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    struct plait_crew *crew = PLAIT_CREW(self);
    static char *names[] = {"workers", "max_pending", "refuse",      "idle_timeout",
                            "context", "gentle",      "initializer", "initargs",
                            "start",   "watch",       "fail",        NULL};
    unsigned int workers;
    unsigned int room;
    int refuse;
    int carries;
    int gentle;
    double idle;
    PyObject *initializer;
    PyObject *initargs;
    PyObject *start;
    PyObject *watch;
    PyObject *fail;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IIpdppOO!OOO", names, &workers, &room, &refuse,
                                     &idle, &carries, &gentle, &initializer, &PyTuple_Type,
                                     &initargs, &start, &watch, &fail))
        return -1;
    if (crew->open) {
        PyErr_SetString(PyExc_RuntimeError, "the crew is open");
        return -1;
    }
    if (import_errors(crew->state) < 0)
        return -1;
    struct pl_crew_config config = {.threads = workers, .room = room};
    int error = pl_crew_init(&crew->core, &config);
    if (error < 0) {
        (void)plait_raise(crew->state, error, "making a thread pool");
        return -1;
    }
    crew->initializer = initializer == Py_None ? NULL : Py_NewRef(initializer);
    crew->initargs = Py_NewRef(initargs);
    crew->start = Py_NewRef(start);
    crew->watch = Py_NewRef(watch);
    crew->fail = Py_NewRef(fail);
    crew->idle_ns = idle < 0 || idle >= 1e9 ? -1 : (int64_t)(idle * 1e9);
    crew->refuses = refuse != 0;
    crew->carries = carries != 0;
    crew->gentle = gentle != 0;
    crew->open = true;
    return 0;
}

static PyObject *crew_close(PyObject *self, PyObject *exiting)
{
    struct plait_crew *crew = PLAIT_CREW(self);
    int is_exiting = PyObject_IsTrue(exiting);
    if (is_exiting < 0)
        return NULL;
    crew->exiting = crew->exiting || is_exiting;
    plait_crew_close(crew);
    Py_RETURN_NONE;
}

static PyObject *crew_cancel_line(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!plait_crew_usable(PLAIT_CREW(self)))
        return NULL;
    plait_crew_clear_line(PLAIT_CREW(self), NULL);
    Py_RETURN_NONE;
}

static PyObject *crew_stop_running(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!plait_crew_usable(PLAIT_CREW(self)))
        return NULL;
    return plait_crew_stop_running(PLAIT_CREW(self));
}

static PyObject *crew_resize(PyObject *self, PyObject *arg)
{
    struct plait_crew *crew = PLAIT_CREW(self);
    unsigned long workers = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred() || !plait_crew_usable(crew))
        return NULL;
    crew->generation++;
    pl_crew_resize(&crew->core, (uint32_t)workers);
    if (plait_crew_start_wanted(crew) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *crew_after_fork(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_crew *crew = PLAIT_CREW(self);
    crew->forked = crew->closed = true;
    crew->workers = NULL;
    crew->watcher = NULL;
    Py_RETURN_NONE;
}

/* The thread table: (ident, tasks done, name of the task or None, seconds that it has run,
 * whether it has been asked to stop) for each. */
static PyObject *crew_table(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_crew *crew = PLAIT_CREW(self);
    PyObject *table = PyList_New(0);
    if (table == NULL || !plait_crew_usable(crew))
        goto fail;
    /* Naming a task may run Python and change the list: so by number. */
    for (Py_ssize_t at = 0;; at++) {
        struct plait_crew_worker *w = crew->workers;
        for (Py_ssize_t i = 0; w != NULL && i < at; i++)
            w = w->next;
        if (w == NULL)
            return table;
        unsigned long ident = w->ident;
        unsigned long long done = w->done;
        double seconds = 0;
        int stopping = 0;
        PyObject *name = NULL;
        if (w->task != NULL) {
            seconds = (double)(pl_sys_default()->now() - w->task->started_at) / 1e9;
            stopping = w->task->asked != PLAIT_ASKED_NOTHING;
            name = plait_task_name(w->task->future);
        } else {
            name = Py_NewRef(Py_None);
        }
        if (name == NULL)
            goto fail;
        PyObject *row =
            Py_BuildValue("kKNdO", ident, done, name, seconds, stopping ? Py_True : Py_False);
        if (row == NULL || PyList_Append(table, row) < 0) {
            Py_XDECREF(row);
            goto fail;
        }
        Py_DECREF(row);
    }
fail:
    Py_XDECREF(table);
    return NULL;
}

static PyObject *percentiles(const struct plait_histogram *times)
{
    return Py_BuildValue("ddd", plait_histogram_percentile(times, 50) / 1e9,
                         plait_histogram_percentile(times, 95) / 1e9,
                         plait_histogram_percentile(times, 99) / 1e9);
}

static PyObject *crew_figures(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_crew *crew = PLAIT_CREW(self);
    if (!plait_crew_usable(crew))
        return NULL;
    unsigned long long running = 0;
    for (struct plait_crew_worker *w = crew->workers; w != NULL; w = w->next)
        running += w->task != NULL;
    /* Relaxed: the line may change the moment after. */
    unsigned long queued = atomic_load_explicit(&crew->core.queued, memory_order_relaxed);
    return Py_BuildValue(
        "{s:I,s:k,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:N,s:N}", "workers", crew->core.max,
        "queued", queued, "running", running, "submitted", (unsigned long long)crew->submitted,
        "done", (unsigned long long)crew->done, "failed", (unsigned long long)crew->failed,
        "cancelled", (unsigned long long)crew->cancelled, "timed_out",
        (unsigned long long)crew->timed_out, "retried", (unsigned long long)crew->retried,
        "unstarted", (unsigned long long)crew->unstarted, "calls",
        (unsigned long long)crew->core.calls, "waits", percentiles(&crew->waits), "runs",
        percentiles(&crew->runs));
}

static PyObject *crew_get_closed(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(PLAIT_CREW(self)->closed);
}

static PyObject *crew_get_forked(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(PLAIT_CREW(self)->forked);
}

static PyObject *crew_get_broken(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *broken = PLAIT_CREW(self)->broken;
    return Py_NewRef(broken == NULL ? Py_None : broken);
}

static PyObject *crew_get_max(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(PLAIT_CREW(self)->core.max);
}

static PyObject *crew_places(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    const struct pl_crew *core = &PLAIT_CREW(self)->core;
    /* Relaxed: the line may change the moment after. */
    unsigned long queued = atomic_load_explicit(&core->queued, memory_order_relaxed);
    return PyLong_FromUnsignedLong(queued < core->room ? core->room - queued : 0);
}

static int crew_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct plait_crew *crew = PLAIT_CREW(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(crew->initializer);
    Py_VISIT(crew->initargs);
    Py_VISIT(crew->start);
    Py_VISIT(crew->watch);
    Py_VISIT(crew->fail);
    Py_VISIT(crew->broken);
    /* Tasks in the line and running are roots: their futures keep the crew. */
    return 0;
}

static int crew_clear(PyObject *self)
{
    struct plait_crew *crew = PLAIT_CREW(self);
    Py_CLEAR(crew->initializer);
    Py_CLEAR(crew->broken);
    return 0;
}

static void crew_dealloc(PyObject *self)
{
    struct plait_crew *crew = PLAIT_CREW(self);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    /* Threads and futures hold references: neither is left. */
    if (crew->open)
        pl_crew_fini(&crew->core);
    (void)crew_clear(self);
    Py_CLEAR(crew->initargs);
    Py_CLEAR(crew->start);
    Py_CLEAR(crew->watch);
    Py_CLEAR(crew->fail);
    type->tp_free(self);
    Py_DECREF(type);
}

#define METHOD(f) (PyCFunction)(void (*)(void)) f

static PyMethodDef crew_methods[] = {
    {"_run", plait_crew_run, METH_NOARGS, NULL},
    {"_watch", plait_crew_watch, METH_NOARGS, NULL},
    {"_wait_room", plait_crew_wait_room, METH_NOARGS, NULL},
    {"_places", crew_places, METH_NOARGS, NULL},
    {"_close", crew_close, METH_O, NULL},
    {"_cancel_line", crew_cancel_line, METH_NOARGS, NULL},
    {"_stop_running", crew_stop_running, METH_NOARGS, NULL},
    {"_resize", crew_resize, METH_O, NULL},
    {"_after_fork", crew_after_fork, METH_NOARGS, NULL},
    {"_table", crew_table, METH_NOARGS, NULL},
    {"_figures", crew_figures, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef crew_getset[] = {
    {"_closed", crew_get_closed, NULL, NULL, NULL},
    {"_forked", crew_get_forked, NULL, NULL, NULL},
    {"_broken", crew_get_broken, NULL, NULL, NULL},
    {"_max", crew_get_max, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot crew_slots[] = {
    {Py_tp_new, crew_new},         {Py_tp_init, crew_init},
    {Py_tp_dealloc, crew_dealloc}, {Py_tp_traverse, crew_traverse},
    {Py_tp_clear, crew_clear},     {Py_tp_methods, crew_methods},
    {Py_tp_getset, crew_getset},   {0, NULL},
};

static PyType_Spec crew_spec = {
    .name = "plait._core.Crew",
    .basicsize = sizeof(struct plait_crew),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = crew_slots,
};

/* ---- the pool ---- */

static struct plait_crew *crew_of(PyObject *self)
{
    struct plait_crew *crew = POOL(self)->crew;
    if (crew == NULL)
        PyErr_SetString(PyExc_RuntimeError, "this pool is not open");
    return crew;
}

static PyObject *pool_open(PyObject *self, PyObject *arg)
{
    PyTypeObject *type = Py_TYPE(self);
    struct plait_state *state = plait_state_of_type(type);
    if (state == NULL)
        return NULL;
    if (!PyObject_TypeCheck(arg, state->crew_type) || POOL(self)->crew != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "_open() takes a crew, once");
        return NULL;
    }
    POOL(self)->crew = PLAIT_CREW(Py_NewRef(arg));
    Py_RETURN_NONE;
}

static PyObject *pool_submit(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    static const struct plait_task_options none = {0};
    struct plait_crew *crew = crew_of(self);
    if (crew == NULL)
        return NULL;
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "submit() needs a callable as its first argument");
        return NULL;
    }
    return (PyObject *)plait_crew_submit(crew, args, nargs, kwnames, &none, false, NULL);
}

static PyObject *pool_submit_with(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames)
{
    struct plait_crew *crew = crew_of(self);
    if (crew == NULL)
        return NULL;
    if (nargs < 2 || !PyTuple_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "submit() needs a callable as its first argument");
        return NULL;
    }
    struct plait_task_options options = {0};
    long long timeout;
    if (!PyArg_ParseTuple(args[0], "LiIO", &timeout, &options.priority, &options.retries,
                          &options.name))
        return NULL;
    options.timeout_ns = timeout;
    if (options.name == Py_None)
        options.name = NULL;
    return (PyObject *)plait_crew_submit(crew, args + 1, nargs - 1, kwnames, &options, false, NULL);
}

static PyObject *pool_submit_to_loop(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    static const struct plait_task_options none = {0};
    struct plait_crew *crew = crew_of(self);
    if (crew == NULL)
        return NULL;
    if (nargs < 2) {
        PyErr_SetString(PyExc_TypeError, "_submit_to_loop() needs a loop and a callable");
        return NULL;
    }
    /* A loop must not block: the coroutine that awaits the result is held back enough. */
    LoopObject *loop = plait_loop_running_here(crew->state, args[0]);
    uint32_t *late = NULL;
    struct plait_future *f = plait_crew_submit(crew, args + 1, nargs - 1, NULL, &none,
                                               !crew->refuses, loop == NULL ? NULL : &late);
    if (late != NULL)
        plait_loop_wake_late(loop, late);
    if (f == NULL)
        return NULL;
    PyObject *target = plait_future_for_loop(crew->state, f, args[0]);
    Py_DECREF(f);
    return target;
}

static PyObject *pool_get_crew(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_XNewRef(crew_of(self));
}

static int pool_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(POOL(self)->crew);
    return 0;
}

static int pool_clear(PyObject *self)
{
    if (POOL(self)->crew != NULL)
        plait_crew_close(POOL(self)->crew);
    Py_CLEAR(POOL(self)->crew);
    return 0;
}

static void pool_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)pool_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef pool_methods[] = {
    {"submit", METHOD(pool_submit), METH_FASTCALL | METH_KEYWORDS,
     "submit($self, fn, /, *args, **kwargs)\n--\n\n"
     "Run fn(*args, **kwargs) in a thread of the pool.\n\n"
     "Any thread may call this.\n\n"
     "Returns:\n    Future: it can be waited for and awaited.\n\n"
     "Raises:\n    RuntimeError: the pool is shut down, belongs to another process, or no thread\n"
     "        can be started.\n"
     "    TypeError: fn is not callable.\n"
     "    PoolFull: max_pending tasks wait, and when_full is \"raise\".\n"
     "    PoolBroken: the initializer failed."},
    {"_submit_with", METHOD(pool_submit_with), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"_submit_to_loop", METHOD(pool_submit_to_loop), METH_FASTCALL,
     "_submit_to_loop($self, loop, fn, /, *args)\n--\n\n"
     "As submit, for a loop in its own thread: returns a future of that loop."},
    {"_open", pool_open, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pool_getset[] = {
    {"_crew", pool_get_crew, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_traverse, pool_traverse},
    {Py_tp_clear, pool_clear},
    {Py_tp_methods, pool_methods},
    {Py_tp_getset, pool_getset},
    {Py_tp_doc, "The part of a thread pool that is in C; plait.ThreadPool has the rest."},
    {0, NULL},
};

static PyType_Spec pool_spec = {
    .name = "plait._core.ThreadPoolBase",
    .basicsize = sizeof(struct thread_pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = pool_slots,
};

/* ---- the module ---- */

static PyObject *stop_requested(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    struct plait_state *state = plait_state_of_module(module);
    const struct plait_crew_worker *worker = PyThread_tss_get(&state->thread.worker_key);
    return PyBool_FromLong(worker != NULL && worker->task != NULL &&
                           worker->task->asked != PLAIT_ASKED_NOTHING);
}

static PyMethodDef module_methods[] = {
    {"stop_requested", stop_requested, METH_NOARGS,
     "stop_requested($module, /)\n--\n\n"
     "Whether the task that runs in this thread of a ThreadPool has been asked to stop.\n\n"
     "Long tasks that call into C for most of their time look at this now and then, and\n"
     "return. False in other threads.\n\n"
     "Returns:\n    bool: True after future.cancel(), a timeout, or the end of the pool."},
    {NULL, NULL, 0, NULL},
};

int plait_thread_exec(PyObject *module, struct plait_state *state)
{
    state->thread.worker_key = (Py_tss_t)Py_tss_NEEDS_INIT;
    if (PyThread_tss_create(&state->thread.worker_key) != 0) {
        PyErr_NoMemory();
        return -1;
    }
#define X(name, text)                                                                              \
    if ((state->name = PyUnicode_InternFromString(text)) == NULL)                                  \
        return -1;
    PLAIT_FUTURE_NAMES(X)
#undef X
    state->crew_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &crew_spec, NULL);
    if (state->crew_type == NULL ||
        PyModule_AddObjectRef(module, "Crew", (PyObject *)state->crew_type) < 0)
        return -1;
    state->thread_pool_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pool_spec, NULL);
    if (state->thread_pool_type == NULL ||
        PyModule_AddObjectRef(module, "ThreadPoolBase", (PyObject *)state->thread_pool_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, module_methods);
}

void plait_thread_clear(struct plait_state *state)
{
    PyThread_tss_delete(&state->thread.worker_key); /* deleting what is not there is allowed */
}
