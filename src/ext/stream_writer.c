/* stream_writer.c - asyncio.StreamWriter without coroutines where nothing has to be waited for.
 *
 * A server's writer is made by asyncio's protocol just before it calls the program's callback:
 * an object that stands in that callback's place puts a writer of a subclass there, which has
 * asyncio's name, and starts the task of the coroutine that the callback returns.
 */
#include "args.h"
#include "future.h"
#include "stream_reader.h"

#include "transport.h"

#include <structmember.h>

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

/* It also is what a writer that was replaced has for a transport. */
static PyObject *drained_is_closing(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_TRUE;
}

static PyObject *drained_name(PyObject *Py_UNUSED(self), void *closure)
{
    return PyUnicode_FromString(closure);
}

static PyMethodDef drained_methods[] = {
    {"send", drained_method_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))drained_throw, METH_FASTCALL, NULL},
    {"close", drained_close, METH_NOARGS, NULL},
    {"is_closing", drained_is_closing, METH_NOARGS, NULL},
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

/* Behind what the base class has: asyncio keeps these in a dict, which is as large again. */
typedef struct {
    PyObject *transport;
    PyObject *protocol;
    PyObject *reader;
    PyObject *loop;
} WriterFields;

/* NULL each after `del writer._transport` and the like. The class has no subclasses. */
static WriterFields *fields_of(PyObject *self)
{
    return (WriterFields *)(void *)((char *)self + Py_TYPE(self)->tp_basicsize -
                                    (Py_ssize_t)sizeof(WriterFields));
}

PyDoc_STRVAR(write_doc, "write($self, data)\n--\n\nSend data; see drain.");

static PyObject *writer_write(PyObject *self, PyObject *data)
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    if (state == NULL)
        return NULL;
    PyObject *transport = Py_XNewRef(fields_of(self)->transport);
    if (transport == NULL)
        return call_stock(state, "write", self, data);
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
    const WriterFields *fields = fields_of(self);
    PyObject *transport = fields->transport;
    bool plain = transport != NULL && plait_transport_is_plain(state, transport);
    if (PL_LIKELY(plain)) {
        const TransportObject *t = (TransportObject *)transport;
        if (t->closing)
            return 0;
        /* It feeds a reader: so its protocol is asyncio's, whose pause_writing it calls. */
        if (PL_LIKELY(t->feed != NULL))
            return !t->protocol_paused && t->feed->exception == NULL;
    }
    PyObject *reader = fields->reader;
    PyObject *protocol = fields->protocol;
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

static PyTypeObject *make_writer_type(PyObject *module, PyObject *base)
{
    const Py_ssize_t at = ((PyTypeObject *)base)->tp_basicsize;
#define FIELD(name, field)                                                                         \
    {name, T_OBJECT_EX, at + (Py_ssize_t)offsetof(WriterFields, field), 0, NULL}
    PyMemberDef members[] = {
        FIELD("_transport", transport), FIELD("_protocol", protocol), FIELD("_reader", reader),
        FIELD("_loop", loop),           {NULL, 0, 0, 0, NULL},
    };
#undef FIELD
    PyType_Slot slots[] = {
        {Py_tp_methods, writer_methods},
        {Py_tp_getset, writer_getset},
        {Py_tp_members, members},
        {0, NULL},
    };
    PyType_Spec spec = {
        .name = "asyncio.streams.StreamWriter",
        .basicsize = (int)(at + (Py_ssize_t)sizeof(WriterFields)),
        /* Collected as the base is, which knows of members. */
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
        .slots = slots,
    };
    return (PyTypeObject *)plait_stream_subclass(module, &spec, base);
}

/* ---- in the place of client_connected_cb -------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *protocol;
    PyObject *callback;
} ConnectedObject;

/* A writer of ours in the place of asyncio's, which nobody else has seen. asyncio makes a future
 * in each that nobody asks for, and a dict: thousands of idle connections are lighter without. */
static PyObject *replace_writer(struct plait_state *state, PyObject *stock, PyObject *protocol)
{
    PyObject *writer = state->writer_type->tp_alloc(state->writer_type, 0);
    if (writer == NULL)
        return NULL;
    WriterFields *f = fields_of(writer);
    f->transport = PyObject_GetAttr(stock, state->str_private_transport);
    /* Its finalizer would close the transport: it sees one that is closed. */
    if (f->transport == NULL ||
        PyObject_SetAttr(stock, state->str_private_transport, state->drained) < 0)
        goto fail;
    f->protocol = PyObject_GetAttr(stock, state->str_private_protocol);
    f->reader = PyObject_GetAttr(stock, state->str_private_reader);
    f->loop = PyObject_GetAttr(stock, state->str_private_loop);
    if (f->protocol == NULL || f->reader == NULL || f->loop == NULL)
        goto fail;
#if PY_VERSION_HEX < 0x030D0000
    if (PyObject_SetAttr(protocol, state->str_stream_writer, writer) < 0)
        goto fail;
#else
    (void)protocol;
#endif
    return writer;

fail:
    Py_DECREF(writer); /* its finalizer closes the transport, as asyncio's would */
    return NULL;
}

