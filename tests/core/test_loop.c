/* test_loop.c - iterations, stop, posts and wake-ups from other threads. */
#include "pl_internal.h"
#include "pl_test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

static int ran;

static void count(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op;
    ran++;
}

static void again(struct pl_loop *loop, struct pl_op *op)
{
    ran++;
    CHECK_OK(pl_loop_enqueue(loop, op));
}

static void runs_exactly_what_was_ready(void)
{
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, NULL));
    struct pl_op ops[5] = {{again}, {again}, {again}, {again}, {again}};
    for (int i = 0; i < 5; i++)
        CHECK_OK(pl_loop_enqueue(&loop, &ops[i]));
    for (int i = 1; i <= 100; i++) {
        ran = 0;
        CHECK_EQ(pl_loop_once(&loop), 5);
        CHECK_EQ(ran, 5);
        CHECK_EQ(loop.stats.iterations, i);
    }
    CHECK_EQ(loop.stats.ops, 500);
    pl_loop_fini(&loop);
}

static volatile int stop_flag;

static void stop_here(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    (void)op;
    ran++;
    stop_flag = 1;
}

static void stop_leaves_the_rest_queued(void)
{
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, NULL));
    struct pl_op ops[3] = {{count}, {stop_here}, {count}};
    for (int i = 0; i < 3; i++)
        CHECK_OK(pl_loop_enqueue(&loop, &ops[i]));
    ran = 0;
    stop_flag = 0;
    CHECK_EQ(pl_loop_run(&loop, &stop_flag), 2);
    CHECK_EQ(ran, 2);
    CHECK_EQ(pl_queue_len(&loop.ready), 1);
    CHECK_EQ(pl_loop_timeout(&loop), 0);
    stop_flag = 0;
    CHECK_EQ(pl_loop_run(&loop, &stop_flag), 1);
    CHECK_EQ(ran, 3);
    pl_loop_fini(&loop);
}

/* ---- posts --------------------------------------------------------------- */

static _Atomic int wake_writes;

static ssize_t counting_write(int fd, const void *buf, size_t len)
{
    /* relaxed: a count that is read after the threads have been joined. */
    atomic_fetch_add_explicit(&wake_writes, 1, memory_order_relaxed);
    return pl_sys_default()->write(fd, buf, len);
}

struct numbered {
    struct pl_post post;
    int number;
};

static int order[64];

static void record(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct numbered *n = PL_CONTAINER_OF(op, struct numbered, post.op);
    order[ran++] = n->number;
}

static void posts_to_an_awake_loop_write_nothing(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.write = counting_write;
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, &sys));
    struct numbered nodes[64];
    ran = 0;
    wake_writes = 0;
    for (int i = 0; i < 64; i++) {
        nodes[i] = (struct numbered){.post.op.run = record, .number = i};
        pl_loop_post(&loop, &nodes[i].post);
    }
    CHECK_EQ(pl_loop_timeout(&loop), 0);
    CHECK_EQ(pl_loop_once(&loop), 64);
    for (int i = 0; i < 64; i++)
        CHECK_EQ(order[i], i);
    CHECK_EQ(wake_writes, 0);
    pl_loop_fini(&loop);
}

static struct pl_loop *posted_loop;
static struct numbered batch[64];

static void post_batch(void)
{
    for (int i = 0; i < 64; i++) {
        batch[i] = (struct numbered){.post.op.run = record, .number = i};
        pl_loop_post(posted_loop, &batch[i].post);
    }
}

/* Called in the loop's own poll: what another thread would do while it is blocked. */
static int post_while_waiting(int epfd, struct epoll_event *events, int max, int64_t timeout_ns)
{
    post_batch();
    return pl_sys_default()->epoll_wait(epfd, events, max, timeout_ns);
}

static int post_while_entering(int fd, uint32_t submit, uint32_t least, uint32_t flags,
                               const void *arg, size_t size)
{
    if (least > 0)
        post_batch();
    return pl_sys_default()->uring_enter(fd, submit, least, flags, arg, size);
}

static void a_batch_of_posts_writes_once(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.write = counting_write;
    sys.epoll_wait = post_while_waiting;
    sys.uring_enter = post_while_entering;
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, &sys));
    posted_loop = &loop;
    ran = 0;
    wake_writes = 0;
    CHECK_EQ(pl_loop_timeout(&loop), -1);
    CHECK_EQ(pl_loop_once(&loop), 64);
    CHECK_EQ(wake_writes, 1);
    CHECK_EQ(loop.stats.wakeups, 1);
    for (int i = 0; i < 64; i++)
        CHECK_EQ(order[i], i);
    pl_loop_fini(&loop);
}

