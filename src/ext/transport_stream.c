/* transport_stream.c - the stream's callbacks: what comes in goes to the protocol, and the end.
 *
 * Data on its way in: small messages go through the loop's one read buffer into a bytes
 * object of the exact size; where the last reads were large, the kernel writes straight
 * into a bytes object, which is then shrunk; a BufferedProtocol lends its own buffer.
 */
#include "spare_bytes.h"
#include "transport.h"

#define DIRECT_READ ((size_t)32 << 10)
/* As asyncio's: protocols that pause the reading bound their memory by what one read brings. */
#define MAX_READ ((size_t)256 << 10)

void plait_transport_drop_view(TransportObject *t)
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
        plait_transport_fatal(t, "Fatal error: protocol.get_buffer() call failed.");
        return NULL;
    }
    PyObject *buffer = plait_transport_call(t, t->loop->state->str_get_buffer, minus_one);
    Py_DECREF(minus_one);
    if (t->stream.dead || !t->stream.reading) {
        Py_XDECREF(buffer);
        if (buffer == NULL)
            plait_transport_fatal(t, "Fatal error: protocol.get_buffer() call failed.");
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
        plait_transport_drop_view(t);
        PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
    }
    if (t->view == NULL) {
        plait_transport_fatal(t, "Fatal error: protocol.get_buffer() call failed.");
        return NULL;
    }
    *len = (size_t)t->view->len;
    return t->view->buf;
}

static void *on_room(struct pl_stream *stream, size_t hint, size_t *len)
{
    TransportObject *t = plait_transport_of(stream);
    if (t->buffered)
        return room_of_protocol(t, hint, len);
    if (hint < DIRECT_READ || t->tls) {
        *len = PLAIT_READ_BUFFER;
        return t->loop->read_buffer;
    }
    size_t size = hint + hint / 4 < MAX_READ ? hint + hint / 4 : MAX_READ;
    t->incoming = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (t->incoming == NULL) {
        plait_transport_fatal(t, "Fatal read error on socket transport");
        return NULL;
    }
    *len = size;
    return PyBytes_AS_STRING(t->incoming);
}

static void on_again(struct pl_stream *stream, void *buf)
{
    (void)buf;
    TransportObject *t = plait_transport_of(stream);
    Py_CLEAR(t->incoming);
    plait_transport_drop_view(t);
}

static void on_eof(TransportObject *t)
{
    PyObject *result = plait_transport_call(t, t->loop->state->str_eof_received, NULL);
    int keep_open = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    if (keep_open < 0) {
        plait_transport_fatal(t, "Fatal error: protocol.eof_received() call failed.");
        return;
    }
    /* A protocol that keeps it open may still write. */
    if (!keep_open && !t->closing) {
        t->closing = true;
        pl_stream_close(&t->stream);
    }
}

/* The buffer is the loop's: the engine has taken all of it before anything else is read. */
static void give_tls(TransportObject *t, const char *buf, size_t n)
{
    PyObject *protocol = Py_NewRef(t->protocol);
    int r = PyContext_Enter(t->context);
    if (r == 0) {
        r = plait_tls_feed(protocol, buf, n);
        if (PyContext_Exit(t->context) < 0)
            r = -1;
    }
    if (r < 0)
        plait_transport_fatal(t, "Fatal error: protocol.buffer_updated() call failed.");
    Py_DECREF(protocol);
}

