/* pl_base.h - what every part of the core shares: compiler helpers and error codes. */
#ifndef PL_BASE_H
#define PL_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#error "the core is C11; wrap it before including it from C++"
#endif

#define PL_MUST_CHECK __attribute__((warn_unused_result))
#define PL_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define PL_LIKELY(x) __builtin_expect(!!(x), 1)
#define PL_UNLIKELY(x) __builtin_expect(!!(x), 0)
/* Two fields that different threads or processes write are kept this far apart. */
#define PL_CACHE_LINE 64

#define PL_KERNEL(major, minor, patch) (((major) << 16) | ((minor) << 8) | (patch))

#define PL_CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define PL_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#define PL_NSEC_PER_SEC INT64_C(1000000000)

/* Our own codes, below the range of errno: X(name, value, text). */
#define PL_ERROR_MAP(X)                                                                            \
    X (PL_ECLOSED, -4097, "the object is closed")                                                  \
        X (PL_EFORKED, -4098, "the object belongs to another process (after fork)")                \
            X (PL_EPROTO, -4099, "the peer broke the protocol")                                    \
                X (PL_EWORKER, -4100, "the worker process died")                                   \
                    X (PL_ESTART, -4101, "a worker process could not be started")

enum pl_error {
#define X(name, value, text) name = (value),
    PL_ERROR_MAP(X)
#undef X
};

/* Text for a negative code of ours or -errno. Never NULL; a static string, or
 * strerrordesc_np's. Any thread. */
const char *pl_error_text(int code);

/* Name of a code ("EAGAIN", "PL_ECLOSED"). Never NULL. Any thread. */
const char *pl_error_name(int code);

/* "0.1.0": the version that the build was given. */
const char *pl_version(void);

#endif /* PL_BASE_H */
