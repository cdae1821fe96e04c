/* tls_transport.c - plait._core.SSLTransport: the methods that programs call, and the type. */
#include "args.h"
#include "tls.h"

#include "transport.h"

#include <structmember.h>

#define LOG_LOST_WRITES 5
#define MAX_RECORD 16384

/* ---- writing ------------------------------------------------------------ */

static int count_lost_write(TLSObject *t)
{
    if (t->lost_writes >= LOG_LOST_WRITES) {
        PyObject *r =
            PyObject_CallMethod(t->loop->state->logger, "warning", "s", "SSL connection is closed");
        if (r == NULL)
            return -1;
        Py_DECREF(r);
    }
    t->lost_writes++;
    return 0;
}

static bool takes_writes(TLSObject *t)
{
    return t->state == TLS_OPEN || t->state == TLS_HANDSHAKE;
}

/* A bytes object with the data; what is not bytes is copied, because its owner may change it. */
static PyObject *as_bytes(PyObject *data)
{
    if (PL_LIKELY(PyBytes_CheckExact(data)))
        return Py_NewRef(data);
    if (PyBytes_Check(data) || PyByteArray_Check(data) || PyMemoryView_Check(data))
        return PyBytes_FromObject(data);
    return PyErr_Format(PyExc_TypeError, "data: expecting a bytes-like instance, got %s",
                        Py_TYPE(data)->tp_name);
}

/* One record that the engine takes at once, when nothing waits before it. 1 when it did, 0 when
 * it is to be queued, -1 with an exception set. */
static int write_at_once(TLSObject *t, PyObject *bytes)
{
    if (t->state != TLS_OPEN || t->backlog != NULL || t->raw_paused ||
        PyBytes_GET_SIZE(bytes) > MAX_RECORD)
        return 0;
    PyObject *result = plait_tls_encrypt(t, bytes);
    if (PL_UNLIKELY(result == NULL))
        return plait_tls_is_again(t) ? 0 : -1;
    Py_ssize_t n = PyLong_AsSsize_t(result);
    Py_DECREF(result);
    if (n != PyBytes_GET_SIZE(bytes)) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_RuntimeError, "the ssl object wrote %zd of %zd bytes", n,
                         PyBytes_GET_SIZE(bytes));
        return -1;
    }
    return plait_tls_process_outgoing(t) < 0 ? -1 : 1;
}

/* Takes over what pieces hold: n bytes objects. */
static int write_pieces(TLSObject *t, PyObject *const *pieces, Py_ssize_t n)
{
    int r = 0;
    if (n == 1)
        r = write_at_once(t, pieces[0]);
    if (r == 0) {
        for (Py_ssize_t i = 0; i < n && r == 0; i++)
            r = PyBytes_GET_SIZE(pieces[i]) > 0 ? plait_tls_push(t, pieces[i]) : 0;
        if (r == 0 && t->state == TLS_OPEN)
            r = plait_tls_do_write(t, false);
        /* What was held back counts as well. */
        if (r == 0 && t->raw_paused)
            plait_tls_control_writing(t);
    }
    return r < 0 ? plait_tls_fatal(t, "Fatal error on SSL protocol") : 0;
}

PyDoc_STRVAR(write_doc, "write($self, data)\n--\n\n"
                        "Encrypt and send data without waiting.\n\n"
                        "Args:\n"
                        "    data (bytes | bytearray | memoryview): what to send; may be\n"
                        "        changed by the caller afterwards.\n\n"
                        "Raises:\n"
                        "    TypeError: data is not bytes-like.");

static PyObject *tls_write(PyObject *self, PyObject *data)
{
    TLSObject *t = (TLSObject *)self;
    PyObject *bytes = as_bytes(data);
    if (bytes == NULL)
        return NULL;
    int r = 0;
    if (PyBytes_GET_SIZE(bytes) > 0)
        r = takes_writes(t) ? write_pieces(t, &bytes, 1) : count_lost_write(t);
    Py_DECREF(bytes);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(writelines_doc, "writelines($self, list_of_data)\n--\n\n"
                             "Encrypt and send several pieces of data, in order.");

static PyObject *tls_writelines(PyObject *self, PyObject *pieces)
{
    TLSObject *t = (TLSObject *)self;
    PyObject *list = PySequence_List(pieces);
    if (list == NULL)
        return NULL;
    int r = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list) && r == 0; i++) {
        PyObject *bytes = as_bytes(PyList_GET_ITEM(list, i));
        r = bytes == NULL ? -1 : PyList_SetItem(list, i, bytes);
    }
    if (r == 0)
        r = takes_writes(t)
                ? write_pieces(t, ((PyListObject *)list)->ob_item, PyList_GET_SIZE(list))
                : count_lost_write(t);
    Py_DECREF(list);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(write_eof_doc, "write_eof($self, /)\n--\n\n"
                            "Raise NotImplementedError: TLS has no half-close.");

