/* fib_hist_test.c - the arithmetic of the load generator's histogram. */
#include "fib_hist.h"

#include <inttypes.h>
#include <stdio.h>

static int failures;

static void expect(const char *what, uint64_t got, uint64_t want)
{
    if (got == want)
        return;
    fprintf(stderr, "%s: got %" PRIu64 ", want %" PRIu64 "\n", what, got, want);
    failures++;
}

/* Buckets must tile the line: each value lies in its bucket, and the value after the
 * bucket's upper end lies in the next. */
static void buckets_tile(void)
{
    for (uint32_t i = 0; i + 1 < PL_HIST_LEN; i++) {
        uint64_t upper = pl_hist_upper(i);
        expect("upper end is inside", pl_hist_index(upper), i);
        expect("next value is in the next", pl_hist_index(upper + 1), i + 1);
        uint64_t lower = i == 0 ? 0 : pl_hist_upper(i - 1) + 1;
        if ((upper - lower) * PL_HIST_SUB > upper) {
            fprintf(stderr, "bucket %" PRIu32 " is wider than 1/64 of its value\n", i);
            failures++;
        }
    }
    expect("clamped", pl_hist_index(UINT64_MAX), PL_HIST_LEN - 1);
}

static void percentiles(void)
{
    static struct pl_hist h; /* Large for a stack; this program has one thread. */
    pl_hist_init(&h);
    expect("empty", pl_hist_percentile(&h, 50000), 0);
    /* 1..60 are exact, one bucket each. */
    for (uint64_t v = 1; v <= 60; v++)
        pl_hist_add(&h, v);
    expect("p0", pl_hist_percentile(&h, 0), 1);
    expect("p50", pl_hist_percentile(&h, 50000), 30);
    expect("p90", pl_hist_percentile(&h, 90000), 54);
    expect("p100", pl_hist_percentile(&h, 100000), 60);
    expect("min", h.min, 1);

    /* 999 of 1000 values are 10, one is a million: only p99.9+ may see it. */
    pl_hist_init(&h);
    for (int i = 0; i < 999; i++)
        pl_hist_add(&h, 10);
    pl_hist_add(&h, 1000000);
    expect("p99.9 of one in a thousand", pl_hist_percentile(&h, 99900), 10);
    expect("p99.99 of one in a thousand", pl_hist_percentile(&h, 99990), 1000000);
    expect("max is exact", h.max, 1000000);

    /* Values past the last bucket are still told exactly as the maximum. */
    pl_hist_add(&h, UINT64_C(1) << 45);
    expect("max past the end", pl_hist_percentile(&h, 100000), UINT64_C(1) << 45);

    static struct pl_hist other;
    pl_hist_init(&other);
    pl_hist_add(&other, 3);
    pl_hist_merge(&h, &other);
    expect("merged total", h.total, 1002);
    expect("merged min", h.min, 3);
}

int main(void)
{
    buckets_tile();
    percentiles();
    if (failures == 0)
        puts("histogram: ok");
    return failures == 0 ? 0 : 1;
}
