/* echo_load.c - a closed-loop load for echo servers: each connection sends a message,
 * waits for all of it to come back, compares it, and sends the next.
 *
 *   echo_load --port P [--connections N] [--idle N] [--size BYTES] [--seconds S]
 *             [--warmup S] [--tls 1]
 *
 * Idle connections exchange one message at the start and then only exist. Prints one line
 * of JSON: requests, seconds, rate, latencies in microseconds, the time at which counting
 * began and ended (CLOCK_MONOTONIC, so that a caller can read the server's CPU time at
 * the same moments: "start" is also printed as a line of its own when counting begins,
 * and "end" when it ends). Exit code 1 when an answer was wrong or a connection broke.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#if ECHO_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#define EVENTS 256

/* Latencies in buckets of 1/32 of a power of two: an error below 3 %, no memory per
 * sample. */
#define SUB 32
#define BUCKETS (64 * SUB)

/* One end of a connection; with TLS the engine reads and writes the socket itself. */
struct line {
    int fd;
#if ECHO_TLS
    SSL *ssl; /* owns; NULL without TLS */
#endif
};

struct conn {
    struct line line;
    size_t sent;
    size_t got;
    int64_t began;
    uint32_t round;
    bool blocked;
};

struct options {
    int port, connections, idle, tls;
    size_t size;
    double seconds, warmup;
};

static uint64_t buckets[BUCKETS];

static int64_t now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static unsigned bucket_of(uint64_t ns)
{
    if (ns < SUB)
        return (unsigned)ns;
    unsigned top = 63 - (unsigned)__builtin_clzll(ns); /* >= 5 */
    return (top - 4) * SUB + (unsigned)(ns >> (top - 5)) - SUB;
}

static double bucket_value(unsigned b)
{
    if (b < SUB)
        return b;
    unsigned shift = b / SUB - 1;
    return (double)((uint64_t)(SUB + b % SUB) << shift) + (double)(UINT64_C(1) << shift) / 2;
}

static double percentile(uint64_t total, double p)
{
    uint64_t rank = (uint64_t)(p / 100.0 * (double)total);
    uint64_t seen = 0;
    for (unsigned b = 0; b < BUCKETS; b++) {
        seen += buckets[b];
        if (seen > rank)
            return bucket_value(b) / 1000.0;
    }
    return 0;
}

