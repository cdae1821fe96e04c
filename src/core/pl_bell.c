/* pl_bell.c - how the two sides of a pool wake each other, and when they do not have to.
 *
 * Towards the workers. A dry worker
 *     1. reads its bell
 *     2. sets its bit in `parked`                  (seq_cst)
 *     3. looks for work once more                  (seq_cst)
 *     4. sleeps while the bell is what it was in 1
 * and the parent
 *     a. moves the tail of the line                (seq_cst)
 *     b. looks at `parked`                         (seq_cst)
 *     c. takes a bit out of it, and only then changes that bell and wakes its futex.
 * Either 3 sees a, or b sees 2. In the second case c comes before 4, which then does not
 * sleep, or after it, and wakes. A worker that wakes for nothing goes back to 1.
 *
 * Towards the parent, the same with `armed` and one eventfd: the parent arms, looks at the
 * rings, blocks; a worker moves its ring, looks at `armed`, and whoever exchanges it for
 * zero writes. Without a parent that waits, nothing is written.
 *
 * Not ringing. A wake-up costs a system call here and tens of microseconds there. When the
 * awake workers are likely to be through with everything in less than that, the parent
 * rings for nobody and notes that it owes a wake-up. Its caller makes up for it
 * (pl_pool_flush) before it waits, and somebody who is there for this alone, the payer, when
 * it does neither wait nor post any more: so a task which turns out to be long holds the next
 * one back for moments only. Without a payer there are no debts.
 *
 * pl_bell.pml beside this file is the protocol as a model, checked by `make model-check`.
 *
 * The word `parked` can be spoilt by a worker that runs wild, and then the parent rings the
 * wrong one, or nobody. So whoever waits for long without news while tasks wait rings all that
 * have none, whatever the word says (pl_pool_check).
 *
 * Ringing ahead. While the parent copies the bytes of a large task it rings for a worker already
 * (pl_pool_expect), whose way out of sleep takes as long as the rest of the copy. That one counts
 * as one that spins: from before it loses its bit in `parked` until it clears both, after which
 * it looks for work once more before it sleeps, as one who has spun does.
 *
 * Spinning: pl_spin.c.
 */
#include "pl_pool_internal.h"

#include <errno.h>

#define DEAF_NS (5 * PL_NSEC_PER_SEC) /* a worker without a task may leave calls unheard */
#define COMING_MAX_NS 1000000 /* nobody looks out for longer, whatever the shared memory says */
#define EARLY_NS 50000        /* who was rung ahead of a task looks out beyond its time, so long */
#define CROWDED_NS (PL_NSEC_PER_SEC / 2) /* nobody is rung ahead for so long after */
#define WORD(bit) ((bit) / 64)
#define MASK(bit) (UINT64_C(1) << ((bit) % 64))

/* ---- bit sets ---- */

uint32_t pl__bits_count(const _Atomic uint64_t *words)
{
    uint32_t n = 0;
    /* Relaxed: for guesses only. */
    for (uint32_t i = 0; i < PL_SEAT_WORDS; i++)
        n += (uint32_t)__builtin_popcountll(atomic_load_explicit(&words[i], memory_order_relaxed));
    return n;
}

void pl__bits_clear(_Atomic uint64_t *words, uint32_t bit)
{
    (void)atomic_fetch_and_explicit(&words[WORD(bit)], ~MASK(bit), memory_order_seq_cst);
}

static void bits_set(_Atomic uint64_t *words, uint32_t bit)
{
    (void)atomic_fetch_or_explicit(&words[WORD(bit)], MASK(bit), memory_order_seq_cst);
}

/* ---- the parent ---- */

static void ring_seat(struct pl_pool *pool, uint32_t seat)
{
    struct pl_seat *place = pl__seat(pool->base, &pool->layout, seat);
    /* Relaxed: the worker reads it after the bell. */
    atomic_store_explicit(&place->rung, pool->sys->now(), memory_order_relaxed);
    /* Release: pairs with the acquire in pl_member_wait; the futex call orders the rest. */
    (void)atomic_fetch_add_explicit(&place->bell, 1, memory_order_release);
    (void)pool->sys->futex_wake((uint32_t *)&place->bell, 1); /* 0 or 1 woken: both are fine */
    pool->wakes++;
}

