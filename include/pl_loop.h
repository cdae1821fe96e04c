/* pl_loop.h - the event loop: ready queue, timers, posts, descriptors, streams, children.
 *
 * One iteration of a loop is
 *     pl_loop_wait      block in the poller (the only step that blocks, and the
 *                       only one that may run without the interpreter's lock)
 *     pl_loop_collect   move what is due to the ready queue: events, posts, timers
 *     pl_loop_run       run exactly what was in the ready queue at its start
 * pl_loop_once does all three. Callbacks run from pl_loop_run alone, so a binding
 * holds its lock there and nowhere else.
 */
#ifndef PL_LOOP_H
#define PL_LOOP_H

#include "pl_base.h"
#include "pl_sys.h"

#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/un.h>

struct pl_loop;

/* ---- work --------------------------------------------------------------- */

/* Something that the ready queue runs. Embedded first in what it belongs to; a
 * queued op must stay where it is until it has run. run may free it. */
struct pl_op {
    void (*run)(struct pl_loop *loop, struct pl_op *op);
};

/* A growing ring of borrowed ops. head and tail run freely and are masked on use. */
struct pl_queue {
    struct pl_op **slots;
    uint32_t mask; /* capacity - 1; slots is NULL while capacity is 0 */
    uint32_t head;
    uint32_t tail;
};

/* A node for posts from other threads; one node is in one list at a time. */
struct pl_post {
    struct pl_op op;
    struct pl_post *next;
};

/* ---- timers ------------------------------------------------------------- */

struct pl_timer {
    struct pl_op op;
    int64_t deadline;
    uint32_t index; /* its place, see pl_timer.c; 0 while not started */
};

struct pl_timer_slot {
    int64_t deadline;
    uint64_t order; /* start order: breaks ties between equal deadlines */
    struct pl_timer *timer;
};

/* A sorted run for deadlines that come in order, and a 4-ary min-heap for the others. */
struct pl_timers {
    struct pl_timer_slot *slots; /* owns: the heap */
    uint32_t len;
    uint32_t cap;
    struct pl_timer_slot *run; /* owns; slots without a timer are holes */
    uint32_t run_head;
    uint32_t run_tail;
    uint32_t run_len; /* timers in the run */
    uint32_t run_cap;
    uint64_t next_order;
};

/* ---- descriptors -------------------------------------------------------- */

enum pl_io_events {
    PL_READABLE = 1,
    PL_WRITABLE = 2,
    PL_HANGUP = 4, /* always reported: the peer is gone, reads will tell */
};

enum pl_io_mode {
    PL_IO_LEVEL, /* reported again as long as it lasts: for callers that may not drain */
    PL_IO_EDGE,  /* reported once: the caller tries until EAGAIN or a short read */
    /* As PL_IO_LEVEL, for reading only, of a descriptor that several processes wait for: one of
     * those that sleep is woken, the one that has not asked for the longest time. */
    PL_IO_SHARED,
    /* As PL_IO_LEVEL, of sockets that the loop has for itself: nobody else closes them or
     * receives from them. The backend may do that work. */
    PL_IO_STREAM,
    PL_IO_LISTEN,
};

/* How much of what the poller told is read before the callbacks that follow from it have run:
 * large messages that all wait in memory for their turn would push each other, and everything
 * else, out of the processor's caches. The rest of the poller's answer is for the next iterations;
 * the poller is not asked again before. */
#define PL_IO_WEIGHT ((size_t)16 << 10)
#define PL_LOOP_BULK ((size_t)64 << 10)

/* A registered descriptor. Borrows fd. op.run gets it with `ready` set; the
 * callback takes what it handles out of `ready`. */
struct pl_io {
    struct pl_op op;
    int fd;
    uint8_t mode : 6;   /* three in one byte: each connection pays for what is here */
    bool idle : 1;      /* kept for its registration only, see pl_io_open */
    bool queued : 1;    /* in the ready queue */
    uint8_t want;       /* what the poller is asked for */
    uint8_t ready;      /* what the poller said and no one has handled */
    uint8_t weight;     /* what reading it may bring, in PL_IO_WEIGHT; see PL_LOOP_BULK */
    struct pl_io *late; /* see pl__io_enqueue */
};

struct pl_fd_slot {
    struct pl_io *io; /* borrows; NULL while free */
    uint32_t generation;
    bool known; /* the kernel has it in the poller, as far as we can know */
};

/* ---- the loop ----------------------------------------------------------- */

struct pl_poller;
struct pl_sending;
struct pl_stream;

