/* pool.c - the parent's side of a process pool: the type and its methods.
 *
 * pool_send.c brings tasks to the workers, pool_collect.c their results back, pool_wait.c
 * says who looks at results, pool_ends.c ends tasks otherwise; plait._pool has the policy.
 *
 * All fields are guarded by the interpreter's lock, which is let go only while waiting and
 * while large buffers are copied.
 *
 * Sections: checks, futures that change their mind, methods, the type.
 */
#include "pool_parent.h"

extern PyType_Spec plait_block_spec;
extern PyType_Spec plait_items_spec;

/* ---- checks ---- */

/* False with an exception set when the pool cannot be used by this process or any more. */
bool plait_pool_usable(struct plait_pool *pool)
{
    if (pool->open && (pool->forked || pl_pool_forked(&pool->core))) {
        pool->forked = true;
        PyErr_SetString(PyExc_RuntimeError,
                        "this pool belongs to the parent process: make a new one after fork");
        return false;
    }
    if (!pool->open) {
        PyErr_SetString(PyExc_RuntimeError, "this pool is not open");
        return false;
    }
    return true;
}

bool plait_pool_accepts(struct plait_pool *pool)
{
    if (!plait_pool_usable(pool))
        return false;
    if (pool->broken != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(pool->broken), pool->broken);
        return false;
    }
    if (pool->closed) {
        PyErr_SetString(PyExc_RuntimeError, "cannot schedule new futures after shutdown");
        return false;
    }
    return true;
}

/* ---- futures that change their mind ---- */

/* Takes a task back that no worker has begun. True: nobody will run it, and the caller ends
 * the future; the reference of the queue or the cell is the caller's then. */
bool plait_pool_withdraw(struct plait_pool *pool, struct plait_future *f)
{
    if (!pool->open || pl_pool_forked(&pool->core))
        return false;
    if (f->state == PLAIT_POSTED)
        return pl_pool_withdraw(&pool->core, f->cell);
    if (f->state != PLAIT_QUEUED)
        return false;
    if (f->resting) {
        plait_pool_unrest(f);
        Py_INCREF(f);
        return true;
    }
    /* Its place in the list stays, with the list's reference: feed passes it over. */
    for (uint32_t i = 0; i < f->nblocks; i++)
        pl_pool_free(&pool->core, &f->blocks[i]);
    PyMem_Free(f->blocks);
    f->blocks = NULL;
    f->nblocks = 0;
    Py_CLEAR(f->message);
    pool->queued--;
    Py_INCREF(f);
    return true;
}

static int keeper_cancel(PyObject *self, struct plait_future *f)
{
    struct plait_pool *pool = POOL(self);
    if (!plait_pool_withdraw(pool, f)) {
        if (f->state != PLAIT_POSTED || !pool->open || pl_pool_forked(&pool->core))
            return 0;
        if (f->stop != PLAIT_STOP_NONE) {
            /* It is being stopped already; whoever cancels has the last word on the outcome. */
            f->stop = PLAIT_STOP_CANCEL;
            Py_CLEAR(f->exception);
            return 1;
        }
        PyObject *told = PyObject_CallMethod(self, "_stop_task", "O", f);
        int stopping = told == NULL ? -1 : PyObject_IsTrue(told);
        Py_XDECREF(told);
        return stopping;
    }
    Py_INCREF(pool);
    f->stopped = PLAIT_STOPPED_QUEUED;
    plait_pool_ended(pool, f, true);
    plait_pool_notify(pool);
    Py_DECREF(f);
    Py_DECREF(pool);
    return 1;
}

static bool keeper_running(PyObject *self, const struct plait_future *f)
{
    const struct plait_pool *pool = POOL(self);
    return f->state == PLAIT_POSTED && !pl_pool_forked(&pool->core) &&
           pl_pool_claimed(&pool->core, f->cell);
}

