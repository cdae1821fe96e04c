/* pl_arena.c - the shared memory of a pool, and the allocation of blocks in it.
 *
 * The memfd is sparse and has its full size from the start, so nothing is ever remapped and
 * every address is good for the life of the pool; pages come with the first touch and go
 * when a free block is large and enough others are kept warm.
 *
 * A slice has one owner, the only one who allocates from it. Its books are private memory:
 * a hostile process can spoil the contents of blocks, and nothing else. Sizes are rounded
 * up to classes, four per doubling, so that what is freed fits what comes next; each class has
 * a list of free blocks. A larger free block is split, a freed one is merged with its free
 * neighbours, and only when none will do the slice is used further up. A slice is several
 * times as large as its limit, so that scattering does no harm (programs that free in the
 * worst of orders are another matter: Robson 1974); only touched pages cost memory, and beyond
 * WARM_MAX of them those of freed blocks are given back.
 *
 * The other side gives a block back by pushing its id onto a list (one list for each pair of
 * owner and holder) whose links lie in shared memory. The owner takes the whole list with
 * one exchange and checks every id against its books.
 */
#include "pl_pool_internal.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#define PAGE UINT64_C(4096)
#define MIB (UINT64_C(1) << 20)
#define MIN_SHIFT 10
#define WARM_MAX (512 * MIB)
/* Giving back fewer bytes than this is not worth a system call. */
#define PAGED_SIZE (16 * UINT64_C(1024))

/* ---- sections: layout, heap, the parent's blocks, the worker's blocks ---- */

/* ---- layout ---- */

static uint64_t align_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) & ~(to - 1);
}

static uint32_t round_pow2(uint32_t value)
{
    uint32_t result = 1;
    while (result < value)
        result <<= 1;
    return result;
}

static uint64_t physical_memory(void)
{
    struct sysinfo info;
    if (sysinfo(&info) < 0)
        return 1024 * MIB;
    return (uint64_t)info.totalram * info.mem_unit;
}

static uint32_t usable_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (uint32_t)n : 1;
}

static uint64_t lay_out(struct pl_layout *layout)
{
    uint64_t at = align_up(sizeof(struct pl_share), PAGE);
    layout->slots_at = at;
    at = align_up(at + (uint64_t)layout->nslots * PL_SLOT_SIZE, PAGE);
    layout->line_at = at;
    at = align_up(at + (uint64_t)layout->line_size * sizeof(uint32_t), PAGE);
    layout->seats_at = at;
    at = align_up(at + (uint64_t)layout->nseats * sizeof(struct pl_seat), PAGE);
    layout->done_at = at;
    at = align_up(at + (uint64_t)layout->nseats * layout->nslots * sizeof(uint32_t), PAGE);
    layout->links_at = at;
    at = align_up(at + (uint64_t)(layout->nseats + 1) * layout->nblocks * sizeof(uint32_t), PAGE);
    layout->slices_at = at;
    layout->total = at + (uint64_t)(layout->nseats + 1) * layout->slice_size;
    return layout->total;
}

/* Successors of dead workers sit on fresh seats while results of the dead are still in use.
 * When all are taken, slices are shared with them (low_mark). */
static uint32_t seats_for(uint32_t workers)
{
    return 2 * workers + 6;
}

uint32_t pl_pool_room(const struct pl_pool *pool)
{
    return (pool->nseats - 6) / 2;
}

static void size_slices(struct pl_layout *layout)
{
    layout->slice_size = align_up(layout->limit, PAGE) * 4;
    uint64_t most = (UINT64_C(1) << 45) / (layout->nseats + 1); /* a quarter of 47 bits */
    if (layout->slice_size > most)
        layout->slice_size = most & ~(PAGE - 1);
    if (layout->limit > layout->slice_size)
        layout->limit = layout->slice_size;
}

