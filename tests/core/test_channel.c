/* test_channel.c - the ring between processes: order, bounds, wrap-around, waiting, deaths. */
#include "pl_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void open_channel(struct pl_channel *channel, uint64_t capacity, uint64_t size)
{
    int memfd;
    int data[2];
    int room[2];
    CHECK_OK(pl_channel_create(NULL, capacity, size, &memfd));
    /* A socket pair's end would not read what it writes: the pipes are opened again, as a
     * process does that is handed their numbers. */
    CHECK_SYS(pipe2(data, O_CLOEXEC | O_NONBLOCK));
    CHECK_SYS(pipe2(room, O_CLOEXEC | O_NONBLOCK));
    int fds[2];
    for (int i = 0; i < 2; i++) {
        int *ends = i == 0 ? data : room;
        char path[40];
        snprintf(path, sizeof(path), "/proc/self/fd/%d", ends[0]);
        fds[i] = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
        CHECK_SYS(fds[i]);
        CHECK_SYS(close(ends[0]));
        CHECK_SYS(close(ends[1]));
    }
    CHECK_OK(pl_channel_open(channel, NULL, memfd, fds[0], fds[1]));
}

static void send_number(struct pl_channel *channel, uint64_t number)
{
    CHECK_OK(pl_channel_send(channel, &number, sizeof(number)));
}

static uint64_t receive_number(struct pl_channel *channel)
{
    struct pl_message message;
    uint64_t number;
    CHECK_OK(pl_channel_receive(channel, &message));
    CHECK_EQ(message.len, sizeof(number));
    memcpy(&number, message.data, sizeof(number));
    pl_message_fini(channel, &message);
    return number;
}

static void order_bounds_and_close(void)
{
    struct pl_channel channel;
    struct pl_message message;
    open_channel(&channel, 3, 4096);
    CHECK_EQ(pl_channel_receive(&channel, &message), -EAGAIN);
    for (uint64_t i = 0; i < 3; i++)
        send_number(&channel, i);
    uint64_t more = 3;
    CHECK_EQ(pl_channel_send(&channel, &more, sizeof(more)), -EAGAIN);
    CHECK_EQ(receive_number(&channel), 0);
    send_number(&channel, 3);
    pl_channel_close(&channel);
    CHECK_EQ(pl_channel_send(&channel, &more, sizeof(more)), PL_ECLOSED);
    for (uint64_t i = 1; i < 4; i++)
        CHECK_EQ(receive_number(&channel), i);
    CHECK_EQ(pl_channel_receive(&channel, &message), PL_ECLOSED);
    struct pl_channel_figures figures;
    pl_channel_figures(&channel, &figures);
    CHECK_EQ(figures.sent, 4);
    CHECK_EQ(figures.received, 4);
    CHECK(figures.closed);
    pl_channel_fini(&channel);
}

static void sizes_wrap_around(void)
{
    struct pl_channel channel;
    open_channel(&channel, 1000, 4096);
    unsigned char out[2040];
    for (size_t round = 0; round < 20000; round++) {
        size_t len = round * 37 % sizeof(out);
        memset(out, (int)(round & 0xff), len);
        CHECK_OK(pl_channel_send(&channel, out, len));
        struct pl_message message;
        CHECK_OK(pl_channel_receive(&channel, &message));
        CHECK_EQ(message.len, len);
        CHECK(memcmp(message.data, out, len) == 0);
        pl_message_fini(&channel, &message);
    }
    CHECK_EQ(pl_channel_send(&channel, out, 2041), -EMSGSIZE);
    CHECK_OK(pl_channel_send(&channel, out, 2040));
    CHECK_OK(pl_channel_send(&channel, out, 2040));
    CHECK_EQ(pl_channel_send(&channel, out, 0), -EAGAIN);
    pl_channel_fini(&channel);
}

static void indices_run_over(void)
{
    struct pl_channel channel;
    open_channel(&channel, 2, 4096);
    /* Just below the place where both parts of an index run over. */
    uint64_t index = (UINT64_MAX >> 40) << 40 | ((UINT64_C(1) << 40) - 3);
    atomic_store(&channel.share->head, index);
    atomic_store(&channel.share->tail, index);
    for (uint64_t i = 0; i < 10; i++) {
        send_number(&channel, i);
        send_number(&channel, i + 100);
        CHECK_EQ(pl_channel_send(&channel, &i, sizeof(i)), -EAGAIN);
        CHECK_EQ(receive_number(&channel), i);
        CHECK_EQ(receive_number(&channel), i + 100);
    }
    pl_channel_fini(&channel);
}

