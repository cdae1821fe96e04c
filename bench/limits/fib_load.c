/* fib_load.c - the load of the Fibonacci story, and the clock that measures it.
 *
 *   perf1  connections that ask for a long number again and again
 *   perf2  connections that ask for the smallest number as fast as they are answered
 *
 * Both kinds are closed loops: a connection has one request under way, and sends the next
 * when the answer has come and has been checked. One thread and one epoll serve them all,
 * and nothing of plait's core is used: the instrument shares no code with what it measures.
 *
 * The run lasts --duration seconds; perf1 takes part from --long-start to --long-stop, so
 * that one run shows perf2 without, with, and again without the long requests. Connections
 * are opened when their kind starts and closed when it stops, as programs that a person
 * starts and ends would do. What is unanswered when the time is up is waited for, up to
 * --timeout more seconds: a request that was stuck counts with the time that it was stuck.
 *
 * JSON goes to stdout. Exit code: 0 when every request was answered rightly, 1 when not
 * (the JSON is printed all the same), 2 for bad arguments.
 *
 * Sections: arguments, connections, the run, JSON.
 */
#include "fib_hist.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NSEC INT64_C(1000000000)
#define MAX_CONNS 10000
#define MAX_ERRORS 8
#define MAX_LONGS 20000
#define MAX_BUCKETS 1000000

enum kind { LONG, SHORT };

struct conn {
    int fd;
    enum kind kind;
    bool waiting; /* a request is under way */
    bool over;    /* closed, or never to be used again */
    int64_t sent_at;
    size_t got;
    char answer[128];
};

struct span {
    int64_t start;
    int64_t end;
    uint32_t conn;
};

struct options {
    const char *host;
    int port;
    double duration;
    double long_start;
    double long_stop; /* negative: at the end */
    double timeout;
    int perf1;
    int perf2;
    int long_n;
    int short_n;
    int bucket_ms;
    int cpu; /* negative: not pinned */
};

struct run {
    struct options opt;
    struct sockaddr_storage addr;
    socklen_t addr_len;
    int epfd;
    int64_t t0;
    int64_t long_from; /* all relative to t0 */
    int64_t long_to;
    int64_t end;
    struct conn *conns; /* owns; perf1's first */
    int nconns;
    int open;
    char request[2][16];
    size_t request_len[2];
    char expected[2][32];
    size_t expected_len[2];
    struct pl_hist hist_all;    /* of short requests */
    struct pl_hist hist_during; /* those answered while perf1 took part */
    struct pl_hist hist_apart;  /* the others */
    struct pl_hist hist_long;
    uint64_t *buckets; /* owns; short answers in each slice of the run */
    size_t nbuckets;
    uint64_t short_in_time; /* answered before the end */
    uint64_t short_late;
    uint64_t short_in_window; /* answered while perf1 took part */
    struct span *spans;       /* owns */
    size_t nspans;
    uint64_t spans_dropped;
    uint64_t nerrors;
    char errors[MAX_ERRORS][200];
};

static volatile sig_atomic_t interrupted; /* The one thing that a handler may write. */

static void on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

static int64_t clock_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * NSEC + ts.tv_nsec;
}

/* ---- arguments ---------------------------------------------------------- */

static const char usage[] =
    "usage: fib_load --port PORT (--perf1 CONNECTIONS | --perf2 CONNECTIONS)... [options]\n"
    "  --host HOST        where the server is (127.0.0.1)\n"
    "  --port PORT        its TCP port\n"
    "  --perf1 C          connections that ask for the long number (0)\n"
    "  --perf2 C          connections that ask for the short number (0)\n"
    "  --long N           what perf1 asks for (30)\n"
    "  --short N          what perf2 asks for (1)\n"
    "  --duration S       seconds (5)\n"
    "  --long-start S     when perf1 starts, seconds from the beginning (0)\n"
    "  --long-stop S      when perf1 stops asking (the end)\n"
    "  --bucket-ms MS     width of the slices in which answers are counted (100)\n"
    "  --timeout S        how long to wait for what is unanswered at the end (30)\n"
    "  --cpu N            pin this program to one processor\n";

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("fib_load: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(2);
}

