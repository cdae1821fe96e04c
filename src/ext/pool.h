/* pool.h - what the files of the pool's binding share. */
#ifndef PLAIT_POOL_H
#define PLAIT_POOL_H

#include "future.h"
#include "histogram.h"
#include "pl_wire.h"
#include "state.h"

/* ---- messages (pool_atoms.c, pool_arrays.c, pool_codec.c) -------------------------------
 *
 * pl_wire.h tells the parts. A task has a function (a pickle) and its arguments as the body, a
 * result only a body.
 */
enum plait_kind {
    PLAIT_ATOMS = 1,     /* values in the small encoding of pool_atoms.c */
    PLAIT_PICKLE = 2,    /* a pickle: (args, kwargs) or the value */
    PLAIT_EXCEPTION = 3, /* a pickle that plait._pool.decode_exception reads */
    PLAIT_ARRAYS = 4,    /* arrays and atoms, see pool_arrays.c */
    PLAIT_EACH = 0x100,  /* with one of a task's: a call for each item of its argument */
};

/* Buffers below this size travel in the message and are copied out of it. */
#define PLAIT_INLINE_BUFFER 16384

/* A growing byte string in private memory. */
struct plait_bytes {
    char *data; /* owns */
    size_t len;
    size_t cap;
};

int plait_bytes_add(struct plait_bytes *b, const void *data, size_t len);
void plait_bytes_free(struct plait_bytes *b);

/* Appends atoms: 1 when all n were, 0 when one is no atom (b is as before), -1 on error. */
int plait_atoms_encode(struct plait_bytes *b, PyObject *const *values, Py_ssize_t n);
/* Reads at most max atoms into values (new references): their number, -1 on error. */
Py_ssize_t plait_atoms_decode(const char *data, size_t len, PyObject **values, Py_ssize_t max);
#define PLAIT_ATOMS_MAX 16

/* Encodes arrays and atoms: 1 with *body (bytes) and *buffers (a list), 0 when one is neither or
 * there is no array, -1 on error. Decodes them: as plait_atoms_decode; `buffers` may be NULL. */
int plait_arrays_encode(struct plait_state *state, PyObject *const *values, Py_ssize_t n,
                        PyObject **body, PyObject **buffers);
Py_ssize_t plait_arrays_decode(struct plait_state *state, const char *data, size_t len,
                               PyObject *buffers, PyObject **values, Py_ssize_t max);

/* A buffer that came in the message itself: bytes, or a bytearray when it is writable. */
PyObject *plait_small_buffer(const struct pl_wire_buf *entry, const void *data);

/* pickle.dumps(value, protocol=5, buffer_callback=buffers.append); *buffers is a new list. */
PyObject *plait_dumps(struct plait_state *state, PyObject *value, PyObject **buffers);
PyObject *plait_loads(struct plait_state *state, const char *data, size_t len, PyObject *buffers);

/* ---- blocks as buffers (pool_codec.c) ------------------------------------- */

struct plait_pool;

/* A block of shared memory that arrays are made on. */
struct plait_block {
    PyObject_HEAD
    struct plait_pool *pool;  /* owns; in the parent */
    struct pl_member *member; /* borrows; in a worker */
    struct pl_view view;
    void *data;
    Py_ssize_t size;
    bool readonly;
    bool shared; /* in a worker: others have it, too; in the parent: in pool->shared */
    struct plait_block *next_shared; /* borrows */
};

struct plait_block *plait_block_new(struct plait_state *state);

/* ---- the pool (pool.c) ------------------------------------------------------ */

/* A thread that waits in result() while another one leads. */
struct plait_waiter {
    struct plait_waiter *next;
    struct plait_future *future; /* borrows; NULL for the helper */
    uint32_t word;               /* futex: nonzero once it should look again */
    bool dozes;                  /* looks again by itself, soon */
};

/* A queued task with a priority. */
struct plait_ranked {
    struct plait_future *future;
    uint64_t turn;
};

