/* pl_thread.c - the line of a thread pool, and how its idle threads sleep and are called.
 *
 * One lock guards the lists and counts; it is held for a few instructions and never while
 * anything blocks or calls the system. Idle threads do not wait on one condition: each has a
 * berth of its own, so calling one wakes exactly that one.
 *
 * No job is forgotten. A thread lies down only with the lock held and the line empty, and
 * posting puts the job into the line before it looks at the berths, with the lock held: so
 * either the thread sees the job, or the poster sees the berth. A berth that was called
 * counts as a looking thread from that moment, and a thread whose time is over leaves only
 * after it has taken its berth off the list, or has found that it was called.
 *
 * How many are called. Threads that look will take a job each, so a job wants another thread
 * only when more jobs wait than threads look. While one thread is on its way, posting the
 * second job calls the second thread, not all.
 *
 * Sections: the lock, berths, the line, the crew, its threads.
 */
#include "pl_thread.h"

#include "pl_pool_internal.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

/* Longer than a thread switch on one core, shorter than most wake-ups across cores. */
#define SPIN_NS 40000
/* For so long a spinning thread leaves a new job to be kicked for. */
#define KICK_NS 5000
#define CREDIT_MAX 16
/* For so long a thread that lies down dozes: it would get up by itself. */
#define DOZE_NS 1000000

/* Spinning keeps the other side from running when it was woken on this very core, which the
 * kernel likes to do. So each side leaves the number of its core, and spins only for one that
 * was on another one. */
static uint32_t this_cpu(void)
{
    return (uint32_t)sched_getcpu();
}

/* ---- the lock ---- */

enum { FREE, HELD, CONTENDED };

static void lock(struct pl_crew *crew)
{
    uint32_t seen = FREE;
    /* Acquire on success: partner is unlock's release, here and below. */
    if (PL_LIKELY(atomic_compare_exchange_strong_explicit(
            &crew->lock, &seen, HELD, memory_order_acquire, memory_order_relaxed)))
        return;
    for (int i = 0; i < 64; i++) {
        pl__relax();
        seen = FREE;
        if (atomic_compare_exchange_weak_explicit(&crew->lock, &seen, HELD, memory_order_acquire,
                                                  memory_order_relaxed))
            return;
    }
    while (atomic_exchange_explicit(&crew->lock, CONTENDED, memory_order_acquire) != FREE)
        /* Whatever ends the sleep, the next look tells. */
        (void)crew->sys->futex_wait((uint32_t *)&crew->lock, CONTENDED, -1);
}

static void unlock(struct pl_crew *crew)
{
    if (atomic_exchange_explicit(&crew->lock, FREE, memory_order_release) == CONTENDED)
        (void)crew->sys->futex_wake((uint32_t *)&crew->lock, 1);
}

/* ---- berths ---- */

int pl_berth_sleep(const struct pl_sys *sys, struct pl_berth *berth, int64_t timeout_ns)
{
    int64_t end = timeout_ns < 0 ? -1 : sys->now() + timeout_ns;
    uint32_t seen = PL_BERTH_READY;
    /* Acquire on failure: called. It may be asleep by name from an earlier entry. */
    if (!atomic_compare_exchange_strong_explicit(&berth->word, &seen, PL_BERTH_ASLEEP,
                                                 memory_order_acquire, memory_order_acquire) &&
        seen == PL_BERTH_CALLED)
        return 0;
    for (;;) {
        int64_t left = -1;
        if (end >= 0) {
            left = end - sys->now();
            if (left <= 0)
                return -ETIMEDOUT;
        }
        int error = sys->futex_wait((uint32_t *)&berth->word, PL_BERTH_ASLEEP, left);
        if (pl_berth_called(berth))
            return 0;
        if (error == -EINTR)
            return -EINTR;
    }
}

