/* test_uring_life.c - the ring of a loop: moving between threads, forks, files in it.
 */
#include "uring_support.h"

#if PL_HAVE_IO_URING

#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pl_uring_poller.h"

/* ---- threads and forks ------------------------------------------------------------- */

static void another_thread_may_run_it(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct reader r;
    size_t sent = 0;
    struct stint stint = {&loop, &r, open_reader(&loop, &r, true), &sent};
    for (int i = 0; i < 6; i++) {
        if (i % 3 == 2) {
            (void)work(&stint);
            continue;
        }
        /* Two threads after each other, which may well go by the same number. */
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, work, &stint), 0);
        CHECK_EQ(pthread_join(thread, NULL), 0);
    }
    close_reader(&loop, &r, stint.peer);
    pl_loop_fini(&loop);
}

/* A thread that takes over and gets no ring leaves a loop that can try again, or end. */
static void a_takeover_may_fail(void)
{
    NEED_RING();
    struct pl_sys sys = system_with_less();
    for (int tries = 0; tries < 2; tries++) {
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, &sys));
        struct reader r, other;
        size_t sent = 0;
        struct stint stint = {&loop, &r, open_reader(&loop, &r, true), &sent};
        int peer = open_reader(&loop, &other, true);
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, work, &stint), 0);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        kernel.setup_error = -EMFILE;
        for (int i = 0; i < 2; i++) {
            CHECK_EQ(pl_loop_wait(&loop, 0), -EMFILE);
            CHECK_OK(pl_loop_collect(&loop));
        }
        pl_stream_forget(&other.stream);
        close(other.stream.io.fd);
        /* The kernel takes the old ring down in its own time. */
        CHECK_EQ(poll(&(struct pollfd){.fd = peer, .events = POLLIN}, 1, 10000), 1);
        CHECK(peer_sees_end(peer));
        close(peer);
        kernel.setup_error = 0;
        if (tries == 0)
            (void)work(&stint);
        pl_stream_forget(&r.stream);
        pl_loop_fini(&loop);
        close(r.stream.io.fd);
        close(stint.peer);
    }
}

static void a_fork_leaves_the_parent_alone(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct reader r;
    size_t sent = 0;
    int peer = open_reader(&loop, &r, true);
    turn(&loop);
    pid_t pid = fork();
    CHECK_SYS(pid);
    if (pid == 0) {
        /* The ring is not mapped here: what the child has put there is its own. */
        size_t size = 4096;
        void *at[] = {loop.poller->bufs.base, loop.poller->ring.rings, loop.poller->ring.sqes};
        for (size_t i = 0; i < PL_ARRAY_LEN(at); i++) {
            if (mmap(at[i], size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at[i])
                _exit(3);
        }
        pl_loop_after_fork(&loop);
        for (size_t i = 0; i < PL_ARRAY_LEN(at); i++)
            memset(at[i], 1, size);
        if (pl_loop_wait(&loop, 0) != PL_EFORKED)
            _exit(1);
        pl_stream_forget(&r.stream);
        pl_loop_fini(&loop);
        struct pl_loop mine;
        if (open_loop(&mine, NULL) < 0)
            _exit(2);
        pl_loop_fini(&mine);
        _exit(0);
    }
    for (int i = 0; i < 100; i++) {
        send_some(peer, &sent, 300);
        RUN_UNTIL(&loop, r.got == sent);
    }
    int status;
    CHECK_SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 0);
    send_some(peer, &sent, 300);
    RUN_UNTIL(&loop, r.got == sent);
    close_reader(&loop, &r, peer);
    pl_loop_fini(&loop);
}

static pid_t forked_in_read;
static struct pl_loop *forked_loop;

static void fork_in_read(struct pl_stream *s, void *buf, ssize_t n)
{
    reader_on_read(s, buf, n);
    CHECK_OK(pl_stream_write(s, &(struct pl_chunk){.data = "once", .len = 4}, 1));
    forked_in_read = fork();
    CHECK_SYS(forked_in_read);
    if (forked_in_read == 0)
        pl_loop_after_fork(forked_loop);
}

