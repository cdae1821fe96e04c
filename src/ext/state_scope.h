/* state_scope.h - what scopes and channels keep in the module's state. */
#ifndef PLAIT_STATE_SCOPE_H
#define PLAIT_STATE_SCOPE_H

#include <Python.h>

/* X(type, name): one owned reference each. */
// clang-format off
#define PLAIT_SCOPE_OBJECTS(X)                     \
    X(PyTypeObject, handle_base_type)              \
    X(PyTypeObject, scope_base_type)               \
    X(PyTypeObject, channel_base_type)             \
    X(PyTypeObject, channel_op_type)               \
    X(PyTypeObject, thread_waiter_type)            \
    X(PyTypeObject, tokens_type)                   \
    X(PyTypeObject, event_type)                    \
    X(PyObject, pause) /* a function of Python's that does nothing */ \
    X(PyTypeObject, shared_ring_type)              \
    X(PyObject, str_add_done_callback)             \
    X(PyObject, str_ended)                         \
    X(PyObject, str_idle)                          \
    X(PyObject, str_result)                        \
    X(PyObject, str_start)                         \
    X(PyObject, str_wake)
// clang-format on

struct thread_waiter;

#define PLAIT_FREE_CHANNEL_OPS 32

struct plait_scope_state {
    struct thread_waiter *sleepers; /* borrows: threads that wait in channels, locks, events */
    uint32_t forks; /* that this process is away from the one that made the module */
    /* Calls on channels ready for use again; each keeps the reference to its type. Not built
     * without the interpreter's lock, which guards the list. */
    PyObject *free_ops[PLAIT_FREE_CHANNEL_OPS];
    int free_ops_len;
};

#endif /* PLAIT_STATE_SCOPE_H */
