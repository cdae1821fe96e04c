/* fuzz_wire.c - the reader of messages on arbitrary bytes, each at the end of its allocation. */
#include "pl_wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned char *copy = malloc(size == 0 ? 1 : size);
    if (copy == NULL)
        return 0;
    memcpy(copy, data, size);
    struct pl_wire wire;
    if (pl_wire_open(&wire, copy, size) == 0) {
        unsigned char sum = 0;
        struct pl_wire_buf entry;
        const void *small;
        for (uint32_t i = 0; i < wire.head.fn_len; i++)
            sum += wire.code[i];
        for (uint32_t i = 0; i < wire.head.body_len; i++)
            sum += wire.body[i];
        while (pl_wire_next(&wire, &entry, &small) == 1)
            for (uint64_t i = 0; small != NULL && i < entry.block.size; i++)
                sum += ((const unsigned char *)small)[i];
        copy[0] = sum; /* so that the reads are made */
    }
    free(copy);
    return 0;
}
