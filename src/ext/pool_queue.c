/* pool_queue.c - the parent's private queue: tasks that the board has no room for, or no turn.
 *
 * Tasks of priority 0 are in a list, in order. Others are in a binary heap, by priority and
 * then by order of submission. Once something is in the heap the board is kept short, so that
 * a task which comes later and is more urgent passes nearly all; what lies on the board by
 * then and is less urgent is taken back into the heap, where it comes before the list.
 *
 * A task that is cancelled keeps its place and is passed over.
 */
#include "pool_parent.h"

/* Whether a comes before b. */
static bool before(const struct plait_ranked *a, const struct plait_ranked *b)
{
    if (a->future->priority != b->future->priority)
        return a->future->priority > b->future->priority;
    return a->turn < b->turn;
}

static int heap_reserve(struct plait_pool *pool)
{
    if (pool->nheap < pool->heap_cap)
        return 0;
    size_t cap = pool->heap_cap == 0 ? 64 : 2 * pool->heap_cap;
    struct plait_ranked *grown = PyMem_Realloc(pool->heap, cap * sizeof(*grown));
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    pool->heap = grown;
    pool->heap_cap = cap;
    return 0;
}

/* After heap_reserve. */
static void heap_push(struct plait_pool *pool, struct plait_future *f, uint64_t turn)
{
    struct plait_ranked item = {.future = f, .turn = turn};
    size_t i = pool->nheap++;
    while (i > 0 && before(&item, &pool->heap[(i - 1) / 2])) {
        pool->heap[i] = pool->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    pool->heap[i] = item;
}

static struct plait_future *heap_pop(struct plait_pool *pool)
{
    struct plait_future *first = pool->heap[0].future;
    struct plait_ranked item = pool->heap[--pool->nheap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= pool->nheap)
            break;
        if (child + 1 < pool->nheap && before(&pool->heap[child + 1], &pool->heap[child]))
            child++;
        if (!before(&pool->heap[child], &item))
            break;
        pool->heap[i] = pool->heap[child];
        i = child;
    }
    pool->heap[i] = item;
    return first;
}

static bool heap_is_next(const struct plait_pool *pool)
{
    return pool->nheap > 0 && (pool->queue_first == NULL || pool->heap[0].future->priority >= 0);
}

struct plait_future *plait_queue_first(const struct plait_pool *pool)
{
    return heap_is_next(pool) ? pool->heap[0].future : pool->queue_first;
}

struct plait_future *plait_queue_take(struct plait_pool *pool)
{
    if (heap_is_next(pool))
        return heap_pop(pool);
    struct plait_future *f = pool->queue_first;
    pool->queue_first = f->next;
    if (pool->queue_first == NULL)
        pool->queue_last = NULL;
    f->next = NULL;
    return f;
}

int plait_queue_add(struct plait_pool *pool, struct plait_future *f)
{
    if (f->priority != 0) {
        if (heap_reserve(pool) < 0)
            return -1;
        f->turn = pool->turns++;
        heap_push(pool, f, f->turn);
    } else if (pool->queue_last != NULL) {
        pool->queue_last->next = f;
        pool->queue_last = f;
    } else {
        pool->queue_first = pool->queue_last = f;
    }
    Py_INCREF(f);
    pool->queued++;
    return 0;
}

void plait_queue_recall(struct plait_pool *pool, int32_t priority)
{
    for (uint32_t cell = 0; cell < pool->core.nslots; cell++) {
        const struct pl_cell *mine = &pool->core.cells[cell];
        /* What carries blocks stays: they go with the cell. */
        if (mine->state != PL_CELL_POSTED || mine->blocks != 0)
            continue;
        struct plait_future *f = mine->user;
        uint64_t pos = mine->pos;
        const struct pl_slot *slot = &pool->core.slots[cell];
        uint32_t len = slot->len;
        /* The slot is shared memory: a spoilt length is not believed. */
        if (f->priority >= priority || len > PL_SLOT_INLINE || len == 0)
            continue;
        PyObject *message = PyBytes_FromStringAndSize((const char *)slot->bytes, len);
        if (message == NULL || heap_reserve(pool) < 0) {
            PyErr_Clear(); /* without memory the order is worse, and nothing is lost */
            Py_XDECREF(message);
            return;
        }
        if (!pl_pool_withdraw(&pool->core, cell)) {
            Py_DECREF(message); /* a worker has it by now */
            continue;
        }
        heap_push(pool, f, f->priority == 0 ? pos : f->turn);
        f->message = message; /* the cell's reference to f is the heap's now */
        f->state = PLAIT_QUEUED;
        pool->queued++;
    }
}
