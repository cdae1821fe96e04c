/* generators_request.c - plait.generators.Request, and the functions that make one.
 *
 * What can be checked without a loop is checked here, before the generator yields: an error
 * then shows the line of the call. Requests come from a free list; a program that wants to
 * save even that yields the same one again and again.
 */
#include "generators.h"

#include "args.h"

#include <math.h>

static RequestObject *request_new(PyObject *module, enum gen_kind kind, PyObject *target,
                                  PyObject *arg)
{
    struct plait_state *state = plait_state_of_module(module);
    RequestObject *rq =
        (RequestObject *)plait_free_list_new(&state->generators.requests, state->gen_request_type);
    if (rq == NULL)
        return NULL;
    rq->kind = (uint8_t)kind;
    rq->target = Py_XNewRef(target);
    rq->arg = Py_XNewRef(arg);
    rq->seconds = INFINITY;
    rq->n = 0;
    rq->sent = 0;
    rq->shield = rq->busy = rq->has_view = false;
    PyObject_GC_Track(rq);
    return rq;
}

void plait_gen_request_end(RequestObject *rq)
{
    rq->busy = false;
    if (rq->has_view) {
        rq->has_view = false;
        PyBuffer_Release(&rq->view);
    }
}

/* ---- checks ------------------------------------------------------------- */

static int check_count(const char *name, Py_ssize_t nargs, PyObject *kwnames, Py_ssize_t least,
                       Py_ssize_t most)
{
    if (kwnames != NULL && PyTuple_GET_SIZE(kwnames) > 0) {
        PyErr_Format(PyExc_TypeError, "%s() takes no keyword arguments", name);
        return -1;
    }
    if (nargs >= least && nargs <= most)
        return 0;
    if (least == most)
        PyErr_Format(PyExc_TypeError, "%s() takes %zd argument%s, got %zd", name, least,
                     least == 1 ? "" : "s", nargs);
    else
        PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments, got %zd", name, least, most,
                     nargs);
    return -1;
}

static int check_socket(PyObject *module, const char *name, PyObject *sock)
{
    struct plait_state *state = plait_state_of_module(module);
    if (PL_LIKELY(Py_IS_TYPE(sock, (PyTypeObject *)state->socket_type)))
        return 0;
    if (!PyObject_TypeCheck(sock, (PyTypeObject *)state->socket_type)) {
        PyErr_Format(PyExc_TypeError, "%s(): sock must be a socket.socket, not %.200R", name, sock);
        return -1;
    }
    if (PyObject_HasAttrString(sock, "do_handshake")) {
        PyErr_Format(PyExc_TypeError,
                     "%s(): sock must be a plain socket: TLS records cannot be told apart here, "
                     "use a stream of the loop",
                     name);
        return -1;
    }
    return 0;
}

/* accept and connect have no flag for a single call that keeps them from blocking. */
static int check_nonblocking(const char *name, PyObject *sock)
{
    PyObject *timeout = PyObject_CallMethod(sock, "gettimeout", NULL);
    if (timeout == NULL)
        return -1;
    bool good = timeout != Py_None && PyFloat_AsDouble(timeout) == 0.0;
    Py_DECREF(timeout);
    if (good)
        return 0;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%s(): the socket must not block: call setblocking(False)",
                     name);
    return -1;
}

static int check_seconds(const char *name, PyObject *number, double *out)
{
    double seconds = PyFloat_AsDouble(number);
    if (seconds == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_TypeError, "%s(): seconds must be a number, not %.200R", name,
                         number);
        }
        return -1;
    }
    if (isnan(seconds)) {
        PyErr_Format(PyExc_ValueError, "%s(): seconds must be a number, not nan", name);
        return -1;
    }
    *out = seconds;
    return 0;
}

