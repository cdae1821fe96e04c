/* pl_ring.c - the board of a pool: posting, claiming and finishing tasks.
 *
 * A slot's state word says whose it is, and changes hands by it alone:
 *
 *     FREE -> READY(pos)              the parent posts
 *     READY(pos) -> CLAIMED(seat,pos)   a worker, by compare-and-swap
 *     READY(pos) -> FREE              the parent takes it back, by compare-and-swap
 *     CLAIMED -> FINISHED(seat,pos)   that worker
 *     FINISHED -> FREE                the parent has read the result
 *
 * so a worker may die between any two instructions and the word still tells what it had.
 * The line (slot numbers in the order of posting) and its head only say where to look: a
 * worker that finds the slot at the head not ready for that position moves the head on,
 * whoever left it behind. `pos` is the position in the line, 40 bits of it: it makes every
 * posting of a slot different, so a slow worker cannot claim a slot's next task by a stale
 * look at the line.
 *
 * The line has twice as many places as there are slots. A place is used again when the head
 * has passed it; tasks that were taken back keep theirs until then.
 *
 * The rings of finished slots cannot run over: a slot is in one of them at most once.
 */
#include "pl_pool_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- the parent's set-up ---- */

int pl_pool_init(struct pl_pool *pool, const struct pl_pool_config *config)
{
    const struct pl_sys *sys = config->sys != NULL ? config->sys : pl_sys_default();
    *pool = (struct pl_pool){.sys = sys, .memfd = -1, .eventfd = -1, .waitfd = -1, .mean_ns = -1};
    if (config->workers < 1 || config->workers > 64 || config->most > 64 ||
        config->slots > PL_SLOTS_MAX)
        return -EINVAL;

    int error = pl__share_create(pool, config);
    if (error < 0)
        goto fail;
    const struct pl_layout *layout = &pool->layout;
    pl__spin_init(&pool->spin, layout->spin_ns);
    pool->wake_ns = pool->spin.wake_ns;
    pool->nslots = layout->nslots;
    pool->nseats = layout->nseats;
    pool->line_size = layout->line_size;
    pool->slots = (struct pl_slot *)(void *)(pool->base + layout->slots_at);
    pool->line = (_Atomic uint32_t *)(void *)(pool->base + layout->line_at);
    uint64_t slice = pl__slice_at(layout, layout->nseats);
    pl__heap_init(&pool->heap, sys, pool->base + slice, layout->slice_size, 0, layout->limit,
                  layout->nblocks);

    error = -ENOMEM;
    pool->cells = sys->alloc(pool->nslots * sizeof(*pool->cells));
    pool->seats = sys->alloc(pool->nseats * sizeof(*pool->seats));
    if (pool->cells == NULL || pool->seats == NULL)
        goto fail;
    memset(pool->seats, 0, pool->nseats * sizeof(*pool->seats));
    for (uint32_t i = 0; i < pool->nslots; i++)
        pool->cells[i] = (struct pl_cell){.next_free = i + 1 < pool->nslots ? i + 2 : 0};
    pool->free_cell = 1;

    /* The page that tells a child from its parent. It is no shared memory and no object that
     * a test would want to refuse, so it does not go through the table. */
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        goto fail;
    pool->canary = page;
    *pool->canary = 1;
    error = sys->madvise(page, 4096, MADV_WIPEONFORK);
    if (error < 0)
        goto fail;

    error = pool->eventfd = sys->eventfd(0);
    if (error < 0)
        goto fail;
    error = pool->waitfd = sys->epoll_create();
    if (error < 0)
        goto fail;
    error = pl_pool_watch(pool, pool->eventfd, PL_TAG_RESULTS);
    if (error < 0)
        goto fail;
    return 0;

fail:
    pl_pool_fini(pool);
    return error;
}

void pl_pool_fini(struct pl_pool *pool)
{
    const struct pl_sys *sys = pool->sys;
    if (sys == NULL)
        return;
    pl__heap_fini(&pool->heap);
    sys->free(pool->cells);
    sys->free(pool->seats);
    if (pool->waitfd >= 0)
        (void)sys->close(pool->waitfd);
    if (pool->eventfd >= 0)
        (void)sys->close(pool->eventfd);
    if (pool->memfd >= 0)
        (void)sys->close(pool->memfd);
    if (pool->canary != NULL)
        (void)munmap(pool->canary, 4096);
    if (pool->base != NULL)
        (void)sys->munmap(pool->base, pool->layout.total);
    *pool = (struct pl_pool){.memfd = -1, .eventfd = -1, .waitfd = -1};
}

