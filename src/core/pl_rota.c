/* pl_rota.c - whose turn it is: processes that accept from one listening socket.
 *
 * Every process that waits for the socket may accept. One that has had more turns than
 * another, by more than a slack, or has more descriptors open, steps aside: it does not
 * wait for the socket for a moment. When the moment is over and connections still queue, it
 * takes one. Those that it has waited for many times in vain are busy or hang; they are
 * counted out until they accept again.
 */
#include "pl_rota.h"

#include <errno.h>
#include <string.h>

/* Turns that one may be ahead: few while few have been had, so that a handful of long
 * connections is shared out evenly; more later, so that stepping aside stays rare. */
#define SLACK_LEAST 4
#define SLACK_MOST 32
#define SLACK_SHARE 16 /* one for so many turns */

/* Turns that one who was busy may claim afterwards: with more, all would come to it for long. */
#define CREDIT 512

/* Open descriptors that one may have more than another: these, and a quarter. */
#define OPEN_SLACK 16

/* Each field has one writer, and nothing else is published through it: relaxed is enough
 * everywhere, but for `state` (see pl_rota_join). */
#define READ(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define WRITE(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)

int pl_rota_init(struct pl_rota *rota, const struct pl_sys *sys, uint32_t seats)
{
    if (seats == 0 || seats > PL_ROTA_SEATS)
        return -EINVAL;
    memset(rota, 0, sizeof(*rota));
    rota->sys = sys == NULL ? pl_sys_default() : sys;
    rota->me = PL_ROTA_SEATS;
    void *memory;
    size_t size = sizeof(struct pl_rota_board) + seats * sizeof(struct pl_rota_seat);
    int fd = rota->sys->memfd_create("plait-rota");
    if (fd < 0)
        return fd;
    int r = rota->sys->ftruncate(fd, (int64_t)size);
    if (r == 0)
        r = rota->sys->mmap_shared(fd, size, &memory);
    (void)rota->sys->close(fd); /* the mapping keeps the memory */
    if (r < 0)
        return r;
    rota->board = memory;
    rota->board->seats = seats;
    return 0;
}

void pl_rota_fini(struct pl_rota *rota)
{
    if (rota->board == NULL)
        return;
    size_t size = sizeof(struct pl_rota_board) + rota->board->seats * sizeof(struct pl_rota_seat);
    (void)rota->sys->munmap(rota->board, size); /* nothing to do about a failure */
    rota->board = NULL;
}

int pl_rota_sit(struct pl_rota *rota, uint32_t seat)
{
    if (seat >= rota->board->seats)
        return -EINVAL;
    rota->me = seat;
    return 0;
}

static struct pl_rota_seat *mine(struct pl_rota *rota)
{
    return rota->me == PL_ROTA_SEATS ? NULL : &rota->board->seat[rota->me];
}

/* Whether a seat's process is one to leave connections to. */
static bool counts(const struct pl_rota *rota, uint32_t i)
{
    const struct pl_rota_seat *seat = &rota->board->seat[i];
    /* acquire: pairs with pl_rota_join, whose turns it must see. */
    if (i == rota->me ||
        atomic_load_explicit(&seat->state, memory_order_acquire) != PL_ROTA_SERVING)
        return false;
    return rota->vain[i] < PL_ROTA_PATIENCE || rota->seen[i] != READ(seat->turns) + 1;
}

/* The fewest turns that another one has had, or `none`. */
static uint64_t fewest(const struct pl_rota *rota, uint64_t none)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < rota->board->seats; i++) {
        if (!counts(rota, i))
            continue;
        uint64_t turns = READ(rota->board->seat[i].turns);
        least = turns < least ? turns : least;
    }
    return least == UINT64_MAX ? none : least;
}

void pl_rota_join(struct pl_rota *rota)
{
    struct pl_rota_seat *seat = mine(rota);
    if (seat == NULL)
        return;
    memset(rota->vain, 0, sizeof(rota->vain));
    WRITE(seat->turns, fewest(rota, 0));
    /* release: pairs with counts(). */
    atomic_store_explicit(&seat->state, PL_ROTA_SERVING, memory_order_release);
}

void pl_rota_leave(struct pl_rota *rota)
{
    struct pl_rota_seat *seat = mine(rota);
    if (seat != NULL)
        WRITE(seat->state, PL_ROTA_LEAVING);
}

void pl_rota_beat(struct pl_rota *rota, int64_t now, uint32_t open)
{
    struct pl_rota_seat *seat = mine(rota);
    if (seat == NULL)
        return;
    WRITE(seat->beat, now);
    WRITE(seat->open, open);
}

void pl_rota_clear(struct pl_rota *rota, uint32_t i)
{
    if (i >= rota->board->seats)
        return;
    struct pl_rota_seat *seat = &rota->board->seat[i];
    WRITE(seat->state, PL_ROTA_FREE);
    WRITE(seat->open, 0);
    WRITE(seat->accepted, 0);
    WRITE(seat->turns, 0);
    WRITE(seat->beat, 0);
}

static uint64_t slack_for(uint64_t turns)
{
    uint64_t slack = turns / SLACK_SHARE;
    return slack < SLACK_LEAST ? SLACK_LEAST : slack > SLACK_MOST ? SLACK_MOST : slack;
}

bool pl_rota_took(struct pl_rota *rota, uint32_t open, bool waited)
{
    struct pl_rota_seat *seat = mine(rota);
    if (seat == NULL)
        return false;
    uint64_t turns = READ(seat->turns) + 1;
    WRITE(seat->accepted, READ(seat->accepted) + 1);
    WRITE(seat->open, open);

    uint64_t least = fewest(rota, turns);
    if (turns + CREDIT < least)
        turns = least - CREDIT;
    WRITE(seat->turns, turns);

    bool ahead = false;
    for (uint32_t i = 0; i < rota->board->seats; i++) {
        if (!counts(rota, i))
            continue;
        const struct pl_rota_seat *other = &rota->board->seat[i];
        uint64_t theirs = READ(other->turns);
        uint32_t load = READ(other->open);
        if (turns <= theirs + slack_for(theirs) && open <= load + load / 4 + OPEN_SLACK)
            continue;
        /* This one may have been waited for, and left its turn to be taken here. */
        if (rota->seen[i] != theirs + 1)
            rota->vain[i] = 0;
        rota->seen[i] = theirs + 1;
        if (waited && rota->vain[i] < PL_ROTA_PATIENCE)
            rota->vain[i]++;
        if (rota->vain[i] < PL_ROTA_PATIENCE)
            ahead = true;
    }
    return ahead;
}
