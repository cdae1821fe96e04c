/* pool.c - the parent's side of a process pool: submit, collect, wait.
 *
 * Who looks at results. Nobody is there for this alone: a thread in result() collects for
 * all while it waits (it leads), the others sleep until their future is done or the lead is
 * theirs. A loop has the pool's wait descriptor among its own and collects when it is
 * readable. Only when a future has an audience that does not wait (a callback,
 * concurrent.futures.wait), or when tasks wait that the board has no room for, a helper
 * thread leads while no one else does.
 *
 * Collecting runs no code of the user's: values stay encoded, and futures with an audience
 * go on the list `notify`, which is worked off when the role has been put down.
 *
 * All fields are guarded by the interpreter's lock, which is let go only while waiting and
 * while large buffers are copied.
 *
 * Sections: helpers, encoding, posting, collecting, waiting, methods, the type.
 */
#include "pool.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#define POOL(o) ((struct plait_pool *)(o))
#define FUTURE(o) ((struct plait_future *)(o))
#define COPY_WITHOUT_LOCK (1 << 20)
#define DOZE_NS 1000000 /* how long a queued task or an owed wake-up may have to wait */
#define DOZE_TICKS 16
#define UNRUNG_MAX 64 /* posts that would have liked a payer, before there is one */

extern PyType_Spec plait_block_spec;

/* ---- helpers ---- */

/* False with an exception set when the pool cannot be used by this process or any more. */
static bool usable(struct plait_pool *pool)
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

static bool accepts(struct plait_pool *pool)
{
    if (!usable(pool))
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

static void wake_waiter(struct plait_waiter *waiter)
{
    /* Release: the sleeper reads the word, then the future under the interpreter's lock. */
    __atomic_store_n(&waiter->word, 1, __ATOMIC_RELEASE);
    (void)pl_sys_default()->futex_wake(&waiter->word, 1); /* it may not sleep yet: fine */
}

static void kick_waiters(struct plait_pool *pool)
{
    uint64_t one = 1;
    /* A full counter wakes as well. */
    (void)pool->core.sys->write(pool->core.eventfd, &one, sizeof(one));
}

void plait_pool_wake_for(struct plait_pool *pool, struct plait_future *f)
{
    for (struct plait_waiter *w = pool->followers; w != NULL; w = w->next)
        if (w->future == f)
            wake_waiter(w);
    /* A leader that sleeps for this one, when someone else has ended it. */
    if (pool->asleep && pool->asleep_for == f)
        kick_waiters(pool);
}

/* The lead is free: the first real waiter gets it, or the helper when it is needed. */
static void hand_over(struct plait_pool *pool)
{
    struct plait_waiter *helper = NULL;
    for (struct plait_waiter *w = pool->followers; w != NULL; w = w->next) {
        if (w->future != NULL) {
            wake_waiter(w);
            return;
        }
        helper = w;
    }
    if (pool->watched == 0)
        return;
    if (helper != NULL)
        wake_waiter(helper);
    /* Loops have left the last event to the leader that goes now. */
    pl_pool_arm(&pool->core, PL_ARM_ANY);
    if (pl_pool_ready(&pool->core))
        kick_waiters(pool);
}

/* ---- encoding ---- */

struct parcel {
    struct plait_bytes head; /* head and table, function, body, inline buffers */
    struct pl_block *blocks; /* PyMem */
    uint32_t nblocks;
    uint16_t kind;
};

static void parcel_drop(struct plait_pool *pool, struct parcel *parcel)
{
    for (uint32_t i = 0; i < parcel->nblocks; i++)
        pl_pool_free(&pool->core, &parcel->blocks[i]);
    PyMem_Free(parcel->blocks);
    plait_bytes_free(&parcel->head);
    *parcel = (struct parcel){0};
}

/* The function as a pickle. Plain functions and types go by name, so the bytes are always
 * the same and are kept; anything else may have changed since last time. */
static PyObject *encode_function(struct plait_pool *pool, PyObject *fn)
{
    bool plain = PyFunction_Check(fn) || PyType_Check(fn) || PyCFunction_CheckExact(fn);
    if (plain) {
        PyObject *known = PyDict_GetItemWithError(pool->fn_cache, fn);
        if (known != NULL)
            return Py_NewRef(known);
        if (PyErr_Occurred())
            return NULL;
    }
    /* (bytes, by_name) */
    PyObject *pair = PyObject_CallMethod((PyObject *)pool, "_dump_function", "O", fn);
    if (pair == NULL)
        return NULL;
    PyObject *data = NULL;
    int by_name;
    if (!PyArg_ParseTuple(pair, "Sp", &data, &by_name)) {
        Py_DECREF(pair);
        return NULL;
    }
    Py_INCREF(data);
    Py_DECREF(pair);
    if (plain && by_name) {
        if (PyDict_GET_SIZE(pool->fn_cache) >= 512)
            PyDict_Clear(pool->fn_cache);
        if (PyDict_SetItem(pool->fn_cache, fn, data) < 0)
            Py_CLEAR(data);
    }
    return data;
}

/* Puts a block on the parcel's list; without memory for that it is freed. */
static int keep_block(struct plait_pool *pool, struct parcel *parcel, const struct pl_block *block)
{
    struct pl_block *grown = PyMem_Realloc(parcel->blocks, (parcel->nblocks + 1) * sizeof(*grown));
    if (grown == NULL) {
        pl_pool_free(&pool->core, block);
        PyErr_NoMemory();
        return -1;
    }
    parcel->blocks = grown;
    grown[parcel->nblocks++] = *block;
    return 0;
}

static int new_block(struct plait_pool *pool, struct parcel *parcel, uint64_t size,
                     struct pl_block *block, void **data)
{
    if (pl_pool_alloc(&pool->core, size, block, data) < 0) {
        PyErr_Format(PyExc_MemoryError,
                     "%llu bytes do not fit the pool's shared memory (limit %llu bytes, "
                     "%llu in use)",
                     (unsigned long long)size, (unsigned long long)pool->core.share->limit,
                     (unsigned long long)pool->core.heap.used);
        return -1;
    }
    return keep_block(pool, parcel, block);
}

static void copy(void *to, const void *from, size_t len)
{
    if (len < COPY_WITHOUT_LOCK) {
        memcpy(to, from, len);
        return;
    }
    Py_BEGIN_ALLOW_THREADS memcpy(to, from, len);
    Py_END_ALLOW_THREADS
}

/* Puts the buffers of a pickle into blocks; small ones follow the body. */
static int encode_buffers(struct plait_pool *pool, struct parcel *parcel, PyObject *buffers,
                          size_t table_at, struct plait_bytes *tail)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(buffers); i++) {
        Py_buffer view;
        if (PyObject_GetBuffer(PyList_GET_ITEM(buffers, i), &view, PyBUF_ND) < 0) {
            /* A strided buffer that is contiguous in Fortran's order. */
            PyErr_Clear();
            if (PyObject_GetBuffer(PyList_GET_ITEM(buffers, i), &view, PyBUF_ANY_CONTIGUOUS) < 0)
                return -1;
        }
        struct pl_wire_buf entry = {.readonly = (uint32_t)view.readonly};
        int error = 0;
        if (view.len < PLAIT_INLINE_BUFFER) {
            entry.block.size = (uint64_t)view.len;
            error = plait_bytes_add(tail, view.buf, (size_t)view.len);
        } else if ((error = plait_pool_ticket(pool, view.buf, (uint64_t)view.len, &entry.block)) !=
                   0) {
            entry.shared = 1;
            if (error > 0)
                error = keep_block(pool, parcel, &entry.block);
        } else {
            void *data;
            error = new_block(pool, parcel, (uint64_t)view.len, &entry.block, &data);
            if (error == 0)
                copy(data, view.buf, (size_t)view.len);
        }
        PyBuffer_Release(&view);
        if (error < 0)
            return -1;
        memcpy(parcel->head.data + table_at + (size_t)i * sizeof(entry), &entry, sizeof(entry));
    }
    return 0;
}

