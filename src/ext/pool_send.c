/* pool_send.c - tasks on their way to the workers: encoding, posting, the private queue. */
#include "pool_parent.h"

#include <errno.h>
#include <string.h>

#define UNRUNG_MAX 64 /* posts that would have liked a payer, before there is one */
#define COPY_WITHOUT_LOCK (1 << 20)
#define AHEAD_MIN (64 << 10)
#define AHEAD_MAX_NS 250000 /* a worker is not called for a copy that takes longer */

/* ---- encoding ---- */

struct parcel {
    struct plait_bytes head; /* head and table, function, body, inline buffers */
    struct pl_block *blocks; /* PyMem */
    uint32_t nblocks;
    uint16_t kind;
    bool in_block; /* the whole message is in the last of the blocks, too */
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
                     (unsigned long long)size, (unsigned long long)pool->core.layout.limit,
                     (unsigned long long)pool->core.heap.used);
        return -1;
    }
    return keep_block(pool, parcel, block);
}

/* Copies into a block. If it is the last of its task, a worker is called ahead: it wakes up while
 * the bytes are copied. */
static void copy(struct plait_pool *pool, void *to, const void *from, size_t len, bool last)
{
    if (len < AHEAD_MIN) {
        memcpy(to, from, len);
        return;
    }
    int64_t start = pool->core.sys->now();
    int64_t expected = (int64_t)((double)len * pool->copy_ns);
    if (last && expected < AHEAD_MAX_NS)
        pl_pool_expect(&pool->core, expected);
    if (len < COPY_WITHOUT_LOCK) {
        memcpy(to, from, len);
    } else {
        Py_BEGIN_ALLOW_THREADS pl_copy(to, from, len);
        Py_END_ALLOW_THREADS
    }
    double each = (double)(pool->core.sys->now() - start) / (double)len;
    pool->copy_ns += (each - pool->copy_ns) / 8;
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
        int ticket = plait_pool_ticket(pool, view.buf, (uint64_t)view.len, &entry.block);
        if (ticket != 0) {
            entry.shared = 1;
            error = ticket < 0 ? -1 : keep_block(pool, parcel, &entry.block);
        } else if (view.len < PLAIT_INLINE_BUFFER) {
            entry.block.size = (uint64_t)view.len;
            error = plait_bytes_add(tail, view.buf, (size_t)view.len);
        } else {
            void *data;
            error = new_block(pool, parcel, (uint64_t)view.len, &entry.block, &data);
            if (error == 0)
                copy(pool, data, view.buf, (size_t)view.len, i + 1 == PyList_GET_SIZE(buffers));
        }
        PyBuffer_Release(&view);
        if (error < 0)
            return -1;
        memcpy(parcel->head.data + table_at + (size_t)i * sizeof(entry), &entry, sizeof(entry));
    }
    return 0;
}

/* A call's arguments as bytes, with a list of what goes out of band; by value if pickle refuses. */
static PyObject *pickle_call(struct plait_pool *pool, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames, PyObject **buffers)
{
    struct plait_state *state = pool->state;
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *body = NULL;
    PyObject *tuple = PyTuple_New(nargs);
    PyObject *dict = nkw == 0 ? Py_NewRef(Py_None) : PyDict_New();
    PyObject *call = NULL;
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
    call = PyTuple_Pack(2, tuple, dict);
    if (call == NULL)
        goto out;
    if (!pool->by_value)
        body = plait_dumps(state, call, buffers);
    if (body == NULL) {
        /* What cannot go by reference may go by value. (data, buffers) */
        PyObject *error = plait_take_exception();
        PyObject *pair = PyObject_CallMethod((PyObject *)pool, "_dump_again", "OO", call,
                                             error == NULL ? Py_None : error);
        Py_XDECREF(error);
        if (pair != NULL && PyArg_ParseTuple(pair, "SO!", &body, &PyList_Type, buffers)) {
            Py_INCREF(body);
            Py_INCREF(*buffers);
        } else {
            body = *buffers = NULL; /* one of them may be borrowed already */
        }
        Py_XDECREF(pair);
    }
out:
    Py_XDECREF(call);
    Py_XDECREF(tuple);
    Py_XDECREF(dict);
    return body;
}

