/* test_arena.c - the shared memory of a pool: blocks, their return, reclaim after a death. */
#include "pl_test.h"

#include "pl_pool_internal.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#define LIMIT (UINT64_C(8) << 20)

static void open_pool(struct pl_pool *pool)
{
    struct pl_pool_config config = {.workers = 2, .slots = 16, .limit = LIMIT};
    CHECK_OK(pl_pool_init(pool, &config));
}

/* A worker's side in the same process: the memory does not care. */
static void sit(struct pl_pool *pool, struct pl_member *member)
{
    uint32_t seat;
    uint64_t low_mark;
    CHECK_OK(pl_pool_seat(pool, &seat, &low_mark));
    CHECK_OK(pl_member_init(member, NULL, pool->base, pool->layout.total, pool->eventfd, seat,
                            low_mark));
}

static void post_with(struct pl_pool *pool, const struct pl_block *block)
{
    uint32_t cell;
    CHECK_OK(pl_pool_stage(pool, NULL, &cell));
    pl_pool_lend(pool, block, cell);
    pl_pool_post(pool, cell);
}

static uint32_t finish_one(struct pl_pool *pool, struct pl_member *member)
{
    uint32_t cell;
    uint32_t seat;
    CHECK_EQ(pl_member_take(member, &cell), 1);
    pl_member_done(member, cell);
    CHECK_EQ(pl_pool_next(pool, &cell, &seat), 1);
    CHECK_EQ(seat, member->seat);
    return cell;
}

static void sizes_are_served(void)
{
    struct pl_pool pool;
    open_pool(&pool);
    uint64_t random = 7;
    struct pl_block blocks[200];
    for (int round = 0; round < 50; round++) {
        uint32_t n = 0;
        while (n < PL_ARRAY_LEN(blocks)) {
            uint64_t size = 1 + pl_test_random(&random) % 60000;
            void *data;
            if (pl_pool_alloc(&pool, size, &blocks[n], &data) < 0)
                break;
            CHECK_EQ((uintptr_t)data % 64, 0);
            CHECK((unsigned char *)data >= pool.heap.base);
            CHECK((unsigned char *)data + size <= pool.heap.base + pool.heap.size);
            memset(data, (int)n, size);
            n++;
        }
        CHECK_CMP(n, >, 60);
        for (uint32_t i = 0; i < n; i++) {
            const unsigned char *data = pool.base + blocks[i].offset;
            CHECK_EQ(data[0], (unsigned char)i);
            CHECK_EQ(data[blocks[i].size - 1], (unsigned char)i);
        }
        for (uint32_t i = 0; i < n; i++)
            pl_pool_free(&pool, &blocks[i]);
        CHECK_EQ(pool.heap.used, 0);
    }
    pl_pool_fini(&pool);
}

static void the_limit_holds(void)
{
    struct pl_pool pool;
    struct pl_block block;
    struct pl_block whole;
    void *data;
    open_pool(&pool);
    CHECK_EQ(pl_pool_alloc(&pool, LIMIT + 1, &block, &data), -ENOMEM);
    CHECK_EQ(pl_pool_alloc(&pool, UINT64_MAX, &block, &data), -ENOMEM);
    CHECK_OK(pl_pool_alloc(&pool, LIMIT, &whole, &data));
    CHECK_EQ(pl_pool_alloc(&pool, 1, &block, &data), -ENOMEM);
    pl_pool_free(&pool, &whole);
    CHECK_OK(pl_pool_alloc(&pool, 1, &block, &data));
    pl_pool_fini(&pool);
}