enum pl_backend {
    PL_BACKEND_AUTO, /* the one that is faster for sockets */
    PL_BACKEND_EPOLL,
    PL_BACKEND_URING, /* epoll where the kernel refuses; loop->refused then tells why */
};

struct pl_loop_config {
    const struct pl_sys *sys; /* borrows; NULL for pl_sys_default() */
    enum pl_backend backend;
};

/* What the loop's thread is doing, for those that may have to wake it. */
enum pl_loop_state {
    PL_LOOP_AWAKE,
    PL_LOOP_SLEEPING, /* from before the poller blocks until it has woken */
    PL_LOOP_WOKEN,    /* someone wants the next wait not to block */
};

struct pl_loop_stats {
    uint64_t iterations;
    uint64_t polls;   /* system calls to the poller */
    uint64_t events;  /* descriptors that it reported */
    uint64_t ops;     /* callbacks run */
    uint64_t wakeups; /* eventfd writes received */
};

/* What the loop knows of its waits, for looking on before it sleeps (pl_busy.c). */
struct pl_busy {
    int64_t most;     /* nanoseconds of a spin; 0: never */
    int64_t sleep_ns; /* average of short sleeps, waking included */
    int64_t spin_ns;  /* average of spins that found something */
    uint32_t credit;  /* spins in vain that may still come; 0: it sleeps at once */
    uint32_t near;    /* short sleeps lately, while it sleeps at once */
    uint32_t trial;   /* that many of them make it spin */
    uint32_t run;     /* hits since then */
    bool spun;        /* the sleep to come follows a spin in vain */
    uint64_t spins;   /* figures: how often it spun, */
    uint64_t hits;    /* found something, */
    uint64_t crowded; /* and stopped because its core was wanted */
};

struct pl_loop {
    const struct pl_sys *sys;
    const struct pl_backend_ops *backend;
    struct pl_poller *poller; /* owns */
    int refused;              /* what io_uring was refused with; 0: unasked, or used */
    struct pl_queue ready;
    struct pl_timers timers;
    struct pl_fd_slot *fds; /* owns; indexed by descriptor */
    uint32_t nfds;
    uint32_t open;            /* descriptors that have their place in fds */
    pid_t pid;                /* of the process that made it */
    bool forked;              /* this is a child's copy, and knows it */
    int64_t now;              /* the last reading of the clock by this loop */
    struct pl_stream *corked; /* list of streams with writes to flush, newest first */
    int64_t held_since;       /* when the run chose to go on before it flushes them; else 0 */
    uint32_t hold_more;       /* for so many callbacks at most */
    uint32_t hold_pause;      /* how often it is not to choose so */
    struct pl_io *late;       /* queued without memory for the queue */
    struct pl_post *taken;    /* posts taken over, oldest first */
    uint32_t bulk;            /* the weights of what was reported by the last collect */
    bool unreported;          /* the poller has told more than collect has passed on */
    int wake_fd;
    struct pl_io wake_io;
    struct pl_loop_stats stats;
    struct pl_busy busy;
    void *user; /* the binding's */
    /* What other threads touch lies apart. Padding and not alignment, because a binding's
     * allocator may align less. */
    char padding_before[PL_CACHE_LINE];
    struct pl_post *_Atomic posts;
    _Atomic uint32_t state;   /* enum pl_loop_state */
    _Atomic uint32_t callers; /* threads that owe a pl_loop_call */
    char padding_after[PL_CACHE_LINE];
};

/* Makes a loop in *loop (borrowed memory, which stays where it is). config may be NULL.
 * Fails with -ENOMEM, -EMFILE, or -EINVAL for a backend that there is not. */
int pl_loop_init(struct pl_loop *loop, const struct pl_loop_config *config) PL_MUST_CHECK;

/* Releases everything that the loop owns. The caller has closed its streams and
 * stopped its timers, or forgets them: their ops never run. Accepts a half-built or
 * zeroed loop. In a child after a fork, call pl_loop_after_fork first. */
void pl_loop_fini(struct pl_loop *loop);

/* In the child after a fork: gives up the poller, which is shared with the parent's loop,
 * without touching what the parent has registered. The loop cannot wait any more
 * (PL_EFORKED); its streams, timers and itself can be taken down. Does nothing in the
 * process that made the loop. */
void pl_loop_after_fork(struct pl_loop *loop);

/* Whether this process made the loop. */
bool pl_loop_is_ours(const struct pl_loop *loop);