static int encode_task(struct plait_pool *pool, struct parcel *parcel, PyObject *fn,
                       PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    struct pl_wire_head head = {0};
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *code = encode_function(pool, fn);
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
        if (plait_arrays_encode(pool->state, args, nargs, &body, &buffers) < 0)
            goto out;
        parcel->kind = PLAIT_ARRAYS;
    }
    if (body == NULL) {
        body = pickle_call(pool, args, nargs, kwnames, &buffers);
        if (body == NULL)
            goto out;
        parcel->kind = PLAIT_PICKLE;
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
    error = 0;
out:
    Py_DECREF(code);
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
    slot->posted = pool->core.sys->now(); /* the worker makes it the time spent waiting */
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
    pl_pool_hungry(&pool->core, !plait_queue_empty(pool));
}

/* Moves queued tasks to the board as long as it has room. */
void plait_pool_feed(struct plait_pool *pool)
{
    if (plait_queue_empty(pool))
        return;
    struct plait_future *f;
    while ((f = plait_queue_first(pool)) != NULL) {
        uint32_t cell;
        if (f->state == PLAIT_QUEUED) {
            /* With priorities the board is kept short: what is on it cannot be passed. */
            if (pool->nheap > 0 && pool->core.cells_used >= 3 * pool->workers)
                break;
            if (pl_pool_stage(&pool->core, f, &cell) < 0)
                return;
        }
        (void)plait_queue_take(pool); /* f, whose reference is ours now */
        if (f->state != PLAIT_QUEUED) {
            plait_pool_drop(pool, (PyObject *)f); /* cancelled while it waited */
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

static void start_helper(struct plait_pool *pool)
{
    PyObject *started = PyObject_CallMethod((PyObject *)pool, "_start_helper", NULL);
    if (started == NULL)
        plait_unraisable((PyObject *)pool); /* the task runs once someone waits */
    Py_XDECREF(started);
}

/* Puts an encoded task on the board, or into the queue when there is no room. Takes over the
 * parcel. 0, or -1 with an exception set and nothing done. */
static int dispatch(struct plait_pool *pool, struct plait_future *f, struct parcel *parcel)
{
    struct pl_block *message = parcel->in_block ? &parcel->blocks[parcel->nblocks - 1] : NULL;
    uint32_t cell;
    f->task_kind = parcel->kind;
    bool ranked = f->priority != 0;
    int error = ranked || !plait_queue_empty(pool) ? -EAGAIN : pl_pool_stage(&pool->core, f, &cell);
    if (error < 0 && !ranked && pl_pool_ready(&pool->core)) {
        plait_pool_collect(pool);
        error = !plait_queue_empty(pool) ? -EAGAIN : pl_pool_stage(&pool->core, f, &cell);
    }
    if (error == 0) {
        Py_INCREF(f); /* the cell's */
        post(pool, f, cell, parcel->head.data, parcel->head.len, message, parcel->blocks,
             parcel->nblocks);
        PyMem_Free(parcel->blocks);
    } else {
        f->message = PyBytes_FromStringAndSize(message != NULL ? NULL : parcel->head.data,
                                               message != NULL ? 0 : (Py_ssize_t)parcel->head.len);
        if (f->message == NULL)
            return -1;
        f->blocks = parcel->blocks;
        f->nblocks = parcel->nblocks;
        f->state = PLAIT_QUEUED;
        if (plait_queue_add(pool, f) < 0) {
            f->blocks = NULL;
            f->nblocks = 0;
            Py_CLEAR(f->message);
            return -1;
        }
        if (ranked) {
            plait_queue_recall(pool, f->priority);
            plait_pool_feed(pool);
        }
    }
    plait_bytes_free(&parcel->head);
    return 0;
}

/* After a dispatch, when no lock or role is held. */
static void dispatched(struct plait_pool *pool)
{
    if (!plait_queue_empty(pool)) {
        set_hungry(pool);
        /* A worker that finished after the look above, and found nobody hungry, has parked
         * without a word; its slot is free for what is queued. */
        if (pl_pool_ready(&pool->core))
            plait_pool_collect(pool);
    }
    /* A leader that sleeps does not come back to pay what is owed. */
    if (pool->core.owed_wake != 0 && pool->asleep)
        pl_pool_flush(&pool->core);
    if (!pool->helper_there) {
        start_helper(pool);
    } else {
        if (pool->core.unrung > UNRUNG_MAX)
            pool->core.payer = true;
        /* While it does not rest it looks again by itself, soon. */
        if (pool->helper_idle ||
            ((!plait_queue_empty(pool) || pool->core.owed_wake != 0) && pool->helper_rests))
            plait_pool_call_helper(pool);
    }
    if (plait_pool_has_news(pool))
        plait_pool_notify(pool);
}

/* Encodes a call, into a block if it is large. -1 with an exception set; the parcel is to be
 * dropped then. */
static int pack(struct plait_pool *pool, struct parcel *parcel, const struct plait_call *call)
{
    if (encode_task(pool, parcel, call->fn, call->args, call->nargs, call->kwnames) < 0)
        return -1;
    parcel->kind |= call->how;
    if (parcel->head.len <= PL_SLOT_INLINE)
        return 0;
    struct pl_block block;
    void *data;
    if (new_block(pool, parcel, parcel->head.len, &block, &data) < 0)
        return -1;
    copy(pool, data, parcel->head.data, parcel->head.len, true);
    parcel->in_block = true;
    return 0;
}

struct plait_future *plait_pool_submit(struct plait_pool *pool, const struct plait_call *call)
{
    if (!plait_pool_accepts(pool))
        return NULL;
    if (!PyCallable_Check(call->fn)) {
        PyErr_Format(PyExc_TypeError, "fn must be callable, not %.200s",
                     Py_TYPE(call->fn)->tp_name);
        return NULL;
    }
    if (plait_refuse_frames(call->fn) < 0)
        return NULL;
    if (pool->max_pending != 0 && pool->outstanding >= pool->max_pending) {
        PyObject *told = PyObject_CallMethod((PyObject *)pool, "_when_full", NULL);
        if (told == NULL)
            return NULL;
        Py_DECREF(told);
        if (!plait_pool_accepts(pool))
            return NULL;
    }
    struct parcel parcel = {0};
    struct plait_future *f = NULL;
    if (pack(pool, &parcel, call) < 0)
        goto unsendable;
    f = plait_future_new(pool->state, &plait_pool_keeper);
    if (f == NULL)
        goto fail;
    /* Pickling and copying may have let other threads close the pool. */
    if (!plait_pool_accepts(pool))
        goto fail;
    f->pool = Py_NewRef((PyObject *)pool);
    f->fn = Py_NewRef(call->fn);
    f->name = Py_XNewRef(call->name);
    f->order = Py_XNewRef(call->order);
    f->again = call->again;
    f->priority = call->priority;
    if (dispatch(pool, f, &parcel) < 0)
        goto fail;
    pool->outstanding++;
    pool->interrupted = false;
    dispatched(pool);
    return f;

unsendable:
    /* What cannot be sent is the task's own failure, as concurrent.futures has it; only what
     * is no Exception (an interrupt) leaves by here. */
    if (PyErr_ExceptionMatches(PyExc_Exception)) {
        PyObject *error = plait_take_exception();
        f = plait_future_new(pool->state, &plait_pool_keeper);
        if (f != NULL) {
            f->exception = error;
            plait_future_end(f, false);
        }
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

void plait_pool_unrest(struct plait_future *f)
{
    PyObject *old[] = {f->exception, f->message, f->block, f->buffers};
    f->resting = false;
    f->kind = 0;
    f->exception = f->message = f->block = f->buffers = NULL;
    for (size_t i = 0; i < PL_ARRAY_LEN(old); i++)
        Py_XDECREF(old[i]);
}

int plait_pool_resubmit(struct plait_pool *pool, struct plait_future *f,
                        const struct plait_call *call)
{
    struct parcel parcel = {0};
    int error = pack(pool, &parcel, call);
    if (!f->resting) {
        /* It was cancelled meanwhile, or while its arguments were pickled. */
        PyErr_Clear();
        parcel_drop(pool, &parcel);
        return 0;
    }
    if (error == 0) {
        f->again = call->again;
        plait_pool_unrest(f);
        error = dispatch(pool, f, &parcel);
        if (error == 0) {
            pool->retried++;
            dispatched(pool);
            return 1;
        }
        f->resting = true;
    }
    parcel_drop(pool, &parcel);
    return -1;
}
