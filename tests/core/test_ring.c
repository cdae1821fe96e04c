/* test_ring.c - the board: posting, claiming, taking back, wrap-around, hostile contents. */
#include "pl_test.h"

#include "pl_pool_internal.h"

#include <pthread.h>

static void open_pool(struct pl_pool *pool, uint32_t slots)
{
    struct pl_pool_config config = {.workers = 4, .slots = slots, .limit = 1 << 20};
    CHECK_OK(pl_pool_init(pool, &config));
}

static void sit(struct pl_pool *pool, struct pl_member *member)
{
    uint32_t seat;
    uint64_t low_mark;
    CHECK_OK(pl_pool_seat(pool, &seat, &low_mark));
    CHECK_OK(pl_member_init(member, NULL, pool->base, pool->layout.total, pool->eventfd, seat,
                            low_mark));
}

static uint32_t post(struct pl_pool *pool, uintptr_t value)
{
    uint32_t cell;
    CHECK_OK(pl_pool_stage(pool, (void *)value, &cell));
    memcpy(pool->slots[cell].bytes, &value, sizeof(value));
    pl_pool_post(pool, cell);
    return cell;
}

static void order_and_fullness(void)
{
    struct pl_pool pool;
    struct pl_member member;
    uint32_t cell;
    uint32_t seat;
    open_pool(&pool, 8);
    sit(&pool, &member);
    for (uintptr_t round = 0; round < 100; round++) {
        for (uintptr_t i = 0; i < 8; i++)
            (void)post(&pool, round * 8 + i);
        CHECK_EQ(pl_pool_stage(&pool, NULL, &cell), -EAGAIN);
        CHECK_EQ(pl_pool_waiting(&pool), 8);
        for (uintptr_t i = 0; i < 8; i++) {
            CHECK_EQ(pl_member_take(&member, &cell), 1);
            CHECK_EQ((uintptr_t)pool.cells[cell].user, round * 8 + i);
            CHECK(pl_pool_claimed(&pool, cell));
            pl_member_done(&member, cell);
        }
        CHECK_EQ(pl_member_take(&member, &cell), 0);
        for (uintptr_t i = 0; i < 8; i++) {
            CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
            CHECK_EQ((uintptr_t)pool.cells[cell].user, round * 8 + i);
            pl_pool_release(&pool, cell);
        }
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 0);
    }
    pl_pool_close(&pool);
    CHECK_EQ(pl_member_take(&member, &cell), PL_ECLOSED);
    pl_pool_fini(&pool);
}

static void taking_back(void)
{
    struct pl_pool pool;
    struct pl_member member;
    uint32_t cell;
    open_pool(&pool, 8);
    sit(&pool, &member);
    uint32_t first = post(&pool, 1);
    uint32_t second = post(&pool, 2);
    CHECK(pl_pool_withdraw(&pool, first));
    CHECK(!pl_pool_withdraw(&pool, first));
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    CHECK_EQ(cell, second);
    CHECK(!pl_pool_withdraw(&pool, second));
    pl_member_done(&member, cell);
    uint32_t seat;
    CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
    pl_pool_release(&pool, cell);
    /* Places of tasks that were taken back fill the line until a worker comes by. */
    int posted = 0;
    while (pl_pool_stage(&pool, NULL, &cell) == 0) {
        pl_pool_post(&pool, cell);
        CHECK(pl_pool_withdraw(&pool, cell));
        posted++;
        CHECK_CMP(posted, <=, 16);
    }
    CHECK_EQ(pl_member_take(&member, &cell), 0);
    (void)post(&pool, 3);
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    pl_pool_fini(&pool);
}

