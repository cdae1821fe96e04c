/* test_thread.c - the crew: every job is done once, no call is lost, threads come and go. */
#include "pl_test.h"

#include <pthread.h>
#include <sched.h>

#define NS_PER_MS INT64_C(1000000)

struct work {
    struct pl_job job;
    struct pl_berth berth; /* its poster's */
    _Atomic int done;
    bool waited_for;
};

struct gang {
    struct pl_crew crew;
    int64_t idle_ns;
    _Atomic uint32_t alive;
    _Atomic uint32_t started;
    _Atomic uint64_t done;
};

static void gang_init(struct gang *gang, uint32_t threads, uint32_t room, int64_t idle_ns)
{
    struct pl_crew_config config = {.threads = threads, .room = room};
    *gang = (struct gang){.idle_ns = idle_ns};
    CHECK_OK(pl_crew_init(&gang->crew, &config));
}

static void *serve(void *arg)
{
    struct gang *gang = arg;
    for (;;) {
        if (pl_crew_excess(&gang->crew))
            break;
        struct pl_job *job = pl_crew_take(&gang->crew);
        if (job != NULL) {
            struct work *work = PL_CONTAINER_OF(job, struct work, job);
            CHECK_EQ(atomic_fetch_add(&work->done, 1), 0);
            atomic_fetch_add(&gang->done, 1);
            pl_crew_look(&gang->crew);
            if (work->waited_for)
                pl_berth_call(gang->crew.sys, &work->berth);
            continue;
        }
        if (pl_crew_closed(&gang->crew) && pl_crew_leave(&gang->crew))
            break;
        if (pl_crew_rest(&gang->crew, gang->idle_ns) == -ETIMEDOUT && pl_crew_leave(&gang->crew))
            break;
    }
    atomic_fetch_sub(&gang->alive, 1);
    return NULL;
}

static void start(struct gang *gang)
{
    pthread_t thread;
    pthread_attr_t attr;
    atomic_fetch_add(&gang->alive, 1);
    atomic_fetch_add(&gang->started, 1);
    CHECK_EQ(pthread_attr_init(&attr), 0);
    CHECK_EQ(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED), 0);
    CHECK_EQ(pthread_create(&thread, &attr, serve, gang), 0);
    CHECK_EQ(pthread_attr_destroy(&attr), 0);
}

static void post(struct gang *gang, struct work *work, int32_t priority)
{
    for (;;) {
        int posted = pl_crew_post(&gang->crew, &work->job, priority, false);
        if (posted == -EAGAIN) {
            int error = pl_crew_wait_room(&gang->crew, -1);
            if (error != -EINTR)
                CHECK_OK(error);
            continue;
        }
        CHECK_OK(posted);
        if (posted == PL_START)
            start(gang);
        return;
    }
}

static void gang_end(struct gang *gang)
{
    pl_crew_close(&gang->crew);
    while (atomic_load(&gang->alive) > 0)
        sched_yield();
    CHECK_EQ(gang->crew.queued, 0);
    CHECK_EQ(gang->crew.threads, 0);
    CHECK_EQ(gang->crew.looking, 0);
    CHECK_EQ(gang->crew.nidle, 0);
    CHECK(gang->crew.idle == NULL);
    pl_crew_fini(&gang->crew);
}

/* One job at a time, each waited for: a lost call ends in the runner's timeout. */
static void test_ping_pong(void)
{
    struct gang gang;
    gang_init(&gang, 4, 0, -1);
    for (int i = 0; i < 20000; i++) {
        struct work work = {.waited_for = true};
        pl_berth_prepare(&work.berth);
        post(&gang, &work, 0);
        while (pl_crew_await(&gang.crew, &work.berth, -1) < 0)
            continue;
        CHECK_EQ(work.done, 1);
    }
    /* One job at a time never wants a second thread. */
    CHECK_EQ(gang.started, 1);
    gang_end(&gang);
}

