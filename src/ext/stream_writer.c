/* stream_writer.c - asyncio.StreamWriter without coroutines where nothing has to be waited for.
 *
 * A server's writer is made by asyncio's protocol just before it calls the program's callback:
 * an object that stands in that callback's place gives the writer its subclass. As with the
 * reader, the class has no fields and asyncio's name.
 */
#include "args.h"
#include "stream_reader.h"

#include "transport.h"

/* ---- drain -------------------------------------------------------------- */

/* Awaited, it is done at once, any number of times: one object serves all. */
static PyObject *drained_next(PyObject *Py_UNUSED(self))
{
    return NULL; /* without an exception: StopIteration(None) */
}

static PySendResult drained_send(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(value),
                                 PyObject **result)
{
    *result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

static PyObject *drained_method_send(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(value))
{
    PyErr_SetNone(PyExc_StopIteration);
    return NULL;
}

static PyObject *drained_throw(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs > 0 && PyExceptionInstance_Check(args[0]))
        PyErr_SetObject(PyExceptionInstance_Class(args[0]), args[0]);
    else if (nargs > 0 && PyExceptionClass_Check(args[0]))
        PyErr_SetObject(args[0], nargs > 1 ? args[1] : NULL);
    else
        PyErr_SetString(PyExc_TypeError, "throw() needs an exception");
    return NULL;
}

static PyObject *drained_close(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_NONE;
}

static PyObject *drained_name(PyObject *Py_UNUSED(self), void *closure)
{
    return PyUnicode_FromString(closure);
}

static PyMethodDef drained_methods[] = {
    {"send", drained_method_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))drained_throw, METH_FASTCALL, NULL},
    {"close", drained_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef drained_getset[] = {
    {"__name__", drained_name, NULL, NULL, (void *)"drain"},
    {"__qualname__", drained_name, NULL, NULL, (void *)"StreamWriter.drain"},
    {NULL, NULL, NULL, NULL, NULL},
};

/* The state owns the one instance: without this the collector would never see that only the
 * instance keeps its type, the type the module, and the module the state. */
static int drained_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyType_Slot drained_slots[] = {
    {Py_tp_traverse, drained_traverse},
    {Py_tp_doc, (void *)"A drain that has nothing to wait for."},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, drained_next},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, drained_send},
    {Py_tp_methods, drained_methods},
    {Py_tp_getset, drained_getset},
    {0, NULL},
};

static PyType_Spec drained_spec = {
    .name = "plait._core.StreamDrained",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = drained_slots,
};

/* ---- the writer --------------------------------------------------------- */

/* Calls a method of asyncio's that ours stands before. */
static PyObject *call_stock(struct plait_state *state, const char *name, PyObject *self,
                            PyObject *arg)
{
    PyObject *stock = PyDict_GetItemString(state->stock_writer, name); // borrowed
    if (stock == NULL)
        return PyErr_Format(PyExc_AttributeError, "asyncio's StreamWriter.%s is gone", name);
    PyObject *args[2] = {self, arg};
    return PyObject_Vectorcall(stock, args, arg != NULL ? 2 : 1, NULL);
}

/* A field of the writer, borrowed (the writer's dict keeps it), or NULL. */
static PyObject *field_of(PyObject *self, PyObject *name)
{
    PyObject *dict = plait_stream_dict(self);
    PyObject *value = dict == NULL ? NULL : PyDict_GetItemWithError(dict, name);
    Py_XDECREF(dict);
    return value;
}

PyDoc_STRVAR(write_doc, "write($self, data)\n--\n\nSend data; see drain.");

static PyObject *writer_write(PyObject *self, PyObject *data)
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    if (state == NULL)
        return NULL;
    PyObject *transport = field_of(self, state->str_private_transport);
    if (transport == NULL)
        return PyErr_Occurred() ? NULL : call_stock(state, "write", self, data);
    Py_INCREF(transport);
    PyObject *result;
    if (PL_LIKELY(plait_transport_is_plain(state, transport))) {
        result = plait_transport_write(transport, data);
    } else {
        result = PyObject_CallMethodOneArg(transport, state->str_write, data);
        if (result != NULL)
            Py_SETREF(result, Py_NewRef(Py_None));
    }
    Py_DECREF(transport);
    return result;
}

