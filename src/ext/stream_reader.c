/* stream_reader.c - asyncio.StreamReader fed in C: the buffer, its descriptors, its types.
 *
 * The state belongs to the reader. A transport that feeds it borrows it and is told when it
 * goes away: as in asyncio, data for a reader that nobody holds is dropped.
 */
#include "stream_reader.h"
#include "args.h"

#include <structmember.h>

/* ---- the buffer --------------------------------------------------------- */

Py_ssize_t plait_reader_len(ReaderState *s)
{
    if (s->chunk != NULL)
        return PyBytes_GET_SIZE(s->chunk) - s->offset;
    return s->buffer != NULL ? PyByteArray_GET_SIZE(s->buffer) : 0;
}

const char *plait_reader_data(ReaderState *s)
{
    if (s->chunk != NULL)
        return PyBytes_AS_STRING(s->chunk) + s->offset;
    return s->buffer != NULL ? PyByteArray_AS_STRING(s->buffer) : "";
}

int plait_reader_drop(ReaderState *s, Py_ssize_t n)
{
    if (s->chunk != NULL) {
        s->offset += n;
        if (s->offset == PyBytes_GET_SIZE(s->chunk))
            Py_CLEAR(s->chunk);
        return 0;
    }
    if (s->buffer == NULL)
        return 0;
    if (!s->exposed && n == PyByteArray_GET_SIZE(s->buffer)) {
        Py_CLEAR(s->buffer);
        return 0;
    }
    return PySequence_DelSlice(s->buffer, 0, n);
}

PyObject *plait_reader_take(ReaderState *s, Py_ssize_t n)
{
    if (s->chunk != NULL && s->offset == 0 && n == PyBytes_GET_SIZE(s->chunk)) {
        PyObject *whole = s->chunk;
        s->chunk = NULL;
        return whole;
    }
    PyObject *data = PyBytes_FromStringAndSize(plait_reader_data(s), n);
    if (data != NULL && plait_reader_drop(s, n) < 0)
        Py_CLEAR(data);
    return data;
}

/* Makes the bytearray the place of the data. */
static int spill(ReaderState *s)
{
    if (s->buffer == NULL) {
        s->buffer = PyByteArray_FromStringAndSize(plait_reader_data(s), plait_reader_len(s));
        if (s->buffer == NULL)
            return -1;
        Py_CLEAR(s->chunk);
    }
    return 0;
}

static int append(ReaderState *s, PyObject *bytes)
{
    if (spill(s) < 0)
        return -1;
    Py_ssize_t n = PyBytes_GET_SIZE(bytes), old = PyByteArray_GET_SIZE(s->buffer);
    if (n > PY_SSIZE_T_MAX - old) {
        PyErr_NoMemory();
        return -1;
    }
    if (PyByteArray_Resize(s->buffer, old + n) < 0)
        return -1;
    memcpy(PyByteArray_AS_STRING(s->buffer) + old, PyBytes_AS_STRING(bytes), (size_t)n);
    return 0;
}

/* ---- feeding ------------------------------------------------------------ */

/* A full ring loses its oldest, which somebody may hold for ever. */
void plait_reader_keep(LoopObject *loop, PyObject *future)
{
#ifndef Py_GIL_DISABLED /* there, a count of one says nothing about other threads */
    if (loop->core_ready && !loop->state->loop.futures_made_once &&
        Py_IS_TYPE(future, (PyTypeObject *)loop->state->stock_future)) {
        unsigned at = (loop->spare_head + loop->spare_len) % PLAIT_SPARE_FUTURES;
        PyObject *oldest = NULL;
        if (loop->spare_len == PLAIT_SPARE_FUTURES) {
            oldest = loop->spares[at];
            loop->spare_head = (loop->spare_head + 1) % PLAIT_SPARE_FUTURES;
        } else {
            loop->spare_len++;
        }
        loop->spares[at] = future;
        Py_XDECREF(oldest);
        return;
    }
#endif
    Py_DECREF(future);
}