static int parse_int(const char *name, const char *text, int low, int high)
{
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || v < low || v > high)
        die("--%s must be a whole number from %d to %d, not '%s'", name, low, high, text);
    return (int)v;
}

static double parse_seconds(const char *name, const char *text, double low)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    /* The comparison is written so that a NaN fails it. */
    if (errno != 0 || end == text || *end != '\0' || !(v >= low && v <= 86400.0))
        die("--%s must be a number of seconds from %g to 86400, not '%s'", name, low, text);
    return v;
}

static struct options parse_options(int argc, char **argv)
{
    enum {
        HOST = 256,
        PORT,
        PERF1,
        PERF2,
        LONG_N,
        SHORT_N,
        DURATION,
        START,
        STOP,
        BUCKET,
        TIMEOUT,
        CPU,
        HELP
    };
    static const struct option longs[] = {
        {"host", required_argument, NULL, HOST},
        {"port", required_argument, NULL, PORT},
        {"perf1", required_argument, NULL, PERF1},
        {"perf2", required_argument, NULL, PERF2},
        {"long", required_argument, NULL, LONG_N},
        {"short", required_argument, NULL, SHORT_N},
        {"duration", required_argument, NULL, DURATION},
        {"long-start", required_argument, NULL, START},
        {"long-stop", required_argument, NULL, STOP},
        {"bucket-ms", required_argument, NULL, BUCKET},
        {"timeout", required_argument, NULL, TIMEOUT},
        {"cpu", required_argument, NULL, CPU},
        {"help", no_argument, NULL, HELP},
        {NULL, 0, NULL, 0},
    };
    struct options o = {
        .host = "127.0.0.1",
        .port = 0,
        .duration = 5.0,
        .long_start = 0.0,
        .long_stop = -1.0,
        .timeout = 30.0,
        .long_n = 30,
        .short_n = 1,
        .bucket_ms = 100,
        .cpu = -1,
    };
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        switch (c) {
        case HOST:
            o.host = optarg;
            break;
        case PORT:
            o.port = parse_int("port", optarg, 1, 65535);
            break;
        case PERF1:
            o.perf1 = parse_int("perf1", optarg, 0, MAX_CONNS);
            break;
        case PERF2:
            o.perf2 = parse_int("perf2", optarg, 0, MAX_CONNS);
            break;
        case LONG_N:
            /* fib(93) is the last that fits 64 bits. */
            o.long_n = parse_int("long", optarg, 1, 93);
            break;
        case SHORT_N:
            o.short_n = parse_int("short", optarg, 1, 93);
            break;
        case DURATION:
            o.duration = parse_seconds("duration", optarg, 0.01);
            break;
        case START:
            o.long_start = parse_seconds("long-start", optarg, 0.0);
            break;
        case STOP:
            o.long_stop = parse_seconds("long-stop", optarg, 0.0);
            break;
        case BUCKET:
            o.bucket_ms = parse_int("bucket-ms", optarg, 1, 60000);
            break;
        case TIMEOUT:
            o.timeout = parse_seconds("timeout", optarg, 0.0);
            break;
        case CPU:
            o.cpu = parse_int("cpu", optarg, 0, CPU_SETSIZE - 1);
            break;
        case HELP:
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            exit(2);
        }
    }
    if (optind < argc)
        die("unexpected argument '%s'", argv[optind]);
    if (o.port == 0)
        die("--port is missing");
    if (o.perf1 + o.perf2 == 0)
        die("nothing to do: give --perf1 or --perf2 a number of connections");
    if (o.perf1 + o.perf2 > MAX_CONNS)
        die("--perf1 and --perf2 ask for %d connections together, %d is the most",
            o.perf1 + o.perf2, MAX_CONNS);
    if (o.long_stop < 0.0 || o.long_stop > o.duration)
        o.long_stop = o.duration;
    if (o.perf1 > 0 && o.long_start >= o.long_stop)
        die("--long-start must lie before --long-stop and --duration, and is %g", o.long_start);
    if (o.duration * 1000.0 / o.bucket_ms > MAX_BUCKETS)
        die("--bucket-ms %d is too fine for --duration %g", o.bucket_ms, o.duration);
    return o;
}

