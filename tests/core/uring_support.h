/* uring_support.h - what the tests of the io_uring backend share: a kernel that has less than
 * this machine's, and streams that check what they read.
 */
#ifndef URING_SUPPORT_H
#define URING_SUPPORT_H

#include "pl_internal.h"
#include "pl_test.h"

/* ---- a kernel that has less ---- */

struct lesser_kernel {
    int setup_error;       /* what every io_uring_setup says, if not 0 */
    uint32_t known_flags;  /* flags of setup that it knows; 0: all */
    uint32_t features_off; /* features that it has not */
    int register_error;    /* what io_uring_register of `register_op` says, if not 0 */
    uint32_t register_op;
    int hide_op; /* an operation that the probe does not show; -1: none */
    int mmap_error;
    int memfd_error;
    int enter_error; /* what the next io_uring_enter says, once, or while `enter_fails` */
    bool enter_fails;
    int alloc_fails;   /* so many allocations fail, */
    size_t alloc_size; /* of this size, if not 0 */
    /* What it was asked for. */
    int recvs;
    int sends; /* calls of send and sendmsg */
    int setups;
    uint32_t setup_flags; /* of the last io_uring_setup that succeeded */
    int enters;
    uint32_t enter_flags; /* of the last io_uring_enter, and the most that one had to submit */
    uint32_t most_submitted;
};
extern struct lesser_kernel kernel;

/* Calls that go by `kernel`, which has all, at first. */
struct pl_sys system_with_less(void);

int open_loop(struct pl_loop *loop, const struct pl_sys *sys);

/* Whether this machine's kernel gives a loop all of the backend. */
bool usable(void);

#define NEED_RING()                                                                                \
    do {                                                                                           \
        if (!usable())                                                                             \
            PL_SKIP("this kernel has no io_uring, or an old one");                                 \
    } while (0)

/* ---- a stream that checks what it reads ---- */

/* The n-th byte of every stream here. */
char byte_at(size_t n);

struct reader {
    struct pl_stream stream;
    char buf[32768];
    size_t got;
    size_t stop_at; /* stops reading when this much has come; 0: never */
    int reads, closed;
    ssize_t last;
    bool ended;
};

extern const struct pl_stream_ops reader_ops;
void reader_on_read(struct pl_stream *s, void *buf, ssize_t n);

/* A stream on one end of a new pair; the other end is returned. */
int open_reader(struct pl_loop *loop, struct reader *r, bool borrows);
void close_reader(struct pl_loop *loop, struct reader *r, int peer);

/* Sends the bytes from *sent on, as many as the socket takes of n. */
void send_some(int fd, size_t *sent, size_t n);

/* One iteration without waiting. */
void turn(struct pl_loop *loop);

/* Whether the other end has been closed, without waiting and without the loop. */
bool peer_sees_end(int fd);

/* For a thread of its own: a few messages of both sizes. */
struct stint {
    struct pl_loop *loop;
    struct reader *r;
    int peer;
    size_t *sent;
};
void *work(void *stint);

/* A new listening socket; its port is written to addr, unless that has one. */
int listening(struct sockaddr_in *addr, int backlog);
int connected_to(const struct sockaddr_in *addr);

#endif /* URING_SUPPORT_H */