/* The child comes back from the callback into the middle of the parent's iteration. */
static void a_fork_in_a_callback(void)
{
    NEED_RING();
    static struct pl_stream_ops forking;
    forking = reader_ops;
    forking.read = fork_in_read;
    for (int borrows = 0; borrows < 2; borrows++) {
        struct pl_loop loop;
        CHECK_OK(open_loop(&loop, NULL));
        forked_loop = &loop;
        struct reader r, later;
        size_t sent = 0;
        int peer = open_reader(&loop, &r, borrows);
        int other = open_reader(&loop, &later, borrows);
        r.stream.ops = later.stream.ops = &forking;
        pid_t parent = getpid();
        send_some(peer, &sent, 300);
        while (r.got < sent) {
            CHECK_OK(pl_loop_wait(&loop, -1));
            CHECK_OK(pl_loop_collect(&loop));
            if (pl_queue_len(&loop.ready) > 0) {
                later.stream.io.ready |= PL_READABLE; /* and one more, which is the parent's */
                pl__io_enqueue(&loop, &later.stream.io);
            }
            CHECK_OK(pl_loop_run(&loop, NULL));
            if (getpid() != parent)
                _exit(later.reads == 0 && pl_loop_wait(&loop, 0) == PL_EFORKED ? 0 : 1);
        }
        int status;
        CHECK_SYS(waitpid(forked_in_read, &status, 0));
        CHECK_EQ(status, 0);
        char answer[16];
        CHECK_EQ(recv(peer, answer, sizeof(answer), MSG_DONTWAIT), 4);
        close_reader(&loop, &r, peer);
        close_reader(&loop, &later, other);
        pl_loop_fini(&loop);
    }
}

/* ---- files in the loop's ring ---------------------------------------------------------- */

static int told;
static char data[] = "data";

static void collectable(struct pl_files *files)
{
    (void)files;
    told++;
}

static int open_file(void)
{
    char name[] = "/tmp/plait-uring-XXXXXX";
    int fd = mkstemp(name);
    CHECK_SYS(fd);
    CHECK_SYS(unlink(name));
    return fd;
}

/* Writes that are synchronised end in the kernel's threads, and not within the call. */
static void files_share_the_ring(void)
{
    NEED_RING();
    enum { FILES = 24 };
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct pl_files files;
    CHECK_OK(pl_files_init(&files, loop.sys, PL_FILE_AUTO));
    pl_files_join(&files, &loop, collectable);
    struct pl_file_req req[FILES];
    int fd = open_file();
    /* Before the loop has run it has no ring of this thread's. */
    memset(req, 0, sizeof(req));
    req[0] = (struct pl_file_req){.op = PL_FILE_SYNC, .fd = fd};
    int r = pl_files_submit(&files, &req[0]);
    CHECK_OK(r);
    CHECK(req[0].place != PL_FILE_IN_LOOP);
    CHECK_EQ(pl_files_settle(&files, -1), 0);
    (void)pl_files_collect(&files);
    CHECK_EQ(files.stats.inflight, 0);

    turn(&loop);
    struct reader reader;
    size_t sent = 0;
    int peer = open_reader(&loop, &reader, true);
    for (int how = 0; how < 3; how++) {
        int inflight = 0, collected = 0;
        told = 0;
        for (int i = 0; i < FILES; i++) {
            req[i] = (struct pl_file_req){.op = i % 2 ? PL_FILE_WRITE : PL_FILE_SYNC,
                                          .fd = fd,
                                          .data = data,
                                          .len = 4,
                                          .offset = 4 * i};
            r = pl_files_submit(&files, &req[i]);
            CHECK_OK(r);
            if (r == 0) {
                inflight++;
                CHECK_EQ(req[i].place, PL_FILE_IN_LOOP);
            }
            send_some(peer, &sent, 10);
        }
        if (how == 1)
            pl_loop_park(&loop, -1); /* all have ended, and nobody has been told */
        if (how == 2)
            CHECK_EQ(pl_files_settle(&files, -1), 0); /* they can be collected at once */
        while (collected < inflight) {
            for (struct pl_file_req *done = pl_files_collect(&files); done != NULL;
                 done = done->next, collected++)
                CHECK_EQ(done->result, done->op == PL_FILE_WRITE ? 4 : 0);
            if (collected < inflight) {
                CHECK(how != 2);
                CHECK_OK(pl_loop_once(&loop));
            }
        }
        CHECK(how == 2 || inflight == 0 || told > 0);
        RUN_UNTIL(&loop, reader.got == sent); /* the completions of others were kept */
        CHECK_EQ(files.stats.inflight, 0);
    }
    close_reader(&loop, &reader, peer);
    /* The loop ends with operations in its ring, the queue after it. */
    for (int i = 0; i < FILES; i++) {
        req[i] = (struct pl_file_req){.op = PL_FILE_SYNC, .fd = fd};
        CHECK_OK(pl_files_submit(&files, &req[i]));
    }
    pl_loop_fini(&loop);
    CHECK_EQ(pl_files_settle(&files, -1), 0);
    (void)pl_files_collect(&files);
    CHECK_EQ(files.stats.inflight, 0);
    pl_files_fini(&files);
    close(fd);
}

