/* test_busy.c - looking for events before a sleep: when it is done, for how long, and when not. */
#include "pl_test.h"

#include "pl_internal.h"

#define MOST 50000
#define FOR_EVER INT64_C(1000000000)

/* A machine in which time passes by looks, offers of the core, and sleeps alone; the table of
 * calls has no context. */
static int64_t clock_ns;
static int64_t event_at;              /* when the descriptor will be ready */
static int64_t wake_ns;               /* what a sleep costs beyond the wait */
static int64_t yield_ns;              /* what an offer of the core takes */
static int poller_fails;              /* -errno for a look */
static struct pl_loop *woken_by_look; /* a loop that another thread wakes meanwhile */

static int64_t now(void)
{
    return clock_ns += 20;
}

static void yield(void)
{
    clock_ns += yield_ns;
}

static int wait_for_event(int epfd, struct epoll_event *events, int max, int64_t timeout_ns)
{
    (void)epfd;
    (void)max;
    if (timeout_ns == 0) {
        clock_ns += 300;
        if (poller_fails != 0)
            return poller_fails;
        if (woken_by_look != NULL)
            pl_loop_wake(woken_by_look);
    } else if (timeout_ns > 0 && event_at - clock_ns > timeout_ns) {
        clock_ns += timeout_ns + wake_ns;
        return 0;
    } else if (event_at > clock_ns) {
        clock_ns = event_at + wake_ns;
    }
    if (event_at > clock_ns)
        return 0;
    event_at = INT64_MAX;
    events[0] = (struct epoll_event){.events = EPOLLIN, .data.u64 = UINT32_MAX}; /* nobody's */
    return 1;
}

static struct pl_sys sys;

static void begin(struct pl_loop *loop, int64_t most)
{
    sys = *pl_sys_default();
    sys.now = now;
    sys.yield = yield;
    sys.epoll_wait = wait_for_event;
    clock_ns = 1000000;
    event_at = INT64_MAX;
    wake_ns = 40000;
    yield_ns = 200;
    poller_fails = 0;
    woken_by_look = NULL;
    struct pl_loop_config config = {.sys = &sys};
    CHECK_OK(pl_loop_init(loop, &config));
    if (most > 0)
        pl_loop_set_busy(loop, most);
}

/* One turn as a binding makes it, the event being due in `wait`; whether a spin found it. */
static bool turn(struct pl_loop *loop, int64_t wait)
{
    event_at = clock_ns + wait;
    int r = pl_loop_busy_pays(loop) ? pl_loop_busy_poll(loop, -1) : 0;
    CHECK_CMP(r, >=, 0);
    bool met = r > 0;
    if (!met)
        CHECK_EQ(pl_loop_wait(loop, -1), 1);
    CHECK_OK(pl_loop_collect(loop));
    return met;
}

/* Turns until it spins, or `most` of them. */
static int turns_until_it_spins(struct pl_loop *loop, int64_t wait, int most)
{
    int turns = 0;
    while (!pl_loop_busy_pays(loop) && turns < most) {
        (void)turn(loop, wait);
        turns++;
    }
    return turns;
}

static void nobody_spins_unasked(void)
{
    struct pl_loop loop;
    begin(&loop, 0);
    CHECK_EQ(turns_until_it_spins(&loop, 1000, 1000), 1000);
    CHECK_EQ(loop.busy.spins, 0);
    pl_loop_fini(&loop);
}

static void short_waits_bring_it_on_and_it_lasts(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    CHECK(!pl_loop_busy_pays(&loop)); /* not before it has measured something */
    CHECK_CMP(turns_until_it_spins(&loop, 10000, 100), <, 20);
    int sleeps = 0;
    for (int i = 0; i < 3000; i++)
        sleeps += !turn(&loop, 10000);
    CHECK_EQ(sleeps, 0);
    CHECK_EQ(loop.busy.hits, 3000);
    /* Sleeps are measured again, now and then. */
    for (int i = 0; i < 20000; i++)
        sleeps += !turn(&loop, 10000);
    CHECK_CMP(sleeps, >, 10);
    CHECK_CMP(sleeps, <, 200);
    pl_loop_fini(&loop);
}

static void what_saves_less_than_it_burns_is_left_off(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    wake_ns = 4000; /* and the wait is 30000 */
    for (int i = 0; i < 100000; i++)
        (void)turn(&loop, 30000);
    CHECK_CMP(loop.busy.spins, >, 0);    /* it tried, */
    CHECK_CMP(loop.busy.spins, <, 1000); /* more and more seldom */
    /* The machine is another one now: it is found out, if late. */
    wake_ns = 40000;
    CHECK_CMP(turns_until_it_spins(&loop, 30000, 10000), <, 10000);
    for (int i = 0; i < 100; i++)
        (void)turn(&loop, 30000);
    CHECK(pl_loop_busy_pays(&loop));
    pl_loop_fini(&loop);
}

static void long_waits_never_bring_it_on(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    CHECK_EQ(turns_until_it_spins(&loop, 200000, 10000), 10000);
    /* A short one among them does not, either. */
    for (int i = 0; i < 10000; i++) {
        (void)turn(&loop, i % 4 == 0 ? 1000 : 200000);
        CHECK(!pl_loop_busy_pays(&loop));
    }
    pl_loop_fini(&loop);
}

