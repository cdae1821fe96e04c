/* pool_wait.c - who looks at results, and how the others sleep meanwhile.
 *
 * Nobody is there for this alone: a thread in result() collects for all while it waits (it
 * leads), the others sleep until their future is done or the lead is theirs. A loop has the
 * pool's wait descriptor among its own and collects when it is readable. Only when a future
 * has an audience that does not wait (a callback, concurrent.futures.wait), or when tasks
 * wait that the board has no room for, a helper thread leads while no one else does.
 *
 * Sections: waking, leading and following, what loops and the helper call.
 */
#include "pool_parent.h"

#define DOZE_NS 1000000 /* how long a queued task or an owed wake-up may have to wait */
#define DOZE_TICKS 16
#define DOZE_TICKS_MAX 1000 /* then the helper looks after other things */
#define CHECK_NS 1000000000 /* so long without news, and it is checked whether all is well */

#include <errno.h>

/* ---- waking ---- */

void plait_pool_wake_waiter(struct plait_waiter *waiter)
{
    /* Release: the sleeper reads the word, then the future under the interpreter's lock. */
    __atomic_store_n(&waiter->word, 1, __ATOMIC_RELEASE);
    (void)pl_sys_default()->futex_wake(&waiter->word, 1); /* it may not sleep yet: fine */
}

void plait_pool_kick(struct plait_pool *pool)
{
    uint64_t one = 1;
    /* A full counter wakes as well. */
    (void)pool->core.sys->write(pool->core.eventfd, &one, sizeof(one));
}

void plait_pool_wake_for(struct plait_pool *pool, struct plait_future *f)
{
    for (struct plait_waiter *w = pool->followers; w != NULL; w = w->next)
        if (w->future == f)
            plait_pool_wake_waiter(w);
    /* A leader that sleeps for this one, when someone else has ended it. */
    if (pool->asleep && pool->asleep_for == f)
        plait_pool_kick(pool);
}

void plait_pool_call_helper(struct plait_pool *pool)
{
    if (pool->helper_rests) {
        uint64_t one = 1;
        pool->helper_rests = pool->helper_idle = false; /* once is enough */
        (void)pool->core.sys->write(pool->nudge, &one, sizeof(one));
    }
    for (struct plait_waiter *w = pool->followers; w != NULL; w = w->next)
        if (w->future == NULL && w->word == 0)
            plait_pool_wake_waiter(w);
}

/* Whether there is an audience that nobody but the helper serves. */
static bool helper_needed(const struct plait_pool *pool)
{
    return pool->watched > pool->looped;
}

/* The lead is free: the first real waiter gets it, or the helper when it is needed. */
void plait_pool_hand_over(struct plait_pool *pool)
{
    for (struct plait_waiter *w = pool->followers; w != NULL; w = w->next) {
        if (w->future != NULL) {
            plait_pool_wake_waiter(w);
            return;
        }
    }
    if (pool->watched == 0)
        return;
    if (helper_needed(pool))
        plait_pool_call_helper(pool);
    /* Loops have left the last event to the leader that goes now. */
    pl_pool_arm(&pool->core, PL_ARM_ANY);
    if (pl_pool_ready(&pool->core))
        plait_pool_kick(pool);
}

/* ---- leading and following ---- */

/* What the leader should be woken for. */
static uint32_t arm_for(const struct plait_pool *pool, const struct plait_future *f)
{
    if (pool->watched > 0 || pool->closed || (f == NULL && pool->max_pending != 0))
        return PL_ARM_ANY;
    for (const struct plait_waiter *w = pool->followers; w != NULL; w = w->next)
        if (w->future != NULL)
            return PL_ARM_ANY;
    if (f != NULL && f->state == PLAIT_POSTED)
        return PL_ARM_SLOT + f->cell;
    return f != NULL ? PL_ARM_ANY : PL_ARM_DRY;
}

/* What a wait for no future in particular waits for: the end of everything, or, as long as
 * new tasks may come, room for one. */
static bool has_room(const struct plait_pool *pool)
{
    if (pool->closed || pool->max_pending == 0)
        return pool->outstanding == 0;
    return pool->outstanding < pool->max_pending;
}

/* Runs the handlers of signals, and remembers a Ctrl+C: shutdown will not wait then. */
static int check_signals(struct plait_pool *pool)
{
    if (PyErr_CheckSignals() == 0)
        return 0;
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        pool->interrupted = true;
    return -1;
}

static int64_t time_left(int64_t deadline)
{
    if (deadline < 0)
        return -1;
    int64_t left = deadline - pl_sys_default()->now();
    return left > 0 ? left : 0;
}