/* Wakes one parked worker, the one with the lowest seat: always the same few stay warm. */
static bool ring_one(struct pl_pool *pool)
{
    for (uint32_t word = 0; word < PL_SEAT_WORDS; word++) {
        _Atomic uint64_t *set = &pool->share->parked[word];
        uint64_t bits = atomic_load_explicit(set, memory_order_seq_cst);
        while (bits != 0) {
            uint64_t lowest = bits & -bits;
            uint64_t old = atomic_fetch_and_explicit(set, ~lowest, memory_order_seq_cst);
            uint32_t seat = word * 64 + (uint32_t)__builtin_ctzll(lowest);
            if ((old & lowest) != 0 && seat < pool->nseats && pool->seats[seat].taken) {
                ring_seat(pool, seat);
                return true;
            }
            bits = old & ~lowest;
        }
    }
    return false;
}

static bool any_parked(const struct pl_pool *pool)
{
    uint64_t bits = 0;
    for (uint32_t i = 0; i < PL_SEAT_WORDS; i++)
        bits |= atomic_load_explicit(&pool->share->parked[i], memory_order_seq_cst);
    return bits != 0;
}

void pl__bell_posted(struct pl_pool *pool)
{
    const struct pl_share *share = pool->share;
    if (!any_parked(pool))
        return;
    uint32_t waiting = pl_pool_waiting(pool);
    if (waiting <= pl__bits_count(share->spinning))
        return;
    uint32_t alive = pool->alive;
    uint32_t parked = pl__bits_count(share->parked);
    if (parked < alive && pool->mean_ns >= 0 &&
        (int64_t)waiting * pool->mean_ns < pool->wake_ns * (int64_t)(alive - parked)) {
        pool->unrung++;
        if (pool->payer) {
            /* Relaxed: the payer only asks whether one and the same debt gets old. */
            if (atomic_load_explicit(&pool->owed_wake, memory_order_relaxed) == 0) {
                pool->debts += pool->debts == UINT32_MAX ? 2 : 1;
                atomic_store_explicit(&pool->owed_wake, pool->debts, memory_order_relaxed);
            }
            return;
        }
    }
    (void)ring_one(pool);
}

void pl_pool_expect(struct pl_pool *pool, int64_t within)
{
    struct pl_share *share = pool->share;
    uint32_t parked = pl__bits_count(share->parked);
    if (parked == 0 || pl_pool_waiting(pool) != 0 || pl__bits_count(share->spinning) != 0 ||
        pool->alive > pool->layout.cpus || pool->alive + 2 > pool->layout.cpus + parked)
        return;
    for (uint32_t seat = 0; seat < pool->seats_high; seat++) {
        /* Relaxed: taking the bit out decides. */
        if (!pool->seats[seat].taken ||
            (atomic_load_explicit(&share->parked[WORD(seat)], memory_order_relaxed) & MASK(seat)) ==
                0)
            continue;
        /* Relaxed: a hint. To look out and be sent away costs more than it gains. */
        int64_t crowded = atomic_load_explicit(&pl__seat(pool->base, &pool->layout, seat)->crowded,
                                               memory_order_relaxed);
        int64_t now = pool->sys->now();
        if (crowded != 0 && crowded <= now && now - crowded < CROWDED_NS)
            return;
        /* It counts as one that spins from here on: before its bit is taken out of `parked`, so
         * that whichever way it wakes, its clearing comes after this. */
        bits_set(share->spinning, seat);
        if ((atomic_fetch_and_explicit(&share->parked[WORD(seat)], ~MASK(seat),
                                       memory_order_seq_cst) &
             MASK(seat)) == 0) {
            pl__bits_clear(share->spinning, seat); /* it woke by itself */
            return;
        }
        /* Relaxed: the worker reads it after the bell. */
        atomic_store_explicit(&pl__seat(pool->base, &pool->layout, seat)->coming,
                              now + within + EARLY_NS, memory_order_relaxed);
        ring_seat(pool, seat);
        return;
    }
}

void pl_pool_flush(struct pl_pool *pool)
{
    if (atomic_load_explicit(&pool->owed_wake, memory_order_relaxed) != 0)
        atomic_store_explicit(&pool->owed_wake, 0, memory_order_relaxed);
    uint32_t waiting = pl_pool_waiting(pool);
    uint32_t spinning = pl__bits_count(pool->share->spinning);
    while (waiting > spinning && any_parked(pool) && ring_one(pool))
        waiting--;
}

void pl__bell_ring_all(struct pl_pool *pool)
{
    for (uint32_t i = 0; i < pool->seats_high; i++) {
        if (!pool->seats[i].taken)
            continue;
        pl__bits_clear(pool->share->parked, i);
        ring_seat(pool, i);
    }
}

