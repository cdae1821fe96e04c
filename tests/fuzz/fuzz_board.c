/* fuzz_board.c - the parent against workers that write whatever they like.
 *
 * The input is a program of one-byte operations. Some are what an honest parent and two honest
 * workers do; others write the input's bytes anywhere in what the workers can write. Whatever
 * comes of it, the parent stays within the memory (ASan, and the checks of places here), its
 * books stay sound, and a worker that broke the rules can be buried.
 *
 * Built by `make fuzz` with clang's libFuzzer. A pool is made once and reset by burying both
 * seats, so that runs are fast and state left over by one input is met by the next: a finding
 * may need the corpus run in order to be seen again, which -runs=1 on a file does for most.
 */
#include "pl_pool_internal.h"
#include "pl_wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 8
#define VIEWS 8

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

struct input {
    const uint8_t *at;
    size_t left;
};

struct game {
    struct pl_pool pool;
    struct pl_member members[2];
    struct pl_view views[VIEWS];
    struct pl_sys sys;
};

static uint64_t take(struct input *in, size_t n)
{
    uint64_t value = 0;
    if (n > in->left)
        n = in->left;
    memcpy(&value, in->at, n);
    in->at += n;
    in->left -= n;
    return value;
}

static int no_wake(uint32_t *word, int count)
{
    (void)word;
    (void)count;
    return 0;
}

static int no_wait(uint32_t *word, uint32_t value, int64_t timeout)
{
    (void)word;
    (void)value;
    (void)timeout;
    return 0;
}

static void sit(struct game *g, int who)
{
    uint32_t seat;
    uint64_t low_mark;
    if (pl_pool_seat(&g->pool, &seat, &low_mark) < 0)
        abort();
    REQUIRE(low_mark <= g->pool.layout.slice_size);
    if (pl_member_init(&g->members[who], &g->sys, g->pool.base, g->pool.layout.total,
                       g->pool.eventfd, seat, low_mark) < 0)
        abort();
}

static void within(const struct game *g, const void *data, uint64_t size)
{
    uint64_t at = (uint64_t)((const unsigned char *)data - g->pool.base);
    REQUIRE(at <= g->pool.layout.total && size <= g->pool.layout.total - at);
    REQUIRE(at >= g->pool.layout.slices_at);
}

static void within_slot_or_slices(const struct game *g, const void *data, uint64_t size)
{
    uint64_t at = (uint64_t)((const unsigned char *)data - g->pool.base);
    uint64_t slots = g->pool.layout.slots_at;
    if (at < slots || at >= slots + (uint64_t)g->pool.layout.nslots * PL_SLOT_SIZE)
        within(g, data, size);
    else
        REQUIRE((at - slots) % PL_SLOT_SIZE + size <= offsetof(struct pl_slot, pad));
}

/* The parent's books: blocks cover the slice without gaps, free ones are merged and in lists. */
static void books(const struct game *g)
{
    const struct pl_heap *heap = &g->pool.heap;
    uint64_t at = heap->top;
    uint64_t in_use = 0;
    uint32_t is_free = 0;
    uint32_t entries = 0;
    for (uint32_t number = heap->last; number != 0; number = heap->blocks[number - 1].before) {
        const struct pl_heap_block *block = &heap->blocks[number - 1];
        REQUIRE(++entries <= heap->nblocks && block->state != PL__BLOCK_NONE);
        REQUIRE(block->offset + block->size == at);
        at = block->offset;
        bool after_is_free =
            block->after != 0 && heap->blocks[block->after - 1].state == PL__BLOCK_FREE;
        if (block->state != PL__BLOCK_FREE) {
            in_use += block->size;
        } else {
            REQUIRE(!after_is_free);
            is_free++;
        }
    }
    REQUIRE(at == 0);
    REQUIRE(in_use == heap->used);
    for (uint32_t number = heap->unused; number != 0; number = heap->blocks[number - 1].next)
        entries++;
    REQUIRE(entries == heap->nblocks);
    for (uint32_t cls = 0; cls < PL_HEAP_CLASSES; cls++)
        for (uint32_t number = heap->free_list[cls]; number != 0;
             number = heap->blocks[number - 1].next) {
            REQUIRE(heap->blocks[number - 1].state == PL__BLOCK_FREE);
            is_free--;
        }
    REQUIRE(is_free == 0);
}

