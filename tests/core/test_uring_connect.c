/* test_uring_connect.c - the connections that the ring makes. */
#include "uring_support.h"

#if PL_HAVE_IO_URING

#include <arpa/inet.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "pl_uring_poller.h"

struct client {
    struct pl_connect connect;
    int fd;
    int told, result;
};

static void on_connected(struct pl_connect *c, int result)
{
    struct client *client = PL_CONTAINER_OF(c, struct client, connect);
    CHECK(c->at == NULL);
    client->told++;
    client->result = result;
}

static int begin(struct pl_loop *loop, struct client *c, const struct sockaddr_in *addr)
{
    *c = (struct client){.connect.done = on_connected};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK_SYS(c->fd);
    return pl_connect_start(loop, &c->connect, c->fd, (const struct sockaddr *)addr, sizeof(*addr));
}

static struct sockaddr_in anywhere(void)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* A listener that takes no more: connecting to it takes long. */
static int full_listener(struct sockaddr_in *addr, int clients[3])
{
    int fd = listening(addr, 0);
    for (int i = 0; i < 3; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        CHECK_SYS(clients[i]);
        (void)connect(clients[i], (struct sockaddr *)addr, sizeof(*addr));
    }
    return fd;
}

static void it_connects_and_tells_of_refusals(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct sockaddr_in addr = anywhere();
    int fd = listening(&addr, 64);
    struct client c;
    CHECK_EQ(begin(&loop, &c, &addr), -EAGAIN); /* the loop has not run */
    close(c.fd);
    turn(&loop);
    enum { MANY = 32 };
    struct client many[MANY];
    for (int i = 0; i < MANY; i++)
        CHECK_OK(begin(&loop, &many[i], &addr));
    for (int i = 0; i < MANY; i++) {
        RUN_UNTIL(&loop, many[i].told == 1);
        CHECK_EQ(many[i].result, 0);
        CHECK_EQ(send(many[i].fd, "x", 1, 0), 1);
        close(many[i].fd);
    }
    close(fd);
    CHECK_OK(begin(&loop, &c, &addr));
    RUN_UNTIL(&loop, c.told == 1);
    CHECK_EQ(c.result, -ECONNREFUSED);
    close(c.fd);
    c.told = 0; /* and a descriptor that is closed */
    CHECK_OK(pl_connect_start(&loop, &c.connect, c.fd, (struct sockaddr *)&addr, sizeof(addr)));
    RUN_UNTIL(&loop, c.told == 1);
    CHECK_EQ(c.result, -EBADF);
    CHECK(loop.poller->inflight == NULL);
    pl_loop_fini(&loop);
}

static void a_cancelled_connect_tells_nothing(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, &sys));
    turn(&loop);
    struct sockaddr_in addr = anywhere(), full = anywhere();
    int clients[3];
    int fd = listening(&addr, 64), full_fd = full_listener(&full, clients);
    for (int when = 0; when < 5; when++) {
        struct client c;
        kernel.enter_error = when == 0 ? -EAGAIN : 0;
        CHECK_OK(begin(&loop, &c, when == 2 || when == 4 ? &full : &addr));
        switch (when) {
        case 0: /* before the kernel has seen it */
            break;
        case 1: /* done, and not collected */
            CHECK_OK(pl_loop_wait(&loop, -1));
            break;
        case 2: /* under way */
            turn(&loop);
            break;
        case 3: /* about to tell */
            CHECK_OK(pl_loop_wait(&loop, -1));
            CHECK_OK(pl_loop_collect(&loop));
            break;
        case 4: /* under way, and the kernel takes no cancel now */
            turn(&loop);
            kernel.enter_error = -EAGAIN;
            break;
        }
        CHECK_EQ(c.told, 0);
        pl_connect_cancel(&loop, &c.connect);
        pl_connect_cancel(&loop, &c.connect); /* once more does nothing */
        CHECK(c.connect.at == NULL);
        close(c.fd);
        RUN_UNTIL(&loop, loop.poller->inflight == NULL);
        CHECK_EQ(c.told, 0);
    }
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    close(full_fd);
    close(fd);
    pl_loop_fini(&loop);
}

