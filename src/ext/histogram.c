/* histogram.c - durations counted in buckets that grow with them. */
#include "histogram.h"

#include "pl.h"

void plait_histogram_add(struct plait_histogram *histogram, int64_t ns)
{
    uint64_t value = ns < 0 ? 0 : (uint64_t)ns;
    unsigned bucket = (unsigned)value;
    if (value >= 4) {
        unsigned exponent = 63u - (unsigned)__builtin_clzll(value);
        bucket = exponent * 4 + (unsigned)(value >> (exponent - 2) & 3) - 4;
    }
    histogram->n++;
    histogram->count[bucket]++;
}

static double middle(unsigned bucket)
{
    if (bucket < 4)
        return bucket;
    unsigned exponent = bucket / 4 + 1;
    uint64_t width = UINT64_C(1) << (exponent - 2);
    return (double)((4 + bucket % 4) * width) + (double)width / 2;
}

double plait_histogram_percentile(const struct plait_histogram *histogram, unsigned percent)
{
    if (histogram->n == 0)
        return 0;
    uint64_t rank = (histogram->n * percent + 99) / 100;
    uint64_t seen = 0;
    unsigned bucket = 0;
    while (bucket < PL_ARRAY_LEN(histogram->count) - 1 && seen + histogram->count[bucket] < rank)
        seen += histogram->count[bucket++];
    return middle(bucket);
}