static void take_lead(struct plait_pool *pool)
{
    pool->led = true;
    pool->leader = PyThread_get_thread_ident();
}

static bool leads(const struct plait_pool *pool)
{
    return pool->led && pool->leader == PyThread_get_thread_ident();
}

/* Puts the lead down: once in each round, before any code of Python's runs, for from then on
 * another thread may have taken it up. */
static void put_down(struct plait_pool *pool)
{
    pool->led = pool->helper_leads = pool->kick = false;
}

/* One round of the leader: collects, and waits if there was nothing. 1 when it is worth
 * looking at futures again, 0 when time is up, -1 with an exception set. The lead is down
 * while the user's code runs. */
static int lead_round(struct plait_pool *pool, struct plait_future *f, int64_t deadline)
{
    int spun = 0;
    bool looked = false; /* for signals, since this thread has spun or slept */
    uint32_t tags = 0;
    for (;;) {
        plait_pool_collect(pool);
        if (!leads(pool))
            return 1; /* a finalizer that the collector ran in between has led, and put it down */
        if (plait_pool_has_news(pool) || PyList_GET_SIZE(pool->again) > 0 || pool->suspects != 0 ||
            (f != NULL ? plait_future_done(f) : has_room(pool))) {
            put_down(pool);
            return 1;
        }
        pl_pool_flush(&pool->core);
        if (spun == 0) {
            spun = 1;
            Py_BEGIN_ALLOW_THREADS(void) pl_pool_spin(&pool->core);
            Py_END_ALLOW_THREADS
                /* Found or not: another thread may have collected what this one waits for. */
                continue;
        }
        int64_t left = time_left(deadline);
        if (left == 0) {
            put_down(pool);
            return 0;
        }
        if (!looked && !pool->helper_leads) {
            /* One that came while this thread span will not interrupt its sleep. */
            looked = true;
            put_down(pool);
            if (check_signals(pool) < 0)
                return -1;
            if (pool->led || !pool->open)
                return 1; /* a handler let others run */
            take_lead(pool);
            continue;
        }
        bool check = pool->outstanding > 0 && (left < 0 || left > CHECK_NS);
        pl_pool_arm(&pool->core, arm_for(pool, f));
        if (pl_pool_ready(&pool->core))
            continue;
        int n;
        int64_t slept = pool->core.sys->now();
        pool->asleep = true;
        pool->asleep_for = f;
        Py_BEGIN_ALLOW_THREADS n = pl_pool_wait(&pool->core, check ? CHECK_NS : left, &tags);
        Py_END_ALLOW_THREADS pool->asleep = false;
        pool->asleep_for = NULL;
        if (n == -EINTR) {
            put_down(pool);
            plait_pool_hand_over(pool);
            return check_signals(pool) < 0 ? -1 : 1;
        }
        if (n > 0)
            pl_pool_woke(&pool->core, slept);
        if (n < 0) {
            put_down(pool);
            (void)plait_raise(pool->state, n, "waiting for a worker");
            return -1;
        }
        if ((tags & 1) != 0) {
            put_down(pool);
            plait_pool_collect(pool);
            plait_pool_hand_over(pool);
            return plait_pool_tend(pool, tags) < 0 ? -1 : 1;
        }
        if (pool->kick) {
            put_down(pool);
            return 1;
        }
        if (n == 0 && check)
            pl_pool_check(&pool->core);
        looked = false;
    }
}

/* Sleeps as one of the followers; *woken tells whether someone meant it. */
static int follow(struct plait_pool *pool, struct plait_future *f, int64_t timeout_ns)
{
    struct plait_waiter me = {.next = pool->followers, .future = f};
    pool->followers = &me;
    if (f != NULL && pool->helper_leads) {
        /* A thread that waits for a result leads better than the helper does. */
        pool->kick = true;
        plait_pool_kick(pool);
    } else if (f != NULL) {
        /* The leader may be armed for its own future only. */
        pl_pool_arm(&pool->core, PL_ARM_ANY);
        if (pl_pool_ready(&pool->core))
            plait_pool_kick(pool);
    }
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
        /* Acquire: partner is wake_waiter's release. */
        if (__atomic_load_n(&me.word, __ATOMIC_ACQUIRE) == 0) error =
            pl_sys_default()->futex_wait(&me.word, 0, timeout_ns);
    Py_END_ALLOW_THREADS struct plait_waiter **at = &pool->followers;
    while (*at != &me)
        at = &(*at)->next;
    *at = me.next;
    return error;
}