_Noreturn static void fail(const char *what)
{
    fprintf(stderr, "echo_load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static int dial(int port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_port = htons((uint16_t)port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
        fail("connect");
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
        fail("TCP_NODELAY");
    /* A server that hangs is an error, not a benchmark without end. */
    struct timeval limit = {.tv_sec = 20};
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return fd;
}

#if ECHO_TLS
static void secure(struct line *line)
{
    static SSL_CTX *context;
    if (context == NULL) {
        context = SSL_CTX_new(TLS_client_method());
        if (context == NULL)
            fail("SSL_CTX_new");
        SSL_CTX_set_mode(context,
                         SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        /* Whatever has arrived in one system call: the load must not be what is measured. */
        SSL_CTX_set_read_ahead(context, 1);
        SSL_CTX_set_default_read_buffer_len(context, 262144);
    }
    line->ssl = SSL_new(context);
    if (line->ssl == NULL || SSL_set_fd(line->ssl, line->fd) != 1 || SSL_connect(line->ssl) != 1) {
        ERR_print_errors_fp(stderr);
        fail("the TLS handshake");
    }
}

/* As recv and send answer. */
static ssize_t answer(struct line *line, int r, size_t n)
{
    if (r > 0)
        return (ssize_t)n;
    int error = SSL_get_error(line->ssl, r);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        errno = EAGAIN;
    else if (error == SSL_ERROR_ZERO_RETURN)
        return 0;
    else if (error != SSL_ERROR_SYSCALL || errno == 0)
        errno = EPROTO;
    return -1;
}
#endif

static struct line open_line(const struct options *o)
{
    struct line line = {.fd = dial(o->port)};
    if (o->tls) {
#if ECHO_TLS
        secure(&line);
#else
        errno = 0;
        fail("built without OpenSSL: no --tls");
#endif
    }
    return line;
}

static ssize_t put(struct line *line, const char *data, size_t len, int flags)
{
#if ECHO_TLS
    if (line->ssl != NULL) {
        size_t n = 0;
        int r = SSL_write_ex(line->ssl, data, len, &n);
        return answer(line, r, n);
    }
#endif
    return send(line->fd, data, len, MSG_NOSIGNAL | flags);
}

static ssize_t take(struct line *line, char *buf, size_t len, int flags)
{
#if ECHO_TLS
    if (line->ssl != NULL) {
        size_t n = 0;
        int r = SSL_read_ex(line->ssl, buf, len, &n);
        return answer(line, r, n);
    }
#endif
    return recv(line->fd, buf, len, flags);
}

/* Whether the engine holds more that the poller will not tell of. */
static bool has_more(const struct line *line)
{
#if ECHO_TLS
    return line->ssl != NULL && SSL_has_pending(line->ssl);
#else
    (void)line;
    return false;
#endif
}

/* One message there and back on a blocking socket, so that the server has met it. */
static void greet(struct line *line, const char *message, char *buf, size_t size)
{
    size_t sent = 0;
    size_t got = 0;
    while (sent < size) {
        ssize_t n = put(line, message + sent, size - sent, 0);
        if (n <= 0)
            fail("send");
        sent += (size_t)n;
    }
    while (got < size) {
        errno = 0;
        ssize_t n = take(line, buf + got, size - got, 0);
        if (n <= 0)
            fail("the server closed a connection or was silent for 20 s");
        got += (size_t)n;
    }
    if (memcmp(message, buf, size) != 0)
        fail("the answer differs from the message");
}

/* The message of a round begins at another offset of the pattern, so that an answer to
 * the wrong round is noticed. */
static const char *message_of(const struct conn *c, const char *pattern)
{
    return pattern + c->round % 251;
}

static void send_some(int epfd, struct conn *c, const char *pattern, size_t size)
{
    while (c->sent < size) {
        ssize_t n = put(&c->line, message_of(c, pattern) + c->sent, size - c->sent, MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN)
                fail("send");
            break;
        }
        c->sent += (size_t)n;
    }
    bool blocked = c->sent < size;
    if (blocked != c->blocked) {
        struct epoll_event ev = {.events = EPOLLIN | (blocked ? EPOLLOUT : 0), .data.ptr = c};
        if (epoll_ctl(epfd, EPOLL_CTL_MOD, c->line.fd, &ev) < 0)
            fail("epoll_ctl");
        c->blocked = blocked;
    }
}

static double parse(const char *name, const char *text, double least, double most)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (*text == '\0' || *end != '\0' || !(value >= least && value <= most)) {
        fprintf(stderr, "echo_load: %s: %s is not a number from %g to %g\n", name, text, least,
                most);
        exit(2);
    }
    return value;
}

static struct options parse_options(int argc, char **argv)
{
    struct options o = {.connections = 64, .size = 1024, .seconds = 2, .warmup = 0.3};
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        const char *value = i + 1 < argc ? argv[++i] : "";
        if (strcmp(name, "--port") == 0)
            o.port = (int)parse(name, value, 1, 65535);
        else if (strcmp(name, "--connections") == 0)
            o.connections = (int)parse(name, value, 1, 100000);
        else if (strcmp(name, "--idle") == 0)
            o.idle = (int)parse(name, value, 0, 1000000);
        else if (strcmp(name, "--size") == 0)
            o.size = (size_t)parse(name, value, 1, 1 << 28);
        else if (strcmp(name, "--seconds") == 0)
            o.seconds = parse(name, value, 0.01, 86400);
        else if (strcmp(name, "--tls") == 0)
            o.tls = (int)parse(name, value, 0, 1);
        else if (strcmp(name, "--warmup") == 0)
            o.warmup = parse(name, value, 0, 3600);
        else {
            fprintf(stderr, "echo_load: unknown option %s\n", name);
            exit(2);
        }
    }
    if (o.port == 0) {
        fprintf(stderr, "echo_load: --port is missing\n");
        exit(2);
    }
    return o;
}

static int64_t longest;