#if PY_VERSION_HEX >= 0x030D0000
/* What follows the callback in asyncio's connection_made, with one small object instead of a
 * closure, its cells and a context. Before Python 3.13 asyncio's own differs, and is used. */

typedef struct {
    PyObject_HEAD
    PyObject *protocol;
    PyObject *transport;
} TalkDoneObject;

static PyObject *close_of(struct plait_state *state, TalkDoneObject *d)
{
    PyObject *result = PyObject_CallMethodNoArgs(d->transport, state->str_close);
    Py_XDECREF(result);
    return result == NULL ? NULL : Py_NewRef(Py_None);
}

static PyObject *tell_of(struct plait_state *state, TalkDoneObject *d, PyObject *exc)
{
    PyObject *loop = PyObject_GetAttr(d->protocol, state->str_private_loop);
    PyObject *result =
        loop == NULL ? NULL
                     : PyObject_CallMethod(loop, "call_exception_handler", "{s:s, s:O, s:O}",
                                           "message", "Unhandled exception in client_connected_cb",
                                           "exception", exc, "transport", d->transport);
    Py_XDECREF(loop);
    Py_XDECREF(result);
    return result == NULL ? NULL : close_of(state, d);
}

static PyObject *talk_done_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    TalkDoneObject *d = (TalkDoneObject *)self;
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    PyObject *task;
    (void)kwargs;
    if (state == NULL || !PyArg_ParseTuple(args, "O:callback", &task))
        return NULL;
    PyObject *cancelled = PyObject_CallMethodNoArgs(task, state->str_cancelled);
    int is_cancelled = cancelled == NULL ? -1 : PyObject_IsTrue(cancelled);
    Py_XDECREF(cancelled);
    if (is_cancelled != 0)
        return is_cancelled < 0 ? NULL : close_of(state, d);
    PyObject *exc = PyObject_CallMethod(task, "exception", NULL);
    if (exc == NULL || exc == Py_None)
        return exc;
    PyObject *result = tell_of(state, d, exc);
    Py_DECREF(exc);
    return result;
}

