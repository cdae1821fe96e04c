/* pl_pool.h - a parent, its worker processes, and the memory between them.
 *
 * One memfd is mapped by the parent and by all workers. It holds
 *
 *   the board   a table of fixed slots, each with room for a small message. The parent
 *               writes a task into a free slot and posts it; any worker claims it with one
 *               compare-and-swap, runs it and writes the result into the same slot.
 *   the line    a ring of slot numbers in the order of posting; workers take from its
 *               head. Nothing is given to a particular worker, so a long task never holds
 *               others back, and a dead worker has at most one task.
 *   the seats   one per worker process: its bell (a futex word) and its ring of finished
 *               slot numbers, which only it writes and only the parent reads.
 *   the slices  one per seat and one for the parent: memory for what does not fit a slot.
 *               Only the owner of a slice allocates from it, with books in its private
 *               memory; the other side gives blocks back through a list in shared memory.
 *               What a dead worker held is in the parent's books and is taken back.
 *
 * Doorbells: a worker that finds nothing spins while a core is idle and then parks on its
 * bell; the parent rings only for a parked worker. In the other direction there is one
 * eventfd for the whole pool, written only when the parent has armed it. Deaths wake the
 * same wait (pl_pool_watch), so nobody ever wakes up to look around.
 *
 * Nothing that a worker can write makes the parent read or write out of bounds: shared
 * values are loaded once and checked, and a worker that breaks the rules is reported with
 * PL_EPROTO, to be killed.
 *
 * Functions of struct pl_pool are the parent's: one thread at a time (pl_pool_wait and
 * pl_pool_spin may run beside them). Functions of struct pl_member are a worker's: one
 * thread at a time (pl_member_wait may run beside them).
 */
#ifndef PL_POOL_H
#define PL_POOL_H

#include "pl_base.h"
#include "pl_sys.h"

#include <stdatomic.h>

/* ---- what lies in the shared memory -------------------------------------- */

#define PL_SHARE_MAGIC UINT64_C(0x504c414954504f4f)
#define PL_SHARE_VERSION 1u

#define PL_SLOT_SIZE 512
#define PL_SLOT_INLINE 432 /* bytes of a message that need no block */
#define PL_SEATS_MAX 256
#define PL_SEAT_WORDS (PL_SEATS_MAX / 64)
#define PL_SLOTS_MAX 65536
#define PL_NO_SEAT UINT32_MAX

/* A piece of a slice, as messages name it. `owner` is the seat whose slice it is, or
 * PL_NO_SEAT for the parent's. */
struct pl_block {
    uint64_t offset; /* from the start of the mapping; 0: no block */
    uint64_t size;   /* bytes in use */
    uint32_t id;
    uint32_t owner;
};

/* One task and, later, its result. `kind`, `flags` and the bytes are the user's. */
struct pl_slot {
    _Atomic uint64_t state; /* pl_ring.c tells its parts */
    int64_t posted;         /* when the parent posted it; what for is the user's choice */
    int64_t run_ns;         /* how long the worker was at it */
    uint32_t len;           /* bytes in `bytes`, or in `block` when block.offset != 0 */
    uint16_t kind;
    uint16_t flags;
    struct pl_block block;
    uint64_t reserved;
    unsigned char bytes[PL_SLOT_INLINE];
    unsigned char pad[PL_SLOT_SIZE - PL_SLOT_INLINE - 64];
};

_Static_assert(sizeof(struct pl_block) == 24, "the layout is shared");
_Static_assert(sizeof(struct pl_slot) == PL_SLOT_SIZE, "the layout is shared");
_Static_assert(offsetof(struct pl_slot, block) == 32, "the layout is shared");
_Static_assert(offsetof(struct pl_slot, bytes) == 64, "the layout is shared");