static int check_size(const char *name, const char *arg, PyObject *number, Py_ssize_t least,
                      Py_ssize_t *out)
{
    Py_ssize_t n = PL_LIKELY(PyLong_CheckExact(number))
                       ? PyLong_AsSsize_t(number)
                       : PyNumber_AsSsize_t(number, PyExc_OverflowError);
    if (n == -1 && PyErr_Occurred())
        return -1;
    if (n < least) {
        PyErr_Format(PyExc_ValueError, "%s(): %s must be %zd or more, not %zd", name, arg, least,
                     n);
        return -1;
    }
    *out = n;
    return 0;
}

/* ---- sockets ------------------------------------------------------------ */

PyDoc_STRVAR(
    recv_doc,
    "recv(sock, n, /)\n--\n\n"
    "Receive at most n bytes; to be yielded.\n\n"
    "Args:\n"
    "    sock (socket.socket): a plain socket; it may be a blocking one.\n"
    "    n (int): at least 1.\n\n"
    "Returns:\n"
    "    Request[bytes]: the yield gives what has come, b\"\" at the end of the stream.\n\n"
    "Raises (at the yield):\n"
    "    OSError: the system's error, or the socket is closed.\n"
    "    RuntimeError: another task waits to receive from it.");

static PyObject *make_recv(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    Py_ssize_t n;
    if (check_count("recv", nargs, kwnames, 2, 2) < 0 ||
        check_socket(module, "recv", args[0]) < 0 || check_size("recv", "n", args[1], 1, &n) < 0)
        return NULL;
    RequestObject *rq = request_new(module, GEN_RECV, args[0], NULL);
    if (rq != NULL)
        rq->n = n;
    return (PyObject *)rq;
}

PyDoc_STRVAR(
    recv_into_doc,
    "recv_into(sock, buffer, n=0, /)\n--\n\n"
    "Receive into a writable buffer; to be yielded.\n\n"
    "Args:\n"
    "    sock (socket.socket): a plain socket.\n"
    "    buffer: bytearray, memoryview or the like; it is locked while the task waits.\n"
    "    n (int): at most so many bytes; 0 for as many as there is room for.\n\n"
    "Returns:\n"
    "    Request[int]: the yield gives the number of bytes, 0 at the end of the stream.\n\n"
    "Raises (at the yield):\n"
    "    BufferError: the buffer cannot be written to.\n"
    "    OSError, RuntimeError: as recv.");

static PyObject *make_recv_into(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    Py_ssize_t n = 0;
    if (check_count("recv_into", nargs, kwnames, 2, 3) < 0 ||
        check_socket(module, "recv_into", args[0]) < 0)
        return NULL;
    if (!PyObject_CheckBuffer(args[1]))
        return PyErr_Format(PyExc_TypeError, "recv_into(): buffer must be a buffer, not %.200R",
                            args[1]);
    if (nargs == 3 && check_size("recv_into", "n", args[2], 0, &n) < 0)
        return NULL;
    RequestObject *rq = request_new(module, GEN_RECV_INTO, args[0], args[1]);
    if (rq != NULL)
        rq->n = n;
    return (PyObject *)rq;
}

PyDoc_STRVAR(send_doc,
             "send(sock, data, /)\n--\n\n"
             "Send all of data; to be yielded.\n\n"
             "Args:\n"
             "    sock (socket.socket): a plain socket; it may be a blocking one.\n"
             "    data: bytes, or any other buffer, which is locked while the task waits.\n\n"
             "Returns:\n"
             "    Request[None]: the yield gives None when the system has taken all of it. Given\n"
             "    up before (a timeout, a cancellation), a part may have been sent.\n\n"
             "Raises (at the yield):\n"
             "    OSError: the system's error, or the socket is closed.\n"
             "    RuntimeError: another task waits to send on it.");

static PyObject *make_send(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    if (check_count("send", nargs, kwnames, 2, 2) < 0 || check_socket(module, "send", args[0]) < 0)
        return NULL;
    if (!PyObject_CheckBuffer(args[1]))
        return PyErr_Format(PyExc_TypeError, "send(): data must be bytes, not %.200R", args[1]);
    return (PyObject *)request_new(module, GEN_SEND, args[0], args[1]);
}

