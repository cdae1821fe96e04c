/* tls_pump.c - TLS records in and out, through the interpreter's ssl object and memory BIOs.
 *
 * In: what one receive brought goes into the BIO, then the engine is asked for plaintext as
 * long as there is a whole record. Out: plaintext is encrypted in batches, and each batch
 * leaves the BIO as one bytes object, which the transport below sends by reference. Buffers
 * are lent to the engine by a window object, so nothing is copied or allocated for a call.
 */
#include "tls.h"

#include "transport.h"

/* Below this, plaintext passes through the loop's read buffer; above, it is decrypted into
 * the bytes object that the protocol gets. */
#define DIRECT_READ ((Py_ssize_t)16 << 10)
#define MAX_RECORD ((Py_ssize_t)16384)

/* ---- the window --------------------------------------------------------- */

/* Lends memory to one call of the engine's. One belongs to each loop: the engine gives the
 * interpreter's lock up while it works, and another thread's loop may work then. */
typedef struct {
    PyObject_HEAD
    void *data; /* borrows; NULL outside of a call */
    Py_ssize_t len;
    bool writable;
} WindowObject;

static int window_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    WindowObject *w = (WindowObject *)self;
    if (w->data == NULL) {
        PyErr_SetString(PyExc_BufferError, "the window is closed");
        view->obj = NULL;
        return -1;
    }
    return PyBuffer_FillInfo(view, self, w->data, w->len, !w->writable, flags);
}

static PyType_Slot window_slots[] = {
    {Py_tp_doc, (void *)"Memory of the loop's, lent for one call."},
    {Py_bf_getbuffer, window_getbuffer},
    {0, NULL},
};

static PyType_Spec window_spec = {
    .name = "plait._core.Window",
    .basicsize = sizeof(WindowObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = window_slots,
};

int plait_tls_window_type(PyObject *module, struct plait_state *state)
{
    state->window_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &window_spec, NULL);
    return state->window_type == NULL ? -1 : 0;
}

/* The loop's window, open; borrowed. NULL with an exception set. */
static WindowObject *open_window(LoopObject *loop, const void *data, Py_ssize_t len, bool writable)
{
    if (PL_UNLIKELY(loop->window == NULL)) {
        PyTypeObject *type = loop->state->window_type;
        PyObject *window = type->tp_alloc(type, 0);
        if (window == NULL)
            return NULL;
        loop->window = window;
        loop->window_args = Py_BuildValue("(iO)", INT_MAX, window);
        if (loop->window_args == NULL) {
            Py_CLEAR(loop->window);
            return NULL;
        }
    }
    WindowObject *w = (WindowObject *)loop->window;
    w->data = (void *)(uintptr_t)data;
    w->len = len;
    w->writable = writable;
    return w;
}

static void close_window(LoopObject *loop)
{
    ((WindowObject *)loop->window)->data = NULL;
}

/* ---- the ssl module ----------------------------------------------------- */

int plait_tls_load(struct plait_state *state)
{
    if (state->ssl_engine_write != NULL)
        return 0;
    static const struct {
        size_t offset;
        const char *name;
    } things[] = {
        {offsetof(struct plait_state, ssl_error), "SSLError"},
        {offsetof(struct plait_state, ssl_want_read), "SSLWantReadError"},
        {offsetof(struct plait_state, ssl_syscall), "SSLSyscallError"},
        {offsetof(struct plait_state, ssl_certificate_error), "CertificateError"},
        {offsetof(struct plait_state, ssl_memory_bio), "MemoryBIO"},
        {offsetof(struct plait_state, ssl_object_type), "SSLObject"},
    };
    PyObject *ssl = PyImport_ImportModule("ssl");
    for (size_t i = 0; ssl != NULL && i < PL_ARRAY_LEN(things); i++) {
        PyObject **place = (PyObject **)(void *)((char *)state + things[i].offset);
        PyObject *thing = PyObject_GetAttrString(ssl, things[i].name);
        if (thing == NULL)
            Py_CLEAR(ssl);
        else
            Py_XSETREF(*place, thing);
    }
    Py_XDECREF(ssl);
    if (ssl == NULL)
        return -1;
    /* As functions: to find a method takes as long as to call it. */
    Py_XSETREF(state->ssl_bio_read, PyObject_GetAttr(state->ssl_memory_bio, state->str_read));
    Py_XSETREF(state->ssl_bio_write, PyObject_GetAttr(state->ssl_memory_bio, state->str_write));
    if (state->ssl_bio_read == NULL || state->ssl_bio_write == NULL)
        return -1;
    ssl = PyImport_ImportModule("_ssl");
    PyObject *engine = ssl == NULL ? NULL : PyObject_GetAttrString(ssl, "_SSLSocket");
    Py_XDECREF(ssl);
    if (engine == NULL)
        return -1;
    Py_XSETREF(state->ssl_engine_type, engine);
    /* The last: it says that all are there. */
    state->ssl_engine_write = PyObject_GetAttr(engine, state->str_write);
    return state->ssl_engine_write == NULL ? -1 : 0;
}