/* What another thread does that holds a lock while the loop is blocked. */
static void leave_and_call(void)
{
    batch[0] = (struct numbered){.post.op.run = record, .number = 7};
    CHECK(pl_loop_leave(posted_loop, &batch[0].post));
    CHECK_EQ(wake_writes, 0);
    pl_loop_call(posted_loop);
}

static int leave_while_waiting(int epfd, struct epoll_event *events, int max, int64_t timeout_ns)
{
    if (timeout_ns != 0)
        leave_and_call();
    return pl_sys_default()->epoll_wait(epfd, events, max, timeout_ns);
}

static int leave_while_entering(int fd, uint32_t submit, uint32_t least, uint32_t flags,
                                const void *arg, size_t size)
{
    if (least > 0)
        leave_and_call();
    return pl_sys_default()->uring_enter(fd, submit, least, flags, arg, size);
}

static void a_post_and_its_wake_up_can_be_apart(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.write = counting_write;
    sys.epoll_wait = leave_while_waiting;
    sys.uring_enter = leave_while_entering;
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, &sys));
    posted_loop = &loop;
    ran = 0;
    wake_writes = 0;
    CHECK_EQ(pl_loop_once(&loop), 1);
    CHECK_EQ(order[0], 7);
    CHECK_EQ(wake_writes, 1);
    struct numbered awake = {.post.op.run = record, .number = 8};
    CHECK(!pl_loop_leave(&loop, &awake.post));
    CHECK_EQ(pl_loop_once(&loop), 1);
    CHECK_EQ(order[1], 8);
    CHECK_EQ(wake_writes, 1);
    CHECK_EQ(atomic_load(&loop.callers), 0);
    pl_loop_fini(&loop);
}

/* The loop ends while one who has posted is still to call it: its descriptor stays until then. */
static _Atomic int closed_at; /* the descriptor; -1 while it is open */
static _Atomic int yields;

static int noting_close(int fd)
{
    if (fd == posted_loop->wake_fd)
        atomic_store(&closed_at, fd);
    return pl_sys_default()->close(fd);
}

static void counting_yield(void)
{
    (void)atomic_fetch_add(&yields, 1);
    pl_sys_default()->yield();
}

static void *call_late(void *arg)
{
    while (atomic_load(&yields) == 0)
        pl_sys_default()->yield();
    CHECK_EQ(atomic_load(&closed_at), -1);
    pl_loop_call(arg);
    return NULL;
}

static void the_end_waits_for_callers(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.close = noting_close;
    sys.yield = counting_yield;
    struct pl_loop loop;
    pthread_t thread;
    CHECK_OK(pl_test_loop(&loop, &sys));
    posted_loop = &loop;
    atomic_store(&closed_at, -1);
    atomic_store(&yields, 0);
    /* Relaxed: the loop is in this thread. As if it slept when the post came. */
    atomic_store_explicit(&loop.state, PL_LOOP_SLEEPING, memory_order_relaxed);
    struct numbered node = {.post.op.run = record};
    CHECK(pl_loop_leave(&loop, &node.post));
    CHECK_EQ(pthread_create(&thread, NULL, call_late, &loop), 0);
    pl_loop_fini(&loop);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(atomic_load(&closed_at) >= 0);
}

/* Threads post one node each, again and again, and wait until it has run: every wake-up
 * that is lost would leave a thread and the loop waiting for each other. */
#define POSTERS 3
#define ROUNDS 20000

struct poster {
    struct pl_post post;
    struct pl_loop *loop;
    _Atomic uint32_t done;
    pthread_t thread;
};

static void poster_op(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct poster *p = PL_CONTAINER_OF(op, struct poster, post.op);
    ran++;
    /* release: the node is the thread's again; pairs with the acquire in poster_main. */
    uint32_t done = atomic_load_explicit(&p->done, memory_order_relaxed) + 1;
    atomic_store_explicit(&p->done, done, memory_order_release);
    (void)pl_sys_default()->futex_wake((uint32_t *)(void *)&p->done, 1);
}

static void *poster_main(void *arg)
{
    struct poster *p = arg;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        pl_loop_post(p->loop, &p->post);
        uint32_t done;
        /* acquire: pairs with poster_op. */
        while ((done = atomic_load_explicit(&p->done, memory_order_acquire)) == i)
            (void)pl_sys_default()->futex_wait((uint32_t *)(void *)&p->done, i, -1);
        CHECK_EQ(done, i + 1);
    }
    return NULL;
}

