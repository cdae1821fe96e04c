/* pool.h - what the files of the pool's binding share. */
#ifndef PLAIT_POOL_H
#define PLAIT_POOL_H

#include "pl_wire.h"
#include "state.h"

/* ---- messages (pool_codec.c) ---------------------------------------------
 *
 * pl_wire.h tells the parts. A task has a function (a pickle) and its arguments as the body, a
 * result only a body.
 */
enum plait_kind {
    PLAIT_ATOMS = 1,     /* values in the small encoding of pool_codec.c */
    PLAIT_PICKLE = 2,    /* a pickle: (args, kwargs) or the value */
    PLAIT_EXCEPTION = 3, /* a pickle that plait._pool.decode_exception reads */
    PLAIT_EACH = 0x100,  /* with one of a task's: its argument is a list, for a call each */
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

/* ---- futures (future.c) ---------------------------------------------------- */

enum plait_future_state {
    PLAIT_QUEUED,   /* in the pool's private queue */
    PLAIT_POSTED,   /* on the board */
    PLAIT_SETTLING, /* ended, but those who hold its condition have not seen it yet */
    PLAIT_CANCELLED,
    PLAIT_FINISHED,
};

struct plait_future {
    PyObject_HEAD
    struct plait_pool *pool;   /* owns until done */
    struct plait_future *next; /* in the pool's queue */
    uint8_t state;
    uint8_t kind;    /* of the undecoded result; 0: decoded */
    bool watched;    /* counted in pool->watched */
    bool cancelling; /* SETTLING will end in CANCELLED */
    uint16_t task_kind;
    uint32_t nblocks;      /* lent with the task once it is posted */
    unsigned long decoder; /* thread that decodes the result; 0: none */
    uint32_t cell;
    struct pl_block *blocks; /* owns (PyMem) while queued */
    PyObject *message;       /* bytes: the task while queued, the result while undecoded */
    PyObject *block;         /* or the block that holds the result's message */
    PyObject *buffers;       /* list of blocks: out-of-band buffers of the result */
    PyObject *fn;            /* what it runs: for names in errors */
    PyObject *result;
    PyObject *exception;
    PyObject *callbacks; /* list of callables, or NULL */
    PyObject *waiters;   /* list of (loop, asyncio future), or NULL */
    PyObject *condition; /* these two only when concurrent.futures.wait asks for them */
    PyObject *cf_waiters;
};

struct plait_future *plait_future_new(struct plait_state *state);
static inline bool plait_future_done(const struct plait_future *f)
{
    return f->state >= PLAIT_CANCELLED;
}
/* Ends a future whose result (or exception) has been stored: done at once, or SETTLING if
 * someone might hold its condition, with the rest left to plait_future_notify. */
void plait_future_end(struct plait_future *f, bool cancelled);
/* True when someone must be told of the end: then plait_future_notify is called, without
 * any lock or role held, since it runs the user's code. */
static inline bool plait_future_has_audience(const struct plait_future *f)
{
    return f->callbacks != NULL || f->waiters != NULL || f->condition != NULL;
}
void plait_future_notify(struct plait_state *state, struct plait_future *f);
/* A new future of `loop` that gets this one's end; cancelling it cancels this one. */
PyObject *plait_future_for_loop(struct plait_state *state, struct plait_future *f, PyObject *loop);
int plait_future_exec(PyObject *module, struct plait_state *state);

/* ---- the pool (pool.c) ------------------------------------------------------ */

/* A thread that waits in result() while another one leads. */
struct plait_waiter {
    struct plait_waiter *next;
    struct plait_future *future; /* borrows; NULL for the helper */
    uint32_t word;               /* futex: nonzero once it should look again */
    bool dozes;                  /* looks again by itself, soon */
};

struct plait_pool {
    PyObject_HEAD
    struct pl_pool core;
    struct plait_state *state; /* borrows: the module outlives its types' objects */
    bool open;                 /* core is initialised */
    bool closed;               /* no more submits */
    bool by_value; /* main cannot be imported by workers: cloudpickle for all that is no atom */
    bool forked;   /* this is a child's copy */
    bool led;      /* someone leads */
    bool helper_leads;
    bool helper_there;
    bool asleep; /* the leader sleeps: the eventfd is its to read, no one else's */
    struct plait_future *asleep_for; /* borrows; what it sleeps for, if for one */
    bool kick;                       /* the helper should give the lead up */
    struct plait_waiter *followers;
    struct plait_future *queue_first; /* owned references, FIFO */
    struct plait_future *queue_last;
    uint64_t queued;
    uint64_t outstanding; /* futures that are queued or posted */
    uint64_t watched;     /* of these, how many have an audience without a thread */
    uint64_t suspects;    /* bit per seat to be killed (seat % 64) */
    PyObject *fn_cache;   /* dict: function -> pickle by reference */
    PyObject *notify;     /* list of futures to be notified */
    PyObject *last_loop;  /* borrows: identity only, the attached loop used last */
    PyObject *broken;     /* exception: why nothing works any more */
    struct plait_block *shared; /* borrows: a block takes itself out */
    PyObject *dict;
    PyObject *weakrefs;
};

int plait_pool_wait_for(struct plait_pool *pool, struct plait_future *f, int64_t deadline);
/* Collects what is there, without waiting, and notifies. */
void plait_pool_peek(struct plait_pool *pool);
/* f has ended by something else than a worker's result. */
void plait_pool_ended(struct plait_pool *pool, struct plait_future *f, bool cancelled);
bool plait_pool_cancel(struct plait_pool *pool, struct plait_future *f);
/* The future has an audience now: sees to it that results are looked at. */
int plait_pool_watch_future(struct plait_pool *pool, struct plait_future *f);
int plait_pool_attach(struct plait_pool *pool, PyObject *loop);
/* Wakes the threads that wait for a future that is done now. */
void plait_pool_wake_for(struct plait_pool *pool, struct plait_future *f);
/* Notifies what the list `notify` holds. Runs the user's code. */
void plait_pool_notify(struct plait_pool *pool);
/* Puts an ended future on that list (or, without memory, tells of the error). */
void plait_pool_defer(struct plait_pool *pool, struct plait_future *f);

/* ---- shared buffers (pool_share.c) -------------------------------------------- */

PyObject *plait_pool_share(PyObject *self, PyObject *args);
extern const char plait_pool_share_doc[];
/* Takes a block that dies out of its pool's list. */
void plait_pool_unshare(struct plait_block *block);
/* Whether the memory lies in a shared block: 1 with a ticket for it, 0, -1 on error. */
int plait_pool_ticket(struct plait_pool *pool, const void *data, uint64_t size,
                      struct pl_block *ticket);
/* A new reference to what is sent in place of `value`: itself, or for large bytes, bytearrays
 * and memoryviews a wrapper whose pickle leaves the bytes out of band. */
PyObject *plait_sendable(struct plait_state *state, PyObject *value);

/* ---- a worker (pool_worker.c) ------------------------------------------------ */

PyObject *plait_worker_run(PyObject *module, PyObject *args);
PyObject *plait_die_with_parent(PyObject *module, PyObject *arg);
extern const char plait_worker_run_doc[];

#endif /* PLAIT_POOL_H */
