/* pool_worker.c - a worker's side of a process pool: claim, decode, call, encode, finish.
 *
 * One thread runs the loop; the interpreter's lock is let go only while there is nothing to
 * do. An exception of the task is its result. Errors of the machinery itself (memory that
 * makes no sense) end the worker, and the parent fails the one task that it had.
 */
#include "pool.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

const char plait_worker_run_doc[] = "worker_run($module, memfd, eventfd, seat, low_mark, "
                                    "most, load, dump, install, /)\n--\n\n"
                                    "Serve a pool's tasks until it closes.";

#define MAX_KNOWN 1024
#define STOP_AGAIN_NS 5000000
#define MEMORY_WAIT_NS (2 * PL_NSEC_PER_SEC) /* longer than the helper's rest */
#define MEMORY_PAUSE_NS 100000
#define HIGH_FD 500 /* where the pool's descriptor goes, if the limit allows it */

struct worker {
    struct plait_state *state;
    uint64_t ticket;     /* of the task that may be stopped now; 0: none */
    uint64_t told;       /* the one that has been told to stop */
    uint64_t most;       /* tasks until it ends by itself; 0: no bound */
    uint32_t *canary;    /* owns: one page that is zero in a child that a task forked */
    PyFrameObject *base; /* borrows: the frame that the loop runs in */
    PyObject *stopped;   /* the exception TaskStopped */
    timer_t again;       /* owns; repeats a signal that came at a bad time */
    bool has_again;
    struct pl_member member;
    PyObject *load;  /* bytes -> function */
    PyObject *dump;  /* (exception, function or None) -> bytes */
    PyObject *known; /* dict: bytes -> function */
    char *last_code; /* owns: the function that ran last, compared before any hashing */
    size_t last_len;
    PyObject *last_fn;
    PyObject *each; /* owns: plait._worker.run_each, once it was needed */
};

/* What a task brought: blocks that a result may take along. */
struct held {
    PyObject *buffers; /* list, or NULL */
};

static PyObject *function_for(struct worker *w, const char *code, size_t len)
{
    if (w->last_fn != NULL && w->last_len == len && memcmp(w->last_code, code, len) == 0)
        return Py_NewRef(w->last_fn);
    PyObject *key = PyBytes_FromStringAndSize(code, (Py_ssize_t)len);
    if (key == NULL)
        return NULL;
    PyObject *fn = Py_XNewRef(PyDict_GetItemWithError(w->known, key));
    if (fn == NULL && !PyErr_Occurred()) {
        fn = PyObject_CallOneArg(w->load, key);
        if (fn != NULL) {
            if (PyDict_GET_SIZE(w->known) >= MAX_KNOWN)
                PyDict_Clear(w->known);
            if (PyDict_SetItem(w->known, key, fn) < 0)
                Py_CLEAR(fn);
        }
    }
    Py_DECREF(key);
    if (fn == NULL)
        return NULL;
    char *copy = PyMem_Realloc(w->last_code, len == 0 ? 1 : len);
    if (copy == NULL) {
        PyErr_Clear();
        Py_CLEAR(w->last_fn); /* no shortcut next time, nothing worse */
        w->last_len = 0;
        return fn;
    }
    memcpy(copy, code, len);
    w->last_code = copy;
    w->last_len = len;
    Py_XSETREF(w->last_fn, Py_NewRef(fn));
    return fn;
}

static PyObject *damaged(void)
{
    PyErr_SetString(PyExc_RuntimeError, "a task arrived damaged");
    return NULL;
}

