/* pl_spin.c - how long one who runs dry looks on before it parks.
 *
 * A wake-up costs C: what lies between the ring and the first instruction of the woken. One
 * who spins for C before it parks never does worse than twice the best that it could have
 * done had it known when work comes (Karlin, Li, Manasse, Owicki: "Empirical studies of
 * competitive spinning for a shared-memory multiprocessor", SOSP 1991). That is for the worst
 * case. Here waits are learnt, as adaptive mutexes learn how long they are held:
 *
 *   - C is a moving average of measured wake-ups: who rings leaves the time at which it did;
 *   - the wait is a moving average of how long work took to come, from the moment of running
 *     dry to the ring (or to what spinning found); samples are clipped at 2 C;
 *   - while that average is at most C, spinning pays, and lasts for C; else it is left out.
 *
 * With samples clipped at 2 C the average is C when about half of the waits are short, which
 * is where the time that spinning saves equals the time that it wastes. Since waits are
 * measured when one parks at once, too, spinning begins again without being tried.
 *
 * Spinning is for cores that nobody wants. No one spins when there are more workers than
 * processors, or when those awake, with one for the parent, leave none. Of others on the
 * machine this knows nothing; so every few microseconds the spinner offers its core
 * (sched_yield). Comes it back late, then somebody else had use for it: the spinner parks, and
 * counts that as a wait that was long.
 *
 * State is private to its side: what a hostile worker can spoil is the time of a ring, which is
 * clipped.
 */
#include "pl_pool_internal.h"

#define WAKE_LEAST 1000
#define WAKE_FIRST 50000
#define LOOKS 16       /* between two looks at the clock */
#define OFFER_NS 4000  /* between two offers of the core */
#define TAKEN_NS 20000 /* an offer that took so long was accepted */

static int64_t clip(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

static int64_t average(int64_t old, int64_t sample)
{
    return old + (sample - old) / 8;
}

void pl__spin_init(struct pl_spin *spin, int64_t most)
{
    *spin = (struct pl_spin){.most = most, .wake_ns = clip(WAKE_FIRST, WAKE_LEAST, most)};
}

static void learn_wait(struct pl_spin *spin, int64_t wait)
{
    spin->wait_ns = average(spin->wait_ns, clip(wait, 0, 2 * spin->wake_ns));
}

void pl__spin_woke(struct pl_spin *spin, int64_t slept, int64_t rung, int64_t now)
{
    /* A ring from before the sleep was not for it, one from the future is a lie. */
    if (rung <= slept || rung > now) {
        learn_wait(spin, now - spin->since);
        return;
    }
    spin->wake_ns = average(spin->wake_ns, clip(now - rung, WAKE_LEAST, spin->most));
    learn_wait(spin, rung - spin->since);
}

bool pl__spin_pays(const struct pl_spin *spin)
{
    return spin->most > 0 && spin->wait_ns <= spin->wake_ns;
}

int pl__spin_until(const struct pl_sys *sys, int64_t now, int64_t end, bool offers,
                   bool (*found)(const void *arg), const void *arg)
{
    int64_t offer = now + OFFER_NS;
    while (now < end) {
        for (int i = 0; i < LOOKS; i++) {
            pl__relax();
            if (found(arg))
                return 1;
        }
        int64_t later = sys->now();
        if (!offers && later - now > TAKEN_NS)
            return found(arg) ? 1 : -1; /* somebody else had the core meanwhile */
        now = later;
        if (!offers || now < offer)
            continue;
        sys->yield();
        int64_t back = sys->now();
        if (back - now > TAKEN_NS)
            return -1;
        now = back;
        offer = now + OFFER_NS;
    }
    return 0;
}

bool pl__spin(struct pl_spin *spin, const struct pl_sys *sys, bool (*found)(const void *arg),
              const void *arg)
{
    spin->spins++;
    int seen = pl__spin_until(sys, spin->since, spin->since + spin->wake_ns, true, found, arg);
    if (seen > 0) {
        spin->hits++;
        learn_wait(spin, sys->now() - spin->since);
    } else if (seen < 0) {
        spin->wait_ns = 2 * spin->wake_ns;
        spin->crowded++;
    }
    return seen > 0 || (seen < 0 && found(arg));
}