/* ---- connections -------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void note_error(struct run *r, const char *fmt, ...)
{
    /* All are counted, the first few are told. */
    if (r->nerrors < MAX_ERRORS) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(r->errors[r->nerrors], sizeof r->errors[0], fmt, ap);
        va_end(ap);
    }
    r->nerrors++;
}

static const char *kind_name(enum kind kind)
{
    return kind == LONG ? "perf1" : "perf2";
}

static void hang_up(struct run *r, struct conn *c)
{
    if (c->over)
        return;
    c->over = true;
    c->waiting = false;
    if (c->fd >= 0) {
        close(c->fd); /* Leaves the epoll set by itself: nobody else holds the descriptor. */
        c->fd = -1;
    }
    r->open--;
}

static void ask(struct run *r, struct conn *c)
{
    c->got = 0;
    c->waiting = true;
    c->sent_at = clock_now();
    /* A request is a few bytes and the answer to the one before has arrived, so the socket
     * buffer is empty: it is taken whole, or the connection is broken. */
    ssize_t n = send(c->fd, r->request[c->kind], r->request_len[c->kind], MSG_NOSIGNAL);
    if (n != (ssize_t)r->request_len[c->kind]) {
        note_error(r, "%s: send: %s", kind_name(c->kind), n < 0 ? strerror(errno) : "cut short");
        hang_up(r, c);
    }
}

static void start_conn(struct run *r, struct conn *c)
{
    /* The connect blocks: on a listening socket of this machine it returns at once, whether
     * the server accepts or not. */
    c->fd = socket(r->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        note_error(r, "%s: socket: %s", kind_name(c->kind), strerror(errno));
        hang_up(r, c);
        return;
    }
    int one = 1;
    struct timeval limit = {.tv_sec = 5};
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(c->fd, (struct sockaddr *)&r->addr, r->addr_len) < 0) {
        note_error(r, "%s: connect to %s port %d: %s", kind_name(c->kind), r->opt.host, r->opt.port,
                   strerror(errno));
        hang_up(r, c);
        return;
    }
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(r->epfd, EPOLL_CTL_ADD, c->fd, &ev) < 0) {
        note_error(r, "%s: epoll_ctl: %s", kind_name(c->kind), strerror(errno));
        hang_up(r, c);
        return;
    }
    ask(r, c);
}

static void count_answer(struct run *r, struct conn *c, int64_t now)
{
    uint64_t took = (uint64_t)(now - c->sent_at);
    int64_t at = now - r->t0;
    if (c->kind == LONG) {
        pl_hist_add(&r->hist_long, took);
        if (r->nspans < MAX_LONGS)
            r->spans[r->nspans++] = (struct span){
                .start = c->sent_at - r->t0, .end = at, .conn = (uint32_t)(c - r->conns)};
        else
            r->spans_dropped++;
        return;
    }
    pl_hist_add(&r->hist_all, took);
    bool during = r->opt.perf1 > 0 && at >= r->long_from && at < r->long_to;
    pl_hist_add(during ? &r->hist_during : &r->hist_apart, took);
    if (at >= r->end) {
        r->short_late++;
        return;
    }
    r->short_in_time++;
    r->short_in_window += during;
    r->buckets[at / (r->opt.bucket_ms * INT64_C(1000000))]++;
}

