/* pool.c - the binding of the process pool. */
#include "state.h"

int plait_pool_exec(PyObject *module, struct plait_state *state)
{
    (void)module;
    (void)state;
    return 0;
}

void plait_pool_clear(struct plait_state *state)
{
    (void)state;
}