/* Whatever sizes came before, what is free is one piece again. */
static void freed_blocks_merge(void)
{
    struct pl_pool pool;
    open_pool(&pool);
    uint64_t random = 11;
    static struct pl_block blocks[4096];
    for (int round = 0; round < 20; round++) {
        uint32_t n = 0;
        void *data;
        while (n < PL_ARRAY_LEN(blocks)) {
            uint64_t size = 1 + pl_test_random(&random) % (round % 2 == 0 ? 5000 : 500000);
            if (pl_pool_alloc(&pool, size, &blocks[n], &data) < 0)
                break;
            n++;
        }
        for (uint32_t i = n; i > 1; i--) { /* in any order */
            uint32_t k = (uint32_t)(pl_test_random(&random) % i);
            struct pl_block block = blocks[k];
            blocks[k] = blocks[i - 1];
            pl_pool_free(&pool, &block);
        }
        pl_pool_free(&pool, &blocks[0]);
        CHECK_EQ(pool.heap.used, 0);
        struct pl_block whole;
        CHECK_OK(pl_pool_alloc(&pool, LIMIT, &whole, &data));
        pl_pool_free(&pool, &whole);
        CHECK_CMP(pool.heap.cached, <=, LIMIT / 4 + LIMIT);
    }
    /* One free block from the bottom to the top. */
    CHECK_EQ(pool.heap.blocks[pool.heap.last - 1].offset, 0);
    CHECK_EQ(pool.heap.blocks[pool.heap.last - 1].size, pool.heap.top);
    CHECK_CMP(pool.heap.top, <=, 2 * LIMIT);
    pl_pool_fini(&pool);
}

/* Small and large ones, of very different lives, always near the limit: what fits it is had. */
static void scattering_fails_no_request_that_fits(void)
{
    struct pl_pool pool;
    open_pool(&pool);
    uint64_t random = 5;
    static struct pl_block blocks[2000];
    uint32_t n = 0;
    uint64_t refused = 0;
    uint64_t top = 0;
    for (int step = 0; step < 300000; step++) {
        /* Sizes over eleven doublings, the small ones most often; every class of sizes has its
         * turn, so that holes of one are met by requests of another. */
        uint64_t size = (UINT64_C(1) << (6 + (pl_test_random(&random) % 12))) +
                        pl_test_random(&random) % 1000 + (step / 50000) * 700;
        void *data;
        if (n < PL_ARRAY_LEN(blocks)) {
            /* Rounding up costs at most a quarter. */
            bool fits = pool.heap.used + size + size / 4 + 1024 <= LIMIT;
            int error = pl_pool_alloc(&pool, size, &blocks[n], &data);
            CHECK(error == 0 || !fits);
            refused += error < 0;
            n += error == 0;
            if (error == 0)
                continue;
        }
        /* Full: some go, the old as well as the new. */
        for (int i = 0; i < 3 && n > 0; i++) {
            uint32_t k = (uint32_t)(pl_test_random(&random) % n);
            pl_pool_free(&pool, &blocks[k]);
            blocks[k] = blocks[--n];
        }
        top = pool.heap.top > top ? pool.heap.top : top;
    }
    CHECK_CMP(refused, >, 1000);
    CHECK_CMP(top, <=, 3 * LIMIT);
    while (n > 0)
        pl_pool_free(&pool, &blocks[--n]);
    CHECK_EQ(pool.heap.used, 0);
    pl_pool_fini(&pool);
}

/* At the end of a slice a block serves that is large enough, whatever class it is listed in. */
static void the_last_piece_of_a_slice_serves(void)
{
    struct pl_pool pool;
    open_pool(&pool);
    struct pl_block block;
    void *data;
    CHECK_OK(pl_pool_alloc(&pool, LIMIT / 8 * 7, &block, &data));
    pl_pool_free(&pool, &block);
    pool.heap.size = pool.heap.top - 4096; /* of no class's size */
    pool.heap.blocks[0].size -= 4096;
    pool.heap.blocks[0].warm = 0;
    pool.heap.cached = 0;
    pool.heap.top -= 4096;
    uint64_t whole = pool.heap.top;
    memset(pool.heap.free_list, 0, sizeof(pool.heap.free_list));
    pool.heap.blocks[0].state = PL__BLOCK_OWN; /* freeing it lists it anew, by its size */
    pool.heap.used = whole;
    pl_pool_free(&pool, &block);
    CHECK_EQ(pl_pool_alloc(&pool, whole + 1, &block, &data), -ENOMEM);
    CHECK_OK(pl_pool_alloc(&pool, whole, &block, &data));
    pl_pool_free(&pool, &block);
    CHECK_EQ(pool.heap.used, 0);
    pl_pool_fini(&pool);
}

