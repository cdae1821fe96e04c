/* pool_collect.c - results on their way back: from the board into futures.
 *
 * Collecting runs no code of the user's: values stay encoded, and futures with an audience
 * go on the list `notify`, which is worked off when the role has been put down.
 */
#include "pool_parent.h"

#include <string.h>

void plait_pool_drop(struct plait_pool *pool, PyObject *object)
{
#ifndef Py_GIL_DISABLED
    if (Py_REFCNT(object) > 1) {
        Py_DECREF(object);
        return;
    }
#endif
    if (PyList_Append(pool->dropped, object) < 0)
        PyErr_Clear(); /* then it goes now */
    Py_DECREF(object);
}

static void defer(struct plait_pool *pool, struct plait_future *f)
{
    if (PyList_Append(pool->notify, (PyObject *)f) < 0)
        plait_unraisable((PyObject *)f);
}

void plait_pool_ended(struct plait_pool *pool, struct plait_future *f, bool cancelled)
{
    if (cancelled)
        pool->ended_cancelled++;
    else if (f->stop == PLAIT_STOP_FAIL)
        pool->ended_timed_out++;
    else if (f->exception != NULL || f->kind == PLAIT_EXCEPTION)
        pool->ended_failed++;
    else
        pool->ended_done++;
    PyObject *fn = f->fn;
    f->fn = NULL;
    plait_future_end(f, cancelled);
    if (fn != NULL)
        plait_pool_drop(pool, fn);
    pool->outstanding--;
    if (f->watched) {
        f->watched = false;
        pool->watched--;
        pool->looped -= f->looped;
        f->looped = false;
    }
    plait_pool_wake_for(pool, f);
    if (plait_future_has_audience(f))
        defer(pool, f);
    else
        Py_CLEAR(f->pool);
}

static PyObject *block_from(struct plait_pool *pool, uint32_t cell, uint32_t seat,
                            const struct pl_block *wire, bool readonly)
{
    struct plait_block *block = plait_block_new(pool->state);
    if (block == NULL)
        return NULL;
    int error = pl_pool_view(&pool->core, cell, seat, wire, &block->view, &block->data);
    if (error < 0) {
        Py_DECREF(block);
        PyErr_SetString(PyExc_RuntimeError, "a worker sent a block that it does not have");
        return NULL;
    }
    block->size = (Py_ssize_t)wire->size;
    block->readonly = readonly;
    block->pool = (struct plait_pool *)Py_NewRef((PyObject *)pool);
    return (PyObject *)block;
}

/* Takes a result off the board, undecoded. The slot is shared memory that a hostile worker
 * may still write to: what decides about bounds is copied first. */
static int read_result(struct plait_pool *pool, struct plait_future *f, uint32_t cell,
                       uint32_t seat)
{
    const volatile struct pl_slot *slot = &pool->core.slots[cell];
    uint32_t len = slot->len;
    uint16_t kind = slot->kind;
    struct pl_block message;
    memcpy(&message, (const void *)&slot->block, sizeof(message));
    const char *data;
    size_t size = len;
    PyObject *held = NULL;
    if (message.offset != 0) {
        held = block_from(pool, cell, seat, &message, true);
        if (held == NULL)
            return -1;
        data = ((struct plait_block *)held)->data;
        size = (size_t)message.size;
    } else {
        if (len > PL_SLOT_INLINE)
            goto damaged;
        data = (const char *)pool->core.slots[cell].bytes;
    }
    if (kind == PLAIT_ATOMS) {
        f->message = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
        Py_XDECREF(held);
        f->kind = PLAIT_ATOMS;
        return f->message == NULL ? -1 : 0;
    }
    struct pl_wire wire;
    if ((kind != PLAIT_PICKLE && kind != PLAIT_EXCEPTION && kind != PLAIT_ARRAYS) ||
        pl_wire_open(&wire, data, size) < 0)
        goto damaged;
    if (wire.head.nbufs > 0) {
        f->buffers = PyList_New(0);
        if (f->buffers == NULL)
            goto fail;
        struct pl_wire_buf entry;
        const void *small;
        int found;
        while ((found = pl_wire_next(&wire, &entry, &small)) == 1) {
            PyObject *item;
            if (small == NULL)
                item = block_from(pool, cell, seat, &entry.block, entry.readonly != 0);
            else
                item = plait_small_buffer(&entry, small);
            if (item == NULL || PyList_Append(f->buffers, item) < 0) {
                Py_XDECREF(item);
                goto fail;
            }
            Py_DECREF(item);
        }
        if (found < 0)
            goto damaged;
    }
    const unsigned char *body = wire.body;
    uint32_t body_len = wire.head.body_len;
    if (held != NULL) {
        /* The block stays; `data` and `size` narrow down to the pickle. */
        struct plait_block *block = (struct plait_block *)held;
        block->data = (void *)body;
        block->size = body_len;
        f->block = held;
    } else {
        f->message = PyBytes_FromStringAndSize((const char *)body, body_len);
        if (f->message == NULL)
            goto fail;
    }
    f->kind = (uint8_t)kind;
    return 0;

damaged:
    PyErr_SetString(PyExc_RuntimeError, "a worker sent a damaged result");
fail:
    Py_XDECREF(held);
    Py_CLEAR(f->buffers);
    return -1;
}

/* One finished cell. */
/* The task of a future that was to be stopped has ended: what the future ends as was decided
 * then, and what the task came to is dropped, but for an exception that tells where it was. */
