/* accept_share.c - ways to share out connections between worker processes, in bare C.
 *
 *     accept_share MODE [--workers 4] [--clients 16] [--connections 10000] [--hold]
 *                  [--work-us 0] [--stall-ms 0]
 *
 * MODE says how a new connection finds its worker:
 *   level      one socket, all wait for it, whoever comes first accepts
 *   exclusive  one socket, EPOLLEXCLUSIVE: the kernel wakes one of those that sleep
 *   rotate     the same, and who has accepted goes to the end of the kernel's queue
 *   balanced   the same, and who is ahead of the others steps aside (pl_rota.h): plait's way
 *   reuseport  a socket for each worker, SO_REUSEPORT: the kernel hashes addresses
 *   passed     the parent accepts and passes descriptors to whoever has the fewest
 *
 * Each client connects, sends a byte, waits for the answer, and closes; with --hold all
 * connections stay open until the last has its answer. With --stall-ms the first worker
 * computes for so long every hundredth connection. Prints one line: the busiest worker's
 * share against the mean, connections per second, latency, processor time per connection.
 */
#include "pl.h"

#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORKERS 64
#define MAX_CLIENTS 4096

enum mode { LEVEL, EXCLUSIVE, ROTATE, BALANCED, REUSEPORT, PASSED, MODES };
static const char *const mode_names[MODES] = {
    "level", "exclusive", "rotate", "balanced", "reuseport", "passed",
};

struct seat {
    _Alignas(64) _Atomic uint64_t accepted;
    _Atomic int32_t open;
};

struct setup {
    enum mode mode;
    unsigned workers, clients, connections, work_us, stall_ms;
    bool hold;
    int listeners[MAX_WORKERS];
    int pairs[MAX_WORKERS][2];
    struct sockaddr_in addr;
    struct seat *seats;
    struct pl_rota *rota;
};

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static int check(int r, const char *what)
{
    if (r < 0)
        die(what);
    return r;
}

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static void compute(int64_t ns)
{
    int64_t end = now_ns() + ns;
    while (now_ns() < end)
        ;
}

static int listen_on(struct sockaddr_in *addr, bool reuseport)
{
    int one = 1;
    socklen_t len = sizeof(*addr);
    int fd = check(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
    if (reuseport)
        check(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), "SO_REUSEPORT");
    check(bind(fd, (struct sockaddr *)addr, len), "bind");
    check(listen(fd, 4096), "listen");
    check(getsockname(fd, (struct sockaddr *)addr, &len), "getsockname");
    return fd;
}

static void watch(int ep, int op, int fd, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.fd = fd};
    check(epoll_ctl(ep, op, fd, &ev), "epoll_ctl");
}

static void pass(int to, int fd)
{
    char byte = 0;
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.buf,
        .msg_controllen = sizeof(control.buf),
    };
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
    check((int)sendmsg(to, &msg, 0), "sendmsg");
}

