/* test_sys.c - the system-call table: -errno results, errno untouched, rounding. */
#include "pl_test.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

static void every_entry_is_there(void)
{
    const struct pl_sys *sys = pl_sys_default();
    void *const *entries = (void *const *)(const void *)sys;
    for (size_t i = 0; i < sizeof(*sys) / sizeof(void *); i++)
        CHECK(entries[i] != NULL);
}

static void errors_are_results(void)
{
    const struct pl_sys *sys = pl_sys_default();
    char byte;
    struct epoll_event ev = {0};
    errno = 4711;
    CHECK_EQ(sys->read(-1, &byte, 1), -EBADF);
    CHECK_EQ(sys->write(-1, &byte, 1), -EBADF);
    CHECK_EQ(sys->recv(-1, &byte, 1, 0), -EBADF);
    CHECK_EQ(sys->send(-1, &byte, 1, 0), -EBADF);
    CHECK_EQ(sys->accept4(-1, NULL, NULL, 0), -EBADF);
    CHECK_EQ(sys->shutdown(-1, SHUT_WR), -EBADF);
    CHECK_EQ(sys->close(-1), -EBADF);
    CHECK_EQ(sys->epoll_ctl(-1, EPOLL_CTL_ADD, 0, &ev), -EBADF);
    CHECK_EQ(sys->epoll_wait(-1, &ev, 1, 0), -EBADF);
    CHECK_EQ(sys->epoll_wait(-1, &ev, 1, 1), -EBADF);
    CHECK_EQ(sys->epoll_wait(-1, &ev, 1, -1), -EBADF);
    CHECK_EQ(sys->ftruncate(-1, 1), -EBADF);
    CHECK_EQ(sys->kill(getpid(), 12345), -EINVAL);
    CHECK_EQ(sys->waitid(P_ALL, 0, NULL, WEXITED | WNOHANG, NULL), -ECHILD);
    void *addr = NULL;
    CHECK_EQ(sys->mmap_shared(-1, 4096, &addr), -EBADF);
    CHECK(addr == NULL);
    CHECK_EQ(errno, 4711);
}

static void memory_is_shared(void)
{
    const struct pl_sys *sys = pl_sys_default();
    int fd = sys->memfd_create("pl-test");
    CHECK_OK(fd);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_OK(sys->ftruncate(fd, 4096));
    void *a = NULL;
    void *b = NULL;
    CHECK_OK(sys->mmap_shared(fd, 4096, &a));
    CHECK_OK(sys->mmap_shared(fd, 4096, &b));
    strcpy(a, "seen");
    CHECK(strcmp(b, "seen") == 0);
    CHECK_OK(sys->munmap(a, 4096));
    CHECK_OK(sys->munmap(b, 4096));
    CHECK_OK(sys->close(fd));
}

static void parking_tells_why_it_ended(void)
{
    const struct pl_sys *sys = pl_sys_default();
    uint32_t word = 5;
    CHECK_EQ(sys->futex_wait(&word, 4, -1), -EAGAIN);
    CHECK_EQ(sys->futex_wait(&word, 5, 1000), -ETIMEDOUT);
    CHECK_EQ(sys->futex_wake(&word, 1), 0);
}

static void descriptors_close_on_exec(void)
{
    const struct pl_sys *sys = pl_sys_default();
    int ep = sys->epoll_create();
    int ev = sys->eventfd(3);
    CHECK_OK(ep);
    CHECK_OK(ev);
    CHECK(fcntl(ep, F_GETFD) & FD_CLOEXEC);
    CHECK(fcntl(ev, F_GETFD) & FD_CLOEXEC);
    CHECK(fcntl(ev, F_GETFL) & O_NONBLOCK);
    CHECK_EQ(sys->poll_one(ev, POLLIN, 0), POLLIN);
    uint64_t n;
    CHECK_EQ(sys->read(ev, &n, sizeof(n)), 8);
    CHECK_EQ(n, 3);
    CHECK_EQ(sys->read(ev, &n, sizeof(n)), -EAGAIN);
    CHECK_EQ(sys->poll_one(ev, POLLIN, 0), 0);
    CHECK_OK(sys->close(ep));
    CHECK_OK(sys->close(ev));
}

static void a_short_wait_is_not_early(void)
{
    const struct pl_sys *sys = pl_sys_default();
    int ep = sys->epoll_create();
    struct epoll_event event;
    int64_t waits[] = {1, 999, 1000001, 2500000};
    for (size_t i = 0; i < PL_ARRAY_LEN(waits); i++) {
        int64_t start = sys->now();
        CHECK_EQ(sys->epoll_wait(ep, &event, 1, waits[i]), 0);
        CHECK_CMP(sys->now() - start, >=, waits[i]);
    }
    CHECK_OK(sys->close(ep));
}

static void codes_have_names(void)
{
    CHECK(strcmp(pl_error_name(-EAGAIN), "EAGAIN") == 0);
    CHECK(strcmp(pl_error_name(PL_ECLOSED), "PL_ECLOSED") == 0);
    CHECK(strlen(pl_error_text(PL_EWORKER)) > 0);
    CHECK(strlen(pl_error_text(-ENOMEM)) > 0);
    CHECK(strlen(pl_error_text(12)) > 0);
    CHECK(strlen(pl_error_text(-100000)) > 0);
    CHECK(strlen(pl_error_name(INT32_MIN + 1)) > 0);
    CHECK(strlen(pl_version()) >= 5);
}

static const struct pl_test tests[] = {
    PL_TEST(every_entry_is_there),      PL_TEST(errors_are_results),
    PL_TEST(memory_is_shared),          PL_TEST(parking_tells_why_it_ended),
    PL_TEST(descriptors_close_on_exec), PL_TEST(a_short_wait_is_not_early),
    PL_TEST(codes_have_names),
};
PL_TEST_MAIN(tests)