/* ---- posting ---- */

static uint64_t line_len(const struct pl_pool *pool)
{
    /* Relaxed: the parent only wants to know about how far the workers are; what it does
     * with slots is decided by their state words. A head beyond the tail is nonsense that
     * someone wrote there: the line counts as empty, and posting goes on to be checked. */
    uint64_t head = atomic_load_explicit(&pool->share->head, memory_order_relaxed);
    uint64_t len = pool->tail - head;
    return len > pool->line_size ? 0 : len;
}

uint32_t pl_pool_waiting(const struct pl_pool *pool)
{
    return (uint32_t)line_len(pool);
}

int pl_pool_stage(struct pl_pool *pool, void *user, uint32_t *cell)
{
    if (pool->free_cell == 0 || line_len(pool) >= pool->line_size - 1)
        return -EAGAIN;
    uint32_t number = pool->free_cell - 1;
    struct pl_cell *mine = &pool->cells[number];
    pool->free_cell = mine->next_free;
    pool->cells_used++;
    *mine = (struct pl_cell){.user = user, .state = PL_CELL_STAGED};
    pool->slots[number].block = (struct pl_block){0};
    *cell = number;
    return 0;
}

static void free_cell(struct pl_pool *pool, uint32_t cell)
{
    pl__blocks_recall(pool, cell);
    pool->cells[cell] = (struct pl_cell){.next_free = pool->free_cell, .state = PL_CELL_FREE};
    pool->free_cell = cell + 1;
    pool->cells_used--;
}

void pl_pool_unstage(struct pl_pool *pool, uint32_t cell)
{
    free_cell(pool, cell);
}

void pl_pool_post(struct pl_pool *pool, uint32_t cell)
{
    struct pl_share *share = pool->share;
    uint64_t pos = pool->tail;
    pool->cells[cell].pos = pos;
    pool->cells[cell].state = PL_CELL_POSTED;
    pool->cells[cell].doubted = 0;
    /* Relaxed: the store of the tail below publishes both, and the slot before them. */
    atomic_store_explicit(&pool->slots[cell].state, pl__state(PL__READY, 0, pos),
                          memory_order_relaxed);
    atomic_store_explicit(&pool->line[pos & (pool->line_size - 1)], cell, memory_order_relaxed);
    pool->tail = pos + 1;
    pool->posted++;
    /* Release for pl_member_take's acquire; seq_cst for the Dekker with pl_member_wait: this
     * store comes before the look at `parked`, that one's store of `parked` before its look
     * at the tail, so one of the two sees the other. */
    atomic_store_explicit(&share->tail, pos + 1, memory_order_seq_cst);
    pl__bell_posted(pool);
}

bool pl_pool_withdraw(struct pl_pool *pool, uint32_t cell)
{
    struct pl_cell *mine = &pool->cells[cell];
    if (mine->state != PL_CELL_POSTED)
        return false;
    uint64_t expected = pl__state(PL__READY, 0, mine->pos);
    /* Relaxed: nothing was written by a worker that never claimed it. */
    if (!atomic_compare_exchange_strong_explicit(&pool->slots[cell].state, &expected,
                                                 pl__state(PL__FREE, 0, 0), memory_order_relaxed,
                                                 memory_order_relaxed))
        return false;
    free_cell(pool, cell);
    return true;
}

bool pl_pool_claimed(const struct pl_pool *pool, uint32_t cell)
{
    /* Relaxed: only a report of how things stand. */
    uint64_t state = atomic_load_explicit(&pool->slots[cell].state, memory_order_relaxed);
    return pool->cells[cell].state == PL_CELL_POSTED && (state & 0xff) >= PL__CLAIMED;
}

/* ---- results ---- */

bool pl_pool_ready(const struct pl_pool *pool)
{
    for (uint32_t i = 0; i < pool->seats_high; i++) {
        const struct pl_parent_seat *seat = &pool->seats[i];
        /* seq_cst: the other half of the Dekker in pl_member_done, after pl_pool_arm. */
        if (!seat->taken)
            continue;
        if (seat->suspect ? !seat->told
                          : atomic_load_explicit(&pl__seat(pool->base, &pool->layout, i)->done_tail,
                                                 memory_order_seq_cst) != seat->done_head)
            return true;
    }
    return false;
}

