/* connect.c - plait._core.Connecting: a connection that the loop's backend makes by itself.
 *
 * It is for plait.Loop.sock_connect, which falls back to asyncio's way where `future` is None:
 * the backend does no such thing, or the address is not one of IPv4 or IPv6 in numbers.
 *
 * Runs in the loop's thread, with the interpreter attached.
 */
#include "connect.h"

#include "loop.h"
#include "watch.h"

#include <arpa/inet.h>
#include <errno.h>

typedef struct {
    PyObject_HEAD
    LoopObject *loop;
    PyObject *address;
    PyObject *future; /* NULL when nothing is under way */
    struct pl_connect core;
} ConnectingObject;

/* ---- addresses ---------------------------------------------------------- */

/* A number from 0 to most. false: it is none, and no exception is set. */
static bool number(PyObject *obj, unsigned long most, unsigned long *out)
{
    if (!PyLong_CheckExact(obj))
        return false;
    *out = PyLong_AsUnsignedLong(obj);
    if (*out == (unsigned long)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        return false;
    }
    return *out <= most;
}

/* The address of a tuple that the socket module would take without looking up a name. Its length,
 * or 0. */
static socklen_t read_address(PyObject *tuple, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof(*out));
    if (!PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) < 2 || PyTuple_GET_SIZE(tuple) > 4)
        return 0;
    PyObject *host = PyTuple_GET_ITEM(tuple, 0); // borrowed
    unsigned long port, flow = 0, scope = 0;
    if (!PyUnicode_CheckExact(host) || !PyUnicode_IS_COMPACT_ASCII(host) ||
        !number(PyTuple_GET_ITEM(tuple, 1), UINT16_MAX, &port))
        return 0;
    const char *text = (const char *)PyUnicode_1BYTE_DATA(host);
    if (strlen(text) != (size_t)PyUnicode_GET_LENGTH(host))
        return 0;
    struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)out;
    if (PyTuple_GET_SIZE(tuple) == 2 && inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        return sizeof(*v4);
    }
    if ((PyTuple_GET_SIZE(tuple) > 2 && !number(PyTuple_GET_ITEM(tuple, 2), 0xfffff, &flow)) ||
        (PyTuple_GET_SIZE(tuple) > 3 && !number(PyTuple_GET_ITEM(tuple, 3), UINT32_MAX, &scope)))
        return 0;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)(void *)out;
    if (inet_pton(AF_INET6, text, &v6->sin6_addr) != 1)
        return 0;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    v6->sin6_flowinfo = htonl((uint32_t)flow);
    v6->sin6_scope_id = (uint32_t)scope;
    return sizeof(*v6);
}

/* Of another family the socket module has its own to say. */
static bool of_family(int fd, sa_family_t family)
{
    int found;
    socklen_t len = sizeof(found);
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &found, &len) == 0 && found == family;
}

/* ---- the outcome -------------------------------------------------------- */

/* Tells the future, as asyncio's way would: the result is whether it is connected, which it may
 * not be when the loop has stopped meanwhile. */
static PyObject *tell(ConnectingObject *c, int result)
{
    struct plait_state *state = c->loop->state;
    PyObject *done = PyObject_CallMethodNoArgs(c->future, state->str_done);
    if (done != Py_False) /* cancelled, or an error */
        return done;
    Py_DECREF(done);
    if (result == 0 || result == -ECANCELED)
        return PyObject_CallMethodOneArg(c->future, state->str_set_result,
                                         result == 0 ? Py_True : Py_False);
    PyObject *text = PyUnicode_FromFormat("Connect call failed %S", c->address);
    PyObject *error =
        text == NULL ? NULL : PyObject_CallFunction(PyExc_OSError, "iO", -result, text);
    Py_XDECREF(text);
    if (error == NULL)
        return NULL;
    PyObject *told = PyObject_CallMethodOneArg(c->future, state->str_set_exception, error);
    Py_DECREF(error);
    return told;
}

static void on_done(struct pl_connect *core, int result)
{
    ConnectingObject *c = PL_CONTAINER_OF(core, ConnectingObject, core);
    Py_INCREF(c);
    PyObject *told = tell(c, result);
    if (told == NULL)
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(told);
    Py_DECREF(c);
}

/* ---- the type ----------------------------------------------------------- */

