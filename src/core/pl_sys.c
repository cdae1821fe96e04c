/* pl_sys.c - the system-call table that calls the kernel.
 *
 * Each function turns the C library's -1 and errno into -errno and leaves errno as
 * it was, so a binding never sees it change. Calls that are younger than the C
 * library's wrappers go through syscall(2).
 */
#include "pl_sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Evaluates a call to its result or -errno, with errno preserved. */
#define CALL(type, expr)                                                                           \
    do {                                                                                           \
        int saved_ = errno;                                                                        \
        type result_ = (type)(expr);                                                               \
        if (result_ == (type)-1) {                                                                 \
            result_ = (type)-errno;                                                                \
            errno = saved_;                                                                        \
        }                                                                                          \
        return result_;                                                                            \
    } while (0)

static void *sys_alloc(size_t size)
{
    return malloc(size);
}

static void *sys_realloc(void *ptr, size_t size)
{
    return realloc(ptr, size);
}

static void sys_free(void *ptr)
{
    int saved = errno;
    free(ptr);
    errno = saved;
}

static ssize_t sys_read(int fd, void *buf, size_t len)
{
    CALL(ssize_t, read(fd, buf, len));
}

static ssize_t sys_write(int fd, const void *buf, size_t len)
{
    CALL(ssize_t, write(fd, buf, len));
}

static ssize_t sys_readv(int fd, const struct iovec *iov, int n)
{
    CALL(ssize_t, readv(fd, iov, n));
}

static ssize_t sys_writev(int fd, const struct iovec *iov, int n)
{
    CALL(ssize_t, writev(fd, iov, n));
}

static ssize_t sys_recv(int fd, void *buf, size_t len, int flags)
{
    CALL(ssize_t, recv(fd, buf, len, flags));
}

static ssize_t sys_send(int fd, const void *buf, size_t len, int flags)
{
    CALL(ssize_t, send(fd, buf, len, flags));
}

static ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags)
{
    CALL(ssize_t, recvmsg(fd, msg, flags));
}

static ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    CALL(ssize_t, sendmsg(fd, msg, flags));
}

static int sys_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    CALL(int, accept4(fd, addr, len, flags));
}

static int sys_socketpair(int domain, int type, int protocol, int fds[2])
{
    CALL(int, socketpair(domain, type, protocol, fds));
}

static int sys_shutdown(int fd, int how)
{
    CALL(int, shutdown(fd, how));
}

static int sys_close(int fd)
{
    CALL(int, close(fd));
}

static int sys_open(const char *path, int flags, unsigned mode)
{
    CALL(int, open(path, flags | O_CLOEXEC, mode));
}

static ssize_t sys_pread(int fd, void *buf, size_t len, int64_t offset)
{
    if (offset < 0)
        CALL(ssize_t, read(fd, buf, len));
    CALL(ssize_t, pread(fd, buf, len, (off_t)offset));
}

static ssize_t sys_pwrite(int fd, const void *buf, size_t len, int64_t offset)
{
    if (offset < 0)
        CALL(ssize_t, write(fd, buf, len));
    CALL(ssize_t, pwrite(fd, buf, len, (off_t)offset));
}

static ssize_t sys_pread_cached(int fd, void *buf, size_t len, int64_t offset)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    CALL(ssize_t, preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT));
}

static int sys_fsync(int fd)
{
    CALL(int, fsync(fd));
}

static int sys_fdatasync(int fd)
{
    CALL(int, fdatasync(fd));
}

static int sys_poll_one(int fd, short events, int timeout_ms)
{
    struct pollfd pfd = {.fd = fd, .events = events};
    int saved = errno;
    int n = poll(&pfd, 1, timeout_ms);
    if (n < 0) {
        n = -errno;
        errno = saved;
        return n;
    }
    return n == 0 ? 0 : pfd.revents;
}

static int sys_epoll_create(void)
{
    CALL(int, epoll_create1(EPOLL_CLOEXEC));
}

static int sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    CALL(int, epoll_ctl(epfd, op, fd, event));
}

static int sys_epoll_wait(int epfd, struct epoll_event *events, int max, int64_t timeout_ns)
{
    /* epoll_pwait2 (5.11) takes nanoseconds. Supported kernels begin at 5.10, and some
     * sandboxes refuse it, so ENOSYS and EPERM mean the old call with whole milliseconds,
     * rounded up: a timer may be late but never early. For 0 and -1 both are alike. */
    if (timeout_ns > 0) {
#ifdef SYS_epoll_pwait2
        struct {
            int64_t sec;
            int64_t nsec;
        } timeout = {.sec = timeout_ns / PL_NSEC_PER_SEC, .nsec = timeout_ns % PL_NSEC_PER_SEC};
        int saved = errno;
        long n = syscall(SYS_epoll_pwait2, epfd, events, max, &timeout, NULL, 0);
        if (n >= 0)
            return (int)n;
        int error = errno;
        errno = saved;
        if (error != ENOSYS && error != EPERM)
            return -error;
#endif
        int64_t ms = timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);
        CALL(int, epoll_wait(epfd, events, max, ms > INT_MAX ? INT_MAX : (int)ms));
    }
    CALL(int, epoll_wait(epfd, events, max, timeout_ns < 0 ? -1 : 0));
}

static int sys_eventfd(unsigned initial)
{
    CALL(int, eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK));
}

