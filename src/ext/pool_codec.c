/* pool_codec.c - pickles of values, and blocks of shared memory as buffers.
 *
 * What pool_atoms.c does not encode is pickled, large buffers out of band.
 */
#include "pool.h"

#include <string.h>

/* ---- pickles ---- */

PyObject *plait_dumps(struct plait_state *state, PyObject *value, PyObject **buffers)
{
    *buffers = PyList_New(0);
    if (*buffers == NULL)
        return NULL;
    PyObject *append = PyObject_GetAttr(*buffers, state->str_append);
    PyObject *data = NULL;
    if (append != NULL) {
        PyObject *args[] = {value, state->protocol_5, append};
        data = PyObject_Vectorcall(state->pickle_dumps, args, 1, state->dumps_kwnames);
        Py_DECREF(append);
    }
    if (data == NULL)
        Py_CLEAR(*buffers);
    return data;
}

PyObject *plait_loads(struct plait_state *state, const char *data, size_t len, PyObject *buffers)
{
    PyObject *memory = PyMemoryView_FromMemory((char *)data, (Py_ssize_t)len, PyBUF_READ);
    if (memory == NULL)
        return NULL;
    PyObject *args[] = {memory, buffers == NULL ? Py_None : buffers};
    PyObject *value = PyObject_Vectorcall(state->pickle_loads, args, 1, state->loads_kwnames);
    Py_DECREF(memory);
    return value;
}

PyObject *plait_small_buffer(const struct pl_wire_buf *entry, const void *data)
{
    Py_ssize_t size = (Py_ssize_t)entry->block.size; /* checked by pl_wire_next */
    return entry->readonly != 0 ? PyBytes_FromStringAndSize(data, size)
                                : PyByteArray_FromStringAndSize(data, size);
}

/* ---- blocks ---- */

struct plait_block *plait_block_new(struct plait_state *state)
{
    struct plait_block *block =
        (struct plait_block *)state->block_type->tp_alloc(state->block_type, 0);
    return block;
}

static void block_dealloc(PyObject *self)
{
    struct plait_block *block = (struct plait_block *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (block->pool != NULL) {
        if (block->shared)
            plait_pool_unshare(block);
        /* A forked child has a copy of the books, and must not touch what they speak of. */
        if (block->pool->open && !pl_pool_forked(&block->pool->core))
            pl_pool_view_drop(&block->pool->core, &block->view);
        Py_DECREF(block->pool);
    } else if (block->member != NULL && block->view.block.offset != 0) {
        pl_member_return(block->member, &block->view.block);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static int block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    struct plait_block *block = (struct plait_block *)self;
    return PyBuffer_FillInfo(view, self, block->data, block->size, block->readonly, flags);
}

static PyType_Slot block_slots[] = {
    {Py_tp_dealloc, block_dealloc},
    {Py_bf_getbuffer, block_getbuffer},
    {Py_tp_doc, "A block of a pool's shared memory; returned to the pool when it dies."},
    {0, NULL},
};

PyType_Spec plait_block_spec = {
    .name = "plait._core.Block",
    .basicsize = sizeof(struct plait_block),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = block_slots,
};
