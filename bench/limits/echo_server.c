/* echo_server.c - a bare epoll echo server: the limit that loops are measured against.
 *
 * One thread, level-triggered, one recv and one send for each event; nothing of plait. It
 * prints its port and runs until it is killed. A connection whose peer takes no more is
 * held back until it is writable again.
 *
 *   echo_server [port]
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

#define BUFFER (256 * 1024)
#define EVENTS 256

struct conn {
    int fd;
    size_t held; /* bytes that the kernel did not take */
    size_t sent; /* of `rest`, so far */
    char *rest;  /* owns; NULL while nothing is held */
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void drop(struct conn *c)
{
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
static bool flush(struct conn *c, bool *gone)
{
    while (c->sent < c->held) {
        ssize_t n = send(c->fd, c->rest + c->sent, c->held - c->sent, MSG_NOSIGNAL);
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

static void serve(int epfd, struct conn *c, char *buf)
{
    bool gone = false;
    if (c->held > 0) {
        if (flush(c, &gone))
            watch(epfd, EPOLL_CTL_MOD, c, EPOLLIN);
        if (gone)
            drop(c);
        return;
    }
    ssize_t n = recv(c->fd, buf, BUFFER, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(c);
        return;
    }
    ssize_t m = send(c->fd, buf, (size_t)n, MSG_NOSIGNAL);
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
    memcpy(c->rest, buf + m, c->held);
    watch(epfd, EPOLL_CTL_MOD, c, EPOLLOUT);
}

int main(int argc, char **argv)
{
    int port = argc > 1 ? atoi(argv[1]) : 0;
    if (port < 0 || port > 65535) {
        fprintf(stderr, "echo_server: port %s is not between 0 and 65535\n", argv[1]);
        return 2;
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

    int epfd = epoll_create1(EPOLL_CLOEXEC);
    char *buf = malloc(BUFFER);
    struct conn accepting = {.fd = listener};
    if (epfd < 0 || buf == NULL)
        die("set-up");
    watch(epfd, EPOLL_CTL_ADD, &accepting, EPOLLIN);
    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(epfd, events, EVENTS, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (c != &accepting) {
                serve(epfd, c, buf);
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
                watch(epfd, EPOLL_CTL_ADD, fresh, EPOLLIN);
            }
        }
    }
}