static bool is_false(PyObject *dict, PyObject *name)
{
    return PyDict_GetItemWithError(dict, name) == Py_False;
}

/* Whether asyncio's drain would return without waiting or raising. -1 on failure. */
static int nothing_to_wait_for(struct plait_state *state, PyObject *self)
{
    PyObject *transport = field_of(self, state->str_private_transport);
    bool plain = transport != NULL && plait_transport_is_plain(state, transport);
    if (PL_LIKELY(plain)) {
        const TransportObject *t = (TransportObject *)transport;
        if (t->closing)
            return 0;
        /* It feeds a reader: so its protocol is asyncio's, whose pause_writing it calls. */
        if (PL_LIKELY(t->feed != NULL))
            return !t->protocol_paused && t->feed->exception == NULL;
    }
    PyObject *reader = field_of(self, state->str_private_reader);
    PyObject *protocol = field_of(self, state->str_private_protocol);
    if (reader == NULL || transport == NULL || protocol == NULL ||
        !Py_IS_TYPE(protocol, (PyTypeObject *)state->asyncio_stream_protocol))
        return PyErr_Occurred() ? -1 : 0;
    ReaderState *s = plait_reader_state(state, reader);
    if (s == NULL || s->exception != NULL)
        return 0;
    if (!plain) {
        PyObject *closing = PyObject_CallMethodNoArgs(transport, state->str_is_closing);
        if (closing != Py_False) {
            Py_XDECREF(closing);
            return closing == NULL ? -1 : 0;
        }
        Py_DECREF(closing);
    }
    PyObject *dict = plait_stream_dict(protocol);
    if (dict == NULL)
        return -1;
    bool idle = is_false(dict, state->str_paused) && is_false(dict, state->str_protocol_lost);
    Py_DECREF(dict);
    return idle;
}

PyDoc_STRVAR(drain_doc, "drain($self, /)\n--\n\nWait until it is good to go on writing.");

static PyObject *writer_drain(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    int r = state == NULL ? -1 : nothing_to_wait_for(state, self);
    if (r < 0)
        return NULL;
    return r ? Py_NewRef(state->drained) : call_stock(state, "drain", self, NULL);
}

static PyObject *get_class(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    return state == NULL ? NULL : Py_NewRef(state->asyncio_stream_writer);
}

/* Their parameters may be given by name, as asyncio's. */
static PyObject *writer_write_named(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames)
{
    return plait_args_one(writer_write, self, "write", "data", args, nargs, kwnames);
}

