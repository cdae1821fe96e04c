/* test_file.c - file operations in the kernel's ring and in threads. */
#include "pl_test.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- helpers ------------------------------------------------------------ */

/* Every test of the table runs with either engine. False: the kernel has no such engine. */
static bool queue_make(struct pl_files *files, const struct pl_sys *sys, enum pl_file_engine engine)
{
    int r = pl_files_init(files, sys, engine);
    if (engine == PL_FILE_URING && (r == -ENOSYS || r == -EPERM || r == -EACCES))
        return false;
    CHECK_OK(r);
    return true;
}

static void queue_end(struct pl_files *files)
{
    CHECK_EQ(pl_files_settle(files, 10 * PL_NSEC_PER_SEC), 0);
    (void)pl_files_collect(files);
    CHECK_EQ(files->stats.inflight, 0);
    pl_files_fini(files);
    CHECK_EQ(pl_files_fd(files), -1);
}

static struct pl_file_req *wait_some(struct pl_files *files)
{
    for (;;) {
        struct pl_file_req *list = pl_files_collect(files);
        if (list != NULL)
            return list;
        struct pollfd p = {.fd = pl_files_fd(files), .events = POLLIN};
        CHECK_EQ(poll(&p, 1, 20000), 1);
    }
}

static int64_t finish(struct pl_files *files, struct pl_file_req *req)
{
    int r = pl_files_submit(files, req);
    CHECK_OK(r);
    if (r == 1)
        return req->result;
    struct pl_file_req *list = wait_some(files);
    CHECK(list == req);
    CHECK(list->next == NULL);
    return req->result;
}

static void make_path(char *path, size_t size)
{
    snprintf(path, size, "/tmp/plait-file-XXXXXX");
    int fd = mkstemp(path);
    CHECK_SYS(fd);
    close(fd);
}

struct fifo {
    char dir[64];
    char path[80];
    int fd;
};

static void fifo_make(struct fifo *f)
{
    snprintf(f->dir, sizeof(f->dir), "/tmp/plait-fifo-XXXXXX");
    CHECK(mkdtemp(f->dir) != NULL);
    snprintf(f->path, sizeof(f->path), "%s/f", f->dir);
    CHECK_SYS(mkfifo(f->path, 0600));
    f->fd = open(f->path, O_RDWR | O_CLOEXEC); /* both ends: no end of file */
    CHECK_SYS(f->fd);
}

static void fifo_end(struct fifo *f)
{
    close(f->fd);
    unlink(f->path);
    rmdir(f->dir);
}

static struct pl_sys broken;
static int broken_code;
static int broken_count;

/* ---- what every engine does --------------------------------------------- */

static void all_operations(enum pl_file_engine engine)
{
    struct pl_files files;
    if (!queue_make(&files, pl_sys_default(), engine))
        PL_SKIP("no io_uring here");
    char path[64];
    make_path(path, sizeof(path));
    struct pl_file_req req = {.op = PL_FILE_OPEN, .path = path, .flags = O_RDWR, .mode = 0600};
    int fd = (int)finish(&files, &req);
    CHECK_CMP(fd, >=, 0);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);

    char text[] = "one two three";
    req =
        (struct pl_file_req){.op = PL_FILE_WRITE, .fd = fd, .data = text, .len = 13, .offset = 100};
    CHECK_EQ(finish(&files, &req), 13);
    req = (struct pl_file_req){.op = PL_FILE_SYNC, .fd = fd};
    CHECK_EQ(finish(&files, &req), 0);
    req = (struct pl_file_req){.op = PL_FILE_DATASYNC, .fd = fd};
    CHECK_EQ(finish(&files, &req), 0);
    req = (struct pl_file_req){.op = PL_FILE_TRUNCATE, .fd = fd, .offset = 107};
    CHECK_EQ(finish(&files, &req), 0);

    char back[64] = {0};
    req = (struct pl_file_req){
        .op = PL_FILE_READ, .fd = fd, .data = back, .len = sizeof(back), .offset = 100};
    CHECK_EQ(finish(&files, &req), 7);
    CHECK(memcmp(back, "one two", 7) == 0);
    req.offset = 107;
    CHECK_EQ(finish(&files, &req), 0); /* the end */

    /* offset -1 is the descriptor's own position. */
    CHECK_EQ(lseek(fd, 104, SEEK_SET), 104);
    req.offset = -1;
    CHECK_EQ(finish(&files, &req), 3);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 107);

    req = (struct pl_file_req){.op = PL_FILE_CLOSE, .fd = fd};
    CHECK_EQ(finish(&files, &req), 0);
    CHECK_EQ(fcntl(fd, F_GETFD), -1);
    unlink(path);
    queue_end(&files);
}

