/* future_end.h - what the two files of the futures share. */
#ifndef PLAIT_FUTURE_END_H
#define PLAIT_FUTURE_END_H

#include "pool.h"

#define FUTURE(o) ((struct plait_future *)(o))

/* Turns what came into result or exception; -1 with an exception set. Other threads wait for the
 * one that does; what it runs is the user's, and may take any time. */
int plait_future_decode(struct plait_state *state, struct plait_future *f);
/* Fills in a future of a loop, in that loop's thread. -1 with an exception set. */
int plait_future_transfer(struct plait_state *state, struct plait_future *f, PyObject *target);
/* Calls a done-callback. As documented for futures, an Exception is logged; -1 with anything
 * else set. */
int plait_future_call_back(PyObject *callback, PyObject *future);

#endif /* PLAIT_FUTURE_END_H */