/* Another thread than that of the ring: the queue has a ring of its own for that. */
static void *submit_elsewhere(void *arg)
{
    struct pl_files *files = arg;
    int fd = open_file();
    struct pl_file_req req = {.op = PL_FILE_WRITE, .fd = fd, .data = data, .len = 1};
    int r = pl_files_submit(files, &req);
    CHECK_OK(r);
    CHECK(req.place != PL_FILE_IN_LOOP);
    if (r == 0)
        CHECK_EQ(pl_files_settle(files, -1), 0);
    (void)pl_files_collect(files);
    CHECK(req.result == 1 || req.result == -ECANCELED); /* by settle */
    close(fd);
    return NULL;
}

static void files_of_another_thread(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    struct pl_files files;
    CHECK_OK(pl_files_init(&files, loop.sys, PL_FILE_AUTO));
    pl_files_join(&files, &loop, collectable);
    turn(&loop);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, submit_elsewhere, &files), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    pl_files_fini(&files);
    pl_loop_fini(&loop);
}

#define GIVEN_UP 4

struct leaving {
    pthread_mutex_t lock; /* the binding's, which a wait goes without */
    struct reader readers[GIVEN_UP];
    int peers[GIVEN_UP];
    atomic_int asked, done; /* rounds; -1: it is over */
};

static void *abort_elsewhere(void *arg)
{
    struct leaving *l = arg;
    for (int round = 0, next;; round = next) {
        while ((next = atomic_load(&l->asked)) == round)
            (void)sched_yield();
        if (next < 0)
            return NULL;
        CHECK_EQ(pthread_mutex_lock(&l->lock), 0);
        for (int i = 0; i < GIVEN_UP; i++)
            pl_stream_abort(&l->readers[i].stream);
        CHECK_EQ(pthread_mutex_unlock(&l->lock), 0);
        atomic_store(&l->done, next);
    }
}

static bool all_closed(const struct leaving *l)
{
    int closed = 0;
    for (int i = 0; i < GIVEN_UP; i++)
        closed += l->readers[i].closed;
    return closed == GIVEN_UP;
}

static bool all_heard(const struct leaving *l)
{
    int heard = 0;
    for (int i = 0; i < GIVEN_UP; i++)
        heard += l->readers[i].got > 0;
    return heard == GIVEN_UP;
}

/* As a destructor does that another thread's garbage collection runs. The descriptors that the
 * next streams have are the same: they are not deaf, and peers see the end of the old ones. */
static void another_thread_aborts_while_the_rings_waits(void)
{
    NEED_RING();
    struct pl_loop loop;
    CHECK_OK(open_loop(&loop, NULL));
    turn(&loop);
    static struct leaving l = {.lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, abort_elsewhere, &l), 0);
    for (int round = 1; round <= 1000; round++) {
        for (int i = 0; i < GIVEN_UP; i++) {
            size_t sent = 0;
            l.peers[i] = open_reader(&loop, &l.readers[i], false);
            send_some(l.peers[i], &sent, 10);
        }
        for (int turns = 0; !all_heard(&l); turns++) {
            CHECK_CMP(turns, <, 20000);
            turn(&loop);
        }
        atomic_store(&l.asked, round);
        while (atomic_load(&l.done) != round)
            CHECK_CMP(pl_loop_wait(&loop, 0), >=, 0);
        CHECK_EQ(pthread_mutex_lock(&l.lock), 0);
        RUN_UNTIL(&loop, all_closed(&l));
        CHECK_EQ(pthread_mutex_unlock(&l.lock), 0);
        for (int i = 0; i < GIVEN_UP; i++) {
            close(l.readers[i].stream.io.fd);
            for (int turns = 0; !peer_sees_end(l.peers[i]); turns++) {
                CHECK_CMP(turns, <, 20000);
                turn(&loop);
            }
            close(l.peers[i]);
        }
    }
    atomic_store(&l.asked, -1);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    pl_loop_fini(&loop);
}

static const struct pl_test tests[] = {
    PL_TEST(another_thread_aborts_while_the_rings_waits),
    PL_TEST(another_thread_may_run_it),
    PL_TEST(a_takeover_may_fail),
    PL_TEST(a_fork_leaves_the_parent_alone),
    PL_TEST(a_fork_in_a_callback),
    PL_TEST(files_share_the_ring),
    PL_TEST(files_of_another_thread),
};
PL_TEST_MAIN(tests)

#else

int main(void)
{
    return 77; /* a build without the kernel's header */
}

#endif