/* A worker's place. Lines are split by who writes them. */
struct pl_seat {
    /* The worker writes. */
    _Alignas(PL_CACHE_LINE) _Atomic uint32_t done_tail; /* free-running */
    _Atomic uint32_t running;  /* slot number + 1 of the claimed task, 0 when idle: a hint */
    _Atomic int64_t started;   /* when it was claimed: a hint */
    _Atomic uint32_t returned; /* the parent's blocks that this worker gives back: id + 1 */
    _Atomic uint32_t present;  /* nonzero once the worker has sat down */
    _Atomic uint32_t wake_ns;  /* hints: what a wake-up costs it, */
    _Atomic uint32_t spins;    /* how often it spun, */
    _Atomic uint32_t hits;     /* and found work so */
    _Atomic int64_t crowded;   /* when it looked out for a task and its core was wanted */
    /* Both write. */
    _Alignas(PL_CACHE_LINE) _Atomic uint32_t bell; /* the worker parks on it */
    _Atomic int64_t rung;                          /* when it was last rung: the parent's */
    _Atomic int64_t coming; /* until when it should look out for a task: the parent's */
    /* The parent writes. */
    _Alignas(PL_CACHE_LINE) _Atomic uint32_t handed_back; /* the worker's blocks: id + 1 */
    _Atomic uint32_t retire; /* nonzero: this worker ends once it is idle */
    _Atomic uint64_t stop;   /* the ticket of the task that is to stop, or 0 */
};

/* Where things are in the mapping, and its bounds. Never changes after pl_pool_init. Everyone
 * computes with a copy of its own: the one in the mapping is what a new worker reads, and a
 * worker that runs wild can overwrite it. */
struct pl_layout {
    uint64_t magic;
    uint32_t version;
    uint32_t nslots;    /* power of two */
    uint32_t line_size; /* power of two, 2 * nslots */
    uint32_t nseats;
    uint32_t nblocks; /* ids per slice */
    uint32_t cpus;    /* that the pool may use */
    uint64_t total;   /* bytes of the mapping */
    uint64_t slots_at;
    uint64_t line_at;
    uint64_t seats_at;
    uint64_t done_at;   /* nseats rings of nslots slot numbers */
    uint64_t links_at;  /* nseats + 1 arrays of nblocks links; the parent's is the last */
    uint64_t slices_at; /* nseats + 1 slices; the parent's is the last */
    uint64_t slice_size;
    uint64_t limit;  /* bytes that one slice may have in use */
    int64_t spin_ns; /* how long one who runs dry spins at most; 0: never */
};

/* The first bytes of the mapping. */
struct pl_share {
    struct pl_layout layout;
    /* The parent writes. */
    _Alignas(PL_CACHE_LINE) _Atomic uint64_t tail; /* of the line */
    /* Workers write. */
    _Alignas(PL_CACHE_LINE) _Atomic uint64_t head;
    /* Seldom written by either. */
    _Alignas(PL_CACHE_LINE) _Atomic uint32_t armed; /* enum pl_arm */
    _Atomic uint32_t hungry;  /* nonzero: the parent has more than the board takes */
    _Atomic uint32_t closing; /* nonzero: workers end */
    _Atomic uint32_t alive;   /* workers that have a seat: a hint for these */
    _Atomic int64_t knocked;  /* when a worker last wrote to the eventfd: a hint */
    _Alignas(PL_CACHE_LINE) _Atomic uint64_t parked[PL_SEAT_WORDS];
    _Alignas(PL_CACHE_LINE) _Atomic uint64_t spinning[PL_SEAT_WORDS];
};

_Static_assert(offsetof(struct pl_share, tail) == 128, "the layout is shared");
_Static_assert(offsetof(struct pl_share, head) == 192, "the layout is shared");
_Static_assert(offsetof(struct pl_share, armed) == 256, "the layout is shared");

/* ---- slices --------------------------------------------------------------- */

/* The owner's private books of a slice: its blocks in the order of their places, and the free
 * ones by size. Numbers of blocks are id + 1, 0 for none. */