static void errors_are_results(enum pl_file_engine engine)
{
    struct pl_files files;
    if (!queue_make(&files, pl_sys_default(), engine))
        PL_SKIP("no io_uring here");
    struct pl_file_req req = {.op = PL_FILE_OPEN, .path = "/nonexistent/file", .flags = O_RDONLY};
    CHECK_EQ(finish(&files, &req), -ENOENT);
    char byte;
    req = (struct pl_file_req){.op = PL_FILE_READ, .fd = -1, .data = &byte, .len = 1};
    CHECK_EQ(finish(&files, &req), -EBADF);
    int dir = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK_SYS(dir);
    req = (struct pl_file_req){.op = PL_FILE_READ, .fd = dir, .data = &byte, .len = 1};
    CHECK_EQ(finish(&files, &req), -EISDIR);
    req = (struct pl_file_req){.op = PL_FILE_TRUNCATE, .fd = dir, .offset = 1};
    CHECK_CMP(finish(&files, &req), <, 0);
    close(dir);
    queue_end(&files);
}

/* What waits for a peer waits in the queue, and the others go on. */
static void waiting_ones_wait(enum pl_file_engine engine)
{
    enum { N = 5 };
    struct pl_files files;
    if (!queue_make(&files, pl_sys_default(), engine))
        PL_SKIP("no io_uring here");
    struct fifo fifo[N];
    struct pl_file_req reqs[N];
    char bytes[N] = {0};
    for (int i = 0; i < N; i++) {
        fifo_make(&fifo[i]);
        reqs[i] = (struct pl_file_req){
            .op = PL_FILE_READ, .fd = fifo[i].fd, .data = &bytes[i], .len = 1, .offset = -1};
        CHECK_EQ(pl_files_submit(&files, &reqs[i]), 0);
    }
    CHECK_EQ(files.stats.inflight, N);
    CHECK(pl_files_collect(&files) == NULL);

    char path[64];
    make_path(path, sizeof(path));
    struct pl_file_req open_req = {.op = PL_FILE_OPEN, .path = path, .flags = O_RDONLY};
    int fd = (int)finish(&files, &open_req);
    CHECK_CMP(fd, >=, 0);
    close(fd);
    unlink(path);

    for (int i = N - 1; i >= 0; i--) {
        char byte = (char)('a' + i);
        CHECK_EQ(write(fifo[i].fd, &byte, 1), 1);
        CHECK(wait_some(&files) == &reqs[i]);
        CHECK_EQ(reqs[i].result, 1);
        CHECK_EQ(bytes[i], 'a' + i);
    }
    CHECK_EQ(files.stats.inflight, 0);
    for (int i = 0; i < N; i++)
        fifo_end(&fifo[i]);
    queue_end(&files);
}

static void many_at_once(enum pl_file_engine engine)
{
    enum { N = 500, SIZE = 4096 };
    struct pl_files files;
    if (!queue_make(&files, pl_sys_default(), engine))
        PL_SKIP("no io_uring here");
    char path[64];
    make_path(path, sizeof(path));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK_SYS(fd);
    static struct pl_file_req reqs[N];
    static char data[N][SIZE];
    int ended = 0;
    for (int i = 0; i < N; i++) {
        memset(data[i], i & 0x7f, SIZE);
        reqs[i] = (struct pl_file_req){.op = PL_FILE_WRITE,
                                       .fd = fd,
                                       .data = data[i],
                                       .len = SIZE,
                                       .offset = (int64_t)i * SIZE};
        int r = pl_files_submit(&files, &reqs[i]);
        CHECK_OK(r);
        ended += r;
    }
    while (ended < N)
        for (struct pl_file_req *r = wait_some(&files); r != NULL; r = r->next)
            ended++;
    for (int i = 0; i < N; i++)
        CHECK_EQ(reqs[i].result, SIZE);
    CHECK_EQ(files.stats.inflight, 0);
    char back[SIZE];
    for (int i = 0; i < N; i++) {
        CHECK_EQ(pread(fd, back, SIZE, (off_t)i * SIZE), SIZE);
        CHECK(memcmp(back, data[i], SIZE) == 0);
    }
    close(fd);
    unlink(path);
    queue_end(&files);
}