/* Threads that rest for moments only, so that their time is over just as they are called. */
static void test_timeouts_race_with_calls(void)
{
    struct gang gang;
    gang_init(&gang, 3, 0, 20000);
    uint64_t seed = 7;
    for (int i = 0; i < 20000; i++) {
        struct work work = {.waited_for = true};
        pl_berth_prepare(&work.berth);
        post(&gang, &work, 0);
        while (pl_crew_await(&gang.crew, &work.berth, -1) < 0)
            continue;
        CHECK_EQ(work.done, 1);
        int64_t until = pl_sys_default()->now() + (int64_t)(pl_test_random(&seed) % 40000);
        while (pl_sys_default()->now() < until)
            continue;
    }
    gang_end(&gang);
}

#define BATCH 400

struct poster {
    struct gang *gang;
    pthread_t thread;
    uint64_t seed;
    uint64_t withdrawn;
    struct work works[BATCH];
};

static void *post_many(void *arg)
{
    struct poster *poster = arg;
    for (int round = 0; round < 25; round++) {
        for (int i = 0; i < BATCH; i++) {
            struct work *work = &poster->works[i];
            *work = (struct work){.waited_for = true};
            pl_berth_prepare(&work->berth);
            int32_t priority = (int32_t)(pl_test_random(&poster->seed) % 8) - 3;
            post(poster->gang, work, priority > 1 ? priority : 0);
            if (pl_test_random(&poster->seed) % 16 == 0) {
                struct work *victim = &poster->works[pl_test_random(&poster->seed) % (i + 1)];
                if (pl_crew_withdraw(&poster->gang->crew, &victim->job)) {
                    CHECK_EQ(atomic_fetch_add(&victim->done, 1), 0);
                    pl_berth_call(pl_sys_default(), &victim->berth);
                    poster->withdrawn++;
                }
            }
        }
        for (int i = 0; i < BATCH; i++) {
            while (pl_crew_await(&poster->gang->crew, &poster->works[i].berth, -1) < 0)
                continue;
            CHECK_EQ(poster->works[i].done, 1);
        }
    }
    return NULL;
}

static void many_posters(uint32_t room)
{
    enum { POSTERS = 6 };
    struct gang gang;
    gang_init(&gang, 4, room, NS_PER_MS);
    static struct poster posters[POSTERS];
    uint64_t withdrawn = 0;
    for (int i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){.gang = &gang, .seed = (uint64_t)i + 1};
        CHECK_EQ(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]), 0);
    }
    for (int i = 0; i < POSTERS; i++) {
        CHECK_EQ(pthread_join(posters[i].thread, NULL), 0);
        withdrawn += posters[i].withdrawn;
    }
    CHECK_EQ(gang.done + withdrawn, (uint64_t)POSTERS * 25 * BATCH);
    gang_end(&gang);
}

static void test_many_posters(void)
{
    many_posters(0);
}

static void test_bounded_room(void)
{
    many_posters(5);
}

static void test_resize_under_load(void)
{
    struct gang gang;
    gang_init(&gang, 1, 0, -1);
    static struct poster poster;
    poster = (struct poster){.gang = &gang, .seed = 3};
    CHECK_EQ(pthread_create(&poster.thread, NULL, post_many, &poster), 0);
    for (uint32_t i = 0; i < 400; i++) {
        pl_crew_resize(&gang.crew, 1 + i * 7 % 6);
        while (pl_crew_want(&gang.crew))
            start(&gang);
        sched_yield();
    }
    pl_crew_resize(&gang.crew, 2);
    CHECK_EQ(pthread_join(poster.thread, NULL), 0);
    struct work last = {.waited_for = true};
    pl_berth_prepare(&last.berth);
    post(&gang, &last, 0);
    while (pl_crew_await(&gang.crew, &last.berth, -1) < 0)
        continue;
    while (atomic_load(&gang.alive) > 2)
        sched_yield();
    gang_end(&gang);
}

