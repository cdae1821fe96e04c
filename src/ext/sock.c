/* sock.c - sock_recv, sock_sendall and their kin: a call tries first and waits only when it
 * must.
 *
 * A call is an awaitable that looks like a coroutine (tasks take it as one). Nothing happens
 * before it is awaited. Its first step tries the system call; done, it returns the result at
 * once, without a future. Otherwise it links a wait to the descriptor's record (watch.c) and
 * yields a future; woken, it tries again. So data is received by the step that returns it:
 * a call that is cancelled has taken nothing.
 *
 * Only sockets of the exact class socket.socket come here, and not in debug mode: the rest
 * (TLS sockets that must be refused, subclasses with methods of their own, odd arguments)
 * goes to the interpreter's loop, whose checks and errors those are.
 *
 * Runs in the loop's thread, with the interpreter attached.
 */
#include "coroutine.h"
#include "spare_bytes.h"
#include "stop.h"
#include "watch.h"

#include <errno.h>
#include <limits.h>
#include <sys/socket.h>

/* Up to this size, and while little arrives, bytes are received into the loop's room. */
#define SMALL_READ ((size_t)32 << 10)

enum kind { RECV, RECV_INTO, SENDALL, METHOD };

/* plait._core.SockCall. */
typedef struct {
    PyObject_HEAD
    LoopObject *loop;
    PyObject *sock;
    PyObject *method;  /* of METHOD: its name; then its arguments */
    PyObject *args[2]; /* objects that the call keeps, or NULL */
    PyObject *future;  /* what it waits for, or NULL */
    PyObject *awaiter; /* future.__await__(), or NULL */
    const char *name;  /* of the loop's method */
    Py_buffer view;    /* of RECV_INTO and SENDALL; obj is NULL when released */
    Py_ssize_t size;   /* of RECV: what is asked for; of SENDALL: what is sent */
    struct plait_sock_wait wait;
    unsigned events; /* what it waits for */
    uint8_t kind;
    bool started;
    bool done;
} CallObject;

PyObject *plait_sock_of_wait(struct plait_sock_wait *wait)
{
    return (PyObject *)PL_CONTAINER_OF(wait, CallObject, wait);
}

/* ---- trying ------------------------------------------------------------- */

/* Finds out what fileno() of a plain socket is. 0, or -1 with an exception set. */
static int learn_fileno(struct plait_state *state)
{
    PyTypeObject *type = (PyTypeObject *)state->socket_type;
    PyObject *found = PyObject_GetAttr((PyObject *)type, state->str_fileno);
    if (found == NULL)
        return -1;
    const PyMethodDef *method =
        Py_IS_TYPE(found, &PyMethodDescr_Type) ? ((PyMethodDescrObject *)found)->d_method : NULL;
    state->loop.socket_fileno =
        method != NULL && method->ml_flags == METH_NOARGS ? method->ml_meth : NULL;
    state->loop.socket_version = type->tp_version_tag;
    Py_DECREF(found);
    return 0;
}

/* The descriptor, or -1 with an exception set. The socket's own fileno is called, without a
 * look for it while no class that it could come from has changed: that is what the version
 * tells, which is 0 when it tells nothing. The instance has no place for one of its own. */
static int socket_fd(CallObject *c)
{
    struct plait_state *state = c->loop->state;
    struct plait_loop_state *known = &state->loop;
    unsigned version = ((PyTypeObject *)state->socket_type)->tp_version_tag;
    if (PL_UNLIKELY(version == 0 || version != known->socket_version) && learn_fileno(state) < 0)
        return -1;
    PyObject *number = PL_LIKELY(known->socket_fileno != NULL)
                           ? known->socket_fileno(c->sock, NULL)
                           : PyObject_CallMethodNoArgs(c->sock, state->str_fileno);
    if (number == NULL)
        return -1;
    long fd = plait_fd_value(number);
    Py_DECREF(number);
    if (PL_LIKELY(fd >= 0 && fd <= INT_MAX))
        return (int)fd;
    if (!PyErr_Occurred()) /* the socket is closed */
        (void)plait_raise(state, -EBADF, NULL);
    return -1;
}

