/* channel_ring.c - SharedRing, the ring of a channel between processes.
 *
 * pl_channel.c's ring for Python. Values travel in the codec of the pools.
 */
#include "args.h"
#include "channel.h"
#include "pool.h"

#include <errno.h>
#include <stddef.h>
#include <structmember.h>

struct ring {
    PyObject_HEAD
    struct plait_state *state; /* borrows */
    struct pl_channel core;
    uint32_t users; /* calls that have let the interpreter's lock go, or may have */
    uint32_t forks; /* of this process's line when they were counted */
    bool open;
};

#define RING(o) ((struct ring *)(o))

/* The calls under way. In a forked child those of the parent's threads do not count. */
static uint32_t ring_users(struct ring *r)
{
    if (r->forks != r->state->scope.forks) {
        r->forks = r->state->scope.forks;
        r->users = 0;
    }
    return r->users;
}

static void ring_use(struct ring *r)
{
    (void)ring_users(r);
    r->users++;
}

static void ring_leave(struct ring *r)
{
    if (ring_users(r) > 0) /* else a fork came in between: it was not counted in this process */
        r->users--;
}

static int ring_check(struct ring *r)
{
    if (r->open)
        return 0;
    PyErr_SetString(PyExc_ValueError, "this end of the channel has been released");
    return -1;
}

/* SharedRing(memfd, data_fd, room_fd): takes the descriptors over. */
static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int memfd;
    int data;
    int room;
    static char *names[] = {"memfd", "data", "room", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iii", names, &memfd, &data, &room))
        return NULL;
    struct plait_state *state = plait_state_of_type(type);
    if (state == NULL)
        return NULL;
    struct ring *r = RING(type->tp_alloc(type, 0));
    if (r == NULL)
        return NULL;
    r->state = state;
    r->forks = state->scope.forks;
    int error = pl_channel_open(&r->core, NULL, memfd, data, room);
    if (error < 0) {
        Py_DECREF(r);
        return plait_raise(state, error, "opening a channel");
    }
    r->open = true;
    return (PyObject *)r;
}

static PyObject *ring_release(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (ring_users(RING(self)) > 0) {
        PyErr_SetString(PyExc_RuntimeError, "a thread waits for this channel");
        return NULL;
    }
    if (RING(self)->open) {
        RING(self)->open = false;
        pl_channel_fini(&RING(self)->core);
    }
    Py_RETURN_NONE;
}

static void ring_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (RING(self)->open)
        pl_channel_fini(&RING(self)->core);
    type->tp_free(self);
    Py_DECREF(type);
}

/* A kind of message, beside those of the pools: bytes as they are. */
#define RAW 'b'

static PyObject *prefixed(char kind, PyObject *body)
{
    PyObject *message = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(body) + 1);
    if (message != NULL) {
        PyBytes_AS_STRING(message)[0] = kind;
        memcpy(PyBytes_AS_STRING(message) + 1, PyBytes_AS_STRING(body),
               (size_t)PyBytes_GET_SIZE(body));
    }
    return message;
}

/* encode(value): what send() takes. */
static PyObject *ring_encode(PyObject *self, PyObject *value)
{
    struct plait_state *state = RING(self)->state;
    if (PyBytes_CheckExact(value) && PyBytes_GET_SIZE(value) < PY_SSIZE_T_MAX)
        return prefixed(RAW, value);
    struct plait_bytes out = {0};
    char kind = PLAIT_ATOMS;
    if (plait_bytes_add(&out, &kind, 1) < 0)
        return NULL;
    int atoms = plait_atoms_encode(&out, &value, 1);
    PyObject *message = NULL;
    if (atoms > 0) {
        message = PyBytes_FromStringAndSize(out.data, (Py_ssize_t)out.len);
    } else if (atoms == 0) {
        PyObject *args[] = {value, state->protocol_5};
        PyObject *body = PyObject_Vectorcall(state->pickle_dumps, args, 2, NULL);
        if (body != NULL) {
            message = prefixed(PLAIT_PICKLE, body);
            Py_DECREF(body);
        }
    }
    plait_bytes_free(&out);
    return message;
}