static void test_order(void)
{
    struct pl_crew crew;
    struct pl_crew_config config = {.threads = 1};
    CHECK_OK(pl_crew_init(&crew, &config));
    static const int32_t priorities[] = {0, 5, -1, 0, 5, 9, -1, INT32_MIN, INT32_MAX, 0};
    static const int expected[] = {8, 5, 1, 4, 0, 3, 9, 2, 6, 7};
    struct pl_job jobs[PL_ARRAY_LEN(priorities)] = {{0}};
    for (size_t i = 0; i < PL_ARRAY_LEN(jobs); i++)
        CHECK_EQ(pl_crew_post(&crew, &jobs[i], priorities[i], false),
                 i == 0 ? PL_START : PL_POSTED);
    for (size_t i = 0; i < PL_ARRAY_LEN(jobs); i++) {
        CHECK(pl_crew_take(&crew) == &jobs[expected[i]]);
        pl_crew_look(&crew);
    }
    CHECK(pl_crew_take(&crew) == NULL);
    CHECK(pl_crew_leave(&crew));
    CHECK_EQ(crew.nbands, 0);
    pl_crew_fini(&crew);
}

static void test_counts(void)
{
    struct pl_crew crew;
    struct pl_crew_config config = {.threads = 2, .room = 3};
    CHECK_OK(pl_crew_init(&crew, &config));
    struct pl_job jobs[5] = {{0}};
    CHECK_EQ(pl_crew_post(&crew, &jobs[0], 0, false), PL_START);
    /* One thread is on its way, and two jobs wait. */
    CHECK_EQ(pl_crew_post(&crew, &jobs[1], 0, false), PL_START);
    CHECK_EQ(pl_crew_post(&crew, &jobs[2], 0, false), PL_POSTED);
    CHECK_EQ(pl_crew_post(&crew, &jobs[3], 0, false), -EAGAIN);
    CHECK_EQ(pl_crew_wait_room(&crew, 0), -ETIMEDOUT);
    CHECK_EQ(pl_crew_post(&crew, &jobs[3], 0, true), PL_POSTED);
    /* The second could not be started: the first still comes for all of them. */
    CHECK_EQ(pl_crew_unstart(&crew), 1);
    CHECK(pl_crew_withdraw(&crew, &jobs[1]));
    CHECK(!pl_crew_withdraw(&crew, &jobs[1]));
    CHECK(!pl_crew_leave(&crew));
    CHECK(pl_crew_take(&crew) == &jobs[0]);
    /* At work: what is left wants another one. */
    CHECK(pl_crew_want(&crew));
    CHECK(!pl_crew_want(&crew));
    pl_crew_quit(&crew);
    pl_crew_close(&crew);
    CHECK_EQ(pl_crew_post(&crew, &jobs[4], 0, false), PL_ECLOSED);
    CHECK_EQ(pl_crew_wait_room(&crew, -1), PL_ECLOSED);
    CHECK(pl_crew_take(&crew) == &jobs[2]);
    pl_crew_look(&crew);
    CHECK(pl_crew_take(&crew) == &jobs[3]);
    pl_crew_look(&crew);
    CHECK(pl_crew_leave(&crew));
    pl_crew_fini(&crew);
}

/* Threads that rest, and the moment at which they do. */
static _Atomic int resting;
static _Atomic uint32_t rests_at; /* what the word was */

static int futex_wait_seen(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    atomic_store(&rests_at, expected);
    atomic_fetch_add(&resting, 1);
    return pl_sys_default()->futex_wait(word, expected, timeout_ns);
}

struct rester {
    struct pl_crew *crew;
    pthread_t thread;
    int result;
    _Atomic bool up;
};

static void *rest(void *arg)
{
    struct rester *rester = arg;
    rester->result = pl_crew_rest(rester->crew, 5000 * NS_PER_MS);
    atomic_store(&rester->up, true);
    return NULL;
}