static int keeper_watch(PyObject *self, struct plait_future *f)
{
    struct plait_pool *pool = POOL(self);
    if (f->watched || plait_future_done(f) || f->state == PLAIT_SETTLING ||
        !plait_pool_usable(pool))
        return PyErr_Occurred() != NULL ? -1 : 0;
    /* With a loop in this thread, or one that is attached already for this future, results
     * are seen there; else the helper sees them. */
    if (f->waiters == NULL && !pool->helper_there) {
        PyObject *started = PyObject_CallMethod((PyObject *)pool, "_start_helper", NULL);
        if (started == NULL)
            return -1;
        Py_DECREF(started);
        if (plait_future_done(f) || f->watched || f->pool == NULL)
            return 0;
    }
    f->watched = true;
    pool->watched++;
    f->looped = f->waiters != NULL;
    pool->looped += f->looped;
    pl_pool_arm(&pool->core, PL_ARM_ANY);
    if (pl_pool_ready(&pool->core))
        plait_pool_kick(pool);
    if (pool->core.owed_wake)
        pl_pool_flush(&pool->core);
    if (f->waiters == NULL && !pool->led)
        plait_pool_hand_over(pool);
    return 0;
}

static int keeper_attach(PyObject *self, PyObject *loop)
{
    struct plait_pool *pool = POOL(self);
    if (pool->last_loop == loop)
        return 0;
    PyObject *told = PyObject_CallMethod((PyObject *)pool, "_attach", "O", loop);
    if (told == NULL)
        return -1;
    Py_DECREF(told);
    pool->last_loop = loop;
    return 0;
}

static void keeper_wake(PyObject *self, struct plait_future *f)
{
    plait_pool_wake_for(POOL(self), f);
}

static void keeper_failed(PyObject *self, struct plait_future *f)
{
    struct plait_pool *pool = POOL(self);
    Py_INCREF(pool);
    plait_pool_ended(pool, f, false);
    plait_pool_notify(pool);
    Py_DECREF(pool);
}

const struct plait_keeper plait_pool_keeper = {
    .wait = plait_pool_wait_for,
    .cancel = keeper_cancel,
    .running = keeper_running,
    .watch = keeper_watch,
    .attach = keeper_attach,
    .wake = keeper_wake,
    .peek = plait_pool_peek,
    .failed = keeper_failed,
};

/* ---- methods ---- */

static int import_attr(PyObject **slot, const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return -1;
    *slot = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return *slot == NULL ? -1 : 0;
}

static PyObject *pool_open(PyObject *self, PyObject *args)
{
    struct plait_pool *pool = POOL(self);
    unsigned int workers;
    unsigned int most;
    unsigned int slots;
    unsigned long long limit;
    unsigned long long max_pending;
    int by_value;
    unsigned int cpus;
    if (!PyArg_ParseTuple(args, "IIIKpKI", &workers, &most, &slots, &limit, &by_value, &max_pending,
                          &cpus))
        return NULL;
    if (pool->open) {
        PyErr_SetString(PyExc_RuntimeError, "the pool is open");
        return NULL;
    }
    if (pool->state->decode_exception == NULL &&
        import_attr(&pool->state->decode_exception, "plait._pool", "decode_exception") < 0)
        return NULL;
    struct pl_pool_config config = {
        .workers = workers, .most = most, .slots = slots, .limit = limit, .cpus = cpus};
    int error = pl_pool_init(&pool->core, &config);
    if (error < 0)
        return plait_raise(pool->state, error, "making the shared memory of a pool");
    pool->open = true;
    pool->copy_ns = 0.1;
    pool->workers = workers;
    pool->max_pending = max_pending;
    pool->by_value = by_value != 0;
    return Py_BuildValue("iii", pool->core.memfd, pool->core.eventfd, pool->core.waitfd);
}

static PyObject *pool_submit(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "submit() needs a callable as its first argument");
        return NULL;
    }
    struct plait_call call = {
        .fn = args[0], .args = args + 1, .nargs = nargs - 1, .kwnames = kwnames};
    return (PyObject *)plait_pool_submit(POOL(self), &call);
}

