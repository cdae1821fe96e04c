/* state.h - the state of one instance of the module, and the way to it.
 *
 * The lists of objects, one for each part, are X-macros: they declare the
 * fields and write traverse and clear, so none can be forgotten. After clear every
 * field is NULL: code that runs during finalisation copes.
 */
#ifndef PLAIT_STATE_H
#define PLAIT_STATE_H

#include <Python.h>

#include "pl.h"
#include "state_auto.h"
#include "state_generators.h"
#include "state_loop.h"
#include "state_pool.h"
#include "state_scope.h"
#include "state_stream.h"
#include "state_thread.h"
#include "state_tls.h"

/* The parts of the module, in the order in which they are made. Workers need the pool's alone
 * and start faster without asyncio, which the others build on: those are made when the first
 * of their names is asked for. */
// clang-format off
#define PLAIT_LATER_PARTS(X) \
    X(future)                \
    X(loop)                  \
    X(stream)                \
    X(tls)                   \
    X(thread)                \
    X(file)                  \
    X(generators)            \
    X(budget)                \
    X(task)                  \
    X(scope)                 \
    X(channel)

/* Every object of the state. */
#define PLAIT_OBJECTS(X)         \
    PLAIT_LOOP_OBJECTS(X)        \
    PLAIT_STREAM_OBJECTS(X)      \
    PLAIT_TLS_OBJECTS(X)         \
    PLAIT_POOL_OBJECTS(X)        \
    PLAIT_THREAD_OBJECTS(X)      \
    PLAIT_GENERATORS_OBJECTS(X)  \
    PLAIT_AUTO_OBJECTS(X)        \
    PLAIT_SCOPE_OBJECTS(X)
// clang-format on

struct plait_state {
    bool whole; /* all parts are made */
#define X(type, name) type *name;
    PLAIT_OBJECTS(X)
#undef X
    struct plait_budget_state budget;
    struct plait_scope_state scope;
    struct plait_loop_state loop;
    struct plait_pool_state pool;
    struct plait_thread_state thread;
    struct plait_generators_state generators;
};

extern struct PyModuleDef plait_module;

/* The state of a module object. Borrowed; never NULL. */
static inline struct plait_state *plait_state_of_module(PyObject *module)
{
    return (struct plait_state *)PyModule_GetState(module);
}

/* The state from a type of ours or a subclass of one; NULL with an exception set when
 * the type is neither. */
static inline struct plait_state *plait_state_of_type(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &plait_module);
    return module == NULL ? NULL : plait_state_of_module(module);
}

/* Fill in their part of the state and of the module; -1 with an exception set. */
int plait_pool_exec(PyObject *module, struct plait_state *state);
#define X(part) int plait_##part##_exec(PyObject *module, struct plait_state *state);
PLAIT_LATER_PARTS(X)
#undef X

/* Drop what is in the state but is no object (free lists). */
void plait_scope_clear(struct plait_state *state);
void plait_loop_clear(struct plait_state *state);
void plait_pool_clear(struct plait_state *state);
void plait_thread_clear(struct plait_state *state);
void plait_generators_clear(struct plait_state *state);
void plait_budget_clear(struct plait_state *state);
void plait_task_clear(struct plait_state *state);

/* Raises the exception for a negative code of the core: an OSError subclass for an
 * errno (with `what` as its context), MemoryError for -ENOMEM, plait's own for the
 * rest. Always returns NULL. */
PyObject *plait_raise(struct plait_state *state, int code, const char *what);

#endif /* PLAIT_STATE_H */