static void lie_down(struct rester *rester, struct pl_crew *crew)
{
    int before = atomic_load(&resting);
    *rester = (struct rester){.crew = crew};
    CHECK_EQ(pthread_create(&rester->thread, NULL, rest, rester), 0);
    while (atomic_load(&resting) == before)
        sched_yield();
}

static void check_up(struct rester *rester)
{
    CHECK_EQ(pthread_join(rester->thread, NULL), 0);
    CHECK_EQ(rester->result, 0);
}

/* A job is left to a thread that is on its way; when that does not come, another is called. */
static void test_unstarted_thread_leaves_its_job(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.futex_wait = futex_wait_seen;
    struct pl_crew crew;
    struct pl_crew_config config = {.sys = &sys, .threads = 2};
    CHECK_OK(pl_crew_init(&crew, &config));
    struct pl_job jobs[3] = {{0}};
    CHECK_EQ(pl_crew_post(&crew, &jobs[0], 0, false), PL_START);
    CHECK_EQ(pl_crew_post(&crew, &jobs[1], 0, false), PL_START);
    for (int i = 0; i < 2; i++) { /* the first thread does both, and rests */
        CHECK(pl_crew_take(&crew) == &jobs[i]);
        pl_crew_look(&crew);
    }
    struct rester first;
    lie_down(&first, &crew);
    CHECK_EQ(pl_crew_post(&crew, &jobs[2], 0, false), PL_POSTED);
    CHECK_EQ(pl_crew_unstart(&crew), 1);
    check_up(&first);
    CHECK(pl_crew_take(&crew) == &jobs[2]);
    pl_crew_quit(&crew);
    pl_crew_fini(&crew);
}

/* A clock that stands still, or leaps. */
static _Atomic int64_t time_now;
static _Atomic int64_t time_leap;

static int64_t leaping_clock(void)
{
    return atomic_fetch_add(&time_now, atomic_load(&time_leap));
}

/* One that dozes gets up without being woken; one that has dozed for its time is woken. */
static void test_late_posts(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.futex_wait = futex_wait_seen;
    sys.now = leaping_clock;
    struct pl_crew crew;
    /* One core: with this clock nobody would end to spin. */
    struct pl_crew_config config = {.sys = &sys, .threads = 1, .cpus = 1};
    CHECK_OK(pl_crew_init(&crew, &config));
    struct pl_job jobs[3] = {{0}};
    uint32_t *word;
    CHECK_EQ(pl_crew_post_late(&crew, &jobs[0], 0, false, &word), PL_START);
    CHECK(word == NULL);
    struct rester rester;
    for (int i = 1; i < 3; i++) {
        CHECK(pl_crew_take(&crew) == &jobs[i - 1]);
        pl_crew_look(&crew);
        bool dozes = i == 1;
        atomic_store(&time_leap, dozes ? 0 : 500 * NS_PER_MS);
        lie_down(&rester, &crew);
        while (!dozes && atomic_load(&rests_at) != PL_BERTH_ASLEEP)
            sched_yield();
        CHECK_EQ(pl_crew_post_late(&crew, &jobs[i], 0, false, &word), PL_POSTED);
        CHECK_EQ(word != NULL, dozes);
        check_up(&rester);
    }
    CHECK(pl_crew_take(&crew) == &jobs[2]);
    pl_crew_quit(&crew);
    pl_crew_fini(&crew);
}