int pl__share_create(struct pl_pool *pool, const struct pl_pool_config *config)
{
    const struct pl_sys *sys = pool->sys;
    uint32_t slots = config->slots != 0 ? config->slots : 1024;
    struct pl_layout layout = {
        .magic = PL_SHARE_MAGIC,
        .version = PL_SHARE_VERSION,
        .nslots = round_pow2(slots),
        .nseats = seats_for(config->most > config->workers ? config->most : config->workers),
        .nblocks = 1u << 20,
        .cpus = usable_cpus(),
        .limit = config->limit != 0 ? config->limit : physical_memory() / 2,
        .spin_ns = 100000,
    };
    if (config->cpus != 0 && config->cpus < layout.cpus)
        layout.cpus = config->cpus;
    layout.line_size = 2 * layout.nslots;
    if (layout.limit < MIB)
        layout.limit = MIB;
    size_slices(&layout);

    int fd = sys->memfd_create("plait-pool");
    if (fd < 0)
        return fd;
    /* RLIMIT_AS, RLIMIT_FSIZE or a sandbox may refuse so much address space, although it
     * costs nothing: then less of it is tried, down to what a pool cannot work with. */
    void *base = NULL;
    int error;
    for (;;) {
        uint64_t total = lay_out(&layout);
        error = sys->ftruncate(fd, (int64_t)total);
        if (error >= 0)
            error = sys->mmap_shared(fd, (size_t)total, &base);
        if (error < 0 && layout.nseats > seats_for(config->workers)) {
            layout.nseats = seats_for(config->workers);
            size_slices(&layout);
            continue;
        }
        if (error >= 0 || layout.slice_size <= 4 * MIB)
            break;
        layout.slice_size = align_up(layout.slice_size / 4, PAGE);
        if (layout.limit > layout.slice_size / 2)
            layout.limit = layout.slice_size / 2;
        if (layout.nblocks > 4096)
            layout.nblocks /= 4;
    }
    if (error < 0) {
        (void)sys->close(fd); /* the error to tell is the first one */
        return error;
    }
    pool->memfd = fd;
    pool->base = base;
    pool->share = base;
    pool->share->layout = pool->layout = layout;
    return 0;
}

/* Every offset that a peer will compute with must stay inside of the mapping. */
bool pl__layout_is_sound(const struct pl_layout *layout)
{
    struct pl_layout again = *layout;
    if (layout->magic != PL_SHARE_MAGIC || layout->version != PL_SHARE_VERSION ||
        layout->nslots == 0 || layout->nslots > PL_SLOTS_MAX ||
        layout->line_size != 2 * layout->nslots || layout->nseats == 0 ||
        layout->nseats > PL_SEATS_MAX || layout->nblocks == 0 || layout->nblocks > 1u << 20 ||
        layout->slice_size > UINT64_C(1) << 45)
        return false;
    (void)lay_out(&again);
    return memcmp(layout, &again, sizeof(again)) == 0; /* it has no padding */
}

int pl_share_map(const struct pl_sys *sys, int memfd, void **base, uint64_t *total)
{
    if (sys == NULL)
        sys = pl_sys_default();
    void *head = NULL;
    int error = sys->mmap_shared(memfd, PAGE, &head);
    if (error < 0)
        return error;
    struct pl_layout layout = ((struct pl_share *)head)->layout;
    (void)sys->munmap(head, PAGE); /* can only fail for an address that is not ours */
    if (!pl__layout_is_sound(&layout))
        return PL_EPROTO;
    error = sys->mmap_shared(memfd, (size_t)layout.total, base);
    if (error < 0)
        return error;
    *total = layout.total;
    return 0;
}

/* ---- heap ---- */

static uint64_t class_size(uint32_t cls)
{
    return (UINT64_C(4) + (cls & 3)) << (MIN_SHIFT - 2 + cls / 4);
}

/* The smallest class that holds `size`. */
static uint32_t class_of(uint64_t size)
{
    if (size <= UINT64_C(1) << MIN_SHIFT)
        return 0;
    uint32_t top = 63 - (uint32_t)__builtin_clzll(size - 1); /* 2^top <= size-1 < 2^(top+1) */
    uint32_t quarter = (uint32_t)((size - 1) >> (top - 2)) & 3;
    return (top - MIN_SHIFT) * 4 + quarter + 1;
}

