/* pl_file_threads.h - a few threads that run file operations which may block. */
#ifndef PL_FILE_THREADS_H
#define PL_FILE_THREADS_H

#include "pl_file.h"

/* At most so many at once per queue: enough to keep a disk's queue filled, few enough to
 * leave the processors to others. */
#define PL_FILE_THREADS_MAX 8
/* An idle thread ends after this long. */
#define PL_FILE_THREADS_IDLE (5 * PL_NSEC_PER_SEC)

struct pl_file_threads;

/* Shares event_fd, which it writes to when an operation has ended and none was waiting to be
 * collected. -ENOMEM. */
int pl__file_threads_new(const struct pl_sys *sys, int event_fd,
                         struct pl_file_threads **out) PL_MUST_CHECK;

/* Gives one operation to a thread. -EAGAIN when there is none and none can be made. */
int pl__file_threads_submit(struct pl_file_threads *t, struct pl_file_req *req) PL_MUST_CHECK;

/* Ends a request that no thread has begun, with this result; false when it runs or has
 * ended. */
bool pl__file_threads_withdraw(struct pl_file_threads *t, struct pl_file_req *req, int result);

/* Takes what has ended, oldest first. */
struct pl_file_req *pl__file_threads_take(struct pl_file_threads *t);

/* Withdraws what waits and waits for what runs, at most timeout_ns (-1: for ever): the
 * number of operations that still run. */
uint32_t pl__file_threads_settle(struct pl_file_threads *t, int64_t timeout_ns);

/* Ends the threads, of which none runs an operation, and frees the pool. */
void pl__file_threads_end(struct pl_file_threads *t);

/* In the child after a fork, where the threads are not: frees the pool, unlocked or not. */
void pl__file_threads_after_fork(struct pl_file_threads *t);

/* Runs an operation here and now; blocks. */
int64_t pl__file_run(const struct pl_sys *sys, const struct pl_file_req *req);

#endif /* PL_FILE_THREADS_H */