PyObject *plait_reader_future(LoopObject *loop)
{
    struct plait_state *state = loop->state;
    PyTypeObject *type = (PyTypeObject *)state->stock_future;
    /* The oldest one has most likely been let go of by the task that it woke. Being made anew
     * is what Future.__init__ is for, until Python 3.15, where it refuses. A program's own
     * class is asked each time. */
    if (loop->spare_len == 0 || state->loop.futures_made_once ||
        Py_REFCNT(loop->spares[loop->spare_head]) != 1 ||
        !Py_IS_TYPE(loop->spares[loop->spare_head], type) ||
        PyDict_GetItemWithError(state->asyncio_futures, state->str_future) != (PyObject *)type)
        return PyErr_Occurred() ? NULL : plait_loop_future(loop);
    PyObject *kwargs = plait_loop_kwargs(loop); // borrowed
    if (PL_UNLIKELY(kwargs == NULL))
        return NULL;
    PyObject *future = loop->spares[loop->spare_head];
    loop->spares[loop->spare_head] = NULL;
    loop->spare_head = (loop->spare_head + 1) % PLAIT_SPARE_FUTURES;
    loop->spare_len--;
    if (PL_LIKELY(type->tp_init(future, state->no_args, kwargs) == 0))
        return future;
    Py_DECREF(future);
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError))
        return NULL;
    PyErr_Clear();
    state->loop.futures_made_once = true;
    return plait_loop_future(loop);
}