static struct pl_view *free_view(struct game *g)
{
    for (int i = 0; i < VIEWS; i++)
        if (g->views[i].block.offset == 0)
            return &g->views[i];
    return NULL;
}

/* As the binding does: the message, then what it names. */
static void read_result(struct game *g, uint32_t cell, uint32_t seat)
{
    struct pl_slot slot;
    memcpy(&slot, &g->pool.slots[cell], sizeof(slot));
    struct pl_view *view = NULL;
    const void *data = g->pool.slots[cell].bytes;
    uint64_t size = slot.len;
    if (slot.block.offset != 0) {
        void *at;
        view = free_view(g);
        if (view == NULL || pl_pool_view(&g->pool, cell, seat, &slot.block, view, &at) < 0)
            return;
        within(g, at, slot.block.size);
        data = at;
        size = slot.block.size;
    } else if (size > PL_SLOT_INLINE) {
        return;
    }
    struct pl_wire wire;
    if (pl_wire_open(&wire, data, size) < 0)
        return;
    struct pl_wire_buf entry;
    const void *inlined;
    for (int n = 0; n < 4 && pl_wire_next(&wire, &entry, &inlined) == 1; n++) {
        if (inlined != NULL) {
            within_slot_or_slices(g, inlined, entry.block.size);
            continue;
        }
        void *at;
        view = free_view(g);
        if (view != NULL && pl_pool_view(&g->pool, cell, seat, &entry.block, view, &at) == 0)
            within(g, at, entry.block.size);
    }
}

static void collect(struct game *g)
{
    uint32_t cell;
    uint32_t seat;
    int found;
    while ((found = pl_pool_next(&g->pool, &cell, &seat)) != 0) {
        if (found < 0)
            continue;
        REQUIRE(cell < SLOTS && seat < g->pool.nseats);
        read_result(g, cell, seat);
        pl_pool_release(&g->pool, cell);
    }
}

static void bury(struct game *g, int who)
{
    uint32_t cell;
    uint32_t seat = g->members[who].seat;
    collect(g);
    int steps = 0;
    enum pl_burial end;
    while ((end = pl_pool_bury(&g->pool, seat, &cell)) != PL_BURIED) {
        REQUIRE(cell < SLOTS && ++steps <= SLOTS);
        if (end == PL_FINISHED)
            read_result(g, cell, seat);
        pl_pool_release(&g->pool, cell);
    }
    pl_member_fini(&g->members[who]);
    sit(g, who);
}

static void post(struct game *g, struct input *in)
{
    uint32_t cell;
    if (pl_pool_stage(&g->pool, NULL, &cell) < 0)
        return;
    struct pl_block block;
    void *data;
    uint64_t size = take(in, 3);
    if ((size & 1) != 0 && pl_pool_alloc(&g->pool, size, &block, &data) == 0) {
        within(g, data, size);
        pl_pool_lend(&g->pool, &block, cell);
        g->pool.slots[cell].block = block;
    }
    g->pool.slots[cell].len = 0;
    pl_pool_post(&g->pool, cell);
}

static void work(struct game *g, struct input *in, int who)
{
    struct pl_member *member = &g->members[who];
    uint32_t cell;
    if (pl_member_take(member, &cell) != 1)
        return;
    struct pl_slot *slot = &g->pool.slots[cell];
    struct pl_block block = {0};
    uint64_t how = take(in, 1);
    void *data;
    /* As the binding does: a copy, checked, for another worker may write into the slot. */
    struct pl_block message = slot->block;
    if ((how & 1) != 0 && message.offset != 0 && pl_member_data(member, &message, &data) == 0)
        pl_member_return(member, &message);
    if ((how & 2) != 0 && pl_member_alloc(member, how * 300, &block, &data) == 0) {
        pl_member_lend(member, &block);
        slot->block = block;
    } else if ((how & 4) == 0) {
        slot->block = (struct pl_block){0};
    }
    if ((how & 8) == 0)
        pl_member_done(member, cell);
}

