/* pl_channel.c - see pl_channel.h.
 *
 * A message is its length in 8 bytes, then its bytes, filled up to a multiple of 8; both may
 * wrap around the end of the ring.
 *
 * An index is one word, so that it changes in one step: the place in units of 8 bytes in its
 * low 40 bits, the number of messages in the high 24. Both run freely; only differences of two
 * indices mean anything, and these are smaller than half of what the bits hold.
 *
 * No wake-up is lost: who waits says so (by an odd word, or armed) before its last look, and who
 * changes something stores the index before it looks at these; both sequentially consistent, so
 * one of the two sees the other. Who rings makes the word even and wakes one; until that one has
 * got up, nobody calls the kernel again. Two things remain: a thread that is woken and
 * dies before it takes anything, and a loop's byte that goes to someone who has gone away.
 * Against the first, a waiting thread looks again every second; against the second, who leaves
 * takes back either its count or a byte.
 */
#include "pl_channel.h"
#include "pl_pool_internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define LOOK_AGAIN_NS PL_NSEC_PER_SEC
#define SPINS 200
#define SPIN_NS 20000 /* about what it costs to be woken */
#define CREDIT_MAX 8
#define CREDIT_MIN (-32)

#define PLACE_BITS 40
#define PLACE_MASK ((UINT64_C(1) << PLACE_BITS) - 1)

/* The index behind a message that takes `bytes`. */
static uint64_t advance(uint64_t index, uint64_t bytes)
{
    uint64_t count = (index >> PLACE_BITS) + 1;
    return count << PLACE_BITS | ((index + bytes / 8) & PLACE_MASK);
}

static uint64_t bytes_between(uint64_t head, uint64_t tail)
{
    return ((tail - head) & PLACE_MASK) * 8;
}

static uint64_t count_between(uint64_t head, uint64_t tail)
{
    return ((tail >> PLACE_BITS) - (head >> PLACE_BITS)) & (UINT64_MAX >> PLACE_BITS);
}

/* ---- set-up ---- */

static int lock_init(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attr;
    int error = pthread_mutexattr_init(&attr);
    if (error != 0)
        return -error;
    error = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    if (error == 0)
        error = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    if (error == 0)
        error = pthread_mutex_init(lock, &attr);
    (void)pthread_mutexattr_destroy(&attr); /* cannot fail for one that is initialised */
    return -error;
}

static uint64_t data_offset(void)
{
    return (sizeof(struct pl_channel_share) + 4095) & ~UINT64_C(4095);
}

int pl_channel_create(const struct pl_sys *sys, uint64_t capacity, uint64_t size, int *memfd)
{
    if (sys == NULL)
        sys = pl_sys_default();
    if (capacity == 0 || capacity > PL_CHANNEL_CAPACITY_MAX || size > UINT64_C(1) << 40)
        return -EINVAL;
    uint64_t rounded = 4096;
    while (rounded < size)
        rounded *= 2;
    uint64_t total = data_offset() + rounded;
    int fd = sys->memfd_create("plait-channel");
    if (fd < 0)
        return fd;
    void *base = NULL;
    int error = sys->ftruncate(fd, (int64_t)total);
    if (error == 0)
        error = sys->mmap_shared(fd, data_offset(), &base);
    if (error != 0)
        goto fail;
    struct pl_channel_share *share = base;
    error = lock_init(&share->send_lock);
    if (error == 0)
        error = lock_init(&share->receive_lock);
    if (error != 0)
        goto fail_map;
    share->capacity = capacity;
    share->size = rounded;
    share->data_at = data_offset();
    share->total = total;
    share->magic = PL_CHANNEL_MAGIC;
    (void)sys->munmap(base, data_offset()); /* can only fail for an address that is not ours */
    *memfd = fd;
    return 0;

fail_map:
    (void)sys->munmap(base, data_offset());
fail:
    (void)sys->close(fd);
    return error;
}

int pl_channel_open(struct pl_channel *channel, const struct pl_sys *sys, int memfd, int data,
                    int room)
{
    if (sys == NULL)
        sys = pl_sys_default();
    *channel = (struct pl_channel){.sys = sys, .memfd = memfd, .pipes = {data, room}};
    void *base = NULL;
    int error = sys->mmap_shared(memfd, data_offset(), &base);
    if (error < 0)
        goto fail;
    struct pl_channel_share *share = base;
    uint64_t size = share->size;
    uint64_t total = share->total;
    uint64_t capacity = share->capacity;
    bool sound = share->magic == PL_CHANNEL_MAGIC && share->data_at == data_offset() &&
                 size >= 4096 && (size & (size - 1)) == 0 && size <= UINT64_C(1) << 40 &&
                 total == size + data_offset() && capacity > 0;
    (void)sys->munmap(base, data_offset());
    error = PL_EPROTO;
    if (!sound)
        goto fail;
    base = NULL;
    error = sys->mmap_shared(memfd, (size_t)total, &base);
    if (error < 0)
        goto fail;
    channel->share = base;
    channel->data = (unsigned char *)base + data_offset();
    channel->size = size;
    channel->total = total;
    channel->capacity = capacity;
    return 0;

fail:
    pl_channel_fini(channel);
    return error;
}

