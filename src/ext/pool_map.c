/* pool_map.c - the results of a chunked map, one at a time.
 *
 * A generator of Python's (plait._map) gives the chunks, as lists; this iterator gives their
 * items, without a step of Python's for each. What it has handed out it does not keep alive.
 */
#include "pool.h"

#include <structmember.h>

struct items {
    PyObject_HEAD
    PyObject *chunks; /* owns: a generator of lists; NULL when closed */
    PyObject *list;   /* owns; nobody else has it; NULL between chunks */
    Py_ssize_t at;
    PyObject *weakrefs;
};

#define ITEMS(o) ((struct items *)(o))

static PyObject *items_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *chunks;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Items() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O:Items", &chunks))
        return NULL;
    if (!PyIter_Check(chunks)) {
        PyErr_Format(PyExc_TypeError, "chunks must be an iterator, not %.200s",
                     Py_TYPE(chunks)->tp_name);
        return NULL;
    }
    struct items *self = ITEMS(type->tp_alloc(type, 0));
    if (self != NULL)
        self->chunks = Py_NewRef(chunks);
    return (PyObject *)self;
}

static int items_traverse(PyObject *o, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(o));
    Py_VISIT(ITEMS(o)->chunks);
    Py_VISIT(ITEMS(o)->list);
    return 0;
}

static int items_clear(PyObject *o)
{
    Py_CLEAR(ITEMS(o)->list);
    Py_CLEAR(ITEMS(o)->chunks); /* a generator that dies cancels what nobody wants any more */
    return 0;
}

static void items_dealloc(PyObject *o)
{
    PyTypeObject *type = Py_TYPE(o);
    PyObject_GC_UnTrack(o);
    if (ITEMS(o)->weakrefs != NULL)
        PyObject_ClearWeakRefs(o);
    (void)items_clear(o);
    type->tp_free(o);
    Py_DECREF(type);
}

/* The next chunk that has items: 1, 0 at the end, -1 with an exception set. */
static int next_chunk(struct items *self)
{
    PyObject *chunks = Py_XNewRef(self->chunks); /* its code may close this iterator */
    PyObject *list = chunks == NULL ? NULL : Py_TYPE(chunks)->tp_iternext(chunks);
    Py_XDECREF(chunks);
    if (list == NULL)
        return PyErr_Occurred() != NULL ? -1 : 0;
    if (!PyList_Check(list)) {
        PyErr_Format(PyExc_TypeError, "a chunk must be a list, not %.200s", Py_TYPE(list)->tp_name);
        Py_DECREF(list);
        return -1;
    }
    if (Py_REFCNT(list) != 1 || !PyList_CheckExact(list)) {
        PyObject *copy = PyList_GetSlice(list, 0, PY_SSIZE_T_MAX);
        Py_DECREF(list);
        if (copy == NULL)
            return -1;
        list = copy;
    }
    Py_XSETREF(self->list, list);
    self->at = 0;
    return 1;
}

static PyObject *next_item(struct items *self)
{
    while (self->list == NULL || self->at >= PyList_GET_SIZE(self->list)) {
        Py_CLEAR(self->list);
        if (next_chunk(self) <= 0)
            return NULL;
    }
    PyObject *item = PyList_GET_ITEM(self->list, self->at);
    PyList_SET_ITEM(self->list, self->at, Py_NewRef(Py_None)); /* the reference moves out */
    self->at++;
    return item;
}

static PyObject *items_next(PyObject *o)
{
    PyObject *item;
#if defined(Py_GIL_DISABLED)
    Py_BEGIN_CRITICAL_SECTION(o);
#endif
    item = next_item(ITEMS(o));
#if defined(Py_GIL_DISABLED)
    Py_END_CRITICAL_SECTION();
#endif
    return item;
}

static PyObject *items_close(PyObject *o, PyObject *Py_UNUSED(ignored))
{
    struct items *self = ITEMS(o);
    PyObject *list = self->list;
    PyObject *chunks = self->chunks;
    self->list = self->chunks = NULL;
    Py_XDECREF(list);
    if (chunks == NULL)
        Py_RETURN_NONE;
    PyObject *result = PyObject_CallMethod(chunks, "close", NULL);
    if (result == NULL)
        self->chunks = chunks; /* a generator that runs in another thread goes on */
    else
        Py_DECREF(chunks);
    return result;
}

static PyMethodDef items_methods[] = {
    {"close", items_close, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "End the iteration: cancel what has not begun, drop the results that nobody took."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef items_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct items, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot items_slots[] = {
    {Py_tp_new, items_new},
    {Py_tp_dealloc, items_dealloc},
    {Py_tp_traverse, items_traverse},
    {Py_tp_clear, items_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, items_next},
    {Py_tp_methods, items_methods},
    {Py_tp_members, items_members},
    {Py_tp_doc, "Items(chunks, /)\n--\n\nThe items of lists that an iterator gives."},
    {0, NULL},
};

PyType_Spec plait_items_spec = {
    .name = "plait._core.Items",
    .basicsize = sizeof(struct items),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = items_slots,
};
