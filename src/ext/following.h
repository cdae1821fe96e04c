/* following.h - plait._core.Following, for the module. */
#ifndef PLAIT_FOLLOWING_H
#define PLAIT_FOLLOWING_H

#include "state.h"

int plait_following_type(PyObject *module, struct plait_state *state);

#endif /* PLAIT_FOLLOWING_H */