static void a_block_lives_as_long_as_its_tickets(void)
{
    struct pl_pool pool;
    struct pl_member member;
    struct pl_block shared;
    struct pl_block ticket;
    void *data;
    open_pool(&pool);
    sit(&pool, &member);
    CHECK_OK(pl_pool_alloc(&pool, 100000, &shared, &data));
    uint64_t used = pool.heap.used;
    CHECK_EQ(pl_pool_ticket(&pool, &shared, shared.offset - 1, 2, &ticket), -EINVAL);
    CHECK_EQ(pl_pool_ticket(&pool, &shared, shared.offset, shared.size + 1, &ticket), -EINVAL);
    CHECK_EQ(pl_pool_ticket(&pool, &shared, shared.offset + shared.size, 1, &ticket), -EINVAL);
    for (int i = 0; i < 4; i++) {
        uint32_t cell;
        uint32_t seat;
        CHECK_OK(pl_pool_ticket(&pool, &shared, shared.offset + 100, 1000, &ticket));
        CHECK_EQ(pl_pool_ticket(&pool, &ticket, ticket.offset, 1, &ticket), -EINVAL);
        post_with(&pool, &ticket);
        CHECK_EQ(pl_member_take(&member, &cell), 1);
        CHECK_OK(pl_member_data(&member, &ticket, &data));
        CHECK(data == pool.base + shared.offset + 100);
        if (i == 0)
            pl_member_return(&member, &ticket);
        pl_member_done(&member, cell);
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
        pl_pool_release(&pool, cell);
        CHECK_EQ(pool.heap.used, used);
    }
    pl_pool_free(&pool, &shared); /* its owner here */
    CHECK_EQ(pool.heap.used, used);
    uint32_t cell;
    CHECK_EQ(pl_pool_bury(&pool, member.seat, &cell), PL_BURIED); /* had three of them */
    CHECK_EQ(pool.heap.used, 0);
    pl_pool_fini(&pool);
}

static void tasks_blocks_come_back(void)
{
    struct pl_pool pool;
    struct pl_member member;
    open_pool(&pool);
    sit(&pool, &member);
    for (int round = 0; round < 1000; round++) {
        struct pl_block block;
        void *data;
        uint32_t cell;
        CHECK_OK(pl_pool_alloc(&pool, 100000, &block, &data));
        post_with(&pool, &block);
        if (round % 2 == 0) { /* returned before the task ends, or after */
            CHECK_EQ(pl_member_take(&member, &cell), 1);
            pl_member_return(&member, &block);
            pl_member_done(&member, cell);
            uint32_t seat;
            CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
        } else {
            cell = finish_one(&pool, &member);
            pl_member_return(&member, &block);
        }
        pl_pool_release(&pool, cell);
    }
    struct pl_block block;
    void *data;
    CHECK_OK(pl_pool_alloc(&pool, 100000, &block, &data)); /* collects */
    pl_pool_free(&pool, &block);
    CHECK_EQ(pool.heap.used, 0);
    CHECK_CMP(pool.heap.nblocks, <=, 3);
    pl_member_fini(&member);
    pl_pool_fini(&pool);
}

static void results_are_viewed_and_handed_back(void)
{
    struct pl_pool pool;
    struct pl_member member;
    open_pool(&pool);
    sit(&pool, &member);
    for (int round = 0; round < 500; round++) {
        struct pl_block result;
        struct pl_view view;
        void *data;
        uint32_t cell;
        CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
        pl_pool_post(&pool, cell);
        CHECK_OK(pl_member_alloc(&member, 200000, &result, &data));
        memset(data, round, 200000);
        pl_member_lend(&member, &result);
        cell = finish_one(&pool, &member);
        CHECK_OK(pl_pool_view(&pool, cell, member.seat, &result, &view, &data));
        CHECK_EQ(((unsigned char *)data)[199999], (unsigned char)round);
        pl_pool_release(&pool, cell);
        pl_pool_view_drop(&pool, &view);
    }
    CHECK_CMP(member.heap.nblocks, <=, 2);
    pl_member_fini(&member);
    pl_pool_fini(&pool);
}