static int encode_task(struct plait_pool *pool, struct parcel *parcel, PyObject *fn,
                       PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    struct plait_state *state = pool->state;
    struct pl_wire_head head = {0};
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *code = encode_function(pool, fn);
    PyObject *call = NULL;
    PyObject *buffers = NULL;
    PyObject *body = NULL;
    struct plait_bytes tail = {0};
    int error = -1;
    if (code == NULL)
        return -1;
    head.fn_len = (uint32_t)PyBytes_GET_SIZE(code);
    if (plait_bytes_add(&parcel->head, &head, sizeof(head)) < 0)
        goto out;
    if (nkw == 0) {
        if (plait_bytes_add(&parcel->head, PyBytes_AS_STRING(code), head.fn_len) < 0)
            goto out;
        size_t before = parcel->head.len;
        int atoms = plait_atoms_encode(&parcel->head, args, nargs);
        if (atoms < 0)
            goto out;
        if (atoms > 0) {
            head.body_len = (uint32_t)(parcel->head.len - before);
            parcel->kind = PLAIT_ATOMS;
            memcpy(parcel->head.data, &head, sizeof(head));
            error = 0;
            goto out;
        }
        parcel->head.len = sizeof(head);
    }

    /* (args, kwargs) */
    call = PyTuple_New(2);
    if (call == NULL)
        goto out;
    PyObject *tuple = PyTuple_New(nargs);
    PyObject *dict = nkw == 0 ? Py_NewRef(Py_None) : PyDict_New();
    if (tuple != NULL)
        PyTuple_SET_ITEM(call, 0, tuple);
    if (dict != NULL)
        PyTuple_SET_ITEM(call, 1, dict);
    if (tuple == NULL || dict == NULL)
        goto out;
    for (Py_ssize_t i = 0; i < nargs + nkw; i++) {
        PyObject *sent = plait_sendable(state, args[i]);
        if (sent == NULL)
            goto out;
        if (i < nargs) {
            PyTuple_SET_ITEM(tuple, i, sent);
            continue;
        }
        int failed = PyDict_SetItem(dict, PyTuple_GET_ITEM(kwnames, i - nargs), sent);
        Py_DECREF(sent);
        if (failed < 0)
            goto out;
    }
    if (!pool->by_value)
        body = plait_dumps(state, call, &buffers);
    if (body == NULL) {
        /* What cannot go by reference may go by value. (data, buffers) */
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
        PyObject *pair = PyObject_CallMethod((PyObject *)pool, "_dump_again", "OO", call,
                                             value == NULL ? Py_None : value);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        if (pair == NULL)
            goto out;
        if (!PyArg_ParseTuple(pair, "SO!", &body, &PyList_Type, &buffers)) {
            body = buffers = NULL;
            Py_DECREF(pair);
            goto out;
        }
        Py_INCREF(body);
        Py_INCREF(buffers);
        Py_DECREF(pair);
    }
    size_t nbufs = (size_t)PyList_GET_SIZE(buffers);
    if (PyBytes_GET_SIZE(body) > INT32_MAX || nbufs > 100000) {
        PyErr_Format(PyExc_ValueError,
                     "the arguments are too large: a pickle of %zd bytes and %zu buffers",
                     PyBytes_GET_SIZE(body), nbufs);
        goto out;
    }
    head.body_len = (uint32_t)PyBytes_GET_SIZE(body);
    head.nbufs = (uint32_t)nbufs;
    for (size_t i = 0; i < nbufs; i++) {
        struct pl_wire_buf none = {0};
        if (plait_bytes_add(&parcel->head, &none, sizeof(none)) < 0)
            goto out;
    }
    if (nbufs > 0 && encode_buffers(pool, parcel, buffers, sizeof(head), &tail) < 0)
        goto out;
    head.inline_len = (uint32_t)tail.len;
    if (plait_bytes_add(&parcel->head, PyBytes_AS_STRING(code), head.fn_len) < 0 ||
        plait_bytes_add(&parcel->head, PyBytes_AS_STRING(body), head.body_len) < 0 ||
        plait_bytes_add(&parcel->head, tail.data, tail.len) < 0)
        goto out;
    memcpy(parcel->head.data, &head, sizeof(head));
    parcel->kind = PLAIT_PICKLE;
    error = 0;
out:
    Py_DECREF(code);
    Py_XDECREF(call);
    Py_XDECREF(body);
    Py_XDECREF(buffers);
    plait_bytes_free(&tail);
    return error;
}