void pl_berth_call(const struct pl_sys *sys, struct pl_berth *berth)
{
    /* Release: what the caller did comes before; partner is pl_berth_called's load. The memory
     * may be gone right after this; waking an address that nobody sleeps at is harmless. */
    if (atomic_exchange_explicit(&berth->word, PL_BERTH_CALLED, memory_order_release) !=
        PL_BERTH_READY)
        (void)sys->futex_wake((uint32_t *)&berth->word, 1);
}

/* Calls a berth, but leaves it to the caller to wake one that dozes: its word, else NULL. */
static uint32_t *call_late(const struct pl_sys *sys, struct pl_berth *berth)
{
    uint32_t *word = (uint32_t *)&berth->word;
    /* Release: as in pl_berth_call. */
    uint32_t was = atomic_exchange_explicit(&berth->word, PL_BERTH_CALLED, memory_order_release);
    if (was == PL_BERTH_ASLEEP)
        (void)sys->futex_wake(word, 1);
    return was == PL_BERTH_DOZING ? word : NULL;
}

/* Sleeps for a moment, from which it gets up without being woken: true when it was called. */
static bool doze(const struct pl_sys *sys, struct pl_berth *berth)
{
    uint32_t seen = PL_BERTH_READY;
    /* Acquire on failure, here and below: called. */
    if (!atomic_compare_exchange_strong_explicit(&berth->word, &seen, PL_BERTH_DOZING,
                                                 memory_order_acquire, memory_order_acquire))
        return true;
    int64_t end = sys->now() + DOZE_NS;
    for (int64_t left = DOZE_NS; left > 0; left = end - sys->now()) {
        /* Whatever ends the sleep, the look tells. */
        (void)sys->futex_wait((uint32_t *)&berth->word, PL_BERTH_DOZING, left);
        if (pl_berth_called(berth))
            return true;
    }
    seen = PL_BERTH_DOZING;
    return !atomic_compare_exchange_strong_explicit(&berth->word, &seen, PL_BERTH_READY,
                                                    memory_order_acquire, memory_order_acquire);
}

/* ---- the line ---- */

/* The band for a priority; NULL without memory. */
static struct pl_band *band_for(struct pl_crew *crew, int32_t priority)
{
    if (PL_LIKELY(priority == 0))
        return &crew->common;
    uint32_t at = 0;
    while (at < crew->nbands && crew->bands[at]->priority > priority)
        at++;
    if (at < crew->nbands && crew->bands[at]->priority == priority)
        return crew->bands[at];
    if (crew->nbands == crew->bands_cap) {
        uint32_t cap = crew->bands_cap == 0 ? 8 : crew->bands_cap * 2;
        struct pl_band **grown = crew->sys->realloc(crew->bands, cap * sizeof(struct pl_band *));
        if (grown == NULL)
            return NULL;
        crew->bands = grown;
        crew->bands_cap = cap;
    }
    struct pl_band *band = crew->sys->alloc(sizeof(*band));
    if (band == NULL)
        return NULL;
    *band = (struct pl_band){.priority = priority};
    memmove(&crew->bands[at + 1], &crew->bands[at], (crew->nbands - at) * sizeof(band));
    crew->bands[at] = band;
    crew->nbands++;
    return band;
}

static uint32_t load_queued(const struct pl_crew *crew)
{
    /* Relaxed: under the lock it is exact, elsewhere a hint. */
    return atomic_load_explicit(&crew->queued, memory_order_relaxed);
}

static void set_queued(struct pl_crew *crew, uint32_t queued)
{
    atomic_store_explicit(&crew->queued, queued, memory_order_relaxed);
}

static void count_busy(struct pl_crew *crew)
{
    /* Relaxed: a hint for those who think of spinning. */
    atomic_store_explicit(&crew->busy, crew->threads - crew->nidle - crew->looking,
                          memory_order_relaxed);
}