static void no_wake_up_is_lost(void)
{
    struct pl_loop loop;
    static struct poster posters[POSTERS];
    CHECK_OK(pl_test_loop(&loop, NULL));
    ran = 0;
    for (int i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){.post.op.run = poster_op, .loop = &loop};
        CHECK_EQ(pthread_create(&posters[i].thread, NULL, poster_main, &posters[i]), 0);
    }
    RUN_UNTIL(&loop, ran == POSTERS * ROUNDS);
    for (int i = 0; i < POSTERS; i++)
        CHECK_EQ(pthread_join(posters[i].thread, NULL), 0);
    pl_loop_fini(&loop);
}

static void *wake_main(void *arg)
{
    pl_loop_wake(arg);
    return NULL;
}

static void wake_ends_a_wait(void)
{
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, NULL));
    for (int i = 0; i < 200; i++) {
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, wake_main, &loop), 0);
        CHECK_OK(pl_loop_wait(&loop, -1)); /* would never return */
        CHECK_OK(pl_loop_collect(&loop));
        CHECK_EQ(pthread_join(thread, NULL), 0);
    }
    /* Asked for before the wait: the next one does not block. */
    pl_loop_wake(&loop);
    CHECK_OK(pl_loop_wait(&loop, -1));
    pl_loop_fini(&loop);
}

static struct pl_loop *signal_loop;

static void on_signal(int sig)
{
    (void)sig;
    pl_loop_wake(signal_loop);
}

static int raising_wait(int epfd, struct epoll_event *events, int max, int64_t timeout_ns)
{
    (void)epfd;
    (void)events;
    (void)max;
    (void)timeout_ns;
    (void)raise(SIGUSR1);
    return -EINTR;
}

static int raising_enter(int fd, uint32_t submit, uint32_t least, uint32_t flags, const void *arg,
                         size_t size)
{
    (void)fd, (void)submit, (void)least, (void)flags, (void)arg, (void)size;
    (void)raise(SIGUSR1);
    return -EINTR;
}

static void an_interrupted_wait_tells(void)
{
    struct pl_sys sys = *pl_sys_default();
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, &sys));
    signal_loop = &loop;
    struct sigaction action = {.sa_handler = on_signal};
    CHECK_SYS(sigaction(SIGUSR1, &action, NULL));
    sys.epoll_wait = raising_wait;
    sys.uring_enter = raising_enter;
    CHECK_EQ(pl_loop_wait(&loop, -1), -EINTR);
    CHECK_OK(pl_loop_collect(&loop));
    sys.epoll_wait = pl_sys_default()->epoll_wait;
    sys.uring_enter = pl_sys_default()->uring_enter;
    CHECK_OK(pl_loop_wait(&loop, -1)); /* the handler's wake-up was kept */
    pl_loop_fini(&loop);
}

static void refuses_what_is_not_there(void)
{
    struct pl_loop loop;
    struct pl_loop_config config = {.backend = PL_BACKEND_EPOLL};
    CHECK_OK(pl_loop_init(&loop, &config));
    CHECK(strcmp(pl_loop_backend_name(&loop), "epoll") == 0);
    pl_loop_fini(&loop);
    config.backend = (enum pl_backend)99;
    CHECK_EQ(pl_loop_init(&loop, &config), -EINVAL);
    struct pl_loop zeroed = {0};
    pl_loop_fini(&zeroed);
}

static void two_loops_do_not_meet(void)
{
    struct pl_loop a;
    struct pl_loop b;
    CHECK_OK(pl_test_loop(&a, NULL));
    CHECK_OK(pl_test_loop(&b, NULL));
    struct pl_op op = {count};
    ran = 0;
    CHECK_OK(pl_loop_enqueue(&a, &op));
    CHECK_EQ(pl_loop_run(&b, NULL), 0);
    CHECK_EQ(pl_loop_run(&a, NULL), 1);
    pl_loop_fini(&a);
    CHECK_OK(pl_loop_enqueue(&b, &op));
    CHECK_EQ(pl_loop_once(&b), 1);
    pl_loop_fini(&b);
}

static const struct pl_test tests[] = {
    PL_TEST(runs_exactly_what_was_ready),
    PL_TEST(stop_leaves_the_rest_queued),
    PL_TEST(posts_to_an_awake_loop_write_nothing),
    PL_TEST(a_batch_of_posts_writes_once),
    PL_TEST(a_post_and_its_wake_up_can_be_apart),
    PL_TEST(the_end_waits_for_callers),
    PL_TEST(no_wake_up_is_lost),
    PL_TEST(wake_ends_a_wait),
    PL_TEST(an_interrupted_wait_tells),
    PL_TEST(refuses_what_is_not_there),
    PL_TEST(two_loops_do_not_meet),
};
PL_TEST_MAIN(tests)
