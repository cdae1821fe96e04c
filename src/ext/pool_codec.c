/* pool_codec.c - values to bytes and back, and blocks of shared memory as buffers.
 *
 * Most arguments and results are small plain values, and pickling them costs more than
 * running a short task: exact None, bool, int of 64 bits, float, short str and bytes, and lists
 * of such ints or of floats (chunks of a map are) have an encoding of their own. All else is
 * pickled, large buffers out of band.
 */
#include "pool.h"

#include <string.h>

/* ---- bytes ---- */

/* Makes the string longer by `len` bytes that the caller fills in: where they begin. */
static char *bytes_room(struct plait_bytes *b, size_t len)
{
    if (b->cap - b->len < len) {
        size_t cap = b->cap < 256 ? 512 : b->cap * 2;
        while (cap - b->len < len)
            cap *= 2;
        char *grown = PyMem_Realloc(b->data, cap);
        if (grown == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        b->data = grown;
        b->cap = cap;
    }
    b->len += len;
    return b->data + b->len - len;
}

int plait_bytes_add(struct plait_bytes *b, const void *data, size_t len)
{
    if (len == 0)
        return 0;
    char *to = bytes_room(b, len);
    if (to == NULL)
        return -1;
    memcpy(to, data, len);
    return 0;
}

void plait_bytes_free(struct plait_bytes *b)
{
    PyMem_Free(b->data);
    *b = (struct plait_bytes){0};
}

/* ---- atoms ---- */

#define ATOM_TEXT_MAX 512

static int add_tagged(struct plait_bytes *b, char tag, const void *data, size_t len)
{
    if (plait_bytes_add(b, &tag, 1) < 0)
        return -1;
    return plait_bytes_add(b, data, len);
}

static int add_text(struct plait_bytes *b, char tag, const char *data, Py_ssize_t len)
{
    uint16_t n = (uint16_t)len;
    if (add_tagged(b, tag, &n, sizeof(n)) < 0)
        return -1;
    return plait_bytes_add(b, data, n) < 0 ? -1 : 1;
}

#define LIST_MAX (1 << 20)

/* A list of ints of 64 bits, or of floats: tag, number of items, items. */
static int encode_list(struct plait_bytes *b, PyObject *list)
{
#ifdef Py_GIL_DISABLED
    return 0; /* another thread may change the list meanwhile: pickle knows how to lock it */
#endif
    Py_ssize_t n = PyList_GET_SIZE(list);
    if (n == 0 || n > LIST_MAX)
        return 0;
    bool floats = PyFloat_CheckExact(PyList_GET_ITEM(list, 0));
    if (!floats && !PyLong_CheckExact(PyList_GET_ITEM(list, 0)))
        return 0;
    uint32_t count = (uint32_t)n;
    if (add_tagged(b, floats ? 'D' : 'I', &count, sizeof(count)) < 0)
        return -1;
    char *to = bytes_room(b, (size_t)n * 8);
    if (to == NULL)
        return -1;
    for (Py_ssize_t i = 0; i < n; i++, to += 8) {
        PyObject *item = PyList_GET_ITEM(list, i); // borrowed
        if (floats && PyFloat_CheckExact(item)) {
            double number = PyFloat_AS_DOUBLE(item);
            memcpy(to, &number, 8);
        } else if (!floats && PyLong_CheckExact(item)) {
            int overflow;
            int64_t number = PyLong_AsLongLongAndOverflow(item, &overflow);
            if (overflow != 0)
                return 0;
            memcpy(to, &number, 8);
        } else {
            return 0; /* the caller drops what was written */
        }
    }
    return 1;
}

static PyObject *decode_list(const char *at, uint32_t n, bool floats)
{
    PyObject *list = PyList_New(n);
    for (uint32_t i = 0; list != NULL && i < n; i++, at += 8) {
        PyObject *item;
        if (floats) {
            double number;
            memcpy(&number, at, 8);
            item = PyFloat_FromDouble(number);
        } else {
            int64_t number;
            memcpy(&number, at, 8);
            item = PyLong_FromLongLong(number);
        }
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static int encode_atom(struct plait_bytes *b, PyObject *value)
{
    if (value == Py_None)
        return add_tagged(b, 'N', NULL, 0) < 0 ? -1 : 1;
    if (value == Py_True || value == Py_False)
        return add_tagged(b, value == Py_True ? 'T' : 'F', NULL, 0) < 0 ? -1 : 1;
    if (PyLong_CheckExact(value)) {
        int overflow;
        int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow != 0)
            return 0;
        return add_tagged(b, 'i', &number, sizeof(number)) < 0 ? -1 : 1;
    }
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AS_DOUBLE(value);
        return add_tagged(b, 'd', &number, sizeof(number)) < 0 ? -1 : 1;
    }
    if (PyUnicode_CheckExact(value)) {
        /* Length in characters bounds the one in bytes, and spares the encoding of what is
         * too long anyway. Lone surrogates are pickle's business. */
        if (PyUnicode_GET_LENGTH(value) > ATOM_TEXT_MAX / 4)
            return 0;
        Py_ssize_t len;
        const char *text = PyUnicode_AsUTF8AndSize(value, &len);
        if (text == NULL) {
            PyErr_Clear();
            return 0;
        }
        return add_text(b, 's', text, len);
    }
    if (PyBytes_CheckExact(value) && PyBytes_GET_SIZE(value) <= ATOM_TEXT_MAX)
        return add_text(b, 'b', PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    if (PyList_CheckExact(value))
        return encode_list(b, value);
    return 0;
}

int plait_atoms_encode(struct plait_bytes *b, PyObject *const *values, Py_ssize_t n)
{
    size_t start = b->len;
    if (n > PLAIT_ATOMS_MAX)
        return 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        int done = encode_atom(b, values[i]);
        if (done <= 0) {
            b->len = start;
            return done;
        }
    }
    return 1;
}

static PyObject *bad_message(void)
{
    PyErr_SetString(PyExc_RuntimeError, "a message between processes is damaged");
    return NULL;
}

static PyObject *decode_atom(const char **at, const char *end)
{
    char tag = *(*at)++;
    size_t left = (size_t)(end - *at);
    switch (tag) {
    case 'N':
        return Py_NewRef(Py_None);
    case 'T':
        return Py_NewRef(Py_True);
    case 'F':
        return Py_NewRef(Py_False);
    case 'i': {
        int64_t number;
        if (left < sizeof(number))
            return bad_message();
        memcpy(&number, *at, sizeof(number));
        *at += sizeof(number);
        return PyLong_FromLongLong(number);
    }
    case 'd': {
        double number;
        if (left < sizeof(number))
            return bad_message();
        memcpy(&number, *at, sizeof(number));
        *at += sizeof(number);
        return PyFloat_FromDouble(number);
    }
    case 's':
    case 'b': {
        uint16_t n;
        if (left < sizeof(n))
            return bad_message();
        memcpy(&n, *at, sizeof(n));
        if (left - sizeof(n) < n)
            return bad_message();
        const char *text = *at + sizeof(n);
        *at = text + n;
        return tag == 's' ? PyUnicode_DecodeUTF8(text, n, "strict")
                          : PyBytes_FromStringAndSize(text, n);
    }
    case 'I':
    case 'D': {
        uint32_t n;
        if (left < sizeof(n))
            return bad_message();
        memcpy(&n, *at, sizeof(n));
        if ((left - sizeof(n)) / 8 < n)
            return bad_message();
        const char *items = *at + sizeof(n);
        *at = items + (size_t)n * 8;
        return decode_list(items, n, tag == 'D');
    }
    default:
        return bad_message();
    }
}

Py_ssize_t plait_atoms_decode(const char *data, size_t len, PyObject **values, Py_ssize_t max)
{
    const char *end = data + len;
    Py_ssize_t n = 0;
    while (data < end) {
        PyObject *value = n < max ? decode_atom(&data, end) : bad_message();
        if (value == NULL) {
            while (n > 0)
                Py_DECREF(values[--n]);
            return -1;
        }
        values[n++] = value;
    }
    return n;
}

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