struct pl_heap_block {
    uint64_t offset; /* from the start of the slice */
    uint64_t size;
    uint64_t warm;   /* while free: at most so many bytes of its pages are kept */
    uint32_t before; /* its neighbours in the slice */
    uint32_t after;
    uint32_t next;   /* in the free list of its class, or in its cell's list */
    uint32_t prev;   /* in the free list */
    uint32_t holder; /* the cell that it is lent with, then the seat that has it */
    uint32_t refs;   /* tickets for it */
    uint32_t target; /* of a ticket: the block it is for */
    uint8_t state;
};

#define PL_HEAP_CLASSES 160

struct pl_heap {
    const struct pl_sys *sys;
    unsigned char *base; /* borrows: the slice */
    uint64_t size;
    uint64_t top;                 /* nothing was ever handed out above */
    uint64_t limit;               /* of `used` */
    uint64_t used;                /* bytes in blocks that are not free */
    uint64_t cached;              /* sum of `warm` */
    struct pl_heap_block *blocks; /* owns; block 0 is id 0 */
    uint32_t nblocks;
    uint32_t cap;
    uint32_t max;
    uint32_t last;   /* the block that ends at `top` */
    uint32_t unused; /* entries without a block, through `next` */
    uint32_t free_list[PL_HEAP_CLASSES];
};

/* ---- the parent ----------------------------------------------------------- */

enum pl_arm {
    PL_ARM_NONE = 0,
    PL_ARM_ANY = 1,  /* any finished task */
    PL_ARM_DRY = 2,  /* only a worker that finds nothing while `hungry` is set */
    PL_ARM_SLOT = 3, /* + slot number: that task, or as PL_ARM_DRY */
};

enum pl_cell_state {
    PL_CELL_FREE,
    PL_CELL_STAGED, /* being written by the parent */
    PL_CELL_POSTED, /* workers may have it */
    PL_CELL_DONE,   /* taken from the board; the result is being read */
};

/* The parent's private view of a slot. */
struct pl_cell {
    void *user;
    uint64_t pos;
    uint32_t next_free; /* number + 1 */
    uint32_t blocks;    /* lent with this task: id + 1, a list through pl_heap_block.next */
    uint8_t state;
    int64_t doubted; /* when its word on the board was first seen to be nonsense; 0 */
};

struct pl_view; /* a worker's block in the parent's hands */

struct pl_parent_seat {
    bool taken;
    bool suspect;       /* broke the protocol: nothing more is read from it */
    bool told;          /* pl_pool_next has said so */
    int64_t deaf_since; /* when it was first called for a task that waits and did not come; 0 */
    uint32_t done_head;
    uint64_t low_mark; /* the next worker allocates above this */
    struct pl_view *views;
};

struct pl_view {
    struct pl_view *prev;
    struct pl_view *next;
    struct pl_block block;
    uint32_t seat; /* PL_NO_SEAT for a block of the parent's own slice */
    bool orphan;   /* its worker is gone: nothing to give back */
};

struct pl_pool_config {
    const struct pl_sys *sys; /* borrows; NULL for pl_sys_default() */
    uint32_t workers;         /* seats wanted at once, 1 to 64; more are kept for successors */
    uint32_t most;            /* seats that there may be wanted later, if the machine lets us map
                                 so much; 0, or less than workers: no more than those */
    uint32_t slots;           /* tasks on the board; 0: 1024; rounded up to a power of two */
    uint64_t limit;           /* bytes per slice; 0: half of the machine's memory */
    uint32_t cpus;            /* a bound of the processors it may use; 0: only the affinity's */
};

/* What one side knows about its waits (pl_spin.c). */
struct pl_spin {
    int64_t most;     /* bound of a spin */
    int64_t wake_ns;  /* moving average of what a wake-up costs */
    int64_t wait_ns;  /* moving average of how long work took to come */
    int64_t since;    /* when it last ran dry */
    uint64_t spins;   /* figures: how often it spun, */
    uint64_t hits;    /* found something so, */
    uint64_t crowded; /* and saw that the core was wanted */
};