PyDoc_STRVAR(accept_doc,
             "accept(sock, /)\n--\n\n"
             "Accept a connection; to be yielded.\n\n"
             "Args:\n"
             "    sock (socket.socket): listening, and non-blocking.\n\n"
             "Returns:\n"
             "    Request[tuple[socket.socket, Any]]: the yield gives the connection, a\n"
             "    non-blocking socket, and the peer's address.\n\n"
             "Raises:\n"
             "    ValueError: the socket is a blocking one.\n"
             "    OSError (at the yield): the system's error, such as EMFILE.");

static PyObject *make_accept(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    if (check_count("accept", nargs, kwnames, 1, 1) < 0 ||
        check_socket(module, "accept", args[0]) < 0 || check_nonblocking("accept", args[0]) < 0)
        return NULL;
    return (PyObject *)request_new(module, GEN_ACCEPT, args[0], NULL);
}

PyDoc_STRVAR(connect_doc,
             "connect(sock, address, /)\n--\n\n"
             "Connect to an address; to be yielded.\n\n"
             "Args:\n"
             "    sock (socket.socket): non-blocking.\n"
             "    address: as for socket.connect. A name instead of a number would make the whole\n"
             "        loop wait for its resolution: resolve it in a thread, see wait().\n\n"
             "Returns:\n"
             "    Request[None]: the yield gives None when the connection is made.\n\n"
             "Raises:\n"
             "    ValueError: the socket is a blocking one, or the host is a name.\n"
             "    OSError (at the yield): the connection failed.");

/* A host that is not empty, and consists of what numeric addresses have only. */
static int check_host(PyObject *address)
{
    if (!PyTuple_Check(address) || PyTuple_GET_SIZE(address) < 2)
        return 0;                                  /* a path, or what the system will refuse */
    PyObject *host = PyTuple_GET_ITEM(address, 0); // borrowed
    if (!PyUnicode_Check(host))
        return 0;
    bool colons = PyUnicode_FindChar(host, ':', 0, PyUnicode_GET_LENGTH(host), 1) >= 0;
    for (Py_ssize_t i = 0; i < PyUnicode_GET_LENGTH(host) && !colons; i++) {
        Py_UCS4 c = PyUnicode_READ_CHAR(host, i);
        if ((c < '0' || c > '9') && c != '.') {
            PyErr_Format(PyExc_ValueError,
                         "connect(): the host must be a numeric address, not %R: resolve names in "
                         "a thread",
                         host);
            return -1;
        }
    }
    return 0;
}

static PyObject *make_connect(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames)
{
    if (check_count("connect", nargs, kwnames, 2, 2) < 0 ||
        check_socket(module, "connect", args[0]) < 0 || check_nonblocking("connect", args[0]) < 0 ||
        check_host(args[1]) < 0)
        return NULL;
    return (PyObject *)request_new(module, GEN_CONNECT, args[0], args[1]);
}

/* ---- time, futures, tasks ----------------------------------------------- */

PyDoc_STRVAR(sleep_doc,
             "sleep(seconds, /)\n--\n\n"
             "Wait for some time; to be yielded.\n\n"
             "Args:\n"
             "    seconds (float): 0 or less lets all others that are ready run once.\n\n"
             "Returns:\n"
             "    Request[None]: the yield gives None.\n\n"
             "Raises:\n"
             "    ValueError: seconds is nan.");

static PyObject *make_sleep(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames)
{
    double seconds;
    if (check_count("sleep", nargs, kwnames, 1, 1) < 0 ||
        check_seconds("sleep", args[0], &seconds) < 0)
        return NULL;
    RequestObject *rq = request_new(module, GEN_SLEEP, NULL, NULL);
    if (rq != NULL)
        rq->seconds = seconds;
    return (PyObject *)rq;
}

