/* state_thread.h - what the thread pools keep in the module's state. */
#ifndef PLAIT_STATE_THREAD_H
#define PLAIT_STATE_THREAD_H

#include <Python.h>

/* X(type, name): one owned reference each. The exceptions are plait's, and NULL before the
 * first thread pool. */
// clang-format off
#define PLAIT_THREAD_OBJECTS(X)       \
    X(PyTypeObject, crew_type)        \
    X(PyTypeObject, thread_pool_type) \
    X(PyObject, task_stopped)         \
    X(PyObject, task_timeout)         \
    X(PyObject, pool_full)
// clang-format on

struct plait_thread_state {
    Py_tss_t worker_key; /* in a thread of a crew: its record */
};

#endif /* PLAIT_STATE_THREAD_H */
