/* test_bell.c - parking and waking: no wake-up is lost, and none is paid for in vain. */
#include "pl_test.h"

#include "pl_pool_internal.h"

#include <pthread.h>

static uint64_t writes; /* to the eventfd; the table of calls has no context */

static ssize_t counting_write(int fd, const void *buf, size_t len)
{
    __atomic_fetch_add(&writes, 1, __ATOMIC_RELAXED);
    return pl_sys_default()->write(fd, buf, len);
}

struct side {
    struct pl_member member;
    pthread_t thread;
};

static void *serve(void *arg)
{
    struct side *side = arg;
    for (;;) {
        uint32_t cell;
        int found = pl_member_take(&side->member, &cell);
        if (found == 1)
            pl_member_done(&side->member, cell);
        else if (found == 0)
            (void)!pl_member_wait(&side->member); /* 0 or -EINTR: look again */
        else
            return NULL;
    }
}

/* One task at a time, parking on both sides each time: a lost wake-up ends in a timeout. */
static void ping_pong(int64_t spin_ns, int rounds, bool expects)
{
    struct pl_sys sys = *pl_sys_default();
    sys.write = counting_write;
    struct pl_pool pool;
    struct pl_pool_config config = {.sys = &sys, .workers = 2, .slots = 8, .limit = 1 << 20};
    CHECK_OK(pl_pool_init(&pool, &config));
    pool.layout.spin_ns = pool.share->layout.spin_ns = spin_ns;
    if (expects) /* whatever the machine has; and below, whoever uses it */
        pool.layout.cpus = pool.share->layout.cpus = 4;
    uint64_t ahead = 0;
    struct side sides[2];
    for (int i = 0; i < 2; i++) {
        uint32_t seat;
        uint64_t low_mark;
        CHECK_OK(pl_pool_seat(&pool, &seat, &low_mark));
        CHECK_OK(pl_member_init(&sides[i].member, &sys, pool.base, pool.layout.total, pool.eventfd,
                                seat, low_mark));
        CHECK_EQ(pthread_create(&sides[i].thread, NULL, serve, &sides[i]), 0);
    }
    for (int round = 0; round < rounds; round++) {
        uint32_t cell;
        uint32_t seat;
        uint32_t tags;
        int n = 1 + round % 3;
        if (expects && round % 4 != 0) {
            uint64_t wakes = pool.wakes;
            atomic_store(&pl__seat(pool.base, &pool.layout, 0)->crowded, 0);
            atomic_store(&pl__seat(pool.base, &pool.layout, 1)->crowded, 0);
            pl_pool_expect(&pool, round % 5 * 1000);
            ahead += pool.wakes - wakes;
        }
        if (expects && round % 7 == 0)
            n = 0; /* the task that was expected does not come */
        for (int i = 0; i < n; i++) {
            CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
            pl_pool_post(&pool, cell);
        }
        while (n > 0) {
            int found = pl_pool_next(&pool, &cell, &seat);
            CHECK_OK(found);
            if (found == 1) {
                pl_pool_release(&pool, cell);
                n--;
                continue;
            }
            pl_pool_flush(&pool);
            pl_pool_arm(&pool, PL_ARM_ANY);
            if (pl_pool_ready(&pool))
                continue;
            CHECK_CMP(pl_pool_wait(&pool, 20 * PL_NSEC_PER_SEC, &tags), !=, 0);
        }
    }
    pl_pool_close(&pool);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(pthread_join(sides[i].thread, NULL), 0);
        pl_member_fini(&sides[i].member);
    }
    pl_pool_fini(&pool);
    CHECK_EQ(ahead > 0, expects);
}

static void no_wake_up_is_lost_when_all_park(void)
{
    ping_pong(0, 30000, false);
}

static void no_wake_up_is_lost_by_ringing_ahead(void)
{
    ping_pong(0, 20000, true);
    ping_pong(2000, 20000, true);
}

static void no_wake_up_is_lost_at_the_end_of_a_spin(void)
{
    ping_pong(2000, 30000, false);
}

static int rung;
static struct pl_pool *ringer;

static int counting_wake(uint32_t *word, int n)
{
    (void)word;
    (void)n;
    rung++;
    return 0;
}

