/* test_rota.c - whose turn it is: slack, those who left or are busy, and a shared socket. */
#include "pl_internal.h"
#include "pl_rota.h"
#include "pl_test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <unistd.h>

#define SEATS 4

/* Seats of one board, as processes would have them that were forked. */
static void share_board(struct pl_rota *rotas)
{
    CHECK_OK(pl_rota_init(&rotas[0], NULL, SEATS));
    for (uint32_t i = 1; i < SEATS; i++)
        rotas[i] = rotas[0];
    for (uint32_t i = 0; i < SEATS; i++) {
        CHECK_OK(pl_rota_sit(&rotas[i], i));
        pl_rota_join(&rotas[i]);
    }
}

static uint64_t accepted(const struct pl_rota *rota, uint32_t seat)
{
    return atomic_load_explicit(&rota->board->seat[seat].accepted, memory_order_relaxed);
}

static void refuses_bad_seats(void)
{
    struct pl_rota rota;
    CHECK_EQ(pl_rota_init(&rota, NULL, 0), -EINVAL);
    CHECK_EQ(pl_rota_init(&rota, NULL, PL_ROTA_SEATS + 1), -EINVAL);
    CHECK_OK(pl_rota_init(&rota, NULL, 2));
    CHECK_EQ(pl_rota_sit(&rota, 2), -EINVAL);
    CHECK(!pl_rota_took(&rota, 1, false)); /* without a seat nothing happens */
    pl_rota_leave(&rota);
    pl_rota_beat(&rota, 1, 1);
    pl_rota_fini(&rota);
    pl_rota_fini(&rota);
}

static int no_memory(const char *name)
{
    (void)name;
    return -ENOMEM;
}

static int no_mapping(int fd, size_t size, void **out)
{
    (void)fd, (void)size, (void)out;
    return -ENOMEM;
}

static void says_when_there_is_no_memory(void)
{
    struct pl_rota rota;
    struct pl_sys sys = *pl_sys_default();
    sys.memfd_create = no_memory;
    CHECK_EQ(pl_rota_init(&rota, &sys, SEATS), -ENOMEM);
    sys = *pl_sys_default();
    sys.mmap_shared = no_mapping;
    int before = open("/dev/null", O_RDONLY);
    CHECK_EQ(pl_rota_init(&rota, &sys, SEATS), -ENOMEM);
    int after = open("/dev/null", O_RDONLY);
    CHECK_EQ(after, before + 1); /* nothing stays open */
    close(before);
    close(after);
}

static void one_ahead_steps_aside(void)
{
    struct pl_rota r[SEATS];
    share_board(r);
    uint64_t taken = 0;
    while (!pl_rota_took(&r[0], 1, false))
        taken++;
    CHECK_EQ(taken, 4); /* the least slack */
    /* Taking its turn does not make another one step aside. */
    for (uint32_t i = 1; i < SEATS; i++)
        CHECK(!pl_rota_took(&r[i], 1, false));
    CHECK(pl_rota_took(&r[0], 1, false));
    CHECK_EQ(accepted(&r[0], 0), 6);
    pl_rota_fini(&r[0]);
}

static void slack_grows_and_has_an_end(void)
{
    struct pl_rota r[SEATS];
    share_board(r);
    for (int i = 0; i < 2000; i++) {
        for (uint32_t j = 0; j < SEATS; j++)
            (void)pl_rota_took(&r[j], 1, false);
    }
    int more = 1;
    while (!pl_rota_took(&r[2], 1, false))
        more++;
    CHECK_EQ(more, 33);
    pl_rota_fini(&r[0]);
}

static void who_is_busy_is_counted_out(void)
{
    struct pl_rota r[SEATS];
    share_board(r);
    /* Seats 2 and 3 hang; 0 and 1 share what there is. */
    bool aside[2] = {false, false};
    int asides = 0;
    for (int i = 0; i < 4000; i++) {
        aside[i % 2] = pl_rota_took(&r[i % 2], 1, aside[i % 2]);
        asides += aside[i % 2];
    }
    CHECK_EQ(asides, 2 * PL_ROTA_PATIENCE);
    /* One comes back, is owed a part, and counts again; the other's process ended. */
    pl_rota_clear(&r[0], 3);
    CHECK(!pl_rota_took(&r[2], 1, false));
    CHECK(pl_rota_took(&r[0], 1, false));
    int more = 1;
    while (!pl_rota_took(&r[2], 1, false) && more < 1000)
        more++;
    CHECK(more > 500 && more < 600);
    pl_rota_fini(&r[0]);
}

static void who_has_more_open_steps_aside(void)
{
    struct pl_rota r[SEATS];
    share_board(r);
    for (uint32_t i = 0; i < SEATS; i++)
        pl_rota_beat(&r[i], 1, 1000);
    CHECK(!pl_rota_took(&r[0], 1200, false));
    CHECK(pl_rota_took(&r[0], 1300, false));
    pl_rota_fini(&r[0]);
}

