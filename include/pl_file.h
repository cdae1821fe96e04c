/* pl_file.h - file operations that do not block their caller.
 *
 * Files cannot be polled: a read of what is not in memory blocks, whatever O_NONBLOCK
 * says. A struct pl_files runs such calls elsewhere and tells when they have ended: in
 * the kernel by io_uring where there is one, in a few threads where not. What the
 * page cache can answer at once is answered within pl_files_submit, in both cases.
 *
 * The queue needs no loop (but see pl_files_join): its descriptor (pl_files_fd) becomes readable when something
 * has ended, so any poller will do. One thread at a time uses it.
 */
#ifndef PL_FILE_H
#define PL_FILE_H

#include "pl_base.h"
#include "pl_loop.h"
#include "pl_sys.h"

enum pl_file_op {
    PL_FILE_OPEN, /* path, flags, mode: a descriptor, close-on-exec */
    PL_FILE_CLOSE,
    PL_FILE_READ,  /* into data */
    PL_FILE_WRITE, /* from data; may be short */
    PL_FILE_SYNC,
    PL_FILE_DATASYNC,
    PL_FILE_TRUNCATE, /* to offset */
};

/* How the operations of a queue are run. */
enum pl_file_engine {
    PL_FILE_AUTO, /* io_uring where the kernel allows it, else threads */
    PL_FILE_URING,
    PL_FILE_THREADS,
};

enum pl_file_place {
    PL_FILE_NOWHERE,
    PL_FILE_IN_RING,
    PL_FILE_IN_THREADS,
    PL_FILE_IN_LOOP,
};

/* One operation. The caller fills in the first part and owns the memory, which belongs to
 * the queue from a submit that returned 0 until the request comes out of
 * pl_files_collect: what is in flight may be written to at any time. */
struct pl_file_req {
    enum pl_file_op op;
    int fd;
    int flags;        /* of open(2) */
    unsigned mode;    /* of open(2) */
    const char *path; /* borrows */
    void *data;       /* borrows; written by READ, read by WRITE */
    size_t len;
    int64_t offset; /* -1: at the file's own position */

    int64_t result;           /* as the system call gives it, or -errno */
    struct pl_file_req *next; /* in the list that collect returns */

    enum pl_file_place place; /* the queue's */
    struct pl_files *files;   /* borrows; the queue's */
};

struct pl_file_ring;
struct pl_file_threads;

struct pl_files_stats {
    uint64_t at_once;  /* ended within submit */
    uint64_t ring;     /* given to io_uring */
    uint64_t threads;  /* given to a thread */
    uint32_t inflight; /* now */
};

struct pl_files {
    const struct pl_sys *sys;
    struct pl_file_ring *ring;       /* owns; NULL: threads alone */
    struct pl_file_threads *threads; /* shares with its threads; NULL until needed */
    int event_fd;                    /* owns; what the threads tell by */
    int poll_fd;                     /* owns; an epoll of both; -1 while there is no queue */
    int why; /* the code that io_uring was refused with; 0 when it is used or unasked */
    pid_t pid;
    struct pl_files_stats stats;
    /* See pl_files_join. */
    struct pl_loop *loop; /* borrows; NULL without one */
    void *user;           /* the binding's */
    struct pl_op op;      /* tells that `done` has something */
    bool queued;          /* and is in the loop's ready queue */
    void (*collectable)(struct pl_files *files);
    struct pl_file_req *done; /* ended in the loop's ring, oldest first */
    struct pl_file_req **done_tail;
};

/* Makes a queue. With PL_FILE_AUTO a kernel that refuses io_uring (old, or forbidden by a
 * seccomp filter, a sysctl or a limit) means threads, and files->why tells the code; with
 * PL_FILE_URING it is an error. -ENOMEM, -EMFILE, -ENOSYS, -EPERM. */
int pl_files_init(struct pl_files *files, const struct pl_sys *sys,
                  enum pl_file_engine engine) PL_MUST_CHECK;

/* Lets reads and writes at an offset and syncs go through the ring of a loop (borrowed: it
 * outlives the queue, though it may be closed before) where its backend has one. Such operations
 * end by themselves, in the time that a disk takes, and pl_loop_park waits for them. For those,
 * the loop's run calls collectable when pl_files_collect has something. */
void pl_files_join(struct pl_files *files, struct pl_loop *loop,
                   void (*collectable)(struct pl_files *files));

/* Cancels what can be cancelled and waits for the rest, until `timeout_ns` (-1: for ever) has
 * passed: the number of operations still in flight. The others are there to be collected.
 * No submit may follow. */
uint32_t pl_files_settle(struct pl_files *files, int64_t timeout_ns);

/* Frees a queue that has settled with nothing in flight (one that has not must be kept, with
 * the requests and their data, for as long as the process lives), or, in the child after a
 * fork, the copy of the parent's: what was in flight goes on there and never ends here.
 * Accepts a queue whose poll_fd is -1. */
void pl_files_fini(struct pl_files *files);

/* Readable when pl_files_collect has something. */
int pl_files_fd(const struct pl_files *files);

/* "io_uring" or "threads". */
const char *pl_files_engine(const struct pl_files *files);

/* Starts an operation. 1: it has ended already, req->result tells how, and the request is
 * not collected. 0: it is in flight. Fails, with nothing started, with -ENOMEM, -EAGAIN (no
 * thread could be made) or PL_EFORKED. */
int pl_files_submit(struct pl_files *files, struct pl_file_req *req) PL_MUST_CHECK;

/* Asks for the end of an operation in flight. It is collected in any case, with -ECANCELED
 * when the request was heeded, which a disk transfer under way never does. */
void pl_files_cancel(struct pl_files *files, struct pl_file_req *req);

/* Takes what has ended: a list by `next`, oldest first, or NULL. */
struct pl_file_req *pl_files_collect(struct pl_files *files);

#endif /* PL_FILE_H */
