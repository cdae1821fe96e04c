/* clients.c - the transports of an asyncio.Server, without memory for each of them.
 *
 * From Python 3.13 on a server keeps its transports in a WeakSet: a weak reference and a place in
 * a hash table, a fifth of what an idle connection costs here. But the loop's table of descriptors
 * has them all, and a transport knows its server. So this set only counts; who wants to see
 * its members walks the table, which happens when a server closes its clients.
 *
 * A member is counted from add to discard, which are called by Server._attach and _detach. One
 * that is closed and has not told its protocol yet is counted, and not in the table any more:
 * closing it again would do nothing. What is no transport of the loop's goes to a WeakSet.
 *
 * Runs in the loop's thread, with the interpreter attached.
 */
#include "transport.h"

typedef struct {
    PyObject_HEAD
    LoopObject *loop;       /* owns */
    const PyObject *server; /* whose set it is: compared, and never looked into */
    Py_ssize_t counted;
    PyObject *others; /* a WeakSet; NULL while there are none */
} ClientsObject;

/* The transport, if it is one that can be counted here; else NULL. Borrowed. */
static TransportObject *countable(ClientsObject *c, PyObject *object)
{
    if (c->loop == NULL || !Py_IS_TYPE(object, c->loop->state->transport_type))
        return NULL;
    TransportObject *t = (TransportObject *)object;
    return t->loop == c->loop && t->server == c->server ? t : NULL;
}

static PyObject *clients_add(PyObject *self, PyObject *object)
{
    ClientsObject *c = (ClientsObject *)self;
    TransportObject *t = countable(c, object);
    if (t != NULL) {
        c->counted += t->counted ? 0 : 1;
        t->counted = true;
        Py_RETURN_NONE;
    }
    if (c->others == NULL) {
        c->others = PyObject_CallNoArgs(c->loop->state->weak_set);
        if (c->others == NULL)
            return NULL;
    }
    return PyObject_CallMethod(c->others, "add", "O", object);
}

static PyObject *clients_discard(PyObject *self, PyObject *object)
{
    ClientsObject *c = (ClientsObject *)self;
    TransportObject *t = countable(c, object);
    if (t != NULL) {
        c->counted -= t->counted ? 1 : 0;
        t->counted = false;
        Py_RETURN_NONE;
    }
    if (c->others == NULL)
        Py_RETURN_NONE;
    return PyObject_CallMethod(c->others, "discard", "O", object);
}

static Py_ssize_t clients_length(PyObject *self)
{
    ClientsObject *c = (ClientsObject *)self;
    Py_ssize_t others = c->others == NULL ? 0 : PyObject_Size(c->others);
    return others < 0 ? -1 : c->counted + others;
}

static int clients_contains(PyObject *self, PyObject *object)
{
    ClientsObject *c = (ClientsObject *)self;
    TransportObject *t = countable(c, object);
    if (t != NULL)
        return t->counted;
    return c->others == NULL ? 0 : PySequence_Contains(c->others, object);
}

static PyObject *clients_copy(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ClientsObject *c = (ClientsObject *)self;
    PyObject *copy = PySet_New(c->others);
    if (copy == NULL || c->counted == 0 || !c->loop->core_ready)
        return copy;
    const struct pl_loop *core = &c->loop->core;
    for (uint32_t fd = 0; fd < core->nfds; fd++) {
        struct pl_io *io = core->fds[fd].io;
        PyObject *object = io == NULL ? NULL : plait_transport_of_op(&io->op); // borrowed
        TransportObject *t = object == NULL ? NULL : countable(c, object);
        if (t != NULL && t->counted && PySet_Add(copy, object) < 0) {
            Py_DECREF(copy);
            return NULL;
        }
    }
    return copy;
}

static PyObject *clients_iter(PyObject *self)
{
    PyObject *copy = clients_copy(self, NULL);
    PyObject *iter = copy == NULL ? NULL : PyObject_GetIter(copy);
    Py_XDECREF(copy);
    return iter;
}

static PyObject *clients_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<%zd clients of a server>", clients_length(self));
}