static PyObject *read_buffers(struct worker *w, struct pl_wire *wire)
{
    PyObject *buffers = PyList_New(0);
    struct pl_wire_buf entry;
    const void *small;
    int found;
    while (buffers != NULL && (found = pl_wire_next(wire, &entry, &small)) != 0) {
        PyObject *item = NULL;
        if (found < 0) {
            (void)damaged();
        } else if (small != NULL) {
            item = plait_small_buffer(&entry, small);
        } else {
            void *data;
            struct plait_block *block = NULL;
            if (pl_member_data(&w->member, &entry.block, &data) < 0)
                (void)damaged();
            else
                block = plait_block_new(w->state);
            if (block != NULL) {
                block->member = &w->member;
                block->view.block = entry.block;
                block->data = data;
                block->size = (Py_ssize_t)entry.block.size;
                block->readonly = entry.readonly != 0;
                block->shared = entry.shared != 0;
            }
            item = (PyObject *)block;
        }
        if (item == NULL || PyList_Append(buffers, item) < 0)
            Py_CLEAR(buffers);
        Py_XDECREF(item);
    }
    return buffers;
}

/* A task's traceback begins with the task, not with our own function around it. */
static void drop_first_entry(void)
{
    PyObject *error = plait_take_exception();
    PyObject *traceback = error == NULL ? NULL : PyException_GetTraceback(error);
    PyObject *rest = NULL;
    if (traceback != NULL)
        rest = PyObject_GetAttrString(traceback, "tb_next");
    if (rest == NULL || PyException_SetTraceback(error, rest) < 0)
        PyErr_Clear(); /* it tells more than it should, then */
    Py_XDECREF(rest);
    Py_XDECREF(traceback);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
}

/* The results of a call for each item of a list or range, or the error of the first that
 * fails. A function of Python's is called faster by Python, which does not leave its loop of
 * byte codes for that; any other by this loop. */