static void nonsense_is_found(void)
{
    struct pl_channel channel;
    struct pl_message message;
    open_channel(&channel, 4, 4096);
    send_number(&channel, 1);
    uint64_t huge = UINT64_MAX;
    memcpy(channel.data, &huge, sizeof(huge));
    CHECK_EQ(pl_channel_receive(&channel, &message), PL_EPROTO);
    atomic_store(&channel.share->tail, UINT64_C(1) << 30);
    CHECK_EQ(pl_channel_receive(&channel, &message), PL_EPROTO);
    CHECK_EQ(pl_channel_send(&channel, &huge, sizeof(huge)), PL_EPROTO);
    pl_channel_fini(&channel);

    int memfd = pl_sys_default()->memfd_create("nonsense");
    CHECK_OK(memfd);
    CHECK_OK(pl_sys_default()->ftruncate(memfd, 8192));
    CHECK_EQ(pl_channel_open(&channel, NULL, memfd, -1, -1), PL_EPROTO);
    CHECK_EQ(pl_channel_create(NULL, 0, 4096, &memfd), -EINVAL);
    CHECK_EQ(pl_channel_create(NULL, PL_CHANNEL_CAPACITY_MAX + 1, 4096, &memfd), -EINVAL);
    CHECK_EQ(pl_channel_create(NULL, 1, (UINT64_C(1) << 40) + 1, &memfd), -EINVAL);
}

#define EACH 20000

struct side {
    struct pl_channel *channel;
    uint64_t who;
    uint64_t sum;
    uint64_t count;
};

static void *send_many(void *arg)
{
    struct side *side = arg;
    for (uint64_t i = 0; i < EACH; i++) {
        uint64_t number = side->who << 32 | i;
        int error;
        while ((error = pl_channel_send(side->channel, &number, sizeof(number))) == -EAGAIN)
            (void)!pl_channel_wait(side->channel, PL_CHANNEL_ROOM, -1); /* 0 or -EINTR */
        CHECK_OK(error);
    }
    return NULL;
}

static void *receive_many(void *arg)
{
    struct side *side = arg;
    uint64_t last[4] = {0};
    for (;;) {
        struct pl_message message;
        int error = pl_channel_receive(side->channel, &message);
        if (error == PL_ECLOSED)
            return NULL;
        if (error == -EAGAIN) {
            (void)!pl_channel_wait(side->channel, PL_CHANNEL_DATA, PL_NSEC_PER_SEC * 100);
            continue;
        }
        CHECK_OK(error);
        uint64_t number;
        memcpy(&number, message.data, sizeof(number));
        pl_message_fini(side->channel, &message);
        uint64_t who = number >> 32;
        CHECK_CMP((number & 0xffffffff) + 1, >, last[who]);
        last[who] = (number & 0xffffffff) + 1;
        side->sum += number & 0xffffffff;
        side->count++;
    }
}

