/* fib_server.c - the Fibonacci server as plait's core can do it, without any Python.
 *
 * The limit that the other models of the lab are held against. One loop serves all
 * connections. Numbers up to --inline are computed by the loop itself, for that takes a
 * few microseconds; larger ones are posted on the board of a pool of worker processes, so
 * the loop never stops. The pool tells of results and deaths by one descriptor, which the
 * loop watches.
 *
 * Protocol: src/plait/lab/protocol.py; the answers here are the same to the letter.
 *
 * Lifetime of a connection: its stream, a number under way and a linger timer each hold
 * it; the last one to let go frees it.
 *
 * Sections: numbers, connections, the pool, arguments and main.
 */
#include "pl.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_LINE 1024
#define IN_SIZE 4096
#define OUT_HIGH 65536 /* bytes waiting for a slow reader before its lines are left alone */
#define DRAIN 65536    /* bytes of an over-long line that are read after its answer */
#define LINGER PL_NSEC_PER_SEC

struct server;

struct conn {
    struct pl_stream stream;
    struct server *server;    /* borrows */
    struct conn *next_queued; /* in the queue for a full board */
    struct pl_timer linger;
    int fd;   /* owns */
    int n;    /* what a worker computes for us */
    int held; /* by the stream, by `busy`, by the timer */
    bool busy;
    bool refused; /* an over-long line was answered: input is dropped */
    bool gone;    /* the stream is closed */
    size_t dropped;
    size_t len; /* of what is in `in` */
    char in[IN_SIZE];
};

struct server {
    struct pl_loop loop;
    struct pl_listener listener;
    struct pl_io signals;
    struct pl_io results; /* of the pool */
    struct pl_pool pool;
    struct pl_workers *workers; /* owns */
    /* Connections whose number did not fit on the board, oldest first. */
    struct conn *first_queued;
    struct conn *last_queued;
    int limit;
    int inline_up_to;
    volatile int stop;
};

