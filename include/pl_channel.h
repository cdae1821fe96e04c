/* pl_channel.h - a bounded ring of messages between processes, with many on both ends.
 *
 * The memory is a memfd that everyone maps. Each end has a lock of its own, so a sender and a
 * receiver never wait for each other. The locks are robust: when a process dies with one, the
 * next takes it over. A message counts when the index behind it is stored, in one step at the
 * end: so what a dying sender had begun is nothing, and what a dying receiver had begun to
 * read is still there.
 *
 * A thread waits on a futex; a loop waits for a pipe to be readable, after it has armed it. A
 * pipe, because another process can open it by /proc, as it can the memfd.
 *
 * Any thread of any process may call any function, but for open and fini.
 */
#ifndef PL_CHANNEL_H
#define PL_CHANNEL_H

#include "pl_base.h"
#include "pl_sys.h"

#include <pthread.h>
#include <stdatomic.h>

#define PL_CHANNEL_MAGIC UINT64_C(0x504c4348414e4e31)

enum pl_channel_side {
    PL_CHANNEL_DATA = 0, /* who waits for messages */
    PL_CHANNEL_ROOM = 1, /* who waits for room */
};

/* One side's waiting room. */
struct pl_channel_bell {
    _Alignas(PL_CACHE_LINE) _Atomic uint32_t word; /* futex; odd: somebody is to be woken */
    _Atomic uint32_t parked;                       /* threads that wait, about */
    _Atomic uint32_t armed;                        /* loops that want a byte in the pipe */
};

struct pl_channel_share {
    uint64_t magic;
    uint64_t capacity; /* messages */
    uint64_t size;     /* bytes of the ring, a power of two */
    uint64_t data_at;
    uint64_t total;
    _Atomic uint32_t closed;
    /* Senders, with send_lock held. */
    _Alignas(PL_CACHE_LINE) pthread_mutex_t send_lock;
    _Atomic uint64_t tail; /* where the next message goes: PL__INDEX parts in pl_channel.c */
    _Atomic uint64_t sent; /* messages ever: a figure */
    /* Receivers, with receive_lock held. */
    _Alignas(PL_CACHE_LINE) pthread_mutex_t receive_lock;
    _Atomic uint64_t head;
    _Atomic uint64_t received; /* a figure */
    struct pl_channel_bell bells[2];
};

/* One process's end of it. */
struct pl_channel {
    const struct pl_sys *sys;
    struct pl_channel_share *share;
    unsigned char *data;
    int memfd;     /* owns */
    int pipes[2];  /* owns; by side */
    uint64_t size; /* private copies: the shared ones could change */
    uint64_t total;
    uint64_t capacity;
    _Atomic int32_t credit; /* what spinning has been worth lately */
};

struct pl_message {
    char *data; /* owns */
    size_t len;
};

struct pl_channel_figures {
    uint64_t capacity;
    uint64_t size;
    uint64_t sent;
    uint64_t received;
    bool closed;
};

#define PL_CHANNEL_CAPACITY_MAX ((UINT64_C(1) << 23) - 1)

/* Makes the memory: *memfd is the caller's. `size` is rounded up to a power of two. -EINVAL
 * when capacity is 0 or above PL_CHANNEL_CAPACITY_MAX, or size beyond 1 TiB; -ENOMEM,
 * -EMFILE. */
int pl_channel_create(const struct pl_sys *sys, uint64_t capacity, uint64_t size,
                      int *memfd) PL_MUST_CHECK;

/* Maps it. The descriptors (memory, and the pipes that tell of messages and of room, open for
 * reading and writing, non-blocking) are moved in, even on failure. PL_EPROTO when the memory
 * is no channel's. */
int pl_channel_open(struct pl_channel *channel, const struct pl_sys *sys, int memfd, int data,
                    int room) PL_MUST_CHECK;
void pl_channel_fini(struct pl_channel *channel);

/* Copies a message in. -EAGAIN without room, PL_ECLOSED, -EMSGSIZE when it takes more
 * than half of the ring. The second does not sleep for a lock that somebody has: -EBUSY. */
int pl_channel_send(struct pl_channel *channel, const void *data, size_t len) PL_MUST_CHECK;
int pl_channel_try_send(struct pl_channel *channel, const void *data, size_t len) PL_MUST_CHECK;

/* Copies the next message out, to memory that pl_message_fini frees. -EAGAIN when there is
 * none, PL_ECLOSED when there is none and never will be, -ENOMEM, PL_EPROTO when someone has
 * written nonsense; -EBUSY as above. */
int pl_channel_receive(struct pl_channel *channel, struct pl_message *message) PL_MUST_CHECK;
int pl_channel_try_receive(struct pl_channel *channel, struct pl_message *message) PL_MUST_CHECK;
void pl_message_fini(struct pl_channel *channel, struct pl_message *message);

/* Nothing more is sent; what is there can be received. Wakes everyone. */
void pl_channel_close(struct pl_channel *channel);

/* Waits until the side may have something, for at most timeout_ns: spins for a moment where that
 * has been worth it, then parks the thread. 0, or -EINTR. */
int pl_channel_wait(struct pl_channel *channel, enum pl_channel_side side,
                    int64_t timeout_ns) PL_MUST_CHECK;

/* Asks for one byte in the side's pipe. False, with nothing asked, when the side has something
 * now. Whoever is woken reads the byte; who goes away without it disarms. */
bool pl_channel_arm(struct pl_channel *channel, enum pl_channel_side side);
void pl_channel_disarm(struct pl_channel *channel, enum pl_channel_side side);

void pl_channel_figures(struct pl_channel *channel, struct pl_channel_figures *figures);

#endif /* PL_CHANNEL_H */