static void on_readable(struct run *r, struct conn *c)
{
    ssize_t n = recv(c->fd, c->answer + c->got, sizeof c->answer - c->got, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        note_error(r, "%s: %s", kind_name(c->kind),
                   n < 0 ? strerror(errno) : "the server closed the connection");
        hang_up(r, c);
        return;
    }
    c->got += (size_t)n;
    char *newline = memchr(c->answer, '\n', c->got);
    if (newline == NULL && c->got < sizeof c->answer)
        return;
    int64_t now = clock_now();
    if (!c->waiting || c->got != r->expected_len[c->kind] ||
        memcmp(c->answer, r->expected[c->kind], c->got) != 0) {
        size_t shown = newline != NULL ? (size_t)(newline - c->answer) : c->got;
        for (size_t i = 0; i < shown; i++)
            if (c->answer[i] < 0x20 || c->answer[i] > 0x7e)
                c->answer[i] = '?';
        note_error(r, "%s: wrong answer to %.*s: '%.*s'", kind_name(c->kind),
                   (int)r->request_len[c->kind] - 1, r->request[c->kind], (int)shown, c->answer);
        hang_up(r, c);
        return;
    }
    c->waiting = false;
    count_answer(r, c, now);
    if (now - r->t0 < (c->kind == LONG ? r->long_to : r->end) && !interrupted)
        ask(r, c);
    else
        hang_up(r, c);
}

/* ---- the run ------------------------------------------------------------ */

static void prepare(struct run *r)
{
    const int n[2] = {[LONG] = r->opt.long_n, [SHORT] = r->opt.short_n};
    for (int k = 0; k < 2; k++) {
        uint64_t a = 1, b = 1; /* fib(1), fib(2) */
        for (int i = 2; i < n[k]; i++) {
            uint64_t next = a + b;
            a = b;
            b = next;
        }
        r->request_len[k] = (size_t)snprintf(r->request[k], sizeof r->request[k], "%d\n", n[k]);
        r->expected_len[k] =
            (size_t)snprintf(r->expected[k], sizeof r->expected[k], "%" PRIu64 "\n", b);
    }
    r->long_from = (int64_t)(r->opt.long_start * (double)NSEC);
    r->long_to = (int64_t)(r->opt.long_stop * (double)NSEC);
    r->end = (int64_t)(r->opt.duration * (double)NSEC);
    pl_hist_init(&r->hist_all);
    pl_hist_init(&r->hist_during);
    pl_hist_init(&r->hist_apart);
    pl_hist_init(&r->hist_long);

    char port[16];
    snprintf(port, sizeof port, "%d", r->opt.port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int rc = getaddrinfo(r->opt.host, port, &hints, &found);
    if (rc != 0)
        die("--host %s: %s", r->opt.host, gai_strerror(rc));
    memcpy(&r->addr, found->ai_addr, found->ai_addrlen);
    r->addr_len = found->ai_addrlen;
    freeaddrinfo(found);

    if (r->opt.cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(r->opt.cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) < 0)
            die("--cpu %d: %s", r->opt.cpu, strerror(errno));
    }
    /* Each connection is a descriptor; ask for as many as we may have. */
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files); /* connect tells when it was not enough */
    }
    r->nconns = r->open = r->opt.perf1 + r->opt.perf2;
    int64_t slice = r->opt.bucket_ms * INT64_C(1000000);
    r->nbuckets = (size_t)((r->end + slice - 1) / slice);
    r->conns = calloc((size_t)r->nconns, sizeof *r->conns);
    r->buckets = calloc(r->nbuckets, sizeof *r->buckets);
    r->spans = calloc(MAX_LONGS, sizeof *r->spans);
    r->epfd = epoll_create1(EPOLL_CLOEXEC);
    if (r->conns == NULL || r->buckets == NULL || r->spans == NULL || r->epfd < 0)
        die("%s", strerror(errno));
    for (int i = 0; i < r->nconns; i++)
        r->conns[i] = (struct conn){.fd = -1, .kind = i < r->opt.perf1 ? LONG : SHORT};
}

static int wait_ms(int64_t until, int64_t now)
{
    int64_t left = until - now;
    if (left <= 0)
        return 0;
    left = (left + 999999) / 1000000;
    return left > 1000 ? 1000 : (int)left;
}

