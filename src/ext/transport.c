/* transport.c - plait._core.SocketTransport: a connected stream socket and its protocol.
 *
 * Sections: the life of a transport; its methods; the type. Its other files: transport_stream
 * (data in, and the end), transport_write (data out), transport_protocol (calls to the
 * protocol) and transport_info (get_extra_info).
 *
 * A transport that is open in the core is owned by its registration: one reference, taken
 * when it is made and given up after connection_lost. The loop's traverse visits it.
 */
#include "transport.h"
#include "args.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <structmember.h>

/* ---- the life of a transport -------------------------------------------- */

static void start_run(struct pl_loop *core, struct pl_op *op)
{
    (void)core;
    TransportObject *t = PL_CONTAINER_OF(op, TransportObject, start);
    t->started = true;
    Py_INCREF(t);
    plait_reader_link(t->loop, t->protocol, &t->feed);
    PyObject *result = plait_transport_call(t, t->loop->state->str_connection_made, (PyObject *)t);
    if (result == NULL)
        plait_transport_tell(t, "Exception in callback protocol.connection_made()");
    Py_XDECREF(result);
    if (!t->closing && !t->paused) {
        int r = pl_stream_read_start(&t->stream);
        if (r < 0)
            plait_transport_fatal_code(t, r, "Fatal read error on socket transport");
    }
    plait_transport_finish_waiter(t, &t->waiter);
    Py_DECREF(t);
}

PyObject *plait_transport_of_op(struct pl_op *op)
{
    if (op->run == start_run)
        return (PyObject *)PL_CONTAINER_OF(op, TransportObject, start);
    struct pl_stream *stream = pl_stream_of_op(op);
    if (stream == NULL || stream->ops != &plait_transport_stream_ops)
        return NULL;
    return (PyObject *)plait_transport_of(stream);
}

void plait_transport_drop(PyObject *self)
{
    TransportObject *t = (TransportObject *)self;
    if (!t->registered)
        return;
    t->registered = false;
    t->closing = true;
    t->lost_writes = 1;
    pl_stream_forget(&t->stream);
    Py_DECREF(t);
}

static int set_protocol(TransportObject *t, PyObject *protocol)
{
    int buffered = PyObject_IsInstance(protocol, t->loop->state->asyncio_buffered_protocol);
    if (buffered < 0)
        return -1;
    Py_XSETREF(t->protocol, Py_NewRef(protocol));
    t->buffered = buffered;
    t->stream.borrows = !buffered;
    t->tls = Py_IS_TYPE(protocol, t->loop->state->tls_type);
    if (t->started)
        plait_reader_link(t->loop, protocol, &t->feed);
    return 0;
}