void pl__heap_init(struct pl_heap *heap, const struct pl_sys *sys, unsigned char *base,
                   uint64_t size, uint64_t top, uint64_t limit, uint32_t max)
{
    *heap = (struct pl_heap){
        .sys = sys,
        .base = base,
        .size = size,
        .top = align_up(top, PAGE),
        .limit = limit,
        .max = max,
    };
}

void pl__heap_fini(struct pl_heap *heap)
{
    if (heap->sys != NULL)
        heap->sys->free(heap->blocks);
    heap->blocks = NULL;
    heap->nblocks = heap->cap = 0;
}

/* The class whose list a free block is in: the largest that is not larger than the block. */
static uint32_t class_under(uint64_t size)
{
    uint32_t cls = class_of(size);
    if (cls >= PL_HEAP_CLASSES)
        return PL_HEAP_CLASSES - 1;
    return cls > 0 && class_size(cls) > size ? cls - 1 : cls;
}

/* An entry of the books for a new block: its number, or 0. */
static uint32_t heap_entry(struct pl_heap *heap)
{
    uint32_t number = heap->unused;
    if (number != 0) {
        heap->unused = heap->blocks[number - 1].next;
        return number;
    }
    if (heap->nblocks == heap->cap) {
        if (heap->cap >= heap->max)
            return 0;
        uint32_t cap = heap->cap == 0 ? 64 : heap->cap * 2;
        if (cap > heap->max)
            cap = heap->max;
        void *blocks = heap->sys->realloc(heap->blocks, cap * sizeof(*heap->blocks));
        if (blocks == NULL)
            return 0;
        heap->blocks = blocks;
        heap->cap = cap;
    }
    return ++heap->nblocks;
}

static void heap_list(struct pl_heap *heap, uint32_t number)
{
    struct pl_heap_block *block = &heap->blocks[number - 1];
    uint32_t *first = &heap->free_list[class_under(block->size)];
    block->state = PL__BLOCK_FREE;
    block->holder = PL_NO_SEAT;
    block->prev = 0;
    block->next = *first;
    if (*first != 0)
        heap->blocks[*first - 1].prev = number;
    *first = number;
    heap->cached += block->warm;
}

static void heap_unlist(struct pl_heap *heap, uint32_t number)
{
    struct pl_heap_block *block = &heap->blocks[number - 1];
    if (block->prev != 0)
        heap->blocks[block->prev - 1].next = block->next;
    else
        heap->free_list[class_under(block->size)] = block->next;
    if (block->next != 0)
        heap->blocks[block->next - 1].prev = block->prev;
    block->next = block->prev = 0;
    heap->cached -= block->warm;
}

/* Shortens a block that is in no list to `size`; what is left becomes a free block. Without an
 * entry for that one the block stays as it is. */
static void heap_split(struct pl_heap *heap, uint32_t number, uint64_t size)
{
    if (heap->blocks[number - 1].size - size < UINT64_C(1) << MIN_SHIFT)
        return;
    uint32_t rest = heap_entry(heap);
    if (rest == 0)
        return;
    struct pl_heap_block *block = &heap->blocks[number - 1]; /* entries may have moved */
    uint64_t left = block->size - size;
    heap->blocks[rest - 1] = (struct pl_heap_block){
        .offset = block->offset + size,
        .size = left,
        .warm = block->warm < left ? block->warm : left,
        .before = number,
        .after = block->after,
    };
    if (block->after != 0)
        heap->blocks[block->after - 1].before = rest;
    else
        heap->last = rest;
    block->after = rest;
    block->size = size;
    heap_list(heap, rest);
}

/* Appends the neighbour behind a block, both in no list, to the block. */
static void heap_merge(struct pl_heap *heap, uint32_t number)
{
    struct pl_heap_block *block = &heap->blocks[number - 1];
    uint32_t gone = block->after;
    struct pl_heap_block *next = &heap->blocks[gone - 1];
    block->size += next->size;
    block->warm += next->warm;
    block->after = next->after;
    if (next->after != 0)
        heap->blocks[next->after - 1].before = number;
    else
        heap->last = number;
    *next = (struct pl_heap_block){.next = heap->unused, .state = PL__BLOCK_NONE};
    heap->unused = gone;
}