void pl_channel_fini(struct pl_channel *channel)
{
    const struct pl_sys *sys = channel->sys;
    if (sys == NULL)
        return;
    if (channel->share != NULL)
        (void)sys->munmap(channel->share, channel->total);
    if (channel->memfd >= 0)
        (void)sys->close(channel->memfd);
    for (int i = 0; i < 2; i++)
        if (channel->pipes[i] >= 0)
            (void)sys->close(channel->pipes[i]);
    *channel = (struct pl_channel){.memfd = -1, .pipes = {-1, -1}};
}

/* ---- locks ---- */

static int take(pthread_mutex_t *lock, bool patient)
{
    int error = pthread_mutex_trylock(lock);
    for (int i = 0; error == EBUSY && i < SPINS; i++) {
        pl__relax();
        error = pthread_mutex_trylock(lock);
    }
    if (error == EBUSY) {
        if (!patient)
            return -EBUSY;
        error = pthread_mutex_lock(lock);
    }
    if (error == EOWNERDEAD) {
        /* What it guards changes in one step, so it is consistent wherever the owner died. */
        error = pthread_mutex_consistent(lock);
    }
    return -error;
}

static void drop(pthread_mutex_t *lock)
{
    (void)pthread_mutex_unlock(lock); /* it is held: it cannot fail */
}

/* ---- bells ---- */

/* Something has changed for a side. `n`: how many may go on. */
static void ring_bell(struct pl_channel *channel, enum pl_channel_side side, int n)
{
    struct pl_channel_bell *bell = &channel->share->bells[side];
    /* seq_cst, both: the Dekker with pl_channel_wait and pl_channel_arm. */
    uint32_t word = atomic_load_explicit(&bell->word, memory_order_seq_cst);
    while ((word & 1) != 0) {
        if (atomic_compare_exchange_weak_explicit(&bell->word, &word, word + 1,
                                                  memory_order_seq_cst, memory_order_seq_cst)) {
            (void)channel->sys->futex_wake((uint32_t *)&bell->word, n);
            break;
        }
    }
    uint32_t armed = atomic_load_explicit(&bell->armed, memory_order_seq_cst);
    while (armed != 0 && n-- > 0) {
        /* acq_rel: the count is handed over as a byte. */
        if (atomic_compare_exchange_weak_explicit(&bell->armed, &armed, armed - 1,
                                                  memory_order_acq_rel, memory_order_acquire)) {
            char byte = 1;
            /* A full pipe wakes everyone as it is. */
            (void)channel->sys->write(channel->pipes[side], &byte, 1);
            armed--;
        }
    }
}

/* Whether the side could go on now. */
static bool has(struct pl_channel *channel, enum pl_channel_side side)
{
    struct pl_channel_share *share = channel->share;
    /* seq_cst: the waiter's look in the Dekker with ring_bell's callers. */
    if (atomic_load_explicit(&share->closed, memory_order_seq_cst) != 0)
        return true;
    uint64_t head = atomic_load_explicit(&share->head, memory_order_seq_cst);
    uint64_t tail = atomic_load_explicit(&share->tail, memory_order_seq_cst);
    if (side == PL_CHANNEL_DATA)
        return tail != head;
    /* No message takes more than half. One that does not fit although less than half is free
     * waits for the next receiver, who rings whenever it takes something. */
    return count_between(head, tail) < channel->capacity &&
           bytes_between(head, tail) <= channel->size / 2;
}

/* Looks for a while. Where that has been in vain too often it is tried seldom: there is no core
 * to spare, or the others are slow. */