/* _submit_order(order, name, again, priority, fn, *args, **kwargs) */
static PyObject *pool_submit_order(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *kwnames)
{
    if (nargs < 5) {
        PyErr_SetString(PyExc_TypeError, "submit() needs a callable as its first argument");
        return NULL;
    }
    long priority = PyLong_AsLong(args[3]);
    if (priority == -1 && PyErr_Occurred())
        return NULL;
    struct plait_call call = {.fn = args[4],
                              .args = args + 5,
                              .nargs = nargs - 5,
                              .priority = (int32_t)priority,
                              .kwnames = kwnames,
                              .order = args[0],
                              .name = args[1],
                              .again = args[2] == Py_True};
    struct plait_future *f = plait_pool_submit(POOL(self), &call);
    /* Its next try is not to wait until somebody asks how it went. */
    if (f != NULL && call.again && keeper_watch(self, f) < 0)
        PyErr_WriteUnraisable(self);
    return (PyObject *)f;
}

/* _submit_again(future, again, fn, *args, **kwargs): whether the try is under way. */
static PyObject *pool_submit_again(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *kwnames)
{
    struct plait_pool *pool = POOL(self);
    if (nargs < 3) {
        PyErr_SetString(PyExc_TypeError, "_submit_again() needs a future and a callable");
        return NULL;
    }
    struct plait_future *f = plait_pool_own_future(pool, args[0]);
    if (f == NULL || !f->resting) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    struct plait_call call = {.fn = args[2],
                              .args = args + 3,
                              .nargs = nargs - 3,
                              .kwnames = kwnames,
                              .again = args[1] == Py_True};
    int under_way = plait_pool_resubmit(pool, f, &call);
    return under_way < 0 ? NULL : PyBool_FromLong(under_way);
}

/* (fn, list or range): a task that calls fn on each item and returns the list of results. */
static PyObject *pool_submit_each(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2 || !(PyList_CheckExact(args[1]) || PyRange_Check(args[1]))) {
        PyErr_SetString(PyExc_TypeError, "_submit_each() needs a callable and a list or range");
        return NULL;
    }
    struct plait_call call = {.fn = args[0], .args = args + 1, .nargs = 1, .how = PLAIT_EACH};
    return (PyObject *)plait_pool_submit(POOL(self), &call);
}

static PyObject *pool_submit_to_loop(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 2) {
        PyErr_SetString(PyExc_TypeError, "_submit_to_loop() needs a loop and a callable");
        return NULL;
    }
    struct plait_pool *pool = POOL(self);
    if (pool->max_pending != 0 && pool->outstanding >= pool->max_pending &&
        plait_pool_accepts(pool)) {
        /* A loop is not blocked, whatever submit does when the pool is full. */
        PyObject *rest = PyTuple_New(nargs - 2);
        for (Py_ssize_t i = 2; rest != NULL && i < nargs; i++)
            PyTuple_SET_ITEM(rest, i - 2, Py_NewRef(args[i]));
        if (rest == NULL)
            return NULL;
        return PyObject_CallMethod(self, "_submit_when_room", "OON", args[0], args[1], rest);
    }
    if (PyErr_Occurred())
        return NULL;
    struct plait_call call = {.fn = args[1], .args = args + 2, .nargs = nargs - 2};
    struct plait_future *f = plait_pool_submit(pool, &call);
    if (f == NULL)
        return NULL;
    PyObject *target = plait_future_for_loop(POOL(self)->state, f, args[0]);
    Py_DECREF(f);
    return target;
}

static PyObject *pool_seat(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    uint32_t seat;
    uint64_t low_mark;
    if (!plait_pool_usable(pool))
        return NULL;
    int error = pl_pool_seat(&pool->core, &seat, &low_mark);
    if (error < 0)
        return plait_raise(pool->state, error, "finding a seat for a worker");
    return Py_BuildValue("IK", seat, (unsigned long long)low_mark);
}

