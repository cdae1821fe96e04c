/* pl_timer.c - timers: a sorted run in front of a 4-ary min-heap, both ordered by (deadline,
 * start order).
 *
 * Programs mostly start a timer and stop it before it fires, with deadlines later than those
 * before, because their delays are the same. Those go to the end of the run: a sorted array
 * that is taken from its head. Stopping one in the middle leaves a hole; the run is packed when
 * its end is reached and half of it or more are holes, so starting and stopping cost O(1), and
 * the holes no more memory than the timers have needed at once.
 *
 * What comes before the run's last deadline goes to the heap. Slots carry the keys, so that
 * sifting reads one array and follows no pointers; four children instead of two halve the depth
 * and share a cache line. (D. B. Johnson, "Priority queues with update and finding minimum
 * spanning trees", Information Processing Letters 4, 1975.)
 *
 * A timer knows its place: index is 0 while it is not started, else twice its place + 2, and one
 * more in the run. The first and the last slot of the run are never holes.
 */
#include "pl_internal.h"

#include <errno.h>

#define ARITY 4
#define FIRST_CAPACITY 32

#define IN_RUN 1u
/* Places are below this, so that an index holds twice one. */
#define MAX_CAPACITY (UINT32_MAX / 4)

static bool before(const struct pl_timer_slot *a, const struct pl_timer_slot *b)
{
    return a->deadline < b->deadline || (a->deadline == b->deadline && a->order < b->order);
}