static void a_dead_worker_is_survived(void)
{
    struct pl_pool pool;
    struct pl_member dead;
    struct pl_member alive;
    uint32_t cell;
    uint32_t other;
    open_pool(&pool, 8);
    sit(&pool, &dead);
    sit(&pool, &alive);
    (void)post(&pool, 1);
    (void)post(&pool, 2);
    (void)post(&pool, 3);
    CHECK_EQ(pl_member_take(&dead, &cell), 1);
    CHECK_EQ(pl_pool_bury(&pool, dead.seat, &other), PL_LOST);
    CHECK_EQ(other, cell);
    pl_pool_release(&pool, other);
    CHECK_EQ(pl_pool_bury(&pool, dead.seat, &other), PL_BURIED);
    CHECK_EQ(pl_pool_bury(&pool, dead.seat, &other), PL_BURIED);
    CHECK_EQ(pl_member_take(&alive, &cell), 1);
    CHECK_EQ((uintptr_t)pool.cells[cell].user, 2);

    /* Died between finishing and telling: a result all the same. */
    sit(&pool, &dead);
    CHECK_EQ(pl_member_take(&dead, &cell), 1);
    pl_member_done(&dead, cell);
    atomic_store(&dead.mine->done_tail, 0);
    CHECK_EQ(pl_pool_bury(&pool, dead.seat, &other), PL_FINISHED);
    CHECK_EQ(other, cell);
    pl_pool_release(&pool, other);
    CHECK_EQ(pl_pool_bury(&pool, dead.seat, &other), PL_BURIED);

    /* Died between claiming and moving the head on: the next one does it. */
    sit(&pool, &dead);
    uint32_t stuck = post(&pool, 4);
    uint32_t free = post(&pool, 5);
    uint64_t head = atomic_load(&pool.share->head);
    CHECK_EQ(pl_member_take(&dead, &cell), 1);
    CHECK_EQ(cell, stuck);
    atomic_store(&pool.share->head, head);
    CHECK_EQ(pl_member_take(&alive, &cell), 1);
    CHECK_EQ(cell, free);
    pl_pool_fini(&pool);
}

/* Someone wrote over the head: what is posted is found all the same, by everyone. */
static void a_spoilt_head_is_mended(void)
{
    static const int64_t wrong[] = {5, 1 << 20, INT64_MAX, -5, -1000};
    struct pl_pool pool;
    struct pl_member member;
    uint32_t cell;
    open_pool(&pool, 8);
    sit(&pool, &member);
    for (size_t i = 0; i < PL_ARRAY_LEN(wrong); i++) {
        uint32_t posted = post(&pool, i);
        atomic_store(&pool.share->head, pool.tail + (uint64_t)wrong[i]);
        CHECK_EQ(pl_member_take(&member, &cell), 1);
        CHECK_EQ(cell, posted);
        pl_member_done(&member, cell);
        uint32_t seat;
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
        pl_pool_release(&pool, cell);
    }
    pl_pool_fini(&pool);
}

/* Someone wrote over the tail: a worker that does not find what is posted asks the parent. */
static void a_spoilt_tail_is_mended(void)
{
    static const uint64_t wrong[] = {UINT64_C(1) << 63, UINT64_MAX, 1000, 0};
    struct pl_pool pool;
    struct pl_member member;
    uint32_t cell;
    uint32_t seat;
    open_pool(&pool, 8);
    sit(&pool, &member);
    for (size_t i = 0; i < PL_ARRAY_LEN(wrong); i++) {
        uint32_t posted = post(&pool, i);
        atomic_store(&pool.share->tail, wrong[i]);
        int found = pl_member_take(&member, &cell);
        if (found == 0) {
            uint32_t tags;
            CHECK_EQ(pl_pool_wait(&pool, 0, &tags), 1); /* the parent was called */
            CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 0);
            found = pl_member_take(&member, &cell);
        }
        CHECK_EQ(found, 1);
        CHECK_EQ(cell, posted);
        CHECK_OK(pl_member_done(&member, cell));
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
        pl_pool_release(&pool, cell);
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 0);
        CHECK(atomic_load(&pool.share->tail) == pool.tail);
    }
    pl_member_fini(&member);
    pl_pool_fini(&pool);
}

/* Nobody who is there computes with the layout in the mapping, and a new worker finds it as
 * it was once the one that spoilt it is buried. */
/* A task whose state word was overwritten is nobody's: it is lost with the next worker that dies,
 * and its slot is used again. */
static void a_spoilt_state_is_a_loss(void)
{
    struct pl_pool pool;
    struct pl_member a;
    uint32_t cell;
    open_pool(&pool, 16);
    const uint64_t nonsense[] = {0, UINT64_MAX, PL__FINISHED | 0xffff00, PL__CLAIMED | 7 << 8};
    for (size_t i = 0; i < PL_ARRAY_LEN(nonsense); i++) {
        sit(&pool, &a);
        uint32_t mine = post(&pool, 1);
        uint32_t other = post(&pool, 2);
        atomic_store(&pool.slots[mine].state, nonsense[i]);
        CHECK(!pl_pool_withdraw(&pool, mine));
        CHECK_EQ(pl_pool_bury(&pool, a.seat, &cell), PL_LOST);
        CHECK_EQ(cell, mine);
        pl_pool_release(&pool, cell);
        CHECK_EQ(pl_pool_bury(&pool, a.seat, &cell), PL_BURIED);
        CHECK(pl_pool_withdraw(&pool, other));
        CHECK_EQ(pool.cells_used, 0);
        pl_member_fini(&a);
    }
    pl_pool_fini(&pool);
}

