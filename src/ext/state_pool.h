/* state_pool.h - what the pools keep in the module's state. */
#ifndef PLAIT_STATE_POOL_H
#define PLAIT_STATE_POOL_H

#include <Python.h>

/* X(type, name): one owned reference each. */
// clang-format off
#define PLAIT_POOL_OBJECTS(X)                                                            \
    X(PyObject, large_type)                                                              \
    X(PyTypeObject, future_base_type) /* the layout and nearly all methods */            \
    X(PyTypeObject, future_type) /* (future_base, concurrent.futures.Future) */          \
    X(PyTypeObject, pool_type)                                                           \
    X(PyTypeObject, block_type)                                                          \
    X(PyTypeObject, items_type)                                                          \
    X(PyObject, pickle_dumps)                                                            \
    X(PyObject, pickle_loads)                                                            \
    X(PyObject, protocol_5)                                                              \
    X(PyObject, dumps_kwnames) /* ("protocol", "buffer_callback") */                     \
    X(PyObject, loads_kwnames) /* ("buffers",) */                                        \
    X(PyObject, cancelled_error) /* concurrent.futures.CancelledError */                 \
    X(PyObject, invalid_state) /* concurrent.futures.InvalidStateError */                \
    X(PyObject, timeout_error)                                                           \
    X(PyObject, condition_type) /* threading.Condition */                                \
    X(PyObject, get_running_loop) /* asyncio's _get_running_loop; NULL before its use */ \
    X(PyObject, decode_exception) /* plait._pool.decode_exception */                     \
    X(PyObject, np_ndarray) /* numpy's, once an array was met; with these two: */        \
    X(PyObject, np_dtypes) /* tuple: numpy's types, as pool_arrays.c counts them */      \
    X(PyObject, reducers) /* copyreg.dispatch_table */                                   \
    X(PyObject, str_append)                                                              \
    X(PyObject, empty_tuple)
// clang-format on

struct plait_pool_state {
    int unused;
};

#endif /* PLAIT_STATE_POOL_H */