static void lies_about_blocks_are_found(void)
{
    struct pl_pool pool;
    struct pl_member member;
    struct pl_block block;
    struct pl_view view;
    void *data;
    open_pool(&pool);
    sit(&pool, &member);
    CHECK_OK(pl_pool_alloc(&pool, 5000, &block, &data));
    uint32_t cell;
    CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
    pl_pool_post(&pool, cell);
    cell = finish_one(&pool, &member);
    uint64_t slice = pool.layout.slices_at + member.seat * pool.layout.slice_size;
    struct pl_block lies[] = {
        block, /* not lent to that worker */
        {.offset = block.offset, .size = 1, .id = 12345, .owner = PL_NO_SEAT},
        {.offset = 64, .size = 64, .owner = member.seat},
        {.offset = slice, .size = UINT64_MAX, .owner = member.seat},
        {.offset = slice + pool.layout.slice_size - 1, .size = 2, .owner = member.seat},
        {.offset = UINT64_MAX - 10, .size = 20, .owner = member.seat},
        {.offset = slice, .size = 64, .id = UINT32_MAX, .owner = member.seat},
        {.offset = slice, .size = 64, .owner = member.seat + 1},
    };
    for (size_t i = 0; i < PL_ARRAY_LEN(lies); i++)
        CHECK_EQ(pl_pool_view(&pool, cell, member.seat, &lies[i], &view, &data), PL_EPROTO);
    pl_pool_release(&pool, cell);

    /* A worker that returns what it does not have, or a list that bites its tail. */
    pl_member_return(&member, &block);
    struct pl_block other;
    CHECK_OK(pl_pool_alloc(&pool, 5000, &other, &data));
    CHECK(pool.seats[member.seat].suspect);
    CHECK(other.offset != block.offset);
    pl_member_fini(&member);
    pl_pool_fini(&pool);
}

static void the_dead_give_everything_back(void)
{
    struct pl_pool pool;
    struct pl_member member;
    struct pl_view view;
    struct pl_block held;
    struct pl_block running;
    struct pl_block result;
    void *data;
    uint32_t cell;
    open_pool(&pool);
    sit(&pool, &member);
    CHECK_OK(pl_pool_alloc(&pool, 50000, &held, &data));
    post_with(&pool, &held);
    CHECK_OK(pl_member_alloc(&member, 300000, &result, &data));
    pl_member_lend(&member, &result);
    memset(data, 5, 300000);
    cell = finish_one(&pool, &member);
    CHECK_OK(pl_pool_view(&pool, cell, member.seat, &result, &view, &data));
    pl_pool_release(&pool, cell);
    CHECK_OK(pl_pool_alloc(&pool, 60000, &running, &data));
    post_with(&pool, &running);
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    /* dies here */
    CHECK_EQ(pl_pool_bury(&pool, member.seat, &cell), PL_LOST);
    pl_pool_release(&pool, cell);
    CHECK_EQ(pl_pool_bury(&pool, member.seat, &cell), PL_BURIED);
    CHECK_EQ(pool.heap.used, 0);
    const unsigned char *mine = pool.base + view.block.offset;
    CHECK_EQ(mine[0], 5);
    CHECK_EQ(mine[299999], 5);
    pl_member_fini(&member);

    /* With all seats but that one taken, its slice is shared with the orphaned result. */
    for (uint32_t i = 0; i < pool.nseats; i++) {
        uint32_t seat;
        uint64_t low_mark;
        CHECK_OK(pl_pool_seat(&pool, &seat, &low_mark));
        if (seat == view.seat)
            CHECK_CMP(low_mark, >=, 300000);
        else
            CHECK_EQ(low_mark, 0);
    }
    uint32_t seat;
    uint64_t low_mark;
    CHECK_EQ(pl_pool_seat(&pool, &seat, &low_mark), -EAGAIN);
    pl_pool_view_drop(&pool, &view);
    pl_pool_fini(&pool);
}

static void a_strange_mapping_is_refused(void)
{
    struct pl_pool pool;
    void *base;
    uint64_t total;
    open_pool(&pool);
    CHECK_OK(pl_share_map(NULL, pool.memfd, &base, &total));
    CHECK_OK(pool.sys->munmap(base, total));
    pool.share->layout.slots_at += 4096;
    CHECK_EQ(pl_share_map(NULL, pool.memfd, &base, &total), PL_EPROTO);
    pool.share->layout.slots_at -= 4096;
    pool.share->layout.magic++;
    CHECK_EQ(pl_share_map(NULL, pool.memfd, &base, &total), PL_EPROTO);
    pl_pool_fini(&pool);
}

/* ---- injected failures ---- */

static int budget;

static void *poor_alloc(size_t size)
{
    return budget-- > 0 ? malloc(size) : NULL;
}

static int poor_eventfd(unsigned initial)
{
    return budget-- > 0 ? pl_sys_default()->eventfd(initial) : -EMFILE;
}

