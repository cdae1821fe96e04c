/* test_listener.c - accepting: batches, back-off, and closing at awkward moments. */
#include "pl_internal.h"
#include "pl_test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <unistd.h>

static int64_t clock_now = PL_NSEC_PER_SEC;
static int accept_errors[8]; /* served before real accepts; ends with 0 */
static int next_error;

static int64_t fake_now(void)
{
    return clock_now;
}

static int fault_accept(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    int error = accept_errors[next_error];
    if (error != 0) {
        next_error++;
        return error;
    }
    return pl_sys_default()->accept4(fd, addr, len, flags);
}

struct server {
    struct pl_listener l;
    int accepted, starved, failed, closed;
    bool close_in_accept;
    bool close_in_starved;
};

static void on_accepted(struct pl_listener *l, int fd, const struct sockaddr *addr, socklen_t len)
{
    struct server *s = PL_CONTAINER_OF(l, struct server, l);
    if (l->loop->backend->accept != NULL) {
        CHECK(addr == NULL);
        CHECK_EQ(len, 0);
    } else {
        CHECK_EQ(addr->sa_family, AF_INET);
        CHECK_EQ(len, sizeof(struct sockaddr_in));
    }
    CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(s->closed, 0);
    s->accepted++;
    close(fd);
    if (s->close_in_accept)
        pl_listener_close(l);
}

static void on_starved(struct pl_listener *l, int error)
{
    struct server *s = PL_CONTAINER_OF(l, struct server, l);
    s->starved = error;
    if (s->close_in_starved)
        pl_listener_close(l);
}

static void on_failed(struct pl_listener *l, int error)
{
    PL_CONTAINER_OF(l, struct server, l)->failed = error;
}

static void on_closed(struct pl_listener *l)
{
    PL_CONTAINER_OF(l, struct server, l)->closed++;
}

struct fixture {
    struct pl_sys sys;
    struct pl_loop loop;
    struct server s;
    struct sockaddr_in addr;
    int fd;
    int clients[16];
    int nclients;
};

static void start(struct fixture *f, uint32_t batch)
{
    memset(f, 0, sizeof(*f));
    memset(accept_errors, 0, sizeof(accept_errors));
    next_error = 0;
    f->sys = *pl_sys_default();
    f->sys.now = fake_now;
    f->sys.accept4 = fault_accept;
    CHECK_OK(pl_test_loop(&f->loop, &f->sys));
    f->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK_SYS(f->fd);
    f->addr.sin_family = AF_INET;
    f->addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof(f->addr);
    CHECK_SYS(bind(f->fd, (struct sockaddr *)&f->addr, len));
    CHECK_SYS(listen(f->fd, 64));
    CHECK_SYS(getsockname(f->fd, (struct sockaddr *)&f->addr, &len));
    f->s.l = (struct pl_listener){.batch = batch,
                                  .accepted = on_accepted,
                                  .starved = on_starved,
                                  .failed = on_failed,
                                  .closed = on_closed};
    CHECK_OK(pl_listener_open(&f->loop, &f->s.l, f->fd));
}

static void connect_clients(struct fixture *f, int n)
{
    for (int i = 0; i < n; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK_SYS(fd);
        CHECK_SYS(connect(fd, (struct sockaddr *)&f->addr, sizeof(f->addr)));
        f->clients[f->nclients++] = fd;
    }
}

static void turn(struct fixture *f)
{
    CHECK_OK(pl_loop_wait(&f->loop, 0));
    CHECK_OK(pl_loop_collect(&f->loop));
    CHECK_OK(pl_loop_run(&f->loop, NULL));
}

static void end(struct fixture *f)
{
    if (f->s.closed == 0) {
        pl_listener_close(&f->s.l);
        CHECK_EQ(f->s.closed, 0);
        turn(f);
        turn(f);
    }
    CHECK_EQ(f->s.closed, 1);
    CHECK(!pl_timer_active(&f->s.l.retry));
    CHECK(fcntl(f->fd, F_GETFD) >= 0); /* borrowed */
    close(f->fd);
    for (int i = 0; i < f->nclients; i++)
        close(f->clients[i]);
    pl_loop_fini(&f->loop);
}

/* Ends a test whose errors cannot be injected. */
static bool skip_faults(struct fixture *f)
{
    if (f->loop.backend->accept == NULL)
        return false;
    printf("  skipped: the backend accepts, so accept4 is not called\n");
    pl_test_run.skipped = true;
    end(f);
    return true;
}

static void accepts_in_batches(void)
{
    struct fixture f;
    start(&f, 3);
    connect_clients(&f, 8);
    turn(&f);
    CHECK_EQ(f.s.accepted, 3);
    turn(&f);
    turn(&f);
    CHECK_EQ(f.s.accepted, 8);
    end(&f);
}

static void a_passing_error_does_not_end_it(void)
{
    struct fixture f;
    start(&f, 0);
    if (skip_faults(&f))
        return;
    connect_clients(&f, 2);
    accept_errors[0] = -ECONNABORTED;
    accept_errors[1] = -EINTR;
    accept_errors[2] = -EPROTO;
    turn(&f);
    CHECK_EQ(f.s.accepted, 2);
    CHECK_EQ(f.s.failed, 0);
    end(&f);
}