/* Each message arrives once; what one sender sent comes to each receiver in order. */
static void many_on_both_ends(void)
{
    struct pl_channel channel;
    open_channel(&channel, 5, 4096);
    pthread_t threads[6];
    struct side sides[6];
    for (int i = 0; i < 6; i++) {
        sides[i] = (struct side){.channel = &channel, .who = (uint64_t)i};
        CHECK_EQ(pthread_create(&threads[i], NULL, i < 3 ? send_many : receive_many, &sides[i]), 0);
    }
    for (int i = 0; i < 3; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    pl_channel_close(&channel);
    uint64_t count = 0;
    uint64_t sum = 0;
    for (int i = 3; i < 6; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        count += sides[i].count;
        sum += sides[i].sum;
    }
    CHECK_EQ(count, 3 * EACH);
    CHECK_EQ(sum, 3 * ((uint64_t)EACH * (EACH - 1) / 2));
    pl_channel_fini(&channel);
}

/* Whoever dies with a lock leaves it to the next. */
static void a_death_with_the_lock(void)
{
    struct pl_channel channel;
    open_channel(&channel, 8, 4096);
    send_number(&channel, 1);
    for (int which = 0; which < 2; which++) {
        pid_t pid = fork();
        CHECK_SYS(pid);
        if (pid == 0) {
            struct pl_channel_share *share = channel.share;
            (void)pthread_mutex_lock(which == 0 ? &share->send_lock : &share->receive_lock);
            (void)raise(SIGKILL);
        }
        int status;
        CHECK_SYS(waitpid(pid, &status, 0));
        CHECK(WIFSIGNALED(status));
    }
    send_number(&channel, 2);
    CHECK_EQ(receive_number(&channel), 1);
    CHECK_EQ(receive_number(&channel), 2);
    pl_channel_fini(&channel);
}

/* A loop's byte comes for what happens after it has armed, and only then. */
static void arming(void)
{
    struct pl_channel channel;
    open_channel(&channel, 2, 4096);
    char byte;
    const struct pl_sys *sys = pl_sys_default();
    CHECK(pl_channel_arm(&channel, PL_CHANNEL_DATA));
    CHECK_EQ(sys->read(channel.pipes[PL_CHANNEL_DATA], &byte, 1), -EAGAIN);
    send_number(&channel, 1);
    send_number(&channel, 2);
    CHECK_EQ(sys->read(channel.pipes[PL_CHANNEL_DATA], &byte, 1), 1);
    CHECK_EQ(sys->read(channel.pipes[PL_CHANNEL_DATA], &byte, 1), -EAGAIN);
    CHECK(!pl_channel_arm(&channel, PL_CHANNEL_DATA));
    CHECK(pl_channel_arm(&channel, PL_CHANNEL_ROOM));
    pl_channel_disarm(&channel, PL_CHANNEL_ROOM);
    CHECK_EQ(receive_number(&channel), 1);
    CHECK_EQ(sys->read(channel.pipes[PL_CHANNEL_ROOM], &byte, 1), -EAGAIN);
    CHECK_EQ(receive_number(&channel), 2);
    CHECK(pl_channel_arm(&channel, PL_CHANNEL_DATA));
    pl_channel_close(&channel);
    CHECK_EQ(sys->read(channel.pipes[PL_CHANNEL_DATA], &byte, 1), 1);
    CHECK(!pl_channel_arm(&channel, PL_CHANNEL_DATA));
    pl_channel_fini(&channel);
}

static void a_lock_that_is_taken(void)
{
    struct pl_channel channel;
    struct pl_message message;
    open_channel(&channel, 2, 4096);
    uint64_t number = 7;
    CHECK_EQ(pthread_mutex_lock(&channel.share->send_lock), 0);
    CHECK_EQ(pl_channel_try_send(&channel, &number, sizeof(number)), -EBUSY);
    CHECK_EQ(pthread_mutex_unlock(&channel.share->send_lock), 0);
    send_number(&channel, number);
    CHECK_EQ(pthread_mutex_lock(&channel.share->receive_lock), 0);
    CHECK_EQ(pl_channel_try_receive(&channel, &message), -EBUSY);
    CHECK_EQ(pthread_mutex_unlock(&channel.share->receive_lock), 0);
    CHECK_EQ(receive_number(&channel), number);
    pl_channel_fini(&channel);
}

static void *no_memory(size_t size)
{
    (void)size;
    return NULL;
}

static int no_map(int fd, size_t size, void **out)
{
    (void)fd;
    (void)size;
    (void)out;
    return -ENOMEM;
}

static void without_memory(void)
{
    struct pl_sys sys = *pl_sys_default();
    struct pl_channel channel;
    struct pl_message message;
    int memfd;
    sys.mmap_shared = no_map;
    CHECK_EQ(pl_channel_create(&sys, 1, 4096, &memfd), -ENOMEM);
    CHECK_OK(pl_channel_create(NULL, 1, 4096, &memfd));
    CHECK_EQ(pl_channel_open(&channel, &sys, memfd, -1, -1), -ENOMEM);
    open_channel(&channel, 2, 4096);
    send_number(&channel, 5);
    struct pl_sys poor = *channel.sys;
    poor.alloc = no_memory;
    const struct pl_sys *rich = channel.sys;
    channel.sys = &poor;
    CHECK_EQ(pl_channel_receive(&channel, &message), -ENOMEM);
    channel.sys = rich;
    CHECK_EQ(receive_number(&channel), 5); /* it is still there */
    pl_channel_fini(&channel);
}

static const struct pl_test tests[] = {
    PL_TEST(order_bounds_and_close),
    PL_TEST(sizes_wrap_around),
    PL_TEST(indices_run_over),
    PL_TEST(nonsense_is_found),
    PL_TEST(many_on_both_ends),
    PL_TEST(a_death_with_the_lock),
    PL_TEST(arming),
    PL_TEST(a_lock_that_is_taken),
    PL_TEST(without_memory),
};

PL_TEST_MAIN(tests)
