/* pl_loop.c - the iteration: wait, collect, run; and how other threads reach it.
 *
 * Posts and wake-ups. Other threads push nodes on a lock-free stack and write the
 * eventfd only when the loop sleeps. Both sides follow the same pattern, in which no
 * wake-up can be lost, because each side first writes its own word and then reads the
 * other's, all in sequentially consistent order:
 *
 *     poster: push on `posts`; read `state`; SLEEPING -> write the eventfd
 *     loop:   state = SLEEPING; read `posts`; not empty -> do not block
 *
 * The first poster that sees SLEEPING replaces it by WOKEN, so that a batch of posts
 * costs one write. The eventfd is registered edge-triggered and is never read: every
 * write is an edge of its own.
 */
#include "pl_internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static void ignore_wake(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op; /* never queued, see pl__io_report */
}

/* The rule of PL_BACKEND_AUTO: epoll. With the same program on both, io_uring is not faster for
 * sockets; docs/architecture.md has the figures. */
static int open_backend(struct pl_loop *loop, enum pl_backend wanted)
{
    switch (wanted) {
    case PL_BACKEND_AUTO:
    case PL_BACKEND_EPOLL:
        break;
    case PL_BACKEND_URING:
        loop->backend = &pl__backend_uring;
        loop->refused = loop->backend->create(loop);
        if (loop->refused == 0)
            return 0;
        break;
    default:
        return -EINVAL;
    }
    loop->backend = &pl__backend_epoll;
    return loop->backend->create(loop);
}

int pl_loop_init(struct pl_loop *loop, const struct pl_loop_config *config)
{
    static const struct pl_loop_config defaults = {0};
    if (config == NULL)
        config = &defaults;

    *loop = (struct pl_loop){
        .sys = config->sys != NULL ? config->sys : pl_sys_default(),
        .pid = getpid(),
        .wake_fd = -1,
    };
    int r = pl__queue_reserve(loop->sys, &loop->ready, 1);
    if (r < 0)
        return r;
    r = open_backend(loop, config->backend);
    if (r < 0)
        goto fail_backend;
    r = loop->sys->eventfd(0);
    if (r < 0)
        goto fail_eventfd;
    loop->wake_fd = r;
    r = pl_io_open(loop, &loop->wake_io, loop->wake_fd, PL_IO_EDGE, ignore_wake);
    if (r < 0)
        goto fail_wake;
    r = pl_io_watch(loop, &loop->wake_io, PL_READABLE);
    if (r < 0)
        goto fail_wake;
    (void)pl_loop_now(loop);
    return 0;

fail_wake:
    (void)loop->sys->close(loop->wake_fd);
    loop->wake_fd = -1;
    pl__io_fini(loop);
fail_eventfd:
    loop->backend->destroy(loop);
fail_backend:
    pl__queue_fini(loop->sys, &loop->ready);
    return r;
}

void pl_loop_fini(struct pl_loop *loop)
{
    if (loop->sys == NULL)
        return;
    if (loop->poller != NULL)
        loop->backend->destroy(loop);
    /* A descriptor that is closed under a caller may be another file's by the time that it
     * writes. It has nothing but the write to do. Acquire: pairs with pl_loop_call. */
    while (atomic_load_explicit(&loop->callers, memory_order_acquire) != 0)
        loop->sys->yield();
    if (loop->wake_fd >= 0)
        (void)loop->sys->close(loop->wake_fd);
    loop->wake_fd = -1;
    pl__timers_fini(loop);
    pl__queue_fini(loop->sys, &loop->ready);
    pl__io_fini(loop);
}

/* What stands in for the poller after a fork. */
static int none_watch(struct pl_loop *loop, int fd, uint64_t key, unsigned want,
                      enum pl_io_mode mode, bool *known)
{
    (void)loop;
    (void)fd;
    (void)key;
    (void)want;
    (void)mode;
    (void)known;
    return PL_EFORKED;
}

static void none_forget(struct pl_loop *loop, int fd)
{
    (void)loop;
    (void)fd;
}

static int none_wait(struct pl_loop *loop, int64_t timeout_ns)
{
    (void)loop;
    (void)timeout_ns;
    return PL_EFORKED;
}

static int none_report(struct pl_loop *loop)
{
    (void)loop;
    return 0;
}

