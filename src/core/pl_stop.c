/* pl_stop.c - which worker has a task, the request to stop it, repairs after a worker's end.
 *
 * Each posting of a task has a position in the line that no other posting has: its ticket.
 * The parent writes the ticket into the seat of the worker that has claimed the task and
 * sends a signal; the worker's handler compares it with the ticket of what runs. So a request
 * that comes late, when the worker has the next task already, stops nothing.
 */
#include "pl_pool_internal.h"

#include <string.h>

#define DOUBT_NS (PL_NSEC_PER_SEC / 2)
/* A word that looks right and is not is believed for longer: that of a worker which was stopped
 * between its claim and the next instruction looks the same. */
#define BELIEF_NS (5 * PL_NSEC_PER_SEC)

bool pl_pool_holder(const struct pl_pool *pool, uint32_t cell, uint32_t *seat, int64_t *since)
{
    if (cell >= pool->nslots || pool->cells[cell].state != PL_CELL_POSTED)
        return false;
    /* Acquire: pairs with the claim; the worker cleared `started` before it. */
    uint64_t state = atomic_load_explicit(&pool->slots[cell].state, memory_order_acquire);
    uint32_t holder = (uint32_t)(state >> 8) & 0xffff;
    if (holder >= pool->nseats || !pool->seats[holder].taken ||
        state != pl__state(PL__CLAIMED, holder, pool->cells[cell].pos))
        return false;
    *seat = holder;
    /* Relaxed: one word, and a lie costs the liar's own task only. */
    *since = atomic_load_explicit(&pl__seat(pool->base, &pool->layout, holder)->started,
                                  memory_order_relaxed);
    return true;
}

bool pl_pool_stop(struct pl_pool *pool, uint32_t cell, uint32_t *seat)
{
    int64_t unused;
    if (!pl_pool_holder(pool, cell, seat, &unused))
        return false;
    /* Release: the signal that follows is the real barrier; partner: pl_member_asked. */
    atomic_store_explicit(&pl__seat(pool->base, &pool->layout, *seat)->stop,
                          (pool->cells[cell].pos & PL__POS_MASK) + 1, memory_order_release);
    return true;
}

uint64_t pl_member_ticket(const struct pl_member *member, uint32_t cell)
{
    /* Relaxed: this worker wrote the word when it claimed the task. */
    return (atomic_load_explicit(&member->slots[cell].state, memory_order_relaxed) >> 24) + 1;
}

bool pl_member_asked(const struct pl_member *member, uint64_t ticket)
{
    /* Acquire: partner is pl_pool_stop. */
    return ticket != 0 && atomic_load_explicit(&member->mine->stop, memory_order_acquire) == ticket;
}

/* ---- repairs ---- */

bool pl__pool_repair(struct pl_pool *pool)
{
    struct pl_share *share = pool->share;
    bool wrong = false;
    /* The other workers read the layout when they start, the tail and the head always. */
    if (memcmp(&share->layout, &pool->layout, sizeof(pool->layout)) != 0) {
        share->layout = pool->layout;
        wrong = true;
    }
    if (atomic_load_explicit(&share->tail, memory_order_relaxed) != pool->tail) {
        atomic_store_explicit(&share->tail, pool->tail, memory_order_seq_cst);
        wrong = true;
    }
    if (!pool->closing && atomic_load_explicit(&share->closing, memory_order_relaxed) != 0) {
        atomic_store_explicit(&share->closing, 0, memory_order_seq_cst);
        wrong = true;
    }
    /* Relaxed: a hint, which is put right without a word. */
    atomic_store_explicit(&share->alive, pool->alive, memory_order_relaxed);
    uint64_t first = pool->tail;
    for (uint32_t i = 0; i < pool->nslots; i++) {
        uint64_t pos = pool->cells[i].pos;
        if (pool->cells[i].state == PL_CELL_POSTED && pos < first &&
            atomic_load_explicit(&pool->slots[i].state, memory_order_relaxed) ==
                pl__state(PL__READY, 0, pos))
            first = pos;
    }
    uint64_t head = atomic_load_explicit(&share->head, memory_order_relaxed);
    /* A head that lies behind is fine: workers pass over what is not ready. One that lies
     * beyond a task that waits would hide it for ever. A worker that moves the head at this
     * very moment does so by compare-and-swap from what it saw, so neither undoes the other
     * for long: at worst it skips nothing that is ready. */
    if (head > first || pool->tail - head > pool->line_size) {
        atomic_store_explicit(&share->head, first, memory_order_seq_cst);
        wrong = true;
    }
    return wrong;
}