/* Sets the result of the waiting reader's future, unless it was cancelled. */
static int wake_reader(ReaderState *s)
{
    PyObject *waiter = s->waiter;
    if (waiter == NULL)
        return 0;
    s->waiter = NULL;
    struct plait_state *state = s->loop->state;
    PyObject *result = PyObject_CallMethodOneArg(waiter, state->str_set_result, Py_None);
    if (PL_LIKELY(result != NULL)) {
        plait_reader_keep(s->loop, waiter);
        Py_DECREF(result);
        return 0;
    }
    if (PL_UNLIKELY(result == NULL)) {
        /* Done already: cancelled is no error. Asked only now, because it is rare. */
        PyObject *type, *exc, *tb;
        PyErr_Fetch(&type, &exc, &tb);
        PyObject *cancelled = PyObject_CallMethodNoArgs(waiter, state->str_cancelled);
        if (cancelled == Py_True) {
            Py_XDECREF(type);
            Py_XDECREF(exc);
            Py_XDECREF(tb);
            result = Py_NewRef(Py_None);
        } else {
            PyErr_Restore(type, exc, tb);
        }
        Py_XDECREF(cancelled);
    }
    Py_DECREF(waiter);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int plait_reader_resume(ReaderState *s)
{
    if (!s->paused)
        return 0;
    s->paused = false;
    PyObject *transport = Py_NewRef(s->transport != NULL ? s->transport : Py_None);
    PyObject *result = PyObject_CallMethodNoArgs(transport, s->loop->state->str_resume_reading);
    Py_DECREF(transport);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int plait_reader_maybe_resume(ReaderState *s)
{
    return s->paused && plait_reader_len(s) <= s->limit ? plait_reader_resume(s) : 0;
}

/* Pauses the transport when the reader has more than twice its limit. */
static int hold_back(ReaderState *s)
{
    if (s->transport == NULL || s->paused || plait_reader_len(s) / 2 < s->limit ||
        (size_t)plait_reader_len(s) <= 2 * (size_t)s->limit)
        return 0;
    PyObject *transport = Py_NewRef(s->transport);
    PyObject *result = PyObject_CallMethodNoArgs(transport, s->loop->state->str_pause_reading);
    Py_DECREF(transport);
    if (result != NULL) {
        Py_DECREF(result);
        s->paused = true;
    } else if (PyErr_ExceptionMatches(PyExc_NotImplementedError)) {
        PyErr_Clear();
        Py_CLEAR(s->transport); /* it cannot be paused: it is not asked again */
    } else {
        return -1;
    }
    return 0;
}

int plait_reader_feed(ReaderState *s, PyObject *bytes)
{
    if (PL_UNLIKELY(s->eof)) {
        PyErr_SetString(PyExc_AssertionError, "feed_data after feed_eof");
        return -1;
    }
    if (PyBytes_GET_SIZE(bytes) == 0)
        return 0;
    Py_INCREF(s);
    int r = 0;
    if (PL_LIKELY(s->chunk == NULL && s->buffer == NULL)) {
        s->chunk = Py_NewRef(bytes);
        s->offset = 0;
    } else {
        r = append(s, bytes);
    }
    if (r == 0)
        r = wake_reader(s);
    if (r == 0)
        r = hold_back(s);
    Py_DECREF(s);
    return r;
}

/* ---- the state of a reader ---------------------------------------------- */

/* Behind what the base class has, in readers that were made for a connection. */
static PyObject *own_state(struct plait_state *state, PyObject *reader)
{
    char *end = (char *)reader + state->own_reader_type->tp_basicsize;
    return *(PyObject **)(void *)(end - sizeof(PyObject *));
}

ReaderState *plait_reader_state(struct plait_state *state, PyObject *reader)
{
    if (PL_LIKELY(Py_IS_TYPE(reader, state->own_reader_type))) {
        PyObject *own = own_state(state, reader);
        bool whole = own != NULL && Py_IS_TYPE(own, state->reader_state_type);
        return whole ? (ReaderState *)own : NULL;
    }
    if (!PyObject_TypeCheck(reader, (PyTypeObject *)state->reader_type))
        return NULL;
    PyObject *dict = plait_stream_dict(reader);
    PyObject *found = dict == NULL ? NULL : PyDict_GetItemWithError(dict, state->str_state);
    Py_XDECREF(dict); /* the reader has it still */
    if (found == NULL || !Py_IS_TYPE(found, state->reader_state_type)) {
        PyErr_Clear();
        return NULL;
    }
    return (ReaderState *)found;
}

/* For methods: the state of self, borrowed; NULL with an exception set when it is gone. */
static ReaderState *state_of(PyObject *self)
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    ReaderState *s = state == NULL ? NULL : plait_reader_state(state, self);
    if (s == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_AttributeError, "the stream reader has lost its state");
    return s;
}

/* The fields that move from the reader's dict into the state, and back. `text` is also the
 * name of the descriptor. */
enum field { LIMIT, BUFFER, EOF_READ, WAITER, EXCEPTION, TRANSPORT, PAUSED, FIELDS };

static const char *const field_names[FIELDS] = {
    "_limit", "_buffer", "_eof", "_waiter", "_exception", "_transport", "_paused",
};

static PyObject *get_field(ReaderState *s, enum field field)
{
    PyObject *value = Py_None;
    switch (field) {
    case LIMIT:
        return PyLong_FromSsize_t(s->limit);
    case BUFFER:
        /* Whoever asks may keep it, and change it. */
        if (spill(s) < 0)
            return NULL;
        s->exposed = true;
        value = s->buffer;
        break;
    case EOF_READ:
        value = s->eof ? Py_True : Py_False;
        break;
    case WAITER:
        value = s->waiter;
        break;
    case EXCEPTION:
        value = s->exception;
        break;
    case TRANSPORT:
        value = s->transport;
        break;
    case PAUSED:
        value = s->paused ? Py_True : Py_False;
        break;
    case FIELDS:
        break;
    }
    return Py_NewRef(value != NULL ? value : Py_None);
}

static int set_object(PyObject **place, PyObject *value)
{
    PyObject *old = *place;
    *place = value == Py_None ? NULL : Py_NewRef(value);
    Py_XDECREF(old);
    return 0;
}

static int set_field(ReaderState *s, enum field field, PyObject *value)
{
    int truth;
    switch (field) {
    case LIMIT: {
        Py_ssize_t limit = PyLong_AsSsize_t(value);
        if (limit == -1 && PyErr_Occurred())
            return -1;
        s->limit = limit;
        return 0;
    }
    case BUFFER:
        if (!PyByteArray_CheckExact(value)) {
            PyErr_Format(PyExc_TypeError, "_buffer must be a bytearray, not %R",
                         (PyObject *)Py_TYPE(value));
            return -1;
        }
        Py_CLEAR(s->chunk);
        s->exposed = PyByteArray_GET_SIZE(value) > 0;
        return set_object(&s->buffer, s->exposed ? value : Py_None);
    case WAITER:
        return set_object(&s->waiter, value);
    case EXCEPTION:
        return set_object(&s->exception, value);
    case TRANSPORT:
        return set_object(&s->transport, value);
    case EOF_READ:
    case PAUSED:
        truth = PyObject_IsTrue(value);
        if (truth < 0)
            return -1;
        *(field == PAUSED ? &s->paused : &s->eof) = truth;
        return 0;
    case FIELDS:
        break;
    }
    return 0;
}

static PyObject *get_descriptor(PyObject *self, void *closure)
{
    ReaderState *s = state_of(self);
    return s == NULL ? NULL : get_field(s, (enum field)(intptr_t)closure);
}

static int set_descriptor(PyObject *self, PyObject *value, void *closure)
{
    ReaderState *s = state_of(self);
    if (s == NULL)
        return -1;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a stream reader cannot go without this");
        return -1;
    }
    return set_field(s, (enum field)(intptr_t)closure, value);
}