/* Takes a job off its band, and a band that is empty off the line. */
static void unlink_job(struct pl_crew *crew, struct pl_job *job)
{
    struct pl_band *band = job->band;
    if (job->prev != NULL)
        job->prev->next = job->next;
    else
        band->first = job->next;
    if (job->next != NULL)
        job->next->prev = job->prev;
    else
        band->last = job->prev;
    job->next = job->prev = NULL;
    job->band = NULL;
    set_queued(crew, load_queued(crew) - 1);
    if (band->first != NULL || band == &crew->common)
        return;
    uint32_t at = 0;
    while (crew->bands[at] != band)
        at++;
    crew->nbands--;
    memmove(&crew->bands[at], &crew->bands[at + 1], (crew->nbands - at) * sizeof(band));
    crew->sys->free(band);
}

static struct pl_job *first_job(struct pl_crew *crew)
{
    if (PL_LIKELY(crew->nbands == 0))
        return crew->common.first;
    /* A band that is there has jobs. */
    if (crew->bands[0]->priority > 0 || crew->common.first == NULL)
        return crew->bands[0]->first;
    return crew->common.first;
}

/* With the lock held: who waits first for room, off its list; the caller calls it. */
static struct pl_berth *next_for_room(struct pl_crew *crew)
{
    struct pl_berth *berth = crew->room_first;
    if (berth == NULL || load_queued(crew) >= crew->room)
        return NULL;
    crew->room_first = berth->next;
    if (crew->room_first == NULL)
        crew->room_last = NULL;
    return berth;
}

/* ---- the crew ---- */

int pl_crew_init(struct pl_crew *crew, const struct pl_crew_config *config)
{
    *crew = (struct pl_crew){
        .sys = config->sys != NULL ? config->sys : pl_sys_default(),
        .max = config->threads,
        .room = config->room,
        .cpus = config->cpus,
        .credit = CREDIT_MAX,
    };
    if (config->threads == 0)
        return -EINVAL;
    if (crew->cpus == 0) {
        cpu_set_t set;
        crew->cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
    }
    return 0;
}

void pl_crew_fini(struct pl_crew *crew)
{
    for (uint32_t i = 0; i < crew->nbands; i++)
        crew->sys->free(crew->bands[i]);
    if (crew->bands != NULL)
        crew->sys->free(crew->bands);
    crew->bands = NULL;
    crew->nbands = crew->bands_cap = 0;
}

/* With the lock held: an idle thread for a job that none of those who look will take, off the
 * list and to be called once the lock is free; or NULL. */
static struct pl_berth *rouse(struct pl_crew *crew)
{
    struct pl_berth *berth = crew->idle;
    if (berth == NULL || load_queued(crew) <= crew->looking)
        return NULL;
    crew->idle = berth->next;
    crew->nidle--;
    crew->looking++;
    crew->calls++;
    return berth;
}

/* With the lock held: sees to it that someone comes for what waits. PL_START, or PL_POSTED
 * with *berth set to one that is to be called once the lock is free, or NULL. */
static int summon(struct pl_crew *crew, struct pl_berth **berth)
{
    *berth = rouse(crew);
    if (*berth != NULL || load_queued(crew) <= crew->looking || crew->threads >= crew->max)
        return PL_POSTED;
    crew->threads++;
    crew->looking++;
    return PL_START;
}

/* pl_crew_post, but for the call of *berth, when that is not NULL. */
static int enter_line(struct pl_crew *crew, struct pl_job *job, int32_t priority, bool push,
                      struct pl_berth **berth)
{
    *berth = NULL;
    atomic_store_explicit(&crew->posts_on, this_cpu(), memory_order_relaxed); /* a hint */
    lock(crew);
    int result = 0;
    struct pl_band *band = NULL;
    if (crew->closed)
        result = PL_ECLOSED;
    else if (crew->room != 0 && !push && load_queued(crew) >= crew->room)
        result = -EAGAIN;
    else if ((band = band_for(crew, priority)) == NULL)
        result = -ENOMEM;
    if (result < 0) {
        unlock(crew);
        return result;
    }
    job->band = band;
    job->next = NULL;
    job->prev = band->last;
    if (band->last != NULL)
        band->last->next = job;
    else
        band->first = job;
    band->last = job;
    set_queued(crew, load_queued(crew) + 1);
    result = summon(crew, berth);
    unlock(crew);
    return result;
}