/* The fork may have come from a callback, in the midst of a batch: what that batch still has for
 * streams and listeners is the parent's. */

static enum pl_input_kind none_input(struct pl_loop *loop, int fd, uint32_t hint,
                                     struct pl_input *in)
{
    (void)loop;
    (void)fd;
    (void)hint;
    (void)in;
    return PL_INPUT_NONE;
}

static void none_take(struct pl_loop *loop, int fd, size_t n, struct pl_lent *lent)
{
    (void)loop;
    (void)fd;
    (void)n;
    if (lent != NULL)
        *lent = (struct pl_lent){.buffer = -1};
}

static void none_give_back(struct pl_loop *loop, struct pl_lent *lent)
{
    loop->sys->free(lent->heap);
}

static int none_accept(struct pl_loop *loop, int fd)
{
    (void)loop;
    (void)fd;
    return -EAGAIN;
}

static bool none_has_more(struct pl_loop *loop, int fd)
{
    (void)loop;
    (void)fd;
    return false;
}

static const struct pl_backend_ops backend_none = {
    .name = "none (after fork)",
    .watch = none_watch,
    .forget = none_forget,
    .wait = none_wait,
    .report = none_report,
    .input = none_input,
    .take = none_take,
    .give_back = none_give_back,
    .accept = none_accept,
    .has_more = none_has_more,
    .drop = none_forget,
};

bool pl_loop_is_ours(const struct pl_loop *loop)
{
    return loop->pid == getpid();
}

void pl_loop_after_fork(struct pl_loop *loop)
{
    if (pl_loop_is_ours(loop) || loop->backend == &backend_none)
        return;
    /* Closing our copies of the descriptors leaves the parent's as they are; taking single
     * descriptors out of the set would not. */
    loop->backend->destroy(loop);
    loop->backend = &backend_none;
    loop->forked = true;
    pl__stream_hold_corked(loop);
    (void)loop->sys->close(loop->wake_fd);
    loop->wake_fd = -1; /* pl_loop_wake then writes to nowhere */
    /* Relaxed: those that there may be are the parent's threads. */
    atomic_store_explicit(&loop->callers, 0, memory_order_relaxed);
}

int64_t pl_loop_now(struct pl_loop *loop)
{
    loop->now = loop->sys->now();
    return loop->now;
}

int pl_loop_enqueue_more(struct pl_loop *loop, struct pl_op *op)
{
    return pl__queue_push(loop->sys, &loop->ready, op);
}

const char *pl_loop_backend_name(const struct pl_loop *loop)
{
    return loop->backend->name;
}

void pl_loop_wake(struct pl_loop *loop)
{
    /* seq_cst: pairs with the loop's exchange in pl_loop_wait. */
    uint32_t old = atomic_exchange_explicit(&loop->state, PL_LOOP_WOKEN, memory_order_seq_cst);
    if (old != PL_LOOP_SLEEPING)
        return;
    const uint64_t one = 1;
    /* Fails only when the counter is full, and then the loop has been woken. */
    (void)!loop->sys->write(loop->wake_fd, &one, sizeof(one));
}

/* Publishes the node; true when the loop sleeps. */
static bool push_post(struct pl_loop *loop, struct pl_post *post)
{
    /* relaxed: only the exchange below publishes, and it retries on a stale value. */
    struct pl_post *head = atomic_load_explicit(&loop->posts, memory_order_relaxed);
    do {
        post->next = head;
        /* seq_cst on success: publishes the node, and orders the push before the read of
         * `state`; pairs with pl_loop_wait. relaxed on failure: we only try again. */
    } while (!atomic_compare_exchange_weak_explicit(&loop->posts, &head, post, memory_order_seq_cst,
                                                    memory_order_relaxed));
    /* seq_cst: see the head of the file. */
    return atomic_load_explicit(&loop->state, memory_order_seq_cst) == PL_LOOP_SLEEPING;
}

void pl_loop_post(struct pl_loop *loop, struct pl_post *post)
{
    if (push_post(loop, post))
        pl_loop_wake(loop);
}