static PyObject *call_each(struct worker *w, PyObject *fn, PyObject *items)
{
    if (!PyList_CheckExact(items) && !PyRange_Check(items))
        return damaged();
    if (PyFunction_Check(fn) || PyRange_Check(items)) {
        if (w->each == NULL) {
            PyObject *module = PyImport_ImportModule("plait._worker");
            w->each = module == NULL ? NULL : PyObject_GetAttrString(module, "run_each");
            Py_XDECREF(module);
            if (w->each == NULL)
                return NULL;
        }
        PyObject *args[] = {NULL, fn, items};
        PyObject *results =
            PyObject_Vectorcall(w->each, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        if (results == NULL)
            drop_first_entry();
        return results;
    }
    PyObject *results = PyList_New(PyList_GET_SIZE(items));
    for (Py_ssize_t i = 0; results != NULL && i < PyList_GET_SIZE(results); i++) {
        /* The list is nobody else's, but its items are the user's once they are called with. */
        PyObject *args[] = {NULL, PyList_GET_ITEM(items, i)}; // borrowed
        PyObject *result =
            PyObject_Vectorcall(fn, args + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        if (result == NULL)
            Py_CLEAR(results);
        else
            PyList_SET_ITEM(results, i, result);
    }
    return results;
}

/* Runs the task of a slot: its result, or NULL with the task's exception set. */
static PyObject *run_task(struct worker *w, struct pl_slot *slot, struct held *held)
{
    struct pl_block message = slot->block;
    const char *data = (const char *)slot->bytes;
    size_t size = slot->len;
    if (message.offset != 0) {
        void *at;
        if (pl_member_data(&w->member, &message, &at) < 0)
            return damaged();
        data = at;
        size = message.size;
    } else if (size > PL_SLOT_INLINE) {
        return damaged();
    }
    struct pl_wire wire;
    PyObject *fn = NULL;
    PyObject *result = NULL;
    if (pl_wire_open(&wire, data, size) < 0) {
        (void)damaged();
        goto out;
    }
    const char *body = (const char *)wire.body;
    fn = function_for(w, (const char *)wire.code, wire.head.fn_len);
    if (fn == NULL)
        goto out;
    bool each = (slot->kind & PLAIT_EACH) != 0;
    int kind = slot->kind & ~PLAIT_EACH;
    if (wire.head.nbufs > 0) {
        held->buffers = read_buffers(w, &wire);
        if (held->buffers == NULL)
            goto out;
    }
    if (kind == PLAIT_ATOMS || kind == PLAIT_ARRAYS) {
        PyObject *args[PLAIT_ATOMS_MAX + 1];
        Py_ssize_t n = kind == PLAIT_ATOMS
                           ? plait_atoms_decode(body, wire.head.body_len, args + 1, PLAIT_ATOMS_MAX)
                           : plait_arrays_decode(w->state, body, wire.head.body_len, held->buffers,
                                                 args + 1, PLAIT_ATOMS_MAX);
        if (n < 0)
            goto out;
        if (message.offset != 0) {
            pl_member_return(&w->member, &message);
            message.offset = 0;
        }
        if (!each)
            result =
                PyObject_Vectorcall(fn, args + 1, (size_t)n | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        else
            result = n == 1 ? call_each(w, fn, args[1]) : damaged();
        while (n > 0)
            Py_DECREF(args[n--]);
    } else {
        PyObject *call = plait_loads(w->state, body, wire.head.body_len, held->buffers);
        if (message.offset != 0) {
            /* Everything has been copied out of it or has a block of its own. */
            pl_member_return(&w->member, &message);
            message.offset = 0;
        }
        if (call == NULL)
            goto out;
        PyObject *args, *kwargs;
        if (!PyTuple_Check(call) || PyTuple_GET_SIZE(call) != 2) {
            (void)damaged();
        } else {
            args = PyTuple_GET_ITEM(call, 0);
            kwargs = PyTuple_GET_ITEM(call, 1);
            if (!each) {
                result = PyObject_Call(fn, args, kwargs == Py_None ? NULL : kwargs);
                if (result == NULL && PyDict_Check(kwargs))
                    plait_hint_options(fn, kwargs);
            } else if (PyTuple_Check(args) && PyTuple_GET_SIZE(args) == 1) {
                result = call_each(w, fn, PyTuple_GET_ITEM(args, 0));
            } else {
                (void)damaged();
            }
        }
        Py_DECREF(call);
    }
out:
    if (message.offset != 0)
        pl_member_return(&w->member, &message);
    Py_XDECREF(fn);
    return result;
}

/* Finds the task's own block that a buffer is exactly the memory of. Borrowed. */
static struct plait_block *find_held(const struct worker *w, const struct held *held,
                                     const Py_buffer *view)
{
    if (held->buffers == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(held->buffers); i++) {
        struct plait_block *block = (struct plait_block *)PyList_GET_ITEM(held->buffers, i);
        if (Py_IS_TYPE((PyObject *)block, w->state->block_type) && !block->shared &&
            block->data == view->buf && block->size == view->len)
            return block;
    }
    return NULL;
}

/* Memory for a result. When it is short, the parent may hold results that nobody has looked at
 * yet: it is told, and has a moment to give them back. */
static int alloc_block(struct worker *w, size_t len, struct pl_block *block, void **data)
{
    int64_t pause = MEMORY_PAUSE_NS;
    int64_t end = -1;
    int error;
    while ((error = pl_member_alloc(&w->member, len, block, data)) < 0 &&
           len <= w->member.layout.limit) {
        int64_t now = w->member.sys->now();
        if (end < 0)
            end = now + MEMORY_WAIT_NS;
        if (now >= end || pl_member_knock(&w->member) < 0)
            break;
        uint32_t word = 0;
        Py_BEGIN_ALLOW_THREADS(void) w->member.sys->futex_wait(&word, 0, pause);
        Py_END_ALLOW_THREADS if (PyErr_CheckSignals() < 0) return -1;
        pause = pause < MEMORY_WAIT_NS / 64 ? 2 * pause : pause;
    }
    return error;
}

static int put_in_block(struct worker *w, const void *from, size_t len, struct pl_block *block)
{
    void *data;
    if (alloc_block(w, len, block, &data) < 0) {
        if (PyErr_Occurred())
            return -1;
        PyErr_Format(PyExc_MemoryError,
                     "a result of %zu bytes does not fit the pool's shared memory "
                     "(limit %llu bytes, %llu in use)",
                     len, (unsigned long long)w->member.layout.limit,
                     (unsigned long long)w->member.heap.used);
        return -1;
    }
    pl_copy(data, from, len);
    return 0;
}

/* Writes a message into the slot, or into a block of its own. */
static int put_message(struct worker *w, struct pl_slot *slot, uint16_t kind, const char *data,
                       size_t len)
{
    struct pl_block block = {0};
    if (len <= PL_SLOT_INLINE) {
        memcpy(slot->bytes, data, len);
    } else {
        if (put_in_block(w, data, len, &block) < 0)
            return -1;
        pl_member_lend(&w->member, &block);
    }
    slot->block = block;
    slot->len = (uint32_t)len;
    slot->kind = kind;
    return 0;
}

/* Encodes and writes a value; takes over the reference. -1 with an exception set and nothing
 * lent. `held` is emptied. */
/* Pickles by value what pickle refused with the error that is set, if Python's side agrees that
 * this is called for. The error is taken in any case. */
static PyObject *dump_again(PyObject *value, PyObject **buffers)
{
    PyObject *error = plait_take_exception();
    PyObject *module = PyImport_ImportModule("plait._worker");
    PyObject *pair =
        module == NULL ? NULL : PyObject_CallMethod(module, "dump_again", "OO", value, error);
    PyObject *body = NULL;
    if (pair != NULL && PyArg_ParseTuple(pair, "SO!", &body, &PyList_Type, buffers)) {
        Py_INCREF(body);
        Py_INCREF(*buffers);
    }
    Py_XDECREF(pair);
    Py_XDECREF(module);
    Py_XDECREF(error);
    return body;
}

static int put_value(struct worker *w, struct pl_slot *slot, PyObject *value, struct held *held)
{
    struct plait_bytes out = {0};
    int atoms = plait_atoms_encode(&out, &value, 1);
    if (atoms != 0) {
        Py_DECREF(value);
        Py_CLEAR(held->buffers);
        int error = atoms < 0 ? -1 : put_message(w, slot, PLAIT_ATOMS, out.data, out.len);
        plait_bytes_free(&out);
        return error;
    }
    PyObject *buffers = NULL;
    PyObject *body = NULL;
    uint16_t kind = PLAIT_ARRAYS;
    int arrays = plait_arrays_encode(w->state, &value, 1, &body, &buffers);
    if (arrays == 0) {
        kind = PLAIT_PICKLE;
        PyObject *sent = plait_sendable(w->state, value);
        Py_DECREF(value);
        value = sent;
        body = value == NULL ? NULL : plait_dumps(w->state, value, &buffers);
        if (body == NULL && value != NULL)
            body = dump_again(value, &buffers);
    }
    struct plait_bytes tail = {0};
    struct pl_wire_buf *table = NULL;
    struct plait_block **moved = NULL; /* owned references to the task's blocks, by buffer */
    uint32_t n = 0;
    uint32_t filled = 0;
    int error = -1;
    if (body == NULL)
        goto out;
    n = (uint32_t)PyList_GET_SIZE(buffers);
    if (n > 0) {
        table = PyMem_Calloc(n, sizeof(*table));
        moved = PyMem_Calloc(n, sizeof(*moved));
        if (table == NULL || moved == NULL) {
            PyErr_NoMemory();
            goto out;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        Py_buffer view;
        if (PyObject_GetBuffer(PyList_GET_ITEM(buffers, i), &view, PyBUF_ANY_CONTIGUOUS) < 0)
            goto out;
        int failed = 0;
        table[i].readonly = (uint32_t)view.readonly;
        table[i].block.size = (uint64_t)view.len;
        struct plait_block *own = find_held(w, held, &view);
        bool twice = false;
        for (uint32_t k = 0; own != NULL && k < i; k++)
            twice = twice || moved[k] == own;
        if (view.len < PLAIT_INLINE_BUFFER)
            failed = plait_bytes_add(&tail, view.buf, (size_t)view.len);
        else if (own != NULL && !twice)
            moved[i] = (struct plait_block *)Py_NewRef((PyObject *)own);
        else
            failed = put_in_block(w, view.buf, (size_t)view.len, &table[i].block);
        PyBuffer_Release(&view);
        if (failed < 0)
            goto out;
        filled = i + 1;
    }
    /* Let everything go that refers to the task's blocks. Whichever then has no other user
     * in this process goes back to the parent as the result, without a copy. */
    Py_CLEAR(value);
    Py_CLEAR(buffers);
    Py_CLEAR(held->buffers);
    for (uint32_t i = 0; i < n; i++) {
        if (moved[i] == NULL)
            continue;
        if (Py_REFCNT(moved[i]) == 1)
            table[i].block = moved[i]->view.block;
        else if (put_in_block(w, moved[i]->data, (size_t)moved[i]->size, &table[i].block) < 0)
            goto out;
    }
    struct pl_wire_head head = {
        .body_len = (uint32_t)PyBytes_GET_SIZE(body),
        .nbufs = n,
        .inline_len = (uint32_t)tail.len,
    };
    if (PyBytes_GET_SIZE(body) > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "the result is too large: a pickle of %zd bytes",
                     PyBytes_GET_SIZE(body));
        goto out;
    }
    if (plait_bytes_add(&out, &head, sizeof(head)) < 0 ||
        plait_bytes_add(&out, table, n * sizeof(*table)) < 0 ||
        plait_bytes_add(&out, PyBytes_AS_STRING(body), head.body_len) < 0 ||
        plait_bytes_add(&out, tail.data, tail.len) < 0 ||
        put_message(w, slot, kind, out.data, out.len) < 0)
        goto out;
    for (uint32_t i = 0; i < n; i++) {
        if (table[i].block.offset == 0)
            continue;
        if (table[i].block.owner == w->member.seat)
            pl_member_lend(&w->member, &table[i].block);
        else
            moved[i]->view.block.offset = 0; /* the parent's again: not to be returned */
    }
    error = 0;
out:
    if (error < 0) {
        for (uint32_t i = 0; i < filled; i++)
            if (table[i].block.offset != 0 && table[i].block.owner == w->member.seat)
                pl_member_free(&w->member, &table[i].block);
    }
    for (uint32_t i = 0; moved != NULL && i < n; i++)
        Py_XDECREF(moved[i]);
    PyMem_Free(moved);
    PyMem_Free(table);
    plait_bytes_free(&tail);
    plait_bytes_free(&out);
    Py_XDECREF(value);
    Py_XDECREF(buffers);
    Py_XDECREF(body);
    return error;
}

/* Writes the exception that is set, and clears it. `fn` is NULL, or the function whose result could
 * not be sent. -1: not even that was possible. */
static int put_exception(struct worker *w, struct pl_slot *slot, PyObject *fn)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        (void)PyException_SetTraceback(value, traceback);
    PyObject *data = PyObject_CallFunctionObjArgs(w->dump, value, fn == NULL ? Py_None : fn, NULL);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    int error = -1;
    if (data != NULL && PyBytes_Check(data)) {
        struct pl_wire_head head = {.body_len = (uint32_t)PyBytes_GET_SIZE(data)};
        struct plait_bytes out = {0};
        if (plait_bytes_add(&out, &head, sizeof(head)) == 0 &&
            plait_bytes_add(&out, PyBytes_AS_STRING(data), head.body_len) == 0)
            error = put_message(w, slot, PLAIT_EXCEPTION, out.data, out.len);
        plait_bytes_free(&out);
    }
    Py_XDECREF(data);
    return error;
}

/* A task has forked and its copy has come back to us: it has no part in the pool. */
static void leave_if_forked(const struct worker *w)
{
    if (*w->canary != 0)
        return;
    static const char *const streams[] = {"stdout", "stderr"};
    PyErr_Clear();
    for (size_t i = 0; i < PL_ARRAY_LEN(streams); i++) {
        PyObject *stream = PySys_GetObject(streams[i]); // borrowed
        PyObject *told = stream == NULL ? NULL : PyObject_CallMethod(stream, "flush", NULL);
        Py_XDECREF(told);
        PyErr_Clear();
    }
    _exit(0);
}

static int make_canary(struct worker *w)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || madvise(page, 4096, MADV_WIPEONFORK) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    w->canary = page;
    *w->canary = 1;
    return 0;
}

static int serve_one(struct worker *w, uint32_t cell)
{
    struct pl_slot *slot = &w->member.slots[cell];
    struct held held = {0};
    int64_t start = w->member.sys->now();
    int64_t posted = slot->posted;
    atomic_store_explicit(&w->member.mine->started, start, memory_order_relaxed); /* a hint */
    w->ticket = pl_member_ticket(&w->member, cell);
    PyObject *value = run_task(w, slot, &held);
    leave_if_forked(w);
    int error = -1;
    bool returned = value != NULL;
    if (returned)
        error = put_value(w, slot, value, &held);
    leave_if_forked(w);
    w->ticket = 0; /* from here on the task is over, and nothing may hit the next one */
    if (error < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_SystemError, "a task ended without a result");
        error = put_exception(w, slot, returned ? w->last_fn : NULL);
    }
    Py_CLEAR(held.buffers);
    if (error < 0)
        return -1;
    slot->run_ns = w->member.sys->now() - start;
    slot->posted = start - posted;
    /* Relaxed: pl_member_done's release comes before the next claim. */
    atomic_store_explicit(&w->member.mine->started, 0, memory_order_relaxed);
    error = pl_member_done(&w->member, cell);
    if (error < 0)
        (void)plait_raise(w->state, error, "telling the pool of a result");
    return error;
}

