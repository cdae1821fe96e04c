/* state_stream.h - what the streams' fast path keeps in the module's state. */
#ifndef PLAIT_STATE_STREAM_H
#define PLAIT_STATE_STREAM_H

#include <Python.h>

/* X(type, name): one owned reference each: our types; asyncio's classes (asyncio_*) and those
 * of its functions that ours replace (stock_*, NULL when the fast path is off); names. */
// clang-format off
#define PLAIT_STREAM_OBJECTS(X)                    \
    X(PyTypeObject, reader_state_type)             \
    X(PyTypeObject, own_reader_type)               \
    X(PyTypeObject, read_op_type)                  \
    X(PyTypeObject, drained_type)                  \
    X(PyTypeObject, connected_type)                \
    X(PyTypeObject, talk_done_type)                \
    X(PyTypeObject, writer_type)                   \
    X(PyObject, drained)                           \
    X(PyObject, reader_type)                       \
    X(PyObject, asyncio_stream_reader)             \
    X(PyObject, asyncio_stream_writer)             \
    X(PyObject, asyncio_stream_protocol)           \
    X(PyObject, asyncio_iscoroutine)               \
    X(PyObject, asyncio_limit_overrun)             \
    X(PyObject, asyncio_incomplete_read)           \
    X(PyObject, stock_future)                      \
    X(PyObject, stock_reader)                      \
    X(PyObject, stock_writer)                      \
    X(PyObject, stock_protocol)                    \
    X(PyObject, getweakrefcount)                   \
    X(PyObject, newline)                           \
    X(PyObject, no_args)                           \
    X(PyObject, kw_context)                        \
    X(PyObject, str_blocking)                      \
    X(PyObject, str_cancelled)                     \
    X(PyObject, str_class)                         \
    X(PyObject, str_client_connected_cb)           \
    X(PyObject, str_protocol_lost)                 \
    X(PyObject, str_drain_waiters)                 \
    X(PyObject, str_is_closing)                    \
    X(PyObject, str_pause_reading)                 \
    X(PyObject, str_resume_reading)                \
    X(PyObject, str_paused)                        \
    X(PyObject, str_private_loop)                  \
    X(PyObject, str_private_protocol)              \
    X(PyObject, str_private_reader)                \
    X(PyObject, str_private_transport)             \
    X(PyObject, str_reader_wr)                     \
    X(PyObject, str_source_traceback)              \
    X(PyObject, str_state)                         \
    X(PyObject, str_stream_writer)                 \
    X(PyObject, str_strong_reader)                 \
    X(PyObject, str_private_task)                  \
    X(PyObject, str_write)
// clang-format on

#endif /* PLAIT_STATE_STREAM_H */