__attribute__((format(printf, 1, 2))) static void complain(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("fib_server: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

/* ---- numbers ------------------------------------------------------------ */

/* The plain recursive function, as in every other model. */
static uint64_t fib(int n)
{
    return n <= 2 ? 1 : fib(n - 1) + fib(n - 2);
}

/* What may be repeated to a person: printable and short. */
static const char *shown(char out[44], const char *text, size_t len)
{
    size_t n = len > 40 ? 40 : len;
    for (size_t i = 0; i < n; i++)
        out[i] = text[i] >= 0x20 && text[i] <= 0x7e ? text[i] : '?';
    strcpy(out + n, len > 40 ? "..." : "");
    return out;
}

static bool all_digits(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (text[i] < '0' || text[i] > '9')
            return false;
    return len > 0;
}

/* The number of a line, or 0 with the answer to a bad line in `out`. */
static int parse(const char *line, size_t len, int limit, char *out, size_t size)
{
    char text[44];
    while (len > 0 && isspace((unsigned char)line[len - 1]))
        len--;
    while (len > 0 && isspace((unsigned char)line[0])) {
        line++;
        len--;
    }
    if (all_digits(line, len)) {
        int n = 0;
        for (size_t i = 0; i < len && n <= limit; i++)
            n = n * 10 + (line[i] - '0');
        if (n > limit)
            snprintf(out, size, "error: n must be %d or less, not %s\n", limit,
                     shown(text, line, len));
        else if (n < 1)
            snprintf(out, size, "error: n must be 1 or more, not %s\n", shown(text, line, len));
        else
            return n;
    } else if (len > 1 && line[0] == '-' && all_digits(line + 1, len - 1)) {
        snprintf(out, size, "error: n must be 1 or more, not %s\n", shown(text, line, len));
    } else {
        snprintf(out, size, "error: not a decimal number: '%s'\n", shown(text, line, len));
    }
    return 0;
}

/* ---- connections -------------------------------------------------------- */

static bool post_number(struct conn *c);

static void let_go(struct conn *c)
{
    if (--c->held == 0)
        free(c);
}

static void answer(struct conn *c, const char *text)
{
    if (c->gone)
        return;
    size_t len = strlen(text);
    char *copy = malloc(len);
    if (copy == NULL) {
        pl_stream_abort(&c->stream);
        return;
    }
    memcpy(copy, text, len);
    struct pl_chunk chunk = {.data = copy, .len = len, .owner = copy};
    if (pl_stream_write(&c->stream, &chunk, 1) < 0) {
        /* Broken or out of memory: nothing more can be said on this connection. */
        free(copy);
        pl_stream_abort(&c->stream);
    }
}

static void answer_number(struct conn *c, uint64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64 "\n", value);
    answer(c, text);
}

static void queue_number(struct conn *c, int n)
{
    struct server *server = c->server;
    c->n = n;
    c->busy = true;
    c->held++;
    if (server->first_queued == NULL && post_number(c))
        return;
    c->next_queued = NULL;
    if (server->first_queued == NULL)
        server->first_queued = c;
    else
        server->last_queued->next_queued = c;
    server->last_queued = c;
}

static void linger_over(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct conn *c = PL_CONTAINER_OF(op, struct conn, linger.op);
    if (!c->gone)
        pl_stream_abort(&c->stream);
    let_go(c);
}

/* Closing a socket while unread bytes wait in it resets the connection, and the answer may
 * be lost with it. So the rest is read, up to a bound in bytes and time. */
static void refuse(struct conn *c)
{
    char text[64];
    snprintf(text, sizeof text, "error: a line has %d bytes at most\n", MAX_LINE);
    c->refused = true;
    answer(c, text);
    if (c->gone)
        return;
    c->linger.op.run = linger_over;
    c->held++;
    if (pl_stream_shutdown(&c->stream) < 0 ||
        pl_timer_start(&c->server->loop, &c->linger, pl_loop_now(&c->server->loop) + LINGER) < 0) {
        c->held--;
        pl_stream_abort(&c->stream);
    }
}

/* Answers the complete lines of c->in, until one has to be computed elsewhere, or the
 * reader is too slow. Reads on only when all is answered. */
static void serve_lines(struct conn *c)
{
    size_t at = 0;
    while (!c->busy && !c->refused && !c->gone && c->stream.queued < OUT_HIGH) {
        size_t left = c->len - at;
        char *end = memchr(c->in + at, '\n', left < MAX_LINE + 1 ? left : MAX_LINE + 1);
        if (end == NULL) {
            if (left > MAX_LINE)
                refuse(c);
            break;
        }
        char problem[128];
        size_t len = (size_t)(end - (c->in + at));
        int n = parse(c->in + at, len, c->server->limit, problem, sizeof problem);
        at += len + 1;
        if (n == 0)
            answer(c, problem);
        else if (n <= c->server->inline_up_to)
            answer_number(c, fib(n));
        else
            queue_number(c, n);
    }
    c->len -= at;
    memmove(c->in, c->in + at, c->len);
    if (c->gone)
        return;
    if (c->busy || c->stream.queued >= OUT_HIGH)
        pl_stream_read_stop(&c->stream);
    else if (pl_stream_read_start(&c->stream) < 0)
        pl_stream_abort(&c->stream);
}

static void *conn_room(struct pl_stream *s, size_t hint, size_t *len)
{
    (void)hint;
    struct conn *c = PL_CONTAINER_OF(s, struct conn, stream);
    if (c->refused)
        c->len = 0;
    /* Never full: serve_lines leaves at most a line's beginning when it lets reading go on. */
    *len = IN_SIZE - c->len;
    return c->in + c->len;
}

static void conn_read(struct pl_stream *s, void *buf, ssize_t n)
{
    (void)buf;
    struct conn *c = PL_CONTAINER_OF(s, struct conn, stream);
    if (n <= 0) {
        /* What stands after the last line end is no request. */
        if (n == 0)
            pl_stream_close(s);
        else
            pl_stream_abort(s);
        return;
    }
    if (c->refused) {
        c->dropped += (size_t)n;
        if (c->dropped > DRAIN)
            pl_stream_abort(s);
        return;
    }
    c->len += (size_t)n;
    serve_lines(c);
}

static void conn_again(struct pl_stream *s, void *buf)
{
    (void)s;
    (void)buf;
}

static void conn_drained(struct pl_stream *s)
{
    struct conn *c = PL_CONTAINER_OF(s, struct conn, stream);
    if (!s->reading && !c->busy && !c->refused)
        serve_lines(c);
}

static void conn_failed(struct pl_stream *s, int error)
{
    (void)error; /* The client is gone, which is its right. */
    pl_stream_abort(s);
}

static void conn_release(struct pl_stream *s, void *owner)
{
    (void)s;
    free(owner);
}

static void conn_closed(struct pl_stream *s)
{
    struct conn *c = PL_CONTAINER_OF(s, struct conn, stream);
    close(c->fd);
    c->gone = true;
    if (pl_timer_stop(&c->server->loop, &c->linger))
        c->held--; /* not the last: the stream's own is given back below */
    let_go(c);
}

static const struct pl_stream_ops conn_ops = {
    .room = conn_room,
    .read = conn_read,
    .again = conn_again,
    .drained = conn_drained,
    .failed = conn_failed,
    .release = conn_release,
    .closed = conn_closed,
};

static void accepted(struct pl_listener *l, int fd, const struct sockaddr *addr, socklen_t len)
{
    (void)addr;
    (void)len;
    struct server *server = PL_CONTAINER_OF(l, struct server, listener);
    int one = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct conn *c = calloc(1, sizeof *c);
    if (c == NULL || pl_stream_open(&server->loop, &c->stream, fd, true, &conn_ops) < 0) {
        complain("a client is turned away: out of memory");
        free(c);
        close(fd);
        return;
    }
    c->server = server;
    c->fd = fd;
    c->held = 1;
    if (pl_stream_read_start(&c->stream) < 0)
        pl_stream_abort(&c->stream);
}

static void starved(struct pl_listener *l, int error)
{
    (void)l;
    complain("accept: %s; trying again soon", pl_error_text(error));
}

static void listener_failed(struct pl_listener *l, int error)
{
    struct server *server = PL_CONTAINER_OF(l, struct server, listener);
    complain("accept: %s", pl_error_text(error));
    server->stop = 1;
}

static void listener_closed(struct pl_listener *l)
{
    (void)l;
}

/* ---- the pool ----------------------------------------------------------- */

/* What a worker process runs until the pool is closed. */
static int work(struct pl_member *member, void *arg)
{
    (void)arg;
    /* The server's sockets must not live on in here: a client would never see its
     * connection closed. The eventfd is all that a worker needs, for the shared memory is
     * mapped. */
    unsigned keep = (unsigned)member->eventfd;
    if ((keep > 3 && syscall(SYS_close_range, 3u, keep - 1, 0u) < 0) ||
        syscall(SYS_close_range, keep + 1, ~0u, 0u) < 0)
        return 1;
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL); /* cannot fail with these arguments */
    for (;;) {
        uint32_t cell;
        int r = pl_member_take(member, &cell);
        if (r == PL_ECLOSED)
            return 0;
        if (r == 0) {
            r = pl_member_wait(member);
            if (r == 0 || r == -EINTR)
                continue;
        }
        if (r < 0)
            return 1;
        struct pl_slot *slot = &member->slots[cell];
        int n;
        memcpy(&n, slot->bytes, sizeof n);
        uint64_t value = fib(n);
        memcpy(slot->bytes, &value, sizeof value);
        slot->len = sizeof value;
        pl_member_done(member, cell);
    }
}

