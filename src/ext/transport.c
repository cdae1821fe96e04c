/* transport.c - plait._core.SocketTransport: a connected stream socket and its protocol.
 *
 * Sections: calls to the protocol; the stream's callbacks; the life of a transport; its
 * methods; the type.
 *
 * A transport that is open in the core is owned by its registration: one reference, taken
 * when it is made and given up after connection_lost. The loop's traverse visits it.
 *
 * Data on its way in: small messages go through the loop's one read buffer into a bytes
 * object of the exact size; where the last reads were large, the kernel writes straight
 * into a bytes object, which is then shrunk; a BufferedProtocol lends its own buffer.
 * Data on its way out: bytes objects are queued by reference, anything else is copied once,
 * because its owner may change it.
 */
#include "loop.h"

#include "args.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <structmember.h>

#define HIGH_WATER ((size_t)64 << 10)
#define DIRECT_READ ((size_t)32 << 10)
/* As asyncio's: protocols that pause the reading bound their memory by what one read brings. */
#define MAX_READ ((size_t)256 << 10)
#define LOG_LOST_WRITES 5

typedef struct {
    PyObject_HEAD
    PyObject *extra; /* the slot _extra of asyncio.BaseTransport */
    PyObject *weaklist;
    struct pl_stream stream;
    struct pl_op start;
    LoopObject *loop;
    PyObject *sock; /* the socket object, once there is one; it then owns the descriptor */
    PyObject *protocol;
    PyObject *server;
    PyObject *context;
    PyObject *waiter;       /* told when the connection is made */
    PyObject *empty_waiter; /* told when the write queue is empty */
    PyObject *lost;         /* the exception for connection_lost */
    PyObject *incoming;     /* the bytes that a read is filling */
    Py_buffer *view;        /* the BufferedProtocol's buffer that a read is filling */
    size_t high;
    size_t low;
    unsigned lost_writes; /* writes after the connection was lost; 1 from the loss on */
    uint16_t peer_len;
    bool fd_open;
    bool registered; /* the core's reference is held */
    bool buffered;   /* the protocol is a BufferedProtocol */
    bool protocol_paused;
    bool paused;
    bool closing;
    bool eof_written;
    bool started;
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } peer;
} TransportObject;

static TransportObject *transport_of(struct pl_stream *stream)
{
    return PL_CONTAINER_OF(stream, TransportObject, stream);
}

/* ---- calls to the protocol ---------------------------------------------- */

/* Calls protocol.name(arg) in the transport's context; arg may be NULL. */
static PyObject *call_protocol(TransportObject *t, PyObject *name, PyObject *arg)
{
    LoopObject *loop = t->loop;
    PyObject *context = t->context;
    PyObject *protocol = Py_NewRef(t->protocol);
    int64_t t0 = PL_UNLIKELY(loop->debug) ? loop->core.sys->now() : 0;
    PyObject *args[3] = {NULL, protocol, arg};
    PyObject *result = NULL;
    if (PyContext_Enter(context) == 0) {
        size_t n = (arg != NULL ? 2 : 1) | PY_VECTORCALL_ARGUMENTS_OFFSET;
        result = PyObject_VectorcallMethod(name, args + 1, n, NULL);
        if (PyContext_Exit(context) < 0)
            Py_CLEAR(result);
    }
    if (PL_UNLIKELY(t0 != 0))
        plait_loop_report_slow(loop, (PyObject *)t, t0);
    Py_DECREF(protocol);
    return result;
}

/* Tells the loop of the exception that is set, with transport and protocol. */
static void tell_error(TransportObject *t, const char *text)
{
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyObject *message = PyUnicode_FromString(text);
    if (message == NULL)
        PyErr_Clear();
    PyErr_Restore(type, exc, tb);
    plait_loop_handle_error(t->loop, message, "transport", (PyObject *)t, "protocol", t->protocol);
    Py_XDECREF(message);
}

static void force_close(TransportObject *t, PyObject *exc)
{
    if (t->stream.dead)
        return;
    if (t->lost_writes == 0)
        t->lost_writes = 1;
    t->closing = true;
    if (t->lost == NULL)
        t->lost = Py_XNewRef(exc);
    /* What is only corked goes out first: asyncio's transports have sent it by now, and a
     * protocol that writes its last words and then aborts or fails counts on it. */
    pl_stream_flush(&t->stream);
    pl_stream_abort(&t->stream);
}

