/* call.h - one call of a task (call.c). */
#ifndef PLAIT_CALL_H
#define PLAIT_CALL_H

#include "state.h"

/* Takes over the exception that is set: a new reference. */
PyObject *plait_take_error(void);

/* A call that has ended with value or error, or that is awaited as inner: one of the three,
 * moved in whatever comes of it. NULL with an exception set. */
PyObject *plait_call_new(struct plait_state *state, PyObject *fn, PyObject *value, PyObject *error,
                         PyObject *inner);

int plait_call_exec(PyObject *module, struct plait_state *state);

#endif /* PLAIT_CALL_H */
