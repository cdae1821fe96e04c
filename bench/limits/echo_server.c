/* echo_server.c - a bare epoll echo server: the limit that loops are measured against.
 *
 * One thread, level-triggered, one recv and one send for each event; nothing of plait. It
 * prints its port and runs until it is killed. A connection whose peer takes no more is
 * held back until it is writable again.
 *
 *   echo_server [port [memory | socket]]
 *
 * With a second argument it speaks TLS, with a certificate of its own: through memory BIOs, as
 * every loop does that takes an ssl.SSLContext, or with OpenSSL on the socket. That is what
 * OpenSSL alone costs: the limit of a loop's TLS.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#if ECHO_TLS
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#endif

#define BUFFER (256 * 1024)
#define EVENTS 256

enum tls { PLAIN, MEMORY, SOCKET };

struct server {
    int epfd;
    enum tls tls;
    char *buf; /* owns; what a connection gets and gives within one event */
#if ECHO_TLS
    SSL_CTX *context; /* owns */
    char *raw;        /* owns; ciphertext, with memory BIOs */
#endif
};

struct conn {
    int fd;
    size_t held; /* bytes that the kernel did not take */
    size_t sent; /* of `rest`, so far */
    char *rest;  /* owns; NULL while nothing is held */
#if ECHO_TLS
    SSL *ssl; /* owns; NULL without TLS */
    BIO *in;  /* borrows; the engine's, NULL where it has the socket */
    BIO *out;
#endif
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

#if ECHO_TLS
static SSL_CTX *make_context(void)
{
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    X509_NAME *name = cert == NULL ? NULL : X509_get_subject_name(cert);
    if (context == NULL || key == NULL || name == NULL ||
        !X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost",
                                    -1, -1, 0) ||
        !X509_set_issuer_name(cert, name) || !X509_gmtime_adj(X509_getm_notBefore(cert), 0) ||
        !X509_gmtime_adj(X509_getm_notAfter(cert), 2L * 86400) || !X509_set_pubkey(cert, key) ||
        !X509_sign(cert, key, EVP_sha256()) || SSL_CTX_use_certificate(context, cert) != 1 ||
        SSL_CTX_use_PrivateKey(context, key) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    X509_free(cert);
    EVP_PKEY_free(key);
    /* What the ssl module sets as well. */
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_AUTO_RETRY | SSL_MODE_RELEASE_BUFFERS);
    return context;
}

/* As recv and send answer. */
static ssize_t answer(struct conn *c, int r, size_t n)
{
    if (r > 0)
        return (ssize_t)n;
    int error = SSL_get_error(c->ssl, r);
    ERR_clear_error();
    if (error == SSL_ERROR_ZERO_RETURN)
        return 0;
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    return -1;
}

/* Decrypts into buf all that the engine has. */
static ssize_t decrypt(struct conn *c, char *buf)
{
    size_t got = 0;
    while (got < BUFFER) {
        size_t n = 0;
        int r = SSL_read_ex(c->ssl, buf + got, BUFFER - got, &n);
        if (r <= 0)
            return got > 0 ? (ssize_t)got : answer(c, r, n);
        got += n;
        /* Without this it would look for another record, in vain and at some cost. */
        if (c->in == NULL ? !SSL_has_pending(c->ssl)
                          : BIO_ctrl_pending(c->in) == 0 && SSL_pending(c->ssl) == 0)
            break;
    }
    return (ssize_t)got;
}

/* One receive, through the memory BIOs: the answer is in buf, as ciphertext to be sent. */
static ssize_t turn(struct server *s, struct conn *c)
{
    ssize_t n = recv(c->fd, s->raw, BUFFER / 2, 0);
    if (n <= 0)
        return n;
    /* In steps that stay in the cache. */
    for (ssize_t at = 0, step; at < n; at += step) {
        step = n - at < 16384 ? n - at : 16384;
        if (BIO_write(c->in, s->raw + at, (int)step) != step)
            die("BIO_write");
        ssize_t m = decrypt(c, s->buf);
        if (m < 0 && errno == EAGAIN)
            continue;
        if (m <= 0)
            return m;
        for (ssize_t done = 0; done < m;) {
            size_t k = 0;
            int r = SSL_write_ex(c->ssl, s->buf + done, (size_t)(m - done), &k);
            if (r <= 0)
                return answer(c, r, k);
            done += (ssize_t)k;
        }
    }
    int out = BIO_read(c->out, s->buf, BUFFER);
    if (out > 0)
        return out;
    errno = EAGAIN;
    return -1;
}

static bool secure(struct server *s, struct conn *c)
{
    c->ssl = SSL_new(s->context);
    if (c->ssl == NULL)
        return false;
    SSL_set_accept_state(c->ssl);
    if (s->tls == SOCKET) {
        /* Whatever has arrived in one system call. */
        SSL_set_read_ahead(c->ssl, 1);
        SSL_set_default_read_buffer_len(c->ssl, BUFFER);
        return SSL_set_fd(c->ssl, c->fd) == 1;
    }
    c->in = BIO_new(BIO_s_mem());
    c->out = BIO_new(BIO_s_mem());
    SSL_set_bio(c->ssl, c->in, c->out);
    return c->in != NULL && c->out != NULL;
}
#endif