static void finish_stopped(struct plait_pool *pool, struct plait_future *f)
{
    if (f->kind == PLAIT_EXCEPTION)
        f->stopped = PLAIT_STOPPED_EXCEPTION;
    if (f->kind != PLAIT_EXCEPTION || f->stop == PLAIT_STOP_CANCEL) {
        f->kind = 0;
        Py_CLEAR(f->message);
        Py_CLEAR(f->block);
        Py_CLEAR(f->buffers);
    }
    plait_pool_ended(pool, f, f->stop == PLAIT_STOP_CANCEL);
}

/* Keeps a future for the policy: it may have another try. */
static bool rest(struct plait_pool *pool, struct plait_future *f)
{
    if (PyList_Append(pool->again, (PyObject *)f) < 0) {
        PyErr_Clear(); /* without memory for the list there is no other try */
        return false;
    }
    f->state = PLAIT_QUEUED;
    f->resting = true;
    return true;
}

void plait_pool_finish(struct plait_pool *pool, uint32_t cell, uint32_t seat)
{
    struct plait_future *f = pool->core.cells[cell].user; /* ours now */
    if (read_result(pool, f, cell, seat) < 0) {
        PyObject *error = plait_take_exception();
        f->kind = 0;
        if (f->stop == PLAIT_STOP_NONE)
            f->exception = error;
        else
            Py_XDECREF(error);
    }
    plait_histogram_add(&pool->waited, pool->core.slots[cell].posted);
    plait_histogram_add(&pool->ran, pool->core.slots[cell].run_ns);
    pl_pool_release(&pool->core, cell);
    if (f->stop != PLAIT_STOP_NONE)
        finish_stopped(pool, f);
    else if (!f->again || f->kind != PLAIT_EXCEPTION || !rest(pool, f))
        plait_pool_ended(pool, f, false);
    plait_pool_drop(pool, (PyObject *)f);
}

/* Takes all that is there off the board, and fills the board again. */
void plait_pool_collect(struct plait_pool *pool)
{
    for (;;) {
        uint32_t cell;
        uint32_t seat;
        int found = pl_pool_next(&pool->core, &cell, &seat);
        if (found == 0)
            break;
        if (found == 1)
            plait_pool_finish(pool, cell, seat);
        else
            pool->suspects |= UINT64_C(1) << (seat % 64);
    }
    plait_pool_feed(pool);
}

/* Takes a list's items out of it, as a list of their own; NULL when it has none, or when there
 * is no memory. */
static PyObject *take_list(struct plait_pool *pool, PyObject **list)
{
    if (PyList_GET_SIZE(*list) == 0)
        return NULL;
    PyObject *batch = *list;
    PyObject *fresh = PyList_New(0);
    if (fresh == NULL) {
        plait_unraisable((PyObject *)pool);
        return NULL;
    }
    *list = fresh;
    return batch;
}

void plait_pool_notify(struct plait_pool *pool)
{
    Py_INCREF(pool);
    PyObject *batch;
    while ((batch = take_list(pool, &pool->notify)) != NULL) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(batch); i++)
            plait_future_notify(pool->state, FUTURE(PyList_GET_ITEM(batch, i)));
        Py_DECREF(batch);
    }
    while ((batch = take_list(pool, &pool->dropped)) != NULL)
        Py_DECREF(batch);
    Py_DECREF(pool);
}

/* Deaths, and workers that broke the rules: policy, so Python's. */
int plait_pool_tend(struct plait_pool *pool, uint32_t tags)
{
    PyObject *batch = take_list(pool, &pool->again);
    if (batch != NULL) {
        PyObject *told = PyObject_CallMethod((PyObject *)pool, "_on_failed", "O", batch);
        Py_DECREF(batch);
        if (told == NULL)
            return -1;
        Py_DECREF(told);
    }
    if (pool->suspects != 0) {
        unsigned long long suspects = pool->suspects;
        pool->suspects = 0;
        PyObject *told = PyObject_CallMethod((PyObject *)pool, "_on_suspects", "K", suspects);
        if (told == NULL)
            return -1;
        Py_DECREF(told);
    }
    if ((tags & 1) != 0) {
        PyObject *told = PyObject_CallMethod((PyObject *)pool, "_on_control", NULL);
        if (told == NULL)
            return -1;
        Py_DECREF(told);
    }
    return 0;
}

void plait_pool_peek(PyObject *self)
{
    struct plait_pool *pool = POOL(self);
    if (pool->led || !pool->open || pl_pool_forked(&pool->core))
        return;
    Py_INCREF(pool); /* what ends here may have held the last reference */
    if (pl_pool_ready(&pool->core))
        plait_pool_collect(pool);
    if (plait_pool_has_news(pool))
        plait_pool_notify(pool);
    if (pool->core.owed_wake)
        pl_pool_flush(&pool->core);
    uint32_t tags = 0;
    if (pl_pool_wait(&pool->core, 0, &tags) < 0)
        tags = 0; /* interrupted: no news */
    if (plait_pool_tend(pool, tags) < 0)
        plait_unraisable((PyObject *)pool);
    if (pool->watched > 0) {
        /* The wait above may have swallowed the event that others sleep for. */
        pl_pool_arm(&pool->core, PL_ARM_ANY);
        if (pl_pool_ready(&pool->core))
            plait_pool_kick(pool);
    }
    Py_DECREF(pool);
}