static PyMethodDef writer_methods[] = {
    {"write", (PyCFunction)(void (*)(void))writer_write_named, METH_FASTCALL | METH_KEYWORDS,
     write_doc},
    {"drain", writer_drain, METH_NOARGS, drain_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef writer_getset[] = {
    {"__class__", get_class, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_methods, writer_methods},
    {Py_tp_getset, writer_getset},
    {0, NULL},
};

static PyType_Spec writer_spec = {
    .name = "asyncio.streams.StreamWriter",
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = writer_slots,
};

/* ---- in the place of client_connected_cb -------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *protocol_dict;
    PyObject *callback;
} ConnectedObject;

/* Gives the writer our class, and a dict of its own size. asyncio makes a future in each that
 * nobody asks for: thousands of idle connections are lighter without it. */
static int convert_writer(struct plait_state *state, PyObject *writer)
{
    PyObject *dict = plait_stream_dict(writer);
    PyObject *kept = dict == NULL ? NULL : PyDict_New();
    int r = kept == NULL ? -1 : 0;
    PyObject *name, *value;
    Py_ssize_t at = 0;
    while (r == 0 && PyDict_Next(dict, &at, &name, &value)) {
        if (!PyUnicode_Check(name) || PyUnicode_CompareWithASCIIString(name, "_complete_fut") != 0)
            r = PyDict_SetItem(kept, name, value);
    }
    if (r == 0)
        r = PyObject_SetAttr(writer, state->str_class, state->writer_type);
    if (r == 0)
        r = PyObject_GenericSetDict(writer, kept, NULL);
    Py_XDECREF(kept);
    Py_XDECREF(dict);
    return r;
}

static PyObject *connected_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    ConnectedObject *c = (ConnectedObject *)self;
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    if (state == NULL || c->callback == NULL)
        return NULL;
    PyObject *callback = Py_NewRef(c->callback);
    if (PyDict_SetItem(c->protocol_dict, state->str_client_connected_cb, callback) < 0)
        PyErr_Clear(); /* ours stays there, and calls the same */
    PyObject *result = NULL;
    PyObject *writer = PyTuple_GET_SIZE(args) == 2 ? PyTuple_GET_ITEM(args, 1) : NULL; // borrowed
    if (writer == NULL || !Py_IS_TYPE(writer, (PyTypeObject *)state->asyncio_stream_writer) ||
        convert_writer(state, writer) == 0)
        result = PyObject_Call(callback, args, kwargs);
    Py_DECREF(callback);
    return result;
}

int plait_writer_expect(struct plait_state *state, PyObject *protocol_dict)
{
    PyObject *waiters = PyDict_GetItemWithError(protocol_dict, state->str_drain_waiters);
    /* An empty deque keeps half a kilobyte; a list does what asyncio does with it. */
    if (waiters != NULL && !PyList_CheckExact(waiters) && PyObject_Size(waiters) == 0) {
        PyObject *list = PyList_New(0);
        int r = list == NULL ? -1 : PyDict_SetItem(protocol_dict, state->str_drain_waiters, list);
        Py_XDECREF(list);
        if (r < 0)
            return -1;
    }
    PyObject *callback = PyDict_GetItemWithError(protocol_dict, state->str_client_connected_cb);
    if (callback == NULL || callback == Py_None || Py_IS_TYPE(callback, state->connected_type))
        return PyErr_Occurred() ? -1 : 0;
    int stock = plait_stream_is_stock(state->asyncio_stream_writer, state->stock_writer);
    if (stock != 1)
        return stock;
    ConnectedObject *c = PyObject_GC_New(ConnectedObject, state->connected_type);
    if (c == NULL)
        return -1;
    c->protocol_dict = Py_NewRef(protocol_dict);
    c->callback = Py_NewRef(callback);
    PyObject_GC_Track(c);
    int r = PyDict_SetItem(protocol_dict, state->str_client_connected_cb, (PyObject *)c);
    Py_DECREF(c);
    return r;
}

static int connected_traverse(PyObject *self, visitproc visit, void *arg)
{
    ConnectedObject *c = (ConnectedObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(c->protocol_dict);
    Py_VISIT(c->callback);
    return 0;
}

static int connected_clear(PyObject *self)
{
    ConnectedObject *c = (ConnectedObject *)self;
    Py_CLEAR(c->protocol_dict);
    Py_CLEAR(c->callback);
    return 0;
}

static void connected_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)connected_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyType_Slot connected_slots[] = {
    {Py_tp_doc, (void *)"Calls client_connected_cb with a fast writer."},
    {Py_tp_call, connected_call},
    {Py_tp_dealloc, connected_dealloc},
    {Py_tp_traverse, connected_traverse},
    {Py_tp_clear, connected_clear},
    {0, NULL},
};

static PyType_Spec connected_spec = {
    .name = "plait._core.StreamConnected",
    .basicsize = sizeof(ConnectedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = connected_slots,
};

int plait_writer_types(PyObject *module, struct plait_state *state)
{
    static const char *const of_writer[] = {"__init__", "write", "drain", NULL};
    state->stock_writer = plait_stream_stock(state->asyncio_stream_writer, of_writer);
    if (state->stock_writer == NULL)
        return -1;
    state->drained_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &drained_spec, NULL);
    if (state->drained_type == NULL)
        return -1;
    state->drained = state->drained_type->tp_alloc(state->drained_type, 0);
    if (state->drained == NULL)
        return -1;
    state->connected_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &connected_spec, NULL);
    if (state->connected_type == NULL)
        return -1;
    state->writer_type = plait_stream_subclass(module, &writer_spec, state->asyncio_stream_writer);
    return state->writer_type == NULL ? -1 : 0;
}