/* ---- posting ---- */

/* Puts a task on the board; the cell takes over one reference to f. */
static void post(struct plait_pool *pool, struct plait_future *f, uint32_t cell, const char *data,
                 size_t len, const struct pl_block *message, const struct pl_block *blocks,
                 uint32_t nblocks)
{
    struct pl_slot *slot = &pool->core.slots[cell];
    slot->kind = f->task_kind;
    slot->flags = 0;
    slot->len = (uint32_t)len;
    if (message != NULL)
        slot->block = *message;
    else
        memcpy(slot->bytes, data, len);
    for (uint32_t i = 0; i < nblocks; i++)
        pl_pool_lend(&pool->core, &blocks[i], cell);
    f->cell = cell;
    f->state = PLAIT_POSTED;
    pl_pool_post(&pool->core, cell);
}

static void set_hungry(struct plait_pool *pool)
{
    pl_pool_hungry(&pool->core, pool->queue_first != NULL);
}

/* Moves queued tasks to the board as long as it has room. */
static void feed(struct plait_pool *pool)
{
    if (pool->queue_first == NULL)
        return;
    while (pool->queue_first != NULL) {
        struct plait_future *f = pool->queue_first;
        uint32_t cell;
        if (f->state == PLAIT_QUEUED && pl_pool_stage(&pool->core, f, &cell) < 0)
            return;
        pool->queue_first = f->next;
        if (pool->queue_first == NULL)
            pool->queue_last = NULL;
        f->next = NULL;
        if (f->state != PLAIT_QUEUED) {
            Py_DECREF(f); /* cancelled while it waited; pool->queued knows */
            continue;
        }
        pool->queued--;
        PyObject *message = f->message;
        f->message = NULL;
        /* A message that needs a block has it as the last one. */
        bool big = PyBytes_GET_SIZE(message) == 0;
        post(pool, f, cell, PyBytes_AS_STRING(message),
             big ? f->blocks[f->nblocks - 1].size : (size_t)PyBytes_GET_SIZE(message),
             big ? &f->blocks[f->nblocks - 1] : NULL, f->blocks, f->nblocks);
        Py_DECREF(message);
        PyMem_Free(f->blocks);
        f->blocks = NULL;
        f->nblocks = 0;
    }
    set_hungry(pool);
}

static void collect(struct plait_pool *pool);

/* Work waits that no thread is about to look after: the helper is to do so in a moment. */
static void call_helper(struct plait_pool *pool)
{
    if (!pool->helper_there) {
        PyObject *started = PyObject_CallMethod((PyObject *)pool, "_start_helper", NULL);
        if (started == NULL)
            PyErr_WriteUnraisable((PyObject *)pool); /* the task runs once someone waits */
        Py_XDECREF(started);
        return;
    }
    for (struct plait_waiter *w = pool->followers; w != NULL; w = w->next)
        if (w->future == NULL && !w->dozes && w->word == 0)
            wake_waiter(w);
}

