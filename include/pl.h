/* pl.h - the public header of plait's core.
 *
 * The core is a static library without Python: an event loop, streams, child
 * processes, shared-memory rings and worker processes. A C program can use it
 * alone; the CPython extension in src/ext is one such user.
 *
 * Conventions, valid for every function unless its comment says otherwise:
 *   - 0 or a count on success, a negative code on failure: -errno, or one of
 *     the codes of PL_ERROR_MAP, which lie below -4096. errno itself is never
 *     an output.
 *   - On failure nothing has happened.
 *   - Pointers say who frees them: owns, borrows, moves, shares.
 *   - Times are int64_t nanoseconds of CLOCK_MONOTONIC.
 *   - A loop, and all that belongs to it, is used by one thread at a time.
 */
#ifndef PL_H
#define PL_H

#include "pl_base.h"
#include "pl_channel.h"
#include "pl_file.h"
#include "pl_loop.h"
#include "pl_pool.h"
#include "pl_rota.h"
#include "pl_sys.h"
#include "pl_thread.h"

#endif /* PL_H */
