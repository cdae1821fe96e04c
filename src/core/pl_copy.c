/* pl_copy.c - copies into memory that another process will read.
 *
 * An ordinary store to memory that is in no cache reads the line first, and a large copy pushes
 * everything else out of the caches besides. From some size on, where the reader would not find
 * the bytes in a cache anyhow, stores that go past the caches are faster for the writer and no
 * slower for the reader. memcpy of the C library does so, too, but from a size on that is derived
 * from the whole machine's last cache, of which a virtual machine has a small part.
 */
#include "pl_pool.h"

#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>

#define STREAM_MIN (UINT64_C(8) << 20)
#define LINE 64

static void stream(char *to, const char *from, size_t lines)
{
    for (; lines > 0; lines--, to += LINE, from += LINE) {
        __m128i a = _mm_loadu_si128((const void *)from);
        __m128i b = _mm_loadu_si128((const void *)(from + 16));
        __m128i c = _mm_loadu_si128((const void *)(from + 32));
        __m128i d = _mm_loadu_si128((const void *)(from + 48));
        _mm_stream_si128((void *)to, a);
        _mm_stream_si128((void *)(to + 16), b);
        _mm_stream_si128((void *)(to + 32), c);
        _mm_stream_si128((void *)(to + 48), d);
    }
    /* Such stores are not ordered with others: who is told of the copy must find it. */
    _mm_sfence();
}
#endif

void pl_copy(void *to, const void *from, size_t len)
{
#if defined(__x86_64__)
    if (len >= STREAM_MIN) {
        size_t head = (size_t)(-(uintptr_t)to & (LINE - 1));
        size_t body = (len - head) & ~(size_t)(LINE - 1);
        memcpy(to, from, head);
        stream((char *)to + head, (const char *)from + head, body / LINE);
        memcpy((char *)to + head + body, (const char *)from + head + body, len - head - body);
        return;
    }
#endif
    memcpy(to, from, len);
}