static int64_t clock_ahead;

static int64_t clock_now(void)
{
    return pl_sys_default()->now() + clock_ahead;
}

/* Looks twice, with the time in between that a word has to be wrong for. */
static bool mend(struct pl_pool *pool)
{
    CHECK(!pl_pool_mend(pool));
    clock_ahead += PL_NSEC_PER_SEC;
    return pl_pool_mend(pool);
}

/* A pool of two workers whose clock the tests set forward. */
static void open_two(struct pl_pool *pool, struct pl_sys *sys, struct pl_member *a,
                     struct pl_member *b)
{
    *sys = *pl_sys_default();
    sys->now = clock_now;
    struct pl_pool_config config = {.sys = sys, .workers = 2, .slots = 16, .limit = 1 << 20};
    CHECK_OK(pl_pool_init(pool, &config));
    sit(pool, a);
    sit(pool, b);
}

static void close_two(struct pl_pool *pool, struct pl_member *a, struct pl_member *b)
{
    pl_member_fini(a);
    pl_member_fini(b);
    pl_pool_fini(pool);
}

/* The same while everyone lives: one that nobody runs comes into the line again, and is done once;
 * one that somebody runs, or has run, costs that worker's life, and no other's. */
static void a_spoilt_state_is_found_in_time(void)
{
    struct pl_sys sys;
    struct pl_pool pool;
    struct pl_member a;
    struct pl_member b;
    uint32_t cell;
    uint32_t seat;
    open_two(&pool, &sys, &a, &b);

    uint32_t mine = post(&pool, 1);
    CHECK(!mend(&pool)); /* all is well */
    atomic_store(&pool.slots[mine].state, UINT64_MAX);
    CHECK_EQ(pl_member_take(&a, &cell), 0);
    CHECK(!mend(&pool));
    CHECK_EQ(pool.posted, 1);
    CHECK_EQ(pl_member_take(&a, &cell), 1);
    CHECK_EQ(cell, mine);
    CHECK_EQ(pl_member_take(&b, &cell), 0);
    CHECK_OK(pl_member_done(&a, mine));
    CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
    pl_pool_release(&pool, cell);

    for (int ended = 0; ended < 2; ended++) {
        mine = post(&pool, 1);
        CHECK_EQ(pl_member_take(&a, &cell), 1);
        if (ended)
            CHECK_OK(pl_member_done(&a, mine));
        atomic_store(&pool.slots[mine].state, UINT64_MAX);
        CHECK_EQ(pl_pool_bury(&pool, b.seat, &cell), PL_BURIED); /* not its loss */
        CHECK(mend(&pool));
        CHECK(!mend(&pool));
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), PL_EPROTO);
        CHECK_EQ(seat, a.seat);
        CHECK_EQ(pl_pool_bury(&pool, a.seat, &cell), PL_LOST);
        CHECK_EQ(cell, mine);
        pl_pool_release(&pool, cell);
        CHECK_EQ(pl_pool_bury(&pool, a.seat, &cell), PL_BURIED);
        pl_member_fini(&a);
        pl_member_fini(&b);
        sit(&pool, &a);
        sit(&pool, &b);
    }
    CHECK_EQ(pool.cells_used, 0);
    close_two(&pool, &a, &b);
}

/* A word that names a worker which does not have the task, claimed or finished: that worker ends,
 * and the task with it. */