/* Reads the clock and stores it in loop->now. */
int64_t pl_loop_now(struct pl_loop *loop);

/* The same as pl_loop_enqueue, which calls it when the queue is full. */
int pl_loop_enqueue_more(struct pl_loop *loop, struct pl_op *op) PL_MUST_CHECK;

/* Appends to the ready queue. Loop's thread. -ENOMEM. */
static inline int pl_loop_enqueue(struct pl_loop *loop, struct pl_op *op)
{
    struct pl_queue *q = &loop->ready;
    if (PL_UNLIKELY(q->slots == NULL || q->tail - q->head > q->mask))
        return pl_loop_enqueue_more(loop, op);
    q->slots[q->tail++ & q->mask] = op;
    return 0;
}

/* Hands a node to the loop from any thread (or signal handler): lock-free, and one
 * eventfd write per batch at most. The node is the loop's until its op has run. */
void pl_loop_post(struct pl_loop *loop, struct pl_post *post);

/* The same in two steps, for a thread that holds a lock which the woken loop would only wait
 * for: true when a wake-up is owed, and then the thread calls pl_loop_call once it has let go.
 * Until then it must not wait for anyone who may be in pl_loop_fini, which waits for it. */
bool pl_loop_leave(struct pl_loop *loop, struct pl_post *post) PL_MUST_CHECK;
void pl_loop_call(struct pl_loop *loop);

/* Moves what has been posted to the ready queue, ahead of what is enqueued next: for callers
 * that keep one order between their own work and posts made before. Loop's thread. -ENOMEM
 * as in pl_loop_collect. */
int pl_loop_take_posts(struct pl_loop *loop) PL_MUST_CHECK;

/* Whether posts wait to be collected. Any thread; a hint unless the caller knows that the
 * post it asks about has been made. */
static inline bool pl_loop_has_posts(struct pl_loop *loop)
{
    /* relaxed: taking them synchronises; whoever was told of a post sees it here. */
    return loop->taken != NULL || atomic_load_explicit(&loop->posts, memory_order_relaxed) != NULL;
}

/* Makes a blocked pl_loop_wait return. Any thread, signal handlers too. */
void pl_loop_wake(struct pl_loop *loop);

/* How long the next wait may block, in nanoseconds: 0 when something is ready, -1
 * for ever. */
int64_t pl_loop_timeout(struct pl_loop *loop);

/* Waits in the poller for at most timeout_ns (-1: for ever) and keeps what it said
 * for pl_loop_collect. Number of events, or -EINTR. Touches nothing but the poller,
 * so a binding may call it without its lock. */
int pl_loop_wait(struct pl_loop *loop, int64_t timeout_ns) PL_MUST_CHECK;

/* Busy polling: for how many nanoseconds, at most, the loop looks for events before it sleeps,
 * where that has been worth it; 0, as at first: never. Loop's thread. */
void pl_loop_set_busy(struct pl_loop *loop, int64_t most_ns);

/* Whether the next wait had better be preceded by pl_loop_busy_poll. */
static inline bool pl_loop_busy_pays(const struct pl_loop *loop)
{
    return loop->busy.credit > 0;
}

/* Looks for events, posts and wake-ups, for no longer than timeout_ns (-1: no bound but its own).
 * 1: there is something to collect. 0: there is nothing yet; a binding has signals handled, which
 * have interrupted no call, before it waits. -errno as pl_loop_wait. As that, without lock. */
int pl_loop_busy_poll(struct pl_loop *loop, int64_t timeout_ns) PL_MUST_CHECK;

/* Moves posts, reported descriptors and due timers, in this order, to the ready
 * queue. -ENOMEM: nothing is lost, the rest is collected next time. */
int pl_loop_collect(struct pl_loop *loop) PL_MUST_CHECK;

/* Runs what was ready at its start, and flushes corked writes: after each callback, or, when
 * more are to run and they are quick, after some of them; none stays corked when it returns.
 * Number of callbacks run. *stop, when given, is looked at after each one: nonzero
 * ends the run early and leaves the rest queued (a binding stops so for an error
 * that must leave the loop). */
int pl_loop_run(struct pl_loop *loop, const volatile int *stop);

/* To be called before another thread runs the loop than the one that did: waits for the file
 * operations that are in the loop's own ring (pl_files_join), at most timeout_ns (-1: for ever).
 * They are collected by the next iteration. Touches nothing but the poller. */
void pl_loop_park(struct pl_loop *loop, int64_t timeout_ns);

