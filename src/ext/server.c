/* server.c - plait._core.Listener: accepts connections and makes their transports.
 *
 * A listener is owned by its registration in the core until it is closed. It keeps the
 * socket object that it was given, but does not close it: asyncio.Server's side does.
 */
#include "rota.h"
#include "watch.h"

#include <errno.h>
#include <structmember.h>

/* X(name): what it owns: the socket; the factory of protocols; the asyncio.Server or None;
 * the context of the code that started serving; what is called with each socket in place of
 * making a transport here, or None; the Rota of the processes that accept from it, or None. */
// clang-format off
#define LISTENER_OBJECTS(X) \
    X(sock)                 \
    X(factory)              \
    X(server)               \
    X(context)              \
    X(adopt)                \
    X(rota)
// clang-format on

typedef struct {
    PyObject_HEAD
    struct pl_listener core;
    LoopObject *loop;
#define X(name) PyObject *name;
    LISTENER_OBJECTS(X)
#undef X
    bool registered;
} ListenerObject;

static ListenerObject *listener_of(struct pl_listener *core)
{
    return PL_CONTAINER_OF(core, ListenerObject, core);
}

static void tell_error(ListenerObject *l, const char *text)
{
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyObject *message = PyUnicode_FromString(text);
    if (message == NULL)
        PyErr_Clear();
    PyErr_Restore(type, exc, tb);
    plait_loop_handle_error(l->loop, message, "socket", l->sock, NULL, NULL);
    Py_XDECREF(message);
}

/* One connection, in the context that it will keep. 0, or -1 with an exception set and the
 * descriptor closed. */
static int welcome(ListenerObject *l, PyObject *context, int fd, const struct sockaddr *addr,
                   socklen_t len)
{
    if (l->adopt != Py_None) {
        PyObject *sock = plait_socket_new(l->loop->state, fd);
        if (sock == NULL) {
            (void)l->loop->core.sys->close(fd);
            return -1;
        }
        PyObject *result = PyObject_CallOneArg(l->adopt, sock);
        Py_DECREF(sock);
        Py_XDECREF(result);
        return result == NULL ? -1 : 0;
    }
    PyObject *protocol = PyObject_CallNoArgs(l->factory);
    PyObject *transport = NULL;
    if (protocol != NULL) {
        plait_watch_evict(l->loop, fd);
        transport = plait_transport_new(l->loop, fd, NULL, protocol, NULL, NULL, l->server, context,
                                        addr, len);
    }
    Py_XDECREF(protocol);
    if (transport == NULL) {
        (void)l->loop->core.sys->close(fd);
        return -1;
    }
    Py_DECREF(transport);
    return 0;
}

static void on_accepted(struct pl_listener *core, int fd, const struct sockaddr *addr,
                        socklen_t len)
{
    ListenerObject *l = listener_of(core);
    /* Each connection has a context of its own. */
    PyObject *context = l->context != NULL ? PyContext_Copy(l->context) : PyContext_CopyCurrent();
    int r = -1;
    if (context != NULL && PyContext_Enter(context) == 0) {
        r = welcome(l, context, fd, addr, len);
        PyObject *type, *exc, *tb;
        PyErr_Fetch(&type, &exc, &tb);
        if (PyContext_Exit(context) < 0)
            PyErr_WriteUnraisable((PyObject *)l);
        PyErr_Restore(type, exc, tb);
    } else {
        (void)l->loop->core.sys->close(fd);
    }
    Py_XDECREF(context);
    if (r < 0)
        tell_error(l, "Error on transport creation for incoming connection");
}

static void on_starved(struct pl_listener *core, int error)
{
    ListenerObject *l = listener_of(core);
    (void)plait_raise(l->loop->state, error, NULL);
    tell_error(l, "socket.accept() out of system resource");
}

static void on_failed(struct pl_listener *core, int error)
{
    ListenerObject *l = listener_of(core);
    (void)plait_raise(l->loop->state, error, NULL);
    tell_error(l, "accepting connections failed, the server has stopped to listen");
}

static void on_closed(struct pl_listener *core)
{
    ListenerObject *l = listener_of(core);
    l->registered = false;
    Py_DECREF(l);
}

PyObject *plait_listener_of_op(struct pl_op *op)
{
    struct pl_listener *core = pl_listener_of_op(op);
    return core == NULL || core->closed != on_closed ? NULL : (PyObject *)listener_of(core);
}