static int is_future(struct plait_state *state, PyObject *obj)
{
    if (PyObject_TypeCheck(obj, (PyTypeObject *)state->gen_cf_future))
        return 1;
    /* As asyncio.isfuture: the class must have the attribute. */
    PyObject *mark = PyObject_GetAttr((PyObject *)Py_TYPE(obj), state->gen_str_blocking);
    if (mark == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    Py_DECREF(mark);
    return mark != Py_None;
}

PyDoc_STRVAR(wait_doc,
             "wait(future, /, *, shield=False)\n--\n\n"
             "Wait for a future; to be yielded.\n\n"
             "Args:\n"
             "    future: of a plait pool or any concurrent.futures executor, an asyncio future\n"
             "        or task of this loop, or a Task (as join).\n"
             "    shield (bool): when the wait is given up, by a timeout or because the task is\n"
             "        cancelled, the future is cancelled too, unless this is true.\n\n"
             "Returns:\n"
             "    Request: the yield gives the future's result, or raises its exception.\n\n"
             "Raises (at the yield):\n"
             "    Cancelled: the future was cancelled.\n"
             "    ValueError: an asyncio future of another loop.");

static PyObject *make_wait(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    struct plait_state *state = plait_state_of_module(module);
    PyObject *shield;
    if (plait_args_keyword("wait", args, nargs, kwnames, 1, "shield", &shield) < 0 ||
        check_count("wait", nargs, NULL, 1, 1) < 0)
        return NULL;
    int shielded = shield == NULL ? 0 : PyObject_IsTrue(shield);
    if (shielded < 0)
        return NULL;
    if (Py_IS_TYPE(args[0], state->gen_task_type))
        return (PyObject *)request_new(module, GEN_JOIN, args[0], NULL);
    int is = is_future(state, args[0]);
    if (is < 0)
        return NULL;
    if (is == 0)
        return PyErr_Format(PyExc_TypeError, "wait(): future must be a future or task, not %.200R",
                            args[0]);
    RequestObject *rq = request_new(module, GEN_WAIT, args[0], NULL);
    if (rq != NULL)
        rq->shield = shielded != 0;
    return (PyObject *)rq;
}

PyDoc_STRVAR(spawn_doc,
             "spawn(gen, /, name=None)\n--\n\n"
             "Start a generator as a task of its own; to be yielded.\n\n"
             "Args:\n"
             "    gen (Generator): not started yet.\n"
             "    name (str | None): for reprs and errors; the generator's own when None.\n\n"
             "Returns:\n"
             "    Request[Task]: the yield gives the task at once; it runs at its turn.\n\n"
             "Raises:\n"
             "    TypeError: gen is no generator.\n"
             "    ValueError: it runs or has run already.");

static PyObject *make_spawn(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames)
{
    PyObject *name;
    if (plait_args_keyword("spawn", args, nargs, kwnames, 1, "name", &name) < 0 ||
        check_count("spawn", nargs, NULL, 1, name == NULL ? 2 : 1) < 0)
        return NULL;
    if (nargs == 2)
        name = args[1];
    if (name == Py_None)
        name = NULL;
    if (name != NULL && !PyUnicode_Check(name))
        return PyErr_Format(PyExc_TypeError, "spawn(): name must be a string, not %.200R", name);
    if (plait_gen_check("spawn", args[0]) < 0)
        return NULL;
    return (PyObject *)request_new(module, GEN_SPAWN, args[0], name);
}

PyDoc_STRVAR(
    join_doc,
    "join(task, /)\n--\n\n"
    "Wait for the end of a task; to be yielded.\n\n"
    "Args:\n"
    "    task (Task): started by spawn or start, on the same loop. Any number of tasks\n"
    "        may join it; giving up the wait does not cancel it.\n\n"
    "Returns:\n"
    "    Request: the yield gives what the generator returned, or raises what it raised.\n\n"
    "Raises (at the yield):\n"
    "    Cancelled: the task was cancelled.\n"
    "    Deadlock: the task waits, perhaps by way of others, for this one.\n"
    "    ValueError: it belongs to another loop.");

static PyObject *make_join(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    struct plait_state *state = plait_state_of_module(module);
    if (check_count("join", nargs, kwnames, 1, 1) < 0)
        return NULL;
    if (!Py_IS_TYPE(args[0], state->gen_task_type))
        return PyErr_Format(PyExc_TypeError, "join(): task must be a Task, not %.200R%s", args[0],
                            PyGen_CheckExact(args[0]) ? "; start it by spawn()" : "");
    return (PyObject *)request_new(module, GEN_JOIN, args[0], NULL);
}

PyDoc_STRVAR(timeout_doc,
             "timeout(seconds, what, /)\n--\n\n"
             "Wait for a request or a generator, but not longer than some time; to be yielded.\n\n"
             "Args:\n"
             "    seconds (float | None): None for no limit.\n"
             "    what (Request | Generator): a generator runs as a task of its own, which is\n"
             "        closed when the time is over or the waiting task is cancelled.\n\n"
             "Returns:\n"
             "    Request: the yield gives what `what` gives.\n\n"
             "Raises (at the yield):\n"
             "    TimeoutError: the time is over. A future that was waited for is cancelled\n"
             "        (see wait); of what was to be sent, a part may have been.");

static PyObject *make_timeout(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames)
{
    struct plait_state *state = plait_state_of_module(module);
    double seconds = INFINITY;
    if (check_count("timeout", nargs, kwnames, 2, 2) < 0 ||
        (args[0] != Py_None && check_seconds("timeout", args[0], &seconds) < 0))
        return NULL;
    PyObject *what = args[1];
    if (Py_IS_TYPE(what, state->gen_request_type)) {
        RequestObject *inner = (RequestObject *)what;
        if (inner->kind == GEN_TIMEOUT) { /* the tighter one counts */
            if (inner->seconds < seconds)
                seconds = inner->seconds;
            what = inner->target;
        }
    } else if (!PyGen_CheckExact(what)) {
        return PyErr_Format(PyExc_TypeError,
                            "timeout(): what must be a request or a generator, not %.200R", what);
    } else if (plait_gen_check("timeout", what) < 0) {
        return NULL;
    }
    RequestObject *rq = request_new(module, GEN_TIMEOUT, what, NULL);
    if (rq != NULL)
        rq->seconds = seconds;
    return (PyObject *)rq;
}

/* ---- the type ----------------------------------------------------------- */

static PyObject *socket_text(PyObject *sock)
{
    PyObject *fd = PyObject_CallMethod(sock, "fileno", NULL);
    if (fd == NULL)
        return NULL;
    long number = PyLong_AsLong(fd);
    Py_DECREF(fd);
    return number < 0 ? PyUnicode_FromString("closed socket")
                      : PyUnicode_FromFormat("socket %ld", number);
}

static PyObject *request_repr(PyObject *self)
{
    static const char *const names[] = {"recv",  "recv_into", "send",  "accept", "connect",
                                        "sleep", "wait",      "spawn", "join",   "timeout"};
    RequestObject *rq = (RequestObject *)self;
    PyObject *first = NULL, *repr = NULL;
    const char *name = names[rq->kind];
    if (rq->kind <= GEN_CONNECT)
        first = socket_text(rq->target);
    else if (rq->kind == GEN_JOIN)
        first = Py_NewRef(((TaskObject *)rq->target)->name);
    else if (rq->kind == GEN_WAIT || rq->kind == GEN_SPAWN)
        first = PyObject_Repr(rq->target);
    else
        first = isinf(rq->seconds) ? Py_NewRef(Py_None) : PyFloat_FromDouble(rq->seconds);
    if (first == NULL)
        return NULL;
    switch ((enum gen_kind)rq->kind) {
    case GEN_RECV:
        repr = PyUnicode_FromFormat("%s(%U, %zd)", name, first, rq->n);
        break;
    case GEN_SEND: {
        Py_ssize_t n = PyObject_Size(rq->arg);
        if (n < 0)
            PyErr_Clear();
        repr = n < 0 ? PyUnicode_FromFormat("%s(%U, ...)", name, first)
                     : PyUnicode_FromFormat("%s(%U, <%zd items>)", name, first, n);
        break;
    }
    case GEN_CONNECT:
        repr = PyUnicode_FromFormat("%s(%U, %R)", name, first, rq->arg);
        break;
    case GEN_TIMEOUT:
        repr = PyUnicode_FromFormat("%s(%S, %R)", name, first, rq->target);
        break;
    default:
        repr = PyUnicode_FromFormat("%s(%S)", name, first);
    }
    Py_DECREF(first);
    return repr;
}

static int request_traverse(PyObject *self, visitproc visit, void *arg)
{
    RequestObject *rq = (RequestObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(rq->target);
    Py_VISIT(rq->arg);
    if (rq->has_view)
        Py_VISIT(rq->view.obj);
    return 0;
}

static int request_clear(PyObject *self)
{
    RequestObject *rq = (RequestObject *)self;
    plait_gen_request_end(rq);
    Py_CLEAR(rq->target);
    Py_CLEAR(rq->arg);
    return 0;
}

static void request_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)request_clear(self);
    struct plait_state *state = PyType_GetModuleState(type);
    /* A state that is being cleared has no type any more: it would not be freed again. */
    if (state != NULL && state->gen_request_type == type &&
        plait_free_list_park(&state->generators.requests, self))
        return;
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef request_methods[] = {
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "For annotations."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot request_slots[] = {
    {Py_tp_doc,
     (void *)"What a generator yields to say what it waits for. Made by recv, send and their\n"
             "kin; may be yielded again once the wait is over."},
    {Py_tp_dealloc, request_dealloc},
    {Py_tp_traverse, request_traverse},
    {Py_tp_clear, request_clear},
    {Py_tp_repr, request_repr},
    {Py_tp_methods, request_methods},
    {0, NULL},
};

static PyType_Spec request_spec = {
    .name = "plait.generators.Request",
    .basicsize = sizeof(RequestObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = request_slots,
};

#define FAST(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef makers[] = {
    {"recv", FAST(make_recv), METH_FASTCALL | METH_KEYWORDS, recv_doc},
    {"recv_into", FAST(make_recv_into), METH_FASTCALL | METH_KEYWORDS, recv_into_doc},
    {"send", FAST(make_send), METH_FASTCALL | METH_KEYWORDS, send_doc},
    {"accept", FAST(make_accept), METH_FASTCALL | METH_KEYWORDS, accept_doc},
    {"connect", FAST(make_connect), METH_FASTCALL | METH_KEYWORDS, connect_doc},
    {"sleep", FAST(make_sleep), METH_FASTCALL | METH_KEYWORDS, sleep_doc},
    {"wait", FAST(make_wait), METH_FASTCALL | METH_KEYWORDS, wait_doc},
    {"spawn", FAST(make_spawn), METH_FASTCALL | METH_KEYWORDS, spawn_doc},
    {"join", FAST(make_join), METH_FASTCALL | METH_KEYWORDS, join_doc},
    {"timeout", FAST(make_timeout), METH_FASTCALL | METH_KEYWORDS, timeout_doc},
    {NULL, NULL, 0, NULL},
};

int plait_gen_request_type(PyObject *module, PyObject *functions, struct plait_state *state)
{
    state->gen_request_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &request_spec, NULL);
    if (state->gen_request_type == NULL)
        return -1;
    return plait_gen_add_functions(module, functions, makers);
}