/* The outcome of a system call: 1 when it is through, 0 to wait, -1 with an exception. */
static int judge(CallObject *c, ssize_t n)
{
    if (PL_LIKELY(n >= 0))
        return 1;
    if (n == -EAGAIN || n == -EWOULDBLOCK || n == -EINTR)
        return 0;
    (void)plait_raise(c->loop->state, (int)n, NULL);
    return -1;
}

char *plait_sock_room(LoopObject *loop)
{
    if (PL_UNLIKELY(loop->room == NULL))
        loop->room = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)PLAIT_READ_BUFFER);
    return loop->room == NULL ? NULL : PyBytes_AS_STRING(loop->room);
}

PyObject *plait_sock_received(LoopObject *loop, Py_ssize_t n)
{
    PyObject *data = plait_spare_bytes_new(loop, PyBytes_AS_STRING(loop->room), (size_t)n);
    if (PL_LIKELY(data != NULL))
        return data;
    PyErr_Clear();
    /* Nobody else has seen it: it becomes shorter where it is, with the rest of its memory. */
    data = loop->room;
    loop->room = NULL;
    PyBytes_AS_STRING(data)[n] = '\0';
    Py_SET_SIZE(data, n);
    return data;
}

static int try_recv(CallObject *c, int fd, PyObject **out)
{
    LoopObject *loop = c->loop;
    const struct pl_sys *sys = loop->core.sys;
    size_t size = (size_t)c->size;
    struct plait_watch *w = plait_watch_find(loop, fd);
    uint32_t hint = w != NULL ? w->hint : 0;
    if (size <= PLAIT_READ_BUFFER && (size <= SMALL_READ || hint < SMALL_READ)) {
        char *room = plait_sock_room(loop);
        if (room == NULL)
            return -1;
        ssize_t n = sys->recv(fd, room, size, MSG_DONTWAIT);
        int r = judge(c, n);
        if (r <= 0)
            return r;
        if (w != NULL)
            w->hint = (uint32_t)n;
        *out = plait_sock_received(loop, n);
        return 1;
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, c->size);
    if (data == NULL)
        return -1;
    ssize_t n = sys->recv(fd, PyBytes_AS_STRING(data), size, MSG_DONTWAIT);
    int r = judge(c, n);
    if (r <= 0) {
        Py_DECREF(data);
        return r;
    }
    if (w != NULL)
        w->hint = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
    if (n != c->size && _PyBytes_Resize(&data, n) < 0)
        return -1;
    *out = data;
    return 1;
}

static int try_recv_into(CallObject *c, int fd, PyObject **out)
{
    ssize_t n = c->loop->core.sys->recv(fd, c->view.buf, (size_t)c->view.len, MSG_DONTWAIT);
    int r = judge(c, n);
    if (r <= 0)
        return r;
    *out = PyLong_FromSsize_t(n);
    return *out == NULL ? -1 : 1;
}

static int try_sendall(CallObject *c, int fd, PyObject **out)
{
    const struct pl_sys *sys = c->loop->core.sys;
    const char *data = c->view.buf;
    /* Once even when there is nothing to send: that tells of a broken connection. */
    do {
        ssize_t n = sys->send(fd, data + c->size, (size_t)(c->view.len - c->size),
                              MSG_DONTWAIT | MSG_NOSIGNAL);
        int r = judge(c, n);
        if (r <= 0)
            return r;
        c->size += n;
    } while (c->size < c->view.len);
    *out = Py_NewRef(Py_None);
    return 1;
}

