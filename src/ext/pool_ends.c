/* pool_ends.c - tasks that end otherwise than by a result: stopped, tried again, taken back, lost
 * with their worker. Methods of the pool's type, for the policy in Python. */
#include "pool_parent.h"

struct plait_future *plait_pool_own_future(struct plait_pool *pool, PyObject *arg)
{
    if (PyObject_TypeCheck(arg, pool->state->future_base_type) &&
        FUTURE(arg)->pool == (PyObject *)pool && plait_pool_usable(pool))
        return FUTURE(arg);
    return NULL;
}

/* A future that was buried has tries left: it rests until _submit_again or its end. */
PyObject *plait_pool_do_rest(PyObject *self, PyObject *arg)
{
    struct plait_future *f = plait_pool_own_future(POOL(self), arg);
    if (f == NULL || f->state != PLAIT_SETTLING || f->stop != PLAIT_STOP_NONE) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    f->state = PLAIT_QUEUED;
    f->resting = true;
    Py_RETURN_TRUE;
}

/* Ends a resting future with what its last try came to. */
PyObject *plait_pool_do_give_up(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    struct plait_future *f = plait_pool_own_future(pool, arg);
    if (f == NULL || !f->resting) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    f->resting = false;
    Py_INCREF(f);
    plait_pool_ended(pool, f, false);
    Py_DECREF(f);
    Py_RETURN_NONE;
}

/* _ask_stop(future, error): the seat of the worker that is asked to stop the future's task,
 * or -1 when no worker has it. The future will end as cancelled, or with the error. */
PyObject *plait_pool_do_ask_stop(PyObject *self, PyObject *args)
{
    struct plait_pool *pool = POOL(self);
    PyObject *arg;
    PyObject *error;
    uint32_t seat;
    if (!PyArg_ParseTuple(args, "OO", &arg, &error))
        return NULL;
    struct plait_future *f = plait_pool_own_future(pool, arg);
    if (f == NULL || f->state != PLAIT_POSTED || f->stop != PLAIT_STOP_NONE ||
        !pl_pool_stop(&pool->core, f->cell, &seat)) {
        PyErr_Clear();
        return PyLong_FromLong(-1);
    }
    if (error == Py_None) {
        f->stop = PLAIT_STOP_CANCEL;
    } else {
        f->stop = PLAIT_STOP_FAIL;
        f->exception = Py_NewRef(error);
    }
    return PyLong_FromUnsignedLong(seat);
}

/* (seat, nanoseconds for which it has run or -1 if that is not known) of the worker that has
 * the future's task, or None. */
PyObject *plait_pool_do_holder(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    struct plait_future *f = plait_pool_own_future(pool, arg);
    uint32_t seat;
    int64_t since;
    if (f == NULL || f->state != PLAIT_POSTED ||
        !pl_pool_holder(&pool->core, f->cell, &seat, &since)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return Py_BuildValue("IL", seat, (long long)(since == 0 ? -1 : pool->core.sys->now() - since));
}

/* _end_stopped(future): its worker is gone; it ends as it was decided when it was stopped. */
PyObject *plait_pool_do_end_stopped(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    struct plait_future *f = plait_pool_own_future(pool, arg);
    if (f == NULL || f->state != PLAIT_SETTLING || f->stop == PLAIT_STOP_NONE) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    f->stopped = PLAIT_STOPPED_KILLED;
    Py_INCREF(f);
    plait_pool_ended(pool, f, f->stop == PLAIT_STOP_CANCEL);
    plait_pool_notify(pool);
    Py_DECREF(f);
    Py_RETURN_TRUE;
}

/* The worker of a seat is gone: list of the futures that it leaves unfinished. */
PyObject *plait_pool_do_bury(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    unsigned long seat = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred() || !plait_pool_usable(pool))
        return NULL;
    if (seat >= pool->core.nseats) {
        PyErr_Format(PyExc_ValueError, "seat must be less than %u, not %lu", pool->core.nseats,
                     seat);
        return NULL;
    }
    PyObject *lost = PyList_New(0);
    if (lost == NULL)
        return NULL;
    plait_pool_collect(pool);
    pool->suspects &= ~(UINT64_C(1) << (seat % 64));
    uint32_t cell;
    enum pl_burial end;
    while ((end = pl_pool_bury(&pool->core, (uint32_t)seat, &cell)) != PL_BURIED) {
        if (end == PL_FINISHED) {
            plait_pool_finish(pool, cell, (uint32_t)seat);
            continue;
        }
        struct plait_future *f = pool->core.cells[cell].user;
        pl_pool_release(&pool->core, cell);
        f->state = PLAIT_SETTLING; /* so that nobody takes the cell's next task for this one */
        if (PyList_Append(lost, (PyObject *)f) < 0) {
            /* Without memory for the list it ends here, with that very error. */
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            PyErr_NormalizeException(&type, &value, &traceback);
            f->exception = value;
            Py_XDECREF(type);
            Py_XDECREF(traceback);
            plait_pool_ended(pool, f, false);
        }
        Py_DECREF(f);
    }
    plait_pool_feed(pool);
    return lost;
}

/* Takes back all tasks that no worker has begun: list of their futures. */
PyObject *plait_pool_do_recall(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    if (!plait_pool_usable(pool))
        return NULL;
    PyObject *all = PyList_New(0);
    if (all == NULL)
        return NULL;
    for (struct plait_future *f = pool->queue_first; f != NULL; f = f->next)
        if (f->state == PLAIT_QUEUED && PyList_Append(all, (PyObject *)f) < 0)
            goto fail;
    for (size_t i = 0; i < pool->nheap; i++)
        if (pool->heap[i].future->state == PLAIT_QUEUED &&
            PyList_Append(all, (PyObject *)pool->heap[i].future) < 0)
            goto fail;
    for (uint32_t i = 0; i < pool->core.nslots; i++)
        if (pool->core.cells[i].state == PL_CELL_POSTED &&
            PyList_Append(all, pool->core.cells[i].user) < 0)
            goto fail;
    return all;
fail:
    Py_DECREF(all);
    return NULL;
}

/* Whether the future's task was taken back; the caller ends it with _fail at once. */
PyObject *plait_pool_do_withdraw(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    if (!PyObject_TypeCheck(arg, pool->state->future_base_type) || FUTURE(arg)->pool != self ||
        !plait_pool_withdraw(pool, FUTURE(arg)))
        Py_RETURN_FALSE;
    FUTURE(arg)->state = PLAIT_SETTLING;
    Py_DECREF(arg);
    Py_RETURN_TRUE;
}

/* Ends a future as cancelled that _withdraw has just taken back. */
PyObject *plait_pool_do_cancel_now(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    struct plait_future *f = plait_pool_own_future(pool, arg);
    if (f == NULL || f->state != PLAIT_SETTLING) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    f->stopped = PLAIT_STOPPED_QUEUED;
    Py_INCREF(f);
    plait_pool_ended(pool, f, true);
    plait_pool_notify(pool);
    Py_DECREF(f);
    Py_RETURN_NONE;
}