static PyObject *ring_decode(struct plait_state *state, const char *data, size_t len)
{
    PyObject *value = NULL;
    if (len >= 1 && data[0] == PLAIT_ATOMS) {
        if (plait_atoms_decode(data + 1, len - 1, &value, 1) != 1) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_RuntimeError, "a message between processes is damaged");
            return NULL;
        }
        return value;
    }
    if (len >= 1 && data[0] == RAW)
        return PyBytes_FromStringAndSize(data + 1, (Py_ssize_t)len - 1);
    if (len >= 1 && data[0] == PLAIT_PICKLE)
        return plait_loads(state, data + 1, len - 1, NULL);
    PyErr_SetString(PyExc_RuntimeError, "a message between processes is damaged");
    return NULL;
}

/* send(message): whether there was room. */
static PyObject *ring_send(PyObject *self, PyObject *message)
{
    struct ring *r = RING(self);
    if (ring_check(r) < 0)
        return NULL;
    if (!PyBytes_CheckExact(message)) {
        PyErr_SetString(PyExc_TypeError, "send() takes what encode() made");
        return NULL;
    }
    const char *data = PyBytes_AS_STRING(message);
    size_t len = (size_t)PyBytes_GET_SIZE(message);
    int error = pl_channel_try_send(&r->core, data, len);
    if (error == -EBUSY) {
        ring_use(r);
        Py_BEGIN_ALLOW_THREADS error = pl_channel_send(&r->core, data, len);
        Py_END_ALLOW_THREADS ring_leave(r);
    }
    if (error == -EAGAIN)
        Py_RETURN_FALSE;
    if (error == -EMSGSIZE) {
        PyErr_Format(PyExc_ValueError,
                     "the item takes %zd bytes, and this channel takes at most %llu: make it "
                     "with a larger size=",
                     PyBytes_GET_SIZE(message), (unsigned long long)r->core.size / 2 - 9);
        return NULL;
    }
    if (error == PL_ECLOSED)
        return plait_channel_raise_closed("the channel is closed: nothing can be sent");
    if (error < 0)
        return plait_raise(r->state, error, "sending to a channel");
    Py_RETURN_TRUE;
}

/* receive(nothing): the next item, `nothing` when there is none. ChannelClosed. */
static PyObject *ring_receive(PyObject *self, PyObject *nothing)
{
    struct ring *r = RING(self);
    if (ring_check(r) < 0)
        return NULL;
    struct pl_message message = {0};
    int error = pl_channel_try_receive(&r->core, &message);
    if (error == -EBUSY) {
        ring_use(r);
        Py_BEGIN_ALLOW_THREADS error = pl_channel_receive(&r->core, &message);
        Py_END_ALLOW_THREADS ring_leave(r);
    }
    if (error == -EAGAIN)
        return Py_NewRef(nothing);
    if (error == PL_ECLOSED)
        return plait_channel_raise_closed("the channel is closed and empty");
    if (error < 0)
        return plait_raise(r->state, error, "receiving from a channel");
    ring_use(r); /* decoding may run any code */
    PyObject *value = ring_decode(r->state, message.data, message.len);
    ring_leave(r);
    pl_message_fini(&r->core, &message);
    return value;
}