bool plait_tls_is_again(TLSObject *t)
{
    struct plait_state *state = t->loop->state;
    if (!PyErr_ExceptionMatches(state->ssl_want_read) &&
        !PyErr_ExceptionMatches(state->ssl_syscall))
        return false;
    PyErr_Clear();
    return true;
}

Py_ssize_t plait_tls_pending(PyObject *bio)
{
    PyObject *number = PyObject_GetAttrString(bio, "pending");
    Py_ssize_t n = number == NULL ? -1 : PyLong_AsSsize_t(number);
    Py_XDECREF(number);
    return n;
}

/* What waits in the BIO, at most. */
static Py_ssize_t pending_in(TLSObject *t)
{
    /* Asked only when there may be more than the beginning of a record. */
    if (PL_LIKELY(t->framing.whole == 0 && !t->framing.lost))
        return (Py_ssize_t)t->framing.tail;
    PyObject *number = PyObject_GetAttr(t->incoming, t->loop->state->str_pending);
    Py_ssize_t n = number == NULL ? -1 : PyLong_AsSsize_t(number);
    Py_XDECREF(number);
    return n;
}

/* ---- records in --------------------------------------------------------- */

/* Follows n bytes of ciphertext to the end of a record or of the data. Bytes followed. */
static size_t follow_record(struct tls_framing *f, const uint8_t *data, size_t n)
{
    size_t done = 0;
    /* Mostly a record begins with what came, and is whole. */
    if (PL_LIKELY(n >= sizeof(f->header) && f->tail == 0 && !f->lost)) {
        size_t size = sizeof(f->header) + ((size_t)data[3] << 8 | data[4]);
        if (size <= n && size > sizeof(f->header) && data[0] >= 20 && data[0] <= 24 &&
            data[1] == 3) {
            f->whole++;
            return size;
        }
    }
    while (done < n && !f->lost) {
        size_t left = n - done, step;
        if (f->body == 0) {
            step = sizeof(f->header) - f->header_len;
            step = step < left ? step : left;
            memcpy(f->header + f->header_len, data + done, step);
            f->header_len = (uint8_t)(f->header_len + step);
            if (f->header_len == sizeof(f->header)) {
                f->body = (uint32_t)f->header[3] << 8 | f->header[4];
                f->lost = f->header[0] < 20 || f->header[0] > 24 || f->header[1] != 3;
            }
        } else {
            step = f->body < left ? f->body : left;
            f->body -= (uint32_t)step;
        }
        done += step;
        f->tail += step;
        if (f->header_len == sizeof(f->header) && f->body == 0) {
            f->header_len = 0;
            f->tail = 0;
            f->whole++;
            return done;
        }
    }
    if (f->lost) {
        f->tail = 0;
        return n;
    }
    return done;
}

