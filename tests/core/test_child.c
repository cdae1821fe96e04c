/* test_child.c - the ends of child processes. */
#include "pl_internal.h"
#include "pl_test.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

struct watch {
    struct pl_child child;
    int status;
    int calls;
    int64_t user_usec;
};

static void on_exited(struct pl_child *child, int status, const struct rusage *usage)
{
    struct watch *w = PL_CONTAINER_OF(child, struct watch, child);
    w->status = status;
    w->calls++;
    w->user_usec = usage->ru_utime.tv_usec + usage->ru_maxrss;
}

/* Forks a child that waits for the pipe to close and then ends as asked. */
static pid_t spawn(int code, int sig, int *release)
{
    int fds[2];
    CHECK_SYS(pipe2(fds, O_CLOEXEC));
    pid_t pid = fork();
    CHECK_SYS(pid);
    if (pid == 0) {
        char byte;
        close(fds[1]);
        while (read(fds[0], &byte, 1) < 0 && errno == EINTR)
            continue;
        if (sig != 0)
            (void)kill(getpid(), sig);
        _exit(code);
    }
    close(fds[0]);
    *release = fds[1];
    return pid;
}

static void tells_code_and_signal(void)
{
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, NULL));
    int codes[] = {0, 1, 77, 255};
    for (size_t i = 0; i < PL_ARRAY_LEN(codes); i++) {
        struct watch w = {.child.exited = on_exited};
        int release;
        pid_t pid = spawn(codes[i], 0, &release);
        CHECK_OK(pl_child_watch(&loop, &w.child, pid));
        CHECK_OK(pl_loop_wait(&loop, 0));
        CHECK_OK(pl_loop_collect(&loop));
        CHECK_EQ(w.calls, 0);
        close(release);
        RUN_UNTIL(&loop, w.calls == 1);
        CHECK(WIFEXITED(w.status));
        CHECK_EQ(WEXITSTATUS(w.status), codes[i]);
        CHECK(w.child.reaped);
        CHECK_EQ(waitpid(pid, NULL, WNOHANG), -1); /* no zombie */
    }
    int signals[] = {SIGKILL, SIGTERM};
    for (size_t i = 0; i < PL_ARRAY_LEN(signals); i++) {
        struct watch w = {.child.exited = on_exited};
        int release;
        pid_t pid = spawn(0, signals[i], &release);
        CHECK_OK(pl_child_watch(&loop, &w.child, pid));
        close(release);
        RUN_UNTIL(&loop, w.calls == 1);
        CHECK(WIFSIGNALED(w.status));
        CHECK_EQ(WTERMSIG(w.status), signals[i]);
        CHECK_CMP(w.user_usec, >, 0);
    }
    pl_loop_fini(&loop);
}

static void one_that_ended_before(void)
{
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, NULL));
    struct watch w = {.child.exited = on_exited};
    int release;
    pid_t pid = spawn(3, 0, &release);
    close(release);
    siginfo_t info;
    CHECK_SYS(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT)); /* a zombie now */
    CHECK_OK(pl_child_watch(&loop, &w.child, pid));
    RUN_UNTIL(&loop, w.calls == 1);
    CHECK_EQ(WEXITSTATUS(w.status), 3);
    pl_loop_fini(&loop);
}

static void one_that_someone_else_reaped(void)
{
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, NULL));
    struct watch w = {.child.exited = on_exited};
    int release;
    pid_t pid = spawn(0, 0, &release);
    CHECK_OK(pl_child_watch(&loop, &w.child, pid));
    close(release);
    CHECK_EQ(waitpid(pid, NULL, 0), pid);
    RUN_UNTIL(&loop, w.calls == 1);
    CHECK_EQ(w.status, -ECHILD);
    CHECK(!w.child.reaped);
    pl_loop_fini(&loop);
}

static void unwatched_it_is_left_alone(void)
{
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, NULL));
    struct watch w = {.child.exited = on_exited};
    int release;
    pid_t pid = spawn(9, 0, &release);
    CHECK_OK(pl_child_watch(&loop, &w.child, pid));
    close(release);
    /* Its event is in the ready queue already. */
    CHECK_EQ(pl_loop_wait(&loop, -1), 1);
    CHECK_OK(pl_loop_collect(&loop));
    pl_child_unwatch(&w.child);
    pl_child_unwatch(&w.child);
    CHECK_OK(pl_loop_run(&loop, NULL));
    CHECK_EQ(w.calls, 0);
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(WEXITSTATUS(status), 9);
    pl_loop_fini(&loop);
}

static int no_pidfd(pid_t pid)
{
    (void)pid;
    return -ENOSYS;
}

static int failing_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    (void)epfd;
    (void)op;
    (void)fd;
    (void)event;
    return -ENOSPC;
}

static int count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void without_a_pidfd_it_says_so(void)
{
    struct pl_sys sys = *pl_sys_default();
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, &sys));
    struct watch w = {.child.exited = on_exited};
    int fds = count_fds();
    CHECK_EQ(pl_child_watch(&loop, &w.child, -1), -EINVAL);
    sys.pidfd_open = no_pidfd;
    CHECK_EQ(pl_child_watch(&loop, &w.child, getpid()), -ENOSYS);
    sys.pidfd_open = pl_sys_default()->pidfd_open;
    sys.epoll_ctl = failing_ctl;
    CHECK_EQ(pl_child_watch(&loop, &w.child, getpid()), -ENOSPC);
    CHECK_EQ(count_fds(), fds);
    CHECK_EQ(w.calls, 0);
    pl_loop_fini(&loop);
}

/* Nothing that a child does after a fork disturbs the parent's registrations. */
static void a_fork_leaves_the_parent_alone(void)
{
    struct pl_loop loop;
    CHECK_OK(pl_test_loop(&loop, NULL));
    struct watch w = {.child.exited = on_exited};
    int release;
    pid_t pid = spawn(5, 0, &release);
    CHECK_OK(pl_child_watch(&loop, &w.child, pid));
    pid_t forked = fork();
    CHECK_SYS(forked);
    if (forked == 0) {
        pl_loop_after_fork(&loop);
        bool ours = pl_loop_is_ours(&loop);
        int r = pl_loop_wait(&loop, 0);
        pl_child_unwatch(&w.child);
        pl_loop_fini(&loop);
        _exit(!ours && r == PL_EFORKED ? 0 : 1);
    }
    int status;
    CHECK_EQ(waitpid(forked, &status, 0), forked);
    CHECK_EQ(status, 0);
    CHECK(pl_loop_is_ours(&loop));
    close(release);
    RUN_UNTIL(&loop, w.calls == 1);
    CHECK_EQ(WEXITSTATUS(w.status), 5);
    pl_loop_fini(&loop);
}

static const struct pl_test tests[] = {
    PL_TEST(tells_code_and_signal),        PL_TEST(one_that_ended_before),
    PL_TEST(one_that_someone_else_reaped), PL_TEST(unwatched_it_is_left_alone),
    PL_TEST(without_a_pidfd_it_says_so),   PL_TEST(a_fork_leaves_the_parent_alone),
};
PL_TEST_MAIN(tests)
