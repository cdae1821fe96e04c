/* stream_adopt.c - which connections of asyncio's streams go our way.
 *
 * Recognised are exact StreamReaders of exact StreamReaderProtocols whose classes and objects
 * have asyncio's own methods, when their connection is made on one of our transports. All
 * others, and all in debug mode, go asyncio's way.
 */
#include "stream_reader.h"

/* ---- asyncio's classes --------------------------------------------------- */

PyObject *plait_stream_dict(PyObject *object)
{
    return PyObject_GenericGetDict(object, NULL);
}

int plait_stream_is_stock(PyObject *type, PyObject *stock)
{
    PyObject *name, *function;
    Py_ssize_t at = 0;
    if (PyDict_GET_SIZE(stock) == 0)
        return 0;
    while (PyDict_Next(stock, &at, &name, &function)) {
        PyObject *found = PyObject_GetAttr(type, name);
        if (found == NULL)
            return -1;
        Py_DECREF(found); /* the class has it still, or it is not the same */
        if (found != function)
            return 0;
    }
    return 1;
}

PyObject *plait_stream_stock(PyObject *type, const char *const *names)
{
    PyObject *stock = PyDict_New();
    for (; stock != NULL && *names != NULL; names++) {
        PyObject *function = PyObject_GetAttrString(type, *names);
        PyObject *module = function == NULL ? NULL : PyObject_GetAttrString(function, "__module__");
        bool theirs = module != NULL && PyUnicode_Check(module) &&
                      PyUnicode_CompareWithASCIIString(module, "asyncio.streams") == 0;
        Py_XDECREF(module);
        PyErr_Clear(); /* what is not there is not asyncio's */
        if (!theirs) {
            Py_XDECREF(function);
            PyDict_Clear(stock);
            return stock;
        }
        if (PyDict_SetItemString(stock, *names, function) < 0)
            Py_CLEAR(stock);
        Py_DECREF(function);
    }
    return stock;
}

PyObject *plait_stream_subclass(PyObject *module, PyType_Spec *spec, PyObject *base)
{
    PyObject *bases = PyTuple_Pack(1, base);
    if (bases == NULL)
        return NULL;
    PyObject *type = PyType_FromModuleAndSpec(module, spec, bases);
    Py_DECREF(bases);
    return type;
}

/* ---- adoption ----------------------------------------------------------- */

static ReaderState *new_state(LoopObject *loop)
{
    ReaderState *s = PyObject_GC_New(ReaderState, loop->state->reader_state_type);
    if (s == NULL)
        return NULL;
    memset((char *)s + sizeof(PyObject), 0, sizeof(*s) - sizeof(PyObject));
    s->loop = (LoopObject *)Py_NewRef(loop);
    PyObject_GC_Track(s);
    return s;
}

/* Gives a reader that others may know its state and our class. */
static ReaderState *convert(LoopObject *loop, PyObject *reader)
{
    struct plait_state *state = loop->state;
    ReaderState *s = new_state(loop);
    if (s == NULL)
        return NULL;
    PyObject *dict = plait_stream_dict(reader);
    int r = dict == NULL ? -1 : plait_reader_move_fields(dict, s);
    /* A dict of its own size, without those fields. */
    PyObject *rest = r == 1 ? PyDict_New() : NULL;
    PyObject *traceback =
        r == 1 ? PyDict_GetItemWithError(dict, state->str_source_traceback) : NULL;
    if (rest == NULL || PyDict_SetItem(rest, state->str_private_loop, (PyObject *)loop) < 0 ||
        (traceback != NULL && PyDict_SetItem(rest, state->str_source_traceback, traceback) < 0) ||
        PyDict_SetItem(rest, state->str_state, (PyObject *)s) < 0 ||
        PyObject_SetAttr(reader, state->str_class, state->reader_type) < 0)
        Py_CLEAR(s);
    else if (PyObject_GenericSetDict(reader, rest, NULL) < 0)
        Py_CLEAR(s);
    Py_XDECREF(rest);
    Py_XDECREF(dict);
    Py_XDECREF(s); /* the dict's reference keeps it */
    return s;
}

void plait_reader_unlink(ReaderState **link)
{
    if (*link == NULL)
        return;
    (*link)->link = NULL;
    *link = NULL;
}

static int has_stock_classes(struct plait_state *state)
{
    int r = plait_stream_is_stock(state->asyncio_stream_reader, state->stock_reader);
    return r == 1 ? plait_stream_is_stock(state->asyncio_stream_protocol, state->stock_protocol)
                  : r;
}

/* The protocol's own method is asyncio's: one that was set on the object stands before it. */
static bool has_stock_feed(struct plait_state *state, PyObject *protocol)
{
    PyObject *method = PyObject_GetAttr(protocol, state->str_data_received);
    PyObject *stock = PyDict_GetItemWithError(state->stock_protocol, state->str_data_received);
    bool same = method != NULL && PyMethod_Check(method) && PyMethod_GET_FUNCTION(method) == stock;
    Py_XDECREF(method);
    return same;
}