/* Small messages must not wait for the acknowledgement of the one before. */
static void set_nodelay(const struct pl_sys *sys, int fd, sa_family_t family)
{
    (void)sys;
    if (family != AF_INET && family != AF_INET6)
        return;
    const int one = 1;
    int saved = errno;
    /* Fails for what is no TCP, where there is nothing to set. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    errno = saved;
}

PyObject *plait_transport_new(LoopObject *loop, int fd, PyObject *sock, PyObject *protocol,
                              PyObject *waiter, PyObject *extra, PyObject *server,
                              PyObject *context, const struct sockaddr *addr, socklen_t addr_len)
{
    struct plait_state *state = loop->state;
    PyTypeObject *type = state->transport_type;
    TransportObject *t = (TransportObject *)type->tp_alloc(type, 0);
    if (t == NULL)
        return NULL;
    t->loop = (LoopObject *)Py_NewRef(loop);
    t->high = PLAIT_HIGH_WATER;
    t->low = PLAIT_HIGH_WATER / 4;
    t->start.run = start_run;
    t->stream.io.fd = fd;
    t->context =
        context != NULL && context != Py_None ? Py_NewRef(context) : PyContext_CopyCurrent();
    if (t->context == NULL || set_protocol(t, protocol) < 0)
        goto fail;
    if (extra != NULL && extra != Py_None) {
        t->extra = PyDict_Copy(extra);
        if (t->extra == NULL)
            goto fail;
    }
    struct sockaddr_storage storage;
    if (addr == NULL) {
        addr_len = sizeof(storage);
        int saved = errno;
        if (getpeername(fd, (struct sockaddr *)&storage, &addr_len) < 0)
            addr_len = 0; /* gone already: reading will tell */
        errno = saved;
        addr = (struct sockaddr *)&storage;
    }
    if (addr_len >= sizeof(sa_family_t)) {
        if ((addr->sa_family == AF_INET || addr->sa_family == AF_INET6) &&
            addr_len <= sizeof(t->peer)) {
            memcpy(&t->peer, addr, addr_len);
            t->peer_len = (uint8_t)addr_len;
        }
        set_nodelay(loop->core.sys, fd, addr->sa_family);
    }
    if (server != NULL && server != Py_None) {
        t->server = Py_NewRef(server);
        PyObject *result = state->loop.server_takes_transport
                               ? PyObject_CallMethodOneArg(server, state->str_attach, (PyObject *)t)
                               : PyObject_CallMethodNoArgs(server, state->str_attach);
        if (result == NULL) {
            Py_CLEAR(t->server);
            goto fail;
        }
        Py_DECREF(result);
    }
    int r = pl_stream_open(&loop->core, &t->stream, fd, true, &plait_transport_stream_ops);
    if (r < 0) {
        (void)plait_raise(state, r, r == -EEXIST ? "the descriptor is in use by the loop" : NULL);
        goto fail;
    }
    t->stream.borrows = !t->buffered;
    r = pl_loop_enqueue(&loop->core, &t->start);
    if (r < 0) {
        pl_stream_forget(&t->stream);
        PyErr_NoMemory();
        goto fail;
    }
    t->sock = Py_XNewRef(sock);
    t->waiter = waiter != NULL && waiter != Py_None ? Py_NewRef(waiter) : NULL;
    t->fd_open = true;
    t->registered = true;
    Py_INCREF(t); /* the registration's */
    return (PyObject *)t;

fail:
    t->closing = true;
    t->stream.dead = true;
    plait_transport_detach_server(t);
    Py_DECREF(t);
    return NULL;
}

/* ---- methods ------------------------------------------------------------ */

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\n"
                        "Stop reading, send what is written, then close.");

