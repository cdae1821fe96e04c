/* channel.h - channels of one process and those who wait in them, shared by their files. */
#ifndef PLAIT_EXT_CHANNEL_H
#define PLAIT_EXT_CHANNEL_H

#include "state.h"

#include <stdbool.h>

struct channel;

/* One who waits: a thread (waiter.c) or a coroutine (channel_op.c). A list borrows it: it takes
 * itself off before it goes. */
struct plait_wait {
    struct plait_wait *prev;
    struct plait_wait *next;
    struct plait_waits *list;  /* borrows; NULL: on none */
    struct plait_waits *woken; /* borrows; which it was woken from and has not looked since */
    bool thread;
};

struct plait_waits {
    struct plait_wait *first;
    struct plait_wait *last;
    Py_ssize_t len;
    Py_ssize_t woken; /* how many were woken and have not looked yet */
};

/* plait._core.ChannelBase. */
struct channel {
    PyObject_HEAD
    struct plait_state *state; /* borrows */
    PyObject **ring;           /* owns, and the references in it */
    Py_ssize_t capacity;       /* as the user wants it */
    Py_ssize_t size;           /* of ring: grows up to capacity */
    Py_ssize_t head;
    Py_ssize_t len;
    unsigned long long sent;
    unsigned long long received;
    struct plait_waits receivers;
    struct plait_waits senders;
    unsigned streak; /* coroutines' calls in a row that did not have to wait */
    PyObject *dict;
    PyObject *weakrefs;
    bool closed;
};

/* channel.c */
void plait_waits_add(struct plait_waits *list, struct plait_wait *wait, bool in_front);
/* Takes it off its list, if it is on one. */
void plait_waits_remove(struct plait_wait *wait);
/* Wakes the first of a list who still waits. Never fails. */
void plait_waits_wake(struct plait_waits *list);
/* It looks, or goes away: whether it had been woken. */
bool plait_waits_settle(struct plait_wait *wait);
/* 1: the item is in. 0: no room. -1: closed, or out of memory, with the exception set. */
int plait_channel_push(struct channel *c, PyObject *item);
/* 1 and the item, owned. 0: there is none. -1: none, and closed; no exception is set. */
int plait_channel_pop(struct channel *c, PyObject **item);
PyObject *plait_channel_raise_closed(const char *text);

/* channel_op.c */
/* Whether it was still waiting. Never fails. */
bool plait_channel_op_wake(struct plait_wait *wait);
PyObject *plait_channel_send(PyObject *self, PyObject *item);
PyObject *plait_channel_receive(PyObject *self, PyObject *ignored);
PyObject *plait_channel_next(PyObject *self);
int plait_channel_op_exec(PyObject *module, struct plait_state *state);
void plait_channel_op_clear(struct plait_state *state);

/* channel_ring.c */
int plait_channel_ring_exec(PyObject *module, struct plait_state *state);

/* waiter.c */
bool plait_waiter_wake(struct plait_wait *wait);
/* The wait of a ThreadWaiter, borrowed, on no list, and good for one of `channel`, which it keeps.
 * NULL with a TypeError. */
struct plait_wait *plait_waiter_of(struct plait_state *state, PyObject *waiter, PyObject *channel);
/* Readies it for another wait. */
void plait_waiter_renew(struct plait_wait *wait);
/* Has a thread that sleeps in a wait of plait's return to Python once, to meet an exception. */
void plait_waiter_kick(struct plait_state *state, unsigned long ident);
int plait_waiter_exec(PyObject *module, struct plait_state *state);

#endif /* PLAIT_EXT_CHANNEL_H */