static int take(int from)
{
    char byte;
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.buf,
        .msg_controllen = sizeof(control.buf),
    };
    if (recvmsg(from, &msg, MSG_DONTWAIT) <= 0)
        return -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    int fd = -1;
    if (c != NULL && c->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

static _Noreturn void work(const struct setup *s, unsigned me)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    bool passed = s->mode == PASSED;
    bool exclusive = s->mode >= EXCLUSIVE && s->mode <= BALANCED;
    int door = passed ? s->pairs[me][1] : s->listeners[s->mode == REUSEPORT ? me : 0];
    uint32_t events = EPOLLIN | (exclusive ? EPOLLEXCLUSIVE : 0);
    struct seat *seat = &s->seats[me];
    int ep = check(epoll_create1(0), "epoll_create1");
    watch(ep, EPOLL_CTL_ADD, door, events);
    int64_t aside = 0; /* until when this worker leaves the socket to the others */
    int64_t back = 0;  /* when it last came back */
    if (pl_rota_sit(s->rota, me) < 0)
        _exit(1);
    pl_rota_join(s->rota);
    for (;;) {
        struct epoll_event evs[64];
        int timeout = aside == 0 ? -1 : 1;
        int n = epoll_wait(ep, evs, 64, timeout);
        if (aside != 0 && now_ns() >= aside) {
            back = aside;
            aside = 0;
            watch(ep, EPOLL_CTL_ADD, door, events);
        }
        for (int i = 0; i < n; i++) {
            int fd = evs[i].data.fd;
            if (fd != door) {
                char byte;
                if (read(fd, &byte, 1) != 1) {
                    close(fd);
                    atomic_fetch_sub_explicit(&seat->open, 1, memory_order_relaxed);
                    continue;
                }
                compute(s->work_us * INT64_C(1000));
                if (write(fd, &byte, 1) != 1)
                    continue; /* it has gone: the next read says so */
                continue;
            }
            int conn = passed ? take(door) : accept4(door, NULL, NULL, SOCK_NONBLOCK);
            if (conn < 0)
                continue;
            watch(ep, EPOLL_CTL_ADD, conn, EPOLLIN);
            uint64_t count = atomic_fetch_add_explicit(&seat->accepted, 1, memory_order_relaxed);
            if (!passed)
                atomic_fetch_add_explicit(&seat->open, 1, memory_order_relaxed);
            uint32_t open = (uint32_t)atomic_load_explicit(&seat->open, memory_order_relaxed);
            bool waited = back != 0 && now_ns() < back + PL_ROTA_ASIDE;
            back = 0;
            if (s->mode == BALANCED && pl_rota_took(s->rota, open, waited)) {
                watch(ep, EPOLL_CTL_DEL, door, 0);
                aside = now_ns() + PL_ROTA_ASIDE;
            } else if (s->mode == ROTATE || s->mode == BALANCED) {
                watch(ep, EPOLL_CTL_DEL, door, 0);
                watch(ep, EPOLL_CTL_ADD, door, events);
            }
            if (me == 0 && s->stall_ms != 0 && count % 100 == 99)
                compute(s->stall_ms * INT64_C(1000000));
        }
    }
}

static _Noreturn void dispatch(const struct setup *s)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int ep = check(epoll_create1(0), "epoll_create1");
    watch(ep, EPOLL_CTL_ADD, s->listeners[0], EPOLLIN);
    unsigned turn = 0;
    for (;;) {
        struct epoll_event ev;
        if (epoll_wait(ep, &ev, 1, -1) < 1)
            continue;
        int fd;
        while ((fd = accept4(s->listeners[0], NULL, NULL, SOCK_NONBLOCK)) >= 0) {
            unsigned best = turn++ % s->workers;
            for (unsigned i = 0; i < s->workers; i++) {
                if (atomic_load_explicit(&s->seats[i].open, memory_order_relaxed) <
                    atomic_load_explicit(&s->seats[best].open, memory_order_relaxed))
                    best = i;
            }
            atomic_fetch_add_explicit(&s->seats[best].open, 1, memory_order_relaxed);
            pass(s->pairs[best][0], fd);
            close(fd);
        }
    }
}

struct client {
    int fd;
    int64_t start;
};

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void begin(const struct setup *s, int ep, struct client *c, unsigned number)
{
    c->start = now_ns();
    c->fd = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
    struct linger now = {.l_onoff = 1, .l_linger = 0}; /* leaves no port in TIME_WAIT */
    check(setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)), "SO_LINGER");
    check(connect(c->fd, (const struct sockaddr *)&s->addr, sizeof(s->addr)), "connect");
    if (write(c->fd, "x", 1) != 1)
        die("write");
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = number};
    check(epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev), "epoll_ctl");
}

/* Makes all connections; latencies go to `took`. */
static void load(const struct setup *s, int64_t *took)
{
    static struct client clients[MAX_CLIENTS];
    int ep = check(epoll_create1(0), "epoll_create1");
    unsigned started = 0, done = 0;
    while (started < s->clients && started < s->connections) {
        begin(s, ep, &clients[started], started);
        started++;
    }
    while (done < s->connections) {
        struct epoll_event evs[64];
        int n = epoll_wait(ep, evs, 64, 5000);
        if (n == 0) {
            fprintf(stderr, "accept_share: no answer for 5 s\n");
            exit(1);
        }
        for (int i = 0; i < n; i++) {
            struct client *c = &clients[evs[i].data.u32];
            char byte;
            if (read(c->fd, &byte, 1) != 1)
                die("read");
            took[done++] = now_ns() - c->start;
            if (s->hold)
                continue;
            close(c->fd);
            if (started < s->connections) {
                begin(s, ep, c, evs[i].data.u32);
                started++;
            }
        }
    }
}