/* submit for all ways in: a new future, or NULL with an exception set. */
static struct plait_future *submit(struct plait_pool *pool, PyObject *fn, PyObject *const *args,
                                   Py_ssize_t nargs, PyObject *kwnames, uint16_t how)
{
    if (!accepts(pool))
        return NULL;
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "fn must be callable, not %.200s", Py_TYPE(fn)->tp_name);
        return NULL;
    }
    struct parcel parcel = {0};
    struct plait_future *f = NULL;
    if (encode_task(pool, &parcel, fn, args, nargs, kwnames) < 0)
        goto unsendable;
    bool big = parcel.head.len > PL_SLOT_INLINE;
    if (big) {
        struct pl_block block;
        void *data;
        if (new_block(pool, &parcel, parcel.head.len, &block, &data) < 0)
            goto unsendable;
        copy(data, parcel.head.data, parcel.head.len);
    }
    f = plait_future_new(pool->state);
    if (f == NULL)
        goto fail;
    /* Pickling and copying may have let other threads close the pool. */
    if (!accepts(pool))
        goto fail;
    f->pool = (struct plait_pool *)Py_NewRef((PyObject *)pool);
    f->fn = Py_NewRef(fn);
    f->task_kind = (uint16_t)(parcel.kind | how);

    uint32_t cell;
    int error = pool->queue_first != NULL ? -EAGAIN : pl_pool_stage(&pool->core, f, &cell);
    if (error < 0 && pl_pool_ready(&pool->core)) {
        collect(pool);
        error = pool->queue_first != NULL ? -EAGAIN : pl_pool_stage(&pool->core, f, &cell);
    }
    if (error == 0) {
        Py_INCREF(f); /* the cell's */
        post(pool, f, cell, parcel.head.data, parcel.head.len,
             big ? &parcel.blocks[parcel.nblocks - 1] : NULL, parcel.blocks, parcel.nblocks);
        PyMem_Free(parcel.blocks);
    } else {
        f->message = PyBytes_FromStringAndSize(big ? NULL : parcel.head.data,
                                               big ? 0 : (Py_ssize_t)parcel.head.len);
        if (f->message == NULL)
            goto fail;
        f->blocks = parcel.blocks;
        f->nblocks = parcel.nblocks;
        f->state = PLAIT_QUEUED;
        Py_INCREF(f); /* the queue's */
        if (pool->queue_last != NULL)
            pool->queue_last->next = f;
        else
            pool->queue_first = f;
        pool->queue_last = f;
        pool->queued++;
    }
    pool->outstanding++;
    plait_bytes_free(&parcel.head);
    if (pool->queue_first != NULL) {
        set_hungry(pool);
        /* A worker that finished after the look above, and found nobody hungry, has parked
         * without a word; its slot is free for what is queued. */
        if (pl_pool_ready(&pool->core))
            collect(pool);
    }
    /* A leader that sleeps does not come back to pay what is owed. */
    if (pool->core.owed_wake != 0 && pool->asleep)
        pl_pool_flush(&pool->core);
    if (pool->queue_first != NULL || pool->core.owed_wake != 0 ||
        (pool->core.unrung > UNRUNG_MAX && !pool->core.payer))
        call_helper(pool);
    if (pool->notify != NULL && PyList_GET_SIZE(pool->notify) > 0)
        plait_pool_notify(pool);
    return f;

unsendable:
    /* What cannot be sent is the task's own failure, as concurrent.futures has it; only what
     * is no Exception (an interrupt) leaves by here. */
    if (PyErr_ExceptionMatches(PyExc_Exception)) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
        f = plait_future_new(pool->state);
        if (f != NULL) {
            f->exception = Py_XNewRef(value);
            plait_future_end(f, false);
        }
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        parcel_drop(pool, &parcel);
        return f;
    }
fail:
    parcel_drop(pool, &parcel);
    if (f != NULL) {
        Py_CLEAR(f->pool);
        Py_DECREF(f);
    }
    return NULL;
}

/* ---- collecting ---- */

void plait_pool_defer(struct plait_pool *pool, struct plait_future *f)
{
    if (PyList_Append(pool->notify, (PyObject *)f) < 0)
        PyErr_WriteUnraisable((PyObject *)f);
}

void plait_pool_ended(struct plait_pool *pool, struct plait_future *f, bool cancelled)
{
    plait_future_end(f, cancelled);
    pool->outstanding--;
    if (f->watched) {
        f->watched = false;
        pool->watched--;
    }
    plait_pool_wake_for(pool, f);
    if (plait_future_has_audience(f))
        plait_pool_defer(pool, f);
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
    if ((kind != PLAIT_PICKLE && kind != PLAIT_EXCEPTION) || pl_wire_open(&wire, data, size) < 0)
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
static void finish(struct plait_pool *pool, uint32_t cell, uint32_t seat)
{
    struct plait_future *f = pool->core.cells[cell].user; /* ours now */
    if (read_result(pool, f, cell, seat) < 0) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
        f->kind = 0;
        f->exception = value;
        Py_XDECREF(type);
        Py_XDECREF(traceback);
    }
    pl_pool_release(&pool->core, cell);
    plait_pool_ended(pool, f, false);
    Py_DECREF(f);
}

/* Takes all that is there off the board, and fills the board again. */
static void collect(struct plait_pool *pool)
{
    for (;;) {
        uint32_t cell;
        uint32_t seat;
        int found = pl_pool_next(&pool->core, &cell, &seat);
        if (found == 0)
            break;
        if (found == 1)
            finish(pool, cell, seat);
        else
            pool->suspects |= UINT64_C(1) << (seat % 64);
    }
    feed(pool);
}

void plait_pool_notify(struct plait_pool *pool)
{
    Py_INCREF(pool);
    while (PyList_GET_SIZE(pool->notify) > 0) {
        PyObject *batch = pool->notify;
        PyObject *fresh = PyList_New(0);
        if (fresh == NULL) {
            PyErr_WriteUnraisable((PyObject *)pool);
            break;
        }
        pool->notify = fresh;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(batch); i++)
            plait_future_notify(pool->state, FUTURE(PyList_GET_ITEM(batch, i)));
        Py_DECREF(batch);
    }
    Py_DECREF(pool);
}