/* Writes up to 8 bytes of the input somewhere in one of the regions that workers write. */
static void scribble(struct game *g, struct input *in)
{
    const struct pl_layout *layout = &g->pool.layout;
    uint64_t where = take(in, 1);
    uint64_t at = take(in, 2);
    uint64_t value = take(in, 8);
    uint64_t start;
    uint64_t size;
    switch (where % 6) {
    case 0:
        start = 0; /* the layout, too: nobody who is there already may look at it */
        size = sizeof(struct pl_share);
        break;
    case 1:
        start = layout->slots_at;
        size = (uint64_t)layout->nslots * PL_SLOT_SIZE;
        break;
    case 2:
        start = layout->line_at;
        size = (uint64_t)layout->line_size * sizeof(uint32_t);
        break;
    case 3:
        start = layout->seats_at;
        size = 2 * sizeof(struct pl_seat);
        break;
    case 4:
        start = layout->done_at;
        size = (uint64_t)layout->nslots * 2 * sizeof(uint32_t);
        break;
    default:
        start =
            layout->links_at +
            ((where & 64) != 0 ? (uint64_t)layout->nseats * layout->nblocks * sizeof(uint32_t) : 0);
        size = 256;
        break;
    }
    at %= size;
    if ((where & 128) != 0)
        at &= ~UINT64_C(7);
    uint64_t n = size - at < 8 ? size - at : 8;
    if ((where & 32) != 0 && n > 4)
        n = 4;
    memcpy(g->pool.base + start + at, &value, n);
}

/* Goes fast, so that spins are short and the deaf are found. */
static int64_t leap(void)
{
    static int64_t now;
    return now += PL_NSEC_PER_SEC / 50000;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* The one pool of the process; libFuzzer's entry has no argument of ours. */
    static struct game *g;
    if (g == NULL) {
        g = calloc(1, sizeof(*g));
        REQUIRE(g != NULL);
        g->sys = *pl_sys_default();
        g->sys.futex_wake = no_wake;
        g->sys.futex_wait = no_wait;
        g->sys.now = leap;
        struct pl_pool_config config = {
            .sys = &g->sys, .workers = 2, .slots = SLOTS, .limit = 1 << 20};
        if (pl_pool_init(&g->pool, &config) < 0)
            abort();
        sit(g, 0);
        sit(g, 1);
    }
    struct input in = {data, size};
    while (in.left > 0) {
        uint64_t op = take(&in, 1);
        int who = (op & 16) != 0;
        switch (op & 15) {
        case 0:
        case 1:
            post(g, &in);
            break;
        case 2:
        case 3:
            work(g, &in, who);
            break;
        case 4:
            collect(g);
            break;
        case 5:
            (void)pl_pool_withdraw(&g->pool, (uint32_t)(op >> 5) % SLOTS);
            break;
        case 6:
            pl_pool_view_drop(&g->pool, &g->views[(op >> 5) % VIEWS]);
            break;
        case 7:
            bury(g, who);
            break;
        case 8:
            pl_pool_flush(&g->pool);
            break;
        case 9: {
            struct pl_block block;
            void *at;
            if (pl_pool_alloc(&g->pool, take(&in, 3), &block, &at) == 0) {
                within(g, at, block.size);
                pl_pool_free(&g->pool, &block);
            }
            break;
        }
        case 10:
            pl_pool_check(&g->pool);
            break;
        case 11:
            (void)pl_pool_spin(&g->pool);
            pl_pool_woke(&g->pool, g->pool.spin.since);
            (void)pl_member_wait(&g->members[who]);
            break;
        default:
            scribble(g, &in);
        }
        books(g);
    }
    /* Back to where an input begins. What lies in the line stays: hostile, too. */
    bury(g, 0);
    bury(g, 1);
    for (int i = 0; i < VIEWS; i++)
        pl_pool_view_drop(&g->pool, &g->views[i]);
    for (uint32_t cell = 0; cell < SLOTS; cell++)
        if (g->pool.cells[cell].state == PL_CELL_POSTED)
            REQUIRE(pl_pool_withdraw(&g->pool, cell)); /* the burials have found all others */
    REQUIRE(memcmp(&g->pool.share->layout, &g->pool.layout, sizeof(g->pool.layout)) == 0);
    atomic_store_explicit(&g->pool.share->head, g->pool.tail, memory_order_relaxed);
    books(g);
    REQUIRE(g->pool.cells_used == 0);
    REQUIRE(g->pool.heap.used == 0);
    return 0;
}