bool pl_loop_leave(struct pl_loop *loop, struct pl_post *post)
{
    /* Before the push, for a loop without a lock may run the post and end at once. Relaxed: the
     * push publishes it. */
    (void)atomic_fetch_add_explicit(&loop->callers, 1, memory_order_relaxed);
    if (push_post(loop, post))
        return true;
    /* Release, as in pl_loop_call. */
    (void)atomic_fetch_sub_explicit(&loop->callers, 1, memory_order_release);
    return false;
}

void pl_loop_call(struct pl_loop *loop)
{
    /* seq_cst: after the push. A loop that is awake has seen it, or looks before it sleeps. */
    if (atomic_load_explicit(&loop->state, memory_order_seq_cst) == PL_LOOP_SLEEPING)
        pl_loop_wake(loop);
    /* Release: the last that this thread does with the loop; pairs with pl_loop_fini. */
    (void)atomic_fetch_sub_explicit(&loop->callers, 1, memory_order_release);
}

int64_t pl_loop_timeout(struct pl_loop *loop)
{
    if (pl_queue_len(&loop->ready) > 0 || loop->corked != NULL || loop->late != NULL ||
        loop->taken != NULL || loop->unreported)
        return 0;
    /* relaxed: a hint; pl_loop_wait looks again before it blocks. */
    if (atomic_load_explicit(&loop->posts, memory_order_relaxed) != NULL)
        return 0;
    const struct pl_timer *first = pl_timers_first(&loop->timers);
    if (first == NULL)
        return -1;
    int64_t now = pl_loop_now(loop);
    return first->deadline <= now ? 0 : first->deadline - now;
}

int pl_loop_wait(struct pl_loop *loop, int64_t timeout_ns)
{
    if (PL_UNLIKELY(loop->unreported))
        return 1;
    loop->stats.polls++;
    if (timeout_ns == 0)
        return loop->backend->wait(loop, 0);

    uint32_t expected = PL_LOOP_AWAKE;
    /* seq_cst: pairs with pl_loop_post and pl_loop_wake. Fails when someone has asked for
     * a wake-up since the last wait. */
    if (!atomic_compare_exchange_strong_explicit(&loop->state, &expected, PL_LOOP_SLEEPING,
                                                 memory_order_seq_cst, memory_order_seq_cst))
        timeout_ns = 0;
    /* seq_cst: see the head of the file. */
    else if (atomic_load_explicit(&loop->posts, memory_order_seq_cst) != NULL)
        timeout_ns = 0;
    bool learns = timeout_ns != 0 && loop->busy.most > 0;
    int64_t since = learns ? loop->sys->now() : 0;
    int n = loop->backend->wait(loop, timeout_ns);
    if (learns)
        pl__busy_slept(&loop->busy, loop->sys->now() - since, n > 0);
    /* release is enough: a poster that still reads SLEEPING writes the eventfd once too
     * often, and its node is in the list that collect takes next. */
    atomic_store_explicit(&loop->state, PL_LOOP_AWAKE, memory_order_release);
    return n;
}

/* Takes over what other threads have posted, in the order of posting. */
static int collect_posts(struct pl_loop *loop)
{
    for (;;) {
        while (loop->taken != NULL) {
            struct pl_post *post = loop->taken;
            struct pl_post *next = post->next;
            int r = pl__queue_push(loop->sys, &loop->ready, &post->op);
            if (r < 0)
                return r;
            loop->taken = next;
        }
        /* relaxed: an empty list now is found again after the next wake-up. */
        if (atomic_load_explicit(&loop->posts, memory_order_relaxed) == NULL)
            return 0;
        /* acquire: pairs with the push in pl_loop_post, to see the nodes' contents. */
        struct pl_post *newest = atomic_exchange_explicit(&loop->posts, NULL, memory_order_acquire);
        while (newest != NULL) {
            struct pl_post *older = newest->next;
            newest->next = loop->taken;
            loop->taken = newest;
            newest = older;
        }
    }
}

int pl_loop_take_posts(struct pl_loop *loop)
{
    return collect_posts(loop);
}

static int collect(struct pl_loop *loop)
{
    int r = 0;
    if (PL_UNLIKELY(loop->late != NULL))
        r = pl__io_collect_late(loop);
    if (r == 0 && pl_loop_has_posts(loop))
        r = collect_posts(loop);
    if (r < 0)
        return r;
    loop->bulk = 0;
    loop->unreported = false;
    r = loop->backend->report(loop);
    if (r < 0)
        return r;
    if (pl_timers_len(&loop->timers) == 0)
        return 0;
    return pl__timers_expire(loop, pl_loop_now(loop));
}