struct crossing {
    struct pl_loop *loop;
    pthread_mutex_t lock; /* the binding's, which a wait goes without */
    struct client clients[8];
    atomic_bool over;
};

static void *cancel_elsewhere(void *arg)
{
    struct crossing *x = arg;
    for (int i = 0; i < 8; i += 2) {
        CHECK_EQ(pthread_mutex_lock(&x->lock), 0);
        pl_connect_cancel(x->loop, &x->clients[i].connect);
        /* The ring's thread looks at all of them, if it waits just now. */
        for (int tries = 0; tries < 1000 && atomic_load(&x->loop->poller->owes_ends); tries++)
            sched_yield();
        pl_connect_cancel(x->loop, &x->clients[i + 1].connect);
        CHECK_EQ(pthread_mutex_unlock(&x->lock), 0);
    }
    atomic_store(&x->over, true);
    return NULL;
}

/* ThreadSanitizer sees what both look at. */
static void another_thread_cancels_while_the_rings_waits(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    turn(&loop);
    struct sockaddr_in full = anywhere();
    int fds[3];
    int full_fd = full_listener(&full, fds);
    struct crossing x = {.loop = &loop, .lock = PTHREAD_MUTEX_INITIALIZER};
    for (int i = 0; i < 8; i++)
        CHECK_OK(begin(&loop, &x.clients[i], &full));
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, cancel_elsewhere, &x), 0);
    while (!atomic_load(&x.over) || loop.poller->inflight != NULL) {
        CHECK_CMP(pl_loop_wait(&loop, 0), >=, 0);
        CHECK_EQ(pthread_mutex_lock(&x.lock), 0);
        CHECK_OK(pl_loop_collect(&loop));
        CHECK_OK(pl_loop_run(&loop, NULL));
        CHECK_EQ(pthread_mutex_unlock(&x.lock), 0);
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(x.clients[i].told, 0);
        close(x.clients[i].fd);
    }
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    close(full_fd);
    pl_loop_fini(&loop);
}

static void a_connect_ends_with_the_run_or_the_loop(void)
{
    NEED_RING();
    struct sockaddr_in full = anywhere();
    int clients[3];
    int fd = full_listener(&full, clients);
    for (int run_ends = 0; run_ends < 2; run_ends++) {
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, NULL));
        turn(&loop);
        struct client c;
        CHECK_OK(begin(&loop, &c, &full));
        turn(&loop);
        CHECK_EQ(loop.poller->unanswered, 1);
        if (run_ends) {
            pl_loop_park(&loop, -1);
            CHECK_EQ(c.told, 0);
            RUN_UNTIL(&loop, c.told == 1);
            CHECK_EQ(c.result, -ECANCELED);
        }
        pl_loop_fini(&loop);
        CHECK(c.connect.at == NULL);
        CHECK_EQ(c.told, run_ends);
        close(c.fd);
    }
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    close(fd);
}

static void it_connects_only_where_it_can(void)
{
    NEED_RING();
    struct sockaddr_in addr = anywhere();
    struct client c;
    for (int how = 0; how < 3; how++) {
        struct pl_sys sys = system_with_less();
        if (how == 0)
            kernel.setup_error = -ENOSYS;
        if (how == 1) /* before Linux 6.1 */
            kernel.known_flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED;
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        turn(&loop);
        kernel.alloc_fails = how == 2;
        CHECK_EQ(begin(&loop, &c, &addr), how == 2 ? -ENOMEM : -EAGAIN);
        CHECK(c.connect.at == NULL);
        close(c.fd);
        pl_loop_fini(&loop);
    }
}

static const struct pl_test tests[] = {
    PL_TEST(it_connects_and_tells_of_refusals),
    PL_TEST(a_cancelled_connect_tells_nothing),
    PL_TEST(another_thread_cancels_while_the_rings_waits),
    PL_TEST(a_connect_ends_with_the_run_or_the_loop),
    PL_TEST(it_connects_only_where_it_can),
};
PL_TEST_MAIN(tests)

#else

int main(void)
{
    return 77; /* a build without the kernel's header */
}

#endif
