/* pl_pool_internal.h - what the files of the pools share with each other. */
#ifndef PL_POOL_INTERNAL_H
#define PL_POOL_INTERNAL_H

#include "pl_internal.h"

/* ---- pl_slot.state: status in bits 0-7, seat in 8-23, position in 24-63 ---- */

enum pl__status {
    PL__FREE = 0,
    PL__READY = 1,    /* the parent posted it */
    PL__CLAIMED = 2,  /* a worker has it */
    PL__FINISHED = 3, /* the result is there */
};

#define PL__POS_MASK ((UINT64_C(1) << 40) - 1)

static inline uint64_t pl__state(enum pl__status status, uint32_t seat, uint64_t pos)
{
    return (uint64_t)status | (uint64_t)seat << 8 | (pos & PL__POS_MASK) << 24;
}

/* ---- places in the mapping ---- */

static inline struct pl_seat *pl__seat(unsigned char *base, const struct pl_layout *layout,
                                       uint32_t seat)
{
    return (struct pl_seat *)(void *)(base + layout->seats_at) + seat;
}

static inline _Atomic uint32_t *pl__done_ring(unsigned char *base, const struct pl_layout *layout,
                                              uint32_t seat)
{
    return (_Atomic uint32_t *)(void *)(base + layout->done_at) + (size_t)seat * layout->nslots;
}

/* The links of a slice's blocks; owner is a seat, or nseats for the parent. */
static inline _Atomic uint32_t *pl__links(unsigned char *base, const struct pl_layout *layout,
                                          uint32_t owner)
{
    return (_Atomic uint32_t *)(void *)(base + layout->links_at) + (size_t)owner * layout->nblocks;
}

static inline uint64_t pl__slice_at(const struct pl_layout *layout, uint32_t owner)
{
    return layout->slices_at + (uint64_t)owner * layout->slice_size;
}

/* ---- pl_arena.c ---- */

enum pl__block_state {
    PL__BLOCK_NONE, /* an entry of the books that has no block */
    PL__BLOCK_FREE,
    PL__BLOCK_OWN,   /* in use by the owner */
    PL__BLOCK_LENT,  /* goes with the task in cell `holder` */
    PL__BLOCK_EARLY, /* as LENT, and its worker has returned it already */
    PL__BLOCK_HELD,  /* seat `holder` has it (for a worker's heap: the parent) */
};

/* Chooses sizes that the machine lets us map; fills in the share's layout fields. */
int pl__share_create(struct pl_pool *pool, const struct pl_pool_config *config) PL_MUST_CHECK;
/* Whether every place that it names lies in the mapping. */
bool pl__layout_is_sound(const struct pl_layout *layout);
void pl__heap_init(struct pl_heap *heap, const struct pl_sys *sys, unsigned char *base,
                   uint64_t size, uint64_t top, uint64_t limit, uint32_t max);
void pl__heap_fini(struct pl_heap *heap);
int pl__heap_alloc(struct pl_heap *heap, uint64_t size, uint32_t *id,
                   uint64_t *offset) PL_MUST_CHECK;
void pl__heap_free(struct pl_heap *heap, uint32_t id);
/* The task in `cell` was finished by `seat`: its blocks are that worker's now. */
void pl__blocks_settle(struct pl_pool *pool, uint32_t cell, uint32_t seat);
/* The task in `cell` reached no worker: its blocks are free. */
void pl__blocks_recall(struct pl_pool *pool, uint32_t cell);
/* Frees what workers have returned. PL_EPROTO with *seat set. */
int pl__blocks_collect(struct pl_pool *pool, uint32_t *seat);
/* The same for one seat, and then all that its dead worker held; orphans its views. */
void pl__blocks_reclaim(struct pl_pool *pool, uint32_t seat);

/* ---- pl_ring.c ---- */

/* Whether the state word of a posted task is one that it can have. */
bool pl__state_is_sound(const struct pl_pool *pool, uint64_t state, uint64_t pos);

/* ---- pl_stop.c ---- */

/* The seat, but for `except`, whose worker says that it runs the task in `cell`, or has run it;
 * PL_NO_SEAT. */
uint32_t pl__runner(const struct pl_pool *pool, uint32_t cell, uint32_t except);

/* After a worker's end, or when something is seen to be wrong: undoes what it may have written
 * where it had no business. */
bool pl__pool_repair(struct pl_pool *pool);

/* ---- pl_spin.c ---- */

/* `most` bounds the time of a spin in nanoseconds; 0: never. */
void pl__spin_init(struct pl_spin *spin, int64_t most);
/* Whether spinning is worth it, by the waits so far. */
bool pl__spin_pays(const struct pl_spin *spin);
/* Looks for what is waited for since spin->since; false: park. */
bool pl__spin(struct pl_spin *spin, const struct pl_sys *sys, bool (*found)(const void *arg),
              const void *arg);
/* Looks until `end`, now being `now`, whether it pays or not. `offers`: offers its core now and
 * then, which costs its place in the scheduler's queue: not for one who has work in a moment. 1
 * when it was found, 0 when not, -1 when the core is wanted. */
int pl__spin_until(const struct pl_sys *sys, int64_t now, int64_t end, bool offers,
                   bool (*found)(const void *arg), const void *arg);
/* The end of a sleep that began at `slept`; `rung` is the ringer's word for when it rang. */
void pl__spin_woke(struct pl_spin *spin, int64_t slept, int64_t rung, int64_t now);

/* ---- pl_bell.c ---- */

/* After a post (Dekker's other half is in pl_member_wait). */
void pl__bell_posted(struct pl_pool *pool);
void pl__bell_ring_all(struct pl_pool *pool);
/* Has every worker without a task look for one, whatever the shared words say of it. */
void pl__bell_ring_idle(struct pl_pool *pool);
uint32_t pl__bits_count(const _Atomic uint64_t *words);
void pl__bits_clear(_Atomic uint64_t *words, uint32_t bit);

/* A hint to the processor that this is a spin loop. */
static inline void pl__relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif /* PL_POOL_INTERNAL_H */
