/* tls.c - the states of a TLS connection: handshake, open, flushing, shutdown, lost.
 *
 * The steps, the errors and their texts are those of asyncio's SSLProtocol. The methods that
 * the transport below calls are at the end; they are the protocol half of the object.
 *
 * Every step may call the program, which may close or abort: after each call the fields are
 * read anew, and a step that has nothing to do any more does nothing.
 */
#include "tls.h"

#include "transport.h"

/* ---- calls -------------------------------------------------------------- */

PyObject *plait_tls_call_app(TLSObject *t, PyObject *name, PyObject *arg)
{
    PyObject *protocol = Py_NewRef(t->protocol != NULL ? t->protocol : Py_None);
    PyObject *args[3] = {NULL, protocol, arg};
    size_t n = (arg != NULL ? 2 : 1) | PY_VECTORCALL_ARGUMENTS_OFFSET;
    PyObject *result = PyObject_VectorcallMethod(name, args + 1, n, NULL);
    Py_DECREF(protocol);
    return result;
}

int plait_tls_call_raw(TLSObject *t, PyObject *name)
{
    if (t->raw == NULL)
        return 0;
    PyObject *raw = Py_NewRef(t->raw);
    PyObject *result = PyObject_CallMethodNoArgs(raw, name);
    Py_DECREF(raw);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int plait_tls_call_soon(TLSObject *t, const char *method)
{
    PyObject *bound = PyObject_GetAttrString((PyObject *)t, method);
    int r = bound == NULL ? -1 : plait_loop_soon(t->loop, bound, NULL, NULL);
    Py_XDECREF(bound);
    return r;
}

static int start_timer(TLSObject *t, double seconds, const char *method)
{
    t->timer = PyObject_CallMethod((PyObject *)t->loop, "call_later", "dN", seconds,
                                   PyObject_GetAttrString((PyObject *)t, method));
    return t->timer == NULL ? -1 : 0;
}

static void stop_timer(TLSObject *t)
{
    PyObject *timer = t->timer;
    if (timer == NULL)
        return;
    t->timer = NULL;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyObject *result = PyObject_CallMethod(timer, "cancel", NULL);
    if (result == NULL)
        PyErr_WriteUnraisable(timer);
    Py_XDECREF(result);
    Py_DECREF(timer);
    PyErr_Restore(type, exc, tb);
}

/* Tells the waiter of the handshake; exc may be NULL. */
static int wake_waiter(TLSObject *t, PyObject *exc)
{
    PyObject *waiter = t->waiter;
    if (waiter == NULL)
        return 0;
    t->waiter = NULL;
    struct plait_state *state = t->loop->state;
    PyObject *cancelled = PyObject_CallMethodNoArgs(waiter, state->str_cancelled);
    PyObject *result = NULL;
    if (cancelled == Py_False && exc != NULL && exc != Py_None)
        result = PyObject_CallMethod(waiter, "set_exception", "O", exc);
    else if (cancelled == Py_False)
        result = PyObject_CallMethodOneArg(waiter, state->str_set_result, Py_None);
    else
        result = Py_XNewRef(cancelled);
    Py_XDECREF(cancelled);
    Py_DECREF(waiter);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* ---- the end by force --------------------------------------------------- */

static void raw_force_close(TLSObject *t, PyObject *exc)
{
    if (t->raw == NULL)
        return;
    PyObject *raw = Py_NewRef(t->raw);
    if (t->raw_ours) {
        if (plait_transport_is_live((TransportObject *)raw))
            plait_transport_force_close((TransportObject *)raw, exc);
    } else {
        PyObject *result =
            PyObject_CallMethod(raw, "_force_close", "O", exc != NULL ? exc : Py_None);
        if (result == NULL)
            PyErr_WriteUnraisable(raw);
        Py_XDECREF(result);
    }
    Py_DECREF(raw);
}

void plait_tls_force_close(TLSObject *t, PyObject *exc)
{
    t->closed = true;
    t->state = TLS_UNWRAPPED;
    raw_force_close(t, exc);
}

/* Fetches the exception that is set, whole; owned. */
static PyObject *take_exception(void)
{
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb != NULL && exc != NULL)
        (void)PyException_SetTraceback(exc, tb);
    Py_XDECREF(type);
    Py_XDECREF(tb);
    return exc;
}

static void give_back_exception(PyObject *exc)
{
    PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_DECREF(exc);
}

/* Closes for an exception; the network's ordinary errors are told by connection_lost alone. */
static void fatal_exception(TLSObject *t, PyObject *exc, const char *text)
{
    PyObject *raw = Py_XNewRef(t->raw);
    raw_force_close(t, exc);
    if (PyErr_GivenExceptionMatches(exc, PyExc_OSError)) {
        if (t->loop->debug) {
            PyObject *r = PyObject_CallMethod(t->loop->state->logger, "debug", "sOsO", "%r: %s: %r",
                                              (PyObject *)t, text, exc);
            if (r == NULL)
                PyErr_Clear();
            Py_XDECREF(r);
        }
    } else {
        PyObject *message = PyUnicode_FromString(text);
        give_back_exception(Py_NewRef(exc));
        plait_loop_handle_error(t->loop, message, "transport", raw != NULL ? raw : Py_None,
                                "protocol", (PyObject *)t);
        Py_XDECREF(message);
    }
    Py_XDECREF(raw);
}

int plait_tls_fatal(TLSObject *t, const char *text)
{
    PyObject *exc = take_exception();
    if (exc == NULL)
        return 0;
    if (!PyErr_GivenExceptionMatches(exc, PyExc_Exception)) {
        give_back_exception(exc);
        return -1;
    }
    fatal_exception(t, exc, text);
    Py_DECREF(exc);
    return 0;
}

/* ---- handshake ---------------------------------------------------------- */

static int set_extra(TLSObject *t, PyObject *certificate)
{
    static const char *const methods[] = {"cipher", "compression"};
    if (PyDict_SetItemString(t->extra, "peercert", certificate) < 0 ||
        PyDict_SetItemString(t->extra, "ssl_object", t->ssl_object) < 0)
        return -1;
    for (size_t i = 0; i < PL_ARRAY_LEN(methods); i++) {
        PyObject *value = PyObject_CallMethod(t->ssl_object, methods[i], NULL);
        int r = value == NULL ? -1 : PyDict_SetItemString(t->extra, methods[i], value);
        Py_XDECREF(value);
        if (r < 0)
            return -1;
    }
    return 0;
}

static void log_handshake(TLSObject *t)
{
    double ms = (double)(t->loop->core.sys->now() - t->handshake_start) * 1e-6;
    PyObject *r = PyObject_CallMethod(t->loop->state->logger, "debug", "sOd",
                                      "%r: SSL handshake took %.1f ms", (PyObject *)t, ms);
    if (r == NULL)
        PyErr_Clear();
    Py_XDECREF(r);
}

/* The exception that is set ends the handshake. */
static int fail_handshake(TLSObject *t)
{
    PyObject *exc = take_exception();
    if (!PyErr_GivenExceptionMatches(exc, PyExc_Exception)) {
        give_back_exception(exc);
        return -1;
    }
    t->state = TLS_UNWRAPPED;
    bool certificate = PyErr_GivenExceptionMatches(exc, t->loop->state->ssl_certificate_error);
    fatal_exception(t, exc,
                    certificate ? "SSL handshake failed on verifying the certificate"
                                : "SSL handshake failed");
    int r = wake_waiter(t, exc);
    Py_DECREF(exc);
    return r;
}

/* Called with an exception set when it has failed. */
static int finish_handshake(TLSObject *t)
{
    stop_timer(t);
    if (PyErr_Occurred())
        return fail_handshake(t);
    t->state = TLS_OPEN;
    PyObject *certificate = PyObject_CallMethod(t->ssl_object, "getpeercert", NULL);
    if (certificate == NULL)
        return fail_handshake(t);
    if (t->loop->debug && t->handshake_start != 0)
        log_handshake(t);
    int r = set_extra(t, certificate);
    Py_DECREF(certificate);
    if (r < 0)
        return -1;
    t->more = true; /* the engine may have read on */
    if (t->app_state == TLS_APP_INIT) {
        t->app_state = TLS_APP_MADE;
        plait_reader_link(t->loop, t->protocol, &t->feed);
        PyObject *result =
            plait_tls_call_app(t, t->loop->state->str_connection_made, (PyObject *)t);
        Py_XDECREF(result);
        if (result == NULL)
            return -1;
    } else {
        plait_reader_link(t->loop, t->protocol, &t->feed);
    }
    return wake_waiter(t, NULL) < 0 ? -1 : plait_tls_do_read(t, NULL, 0);
}

static int do_handshake(TLSObject *t)
{
    PyObject *result = PyObject_CallMethod(t->ssl_object, "do_handshake", NULL);
    if (result == NULL) {
        if (plait_tls_is_again(t))
            return plait_tls_process_outgoing(t);
        if (!PyErr_ExceptionMatches(t->loop->state->ssl_error))
            return -1;
    }
    Py_XDECREF(result);
    return finish_handshake(t);
}

static int start_handshake(TLSObject *t)
{
    if (t->loop->debug) {
        t->handshake_start = t->loop->core.sys->now();
        PyObject *r = PyObject_CallMethod(t->loop->state->logger, "debug", "sO",
                                          "%r starts SSL handshake", (PyObject *)t);
        if (r == NULL)
            return -1;
        Py_DECREF(r);
    }
    t->state = TLS_HANDSHAKE;
    if (start_timer(t, t->handshake_timeout, "_check_handshake_timeout") < 0)
        return -1;
    return do_handshake(t);
}

/* A new error with a text, from a format of one float. */
static PyObject *timeout_error(PyObject *class, const char *format, double seconds)
{
    PyObject *number = PyFloat_FromDouble(seconds);
    PyObject *text = number == NULL ? NULL : PyUnicode_FromFormat(format, number);
    PyObject *exc = text == NULL ? NULL : PyObject_CallOneArg(class, text);
    Py_XDECREF(number);
    Py_XDECREF(text);
    return exc;
}

static PyObject *check_handshake_timeout(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    if (t->state != TLS_HANDSHAKE)
        Py_RETURN_NONE;
    PyObject *exc =
        timeout_error(PyExc_ConnectionAbortedError,
                      "SSL handshake is taking longer than %S seconds: aborting the connection",
                      t->handshake_timeout);
    if (exc == NULL)
        return NULL;
    fatal_exception(t, exc, "Fatal error on transport");
    Py_DECREF(exc);
    Py_RETURN_NONE;
}

/* ---- reading ------------------------------------------------------------ */

static int call_eof_received(TLSObject *t)
{
    if (t->app_state != TLS_APP_MADE)
        return 0;
    t->app_state = TLS_APP_EOF;
    PyObject *result = plait_tls_call_app(t, t->loop->state->str_eof_received, NULL);
    int keep_open = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    if (keep_open < 0) {
        PyObject *exc = take_exception();
        bool leaves = PyErr_GivenExceptionMatches(exc, PyExc_KeyboardInterrupt) ||
                      PyErr_GivenExceptionMatches(exc, PyExc_SystemExit);
        if (leaves) {
            give_back_exception(exc);
            return -1;
        }
        fatal_exception(t, exc, "Error calling eof_received()");
        Py_DECREF(exc);
        return 0;
    }
    if (keep_open) {
        PyObject *r = PyObject_CallMethod(t->loop->state->logger, "warning", "s",
                                          "returning true from eof_received() has no effect "
                                          "when using ssl");
        Py_XDECREF(r);
        return r == NULL ? -1 : 0;
    }
    return 0;
}

int plait_tls_control_reading(TLSObject *t)
{
    if (PL_LIKELY(!t->reading_paused && !t->buffered && !t->raw_reading_paused))
        return 0; /* all but the beginning of a record has been read */
    Py_ssize_t size = plait_tls_pending(t->incoming);
    if (size < 0)
        return -1;
    struct plait_state *state = t->loop->state;
    if ((size_t)size >= t->read_high && !t->raw_reading_paused) {
        t->raw_reading_paused = true;
        return plait_tls_call_raw(t, state->str_pause_reading);
    }
    if ((size_t)size <= t->read_low && t->raw_reading_paused) {
        t->raw_reading_paused = false;
        return plait_tls_call_raw(t, state->str_resume_reading);
    }
    return 0;
}

static int try_read(TLSObject *t, const char *from, size_t len)
{
    if (t->reading_paused) {
        if (plait_tls_take_in(t, from, len) < 0)
            return -1;
    } else {
        bool closed;
        if (plait_tls_deliver(t, from, len, &closed) < 0)
            return -1;
        if (closed) {
            if (call_eof_received(t) < 0)
                return -1;
            plait_tls_start_shutdown(t);
            if (PyErr_Occurred())
                return -1;
        }
        if (t->backlog != NULL) {
            if (plait_tls_do_write(t, false) < 0)
                return -1;
        } else if (plait_tls_process_outgoing(t) < 0) {
            return -1;
        }
    }
    return plait_tls_control_reading(t);
}

int plait_tls_do_read(TLSObject *t, const char *from, size_t len)
{
    if (t->state != TLS_OPEN && t->state != TLS_FLUSHING)
        return 0;
    return try_read(t, from, len) < 0 ? plait_tls_fatal(t, "Fatal error on SSL protocol") : 0;
}

/* ---- shutdown ----------------------------------------------------------- */

/* Called with an exception set when it has failed. */
static int finish_shutdown(TLSObject *t)
{
    stop_timer(t);
    if (PyErr_Occurred())
        return plait_tls_fatal(t, "Fatal error on transport");
    return plait_tls_call_soon(t, "_close_raw");
}

static int do_shutdown(TLSObject *t)
{
    if (!t->eof_received) {
        PyObject *result = PyObject_CallMethod(t->ssl_object, "unwrap", NULL);
        Py_XDECREF(result);
        if (result == NULL) {
            if (plait_tls_is_again(t))
                return plait_tls_process_outgoing(t);
            return PyErr_ExceptionMatches(t->loop->state->ssl_error) ? finish_shutdown(t) : -1;
        }
    }
    if (plait_tls_process_outgoing(t) < 0 || call_eof_received(t) < 0)
        return -1;
    return finish_shutdown(t);
}

static int do_flush(TLSObject *t)
{
    if (plait_tls_do_read(t, NULL, 0) < 0)
        return -1;
    if (t->state != TLS_FLUSHING)
        return 0; /* aborted while the protocol was given the rest */
    if (t->backlog != NULL && plait_tls_do_write(t, true) < 0)
        return -1;
    t->state = TLS_SHUTDOWN;
    return do_shutdown(t);
}

/* An exception may be set afterwards. */
void plait_tls_start_shutdown(TLSObject *t)
{
    if (t->state == TLS_FLUSHING || t->state == TLS_SHUTDOWN || t->state == TLS_UNWRAPPED)
        return;
    t->closed = true;
    if (t->state == TLS_HANDSHAKE) {
        plait_tls_force_close(t, NULL);
        return;
    }
    t->state = TLS_FLUSHING;
    if (start_timer(t, t->shutdown_timeout, "_check_shutdown_timeout") == 0)
        (void)do_flush(t); /* its exception stays set for the caller */
}

static PyObject *check_shutdown_timeout(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    if (t->state != TLS_FLUSHING && t->state != TLS_SHUTDOWN)
        Py_RETURN_NONE;
    PyObject *exc = PyObject_CallFunction(PyExc_TimeoutError, "s", "SSL shutdown timed out");
    if (exc == NULL)
        return NULL;
    raw_force_close(t, exc);
    Py_DECREF(exc);
    Py_RETURN_NONE;
}

static PyObject *close_raw(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    return plait_tls_call_raw(t, t->loop->state->str_close) < 0 ? NULL : Py_NewRef(Py_None);
}

static int go_on_reading(TLSObject *t)
{
    switch ((enum tls_state)t->state) {
    case TLS_OPEN:
        return plait_tls_do_read(t, NULL, 0);
    case TLS_FLUSHING:
        return do_flush(t);
    case TLS_SHUTDOWN:
        return do_shutdown(t);
    case TLS_HANDSHAKE:
    case TLS_UNWRAPPED:
        break;
    }
    return 0;
}

/* After reading was paused, or a protocol's buffer was too small for all. */
static PyObject *read_on(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return go_on_reading((TLSObject *)self) < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- what the transport below calls ------------------------------------- */

int plait_tls_feed(PyObject *self, const char *data, size_t n)
{
    TLSObject *t = (TLSObject *)self;
    Py_INCREF(t);
    int r = 0;
    if (t->state == TLS_OPEN) {
        r = plait_tls_do_read(t, data, n);
    } else {
        r = plait_tls_take_in(t, data, n);
        if (r == 0 && t->state == TLS_HANDSHAKE)
            r = do_handshake(t);
        else if (r == 0)
            r = go_on_reading(t);
    }
    Py_DECREF(t);
    return r;
}

static PyObject *data_received(PyObject *self, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int r = plait_tls_feed(self, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *connection_made(PyObject *self, PyObject *raw)
{
    TLSObject *t = (TLSObject *)self;
    Py_XSETREF(t->raw, Py_NewRef(raw));
    t->raw_ours = Py_IS_TYPE(raw, t->loop->state->transport_type);
    return start_handshake(t) < 0 ? NULL : Py_NewRef(Py_None);
}

static int tell_lost(TLSObject *t, PyObject *exc)
{
    if (t->app_state != TLS_APP_MADE && t->app_state != TLS_APP_EOF)
        return 0;
    t->app_state = TLS_APP_LOST;
    PyObject *lost = PyObject_GetAttr(t->protocol, t->loop->state->str_connection_lost);
    int r = lost == NULL ? -1 : plait_loop_soon(t->loop, lost, exc, NULL);
    Py_XDECREF(lost);
    return r;
}

void plait_tls_release(TLSObject *t)
{
    if (!t->released || t->raw != NULL)
        return;
    PyDict_Clear(t->extra);
    Py_CLEAR(t->read);
    Py_CLEAR(t->engine);
    Py_CLEAR(t->ssl_object);
}

static PyObject *connection_lost(PyObject *self, PyObject *exc)
{
    TLSObject *t = (TLSObject *)self;
    Py_INCREF(t);
    stop_timer(t);
    Py_CLEAR(t->backlog);
    t->backlog_size = 0;
    t->backlog_offset = 0;
    t->backlog_at = 0;
    t->lost_writes++;
    t->closed = true;
    int r = t->state != TLS_HANDSHAKE ? tell_lost(t, exc) : 0;
    t->state = TLS_UNWRAPPED;
    plait_reader_unlink(&t->feed);
    Py_CLEAR(t->raw);
    t->raw_ours = false;
    Py_CLEAR(t->protocol);
    plait_tls_release(t);
    if (wake_waiter(t, exc) < 0)
        r = -1;
    Py_DECREF(t);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

/* 1: the transport below is to stay open, 0: it is to close, -1 with an exception set. */
static int handle_eof(TLSObject *t)
{
    switch ((enum tls_state)t->state) {
    case TLS_HANDSHAKE:
        PyErr_SetNone(PyExc_ConnectionResetError);
        return finish_handshake(t);
    case TLS_OPEN:
        t->state = TLS_FLUSHING;
        if (t->reading_paused)
            return 1; /* what has arrived is given when reading resumes */
        return do_flush(t);
    case TLS_FLUSHING:
        if (plait_tls_do_write(t, true) < 0)
            return -1;
        t->state = TLS_SHUTDOWN;
        return do_shutdown(t);
    case TLS_SHUTDOWN:
        return do_shutdown(t);
    case TLS_UNWRAPPED:
        break;
    }
    return 0;
}

static PyObject *eof_received(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    t->eof_received = true;
    if (t->loop->debug) {
        PyObject *r =
            PyObject_CallMethod(t->loop->state->logger, "debug", "sO", "%r received EOF", self);
        if (r == NULL)
            return NULL;
        Py_DECREF(r);
    }
    int r = handle_eof(t);
    if (r >= 0)
        return PyBool_FromLong(r);
    PyObject *exc = take_exception();
    if (plait_tls_call_raw(t, t->loop->state->str_close) < 0)
        PyErr_WriteUnraisable(self);
    give_back_exception(exc);
    return NULL;
}

static PyObject *pause_writing(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ((TLSObject *)self)->raw_paused = true;
    Py_RETURN_NONE;
}

static PyObject *resume_writing(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TLSObject *t = (TLSObject *)self;
    t->raw_paused = false;
    /* Ciphertext first, which the engine has made in this order. */
    int r = plait_tls_process_outgoing(t);
    if (r == 0 && t->backlog != NULL && (t->state == TLS_OPEN || t->state == TLS_FLUSHING) &&
        plait_tls_do_write(t, false) < 0)
        r = plait_tls_fatal(t, "Fatal error on SSL protocol");
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

PyMethodDef plait_tls_protocol_methods[] = {
    {"connection_made", connection_made, METH_O, NULL},
    {"data_received", data_received, METH_O, NULL},
    {"eof_received", eof_received, METH_NOARGS, NULL},
    {"connection_lost", connection_lost, METH_O, NULL},
    {"pause_writing", pause_writing, METH_NOARGS, NULL},
    {"resume_writing", resume_writing, METH_NOARGS, NULL},
    {"_check_handshake_timeout", check_handshake_timeout, METH_NOARGS, NULL},
    {"_check_shutdown_timeout", check_shutdown_timeout, METH_NOARGS, NULL},
    {"_close_raw", close_raw, METH_NOARGS, NULL},
    {"_read_on", read_on, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
