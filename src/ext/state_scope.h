/* state_scope.h - what scopes and channels keep in the module's state. */
#ifndef PLAIT_STATE_SCOPE_H
#define PLAIT_STATE_SCOPE_H

#include "free_list.h"

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

struct plait_scope_state {
    struct thread_waiter *sleepers; /* borrows: threads that wait in channels, locks, events */
    uint32_t forks;             /* that this process is away from the one that made the module */
    struct plait_free_list ops; /* calls of coroutines */
};

#endif /* PLAIT_STATE_SCOPE_H */