/* ---- being stopped ---- */

/* Whether this thread imports something. An exception there would leave modules that are half
 * there, which the next task would meet: parents without their submodules, for example. */
static bool importing(const struct worker *w)
{
    static const char *const marks[] = {"<frozen importlib._bootstrap>", "<frozen runpy>"};
    bool found = false;
    PyFrameObject *frame = PyEval_GetFrame(); // borrowed
    Py_XINCREF(frame);
    /* Below the loop are the frames of whoever forked: of a script that an import runs, maybe. */
    while (frame != NULL && frame != w->base && !found) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        for (size_t i = 0; i < PL_ARRAY_LEN(marks) && !found; i++)
            found = PyUnicode_CompareWithASCIIString(code->co_filename, marks[i]) == 0;
        Py_DECREF(code);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    return found;
}

/* Has the same signal come once more, a little later. */
static bool stop_later(struct worker *w, PyObject *args)
{
    int number = PyTuple_GET_SIZE(args) > 0 ? (int)PyLong_AsLong(PyTuple_GET_ITEM(args, 0)) : -1;
    if (number <= 0) {
        PyErr_Clear();
        return false;
    }
    if (!w->has_again) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = number};
        if (timer_create(CLOCK_MONOTONIC, &event, &w->again) < 0)
            return false;
        w->has_again = true;
    }
    struct itimerspec when = {.it_value = {.tv_nsec = STOP_AGAIN_NS}};
    return timer_settime(w->again, 0, &when, NULL) == 0;
}