/* Calls the socket's own method, which does not block: the socket's timeout is 0. */
static int try_method(CallObject *c, PyObject **out)
{
    PyObject *args[4] = {NULL, c->sock, c->args[0], c->args[1]};
    size_t n = c->args[0] == NULL ? 1 : c->args[1] == NULL ? 2 : 3;
    *out = PyObject_VectorcallMethod(c->method, args + 1, n | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (*out != NULL)
        return 1;
    if (!PyErr_ExceptionMatches(PyExc_BlockingIOError) &&
        !PyErr_ExceptionMatches(PyExc_InterruptedError))
        return -1;
    PyErr_Clear();
    return 0;
}

/* What accept returns has a socket that is to be non-blocking. */
static int finish_accept(CallObject *c, PyObject **out)
{
    if (c->method != c->loop->state->str_accept)
        return 1;
    PyObject *conn = PyTuple_GetItem(*out, 0); // borrowed
    PyObject *result =
        conn == NULL ? NULL : PyObject_CallMethod(conn, "setblocking", "O", Py_False);
    if (result == NULL) {
        Py_CLEAR(*out);
        return -1;
    }
    Py_DECREF(result);
    return 1;
}

static int try_once(CallObject *c, int fd, PyObject **out)
{
    switch ((enum kind)c->kind) {
    case RECV:
        return try_recv(c, fd, out);
    case RECV_INTO:
        return try_recv_into(c, fd, out);
    case SENDALL:
        return try_sendall(c, fd, out);
    case METHOD:
        break;
    }
    int r = try_method(c, out);
    return r == 1 ? finish_accept(c, out) : r;
}

/* ---- steps -------------------------------------------------------------- */

static void unlink_wait(CallObject *c)
{
    if (c->wait.watch == NULL)
        return;
    plait_watch_unwait(&c->wait);
    Py_DECREF(c); /* the node's; whoever calls has one */
}

/* Gives up all but what a repr shows. */
static void finish(CallObject *c)
{
    c->done = true;
    unlink_wait(c);
    if (c->view.obj != NULL)
        PyBuffer_Release(&c->view);
    Py_CLEAR(c->awaiter);
    Py_CLEAR(c->future);
    Py_CLEAR(c->args[0]);
    Py_CLEAR(c->args[1]);
    Py_CLEAR(c->sock);
}

void plait_sock_wake(struct plait_sock_wait *wait)
{
    CallObject *c = PL_CONTAINER_OF(wait, CallObject, wait);
    struct plait_state *state = c->loop->state;
    PyObject *future = Py_XNewRef(c->future);
    if (future != NULL) {
        /* Cancelled, it has told its task already. */
        PyObject *done = PyObject_CallMethodNoArgs(future, state->str_done);
        PyObject *result = done == Py_False
                               ? PyObject_CallMethodOneArg(future, state->str_set_result, Py_None)
                               : Py_XNewRef(done);
        if (result == NULL)
            PyErr_WriteUnraisable((PyObject *)c);
        Py_XDECREF(result);
        Py_XDECREF(done);
        Py_DECREF(future);
    }
    Py_DECREF(c);
}

/* Links the wait and makes the future. 0, or -1 with an exception set. */
static int begin_wait(CallObject *c, int fd)
{
    LoopObject *loop = c->loop;
    if (plait_loop_check(loop) < 0)
        return -1;
    PyObject *future = PyObject_CallMethodNoArgs((PyObject *)loop, loop->state->str_create_future);
    if (future == NULL)
        return -1;
    getiterfunc get =
        Py_TYPE(future)->tp_as_async != NULL ? Py_TYPE(future)->tp_as_async->am_await : NULL;
    PyObject *awaiter = get != NULL ? get(future) : PyObject_CallMethod(future, "__await__", NULL);
    if (awaiter == NULL || plait_watch_wait(loop, &c->wait, c->sock, fd, c->events) < 0) {
        Py_XDECREF(awaiter);
        Py_DECREF(future);
        return -1;
    }
    Py_INCREF(c); /* the node's */
    c->future = future;
    c->awaiter = awaiter;
    return 0;
}

static PySendResult call_step(CallObject *c, PyObject *arg, PyObject **out)
{
    *out = NULL;
    if (c->done) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    c->started = true;
    PySendResult r;
    for (;;) {
        if (c->awaiter != NULL) {
            PyObject *awaiter = Py_NewRef(c->awaiter);
            r = PyIter_Send(awaiter, arg, out);
            Py_DECREF(awaiter);
            if (r == PYGEN_NEXT)
                return r;
            unlink_wait(c);
            Py_CLEAR(c->awaiter);
            Py_CLEAR(c->future);
            if (r == PYGEN_ERROR)
                break;
            Py_CLEAR(*out);
        }
        int fd = socket_fd(c);
        int tried = fd < 0 ? -1 : try_once(c, fd, out);
        if (tried == 1) {
            r = PYGEN_RETURN;
            break;
        }
        if (tried < 0 || begin_wait(c, fd) < 0) {
            r = PYGEN_ERROR;
            break;
        }
        arg = Py_None;
    }
    /* Its end may drop the last reference but the caller's; the outcome is kept. */
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    finish(c);
    PyErr_Restore(type, exc, tb);
    return r;
}

static PySendResult call_am_send(PyObject *self, PyObject *arg, PyObject **out)
{
    return call_step((CallObject *)self, arg, out);
}

/* Sets StopIteration(value); steals the value. */
static void raise_stop(PyObject *value)
{
    if (value == Py_None) {
        PyErr_SetNone(PyExc_StopIteration);
    } else {
        /* Made here: from a tuple the interpreter would make several arguments. */
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
        if (stop != NULL)
            PyErr_SetObject(PyExc_StopIteration, stop);
        Py_XDECREF(stop);
    }
    Py_DECREF(value);
}

static PyObject *call_send(PyObject *self, PyObject *arg)
{
    PyObject *out;
    PySendResult r = call_step((CallObject *)self, arg, &out);
    if (r != PYGEN_RETURN)
        return out;
    raise_stop(out);
    return NULL;
}

static PyObject *call_next(PyObject *self)
{
    PyObject *out;
    PySendResult r = call_step((CallObject *)self, Py_None, &out);
    if (r != PYGEN_RETURN)
        return out;
    if (out != Py_None) /* NULL without an exception means just that */
        plait_stop_raise(((CallObject *)self)->loop->state, out);
    Py_DECREF(out);
    return NULL;
}

static PyObject *call_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    CallObject *c = (CallObject *)self;
    if (plait_coroutine_may_throw(nargs, c->done) < 0)
        return NULL;
    c->started = true;
    finish(c);
    plait_coroutine_raise(args, nargs);
    return NULL;
}