/* Takes a finished cell off the board's books. */
static void settle(struct pl_pool *pool, uint32_t cell, uint32_t seat)
{
    pool->cells[cell].state = PL_CELL_DONE;
    pool->finished++;
    pool->seats[seat].deaf_since = 0;
    if (pool->cells[cell].blocks != 0)
        pl__blocks_settle(pool, cell, seat);
    int64_t ran = pool->slots[cell].run_ns; /* a hint; a lie costs speed only */
    if (ran < 0 || ran > 10 * PL_NSEC_PER_SEC)
        ran = 10 * PL_NSEC_PER_SEC;
    if (pool->mean_ns < 0)
        pool->mean_ns = ran;
    else
        pool->mean_ns += (ran - pool->mean_ns) / 8;
    /* Relaxed: a hint, and bounded as a worker's own knowledge is. */
    uint32_t wake = atomic_load_explicit(&pl__seat(pool->base, &pool->layout, seat)->wake_ns,
                                         memory_order_relaxed);
    if (wake != 0 && wake <= pool->layout.spin_ns)
        pool->wake_ns = wake;
}

int pl_pool_next(struct pl_pool *pool, uint32_t *cell, uint32_t *seat)
{
    struct pl_share *share = pool->share;
    for (uint32_t i = 0; i < pool->seats_high; i++) {
        uint32_t turn = pool->turn + i;
        if (turn >= pool->seats_high)
            turn -= pool->seats_high;
        struct pl_parent_seat *mine = &pool->seats[turn];
        if (!mine->taken)
            continue;
        if (mine->suspect) {
            /* Found out elsewhere, and not told yet. */
            if (mine->told)
                continue;
            *seat = turn;
            goto broken;
        }
        /* Acquire: pairs with the worker's store of done_tail; the result was written
         * before it. */
        uint32_t tail = atomic_load_explicit(&pl__seat(pool->base, &pool->layout, turn)->done_tail,
                                             memory_order_acquire);
        if (tail == mine->done_head)
            continue;
        *seat = turn;
        if (tail - mine->done_head > pool->nslots)
            goto broken;
        uint32_t number = atomic_load_explicit(
            &pl__done_ring(pool->base, &pool->layout, turn)[mine->done_head & (pool->nslots - 1)],
            memory_order_relaxed); /* ordered by done_tail */
        if (number >= pool->nslots || pool->cells[number].state != PL_CELL_POSTED ||
            atomic_load_explicit(&pool->slots[number].state, memory_order_relaxed) !=
                pl__state(PL__FINISHED, turn, pool->cells[number].pos))
            goto broken;
        mine->done_head++;
        pool->turn = turn;
        settle(pool, number, turn);
        *cell = number;
        return 1;

    broken:
        mine->suspect = mine->told = true;
        return PL_EPROTO;
    }
    /* Relaxed: nobody but the parent has any business to write it. */
    if (atomic_load_explicit(&share->tail, memory_order_relaxed) != pool->tail)
        pl_pool_check(pool);
    return 0;
}

void pl_pool_release(struct pl_pool *pool, uint32_t cell)
{
    /* Relaxed: no worker looks at a slot that is not ready for the position it has. */
    atomic_store_explicit(&pool->slots[cell].state, pl__state(PL__FREE, 0, 0),
                          memory_order_relaxed);
    free_cell(pool, cell);
}

/* ---- seats ---- */

const struct pl_seat *pl_pool_place(const struct pl_pool *pool, uint32_t seat)
{
    if (seat >= pool->seats_high || !pool->seats[seat].taken)
        return NULL;
    return pl__seat(pool->base, &pool->layout, seat);
}

int pl_pool_seat(struct pl_pool *pool, uint32_t *seat, uint64_t *low_mark)
{
    struct pl_share *share = pool->share;
    uint32_t best = PL_NO_SEAT;
    for (uint32_t i = 0; i < pool->nseats; i++) {
        if (pool->seats[i].taken)
            continue;
        if (pool->seats[i].views == NULL) {
            best = i;
            break;
        }
        if (best == PL_NO_SEAT || pool->seats[i].low_mark < pool->seats[best].low_mark)
            best = i;
    }
    if (best == PL_NO_SEAT)
        return -EAGAIN;
    struct pl_parent_seat *mine = &pool->seats[best];
    struct pl_seat *place = pl__seat(pool->base, &pool->layout, best);
    if (mine->views == NULL)
        mine->low_mark = 0;
    /* Relaxed, all of them: nobody sits here, and the new worker is started after this. */
    atomic_store_explicit(&place->done_tail, 0, memory_order_relaxed);
    atomic_store_explicit(&place->running, 0, memory_order_relaxed);
    atomic_store_explicit(&place->started, 0, memory_order_relaxed);
    atomic_store_explicit(&place->returned, 0, memory_order_relaxed);
    atomic_store_explicit(&place->handed_back, 0, memory_order_relaxed);
    atomic_store_explicit(&place->retire, 0, memory_order_relaxed);
    atomic_store_explicit(&place->present, 0, memory_order_relaxed);
    atomic_store_explicit(&place->wake_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&place->spins, 0, memory_order_relaxed);
    atomic_store_explicit(&place->hits, 0, memory_order_relaxed);
    mine->done_head = 0;
    mine->taken = true;
    mine->suspect = mine->told = false;
    mine->deaf_since = 0;
    if (best >= pool->seats_high)
        pool->seats_high = best + 1;
    /* Relaxed: a figure by which workers guess whether a core is idle. */
    atomic_store_explicit(&share->alive, ++pool->alive, memory_order_relaxed);
    *seat = best;
    *low_mark = mine->low_mark;
    return 0;
}

