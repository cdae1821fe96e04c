/* transport_write.c - the sending side: write, its flow control, write_eof.
 *
 * bytes objects are queued by reference; anything else is copied once, because its owner may
 * change it.
 */
#include "transport.h"

#include <errno.h>

#define LOG_LOST_WRITES 5

const char plait_transport_write_doc[] =
    PyDoc_STR("write($self, data)\n--\n\n"
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

/* Queues bytes objects that are not empty, by reference. */
static int queue_bytes(TransportObject *t, PyObject *const *pieces, Py_ssize_t n)
{
    struct pl_chunk chunks[PLAIT_WRITE_BATCH];
    if (n < 1)
        return 0;
    if (t->lost_writes > 0 || !plait_transport_is_live(t))
        return count_lost_write(t);
    Py_ssize_t i = 0;
    do {
        chunks[i] = (struct pl_chunk){.data = PyBytes_AS_STRING(pieces[i]),
                                      .len = (size_t)PyBytes_GET_SIZE(pieces[i]),
                                      .owner = Py_NewRef(pieces[i])};
    } while (++i < n);
    int r = pl_stream_write(&t->stream, chunks, (uint32_t)n);
    if (PL_UNLIKELY(r < 0)) {
        while (i > 0)
            Py_DECREF(pieces[--i]);
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

int plait_transport_write_bytes(TransportObject *t, PyObject *const *pieces, Py_ssize_t n)
{
    if (refuse_write(t, "write") < 0 || queue_bytes(t, pieces, n) < 0)
        return -1;
    if (t->stream.queued > t->high)
        plait_transport_pause_writing(t);
    return 0;
}

/* Queues one object, by reference when it is bytes, else as a copy. */
static int write_one(TransportObject *t, PyObject *data)
{
    if (PL_LIKELY(PyBytes_CheckExact(data)))
        return PyBytes_GET_SIZE(data) == 0 ? 0 : queue_bytes(t, &data, 1);
    if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
        PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not %R",
                     (PyObject *)Py_TYPE(data));
        return -1;
    }
    PyObject *copy = PyBytes_FromObject(data);
    if (copy == NULL)
        return -1;
    int r = PyBytes_GET_SIZE(copy) == 0 ? 0 : queue_bytes(t, &copy, 1);
    Py_DECREF(copy);
    return r;
}

PyObject *plait_transport_write(PyObject *self, PyObject *data)
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
        plait_transport_pause_writing(t);
    Py_RETURN_NONE;
}

const char plait_transport_writelines_doc[] =
    PyDoc_STR("writelines($self, list_of_data)\n--\n\n"
              "Send several pieces of data, in order, in as few calls as possible.");

PyObject *plait_transport_writelines(PyObject *self, PyObject *pieces)
{
    TransportObject *t = (TransportObject *)self;
    if (refuse_write(t, "writelines") < 0)
        return NULL;
    /* Not the program's own list: a log handler, or another thread meanwhile, may change it. */
    PyObject *list = PySequence_Tuple(pieces);
    if (list == NULL)
        return NULL;
    /* All are looked at before the first is queued. */
    Py_ssize_t n = PyTuple_GET_SIZE(list);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *data = PyTuple_GET_ITEM(list, i); // borrowed
        if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
            PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not %R",
                         (PyObject *)Py_TYPE(data));
            Py_DECREF(list);
            return NULL;
        }
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (write_one(t, PyTuple_GET_ITEM(list, i)) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    Py_DECREF(list);
    if (t->stream.queued > t->high)
        plait_transport_pause_writing(t);
    Py_RETURN_NONE;
}

const char plait_transport_write_eof_doc[] =
    PyDoc_STR("write_eof($self, /)\n--\n\n"
              "Shut down the sending side once everything written is sent.");

PyObject *plait_transport_write_eof(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (t->closing || t->eof_written || !plait_transport_is_live(t))
        Py_RETURN_NONE;
    t->eof_written = true;
    int r = pl_stream_shutdown(&t->stream);
    if (r < 0 && r != -EPIPE && r != PL_ECLOSED)
        return plait_raise(t->loop->state, r, NULL);
    Py_RETURN_NONE;
}

const char plait_transport_can_write_eof_doc[] =
    PyDoc_STR("can_write_eof($self, /)\n--\n\nReturn True.");

PyObject *plait_transport_can_write_eof(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    (void)self;
    Py_RETURN_TRUE;
}
const char plait_transport_get_write_buffer_size_doc[] =
    PyDoc_STR("get_write_buffer_size($self, /)\n--\n\n"
              "Return how many bytes are written but not sent.");

PyObject *plait_transport_get_write_buffer_size(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(((TransportObject *)self)->stream.queued);
}

const char plait_transport_get_limits_doc[] =
    PyDoc_STR("get_write_buffer_limits($self, /)\n--\n\n"
              "Return (low, high), the marks of flow control in bytes.");

PyObject *plait_transport_get_limits(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    return Py_BuildValue("(nn)", (Py_ssize_t)t->low, (Py_ssize_t)t->high);
}

const char plait_transport_set_limits_doc[] =
    PyDoc_STR("set_write_buffer_limits($self, /, high=None, low=None)\n--\n\n"
              "Set the marks of flow control.\n\n"
              "Args:\n"
              "    high (int | None): pause_writing is called above this many bytes; four\n"
              "        times low, or 64 KiB, when None.\n"
              "    low (int | None): resume_writing is called at or below; a quarter of high\n"
              "        when None.\n\n"
              "Raises:\n"
              "    ValueError: not high >= low >= 0.");

PyObject *plait_transport_set_limits(PyObject *self, PyObject *args, PyObject *kwargs)
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
        h = low == Py_None           ? (Py_ssize_t)PLAIT_HIGH_WATER
            : l > PY_SSIZE_T_MAX / 4 ? PY_SSIZE_T_MAX
                                     : 4 * l;
    if (low == Py_None)
        l = h / 4;
    if (!(h >= l && l >= 0))
        return PyErr_Format(PyExc_ValueError, "high (%zd) must be >= low (%zd) must be >= 0", h, l);
    t->high = (size_t)h;
    t->low = (size_t)l;
    if (t->protocol != NULL && plait_transport_is_live(t))
        plait_transport_pause_writing(t);
    Py_RETURN_NONE;
}

/* The transport keeps the future: writes are refused until it is reset. */
void plait_transport_tell_empty(TransportObject *t)
{
    PyObject *waiter = Py_NewRef(t->empty_waiter);
    plait_transport_finish_waiter(t, &waiter);
}

const char plait_transport_make_empty_waiter_doc[] =
    PyDoc_STR("_make_empty_waiter($self, /)\n--\n\n"
              "Return a future that is done when all is sent.");

PyObject *plait_transport_make_empty_waiter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TransportObject *t = (TransportObject *)self;
    if (t->empty_waiter != NULL)
        return PyErr_Format(PyExc_RuntimeError, "Empty waiter is already set");
    PyObject *waiter = PyObject_CallMethod((PyObject *)t->loop, "create_future", NULL);
    if (waiter == NULL)
        return NULL;
    t->empty_waiter = Py_NewRef(waiter);
    if (t->stream.queued == 0)
        plait_transport_tell_empty(t);
    return waiter;
}

const char plait_transport_reset_empty_waiter_doc[] =
    PyDoc_STR("_reset_empty_waiter($self, /)\n--\n\n"
              "Allow writes again.");

PyObject *plait_transport_reset_empty_waiter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(((TransportObject *)self)->empty_waiter);
    Py_RETURN_NONE;
}