static bool spin(struct pl_channel *channel, enum pl_channel_side side)
{
    /* Relaxed, all: a figure that threads may well disturb. */
    int32_t credit = atomic_load_explicit(&channel->credit, memory_order_relaxed);
    if (credit < 0) {
        atomic_store_explicit(&channel->credit, credit == CREDIT_MIN ? 0 : credit - 1,
                              memory_order_relaxed);
        return false;
    }
    int64_t end = channel->sys->now() + SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if (has(channel, side)) {
                atomic_store_explicit(&channel->credit, credit < CREDIT_MAX ? credit + 1 : credit,
                                      memory_order_relaxed);
                return true;
            }
            pl__relax();
        }
    } while (channel->sys->now() < end);
    atomic_store_explicit(&channel->credit, credit - 1, memory_order_relaxed);
    return false;
}

int pl_channel_wait(struct pl_channel *channel, enum pl_channel_side side, int64_t timeout_ns)
{
    struct pl_channel_bell *bell = &channel->share->bells[side];
    int error = 0;
    if (timeout_ns > SPIN_NS && spin(channel, side))
        return 0;
    /* seq_cst, both: the Dekker with ring_bell. */
    atomic_fetch_add_explicit(&bell->parked, 1, memory_order_seq_cst);
    uint32_t word = atomic_fetch_or_explicit(&bell->word, 1, memory_order_seq_cst) | 1;
    if (!has(channel, side)) {
        if (timeout_ns > LOOK_AGAIN_NS)
            timeout_ns = LOOK_AGAIN_NS;
        error = channel->sys->futex_wait((uint32_t *)&bell->word, word, timeout_ns);
    }
    /* Who rang has made the word even, and woken one. If there are more, that is for the next who
     * rings: often this thread itself, when it takes something and sees that there is more. */
    if (atomic_fetch_sub_explicit(&bell->parked, 1, memory_order_seq_cst) > 1)
        atomic_fetch_or_explicit(&bell->word, 1, memory_order_seq_cst);
    return error == -EINTR ? -EINTR : 0;
}

bool pl_channel_arm(struct pl_channel *channel, enum pl_channel_side side)
{
    struct pl_channel_bell *bell = &channel->share->bells[side];
    atomic_fetch_add_explicit(&bell->armed, 1, memory_order_seq_cst);
    if (!has(channel, side))
        return true;
    pl_channel_disarm(channel, side);
    return false;
}

void pl_channel_disarm(struct pl_channel *channel, enum pl_channel_side side)
{
    struct pl_channel_bell *bell = &channel->share->bells[side];
    uint32_t armed = atomic_load_explicit(&bell->armed, memory_order_acquire);
    while (armed != 0)
        if (atomic_compare_exchange_weak_explicit(&bell->armed, &armed, armed - 1,
                                                  memory_order_acq_rel, memory_order_acquire))
            return;
    /* Someone has turned our count into a byte, or is about to: a byte too many only makes
     * someone look in vain. */
    char byte;
    (void)channel->sys->read(channel->pipes[side], &byte, 1);
}

/* ---- messages ---- */

static void copy_in(struct pl_channel *channel, uint64_t at, const void *data, size_t len)
{
    size_t start = (size_t)((at * 8) & (channel->size - 1));
    size_t first = channel->size - start < len ? (size_t)(channel->size - start) : len;
    memcpy(channel->data + start, data, first);
    memcpy(channel->data, (const char *)data + first, len - first);
}

static void copy_out(struct pl_channel *channel, uint64_t at, void *data, size_t len)
{
    size_t start = (size_t)((at * 8) & (channel->size - 1));
    size_t first = channel->size - start < len ? (size_t)(channel->size - start) : len;
    memcpy(data, channel->data + start, first);
    memcpy((char *)data + first, channel->data, len - first);
}

static uint64_t room_for(uint64_t len)
{
    return 8 + ((len + 7) & ~UINT64_C(7));
}

static int send_message(struct pl_channel *channel, const void *data, size_t len, bool patient)
{
    struct pl_channel_share *share = channel->share;
    /* Half of the ring: so whatever is sent fits once `has` says that there is room. */
    if (len > channel->size || room_for(len) > channel->size / 2)
        return -EMSGSIZE;
    int error = take(&share->send_lock, patient);
    if (error < 0)
        return error;
    /* Relaxed: only senders, one after the other by the lock, write it. */
    uint64_t tail = atomic_load_explicit(&share->tail, memory_order_relaxed);
    /* Acquire: pairs with pl_channel_receive; it has read what we write over. */
    uint64_t head = atomic_load_explicit(&share->head, memory_order_acquire);
    uint64_t used = bytes_between(head, tail);
    if (atomic_load_explicit(&share->closed, memory_order_relaxed) != 0) {
        error = PL_ECLOSED;
    } else if (used > channel->size) {
        error = PL_EPROTO;
    } else if (count_between(head, tail) >= channel->capacity ||
               channel->size - used < room_for(len)) {
        error = -EAGAIN;
    } else {
        uint64_t size = len;
        copy_in(channel, tail, &size, sizeof(size));
        copy_in(channel, tail + 1, data, len);
        /* Release: pairs with pl_channel_receive; seq_cst: the Dekker with those who wait. */
        atomic_store_explicit(&share->tail, advance(tail, room_for(len)), memory_order_seq_cst);
        atomic_fetch_add_explicit(&share->sent, 1, memory_order_relaxed); /* a figure */
    }
    drop(&share->send_lock);
    if (error == 0)
        ring_bell(channel, PL_CHANNEL_DATA, 1);
    return error;
}

