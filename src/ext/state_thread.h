/* state_thread.h - what the thread pools keep in the module's state. */
#ifndef PLAIT_STATE_THREAD_H
#define PLAIT_STATE_THREAD_H

#include <Python.h>

/* X(name, text): the methods that a future calls at a loop's future, and at the loop. */
// clang-format off
#define PLAIT_FUTURE_NAMES(X)                              \
    X(name_transfer, "_transfer")                          \
    X(name_waiter_done, "_waiter_done")                    \
    X(name_add_done_callback, "add_done_callback")         \
    X(name_call_soon_threadsafe, "call_soon_threadsafe")   \
    X(name_cancel, "cancel")                               \
    X(name_create_future, "create_future")                 \
    X(name_done, "done")                                   \
    X(name_set_exception, "set_exception")                 \
    X(name_set_result, "set_result")
// clang-format on

/* X(type, name): one owned reference each. The exceptions are plait's, and NULL before the
 * first thread pool. */
// clang-format off
#define PLAIT_THREAD_OBJECTS(X)       \
    X(PyTypeObject, crew_type)        \
    X(PyTypeObject, thread_pool_type) \
    X(PyObject, task_stopped)         \
    X(PyObject, task_timeout)         \
    X(PyObject, pool_full)            \
    X(PyObject, name_transfer)        \
    X(PyObject, name_waiter_done)     \
    X(PyObject, name_add_done_callback) \
    X(PyObject, name_call_soon_threadsafe) \
    X(PyObject, name_cancel)          \
    X(PyObject, name_create_future)   \
    X(PyObject, name_done)            \
    X(PyObject, name_set_exception)   \
    X(PyObject, name_set_result)
// clang-format on

struct plait_thread_state {
    Py_tss_t worker_key; /* in a thread of a crew: its record */
};

#endif /* PLAIT_STATE_THREAD_H */