static int poor_epoll(void)
{
    return budget-- > 0 ? pl_sys_default()->epoll_create() : -EMFILE;
}

static int poor_memfd(const char *name)
{
    return budget-- > 0 ? pl_sys_default()->memfd_create(name) : -EMFILE;
}

static int small_mmap(int fd, size_t size, void **out)
{
    return size < (UINT64_C(1) << 28) ? pl_sys_default()->mmap_shared(fd, size, out) : -ENOMEM;
}

static void set_up_fails_cleanly(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.alloc = poor_alloc;
    sys.eventfd = poor_eventfd;
    sys.epoll_create = poor_epoll;
    sys.memfd_create = poor_memfd;
    struct pl_pool_config config = {.sys = &sys, .workers = 2, .limit = LIMIT};
    int first = dup(0);
    CHECK_SYS(first);
    close(first);
    int error = -1;
    int steps = 0;
    for (; error < 0; steps++) {
        struct pl_pool pool;
        budget = steps;
        error = pl_pool_init(&pool, &config);
        if (error < 0)
            CHECK(error == -ENOMEM || error == -EMFILE);
        else
            pl_pool_fini(&pool);
        int now = dup(0);
        CHECK_EQ(now, first); /* no descriptor is left */
        close(now);
    }
    CHECK_CMP(steps, >, 5);
}

static void little_address_space_is_enough(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.mmap_shared = small_mmap;
    struct pl_pool pool;
    struct pl_pool_config config = {.sys = &sys, .workers = 2};
    CHECK_OK(pl_pool_init(&pool, &config));
    struct pl_block block;
    void *data;
    CHECK_OK(pl_pool_alloc(&pool, 100000, &block, &data));
    CHECK_EQ(pl_pool_alloc(&pool, UINT64_C(1) << 30, &block, &data), -ENOMEM);
    pl_pool_fini(&pool);
}

static void bad_arguments(void)
{
    struct pl_pool pool;
    struct pl_pool_config config = {.workers = 0};
    CHECK_EQ(pl_pool_init(&pool, &config), -EINVAL);
    config.workers = 65;
    CHECK_EQ(pl_pool_init(&pool, &config), -EINVAL);
    config = (struct pl_pool_config){.workers = 1, .slots = PL_SLOTS_MAX + 1};
    CHECK_EQ(pl_pool_init(&pool, &config), -EINVAL);
    pl_pool_fini(&pool);
}

/* ---- threads as workers, with blocks on their way in both directions ---- */

struct crew {
    struct pl_member member;
    pthread_t thread;
};

static uint64_t sum_of(const unsigned char *data, uint64_t size)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < size; i++)
        sum += data[i];
    return sum;
}

/* Takes a task's block, gives it back, and sends one of its own that says what was in it. */
static void *answer(void *arg)
{
    struct crew *crew = arg;
    struct pl_member *member = &crew->member;
    for (;;) {
        uint32_t cell;
        int found = pl_member_take(member, &cell);
        if (found == PL_ECLOSED)
            return NULL;
        CHECK_OK(found);
        if (found == 0) {
            int error = pl_member_wait(member);
            CHECK(error == 0 || error == -EINTR);
            continue;
        }
        struct pl_block given = member->slots[cell].block;
        struct pl_block block;
        void *data;
        CHECK_OK(pl_member_data(member, &given, &data));
        uint64_t sum = sum_of(data, given.size);
        pl_member_return(member, &given);
        while (pl_member_alloc(member, given.size + 8, &block, &data) < 0)
            sched_yield(); /* the parent is about to drop views */
        memcpy(data, &sum, sizeof(sum));
        pl_member_lend(member, &block);
        member->slots[cell].block = block;
        CHECK_OK(pl_member_done(member, cell));
    }
}

