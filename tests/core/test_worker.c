/* test_worker.c - worker processes by fork: work, deaths, replacement, back-off, the end. */
#include "pl_test.h"

#include <signal.h>
#include <unistd.h>

enum order { DOUBLE, DIE, SEGV, GARBAGE };

struct message {
    uint64_t order;
    uint64_t value;
};

static int serve(struct pl_member *member, void *arg)
{
    (void)arg;
    for (;;) {
        uint32_t cell;
        int found = pl_member_take(member, &cell);
        if (found == 0) {
            (void)!pl_member_wait(member); /* 0 or -EINTR: look again */
            continue;
        }
        if (found < 0)
            return 0;
        struct message message;
        memcpy(&message, member->slots[cell].bytes, sizeof(message));
        switch (message.order) {
        case DIE:
            _exit(3);
        case SEGV:
            (void)raise(SIGKILL);
            break;
        case GARBAGE:
            atomic_store(&member->mine->done_tail, 12345678);
            (void)pause();
            break;
        default:
            break;
        }
        message.value *= 2;
        memcpy(member->slots[cell].bytes, &message, sizeof(message));
        pl_member_done(member, cell);
    }
}

static int fail_at_start(struct pl_member *member, void *arg)
{
    (void)member;
    (void)arg;
    return 9;
}

struct tally {
    uint64_t done;
    uint64_t lost;
    int status;
};

static struct tally tally; /* pl_workers_tend hands on the worker's argument only */

static void on_done(struct pl_pool *pool, uint32_t cell, void *arg)
{
    (void)arg;
    struct message message;
    memcpy(&message, pool->slots[cell].bytes, sizeof(message));
    CHECK_EQ(message.value, 2 * (uintptr_t)pool->cells[cell].user);
    tally.done++;
    pl_pool_release(pool, cell);
}

static void on_lost(struct pl_pool *pool, uint32_t cell, int status, void *arg)
{
    (void)pool;
    (void)cell;
    (void)arg;
    tally.lost++;
    tally.status = status;
}

static bool post(struct pl_pool *pool, enum order order, uintptr_t value)
{
    uint32_t cell;
    if (pl_pool_stage(pool, (void *)value, &cell) < 0)
        return false;
    struct message message = {.order = order, .value = value};
    memcpy(pool->slots[cell].bytes, &message, sizeof(message));
    pl_pool_post(pool, cell);
    return true;
}

static void settle(struct pl_pool *pool, struct pl_workers *workers, uint64_t total)
{
    while (tally.done + tally.lost < total) {
        uint32_t tags;
        CHECK_OK(pl_workers_tend(workers, on_done));
        if (tally.done + tally.lost >= total)
            break;
        pl_pool_flush(pool);
        pl_pool_arm(pool, PL_ARM_ANY);
        if (pl_pool_ready(pool))
            continue;
        CHECK_CMP(pl_pool_wait(pool, 20 * PL_NSEC_PER_SEC, &tags), !=, 0);
    }
}

static void work_and_deaths(void)
{
    struct pl_pool pool;
    struct pl_workers *workers;
    struct pl_pool_config config = {.workers = 2, .slots = 64, .limit = 1 << 20};
    pid_t pids[4];
    tally = (struct tally){0};
    CHECK_OK(pl_pool_init(&pool, &config));
    CHECK_OK(pl_workers_start(&pool, 2, serve, NULL, on_lost, &workers));
    CHECK_EQ(pl_workers_pids(workers, pids, 4), 2);
    uint64_t total = 0;
    for (uintptr_t i = 0; i < 20000; i++) {
        while (!post(&pool, DOUBLE, i))
            settle(&pool, workers, total > 32 ? total - 32 : total);
        total++;
    }
    settle(&pool, workers, total);
    CHECK_EQ(tally.lost, 0);

    CHECK(post(&pool, DIE, 0));
    for (uintptr_t i = 0; i < 50; i++)
        CHECK(post(&pool, DOUBLE, i));
    total += 51;
    settle(&pool, workers, total);
    CHECK_EQ(tally.lost, 1);
    CHECK_EQ(WEXITSTATUS(tally.status), 3);

    CHECK(post(&pool, SEGV, 0));
    total++;
    settle(&pool, workers, total);
    CHECK_EQ(tally.lost, 2);
    CHECK_EQ(tally.status, SIGKILL);

    CHECK(post(&pool, GARBAGE, 0));
    for (uintptr_t i = 0; i < 50; i++)
        CHECK(post(&pool, DOUBLE, i));
    total += 51;
    settle(&pool, workers, total);
    CHECK_EQ(tally.lost, 3);

    uint32_t n = pl_workers_pids(workers, pids, 4);
    pl_workers_stop(workers, PL_NSEC_PER_SEC);
    for (uint32_t i = 0; i < n; i++)
        CHECK_EQ(pl_sys_default()->kill(pids[i], 0), -ESRCH);
    pl_pool_fini(&pool);
}

static void stillborn_workers_are_slowed_down(void)
{
    struct pl_pool pool;
    struct pl_workers *workers;
    struct pl_pool_config config = {.workers = 1, .limit = 1 << 20};
    CHECK_OK(pl_pool_init(&pool, &config));
    CHECK_OK(pl_workers_start(&pool, 1, fail_at_start, NULL, on_lost, &workers));
    int64_t end = pl_sys_default()->now() + PL_NSEC_PER_SEC / 2;
    int deaths = 0;
    while (pl_sys_default()->now() < end) {
        uint32_t tags;
        (void)!pl_pool_wait(&pool, PL_NSEC_PER_SEC / 10, &tags); /* nothing, or a death */
        int n = pl_workers_tend(workers, on_done);
        CHECK_OK(n);
        deaths += n;
    }
    CHECK_CMP(deaths, >=, 2);
    CHECK_CMP(deaths, <=, 8); /* 10, 20, 40 ... ms apart */
    pl_workers_stop(workers, 0);
    pl_pool_fini(&pool);
}

static void a_stubborn_worker_is_killed_at_the_end(void)
{
    struct pl_pool pool;
    struct pl_workers *workers;
    struct pl_pool_config config = {.workers = 1, .limit = 1 << 20};
    CHECK_OK(pl_pool_init(&pool, &config));
    CHECK_OK(pl_workers_start(&pool, 1, serve, NULL, on_lost, &workers));
    CHECK(post(&pool, GARBAGE, 0));
    while (!pl_pool_ready(&pool))
        ;
    pl_workers_stop(workers, 1000000);
    pl_pool_fini(&pool);
}

static void a_child_knows_that_the_pool_is_not_its_own(void)
{
    struct pl_pool pool;
    struct pl_pool_config config = {.workers = 1, .limit = 1 << 20};
    CHECK_OK(pl_pool_init(&pool, &config));
    CHECK(!pl_pool_forked(&pool));
    pid_t pid = fork();
    CHECK_SYS(pid);
    if (pid == 0) {
        bool told = pl_pool_forked(&pool);
        pl_pool_fini(&pool);
        _exit(told ? 0 : 1);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    pl_pool_fini(&pool);
}

static const struct pl_test tests[] = {
    PL_TEST(work_and_deaths),
    PL_TEST(stillborn_workers_are_slowed_down),
    PL_TEST(a_stubborn_worker_is_killed_at_the_end),
    PL_TEST(a_child_knows_that_the_pool_is_not_its_own),
};

PL_TEST_MAIN(tests)