static void put(struct pl_timers *t, uint32_t at, struct pl_timer_slot slot)
{
    t->slots[at] = slot;
    slot.timer->index = 2 * at + 2;
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

static void heap_take_out(struct pl_timers *t, uint32_t at)
{
    struct pl_timer_slot last = t->slots[--t->len];
    if (at == t->len)
        return;
    if (at > 0 && before(&last, &t->slots[(at - 1) / ARITY]))
        sift_up(t, at, last);
    else
        sift_down(t, at, last);
}

static int heap_reserve(const struct pl_sys *sys, struct pl_timers *t)
{
    if (PL_LIKELY(t->len < t->cap))
        return 0;
    if (t->cap > MAX_CAPACITY / 2)
        return -ENOMEM;
    uint32_t cap = t->cap == 0 ? FIRST_CAPACITY : t->cap * 2;
    struct pl_timer_slot *slots = sys->realloc(t->slots, cap * sizeof(*slots));
    if (slots == NULL)
        return -ENOMEM;
    t->slots = slots;
    t->cap = cap;
    return 0;
}

static void run_put(struct pl_timers *t, uint32_t at, struct pl_timer_slot slot)
{
    t->run[at] = slot;
    slot.timer->index = (2 * at + 2) | IN_RUN;
}

static void run_take_out(struct pl_timers *t, uint32_t at)
{
    t->run[at].timer = NULL;
    t->run_len--;
    if (t->run_len == 0) {
        t->run_head = t->run_tail = 0;
        return;
    }
    while (t->run[t->run_head].timer == NULL)
        t->run_head++;
    while (t->run[t->run_tail - 1].timer == NULL)
        t->run_tail--;
}

/* Closes the holes. */
static void run_pack(struct pl_timers *t)
{
    uint32_t to = 0;
    for (uint32_t i = t->run_head; i < t->run_tail; i++) {
        if (t->run[i].timer != NULL)
            run_put(t, to++, t->run[i]);
    }
    t->run_head = 0;
    t->run_tail = to;
}

/* Makes room for one more at the end: by packing where that frees half, else by growing. */
static int run_reserve(const struct pl_sys *sys, struct pl_timers *t)
{
    if (PL_LIKELY(t->run_tail < t->run_cap))
        return 0;
    if (t->run_cap > 0 && t->run_len <= t->run_cap / 2) {
        run_pack(t);
        return 0;
    }
    if (t->run_cap > MAX_CAPACITY / 2)
        return -ENOMEM;
    uint32_t cap = t->run_cap == 0 ? FIRST_CAPACITY : t->run_cap * 2;
    struct pl_timer_slot *run = sys->realloc(t->run, cap * sizeof(*run));
    if (run == NULL)
        return -ENOMEM;
    t->run = run;
    t->run_cap = cap;
    return 0;
}

static bool is_latest(const struct pl_timers *t, int64_t deadline)
{
    return t->run_len == 0 || deadline >= t->run[t->run_tail - 1].deadline;
}

static void run_append(struct pl_timers *t, struct pl_timer_slot slot)
{
    run_put(t, t->run_tail++, slot);
    t->run_len++;
}

static void take_out(struct pl_timers *t, struct pl_timer *timer)
{
    uint32_t index = timer->index;
    timer->index = 0;
    if (index & IN_RUN)
        run_take_out(t, index / 2 - 1);
    else
        heap_take_out(t, index / 2 - 1);
}

/* Moves a started timer. That needs no memory, but for one that leaves the run for a full
 * heap. */
static int move(struct pl_loop *loop, struct pl_timer *timer, int64_t deadline)
{
    struct pl_timers *t = &loop->timers;
    bool stays = !(timer->index & IN_RUN) || t->run_len == 1 || is_latest(t, deadline);
    if (!stays) {
        int r = heap_reserve(loop->sys, t);
        if (r < 0)
            return r;
    }
    take_out(t, timer);
    timer->deadline = deadline;
    struct pl_timer_slot slot = {.deadline = deadline, .order = t->next_order++, .timer = timer};
    bool latest = is_latest(t, deadline);
    if (latest && run_reserve(loop->sys, t) < 0 && t->run_len < t->run_cap)
        run_pack(t); /* a hole is left, its own */
    if (latest && t->run_tail < t->run_cap)
        run_append(t, slot);
    else
        sift_up(t, t->len++, slot); /* where it came from, if not for the reserve above */
    return 0;
}

int pl_timer_start(struct pl_loop *loop, struct pl_timer *timer, int64_t deadline)
{
    struct pl_timers *t = &loop->timers;
    if (PL_UNLIKELY(timer->index != 0))
        return move(loop, timer, deadline);
    bool latest = is_latest(t, deadline);
    int r = latest ? run_reserve(loop->sys, t) : heap_reserve(loop->sys, t);
    if (PL_UNLIKELY(r < 0))
        return r;
    timer->deadline = deadline;
    struct pl_timer_slot slot = {.deadline = deadline, .order = t->next_order++, .timer = timer};
    if (latest)
        run_append(t, slot);
    else
        sift_up(t, t->len++, slot);
    return 0;
}

bool pl_timer_stop(struct pl_loop *loop, struct pl_timer *timer)
{
    if (timer->index == 0)
        return false;
    take_out(&loop->timers, timer);
    return true;
}

struct pl_timer *pl_timers_first(const struct pl_timers *t)
{
    if (t->run_len == 0)
        return t->len == 0 ? NULL : t->slots[0].timer;
    const struct pl_timer_slot *first = &t->run[t->run_head];
    return (t->len > 0 && before(&t->slots[0], first) ? &t->slots[0] : first)->timer;
}

struct pl_timer *pl_timers_at(const struct pl_timers *t, uint32_t place)
{
    if (place < t->len)
        return t->slots[place].timer;
    place -= t->len;
    return place < t->run_tail ? (place < t->run_head ? NULL : t->run[place].timer) : NULL;
}

int pl__timers_expire(struct pl_loop *loop, int64_t now)
{
    struct pl_timers *t = &loop->timers;
    struct pl_timer *timer;
    while ((timer = pl_timers_first(t)) != NULL && timer->deadline <= now) {
        int r = pl__queue_push(loop->sys, &loop->ready, &timer->op);
        if (r < 0)
            return r;
        take_out(t, timer);
    }
    return 0;
}

void pl__timers_fini(struct pl_loop *loop)
{
    struct pl_timers *t = &loop->timers;
    struct pl_timer *timer;
    for (uint32_t i = 0; i < pl_timers_places(t); i++) {
        if ((timer = pl_timers_at(t, i)) != NULL)
            timer->index = 0;
    }
    loop->sys->free(t->slots);
    loop->sys->free(t->run);
    *t = (struct pl_timers){0};
}