PyDoc_STRVAR(connecting_doc, "Connecting(loop, sock, address, /)\n--\n\n"
                             "A connection that the backend of a loop makes.\n\n"
                             "Args:\n"
                             "    loop (plait.Loop): the loop, in whose thread this is called.\n"
                             "    sock (socket.socket): what is to be connected.\n"
                             "    address (tuple): where to.\n\n"
                             "Raises:\n"
                             "    RuntimeError: the loop is closed.\n"
                             "    TypeError: loop is not a plait.Loop.\n");

/* Begins when it can; `future` tells. 0, or -1 with an exception set. */
static int begin(ConnectingObject *c, PyObject *sock)
{
    LoopObject *loop = c->loop;
    struct sockaddr_storage addr;
    socklen_t len;
    if (loop->debug || (PyObject *)Py_TYPE(sock) != loop->state->socket_type ||
        (len = read_address(c->address, &addr)) == 0)
        return 0;
    int fd = plait_watch_fd(sock);
    if (fd < 0)
        PyErr_Clear(); /* asyncio's way tells */
    if (fd < 0 || !of_family(fd, addr.ss_family))
        return 0;
    if (PySys_Audit("socket.connect", "OO", sock, c->address) < 0)
        return -1;
    PyObject *future = PyObject_CallMethodNoArgs((PyObject *)loop, loop->state->str_create_future);
    if (future == NULL)
        return -1;
    int r = pl_connect_start(&loop->core, &c->core, fd, (struct sockaddr *)&addr, len);
    if (r == 0)
        c->future = Py_NewRef(future);
    Py_DECREF(future);
    if (r == 0 || r == -EAGAIN)
        return 0;
    (void)plait_raise(loop->state, r, NULL);
    return -1;
}

static PyObject *connecting_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "", "", NULL};
    struct plait_state *state = plait_state_of_type(type);
    PyObject *loop, *sock, *address;
    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:Connecting", names, &loop, &sock, &address))
        return NULL;
    if (!PyObject_TypeCheck(loop, state->loop_type))
        return PyErr_Format(PyExc_TypeError, "loop must be a plait.Loop, not %R", loop);
    if (plait_loop_check((LoopObject *)loop) < 0)
        return NULL;
    ConnectingObject *c = (ConnectingObject *)type->tp_alloc(type, 0);
    if (c == NULL)
        return NULL;
    c->loop = (LoopObject *)Py_NewRef(loop);
    c->address = Py_NewRef(address);
    c->core = (struct pl_connect){.done = on_done};
    if (begin(c, sock) == 0)
        return (PyObject *)c;
    Py_DECREF(c);
    return NULL;
}

static int connecting_traverse(PyObject *self, visitproc visit, void *arg)
{
    ConnectingObject *c = (ConnectingObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(c->loop);
    Py_VISIT(c->address);
    Py_VISIT(c->future);
    return 0;
}

static int connecting_clear(PyObject *self)
{
    ConnectingObject *c = (ConnectingObject *)self;
    if (c->loop != NULL)
        pl_connect_cancel(&c->loop->core, &c->core);
    Py_CLEAR(c->future);
    return 0;
}

static void connecting_dealloc(PyObject *self)
{
    ConnectingObject *c = (ConnectingObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)connecting_clear(self);
    Py_XDECREF(c->address);
    Py_XDECREF(c->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *connecting_cancel(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    (void)connecting_clear(self);
    Py_RETURN_NONE;
}

static PyObject *get_future(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *future = ((ConnectingObject *)self)->future;
    return Py_NewRef(future != NULL ? future : Py_None);
}

static PyMethodDef connecting_methods[] = {
    {"cancel", connecting_cancel, METH_NOARGS,
     "cancel($self, /)\n--\n\nGive the socket back, and forget the future."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef connecting_getset[] = {
    {"future", get_future, NULL,
     "True when it is connected, False when it is to be tried another way; or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot connecting_slots[] = {
    {Py_tp_doc, (void *)connecting_doc}, {Py_tp_new, connecting_new},
    {Py_tp_dealloc, connecting_dealloc}, {Py_tp_traverse, connecting_traverse},
    {Py_tp_clear, connecting_clear},     {Py_tp_methods, connecting_methods},
    {Py_tp_getset, connecting_getset},   {0, NULL},
};

static PyType_Spec connecting_spec = {
    .name = "plait._core.Connecting",
    .basicsize = sizeof(ConnectingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = connecting_slots,
};

int plait_connect_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &connecting_spec, NULL);
    int r = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return r;
}