void plait_listener_drop(PyObject *self)
{
    ListenerObject *l = (ListenerObject *)self;
    if (!l->registered)
        return;
    l->registered = false;
    pl_listener_forget(&l->core);
    Py_DECREF(l);
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nStop accepting; the socket stays open.");

static PyObject *listener_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ListenerObject *l = (ListenerObject *)self;
    if (l->registered && l->loop->core_ready)
        pl_listener_close(&l->core);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(look_doc, "look($self, /)\n--\n\n"
                       "Look for a connection that another process was woken for and left.");

static PyObject *listener_look(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ListenerObject *l = (ListenerObject *)self;
    if (l->registered && l->loop->core_ready)
        pl_listener_look(&l->core);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(listener_doc,
             "Listener(loop, sock, factory, server, batch, adopt, context,\n"
             "         rota=None, given=False)\n--\n\n"
             "Accept from a listening socket.\n\n"
             "Args:\n"
             "    loop (Loop): the loop.\n"
             "    sock (socket.socket): listening, non-blocking.\n"
             "    factory (Callable): makes the protocols.\n"
             "    server (asyncio.Server | None): what the transports are attached to.\n"
             "    batch (int): accepts per event at most.\n"
             "    adopt (Callable | None): takes each new socket in place of a transport\n"
             "        made here (TLS).\n"
             "    context (contextvars.Context | None): copied for each connection.\n"
             "    rota (Rota | None): the board of the processes that accept from it.\n"
             "    given (bool): the program made the socket: other processes may have it.");

static PyObject *listener_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop",  "sock",    "factory", "server", "batch",
                            "adopt", "context", "rota",    "given",  NULL};
    struct plait_state *state = plait_state_of_type(type);
    PyObject *loop, *sock, *factory, *server, *adopt, *context, *rota = Py_None;
    unsigned batch;
    int given = 0;
    if (state == NULL || !PyArg_ParseTupleAndKeywords(
                             args, kwargs, "O!OOOIOO|Op:Listener", names, state->loop_type, &loop,
                             &sock, &factory, &server, &batch, &adopt, &context, &rota, &given))
        return NULL;
    struct pl_rota *board = plait_rota_of(state, rota);
    if (board == NULL && PyErr_Occurred())
        return NULL;
    if (plait_loop_check((LoopObject *)loop) < 0)
        return NULL;
    int fd = PyObject_AsFileDescriptor(sock);
    if (fd < 0)
        return NULL;
    ListenerObject *l = (ListenerObject *)type->tp_alloc(type, 0);
    if (l == NULL)
        return NULL;
    l->loop = (LoopObject *)Py_NewRef(loop);
    l->sock = Py_NewRef(sock);
    l->factory = Py_NewRef(factory);
    l->server = Py_NewRef(server);
    l->adopt = Py_NewRef(adopt);
    l->rota = Py_NewRef(rota);
    l->context = context == Py_None ? PyContext_CopyCurrent() : Py_NewRef(context);
    if (l->context == NULL) {
        Py_DECREF(l);
        return NULL;
    }
    l->core = (struct pl_listener){
        .batch = batch,
        .rota = board,
        .given = given != 0,
        .accepted = on_accepted,
        .starved = on_starved,
        .failed = on_failed,
        .closed = on_closed,
    };
    if (plait_clients_adopt(l->loop, server) < 0) {
        Py_DECREF(l);
        return NULL;
    }
    plait_watch_evict(l->loop, fd);
    int r = pl_listener_open(&l->loop->core, &l->core, fd);
    if (r < 0) {
        Py_DECREF(l);
        return plait_raise(state, r, "cannot accept from the socket");
    }
    l->registered = true;
    return Py_NewRef(l); /* one reference for the registration, one for the caller */
}

static int listener_traverse(PyObject *self, visitproc visit, void *arg)
{
    ListenerObject *l = (ListenerObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(l->loop);
#define X(name) Py_VISIT(l->name);
    LISTENER_OBJECTS(X)
#undef X
    return 0;
}

static int listener_clear(PyObject *self)
{
    ListenerObject *l = (ListenerObject *)self;
#define X(name) Py_CLEAR(l->name);
    LISTENER_OBJECTS(X)
#undef X
    return 0;
}

static void listener_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)listener_clear(self);
    Py_CLEAR(((ListenerObject *)self)->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef listener_methods[] = {
    {"close", listener_close, METH_NOARGS, close_doc},
    {"look", listener_look, METH_NOARGS, look_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot listener_slots[] = {
    {Py_tp_doc, (void *)listener_doc},
    {Py_tp_new, listener_new},
    {Py_tp_dealloc, listener_dealloc},
    {Py_tp_traverse, listener_traverse},
    {Py_tp_clear, listener_clear},
    {Py_tp_methods, listener_methods},
    {0, NULL},
};

static PyType_Spec listener_spec = {
    .name = "plait._core.Listener",
    .basicsize = sizeof(ListenerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = listener_slots,
};

int plait_listener_type(PyObject *module, struct plait_state *state)
{
    state->listener_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &listener_spec, NULL);
    return state->listener_type == NULL ? -1 : PyModule_AddType(module, state->listener_type);
}