void pl__bell_ring_idle(struct pl_pool *pool)
{
    bool busy[PL_SEATS_MAX] = {false};
    int64_t now = pool->sys->now();
    for (uint32_t i = 0; i < pool->nslots; i++) {
        uint32_t seat;
        int64_t unused;
        if (pl_pool_holder(pool, i, &seat, &unused))
            busy[seat] = true;
    }
    /* Relaxed: those who do spin look at the line, not at this. */
    for (uint32_t i = 0; i < PL_SEAT_WORDS; i++)
        atomic_store_explicit(&pool->share->spinning[i], 0, memory_order_relaxed);
    for (uint32_t i = 0; i < pool->seats_high; i++) {
        struct pl_parent_seat *mine = &pool->seats[i];
        if (!mine->taken || busy[i]) {
            mine->deaf_since = 0;
            continue;
        }
        pl__bits_clear(pool->share->parked, i);
        ring_seat(pool, i);
        /* Relaxed: a worker that has not sat down is still being started. One that has and
         * does not come is lost, and a task with it if it was given one; it has none. */
        if (atomic_load_explicit(&pl__seat(pool->base, &pool->layout, i)->present,
                                 memory_order_relaxed) == 0)
            continue;
        if (mine->deaf_since == 0)
            mine->deaf_since = now;
        else if (now - mine->deaf_since > DEAF_NS)
            mine->suspect = true;
    }
}

void pl_pool_close(struct pl_pool *pool)
{
    pool->closing = true;
    /* seq_cst: as the tail, the other half of the Dekker in pl_member_wait. */
    atomic_store_explicit(&pool->share->closing, 1, memory_order_seq_cst);
    pl__bell_ring_all(pool);
}

void pl_pool_retire(struct pl_pool *pool, uint32_t seat)
{
    atomic_store_explicit(&pl__seat(pool->base, &pool->layout, seat)->retire, 1,
                          memory_order_seq_cst); /* as closing */
    pl__bits_clear(pool->share->parked, seat);
    ring_seat(pool, seat);
}

void pl_pool_arm(struct pl_pool *pool, uint32_t arm)
{
    /* seq_cst: before the caller's look at pl_pool_ready; partner: pl_member_done. */
    atomic_store_explicit(&pool->share->armed, arm, memory_order_seq_cst);
}

void pl_pool_hungry(struct pl_pool *pool, bool hungry)
{
    /* seq_cst: before pl_pool_arm; partner: pl_member_wait. */
    atomic_store_explicit(&pool->share->hungry, hungry, memory_order_seq_cst);
}

int pl_pool_watch(struct pl_pool *pool, int fd, uint32_t tag)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
    return pool->sys->epoll_ctl(pool->waitfd, EPOLL_CTL_ADD, fd, &event);
}

void pl_pool_unwatch(struct pl_pool *pool, int fd)
{
    struct epoll_event unused = {0};
    /* Fails when the descriptor was closed, which is what the caller wants. */
    (void)pool->sys->epoll_ctl(pool->waitfd, EPOLL_CTL_DEL, fd, &unused);
}

int pl_pool_wait(struct pl_pool *pool, int64_t timeout_ns, uint32_t *tags)
{
    struct epoll_event events[16];
    int n = pool->sys->epoll_wait(pool->waitfd, events, PL_ARRAY_LEN(events), timeout_ns);
    *tags = 0;
    for (int i = 0; i < n; i++) {
        uint32_t tag = events[i].data.u32;
        if (tag == PL_TAG_RESULTS) {
            uint64_t count;
            /* -EAGAIN: another thread was faster; it drains for all. */
            (void)pool->sys->read(pool->eventfd, &count, sizeof(count));
            *tags |= UINT32_C(1) << 31;
        } else {
            *tags |= UINT32_C(1) << (tag % 31);
        }
    }
    return n;
}

/* Whether the pool itself leaves a core for one who only looks. The parent counts as awake:
 * it has just posted, or is about to read. A pool that is larger than the machine is one that
 * means to use all of it. */
static bool core_is_idle(const struct pl_share *share, uint32_t cpus)
{
    uint32_t alive = atomic_load_explicit(&share->alive, memory_order_relaxed);
    uint32_t parked = pl__bits_count(share->parked);
    return alive <= cpus && alive + 1 <= cpus + parked;
}

static bool is_ready(const void *arg)
{
    return pl_pool_ready(arg);
}

bool pl_pool_spin(struct pl_pool *pool)
{
    if (pl_pool_ready(pool))
        return true;
    pool->spin.since = pool->sys->now();
    return pl__spin_pays(&pool->spin) && core_is_idle(pool->share, pool->layout.cpus) &&
           pl__spin(&pool->spin, pool->sys, is_ready, pool);
}