/* An exception is set that the connection does not survive. OSErrors are the network's
 * ordinary ways to end a connection, which connection_lost tells; the rest is a defect
 * that the loop's exception handler hears of. */
static void fatal_error(TransportObject *t, const char *text)
{
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb != NULL && exc != NULL)
        (void)PyException_SetTraceback(exc, tb);
    bool leaves = exc == NULL || PyErr_GivenExceptionMatches(exc, PyExc_SystemExit) ||
                  PyErr_GivenExceptionMatches(exc, PyExc_KeyboardInterrupt);
    Py_XINCREF(exc);
    if (leaves || !PyErr_GivenExceptionMatches(exc, PyExc_OSError)) {
        PyErr_Restore(type, exc, tb);
        tell_error(t, text);
    } else {
        if (t->loop->debug)
            Py_XDECREF(
                PyObject_CallMethod(t->loop->state->logger, "debug", "sOO", "%r: %s", t, exc));
        PyErr_Clear();
        Py_XDECREF(type);
        Py_XDECREF(exc);
        Py_XDECREF(tb);
    }
    if (!leaves)
        force_close(t, exc);
    Py_XDECREF(exc);
}

static void fatal_code(TransportObject *t, int code, const char *text)
{
    (void)plait_raise(t->loop->state, code, NULL);
    fatal_error(t, text);
}

static void pause_protocol(TransportObject *t)
{
    if (t->protocol_paused || t->stream.queued <= t->high)
        return;
    t->protocol_paused = true;
    PyObject *result = PyObject_CallMethodNoArgs(t->protocol, t->loop->state->str_pause_writing);
    if (result == NULL)
        tell_error(t, "protocol.pause_writing() failed");
    Py_XDECREF(result);
}

static void resume_protocol(TransportObject *t)
{
    if (!t->protocol_paused || t->stream.queued > t->low)
        return;
    t->protocol_paused = false;
    PyObject *result = call_protocol(t, t->loop->state->str_resume_writing, NULL);
    if (result == NULL)
        tell_error(t, "protocol.resume_writing() failed");
    Py_XDECREF(result);
}

/* Sets a future's result to None unless it is done. */
static void finish_waiter(TransportObject *t, PyObject **place)
{
    PyObject *waiter = *place;
    if (waiter == NULL)
        return;
    *place = NULL;
    struct plait_state *state = t->loop->state;
    PyObject *done = PyObject_CallMethodNoArgs(waiter, state->str_done);
    int is_done = done == NULL ? -1 : PyObject_IsTrue(done);
    Py_XDECREF(done);
    PyObject *result =
        is_done == 0 ? PyObject_CallMethodOneArg(waiter, state->str_set_result, Py_None) : NULL;
    if (is_done < 0 || (is_done == 0 && result == NULL))
        tell_error(t, "cannot tell that the transport is ready");
    Py_XDECREF(result);
    Py_DECREF(waiter);
}

/* ---- the stream's callbacks --------------------------------------------- */

static void drop_view(TransportObject *t)
{
    if (t->view == NULL)
        return;
    PyBuffer_Release(t->view);
    PyMem_Free(t->view);
    t->view = NULL;
}

static void *room_of_protocol(TransportObject *t, size_t hint, size_t *len)
{
    (void)hint;
    PyObject *minus_one = PyLong_FromLong(-1);
    if (minus_one == NULL) {
        fatal_error(t, "Fatal error: protocol.get_buffer() call failed.");
        return NULL;
    }
    PyObject *buffer = call_protocol(t, t->loop->state->str_get_buffer, minus_one);
    Py_DECREF(minus_one);
    if (t->stream.dead || !t->stream.reading) {
        Py_XDECREF(buffer);
        if (buffer == NULL)
            fatal_error(t, "Fatal error: protocol.get_buffer() call failed.");
        return NULL;
    }
    if (buffer != NULL) {
        t->view = PyMem_Malloc(sizeof(*t->view));
        if (t->view == NULL)
            PyErr_NoMemory();
        else if (PyObject_GetBuffer(buffer, t->view, PyBUF_WRITABLE) < 0) {
            PyMem_Free(t->view);
            t->view = NULL;
        }
        Py_DECREF(buffer);
    }
    if (t->view != NULL && t->view->len == 0) {
        drop_view(t);
        PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
    }
    if (t->view == NULL) {
        fatal_error(t, "Fatal error: protocol.get_buffer() call failed.");
        return NULL;
    }
    *len = (size_t)t->view->len;
    return t->view->buf;
}