static bool heap_is_free(const struct pl_heap *heap, uint32_t number)
{
    return number != 0 && heap->blocks[number - 1].state == PL__BLOCK_FREE;
}

/* A fresh block at the top of the slice: its number, or 0. */
static uint32_t heap_extend(struct pl_heap *heap, uint64_t size)
{
    if (size > heap->size - heap->top)
        return 0;
    uint32_t number = heap_entry(heap);
    if (number == 0)
        return 0;
    heap->blocks[number - 1] =
        (struct pl_heap_block){.offset = heap->top, .size = size, .before = heap->last};
    if (heap->last != 0)
        heap->blocks[heap->last - 1].after = number;
    heap->last = number;
    heap->top += size;
    return number;
}

/* A free block that is large enough although its class is not: for a slice that has nothing
 * else left. Its number, or 0. */
static uint32_t heap_search(const struct pl_heap *heap, uint32_t cls, uint64_t size)
{
    uint32_t number = cls == 0 ? 0 : heap->free_list[cls - 1];
    while (number != 0 && heap->blocks[number - 1].size < size)
        number = heap->blocks[number - 1].next;
    return number;
}

int pl__heap_alloc(struct pl_heap *heap, uint64_t size, uint32_t *id, uint64_t *offset)
{
    if (size > heap->limit)
        return -ENOMEM;
    uint32_t cls = class_of(size);
    /* The rounding up alone never makes a block that fits exceed the limit. */
    if (cls >= PL_HEAP_CLASSES || heap->used + size > heap->limit)
        return -ENOMEM;
    uint64_t full = class_size(cls);
    uint32_t number = 0;
    for (uint32_t at = cls; at < PL_HEAP_CLASSES && number == 0; at++)
        number = heap->free_list[at];
    if (number != 0) {
        heap_unlist(heap, number);
        heap_split(heap, number, full);
    } else if ((number = heap_extend(heap, full)) == 0) {
        number = heap_search(heap, cls, size);
        if (number == 0)
            return -ENOMEM;
        heap_unlist(heap, number);
    }
    struct pl_heap_block *block = &heap->blocks[number - 1];
    block->state = PL__BLOCK_OWN;
    block->warm = 0;
    heap->used += block->size;
    *id = number - 1;
    *offset = block->offset;
    return 0;
}

/* Gives the pages that lie wholly in a block back to the system. Failure costs memory only. */
static void heap_chill(struct pl_heap *heap, struct pl_heap_block *block)
{
    uint64_t from = align_up(block->offset, PAGE);
    uint64_t to = (block->offset + block->size) & ~(PAGE - 1);
    if (from < to && heap->sys->madvise(heap->base + from, to - from, MADV_REMOVE) < 0)
        return;
    block->warm = 0;
}

void pl__heap_free(struct pl_heap *heap, uint32_t id)
{
    uint32_t number = id + 1;
    struct pl_heap_block *block = &heap->blocks[id];
    if (block->target != 0) {
        uint32_t target = block->target;
        *block = (struct pl_heap_block){.next = heap->unused, .state = PL__BLOCK_NONE};
        heap->unused = number;
        pl__heap_free(heap, target - 1); /* no ticket for a ticket: once */
        return;
    }
    if (block->refs > 0) {
        block->refs--;
        return;
    }
    heap->used -= block->size;
    block->warm = block->size;
    uint64_t warm_max = heap->limit / 4 < WARM_MAX ? heap->limit / 4 : WARM_MAX;
    if (heap_is_free(heap, block->after)) {
        heap_unlist(heap, block->after);
        heap_merge(heap, number);
    }
    if (heap_is_free(heap, block->before)) {
        number = block->before;
        heap_unlist(heap, number);
        heap_merge(heap, number);
        block = &heap->blocks[number - 1];
    }
    if (block->warm >= PAGED_SIZE && heap->cached + block->warm > warm_max)
        heap_chill(heap, block);
    heap_list(heap, number);
}