static void without_descriptors_it_backs_off(void)
{
    int errors[] = {-EMFILE, -ENFILE, -ENOBUFS, -ENOMEM};
    for (size_t i = 0; i < PL_ARRAY_LEN(errors); i++) {
        struct fixture f;
        start(&f, 0);
        if (skip_faults(&f))
            return;
        connect_clients(&f, 2);
        accept_errors[0] = errors[i];
        turn(&f);
        CHECK_EQ(f.s.starved, errors[i]);
        CHECK_EQ(f.s.accepted, 0);
        /* Quiet until the time has come. */
        uint64_t events = f.loop.stats.events;
        clock_now += PL_LISTENER_RETRY - 1;
        for (int k = 0; k < 3; k++)
            turn(&f);
        CHECK_EQ(f.loop.stats.events, events);
        CHECK_EQ(f.s.accepted, 0);
        clock_now += 1;
        turn(&f);
        turn(&f);
        CHECK_EQ(f.s.accepted, 2);
        end(&f);
    }
}

static void a_real_lack_of_descriptors(void)
{
    struct fixture f;
    start(&f, 0);
    connect_clients(&f, 1);
    struct rlimit old;
    CHECK_SYS(getrlimit(RLIMIT_NOFILE, &old));
    struct rlimit none = {.rlim_cur = 0, .rlim_max = old.rlim_max};
    CHECK_SYS(setrlimit(RLIMIT_NOFILE, &none));
    turn(&f);
    CHECK_SYS(setrlimit(RLIMIT_NOFILE, &old));
    CHECK_EQ(f.s.starved, -EMFILE);
    clock_now += PL_LISTENER_RETRY;
    turn(&f);
    turn(&f);
    CHECK_EQ(f.s.accepted, 1);
    end(&f);
}

static void a_lasting_error_stops_it(void)
{
    struct fixture f;
    start(&f, 0);
    if (skip_faults(&f))
        return;
    connect_clients(&f, 1);
    accept_errors[0] = -EINVAL;
    turn(&f);
    CHECK_EQ(f.s.failed, -EINVAL);
    turn(&f);
    CHECK_EQ(f.s.accepted, 0);
    end(&f);
}

static void closing_from_a_callback(void)
{
    struct fixture f;
    start(&f, 0);
    f.s.close_in_accept = true;
    connect_clients(&f, 3);
    turn(&f);
    turn(&f);
    CHECK_EQ(f.s.accepted, 1);
    CHECK_EQ(f.s.closed, 1);
    end(&f);
}

static void closing_while_it_backs_off(void)
{
    struct fixture f;
    start(&f, 0);
    if (skip_faults(&f))
        return;
    connect_clients(&f, 1);
    accept_errors[0] = -EMFILE;
    turn(&f);
    end(&f);

    start(&f, 0);
    f.s.close_in_starved = true;
    connect_clients(&f, 1);
    accept_errors[0] = -EMFILE;
    turn(&f);
    turn(&f);
    CHECK_EQ(f.s.closed, 1);
    end(&f);

    /* The retry is in the ready queue already: `closed` comes once, after it. */
    start(&f, 0);
    connect_clients(&f, 1);
    accept_errors[0] = -EMFILE;
    turn(&f);
    clock_now += PL_LISTENER_RETRY;
    CHECK_OK(pl_loop_wait(&f.loop, 0));
    CHECK_OK(pl_loop_collect(&f.loop));
    pl_listener_close(&f.s.l);
    CHECK_OK(pl_loop_run(&f.loop, NULL));
    turn(&f);
    turn(&f);
    CHECK_EQ(f.s.closed, 1);
    CHECK_EQ(f.s.accepted, 0);
    end(&f);
}

static void closing_with_an_event_queued(void)
{
    struct fixture f;
    start(&f, 0);
    connect_clients(&f, 1);
    CHECK_OK(pl_loop_wait(&f.loop, -1));
    CHECK_OK(pl_loop_collect(&f.loop));
    pl_listener_close(&f.s.l);
    CHECK_OK(pl_loop_run(&f.loop, NULL));
    CHECK_EQ(f.s.accepted, 0);
    turn(&f);
    CHECK_EQ(f.s.closed, 1);
    end(&f);
}

static void forgetting_calls_nothing(void)
{
    struct fixture f;
    start(&f, 0);
    if (skip_faults(&f))
        return;
    connect_clients(&f, 1);
    accept_errors[0] = -EMFILE;
    turn(&f); /* backs off: the timer goes as well */
    CHECK(pl_listener_of_op(&f.s.l.io.op) == &f.s.l);
    pl_listener_forget(&f.s.l);
    CHECK(pl_io_find(&f.loop, f.fd) == NULL);
    clock_now += PL_LISTENER_RETRY;
    turn(&f);
    CHECK_EQ(f.s.accepted + f.s.closed, 0);
    f.s.closed = 1; /* for the end of the fixture */
    end(&f);
}

static const struct pl_test tests[] = {
    PL_TEST(accepts_in_batches),
    PL_TEST(a_passing_error_does_not_end_it),
    PL_TEST(without_descriptors_it_backs_off),
    PL_TEST(a_real_lack_of_descriptors),
    PL_TEST(a_lasting_error_stops_it),
    PL_TEST(closing_from_a_callback),
    PL_TEST(closing_while_it_backs_off),
    PL_TEST(closing_with_an_event_queued),
    PL_TEST(forgetting_calls_nothing),
};
PL_TEST_MAIN(tests)
