/* rota.c - plait._core.Rota: the board on which server processes see each other's load.
 *
 * It is made before the processes are forked, and shared by them; each takes a seat. What
 * it owns is a mapping, so there is nothing to traverse.
 */
#include "rota.h"
#include "loop.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    struct pl_rota core;
} RotaObject;

static struct pl_rota *core_of(PyObject *self)
{
    return &((RotaObject *)self)->core;
}

struct pl_rota *plait_rota_of(struct plait_state *state, PyObject *object)
{
    if (object == Py_None)
        return NULL;
    if (!PyObject_TypeCheck(object, state->rota_type)) {
        PyErr_Format(PyExc_TypeError, "rota must be a Rota or None, not %R", object);
        return NULL;
    }
    return core_of(object);
}

PyDoc_STRVAR(rota_doc, "Rota(seats)\n--\n\n"
                       "A board that processes share which accept from the same sockets.\n\n"
                       "Args:\n"
                       "    seats (int): how many there can be at a time, 1 to 512.\n\n"
                       "Raises:\n"
                       "    ValueError: too few seats, or too many.\n"
                       "    OSError: no memory.\n\n"
                       "Processes that are forked afterwards share it.");

static PyObject *rota_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seats", NULL};
    struct plait_state *state = plait_state_of_type(type);
    int seats;
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "i:Rota", names, &seats))
        return NULL;
    if (seats < 1 || seats > PL_ROTA_SEATS) {
        PyErr_Format(PyExc_ValueError, "seats must be from 1 to %d, not %d", PL_ROTA_SEATS, seats);
        return NULL;
    }
    RotaObject *self = (RotaObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    int r = pl_rota_init(&self->core, NULL, (uint32_t)seats);
    if (r < 0) {
        Py_DECREF(self);
        return plait_raise(state, r, "the board of the servers");
    }
    return (PyObject *)self;
}

static void rota_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    pl_rota_fini(core_of(self));
    type->tp_free(self);
    Py_DECREF(type);
}

/* A seat's number, or -1 with an exception set. */
static long seat_of(PyObject *self, PyObject *arg)
{
    long seat = PyLong_AsLong(arg);
    if (seat == -1 && PyErr_Occurred())
        return -1;
    if (seat < 0 || seat >= (long)core_of(self)->board->seats) {
        PyErr_Format(PyExc_ValueError, "seat must be from 0 to %u, not %ld",
                     core_of(self)->board->seats - 1, seat);
        return -1;
    }
    return seat;
}

PyDoc_STRVAR(sit_doc, "sit($self, seat, /)\n--\n\nTake a seat for this process.");

static PyObject *rota_sit(PyObject *self, PyObject *arg)
{
    long seat = seat_of(self, arg);
    if (seat < 0)
        return NULL;
    int r = pl_rota_sit(core_of(self), (uint32_t)seat);
    if (r < 0)
        return plait_raise(plait_state_of_type(Py_TYPE(self)), r, NULL);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(join_doc, "join($self, /)\n--\n\nThis process accepts from now on.");

static PyObject *rota_join(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    pl_rota_join(core_of(self));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(leave_doc, "leave($self, /)\n--\n\nThis process accepts no more.");

static PyObject *rota_leave(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    pl_rota_leave(core_of(self));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(beat_doc, "beat($self, loop, /)\n--\n\nTell that the loop of this process turns.");

static PyObject *rota_beat(PyObject *self, PyObject *arg)
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    if (state == NULL)
        return NULL;
    if (!PyObject_TypeCheck(arg, state->loop_type))
        return PyErr_Format(PyExc_TypeError, "loop must be a plait.Loop, not %R", arg);
    LoopObject *loop = (LoopObject *)arg;
    if (plait_loop_check(loop) < 0)
        return NULL;
    pl_rota_beat(core_of(self), pl_loop_now(&loop->core), loop->core.open);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(clear_doc, "clear($self, seat, /)\n--\n\nFree the seat of a process that is gone.");

static PyObject *rota_clear_seat(PyObject *self, PyObject *arg)
{
    long seat = seat_of(self, arg);
    if (seat < 0)
        return NULL;
    pl_rota_clear(core_of(self), (uint32_t)seat);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(read_doc,
             "read($self, seat, /)\n--\n\n"
             "Return what stands on the board for a seat.\n\n"
             "Returns:\n"
             "    tuple[int, int, int, float]: state (0 free, 1 serving, 2 leaving), descriptors\n"
             "    that its loop watches, connections accepted, and when its loop turned last, in\n"
             "    seconds of time.monotonic(); 0.0 when it has not.");

static PyObject *rota_read(PyObject *self, PyObject *arg)
{
    long number = seat_of(self, arg);
    if (number < 0)
        return NULL;
    struct pl_rota_seat *seat = &core_of(self)->board->seat[number];
    /* relaxed: figures to look at; nothing is done on the strength of their order. */
    return Py_BuildValue(
        "(IIKd)", atomic_load_explicit(&seat->state, memory_order_relaxed),
        atomic_load_explicit(&seat->open, memory_order_relaxed),
        (unsigned long long)atomic_load_explicit(&seat->accepted, memory_order_relaxed),
        (double)atomic_load_explicit(&seat->beat, memory_order_relaxed) / (double)PL_NSEC_PER_SEC);
}

static PyMethodDef rota_methods[] = {
    {"sit", rota_sit, METH_O, sit_doc},
    {"join", rota_join, METH_NOARGS, join_doc},
    {"leave", rota_leave, METH_NOARGS, leave_doc},
    {"beat", rota_beat, METH_O, beat_doc},
    {"clear", rota_clear_seat, METH_O, clear_doc},
    {"read", rota_read, METH_O, read_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot rota_slots[] = {
    {Py_tp_doc, (void *)rota_doc},
    {Py_tp_new, rota_new},
    {Py_tp_dealloc, rota_dealloc},
    {Py_tp_methods, rota_methods},
    {0, NULL},
};

static PyType_Spec rota_spec = {
    .name = "plait._core.Rota",
    .basicsize = sizeof(RotaObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = rota_slots,
};

int plait_rota_type(PyObject *module, struct plait_state *state)
{
    state->rota_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &rota_spec, NULL);
    return state->rota_type == NULL ? -1 : PyModule_AddType(module, state->rota_type);
}
