/* state_pool.h - what the pools keep in the module's state. */
#ifndef PLAIT_STATE_POOL_H
#define PLAIT_STATE_POOL_H

#include <Python.h>

/* X(type, name): one owned reference each. */
#define PLAIT_POOL_OBJECTS(X)

struct plait_pool_state {
    int unused;
};

#endif /* PLAIT_STATE_POOL_H */
