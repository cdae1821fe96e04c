/* channel.h - channels and locks of one process and those who wait in them, shared by their
 * files. */
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

/* plait._core.TokensBase. */
struct plait_tokens {
    PyObject_HEAD
    struct plait_state *state; /* borrows */
    Py_ssize_t total;
    Py_ssize_t free;
    struct plait_waits waits;
    bool lock; /* for messages */
};

/* plait._core.EventBase. */
struct plait_event {
    PyObject_HEAD
    struct plait_state *state; /* borrows */
    struct plait_waits waits;
    bool set;
};

/* channel.c */
void plait_waits_add(struct plait_waits *list, struct plait_wait *wait, bool in_front);
/* Takes it off its list, if it is on one. */
void plait_waits_remove(struct plait_wait *wait);
/* Wakes the first of a list who still waits; whether there was one. Never fails. */
bool plait_waits_wake(struct plait_waits *list);
/* It looks, or goes away: whether it had been woken. */
bool plait_waits_settle(struct plait_wait *wait);
/* 1: the item is in. 0: no room. -1: closed, or out of memory, with the exception set. */
int plait_channel_push(struct channel *c, PyObject *item);
/* 1 and the item, owned. 0: there is none. -1: none, and closed; no exception is set. */
int plait_channel_pop(struct channel *c, PyObject **item);
PyObject *plait_channel_raise_closed(const char *text);

/* channel_op.c: calls that look like coroutines. */
enum plait_op_kind {
    PLAIT_OP_SEND, /* of a channel */
    PLAIT_OP_RECEIVE,
    PLAIT_OP_NEXT,
    PLAIT_OP_ACQUIRE, /* of tokens */
    PLAIT_OP_ENTER,
    PLAIT_OP_EXIT,
    PLAIT_OP_WAIT, /* of an event */
};
/* A call of `target`, a channel, tokens or an event; item may be NULL. */
PyObject *plait_op_new(struct plait_state *state, PyObject *target, enum plait_op_kind kind,
                       PyObject *item);
/* Whether it was still waiting. Never fails. */
bool plait_op_wake(struct plait_wait *wait);
int plait_op_exec(PyObject *module, struct plait_state *state);

/* locks.c */
bool plait_tokens_take(struct plait_tokens *t);
/* A token is free: the next who waits has it. */
void plait_tokens_give(struct plait_tokens *t);
/* The same for one that was taken; RuntimeError when none was. */
int plait_tokens_release(struct plait_tokens *t);
int plait_locks_exec(PyObject *module, struct plait_state *state);

/* channel_ring.c */
int plait_channel_ring_exec(PyObject *module, struct plait_state *state);

/* waiter.c */
bool plait_waiter_wake(struct plait_wait *wait);
/* The wait of a ThreadWaiter, borrowed, on no list, and good for one of `channel`, which it keeps.
 * NULL with a TypeError. */
struct plait_wait *plait_waiter_of(struct plait_state *state, PyObject *waiter, PyObject *channel);
/* Sleeps until somebody wakes it, which `wait.woken` tells, or until `end` by the core's clock (0).
 * 1 when woken; PLAIT_LOOK to let Python look around and call again; -1 with an exception. */
enum { PLAIT_LOOK = 2 };
int plait_waiter_sleep(PyObject *waiter, int64_t end);
/* Readies it for another wait. */
void plait_waiter_renew(struct plait_wait *wait);
/* Has a thread that sleeps in a wait of plait's return to Python once, to meet an exception. */
void plait_waiter_kick(struct plait_state *state, unsigned long ident);
int plait_waiter_exec(PyObject *module, struct plait_state *state);

#endif /* PLAIT_EXT_CHANNEL_H */