int pl_crew_post(struct pl_crew *crew, struct pl_job *job, int32_t priority, bool push)
{
    struct pl_berth *berth;
    int result = enter_line(crew, job, priority, push, &berth);
    if (berth != NULL)
        pl_berth_call(crew->sys, berth);
    return result;
}

int pl_crew_post_late(struct pl_crew *crew, struct pl_job *job, int32_t priority, bool push,
                      uint32_t **word)
{
    struct pl_berth *berth;
    int result = enter_line(crew, job, priority, push, &berth);
    *word = berth == NULL ? NULL : call_late(crew->sys, berth);
    /* Relaxed: a hint. */
    atomic_store_explicit(&crew->doze, true, memory_order_relaxed);
    return result;
}

bool pl_crew_want(struct pl_crew *crew)
{
    struct pl_berth *berth;
    lock(crew);
    int result = summon(crew, &berth);
    unlock(crew);
    if (berth != NULL)
        pl_berth_call(crew->sys, berth);
    return result == PL_START;
}

uint32_t pl_crew_unstart(struct pl_crew *crew)
{
    lock(crew);
    crew->looking--;
    uint32_t left = --crew->threads;
    /* A job may have been posted that this one was to take. */
    struct pl_berth *berth = rouse(crew);
    unlock(crew);
    if (berth != NULL)
        pl_berth_call(crew->sys, berth);
    return left;
}

bool pl_crew_withdraw(struct pl_crew *crew, struct pl_job *job)
{
    lock(crew);
    bool there = job->band != NULL;
    struct pl_berth *berth = NULL;
    if (there) {
        unlink_job(crew, job);
        berth = next_for_room(crew);
    }
    unlock(crew);
    if (berth != NULL)
        pl_berth_call(crew->sys, berth);
    return there;
}

struct pl_job *pl_crew_revoke(struct pl_crew *crew)
{
    struct pl_berth *berth = NULL;
    lock(crew);
    struct pl_job *job = first_job(crew);
    if (job != NULL) {
        unlink_job(crew, job);
        berth = next_for_room(crew);
    }
    unlock(crew);
    if (berth != NULL)
        pl_berth_call(crew->sys, berth);
    return job;
}

int pl_crew_wait_room(struct pl_crew *crew, int64_t timeout_ns)
{
    struct pl_berth me;
    pl_berth_prepare(&me);
    lock(crew);
    bool closed = crew->closed;
    bool room = crew->room == 0 || load_queued(crew) < crew->room;
    if (!closed && !room) {
        if (crew->room_last != NULL)
            crew->room_last->next = &me;
        else
            crew->room_first = &me;
        crew->room_last = &me;
    }
    unlock(crew);
    if (closed)
        return PL_ECLOSED;
    if (room)
        return 0;
    int error = pl_berth_sleep(crew->sys, &me, timeout_ns);
    if (error == 0)
        return 0;
    /* Off the list, unless someone has taken it off to call: that call must not be lost, nor
     * find this frame gone. */
    lock(crew);
    struct pl_berth *before = NULL;
    struct pl_berth *at = crew->room_first;
    while (at != NULL && at != &me) {
        before = at;
        at = at->next;
    }
    if (at != NULL) {
        if (before != NULL)
            before->next = me.next;
        else
            crew->room_first = me.next;
        if (crew->room_last == &me)
            crew->room_last = before;
    }
    unlock(crew);
    if (at != NULL)
        return error;
    while (pl_berth_sleep(crew->sys, &me, -1) < 0)
        continue; /* the call is under way */
    return 0;
}

/* Calls all in a list that the caller has taken over. */
static void call_all(struct pl_crew *crew, struct pl_berth *berth)
{
    while (berth != NULL) {
        struct pl_berth *next = berth->next;
        pl_berth_call(crew->sys, berth);
        berth = next;
    }
}