static void a_forged_claim_is_found_in_time(void)
{
    struct pl_sys sys;
    for (int finished = 0; finished < 2; finished++) {
        struct pl_pool pool;
        struct pl_member a;
        struct pl_member b;
        uint32_t cell;
        uint32_t seat;
        open_two(&pool, &sys, &a, &b);
        uint32_t forged = post(&pool, 1);
        uint32_t other = post(&pool, 2);
        atomic_store(&pool.slots[forged].state, pl__state(finished ? PL__FINISHED : PL__CLAIMED,
                                                          a.seat, pool.cells[forged].pos));
        CHECK_EQ(pl_member_take(&b, &cell), 1);
        CHECK_EQ(cell, other);
        for (int i = 0; i < 4; i++)
            CHECK(!mend(&pool)); /* it may be about to say so */
        clock_ahead += PL_NSEC_PER_SEC;
        CHECK(pl_pool_mend(&pool));
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), PL_EPROTO);
        CHECK_EQ(seat, a.seat);
        CHECK_EQ(pl_pool_bury(&pool, a.seat, &cell), finished ? PL_FINISHED : PL_LOST);
        CHECK_EQ(cell, forged);
        pl_pool_release(&pool, cell);
        CHECK_EQ(pl_pool_bury(&pool, a.seat, &cell), PL_BURIED);
        CHECK_OK(pl_member_done(&b, other)); /* nobody else's task is touched */
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
        CHECK_EQ(cell, other);
        pl_pool_release(&pool, cell);
        CHECK(!pl_pool_mend(&pool));
        CHECK_EQ(pool.cells_used, 0);
        close_two(&pool, &a, &b);
    }
}

static void a_spoilt_layout_harms_nobody(void)
{
    struct pl_pool pool;
    struct pl_member member;
    struct pl_member next;
    struct pl_block block;
    void *data;
    uint32_t cell;
    uint32_t seat;
    open_pool(&pool, 8);
    sit(&pool, &member);
    memset(&pool.share->layout, 0xa5, sizeof(pool.share->layout));
    CHECK_EQ(pl_member_init(&next, NULL, pool.base, pool.layout.total, pool.eventfd, 1, 0),
             PL_EPROTO);
    uint32_t posted = post(&pool, 1);
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    CHECK_EQ(cell, posted);
    CHECK_OK(pl_member_alloc(&member, 5000, &block, &data));
    memset(data, 1, 5000);
    pl_member_lend(&member, &block);
    CHECK_OK(pl_member_done(&member, cell));
    CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 1);
    struct pl_view view;
    void *seen;
    CHECK_OK(pl_pool_view(&pool, cell, seat, &block, &view, &seen));
    CHECK(seen == data);
    pl_pool_view_drop(&pool, &view);
    pl_pool_release(&pool, cell);
    CHECK_OK(pl_pool_alloc(&pool, 5000, &block, &data));
    pl_pool_free(&pool, &block);
    pl_member_fini(&member);
    CHECK_EQ(pl_pool_bury(&pool, member.seat, &cell), PL_BURIED);
    sit(&pool, &next);
    pl_member_fini(&next);
    pl_pool_fini(&pool);
}

static void hostile_contents(void)
{
    uint64_t random = 99;
    for (int round = 0; round < 3000; round++) {
        struct pl_pool pool;
        struct pl_member member;
        uint32_t cell;
        uint32_t seat;
        open_pool(&pool, 8);
        sit(&pool, &member);
        for (uintptr_t i = 0; i < 5; i++)
            (void)post(&pool, i);
        CHECK_EQ(pl_member_take(&member, &cell), 1);
        pl_member_done(&member, cell);
        /* Garbage where a worker can write: its tail, its ring, slots, the head, bit sets. */
        for (int i = 0; i < 4; i++) {
            uint64_t value = pl_test_random(&random);
            switch (pl_test_random(&random) % 7) {
            case 0:
                atomic_store(&member.mine->done_tail, (uint32_t)value % 40);
                break;
            case 1:
                atomic_store(&member.mine->done_tail, (uint32_t)value);
                break;
            case 2:
                atomic_store(&member.done[value % 8], (uint32_t)(value >> 8) % 12);
                break;
            case 3:
                atomic_store(&pool.slots[value % 8].state, value >> (value % 40));
                break;
            case 4:
                atomic_store(&pool.share->head, value % 3 == 0 ? value : value % 20);
                break;
            case 5:
                atomic_store(&member.mine->returned, (uint32_t)value % 5);
                break;
            default:
                atomic_store(&pool.share->parked[value % 4], value);
                break;
            }
        }
        int found;
        int steps = 0;
        while ((found = pl_pool_next(&pool, &cell, &seat)) == 1) {
            pl_pool_release(&pool, cell);
            CHECK_CMP(++steps, <, 20);
        }
        CHECK(found == 0 || found == PL_EPROTO);
        if (found == PL_EPROTO)
            CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 0); /* told once */
        pl_pool_flush(&pool);
        steps = 0;
        while (pl_pool_bury(&pool, member.seat, &cell) != PL_BURIED) {
            pl_pool_release(&pool, cell);
            CHECK_CMP(++steps, <, 20);
        }
        pl_pool_fini(&pool);
    }
}