int pl_channel_send(struct pl_channel *channel, const void *data, size_t len)
{
    return send_message(channel, data, len, true);
}

int pl_channel_try_send(struct pl_channel *channel, const void *data, size_t len)
{
    return send_message(channel, data, len, false);
}

static int receive_message(struct pl_channel *channel, struct pl_message *message, bool patient)
{
    struct pl_channel_share *share = channel->share;
    int error = take(&share->receive_lock, patient);
    if (error < 0)
        return error;
    /* Relaxed: only receivers write it. Closed before the tail: what was sent before the
     * close is seen. Acquire on the tail pairs with pl_channel_send. */
    uint64_t head = atomic_load_explicit(&share->head, memory_order_relaxed);
    bool closed = atomic_load_explicit(&share->closed, memory_order_acquire) != 0;
    uint64_t tail = atomic_load_explicit(&share->tail, memory_order_acquire);
    bool more = false;
    *message = (struct pl_message){0};
    if (tail == head) {
        error = closed ? PL_ECLOSED : -EAGAIN;
        goto out;
    }
    error = PL_EPROTO;
    uint64_t len;
    uint64_t used = bytes_between(head, tail);
    if (used > channel->size || used < 8)
        goto out;
    copy_out(channel, head, &len, sizeof(len));
    if (len > channel->size || room_for(len) > used)
        goto out;
    error = -ENOMEM;
    message->data = channel->sys->alloc(len == 0 ? 1 : (size_t)len);
    if (message->data == NULL)
        goto out;
    copy_out(channel, head + 1, message->data, (size_t)len);
    message->len = (size_t)len;
    error = 0;
    /* Release: pairs with pl_channel_send's acquire; seq_cst for those who wait for room. */
    head = advance(head, room_for(len));
    atomic_store_explicit(&share->head, head, memory_order_seq_cst);
    atomic_fetch_add_explicit(&share->received, 1, memory_order_relaxed); /* a figure */
    more = tail != head;
out:
    drop(&share->receive_lock);
    if (error == 0) {
        ring_bell(channel, PL_CHANNEL_ROOM, 1);
        /* Whoever was woken for a message that we took, or is waking, need not be alone. */
        if (more)
            ring_bell(channel, PL_CHANNEL_DATA, 1);
    }
    return error;
}

int pl_channel_receive(struct pl_channel *channel, struct pl_message *message)
{
    return receive_message(channel, message, true);
}

int pl_channel_try_receive(struct pl_channel *channel, struct pl_message *message)
{
    return receive_message(channel, message, false);
}

void pl_message_fini(struct pl_channel *channel, struct pl_message *message)
{
    channel->sys->free(message->data);
    *message = (struct pl_message){0};
}

void pl_channel_close(struct pl_channel *channel)
{
    /* seq_cst: the Dekker with those who wait. */
    atomic_store_explicit(&channel->share->closed, 1, memory_order_seq_cst);
    for (int side = 0; side < 2; side++) {
        /* Odd for once, whoever sleeps: one may have been woken and not have said yet that there
         * are more. */
        atomic_fetch_or_explicit(&channel->share->bells[side].word, 1, memory_order_seq_cst);
        ring_bell(channel, (enum pl_channel_side)side, INT32_MAX);
    }
}

void pl_channel_figures(struct pl_channel *channel, struct pl_channel_figures *figures)
{
    struct pl_channel_share *share = channel->share;
    /* Relaxed: figures; received first, so that it is not beyond sent. */
    uint64_t received = atomic_load_explicit(&share->received, memory_order_relaxed);
    uint64_t sent = atomic_load_explicit(&share->sent, memory_order_relaxed);
    *figures = (struct pl_channel_figures){
        .capacity = channel->capacity,
        .size = channel->size,
        .sent = sent < received ? received : sent,
        .received = received,
        .closed = atomic_load_explicit(&share->closed, memory_order_relaxed) != 0,
    };
}