bool pl__state_is_sound(const struct pl_pool *pool, uint64_t state, uint64_t pos)
{
    uint32_t seat = (uint32_t)(state >> 8) & 0xffff;
    if (state == pl__state(PL__READY, 0, pos))
        return true;
    return seat < pool->nseats && pool->seats[seat].taken &&
           (state == pl__state(PL__CLAIMED, seat, pos) ||
            state == pl__state(PL__FINISHED, seat, pos));
}

enum pl_burial pl_pool_bury(struct pl_pool *pool, uint32_t seat, uint32_t *cell)
{
    struct pl_parent_seat *mine = &pool->seats[seat];
    if (!mine->taken)
        return PL_BURIED;
    for (uint32_t i = 0; i < pool->nslots; i++) {
        if (pool->cells[i].state != PL_CELL_POSTED)
            continue;
        /* Acquire: for a task that was finished but not told, the result. */
        uint64_t state = atomic_load_explicit(&pool->slots[i].state, memory_order_acquire);
        uint64_t pos = pool->cells[i].pos;
        /* One whose word was overwritten is lost as well: the dead may have had it. Not one that
         * another worker runs, who would write its result into what the slot is used for next. */
        if (state == pl__state(PL__CLAIMED, seat, pos) ||
            (!pl__state_is_sound(pool, state, pos) && pl__runner(pool, i, seat) == PL_NO_SEAT)) {
            pool->cells[i].state = PL_CELL_DONE;
            pl__blocks_settle(pool, i, seat);
            *cell = i;
            return PL_LOST;
        }
        if (state == pl__state(PL__FINISHED, seat, pos)) {
            settle(pool, i, seat);
            *cell = i;
            return PL_FINISHED;
        }
    }
    pl__blocks_reclaim(pool, seat);
    pl__bits_clear(pool->share->parked, seat);
    pl__bits_clear(pool->share->spinning, seat);
    mine->taken = false;
    pool->alive--;
    (void)pl__pool_repair(pool); /* the flush below rings */
    /* The dead may have been rung for a task that is still there. */
    pl_pool_flush(pool);
    return PL_BURIED;
}

/* ---- a worker ---- */

int pl_member_init(struct pl_member *member, const struct pl_sys *sys, void *base, uint64_t total,
                   int eventfd, uint32_t seat, uint64_t low_mark)
{
    struct pl_share *share = base;
    if (sys == NULL)
        sys = pl_sys_default();
    struct pl_layout layout = share->layout;
    if (!pl__layout_is_sound(&layout))
        return PL_EPROTO;
    if (seat >= layout.nseats || total != layout.total || low_mark > layout.slice_size)
        return -EINVAL;
    unsigned char *start = base;
    *member = (struct pl_member){
        .sys = sys,
        .eventfd = eventfd,
        .seat = seat,
        .base = start,
        .total = total,
        .share = share,
        .layout = layout,
        .mine = pl__seat(start, &layout, seat),
        .slots = (struct pl_slot *)(void *)(start + layout.slots_at),
        .line = (_Atomic uint32_t *)(void *)(start + layout.line_at),
        .done = pl__done_ring(start, &layout, seat),
        .nslots = layout.nslots,
        .line_size = layout.line_size,
    };
    pl__heap_init(&member->heap, sys, start + pl__slice_at(&layout, seat), layout.slice_size,
                  low_mark, layout.limit, layout.nblocks);
    pl__spin_init(&member->spin, layout.spin_ns);
    atomic_store_explicit(&member->mine->present, 1, memory_order_relaxed); /* a hint */
    return 0;
}