/* A sleep that the parent ends at once: with a ring ahead, and after it the task. */
static int rung_ahead(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    (void)timeout_ns;
    uint32_t cell;
    CHECK_EQ(pl__bits_count(ringer->share->parked), 1);
    pl_pool_expect(ringer, 1000000);
    CHECK_EQ(rung, 1);
    CHECK_EQ(pl__bits_count(ringer->share->parked), 0);
    CHECK_EQ(pl__bits_count(ringer->share->spinning), 1);
    CHECK_CMP(*word, !=, expected); /* a real futex would not sleep any more */
    pl_pool_expect(ringer, 1000000);
    CHECK_EQ(rung, 1); /* one that looks out is enough */
    CHECK_OK(pl_pool_stage(ringer, NULL, &cell));
    pl_pool_post(ringer, cell);
    CHECK_EQ(rung, 1); /* and it need not be rung again */
    return 0;
}

static void who_is_rung_ahead_looks_out_for_the_task(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.futex_wake = counting_wake;
    sys.futex_wait = rung_ahead;
    struct pl_pool pool;
    struct pl_member member;
    struct pl_pool_config config = {.sys = &sys, .workers = 1, .slots = 8, .limit = 1 << 20};
    CHECK_OK(pl_pool_init(&pool, &config));
    pool.layout.cpus = pool.share->layout.cpus = 2;
    pool.layout.spin_ns = pool.share->layout.spin_ns = 0;
    uint32_t seat;
    uint32_t cell;
    uint64_t low_mark;
    CHECK_OK(pl_pool_seat(&pool, &seat, &low_mark));
    CHECK_OK(
        pl_member_init(&member, &sys, pool.base, pool.layout.total, pool.eventfd, seat, low_mark));
    rung = 0;
    pl_pool_expect(&pool, 1000000);
    CHECK_EQ(rung, 0); /* nobody is parked */
    CHECK_EQ(pl__bits_count(pool.share->spinning), 0);
    ringer = &pool;
    CHECK_OK(pl_member_wait(&member));
    CHECK_EQ(pl__bits_count(pool.share->spinning), 0);
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    pl_member_fini(&member);
    pl_pool_fini(&pool);
}

static void one_slot_is_waited_for(void)
{
    struct pl_pool pool;
    struct pl_pool_config config = {.workers = 1, .slots = 8, .limit = 1 << 20};
    struct pl_sys sys = *pl_sys_default();
    sys.write = counting_write;
    config.sys = &sys;
    CHECK_OK(pl_pool_init(&pool, &config));
    struct pl_member member;
    uint32_t seat;
    uint64_t low_mark;
    uint32_t cells[4];
    uint32_t cell;
    CHECK_OK(pl_pool_seat(&pool, &seat, &low_mark));
    CHECK_OK(
        pl_member_init(&member, &sys, pool.base, pool.layout.total, pool.eventfd, seat, low_mark));
    for (int i = 0; i < 4; i++) {
        CHECK_OK(pl_pool_stage(&pool, NULL, &cells[i]));
        pl_pool_post(&pool, cells[i]);
    }
    writes = 0;
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    pl_member_done(&member, cell);
    CHECK_EQ(writes, 0); /* nobody waits */
    pl_pool_arm(&pool, PL_ARM_SLOT + cells[2]);
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    pl_member_done(&member, cell);
    CHECK_EQ(writes, 0); /* another one is waited for */
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    pl_member_done(&member, cell);
    CHECK_EQ(writes, 1);
    CHECK_EQ(pl_member_take(&member, &cell), 1);
    pl_member_done(&member, cell);
    CHECK_EQ(writes, 1); /* once per arming */
    uint32_t tags;
    CHECK_EQ(pl_pool_wait(&pool, 0, &tags), 1);
    CHECK_EQ(tags, UINT32_C(1) << 31);
    CHECK_EQ(pl_pool_wait(&pool, 0, &tags), 0);
    pl_member_fini(&member);
    pl_pool_fini(&pool);
}

/* One worker at work, one parked, tasks known to be short. */
static void a_debt_is_made_only_with_a_payer(void)
{
    struct pl_pool pool;
    struct pl_pool_config config = {.workers = 2, .slots = 8, .limit = 1 << 20};
    struct pl_sys sys = *pl_sys_default();
    sys.futex_wake = counting_wake;
    config.sys = &sys;
    CHECK_OK(pl_pool_init(&pool, &config));
    uint32_t seats[2];
    uint32_t cell;
    uint64_t low_mark;
    for (int i = 0; i < 2; i++)
        CHECK_OK(pl_pool_seat(&pool, &seats[i], &low_mark));
    pool.mean_ns = 1000;
    for (int payer = 0; payer < 2; payer++) {
        pool.payer = payer != 0;
        rung = 0;
        atomic_store(&pool.share->parked[0], UINT64_C(1) << seats[1]);
        CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
        pl_pool_post(&pool, cell);
        CHECK_EQ(rung, payer ? 0 : 1);
        CHECK_EQ(pool.owed_wake != 0, payer);
        uint32_t debt = pool.owed_wake;
        CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
        pl_pool_post(&pool, cell);
        CHECK_EQ(pool.owed_wake, debt); /* one debt, however many posts */
        pl_pool_flush(&pool);
        CHECK_EQ(rung, 1);
        CHECK_EQ(pool.owed_wake, 0);
    }
    pl_pool_fini(&pool);
}