/* Runs as the Python handler of the pool's signal, between two byte codes of whatever the
 * main thread does: in the task, or in the loop around it. */
static PyObject *on_stop(PyObject *capsule, PyObject *args)
{
    struct worker *w = PyCapsule_GetPointer(capsule, NULL);
    if (w == NULL)
        return NULL;
    /* Meant for a task that is over, or by somebody else; or asked again. */
    if (!pl_member_asked(&w->member, w->ticket) || w->ticket == w->told)
        Py_RETURN_NONE;
    if (importing(w) && stop_later(w, args))
        Py_RETURN_NONE;
    w->told = w->ticket;
    PyErr_SetString(w->stopped, "the task was stopped");
    return NULL;
}

static PyMethodDef on_stop_def = {"on_stop", on_stop, METH_VARARGS, NULL};

/* Hands the handler to Python's side, which installs it. */
static int install_stop(struct worker *w, PyObject *install)
{
    PyObject *module = PyImport_ImportModule("plait._stopped");
    if (module == NULL)
        return -1;
    w->stopped = PyObject_GetAttrString(module, "TaskStopped");
    Py_DECREF(module);
    PyObject *capsule = w->stopped == NULL ? NULL : PyCapsule_New(w, NULL, NULL);
    PyObject *handler = capsule == NULL ? NULL : PyCFunction_New(&on_stop_def, capsule);
    PyObject *told = handler == NULL ? NULL : PyObject_CallOneArg(install, handler);
    Py_XDECREF(capsule);
    Py_XDECREF(handler);
    Py_XDECREF(told);
    return told == NULL ? -1 : 0;
}