static void *on_room(struct pl_stream *stream, size_t hint, size_t *len)
{
    TransportObject *t = transport_of(stream);
    if (t->buffered)
        return room_of_protocol(t, hint, len);
    if (hint < DIRECT_READ) {
        *len = PLAIT_READ_BUFFER;
        return t->loop->read_buffer;
    }
    size_t size = hint + hint / 4 < MAX_READ ? hint + hint / 4 : MAX_READ;
    t->incoming = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (t->incoming == NULL) {
        fatal_error(t, "Fatal read error on socket transport");
        return NULL;
    }
    *len = size;
    return PyBytes_AS_STRING(t->incoming);
}

static void on_again(struct pl_stream *stream, void *buf)
{
    (void)buf;
    TransportObject *t = transport_of(stream);
    Py_CLEAR(t->incoming);
    drop_view(t);
}

static void on_eof(TransportObject *t)
{
    PyObject *result = call_protocol(t, t->loop->state->str_eof_received, NULL);
    int keep_open = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    if (keep_open < 0) {
        fatal_error(t, "Fatal error: protocol.eof_received() call failed.");
        return;
    }
    /* A protocol that keeps it open may still write. */
    if (!keep_open && !t->closing) {
        t->closing = true;
        pl_stream_close(&t->stream);
    }
}

static void on_read(struct pl_stream *stream, void *buf, ssize_t n)
{
    TransportObject *t = transport_of(stream);
    struct plait_state *state = t->loop->state;
    PyObject *data = t->incoming;
    t->incoming = NULL;
    if (PL_UNLIKELY(n <= 0)) {
        Py_XDECREF(data);
        drop_view(t);
        if (n == 0)
            on_eof(t);
        else
            fatal_code(t, (int)n, "Fatal read error on socket transport");
        return;
    }
    PyObject *result;
    if (t->view != NULL) {
        drop_view(t);
        PyObject *count = PyLong_FromSsize_t(n);
        result = count == NULL ? NULL : call_protocol(t, state->str_buffer_updated, count);
        Py_XDECREF(count);
        if (result == NULL)
            fatal_error(t, "Fatal error: protocol.buffer_updated() call failed.");
        Py_XDECREF(result);
        return;
    }
    if (data == NULL)
        data = PyBytes_FromStringAndSize(buf, n);
    else if (n != PyBytes_GET_SIZE(data))
        (void)_PyBytes_Resize(&data, n); /* NULL on failure */
    result = data == NULL ? NULL : call_protocol(t, state->str_data_received, data);
    Py_XDECREF(data);
    if (PL_UNLIKELY(result == NULL))
        fatal_error(t, "Fatal error: protocol.data_received() call failed.");
    Py_XDECREF(result);
}

static void on_drained(struct pl_stream *stream)
{
    TransportObject *t = transport_of(stream);
    if (PL_UNLIKELY(t->protocol_paused))
        resume_protocol(t);
    if (PL_UNLIKELY(t->empty_waiter != NULL) && stream->queued == 0)
        finish_waiter(t, &t->empty_waiter);
}

static void on_failed(struct pl_stream *stream, int error)
{
    TransportObject *t = transport_of(stream);
    fatal_code(t, error, "Fatal write error on socket transport");
}

static void on_release(struct pl_stream *stream, void *owner)
{
    (void)stream;
    Py_DECREF((PyObject *)owner);
}

/* Closes the descriptor, by its socket object when there is one. */
static void close_fd(TransportObject *t)
{
    if (!t->fd_open)
        return;
    t->fd_open = false;
    if (t->sock != NULL) {
        PyObject *result = PyObject_CallMethodNoArgs(t->sock, t->loop->state->str_close);
        if (result == NULL)
            PyErr_WriteUnraisable(t->sock);
        Py_XDECREF(result);
    } else {
        (void)t->loop->core.sys->close(t->stream.io.fd); /* errors of close cannot be mended */
    }
}

