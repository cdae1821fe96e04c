/* watch.h - descriptors that are neither a transport's nor a listener's. */
#ifndef PLAIT_EXT_WATCH_H
#define PLAIT_EXT_WATCH_H

#include "loop.h"

/* What waits for a descriptor on behalf of one sock_* call; lies in the call's object, to
 * which a linked node owns a reference. */
struct plait_sock_wait {
    struct plait_watch *watch; /* NULL while not linked */
    struct plait_sock_wait *next;
    unsigned events; /* pl_io_events */
};

/* A descriptor that add_reader and add_writer watch, or sock_* calls wait for, or both. Owned
 * by the loop's table.
 *
 * With handles the poller tells levels, of what they and the calls that wait want. Without,
 * it tells edges, and goes on when no call waits: each call tries before it waits, so an edge
 * that finds nobody harms nobody, and the next call finds the descriptor registered. Such a
 * record belongs to one socket object: the descriptor of another has been closed and reused. */
struct plait_watch {
    struct pl_io io;
    HandleObject *reader;          /* owns; NULL without one */
    HandleObject *writer;          /* owns; NULL without one */
    PyObject *file;                /* owns; a closed file has only this name left. Or NULL */
    PyObject *sock;                /* owns a weak reference to the socket of the calls, or NULL */
    struct plait_sock_wait *waits; /* in the order of their coming */
    uint32_t hint;                 /* what the last receive brought */
    bool running;
};

/* The watch that a descriptor's place in the table belongs to; NULL when it is another's. */
struct plait_watch *plait_watch_of_io(struct pl_io *io);
struct plait_watch *plait_watch_of_op(struct pl_op *op);

/* PyLong_AsLong of what a fileno() has returned, which is a small int. */
static inline long plait_fd_value(PyObject *number)
{
#if PY_VERSION_HEX >= 0x030c0000
    if (PL_LIKELY(PyLong_CheckExact(number) && PyUnstable_Long_IsCompact((PyLongObject *)number)))
        return (long)PyUnstable_Long_CompactValue((PyLongObject *)number);
#endif
    return PyLong_AsLong(number);
}

/* The descriptor of an int or an object with fileno(); -1 with an exception set. */
int plait_watch_fd(PyObject *obj);

/* Makes room for a transport or a listener that got a descriptor which was closed, behind our
 * back, while it was watched: its handles are cancelled, calls that wait try again. */
void plait_watch_evict(LoopObject *loop, int fd);

/* Gives up a record that only keeps a descriptor registered, to one who wants its place. */
void plait_watch_yield(LoopObject *loop, int fd);

/* Links a wait of a call on a socket, which registers its descriptor when it is not. 0, or -1
 * with an exception set. */
int plait_watch_wait(LoopObject *loop, struct plait_sock_wait *wait, PyObject *sock, int fd,
                     unsigned events);
/* Unlinks it; nothing when it is not linked. The caller drops the node's reference. */
void plait_watch_unwait(struct plait_sock_wait *wait);

/* The record that a socket object's calls keep, or NULL. A hint: it may be another socket's. */
struct plait_watch *plait_watch_find(LoopObject *loop, int fd);

/* For the loop's traverse, and for the loop that closes: frees what the table owns. */
int plait_watch_visit(struct plait_watch *w, visitproc visit, void *arg);
void plait_watch_drop(LoopObject *loop, struct plait_watch *w);
/* An op of a watch leaves the queue of a loop that closes. */
void plait_watch_drop_op(LoopObject *loop, struct plait_watch *w);

/* sock.c: the node's call, borrowed; and its wake-up: the reference is given up. */
PyObject *plait_sock_of_wait(struct plait_sock_wait *wait);
void plait_sock_wake(struct plait_sock_wait *wait);
int plait_sock_type(PyObject *module, struct plait_state *state);

/* Methods of plait._core.Loop, for its table. */
PyObject *plait_loop_add_reader(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames);
PyObject *plait_loop_add_writer(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames);
PyObject *plait_loop_remove_reader(PyObject *self, PyObject *arg);
PyObject *plait_loop_remove_writer(PyObject *self, PyObject *arg);
PyObject *plait_loop_watched(PyObject *self, PyObject *arg);
PyObject *plait_loop_owner_of_fd(PyObject *self, PyObject *arg);
PyObject *plait_loop_sock_recv(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames);
PyObject *plait_loop_sock_recv_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames);
PyObject *plait_loop_sock_sendall(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames);
PyObject *plait_loop_sock_accept(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames);
PyObject *plait_loop_sock_recvfrom(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *kwnames);
PyObject *plait_loop_sock_recvfrom_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                        PyObject *kwnames);
PyObject *plait_loop_sock_sendto(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames);

#endif /* PLAIT_EXT_WATCH_H */