/* The reader of a protocol of this loop; NULL, with or without an exception, when it has none.
 * Attributes are asked for by name: to take the object's dict would be to make one. */
static PyObject *reader_of(LoopObject *loop, PyObject *protocol)
{
    struct plait_state *state = loop->state;
    PyObject *its_loop = PyObject_GetAttr(protocol, state->str_private_loop);
    PyObject *ref =
        its_loop == (PyObject *)loop ? PyObject_GetAttr(protocol, state->str_reader_wr) : NULL;
    PyObject *reader = ref != NULL && PyWeakref_CheckRef(ref) && has_stock_feed(state, protocol)
                           ? PyObject_CallNoArgs(ref)
                           : NULL;
    Py_XDECREF(its_loop);
    Py_XDECREF(ref);
    return reader;
}

#ifndef Py_GIL_DISABLED /* there, a count of one says nothing about other threads */
/* Whether nobody knows the reader but its protocol, and us for the moment: a server's, before its
 * connection is made. */
static bool is_unknown(struct plait_state *state, PyObject *reader, PyObject *protocol)
{
    PyObject *strong = PyObject_GetAttr(protocol, state->str_strong_reader);
    bool only = strong == reader;
    Py_XDECREF(strong);
    PyErr_Clear(); /* a client's protocol has no such attribute */
    if (!only || Py_REFCNT(reader) != 2)
        return false;
    /* All who ask for a plain weak reference get the same one. */
    PyObject *ref = PyObject_GetAttr(protocol, state->str_reader_wr);
    PyObject *count = PyObject_CallOneArg(state->getweakrefcount, reader);
    only = ref != NULL && Py_REFCNT(ref) == 2 && count != NULL && PyLong_AsLong(count) == 1;
    Py_XDECREF(ref);
    Py_XDECREF(count);
    PyErr_Clear();
    return only;
}

/* Puts a reader of ours, which has no dict, in the place of one that nobody knows. */
static ReaderState *replace(LoopObject *loop, PyObject *reader, PyObject *protocol)
{
    struct plait_state *state = loop->state;
    PyObject *dict = plait_stream_dict(reader);
    ReaderState *s = dict == NULL ? NULL : new_state(loop);
    /* The one that is replaced keeps all; a traceback from debug mode has no place in ours. */
    bool fits = s != NULL && plait_reader_move_fields(dict, s) == 1 &&
                PyDict_GetItemWithError(dict, state->str_source_traceback) == NULL;
    Py_XDECREF(dict);
    PyTypeObject *type = state->own_reader_type;
    PyObject *own = fits ? type->tp_alloc(type, 0) : NULL;
    PyObject *ref = NULL;
    if (own != NULL && PyObject_SetAttr(own, state->str_state, (PyObject *)s) == 0)
        ref = PyWeakref_NewRef(own, NULL);
    int r = ref == NULL ? -1 : PyObject_SetAttr(protocol, state->str_strong_reader, own);
    if (r == 0)
        r = PyObject_SetAttr(protocol, state->str_reader_wr, ref);
    Py_XDECREF(ref);
    Py_XDECREF(own);
    Py_XDECREF(s); /* the reader keeps it */
    return r < 0 ? NULL : s;
}
#endif

/* The state of a reader that asyncio has made, new; borrowed. */
static ReaderState *take_over(LoopObject *loop, PyObject *reader, PyObject *protocol)
{
#ifndef Py_GIL_DISABLED
    if (is_unknown(loop->state, reader, protocol))
        return replace(loop, reader, protocol);
#else
    (void)protocol;
#endif
    return convert(loop, reader);
}

/* 1 and *found (borrowed), 0 when this connection is to go asyncio's way, or -1. */
static int adopt(LoopObject *loop, PyObject *protocol, ReaderState **found)
{
    struct plait_state *state = loop->state;
    int r = has_stock_classes(state);
    if (r != 1)
        return r;
    PyObject *reader = reader_of(loop, protocol);
    if (reader == NULL)
        return PyErr_Occurred() ? -1 : 0;
    r = 0;
    *found = plait_reader_state(state, reader);
    if (*found == NULL && Py_IS_TYPE(reader, (PyTypeObject *)state->asyncio_stream_reader))
        *found = take_over(loop, reader, protocol);
    if (*found != NULL)
        r = plait_writer_expect(state, protocol) < 0 ? -1 : 1;
    Py_DECREF(reader);
    return PyErr_Occurred() ? -1 : r;
}

void plait_reader_link(LoopObject *loop, PyObject *protocol, ReaderState **link)
{
    plait_reader_unlink(link);
    if (protocol == NULL || loop->debug ||
        !Py_IS_TYPE(protocol, (PyTypeObject *)loop->state->asyncio_stream_protocol))
        return;
    ReaderState *found = NULL;
    int r = adopt(loop, protocol, &found);
    if (r < 0) {
        /* Nothing has changed for the program: asyncio's way works for all. */
        PyErr_WriteUnraisable(protocol);
        return;
    }
    if (r == 0)
        return;
    if (found->link != NULL)
        *found->link = NULL; /* one connection at a time feeds a reader */
    found->link = link;
    *link = found;
}
