/* pl_wire.h - how a message between processes is cut into its parts.
 *
 *     head, buffer table, function, body, small buffers one after the other
 *
 * The reader is for bytes that nobody vouches for, in memory that a hostile process may be
 * writing to at the same time: the head and each entry of the table are copied once and
 * checked, and no length is read twice.
 */
#ifndef PL_WIRE_H
#define PL_WIRE_H

#include "pl_pool.h"

struct pl_wire_head {
    uint32_t fn_len;
    uint32_t body_len;
    uint32_t nbufs;
    uint32_t inline_len; /* bytes of small buffers after the body */
};

struct pl_wire_buf {
    struct pl_block block; /* offset 0: `size` bytes of the small buffers */
    uint32_t readonly;     /* nonzero: nobody may write to it */
    uint32_t shared;       /* nonzero: others have it, too */
};

_Static_assert(sizeof(struct pl_wire_head) == 16, "the layout is shared");
_Static_assert(sizeof(struct pl_wire_buf) == 32, "the layout is shared");

struct pl_wire {
    struct pl_wire_head head;
    const unsigned char *table; /* borrows, all of these: the message */
    const unsigned char *code;
    const unsigned char *body;
    const unsigned char *inlined; /* of the next small buffer */
    uint32_t inline_left;
    uint32_t next; /* entry */
};

/* Takes a message apart; PL_EPROTO when the parts do not make up `size` bytes exactly. */
int pl_wire_open(struct pl_wire *wire, const void *data, uint64_t size) PL_MUST_CHECK;

/* The next buffer: 1 with *entry set, and *data where a small one lies (NULL for a block, which
 * the caller checks), 0 after the last, PL_EPROTO when it is not in the message. */
int pl_wire_next(struct pl_wire *wire, struct pl_wire_buf *entry, const void **data) PL_MUST_CHECK;

#endif /* PL_WIRE_H */