int plait_reader_move_fields(PyObject *dict, ReaderState *s)
{
    struct plait_state *state = s->loop->state;
    Py_ssize_t known = PyDict_GetItemWithError(dict, state->str_source_traceback) != NULL;
    if (PyDict_GetItemWithError(dict, state->str_private_loop) != (PyObject *)s->loop)
        return PyErr_Occurred() ? -1 : 0;
    for (int i = 0; i < FIELDS; i++) {
        PyObject *value = PyDict_GetItemString(dict, field_names[i]); // borrowed
        if (value == NULL || (i == LIMIT && !PyLong_CheckExact(value)))
            return 0;
        if (set_field(s, (enum field)i, value) < 0) {
            PyErr_Clear(); /* of an unusual type */
            return 0;
        }
    }
    return PyDict_GET_SIZE(dict) == FIELDS + 1 + known;
}

/* ---- methods ------------------------------------------------------------ */

PyDoc_STRVAR(feed_data_doc, "feed_data($self, data)\n--\n\n"
                            "Add data to the buffer and wake the reader that waits for it.");

static PyObject *reader_feed_data(PyObject *self, PyObject *data)
{
    ReaderState *s = state_of(self);
    if (s == NULL)
        return NULL;
    PyObject *bytes = PyBytes_FromObject(data);
    int r = bytes == NULL ? -1 : plait_reader_feed(s, bytes);
    Py_XDECREF(bytes);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(at_eof_doc, "at_eof($self, /)\n--\n\n"
                         "Tell whether the stream has ended and nothing is buffered.");

static PyObject *reader_at_eof(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ReaderState *s = state_of(self);
    return s == NULL ? NULL : PyBool_FromLong(s->eof && plait_reader_len(s) == 0);
}

PyDoc_STRVAR(exception_doc, "exception($self, /)\n--\n\n"
                            "Return the exception that ended the stream, or None.");

static PyObject *reader_exception(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ReaderState *s = state_of(self);
    return s == NULL ? NULL : get_field(s, EXCEPTION);
}

PyDoc_STRVAR(read_doc, "read($self, n=-1)\n--\n\n"
                       "Read up to n bytes, at least one unless at the end; all when n is -1.");
PyDoc_STRVAR(readexactly_doc, "readexactly($self, n)\n--\n\n"
                              "Read n bytes, or raise IncompleteReadError at the end.");
PyDoc_STRVAR(readuntil_doc, "readuntil($self, separator=b'\\n')\n--\n\n"
                            "Read up to and including the separator.");
PyDoc_STRVAR(readline_doc, "readline($self, /)\n--\n\n"
                           "Read a line with its newline, or what is left at the end.");

/* Their parameters may be given by name, as asyncio's. */
static PyObject *reader_feed_data_named(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                        PyObject *kwnames)
{
    return plait_args_one(reader_feed_data, self, "feed_data", "data", args, nargs, kwnames);
}

#define FAST(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef reader_methods[] = {
    {"feed_data", FAST(reader_feed_data_named), METH_FASTCALL | METH_KEYWORDS, feed_data_doc},
    {"at_eof", reader_at_eof, METH_NOARGS, at_eof_doc},
    {"exception", reader_exception, METH_NOARGS, exception_doc},
    {"read", FAST(plait_reader_read), METH_FASTCALL | METH_KEYWORDS, read_doc},
    {"readexactly", FAST(plait_reader_readexactly), METH_FASTCALL | METH_KEYWORDS, readexactly_doc},
    {"readuntil", FAST(plait_reader_readuntil), METH_FASTCALL | METH_KEYWORDS, readuntil_doc},
    {"readline", plait_reader_readline, METH_NOARGS, readline_doc},
    {"__anext__", plait_reader_anext, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* Debuggers and `is` see the class that the program has named. */
static PyObject *get_class(PyObject *self, void *Py_UNUSED(closure))
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    return state == NULL ? NULL : Py_NewRef(state->asyncio_stream_reader);
}

#define FIELD(name, field)                                                                         \
    {                                                                                              \
        name, get_descriptor, set_descriptor, NULL, (void *)(intptr_t)(field)                      \
    }

static PyObject *get_loop(PyObject *self, void *Py_UNUSED(closure))
{
    ReaderState *s = state_of(self);
    return s == NULL ? NULL : Py_NewRef((PyObject *)s->loop);
}

/* The first is for readers that were made for a connection: others have it in their dict. */
static PyGetSetDef reader_getset[] = {
    {"_loop", get_loop, NULL, NULL, NULL},
    {"__class__", get_class, NULL, NULL, NULL},
    FIELD("_limit", LIMIT),
    FIELD("_buffer", BUFFER),
    FIELD("_eof", EOF_READ),
    FIELD("_waiter", WAITER),
    FIELD("_exception", EXCEPTION),
    FIELD("_transport", TRANSPORT),
    FIELD("_paused", PAUSED),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_methods, reader_methods},
    {Py_tp_getset, &reader_getset[1]},
    {Py_am_anext, (void *)plait_reader_anext_slot},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "asyncio.streams.StreamReader",
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = reader_slots,
};

