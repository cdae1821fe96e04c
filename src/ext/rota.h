/* rota.h - what listeners need of plait._core.Rota. */
#ifndef PLAIT_ROTA_H
#define PLAIT_ROTA_H

#include "state.h"

/* The core's part of a Rota, borrowed; NULL without an exception for None, NULL with one for
 * anything else. */
struct pl_rota *plait_rota_of(struct plait_state *state, PyObject *object);
int plait_rota_type(PyObject *module, struct plait_state *state);

#endif /* PLAIT_ROTA_H */