void pl_pool_woke(struct pl_pool *pool, int64_t slept)
{
    /* Relaxed: a hint, which the eventfd orders. */
    pl__spin_woke(&pool->spin, slept,
                  atomic_load_explicit(&pool->share->knocked, memory_order_relaxed),
                  pool->sys->now());
}

/* ---- a worker ---- */

/* seq_cst: after `parked` was set, this is the look that pl_pool_post's, pl_pool_close's and
 * pl_pool_retire's stores pair with. */
static bool has_work(const struct pl_member *member)
{
    const struct pl_share *share = member->share;
    uint64_t head = atomic_load_explicit(&share->head, memory_order_seq_cst);
    return atomic_load_explicit(&share->tail, memory_order_seq_cst) != head ||
           atomic_load_explicit(&share->closing, memory_order_seq_cst) != 0 ||
           atomic_load_explicit(&member->mine->retire, memory_order_seq_cst) != 0;
}

int pl_member_knock(struct pl_member *member)
{
    uint64_t one = 1;
    /* Relaxed: a hint, which the eventfd orders. */
    atomic_store_explicit(&member->share->knocked, member->sys->now(), memory_order_relaxed);
    ssize_t n = member->sys->write(member->eventfd, &one, sizeof(one));
    /* A full counter means that the parent has enough to wake up for. */
    return n >= 0 || n == -EAGAIN || n == -EINTR ? 0 : (int)n;
}

static bool found_work(const void *arg)
{
    return has_work(arg);
}

static bool spin(struct pl_member *member)
{
    struct pl_share *share = member->share;
    if (!pl__spin_pays(&member->spin) || !core_is_idle(share, member->layout.cpus))
        return false;
    bits_set(share->spinning, member->seat);
    bool found = pl__spin(&member->spin, member->sys, found_work, member);
    pl__bits_clear(share->spinning, member->seat);
    return found;
}

/* Awake: neither parked, nor spinning by the parent's word (pl_pool_expect). In this order, so that
 * a worker whose bit the parent has taken out of `parked` clears the other one after it was set. */
static void unpark(const struct pl_member *member)
{
    pl__bits_clear(member->share->parked, member->seat);
    pl__bits_clear(member->share->spinning, member->seat);
}

/* Leaves what was learnt where the parent looks. Relaxed: hints. */
static void tell(const struct pl_member *member)
{
    atomic_store_explicit(&member->mine->wake_ns, (uint32_t)member->spin.wake_ns,
                          memory_order_relaxed);
    atomic_store_explicit(&member->mine->spins, (uint32_t)member->spin.spins, memory_order_relaxed);
    atomic_store_explicit(&member->mine->hits, (uint32_t)member->spin.hits, memory_order_relaxed);
}

int pl_member_wait(struct pl_member *member)
{
    struct pl_share *share = member->share;
    if (has_work(member))
        return 0;
    member->spin.since = member->sys->now();
    if (spin(member))
        return 0;
    /* Acquire: pairs with ring_seat's add. */
    uint32_t bell = atomic_load_explicit(&member->mine->bell, memory_order_acquire);
    bits_set(share->parked, member->seat);
    if (has_work(member)) {
        unpark(member);
        return 0;
    }
    /* The parent has more than the board takes, and sleeps: it must feed us. The load comes
     * after `parked` was set; partner: pl_pool_hungry and then the parent's look at the line. */
    if (atomic_load_explicit(&share->hungry, memory_order_seq_cst) != 0 &&
        atomic_exchange_explicit(&share->armed, PL_ARM_NONE, memory_order_seq_cst) != PL_ARM_NONE) {
        int error = pl_member_knock(member);
        if (error < 0) {
            unpark(member);
            return error;
        }
    }
    member->parks++;
    tell(member);
    int64_t slept = member->sys->now();
    int error = member->sys->futex_wait((uint32_t *)&member->mine->bell, bell, -1);
    pl__bits_clear(share->parked, member->seat); /* and then `spinning`, as unpark does */
    if (error >= 0) {
        /* Relaxed: hints, both. */
        int64_t now = member->sys->now();
        pl__spin_woke(&member->spin, slept,
                      atomic_load_explicit(&member->mine->rung, memory_order_relaxed), now);
        int64_t coming = atomic_load_explicit(&member->mine->coming, memory_order_relaxed);
        if (coming > now &&
            pl__spin_until(member->sys, now,
                           coming - now < COMING_MAX_NS ? coming : now + COMING_MAX_NS, false,
                           found_work, member) < 0)
            atomic_store_explicit(&member->mine->crowded, member->sys->now(),
                                  memory_order_relaxed); /* a hint */
    }
    pl__bits_clear(share->spinning, member->seat);
    return error == -EINTR ? -EINTR : 0;
}