/* Deaths, and workers that broke the rules: policy, so Python's. */
static int tend(struct plait_pool *pool, uint32_t tags)
{
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

void plait_pool_peek(struct plait_pool *pool)
{
    if (!pool->open || pl_pool_forked(&pool->core))
        return;
    Py_INCREF(pool); /* what ends here may have held the last reference */
    if (pl_pool_ready(&pool->core))
        collect(pool);
    if (PyList_GET_SIZE(pool->notify) > 0)
        plait_pool_notify(pool);
    if (pool->core.owed_wake)
        pl_pool_flush(&pool->core);
    uint32_t tags = 0;
    if (pl_pool_wait(&pool->core, 0, &tags) > 0 && tend(pool, tags) < 0)
        PyErr_WriteUnraisable((PyObject *)pool);
    if (pool->watched > 0) {
        /* The wait above may have swallowed the event that others sleep for. */
        pl_pool_arm(&pool->core, PL_ARM_ANY);
        if (pl_pool_ready(&pool->core))
            kick_waiters(pool);
    }
    Py_DECREF(pool);
}

/* Takes a task back that no worker has begun. True: nobody will run it, and the caller ends
 * the future; the reference of the queue or the cell is the caller's then. */
static bool withdraw(struct plait_pool *pool, struct plait_future *f)
{
    if (!pool->open || pl_pool_forked(&pool->core))
        return false;
    if (f->state == PLAIT_POSTED)
        return pl_pool_withdraw(&pool->core, f->cell);
    if (f->state != PLAIT_QUEUED)
        return false;
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

bool plait_pool_cancel(struct plait_pool *pool, struct plait_future *f)
{
    if (!withdraw(pool, f))
        return false;
    Py_INCREF(pool);
    plait_pool_ended(pool, f, true);
    plait_pool_notify(pool);
    Py_DECREF(f);
    Py_DECREF(pool);
    return true;
}

int plait_pool_watch_future(struct plait_pool *pool, struct plait_future *f)
{
    if (f->watched || plait_future_done(f) || f->state == PLAIT_SETTLING || !usable(pool))
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
    pl_pool_arm(&pool->core, PL_ARM_ANY);
    if (pl_pool_ready(&pool->core))
        kick_waiters(pool);
    if (pool->core.owed_wake)
        pl_pool_flush(&pool->core);
    if (f->waiters == NULL && !pool->led)
        hand_over(pool);
    return 0;
}

int plait_pool_attach(struct plait_pool *pool, PyObject *loop)
{
    if (pool->last_loop == loop)
        return 0;
    PyObject *told = PyObject_CallMethod((PyObject *)pool, "_attach", "O", loop);
    if (told == NULL)
        return -1;
    Py_DECREF(told);
    pool->last_loop = loop;
    return 0;
}

/* ---- waiting ---- */

/* What the leader should be woken for. */
static uint32_t arm_for(const struct plait_pool *pool, const struct plait_future *f)
{
    if (pool->watched > 0 || pool->closed)
        return PL_ARM_ANY;
    for (const struct plait_waiter *w = pool->followers; w != NULL; w = w->next)
        if (w->future != NULL)
            return PL_ARM_ANY;
    if (f != NULL && f->state == PLAIT_POSTED)
        return PL_ARM_SLOT + f->cell;
    return f != NULL ? PL_ARM_ANY : PL_ARM_DRY;
}

static int64_t time_left(int64_t deadline)
{
    if (deadline < 0)
        return -1;
    int64_t left = deadline - pl_sys_default()->now();
    return left > 0 ? left : 0;
}

/* Puts the lead down: once in each round, before any code of Python's runs, for from then on
 * another thread may have taken it up. */
static void put_down(struct plait_pool *pool)
{
    pool->led = pool->helper_leads = pool->kick = false;
}

/* One round of the leader: collects, and waits if there was nothing. 1 when it is worth
 * looking at futures again, 0 when time is up, -1 with an exception set. The lead is down
 * while the user's code runs. */
static int lead_round(struct plait_pool *pool, struct plait_future *f, int64_t deadline)
{
    int spun = 0;
    uint32_t tags = 0;
    for (;;) {
        collect(pool);
        if (PyList_GET_SIZE(pool->notify) > 0 || pool->suspects != 0 ||
            (f != NULL ? plait_future_done(f) : pool->outstanding == 0)) {
            put_down(pool);
            return 1;
        }
        pl_pool_flush(&pool->core);
        if (spun == 0) {
            spun = 1;
            Py_BEGIN_ALLOW_THREADS(void) pl_pool_spin(&pool->core);
            Py_END_ALLOW_THREADS
                /* Found or not: another thread may have collected what this one waits for. */
                continue;
        }
        int64_t left = time_left(deadline);
        if (left == 0) {
            put_down(pool);
            return 0;
        }
        pl_pool_arm(&pool->core, arm_for(pool, f));
        if (pl_pool_ready(&pool->core))
            continue;
        int n;
        pool->asleep = true;
        pool->asleep_for = f;
        Py_BEGIN_ALLOW_THREADS n = pl_pool_wait(&pool->core, left, &tags);
        Py_END_ALLOW_THREADS pool->asleep = false;
        pool->asleep_for = NULL;
        if (n == -EINTR) {
            put_down(pool);
            hand_over(pool);
            return PyErr_CheckSignals() < 0 ? -1 : 1;
        }
        if (n < 0) {
            put_down(pool);
            (void)plait_raise(pool->state, n, "waiting for a worker");
            return -1;
        }
        if ((tags & 1) != 0) {
            put_down(pool);
            collect(pool);
            hand_over(pool);
            return tend(pool, tags) < 0 ? -1 : 1;
        }
        if (pool->kick) {
            put_down(pool);
            return 1;
        }
        if (n == 0)
            spun = 1;
    }
}

/* Sleeps as one of the followers; *woken tells whether someone meant it. */
static int follow(struct plait_pool *pool, struct plait_future *f, int64_t timeout_ns)
{
    struct plait_waiter me = {.next = pool->followers, .future = f, .dozes = timeout_ns >= 0};
    pool->followers = &me;
    if (f != NULL && pool->helper_leads) {
        /* A thread that waits for a result leads better than the helper does. */
        pool->kick = true;
        kick_waiters(pool);
    } else if (f != NULL) {
        /* The leader may be armed for its own future only. */
        pl_pool_arm(&pool->core, PL_ARM_ANY);
        if (pl_pool_ready(&pool->core))
            kick_waiters(pool);
    }
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
        /* Acquire: partner is wake_waiter's release. */
        if (__atomic_load_n(&me.word, __ATOMIC_ACQUIRE) == 0) error =
            pl_sys_default()->futex_wait(&me.word, 0, timeout_ns);
    Py_END_ALLOW_THREADS struct plait_waiter **at = &pool->followers;
    while (*at != &me)
        at = &(*at)->next;
    *at = me.next;
    return error;
}

int plait_pool_wait_for(struct plait_pool *pool, struct plait_future *f, int64_t deadline)
{
    if (!usable(pool))
        return -1;
    Py_INCREF(pool);
    int result = 0;
    bool signalled = false;
    while (!plait_future_done(f)) {
        if (!pool->open) {
            PyErr_SetString(PyExc_RuntimeError, "the pool was closed");
            result = -1;
            break;
        }
        if (!pool->led) {
            pool->led = true;
            int round = lead_round(pool, f, deadline);
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            if (tend(pool, 0) < 0 || PyErr_Occurred() != NULL)
                PyErr_WriteUnraisable((PyObject *)pool);
            if (PyList_GET_SIZE(pool->notify) > 0)
                plait_pool_notify(pool);
            PyErr_Restore(type, value, traceback);
            if (round < 0) {
                result = -1;
                break;
            }
            if (round == 0 && !plait_future_done(f)) {
                PyErr_SetNone(PyExc_TimeoutError);
                result = -1;
                break;
            }
            continue;
        }
        int64_t left = time_left(deadline);
        if (left == 0) {
            PyErr_SetNone(PyExc_TimeoutError);
            result = -1;
            break;
        }
        signalled = follow(pool, f, left) == -EINTR;
        if (signalled && PyErr_CheckSignals() < 0) {
            result = -1;
            break;
        }
    }
    if (!pool->led && pool->open && pool->outstanding > 0 && !pl_pool_forked(&pool->core))
        hand_over(pool);
    Py_DECREF(pool);
    return result;
}

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
    unsigned int slots;
    unsigned long long limit;
    int by_value;
    if (!PyArg_ParseTuple(args, "IIKp", &workers, &slots, &limit, &by_value))
        return NULL;
    if (pool->open) {
        PyErr_SetString(PyExc_RuntimeError, "the pool is open");
        return NULL;
    }
    if (pool->state->decode_exception == NULL &&
        import_attr(&pool->state->decode_exception, "plait._pool", "decode_exception") < 0)
        return NULL;
    struct pl_pool_config config = {.workers = workers, .slots = slots, .limit = limit};
    int error = pl_pool_init(&pool->core, &config);
    if (error < 0)
        return plait_raise(pool->state, error, "making the shared memory of a pool");
    pool->open = true;
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
    return (PyObject *)submit(POOL(self), args[0], args + 1, nargs - 1, kwnames, 0);
}

/* (fn, list): a task that calls fn on each item and returns the list of results. */
static PyObject *pool_submit_each(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2 || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "_submit_each() needs a callable and a list");
        return NULL;
    }
    return (PyObject *)submit(POOL(self), args[0], args + 1, 1, NULL, PLAIT_EACH);
}