/* False when the board is full. */
static bool post_number(struct conn *c)
{
    struct pl_pool *pool = &c->server->pool;
    uint32_t cell;
    if (pl_pool_stage(pool, c, &cell) < 0)
        return false;
    struct pl_slot *slot = &pool->slots[cell];
    memcpy(slot->bytes, &c->n, sizeof c->n);
    slot->len = sizeof c->n;
    slot->kind = 0;
    slot->flags = 0;
    slot->block = (struct pl_block){0};
    pl_pool_post(pool, cell);
    return true;
}

/* The number of a connection is there, or will never be. */
static void finish(struct conn *c, const char *problem, uint64_t value)
{
    c->busy = false;
    if (!c->gone) {
        if (problem != NULL)
            answer(c, problem);
        else
            answer_number(c, value);
        serve_lines(c);
    }
    let_go(c);
}

static void number_done(struct pl_pool *pool, uint32_t cell, void *arg)
{
    (void)arg;
    struct conn *c = pool->cells[cell].user;
    uint64_t value;
    memcpy(&value, pool->slots[cell].bytes, sizeof value);
    pl_pool_release(pool, cell);
    finish(c, NULL, value);
}

/* The slot is released by the caller. */
static void number_lost(struct pl_pool *pool, uint32_t cell, int status, void *arg)
{
    (void)arg;
    char text[64];
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "error: the worker died (signal %d)\n", WTERMSIG(status));
    else
        snprintf(text, sizeof text, "error: the worker died (status %d)\n", status);
    finish(pool->cells[cell].user, text, 0);
}

