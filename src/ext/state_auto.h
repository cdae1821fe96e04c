/* state_auto.h - what budgets and placement keep in the module's state. */
#ifndef PLAIT_STATE_AUTO_H
#define PLAIT_STATE_AUTO_H

#include "free_list.h"

struct plait_monitor;

/* X(type, name): one owned reference each. */
// clang-format off
#define PLAIT_AUTO_OBJECTS(X)        \
    X(PyTypeObject, task_type)       \
    X(PyTypeObject, call_type)       \
    X(PyObject, over_budget)         \
    X(PyObject, slot_key)            \
    X(PyObject, budget_stop)         \
    X(PyObject, budget_before_fork)  \
    X(PyObject, budget_after_fork)   \
    X(PyObject, budget_after_fork_in_child) \
    X(PyObject, stop)                \
    X(PyObject, call_finder)         \
    X(PyObject, str_dunder_await)
// clang-format on

#define PLAIT_KNOWN 64

/* A function that plait.call has met, by its code, and the task with its figures. Owns both. */
struct plait_known {
    PyObject *code;
    PyObject *task;
};

struct plait_budget_state {
    struct plait_monitor *monitor; /* shares; NULL before the first budget */
    struct plait_known known[PLAIT_KNOWN];
    struct plait_free_list calls;
    bool hooked;      /* atexit and fork know about it */
    unsigned forking; /* forks under way: the monitor is not to be started */
};

#endif /* PLAIT_STATE_AUTO_H */