static int sys_uring_setup(uint32_t entries, struct io_uring_params *params)
{
#ifdef SYS_io_uring_setup
    CALL(int, syscall(SYS_io_uring_setup, entries, params));
#else
    (void)entries;
    (void)params;
    return -ENOSYS;
#endif
}

static int sys_uring_enter(int fd, uint32_t submit, uint32_t least, uint32_t flags, const void *arg,
                           size_t size)
{
#ifdef SYS_io_uring_enter
    CALL(int, syscall(SYS_io_uring_enter, fd, submit, least, flags, arg, size));
#else
    (void)fd, (void)submit, (void)least, (void)flags, (void)arg, (void)size;
    return -ENOSYS;
#endif
}

static int sys_uring_register(int fd, uint32_t op, void *arg, uint32_t n)
{
#ifdef SYS_io_uring_register
    CALL(int, syscall(SYS_io_uring_register, fd, op, arg, n));
#else
    (void)fd, (void)op, (void)arg, (void)n;
    return -ENOSYS;
#endif
}

static void sys_yield(void)
{
    (void)sched_yield(); /* always succeeds on Linux */
}

static int64_t sys_now(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail with this clock */
    return (int64_t)ts.tv_sec * PL_NSEC_PER_SEC + ts.tv_nsec;
}

static pid_t sys_fork(void)
{
    CALL(pid_t, fork());
}

static int sys_pidfd_open(pid_t pid)
{
#ifdef SYS_pidfd_open
    CALL(int, syscall(SYS_pidfd_open, pid, 0));
#else
    (void)pid;
    return -ENOSYS;
#endif
}

static int sys_pidfd_send_signal(int pidfd, int sig)
{
#ifdef SYS_pidfd_send_signal
    CALL(int, syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0));
#else
    (void)pidfd;
    (void)sig;
    return -ENOSYS;
#endif
}

static int sys_waitid(idtype_t type, id_t id, siginfo_t *info, int options, struct rusage *usage)
{
    /* The wrapper hides the kernel's fifth argument, the resource usage. */
    CALL(int, syscall(SYS_waitid, type, id, info, options, usage));
}

static int sys_kill(pid_t pid, int sig)
{
    CALL(int, kill(pid, sig));
}

static int sys_memfd_create(const char *name)
{
    CALL(int, memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
}

static int sys_ftruncate(int fd, int64_t size)
{
    CALL(int, ftruncate(fd, (off_t)size));
}

static int sys_mmap_ring(int fd, size_t size, int64_t offset, void **out)
{
    int saved = errno;
    void *addr =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)offset);
    if (addr == MAP_FAILED) {
        int error = -errno;
        errno = saved;
        return error;
    }
    *out = addr;
    return 0;
}

static int sys_mmap_shared(int fd, size_t size, void **out)
{
    int saved = errno;
    void *addr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (addr == MAP_FAILED) {
        int error = -errno;
        errno = saved;
        return error;
    }
    *out = addr;
    return 0;
}

static int sys_munmap(void *addr, size_t size)
{
    CALL(int, munmap(addr, size));
}

static int sys_madvise(void *addr, size_t size, int advice)
{
    CALL(int, madvise(addr, size, advice));
}

static int sys_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / PL_NSEC_PER_SEC),
                               .tv_nsec = (long)(timeout_ns % PL_NSEC_PER_SEC)};
    CALL(int, syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns < 0 ? NULL : &timeout));
}

static int sys_futex_wake(uint32_t *word, int count)
{
    CALL(int, syscall(SYS_futex, word, FUTEX_WAKE, count));
}

static const struct pl_sys kernel = {
    .alloc = sys_alloc,
    .realloc = sys_realloc,
    .free = sys_free,
    .read = sys_read,
    .write = sys_write,
    .readv = sys_readv,
    .writev = sys_writev,
    .recv = sys_recv,
    .send = sys_send,
    .recvmsg = sys_recvmsg,
    .sendmsg = sys_sendmsg,
    .accept4 = sys_accept4,
    .socketpair = sys_socketpair,
    .shutdown = sys_shutdown,
    .close = sys_close,
    .open = sys_open,
    .pread = sys_pread,
    .pwrite = sys_pwrite,
    .pread_cached = sys_pread_cached,
    .fsync = sys_fsync,
    .fdatasync = sys_fdatasync,
    .poll_one = sys_poll_one,
    .epoll_create = sys_epoll_create,
    .epoll_ctl = sys_epoll_ctl,
    .epoll_wait = sys_epoll_wait,
    .eventfd = sys_eventfd,
    .uring_setup = sys_uring_setup,
    .uring_enter = sys_uring_enter,
    .uring_register = sys_uring_register,
    .mmap_ring = sys_mmap_ring,
    .now = sys_now,
    .yield = sys_yield,
    .fork = sys_fork,
    .pidfd_open = sys_pidfd_open,
    .pidfd_send_signal = sys_pidfd_send_signal,
    .waitid = sys_waitid,
    .kill = sys_kill,
    .memfd_create = sys_memfd_create,
    .ftruncate = sys_ftruncate,
    .mmap_shared = sys_mmap_shared,
    .munmap = sys_munmap,
    .madvise = sys_madvise,
    .futex_wait = sys_futex_wait,
    .futex_wake = sys_futex_wake,
};

const struct pl_sys *pl_sys_default(void)
{
    return &kernel;
}
