/* channel.c - a bounded ring of references, and the lists of those who wait: plait.Channel.
 *
 * Whether there is room, the store, and the look for someone who waits are one call each, and
 * no such call gives the interpreter's lock away: that lock is all that guards the ring. (Only
 * references are moved under it; what is dropped is dropped at the end.)
 *
 * An item is in the ring or with its sender, never on its way: who is woken looks again, and may
 * find that somebody was faster; then it waits in front of all others. So cancelling who waits
 * loses nothing. One who was woken and goes away without looking wakes the next; if it was to
 * receive, there may then be an item more than the capacity.
 */
#include "channel.h"

#include <stddef.h>
#include <structmember.h>

#define AT(type, field) offsetof(struct type, field)
#define CHANNEL(o) ((struct channel *)(o))

/* ---- those who wait ---- */

void plait_waits_add(struct plait_waits *list, struct plait_wait *wait, bool in_front)
{
    wait->list = list;
    wait->prev = in_front ? NULL : list->last;
    wait->next = in_front ? list->first : NULL;
    if (wait->prev != NULL)
        wait->prev->next = wait;
    else
        list->first = wait;
    if (wait->next != NULL)
        wait->next->prev = wait;
    else
        list->last = wait;
    list->len++;
}

void plait_waits_remove(struct plait_wait *wait)
{
    struct plait_waits *list = wait->list;
    if (list == NULL)
        return;
    if (wait->prev != NULL)
        wait->prev->next = wait->next;
    else
        list->first = wait->next;
    if (wait->next != NULL)
        wait->next->prev = wait->prev;
    else
        list->last = wait->prev;
    wait->prev = wait->next = NULL;
    wait->list = NULL;
    list->len--;
}

bool plait_waits_wake(struct plait_waits *list)
{
    while (list->first != NULL) {
        struct plait_wait *wait = list->first;
        plait_waits_remove(wait);
        wait->woken = list;
        list->woken++;
        /* Not woken, it has been settled, and may be gone. */
        if (wait->thread ? plait_waiter_wake(wait) : plait_op_wake(wait))
            return true;
    }
    return false;
}

bool plait_waits_settle(struct plait_wait *wait)
{
    if (wait->woken == NULL)
        return false;
    wait->woken->woken--;
    wait->woken = NULL;
    return true;
}

static void wake_all(struct plait_waits *list)
{
    while (plait_waits_wake(list))
        ;
}

/* ---- the ring ---- */

/* How many items there may be. What receivers have been woken for does not count: it is as good
 * as gone, and a sender need not wait until they have their turn. */
static Py_ssize_t room_of(const struct channel *c)
{
    return c->capacity + c->receivers.woken;
}

static int grow(struct channel *c)
{
    Py_ssize_t most = room_of(c);
    Py_ssize_t size = c->size == 0 ? 16 : c->size * 2;
    if (size > most)
        size = most;
    PyObject **ring = PyMem_New(PyObject *, (size_t)size);
    if (ring == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < c->len; i++)
        ring[i] = c->ring[(c->head + i) % c->size];
    PyMem_Free(c->ring);
    c->ring = ring;
    c->size = size;
    c->head = 0;
    return 0;
}

PyObject *plait_channel_raise_closed(const char *text)
{
    PyObject *module = PyImport_ImportModule("plait._exceptions");
    PyObject *type = module == NULL ? NULL : PyObject_GetAttrString(module, "ChannelClosed");
    if (type != NULL)
        PyErr_SetString(type, text);
    Py_XDECREF(type);
    Py_XDECREF(module);
    return NULL;
}

int plait_channel_push(struct channel *c, PyObject *item)
{
    if (c->closed) {
        (void)plait_channel_raise_closed("the channel is closed: nothing can be sent");
        return -1;
    }
    if (c->len >= room_of(c))
        return 0;
    if (c->len == c->size && grow(c) < 0)
        return -1;
    Py_ssize_t at = c->head + c->len;
    if (at >= c->size)
        at -= c->size;
    c->ring[at] = Py_NewRef(item);
    c->len++;
    c->sent++;
    if (c->receivers.first != NULL)
        (void)plait_waits_wake(&c->receivers);
    return 1;
}