/* Runs until every connection is over: each ends itself with the first answer after its
 * kind's time, so a stuck request is waited for up to the limit. */
static void drive(struct run *r)
{
    struct epoll_event events[256];
    bool long_started = r->opt.perf1 == 0;
    int64_t give_up = r->end + (int64_t)(r->opt.timeout * (double)NSEC);
    r->t0 = clock_now();
    for (int i = r->opt.perf1; i < r->nconns; i++)
        start_conn(r, &r->conns[i]);
    while (r->open > 0) {
        int64_t now = clock_now() - r->t0;
        if (!long_started && now >= r->long_from) {
            for (int i = 0; i < r->opt.perf1; i++)
                start_conn(r, &r->conns[i]);
            long_started = true;
            continue;
        }
        if (interrupted)
            break;
        if (now >= give_up)
            break;
        int n =
            epoll_wait(r->epfd, events, 256, wait_ms(long_started ? give_up : r->long_from, now));
        if (n < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c->over)
                on_readable(r, c);
        }
    }
    for (int i = 0; i < r->nconns; i++) {
        struct conn *c = &r->conns[i];
        if (!interrupted && c->waiting)
            note_error(r, "%s: no answer within %g s", kind_name(c->kind),
                       (double)(clock_now() - c->sent_at) / (double)NSEC);
        hang_up(r, c);
    }
    if (interrupted)
        note_error(r, "interrupted");
}

/* ---- JSON --------------------------------------------------------------- */

static void print_text(const char *text)
{
    putchar('"');
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++) {
        if (*p == '"' || *p == '\\')
            printf("\\%c", *p);
        else if (*p < 0x20 || *p > 0x7e)
            printf("\\u%04x", *p);
        else
            putchar(*p);
    }
    putchar('"');
}

static double us(uint64_t ns)
{
    return (double)ns / 1e3;
}

static void print_hist(const char *name, const struct pl_hist *h)
{
    printf("    \"%s\": {\"count\": %" PRIu64, name, h->total);
    if (h->total > 0)
        printf(", \"mean_us\": %.3f, \"min_us\": %.3f, \"p50_us\": %.3f, \"p90_us\": %.3f, "
               "\"p99_us\": %.3f, \"p99.9_us\": %.3f, \"max_us\": %.3f",
               us(h->sum) / (double)h->total, us(h->min), us(pl_hist_percentile(h, 50000)),
               us(pl_hist_percentile(h, 90000)), us(pl_hist_percentile(h, 99000)),
               us(pl_hist_percentile(h, 99900)), us(h->max));
    printf(",\n      \"buckets_us\": [");
    const char *sep = "";
    for (uint32_t i = 0; i < PL_HIST_LEN; i++)
        if (h->counts[i] != 0) {
            printf("%s[%.3f, %" PRIu64 "]", sep, us(pl_hist_upper(i)), h->counts[i]);
            sep = ", ";
        }
    printf("]}");
}

