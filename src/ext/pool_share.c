/* pool_share.c - buffers that are placed in a pool's memory once and sent to many tasks, and
 * plain bytes that travel out of band.
 *
 * A shared buffer is a block of the parent's slice under an ordinary array or memoryview. When
 * a task's arguments contain a contiguous part of it, a ticket travels in place of the bytes.
 * The block is free when the last array on it here has died and every ticket has come back:
 * a worker gives its ticket back when nothing there uses the memory any more, or dies.
 */
#include "pool.h"

#include <string.h>
#include <sys/mman.h>

const char plait_pool_share_doc[] =
    "share($self, buffer, /, writable=False)\n--\n\n"
    "Place an array or a buffer in the pool's memory, to be handed to many tasks.\n\n"
    "The result is used as an argument of tasks, whole or in contiguous parts, and is not\n"
    "copied again: workers see the same memory. Its own copy is made here, once.\n\n"
    "Args:\n"
    "    buffer: an object whose pickle has out-of-band buffers (a numpy array, an Arrow\n"
    "        table), or bytes, a bytearray, or a contiguous memoryview.\n"
    "    writable: whether tasks and the caller may write to it. They all write to the same\n"
    "        memory, and nothing orders their writes: a task that writes, and others that look\n"
    "        at the same place, need an order of their own, such as one task's end before\n"
    "        another's submit. Without it a write is an error, here and in tasks.\n\n"
    "Returns:\n"
    "    object: of the type of `buffer`; for bytes and the like a memoryview. The memory is\n"
    "    given back when it, what was made from it, and all uses in workers are gone. A task\n"
    "    that returns it returns a copy.\n\n"
    "Raises:\n"
    "    TypeError: `buffer` has nothing to share.\n"
    "    MemoryError: it does not fit the pool's shared memory.\n"
    "    RuntimeError: the pool belongs to another process, or is not open.";

void plait_pool_unshare(struct plait_block *block)
{
    struct plait_block **at = &block->pool->shared;
    while (*at != NULL && *at != block)
        at = &(*at)->next_shared;
    if (*at == block)
        *at = block->next_shared;
    block->shared = false;
}

int plait_pool_ticket(struct plait_pool *pool, const void *data, uint64_t size,
                      struct pl_block *ticket)
{
    const unsigned char *from = data;
    if (size == 0)
        return 0;
    for (struct plait_block *block = pool->shared; block != NULL; block = block->next_shared) {
        const unsigned char *base = block->data;
        if (from < base || from >= base + block->size ||
            size > (uint64_t)(base + block->size - from))
            continue;
        int error = pl_pool_ticket(&pool->core, &block->view.block,
                                   (uint64_t)(from - pool->core.base), size, ticket);
        if (error < 0) {
            (void)plait_raise(pool->state, error, "lending a shared buffer");
            return -1;
        }
        return 1;
    }
    return 0;
}

/* A block with a copy of a buffer's bytes. */
static PyObject *place(struct plait_pool *pool, PyObject *buffer, bool writable)
{
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS) < 0)
        return NULL;
    struct plait_block *block = plait_block_new(pool->state);
    if (block == NULL)
        goto fail;
    struct pl_block found;
    void *data;
    /* A block has at least one byte, so that it has a place of its own. */
    if (pl_pool_alloc(&pool->core, view.len > 0 ? (uint64_t)view.len : 1, &found, &data) < 0) {
        PyErr_Format(PyExc_MemoryError,
                     "%zd bytes do not fit the pool's shared memory (limit %llu bytes, %llu in "
                     "use)",
                     view.len, (unsigned long long)pool->core.layout.limit,
                     (unsigned long long)pool->core.heap.used);
        goto fail;
    }
    block->pool = (struct plait_pool *)Py_NewRef((PyObject *)pool);
    block->view = (struct pl_view){.block = found, .seat = PL_NO_SEAT};
    block->data = data;
    block->size = view.len;
    block->readonly = !writable;
    Py_BEGIN_ALLOW_THREADS pl_copy(data, view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS block->shared = true;
    block->next_shared = pool->shared;
    pool->shared = block;
    PyBuffer_Release(&view);
    return (PyObject *)block;
fail:
    Py_XDECREF(block);
    PyBuffer_Release(&view);
    return NULL;
}

