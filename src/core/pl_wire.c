/* pl_wire.c - taking a message apart without trusting it. Any thread. */
#include "pl_wire.h"

#include <string.h>

int pl_wire_open(struct pl_wire *wire, const void *data, uint64_t size)
{
    if (size < sizeof(wire->head))
        return PL_EPROTO;
    memcpy(&wire->head, data, sizeof(wire->head));
    const struct pl_wire_head *head = &wire->head;
    /* Four summands of less than 2^37 each: the sum cannot wrap around. */
    uint64_t table = (uint64_t)head->nbufs * sizeof(struct pl_wire_buf);
    if (sizeof(*head) + table + head->fn_len + head->body_len + head->inline_len != size)
        return PL_EPROTO;
    wire->table = (const unsigned char *)data + sizeof(*head);
    wire->code = wire->table + table;
    wire->body = wire->code + head->fn_len;
    wire->inlined = wire->body + head->body_len;
    wire->inline_left = head->inline_len;
    wire->next = 0;
    return 0;
}

int pl_wire_next(struct pl_wire *wire, struct pl_wire_buf *entry, const void **data)
{
    if (wire->next >= wire->head.nbufs)
        return 0;
    memcpy(entry, wire->table + (uint64_t)wire->next * sizeof(*entry), sizeof(*entry));
    wire->next++;
    *data = NULL;
    if (entry->block.offset != 0)
        return 1;
    if (entry->block.size > wire->inline_left)
        return PL_EPROTO;
    *data = wire->inlined;
    wire->inlined += entry->block.size;
    wire->inline_left -= (uint32_t)entry->block.size;
    return 1;
}