static PyObject *pool_submit_to_loop(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 2) {
        PyErr_SetString(PyExc_TypeError, "_submit_to_loop() needs a loop and a callable");
        return NULL;
    }
    struct plait_future *f = submit(POOL(self), args[1], args + 2, nargs - 2, NULL, 0);
    if (f == NULL)
        return NULL;
    PyObject *target = plait_future_for_loop(POOL(self)->state, f, args[0]);
    Py_DECREF(f);
    return target;
}

/* The wait descriptor is readable: called by a loop. */
static PyObject *pool_on_ready(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    uint32_t tags = 0;
    if (!pool->open || pl_pool_forked(&pool->core))
        Py_RETURN_NONE;
    /* A leader that sleeps for the same event would miss it if it were read here; it is about
     * to wake, reads it, and sees to control. */
    bool mine = !pool->asleep;
    int n = mine ? pl_pool_wait(&pool->core, 0, &tags) : 0;
    if (n < 0 && n != -EINTR)
        return plait_raise(pool->state, n, "waiting for a worker");
    collect(pool);
    if (mine && pool->watched > 0) {
        pl_pool_arm(&pool->core, PL_ARM_ANY);
        if (pl_pool_ready(&pool->core))
            collect(pool);
    }
    pl_pool_flush(&pool->core);
    if (tend(pool, tags) < 0)
        return NULL;
    plait_pool_notify(pool);
    Py_RETURN_NONE;
}

/* Sleeps beside a pool that is used, without the interpreter's lock: true when a debt has
 * got old, when work waits for room, or when called; false when nothing was posted for a
 * while. Between two looks it costs nothing, and nobody has to wake it. */