/* ---- lists of returned blocks ---- */

/* Pushes an id. Release pairs with the acquire of the exchange in the owner's take. */
static void push(_Atomic uint32_t *head, _Atomic uint32_t *links, uint32_t id)
{
    uint32_t seen = atomic_load_explicit(head, memory_order_relaxed);
    do {
        atomic_store_explicit(&links[id], seen, memory_order_relaxed);
    } while (!atomic_compare_exchange_weak_explicit(head, &seen, id + 1, memory_order_release,
                                                    memory_order_relaxed));
}

/* Takes the whole list; relaxed look first, since it is empty nearly always. */
static uint32_t take_all(_Atomic uint32_t *head)
{
    if (atomic_load_explicit(head, memory_order_relaxed) == 0)
        return 0;
    return atomic_exchange_explicit(head, 0, memory_order_acquire);
}

/* ---- the parent's blocks ---- */

int pl_pool_alloc(struct pl_pool *pool, uint64_t size, struct pl_block *block, void **data)
{
    uint32_t id;
    uint32_t seat;
    uint64_t offset;
    /* A worker that returned nonsense is found again, and reported, by pl_pool_next. */
    (void)pl__blocks_collect(pool, &seat);
    int error = pl__heap_alloc(&pool->heap, size, &id, &offset);
    if (error < 0)
        return error;
    pool->heap.blocks[id].holder = PL_NO_SEAT;
    *block = (struct pl_block){
        .offset = (uint64_t)(pool->heap.base - pool->base) + offset,
        .size = size,
        .id = id,
        .owner = PL_NO_SEAT,
    };
    *data = pool->heap.base + offset;
    return 0;
}

void pl_pool_free(struct pl_pool *pool, const struct pl_block *block)
{
    pl__heap_free(&pool->heap, block->id);
}

int pl_pool_ticket(struct pl_pool *pool, const struct pl_block *of, uint64_t offset, uint64_t size,
                   struct pl_block *ticket)
{
    struct pl_heap *heap = &pool->heap;
    uint64_t slice = (uint64_t)(heap->base - pool->base);
    if (of->owner != PL_NO_SEAT || of->id >= heap->nblocks || offset < of->offset ||
        size > of->size || offset - of->offset > of->size - size ||
        heap->blocks[of->id].state != PL__BLOCK_OWN || heap->blocks[of->id].target != 0)
        return -EINVAL;
    if (heap->blocks[of->id].refs == UINT32_MAX)
        return -ENOMEM;
    uint32_t number = heap_entry(heap);
    if (number == 0)
        return -ENOMEM;
    heap->blocks[of->id].refs++;
    heap->blocks[number - 1] = (struct pl_heap_block){
        .offset = offset - slice,
        .size = size,
        .holder = PL_NO_SEAT,
        .target = of->id + 1,
        .state = PL__BLOCK_OWN,
    };
    *ticket =
        (struct pl_block){.offset = offset, .size = size, .id = number - 1, .owner = PL_NO_SEAT};
    return 0;
}

void pl_pool_lend(struct pl_pool *pool, const struct pl_block *block, uint32_t cell)
{
    struct pl_heap_block *entry = &pool->heap.blocks[block->id];
    entry->state = PL__BLOCK_LENT;
    entry->holder = cell;
    entry->next = pool->cells[cell].blocks;
    pool->cells[cell].blocks = block->id + 1;
}

void pl__blocks_settle(struct pl_pool *pool, uint32_t cell, uint32_t seat)
{
    uint32_t link = pool->cells[cell].blocks;
    pool->cells[cell].blocks = 0;
    while (link != 0) {
        struct pl_heap_block *entry = &pool->heap.blocks[link - 1];
        uint32_t next = entry->next;
        if (entry->state == PL__BLOCK_EARLY) {
            pl__heap_free(&pool->heap, link - 1);
        } else {
            entry->state = PL__BLOCK_HELD;
            entry->holder = seat;
            entry->next = 0;
        }
        link = next;
    }
}