static PyObject *tls_write_eof(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    PyErr_SetNone(PyExc_NotImplementedError);
    return NULL;
}

PyDoc_STRVAR(can_write_eof_doc, "can_write_eof($self, /)\n--\n\nReturn False.");

static PyObject *tls_can_write_eof(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_FALSE;
}

/* ---- the end ------------------------------------------------------------ */

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\n"
                        "Stop reading, send what is written, shut TLS down, then close.");

static PyObject *tls_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    if (!t->closed) {
        t->closed = true;
        plait_tls_start_shutdown(t);
    } else {
        t->released = true;
        plait_tls_release(t);
    }
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(abort_doc, "abort($self, /)\n--\n\nClose at once; what is not sent yet is dropped.");

static PyObject *tls_abort(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    plait_tls_force_close((TLSObject *)self, NULL);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(force_close_doc, "_force_close($self, exc, /)\n--\n\n"
                              "Close at once, with an exception for connection_lost.");

static PyObject *tls_force_close(PyObject *self, PyObject *exc)
{
    plait_tls_force_close((TLSObject *)self, exc == Py_None ? NULL : exc);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(is_closing_doc, "is_closing($self, /)\n--\n\nTell whether it is closing or closed.");

static PyObject *tls_is_closing(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    if (t->closed || t->raw == NULL)
        return PyBool_FromLong(t->closed);
    if (t->raw_ours)
        return PyBool_FromLong(((TransportObject *)t->raw)->closing);
    return PyObject_CallMethodNoArgs(t->raw, t->loop->state->str_is_closing);
}

/* ---- reading ------------------------------------------------------------ */

PyDoc_STRVAR(is_reading_doc, "is_reading($self, /)\n--\n\nTell whether it gives data.");

static PyObject *tls_is_reading(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(!((TLSObject *)self)->reading_paused);
}

PyDoc_STRVAR(pause_reading_doc, "pause_reading($self, /)\n--\n\n"
                                "Give nothing until resume_reading.");

static PyObject *tls_pause_reading(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ((TLSObject *)self)->reading_paused = true;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(resume_reading_doc, "resume_reading($self, /)\n--\n\nGive what arrives again.");

static PyObject *tls_resume_reading(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    if (!t->reading_paused)
        Py_RETURN_NONE;
    t->reading_paused = false;
    return plait_tls_call_soon(t, "_read_on") < 0 ? NULL : Py_NewRef(Py_None);
}

int plait_tls_set_protocol(TLSObject *t, PyObject *protocol)
{
    int buffered = PyObject_IsInstance(protocol, t->loop->state->asyncio_buffered_protocol);
    if (buffered < 0)
        return -1;
    Py_XSETREF(t->protocol, Py_NewRef(protocol));
    t->buffered = buffered;
    if (t->app_state == TLS_APP_MADE && t->state != TLS_UNWRAPPED)
        plait_reader_link(t->loop, protocol, &t->feed);
    else
        plait_reader_unlink(&t->feed);
    return 0;
}

PyDoc_STRVAR(set_protocol_doc, "set_protocol($self, protocol)\n--\n\n"
                               "Give what arrives from now on to another protocol.");

static PyObject *tls_set_protocol(PyObject *self, PyObject *protocol)
{
    return plait_tls_set_protocol((TLSObject *)self, protocol) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(get_protocol_doc, "get_protocol($self, /)\n--\n\nReturn the protocol.");

static PyObject *tls_get_protocol(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    return Py_NewRef(t->protocol != NULL ? t->protocol : Py_None);
}

/* ---- flow control ------------------------------------------------------- */

#define WRITE_HIGH ((size_t)512 << 10)
#define READ_HIGH ((size_t)256 << 10)

/* Sets two marks as asyncio documents them. 0, or -1 with an exception set. */
static int set_marks(PyObject *args, PyObject *kwargs, const char *format, size_t usual,
                     size_t *high_place, size_t *low_place)
{
    static char *names[] = {"high", "low", NULL};
    PyObject *high = Py_None, *low = Py_None;
    Py_ssize_t h = (Py_ssize_t)usual, l = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &high, &low))
        return -1;
    if (high != Py_None && (h = PyNumber_AsSsize_t(high, NULL)) == -1 && PyErr_Occurred())
        return -1;
    if (low != Py_None && (l = PyNumber_AsSsize_t(low, NULL)) == -1 && PyErr_Occurred())
        return -1;
    if (high == Py_None && low != Py_None)
        h = l > PY_SSIZE_T_MAX / 4 ? PY_SSIZE_T_MAX : 4 * l;
    if (low == Py_None)
        l = h / 4;
    if (!(h >= l && l >= 0)) {
        PyErr_Format(PyExc_ValueError, "high (%zd) must be >= low (%zd) must be >= 0", h, l);
        return -1;
    }
    *high_place = (size_t)h;
    *low_place = (size_t)l;
    return 0;
}

PyDoc_STRVAR(set_write_limits_doc,
             "set_write_buffer_limits($self, /, high=None, low=None)\n--\n\n"
             "Set the marks of flow control for writing.\n\n"
             "Args:\n"
             "    high (int | None): pause_writing is called at this many bytes; four times\n"
             "        low, or 512 KiB, when None.\n"
             "    low (int | None): resume_writing is called at or below; a quarter of high\n"
             "        when None.\n\n"
             "Raises:\n"
             "    ValueError: not high >= low >= 0.");

static PyObject *tls_set_write_limits(PyObject *self, PyObject *args, PyObject *kwargs)
{
    TLSObject *t = (TLSObject *)self;
    if (set_marks(args, kwargs, "|OO:set_write_buffer_limits", WRITE_HIGH, &t->write_high,
                  &t->write_low) < 0)
        return NULL;
    plait_tls_control_writing(t);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_read_limits_doc,
             "set_read_buffer_limits($self, /, high=None, low=None)\n--\n\n"
             "Set the marks of flow control for reading, in bytes of ciphertext that wait.");

static PyObject *tls_set_read_limits(PyObject *self, PyObject *args, PyObject *kwargs)
{
    TLSObject *t = (TLSObject *)self;
    if (set_marks(args, kwargs, "|OO:set_read_buffer_limits", READ_HIGH, &t->read_high,
                  &t->read_low) < 0)
        return NULL;
    return plait_tls_control_reading(t) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *tls_get_write_limits(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    return Py_BuildValue("(nn)", (Py_ssize_t)t->write_low, (Py_ssize_t)t->write_high);
}

static PyObject *tls_get_read_limits(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    return Py_BuildValue("(nn)", (Py_ssize_t)t->read_low, (Py_ssize_t)t->read_high);
}

static PyObject *tls_get_write_size(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(plait_tls_write_size((TLSObject *)self));
}

static PyObject *tls_get_read_size(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyObject_GetAttr(((TLSObject *)self)->incoming,
                            ((TLSObject *)self)->loop->state->str_pending);
}

/* ---- what is known ------------------------------------------------------ */

PyDoc_STRVAR(get_extra_info_doc,
             "get_extra_info($self, name, default=None)\n--\n\n"
             "Return what is known about the connection: sslcontext, ssl_object, peercert,\n"
             "cipher, compression, and what the transport below knows.");

static PyObject *tls_get_extra_info(PyObject *self, PyObject *args, PyObject *kwargs)
{
    TLSObject *t = (TLSObject *)self;
    static char *names[] = {"name", "default", NULL};
    PyObject *name, *fallback = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:get_extra_info", names, &name, &fallback))
        return NULL;
    PyObject *value = PyDict_GetItemWithError(t->extra, name); // borrowed
    if (value != NULL)
        return Py_NewRef(value);
    if (PyErr_Occurred())
        return NULL;
    if (t->raw == NULL)
        return Py_NewRef(fallback);
    return PyObject_CallMethod(t->raw, "get_extra_info", "OO", name, fallback);
}

static PyObject *tls_repr(PyObject *self)
{
    static const char *const states[] = {"unwrapped", "handshake", "open", "flushing", "shutdown"};
    TLSObject *t = (TLSObject *)self;
    return PyUnicode_FromFormat("<plait.SSLTransport%s %s on %R>", t->closed ? " closing" : "",
                                states[t->state], t->raw != NULL ? t->raw : Py_None);
}

/* ---- the type ----------------------------------------------------------- */

PyDoc_STRVAR(tls_doc,
             "SSLTransport(loop, protocol, sslcontext, waiter, server_side, server_hostname,\n"
             "             call_connection_made, handshake_timeout, shutdown_timeout)\n--\n\n"
             "TLS over another transport, whose protocol it is to be made.");

static int make_engine(TLSObject *t, PyObject *context, int server_side, PyObject *hostname)
{
    struct plait_state *state = t->loop->state;
    t->incoming = PyObject_CallNoArgs(state->ssl_memory_bio);
    t->outgoing = PyObject_CallNoArgs(state->ssl_memory_bio);
    if (t->incoming == NULL || t->outgoing == NULL)
        return -1;
    PyObject *wrap = PyObject_GetAttrString(context, "wrap_bio");
    PyObject *args = wrap == NULL ? NULL : PyTuple_Pack(2, t->incoming, t->outgoing);
    PyObject *kwargs =
        args == NULL ? NULL
                     : Py_BuildValue("{s:O, s:O}", "server_side", server_side ? Py_True : Py_False,
                                     "server_hostname", hostname);
    if (kwargs != NULL)
        t->ssl_object = PyObject_Call(wrap, args, kwargs);
    Py_XDECREF(wrap);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    if (t->ssl_object == NULL)
        return -1;
    /* The interpreter's own class adds a Python frame to each call of the engine within. */
    t->stock = Py_IS_TYPE(t->ssl_object, (PyTypeObject *)state->ssl_object_type);
    t->engine =
        t->stock ? PyObject_GetAttrString(t->ssl_object, "_sslobj") : Py_NewRef(t->ssl_object);
    if (t->engine == NULL)
        return -1;
    t->stock = t->stock && Py_IS_TYPE(t->engine, (PyTypeObject *)state->ssl_engine_type);
    t->read = PyObject_GetAttr(t->engine, state->str_read);
    return t->read == NULL ? -1 : 0;
}

static PyObject *tls_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop",
                            "protocol",
                            "sslcontext",
                            "waiter",
                            "server_side",
                            "server_hostname",
                            "call_connection_made",
                            "handshake_timeout",
                            "shutdown_timeout",
                            NULL};
    struct plait_state *state = plait_state_of_type(type);
    PyObject *loop, *protocol, *context, *waiter, *hostname;
    int server_side, call_made;
    double handshake_timeout, shutdown_timeout;
    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOOpOpdd:SSLTransport", names,
                                     state->loop_type, &loop, &protocol, &context, &waiter,
                                     &server_side, &hostname, &call_made, &handshake_timeout,
                                     &shutdown_timeout) ||
        plait_tls_load(state) < 0)
        return NULL;
    TLSObject *t = (TLSObject *)type->tp_alloc(type, 0);
    if (t == NULL)
        return NULL;
    t->closed = true; /* until it is whole: no warning when it is dropped */
    t->loop = (LoopObject *)Py_NewRef(loop);
    t->write_high = WRITE_HIGH;
    t->write_low = WRITE_HIGH / 4;
    t->read_high = READ_HIGH;
    t->read_low = READ_HIGH / 4;
    t->handshake_timeout = handshake_timeout;
    t->shutdown_timeout = shutdown_timeout;
    t->app_state = call_made ? TLS_APP_INIT : TLS_APP_MADE;
    t->waiter = waiter == Py_None ? NULL : Py_NewRef(waiter);
    t->extra = Py_BuildValue("{s:O}", "sslcontext", context);
    if (t->extra == NULL || make_engine(t, context, server_side, hostname) < 0 ||
        plait_tls_set_protocol(t, protocol) < 0) {
        Py_DECREF(t);
        return NULL;
    }
    t->closed = false;
    return (PyObject *)t;
}