int pl_loop_collect(struct pl_loop *loop)
{
    int r = collect(loop);
    if (PL_UNLIKELY(r < 0))
        loop->unreported = true; /* perhaps: the next collect knows */
    return r;
}

/* ---- the run ------------------------------------------------------------ */

/* Writes of several callbacks are held and sent in a row: a peer that has handled one finds the
 * next, instead of falling asleep and being woken by each of them. They are sent before the next
 * event, so that peers have something to do while this loop turns to what others want. */
#define HOLD_MOST 32            /* callbacks that run after the one whose write is held */
#define HOLD_LEAST 4            /* with fewer left in the turn it is not worth it */
#define HOLD_NS INT64_C(500000) /* the time that they may take, looked at after each */
#define HOLD_BYTES (16u << 10)  /* what is longer goes out while it is in the processor's cache */
#define HOLD_PAUSE 64           /* when they took twice as long: how many chances are passed over */

/* Whether what the last callback left corked stays so while others run, of which the turn has
 * `left`. by_event: it was a stream's. */
static bool holds(struct pl_loop *loop, bool by_event, uint32_t left)
{
    const struct pl_queue *q = &loop->ready;
    bool event_next = left > 0 && pl__stream_runs(q->slots[q->head & q->mask]->run);
    if (loop->held_since != 0) {
        int64_t took = loop->sys->now() - loop->held_since;
        if (took > 2 * HOLD_NS)
            loop->hold_pause = HOLD_PAUSE; /* they are slow: what a send costs matters less */
        return took < HOLD_NS && --loop->hold_more > 0 && left > 0 && !event_next &&
               loop->corked->queued <= HOLD_BYTES;
    }
    /* What answers in its own event has the bytes at hand, and their memory is used again. */
    if (by_event || event_next || left < HOLD_LEAST || loop->corked->queued > HOLD_BYTES)
        return false;
    if (loop->hold_pause > 0) {
        loop->hold_pause--;
        return false;
    }
    loop->hold_more = HOLD_MOST;
    loop->held_since = loop->sys->now();
    return true;
}

static void flush_corked(struct pl_loop *loop)
{
    loop->held_since = 0;
    pl__stream_flush_corked(loop);
}

int pl_loop_run(struct pl_loop *loop, const volatile int *stop)
{
    if (PL_UNLIKELY(loop->corked != NULL))
        flush_corked(loop); /* written outside of any callback */
    loop->held_since = 0;   /* of a stream that has ended since, perhaps */
    loop->stats.iterations++;
    uint32_t todo = pl_queue_len(&loop->ready);
    uint32_t done = 0;
    while (done < todo) {
        struct pl_op *op = pl__queue_pop(&loop->ready);
        done++;
        void (*run)(struct pl_loop *, struct pl_op *) = op->run; /* which may free op */
        run(loop, op);
        if (loop->corked != NULL && !holds(loop, pl__stream_runs(run), todo - done))
            flush_corked(loop);
        if (PL_UNLIKELY(stop != NULL && *stop))
            break;
    }
    if (PL_UNLIKELY(loop->corked != NULL))
        flush_corked(loop); /* the run ends early */
    loop->stats.ops += done;
    return (int)done;
}

void pl_loop_park(struct pl_loop *loop, int64_t timeout_ns)
{
    if (loop->backend->park != NULL)
        loop->backend->park(loop, timeout_ns);
}

int pl_connect_start(struct pl_loop *loop, struct pl_connect *c, int fd,
                     const struct sockaddr *addr, socklen_t len)
{
    c->at = NULL;
    return loop->backend->connect == NULL ? -EAGAIN
                                          : loop->backend->connect(loop, c, fd, addr, len);
}

void pl_connect_cancel(struct pl_loop *loop, struct pl_connect *c)
{
    if (c->at != NULL)
        loop->backend->unconnect(loop, c);
}

int pl_loop_once(struct pl_loop *loop)
{
    int r = pl_loop_wait(loop, pl_loop_timeout(loop));
    if (r < 0)
        return r;
    r = pl_loop_collect(loop);
    if (r < 0)
        return r;
    return pl_loop_run(loop, NULL);
}