static PyObject *transport_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (t->closing)
        Py_RETURN_NONE;
    t->closing = true;
    if (plait_transport_is_live(t)) {
        if (t->stream.chunk_len == 0)
            t->lost_writes = 1;
        pl_stream_close(&t->stream);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(abort_doc, "abort($self, /)\n--\n\nClose at once; what is not sent yet is dropped.");

static PyObject *transport_abort(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (plait_transport_is_live(t))
        plait_transport_force_close(t, NULL);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(force_close_doc, "_force_close($self, exc, /)\n--\n\n"
                              "Close at once, with an exception for connection_lost.");

static PyObject *transport_force_close(PyObject *self, PyObject *exc)
{
    TransportObject *t = (TransportObject *)self;
    if (plait_transport_is_live(t))
        plait_transport_force_close(t, exc == Py_None ? NULL : exc);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(is_closing_doc, "is_closing($self, /)\n--\n\nTell whether it is closing or closed.");

static PyObject *transport_is_closing(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((TransportObject *)self)->closing);
}

PyDoc_STRVAR(is_reading_doc, "is_reading($self, /)\n--\n\nTell whether it receives data.");

static PyObject *transport_is_reading(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    return PyBool_FromLong(!t->closing && !t->paused);
}

PyDoc_STRVAR(pause_reading_doc, "pause_reading($self, /)\n--\n\n"
                                "Receive nothing until resume_reading.");

static PyObject *transport_pause_reading(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (t->closing || t->paused)
        Py_RETURN_NONE;
    t->paused = true;
    pl_stream_read_stop(&t->stream);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(resume_reading_doc, "resume_reading($self, /)\n--\n\nReceive again.");

static PyObject *transport_resume_reading(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (t->closing || !t->paused)
        Py_RETURN_NONE;
    t->paused = false;
    if (t->started && plait_transport_is_live(t)) {
        int r = pl_stream_read_start(&t->stream);
        if (r < 0)
            return plait_raise(t->loop->state, r, NULL);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_protocol_doc, "set_protocol($self, protocol)\n--\n\n"
                               "Give what arrives from now on to another protocol.");

static PyObject *transport_set_protocol(PyObject *self, PyObject *protocol)
{
    if (set_protocol((TransportObject *)self, protocol) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_protocol_doc, "get_protocol($self, /)\n--\n\nReturn the protocol.");

static PyObject *transport_get_protocol(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    return Py_NewRef(t->protocol != NULL ? t->protocol : Py_None);
}
static PyObject *transport_repr(PyObject *self)
{
    TransportObject *t = (TransportObject *)self;
    const char *state = !t->fd_open ? " closed" : t->closing ? " closing" : "";
    return PyUnicode_FromFormat("<plait.SocketTransport%s fd=%d read=%s write=<%s, bufsize=%zu>>",
                                state, t->stream.io.fd, t->stream.reading ? "polling" : "idle",
                                t->stream.blocked ? "polling" : "idle", t->stream.queued);
}

/* ---- the type ----------------------------------------------------------- */

static int transport_traverse(PyObject *self, visitproc visit, void *arg)
{
    TransportObject *t = (TransportObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(t->extra);
    Py_VISIT(t->dict);
    Py_VISIT(t->loop);
    Py_VISIT(t->context);
#define X(name) Py_VISIT(t->name);
    PLAIT_TRANSPORT_OBJECTS(X)
#undef X
    return 0;
}

static int transport_clear(PyObject *self)
{
    TransportObject *t = (TransportObject *)self;
    Py_CLEAR(t->extra);
    Py_CLEAR(t->dict);
    plait_reader_unlink(&t->feed);
#define X(name) Py_CLEAR(t->name);
    PLAIT_TRANSPORT_OBJECTS(X)
#undef X
    /* loop and context stay until dealloc: methods of a cleared husk use them. */
    return 0;
}

static void transport_finalize(PyObject *self)
{
    TransportObject *t = (TransportObject *)self;
    if (!t->fd_open)
        return;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    if (PyErr_ResourceWarning(self, 1, "unclosed transport %R", self) < 0)
        PyErr_WriteUnraisable(self);
    plait_transport_detach_server(t);
    plait_transport_close_fd(t);
    PyErr_Restore(type, exc, tb);
}

static void transport_dealloc(PyObject *self)
{
    TransportObject *t = (TransportObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (!plait_transport_dies(self, t->weaklist))
        return;
    (void)transport_clear(self);
    Py_CLEAR(t->incoming);
    plait_transport_drop_view(t);
    Py_CLEAR(t->context);
    Py_CLEAR(t->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *get_compatible(PyObject *self, void *Py_UNUSED(closure))
{
    (void)self;
    Py_RETURN_TRUE;
}

static PyObject *get_sendfile_compatible(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(((TransportObject *)self)->loop->state->asyncio_sendfile_mode);
}

static PyObject *get_sock(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *sock = plait_transport_socket((TransportObject *)self);
    if (sock == NULL && PyErr_Occurred())
        return NULL;
    return Py_NewRef(sock != NULL ? sock : Py_None);
}

static PyObject *get_transport_loop(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef((PyObject *)((TransportObject *)self)->loop);
}

static PyGetSetDef transport_getset[] = {
    {"_loop", get_transport_loop, NULL, "The loop.", NULL},
    {"_sock", get_sock, NULL, "The socket, or None once closed.", NULL},
    {"_start_tls_compatible", get_compatible, NULL, "start_tls works on it.", NULL},
    {"_sendfile_compatible", get_sendfile_compatible, NULL, "How sendfile works on it.", NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, "What is set on it.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef transport_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(TransportObject, weaklist), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(TransportObject, dict), READONLY, NULL},
    {"_paused", T_BOOL, offsetof(TransportObject, paused), READONLY, "Whether reading is paused."},
    {"_closing", T_BOOL, offsetof(TransportObject, closing), READONLY, "Whether it closes."},
    {"_protocol_paused", T_BOOL, offsetof(TransportObject, protocol_paused), READONLY,
     "Whether the protocol was told to pause writing."},
    {NULL, 0, 0, 0, NULL},
};

/* Their parameters may be given by name, as asyncio's. */
static PyObject *transport_write(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    return plait_args_one(plait_transport_write, self, "write", "data", args, nargs, kwnames);
}

static PyObject *transport_writelines(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                      PyObject *kwnames)
{
    return plait_args_one(plait_transport_writelines, self, "writelines", "list_of_data", args,
                          nargs, kwnames);
}

static PyObject *transport_set_protocol_named(PyObject *self, PyObject *const *args,
                                              Py_ssize_t nargs, PyObject *kwnames)
{
    return plait_args_one(transport_set_protocol, self, "set_protocol", "protocol", args, nargs,
                          kwnames);
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef transport_methods[] = {
    {"write", KEYWORDS(transport_write), METH_FASTCALL | METH_KEYWORDS, plait_transport_write_doc},
    {"writelines", KEYWORDS(transport_writelines), METH_FASTCALL | METH_KEYWORDS,
     plait_transport_writelines_doc},
    {"write_eof", plait_transport_write_eof, METH_NOARGS, plait_transport_write_eof_doc},
    {"can_write_eof", plait_transport_can_write_eof, METH_NOARGS,
     plait_transport_can_write_eof_doc},
    {"close", transport_close, METH_NOARGS, close_doc},
    {"abort", transport_abort, METH_NOARGS, abort_doc},
    {"_force_close", transport_force_close, METH_O, force_close_doc},
    {"is_closing", transport_is_closing, METH_NOARGS, is_closing_doc},
    {"is_reading", transport_is_reading, METH_NOARGS, is_reading_doc},
    {"pause_reading", transport_pause_reading, METH_NOARGS, pause_reading_doc},
    {"resume_reading", transport_resume_reading, METH_NOARGS, resume_reading_doc},
    {"set_protocol", KEYWORDS(transport_set_protocol_named), METH_FASTCALL | METH_KEYWORDS,
     set_protocol_doc},
    {"get_protocol", transport_get_protocol, METH_NOARGS, get_protocol_doc},
    {"get_write_buffer_size", plait_transport_get_write_buffer_size, METH_NOARGS,
     plait_transport_get_write_buffer_size_doc},
    {"get_write_buffer_limits", plait_transport_get_limits, METH_NOARGS,
     plait_transport_get_limits_doc},
    {"set_write_buffer_limits", KEYWORDS(plait_transport_set_limits), METH_VARARGS | METH_KEYWORDS,
     plait_transport_set_limits_doc},
    {"get_extra_info", KEYWORDS(plait_transport_get_extra_info), METH_VARARGS | METH_KEYWORDS,
     plait_transport_get_extra_info_doc},
    {"_make_empty_waiter", plait_transport_make_empty_waiter, METH_NOARGS,
     plait_transport_make_empty_waiter_doc},
    {"_reset_empty_waiter", plait_transport_reset_empty_waiter, METH_NOARGS,
     plait_transport_reset_empty_waiter_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot transport_slots[] = {
    {Py_tp_doc, (void *)"A connected stream socket; made by the loop."},
    {Py_tp_dealloc, transport_dealloc},
    {Py_tp_finalize, transport_finalize},
    {Py_tp_traverse, transport_traverse},
    {Py_tp_clear, transport_clear},
    {Py_tp_members, transport_members},
    {Py_tp_methods, transport_methods},
    {Py_tp_getset, transport_getset},
    {Py_tp_repr, transport_repr},
    {0, NULL},
};

static PyType_Spec transport_spec = {
    .name = "plait._core.SocketTransport",
    .basicsize = sizeof(TransportObject),
    /* Not immutable: its base is not. */
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = transport_slots,
};

int plait_transport_type(PyObject *module, struct plait_state *state)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    if (asyncio == NULL)
        return -1;
    PyObject *base = PyObject_GetAttrString(asyncio, "Transport");
    Py_DECREF(asyncio);
    if (base == NULL)
        return -1;
    /* Our struct continues the base's, whose one slot is _extra. */
    if (((PyTypeObject *)base)->tp_basicsize != (Py_ssize_t)offsetof(TransportObject, weaklist)) {
        PyErr_SetString(PyExc_ImportError,
                        "plait does not know the layout of this Python's asyncio.Transport");
        Py_DECREF(base);
        return -1;
    }
    PyObject *bases = PyTuple_Pack(1, base);
    Py_DECREF(base);
    if (bases == NULL)
        return -1;
    state->transport_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &transport_spec, bases);
    Py_DECREF(bases);
    return state->transport_type == NULL ? -1 : PyModule_AddType(module, state->transport_type);
}