static int bio_write(TLSObject *t, const char *data, size_t n)
{
    WindowObject *w = open_window(t->loop, data, (Py_ssize_t)n, false);
    if (w == NULL)
        return -1;
    PyObject *args[] = {t->incoming, (PyObject *)w};
    PyObject *result = PyObject_Vectorcall(t->loop->state->ssl_bio_write, args, 2, NULL);
    close_window(t->loop);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int plait_tls_take_in(TLSObject *t, const char *data, size_t n)
{
    for (size_t done = 0; done < n;)
        done += follow_record(&t->framing, (const uint8_t *)data + done, n - done);
    return n == 0 ? 0 : bio_write(t, data, n);
}

/* One call of the engine's read. Bytes read, 0 at close_notify, -1 with an exception set, -2
 * when there is nothing. */
static Py_ssize_t read_record(TLSObject *t, char *data, Py_ssize_t len)
{
    PyObject *result;
    Py_ssize_t n;
    if (PL_LIKELY(t->stock)) {
        if (open_window(t->loop, data, len, true) == NULL)
            return -1;
        result = PyObject_Call(t->read, t->loop->window_args, NULL);
        close_window(t->loop);
        n = result == NULL ? -1 : PyLong_AsSsize_t(result);
    } else {
        /* An engine of someone else's may keep what it is given. */
        result = PyObject_CallFunction(t->read, "n", len);
        if (result != NULL && !PyBytes_Check(result)) {
            PyErr_Format(PyExc_TypeError, "the ssl object's read() returned %R, not bytes",
                         (PyObject *)Py_TYPE(result));
            Py_CLEAR(result);
        }
        n = result == NULL ? -1 : PyBytes_GET_SIZE(result);
        if (n > len)
            n = len;
        if (n > 0)
            memcpy(data, PyBytes_AS_STRING(result), (size_t)n);
    }
    if (PL_UNLIKELY(result == NULL && plait_tls_is_again(t)))
        n = -2;
    Py_XDECREF(result);
    return n;
}

/* Whether the engine could give something: a whole record, or the rest of one. */
static int has_record(TLSObject *t)
{
    if (t->more)
        return 1;
    /* A record that came just now is there: to ask the BIO is for those that a read has taken
     * along with another. */
    if (t->framing.fresh && t->framing.whole > 0)
        return 1;
    Py_ssize_t pending = pending_in(t);
    if (pending < 0)
        return -1;
    if ((size_t)pending > t->framing.tail)
        return 1;
    t->framing.whole = 0;
    return 0;
}

/* Decrypts records into data until it is full or there are no more. The number of bytes, or
 * -1 with an exception set; *closed tells of close_notify. */
static Py_ssize_t read_records(TLSObject *t, char *data, Py_ssize_t room, bool *closed)
{
    Py_ssize_t used = 0;
    while (used < room) {
        int r = has_record(t);
        if (r <= 0)
            return r < 0 ? -1 : used;
        t->framing.fresh = false;
        Py_ssize_t n = read_record(t, data + used, room - used);
        if (n == -1)
            return -1;
        /* It has begun a record then, at least, or found none. */
        if (n == -2)
            t->framing.whole = 0;
        else if (!t->more && t->framing.whole > 0)
            t->framing.whole--;
        t->more = n == room - used;
        if (n == 0)
            *closed = true;
        if (n <= 0)
            break;
        used += n;
    }
    return used;
}

static int give(TLSObject *t, PyObject *data)
{
    if (t->feed != NULL)
        return plait_reader_feed(t->feed, data);
    PyObject *result = plait_tls_call_app(t, t->loop->state->str_data_received, data);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Ciphertext goes into the BIO in pieces of about this size, each of whole records, and comes
 * out of it before the next: so it stays in the cache, and the BIO stays small. */
#define STEP ((size_t)12 << 10)

/* Takes in and decrypts record by record, into room for all of it. As read_records. */
static Py_ssize_t take_records(TLSObject *t, const char *from, size_t n, char *data,
                               Py_ssize_t room, bool *closed)
{
    Py_ssize_t used = 0;
    while (n > 0 && !*closed) {
        size_t step = 0;
        while (step < n && step < STEP)
            step += follow_record(&t->framing, (const uint8_t *)from + step, n - step);
        if (bio_write(t, from, step) < 0)
            return -1;
        t->framing.fresh = true;
        from += step;
        n -= step;
        Py_ssize_t got = read_records(t, data + used, room - used, closed);
        if (got < 0)
            return -1;
        used += got;
    }
    return used;
}

/* As asyncio's: all that has arrived is given in one call. `from` may be the loop's buffer. */
static int deliver_bytes(TLSObject *t, const char *from, size_t len, bool *closed)
{
    for (;; len = 0) {
        Py_ssize_t room = pending_in(t);
        if (room < 0)
            return -1;
        PyObject *data = NULL;
        char *place = t->loop->read_buffer;
        Py_ssize_t n;
        /* In place: plaintext is shorter than its ciphertext, when nothing comes before it. */
        bool fits =
            len == 0 ? room <= DIRECT_READ
                     : room == 0 && !t->more && t->framing.tail == 0 && len <= (size_t)DIRECT_READ;
        if (fits) {
            room = (Py_ssize_t)PLAIT_READ_BUFFER;
        } else {
            /* The engine may hold some as well. */
            room += (Py_ssize_t)len + MAX_RECORD;
            data = PyBytes_FromStringAndSize(NULL, room);
            if (data == NULL)
                return -1;
            place = PyBytes_AS_STRING(data);
        }
        n = len > 0 ? take_records(t, from, len, place, room, closed)
                    : read_records(t, place, room, closed);
        if (n <= 0)
            Py_CLEAR(data);
        else if (data == NULL)
            data = PyBytes_FromStringAndSize(place, n);
        else if (n < room)
            (void)_PyBytes_Resize(&data, n);
        if (n < 0 || (n > 0 && data == NULL))
            return -1;
        if (n == 0)
            return 0;
        int r = give(t, data);
        Py_DECREF(data);
        if (r < 0 || *closed || n < room || t->reading_paused)
            return r;
    }
}

static int deliver_buffered(TLSObject *t, bool *closed)
{
    struct plait_state *state = t->loop->state;
    int r = has_record(t);
    if (r <= 0)
        return r;
    PyObject *hint = PyLong_FromSsize_t(pending_in(t));
    PyObject *buffer = hint == NULL ? NULL : plait_tls_call_app(t, state->str_get_buffer, hint);
    Py_XDECREF(hint);
    Py_buffer view;
    if (buffer == NULL || PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE) < 0) {
        Py_XDECREF(buffer);
        return -1;
    }
    Py_DECREF(buffer);
    Py_ssize_t room = view.len;
    Py_ssize_t n = room == 0 ? 0 : read_records(t, view.buf, room, closed);
    PyBuffer_Release(&view);
    if (room == 0) {
        PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
        return -1;
    }
    if (n <= 0)
        return (int)n;
    if (n == room && plait_tls_call_soon(t, "_read_on") < 0)
        return -1;
    PyObject *count = PyLong_FromSsize_t(n);
    PyObject *result =
        count == NULL ? NULL : plait_tls_call_app(t, state->str_buffer_updated, count);
    Py_XDECREF(count);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int plait_tls_deliver(TLSObject *t, const char *from, size_t len, bool *closed)
{
    *closed = false;
    if (!t->buffered)
        return deliver_bytes(t, from, len, closed);
    return plait_tls_take_in(t, from, len) < 0 ? -1 : deliver_buffered(t, closed);
}

/* ---- records out -------------------------------------------------------- */

size_t plait_tls_write_size(TLSObject *t)
{
    Py_ssize_t pending = plait_tls_pending(t->outgoing);
    if (pending < 0) {
        PyErr_Clear();
        pending = 0;
    }
    return t->backlog_size + (size_t)pending;
}

static void tell_writing(TLSObject *t, PyObject *name, const char *text)
{
    PyObject *result = plait_tls_call_app(t, name, NULL);
    Py_XDECREF(result);
    if (result != NULL)
        return;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyObject *message = PyUnicode_FromString(text);
    if (message == NULL)
        PyErr_Clear();
    PyErr_Restore(type, exc, tb);
    plait_loop_handle_error(t->loop, message, "transport", (PyObject *)t, "protocol",
                            (PyObject *)t);
    Py_XDECREF(message);
}

void plait_tls_control_writing(TLSObject *t)
{
    if (t->protocol == NULL)
        return;
    if (PL_LIKELY(!t->raw_paused && t->backlog_size == 0 && !t->app_paused && t->write_high > 0))
        return; /* the BIO is empty: all has been handed down */
    size_t size = plait_tls_write_size(t);
    if (size >= t->write_high && !t->app_paused) {
        t->app_paused = true;
        tell_writing(t, t->loop->state->str_pause_writing, "protocol.pause_writing() failed");
    } else if (size <= t->write_low && t->app_paused) {
        t->app_paused = false;
        tell_writing(t, t->loop->state->str_resume_writing, "protocol.resume_writing() failed");
    }
}

/* All that the engine has to send. */
static PyObject *take_out(TLSObject *t)
{
    return PyObject_Vectorcall(t->loop->state->ssl_bio_read, &t->outgoing, 1, NULL);
}

/* Takes what the engine has to send, and gives it to the transport below. */
static int hand_down(TLSObject *t)
{
    if (t->raw == NULL)
        return 0;
    PyObject *data = take_out(t);
    if (data == NULL)
        return -1;
    PyObject *result = NULL;
    if (PyBytes_CheckExact(data) && PyBytes_GET_SIZE(data) == 0)
        result = Py_NewRef(Py_None);
    else if (PL_LIKELY(t->raw_ours))
        result = plait_transport_write(t->raw, data);
    else
        result = PyObject_CallMethodOneArg(t->raw, t->loop->state->str_write, data);
    Py_DECREF(data);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int plait_tls_process_outgoing(TLSObject *t)
{
    if (!t->raw_paused && hand_down(t) < 0)
        return -1;
    plait_tls_control_writing(t);
    return 0;
}

int plait_tls_push(TLSObject *t, PyObject *bytes)
{
    if (t->backlog == NULL && (t->backlog = PyList_New(0)) == NULL)
        return -1;
    if (PyList_Append(t->backlog, bytes) < 0)
        return -1;
    t->backlog_size += (size_t)PyBytes_GET_SIZE(bytes);
    return 0;
}

PyObject *plait_tls_encrypt(TLSObject *t, PyObject *data)
{
    struct plait_state *state = t->loop->state;
    if (PL_UNLIKELY(!t->stock))
        return PyObject_CallMethodOneArg(t->engine, state->str_write, data);
    PyObject *args[] = {t->engine, data};
    return PyObject_Vectorcall(state->ssl_engine_write, args, 2, NULL);
}

/* Encrypts the first piece of the backlog as far as the engine goes in one call. The number of
 * bytes, -1 with an exception set, -2 when the engine must read first. */
static Py_ssize_t encrypt_some(TLSObject *t)
{
    PyObject *piece = Py_NewRef(PyList_GET_ITEM(t->backlog, t->backlog_at));
    Py_ssize_t len = PyBytes_GET_SIZE(piece) - (Py_ssize_t)t->backlog_offset;
    PyObject *view = NULL, *result = NULL;
    if (t->backlog_offset == 0) {
        view = Py_NewRef(piece);
    } else if (t->stock) {
        view = Py_XNewRef((PyObject *)open_window(
            t->loop, PyBytes_AS_STRING(piece) + t->backlog_offset, len, false));
    } else {
        view = PyBytes_FromStringAndSize(PyBytes_AS_STRING(piece) + t->backlog_offset, len);
    }
    if (view != NULL)
        result = plait_tls_encrypt(t, view);
    if (view != NULL && view == t->loop->window)
        close_window(t->loop);
    Py_XDECREF(view);
    Py_ssize_t n = result == NULL ? -1 : PyLong_AsSsize_t(result);
    Py_XDECREF(result);
    Py_DECREF(piece);
    if (PL_UNLIKELY(result == NULL && plait_tls_is_again(t)))
        return -2;
    if (n < 0)
        return -1;
    n = n < len ? n : len;
    t->backlog_size -= (size_t)n;
    t->backlog_offset += (size_t)n;
    if (n == len) {
        t->backlog_offset = 0;
        if (++t->backlog_at == PyList_GET_SIZE(t->backlog)) {
            t->backlog_at = 0;
            Py_CLEAR(t->backlog);
        }
    }
    return n;
}

/* Encrypts a batch of the backlog and hands it down, record by record as it leaves the BIO:
 * the transport sends them in one call. 1 when the engine must read first, 0, or -1. */
static int write_batch(TLSObject *t)
{
    PyObject *records[PLAIT_WRITE_BATCH];
    Py_ssize_t len = 0;
    int r = 0;
    while (t->backlog != NULL && len < PLAIT_WRITE_BATCH && r == 0) {
        Py_ssize_t n = encrypt_some(t);
        if (n < 0) {
            r = n == -2 ? 1 : -1;
            break;
        }
        PyObject *record = take_out(t);
        if (record == NULL)
            r = -1;
        else
            records[len++] = record;
    }
    if (len > 0 && plait_transport_write_bytes((TransportObject *)t->raw, records, len) < 0)
        r = -1;
    while (len > 0)
        Py_DECREF(records[--len]);
    return r;
}

/* The same for a transport that is not ours, or full: all into the BIO. */
static int write_to_bio(TLSObject *t)
{
    size_t done = 0;
    while (t->backlog != NULL && done < PLAIT_TLS_BATCH) {
        Py_ssize_t n = encrypt_some(t);
        if (n < 0)
            return n == -2 ? 1 : -1;
        done += (size_t)n;
    }
    return t->raw_paused ? 0 : hand_down(t);
}

int plait_tls_do_write(TLSObject *t, bool force)
{
    if (t->backlog == NULL) /* what the engine has to say of itself */
        return plait_tls_process_outgoing(t);
    int r = 0;
    while (t->backlog != NULL && (force || !t->raw_paused) && r == 0)
        r = t->raw_ours && !t->raw_paused ? write_batch(t) : write_to_bio(t);
    if (r < 0)
        return -1;
    plait_tls_control_writing(t);
    return 0;
}