void pl__blocks_recall(struct pl_pool *pool, uint32_t cell)
{
    uint32_t link = pool->cells[cell].blocks;
    pool->cells[cell].blocks = 0;
    while (link != 0) {
        uint32_t next = pool->heap.blocks[link - 1].next;
        pl__heap_free(&pool->heap, link - 1);
        link = next;
    }
}

/* Frees the blocks that one worker has returned. A worker returns a block when the last
 * thing that uses it dies, which may be before its task is finished. */
static int collect_from(struct pl_pool *pool, uint32_t seat)
{
    struct pl_seat *place = pl__seat(pool->base, &pool->layout, seat);
    _Atomic uint32_t *links = pl__links(pool->base, &pool->layout, pool->nseats);
    uint32_t link = take_all(&place->returned);
    /* Each step frees or marks a block, so a circle of links ends at one that is neither
     * lent nor held any more. */
    while (link != 0) {
        if (link > pool->heap.nblocks)
            return PL_EPROTO;
        struct pl_heap_block *entry = &pool->heap.blocks[link - 1];
        uint32_t id = link - 1;
        link = atomic_load_explicit(&links[id], memory_order_relaxed); /* ordered by take_all */
        if (entry->state == PL__BLOCK_HELD && entry->holder == seat) {
            pl__heap_free(&pool->heap, id);
        } else if (entry->state == PL__BLOCK_LENT) {
            uint64_t state =
                atomic_load_explicit(&pool->slots[entry->holder].state, memory_order_relaxed);
            if (((state >> 8) & 0xffff) != seat || (state & 0xff) < PL__CLAIMED)
                return PL_EPROTO;
            entry->state = PL__BLOCK_EARLY;
        } else {
            return PL_EPROTO;
        }
    }
    return 0;
}

int pl__blocks_collect(struct pl_pool *pool, uint32_t *seat)
{
    for (uint32_t i = 0; i < pool->seats_high; i++) {
        if (!pool->seats[i].taken || pool->seats[i].suspect)
            continue;
        int error = collect_from(pool, i);
        if (error < 0) {
            pool->seats[i].suspect = true;
            *seat = i;
            return error;
        }
    }
    return 0;
}

void pl__blocks_reclaim(struct pl_pool *pool, uint32_t seat)
{
    /* What it returned before its death is held by it in the books, so that both ways lead
     * to the same end; a broken list does not matter. */
    (void)collect_from(pool, seat);
    for (uint32_t id = 0; id < pool->heap.nblocks; id++) {
        struct pl_heap_block *entry = &pool->heap.blocks[id];
        if (entry->state == PL__BLOCK_HELD && entry->holder == seat)
            pl__heap_free(&pool->heap, id);
    }
    struct pl_parent_seat *mine = &pool->seats[seat];
    uint64_t slice = pl__slice_at(&pool->layout, seat);
    uint64_t mark = 0;
    for (struct pl_view *view = mine->views; view != NULL; view = view->next) {
        view->orphan = true;
        uint64_t end = view->block.offset + view->block.size - slice;
        if (end > mark)
            mark = end;
    }
    mine->low_mark = align_up(mark, PAGE);
    /* The dead worker's free and unsent memory. Failure costs memory only. */
    (void)pool->sys->madvise(pool->base + slice + mine->low_mark,
                             pool->layout.slice_size - mine->low_mark, MADV_REMOVE);
}

