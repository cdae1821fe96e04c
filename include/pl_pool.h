/* pl_pool.h - shared arenas, rings with doorbells, worker processes. */
#ifndef PL_POOL_H
#define PL_POOL_H

#include "pl_base.h"
#include "pl_sys.h"

#endif /* PL_POOL_H */