static int64_t clock_ns;

static int64_t set_clock(void)
{
    return clock_ns;
}

/* Words that a worker has overwritten: the parent believes that nobody is parked, or that all
 * spin already. */
static void a_spoilt_board_strands_nobody(void)
{
    struct pl_pool pool;
    struct pl_pool_config config = {.workers = 3, .slots = 8, .limit = 1 << 20};
    struct pl_sys sys = *pl_sys_default();
    sys.futex_wake = counting_wake;
    sys.now = set_clock;
    clock_ns = PL_NSEC_PER_SEC;
    config.sys = &sys;
    CHECK_OK(pl_pool_init(&pool, &config));
    struct pl_member members[3];
    uint32_t seats[3];
    uint64_t low_mark;
    for (int i = 0; i < 3; i++)
        CHECK_OK(pl_pool_seat(&pool, &seats[i], &low_mark));
    for (int i = 0; i < 2; i++) /* the third is still being started */
        CHECK_OK(pl_member_init(&members[i], &sys, pool.base, pool.layout.total, pool.eventfd,
                                seats[i], low_mark));
    uint32_t cell;
    uint32_t seat;
    for (int what = 0; what < 2; what++) {
        rung = 0;
        atomic_store(&pool.share->parked[0], what == 0 ? 0 : UINT64_MAX);
        atomic_store(&pool.share->spinning[0], what == 0 ? 0 : UINT64_MAX);
        CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
        pl_pool_post(&pool, cell);
        pl_pool_flush(&pool);
        CHECK_EQ(rung, 0);
        pl_pool_check(&pool);
        CHECK_EQ(rung, 3);
        uint32_t begun;
        CHECK_EQ(pl_member_take(&members[0], &begun), 1);
        CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
        pl_pool_post(&pool, cell);
        rung = 0;
        pl_pool_check(&pool);
        CHECK_EQ(rung, 2); /* the one that has a task is let be */
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 0);
        CHECK_OK(pl_member_done(&members[0], begun));
        CHECK_EQ(pl_member_take(&members[0], &cell), 1);
        CHECK_OK(pl_member_done(&members[0], cell));
        while (pl_pool_next(&pool, &cell, &seat) == 1)
            pl_pool_release(&pool, cell);
    }
    /* One that never comes is told of, once; one that has not sat down is not. */
    CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
    pl_pool_post(&pool, cell);
    CHECK_EQ(pl_member_take(&members[0], &cell), 1);
    CHECK_OK(pl_pool_stage(&pool, NULL, &cell));
    pl_pool_post(&pool, cell);
    for (int i = 0; i < 7; i++) {
        CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 0);
        CHECK(!pl_pool_ready(&pool));
        pl_pool_check(&pool);
        clock_ns += PL_NSEC_PER_SEC;
    }
    CHECK(pl_pool_ready(&pool));
    CHECK_EQ(pl_pool_next(&pool, &cell, &seat), PL_EPROTO);
    CHECK_EQ(seat, seats[1]);
    CHECK_EQ(pl_pool_next(&pool, &cell, &seat), 0);
    for (int i = 0; i < 2; i++)
        pl_member_fini(&members[i]);
    pl_pool_fini(&pool);
}

static const struct pl_test tests[] = {
    PL_TEST(no_wake_up_is_lost_when_all_park),
    PL_TEST(no_wake_up_is_lost_at_the_end_of_a_spin),
    PL_TEST(no_wake_up_is_lost_by_ringing_ahead),
    PL_TEST(who_is_rung_ahead_looks_out_for_the_task),
    PL_TEST(one_slot_is_waited_for),
    PL_TEST(a_debt_is_made_only_with_a_payer),
    PL_TEST(a_spoilt_board_strands_nobody),
};

PL_TEST_MAIN(tests)