/* All is done; the base class's takes other arguments. */
static int tls_init(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args),
                    PyObject *Py_UNUSED(kwargs))
{
    return 0;
}

static int tls_traverse(PyObject *self, visitproc visit, void *arg)
{
    TLSObject *t = (TLSObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(t->extra);
    Py_VISIT(t->loop);
#define X(name) Py_VISIT(t->name);
    PLAIT_TLS_FIELDS(X)
#undef X
    return 0;
}

/* What keeps others alive. The engine and the BIOs keep nobody, and stay: methods of a cleared
 * husk use them. */
static int tls_clear(PyObject *self)
{
    TLSObject *t = (TLSObject *)self;
    plait_reader_unlink(&t->feed);
    t->state = TLS_UNWRAPPED;
    t->raw_ours = false;
    Py_CLEAR(t->raw);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->waiter);
    Py_CLEAR(t->timer);
    Py_CLEAR(t->backlog);
    if (t->extra != NULL)
        PyDict_Clear(t->extra);
    return 0;
}

static void tls_finalize(PyObject *self)
{
    TLSObject *t = (TLSObject *)self;
    if (t->closed)
        return;
    t->closed = true;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    if (PyErr_ResourceWarning(self, 1, "unclosed transport %R", self) < 0)
        PyErr_WriteUnraisable(self);
    PyErr_Restore(type, exc, tb);
}