static void print_json(const struct run *r, double wall)
{
    const struct options *o = &r->opt;
    struct rusage ru = {0};
    (void)getrusage(RUSAGE_SELF, &ru); /* cannot fail with these arguments */
    double window = o->perf1 > 0 ? o->long_stop - o->long_start : 0.0;

    printf("{\n  \"version\": 1,\n  \"ok\": %s,\n", r->nerrors == 0 ? "true" : "false");
    printf("  \"host\": ");
    print_text(o->host);
    printf(", \"port\": %d,\n", o->port);
    printf("  \"perf1\": %d, \"perf2\": %d, \"long_n\": %d, \"short_n\": %d,\n", o->perf1, o->perf2,
           o->long_n, o->short_n);
    printf("  \"duration_s\": %.6f, \"long_start_s\": %.6f, \"long_stop_s\": %.6f, "
           "\"wall_s\": %.6f,\n",
           o->duration, o->long_start, o->long_stop, wall);
    printf("  \"client_user_s\": %.6f, \"client_system_s\": %.6f, \"client_cpu\": %d,\n",
           (double)ru.ru_utime.tv_sec + (double)ru.ru_utime.tv_usec / 1e6,
           (double)ru.ru_stime.tv_sec + (double)ru.ru_stime.tv_usec / 1e6, o->cpu);

    printf("  \"short\": {\n    \"answered\": %" PRIu64 ", \"late\": %" PRIu64
           ", \"rate_per_s\": %.3f,\n",
           r->short_in_time, r->short_late, (double)r->short_in_time / o->duration);
    printf("    \"answered_during_long\": %" PRIu64 ", \"answered_apart\": %" PRIu64 ",\n",
           r->short_in_window, r->short_in_time - r->short_in_window);
    if (o->perf1 > 0)
        printf("    \"rate_during_long_per_s\": %.3f,\n", (double)r->short_in_window / window);
    if (o->duration > window)
        printf("    \"rate_apart_per_s\": %.3f,\n",
               (double)(r->short_in_time - r->short_in_window) / (o->duration - window));
    printf("    \"bucket_ms\": %d, \"bucket_counts\": [", o->bucket_ms);
    for (size_t i = 0; i < r->nbuckets; i++)
        printf("%s%" PRIu64, i == 0 ? "" : ", ", r->buckets[i]);
    printf("],\n    \"per_second\": [");
    /* A slice counts for the second in which it begins. */
    uint64_t in_second = 0;
    for (size_t i = 0; i < r->nbuckets; i++) {
        in_second += r->buckets[i];
        int64_t next = ((int64_t)i + 1) * o->bucket_ms;
        if (i + 1 == r->nbuckets || next / 1000 != (int64_t)i * o->bucket_ms / 1000) {
            printf("%" PRIu64 "%s", in_second, i + 1 == r->nbuckets ? "" : ", ");
            in_second = 0;
        }
    }
    printf("],\n");
    print_hist("latency", &r->hist_all);
    printf(",\n");
    print_hist("latency_during_long", &r->hist_during);
    printf(",\n");
    print_hist("latency_apart", &r->hist_apart);

    printf("\n  },\n  \"long\": {\n    \"answered\": %" PRIu64 ", \"spans_dropped\": %" PRIu64
           ",\n",
           r->hist_long.total, r->spans_dropped);
    printf("    \"spans_s\": [");
    for (size_t i = 0; i < r->nspans; i++)
        printf("%s[%.6f, %.6f, %" PRIu32 "]", i == 0 ? "" : ", ",
               (double)r->spans[i].start / (double)NSEC, (double)r->spans[i].end / (double)NSEC,
               r->spans[i].conn);
    printf("],\n");
    print_hist("latency", &r->hist_long);
    printf("\n  },\n  \"error_count\": %" PRIu64 ",\n  \"errors\": [", r->nerrors);
    for (uint64_t i = 0; i < r->nerrors && i < MAX_ERRORS; i++) {
        printf("%s", i == 0 ? "" : ", ");
        print_text(r->errors[i]);
    }
    printf("]\n}\n");
}

int main(int argc, char **argv)
{
    struct run *r = calloc(1, sizeof *r);
    if (r == NULL)
        die("out of memory");
    r->opt = parse_options(argc, argv);
    struct sigaction sa = {.sa_handler = on_signal};
    (void)sigaction(SIGINT, &sa, NULL); /* cannot fail with these arguments */
    (void)sigaction(SIGTERM, &sa, NULL);
    prepare(r);
    drive(r);
    print_json(r, (double)(clock_now() - r->t0) / (double)NSEC);
    bool ok = r->nerrors == 0;
    if (fflush(stdout) != 0) {
        fprintf(stderr, "fib_load: cannot write the result: %s\n", strerror(errno));
        ok = false;
    }
    close(r->epfd);
    free(r->conns);
    free(r->buckets);
    free(r->spans);
    free(r);
    return ok ? 0 : 1;
}