static void on_read(struct pl_stream *stream, void *buf, ssize_t n)
{
    TransportObject *t = plait_transport_of(stream);
    struct plait_state *state = t->loop->state;
    PyObject *data = t->incoming;
    t->incoming = NULL;
    if (PL_UNLIKELY(n <= 0)) {
        Py_XDECREF(data);
        plait_transport_drop_view(t);
        if (n == 0)
            on_eof(t);
        else
            plait_transport_fatal_code(t, (int)n, "Fatal read error on socket transport");
        return;
    }
    PyObject *result;
    if (t->view != NULL) {
        plait_transport_drop_view(t);
        PyObject *count = PyLong_FromSsize_t(n);
        result = count == NULL ? NULL : plait_transport_call(t, state->str_buffer_updated, count);
        Py_XDECREF(count);
        if (result == NULL)
            plait_transport_fatal(t, "Fatal error: protocol.buffer_updated() call failed.");
        Py_XDECREF(result);
        return;
    }
    if (t->tls) {
        give_tls(t, buf, (size_t)n);
        return;
    }
    if (data == NULL)
        data = plait_spare_bytes_new(t->loop, buf, (size_t)n);
    else if (n != PyBytes_GET_SIZE(data))
        (void)_PyBytes_Resize(&data, n); /* NULL on failure */
    if (t->feed != NULL && data != NULL) {
        /* What it calls brings its own context: futures, and methods of ours. */
        if (plait_reader_feed(t->feed, data) < 0)
            plait_transport_fatal(t, "Fatal error: protocol.data_received() call failed.");
        Py_DECREF(data);
        return;
    }
    result = data == NULL ? NULL : plait_transport_call(t, state->str_data_received, data);
    Py_XDECREF(data);
    if (PL_UNLIKELY(result == NULL))
        plait_transport_fatal(t, "Fatal error: protocol.data_received() call failed.");
    Py_XDECREF(result);
}

static void on_drained(struct pl_stream *stream)
{
    TransportObject *t = plait_transport_of(stream);
    if (PL_UNLIKELY(t->protocol_paused))
        plait_transport_resume_writing(t);
    if (PL_UNLIKELY(t->empty_waiter != NULL) && stream->queued == 0)
        plait_transport_tell_empty(t);
}

static void on_failed(struct pl_stream *stream, int error)
{
    TransportObject *t = plait_transport_of(stream);
    plait_transport_fatal_code(t, error, "Fatal write error on socket transport");
}

static void on_release(struct pl_stream *stream, void *owner)
{
    plait_spare_bytes_release(plait_transport_of(stream)->loop, owner);
}

static void on_release_late(struct pl_loop *loop, void *owner)
{
    (void)loop;
    Py_DECREF((PyObject *)owner);
}

/* Closes the descriptor, by its socket object when there is one. */
void plait_transport_close_fd(TransportObject *t)
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

void plait_transport_detach_server(TransportObject *t)
{
    PyObject *server = t->server;
    if (server == NULL)
        return;
    struct plait_state *state = t->loop->state;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb); /* a transport that could not be made has one set */
    PyObject *result = state->loop.server_takes_transport
                           ? PyObject_CallMethodOneArg(server, state->str_detach, (PyObject *)t)
                           : PyObject_CallMethodNoArgs(server, state->str_detach);
    if (result == NULL)
        PyErr_WriteUnraisable(server);
    Py_XDECREF(result);
    Py_CLEAR(t->server); /* kept until here: the server's set asks whose the transport is */
    PyErr_Restore(type, exc, tb);
}

static void on_closed(struct pl_stream *stream)
{
    TransportObject *t = plait_transport_of(stream);
    PyObject *exc = t->lost != NULL ? t->lost : Py_None;
    PyObject *result = plait_transport_call(t, t->loop->state->str_connection_lost, exc);
    if (result == NULL)
        plait_transport_tell(t, "Exception in callback protocol.connection_lost()");
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
    plait_transport_remember_names(t);
    plait_transport_close_fd(t);
    plait_transport_detach_server(t);
    plait_reader_unlink(&t->feed);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->lost);
    t->registered = false;
    Py_DECREF(t);
}

const struct pl_stream_ops plait_transport_stream_ops = {
    .room = on_room,
    .read = on_read,
    .again = on_again,
    .drained = on_drained,
    .failed = on_failed,
    .release = on_release,
    .closed = on_closed,
    .release_late = on_release_late,
};