static int add_talk_done(struct plait_state *state, PyObject *protocol, PyObject *task)
{
    PyObject *transport = PyObject_GetAttr(protocol, state->str_private_transport);
    TalkDoneObject *d =
        transport == NULL ? NULL : PyObject_GC_New(TalkDoneObject, state->talk_done_type);
    if (d == NULL) {
        Py_XDECREF(transport);
        return -1;
    }
    d->protocol = Py_NewRef(protocol);
    d->transport = transport;
    PyObject_GC_Track(d);
    PyObject *result;
    /* A task of the program's own making may take no more than asyncio gives it. Borrowed. */
    PyObject *stock = PyDict_GetItemWithError(state->asyncio_tasks, state->str_task);
    if (PL_LIKELY(Py_IS_TYPE(transport, state->transport_type) &&
                  (PyObject *)Py_TYPE(task) == stock)) {
        /* The connection's own context will do for a callback of ours. */
        PyObject *argv[] = {task, (PyObject *)d, ((TransportObject *)transport)->context};
        result =
            PyObject_VectorcallMethod(state->str_add_done_callback, argv, 2, state->kw_context);
    } else {
        result = PyObject_CallMethodOneArg(task, state->str_add_done_callback, (PyObject *)d);
    }
    Py_DECREF(d);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Makes a task of what the callback has returned, when it is a coroutine. Steals the result;
 * returns what is left for asyncio to look at. */
static PyObject *start_talk(struct plait_state *state, PyObject *protocol, PyObject *result)
{
    PyObject *answer = PyObject_CallOneArg(state->asyncio_iscoroutine, result);
    int is_coroutine = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    if (is_coroutine == 0)
        return result;
    PyObject *loop = is_coroutine < 0 ? NULL : PyObject_GetAttr(protocol, state->str_private_loop);
    PyObject *task = loop == NULL ? NULL : PyObject_CallMethod(loop, "create_task", "O", result);
    Py_XDECREF(loop);
    Py_DECREF(result);
    int r = task == NULL ? -1 : PyObject_SetAttr(protocol, state->str_private_task, task);
    if (r == 0)
        r = add_talk_done(state, protocol, task);
    Py_XDECREF(task);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

/* As start_talk. From Python 3.14 on asyncio takes an error for the callback's own and closes the
 * connection; one of making the task (a task factory's) is not, and is told as asyncio tells it. */
static PyObject *begin_talk(struct plait_state *state, PyObject *protocol, PyObject *result)
{
    PyObject *left = start_talk(state, protocol, result);
#if PY_VERSION_HEX >= 0x030E0000
    if (left != NULL || !PyErr_ExceptionMatches(PyExc_Exception))
        return left;
    PyObject *error = plait_take_exception();
    PyObject *loop = PyObject_GetAttr(protocol, state->str_private_loop);
    PyObject *transport = PyObject_GetAttr(protocol, state->str_private_transport);
    if (loop != NULL && transport != NULL)
        left =
            PyObject_CallMethod(loop, "call_exception_handler", "{s:s, s:O, s:O, s:O}", "message",
                                "Exception in callback protocol.connection_made()", "exception",
                                error, "transport", transport, "protocol", protocol);
    Py_XDECREF(loop);
    Py_XDECREF(transport);
    Py_DECREF(error);
#endif
    return left;
}

static int talk_done_traverse(PyObject *self, visitproc visit, void *arg)
{
    TalkDoneObject *d = (TalkDoneObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(d->protocol);
    Py_VISIT(d->transport);
    return 0;
}

/* Both stay until the end: the type has no other way to close the circle than through them. */
static void talk_done_dealloc(PyObject *self)
{
    TalkDoneObject *d = (TalkDoneObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_DECREF(d->protocol);
    Py_DECREF(d->transport);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyType_Slot talk_done_slots[] = {
    {Py_tp_doc, (void *)"Tells of the exception that ended a connection's task."},
    {Py_tp_call, talk_done_call},
    {Py_tp_dealloc, talk_done_dealloc},
    {Py_tp_traverse, talk_done_traverse},
    {0, NULL},
};

static PyType_Spec talk_done_spec = {
    .name = "plait._core.StreamTalkDone",
    .basicsize = sizeof(TalkDoneObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = talk_done_slots,
};
#endif

static PyObject *connected_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    ConnectedObject *c = (ConnectedObject *)self;
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    if (state == NULL || c->callback == NULL)
        return NULL;
    PyObject *callback = Py_NewRef(c->callback);
    PyObject *protocol = Py_NewRef(c->protocol);
    if (PyObject_SetAttr(protocol, state->str_client_connected_cb, callback) < 0)
        PyErr_Clear(); /* ours stays there, and calls the same */
    PyObject *result = NULL;
    PyObject *stock = PyTuple_GET_SIZE(args) == 2 ? PyTuple_GET_ITEM(args, 1) : NULL; // borrowed
    if (stock != NULL && Py_IS_TYPE(stock, (PyTypeObject *)state->asyncio_stream_writer)) {
        PyObject *writer = replace_writer(state, stock, protocol);
        PyObject *argv[] = {PyTuple_GET_ITEM(args, 0), writer};
        if (writer != NULL)
            result = PyObject_Vectorcall(callback, argv, 2, NULL);
        Py_XDECREF(writer);
    } else {
        result = PyObject_Call(callback, args, kwargs);
    }
#if PY_VERSION_HEX >= 0x030D0000
    if (result != NULL)
        result = begin_talk(state, protocol, result);
#endif
    Py_DECREF(callback);
    Py_DECREF(protocol);
    return result;
}

int plait_writer_expect(struct plait_state *state, PyObject *protocol)
{
    PyObject *waiters = PyObject_GetAttr(protocol, state->str_drain_waiters);
    if (waiters == NULL)
        PyErr_Clear(); /* an asyncio without */
    /* An empty deque keeps half a kilobyte; a list does what asyncio does with it. */
    if (waiters != NULL && !PyList_CheckExact(waiters) && PyObject_Size(waiters) == 0) {
        PyObject *list = PyList_New(0);
        int r = list == NULL ? -1 : PyObject_SetAttr(protocol, state->str_drain_waiters, list);
        Py_XDECREF(list);
        if (r < 0) {
            Py_DECREF(waiters);
            return -1;
        }
    }
    Py_XDECREF(waiters);
    PyObject *callback = PyObject_GetAttr(protocol, state->str_client_connected_cb);
    if (callback == NULL)
        return -1;
    int stock = 0;
    if (callback != Py_None && !Py_IS_TYPE(callback, state->connected_type))
        stock = plait_stream_is_stock(state->asyncio_stream_writer, state->stock_writer);
    ConnectedObject *c =
        stock == 1 ? PyObject_GC_New(ConnectedObject, state->connected_type) : NULL;
    if (c == NULL) {
        Py_DECREF(callback);
        return stock == 1 ? -1 : stock;
    }
    c->protocol = Py_NewRef(protocol);
    c->callback = callback;
    PyObject_GC_Track(c);
    int r = PyObject_SetAttr(protocol, state->str_client_connected_cb, (PyObject *)c);
    Py_DECREF(c);
    return r;
}

static int connected_traverse(PyObject *self, visitproc visit, void *arg)
{
    ConnectedObject *c = (ConnectedObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(c->protocol);
    Py_VISIT(c->callback);
    return 0;
}

static int connected_clear(PyObject *self)
{
    ConnectedObject *c = (ConnectedObject *)self;
    Py_CLEAR(c->protocol);
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
#if PY_VERSION_HEX >= 0x030D0000
    state->talk_done_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &talk_done_spec, NULL);
    if (state->talk_done_type == NULL)
        return -1;
#endif
    state->writer_type = make_writer_type(module, state->asyncio_stream_writer);
    return state->writer_type == NULL ? -1 : 0;
}