void pl_member_fini(struct pl_member *member)
{
    pl__heap_fini(&member->heap);
}

void pl_member_leave(struct pl_member *member)
{
    atomic_store_explicit(&member->mine->present, 0, memory_order_relaxed); /* a hint */
}

int pl_member_take(struct pl_member *member, uint32_t *cell)
{
    struct pl_share *share = member->share;
    bool mended = false;
    for (;;) {
        if (atomic_load_explicit(&member->mine->retire, memory_order_relaxed) != 0) {
            pl_member_leave(member);
            return PL_ECLOSED;
        }
        /* The head before the tail: read the other way round, the head could be ahead.
         * Acquire on the tail pairs with pl_pool_post; on the head it keeps the order. */
        uint64_t head = atomic_load_explicit(&share->head, memory_order_acquire);
        uint64_t tail = atomic_load_explicit(&share->tail, memory_order_acquire);
        if (head == tail) {
            /* Acquire: pl_pool_close comes after the last post. */
            if (atomic_load_explicit(&share->closing, memory_order_acquire) != 0 &&
                atomic_load_explicit(&share->tail, memory_order_acquire) == tail) {
                pl_member_leave(member);
                return PL_ECLOSED;
            }
            /* What is posted was not found below this tail: it may be the tail that is wrong,
             * and only the parent knows the right one. */
            return mended ? pl_member_knock(member) : 0;
        }
        if (tail - head > member->line_size) {
            /* Others have moved the head on since it was read, or someone has written nonsense
             * there or over the tail. What is posted lies in the
             * last line_size places: looking at all of them finds it, and an older place
             * fails by its position. Relaxed: it publishes nothing. */
            uint64_t first = tail > member->line_size ? tail - member->line_size : 0;
            (void)atomic_compare_exchange_strong_explicit(
                &share->head, &head, first, memory_order_relaxed, memory_order_relaxed);
            mended = true;
            continue;
        }
        uint32_t number = atomic_load_explicit(&member->line[head & (member->line_size - 1)],
                                               memory_order_relaxed); /* ordered by tail */
        if (number >= member->nslots)
            return PL_EPROTO;
        uint64_t expected = pl__state(PL__READY, 0, head);
        /* Acquire: what the parent wrote into the slot. A stale look at the line fails here,
         * because the position is part of the word. */
        bool mine = atomic_compare_exchange_strong_explicit(
            &member->slots[number].state, &expected, pl__state(PL__CLAIMED, member->seat, head),
            memory_order_acquire, memory_order_relaxed);
        /* Moves the head on, for ourselves or for a worker that claimed and did not come to
         * it; failure means that another has done so. Release: keeps the head from being
         * seen past a claim that is not made yet. */
        uint64_t seen = head;
        (void)atomic_compare_exchange_strong_explicit(&share->head, &seen, head + 1,
                                                      memory_order_release, memory_order_relaxed);
        if (mine) {
            atomic_store_explicit(&member->mine->running, number + 1, memory_order_relaxed);
            *cell = number;
            return 1;
        }
    }
}

int pl_member_done(struct pl_member *member, uint32_t cell)
{
    struct pl_share *share = member->share;
    struct pl_slot *slot = &member->slots[cell];
    uint64_t pos = atomic_load_explicit(&slot->state, memory_order_relaxed) >> 24;
    /* Release: a parent that buries us looks at the state alone. */
    atomic_store_explicit(&slot->state, pl__state(PL__FINISHED, member->seat, pos),
                          memory_order_release);
    uint32_t tail = atomic_load_explicit(&member->mine->done_tail, memory_order_relaxed);
    atomic_store_explicit(&member->done[tail & (member->nslots - 1)], cell, memory_order_relaxed);
    /* Release for pl_pool_next; seq_cst for the Dekker with pl_pool_arm: this store before
     * the look at `armed`, there the store of `armed` before the look at done_tail. */
    atomic_store_explicit(&member->mine->done_tail, tail + 1, memory_order_seq_cst);
    /* Release: whoever sees it finds the result told; pairs with pl__runner. */
    atomic_store_explicit(&member->mine->running, 0, memory_order_release);
    uint32_t armed = atomic_load_explicit(&share->armed, memory_order_seq_cst);
    if (armed == PL_ARM_ANY || armed == PL_ARM_SLOT + cell) {
        if (atomic_exchange_explicit(&share->armed, PL_ARM_NONE, memory_order_seq_cst) !=
            PL_ARM_NONE) {
            return pl_member_knock(member);
        }
    }
    return 0;
}
