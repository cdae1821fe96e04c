/* state_tls.h - what TLS keeps in the module's state. */
#ifndef PLAIT_STATE_TLS_H
#define PLAIT_STATE_TLS_H

#include <Python.h>

/* X(type, name): one owned reference each: our types, what is borrowed from the ssl module
 * when the first TLS connection is made (ssl_*), names. */
// clang-format off
#define PLAIT_TLS_OBJECTS(X)                       \
    X(PyTypeObject, tls_type)                      \
    X(PyTypeObject, window_type)                   \
    X(PyObject, asyncio_sendfile_fallback)         \
    X(PyObject, ssl_error)                         \
    X(PyObject, ssl_want_read)                     \
    X(PyObject, ssl_syscall)                       \
    X(PyObject, ssl_certificate_error)             \
    X(PyObject, ssl_memory_bio)                    \
    X(PyObject, ssl_bio_read)                      \
    X(PyObject, ssl_bio_write)                     \
    X(PyObject, ssl_engine_type)                   \
    X(PyObject, ssl_engine_write)                  \
    X(PyObject, ssl_object_type)                   \
    X(PyObject, str_pending)                       \
    X(PyObject, str_read)
// clang-format on

#endif /* PLAIT_STATE_TLS_H */