/* What is to be sent back, in s->buf; as recv answers. */
static ssize_t take(struct server *s, struct conn *c)
{
#if ECHO_TLS
    if (s->tls == MEMORY)
        return turn(s, c);
    if (s->tls == SOCKET)
        return decrypt(c, s->buf);
#endif
    return recv(c->fd, s->buf, BUFFER, 0);
}

static ssize_t put(struct server *s, struct conn *c, const char *data, size_t len)
{
#if ECHO_TLS
    if (s->tls == SOCKET) {
        size_t done = 0;
        while (done < len) {
            size_t n = 0;
            int r = SSL_write_ex(c->ssl, data + done, len - done, &n);
            if (r <= 0)
                return done > 0 ? (ssize_t)done : answer(c, r, n);
            done += n;
        }
        return (ssize_t)done;
    }
#else
    (void)s;
#endif
    return send(c->fd, data, len, MSG_NOSIGNAL);
}

static void drop(struct conn *c)
{
#if ECHO_TLS
    SSL_free(c->ssl);
#endif
    close(c->fd);
    free(c->rest);
    free(c);
}

static void watch(int epfd, int op, struct conn *c, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = c};
    if (epoll_ctl(epfd, op, c->fd, &ev) < 0)
        die("epoll_ctl");
}

/* Sends what is held; true when nothing is left. */
static bool flush(struct server *s, struct conn *c, bool *gone)
{
    while (c->sent < c->held) {
        ssize_t n = put(s, c, c->rest + c->sent, c->held - c->sent);
        if (n < 0) {
            *gone = errno != EAGAIN && errno != EINTR;
            return false;
        }
        c->sent += (size_t)n;
    }
    c->held = c->sent = 0;
    free(c->rest);
    c->rest = NULL;
    return true;
}

static void serve(struct server *s, struct conn *c)
{
    bool gone = false;
    if (c->held > 0) {
        if (flush(s, c, &gone))
            watch(s->epfd, EPOLL_CTL_MOD, c, EPOLLIN);
        if (gone)
            drop(c);
        return;
    }
    ssize_t n = take(s, c);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(c);
        return;
    }
    ssize_t m = put(s, c, s->buf, (size_t)n);
    if (m == n)
        return;
    if (m < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            drop(c);
            return;
        }
        m = 0;
    }
    c->held = (size_t)(n - m);
    c->sent = 0;
    c->rest = malloc(c->held);
    if (c->rest == NULL) {
        drop(c);
        return;
    }
    memcpy(c->rest, s->buf + m, c->held);
    watch(s->epfd, EPOLL_CTL_MOD, c, EPOLLOUT);
}

int main(int argc, char **argv)
{
    int port = argc > 1 ? atoi(argv[1]) : 0;
    if (port < 0 || port > 65535) {
        fprintf(stderr, "echo_server: port %s is not between 0 and 65535\n", argv[1]);
        return 2;
    }
    struct server s = {.tls = PLAIN};
    if (argc > 2) {
        s.tls = strcmp(argv[2], "memory") == 0   ? MEMORY
                : strcmp(argv[2], "socket") == 0 ? SOCKET
                                                 : PLAIN;
        if (s.tls == PLAIN || !ECHO_TLS) {
            fprintf(stderr, "echo_server: %s: %s\n", argv[2],
                    s.tls == PLAIN ? "neither memory nor socket" : "built without OpenSSL");
            return 2;
        }
    }
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files); /* as many as we may; not needed by most */
    }
    int one = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_port = htons((uint16_t)port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(listener, (struct sockaddr *)&addr, len) < 0 || listen(listener, 4096) < 0 ||
        getsockname(listener, (struct sockaddr *)&addr, &len) < 0)
        die("listen");
    printf("listening on 127.0.0.1:%d\n", ntohs(addr.sin_port));
    fflush(stdout);

    s.epfd = epoll_create1(EPOLL_CLOEXEC);
    s.buf = malloc(BUFFER);
    struct conn accepting = {.fd = listener};
    if (s.epfd < 0 || s.buf == NULL)
        die("set-up");
#if ECHO_TLS
    if (s.tls != PLAIN) {
        signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
        s.context = make_context();
        s.raw = malloc(BUFFER);
        if (s.raw == NULL)
            die("set-up");
    }
#endif
    watch(s.epfd, EPOLL_CTL_ADD, &accepting, EPOLLIN);
    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(s.epfd, events, EVENTS, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (c != &accepting) {
                serve(&s, c);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
                struct conn *fresh = calloc(1, sizeof(*fresh));
                if (fresh == NULL) {
                    close(fd);
                    continue;
                }
                fresh->fd = fd;
#if ECHO_TLS
                if (s.tls != PLAIN && !secure(&s, fresh)) {
                    drop(fresh);
                    continue;
                }
#endif
                watch(s.epfd, EPOLL_CTL_ADD, fresh, EPOLLIN);
            }
        }
    }
}