/* One iteration: wait, collect, run. -EINTR or -ENOMEM as above. */
int pl_loop_once(struct pl_loop *loop) PL_MUST_CHECK;

/* "epoll" or "uring". */
const char *pl_loop_backend_name(const struct pl_loop *loop);

/* ---- queue functions ---------------------------------------------------- */

static inline uint32_t pl_queue_len(const struct pl_queue *q)
{
    return q->tail - q->head;
}

/* ---- timer functions ---------------------------------------------------- */

/* Starts a timer; equal deadlines run in start order. A started timer is moved to
 * the new deadline. O(1) when it is the latest, amortised; else O(log n). -ENOMEM. op.run is set
 * by the caller before. */
int pl_timer_start(struct pl_loop *loop, struct pl_timer *timer, int64_t deadline) PL_MUST_CHECK;

/* Stops a timer; false when it was not started (or has been moved to the ready
 * queue). Its memory is the caller's again. O(1), or O(log n) for one in the heap. */
bool pl_timer_stop(struct pl_loop *loop, struct pl_timer *timer);

/* The timer that is due next, borrowed; NULL without any. */
struct pl_timer *pl_timers_first(const struct pl_timers *timers);

/* How many are started. */
static inline uint32_t pl_timers_len(const struct pl_timers *timers)
{
    return timers->len + timers->run_len;
}

/* To visit all: places go from 0 to this; some have no timer (NULL). In no order. */
static inline uint32_t pl_timers_places(const struct pl_timers *timers)
{
    return timers->len + timers->run_tail;
}
struct pl_timer *pl_timers_at(const struct pl_timers *timers, uint32_t place);

static inline bool pl_timer_active(const struct pl_timer *timer)
{
    return timer->index != 0;
}

/* ---- descriptor functions ----------------------------------------------- */

/* Takes a place for fd in the loop's table. The kernel is not asked before
 * pl_io_watch. -EEXIST when the loop has that descriptor already, -EBADF for a
 * negative one, -ENOMEM.
 *
 * An io whose owner sets `idle` keeps its place only so that the next wait costs no call to
 * the poller: whoever opens the same descriptor takes the place over, as after pl_io_close.
 * The owner learns that by pl_io_has_place. */
int pl_io_open(struct pl_loop *loop, struct pl_io *io, int fd, enum pl_io_mode mode,
               void (*run)(struct pl_loop *loop, struct pl_op *op)) PL_MUST_CHECK;

/* Asks the poller for exactly `want` (0: nothing). In edge mode a descriptor that is
 * ready already is reported once more. Repairs the registration when the descriptor
 * had been closed and reused behind the loop's back. -EPERM for files that cannot be
 * polled, -EBADF, -ENOMEM. */
int pl_io_watch(struct pl_loop *loop, struct pl_io *io, unsigned want) PL_MUST_CHECK;

/* Gives the place back: no event of this descriptor is reported any more, those of
 * the batch being processed included. The fd stays open. When io->queued is still
 * true after this call, its op runs once more with ready == 0, and the memory must
 * last until then. */
void pl_io_close(struct pl_loop *loop, struct pl_io *io);

/* The io that has the descriptor, or NULL. An idle one is as good as none. */
struct pl_io *pl_io_find(struct pl_loop *loop, int fd);

/* Whether io still has the place of its descriptor. */
static inline bool pl_io_has_place(const struct pl_loop *loop, const struct pl_io *io)
{
    return (uint32_t)io->fd < loop->nfds && loop->fds[io->fd].io == io;
}

/* ---- streams ------------------------------------------------------------ */

/* A chunk of queued output; `owner` is released when the bytes are written or
 * dropped. */
struct pl_chunk {
    const char *data;
    size_t len;
    void *owner; /* moves: goes back through ops->release; may be NULL */
};

/* What a stream tells its user, always from pl_loop_run or from within a call that the
 * user made on the stream. A callback may call any function of the stream, close
 * included. */