static bool doze(struct plait_pool *pool)
{
    struct plait_waiter me = {.next = pool->followers, .dozes = true};
    struct pl_pool *core = &pool->core;
    bool backlog = pool->queue_first != NULL;
    uint64_t tail = atomic_load_explicit(&core->share->tail, memory_order_relaxed);
    uint32_t debt = 0;
    int quiet = 0;
    bool old = false;
    pool->followers = &me;
    Py_BEGIN_ALLOW_THREADS while (__atomic_load_n(&me.word, __ATOMIC_ACQUIRE) == 0 && !old &&
                                  quiet < DOZE_TICKS)
    {
        (void)core->sys->futex_wait(&me.word, 0, DOZE_NS);
        /* Relaxed, both: what is missed now is seen at the next look. */
        uint64_t posted = atomic_load_explicit(&core->share->tail, memory_order_relaxed);
        uint32_t owed = atomic_load_explicit(&core->owed_wake, memory_order_relaxed);
        old = backlog || (owed != 0 && owed == debt);
        quiet = posted != tail || owed != 0 ? 0 : quiet + 1;
        tail = posted;
        debt = owed;
    }
    Py_END_ALLOW_THREADS struct plait_waiter **at = &pool->followers;
    while (*at != &me)
        at = &(*at)->next;
    *at = me.next;
    /* It may have been posted to since the last look; then it is no time to sleep. */
    return old || me.word != 0 || pool->queue_first != NULL || core->owed_wake != 0;
}

/* One turn of the helper thread: waits until it is needed, then leads a round. */
static PyObject *pool_help(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    if (!pool->open || pl_pool_forked(&pool->core))
        Py_RETURN_FALSE;
    bool callbacks = pool->watched > 0;
    if (!pool->led && callbacks) {
        pool->led = pool->helper_leads = true;
        int round = lead_round(pool, NULL, -1);
        hand_over(pool);
        if (round < 0)
            return NULL;
        if (tend(pool, 0) < 0)
            return NULL;
    } else {
        if (!doze(pool))
            (void)follow(pool, NULL, -1);
        if (pool->open && (pool->queue_first != NULL || pool->core.owed_wake)) {
            if (!pool->led)
                collect(pool);
            pl_pool_flush(&pool->core);
        }
    }
    plait_pool_notify(pool);
    Py_RETURN_TRUE;
}

static PyObject *pool_wake_helper(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    for (struct plait_waiter *w = pool->followers; w != NULL; w = w->next)
        if (w->future == NULL)
            wake_waiter(w);
    pool->kick = pool->helper_leads;
    if (pool->open && !pl_pool_forked(&pool->core))
        kick_waiters(pool);
    Py_RETURN_NONE;
}