static void detach_server(TransportObject *t)
{
    PyObject *server = t->server;
    if (server == NULL)
        return;
    t->server = NULL;
    struct plait_state *state = t->loop->state;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb); /* a transport that could not be made has one set */
    PyObject *result = state->loop.server_takes_transport
                           ? PyObject_CallMethodOneArg(server, state->str_detach, (PyObject *)t)
                           : PyObject_CallMethodNoArgs(server, state->str_detach);
    if (result == NULL)
        PyErr_WriteUnraisable(server);
    Py_XDECREF(result);
    Py_DECREF(server);
    PyErr_Restore(type, exc, tb);
}

static void remember_names(TransportObject *t);

static void on_closed(struct pl_stream *stream)
{
    TransportObject *t = transport_of(stream);
    PyObject *exc = t->lost != NULL ? t->lost : Py_None;
    PyObject *result = call_protocol(t, t->loop->state->str_connection_lost, exc);
    if (result == NULL)
        tell_error(t, "Exception in callback protocol.connection_lost()");
    Py_XDECREF(result);
    if (t->empty_waiter != NULL) {
        PyObject *waiter = t->empty_waiter;
        t->empty_waiter = NULL;
        PyObject *error =
            PyObject_CallFunction(PyExc_ConnectionError, "s", "Connection is closed by peer");
        PyObject *told =
            error == NULL ? NULL : PyObject_CallMethod(waiter, "set_exception", "O", error);
        if (told == NULL)
            PyErr_Clear(); /* it was cancelled: nobody waits */
        Py_XDECREF(told);
        Py_XDECREF(error);
        Py_DECREF(waiter);
    }
    remember_names(t);
    close_fd(t);
    detach_server(t);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->lost);
    t->registered = false;
    Py_DECREF(t);
}

static const struct pl_stream_ops stream_ops = {
    .room = on_room,
    .read = on_read,
    .again = on_again,
    .drained = on_drained,
    .failed = on_failed,
    .release = on_release,
    .closed = on_closed,
};

/* ---- the life of a transport -------------------------------------------- */

static void start_run(struct pl_loop *core, struct pl_op *op)
{
    (void)core;
    TransportObject *t = PL_CONTAINER_OF(op, TransportObject, start);
    t->started = true;
    Py_INCREF(t);
    PyObject *result = call_protocol(t, t->loop->state->str_connection_made, (PyObject *)t);
    if (result == NULL)
        tell_error(t, "Exception in callback protocol.connection_made()");
    Py_XDECREF(result);
    if (!t->closing && !t->paused) {
        int r = pl_stream_read_start(&t->stream);
        if (r < 0)
            fatal_code(t, r, "Fatal read error on socket transport");
    }
    finish_waiter(t, &t->waiter);
    Py_DECREF(t);
}

PyObject *plait_transport_of_op(struct pl_op *op)
{
    if (op->run == start_run)
        return (PyObject *)PL_CONTAINER_OF(op, TransportObject, start);
    struct pl_stream *stream = pl_stream_of_op(op);
    if (stream == NULL || stream->ops != &stream_ops)
        return NULL;
    return (PyObject *)transport_of(stream);
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
    t->high = HIGH_WATER;
    t->low = HIGH_WATER / 4;
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
            t->peer_len = (uint16_t)addr_len;
        }
        set_nodelay(loop->core.sys, fd, addr->sa_family);
    }
    if (server != NULL && server != Py_None) {
        PyObject *result = state->loop.server_takes_transport
                               ? PyObject_CallMethodOneArg(server, state->str_attach, (PyObject *)t)
                               : PyObject_CallMethodNoArgs(server, state->str_attach);
        if (result == NULL)
            goto fail;
        Py_DECREF(result);
        t->server = Py_NewRef(server);
    }
    int r = pl_stream_open(&loop->core, &t->stream, fd, true, &stream_ops);
    if (r < 0) {
        (void)plait_raise(state, r, r == -EEXIST ? "the descriptor is in use by the loop" : NULL);
        goto fail;
    }
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
    detach_server(t);
    Py_DECREF(t);
    return NULL;
}

/* ---- methods ------------------------------------------------------------ */

/* Whether the stream takes calls: neither lost nor left behind by a closed loop. */
static bool is_live(TransportObject *t)
{
    return t->registered && !t->stream.dead && t->loop->core_ready;
}