int plait_pool_wait_for(PyObject *self, struct plait_future *f, int64_t deadline)
{
    struct plait_pool *pool = POOL(self);
    if (!plait_pool_usable(pool))
        return -1;
    Py_INCREF(pool);
    int result = 0;
    bool signalled = false;
    while (!plait_future_done(f)) {
        if (!pool->open) {
            PyErr_SetString(PyExc_RuntimeError, "the pool was closed");
            result = -1;
            break;
        }
        /* The leader itself comes here again from a finalizer, at worst. */
        if (!pool->led || leads(pool)) {
            take_lead(pool);
            int round = lead_round(pool, f, deadline);
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            if (plait_pool_tend(pool, 0) < 0 || PyErr_Occurred() != NULL)
                plait_unraisable((PyObject *)pool);
            if (plait_pool_has_news(pool))
                plait_pool_notify(pool);
            PyErr_Restore(type, value, traceback);
            if (round < 0) {
                result = -1;
                break;
            }
            if (round == 0 && !plait_future_done(f)) {
                PyErr_SetNone(PyExc_TimeoutError);
                result = -1;
                break;
            }
            continue;
        }
        int64_t left = time_left(deadline);
        if (left == 0) {
            PyErr_SetNone(PyExc_TimeoutError);
            result = -1;
            break;
        }
        signalled = follow(pool, f, left) == -EINTR;
        if (signalled && check_signals(pool) < 0) {
            result = -1;
            break;
        }
    }
    if (!pool->led && pool->open && pool->outstanding > 0 && !pl_pool_forked(&pool->core))
        plait_pool_hand_over(pool);
    Py_DECREF(pool);
    return result;
}

/* ---- what loops and the helper call ---- */

/* The wait descriptor is readable: called by a loop. */
PyObject *plait_pool_on_ready(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    uint32_t tags = 0;
    if (!pool->open || pl_pool_forked(&pool->core))
        Py_RETURN_NONE;
    /* A leader that sleeps for the same event would miss it if it were read here; it is about
     * to wake, reads it, and sees to control. */
    bool mine = !pool->asleep;
    int n = mine ? pl_pool_wait(&pool->core, 0, &tags) : 0;
    if (n < 0 && n != -EINTR)
        return plait_raise(pool->state, n, "waiting for a worker");
    plait_pool_collect(pool);
    if (mine && pool->watched > 0) {
        pl_pool_arm(&pool->core, PL_ARM_ANY);
        if (pl_pool_ready(&pool->core))
            plait_pool_collect(pool);
    }
    pl_pool_flush(&pool->core);
    if (plait_pool_tend(pool, tags) < 0)
        return NULL;
    plait_pool_notify(pool);
    Py_RETURN_NONE;
}

/* Sleeps beside a pool that is used, without the interpreter's lock: true when a debt has
 * got old, when work waits for room, or when called; false when nothing was posted for a
 * while. Between two looks it costs nothing, and nobody has to wake it. */
static bool doze(struct plait_pool *pool)
{
    struct plait_waiter me = {.next = pool->followers};
    struct pl_pool *core = &pool->core;
    bool backlog = !plait_queue_empty(pool);
    uint64_t tail = atomic_load_explicit(&core->share->tail, memory_order_relaxed);
    uint32_t debt = 0;
    int quiet = 0;
    int ticks = 0;
    bool old = false;
    pool->followers = &me;
    Py_BEGIN_ALLOW_THREADS while (__atomic_load_n(&me.word, __ATOMIC_ACQUIRE) == 0 && !old &&
                                  quiet < DOZE_TICKS && ticks++ < DOZE_TICKS_MAX)
    {
        (void)core->sys->futex_wait(&me.word, 0, DOZE_NS);
        /* Relaxed, both: what is missed now is seen at the next look. */
        uint64_t posted = atomic_load_explicit(&core->share->tail, memory_order_relaxed);
        uint32_t owed = atomic_load_explicit(&core->owed_wake, memory_order_relaxed);
        old = backlog || (owed != 0 && owed == debt);
        quiet = posted != tail || owed != 0 ? 0 : quiet + 1;
        tail = posted;
        debt = owed;
    }
    Py_END_ALLOW_THREADS struct plait_waiter **at = &pool->followers;
    while (*at != &me)
        at = &(*at)->next;
    *at = me.next;
    /* It may have been posted to since the last look; then it is no time to sleep. */
    return old || me.word != 0 || !plait_queue_empty(pool) || core->owed_wake != 0;
}