static PyObject *call_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    CallObject *c = (CallObject *)self;
    c->started = true;
    if (!c->done)
        finish(c);
    Py_RETURN_NONE;
}

/* ---- the type ----------------------------------------------------------- */

static PyObject *get_name(PyObject *self, void *qualified)
{
    const char *name = ((CallObject *)self)->name;
    return PyUnicode_FromFormat("%s%s", qualified != NULL ? "Loop." : "", name);
}

static PyObject *call_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<coroutine object Loop.%s at %p>", ((CallObject *)self)->name,
                                (void *)self);
}

static int call_traverse(PyObject *self, visitproc visit, void *arg)
{
    CallObject *c = (CallObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(c->loop);
    Py_VISIT(c->sock);
    Py_VISIT(c->args[0]);
    Py_VISIT(c->args[1]);
    Py_VISIT(c->future);
    Py_VISIT(c->awaiter);
    Py_VISIT(c->view.obj);
    return 0;
}

/* Never reached while a wait is linked: its reference is one that the loop owns. */
static int call_clear(PyObject *self)
{
    finish((CallObject *)self);
    return 0;
}

static void call_dealloc(PyObject *self)
{
    CallObject *c = (CallObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (!c->started && !c->done)
        plait_coroutine_unawaited(type, "Loop", c->name);
    finish(c);
    /* The loop goes last: with it perhaps the module goes, and its lists. */
    LoopObject *loop = c->loop;
    c->loop = NULL;
    plait_stop_forget(loop->state);
    bool kept = plait_free_list_park(&loop->state->loop.sock_calls, self);
    Py_DECREF(loop);
    if (PL_LIKELY(kept))
        return;
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef call_methods[] = {
    {"send", call_send, METH_O, "send($self, value, /)\n--\n\nGo on, as a coroutine does."},
    {"throw", (PyCFunction)(void (*)(void))call_throw, METH_FASTCALL,
     "throw($self, exception, /)\n--\n\nEnd it with an exception."},
    {"close", call_close, METH_NOARGS, "close($self, /)\n--\n\nEnd it; nothing has been taken."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef call_getset[] = {
    {"__name__", get_name, NULL, "The loop's method.", NULL},
    {"__qualname__", get_name, NULL, "The loop's method, with its class.", (void *)"Loop"},
    {"cr_running", plait_coroutine_running, NULL, "Whether a step of it runs.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot call_slots[] = {
    {Py_tp_doc, (void *)"A sock_* call under way; await it."},
    {Py_tp_dealloc, call_dealloc},
    {Py_tp_traverse, call_traverse},
    {Py_tp_clear, call_clear},
    {Py_tp_methods, call_methods},
    {Py_tp_getset, call_getset},
    {Py_tp_repr, call_repr},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, call_next},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, call_am_send},
    {0, NULL},
};

static PyType_Spec call_spec = {
    .name = "plait._core.SockCall",
    .basicsize = sizeof(CallObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = call_slots,
};

int plait_sock_type(PyObject *module, struct plait_state *state)
{
    state->sock_call_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &call_spec, NULL);
    return state->sock_call_type == NULL ? -1 : PyModule_AddType(module, state->sock_call_type);
}

/* ---- the loop's methods ------------------------------------------------- */

/* The interpreter's own way, for what is not ordinary. */
static PyObject *slow(PyObject *self, const char *name, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *kwnames)
{
    PyObject *method = PyObject_GetAttrString(self, name);
    if (method == NULL)
        return NULL;
    PyObject *result = PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);
    Py_DECREF(method);
    return result;
}

/* Whether a call is ordinary: these arguments by position, a plain socket, no debug mode. */
static bool ordinary(LoopObject *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                     Py_ssize_t least, Py_ssize_t most)
{
    return kwnames == NULL && nargs >= least && nargs <= most && !loop->debug && !loop->closed &&
           loop->core_ready && (PyObject *)Py_TYPE(args[0]) == loop->state->socket_type;
}

/* The socket's methods block unless its timeout is 0, so that is asked. */
static bool never_blocks(LoopObject *loop, PyObject *sock)
{
    PyObject *timeout = PyObject_CallMethodNoArgs(sock, loop->state->str_gettimeout);
    if (timeout == NULL)
        PyErr_Clear();
    bool result =
        timeout != NULL && PyFloat_CheckExact(timeout) && PyFloat_AS_DOUBLE(timeout) == 0.0;
    Py_XDECREF(timeout);
    return result;
}

static CallObject *call_new(LoopObject *loop, enum kind kind, PyObject *sock, const char *name,
                            unsigned events)
{
    CallObject *c = (CallObject *)plait_free_list_new(&loop->state->loop.sock_calls,
                                                      loop->state->sock_call_type);
    if (c == NULL)
        return NULL;
    c->loop = (LoopObject *)Py_NewRef(loop);
    c->sock = Py_NewRef(sock);
    c->method = c->args[0] = c->args[1] = c->future = c->awaiter = NULL;
    c->name = name;
    c->view.obj = NULL;
    c->size = 0;
    c->wait = (struct plait_sock_wait){0};
    c->events = events;
    c->kind = (uint8_t)kind;
    c->started = c->done = false;
    PyObject_GC_Track(c);
    return c;
}

static PyObject *method_new(LoopObject *loop, const char *name, PyObject *method, unsigned events,
                            PyObject *const *args, Py_ssize_t nargs)
{
    CallObject *c = call_new(loop, METHOD, args[0], name, events);
    if (c == NULL)
        return NULL;
    c->method = method; // borrowed: the module's state keeps it
    for (Py_ssize_t i = 1; i < nargs; i++)
        c->args[i - 1] = Py_NewRef(args[i]);
    return (PyObject *)c;
}

PyObject *plait_loop_sock_recv(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    LoopObject *loop = (LoopObject *)self;
    Py_ssize_t size = -1;
    if (ordinary(loop, args, nargs, kwnames, 2, 2) && PyLong_CheckExact(args[1])) {
        size = PyLong_AsSsize_t(args[1]);
        if (size < 0)
            PyErr_Clear();
    }
    if (size < 0)
        return slow(self, "_slow_sock_recv", args, nargs, kwnames);
    CallObject *c = call_new(loop, RECV, args[0], "sock_recv", PL_READABLE);
    if (c != NULL)
        c->size = size;
    return (PyObject *)c;
}

PyObject *plait_loop_sock_recv_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames)
{
    LoopObject *loop = (LoopObject *)self;
    Py_buffer view;
    if (!ordinary(loop, args, nargs, kwnames, 2, 2))
        return slow(self, "_slow_sock_recv_into", args, nargs, kwnames);
    if (PyObject_GetBuffer(args[1], &view, PyBUF_WRITABLE) < 0) {
        PyErr_Clear();
        return slow(self, "_slow_sock_recv_into", args, nargs, kwnames);
    }
    CallObject *c = call_new(loop, RECV_INTO, args[0], "sock_recv_into", PL_READABLE);
    if (c != NULL)
        c->view = view;
    else
        PyBuffer_Release(&view);
    return (PyObject *)c;
}

PyObject *plait_loop_sock_sendall(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames)
{
    LoopObject *loop = (LoopObject *)self;
    Py_buffer view;
    if (!ordinary(loop, args, nargs, kwnames, 2, 2))
        return slow(self, "_slow_sock_sendall", args, nargs, kwnames);
    if (PyObject_GetBuffer(args[1], &view, PyBUF_SIMPLE) < 0) {
        PyErr_Clear();
        return slow(self, "_slow_sock_sendall", args, nargs, kwnames);
    }
    CallObject *c = call_new(loop, SENDALL, args[0], "sock_sendall", PL_WRITABLE);
    if (c != NULL)
        c->view = view;
    else
        PyBuffer_Release(&view);
    return (PyObject *)c;
}

PyObject *plait_loop_sock_accept(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    LoopObject *loop = (LoopObject *)self;
    if (!ordinary(loop, args, nargs, kwnames, 1, 1) || !never_blocks(loop, args[0]))
        return slow(self, "_slow_sock_accept", args, nargs, kwnames);
    return method_new(loop, "sock_accept", loop->state->str_accept, PL_READABLE, args, nargs);
}

PyObject *plait_loop_sock_recvfrom(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *kwnames)
{
    LoopObject *loop = (LoopObject *)self;
    if (!ordinary(loop, args, nargs, kwnames, 2, 2) || !never_blocks(loop, args[0]))
        return slow(self, "_slow_sock_recvfrom", args, nargs, kwnames);
    return method_new(loop, "sock_recvfrom", loop->state->str_recvfrom, PL_READABLE, args, nargs);
}

PyObject *plait_loop_sock_recvfrom_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                        PyObject *kwnames)
{
    LoopObject *loop = (LoopObject *)self;
    /* With a count asyncio has rules of its own. */
    if (!ordinary(loop, args, nargs, kwnames, 2, 2) || !never_blocks(loop, args[0]))
        return slow(self, "_slow_sock_recvfrom_into", args, nargs, kwnames);
    return method_new(loop, "sock_recvfrom_into", loop->state->str_recvfrom_into, PL_READABLE, args,
                      nargs);
}

PyObject *plait_loop_sock_sendto(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    LoopObject *loop = (LoopObject *)self;
    if (!ordinary(loop, args, nargs, kwnames, 3, 3) || !never_blocks(loop, args[0]))
        return slow(self, "_slow_sock_sendto", args, nargs, kwnames);
    return method_new(loop, "sock_sendto", loop->state->str_sendto, PL_WRITABLE, args, nargs);
}
