/* pl_sys.h - the one table of system calls and allocation that the core uses.
 *
 * Every object that talks to the system borrows a table; programs pass
 * pl_sys_default(). Tests copy the table and replace entries, to inject EINTR,
 * EMFILE, ENOMEM, short reads and writes, or a kernel without pidfd.
 *
 * Entries return what the system call returns, with errors as -errno, so no
 * caller ever looks at errno.
 */
#ifndef PL_SYS_H
#define PL_SYS_H

#include "pl_base.h"

#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

struct io_uring_params;

struct pl_sys {
    /* Memory. alloc and realloc return NULL when there is none. */
    void *(*alloc)(size_t size);
    void *(*realloc)(void *ptr, size_t size);
    void (*free)(void *ptr);

    /* Descriptors. */
    ssize_t (*read)(int fd, void *buf, size_t len);
    ssize_t (*write)(int fd, const void *buf, size_t len);
    ssize_t (*readv)(int fd, const struct iovec *iov, int n);
    ssize_t (*writev)(int fd, const struct iovec *iov, int n);
    ssize_t (*recv)(int fd, void *buf, size_t len, int flags);
    ssize_t (*send)(int fd, const void *buf, size_t len, int flags);
    ssize_t (*recvmsg)(int fd, struct msghdr *msg, int flags);
    ssize_t (*sendmsg)(int fd, const struct msghdr *msg, int flags);
    int (*accept4)(int fd, struct sockaddr *addr, socklen_t *len, int flags);
    int (*socketpair)(int domain, int type, int protocol, int fds[2]);
    int (*shutdown)(int fd, int how);
    int (*close)(int fd);

    /* Files, for threads that may block. offset -1: the file's own position. The _cached
     * calls never wait for a disk: -EAGAIN when they would have to. */
    int (*open)(const char *path, int flags, unsigned mode);
    ssize_t (*pread)(int fd, void *buf, size_t len, int64_t offset);
    ssize_t (*pwrite)(int fd, const void *buf, size_t len, int64_t offset);
    ssize_t (*pread_cached)(int fd, void *buf, size_t len, int64_t offset);
    int (*fsync)(int fd);
    int (*fdatasync)(int fd);
    int (*poll_one)(int fd, short events, int timeout_ms);

    /* Poller. wait's timeout is in nanoseconds, -1 for ever. */
    int (*epoll_create)(void);
    int (*epoll_ctl)(int epfd, int op, int fd, struct epoll_event *event);
    int (*epoll_wait)(int epfd, struct epoll_event *events, int max, int64_t timeout_ns);
    int (*eventfd)(unsigned initial);

    /* io_uring; -ENOSYS where the headers of the build do not know it. mmap_ring maps a part
     * of a ring, by its magic offset. */
    int (*uring_setup)(uint32_t entries, struct io_uring_params *params);
    int (*uring_enter)(int fd, uint32_t submit, uint32_t least, uint32_t flags, const void *arg,
                       size_t size);
    int (*uring_register)(int fd, uint32_t op, void *arg, uint32_t n);
    int (*mmap_ring)(int fd, size_t size, int64_t offset, void **out);

    /* Time. */
    int64_t (*now)(void);
    void (*yield)(void); /* lets others have this core first */

    /* Processes. */
    pid_t (*fork)(void);
    int (*pidfd_open)(pid_t pid);
    int (*pidfd_send_signal)(int pidfd, int sig);
    int (*waitid)(idtype_t type, id_t id, siginfo_t *info, int options, struct rusage *usage);
    int (*kill)(pid_t pid, int sig);

    /* Shared memory and parking. futex calls are process-shared; wait's timeout is
     * relative nanoseconds, -1 for ever; -EAGAIN when *word != expected. */
    int (*memfd_create)(const char *name);
    int (*ftruncate)(int fd, int64_t size);
    int (*mmap_shared)(int fd, size_t size, void **out);
    int (*munmap)(void *addr, size_t size);
    int (*madvise)(void *addr, size_t size, int advice);
    int (*futex_wait)(uint32_t *word, uint32_t expected, int64_t timeout_ns);
    int (*futex_wake)(uint32_t *word, int count);
};

/* The table that calls the kernel. Immutable; any thread. */
const struct pl_sys *pl_sys_default(void);

#endif /* PL_SYS_H */