static PyTypeObject *make_own_type(PyObject *module, PyObject *base)
{
    const Py_ssize_t at = ((PyTypeObject *)base)->tp_basicsize;
    PyMemberDef members[] = {
        {"_plait_state", T_OBJECT_EX, at, 0, NULL},
        {NULL, 0, 0, 0, NULL},
    };
    PyType_Slot slots[] = {
        {Py_tp_methods, reader_methods},
        {Py_tp_getset, reader_getset},
        {Py_tp_members, members},
        {Py_am_anext, (void *)plait_reader_anext_slot},
        {0, NULL},
    };
    PyType_Spec spec = {
        .name = "asyncio.streams.StreamReader",
        .basicsize = (int)(at + (Py_ssize_t)sizeof(PyObject *)),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
        .slots = slots,
    };
    return (PyTypeObject *)plait_stream_subclass(module, &spec, base);
}

/* ---- the state's type --------------------------------------------------- */

static int reader_state_traverse(PyObject *self, visitproc visit, void *arg)
{
    ReaderState *s = (ReaderState *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(s->loop);
    Py_VISIT(s->waiter);
    Py_VISIT(s->exception);
    Py_VISIT(s->transport);
    return 0;
}

static int reader_state_clear(PyObject *self)
{
    ReaderState *s = (ReaderState *)self;
    Py_CLEAR(s->waiter);
    Py_CLEAR(s->exception);
    Py_CLEAR(s->transport);
    return 0;
}

static void reader_state_dealloc(PyObject *self)
{
    ReaderState *s = (ReaderState *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (s->link != NULL)
        *s->link = NULL;
    (void)reader_state_clear(self);
    Py_CLEAR(s->chunk);
    Py_CLEAR(s->buffer);
    Py_CLEAR(s->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot reader_state_slots[] = {
    {Py_tp_doc, (void *)"What a stream reader holds; made by the loop."},
    {Py_tp_dealloc, reader_state_dealloc},
    {Py_tp_traverse, reader_state_traverse},
    {Py_tp_clear, reader_state_clear},
    {0, NULL},
};

static PyType_Spec reader_state_spec = {
    .name = "plait._core.ReaderState",
    .basicsize = sizeof(ReaderState),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = reader_state_slots,
};

static int import_classes(struct plait_state *state)
{
    static const struct {
        size_t offset;
        const char *name;
    } classes[] = {
        {offsetof(struct plait_state, asyncio_stream_reader), "StreamReader"},
        {offsetof(struct plait_state, asyncio_stream_writer), "StreamWriter"},
        {offsetof(struct plait_state, asyncio_stream_protocol), "StreamReaderProtocol"},
        {offsetof(struct plait_state, asyncio_iscoroutine), "iscoroutine"},
        {offsetof(struct plait_state, asyncio_limit_overrun), "LimitOverrunError"},
        {offsetof(struct plait_state, asyncio_incomplete_read), "IncompleteReadError"},
    };
    PyObject *types = PyImport_ImportModule("_asyncio");
    state->stock_future = types == NULL ? NULL : PyObject_GetAttrString(types, "Future");
    Py_XDECREF(types);
    if (state->stock_future == NULL)
        return -1;
    PyObject *weakref = PyImport_ImportModule("weakref");
    state->getweakrefcount =
        weakref == NULL ? NULL : PyObject_GetAttrString(weakref, "getweakrefcount");
    Py_XDECREF(weakref);
    if (state->getweakrefcount == NULL)
        return -1;
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    for (size_t i = 0; asyncio != NULL && i < PL_ARRAY_LEN(classes); i++) {
        PyObject **place = (PyObject **)(void *)((char *)state + classes[i].offset);
        *place = PyObject_GetAttrString(asyncio, classes[i].name);
        if (*place == NULL)
            Py_CLEAR(asyncio);
    }
    Py_XDECREF(asyncio);
    return asyncio == NULL ? -1 : 0;
}

static int make_names(struct plait_state *state)
{
    static const struct {
        size_t offset;
        const char *text;
    } names[] = {
#define NAME(field, text) {offsetof(struct plait_state, field), text}
        NAME(str_blocking, "_asyncio_future_blocking"),
        NAME(str_cancelled, "cancelled"),
        NAME(str_class, "__class__"),
        NAME(str_client_connected_cb, "_client_connected_cb"),
        NAME(str_protocol_lost, "_connection_lost"),
        NAME(str_drain_waiters, "_drain_waiters"),
        NAME(str_is_closing, "is_closing"),
        NAME(str_pause_reading, "pause_reading"),
        NAME(str_resume_reading, "resume_reading"),
        NAME(str_paused, "_paused"),
        NAME(str_private_loop, "_loop"),
        NAME(str_private_protocol, "_protocol"),
        NAME(str_private_reader, "_reader"),
        NAME(str_private_transport, "_transport"),
        NAME(str_reader_wr, "_stream_reader_wr"),
        NAME(str_source_traceback, "_source_traceback"),
        NAME(str_state, "_plait_state"),
        NAME(str_stream_writer, "_stream_writer"),
        NAME(str_strong_reader, "_strong_reader"),
        NAME(str_private_task, "_task"),
        NAME(str_write, "write"),
#undef NAME
    };
    for (size_t i = 0; i < PL_ARRAY_LEN(names); i++) {
        PyObject **place = (PyObject **)(void *)((char *)state + names[i].offset);
        *place = PyUnicode_InternFromString(names[i].text);
        if (*place == NULL)
            return -1;
    }
    state->newline = PyBytes_FromStringAndSize("\n", 1);
    state->no_args = PyTuple_New(0);
    state->kw_context = Py_BuildValue("(s)", "context");
    return state->newline == NULL || state->no_args == NULL || state->kw_context == NULL ? -1 : 0;
}

int plait_stream_exec(PyObject *module, struct plait_state *state)
{
    static const char *const of_reader[] = {
        "read",
        "readexactly",
        "readuntil",
        "readline",
        "__anext__",
        "feed_eof",
        "feed_data",
        "at_eof",
        "exception",
        "set_exception",
        "__aiter__",
        "_wait_for_data",
        "_wakeup_waiter",
        "_maybe_resume_transport",
        NULL,
    };
    static const char *const of_protocol[] = {"data_received", "connection_made", NULL};

    if (import_classes(state) < 0 || make_names(state) < 0)
        return -1;
    state->stock_reader = plait_stream_stock(state->asyncio_stream_reader, of_reader);
    state->stock_protocol = plait_stream_stock(state->asyncio_stream_protocol, of_protocol);
    if (state->stock_reader == NULL || state->stock_protocol == NULL)
        return -1;
    state->reader_state_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &reader_state_spec, NULL);
    if (state->reader_state_type == NULL)
        return -1;
    state->reader_type = plait_stream_subclass(module, &reader_spec, state->asyncio_stream_reader);
    if (state->reader_type == NULL)
        return -1;
    state->own_reader_type = make_own_type(module, state->asyncio_stream_reader);
    if (state->own_reader_type == NULL)
        return -1;
    return plait_read_op_type(module, state) < 0 ? -1 : plait_writer_types(module, state);
}