static int clients_traverse(PyObject *self, visitproc visit, void *arg)
{
    ClientsObject *c = (ClientsObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(c->loop);
    Py_VISIT(c->others);
    return 0;
}

static int clients_clear(PyObject *self)
{
    /* The loop stays: methods of a cleared husk use it. */
    Py_CLEAR(((ClientsObject *)self)->others);
    return 0;
}

static void clients_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)clients_clear(self);
    Py_CLEAR(((ClientsObject *)self)->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef clients_methods[] = {
    {"add", clients_add, METH_O, "add($self, transport, /)\n--\n\nCount it."},
    {"discard", clients_discard, METH_O, "discard($self, transport, /)\n--\n\nCount it no more."},
    {"copy", clients_copy, METH_NOARGS,
     "copy($self, /)\n--\n\nReturn a set of those that are open."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot clients_slots[] = {
    {Py_tp_doc, (void *)"The transports of an asyncio.Server; set-like."},
    {Py_tp_dealloc, clients_dealloc},
    {Py_tp_traverse, clients_traverse},
    {Py_tp_clear, clients_clear},
    {Py_tp_methods, clients_methods},
    {Py_tp_repr, clients_repr},
    {Py_tp_iter, clients_iter},
    {Py_sq_length, clients_length},
    {Py_sq_contains, clients_contains},
    {0, NULL},
};

static PyType_Spec clients_spec = {
    .name = "plait._core.Clients",
    .basicsize = sizeof(ClientsObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = clients_slots,
};

int plait_clients_adopt(LoopObject *loop, PyObject *server)
{
    struct plait_state *state = loop->state;
    if (!state->loop.server_takes_transport ||
        !Py_IS_TYPE(server, (PyTypeObject *)state->asyncio_server))
        return 0;
    PyObject *old = PyObject_GetAttrString(server, "_clients");
    Py_ssize_t len = old == NULL ? -1 : PyObject_Size(old);
    bool ours = len == 0 && Py_IS_TYPE(old, (PyTypeObject *)state->weak_set);
    Py_XDECREF(old);
    if (len < 0) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError) &&
            !PyErr_ExceptionMatches(PyExc_TypeError))
            return -1;
        PyErr_Clear(); /* a program's own, or another Python's */
        return 0;
    }
    if (!ours)
        return 0;
    ClientsObject *c = (ClientsObject *)state->clients_type->tp_alloc(state->clients_type, 0);
    if (c == NULL)
        return -1;
    c->loop = (LoopObject *)Py_NewRef(loop);
    c->server = server;
    int r = PyObject_SetAttrString(server, "_clients", (PyObject *)c);
    Py_DECREF(c);
    return r;
}

/* Stores a class in *place, which is to be one whose instances are told by their exact type. */
static int import_class(const char *module_name, const char *name, PyObject **place)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *found = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    *place = found;
    return found == NULL ? -1 : 0;
}

/* Whether Server._attach takes the transport: it does from 3.13 on, and in older ones whose
 * distributor has brought the change over. One that is no function of Python's is taken at the
 * interpreter's word. */
static void ask_server_signature(struct plait_state *state)
{
    PyObject *attach = PyObject_GetAttr(state->asyncio_server, state->str_attach);
    PyObject *code = attach == NULL ? NULL : PyObject_GetAttrString(attach, "__code__");
    PyObject *count = code == NULL ? NULL : PyObject_GetAttrString(code, "co_argcount");
    long n = count == NULL ? -1 : PyLong_AsLong(count);
    Py_XDECREF(count);
    Py_XDECREF(code);
    Py_XDECREF(attach);
    PyErr_Clear();
    state->loop.server_takes_transport = n < 0 ? PY_VERSION_HEX >= 0x030D0000 : n >= 2;
}

int plait_clients_type(PyObject *module, struct plait_state *state)
{
    if (import_class("asyncio.base_events", "Server", &state->asyncio_server) < 0 ||
        import_class("weakref", "WeakSet", &state->weak_set) < 0)
        return -1;
    ask_server_signature(state);
    state->clients_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &clients_spec, NULL);
    return state->clients_type == NULL ? -1 : 0;
}