/* What is in memory is read within submit, and wakes nobody. */
static void cached_reads_end_at_once(enum pl_file_engine engine)
{
    struct pl_files files;
    if (!queue_make(&files, pl_sys_default(), engine))
        PL_SKIP("no io_uring here");
    char path[64];
    make_path(path, sizeof(path));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK_SYS(fd);
    CHECK_EQ(write(fd, "abc", 3), 3);
    char back[3];
    struct pl_file_req req = {.op = PL_FILE_READ, .fd = fd, .data = back, .len = 3};
    int r = pl_files_submit(&files, &req);
    CHECK_OK(r);
    if (r == 1) { /* a file system without this ability is no failure */
        CHECK_EQ(req.result, 3);
        CHECK_EQ(files.stats.at_once, 1);
        struct pollfd p = {.fd = pl_files_fd(&files), .events = POLLIN};
        CHECK_EQ(poll(&p, 1, 0), 0);
    }
    close(fd);
    unlink(path);
    queue_end(&files);
}

static void cancelled_ones_end(enum pl_file_engine engine)
{
    enum { N = 12 }; /* more than there are threads: some have not begun */
    struct pl_files files;
    if (!queue_make(&files, pl_sys_default(), engine))
        PL_SKIP("no io_uring here");
    struct fifo fifo;
    fifo_make(&fifo);
    struct pl_file_req reqs[N];
    char bytes[N];
    for (int i = 0; i < N; i++) {
        reqs[i] = (struct pl_file_req){
            .op = PL_FILE_READ, .fd = fifo.fd, .data = &bytes[i], .len = 1, .offset = -1};
        CHECK_EQ(pl_files_submit(&files, &reqs[i]), 0);
    }
    pl_files_cancel(&files, &reqs[N - 1]);
    CHECK(wait_some(&files) == &reqs[N - 1]);
    CHECK_EQ(reqs[N - 1].result, -ECANCELED);
    pl_files_cancel(&files, &reqs[N - 1]); /* ended already: nothing happens */

    int left = N - 1;
    int read = 0;
    uint32_t running = pl_files_settle(&files, 0);
    for (struct pl_file_req *r = pl_files_collect(&files); r != NULL; r = r->next, left--)
        CHECK(r->result == -ECANCELED);
    /* The ring forgets them all; threads that read cannot be stopped. */
    if (engine == PL_FILE_URING)
        running = pl_files_settle(&files, 10 * PL_NSEC_PER_SEC);
    CHECK_CMP(running, <=, 8);
    CHECK(engine != PL_FILE_URING || running == 0);
    for (uint32_t i = 0; i < running; i++)
        CHECK_EQ(write(fifo.fd, "x", 1), 1);
    CHECK_EQ(pl_files_settle(&files, 10 * PL_NSEC_PER_SEC), 0);
    for (struct pl_file_req *r = pl_files_collect(&files); r != NULL; r = r->next, left--)
        read += r->result == 1;
    CHECK_EQ(left, 0);
    CHECK_EQ(read, (int)running);
    pl_files_fini(&files);
    fifo_end(&fifo);
}