/* Whether the task is among the results that a worker has told of and nobody has looked at. */
static bool has_told(const struct pl_pool *pool, uint32_t seat, uint32_t cell)
{
    uint32_t head = pool->seats[seat].done_head;
    /* Acquire: as pl_pool_next. */
    uint32_t tail = atomic_load_explicit(&pl__seat(pool->base, &pool->layout, seat)->done_tail,
                                         memory_order_acquire);
    if (tail - head > pool->nslots)
        return false; /* nonsense, for which it is going to be suspected */
    for (; head != tail; head++)
        if (atomic_load_explicit(
                &pl__done_ring(pool->base, &pool->layout, seat)[head & (pool->nslots - 1)],
                memory_order_relaxed) == cell)
            return true;
    return false;
}

/* Whether a worker runs the task, or has run it. */
static bool has_it(const struct pl_pool *pool, uint32_t seat, uint32_t cell)
{
    /* Written right after the claim, taken back when the result is told. Acquire: so that is
     * found when this is not; partner is pl_member_done's store of zero. */
    return atomic_load_explicit(&pl__seat(pool->base, &pool->layout, seat)->running,
                                memory_order_acquire) == cell + 1 ||
           has_told(pool, seat, cell);
}

uint32_t pl__runner(const struct pl_pool *pool, uint32_t cell, uint32_t except)
{
    for (uint32_t i = 0; i < pool->seats_high; i++) {
        if (!pool->seats[i].taken || i == except)
            continue;
        if (has_it(pool, i, cell))
            return i;
    }
    return PL_NO_SEAT;
}

static bool any_suspect(const struct pl_pool *pool)
{
    for (uint32_t i = 0; i < pool->seats_high; i++)
        if (pool->seats[i].taken && pool->seats[i].suspect)
            return true;
    return false;
}

/* For a task whose word is sound. True: the worker that it names is suspected from now on, since
 * it does not have the task, and nobody else would ever end it. */
static bool doubt_claim(struct pl_pool *pool, uint32_t number, uint64_t state)
{
    struct pl_cell *cell = &pool->cells[number];
    uint32_t seat = (uint32_t)(state >> 8) & 0xffff;
    if ((state & 0xff) == PL__READY || has_it(pool, seat, number)) {
        cell->doubted = 0;
        return false;
    }
    int64_t now = pool->sys->now();
    if (cell->doubted == 0)
        cell->doubted = now;
    if (now - cell->doubted < BELIEF_NS || pool->seats[seat].suspect)
        return false;
    pool->seats[seat].suspect = true;
    return true;
}

bool pl_pool_mend(struct pl_pool *pool)
{
    bool suspected = false;
    for (uint32_t i = 0; i < pool->nslots; i++) {
        struct pl_cell *cell = &pool->cells[i];
        if (cell->state != PL_CELL_POSTED)
            continue;
        /* Relaxed: nothing is read but the word. */
        uint64_t state = atomic_load_explicit(&pool->slots[i].state, memory_order_relaxed);
        if (pl__state_is_sound(pool, state, cell->pos)) {
            suspected = doubt_claim(pool, i, state) || suspected;
            continue;
        }
        int64_t now = pool->sys->now();
        if (cell->doubted == 0)
            cell->doubted = now;
        /* The worker that claimed it may have been about to say so. */
        if (now - cell->doubted < DOUBT_NS)
            continue;
        uint32_t runner = pl__runner(pool, i, PL_NO_SEAT);
        if (runner != PL_NO_SEAT) {
            /* Its result would be refused. When it is dead, the task is lost. */
            if (!pool->seats[runner].suspect)
                suspected = pool->seats[runner].suspect = true;
        } else if (!any_suspect(pool) && pl_pool_waiting(pool) < pool->line_size - 1) {
            /* Nobody runs it, and nobody has. (Of a suspect that is not known: so it waits for
             * that one's burial.) */
            pl_pool_post(pool, i);
            pool->posted--; /* as one and the same */
        }
    }
    return suspected;
}

void pl_pool_check(struct pl_pool *pool)
{
    (void)pl_pool_mend(pool);
    if (pl__pool_repair(pool))
        pl__bell_ring_all(pool);
    if (pl_pool_waiting(pool) > 0)
        pl__bell_ring_idle(pool);
}