/* Late posts that come as the dozing ends, some with and some without a wake-up. */
static void test_late_posts_race_with_the_end_of_dozing(void)
{
    struct gang gang;
    gang_init(&gang, 2, 0, -1);
    uint64_t seed = 11;
    for (int i = 0; i < 300; i++) {
        struct work work = {.waited_for = true};
        pl_berth_prepare(&work.berth);
        uint32_t *word;
        int posted = pl_crew_post_late(&gang.crew, &work.job, 0, false, &word);
        CHECK_OK(posted);
        if (posted == PL_START)
            start(&gang);
        if (word != NULL && i % 2 == 0)
            (void)gang.crew.sys->futex_wake(word, 1);
        while (pl_crew_await(&gang.crew, &work.berth, -1) < 0)
            continue;
        CHECK_EQ(work.done, 1);
        int64_t until = pl_sys_default()->now() + (int64_t)(pl_test_random(&seed) % 2000000);
        while (pl_sys_default()->now() < until)
            sched_yield();
    }
    gang_end(&gang);
}

/* The same with one that leaves because there are to be fewer. */
static void test_thread_in_excess_leaves_its_job(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.futex_wait = futex_wait_seen;
    struct pl_crew crew;
    struct pl_crew_config config = {.sys = &sys, .threads = 3};
    CHECK_OK(pl_crew_init(&crew, &config));
    struct pl_job jobs[4] = {{0}};
    for (int i = 0; i < 3; i++)
        CHECK_EQ(pl_crew_post(&crew, &jobs[i], 0, false), PL_START);
    for (int i = 0; i < 3; i++)
        CHECK(pl_crew_take(&crew) == &jobs[i]);
    struct rester two[2];
    for (int i = 0; i < 2; i++) { /* the third stays at work */
        pl_crew_look(&crew);
        lie_down(&two[i], &crew);
    }
    pl_crew_resize(&crew, 2);
    check_up(&two[0]);
    CHECK(!atomic_load(&two[1].up));
    CHECK_EQ(pl_crew_post(&crew, &jobs[3], 0, false), PL_POSTED);
    CHECK(pl_crew_excess(&crew));
    check_up(&two[1]);
    CHECK(pl_crew_take(&crew) == &jobs[3]);
    pl_crew_quit(&crew);
    pl_crew_quit(&crew);
    pl_crew_fini(&crew);
}

static int allocations_left;

static void *scarce_alloc(size_t size)
{
    return allocations_left-- > 0 ? pl_sys_default()->alloc(size) : NULL;
}

static void *scarce_realloc(void *ptr, size_t size)
{
    return allocations_left-- > 0 ? pl_sys_default()->realloc(ptr, size) : NULL;
}

static void test_out_of_memory(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.alloc = scarce_alloc;
    sys.realloc = scarce_realloc;
    for (int budget = 0;; budget++) {
        struct pl_crew crew;
        struct pl_crew_config config = {.sys = &sys, .threads = 1};
        allocations_left = budget;
        CHECK_OK(pl_crew_init(&crew, &config));
        struct pl_job job = {0};
        int posted = pl_crew_post(&crew, &job, 1, false);
        if (posted < 0) {
            CHECK_EQ(posted, -ENOMEM);
            CHECK_EQ(crew.queued, 0);
            CHECK_EQ(crew.threads, 0);
            /* The usual priority needs none. */
            CHECK_EQ(pl_crew_post(&crew, &job, 0, false), PL_START);
        }
        CHECK(pl_crew_take(&crew) == &job);
        pl_crew_fini(&crew);
        if (posted >= 0)
            return;
    }
}

static const struct pl_test tests[] = {
    PL_TEST(test_order),
    PL_TEST(test_counts),
    PL_TEST(test_unstarted_thread_leaves_its_job),
    PL_TEST(test_late_posts),
    PL_TEST(test_late_posts_race_with_the_end_of_dozing),
    PL_TEST(test_thread_in_excess_leaves_its_job),
    PL_TEST(test_out_of_memory),
    PL_TEST(test_ping_pong),
    PL_TEST(test_timeouts_race_with_calls),
    PL_TEST(test_many_posters),
    PL_TEST(test_bounded_room),
    PL_TEST(test_resize_under_load),
};

PL_TEST_MAIN(tests)