struct pl_stream_ops {
    /* Where to put the next bytes: returns the buffer and its size in *len. hint is a
     * good size (what arrived last). NULL stops reading (the user has dealt with the
     * reason). */
    void *(*room)(struct pl_stream *stream, size_t hint, size_t *len);
    /* n > 0 bytes were put into the buffer that room gave (or another, see `borrows`). n == 0: end
     * of stream. Also called with n < 0, a -errno, when the read failed: the stream stops reading
     * and the user closes it. After each room comes exactly one of read or again. */
    void (*read)(struct pl_stream *stream, void *buf, ssize_t n);
    /* The buffer given by room is not needed: nothing was there. */
    void (*again)(struct pl_stream *stream, void *buf);
    /* Output left the queue without a call of the user's: `queued` is smaller now. */
    void (*drained)(struct pl_stream *stream);
    /* A write failed with -errno: the queue was dropped; the user closes the stream. */
    void (*failed)(struct pl_stream *stream, int error);
    /* Gives back the owner of a chunk. */
    void (*release)(struct pl_stream *stream, void *owner);
    /* After pl_stream_close or pl_stream_abort: descriptor and memory are the user's
     * again. */
    void (*closed)(struct pl_stream *stream);
    /* As release, for what the kernel may still have been reading when the stream was aborted or
     * forgotten: the stream may be no more. Comes from pl_loop_collect or pl_loop_fini. NULL: the
     * backend sends nothing by itself for such streams. */
    void (*release_late)(struct pl_loop *loop, void *owner);
};

#define PL_STREAM_INLINE 2

/* A connected stream socket (or pipe). Borrows its descriptor, which the user closes in
 * ops->closed. Writing to a pipe raises SIGPIPE unless the program ignores it. */
struct pl_stream {
    struct pl_io io;
    struct pl_loop *loop;
    const struct pl_stream_ops *ops;
    struct pl_chunk *chunks; /* a ring: `inlined` at first, then owned memory */
    uint32_t chunk_head;
    uint32_t chunk_len;
    uint32_t chunk_cap;
    uint32_t hint; /* how much the last reads brought */
    size_t queued; /* bytes in the chunks */
    struct pl_stream *cork_next;
    struct pl_sending *sending; /* owns: what the backend sends, or has sent, of the first chunks */
    /* Bits: each connection pays for what is here. */
    bool is_socket : 1; /* send and recv, else write and read */
    bool borrows : 1;   /* the user's: read may be given bytes in memory that room did not give,
                         * without a call of room; they are there until it returns */
    bool reading : 1;
    bool corked : 1;       /* in loop->corked */
    bool sent : 1;         /* a write has sent what was corked: `drained` is due */
    bool blocked : 1;      /* the kernel took no more: waiting for PL_WRITABLE, or for `sending` */
    bool eof : 1;          /* end of stream was read */
    bool shut_pending : 1; /* shutdown(SHUT_WR) once the queue is empty */
    bool shut : 1;
    bool flushing : 1;
    bool closing : 1;
    bool dead : 1; /* out of the poller, `closed` is due or was called */
    bool told : 1; /* ops->failed has been called */
    int error;     /* a write failed with this code */
    struct pl_chunk inlined[PL_STREAM_INLINE];
};

/* Takes a connected, non-blocking descriptor. Nothing is read, and the poller not asked,
 * before pl_stream_read_start. -EEXIST, -EBADF, -ENOMEM. */
int pl_stream_open(struct pl_loop *loop, struct pl_stream *stream, int fd, bool is_socket,
                   const struct pl_stream_ops *ops) PL_MUST_CHECK;

/* Starts or resumes reading. What arrived meanwhile is read in the next iteration. */
int pl_stream_read_start(struct pl_stream *stream) PL_MUST_CHECK;

/* No read callback comes after this returns. */
void pl_stream_read_stop(struct pl_stream *stream);

/* Queues chunks for writing, in order. They are flushed in one call when the running
 * callback ends, or soon after it (see pl_loop_run), or at once when more than PL_STREAM_FLUSH
 * bytes wait, or, outside of callbacks, by the next pl_loop_run. Owners move to the stream on
 * success. On failure (-ENOMEM, -EPIPE after shutdown or failure, PL_ECLOSED) they stay the
 * caller's. A failed send is told by ops->failed, never from within this call. */
int pl_stream_write(struct pl_stream *stream, const struct pl_chunk *chunks,
                    uint32_t n) PL_MUST_CHECK;

/* Writes now what is queued, as far as the kernel takes it. */
void pl_stream_flush(struct pl_stream *stream);

/* Shuts the sending side down once everything queued is written. */
int pl_stream_shutdown(struct pl_stream *stream) PL_MUST_CHECK;

/* Stops reading; closes once the queue has been written. Until then more can be written: a
 * user whom flow control holds back sends the rest when `drained` says so. `closed` always
 * comes from the ready queue, never from within this call. */
void pl_stream_close(struct pl_stream *stream);

/* Closes without writing the rest. `closed` comes as above. */
void pl_stream_abort(struct pl_stream *stream);