int pl_pool_view(struct pl_pool *pool, uint32_t cell, uint32_t seat, const struct pl_block *block,
                 struct pl_view *view, void **data)
{
    const struct pl_layout *layout = &pool->layout;
    (void)cell;
    if (block->owner == PL_NO_SEAT) {
        if (block->id >= pool->heap.nblocks)
            return PL_EPROTO;
        struct pl_heap_block *entry = &pool->heap.blocks[block->id];
        uint64_t offset = (uint64_t)(pool->heap.base - pool->base) + entry->offset;
        if (entry->state != PL__BLOCK_HELD || entry->holder != seat || offset != block->offset ||
            block->size > entry->size)
            return PL_EPROTO;
        entry->state = PL__BLOCK_OWN;
        entry->holder = PL_NO_SEAT;
        *view = (struct pl_view){.block = *block, .seat = PL_NO_SEAT};
        *data = pool->base + offset;
        return 0;
    }
    uint64_t slice = pl__slice_at(layout, seat);
    if (block->owner != seat || block->id >= layout->nblocks || block->offset < slice ||
        block->size > layout->slice_size ||
        block->offset - slice > layout->slice_size - block->size)
        return PL_EPROTO;
    struct pl_parent_seat *mine = &pool->seats[seat];
    *view = (struct pl_view){
        .next = mine->views,
        .block = *block,
        .seat = seat,
        .orphan = !mine->taken,
    };
    if (mine->views != NULL)
        mine->views->prev = view;
    mine->views = view;
    *data = pool->base + block->offset;
    return 0;
}

void pl_pool_view_drop(struct pl_pool *pool, struct pl_view *view)
{
    if (view->block.offset == 0)
        return;
    if (view->seat == PL_NO_SEAT) {
        pl__heap_free(&pool->heap, view->block.id);
        view->block.offset = 0;
        return;
    }
    struct pl_parent_seat *mine = &pool->seats[view->seat];
    if (view->prev != NULL)
        view->prev->next = view->next;
    else
        mine->views = view->next;
    if (view->next != NULL)
        view->next->prev = view->prev;
    if (!view->orphan)
        push(&pl__seat(pool->base, &pool->layout, view->seat)->handed_back,
             pl__links(pool->base, &pool->layout, view->seat), view->block.id);
    view->block.offset = 0;
}

/* ---- the worker's blocks ---- */

/* Frees the worker's own blocks that the parent is done with. The parent is not hostile, but
 * memory can be overwritten: what does not fit the books is passed over. */
static void take_back(struct pl_member *member)
{
    _Atomic uint32_t *links = pl__links(member->base, &member->layout, member->seat);
    uint32_t link = take_all(&member->mine->handed_back);
    while (link != 0 && link <= member->heap.nblocks) {
        uint32_t id = link - 1;
        if (member->heap.blocks[id].state != PL__BLOCK_HELD)
            return;
        link = atomic_load_explicit(&links[id], memory_order_relaxed); /* ordered by take_all */
        pl__heap_free(&member->heap, id);
    }
}

int pl_member_alloc(struct pl_member *member, uint64_t size, struct pl_block *block, void **data)
{
    uint32_t id;
    uint64_t offset;
    take_back(member);
    int error = pl__heap_alloc(&member->heap, size, &id, &offset);
    if (error < 0)
        return error;
    *block = (struct pl_block){
        .offset = (uint64_t)(member->heap.base - member->base) + offset,
        .size = size,
        .id = id,
        .owner = member->seat,
    };
    *data = member->heap.base + offset;
    return 0;
}

void pl_member_free(struct pl_member *member, const struct pl_block *block)
{
    pl__heap_free(&member->heap, block->id);
}

void pl_member_lend(struct pl_member *member, const struct pl_block *block)
{
    member->heap.blocks[block->id].state = PL__BLOCK_HELD;
}

int pl_member_data(struct pl_member *member, const struct pl_block *block, void **data)
{
    uint64_t slice = pl__slice_at(&member->layout, member->layout.nseats);
    if (block->owner != PL_NO_SEAT || block->id >= member->layout.nblocks ||
        block->offset < slice || block->size > member->layout.slice_size ||
        block->offset - slice > member->layout.slice_size - block->size)
        return PL_EPROTO;
    *data = member->base + block->offset;
    return 0;
}

void pl_member_return(struct pl_member *member, const struct pl_block *block)
{
    push(&member->mine->returned, pl__links(member->base, &member->layout, member->layout.nseats),
         block->id);
}
