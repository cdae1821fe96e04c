/* test_timer.c - timers against a plain model, with a clock that the test turns. */
#include "pl_internal.h"
#include "pl_test.h"

#include <limits.h>

static int64_t clock_now;

static int64_t fake_now(void)
{
    return clock_now;
}

static struct pl_sys fake_sys(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.now = fake_now;
    return sys;
}

#define MANY 500

struct item {
    struct pl_timer timer;
    int64_t deadline; /* the model's */
    uint64_t order;
    bool active;
};

static struct item items[MANY];
static int fired[MANY * 40];
static int nfired;

static void record(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct item *item = PL_CONTAINER_OF(op, struct item, timer.op);
    CHECK(!pl_timer_active(&item->timer));
    fired[nfired++] = (int)(item - items);
}

static void reset(void)
{
    memset(items, 0, sizeof(items));
    for (int i = 0; i < MANY; i++)
        items[i].timer.op.run = record;
    nfired = 0;
    clock_now = 1000;
}

static void turn(struct pl_loop *loop)
{
    CHECK_OK(pl_loop_collect(loop));
    CHECK_OK(pl_loop_run(loop, NULL));
}

static void equal_deadlines_run_in_start_order(void)
{
    struct pl_sys sys = fake_sys();
    struct pl_loop loop;
    reset();
    CHECK_OK(pl_test_loop(&loop, &sys));
    for (int i = 0; i < MANY; i++)
        CHECK_OK(pl_timer_start(&loop, &items[(i * 7) % MANY].timer, 2000));
    clock_now = 1999;
    turn(&loop);
    CHECK_EQ(nfired, 0);
    clock_now = 2000;
    turn(&loop);
    CHECK_EQ(nfired, MANY);
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(fired[i], (i * 7) % MANY);
    pl_loop_fini(&loop);
}

static void a_moved_timer_starts_anew(void)
{
    struct pl_sys sys = fake_sys();
    struct pl_loop loop;
    reset();
    CHECK_OK(pl_test_loop(&loop, &sys));
    CHECK_OK(pl_timer_start(&loop, &items[0].timer, 2000));
    CHECK_OK(pl_timer_start(&loop, &items[1].timer, 2000));
    CHECK_OK(pl_timer_start(&loop, &items[0].timer, 2000)); /* now behind the other */
    CHECK_OK(pl_timer_start(&loop, &items[2].timer, 5000));
    CHECK_OK(pl_timer_start(&loop, &items[2].timer, 1500)); /* earlier */
    CHECK_EQ(pl_timers_len(&loop.timers), 3);
    clock_now = 9000;
    turn(&loop);
    CHECK_EQ(nfired, 3);
    CHECK_EQ(fired[0], 2);
    CHECK_EQ(fired[1], 1);
    CHECK_EQ(fired[2], 0);
    CHECK(!pl_timer_stop(&loop, &items[0].timer));
    pl_loop_fini(&loop);
}

/* Starts, moves, stops and fires at random, and compares with a search through all. */
static void agrees_with_a_model(void)
{
    struct pl_sys sys = fake_sys();
    struct pl_loop loop;
    uint64_t seed = 42;
    uint64_t order = 0;
    reset();
    CHECK_OK(pl_test_loop(&loop, &sys));
    for (int step = 0; step < 20000; step++) {
        struct item *item = &items[pl_test_random(&seed) % MANY];
        switch (pl_test_random(&seed) % 8) {
        default:
            /* The same delay most of the time, and for long stretches always: those go to the
             * run, others to the heap. */
            item->deadline = clock_now + (pl_test_random(&seed) % 4 != 0 || step / 2000 % 2 != 0
                                              ? 32
                                              : (int64_t)(pl_test_random(&seed) % 64));
            item->order = order++;
            item->active = true;
            CHECK_OK(pl_timer_start(&loop, &item->timer, item->deadline));
            break;
        case 1:
        case 2:
        case 3:
            CHECK_EQ(pl_timer_stop(&loop, &item->timer), item->active);
            item->active = false;
            break;
        case 0:
            clock_now += (int64_t)(pl_test_random(&seed) % 16);
            nfired = 0;
            turn(&loop);
            for (int i = 0; i < nfired; i++) {
                struct item *got = &items[fired[i]];
                CHECK(got->active);
                for (int k = 0; k < MANY; k++) {
                    if (items[k].active && &items[k] != got)
                        CHECK(items[k].deadline > got->deadline ||
                              (items[k].deadline == got->deadline && items[k].order > got->order));
                }
                got->active = false;
            }
            for (int k = 0; k < MANY; k++)
                CHECK(!items[k].active || items[k].deadline > clock_now);
            break;
        }
        CHECK_EQ(pl_timer_active(&item->timer), item->active);
    }
    pl_loop_fini(&loop);
    for (int k = 0; k < MANY; k++)
        CHECK(!pl_timer_active(&items[k].timer));
}