PyDoc_STRVAR(write_doc, "write($self, data, /)\n--\n\n"
                        "Send data without waiting.\n\n"
                        "Args:\n"
                        "    data (bytes | bytearray | memoryview): what to send; may be\n"
                        "        changed by the caller afterwards.\n\n"
                        "Raises:\n"
                        "    TypeError: data is not bytes-like.\n"
                        "    RuntimeError: after write_eof(), or while sendfile runs.");

static int refuse_write(TransportObject *t, const char *method)
{
    if (t->eof_written) {
        PyErr_Format(PyExc_RuntimeError, "Cannot call %s() after write_eof()", method);
        return -1;
    }
    if (t->empty_waiter != NULL) {
        PyErr_Format(PyExc_RuntimeError, "unable to %s; sendfile is in progress", method);
        return -1;
    }
    return 0;
}

/* The connection is gone: what is written is dropped, and told when it goes on. */
static int count_lost_write(TransportObject *t)
{
    if (t->lost_writes >= LOG_LOST_WRITES) {
        PyObject *r = PyObject_CallMethod(t->loop->state->logger, "warning", "s",
                                          "socket.send() raised exception.");
        if (r == NULL)
            return -1;
        Py_DECREF(r);
    }
    t->lost_writes++;
    return 0;
}

/* Queues one object, by reference when it is bytes, else as a copy. */
static int write_one(TransportObject *t, PyObject *data)
{
    PyObject *owner;
    if (PL_LIKELY(PyBytes_CheckExact(data))) {
        owner = Py_NewRef(data);
    } else if (PyBytes_Check(data) || PyByteArray_Check(data) || PyMemoryView_Check(data)) {
        owner = PyBytes_FromObject(data);
        if (owner == NULL)
            return -1;
    } else {
        PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not %R",
                     (PyObject *)Py_TYPE(data));
        return -1;
    }
    if (PyBytes_GET_SIZE(owner) == 0) {
        Py_DECREF(owner);
        return 0;
    }
    if (t->lost_writes > 0 || !is_live(t)) {
        Py_DECREF(owner);
        return count_lost_write(t);
    }
    struct pl_chunk chunk = {
        .data = PyBytes_AS_STRING(owner), .len = (size_t)PyBytes_GET_SIZE(owner), .owner = owner};
    int r = pl_stream_write(&t->stream, &chunk, 1);
    if (PL_UNLIKELY(r < 0)) {
        Py_DECREF(owner);
        if (r == -ENOMEM) {
            PyErr_NoMemory();
            return -1;
        }
        return count_lost_write(t); /* it failed a moment ago; connection_lost will tell */
    }
    /* No callback runs, so none ends soon: what is written goes out now. */
    if (PL_UNLIKELY(t->loop->thread_id == Py_None))
        pl_stream_flush(&t->stream);
    /* A writer that never gives way to the loop must see the end by is_closing. */
    if (PL_UNLIKELY(t->stream.error != 0))
        t->closing = true;
    return 0;
}

