/* connect.h - plait._core.Connecting, for the module. */
#ifndef PLAIT_CONNECT_H
#define PLAIT_CONNECT_H

#include "state.h"

int plait_connect_type(PyObject *module);

#endif /* PLAIT_CONNECT_H */
