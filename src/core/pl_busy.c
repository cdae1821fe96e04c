/* pl_busy.c - busy polling: whether a loop that has run dry looks on before it sleeps.
 *
 * Sleep costs more than its two system calls: the processor goes idle, who sends has to wake it,
 * and its first instruction comes C later: 5 us on a bare machine, 50 in a virtual one. A loop
 * that looks on for the time that it waits, w, has its event C earlier. Looking on is right when
 * w is at most C (Karlin, Li, Manasse, Owicki: "Empirical studies of competitive spinning for a
 * shared-memory multiprocessor", SOSP 1991). Nobody tells a loop when the bytes came that woke
 * it, so C cannot be measured by itself. What can be is w + C, the sleeps, and w, the spins:
 *
 *   - off: sleeps that an event ends soon are averaged. After enough of them in a row or nearly,
 *     spinning is tried;
 *   - on: spins that find something are averaged. Spinning ends when it misses as often as it
 *     finds, when what it saves (the difference of both averages) is less than what it burns
 *     (the second of them), or when somebody else wants the core;
 *   - each trial that fails makes the next one twice as far off; one that lasts is broken off
 *     now and then, for some sleeps to be measured anew.
 *
 * So a loop that has no use for spinning spends next to nothing on it, and one whose events come
 * quickly takes the core that it would have been woken on. The core is offered to others every
 * few microseconds (pl__spin_until).
 */
#include "pl_internal.h"

#include "pl_pool_internal.h"

#define CREDIT 8        /* spins in vain, more than those that found something, that end it */
#define PROOF 16        /* hits after which the averages are compared */
#define TRIAL_FIRST 8   /* short sleeps before a trial: at first and after success, */
#define TRIAL_MOST 4096 /* and after many failures */
#define FAR 4           /* of them, that a long sleep takes back */
#define STRETCH 4096    /* hits before sleeps are measured again */

/* The first sample is taken as it is. */
static int64_t average(int64_t old, int64_t sample)
{
    return old == 0 ? sample : old + (sample - old) / 8;
}

void pl_loop_set_busy(struct pl_loop *loop, int64_t most_ns)
{
    loop->busy = (struct pl_busy){.most = most_ns, .trial = TRIAL_FIRST};
}

static void stop(struct pl_busy *busy, bool failed)
{
    busy->credit = 0;
    busy->near = 0;
    busy->sleep_ns = 0;
    if (failed && busy->trial < TRIAL_MOST)
        busy->trial *= 2;
}

void pl__busy_slept(struct pl_busy *busy, int64_t took, bool woken)
{
    if (busy->spun) { /* only the rest of a wait, which says nothing about sleeping at once */
        busy->spun = false;
        return;
    }
    if (!woken || took > 2 * busy->most) {
        busy->near = busy->near > FAR ? busy->near - FAR : 0;
        return;
    }
    busy->sleep_ns = average(busy->sleep_ns, took);
    if (++busy->near < busy->trial)
        return;
    busy->credit = CREDIT;
    busy->run = 0;
    busy->spin_ns = 0;
}

static void met(struct pl_busy *busy, int64_t took)
{
    busy->hits++;
    busy->run++;
    busy->spin_ns = average(busy->spin_ns, took);
    if (busy->credit < CREDIT)
        busy->credit++;
    if (busy->run < PROOF)
        return;
    if (busy->spin_ns > busy->sleep_ns - busy->spin_ns) {
        stop(busy, true);
        return;
    }
    busy->trial = TRIAL_FIRST;
    if (busy->run >= STRETCH)
        stop(busy, false);
}

struct look {
    struct pl_loop *loop;
    int *result; /* of the poller */
};

static bool found(const void *arg)
{
    const struct look *look = arg;
    struct pl_loop *loop = look->loop;
    *look->result = loop->backend->wait(loop, 0);
    /* Relaxed: a hint. */
    return *look->result != 0 || pl_loop_has_posts(loop) ||
           atomic_load_explicit(&loop->state, memory_order_relaxed) != PL_LOOP_AWAKE;
}

int pl_loop_busy_poll(struct pl_loop *loop, int64_t timeout_ns)
{
    struct pl_busy *busy = &loop->busy;
    const struct pl_sys *sys = loop->sys;
    int result = 0;
    struct look look = {loop, &result};
    int64_t since = sys->now();
    int64_t most = timeout_ns >= 0 && timeout_ns < busy->most ? timeout_ns : busy->most;
    busy->spins++;
    int seen = pl__spin_until(sys, since, since + most, true, found, &look);
    if (seen > 0) {
        met(busy, sys->now() - since);
        /* Who wanted it awake has it awake. seq_cst: pairs with pl_loop_wake. */
        if (atomic_load_explicit(&loop->state, memory_order_relaxed) != PL_LOOP_AWAKE)
            (void)atomic_exchange_explicit(&loop->state, PL_LOOP_AWAKE, memory_order_seq_cst);
        return result < 0 ? result : 1;
    }
    busy->spun = true;
    if (seen < 0)
        busy->crowded++;
    if (seen < 0 || --busy->credit == 0)
        stop(busy, true);
    return 0;
}
