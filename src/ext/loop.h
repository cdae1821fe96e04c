/* loop.h - the objects of the loop's binding, shared by its files. */
#ifndef PLAIT_EXT_LOOP_H
#define PLAIT_EXT_LOOP_H

#include "state.h"

#define PLAIT_HANDLE_INLINE 2
#define PLAIT_SPARE_FUTURES 64 /* a power of two */
#define PLAIT_SPARE_BYTES 8
#define PLAIT_READ_BUFFER ((size_t)256 << 10)

/* plait._core.Loop. The core's loop points back here with `user`. */
typedef struct {
    PyObject_HEAD
    struct pl_loop core;
    struct plait_state *state; /* borrows: our type keeps the module alive */
    PyObject *task_factory;
    PyObject *thread_id; /* an int while the loop runs, else None */
    volatile int halt;   /* an exception is to leave run_forever */
    char debug;
    char closed;
    char stopping;
    bool core_ready;
    bool own_time; /* time() is a method of the program's */
    /* The thread that runs it, 0 when none does. Others read it without a lock where there is
     * none, and only ever find that they are not the one. */
    _Atomic unsigned long runs_in;
    uint32_t *late;        /* the futex of a thread that is to be woken; see plait_loop_wake_late */
    PyObject *raised;      /* the exception behind halt */
    PyObject *window;      /* lends memory to the TLS engine; NULL before the first use */
    PyObject *window_args; /* arguments of the engine's read */
    /* Futures that stream readers have waited by, to be used again: a ring, oldest at head. */
    PyObject *spares[PLAIT_SPARE_FUTURES];
    unsigned spare_head;
    unsigned spare_len;
    /* Bytes objects to be used again for messages of their size; nobody else has them. */
    PyObject *spare_bytes[PLAIT_SPARE_BYTES];
    PyObject *future_kwargs;     /* {"loop": self}; NULL before the first use */
    PyObject *task_args;         /* a tuple of one, see make_task; NULL while it is in use */
    char *read_buffer;           /* owns; PLAIT_READ_BUFFER bytes, lent to one read at a time */
    PyObject *room;              /* bytes, see plait_sock_room; NULL before the first use */
    struct gen_loop *generators; /* owns; NULL until a generator is started */
} LoopObject;

struct plait_handle_wait;

/* plait._core.Handle. In the ready queue or the list of posts it owns a reference to
 * itself, which its run gives up.
 *
 * It is an instance of asyncio.Handle, whose slots come first: ten pointers at most, each an
 * object or NULL whatever the order of the slots is, so that reading one is always safe. Six
 * hold what asyncio's hold.
 *
 * Bursts have thousands of them, so what an ordinary one needs stands close together. */
typedef struct {
    PyObject_HEAD
    PyObject *args;     /* a tuple when there are more than fit inline, else NULL */
    PyObject *callback; /* NULL once cancelled */
    PyObject *unused;
    PyObject *context;
    LoopObject *loop;
    PyObject *repr;  /* the text of one that was cancelled in debug mode, else NULL */
    PyObject *stack; /* source traceback in debug mode, else NULL */
    PyObject *spare[2];
    /* The first is the last of the ten: vectorcall may write to the slot before its arguments. */
    PyObject *inlined[PLAIT_HANDLE_INLINE + 1];
    struct pl_post post;
    uint32_t nargs;
    bool cancelled;
    bool running;
    bool threadsafe;                 /* other threads wait for the end of its run */
    unsigned long runner;            /* the thread that runs it, when threadsafe */
    struct plait_handle_wait *waits; /* those threads; guarded by the interpreter's lock */
} HandleObject;

typedef struct {
    HandleObject handle;
    struct pl_timer timer;
    double when;
} TimerHandleObject;

/* handle.c. The arguments are borrowed; context may be NULL: a copy of the current. */
HandleObject *plait_handle_new(LoopObject *loop, PyObject *callback, PyObject *const *args,
                               Py_ssize_t nargs, PyObject *context);
/* The kind that call_soon_threadsafe gives to other threads. */
HandleObject *plait_handle_new_threadsafe(LoopObject *loop, PyObject *callback,
                                          PyObject *const *args, Py_ssize_t nargs,
                                          PyObject *context);
TimerHandleObject *plait_timer_handle_new(LoopObject *loop, double when, PyObject *callback,
                                          PyObject *const *args, Py_ssize_t nargs,
                                          PyObject *context);
/* Calls the callback in its context and tells the loop of an exception. Keeps the handle. */
void plait_handle_call(HandleObject *handle);
/* The handle that a queued op belongs to, borrowed; NULL when it is another's. */
PyObject *plait_handle_of_op(struct pl_op *op);
int plait_handle_types(PyObject *module, struct plait_state *state);

/* loop.c */
/* 0, or -1 with RuntimeError set: closed, or forked. */
int plait_loop_check(LoopObject *loop);
/* Takes the exception that is set: SystemExit and KeyboardInterrupt leave the loop, all
 * else goes to the loop's exception handler with this message and, when not NULL, these
 * extra entries. */
void plait_loop_handle_error(LoopObject *loop, PyObject *message, const char *key1,
                             PyObject *value1, const char *key2, PyObject *value2);
/* In debug mode: tells when the callback that began at t0 took too long. `what` borrows. */
void plait_loop_report_slow(LoopObject *loop, PyObject *what, int64_t t0);