struct pl_pool {
    const struct pl_sys *sys;
    int memfd;   /* owns; inherited by workers */
    int eventfd; /* owns; inherited by workers */
    int waitfd;  /* owns; readable when something happened: an epoll set */
    unsigned char *base;
    struct pl_share *share;
    struct pl_layout layout; /* the one that is computed with */
    struct pl_slot *slots;
    _Atomic uint32_t *line;
    uint32_t *canary; /* one page that is zero after a fork */
    uint64_t tail;
    uint32_t nslots;
    uint32_t line_size;
    uint32_t nseats;
    uint32_t nwatched;
    uint32_t cells_used;
    uint32_t free_cell;           /* number + 1 */
    uint32_t turn;                /* the seat that pl_pool_next looks at first */
    uint32_t seats_high;          /* seats at or above were never taken */
    struct pl_cell *cells;        /* owns */
    struct pl_parent_seat *seats; /* owns */
    struct pl_heap heap;
    int64_t mean_ns;     /* moving average of run_ns; -1 while unknown */
    uint32_t alive;      /* seats that are taken */
    int64_t wake_ns;     /* what a wake-up costs, by the word of the worker that was heard last */
    struct pl_spin spin; /* of the one that waits for results */
    bool closing;        /* pl_pool_close was called */
    bool payer;          /* someone sees to it that debts are paid (pl_pool_post) */
    /* A post left a parked worker asleep although work waits: 0, or the number of the debt.
     * Written by whoever holds the pool, looked at by the payer without holding it. */
    _Atomic uint32_t owed_wake;
    uint32_t debts;  /* numbers given out */
    uint64_t unrung; /* posts for which ringing did not pay: what a payer is good for */
    uint64_t wakes;  /* figures */
    uint64_t waits;
    uint64_t posted;
    uint64_t finished;
};

/* memcpy. What is too large for any cache is written past them: so the destination need not be
 * read first, and what is in the caches stays. */
void pl_copy(void *to, const void *from, size_t len);

/* Makes the shared memory and the descriptors. -EINVAL, -ENOMEM, -EMFILE. */
int pl_pool_init(struct pl_pool *pool, const struct pl_pool_config *config) PL_MUST_CHECK;

/* Unmaps and frees. Workers should be gone; their mappings last until they are. Views must
 * have been released. Accepts a zeroed or half-built pool; after a fork it frees the
 * child's copies only. */
void pl_pool_fini(struct pl_pool *pool);

/* True in a child that was forked from the parent: nothing else may be called but fini. */
static inline bool pl_pool_forked(const struct pl_pool *pool)
{
    return pool->canary == NULL || *pool->canary == 0;
}

/* The shared words of a seat that is taken, or NULL. */
const struct pl_seat *pl_pool_place(const struct pl_pool *pool, uint32_t seat);

/* How many workers there may be at once. */
uint32_t pl_pool_room(const struct pl_pool *pool);

/* Takes a free slot for a task. The caller fills in len, kind, flags, and bytes or block;
 * `user` comes back with the result. -EAGAIN when the board is full. */
int pl_pool_stage(struct pl_pool *pool, void *user, uint32_t *cell) PL_MUST_CHECK;

/* Gives a staged slot back unused. */
void pl_pool_unstage(struct pl_pool *pool, uint32_t cell);

/* Posts a staged task. Rings for a parked worker when that pays, and always without a payer.
 * When it does not pay (the awake ones are expected to be through in less time than a wake-up
 * takes) and `payer` is set, owed_wake is, and the caller sees to it that pl_pool_flush is
 * called within milliseconds: the awake one may be at a long task after all. */
void pl_pool_post(struct pl_pool *pool, uint32_t cell);

/* A task will be posted in about `within` nanoseconds, its bytes are still being copied: rings
 * for a parked worker already now, so that it is up by then and looks out for the task, if the
 * machine leaves a core for that. Promises nothing to anybody, and no task need follow. */