struct plait_pool {
    PyObject_HEAD
    struct pl_pool core;
    struct plait_state *state; /* borrows: the module outlives its types' objects */
    bool open;                 /* core is initialised */
    bool closed;               /* no more submits */
    bool by_value;    /* main cannot be imported by workers: cloudpickle for all that is no atom */
    bool interrupted; /* Ctrl+C ended a wait, and nothing was submitted since */
    bool forked;      /* this is a child's copy */
    bool led;         /* someone leads */
    bool helper_leads;
    bool helper_there;
    bool helper_rests;    /* it sleeps for its descriptor, not for a futex, */
    bool helper_idle;     /* and until it is called */
    uint64_t helper_saw;  /* how much had been posted when it looked last */
    int64_t mended;       /* when it last looked for words that were overwritten */
    double copy_ns;       /* moving average of what copying a byte into a block takes */
    bool unread;          /* it found results that nobody had waited for */
    int nudge;            /* borrows: an eventfd that ends the helper's rest */
    unsigned long leader; /* the thread that leads, while `led` */
    bool asleep;          /* the leader sleeps: the eventfd is its to read, no one else's */
    struct plait_future *asleep_for; /* borrows; what it sleeps for, if for one */
    bool kick;                       /* the helper should give the lead up */
    struct plait_waiter *followers;
    struct plait_ranked *heap; /* owns (PyMem), with references: tasks of other priorities */
    size_t nheap;
    size_t heap_cap;
    uint64_t turns; /* of tasks that went into the heap */
    uint32_t workers;
    struct plait_future *queue_first; /* owned references, FIFO */
    struct plait_future *queue_last;
    uint64_t queued;
    uint64_t max_pending; /* bound of `outstanding`; 0: none */
    uint64_t outstanding; /* futures that are queued or posted */
    uint64_t watched;     /* of these, how many have an audience without a thread */
    uint64_t looped;      /* and of those, how many have a loop for it */
    uint64_t suspects;    /* bit per seat to be killed (seat % 64) */
    uint64_t ended_done;  /* figures: how futures ended */
    uint64_t ended_failed;
    uint64_t ended_cancelled;
    uint64_t ended_timed_out;
    uint64_t retried;
    struct plait_histogram waited;
    struct plait_histogram ran;
    PyObject *fn_cache;         /* dict: function -> pickle by reference */
    PyObject *notify;           /* list of futures to be notified */
    PyObject *again;            /* list of futures that failed and may have tries left */
    PyObject *dropped;          /* list of what nobody else refers to any more */
    PyObject *last_loop;        /* borrows: identity only, the attached loop used last */
    PyObject *broken;           /* exception: why nothing works any more */
    struct plait_block *shared; /* borrows: a block takes itself out */
    PyObject *dict;
    PyObject *weakrefs;
};

/* What futures of a process pool call. */
extern const struct plait_keeper plait_pool_keeper;
/* f has ended by something else than a worker's result. */
void plait_pool_ended(struct plait_pool *pool, struct plait_future *f, bool cancelled);
/* Notifies what the list `notify` holds, and lets go what `dropped` holds. Runs the user's code:
 * no role is held. */
void plait_pool_notify(struct plait_pool *pool);

/* ---- shared buffers (pool_share.c) -------------------------------------------- */

PyObject *plait_pool_share(PyObject *self, PyObject *args, PyObject *kwargs);
extern const char plait_pool_share_doc[];
/* Takes a block that dies out of its pool's list. */
void plait_pool_unshare(struct plait_block *block);
/* Whether the memory lies in a shared block: 1 with a ticket for it, 0, -1 on error. */
int plait_pool_ticket(struct plait_pool *pool, const void *data, uint64_t size,
                      struct pl_block *ticket);
/* What pickles of large bytes and bytearrays call: one copy, into an object of its own. */
PyObject *plait_own_bytes(PyObject *module, PyObject *arg);
PyObject *plait_own_bytearray(PyObject *module, PyObject *arg);
/* A new reference to what is sent in place of `value`: itself, or for large bytes, bytearrays
 * and memoryviews a wrapper whose pickle leaves the bytes out of band. */
PyObject *plait_sendable(struct plait_state *state, PyObject *value);

/* ---- a copy of the process (pool_fork.c) --------------------------------------- */

PyObject *plait_fork(PyObject *module, PyObject *ignored);
extern const char plait_fork_doc[];

/* ---- a worker (pool_worker.c) ------------------------------------------------ */

PyObject *plait_worker_run(PyObject *module, PyObject *args);
PyObject *plait_die_with_parent(PyObject *module, PyObject *arg);
extern const char plait_worker_run_doc[];

#endif /* PLAIT_POOL_H */