/* Whether call_soon_threadsafe of this loop is the one that loops of plait's are born with. */
bool plait_loop_is_own(struct plait_state *state, PyObject *loop);
/* The loop, borrowed, if it is one of plait's and runs in this thread; else NULL. */
LoopObject *plait_loop_running_here(struct plait_state *state, PyObject *loop);
/* Wakes who sleeps at this word when the loop next lets go of the interpreter's lock, or looks at
 * its descriptors; and the one before at once. NULL: only that. In its thread. */
void plait_loop_wake_late(LoopObject *loop, uint32_t *word);

/* loop_schedule.c: methods, with their docstrings. */
// clang-format off
#define PLAIT_LOOP_FAST_METHODS(X) \
    X(call_soon)                   \
    X(call_soon_threadsafe)        \
    X(call_later)                  \
    X(call_at)                     \
    X(create_task)
#define PLAIT_LOOP_NOARGS_METHODS(X) \
    X(time)                          \
    X(get_debug)                     \
    X(create_future)
// clang-format on
#define X(name)                                                                                    \
    PyObject *plait_loop_##name(PyObject *self, PyObject *const *args, Py_ssize_t nargs,           \
                                PyObject *kwnames);                                                \
    extern const char plait_loop_##name##_doc[];
PLAIT_LOOP_FAST_METHODS(X)
#undef X
#define X(name)                                                                                    \
    PyObject *plait_loop_##name(PyObject *self, PyObject *ignored);                                \
    extern const char plait_loop_##name##_doc[];
PLAIT_LOOP_NOARGS_METHODS(X)
#undef X
/* A handle for pl_loop_post, whose reference it gets, to call the callback with one argument; NULL
 * when the loop has ended (RuntimeError), or in debug mode, where only the method will do, and on
 * error. Making it may run Python, but the loop has not ended when it is returned. */
HandleObject *plait_loop_prepare_post(LoopObject *loop, PyObject *callback, PyObject *arg);
/* {"loop": loop}, borrowed, to call a class of asyncio's with. */
PyObject *plait_loop_kwargs(LoopObject *loop);
/* A new asyncio.Future of the loop. */
PyObject *plait_loop_future(LoopObject *loop);
/* Schedules a callback with one argument. */
int plait_loop_soon(LoopObject *loop, PyObject *callback, PyObject *arg, PyObject *context);

/* transport.c. Takes over fd when sock is NULL, else refers to sock and its fd. `addr` is the
 * peer's address when known, else NULL. */
PyObject *plait_transport_new(LoopObject *loop, int fd, PyObject *sock, PyObject *protocol,
                              PyObject *waiter, PyObject *extra, PyObject *server,
                              PyObject *context, const struct sockaddr *addr, socklen_t addr_len);
/* The transport that a queued op or a descriptor belongs to, borrowed; else NULL. */
PyObject *plait_transport_of_op(struct pl_op *op);
/* Takes a transport out of a loop that closes, and gives up the registration's reference. */
void plait_transport_drop(PyObject *transport);
int plait_transport_type(PyObject *module, struct plait_state *state);

/* transport_info.c. A socket object for a descriptor, which it owns from now on; on failure
 * the descriptor stays open and the caller's. */
PyObject *plait_socket_new(struct plait_state *state, int fd);

/* sock.c. Where PLAIT_READ_BUFFER bytes at most are received that nobody could ask for again;
 * NULL with an exception set. */
char *plait_sock_room(LoopObject *loop);
/* The first n bytes of it, which were just received. Never fails: without memory for a copy the
 * room itself is given. */
PyObject *plait_sock_received(LoopObject *loop, Py_ssize_t n);

/* stream_reader.c: asyncio's stream readers, fed without the Python layer. */
typedef struct reader_state ReaderState;
/* Adopts the reader of an exact StreamReaderProtocol, and keeps the way to it in *link until
 * plait_reader_unlink, another connection, or the reader's end. *link stays NULL for all other
 * protocols. */
void plait_reader_link(LoopObject *loop, PyObject *protocol, ReaderState **link);
void plait_reader_unlink(ReaderState **link);
/* Gives it what has arrived. 0, or -1 with an exception set. */
int plait_reader_feed(ReaderState *reader, PyObject *bytes);

/* tls.c: TLS over another transport. */
/* Ciphertext for an SSLTransport. 0, or -1 with an exception set. */
int plait_tls_feed(PyObject *tls, const char *data, size_t n);

/* server.c */
/* The listener that a queued op or a descriptor belongs to, borrowed; else NULL. */
PyObject *plait_listener_of_op(struct pl_op *op);
void plait_listener_drop(PyObject *listener);
int plait_listener_type(PyObject *module, struct plait_state *state);

/* clients.c: gives a server that has no transports yet a set for them that costs none of them
 * anything. Leaves servers of other classes, and other sets, as they are. 0, or -1 with an
 * exception set. */
int plait_clients_adopt(LoopObject *loop, PyObject *server);
int plait_clients_type(PyObject *module, struct plait_state *state);

static inline LoopObject *plait_loop_of_core(struct pl_loop *core)
{
    return PL_CONTAINER_OF(core, LoopObject, core);
}

#endif /* PLAIT_EXT_LOOP_H */
