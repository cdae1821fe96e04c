/* pl_file_ring.h - file operations that the kernel runs, by io_uring. */
#ifndef PL_FILE_RING_H
#define PL_FILE_RING_H

#include "pl_file.h"

struct pl_file_ring;
struct io_uring_sqe;

/* The ring's way to say an operation: all of an entry but its user_data. */
unsigned pl__file_opcode(enum pl_file_op op);
void pl__file_fill(struct io_uring_sqe *sqe, const struct pl_file_req *req);

/* Fails with what io_uring_setup says, or -ENOSYS in a build without the kernel's header. The
 * ring borrows event_fd, and writes it when take has something that the ring's own
 * descriptor does not tell of. */
int pl__file_ring_new(const struct pl_sys *sys, int event_fd,
                      struct pl_file_ring **out) PL_MUST_CHECK;

/* Readable when an operation has ended. */
int pl__file_ring_fd(const struct pl_file_ring *ring);

/* 1: ended, and not collected; 0: in flight; -EAGAIN: this is not for the ring, or not now. */
int pl__file_ring_submit(struct pl_file_ring *ring, struct pl_file_req *req) PL_MUST_CHECK;

void pl__file_ring_cancel(struct pl_file_ring *ring, struct pl_file_req *req);

/* Takes what has ended, oldest first; tries again what the kernel had no room for. */
struct pl_file_req *pl__file_ring_take(struct pl_file_ring *ring);

/* Cancels everything and waits for it, at most timeout_ns (-1: for ever): the number of
 * operations still in flight. What ended is there to be taken. */
uint32_t pl__file_ring_settle(struct pl_file_ring *ring, int64_t timeout_ns);

/* Frees the ring. Nothing is in flight, or this is a child after a fork. */
void pl__file_ring_free(struct pl_file_ring *ring);

#endif /* PL_FILE_RING_H */
