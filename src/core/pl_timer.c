/* pl_timer.c - timers: a 4-ary min-heap ordered by (deadline, start order).
 *
 * Slots carry the keys, so that sifting reads one array and follows no pointers; a
 * timer knows its place (index), so that stopping needs no search and leaves nothing
 * behind. Programs mostly start a timer and stop it before it fires, with deadlines
 * later than those before: both ends of that work on the last leaf and cost no sifting.
 * Four children instead of two halve the depth and share a cache line.
 * (D. B. Johnson, "Priority queues with update and finding minimum spanning trees",
 * Information Processing Letters 4, 1975.)
 */
#include "pl_internal.h"

#include <errno.h>

#define ARITY 4
#define FIRST_CAPACITY 32

static bool before(const struct pl_timer_slot *a, const struct pl_timer_slot *b)
{
    return a->deadline < b->deadline || (a->deadline == b->deadline && a->order < b->order);
}

static void put(struct pl_timers *t, uint32_t at, struct pl_timer_slot slot)
{
    t->slots[at] = slot;
    slot.timer->index = at + 1;
}

static void sift_up(struct pl_timers *t, uint32_t at, struct pl_timer_slot slot)
{
    while (at > 0) {
        uint32_t parent = (at - 1) / ARITY;
        if (!before(&slot, &t->slots[parent]))
            break;
        put(t, at, t->slots[parent]);
        at = parent;
    }
    put(t, at, slot);
}

static void sift_down(struct pl_timers *t, uint32_t at, struct pl_timer_slot slot)
{
    for (;;) {
        uint64_t first = (uint64_t)at * ARITY + 1;
        if (first >= t->len)
            break;
        uint32_t least = (uint32_t)first;
        uint32_t end = t->len - least < ARITY ? t->len : least + ARITY;
        for (uint32_t i = least + 1; i < end; i++) {
            if (before(&t->slots[i], &t->slots[least]))
                least = i;
        }
        if (!before(&t->slots[least], &slot))
            break;
        put(t, at, t->slots[least]);
        at = least;
    }
    put(t, at, slot);
}

static void take_out(struct pl_timers *t, uint32_t at)
{
    t->slots[at].timer->index = 0;
    struct pl_timer_slot last = t->slots[--t->len];
    if (at == t->len)
        return;
    if (at > 0 && before(&last, &t->slots[(at - 1) / ARITY]))
        sift_up(t, at, last);
    else
        sift_down(t, at, last);
}

static int grow(const struct pl_sys *sys, struct pl_timers *t)
{
    if (t->cap > UINT32_MAX / 4)
        return -ENOMEM;
    uint32_t cap = t->cap == 0 ? FIRST_CAPACITY : t->cap * 2;
    struct pl_timer_slot *slots = sys->realloc(t->slots, cap * sizeof(*slots));
    if (slots == NULL)
        return -ENOMEM;
    t->slots = slots;
    t->cap = cap;
    return 0;
}

int pl_timer_start(struct pl_loop *loop, struct pl_timer *timer, int64_t deadline)
{
    struct pl_timers *t = &loop->timers;
    if (timer->index != 0)
        take_out(t, timer->index - 1); /* room for one is left: the rest cannot fail */
    if (PL_UNLIKELY(t->len == t->cap)) {
        int r = grow(loop->sys, t);
        if (r < 0)
            return r;
    }
    timer->deadline = deadline;
    sift_up(t, t->len++,
            (struct pl_timer_slot){.deadline = deadline, .order = t->next_order++, .timer = timer});
    return 0;
}

bool pl_timer_stop(struct pl_loop *loop, struct pl_timer *timer)
{
    if (timer->index == 0)
        return false;
    take_out(&loop->timers, timer->index - 1);
    return true;
}

int pl__timers_expire(struct pl_loop *loop, int64_t now)
{
    struct pl_timers *t = &loop->timers;
    while (t->len > 0 && t->slots[0].deadline <= now) {
        struct pl_timer *timer = t->slots[0].timer;
        int r = pl__queue_push(loop->sys, &loop->ready, &timer->op);
        if (r < 0)
            return r;
        take_out(t, 0);
    }
    return 0;
}

void pl__timers_fini(struct pl_loop *loop)
{
    struct pl_timers *t = &loop->timers;
    for (uint32_t i = 0; i < t->len; i++)
        t->slots[i].timer->index = 0;
    loop->sys->free(t->slots);
    *t = (struct pl_timers){0};
}
