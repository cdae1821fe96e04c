/* test_spin.c - spinning before parking: when it is done, for how long, and when not. */
#include "pl_test.h"

#include "pl_pool_internal.h"

/* A clock that goes on by one step at each look; the table of calls has no context. */
static int64_t clock_ns;
static int64_t step_ns;
static int64_t yield_ns;
static int yields;

static int64_t now(void)
{
    return clock_ns += step_ns;
}

static void yield(void)
{
    yields++;
    clock_ns += yield_ns;
}

static struct pl_sys virtual_sys(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.now = now;
    sys.yield = yield;
    clock_ns = 1000000;
    step_ns = 100;
    yield_ns = 200;
    yields = 0;
    return sys;
}

static int64_t work_at; /* on the clock */

static bool there(const void *arg)
{
    (void)arg;
    return clock_ns >= work_at;
}

static bool spin_until(struct pl_spin *spin, const struct pl_sys *sys, int64_t after)
{
    spin->since = sys->now();
    work_at = spin->since + after;
    return pl__spin(spin, sys, there, NULL);
}

/* A sleep that ends with a ring after `wait`, heard `cost` later. */
static void sleep_until(struct pl_spin *spin, const struct pl_sys *sys, int64_t wait, int64_t cost)
{
    spin->since = sys->now();
    int64_t slept = sys->now();
    int64_t rung = spin->since + wait;
    clock_ns = rung + cost;
    pl__spin_woke(spin, slept, rung, clock_ns);
}

static void a_spin_lasts_as_long_as_a_wake_up(void)
{
    struct pl_sys sys = virtual_sys();
    struct pl_spin spin;
    pl__spin_init(&spin, 100000);
    CHECK(pl__spin_pays(&spin));
    CHECK(spin_until(&spin, &sys, 10000));
    CHECK_EQ(spin.hits, 1);
    int64_t start = clock_ns;
    CHECK(!spin_until(&spin, &sys, INT64_MAX / 2));
    CHECK_CMP(clock_ns - start, >=, spin.wake_ns);
    CHECK_CMP(clock_ns - start, <, spin.wake_ns + spin.wake_ns / 4);
    CHECK_EQ(spin.spins, 2);
    CHECK_EQ(spin.hits, 1);
    CHECK_CMP(yields, >, 5); /* it offered its core all along */
    CHECK_EQ(spin.crowded, 0);
}

static void the_cost_of_a_wake_up_is_measured(void)
{
    struct pl_sys sys = virtual_sys();
    struct pl_spin spin;
    pl__spin_init(&spin, 100000);
    for (int i = 0; i < 100; i++)
        sleep_until(&spin, &sys, 3000, 7000);
    CHECK_CMP(spin.wake_ns, >, 6000);
    CHECK_CMP(spin.wake_ns, <, 8000);
    for (int i = 0; i < 100; i++)
        sleep_until(&spin, &sys, 3000, PL_NSEC_PER_SEC);
    CHECK_CMP(spin.wake_ns, <=, 100000); /* bounded, whatever happens */
}

static void long_waits_end_spinning_and_short_ones_bring_it_back(void)
{
    struct pl_sys sys = virtual_sys();
    struct pl_spin spin;
    pl__spin_init(&spin, 100000);
    for (int i = 0; i < 30; i++)
        sleep_until(&spin, &sys, 10000000, 20000);
    CHECK(!pl__spin_pays(&spin));
    /* Nobody spins now: the short waits are seen by one who parks. */
    int looks = 0;
    while (!pl__spin_pays(&spin) && ++looks < 30)
        sleep_until(&spin, &sys, 5000, 20000);
    CHECK_CMP(looks, <, 15);
    /* One long wait among many short ones does not matter. */
    for (int i = 0; i < 100; i++) {
        sleep_until(&spin, &sys, i % 10 == 0 ? 10000000 : 5000, 20000);
        if (i > 30)
            CHECK(pl__spin_pays(&spin));
    }
}

static void a_core_that_is_wanted_is_left(void)
{
    struct pl_sys sys = virtual_sys();
    struct pl_spin spin;
    pl__spin_init(&spin, 100000);
    yield_ns = 3000000; /* somebody else ran meanwhile */
    CHECK(!spin_until(&spin, &sys, INT64_MAX / 2));
    CHECK_EQ(yields, 1);
    CHECK_EQ(spin.crowded, 1);
    CHECK(!pl__spin_pays(&spin));
}

static void lies_about_rings_do_no_harm(void)
{
    struct pl_sys sys = virtual_sys();
    struct pl_spin spin;
    pl__spin_init(&spin, 100000);
    const int64_t lies[] = {INT64_MIN, -1, 0, 1, INT64_MAX};
    for (int i = 0; i < 1000; i++) {
        spin.since = sys.now();
        pl__spin_woke(&spin, sys.now(), lies[i % 5], sys.now());
        CHECK_CMP(spin.wake_ns, >=, 1000);
        CHECK_CMP(spin.wake_ns, <=, 100000);
        CHECK_CMP(spin.wait_ns, >=, 0);
        CHECK_CMP(spin.wait_ns, <=, 200000);
    }
    pl__spin_init(&spin, 0);
    CHECK(!pl__spin_pays(&spin));
}

static int no_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    (void)word;
    (void)expected;
    (void)timeout_ns;
    return -EINTR;
}

/* How often n workers spin who run dry one after the other, on so many processors. */
static uint64_t spins_of(uint32_t n, uint32_t cpus)
{
    struct pl_sys sys = virtual_sys();
    sys.futex_wait = no_wait;
    struct pl_pool pool;
    struct pl_pool_config config = {.sys = &sys, .workers = n, .slots = 8, .limit = 1 << 20};
    CHECK_OK(pl_pool_init(&pool, &config));
    pool.layout.cpus = pool.share->layout.cpus = cpus; /* whatever this machine has */
    struct pl_member members[8];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seat;
        uint64_t low_mark;
        CHECK_OK(pl_pool_seat(&pool, &seat, &low_mark));
        CHECK_OK(pl_member_init(&members[i], &sys, pool.base, pool.layout.total, pool.eventfd, seat,
                                low_mark));
    }
    uint64_t spins = 0;
    for (uint32_t i = 0; i < n; i++) {
        CHECK_EQ(pl_member_wait(&members[i]), -EINTR);
        atomic_fetch_or(&pool.share->parked[0], UINT64_C(1) << i); /* it has parked for good */
        spins += members[i].spin.spins;
    }
    (void)pl_pool_spin(&pool);
    spins += pool.spin.spins;
    for (uint32_t i = 0; i < n; i++)
        pl_member_fini(&members[i]);
    pl_pool_fini(&pool);
    return spins;
}

static void nobody_spins_in_a_pool_larger_than_the_machine(void)
{
    CHECK_EQ(spins_of(8, 2), 0);
    CHECK_EQ(spins_of(2, 1), 0);
    CHECK_EQ(spins_of(2, 2), 2); /* the second worker to run dry, and the parent */
    CHECK_EQ(spins_of(2, 4), 3);
}

static const struct pl_test tests[] = {
    PL_TEST(a_spin_lasts_as_long_as_a_wake_up),
    PL_TEST(the_cost_of_a_wake_up_is_measured),
    PL_TEST(long_waits_end_spinning_and_short_ones_bring_it_back),
    PL_TEST(a_core_that_is_wanted_is_left),
    PL_TEST(lies_about_rings_do_no_harm),
    PL_TEST(nobody_spins_in_a_pool_larger_than_the_machine),
};

PL_TEST_MAIN(tests)
