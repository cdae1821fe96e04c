/* pl_uring_bufs.h - buffers that the kernel picks when data arrives.
 *
 * One ring of equal buffers serves all connections of a loop, so that an idle one holds no
 * memory. A buffer is the kernel's, or it is taken: from the completion that names it until
 * pl__bufs_give. Taken ones can be put into lists.
 *
 * Source: io_uring_register(2), IORING_REGISTER_PBUF_RING (Linux 5.19).
 */
#ifndef PL_URING_BUFS_H
#define PL_URING_BUFS_H

#include "pl_uring.h"

#define PL__BUF_SIZE 2048u
#define PL__BUF_COUNT 512u /* a power of two */
#define PL__BUF_NONE UINT16_MAX
#define PL__BUF_GROUP 0

struct pl_uring_bufs {
    const struct pl_sys *sys; /* borrows */
    void *base;               /* owns: the ring's entries, then the buffers; NULL: there are none */
    char *data;
    uint16_t tail;                /* of the ring; runs freely */
    uint16_t next[PL__BUF_COUNT]; /* in a list */
    uint16_t len[PL__BUF_COUNT];  /* what has been received into it */
    bool taken[PL__BUF_COUNT];
};

/* A list of taken buffers, oldest first. */
struct pl_buf_list {
    uint16_t first;
    uint16_t last;
};

#define PL__BUF_LIST_EMPTY ((struct pl_buf_list){PL__BUF_NONE, PL__BUF_NONE})

/* Makes the memory; the kernel knows nothing of it yet. Fails as memfd_create and mmap do. */
int pl__bufs_init(struct pl_uring_bufs *bufs, const struct pl_sys *sys) PL_MUST_CHECK;
void pl__bufs_fini(struct pl_uring_bufs *bufs);

/* Gives all that are not taken to a ring, which must not have had them before. -EINVAL: the
 * kernel does not know how. */
int pl__bufs_register(struct pl_uring_bufs *bufs, struct pl_uring *ring) PL_MUST_CHECK;

/* The kernel has put n bytes into a buffer. */
void pl__bufs_take(struct pl_uring_bufs *bufs, uint16_t id, uint16_t n);

/* Gives a taken buffer back to the kernel, which may write to it at once. */
void pl__bufs_give(struct pl_uring_bufs *bufs, uint16_t id);

static inline char *pl__bufs_data(const struct pl_uring_bufs *bufs, uint16_t id)
{
    return bufs->data + (size_t)id * PL__BUF_SIZE;
}

void pl__bufs_append(struct pl_uring_bufs *bufs, struct pl_buf_list *list, uint16_t id);
/* PL__BUF_NONE when the list is empty. */
uint16_t pl__bufs_pop(struct pl_uring_bufs *bufs, struct pl_buf_list *list);

#endif /* PL_URING_BUFS_H */
