/* fib_hist.h - a histogram of latencies in fixed memory.
 *
 * Values are nanoseconds. Below PL_HIST_SUB each value has its own bucket; above, every
 * power of two is cut into PL_HIST_SUB equal buckets, so a bucket is at most 1/64 (1.6 %)
 * of the value wide, whatever the value is. Values past the last bucket are counted in it;
 * the exact maximum is kept beside.
 */
#ifndef FIB_HIST_H
#define FIB_HIST_H

#include <stdint.h>

#define PL_HIST_SUB_BITS 6
#define PL_HIST_SUB (1u << PL_HIST_SUB_BITS)
#define PL_HIST_MAX_BITS 40 /* 2^40 ns are 18 minutes */
#define PL_HIST_LEN ((PL_HIST_MAX_BITS - PL_HIST_SUB_BITS + 1) * PL_HIST_SUB)

struct pl_hist {
    uint64_t total;
    uint64_t sum;
    uint64_t max;
    uint64_t min; /* UINT64_MAX while empty */
    uint64_t counts[PL_HIST_LEN];
};

static inline void pl_hist_init(struct pl_hist *h)
{
    *h = (struct pl_hist){.min = UINT64_MAX};
}

static inline uint32_t pl_hist_index(uint64_t v)
{
    if (v < PL_HIST_SUB)
        return (uint32_t)v;
    uint32_t exp = 63u - (uint32_t)__builtin_clzll(v);
    if (exp >= PL_HIST_MAX_BITS)
        return PL_HIST_LEN - 1;
    uint32_t sub = (uint32_t)(v >> (exp - PL_HIST_SUB_BITS)) & (PL_HIST_SUB - 1);
    return (exp - PL_HIST_SUB_BITS + 1) * PL_HIST_SUB + sub;
}

/* The largest value that falls into a bucket. */
static inline uint64_t pl_hist_upper(uint32_t index)
{
    if (index < PL_HIST_SUB)
        return index;
    uint32_t shift = index / PL_HIST_SUB - 1;
    uint64_t sub = index % PL_HIST_SUB + PL_HIST_SUB;
    return ((sub + 1) << shift) - 1;
}

static inline void pl_hist_add(struct pl_hist *h, uint64_t v)
{
    h->total++;
    h->sum += v;
    if (v > h->max)
        h->max = v;
    if (v < h->min)
        h->min = v;
    h->counts[pl_hist_index(v)]++;
}

static inline void pl_hist_merge(struct pl_hist *into, const struct pl_hist *from)
{
    into->total += from->total;
    into->sum += from->sum;
    if (from->max > into->max)
        into->max = from->max;
    if (from->min < into->min)
        into->min = from->min;
    for (uint32_t i = 0; i < PL_HIST_LEN; i++)
        into->counts[i] += from->counts[i];
}

/* The smallest recorded value that at least per_100k / 100000 of all values do not exceed,
 * to the precision of its bucket. 0 when empty. */
static inline uint64_t pl_hist_percentile(const struct pl_hist *h, uint32_t per_100k)
{
    if (h->total == 0)
        return 0;
    uint64_t rank = (h->total * per_100k + 99999) / 100000;
    if (rank == 0)
        rank = 1;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < PL_HIST_LEN; i++) {
        seen += h->counts[i];
        if (seen >= rank) {
            uint64_t upper = pl_hist_upper(i);
            return upper < h->max && i != PL_HIST_LEN - 1 ? upper : h->max;
        }
    }
    return h->max;
}

#endif /* FIB_HIST_H */
