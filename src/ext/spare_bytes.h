/* spare_bytes.h - bytes objects that are used again for messages of their size.
 *
 * What an echo or a proxy moves needs no allocation then. An object becomes a spare when we have
 * its last reference, so nobody can see it change.
 */
#ifndef PLAIT_SPARE_BYTES_H
#define PLAIT_SPARE_BYTES_H

#include "loop.h"

/* Below, the interpreter's allocator is as fast; above, they would be a lot to keep. */
#define PLAIT_SPARE_MIN ((size_t)480)
#define PLAIT_SPARE_MAX ((size_t)16 << 10)

static inline PyObject **plait_spare_place(LoopObject *loop, size_t n)
{
    return &loop->spare_bytes[n / 64 % PLAIT_SPARE_BYTES];
}

/* A bytes object with what was received, which nobody else has. */
static inline PyObject *plait_spare_bytes_new(LoopObject *loop, const char *buf, size_t n)
{
    PyObject **place = plait_spare_place(loop, n);
    PyObject *spare = *place;
    if (spare == NULL || (size_t)PyBytes_GET_SIZE(spare) != n)
        return PyBytes_FromStringAndSize(buf, (Py_ssize_t)n);
    *place = NULL;
    memcpy(PyBytes_AS_STRING(spare), buf, n);
    return spare;
}

/* Drops a reference: with the last one the object may become a spare. */
static inline void plait_spare_bytes_release(LoopObject *loop, PyObject *bytes)
{
#ifndef Py_GIL_DISABLED /* there, a count of one says nothing about other threads */
    size_t n = (size_t)PyBytes_GET_SIZE(bytes);
    if (Py_REFCNT(bytes) == 1 && n >= PLAIT_SPARE_MIN && n <= PLAIT_SPARE_MAX && loop->core_ready) {
        PyObject **place = plait_spare_place(loop, n);
        PyObject *old = *place;
        /* The hash of what it held. The field has no other name yet, for all that it is called
         * deprecated. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
        ((PyBytesObject *)bytes)->ob_shash = -1;
#pragma GCC diagnostic pop
        *place = bytes;
        Py_XDECREF(old);
        return;
    }
#endif
    (void)loop;
    Py_DECREF(bytes);
}

#endif /* PLAIT_SPARE_BYTES_H */
