/* stream_support.h - what the tests of streams share: a kernel whose calls are counted, cut short,
 * interrupted, or fail, and a user of a stream that counts what it is told.
 */
#ifndef STREAM_SUPPORT_H
#define STREAM_SUPPORT_H

#include "pl_internal.h"
#include "pl_test.h"

/* ---- what the kernel is made to do --------------------------------------- */

struct stream_fault {
    int sends; /* send and sendmsg */
    int recvs;
    size_t limit;  /* a call takes or gives no more than this; 0: no limit */
    int interrupt; /* this many calls say EINTR first */
    int refuse;    /* this many sends say EAGAIN first */
    int error;     /* what every send says, if not 0 */
    int ctl_error; /* what every epoll_ctl says, if not 0 */
};
extern struct stream_fault fault;

/* ---- a user of a stream --------------------------------------------------- */

struct user {
    struct pl_stream stream;
    char buf[65536];
    char *got;
    size_t got_len;
    int rooms, reads, agains, drains, closes, releases;
    int failed;
    ssize_t last_read;
    bool eof;
    /* What a callback does, once. */
    void (*on_read)(struct user *u);
    void (*on_release)(struct user *u);
    void (*on_drained)(struct user *u);
    void (*on_failed)(struct user *u);
};

struct fixture {
    struct pl_sys sys;
    struct pl_loop loop;
    struct user u;
    int fd;
    int peer;
};

/* Owners for chunks: what is released counts here. */
extern int owners[64];

/* What a struct user is told. */
extern const struct pl_stream_ops user_ops;

/* Whether the user takes bytes from memory that is not its own. */
bool borrows(void);

/* A loop, and a stream in it that reads nothing yet; no faults. */
void start(struct fixture *f);
/* start, with "a" of owners[0] written and refused by the kernel. */
void start_blocked(struct fixture *f);
/* An iteration or more that does not sleep. */
void turn(struct fixture *f);
void turns(struct fixture *f, int n);
/* Aborts the stream if it lives, and closes all. */
void end(struct fixture *f);

/* Queues a text with this owner, which may be NULL. As pl_stream_write. */
int write_text(struct fixture *f, const char *text, int *owner);
/* What the peer has received: compared as text. */
void expect_peer(struct fixture *f, const char *text);

/* For a user's callbacks. */
void close_it(struct user *u);
void abort_it(struct user *u);

#endif /* STREAM_SUPPORT_H */