/* Waits until nothing is outstanding, or for `timeout` seconds, or until control speaks. */
static PyObject *pool_wait_idle(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    double seconds = PyFloat_AsDouble(arg);
    if ((seconds == -1.0 && PyErr_Occurred()) || !usable(pool))
        return NULL;
    int64_t deadline = seconds < 0 ? -1 : pl_sys_default()->now() + (int64_t)(seconds * 1e9);
    if (pool->led) {
        /* Someone else collects; this one only looks on, for it is about to end the pool. */
        int64_t left = time_left(deadline);
        if (left < 0 || left > 10000000)
            left = 10000000;
        if (follow(pool, NULL, left) == -EINTR && PyErr_CheckSignals() < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    int round = 1;
    uint32_t tags = 0;
    if (pool->outstanding > 0) {
        pool->led = true;
        round = lead_round(pool, NULL, deadline);
        hand_over(pool);
    } else {
        /* Only control can have news: workers that end. */
        int n;
        int64_t left = time_left(deadline);
        Py_BEGIN_ALLOW_THREADS n = pl_pool_wait(&pool->core, left, &tags);
        Py_END_ALLOW_THREADS if (n == -EINTR && PyErr_CheckSignals() < 0) return NULL;
    }
    if (round < 0 || tend(pool, tags) < 0)
        return NULL;
    plait_pool_notify(pool);
    Py_RETURN_NONE;
}

static PyObject *pool_seat(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    uint32_t seat;
    uint64_t low_mark;
    if (!usable(pool))
        return NULL;
    int error = pl_pool_seat(&pool->core, &seat, &low_mark);
    if (error < 0)
        return plait_raise(pool->state, error, "finding a seat for a worker");
    return Py_BuildValue("IK", seat, (unsigned long long)low_mark);
}

/* The worker of a seat is gone: list of the futures that it leaves unfinished. */
static PyObject *pool_bury(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    unsigned long seat = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred() || !usable(pool))
        return NULL;
    if (seat >= pool->core.nseats) {
        PyErr_Format(PyExc_ValueError, "seat must be less than %u, not %lu", pool->core.nseats,
                     seat);
        return NULL;
    }
    PyObject *lost = PyList_New(0);
    if (lost == NULL)
        return NULL;
    collect(pool);
    pool->suspects &= ~(UINT64_C(1) << (seat % 64));
    uint32_t cell;
    enum pl_burial end;
    while ((end = pl_pool_bury(&pool->core, (uint32_t)seat, &cell)) != PL_BURIED) {
        if (end == PL_FINISHED) {
            finish(pool, cell, (uint32_t)seat);
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
    feed(pool);
    return lost;
}

/* Takes back all tasks that no worker has begun: list of their futures. */
static PyObject *pool_recall(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    if (!usable(pool))
        return NULL;
    PyObject *all = PyList_New(0);
    if (all == NULL)
        return NULL;
    for (struct plait_future *f = pool->queue_first; f != NULL; f = f->next)
        if (f->state == PLAIT_QUEUED && PyList_Append(all, (PyObject *)f) < 0)
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
static PyObject *pool_withdraw(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    if (!PyObject_TypeCheck(arg, pool->state->future_base_type) || FUTURE(arg)->pool != pool ||
        !withdraw(pool, FUTURE(arg)))
        Py_RETURN_FALSE;
    FUTURE(arg)->state = PLAIT_SETTLING;
    Py_DECREF(arg);
    Py_RETURN_TRUE;
}

static PyObject *pool_watch(PyObject *self, PyObject *args)
{
    struct plait_pool *pool = POOL(self);
    int fd;
    unsigned int tag;
    if (!PyArg_ParseTuple(args, "iI", &fd, &tag) || !usable(pool))
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
    if ((fd == -1 && PyErr_Occurred()) || !usable(pool))
        return NULL;
    pl_pool_unwatch(&pool->core, (int)fd);
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
    if (!usable(pool))
        return NULL;
    pl_pool_close(&pool->core);
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

static PyObject *pool_helper_is(PyObject *self, PyObject *arg)
{
    int there = PyObject_IsTrue(arg);
    if (there < 0)
        return NULL;
    POOL(self)->helper_there = POOL(self)->core.payer = there != 0;
    Py_RETURN_NONE;
}

static PyObject *pool_after_fork(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    pool->forked = true;
    pool->led = pool->asleep = pool->helper_there = pool->helper_leads = false;
    pool->core.payer = false;
    pool->followers = NULL;
    Py_RETURN_NONE;
}

static PyObject *pool_figures(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    if (!usable(pool))
        return NULL;
    uint32_t parked = 0;
    for (int i = 0; i < PL_SEAT_WORDS; i++)
        parked += (uint32_t)__builtin_popcountll(
            atomic_load_explicit(&pool->core.share->parked[i], memory_order_relaxed));
    return Py_BuildValue(
        "{s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:L}", "posted", (unsigned long long)pool->core.posted,
        "finished", (unsigned long long)pool->core.finished, "queued",
        (unsigned long long)pool->queued, "outstanding", (unsigned long long)pool->outstanding,
        "wakes", (unsigned long long)pool->core.wakes, "arena_used",
        (unsigned long long)pool->core.heap.used, "parked", parked, "mean_ns",
        (long long)pool->core.mean_ns);
}

static PyObject *pool_get_outstanding(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(POOL(self)->outstanding);
}

static PyObject *pool_get_closed(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(POOL(self)->closed);
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
    if (pool->fn_cache == NULL || pool->notify == NULL)
        Py_CLEAR(pool);
    return (PyObject *)pool;
}

static int pool_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct plait_pool *pool = POOL(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(pool->fn_cache);
    Py_VISIT(pool->notify);
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
     "    TypeError: fn is not callable.\n"
     "    MemoryError: the arguments do not fit the shared memory."},
    {"_submit_to_loop", METHOD(pool_submit_to_loop), METH_FASTCALL,
     "_submit_to_loop($self, loop, fn, /, *args)\n--\n\n"
     "As submit, for a loop in its own thread: returns a future of that loop."},
    {"_submit_each", METHOD(pool_submit_each), METH_FASTCALL, NULL},
    {"share", plait_pool_share, METH_VARARGS, plait_pool_share_doc},
    {"_open", pool_open, METH_VARARGS, NULL},
    {"_on_ready", pool_on_ready, METH_NOARGS, NULL},
    {"_help", pool_help, METH_NOARGS, NULL},
    {"_wake_helper", pool_wake_helper, METH_NOARGS, NULL},
    {"_wait_idle", pool_wait_idle, METH_O, NULL},
    {"_seat", pool_seat, METH_NOARGS, NULL},
    {"_bury", pool_bury, METH_O, NULL},
    {"_recall", pool_recall, METH_NOARGS, NULL},
    {"_withdraw", pool_withdraw, METH_O, NULL},
    {"_watch", pool_watch, METH_VARARGS, NULL},
    {"_unwatch", pool_unwatch, METH_O, NULL},
    {"_close", pool_close, METH_NOARGS, NULL},
    {"_dismiss", pool_dismiss, METH_NOARGS, NULL},
    {"_break", pool_break, METH_O, NULL},
    {"_forget_loop", pool_detach_loops, METH_NOARGS, NULL},
    {"_helper_is", pool_helper_is, METH_O, NULL},
    {"_after_fork", pool_after_fork, METH_NOARGS, NULL},
    {"_figures", pool_figures, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pool_getset[] = {
    {"_outstanding", pool_get_outstanding, NULL, NULL, NULL},
    {"_closed", pool_get_closed, NULL, NULL, NULL},
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
    {"worker_run", plait_worker_run, METH_VARARGS, plait_worker_run_doc},
    {"die_with_parent", plait_die_with_parent, METH_O,
     "die_with_parent($module, parent, /)\n--\n\n"
     "Have this process killed when its parent ends; exit now if that is not `parent`.\n"
     "0 takes it back."},
    {NULL, NULL, 0, NULL},
};

int plait_pool_exec(PyObject *module, struct plait_state *state)
{
    if (import_attr(&state->pickle_dumps, "pickle", "dumps") < 0 ||
        import_attr(&state->pickle_loads, "pickle", "loads") < 0 ||
        import_attr(&state->condition_type, "threading", "Condition") < 0)
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
    state->pool_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pool_spec, NULL);
    if (state->pool_type == NULL ||
        PyModule_AddObjectRef(module, "PoolBase", (PyObject *)state->pool_type) < 0)
        return -1;
    if (PyModule_AddFunctions(module, module_methods) < 0)
        return -1;
    return plait_future_exec(module, state);
}

void plait_pool_clear(struct plait_state *state)
{
    (void)state;
}