PyObject *plait_worker_run(PyObject *module, PyObject *args)
{
    struct worker w = {.state = plait_state_of_module(module)};
    int memfd;
    int eventfd;
    unsigned int seat;
    unsigned long long low_mark;
    PyObject *install;
    unsigned long long most;
    if (!PyArg_ParseTuple(args, "iiIKKOOO", &memfd, &eventfd, &seat, &low_mark, &most, &w.load,
                          &w.dump, &install))
        return NULL;
    /* A task may close descriptors by number and open others in their place; the parent's must
     * not be among those that a small number finds. */
    int high = fcntl(eventfd, F_DUPFD_CLOEXEC, HIGH_FD);
    if (high >= 0) {
        (void)close(eventfd);
        eventfd = high;
    }
    void *base;
    uint64_t total;
    int error = pl_share_map(NULL, memfd, &base, &total);
    if (error < 0)
        return plait_raise(w.state, error, "mapping a pool's memory");
    error = pl_member_init(&w.member, NULL, base, total, eventfd, seat, low_mark);
    if (error < 0)
        return plait_raise(w.state, error, "joining a pool");
    w.most = most;
    w.base = PyEval_GetFrame(); // borrowed: of the function that called this
    w.known = PyDict_New();
    if (w.known == NULL || make_canary(&w) < 0 || install_stop(&w, install) < 0)
        return NULL;
    for (;;) {
        uint32_t cell;
        int found = pl_member_take(&w.member, &cell);
        if (found == 1) {
            if (serve_one(&w, cell) < 0)
                break;
            if (w.most != 0 && --w.most == 0) {
                pl_member_leave(&w.member);
                break;
            }
            continue;
        }
        if (found < 0) {
            if (found != PL_ECLOSED)
                (void)plait_raise(w.state, found, "taking a task");
            break;
        }
        Py_BEGIN_ALLOW_THREADS error = pl_member_wait(&w.member);
        Py_END_ALLOW_THREADS
            /* A signal's handler is the user's, and may fork as a task may. It runs here rather
             * than in the next task. */
            int handled = PyErr_CheckSignals();
        leave_if_forked(&w);
        if (handled < 0)
            break;
        if (error < 0 && error != -EINTR) {
            (void)plait_raise(w.state, error, "telling the pool of a free worker");
            break;
        }
    }
    /* From here on the signal means nothing: the handler must not find a struct that is gone. */
    PyObject *failure = plait_take_exception();
    PyObject *told = PyObject_CallOneArg(install, Py_None);
    if (told == NULL)
        PyErr_WriteUnraisable(install);
    Py_XDECREF(told);
    Py_XDECREF(w.stopped);
    if (w.has_again)
        (void)timer_delete(w.again);
    /* Blocks that objects of the user's still hold point at w.member's memory, so neither the
     * mapping nor they are touched: the process ends after this. */
    Py_XDECREF(w.last_fn);
    Py_XDECREF(w.each);
    PyMem_Free(w.last_code);
    Py_DECREF(w.known);
    if (failure != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(failure), failure);
        Py_DECREF(failure);
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *plait_die_with_parent(PyObject *module, PyObject *arg)
{
    (void)module;
    long parent = PyLong_AsLong(arg);
    if (parent == -1 && PyErr_Occurred())
        return NULL;
    if (prctl(PR_SET_PDEATHSIG, parent == 0 ? 0 : SIGKILL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    /* It may have died before the kernel knew what we want. */
    if (parent != 0 && getppid() != (pid_t)parent)
        _exit(1);
    Py_RETURN_NONE;
}