static void blocks_cross_threads(void)
{
    enum { CREW = 3, TOTAL = 6000, VIEWS = 64 };
    struct pl_pool pool;
    struct crew crew[CREW];
    static struct pl_view views[VIEWS]; /* results are kept for a while, and dropped at random */
    uint64_t random = 17;
    uint64_t sums[64] = {0};
    int posted = 0;
    int ended = 0;
    struct pl_pool_config config = {.workers = CREW, .slots = 64, .limit = LIMIT};
    CHECK_OK(pl_pool_init(&pool, &config));
    for (int i = 0; i < CREW; i++) {
        sit(&pool, &crew[i].member);
        CHECK_EQ(pthread_create(&crew[i].thread, NULL, answer, &crew[i]), 0);
    }
    while (ended < TOTAL) {
        uint32_t cell;
        uint32_t seat;
        uint32_t tags;
        while (posted < TOTAL && posted - ended < 32) {
            struct pl_block block;
            void *data;
            uint64_t size = 1 + pl_test_random(&random) % 60000;
            if (pl_pool_alloc(&pool, size, &block, &data) < 0)
                break;
            CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
            memset(data, posted & 0xff, size);
            sums[cell] = size * (uint64_t)(posted & 0xff);
            pl_pool_lend(&pool, &block, cell);
            pool.slots[cell].block = block;
            pl_pool_post(&pool, cell);
            posted++;
        }
        int found = pl_pool_next(&pool, &cell, &seat);
        CHECK_OK(found);
        if (found == 1) {
            struct pl_block block = pool.slots[cell].block;
            struct pl_view *view = &views[pl_test_random(&random) % VIEWS];
            uint64_t sum;
            void *data;
            pl_pool_view_drop(&pool, view);
            CHECK_OK(pl_pool_view(&pool, cell, seat, &block, view, &data));
            memcpy(&sum, data, sizeof(sum));
            CHECK_EQ(sum, sums[cell]);
            pl_pool_release(&pool, cell);
            ended++;
            continue;
        }
        pl_pool_flush(&pool);
        pl_pool_arm(&pool, PL_ARM_ANY);
        if (!pl_pool_ready(&pool))
            CHECK_CMP(pl_pool_wait(&pool, 20 * PL_NSEC_PER_SEC, &tags), !=, 0);
    }
    pl_pool_close(&pool);
    for (int i = 0; i < CREW; i++)
        CHECK_EQ(pthread_join(crew[i].thread, NULL), 0);
    for (int i = 0; i < VIEWS; i++)
        pl_pool_view_drop(&pool, &views[i]);
    uint32_t unused;
    CHECK_OK(pl__blocks_collect(&pool, &unused));
    CHECK_EQ(pool.heap.used, 0); /* every block came back */
    for (int i = 0; i < CREW; i++)
        pl_member_fini(&crew[i].member);
    pl_pool_fini(&pool);
}

/* Around the size from which on a copy goes past the caches, and at places of all alignments. */
static void a_copy_is_exact(void)
{
    enum { LARGE = 8 << 20 };
    static const size_t sizes[] = {0, 1, 4097, LARGE - 1, LARGE, LARGE + 1, LARGE + 200};
    unsigned char *from = malloc(LARGE + 512);
    unsigned char *to = malloc(LARGE + 512);
    CHECK(from != NULL && to != NULL);
    for (size_t i = 0; i < LARGE + 512; i++)
        from[i] = (unsigned char)(i * 31 + (i >> 8) * 7);
    for (size_t i = 0; i < PL_ARRAY_LEN(sizes); i++) {
        size_t at = 1 + 13 * i;
        memset(to, 0xa5, LARGE + 512);
        pl_copy(to + at, from + 5 * i, sizes[i]);
        CHECK_EQ(memcmp(to + at, from + 5 * i, sizes[i]), 0);
        CHECK_EQ(to[at - 1], 0xa5);
        CHECK_EQ(to[at + sizes[i]], 0xa5);
    }
    free(from);
    free(to);
}

static const struct pl_test tests[] = {
    PL_TEST(blocks_cross_threads),
    PL_TEST(sizes_are_served),
    PL_TEST(the_limit_holds),
    PL_TEST(freed_blocks_merge),
    PL_TEST(scattering_fails_no_request_that_fits),
    PL_TEST(the_last_piece_of_a_slice_serves),
    PL_TEST(a_block_lives_as_long_as_its_tickets),
    PL_TEST(tasks_blocks_come_back),
    PL_TEST(results_are_viewed_and_handed_back),
    PL_TEST(lies_about_blocks_are_found),
    PL_TEST(the_dead_give_everything_back),
    PL_TEST(a_strange_mapping_is_refused),
    PL_TEST(set_up_fails_cleanly),
    PL_TEST(little_address_space_is_enough),
    PL_TEST(bad_arguments),
    PL_TEST(a_copy_is_exact),
};

PL_TEST_MAIN(tests)