void pl_pool_expect(struct pl_pool *pool, int64_t within);

/* Rings for a parked worker if tasks wait. Cheap when there is nothing to do. */
void pl_pool_flush(struct pl_pool *pool);

/* Takes a posted task back; true when no worker had claimed it: the slot is free again, and
 * so are the blocks that were lent with it. */
bool pl_pool_withdraw(struct pl_pool *pool, uint32_t cell);

/* Whether a worker has begun the task in a cell that this caller posted. */
bool pl_pool_claimed(const struct pl_pool *pool, uint32_t cell);

/* Which worker has the task in a cell that this caller posted: false when none has. `since`
 * is the worker's word for when it began (monotonic nanoseconds), 0 while it has not said so. */
bool pl_pool_holder(const struct pl_pool *pool, uint32_t cell, uint32_t *seat, int64_t *since);

/* Asks the worker that has a task to stop that task, and no other: the request names this
 * posting of it (its ticket). The caller then signals the worker, which compares. False when
 * no worker has the task, because it is not claimed yet or has ended. */
bool pl_pool_stop(struct pl_pool *pool, uint32_t cell, uint32_t *seat);

/* Looks for what a worker may have written where it had no business, without having died of
 * it, and puts it right; has workers without a task look for one if tasks wait, and suspects
 * those that do not after having been called again and again. For somebody who has waited for
 * long. */
void pl_pool_check(struct pl_pool *pool);

/* The part of it that finds tasks whose word on the board was overwritten, so that no worker can
 * take them or tell of them: one that nobody runs is posted again, who runs one is suspected, and
 * then true is returned. Nothing is done before such a word was seen twice, half a second apart:
 * for somebody who calls it every second or so while tasks are out. */
bool pl_pool_mend(struct pl_pool *pool);

/* The next finished task: 1 with *cell set, 0 when there is none, or PL_EPROTO with *seat
 * set: that worker must be killed. The caller reads pool->slots[cell] (which a hostile
 * worker may still be changing: load once, check) and gives it back by pl_pool_release. */
int pl_pool_next(struct pl_pool *pool, uint32_t *cell, uint32_t *seat) PL_MUST_CHECK;
void pl_pool_release(struct pl_pool *pool, uint32_t cell);

/* Tasks in the line that no worker has claimed. */
uint32_t pl_pool_waiting(const struct pl_pool *pool);

/* True when pl_pool_next may find something. */
bool pl_pool_ready(const struct pl_pool *pool);

/* Asks for one write to the eventfd (PL_ARM_*). Afterwards the caller looks at
 * pl_pool_ready once more, and only then blocks. */
void pl_pool_arm(struct pl_pool *pool, uint32_t arm);

/* Tells workers that tasks wait which are not on the board. */
void pl_pool_hungry(struct pl_pool *pool, bool hungry);

/* Adds a descriptor (a pidfd, a control socket) to what wakes pl_pool_wait; borrows fd. tag
 * comes back. Removing one that is closed already is allowed. */
int pl_pool_watch(struct pl_pool *pool, int fd, uint32_t tag) PL_MUST_CHECK;
void pl_pool_unwatch(struct pl_pool *pool, int fd);

#define PL_TAG_RESULTS UINT32_MAX

/* Waits for at most timeout_ns (-1 for ever). Bits of what happened in *tags (tag < 31 sets
 * bit tag; results set bit 31). Empties the eventfd. 0 for nothing, a count, or -EINTR. Needs
 * no lock. */
int pl_pool_wait(struct pl_pool *pool, int64_t timeout_ns, uint32_t *tags) PL_MUST_CHECK;

/* Spins until pl_pool_ready, if a core seems to be idle and it is likely to pay (pl_spin.c).
 * True when there is something. For one thread at a time; needs no lock. */
bool pl_pool_spin(struct pl_pool *pool);