static unsigned number(const char *text, const char *option)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text == 0 || *end != 0 || value > 10000000) {
        fprintf(stderr, "accept_share: %s takes a number, not '%s'\n", option, text);
        exit(2);
    }
    return (unsigned)value;
}

static void parse(struct setup *s, int argc, char **argv)
{
    *s = (struct setup){.mode = MODES, .workers = 4, .clients = 16, .connections = 10000};
    for (int i = 0; argc > 1 && i < MODES; i++) {
        if (strcmp(argv[1], mode_names[i]) == 0)
            s->mode = (enum mode)i;
    }
    for (int i = 2; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--hold") == 0)
            s->hold = true;
        else if (strcmp(argv[i], "--workers") == 0)
            s->workers = number(value, argv[i++]);
        else if (strcmp(argv[i], "--clients") == 0)
            s->clients = number(value, argv[i++]);
        else if (strcmp(argv[i], "--connections") == 0)
            s->connections = number(value, argv[i++]);
        else if (strcmp(argv[i], "--work-us") == 0)
            s->work_us = number(value, argv[i++]);
        else if (strcmp(argv[i], "--stall-ms") == 0)
            s->stall_ms = number(value, argv[i++]);
        else
            s->mode = MODES;
    }
    if (s->hold)
        s->clients = s->connections;
    if (s->mode == MODES || s->workers < 1 || s->workers > MAX_WORKERS || s->clients < 1 ||
        s->clients > MAX_CLIENTS || s->connections < 1) {
        fprintf(stderr,
                "usage: accept_share level|exclusive|rotate|balanced|reuseport|passed\n"
                "  [--workers 1..%d] [--clients 1..%d] [--connections N] [--hold] [--work-us N]\n"
                "  [--stall-ms N]\n",
                MAX_WORKERS, MAX_CLIENTS);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct setup s;
    parse(&s, argc, argv);
    s.seats = mmap(NULL, sizeof(struct seat) * MAX_WORKERS, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s.seats == MAP_FAILED)
        die("mmap");
    s.addr = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct pl_rota rota;
    if (pl_rota_init(&rota, NULL, s.workers) < 0)
        die("the board");
    s.rota = &rota;
    unsigned sockets = s.mode == REUSEPORT ? s.workers : 1;
    for (unsigned i = 0; i < sockets; i++)
        s.listeners[i] = listen_on(&s.addr, s.mode == REUSEPORT);
    pid_t pids[MAX_WORKERS + 1];
    unsigned children = 0;
    for (unsigned i = 0; i < s.workers; i++) {
        if (s.mode == PASSED)
            check(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s.pairs[i]), "socketpair");
        pid_t pid = check(fork(), "fork");
        if (pid == 0)
            work(&s, i);
        pids[children++] = pid;
    }
    if (s.mode == PASSED) {
        pid_t pid = check(fork(), "fork");
        if (pid == 0)
            dispatch(&s);
        pids[children++] = pid;
    }
    int64_t *took = calloc(s.connections, sizeof(*took));
    if (took == NULL)
        die("calloc");
    int64_t start = now_ns();
    load(&s, took);
    double seconds = (double)(now_ns() - start) / 1e9;
    for (unsigned i = 0; i < children; i++)
        kill(pids[i], SIGKILL);
    while (wait(NULL) > 0)
        ;
    struct rusage used;
    getrusage(RUSAGE_CHILDREN, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    uint64_t most = 0;
    for (unsigned i = 0; i < s.workers; i++) {
        uint64_t n = atomic_load_explicit(&s.seats[i].accepted, memory_order_relaxed);
        most = n > most ? n : most;
    }
    qsort(took, s.connections, sizeof(*took), compare);
    printf("%-10s busiest/mean %.3f  %8.0f/s  p50 %6.0f us  p99 %7.0f us  max %7.0f us  "
           "server cpu %.1f us\n",
           mode_names[s.mode], (double)most * s.workers / s.connections, s.connections / seconds,
           (double)took[s.connections / 2] / 1e3, (double)took[s.connections * 99 / 100] / 1e3,
           (double)took[s.connections - 1] / 1e3, cpu / s.connections * 1e6);
    return 0;
}