void pl_crew_close(struct pl_crew *crew)
{
    lock(crew);
    crew->closed = true;
    struct pl_berth *idle = crew->idle;
    struct pl_berth *blocked = crew->room_first;
    crew->idle = crew->room_first = crew->room_last = NULL;
    crew->looking += crew->nidle;
    crew->nidle = 0;
    unlock(crew);
    call_all(crew, idle);
    call_all(crew, blocked);
}

bool pl_crew_closed(struct pl_crew *crew)
{
    lock(crew);
    bool closed = crew->closed;
    unlock(crew);
    return closed;
}

void pl_crew_resize(struct pl_crew *crew, uint32_t max)
{
    struct pl_berth *called = NULL;
    lock(crew);
    crew->max = max;
    /* Who lay down first is let go first: the others are warm. */
    uint32_t excess = crew->threads > max ? crew->threads - max : 0;
    if (excess > crew->nidle)
        excess = crew->nidle;
    struct pl_berth **at = &crew->idle;
    for (uint32_t keep = crew->nidle - excess; keep > 0; keep--)
        at = &(*at)->next;
    called = *at;
    *at = NULL;
    crew->nidle -= excess;
    crew->looking += excess;
    unlock(crew);
    call_all(crew, called);
}

int pl_crew_await(struct pl_crew *crew, struct pl_berth *berth, int64_t timeout_ns)
{
    pl_crew_kick(crew);
    if (pl_berth_called(berth))
        return 0;
    /* Relaxed: a guess. One core is for the thread that does the job, and one for the first
     * who waits; more that wait have nothing to gain. */
    uint32_t busy = atomic_load_explicit(&crew->busy, memory_order_relaxed);
    uint32_t none = 0;
    /* Relaxed: it orders nothing. */
    if (busy <= 1 && crew->cpus >= 2 &&
        atomic_load_explicit(&crew->rests_on, memory_order_relaxed) != this_cpu() &&
        atomic_compare_exchange_strong_explicit(&crew->watchers, &none, 1, memory_order_relaxed,
                                                memory_order_relaxed)) {
        int64_t until = crew->sys->now() + SPIN_NS;
        bool called = false;
        do {
            for (int i = 0; i < 16 && !called; i++) {
                pl__relax();
                called = pl_berth_called(berth);
            }
        } while (!called && crew->sys->now() < until);
        atomic_store_explicit(&crew->watchers, 0, memory_order_relaxed);
        if (called)
            return 0;
    }
    return pl_berth_sleep(crew->sys, berth, timeout_ns);
}

/* ---- a thread of the crew ---- */

void pl_crew_look(struct pl_crew *crew)
{
    lock(crew);
    crew->looking++;
    count_busy(crew);
    unlock(crew);
}

struct pl_job *pl_crew_take(struct pl_crew *crew)
{
    struct pl_berth *berth = NULL;
    lock(crew);
    struct pl_job *job = first_job(crew);
    if (job != NULL) {
        unlink_job(crew, job);
        berth = next_for_room(crew);
        crew->looking--;
        count_busy(crew);
    }
    unlock(crew);
    if (berth != NULL)
        pl_berth_call(crew->sys, berth);
    return job;
}

/* What a look at the line brought, or would have: where it brings nothing time and again, so
 * many rests do without it. Threads race for the count; it only has to move. */
static void settle_credit(struct pl_crew *crew, int32_t credit, bool found)
{
    if (credit <= 0)
        credit = credit < 0 ? credit + 1 : 2;
    else if (found)
        credit = credit < CREDIT_MAX - 2 ? credit + 2 : CREDIT_MAX;
    else
        credit = credit > 1 ? credit - 1 : -CREDIT_MAX;
    atomic_store_explicit(&crew->credit, credit, memory_order_relaxed);
}