static void tls_dealloc(PyObject *self)
{
    TLSObject *t = (TLSObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (!plait_transport_dies(self, t->weaklist))
        return;
    (void)tls_clear(self);
    Py_CLEAR(t->extra);
#define X(name) Py_CLEAR(t->name);
    PLAIT_TLS_FIELDS(X)
#undef X
    Py_CLEAR(t->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *get_compatible(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    Py_RETURN_TRUE;
}

static PyObject *get_sendfile_compatible(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(((TLSObject *)self)->loop->state->asyncio_sendfile_fallback);
}

static PyObject *get_loop(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef((PyObject *)((TLSObject *)self)->loop);
}

/* The protocol half has no object of its own; programs reach for it by this name. */
static PyObject *get_self(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self);
}

static PyObject *get_raw(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *raw = ((TLSObject *)self)->raw;
    return Py_NewRef(raw != NULL ? raw : Py_None);
}

static PyGetSetDef tls_getset[] = {
    {"_loop", get_loop, NULL, "The loop.", NULL},
    {"_ssl_protocol", get_self, NULL, "The protocol half: itself.", NULL},
    {"_app_transport", get_self, NULL, "The transport half: itself.", NULL},
    {"_transport", get_raw, NULL, "The transport below, or None.", NULL},
    {"_start_tls_compatible", get_compatible, NULL, "start_tls works on it.", NULL},
    {"_sendfile_compatible", get_sendfile_compatible, NULL, "How sendfile works on it.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef tls_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(TLSObject, weaklist), READONLY, NULL},
    {"_closed", T_BOOL, offsetof(TLSObject, closed), READONLY, "Whether it closes."},
    {"_protocol_paused", T_BOOL, offsetof(TLSObject, app_paused), READONLY,
     "Whether the protocol was told to pause writing."},
    {"_app_reading_paused", T_BOOL, offsetof(TLSObject, reading_paused), READONLY,
     "Whether reading is paused."},
    {"_sslobj", T_OBJECT, offsetof(TLSObject, ssl_object), READONLY, "The ssl.SSLObject."},
    {NULL, 0, 0, 0, NULL},
};

/* Their parameters may be given by name, as asyncio's. */
static PyObject *tls_write_named(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    return plait_args_one(tls_write, self, "write", "data", args, nargs, kwnames);
}

static PyObject *tls_writelines_named(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                      PyObject *kwnames)
{
    return plait_args_one(tls_writelines, self, "writelines", "list_of_data", args, nargs, kwnames);
}

static PyObject *tls_set_protocol_named(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                        PyObject *kwnames)
{
    return plait_args_one(tls_set_protocol, self, "set_protocol", "protocol", args, nargs, kwnames);
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef tls_methods[] = {
    {"write", KEYWORDS(tls_write_named), METH_FASTCALL | METH_KEYWORDS, write_doc},
    {"writelines", KEYWORDS(tls_writelines_named), METH_FASTCALL | METH_KEYWORDS, writelines_doc},
    {"write_eof", tls_write_eof, METH_NOARGS, write_eof_doc},
    {"can_write_eof", tls_can_write_eof, METH_NOARGS, can_write_eof_doc},
    {"close", tls_close, METH_NOARGS, close_doc},
    {"abort", tls_abort, METH_NOARGS, abort_doc},
    {"_force_close", tls_force_close, METH_O, force_close_doc},
    {"is_closing", tls_is_closing, METH_NOARGS, is_closing_doc},
    {"is_reading", tls_is_reading, METH_NOARGS, is_reading_doc},
    {"pause_reading", tls_pause_reading, METH_NOARGS, pause_reading_doc},
    {"resume_reading", tls_resume_reading, METH_NOARGS, resume_reading_doc},
    {"set_protocol", KEYWORDS(tls_set_protocol_named), METH_FASTCALL | METH_KEYWORDS,
     set_protocol_doc},
    {"get_protocol", tls_get_protocol, METH_NOARGS, get_protocol_doc},
    {"get_write_buffer_size", tls_get_write_size, METH_NOARGS,
     "get_write_buffer_size($self, /)\n--\n\n"
     "Return how many bytes wait to be sent."},
    {"get_read_buffer_size", tls_get_read_size, METH_NOARGS,
     "get_read_buffer_size($self, /)\n--\n\n"
     "Return how many bytes were received and not yet decrypted."},
    {"get_write_buffer_limits", tls_get_write_limits, METH_NOARGS,
     "get_write_buffer_limits($self, /)\n--\n\n"
     "Return (low, high), the marks of flow control in bytes."},
    {"get_read_buffer_limits", tls_get_read_limits, METH_NOARGS,
     "get_read_buffer_limits($self, /)\n--\n\n"
     "Return (low, high), the marks of what was received and not yet decrypted, in bytes."},
    {"set_write_buffer_limits", KEYWORDS(tls_set_write_limits), METH_VARARGS | METH_KEYWORDS,
     set_write_limits_doc},
    {"set_read_buffer_limits", KEYWORDS(tls_set_read_limits), METH_VARARGS | METH_KEYWORDS,
     set_read_limits_doc},
    {"get_extra_info", KEYWORDS(tls_get_extra_info), METH_VARARGS | METH_KEYWORDS,
     get_extra_info_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot tls_slots[] = {
    {Py_tp_doc, (void *)tls_doc}, {Py_tp_new, tls_new},           {Py_tp_init, tls_init},
    {Py_tp_dealloc, tls_dealloc}, {Py_tp_finalize, tls_finalize}, {Py_tp_traverse, tls_traverse},
    {Py_tp_clear, tls_clear},     {Py_tp_members, tls_members},   {Py_tp_methods, tls_methods},
    {Py_tp_getset, tls_getset},   {Py_tp_repr, tls_repr},         {0, NULL},
};

static PyType_Spec tls_spec = {
    .name = "plait._core.SSLTransport",
    .basicsize = sizeof(TLSObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = tls_slots,
};

/* The protocol's half of the methods lives with what they do. */
static int add_protocol_methods(PyTypeObject *type)
{
    for (PyMethodDef *def = plait_tls_protocol_methods; def->ml_name != NULL; def++) {
        PyObject *method = PyDescr_NewMethod(type, def);
        int r =
            method == NULL ? -1 : PyObject_SetAttrString((PyObject *)type, def->ml_name, method);
        Py_XDECREF(method);
        if (r < 0)
            return -1;
    }
    return 0;
}

static int sendfile_mode(struct plait_state *state)
{
    PyObject *constants = PyImport_ImportModule("asyncio.constants");
    PyObject *modes = constants == NULL ? NULL : PyObject_GetAttrString(constants, "_SendfileMode");
    if (modes != NULL)
        state->asyncio_sendfile_fallback = PyObject_GetAttrString(modes, "FALLBACK");
    Py_XDECREF(constants);
    Py_XDECREF(modes);
    return state->asyncio_sendfile_fallback == NULL ? -1 : 0;
}

int plait_tls_exec(PyObject *module, struct plait_state *state)
{
    state->str_pending = PyUnicode_InternFromString("pending");
    state->str_read = PyUnicode_InternFromString("read");
    if (state->str_pending == NULL || state->str_read == NULL || sendfile_mode(state) < 0 ||
        plait_tls_window_type(module, state) < 0)
        return -1;
    /* As the socket transport's: our struct continues asyncio.Transport's. */
    PyObject *bases = PyTuple_Pack(1, state->transport_type->tp_base);
    if (bases == NULL)
        return -1;
    state->tls_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &tls_spec, bases);
    Py_DECREF(bases);
    if (state->tls_type == NULL || add_protocol_methods(state->tls_type) < 0)
        return -1;
    return PyModule_AddType(module, state->tls_type);
}
