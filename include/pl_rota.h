/* pl_rota.h - whose turn it is: processes that accept from one listening socket.
 *
 * The board is memory that all of them share. Each process has a seat on it and writes that
 * seat only; it reads the others' to see whether it has taken more than its share. Nothing
 * here waits or locks, and what it says is advice: who dies at any moment leaves a seat that
 * the others stop to look at, and no connection depends on it.
 */
#ifndef PL_ROTA_H
#define PL_ROTA_H

#include "pl_sys.h"

#include <stdatomic.h>

#define PL_ROTA_SEATS 512

enum pl_rota_state {
    PL_ROTA_FREE,
    PL_ROTA_SERVING,
    PL_ROTA_LEAVING, /* accepts no more, and brings to an end what it has */
};

struct pl_rota_seat {
    _Atomic uint32_t state; /* enum pl_rota_state */
    _Atomic uint32_t open;  /* descriptors that its loop watches: a measure of its load */
    _Atomic uint64_t accepted;
    _Atomic uint64_t turns; /* as `accepted`, but what happened before it came counts as equal */
    _Atomic int64_t beat;   /* when its loop was last seen to turn, CLOCK_MONOTONIC; 0: never */
    char padding[PL_CACHE_LINE - 32];
};

struct pl_rota_board {
    uint32_t seats;
    char padding[PL_CACHE_LINE - sizeof(uint32_t)];
    struct pl_rota_seat seat[];
};

/* What a process knows. */
struct pl_rota {
    const struct pl_sys *sys;    /* borrows */
    struct pl_rota_board *board; /* owns the mapping; the memory is shared */
    uint32_t me;                 /* PL_ROTA_SEATS: no seat */
    /* Seats that were waited for in vain: the turns (and 1) that they had then, and how often in
     * a row. With PL_ROTA_PATIENCE they are counted out until they take a connection. */
    uint64_t seen[PL_ROTA_SEATS];
    uint8_t vain[PL_ROTA_SEATS];
};

/* Makes the board; processes forked later share it. -EINVAL for 0 seats or more than
 * PL_ROTA_SEATS, -ENOMEM. */
int pl_rota_init(struct pl_rota *rota, const struct pl_sys *sys, uint32_t seats) PL_MUST_CHECK;
void pl_rota_fini(struct pl_rota *rota);

/* This process takes a seat that nobody has; -EINVAL when there is none of that number. */
int pl_rota_sit(struct pl_rota *rota, uint32_t seat) PL_MUST_CHECK;
/* Its turns count from now on: as many as the one that has had the fewest. */
void pl_rota_join(struct pl_rota *rota);
/* It accepts no more. Does nothing without a seat. */
void pl_rota_leave(struct pl_rota *rota);
/* Its loop has turned. `open`: descriptors that it watches. */
void pl_rota_beat(struct pl_rota *rota, int64_t now, uint32_t open);
/* Frees a seat, whose process is gone. */
void pl_rota_clear(struct pl_rota *rota, uint32_t seat);

/* A connection was accepted while the loop watches `open` descriptors. `waited`: it queued
 * until now, although this process had stepped aside. Whether this process is ahead of
 * another and should leave the next ones to it, for PL_ROTA_ASIDE. */
bool pl_rota_took(struct pl_rota *rota, uint32_t open, bool waited);

#define PL_ROTA_PATIENCE 32
#define PL_ROTA_ASIDE (PL_NSEC_PER_SEC / 1000)

#endif /* PL_ROTA_H */
