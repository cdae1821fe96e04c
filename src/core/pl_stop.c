/* pl_stop.c - which worker has a task, and the request to stop it.
 *
 * Each posting of a task has a position in the line that no other posting has: its ticket.
 * The parent writes the ticket into the seat of the worker that has claimed the task and
 * sends a signal; the worker's handler compares it with the ticket of what runs. So a request
 * that comes late, when the worker has the next task already, stops nothing.
 */
#include "pl_pool_internal.h"

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
    *since = atomic_load_explicit(&pl__seat(pool->base, pool->share, holder)->started,
                                  memory_order_relaxed);
    return true;
}

bool pl_pool_stop(struct pl_pool *pool, uint32_t cell, uint32_t *seat)
{
    int64_t unused;
    if (!pl_pool_holder(pool, cell, seat, &unused))
        return false;
    /* Release: the signal that follows is the real barrier; partner: pl_member_asked. */
    atomic_store_explicit(&pl__seat(pool->base, pool->share, *seat)->stop,
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