static void who_leaves_or_is_cleared_does_not_count(void)
{
    struct pl_rota r[SEATS];
    share_board(r);
    pl_rota_leave(&r[1]);
    pl_rota_leave(&r[2]);
    pl_rota_clear(&r[0], 3);
    pl_rota_clear(&r[0], SEATS); /* no such seat */
    for (int i = 0; i < 100; i++)
        CHECK(!pl_rota_took(&r[0], 1, false));
    /* A newcomer is not behind by what happened before it came. */
    pl_rota_clear(&r[0], 1);
    CHECK_EQ(accepted(&r[0], 1), 0);
    pl_rota_join(&r[1]);
    CHECK(!pl_rota_took(&r[0], 1, false));
    CHECK(!pl_rota_took(&r[1], 1, false));
    CHECK_EQ(accepted(&r[0], 1), 1);
    pl_rota_fini(&r[0]);
}

/* ---- two loops that accept from one socket, as two processes would --------- */

static int64_t clock_now = PL_NSEC_PER_SEC;

static int64_t fake_now(void)
{
    return clock_now;
}

struct server {
    struct pl_loop loop;
    struct pl_listener l;
    struct pl_rota rota;
    int accepted, closed;
};

static void on_accepted(struct pl_listener *l, int fd, const struct sockaddr *addr, socklen_t len)
{
    (void)addr, (void)len;
    PL_CONTAINER_OF(l, struct server, l)->accepted++;
    close(fd);
}

static void on_closed(struct pl_listener *l)
{
    PL_CONTAINER_OF(l, struct server, l)->closed++;
}

static void turn(struct server *s)
{
    CHECK_OK(pl_loop_wait(&s->loop, 0));
    CHECK_OK(pl_loop_collect(&s->loop));
    CHECK_OK(pl_loop_run(&s->loop, NULL));
}

static void connect_clients(const struct sockaddr_in *addr, int *clients, int n)
{
    for (int i = 0; i < n; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK_SYS(clients[i]);
        CHECK_SYS(connect(clients[i], (const struct sockaddr *)addr, sizeof(*addr)));
    }
}

static void listeners_make_way(void)
{
    struct pl_sys sys = *pl_sys_default();
    sys.now = fake_now;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    CHECK_SYS(fd);
    CHECK_SYS(bind(fd, (struct sockaddr *)&addr, len));
    CHECK_SYS(listen(fd, 64));
    CHECK_SYS(getsockname(fd, (struct sockaddr *)&addr, &len));
    struct server s[2] = {0};
    CHECK_OK(pl_rota_init(&s[0].rota, NULL, 2));
    s[1].rota = s[0].rota;
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_OK(pl_loop_init(&s[i].loop, &(struct pl_loop_config){.sys = &sys}));
        CHECK_OK(pl_rota_sit(&s[i].rota, i));
        pl_rota_join(&s[i].rota);
        s[i].l =
            (struct pl_listener){.rota = &s[i].rota, .accepted = on_accepted, .closed = on_closed};
        CHECK_OK(pl_listener_open(&s[i].loop, &s[i].l, fd));
    }
    int clients[24];
    connect_clients(&addr, clients, 24);
    /* One accepts for each turn of its loop, until it is ahead; then it leaves the rest alone. */
    for (int i = 0; i < 10; i++)
        turn(&s[0]);
    CHECK_EQ(s[0].accepted, 5);
    CHECK(s[0].l.backing_off);
    pl_listener_look(&s[0].l); /* not while it steps aside */
    turn(&s[0]);
    CHECK_EQ(s[0].accepted, 5);
    for (int i = 0; i < 5; i++)
        turn(&s[1]);
    CHECK_EQ(s[1].accepted, 5);
    clock_now += PL_ROTA_ASIDE + 1;
    turn(&s[0]);
    for (int i = 0; i < 20 && !s[0].l.backing_off; i++)
        turn(&s[0]);
    CHECK_EQ(s[0].accepted, 10);
    /* The other one hangs: while it is waited for, one is taken for each time. */
    clock_now += PL_ROTA_ASIDE + 1;
    for (int i = 0; i < 3; i++)
        turn(&s[0]);
    CHECK_EQ(s[0].accepted, 11);
    for (int i = 0; i < 20; i++) {
        clock_now += PL_ROTA_ASIDE + 1;
        turn(&s[0]);
        turn(&s[0]);
    }
    CHECK_EQ(s[0].accepted, 19);
    CHECK_EQ(s[1].accepted, 5);
    for (int i = 0; i < 2; i++) {
        pl_listener_look(&s[i].l);
        pl_listener_close(&s[i].l);
        turn(&s[i]);
        turn(&s[i]);
        CHECK_EQ(s[i].closed, 1);
        pl_loop_fini(&s[i].loop);
    }
    for (int i = 0; i < 24; i++)
        close(clients[i]);
    close(fd);
    pl_rota_fini(&s[0].rota);
}

int main(void)
{
    refuses_bad_seats();
    says_when_there_is_no_memory();
    one_ahead_steps_aside();
    slack_grows_and_has_an_end();
    who_is_busy_is_counted_out();
    who_has_more_open_steps_aside();
    who_leaves_or_is_cleared_does_not_count();
    listeners_make_way();
    return 0;
}