static void give_work(struct server *server)
{
    struct conn *c;
    while ((c = server->first_queued) != NULL && post_number(c))
        server->first_queued = c->next_queued;
}

static void results_ready(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct server *server = PL_CONTAINER_OF(op, struct server, results.op);
    struct pl_pool *pool = &server->pool;
    server->results.queued = false;
    server->results.ready = 0;
    do {
        uint32_t tags = 0, cell, seat;
        int r = pl_pool_wait(pool, 0, &tags);
        if (r > 0 && (tags & ~(1u << 31)) != 0) {
            r = pl_workers_tend(server->workers, number_done);
            if (r < 0)
                complain("cannot replace a worker yet: %s", pl_error_text(r));
        }
        while ((r = pl_pool_next(pool, &cell, &seat)) == 1)
            number_done(pool, cell, server);
        if (r < 0) {
            /* Our own workers run our own code: memory is not what it should be. */
            complain("worker in seat %u: %s", (unsigned)seat, pl_error_text(r));
            server->stop = 1;
            return;
        }
        give_work(server);
        pl_pool_arm(pool, PL_ARM_ANY);
    } while (pl_pool_ready(pool));
}

/* ---- arguments and main ------------------------------------------------- */

struct options {
    const char *host;
    int port;
    int limit;
    int workers;
    int inline_up_to;
};

static int parse_int(const char *name, const char *text, int low, int high)
{
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || v < low || v > high) {
        complain("--%s must be a whole number from %d to %d, not '%s'", name, low, high, text);
        exit(2);
    }
    return (int)v;
}

static struct options parse_options(int argc, char **argv)
{
    static const char usage[] =
        "usage: fib_server [--host HOST] [--port PORT] [--limit N] [--workers W] [--inline N]\n";
    static const struct option longs[] = {
        {"host", required_argument, NULL, 'h'},   {"port", required_argument, NULL, 'p'},
        {"limit", required_argument, NULL, 'l'},  {"workers", required_argument, NULL, 'w'},
        {"inline", required_argument, NULL, 'i'}, {NULL, 0, NULL, 0},
    };
    struct options o = {
        .host = "127.0.0.1", .port = 25000, .limit = 40, .workers = 2, .inline_up_to = 16};
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        switch (c) {
        case 'h':
            o.host = optarg;
            break;
        case 'p':
            o.port = parse_int("port", optarg, 0, 65535);
            break;
        case 'l':
            o.limit = parse_int("limit", optarg, 1, 93);
            break;
        case 'w':
            o.workers = parse_int("workers", optarg, 1, 64);
            break;
        case 'i':
            o.inline_up_to = parse_int("inline", optarg, 0, 93);
            break;
        default:
            fputs(usage, stderr);
            exit(2);
        }
    }
    if (optind < argc) {
        complain("unexpected argument '%s'", argv[optind]);
        exit(2);
    }
    return o;
}

