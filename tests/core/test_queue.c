/* test_queue.c - the ready queue: growth, wrap-around, and what a run takes from it. */
#include "pl_internal.h"
#include "pl_test.h"

static void wraps_around_without_growing(void)
{
    struct pl_queue q = {0};
    struct pl_op ops[3];
    const struct pl_sys *sys = pl_sys_default();
    /* The indices start close to their end, so that they overflow on the way. */
    CHECK_OK(pl__queue_reserve(sys, &q, 1));
    uint32_t mask = q.mask;
    q.head = q.tail = UINT32_MAX - 100;
    for (int i = 0; i < 1000; i++) {
        for (int k = 0; k < 3; k++)
            CHECK_OK(pl__queue_push(sys, &q, &ops[k]));
        CHECK_EQ(pl_queue_len(&q), 3);
        for (int k = 0; k < 3; k++)
            CHECK(pl__queue_pop(&q) == &ops[k]);
    }
    CHECK_EQ(q.mask, mask);
    pl__queue_fini(sys, &q);
}

static void grows_and_keeps_the_order(void)
{
    enum { N = 100000 };
    struct pl_queue q = {0};
    const struct pl_sys *sys = pl_sys_default();
    struct pl_op *ops = calloc(N, sizeof(*ops));
    CHECK(ops != NULL);
    uint32_t in = 0;
    uint32_t out = 0;
    /* Three in, one out: each doubling meets a wrapped ring. */
    while (in < N) {
        for (int k = 0; k < 3 && in < N; k++)
            CHECK_OK(pl__queue_push(sys, &q, &ops[in++]));
        CHECK(pl__queue_pop(&q) == &ops[out++]);
    }
    while (out < N)
        CHECK(pl__queue_pop(&q) == &ops[out++]);
    CHECK_EQ(pl_queue_len(&q), 0);
    pl__queue_fini(sys, &q);
    free(ops);
}

static void reserves_room_that_cannot_fail(void)
{
    struct pl_queue q = {0};
    struct pl_op op;
    const struct pl_sys *sys = pl_sys_default();
    CHECK_OK(pl__queue_reserve(sys, &q, 1000));
    struct pl_op **slots = q.slots;
    for (int i = 0; i < 1000; i++)
        CHECK_OK(pl__queue_push(sys, &q, &op));
    CHECK(q.slots == slots);
    CHECK_EQ(pl__queue_reserve(sys, &q, UINT32_MAX - 10), -ENOMEM);
    CHECK_EQ(pl_queue_len(&q), 1000);
    pl__queue_fini(sys, &q);
}

static const struct pl_test tests[] = {
    PL_TEST(wraps_around_without_growing),
    PL_TEST(grows_and_keeps_the_order),
    PL_TEST(reserves_room_that_cannot_fail),
};
PL_TEST_MAIN(tests)