static PyObject *pool_watch(PyObject *self, PyObject *args)
{
    struct plait_pool *pool = POOL(self);
    int fd;
    unsigned int tag;
    if (!PyArg_ParseTuple(args, "iI", &fd, &tag) || !plait_pool_usable(pool))
        return NULL;
    int error = pl_pool_watch(&pool->core, fd, tag);
    if (error < 0)
        return plait_raise(pool->state, error, "watching a descriptor");
    Py_RETURN_NONE;
}

static PyObject *pool_unwatch(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    long fd = PyLong_AsLong(arg);
    if ((fd == -1 && PyErr_Occurred()) || !plait_pool_usable(pool))
        return NULL;
    pl_pool_unwatch(&pool->core, (int)fd);
    Py_RETURN_NONE;
}

static PyObject *pool_kick(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (POOL(self)->open && !pl_pool_forked(&POOL(self)->core))
        plait_pool_kick(POOL(self));
    Py_RETURN_NONE;
}

static PyObject *pool_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    pool->closed = true;
    Py_RETURN_NONE;
}

static PyObject *pool_dismiss(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    if (!plait_pool_usable(pool))
        return NULL;
    pl_pool_close(&pool->core);
    Py_RETURN_NONE;
}

/* _resize(workers, seats): so many workers are wanted from now on, and those in the seats are
 * to end once they are idle. */
static PyObject *pool_resize(PyObject *self, PyObject *args)
{
    struct plait_pool *pool = POOL(self);
    unsigned int workers;
    PyObject *seats;
    if (!PyArg_ParseTuple(args, "IO!", &workers, &PyList_Type, &seats) || !plait_pool_usable(pool))
        return NULL;
    pool->workers = workers;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(seats); i++) {
        unsigned long seat = PyLong_AsUnsignedLong(PyList_GET_ITEM(seats, i));
        if (PyErr_Occurred())
            return NULL;
        if (seat < pool->core.nseats)
            pl_pool_retire(&pool->core, (uint32_t)seat);
    }
    pl_pool_flush(&pool->core); /* those that end now may have been rung for a task */
    Py_RETURN_NONE;
}

static PyObject *pool_break(PyObject *self, PyObject *exception)
{
    struct plait_pool *pool = POOL(self);
    Py_XSETREF(pool->broken, exception == Py_None ? NULL : Py_NewRef(exception));
    Py_RETURN_NONE;
}

static PyObject *pool_detach_loops(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    POOL(self)->last_loop = NULL;
    Py_RETURN_NONE;
}

/* _helper_is(eventfd): there is a helper, and this ends its rest; -1: there is none. */
static PyObject *pool_helper_is(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    long fd = PyLong_AsLong(arg);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    pool->nudge = (int)fd;
    pool->helper_there = fd >= 0;
    pool->helper_rests = pool->helper_there; /* until it is up */
    pool->core.payer = pool->core.payer && pool->helper_there;
    Py_RETURN_NONE;
}

static PyObject *pool_after_fork(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    pool->forked = true;
    pool->led = pool->asleep = pool->helper_there = pool->helper_leads = false;
    pool->helper_rests = false;
    pool->nudge = -1;
    pool->core.payer = false;
    pool->followers = NULL;
    Py_RETURN_NONE;
}

static PyObject *pool_get_outstanding(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(POOL(self)->outstanding);
}

static PyObject *pool_get_closed(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(POOL(self)->closed);
}

static PyObject *pool_get_interrupted(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(POOL(self)->interrupted);
}

static PyObject *pool_get_forked(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_pool *pool = POOL(self);
    return PyBool_FromLong(pool->open && (pool->forked || pl_pool_forked(&pool->core)));
}

/* ---- the type ---- */

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs; /* __init__ is Python's */
    struct plait_state *state = plait_state_of_type(type);
    if (state == NULL)
        return NULL;
    struct plait_pool *pool = POOL(type->tp_alloc(type, 0));
    if (pool == NULL)
        return NULL;
    pool->state = state;
    pool->core.memfd = pool->core.eventfd = pool->core.waitfd = -1;
    pool->fn_cache = PyDict_New();
    pool->notify = PyList_New(0);
    pool->again = PyList_New(0);
    pool->dropped = PyList_New(0);
    pool->nudge = -1;
    if (pool->fn_cache == NULL || pool->notify == NULL || pool->again == NULL ||
        pool->dropped == NULL)
        Py_CLEAR(pool);
    return (PyObject *)pool;
}