int plait_channel_pop(struct channel *c, PyObject **item)
{
    if (c->len == 0)
        return c->closed ? -1 : 0;
    *item = c->ring[c->head];
    if (++c->head == c->size)
        c->head = 0;
    c->len--;
    c->received++;
    if (c->senders.first != NULL)
        (void)plait_waits_wake(&c->senders);
    return 1;
}

/* ---- for threads, and for who does not wait ---- */

/* What to do for a thread that tries. A waiter that is not None is its place in a
 * list; *wait is NULL without one. 0, or -1 with an exception set. */
static int thread_of(struct channel *c, PyObject *waiter, struct plait_wait **wait, bool *woken)
{
    *wait = NULL;
    *woken = false;
    if (waiter == Py_None)
        return 0;
    *wait = plait_waiter_of(c->state, waiter, (PyObject *)c);
    if (*wait == NULL)
        return -1;
    *woken = plait_waits_settle(*wait);
    return 0;
}

static void let_wait(struct plait_waits *list, struct plait_wait *wait, bool woken)
{
    if (wait == NULL)
        return;
    plait_waiter_renew(wait);
    plait_waits_add(list, wait, woken);
}

/* _push(item, waiter): whether there was room; if not, a waiter that is not None is on the
 * list, in front when it comes back. ChannelClosed. */
static PyObject *channel_push(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct channel *c = CHANNEL(self);
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "_push() takes an item and a waiter");
        return NULL;
    }
    struct plait_wait *wait;
    bool woken;
    if (thread_of(c, args[1], &wait, &woken) < 0)
        return NULL;
    int told = plait_channel_push(c, args[0]);
    if (told == 0)
        let_wait(&c->senders, wait, woken);
    return told < 0 ? NULL : PyBool_FromLong(told);
}

/* _pop(waiter, nothing): the next item, or `nothing`: a waiter that is not None is then on the
 * list, in front when it comes back. ChannelClosed. */
static PyObject *channel_pop(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct channel *c = CHANNEL(self);
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "_pop() takes a waiter and what stands for nothing");
        return NULL;
    }
    struct plait_wait *wait;
    bool woken;
    if (thread_of(c, args[0], &wait, &woken) < 0)
        return NULL;
    PyObject *item;
    int told = plait_channel_pop(c, &item);
    if (told == 1)
        return item;
    if (told < 0)
        return plait_channel_raise_closed("the channel is closed and empty");
    let_wait(&c->receivers, wait, woken);
    return Py_NewRef(args[1]);
}

/* _leave(waiter, sends): a thread goes away; if it has been woken, the next one is in its
 * place. */
static PyObject *channel_leave(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct channel *c = CHANNEL(self);
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "_leave() takes a waiter and whether it sends");
        return NULL;
    }
    struct plait_wait *wait;
    bool woken;
    if (thread_of(c, args[0], &wait, &woken) < 0)
        return NULL;
    if (woken)
        (void)plait_waits_wake(args[1] == Py_True ? &c->senders : &c->receivers);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
             "Take no more items.\n\n"
             "What is in the channel can still be received; then receivers get ChannelClosed,\n"
             "and iterations end. Closing again does nothing.");

static PyObject *channel_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct channel *c = CHANNEL(self);
    c->closed = true;
    wake_all(&c->receivers);
    wake_all(&c->senders);
    Py_RETURN_NONE;
}

/* ---- the type ---- */

static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t capacity;
    static char *names[] = {"capacity", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n", names, &capacity))
        return NULL;
    if (capacity < 1) {
        PyErr_Format(PyExc_ValueError, "capacity must be at least 1, not %zd", capacity);
        return NULL;
    }
    struct plait_state *state = plait_state_of_type(type);
    struct channel *c = state == NULL ? NULL : CHANNEL(type->tp_alloc(type, 0));
    if (c == NULL)
        return NULL;
    c->state = state;
    c->capacity = capacity;
    return (PyObject *)c;
}

static int channel_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct channel *c = CHANNEL(self);
    Py_VISIT(Py_TYPE(self));
    for (Py_ssize_t i = 0; i < c->len; i++)
        Py_VISIT(c->ring[(c->head + i) % c->size]);
    Py_VISIT(c->dict);
    return 0;
}