/* A listening socket, told on stdout; or -1, told on stderr. */
static int listen_on(const struct options *o)
{
    char port[16];
    snprintf(port, sizeof port, "%d", o->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
    int rc = getaddrinfo(o->host, port, &hints, &found);
    if (rc != 0) {
        complain("cannot serve on %s port %s: %s", o->host, port, gai_strerror(rc));
        return -1;
    }
    int one = 1;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        bind(fd, found->ai_addr, found->ai_addrlen) < 0 || listen(fd, 512) < 0) {
        complain("cannot serve on %s port %s: %s", o->host, port, strerror(errno));
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

static int tell_address(int fd)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof addr;
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0 ||
        getnameinfo((struct sockaddr *)&addr, len, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return -1;
    printf(strchr(host, ':') != NULL ? "listening on [%s]:%s\n" : "listening on %s:%s\n", host,
           port);
    return fflush(stdout);
}

static void on_signal(struct pl_loop *loop, struct pl_op *op)
{
    (void)loop;
    struct server *server = PL_CONTAINER_OF(op, struct server, signals.op);
    server->signals.queued = false;
    server->stop = 1;
}

int main(int argc, char **argv)
{
    const struct options o = parse_options(argc, argv);
    struct server *server = aligned_alloc(_Alignof(struct server), sizeof *server);
    if (server == NULL) {
        complain("out of memory");
        return 1;
    }
    memset(server, 0, sizeof *server);
    server->limit = o.limit;
    server->inline_up_to = o.inline_up_to;

    int fd = listen_on(&o);
    if (fd < 0) {
        free(server);
        return 1;
    }

    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    sigprocmask(SIG_BLOCK, &stops, NULL);
    int sigfd = signalfd(-1, &stops, SFD_CLOEXEC | SFD_NONBLOCK);

    struct pl_loop *loop = &server->loop;
    struct pl_pool *pool = &server->pool;
    const struct pl_pool_config config = {.workers = (uint32_t)o.workers, .slots = 256};
    int r = pl_loop_init(loop, NULL);
    if (r < 0) {
        complain("cannot make a loop: %s", pl_error_text(r));
        goto fail_loop;
    }
    r = pl_pool_init(pool, &config);
    if (r < 0) {
        complain("cannot make a pool: %s", pl_error_text(r));
        goto fail_pool;
    }
    r = pl_workers_start(pool, (uint32_t)o.workers, work, server, number_lost, &server->workers);
    if (r < 0) {
        complain("cannot start workers: %s", pl_error_text(r));
        goto fail_workers;
    }
    server->listener.accepted = accepted;
    server->listener.starved = starved;
    server->listener.failed = listener_failed;
    server->listener.closed = listener_closed;
    if ((r = pl_io_open(loop, &server->signals, sigfd, PL_IO_LEVEL, on_signal)) < 0 ||
        (r = pl_io_watch(loop, &server->signals, PL_READABLE)) < 0 ||
        (r = pl_io_open(loop, &server->results, pool->waitfd, PL_IO_LEVEL, results_ready)) < 0 ||
        (r = pl_io_watch(loop, &server->results, PL_READABLE)) < 0 ||
        (r = pl_listener_open(loop, &server->listener, fd)) < 0 || (r = tell_address(fd)) < 0) {
        complain("cannot serve: %s", pl_error_text(r));
        goto fail_serve;
    }
    pl_pool_arm(pool, PL_ARM_ANY);
    while (!server->stop) {
        pl_pool_flush(pool); /* for posts that did not wake anybody */
        r = pl_loop_once(loop);
        if (r < 0 && r != -EINTR && r != -ENOMEM) {
            complain("the loop failed: %s", pl_error_text(r));
            break;
        }
        r = 0;
    }
    fputs("stopped\n", stderr);

    /* Connections and their memory end with the process. */
fail_serve:
    pl_workers_stop(server->workers, 0); /* there is nothing that a worker could tidy up */
fail_workers:
    pl_pool_fini(pool);
fail_pool:
    pl_loop_fini(loop);
fail_loop:
    close(sigfd);
    close(fd);
    free(server);
    return r < 0 ? 1 : 0;
}
