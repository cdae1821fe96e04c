/* transport_protocol.c - what a transport tells its protocol and its loop: calls in the
 * connection's context, errors, flow control of the writer, waiters.
 */
#include "transport.h"

/* Calls protocol.name(arg) in the transport's context; arg may be NULL. */
PyObject *plait_transport_call(TransportObject *t, PyObject *name, PyObject *arg)
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
void plait_transport_tell(TransportObject *t, const char *text)
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

void plait_transport_force_close(TransportObject *t, PyObject *exc)
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
void plait_transport_fatal(TransportObject *t, const char *text)
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
        plait_transport_tell(t, text);
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
        plait_transport_force_close(t, exc);
    Py_XDECREF(exc);
}

void plait_transport_fatal_code(TransportObject *t, int code, const char *text)
{
    (void)plait_raise(t->loop->state, code, NULL);
    plait_transport_fatal(t, text);
}

void plait_transport_pause_writing(TransportObject *t)
{
    if (t->protocol_paused || t->stream.queued <= t->high)
        return;
    t->protocol_paused = true;
    PyObject *result = PyObject_CallMethodNoArgs(t->protocol, t->loop->state->str_pause_writing);
    if (result == NULL)
        plait_transport_tell(t, "protocol.pause_writing() failed");
    Py_XDECREF(result);
}

void plait_transport_resume_writing(TransportObject *t)
{
    if (!t->protocol_paused || t->stream.queued > t->low)
        return;
    t->protocol_paused = false;
    PyObject *result = plait_transport_call(t, t->loop->state->str_resume_writing, NULL);
    if (result == NULL)
        plait_transport_tell(t, "protocol.resume_writing() failed");
    Py_XDECREF(result);
}

/* Sets a future's result to None unless it is done. */
void plait_transport_finish_waiter(TransportObject *t, PyObject **place)
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
        plait_transport_tell(t, "cannot tell that the transport is ready");
    Py_XDECREF(result);
    Py_DECREF(waiter);
}