static void a_child_lets_go(enum pl_file_engine engine)
{
    struct pl_files files;
    if (!queue_make(&files, pl_sys_default(), engine))
        PL_SKIP("no io_uring here");
    struct fifo fifo;
    fifo_make(&fifo);
    char byte = 0;
    struct pl_file_req req = {
        .op = PL_FILE_READ, .fd = fifo.fd, .data = &byte, .len = 1, .offset = -1};
    CHECK_EQ(pl_files_submit(&files, &req), 0);
    pid_t pid = fork();
    CHECK_SYS(pid);
    if (pid == 0) {
        struct pl_file_req other = {.op = PL_FILE_SYNC, .fd = fifo.fd};
        if (pl_files_submit(&files, &other) != PL_EFORKED)
            _exit(2);
        pl_files_fini(&files);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    CHECK_EQ(write(fifo.fd, "y", 1), 1);
    CHECK(wait_some(&files) == &req);
    CHECK_EQ(byte, 'y');
    fifo_end(&fifo);
    queue_end(&files);
}

#define BOTH(name)                                                                                 \
    static void name##_in_the_ring(void)                                                           \
    {                                                                                              \
        name(PL_FILE_URING);                                                                       \
    }                                                                                              \
    static void name##_in_threads(void)                                                            \
    {                                                                                              \
        name(PL_FILE_THREADS);                                                                     \
    }

BOTH(all_operations)
BOTH(errors_are_results)
BOTH(waiting_ones_wait)
BOTH(many_at_once)
BOTH(cached_reads_end_at_once)
BOTH(cancelled_ones_end)
BOTH(a_child_lets_go)

/* ---- a kernel that refuses ---------------------------------------------- */

static int refuse_setup(uint32_t entries, struct io_uring_params *params)
{
    (void)entries, (void)params;
    return broken_code;
}

static int refuse_register(int fd, uint32_t op, void *arg, uint32_t n)
{
    (void)fd, (void)op, (void)arg, (void)n;
    return broken_code;
}

static int refuse_ring(int fd, size_t size, int64_t offset, void **out)
{
    if (--broken_count == 0)
        return broken_code;
    return pl_sys_default()->mmap_ring(fd, size, offset, out);
}

static int open_descriptors(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void refusal_means_threads(void)
{
    static const int codes[] = {-ENOSYS, -EPERM, -EACCES, -EMFILE};
    int before = open_descriptors();
    for (size_t i = 0; i < PL_ARRAY_LEN(codes); i++) {
        for (int how = 0; how < 4; how++) {
            broken = *pl_sys_default();
            broken_code = codes[i];
            broken_count = how; /* the first or the second mapping */
            if (how == 0)
                broken.uring_setup = refuse_setup;
            else if (how == 3)
                broken.uring_register = refuse_register;
            else
                broken.mmap_ring = refuse_ring;
            struct pl_files files;
            CHECK_OK(pl_files_init(&files, &broken, PL_FILE_AUTO));
            CHECK(strcmp(pl_files_engine(&files), "threads") == 0);
            CHECK_CMP(files.why, <, 0);
            struct pl_file_req req = {.op = PL_FILE_OPEN, .path = "/dev/null", .flags = O_RDONLY};
            int fd = (int)finish(&files, &req);
            CHECK_CMP(fd, >=, 0);
            close(fd);
            queue_end(&files);
            broken_count = how;
            CHECK_CMP(pl_files_init(&files, &broken, PL_FILE_URING), <, 0);
        }
    }
    CHECK_EQ(open_descriptors(), before);
}

static int busy_enter(int fd, uint32_t submit, uint32_t least, uint32_t flags, const void *arg,
                      size_t size)
{
    if (broken_count > 0) {
        broken_count--;
        return broken_code;
    }
    return pl_sys_default()->uring_enter(fd, submit, least, flags, arg, size);
}

/* A kernel short of memory takes the operation later; it is not lost. */
static void a_busy_kernel_is_asked_again(void)
{
    static const int codes[] = {-EAGAIN, -EBUSY, -EINTR, -ENOMEM};
    for (size_t i = 0; i < PL_ARRAY_LEN(codes); i++) {
        broken = *pl_sys_default();
        broken.uring_enter = busy_enter;
        broken_code = codes[i];
        broken_count = 3;
        struct pl_files files;
        if (!queue_make(&files, &broken, PL_FILE_URING))
            PL_SKIP("no io_uring here");
        struct pl_file_req req = {.op = PL_FILE_OPEN, .path = "/dev/null", .flags = O_RDONLY};
        CHECK_EQ(pl_files_submit(&files, &req), 0);
        CHECK(wait_some(&files) == &req);
        CHECK_CMP(req.result, >=, 0);
        close((int)req.result);
        CHECK_EQ(broken_count, 0);
        queue_end(&files);
    }
}

static void *fail_alloc(size_t size)
{
    return --broken_count == 0 ? NULL : pl_sys_default()->alloc(size);
}

static void without_memory_nothing_happens(void)
{
    int before = open_descriptors();
    static const enum pl_file_engine engines[] = {PL_FILE_AUTO, PL_FILE_THREADS};
    for (size_t i = 0; i < PL_ARRAY_LEN(engines); i++) {
        for (int n = 1;; n++) {
            broken = *pl_sys_default();
            broken.alloc = fail_alloc;
            broken_count = n;
            struct pl_files files;
            int r = pl_files_init(&files, &broken, engines[i]);
            if (r == 0) {
                queue_end(&files);
                CHECK_CMP(n, >, 1);
                break;
            }
            CHECK_EQ(r, -ENOMEM);
            CHECK_EQ(open_descriptors(), before);
        }
    }
}

static const struct pl_test tests[] = {
    PL_TEST(all_operations_in_the_ring),
    PL_TEST(all_operations_in_threads),
    PL_TEST(errors_are_results_in_the_ring),
    PL_TEST(errors_are_results_in_threads),
    PL_TEST(waiting_ones_wait_in_the_ring),
    PL_TEST(waiting_ones_wait_in_threads),
    PL_TEST(many_at_once_in_the_ring),
    PL_TEST(many_at_once_in_threads),
    PL_TEST(cached_reads_end_at_once_in_the_ring),
    PL_TEST(cached_reads_end_at_once_in_threads),
    PL_TEST(cancelled_ones_end_in_the_ring),
    PL_TEST(cancelled_ones_end_in_threads),
    PL_TEST(a_child_lets_go_in_the_ring),
    PL_TEST(a_child_lets_go_in_threads),
    PL_TEST(refusal_means_threads),
    PL_TEST(a_busy_kernel_is_asked_again),
    PL_TEST(without_memory_nothing_happens),
};

PL_TEST_MAIN(tests)
