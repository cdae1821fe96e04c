/* pl_base.c - error texts and the version. */
#include "pl_base.h"

#include <string.h>

const char *pl_error_text(int code)
{
    switch (code) {
#define X(name, value, text)                                                                       \
    case value:                                                                                    \
        return text;
        PL_ERROR_MAP(X)
#undef X
    default:
        break;
    }
    const char *text = code < 0 ? strerrordesc_np(-code) : NULL;
    return text != NULL ? text : "unknown error";
}

const char *pl_error_name(int code)
{
    switch (code) {
#define X(name, value, text)                                                                       \
    case value:                                                                                    \
        return #name;
        PL_ERROR_MAP(X)
#undef X
    default:
        break;
    }
    const char *name = code < 0 ? strerrorname_np(-code) : NULL;
    return name != NULL ? name : "unknown";
}

const char *pl_version(void)
{
    return PL_VERSION;
}
