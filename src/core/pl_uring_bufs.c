/* pl_uring_bufs.c - buffers that the kernel picks when data arrives. */
#if PL_HAVE_IO_URING

#include <linux/io_uring.h>

#ifdef IORING_RECV_MULTISHOT

#include "pl_uring_bufs.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define RING_SIZE (PL__BUF_COUNT * sizeof(struct io_uring_buf))
#define TOTAL (RING_SIZE + (size_t)PL__BUF_COUNT * PL__BUF_SIZE)

_Static_assert(RING_SIZE % 4096 == 0, "the buffers begin at a page");
_Static_assert(sizeof(struct io_uring_buf) == 16, "as the kernel has it");

int pl__bufs_init(struct pl_uring_bufs *bufs, const struct pl_sys *sys)
{
    bufs->sys = sys;
    bufs->base = NULL;
    /* Shared memory, which a fork does not copy: the kernel keeps the pages that it was given,
     * while a private page that the parent writes to after a fork becomes another one. */
    int fd = sys->memfd_create("plait-receive");
    if (fd < 0)
        return fd;
    int r = sys->ftruncate(fd, (int64_t)TOTAL);
    if (r == 0)
        r = sys->mmap_shared(fd, TOTAL, &bufs->base);
    (void)sys->close(fd); /* the mapping stays */
    if (r < 0) {
        bufs->base = NULL;
        return r;
    }
    (void)sys->madvise(bufs->base, TOTAL, MADV_DONTFORK); /* a child has no use for them */
    bufs->data = (char *)bufs->base + RING_SIZE;
    memset(bufs->taken, 0, sizeof(bufs->taken));
    return 0;
}

void pl__bufs_fini(struct pl_uring_bufs *bufs)
{
    if (bufs->base != NULL)
        (void)bufs->sys->munmap(bufs->base, TOTAL);
    bufs->base = NULL;
}

static void put(struct pl_uring_bufs *bufs, uint16_t id)
{
    struct io_uring_buf *entries = bufs->base;
    struct io_uring_buf *entry = &entries[bufs->tail & (PL__BUF_COUNT - 1)];
    /* Not the whole struct: the tail lies in the first one. */
    entry->addr = (uint64_t)(uintptr_t)pl__bufs_data(bufs, id);
    entry->len = PL__BUF_SIZE;
    entry->bid = id;
    bufs->tail++;
}

static void publish(struct pl_uring_bufs *bufs)
{
    struct io_uring_buf_ring *ring = bufs->base;
    /* release: the kernel reads the entries before the tail. */
    atomic_store_explicit((_Atomic uint16_t *)(void *)&ring->tail, bufs->tail,
                          memory_order_release);
}

int pl__bufs_register(struct pl_uring_bufs *bufs, struct pl_uring *ring)
{
    bufs->tail = 0;
    publish(bufs);
    struct io_uring_buf_reg reg = {
        .ring_addr = (uint64_t)(uintptr_t)bufs->base,
        .ring_entries = PL__BUF_COUNT,
        .bgid = PL__BUF_GROUP,
    };
    int r = ring->sys->uring_register(ring->fd, IORING_REGISTER_PBUF_RING, &reg, 1);
    if (r < 0)
        return r;
    for (uint16_t id = 0; id < PL__BUF_COUNT; id++) {
        if (!bufs->taken[id])
            put(bufs, id);
    }
    publish(bufs);
    return 0;
}

void pl__bufs_take(struct pl_uring_bufs *bufs, uint16_t id, uint16_t n)
{
    bufs->taken[id] = true;
    bufs->len[id] = n;
}

void pl__bufs_give(struct pl_uring_bufs *bufs, uint16_t id)
{
    bufs->taken[id] = false;
    put(bufs, id);
    publish(bufs);
}

void pl__bufs_append(struct pl_uring_bufs *bufs, struct pl_buf_list *list, uint16_t id)
{
    bufs->next[id] = PL__BUF_NONE;
    if (list->first == PL__BUF_NONE)
        list->first = id;
    else
        bufs->next[list->last] = id;
    list->last = id;
}

uint16_t pl__bufs_pop(struct pl_uring_bufs *bufs, struct pl_buf_list *list)
{
    uint16_t id = list->first;
    if (id != PL__BUF_NONE)
        list->first = bufs->next[id];
    return id;
}

#endif
#endif

typedef int pl__bufs_file; /* ISO C has no empty files */