/* ---- threads as workers, with wrap-around, withdrawals and a small board ---- */

struct crew {
    struct pl_member member;
    pthread_t thread;
    uint64_t done;
};

static void *work(void *arg)
{
    struct crew *crew = arg;
    for (;;) {
        uint32_t cell;
        int found = pl_member_take(&crew->member, &cell);
        if (found == PL_ECLOSED)
            return NULL;
        CHECK_OK(found);
        if (found == 0) {
            int error = pl_member_wait(&crew->member);
            CHECK(error == 0 || error == -EINTR);
            continue;
        }
        uintptr_t value;
        memcpy(&value, crew->member.slots[cell].bytes, sizeof(value));
        value = ~value;
        memcpy(crew->member.slots[cell].bytes, &value, sizeof(value));
        crew->done++;
        pl_member_done(&crew->member, cell);
    }
}

static void threads_and_wrap_around(void)
{
    struct pl_pool pool;
    struct crew crew[4];
    uint64_t random = 3;
    const uintptr_t total = 300000;
    uintptr_t next = 0;
    uintptr_t ended = 0;
    uint64_t withdrawn = 0;
    unsigned char *seen = calloc(total, 1);
    CHECK(seen != NULL);
    open_pool(&pool, 16);
    for (int i = 0; i < 4; i++) {
        crew[i].done = 0;
        sit(&pool, &crew[i].member);
        CHECK_EQ(pthread_create(&crew[i].thread, NULL, work, &crew[i]), 0);
    }
    while (ended < total) {
        uint32_t cell;
        uint32_t seat;
        uint32_t tags;
        while (next < total && pl_pool_stage(&pool, (void *)next, &cell) == 0) {
            memcpy(pool.slots[cell].bytes, &next, sizeof(next));
            pl_pool_post(&pool, cell);
            if (pl_test_random(&random) % 16 == 0 && pl_pool_withdraw(&pool, cell)) {
                CHECK_EQ(seen[next]++, 0);
                ended++;
                withdrawn++;
            }
            next++;
        }
        int found;
        int got = 0;
        while ((found = pl_pool_next(&pool, &cell, &seat)) == 1) {
            uintptr_t value;
            memcpy(&value, pool.slots[cell].bytes, sizeof(value));
            CHECK_EQ(~value, (uintptr_t)pool.cells[cell].user);
            CHECK_EQ(seen[~value]++, 0);
            pl_pool_release(&pool, cell);
            ended++;
            got++;
        }
        CHECK_EQ(found, 0);
        if (got > 0 || ended == total)
            continue;
        pl_pool_flush(&pool);
        pl_pool_arm(&pool, PL_ARM_ANY);
        /* The line may be full of places that were taken back: then there is nothing to wait
         * for, the workers only have to pass by. */
        if (!pl_pool_ready(&pool) && pool.cells_used > 0) {
            int n = pl_pool_wait(&pool, 20 * PL_NSEC_PER_SEC, &tags);
            CHECK_CMP(n, !=, 0);
        }
    }
    pl_pool_close(&pool);
    uint64_t done = 0;
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(pthread_join(crew[i].thread, NULL), 0);
        done += crew[i].done;
    }
    CHECK_EQ(done + withdrawn, total);
    free(seen);
    pl_pool_fini(&pool);
}

static const struct pl_test tests[] = {
    PL_TEST(order_and_fullness),
    PL_TEST(taking_back),
    PL_TEST(a_dead_worker_is_survived),
    PL_TEST(a_spoilt_head_is_mended),
    PL_TEST(a_spoilt_tail_is_mended),
    PL_TEST(a_spoilt_state_is_a_loss),
    PL_TEST(a_spoilt_state_is_found_in_time),
    PL_TEST(a_forged_claim_is_found_in_time),
    PL_TEST(a_spoilt_layout_harms_nobody),
    PL_TEST(hostile_contents),
    PL_TEST(threads_and_wrap_around),
};

PL_TEST_MAIN(tests)