static PyObject *transport_write(PyObject *self, PyObject *data)
{
    TransportObject *t = (TransportObject *)self;
    if (PL_UNLIKELY(t->eof_written || t->empty_waiter != NULL)) {
        if (!PyObject_CheckBuffer(data))
            return write_one(t, data) < 0 ? NULL : Py_NewRef(Py_None);
        if (refuse_write(t, "write") < 0)
            return NULL;
    }
    if (write_one(t, data) < 0)
        return NULL;
    if (t->stream.queued > t->high)
        pause_protocol(t);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(writelines_doc, "writelines($self, list_of_data, /)\n--\n\n"
                             "Send several pieces of data, in order, in as few calls as possible.");

static PyObject *transport_writelines(PyObject *self, PyObject *pieces)
{
    TransportObject *t = (TransportObject *)self;
    if (refuse_write(t, "writelines") < 0)
        return NULL;
    PyObject *list =
        PySequence_Fast(pieces, "writelines() takes an iterable of bytes-like objects");
    if (list == NULL)
        return NULL;
    /* All are looked at before the first is queued. */
    Py_ssize_t n = PySequence_Fast_GET_SIZE(list);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *data = PySequence_Fast_GET_ITEM(list, i); // borrowed
        if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
            PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not %R",
                         (PyObject *)Py_TYPE(data));
            Py_DECREF(list);
            return NULL;
        }
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (write_one(t, PySequence_Fast_GET_ITEM(list, i)) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    Py_DECREF(list);
    if (t->stream.queued > t->high)
        pause_protocol(t);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(write_eof_doc, "write_eof($self, /)\n--\n\n"
                            "Shut down the sending side once everything written is sent.");

static PyObject *transport_write_eof(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (t->closing || t->eof_written || !is_live(t))
        Py_RETURN_NONE;
    t->eof_written = true;
    int r = pl_stream_shutdown(&t->stream);
    if (r < 0 && r != -EPIPE && r != PL_ECLOSED)
        return plait_raise(t->loop->state, r, NULL);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(can_write_eof_doc, "can_write_eof($self, /)\n--\n\nReturn True.");

static PyObject *transport_can_write_eof(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    (void)self;
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\n"
                        "Stop reading, send what is written, then close.");

static PyObject *transport_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (t->closing)
        Py_RETURN_NONE;
    t->closing = true;
    if (is_live(t)) {
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
    if (is_live(t))
        force_close(t, NULL);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(force_close_doc, "_force_close($self, exc, /)\n--\n\n"
                              "Close at once, with an exception for connection_lost.");

static PyObject *transport_force_close(PyObject *self, PyObject *exc)
{
    TransportObject *t = (TransportObject *)self;
    if (is_live(t))
        force_close(t, exc == Py_None ? NULL : exc);
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
    if (t->started && is_live(t)) {
        int r = pl_stream_read_start(&t->stream);
        if (r < 0)
            return plait_raise(t->loop->state, r, NULL);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_protocol_doc, "set_protocol($self, protocol, /)\n--\n\n"
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

PyDoc_STRVAR(get_write_buffer_size_doc, "get_write_buffer_size($self, /)\n--\n\n"
                                        "Return how many bytes are written but not sent.");

static PyObject *transport_get_write_buffer_size(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(((TransportObject *)self)->stream.queued);
}

PyDoc_STRVAR(get_limits_doc, "get_write_buffer_limits($self, /)\n--\n\n"
                             "Return (low, high), the marks of flow control in bytes.");

static PyObject *transport_get_limits(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    return Py_BuildValue("(nn)", (Py_ssize_t)t->low, (Py_ssize_t)t->high);
}

PyDoc_STRVAR(set_limits_doc,
             "set_write_buffer_limits($self, /, high=None, low=None)\n--\n\n"
             "Set the marks of flow control.\n\n"
             "Args:\n"
             "    high (int | None): pause_writing is called above this many bytes; four\n"
             "        times low, or 64 KiB, when None.\n"
             "    low (int | None): resume_writing is called at or below; a quarter of high\n"
             "        when None.\n\n"
             "Raises:\n"
             "    ValueError: not high >= low >= 0.");

static PyObject *transport_set_limits(PyObject *self, PyObject *args, PyObject *kwargs)
{
    TransportObject *t = (TransportObject *)self;
    static char *names[] = {"high", "low", NULL};
    PyObject *high = Py_None, *low = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:set_write_buffer_limits", names, &high,
                                     &low))
        return NULL;
    Py_ssize_t h = 0, l = 0;
    if (high != Py_None && (h = PyNumber_AsSsize_t(high, NULL)) == -1 && PyErr_Occurred())
        return NULL;
    if (low != Py_None && (l = PyNumber_AsSsize_t(low, NULL)) == -1 && PyErr_Occurred())
        return NULL;
    if (high == Py_None)
        h = low == Py_None           ? (Py_ssize_t)HIGH_WATER
            : l > PY_SSIZE_T_MAX / 4 ? PY_SSIZE_T_MAX
                                     : 4 * l;
    if (low == Py_None)
        l = h / 4;
    if (!(h >= l && l >= 0))
        return PyErr_Format(PyExc_ValueError, "high (%zd) must be >= low (%zd) must be >= 0", h, l);
    t->high = (size_t)h;
    t->low = (size_t)l;
    if (t->protocol != NULL && is_live(t))
        pause_protocol(t);
    Py_RETURN_NONE;
}

/* ---- extra info */

static PyObject *name_of(const struct sockaddr *addr, socklen_t len)
{
    char host[NI_MAXHOST];
    if (getnameinfo(addr, len, host, sizeof(host), NULL, 0, NI_NUMERICHOST) != 0)
        Py_RETURN_NONE;
    if (addr->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)addr;
        return Py_BuildValue("(si)", host, ntohs(in->sin_port));
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)addr;
    return Py_BuildValue("(siII)", host, ntohs(in6->sin6_port), (unsigned)ntohl(in6->sin6_flowinfo),
                         (unsigned)in6->sin6_scope_id);
}

/* The socket object, made when it is first asked for; it then owns the descriptor. */
static PyObject *socket_object(TransportObject *t)
{
    if (t->sock != NULL)
        return t->sock;
    if (!t->fd_open)
        return NULL;
    PyObject *kwargs = Py_BuildValue("{s:i}", "fileno", t->stream.io.fd);
    PyObject *args = kwargs == NULL ? NULL : PyTuple_New(0);
    if (args != NULL)
        t->sock = PyObject_Call(t->loop->state->socket_type, args, kwargs);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    if (t->sock != NULL) {
        PyObject *result = PyObject_CallMethod(t->sock, "setblocking", "i", 0);
        if (result == NULL)
            PyErr_Clear(); /* the descriptor is non-blocking already */
        Py_XDECREF(result);
    }
    return t->sock;
}

/* Puts a value into the dict of extra information; steals it. */
static PyObject *remember(TransportObject *t, const char *name, PyObject *value)
{
    if (value == NULL)
        return NULL;
    if (t->extra == NULL)
        t->extra = PyDict_New();
    if (t->extra == NULL || PyDict_SetItemString(t->extra, name, value) < 0)
        Py_CLEAR(value);
    return value;
}

/* A value that costs something, made when it is asked for. NULL without an exception: there
 * is none by this name. */
static PyObject *make_extra(TransportObject *t, const char *name)
{
    bool peer = strcmp(name, "peername") == 0;
    if (strcmp(name, "socket") == 0) {
        PyObject *sock = socket_object(t);
        if (sock == NULL)
            return NULL;
        return remember(t, name,
                        PyObject_CallOneArg(t->loop->state->asyncio_transport_socket, sock));
    }
    if (peer && t->peer_len > 0)
        return remember(t, name, name_of(&t->peer.any, t->peer_len));
    if (peer || strcmp(name, "sockname") == 0) {
        PyObject *sock = socket_object(t);
        if (sock == NULL)
            return NULL;
        PyObject *value = PyObject_CallMethod(sock, peer ? "getpeername" : "getsockname", NULL);
        if (value == NULL && PyErr_ExceptionMatches(PyExc_OSError)) {
            PyErr_Clear();
            value = Py_NewRef(Py_None);
        }
        return remember(t, name, value);
    }
    return NULL;
}

/* asyncio's transports know their names after they are closed. */
static void remember_names(TransportObject *t)
{
    if (t->sock == NULL && t->extra == NULL)
        return; /* nobody ever asked for anything */
    static const char *const names[] = {"sockname", "peername"};
    for (size_t i = 0; i < PL_ARRAY_LEN(names); i++) {
        if (t->extra != NULL && PyDict_GetItemString(t->extra, names[i]) != NULL)
            continue;
        PyObject *value = make_extra(t, names[i]);
        if (value == NULL)
            PyErr_Clear();
        Py_XDECREF(value);
    }
}

PyDoc_STRVAR(get_extra_info_doc,
             "get_extra_info($self, name, default=None, /)\n--\n\n"
             "Return what is known about the connection: socket, sockname, peername.");

static PyObject *transport_get_extra_info(PyObject *self, PyObject *args, PyObject *kwargs)
{
    TransportObject *t = (TransportObject *)self;
    static char *names[] = {"name", "default", NULL};
    PyObject *name, *fallback = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:get_extra_info", names, &name, &fallback))
        return NULL;
    if (t->extra != NULL) {
        PyObject *value = PyDict_GetItemWithError(t->extra, name); // borrowed
        if (value != NULL)
            return Py_NewRef(value);
        if (PyErr_Occurred())
            return NULL;
    }
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : "";
    PyObject *value = text == NULL ? NULL : make_extra(t, text);
    if (value == NULL && !PyErr_Occurred())
        value = Py_NewRef(fallback);
    return value;
}

PyDoc_STRVAR(make_empty_waiter_doc, "_make_empty_waiter($self, /)\n--\n\n"
                                    "Return a future that is done when all is sent.");

static PyObject *transport_make_empty_waiter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (t->empty_waiter != NULL)
        return PyErr_Format(PyExc_RuntimeError, "Empty waiter is already set");
    PyObject *waiter = PyObject_CallMethod((PyObject *)t->loop, "create_future", NULL);
    if (waiter == NULL)
        return NULL;
    t->empty_waiter = Py_NewRef(waiter);
    if (t->stream.queued == 0) {
        PyObject *kept = Py_NewRef(waiter);
        finish_waiter(t, &t->empty_waiter);
        t->empty_waiter = kept; /* writes are refused until it is reset */
    }
    return waiter;
}

PyDoc_STRVAR(reset_empty_waiter_doc, "_reset_empty_waiter($self, /)\n--\n\n"
                                     "Allow writes again.");

static PyObject *transport_reset_empty_waiter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(((TransportObject *)self)->empty_waiter);
    Py_RETURN_NONE;
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
    Py_VISIT(t->loop);
    Py_VISIT(t->sock);
    Py_VISIT(t->protocol);
    Py_VISIT(t->server);
    Py_VISIT(t->context);
    Py_VISIT(t->waiter);
    Py_VISIT(t->empty_waiter);
    Py_VISIT(t->lost);
    return 0;
}

