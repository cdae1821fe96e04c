/* state_generators.h - what the scheduler of generators keeps in the module's state. */
#ifndef PLAIT_STATE_GENERATORS_H
#define PLAIT_STATE_GENERATORS_H

#include "free_list.h"

/* X(type, name): one owned reference each. */
// clang-format off
#define PLAIT_GENERATORS_OBJECTS(X)                                             \
    X(PyTypeObject, gen_request_type)                                           \
    X(PyTypeObject, gen_task_type)                                              \
    X(PyTypeObject, gen_waiter_type)                                            \
    X(PyTypeObject, gen_await_type)                                             \
    X(PyObject, gen_cancelled) /* plait.generators.Cancelled */                 \
    X(PyObject, gen_deadlock)  /* plait.generators.Deadlock */                  \
    X(PyObject, gen_asyncio_cancelled)                                          \
    X(PyObject, gen_invalid_state) /* asyncio's */                              \
    X(PyObject, gen_cf_future) /* concurrent.futures.Future */                  \
    X(PyObject, gen_fileno)    /* socket.socket.fileno of the C base type */    \
    X(PyObject, gen_running_loop)                                               \
    X(PyObject, gen_str_add_done_callback)                                      \
    X(PyObject, gen_str_blocking)                                               \
    X(PyObject, gen_str_call_soon_threadsafe)                                   \
    X(PyObject, gen_str_cancel)                                                 \
    X(PyObject, gen_str_cancelled)                                              \
    X(PyObject, gen_str_get_loop)                                               \
    X(PyObject, gen_str_remove_done_callback)                                   \
    X(PyObject, gen_str_result)                                                 \
    X(PyObject, gen_str_throw)
// clang-format on

struct plait_generators_state {
    struct plait_free_list requests;
    PyCFunction fileno; /* what gen_fileno calls; NULL: a socket's own method */
};

#endif /* PLAIT_STATE_GENERATORS_H */
