/* pl_queue.c - the ready queue: a ring of op pointers that doubles when it is full.
 *
 * It never shrinks while the loop lives: a program that once had 100,000 callbacks
 * ready is likely to have them again, and the ring costs 8 bytes each.
 */
#include "pl_internal.h"

#include <errno.h>
#include <string.h>

#define FIRST_CAPACITY 64

int pl__queue_reserve(const struct pl_sys *sys, struct pl_queue *q, uint32_t extra)
{
    uint32_t len = pl_queue_len(q);
    uint32_t cap = q->slots == NULL ? 0 : q->mask + 1;
    if (PL_LIKELY(cap - len >= extra))
        return 0;

    uint32_t grown = cap == 0 ? FIRST_CAPACITY : cap;
    while (grown - len < extra) {
        if (grown > UINT32_MAX / 4)
            return -ENOMEM;
        grown *= 2;
    }
    struct pl_op **slots = sys->alloc(grown * sizeof(*slots));
    if (slots == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < len; i++)
        slots[i] = q->slots[(q->head + i) & q->mask];
    sys->free(q->slots);
    *q = (struct pl_queue){.slots = slots, .mask = grown - 1, .head = 0, .tail = len};
    return 0;
}

int pl__queue_push(const struct pl_sys *sys, struct pl_queue *q, struct pl_op *op)
{
    if (PL_UNLIKELY(q->slots == NULL || pl_queue_len(q) > q->mask)) {
        int r = pl__queue_reserve(sys, q, 1);
        if (r < 0)
            return r;
    }
    q->slots[q->tail++ & q->mask] = op;
    return 0;
}

void pl__queue_fini(const struct pl_sys *sys, struct pl_queue *q)
{
    sys->free(q->slots);
    *q = (struct pl_queue){0};
}