/* Drops the stream without `closed` or any other callback but `release`: for a loop that is
 * about to be closed, whose queued ops never run. */
void pl_stream_forget(struct pl_stream *stream);

/* The stream that a queued op belongs to, or NULL when it is something else's. */
struct pl_stream *pl_stream_of_op(struct pl_op *op);

#define PL_STREAM_FLUSH 65536

/* ---- connecting --------------------------------------------------------- */

/* A connection that the backend makes by itself. */
struct pl_connect {
    /* From pl_loop_run: 0 or -errno, as SO_ERROR would tell. -ECANCELED: the loop has stopped
     * running meanwhile, and the socket goes on connecting without anyone who waits for it. */
    void (*done)(struct pl_connect *c, int result);
    struct pl_connecting *at; /* the backend's; NULL while nothing is under way */
};

/* Connects a socket. The caller has set `done`; the address is copied. -EAGAIN: the backend does
 * no such thing, or not now: the caller does it by connect(2) and PL_WRITABLE. */
int pl_connect_start(struct pl_loop *loop, struct pl_connect *c, int fd,
                     const struct sockaddr *addr, socklen_t len) PL_MUST_CHECK;

/* `done` is not called any more, and the kernel gives the socket back. Does nothing when nothing
 * is under way. Loop's thread. */
void pl_connect_cancel(struct pl_loop *loop, struct pl_connect *c);

/* ---- listeners ---------------------------------------------------------- */

struct pl_rota;

struct pl_listener {
    struct pl_io io;
    struct pl_loop *loop;
    struct pl_timer retry;
    uint32_t batch;       /* accepts per event at most */
    struct pl_rota *rota; /* borrows; NULL unless other processes accept as well */
    int64_t stepped_back; /* when it last came back from stepping aside; 0: never */
    bool given; /* the program's own: other processes may accept from it, or have its file */
    bool accepting;
    bool backing_off; /* out of descriptors, or stepped aside: waiting for `retry` */
    /* A connection: fd is non-blocking and CLOEXEC; moves to the callee. addr is the peer's
     * address, or NULL where the backend did not ask for it. */
    void (*accepted)(struct pl_listener *l, int fd, const struct sockaddr *addr, socklen_t len);
    /* accept failed for want of resources (-EMFILE, -ENFILE, -ENOBUFS, -ENOMEM): it is tried
     * again after PL_LISTENER_RETRY. May be NULL. */
    void (*starved)(struct pl_listener *l, int error);
    /* accept failed for good: the listener has stopped. May be NULL. */
    void (*failed)(struct pl_listener *l, int error);
    void (*closed)(struct pl_listener *l);
};

#define PL_LISTENER_RETRY PL_NSEC_PER_SEC

/* Accepts from a listening non-blocking socket, which it borrows. The caller has set the
 * callbacks, `batch` (0: 128), and `rota` if other processes accept from the same socket
 * (pl_rota.h), or `given` if they may; accepting starts at once. */
int pl_listener_open(struct pl_loop *loop, struct pl_listener *l, int fd) PL_MUST_CHECK;

/* Stops accepting; `closed` comes from the ready queue. The fd stays open. */
void pl_listener_close(struct pl_listener *l);

/* With a rota: looks for connections that nobody takes. The kernel wakes one process for each;
 * when that one ends, or is busy, the others are not told. */
void pl_listener_look(struct pl_listener *l);

/* As pl_stream_forget and pl_stream_of_op. */
void pl_listener_forget(struct pl_listener *l);
struct pl_listener *pl_listener_of_op(struct pl_op *op);

/* ---- children ----------------------------------------------------------- */

/* Tells of the end of a process by a pidfd in the poller. */
struct pl_child {
    struct pl_io io;
    struct pl_loop *loop;
    pid_t pid;
    int pidfd; /* owns */
    bool reaped;
    /* Once: status as of waitpid, or a negative code when someone else reaped it
     * (-ECHILD). The memory is the user's again. */
    void (*exited)(struct pl_child *child, int status, const struct rusage *usage);
};

/* Watches a child of this process. The caller has set `exited`. Fails with what
 * pidfd_open says (-ENOSYS: watch it another way). */
int pl_child_watch(struct pl_loop *loop, struct pl_child *child, pid_t pid) PL_MUST_CHECK;

/* Stops watching and reaps nothing; `exited` is not called. When child->io.queued is
 * still true after this call, the memory must last until that op has run. */
void pl_child_unwatch(struct pl_child *child);

#endif /* PL_LOOP_H */