PyObject *plait_pool_share(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "writable", NULL};
    struct plait_pool *pool = (struct plait_pool *)self;
    PyObject *buffer;
    int writable = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:share", names, &buffer, &writable))
        return NULL;
    if (!pool->open || pool->closed || pool->forked || pl_pool_forked(&pool->core)) {
        PyErr_SetString(PyExc_RuntimeError,
                        "cannot share a buffer: the pool is shut down, or is another process's");
        return NULL;
    }
    if (PyBytes_CheckExact(buffer) || PyByteArray_CheckExact(buffer) ||
        PyMemoryView_Check(buffer)) {
        PyObject *block = place(pool, buffer, writable != 0);
        PyObject *result = block == NULL ? NULL : PyMemoryView_FromObject(block);
        Py_XDECREF(block);
        return result;
    }
    PyObject *buffers = NULL;
    PyObject *blocks = NULL;
    PyObject *result = NULL;
    PyObject *data = plait_dumps(pool->state, buffer, &buffers);
    if (data == NULL)
        return NULL;
    if (PyList_GET_SIZE(buffers) == 0) {
        PyErr_Format(PyExc_TypeError,
                     "buffer must be an array or a buffer that can be shared, not %.200s",
                     Py_TYPE(buffer)->tp_name);
        goto out;
    }
    blocks = PyList_New(0);
    if (blocks == NULL)
        goto out;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(buffers); i++) {
        PyObject *block = place(pool, PyList_GET_ITEM(buffers, i), writable != 0);
        int error = block == NULL ? -1 : PyList_Append(blocks, block);
        Py_XDECREF(block);
        if (error < 0)
            goto out;
    }
    result =
        plait_loads(pool->state, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), blocks);
out:
    Py_DECREF(data);
    Py_XDECREF(buffers);
    Py_XDECREF(blocks);
    return result;
}

#define LARGE 65536

PyObject *plait_sendable(struct plait_state *state, PyObject *value)
{
    Py_ssize_t size;
    if (PyBytes_CheckExact(value))
        size = PyBytes_GET_SIZE(value);
    else if (PyByteArray_CheckExact(value))
        size = PyByteArray_GET_SIZE(value);
    else if (PyMemoryView_Check(value))
        size = LARGE; /* pickle knows no memoryviews, of whatever size */
    else
        return Py_NewRef(value);
    if (size < LARGE)
        return Py_NewRef(value);
    if (state->large_type == NULL) {
        PyObject *module = PyImport_ImportModule("plait._share");
        if (module == NULL)
            return NULL;
        state->large_type = PyObject_GetAttrString(module, "Large");
        Py_DECREF(module);
        if (state->large_type == NULL)
            return NULL;
    }
    return PyObject_CallOneArg(state->large_type, value);
}

/* ---- bytes and bytearrays at their destination ---- */

#define HUGE_PAGE (2 << 20)
#define WITHOUT_LOCK (1 << 20)

/* The memory of a large object is new to this process more often than not, and its pages are
 * made while it is written to: large ones, where the system has them, take half the time. */
static void prefer_huge_pages(char *data, size_t size)
{
    uintptr_t from = ((uintptr_t)data + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    uintptr_t to = ((uintptr_t)data + size) & ~(uintptr_t)(HUGE_PAGE - 1);
    if (from < to)
        (void)madvise((void *)from, to - from, MADV_HUGEPAGE); /* refused: as before */
}

/* Copies a buffer into an object that owns its bytes; arg is what unpickling brought. */
static PyObject *own(PyObject *arg, bool is_bytes)
{
    Py_buffer view;
    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *object = is_bytes ? PyBytes_FromStringAndSize(NULL, view.len)
                                : PyByteArray_FromStringAndSize(NULL, view.len);
    if (object != NULL && view.len > 0) {
        size_t size = (size_t)view.len;
        char *data = is_bytes ? PyBytes_AS_STRING(object) : PyByteArray_AS_STRING(object);
        if (size < WITHOUT_LOCK) {
            memcpy(data, view.buf, size);
        } else {
            /* Nobody else has the object yet, and the view keeps its source. */
            Py_BEGIN_ALLOW_THREADS prefer_huge_pages(data, size);
            memcpy(data, view.buf, size);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&view);
    return object;
}

PyObject *plait_own_bytes(PyObject *module, PyObject *arg)
{
    (void)module;
    return own(arg, true);
}

PyObject *plait_own_bytearray(PyObject *module, PyObject *arg)
{
    (void)module;
    return own(arg, false);
}