/* Looks every second or so, in the busiest of pools, too, for tasks that nobody would hear of. */
static void look_after(struct plait_pool *pool)
{
    int64_t now = pool->core.sys->now();
    if (pool->outstanding == 0 || now - pool->mended < CHECK_NS)
        return;
    pool->mended = now;
    if (!pl_pool_mend(&pool->core))
        return;
    if (pool->led)
        plait_pool_kick(pool); /* the leader finds who is suspected */
    else
        plait_pool_collect(pool);
}

/* One turn of the helper thread: leads a round if it is needed, pays what is owed, looks after
 * what waits for room. Returns for how many seconds it may rest: 0 for another turn at once, a
 * negative number for as long as nobody calls it, None for ever. It is told whether such a rest
 * has come to its end by itself, or by a worker's knock: then nobody looks, and it does. */
PyObject *plait_pool_help(PyObject *self, PyObject *timed_out)
{
    struct plait_pool *pool = POOL(self);
    if (!pool->open || pl_pool_forked(&pool->core))
        Py_RETURN_NONE;
    pool->helper_rests = pool->helper_idle = false;
    bool rest = false;
    uint32_t tags = 0;
    look_after(pool);
    if (!pool->led && helper_needed(pool)) {
        take_lead(pool);
        pool->helper_leads = true;
        int round = lead_round(pool, NULL, -1);
        plait_pool_hand_over(pool);
        if (round < 0)
            return NULL;
    } else if (timed_out == Py_True && !pool->led) {
        uint64_t finished = pool->core.finished;
        if (!pool->asleep && pl_pool_wait(&pool->core, 0, &tags) < 0)
            tags = 0; /* interrupted: no news */
        plait_pool_collect(pool);
        pool->unread = pool->core.finished != finished;
        pl_pool_check(&pool->core);
        pl_pool_flush(&pool->core);
        rest = true;
    } else if ((pool->core.payer || !plait_queue_empty(pool)) && doze(pool)) {
        if (pool->open && (!plait_queue_empty(pool) || pool->core.owed_wake != 0)) {
            if (!pool->led)
                plait_pool_collect(pool);
            pl_pool_flush(&pool->core);
        }
    } else {
        rest = true;
    }
    if (plait_pool_tend(pool, tags) < 0)
        return NULL;
    plait_pool_notify(pool);
    if (!rest || (!pool->led && helper_needed(pool)) || !plait_queue_empty(pool) ||
        pool->core.owed_wake != 0)
        return PyFloat_FromDouble(0.0);
    /* Under the lock from the look above to here: who comes later calls. */
    pool->helper_rests = true;
    pool->helper_idle = pool->outstanding == 0 && pool->core.posted == pool->helper_saw;
    pool->helper_saw = pool->core.posted;
    return PyFloat_FromDouble(pool->helper_idle ? -1.0 : CHECK_NS / 1e9);
}

PyObject *plait_pool_wake_helper(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    plait_pool_call_helper(pool);
    pool->kick = pool->helper_leads;
    if (pool->open && !pl_pool_forked(&pool->core))
        plait_pool_kick(pool);
    Py_RETURN_NONE;
}

/* Waits until nothing is outstanding, or for `timeout` seconds, or until control speaks. */
PyObject *plait_pool_wait_idle(PyObject *self, PyObject *arg)
{
    struct plait_pool *pool = POOL(self);
    double seconds = PyFloat_AsDouble(arg);
    if ((seconds == -1.0 && PyErr_Occurred()) || !plait_pool_usable(pool))
        return NULL;
    int64_t deadline = seconds < 0 ? -1 : pl_sys_default()->now() + (int64_t)(seconds * 1e9);
    if (pool->led) {
        /* Someone else collects; this one only looks on, for it is about to end the pool. */
        int64_t left = time_left(deadline);
        if (left < 0 || left > 10000000)
            left = 10000000;
        if (follow(pool, NULL, left) == -EINTR && check_signals(pool) < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    int round = 1;
    uint32_t tags = 0;
    if (pool->outstanding > 0) {
        take_lead(pool);
        round = lead_round(pool, NULL, deadline);
        plait_pool_hand_over(pool);
    } else {
        /* Only control can have news: workers that end. */
        int n;
        int64_t left = time_left(deadline);
        Py_BEGIN_ALLOW_THREADS n = pl_pool_wait(&pool->core, left, &tags);
        Py_END_ALLOW_THREADS if (n == -EINTR && check_signals(pool) < 0) return NULL;
    }
    if (round < 0 || plait_pool_tend(pool, tags) < 0)
        return NULL;
    plait_pool_notify(pool);
    Py_RETURN_NONE;
}