static int transport_clear(PyObject *self)
{
    TransportObject *t = (TransportObject *)self;
    Py_CLEAR(t->extra);
    Py_CLEAR(t->sock);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->server);
    Py_CLEAR(t->waiter);
    Py_CLEAR(t->empty_waiter);
    Py_CLEAR(t->lost);
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
    detach_server(t);
    close_fd(t);
    PyErr_Restore(type, exc, tb);
}

static void transport_dealloc(PyObject *self)
{
    TransportObject *t = (TransportObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0)
        return;
    PyObject_GC_UnTrack(self);
    if (t->weaklist != NULL)
        PyObject_ClearWeakRefs(self);
    (void)transport_clear(self);
    Py_CLEAR(t->incoming);
    drop_view(t);
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
    PyObject *sock = socket_object((TransportObject *)self);
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
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef transport_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(TransportObject, weaklist), READONLY, NULL},
    {"_paused", T_BOOL, offsetof(TransportObject, paused), READONLY, "Whether reading is paused."},
    {"_closing", T_BOOL, offsetof(TransportObject, closing), READONLY, "Whether it closes."},
    {"_protocol_paused", T_BOOL, offsetof(TransportObject, protocol_paused), READONLY,
     "Whether the protocol was told to pause writing."},
    {NULL, 0, 0, 0, NULL},
};

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef transport_methods[] = {
    {"write", transport_write, METH_O, write_doc},
    {"writelines", transport_writelines, METH_O, writelines_doc},
    {"write_eof", transport_write_eof, METH_NOARGS, write_eof_doc},
    {"can_write_eof", transport_can_write_eof, METH_NOARGS, can_write_eof_doc},
    {"close", transport_close, METH_NOARGS, close_doc},
    {"abort", transport_abort, METH_NOARGS, abort_doc},
    {"_force_close", transport_force_close, METH_O, force_close_doc},
    {"is_closing", transport_is_closing, METH_NOARGS, is_closing_doc},
    {"is_reading", transport_is_reading, METH_NOARGS, is_reading_doc},
    {"pause_reading", transport_pause_reading, METH_NOARGS, pause_reading_doc},
    {"resume_reading", transport_resume_reading, METH_NOARGS, resume_reading_doc},
    {"set_protocol", transport_set_protocol, METH_O, set_protocol_doc},
    {"get_protocol", transport_get_protocol, METH_NOARGS, get_protocol_doc},
    {"get_write_buffer_size", transport_get_write_buffer_size, METH_NOARGS,
     get_write_buffer_size_doc},
    {"get_write_buffer_limits", transport_get_limits, METH_NOARGS, get_limits_doc},
    {"set_write_buffer_limits", KEYWORDS(transport_set_limits), METH_VARARGS | METH_KEYWORDS,
     set_limits_doc},
    {"get_extra_info", KEYWORDS(transport_get_extra_info), METH_VARARGS | METH_KEYWORDS,
     get_extra_info_doc},
    {"_make_empty_waiter", transport_make_empty_waiter, METH_NOARGS, make_empty_waiter_doc},
    {"_reset_empty_waiter", transport_reset_empty_waiter, METH_NOARGS, reset_empty_waiter_doc},
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