/* Looks at the line for a while, if a core is to spare and that has been worth it. */
static void spin(struct pl_crew *crew)
{
    /* Relaxed, all of these: guesses, and what they lead to is checked under the lock. One
     * core is for who posts. */
    if (atomic_load_explicit(&crew->busy, memory_order_relaxed) + 2 > crew->cpus ||
        atomic_load_explicit(&crew->posts_on, memory_order_relaxed) == this_cpu())
        return;
    int32_t credit = atomic_load_explicit(&crew->credit, memory_order_relaxed);
    if (credit <= 0) {
        settle_credit(crew, credit, false);
        return;
    }
    uint32_t none = 0;
    if (!atomic_compare_exchange_strong_explicit(&crew->spinners, &none, 1, memory_order_relaxed,
                                                 memory_order_relaxed))
        return; /* one is enough */
    uint32_t kicks = atomic_load_explicit(&crew->kicks, memory_order_relaxed);
    int64_t until = crew->sys->now() + SPIN_NS;
    int64_t seen = -1;
    bool found = false;
    for (;;) {
        bool kicked = false;
        for (int i = 0; i < 16 && !kicked; i++) {
            pl__relax();
            found = load_queued(crew) != 0;
            kicked = found && atomic_load_explicit(&crew->kicks, memory_order_relaxed) != kicks;
        }
        if (kicked)
            break;
        int64_t now = crew->sys->now();
        if (!found && now >= until)
            break;
        if (found && seen < 0)
            seen = now;
        if (found && now - seen >= KICK_NS)
            break;
    }
    atomic_store_explicit(&crew->spinners, 0, memory_order_relaxed);
    settle_credit(crew, credit, found);
}

int pl_crew_rest(struct pl_crew *crew, int64_t timeout_ns)
{
    /* Relaxed, as all about spinning. */
    atomic_store_explicit(&crew->rests_on, this_cpu(), memory_order_relaxed);
    if (load_queued(crew) == 0)
        spin(crew);
    struct pl_berth me;
    pl_berth_prepare(&me);
    lock(crew);
    if (load_queued(crew) != 0 || crew->closed || crew->threads > crew->max) {
        unlock(crew);
        return 0;
    }
    me.next = crew->idle;
    crew->idle = &me;
    crew->nidle++;
    crew->looking--;
    count_busy(crew);
    unlock(crew);
    if (atomic_load_explicit(&crew->doze, memory_order_relaxed) &&
        (timeout_ns < 0 || timeout_ns > DOZE_NS) && doze(crew->sys, &me))
        return 0;
    int error;
    while ((error = pl_berth_sleep(crew->sys, &me, timeout_ns)) == -EINTR)
        continue; /* signals are other threads' business */
    if (error == 0)
        return 0;
    /* Time is over; unless it is being called this very moment, it gets up by itself. */
    lock(crew);
    struct pl_berth **at = &crew->idle;
    while (*at != NULL && *at != &me)
        at = &(*at)->next;
    bool there = *at != NULL;
    if (there) {
        *at = me.next;
        crew->nidle--;
        crew->looking++;
    }
    unlock(crew);
    if (there)
        return -ETIMEDOUT;
    while (pl_berth_sleep(crew->sys, &me, -1) < 0)
        continue;
    return 0;
}

bool pl_crew_leave(struct pl_crew *crew)
{
    lock(crew);
    bool may = load_queued(crew) == 0;
    if (may) {
        crew->looking--;
        crew->threads--;
        count_busy(crew);
    }
    unlock(crew);
    return may;
}

bool pl_crew_excess(struct pl_crew *crew)
{
    struct pl_berth *berth = NULL;
    lock(crew);
    bool may = crew->threads > crew->max;
    if (may) {
        crew->looking--;
        crew->threads--;
        /* A job may have been posted that this one was to take, and others sleep. */
        berth = rouse(crew);
        count_busy(crew);
    }
    unlock(crew);
    if (berth != NULL)
        pl_berth_call(crew->sys, berth);
    return may;
}

void pl_crew_quit(struct pl_crew *crew)
{
    lock(crew);
    crew->threads--;
    count_busy(crew);
    unlock(crew);
}
