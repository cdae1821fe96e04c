/* stop.h - StopIteration with a value, which ends an awaitable. */
#ifndef PLAIT_STOP_H
#define PLAIT_STOP_H

#include "state.h"

/* Raises StopIteration(value), for a tp_iternext. Whoever awaits takes the value from it and
 * drops it at once, so one instance serves again and again. */
void plait_stop_raise(struct plait_state *state, PyObject *value);

/* Lets go of the value of the last one, which may be large. */
void plait_stop_forget(struct plait_state *state);

#endif /* PLAIT_STOP_H */
