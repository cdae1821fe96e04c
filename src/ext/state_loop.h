/* state_loop.h - what the loop keeps in the module's state. */
#ifndef PLAIT_STATE_LOOP_H
#define PLAIT_STATE_LOOP_H

#include "free_list.h"

/* X(name, text): the names that Following uses. */
// clang-format off
#define PLAIT_FOLLOWING_NAMES(X)                   \
    X(following_cancelled, "cancelled")            \
    X(following_deliver, "_deliver")               \
    X(following_exception, "_exception")           \
    X(following_result, "_result")                 \
    X(following_source_done, "_source_done")       \
    X(following_state, "_state")                   \
    X(following_target_done, "_target_done")
// clang-format on

/* X(type, name): one owned reference each: our types, names that hot calls use
 * (str_*), and what is borrowed from the standard library (asyncio_*). */
// clang-format off
#define PLAIT_LOOP_OBJECTS(X)                      \
    X(PyTypeObject, loop_type)                     \
    X(PyTypeObject, handle_type)                   \
    X(PyTypeObject, timer_handle_type)             \
    X(PyTypeObject, threadsafe_handle_type)        \
    X(PyTypeObject, transport_type)                \
    X(PyTypeObject, listener_type)                 \
    X(PyTypeObject, clients_type)                  \
    X(PyTypeObject, rota_type)                     \
    X(PyTypeObject, sock_call_type)                \
    X(PyObject, asyncio_future)                    \
    X(PyObject, asyncio_futures)                   \
    X(PyObject, asyncio_tasks)                     \
    X(PyObject, asyncio_server)                    \
    X(PyObject, weak_set)                          \
    X(PyObject, asyncio_buffered_protocol)         \
    X(PyObject, asyncio_transport_socket)          \
    X(PyObject, asyncio_extract_stack)             \
    X(PyObject, asyncio_sendfile_mode)             \
    X(PyObject, socket_type)                       \
    X(PyObject, logger)                            \
    X(PyObject, kwnames_fileno)                    \
    X(PyObject, kwnames_loop)                      \
    X(PyObject, str_buffer_updated)                \
    X(PyObject, str_call_exception_handler)        \
    X(PyObject, str_check_callback)                \
    X(PyObject, str_check_thread)                  \
    X(PyObject, str_close)                         \
    X(PyObject, str_connection_lost)               \
    X(PyObject, str_connection_made)               \
    X(PyObject, str_create_task_slow)              \
    X(PyObject, str_data_received)                 \
    X(PyObject, str_eof_received)                  \
    X(PyObject, str_get_buffer)                    \
    X(PyObject, str_pause_writing)                 \
    X(PyObject, str_report_slow)                   \
    X(PyObject, str_resume_writing)                \
    X(PyObject, str_set_result)                    \
    X(PyObject, str_done)                          \
    X(PyObject, str_attach)                        \
    X(PyObject, str_future)                        \
    X(PyObject, str_task)                          \
    X(PyObject, str_time)                          \
    X(PyObject, str_accept)                        \
    X(PyObject, str_create_future)                 \
    X(PyObject, str_fileno)                        \
    X(PyObject, str_gettimeout)                    \
    X(PyObject, str_recvfrom)                      \
    X(PyObject, str_recvfrom_into)                 \
    X(PyObject, str_sendto)                        \
    X(PyObject, str_detach)                        \
    X(PyTypeObject, file_queue_type)               \
    X(PyObject, following_cancelled)               \
    X(PyObject, following_deliver)                 \
    X(PyObject, following_exception)               \
    X(PyObject, following_result)                  \
    X(PyObject, following_source_done)             \
    X(PyObject, following_state)                   \
    X(PyObject, following_target_done)             \
    X(PyObject, str_set_exception)
// clang-format on

// clang-format off
#define PLAIT_LOOP_FREE_LISTS(X) \
    X(handles)                   \
    X(timer_handles)             \
    X(reads)                     \
    X(sock_calls)
// clang-format on

struct plait_loop_state {
#define X(name) struct plait_free_list name;
    PLAIT_LOOP_FREE_LISTS(X)
#undef X
    PyCFunction socket_fileno;   /* see socket_fd in sock.c */
    unsigned socket_version;     /* of the class that it was found in */
    bool server_takes_transport; /* Server._attach(transport), from 3.13 on */
    bool safe_handles;           /* asyncio has a class for other threads' handles (3.14) */
    bool futures_made_once;      /* Future.__init__ refuses futures that were made (3.15) */
};

#endif /* PLAIT_STATE_LOOP_H */