/* The same thread, after a pl_pool_wait from `slept` on that brought results. */
void pl_pool_woke(struct pl_pool *pool, int64_t slept);

/* Takes a seat for a new worker: its number and the mark that pl_member_init wants.
 * -EAGAIN when all are taken. */
int pl_pool_seat(struct pl_pool *pool, uint32_t *seat, uint64_t *low_mark) PL_MUST_CHECK;

enum pl_burial {
    PL_BURIED = 0,   /* the seat is free, the worker's blocks are taken back */
    PL_LOST = 1,     /* *cell is a task that the worker had claimed */
    PL_FINISHED = 2, /* *cell is a task that it had finished: a result, as pl_pool_next's */
};

/* After the death of a seat's worker, and after pl_pool_next has said 0: called until it
 * says PL_BURIED. The caller releases each cell that it is given. */
enum pl_burial pl_pool_bury(struct pl_pool *pool, uint32_t seat, uint32_t *cell) PL_MUST_CHECK;

/* Tells all workers to end when they are idle. */
void pl_pool_close(struct pl_pool *pool);

/* Tells one worker to end when it is idle. */
void pl_pool_retire(struct pl_pool *pool, uint32_t seat);

/* ---- blocks, both sides --------------------------------------------------- */

/* The parent's: a block of its slice, to be sent with a task. -ENOMEM beyond the limit. */
int pl_pool_alloc(struct pl_pool *pool, uint64_t size, struct pl_block *block,
                  void **data) PL_MUST_CHECK;
void pl_pool_free(struct pl_pool *pool, const struct pl_block *block);

/* Notes that the staged task in `cell` carries a block; whoever claims the task holds it,
 * and it is taken back when that worker returns it or dies. */
void pl_pool_lend(struct pl_pool *pool, const struct pl_block *block, uint32_t cell);

/* A ticket for `size` bytes at `offset` of the mapping, which lie in one block of the parent's
 * that it keeps itself: sent with a task like a block, and taken back like one, while the
 * memory stays where it is. The block is free when its owner has freed it and no ticket is
 * left. So one block goes to any number of tasks, and a worker's death costs it nothing.
 * -EINVAL when the bytes are not in that block, -ENOMEM. */
int pl_pool_ticket(struct pl_pool *pool, const struct pl_block *of, uint64_t offset, uint64_t size,
                   struct pl_block *ticket) PL_MUST_CHECK;

/* Takes over a block that worker `seat` named in the result in `cell`: one of its own, or
 * one of the parent's that was lent with that task. *view (caller's memory) holds it until
 * pl_pool_view_drop. PL_EPROTO when the worker has no such block. */
int pl_pool_view(struct pl_pool *pool, uint32_t cell, uint32_t seat, const struct pl_block *block,
                 struct pl_view *view, void **data) PL_MUST_CHECK;
void pl_pool_view_drop(struct pl_pool *pool, struct pl_view *view);

/* ---- a worker ------------------------------------------------------------- */

struct pl_member {
    const struct pl_sys *sys;
    int eventfd; /* borrows */
    uint32_t seat;
    unsigned char *base; /* borrows: the mapping */
    uint64_t total;
    struct pl_share *share;
    struct pl_layout layout; /* the one that is computed with */
    struct pl_seat *mine;
    struct pl_slot *slots;
    _Atomic uint32_t *line;
    _Atomic uint32_t *done;
    struct pl_heap heap;
    uint32_t nslots;
    uint32_t line_size;
    uint64_t parks; /* a figure */
    struct pl_spin spin;
};

/* Maps the memory of a pool and checks its header: PL_EPROTO when it is not one. */
int pl_share_map(const struct pl_sys *sys, int memfd, void **base, uint64_t *total) PL_MUST_CHECK;

/* Sits down. base comes from pl_share_map, or from before the fork. */
int pl_member_init(struct pl_member *member, const struct pl_sys *sys, void *base, uint64_t total,
                   int eventfd, uint32_t seat, uint64_t low_mark) PL_MUST_CHECK;