static int channel_clear(PyObject *self)
{
    struct channel *c = CHANNEL(self);
    while (c->len > 0) {
        PyObject *item = c->ring[c->head];
        c->head = (c->head + 1) % c->size;
        c->len--;
        Py_DECREF(item);
    }
    Py_CLEAR(c->dict);
    return 0;
}

/* Nobody waits in it: each who does keeps it. */
static void channel_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (CHANNEL(self)->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
    (void)channel_clear(self);
    PyMem_Free(CHANNEL(self)->ring);
    type->tp_free(self);
    Py_DECREF(type);
}

static Py_ssize_t channel_len(PyObject *self)
{
    return CHANNEL(self)->len;
}

PyDoc_STRVAR(send_doc,
             "send($self, item, /)\n--\n\n"
             "Put an item in, waiting as a coroutine until there is room.\n\n"
             "Cancelling it means that the item is not sent. Once in 64 calls in a row that did\n"
             "not have to wait, others on the loop have a turn first.\n\n"
             "Raises:\n"
             "    ChannelClosed: the channel is closed, or was while this waited.");

PyDoc_STRVAR(receive_doc,
             "receive($self, /)\n--\n\n"
             "Take the next item, waiting as a coroutine until there is one.\n\n"
             "Cancelling it means that nothing is taken. Once in 64 calls in a row that did not\n"
             "have to wait, others on the loop have a turn first.\n\n"
             "Raises:\n"
             "    ChannelClosed: there is none, and never will be.");

static PyObject *channel_send(PyObject *self, PyObject *item)
{
    return plait_op_new(CHANNEL(self)->state, self, PLAIT_OP_SEND, item);
}

static PyObject *channel_receive(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return plait_op_new(CHANNEL(self)->state, self, PLAIT_OP_RECEIVE, NULL);
}

static PyObject *channel_next(PyObject *self)
{
    return plait_op_new(CHANNEL(self)->state, self, PLAIT_OP_NEXT, NULL);
}

static PyMethodDef channel_methods[] = {
    {"send", channel_send, METH_O, send_doc},
    {"receive", channel_receive, METH_NOARGS, receive_doc},
    {"close", channel_close, METH_NOARGS, close_doc},
    {"_push", (PyCFunction)(void (*)(void))channel_push, METH_FASTCALL, NULL},
    {"_pop", (PyCFunction)(void (*)(void))channel_pop, METH_FASTCALL, NULL},
    {"_leave", (PyCFunction)(void (*)(void))channel_leave, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef channel_members[] = {
    {"capacity", T_PYSSIZET, AT(channel, capacity), READONLY, "How many items it holds."},
    {"closed", T_BOOL, AT(channel, closed), READONLY, "Whether nothing more can be sent."},
    {"_sent", T_ULONGLONG, AT(channel, sent), READONLY, NULL},
    {"_received", T_ULONGLONG, AT(channel, received), READONLY, NULL},
    {"_waiting_receivers", T_PYSSIZET, AT(channel, receivers.len), READONLY, NULL},
    {"_waiting_senders", T_PYSSIZET, AT(channel, senders.len), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, AT(channel, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, AT(channel, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot channel_slots[] = {
    {Py_tp_new, channel_new},
    {Py_tp_traverse, channel_traverse},
    {Py_tp_clear, channel_clear},
    {Py_tp_dealloc, channel_dealloc},
    {Py_tp_methods, channel_methods},
    {Py_tp_members, channel_members},
    {Py_sq_length, channel_len},
    {Py_am_aiter, PyObject_SelfIter},
    {Py_am_anext, channel_next},
    {Py_tp_doc, "A bounded ring of references. Base of plait.Channel."},
    {0, NULL},
};

static PyType_Spec channel_spec = {
    .name = "plait._core.ChannelBase",
    .basicsize = sizeof(struct channel),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = channel_slots,
};

int plait_channel_exec(PyObject *module, struct plait_state *state)
{
    state->channel_base_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &channel_spec, NULL);
    if (state->channel_base_type == NULL || PyModule_AddType(module, state->channel_base_type) < 0)
        return -1;
    if (plait_waiter_exec(module, state) < 0 || plait_op_exec(module, state) < 0 ||
        plait_locks_exec(module, state) < 0)
        return -1;
    return plait_channel_ring_exec(module, state);
}