/* What keep-alive timers do: each is stopped and started again, in any order. */
static void stopped_timers_leave_no_memory_behind(void)
{
    struct pl_sys sys = fake_sys();
    struct pl_loop loop;
    uint64_t seed = 7;
    reset();
    CHECK_OK(pl_loop_init(&loop, &(struct pl_loop_config){.sys = &sys}));
    for (int step = 0; step < 100000; step++) {
        struct item *item = &items[pl_test_random(&seed) % 100];
        clock_now++;
        CHECK_EQ(pl_timer_stop(&loop, &item->timer), item->active);
        item->active = true;
        CHECK_OK(pl_timer_start(&loop, &item->timer, clock_now + 60000));
    }
    CHECK_EQ(pl_timers_len(&loop.timers), 100);
    CHECK_EQ(loop.timers.len, 0); /* no work for the heap */
    CHECK_CMP(loop.timers.run_cap, <=, 256);
    uint32_t met = 0;
    for (uint32_t i = 0; i < pl_timers_places(&loop.timers); i++)
        met += pl_timers_at(&loop.timers, i) != NULL;
    CHECK_EQ(met, 100);
    clock_now += 60000;
    turn(&loop);
    CHECK_EQ(nfired, 100);
    CHECK(pl_timers_first(&loop.timers) == NULL);
    pl_loop_fini(&loop);
}

static void extremes_do_not_overflow(void)
{
    struct pl_sys sys = fake_sys();
    struct pl_loop loop;
    reset();
    CHECK_OK(pl_test_loop(&loop, &sys));
    CHECK_EQ(pl_loop_timeout(&loop), -1);
    CHECK_OK(pl_timer_start(&loop, &items[0].timer, INT64_MAX));
    CHECK_CMP(pl_loop_timeout(&loop), >, 0);
    turn(&loop);
    CHECK_EQ(nfired, 0);
    CHECK_OK(pl_timer_start(&loop, &items[1].timer, INT64_MIN));
    CHECK_EQ(pl_loop_timeout(&loop), 0);
    turn(&loop);
    CHECK_EQ(nfired, 1);
    CHECK_EQ(fired[0], 1);
    CHECK_OK(pl_timer_start(&loop, &items[2].timer, clock_now + 250));
    CHECK_EQ(pl_loop_timeout(&loop), 250);
    pl_loop_fini(&loop);
}

static struct pl_timer *to_stop;
static bool stopped;

static void stop_other(struct pl_loop *loop, struct pl_op *op)
{
    (void)op;
    stopped = pl_timer_stop(loop, to_stop);
}

static void restart_self(struct pl_loop *loop, struct pl_op *op)
{
    struct pl_timer *timer = PL_CONTAINER_OF(op, struct pl_timer, op);
    nfired++;
    CHECK_OK(pl_timer_start(loop, timer, clock_now)); /* due already, but not in this run */
}

static void callbacks_may_start_and_stop(void)
{
    struct pl_sys sys = fake_sys();
    struct pl_loop loop;
    struct pl_timer stopper = {.op.run = stop_other};
    struct pl_timer self = {.op.run = restart_self};
    reset();
    CHECK_OK(pl_test_loop(&loop, &sys));
    to_stop = &items[0].timer;
    /* Both are due in one collect: the second is in the ready queue by then. */
    CHECK_OK(pl_timer_start(&loop, &stopper, 1000));
    CHECK_OK(pl_timer_start(&loop, &items[0].timer, 1000));
    stopped = true;
    turn(&loop);
    CHECK(!stopped);
    CHECK_EQ(nfired, 1);

    CHECK_OK(pl_timer_start(&loop, &items[0].timer, 3000));
    CHECK_OK(pl_timer_start(&loop, &stopper, 1000));
    turn(&loop);
    CHECK(stopped);
    nfired = 0;
    CHECK_OK(pl_timer_start(&loop, &self, 1000));
    turn(&loop);
    CHECK_EQ(nfired, 1);
    turn(&loop);
    CHECK_EQ(nfired, 2);
    pl_loop_fini(&loop);
}

static void a_real_wait_is_never_early(void)
{
    struct pl_loop loop;
    reset();
    CHECK_OK(pl_test_loop(&loop, NULL));
    for (int i = 0; i < 20; i++) {
        int64_t deadline = pl_loop_now(&loop) + 300000 * i;
        nfired = 0;
        CHECK_OK(pl_timer_start(&loop, &items[0].timer, deadline));
        RUN_UNTIL(&loop, nfired == 1);
        CHECK_CMP(pl_loop_now(&loop), >=, deadline);
    }
    pl_loop_fini(&loop);
}

static const struct pl_test tests[] = {
    PL_TEST(equal_deadlines_run_in_start_order),
    PL_TEST(a_moved_timer_starts_anew),
    PL_TEST(agrees_with_a_model),
    PL_TEST(stopped_timers_leave_no_memory_behind),
    PL_TEST(extremes_do_not_overflow),
    PL_TEST(callbacks_may_start_and_stop),
    PL_TEST(a_real_wait_is_never_early),
};
PL_TEST_MAIN(tests)