void pl_member_fini(struct pl_member *member);

/* Claims the next task: 1 with *cell set, 0 when there is none, PL_ECLOSED when the pool (or
 * this seat) ends and nothing is left, PL_EPROTO. */
int pl_member_take(struct pl_member *member, uint32_t *cell) PL_MUST_CHECK;

/* The name of this posting of a claimed task: never 0, and of no other posting. */
uint64_t pl_member_ticket(const struct pl_member *member, uint32_t cell);

/* Whether the parent asks for the end of that task. Async-signal-safe. */
bool pl_member_asked(const struct pl_member *member, uint64_t ticket);

/* Takes no more tasks: it will end, in its own time. pl_member_take does so by itself when it
 * returns PL_ECLOSED. */
void pl_member_leave(struct pl_member *member);

/* Publishes the result that was written into the slot, and rings if the parent asked. A
 * negative code (-EBADF, when the task has closed what is not its own) says that the parent
 * could not be told: the process must end, which tells it as well. */
int pl_member_done(struct pl_member *member, uint32_t cell);

/* Returns when there may be a task or the pool ends: spins, then parks. Needs no lock.
 * -EINTR after a signal; else as pl_member_done. */
int pl_member_wait(struct pl_member *member) PL_MUST_CHECK;

/* Has the parent look at what is finished, though it has not asked. As pl_member_done. */
int pl_member_knock(struct pl_member *member);

/* Memory of this worker's slice for a result. -ENOMEM beyond the limit. */
int pl_member_alloc(struct pl_member *member, uint64_t size, struct pl_block *block,
                    void **data) PL_MUST_CHECK;
void pl_member_free(struct pl_member *member, const struct pl_block *block);

/* A result takes the block along: it is the parent's until it hands it back. */
void pl_member_lend(struct pl_member *member, const struct pl_block *block);

/* Where a block lies that a task named; checked against the bounds. PL_EPROTO. */
int pl_member_data(struct pl_member *member, const struct pl_block *block,
                   void **data) PL_MUST_CHECK;

/* Gives a block of the parent's back. Any thread. */
void pl_member_return(struct pl_member *member, const struct pl_block *block);

/* ---- worker processes without an interpreter ------------------------------ */

struct pl_workers;

/* What a worker runs after the fork, single-threaded; its return value is the exit code. */
typedef int (*pl_worker_main)(struct pl_member *member, void *arg);

/* Starts n workers by fork (the caller is single-threaded or the workers use only
 * async-signal-safe calls before they exit) and keeps n alive: a dead one is replaced, with
 * back-off when it lived for less than a second. `lost` hears of a task whose worker died
 * (may be NULL); its slot is released after the call. -ENOMEM, -EAGAIN, -ENOSYS. */
int pl_workers_start(struct pl_pool *pool, uint32_t n, pl_worker_main main, void *arg,
                     void (*lost)(struct pl_pool *pool, uint32_t cell, int status, void *arg),
                     struct pl_workers **out) PL_MUST_CHECK;

/* Handles deaths; call it when pl_pool_wait reported another tag than results, or when
 * waitfd was readable. `done` is called for results that are found on the way, exactly as
 * the caller would do after pl_pool_next (it releases the slot). Number of deaths, or a
 * negative code when no replacement could be started (it is tried again at the next call). */
int pl_workers_tend(struct pl_workers *workers,
                    void (*done)(struct pl_pool *pool, uint32_t cell, void *arg)) PL_MUST_CHECK;

/* Closes the pool, waits up to grace_ns, kills what is left, reaps, frees. */
void pl_workers_stop(struct pl_workers *workers, int64_t grace_ns);

/* Pids of the living, at most max of them. */
uint32_t pl_workers_pids(const struct pl_workers *workers, pid_t *pids, uint32_t max);

#endif /* PL_POOL_H */