static int pool_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct plait_pool *pool = POOL(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(pool->fn_cache);
    Py_VISIT(pool->notify);
    Py_VISIT(pool->again);
    Py_VISIT(pool->dropped);
    Py_VISIT(pool->broken);
    /* Futures on the board and in the queue are roots: work that is under way keeps its pool
     * and itself alive. */
    return 0;
}

static int pool_clear(PyObject *self)
{
    struct plait_pool *pool = POOL(self);
    Py_CLEAR(pool->fn_cache);
    Py_CLEAR(pool->notify);
    Py_CLEAR(pool->again);
    Py_CLEAR(pool->dropped);
    Py_CLEAR(pool->broken);
    return 0;
}

static void pool_dealloc(PyObject *self)
{
    struct plait_pool *pool = POOL(self);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    /* Futures that are under way hold a reference, so none is left. */
    pl_pool_fini(&pool->core);
    PyMem_Free(pool->heap);
    pool->open = false;
    (void)pool_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define METHOD(f) (PyCFunction)(void (*)(void)) f

static PyMethodDef pool_methods[] = {
    {"submit", METHOD(pool_submit), METH_FASTCALL | METH_KEYWORDS,
     "submit($self, fn, /, *args, **kwargs)\n--\n\n"
     "Run fn(*args, **kwargs) in a worker process.\n\n"
     "Returns:\n    Future: it can be waited for and awaited.\n\n"
     "Raises:\n    RuntimeError: the pool is shut down, or belongs to another process.\n"
     "    TypeError: fn is not callable, or a coroutine or generator function.\n"
     "    MemoryError: the arguments do not fit the shared memory."},
    {"_submit_to_loop", METHOD(pool_submit_to_loop), METH_FASTCALL,
     "_submit_to_loop($self, loop, fn, /, *args)\n--\n\n"
     "As submit, for a loop in its own thread: returns a future of that loop."},
    {"_submit_order", METHOD(pool_submit_order), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"_submit_again", METHOD(pool_submit_again), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"_rest", plait_pool_do_rest, METH_O, NULL},
    {"_give_up", plait_pool_do_give_up, METH_O, NULL},
    {"_ask_stop", plait_pool_do_ask_stop, METH_VARARGS, NULL},
    {"_holder", plait_pool_do_holder, METH_O, NULL},
    {"_end_stopped", plait_pool_do_end_stopped, METH_O, NULL},
    {"_submit_each", METHOD(pool_submit_each), METH_FASTCALL, NULL},
    {"share", METHOD(plait_pool_share), METH_VARARGS | METH_KEYWORDS, plait_pool_share_doc},
    {"_open", pool_open, METH_VARARGS, NULL},
    {"_on_ready", plait_pool_on_ready, METH_NOARGS, NULL},
    {"_help", plait_pool_help, METH_O, NULL},
    {"_kick", pool_kick, METH_NOARGS, NULL},
    {"_wake_helper", plait_pool_wake_helper, METH_NOARGS, NULL},
    {"_wait_idle", plait_pool_wait_idle, METH_O, NULL},
    {"_seat", pool_seat, METH_NOARGS, NULL},
    {"_bury", plait_pool_do_bury, METH_O, NULL},
    {"_recall", plait_pool_do_recall, METH_NOARGS, NULL},
    {"_withdraw", plait_pool_do_withdraw, METH_O, NULL},
    {"_cancel_now", plait_pool_do_cancel_now, METH_O, NULL},
    {"_watch", pool_watch, METH_VARARGS, NULL},
    {"_unwatch", pool_unwatch, METH_O, NULL},
    {"_close", pool_close, METH_NOARGS, NULL},
    {"_dismiss", pool_dismiss, METH_NOARGS, NULL},
    {"_resize", pool_resize, METH_VARARGS, NULL},
    {"_break", pool_break, METH_O, NULL},
    {"_forget_loop", pool_detach_loops, METH_NOARGS, NULL},
    {"_helper_is", pool_helper_is, METH_O, NULL},
    {"_after_fork", pool_after_fork, METH_NOARGS, NULL},
    {"_figures", plait_pool_figures, METH_NOARGS, NULL},
    {"_running", plait_pool_running, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *pool_get_room(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(POOL(self)->open ? pl_pool_room(&POOL(self)->core) : 0);
}

static PyObject *pool_get_unread(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(POOL(self)->unread);
}

static PyGetSetDef pool_getset[] = {
    {"_room", pool_get_room, NULL, NULL, NULL},
    {"_unread", pool_get_unread, NULL, NULL, NULL},
    {"_outstanding", pool_get_outstanding, NULL, NULL, NULL},
    {"_closed", pool_get_closed, NULL, NULL, NULL},
    {"_interrupted", pool_get_interrupted, NULL, NULL, NULL},
    {"_forked", pool_get_forked, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_new, pool_new},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_traverse, pool_traverse},
    {Py_tp_clear, pool_clear},
    {Py_tp_methods, pool_methods},
    {Py_tp_getset, pool_getset},
    {Py_tp_doc, "The part of a process pool that is in C; plait.ProcessPool has the rest."},
    {0, NULL},
};

static PyType_Spec pool_spec = {
    .name = "plait._core.PoolBase",
    .basicsize = sizeof(struct plait_pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = pool_slots,
};

static PyMethodDef module_methods[] = {
    {"own_bytes", plait_own_bytes, METH_O,
     "own_bytes($module, buffer, /)\n--\n\nCopy a buffer into bytes."},
    {"own_bytearray", plait_own_bytearray, METH_O,
     "own_bytearray($module, buffer, /)\n--\n\nCopy a buffer into a bytearray."},
    {"worker_run", plait_worker_run, METH_VARARGS, plait_worker_run_doc},
    {"fork", plait_fork, METH_NOARGS, plait_fork_doc},
    {"die_with_parent", plait_die_with_parent, METH_O,
     "die_with_parent($module, parent, /)\n--\n\n"
     "Have this process killed when its parent ends; exit now if that is not `parent`.\n"
     "0 takes it back."},
    {NULL, NULL, 0, NULL},
};

int plait_pool_exec(PyObject *module, struct plait_state *state)
{
    /* The module behind pickle: pickle itself would load the regular expressions first. */
    if (import_attr(&state->pickle_dumps, "_pickle", "dumps") < 0 ||
        import_attr(&state->pickle_loads, "_pickle", "loads") < 0)
        return -1;
    state->protocol_5 = PyLong_FromLong(5);
    state->dumps_kwnames = Py_BuildValue("(ss)", "protocol", "buffer_callback");
    state->loads_kwnames = Py_BuildValue("(s)", "buffers");
    state->str_append = PyUnicode_InternFromString("append");
    state->empty_tuple = PyTuple_New(0);
    state->large_type = NULL; /* plait._share.Large, when it is first needed */
    if (state->protocol_5 == NULL || state->dumps_kwnames == NULL || state->loads_kwnames == NULL ||
        state->str_append == NULL || state->empty_tuple == NULL)
        return -1;
    state->block_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &plait_block_spec, NULL);
    if (state->block_type == NULL)
        return -1;
    state->items_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &plait_items_spec, NULL);
    if (state->items_type == NULL ||
        PyModule_AddObjectRef(module, "Items", (PyObject *)state->items_type) < 0)
        return -1;
    state->pool_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pool_spec, NULL);
    if (state->pool_type == NULL ||
        PyModule_AddObjectRef(module, "PoolBase", (PyObject *)state->pool_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, module_methods);
}

void plait_pool_clear(struct plait_state *state)
{
    (void)state;
}