/* Takes what has arrived; a whole answer begins the next round. */
static void receive(int epfd, struct conn *c, const char *pattern, char *buf,
                    const struct options *o, uint64_t *requests)
{
    ssize_t r = take(&c->line, buf, o->size - c->got, MSG_DONTWAIT);
    if (r < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (r <= 0) {
        errno = r == 0 ? 0 : errno;
        fail("the server closed a connection");
    }
    if (memcmp(message_of(c, pattern) + c->got, buf, (size_t)r) != 0) {
        errno = 0;
        fail("the answer differs from the message");
    }
    c->got += (size_t)r;
    if (c->got < o->size)
        return;
    int64_t t = now();
    if (requests != NULL) {
        ++*requests;
        buckets[bucket_of((uint64_t)(t - c->began))]++;
        if (t - c->began > longest)
            longest = t - c->began;
    }
    c->sent = c->got = 0;
    c->round++;
    c->began = t;
    send_some(epfd, c, pattern, o->size);
}

int main(int argc, char **argv)
{
    struct options o = parse_options(argc, argv);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files); /* a failure shows at the first socket */
    }
    char *pattern = malloc(o.size + 256);
    char *buf = malloc(o.size);
    struct conn *conns = calloc((size_t)o.connections, sizeof(*conns));
    int epfd = epoll_create1(EPOLL_CLOEXEC);
    if (pattern == NULL || buf == NULL || conns == NULL || epfd < 0)
        fail("set-up");
    uint32_t seed = 1;
    for (size_t i = 0; i < o.size + 256; i++) {
        seed = seed * 1664525 + 1013904223;
        pattern[i] = (char)(seed >> 24);
    }
    for (int i = 0; i < o.idle; i++) {
        struct line idle = open_line(&o); /* kept until we end */
        greet(&idle, pattern, buf, o.size < 64 ? o.size : 64);
    }
    for (int i = 0; i < o.connections; i++) {
        conns[i].line = open_line(&o);
        greet(&conns[i].line, pattern, buf, o.size);
        int flags = fcntl(conns[i].line.fd, F_GETFL);
        if (flags < 0 || fcntl(conns[i].line.fd, F_SETFL, flags | O_NONBLOCK) < 0)
            fail("O_NONBLOCK");
        struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &conns[i]};
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, conns[i].line.fd, &ev) < 0)
            fail("epoll_ctl");
    }

    int64_t begin = now();
    int64_t counting_from = begin + (int64_t)(o.warmup * 1e9);
    int64_t stop_at = counting_from + (int64_t)(o.seconds * 1e9);
    for (int i = 0; i < o.connections; i++) {
        conns[i].began = begin;
        send_some(epfd, &conns[i], pattern, o.size);
    }
    uint64_t requests = 0;
    bool counting = false;
    int64_t last = begin;
    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(epfd, events, EVENTS, 20000);
        if (n == 0)
            errno = 0, fail("the server was silent for 20 s");
        if (n < 0 && errno != EINTR)
            fail("epoll_wait");
        last = now();
        if (!counting && last >= counting_from) {
            counting = true;
            counting_from = last; /* later than asked for on a machine that stalls */
            stop_at = last + (int64_t)(o.seconds * 1e9);
            printf("start\n");
            fflush(stdout);
        }
        if (counting && last >= stop_at)
            break;
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT)
                send_some(epfd, c, pattern, o.size);
            if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
                continue;
            do
                receive(epfd, c, pattern, buf, &o, counting ? &requests : NULL);
            while (has_more(&c->line));
        }
    }
    printf("end\n");
    double seconds = (double)(last - counting_from) / 1e9;
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"rate\": %.1f, \"connections\": %d, "
           "\"idle\": %d, \"size\": %zu, \"p50_us\": %.2f, \"p90_us\": %.2f, \"p99_us\": %.2f, "
           "\"p999_us\": %.2f, \"max_us\": %.2f}\n",
           (unsigned long long)requests, seconds, (double)requests / seconds, o.connections, o.idle,
           o.size, percentile(requests, 50), percentile(requests, 90), percentile(requests, 99),
           percentile(requests, 99.9), (double)longest / 1000.0);
    return fflush(stdout) == 0 ? 0 : 1;
}
