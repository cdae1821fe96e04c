/* histogram.h - how often a duration came: what the figures of pools are made of. */
#ifndef PLAIT_HISTOGRAM_H
#define PLAIT_HISTOGRAM_H

#include <stdint.h>

/* Four buckets for each doubling of nanoseconds; any int64_t has one. */
struct plait_histogram {
    uint64_t n;
    uint32_t count[256];
};

void plait_histogram_add(struct plait_histogram *histogram, int64_t ns);
/* So many of a hundred took at most this many nanoseconds (the middle of a bucket); 0 when there
 * were none. */
double plait_histogram_percentile(const struct plait_histogram *histogram, unsigned percent);

#endif /* PLAIT_HISTOGRAM_H */