/* wait(for_room, seconds): parks this thread until it may be worth looking again. */
static PyObject *ring_wait(PyObject *self, PyObject *args)
{
    struct ring *r = RING(self);
    int for_room;
    double seconds;
    if (!PyArg_ParseTuple(args, "pd", &for_room, &seconds) || ring_check(r) < 0)
        return NULL;
    int64_t ns = seconds < 0 || seconds > 3600 ? 3600 * PL_NSEC_PER_SEC : (int64_t)(seconds * 1e9);
    enum pl_channel_side side = for_room ? PL_CHANNEL_ROOM : PL_CHANNEL_DATA;
    int error;
    /* The mapping must outlive the wait whatever other threads do to this object. */
    Py_INCREF(self);
    ring_use(r);
    Py_BEGIN_ALLOW_THREADS error = pl_channel_wait(&r->core, side, ns);
    Py_END_ALLOW_THREADS ring_leave(r);
    Py_DECREF(self);
    if (error == -EINTR && PyErr_CheckSignals() < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* arm(for_room): the side's descriptor will be readable; False when that is not needed,
 * because there is something already. */
static PyObject *ring_arm(PyObject *self, PyObject *arg)
{
    if (ring_check(RING(self)) < 0)
        return NULL;
    int for_room = PyObject_IsTrue(arg);
    return for_room < 0 ? NULL
                        : PyBool_FromLong(pl_channel_arm(
                              &RING(self)->core, for_room ? PL_CHANNEL_ROOM : PL_CHANNEL_DATA));
}

static PyObject *ring_disarm(PyObject *self, PyObject *arg)
{
    if (!RING(self)->open)
        Py_RETURN_NONE;
    int for_room = PyObject_IsTrue(arg);
    if (for_room < 0)
        return NULL;
    pl_channel_disarm(&RING(self)->core, for_room ? PL_CHANNEL_ROOM : PL_CHANNEL_DATA);
    Py_RETURN_NONE;
}

static PyObject *ring_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (ring_check(RING(self)) < 0)
        return NULL;
    pl_channel_close(&RING(self)->core);
    Py_RETURN_NONE;
}

static PyObject *ring_figures(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ring *r = RING(self);
    if (ring_check(r) < 0)
        return NULL;
    struct pl_channel_figures f;
    pl_channel_figures(&r->core, &f);
    return Py_BuildValue("(KKKKO)", (unsigned long long)f.capacity, (unsigned long long)f.size,
                         (unsigned long long)f.sent, (unsigned long long)f.received,
                         f.closed ? Py_True : Py_False);
}

static PyMethodDef ring_methods[] = {
    {"encode", ring_encode, METH_O, NULL},
    {"send", ring_send, METH_O, NULL},
    {"receive", ring_receive, METH_O, NULL},
    {"wait", ring_wait, METH_VARARGS, NULL},
    {"arm", ring_arm, METH_O, NULL},
    {"disarm", ring_disarm, METH_O, NULL},
    {"close", ring_close, METH_NOARGS, NULL},
    {"release", ring_release, METH_NOARGS, NULL},
    {"figures", ring_figures, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef ring_members[] = {
    {"users", T_UINT, offsetof(struct ring, users), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_new, ring_new},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_members, ring_members},
    {Py_tp_doc, "A bounded ring of messages in shared memory."},
    {0, NULL},
};

static PyType_Spec ring_spec = {
    .name = "plait._core.SharedRing",
    .basicsize = sizeof(struct ring),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ring_slots,
};

static PyObject *create_ring(PyObject *module, PyObject *args)
{
    unsigned long long capacity;
    unsigned long long size;
    if (!PyArg_ParseTuple(args, "KK:create_ring", &capacity, &size))
        return NULL;
    int memfd;
    int error = pl_channel_create(NULL, capacity, size, &memfd);
    if (error < 0)
        return plait_raise(plait_state_of_module(module), error, "making a channel");
    return PyLong_FromLong(memfd);
}

static PyMethodDef functions[] = {
    {"create_ring", create_ring, METH_VARARGS,
     "create_ring($module, capacity, size, /)\n--\n\n"
     "Make the shared memory of a ring; its descriptor is the caller's."},
    {NULL, NULL, 0, NULL},
};

int plait_channel_ring_exec(PyObject *module, struct plait_state *state)
{
    state->shared_ring_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ring_spec, NULL);
    if (state->shared_ring_type == NULL || PyModule_AddType(module, state->shared_ring_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