static void sleeps_that_a_timeout_ends_do_not_count(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    wake_ns = 0;
    for (int i = 0; i < 1000; i++) {
        event_at = INT64_MAX;
        CHECK_EQ(pl_loop_wait(&loop, 1000), 0);
        CHECK(!pl_loop_busy_pays(&loop));
    }
    pl_loop_fini(&loop);
}

static void spins_in_vain_end_it(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    (void)turns_until_it_spins(&loop, 10000, 100);
    int spins = 0;
    while (pl_loop_busy_pays(&loop)) {
        event_at = INT64_MAX;
        int64_t start = clock_ns;
        CHECK_EQ(pl_loop_busy_poll(&loop, -1), 0);
        CHECK_CMP(clock_ns - start, >=, MOST);
        CHECK_CMP(clock_ns - start, <, MOST + MOST / 4);
        CHECK_CMP(++spins, <, 100);
    }
    CHECK_EQ(loop.busy.spins, spins);
    CHECK_EQ(loop.busy.hits, 0);
    CHECK_EQ(loop.busy.crowded, 0);
    pl_loop_fini(&loop);
}

/* What comes just after the spin has ended finds the loop asleep, for a short time. That sleep must
 * not count as one more reason to spin. */
static void what_is_missed_by_a_little_does_not_keep_it_on(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    (void)turns_until_it_spins(&loop, 10000, 100);
    int met = 0;
    for (int i = 0; i < 10000; i++)
        met += turn(&loop, MOST + 10000);
    CHECK_EQ(met, 0);
    CHECK_CMP(loop.busy.spins, <, 200);
    CHECK(!pl_loop_busy_pays(&loop));
    pl_loop_fini(&loop);
}

static void each_failure_puts_the_next_trial_off(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    int before = turns_until_it_spins(&loop, 10000, 10000);
    for (int failures = 0; failures < 20; failures++) {
        while (pl_loop_busy_pays(&loop)) {
            event_at = INT64_MAX;
            CHECK_EQ(pl_loop_busy_poll(&loop, -1), 0);
        }
        int turns = turns_until_it_spins(&loop, 10000, 10000);
        if (turns < 4096)
            CHECK_CMP(turns, >, before);
        CHECK_CMP(turns, <, 10000); /* there is always a next one */
        before = turns;
    }
    pl_loop_fini(&loop);
}

static void a_core_that_is_wanted_is_left(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    (void)turns_until_it_spins(&loop, 10000, 100);
    yield_ns = 3000000; /* somebody else ran meanwhile */
    event_at = INT64_MAX;
    CHECK_EQ(pl_loop_busy_poll(&loop, -1), 0);
    CHECK_EQ(loop.busy.crowded, 1);
    CHECK(!pl_loop_busy_pays(&loop));
    pl_loop_fini(&loop);
}

static void a_timer_bounds_it(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    (void)turns_until_it_spins(&loop, 10000, 100);
    event_at = INT64_MAX;
    int64_t start = clock_ns;
    CHECK_EQ(pl_loop_busy_poll(&loop, 10000), 0);
    CHECK_CMP(clock_ns - start, >=, 10000);
    CHECK_CMP(clock_ns - start, <, MOST / 2);
    pl_loop_fini(&loop);
}

static void nothing_op(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op;
}

static void posts_wake_ups_and_errors_are_seen(void)
{
    struct pl_loop loop;
    begin(&loop, MOST);
    (void)turns_until_it_spins(&loop, 10000, 100);
    event_at = INT64_MAX;

    struct pl_post post = {.op.run = nothing_op};
    pl_loop_post(&loop, &post);
    CHECK_EQ(pl_loop_busy_poll(&loop, -1), 1);
    CHECK_OK(pl_loop_collect(&loop));
    CHECK_EQ(pl_loop_run(&loop, NULL), 1);

    woken_by_look = &loop;
    CHECK_EQ(pl_loop_busy_poll(&loop, -1), 1);
    woken_by_look = NULL;
    /* The wake-up has been heard: it does not end the next one. */
    CHECK_EQ(pl_loop_busy_poll(&loop, -1), 0);
    /* One that comes when the spin has ended keeps the loop from its sleep. */
    pl_loop_wake(&loop);
    int64_t start = clock_ns;
    CHECK_EQ(pl_loop_wait(&loop, FOR_EVER), 0);
    CHECK_CMP(clock_ns - start, <, 10000);

    CHECK(pl_loop_busy_pays(&loop));
    poller_fails = -EINTR;
    CHECK_EQ(pl_loop_busy_poll(&loop, -1), -EINTR);
    pl_loop_fini(&loop);
}

static const struct pl_test tests[] = {
    PL_TEST(nobody_spins_unasked),
    PL_TEST(short_waits_bring_it_on_and_it_lasts),
    PL_TEST(what_saves_less_than_it_burns_is_left_off),
    PL_TEST(long_waits_never_bring_it_on),
    PL_TEST(sleeps_that_a_timeout_ends_do_not_count),
    PL_TEST(spins_in_vain_end_it),
    PL_TEST(what_is_missed_by_a_little_does_not_keep_it_on),
    PL_TEST(each_failure_puts_the_next_trial_off),
    PL_TEST(a_core_that_is_wanted_is_left),
    PL_TEST(a_timer_bounds_it),
    PL_TEST(posts_wake_ups_and_errors_are_seen),
};

PL_TEST_MAIN(tests)
