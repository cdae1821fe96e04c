/* pl_bell.pml - the park-and-wake protocol of a pool, as a model for spin.
 *
 *     make model-check
 *
 * What is modelled, step by step as in the code: the claim of a task and the moving of the
 * head (pl_member_take), the finish and the look at `armed` (pl_member_done), spinning,
 * parking and the hungry knock (pl_member_wait), posting with its three ways of not ringing
 * (pl__bell_posted), ringing ahead of a post (pl_pool_expect, with EXPECT, where a worker may also
 * wake by a signal), the flush, the leader's arm-look-sleep, the submitter that finds the
 * board full, the helper that pays a wake-up which is owed, a worker that is killed between any
 * two of its steps, and its burial: by the leader, with a successor at once, or, where nobody
 * waits (UNWATCHED), by the helper, with a successor that is so late that the others must do.
 * Spin's memory is sequentially consistent, which is what the code asks for (seq_cst) wherever
 * one side writes one word and looks at another. What the code does after a second without news
 * (pl_pool_check) mends spoilt memory: the protocol does without, and so does the model. How
 * long one spins does not matter to it: a spin may end at any look.
 *
 * What is proved: no run ends with somebody asleep who should not be. Task 0 is long (but not
 * where nobody waits): it ends only when all others have been run, so a wake-up that comes
 * "when something else happens" is not in time, and shows as a deadlock. Each task ends exactly
 * once.
 *
 * Each BREAK_* leaves one step of the protocol out; spin must find that. The script that runs
 * this (tests/models/check) fails if it does not.
 */
#define NW 2        /* workers at a time */
#ifndef NT
#define NT 2        /* tasks: 2 or 3 */
#endif
#define BOARD 2     /* slots */
#ifndef KILLS
#define KILLS 1     /* workers that are killed */
#endif

#ifdef UNWATCHED
#define SUCCESSOR 0
#else
#define SUCCESSOR KILLS /* sits on a fresh seat */
#endif
#define SEATS (NW + SUCCESSOR)
#define LAST (SEATS - 1)

#define FREE 0
#define READY 1
#define CLAIMED 2
#define FINISHED 3
#define ENDED 4

#define ARM_NONE 0
#define ARM_ANY 1
#define ARM_DRY 2
#define ARM_SLOT 3

/* ---- shared memory ---- */
byte head, tail;
byte line[NT];
byte state[NT];
byte by[NT];         /* who claimed it: part of the state word */
bit told[NT];        /* in its worker's ring of finished slots */
byte bell[SEATS];
bit parked[SEATS];
bit spinning[SEATS];
byte armed;
bit hungry, closing;

/* ---- the kernel ---- */
bit eventfd;
bit sleeping[SEATS];    /* on its bell's futex */
bit killed[SEATS];
bit dead[SEATS];
bit pidfd[SEATS];       /* readable */

/* ---- the parent's private memory, guarded by the interpreter's lock ---- */
bit gil;
byte used;           /* slots */
byte submitted;      /* tasks: those below are on the board or were; then come queued ones */
byte queued;         /* the last `queued` of the submitted wait for room */
byte ended;
bit owed;
bit asleep;          /* the leader */
byte i;              /* of the thread that has the lock */
byte n;

#define LOCK atomic { gil == 0; gil = 1 }
#define UNLOCK gil = 0

/* All but the long task have been run; whether somebody has read their results is his affair. */
#define OTHERS_RAN (state[1] >= FINISHED && state[NT - 1] >= FINISHED)
#define TOLD (told[0] || told[1] || told[NT - 1])
#define WAITING (tail - head)
#define SPINNING (spinning[0] + spinning[1] + (SUCCESSOR * spinning[LAST]))
#define PARKED (parked[0] + parked[1] + (SUCCESSOR * parked[LAST]))

/* A ring: change the bell, then wake. */
inline ring(w)
{
    bell[w]++;
    sleeping[w] = 0
}

/* ring_one: look, take the bit out, and ring if it was there. */
inline ring_one()
{
    i = 0;
    do
    :: i < SEATS && parked[i] ->
        if
        :: atomic { parked[i] -> parked[i] = 0 }; ring(i); break
        :: atomic { !parked[i] -> i++ }
        fi
    :: i < SEATS && !parked[i] -> i++
    :: i == SEATS -> break
    od;
    i = 0
}

inline flush()
{
    owed = 0;
    n = WAITING;
    do
    :: n > SPINNING && PARKED > 0 -> ring_one(); n--
    :: else -> break
    od;
    n = 0
}

/* A task is about to be posted: one that is parked is rung already now, and counts as one that
 * spins. It may wake by itself at the same time (a signal). */
inline expect()
{
#ifdef EXPECT
    if
    :: else /* nobody to be called, or no need */
    :: WAITING == 0 && SPINNING == 0 && PARKED > 0 ->
        i = 0;
        do
        :: i < SEATS && parked[i] ->
#ifndef BREAK_EARLY
            spinning[i] = 1;
#endif
            if
            :: atomic { parked[i] -> parked[i] = 0 };
#ifdef BREAK_EARLY
                spinning[i] = 1;
#endif
                ring(i)
            :: atomic { !parked[i] -> skip }; spinning[i] = 0
            fi;
            break
        :: i < SEATS && !parked[i] -> i++
        :: i == SEATS -> break
        od;
        i = 0
    fi;
    /* The lock is let go while the bytes are copied. */
    UNLOCK;
    LOCK
#else
    skip
#endif
}

inline bell_posted()
{
    if
    :: PARKED == 0
    :: else ->
        if
        :: WAITING <= SPINNING
        :: else ->
            if
            :: PARKED < NW -> owed = 1 /* "it will be through in time" */
            :: ring_one()
            fi
        fi
    fi
}

inline post(t)
{
    d_step { line[tail] = t; state[t] = READY; tail++; used++ };
    bell_posted()
}

inline feed()
{
    do
    :: queued > 0 && used < BOARD -> post(submitted - queued); queued--
    :: else -> break
    od;
    if
    :: hungry != (queued > 0) -> hungry = (queued > 0)
    :: else
    fi
}

/* Takes what is finished; settling is atomic, since nobody else looks at these. */
inline collect()
{
    do
    :: atomic { told[0] -> told[0] = 0; assert(state[0] == FINISHED); state[0] = ENDED; used--; ended++ }
    :: atomic { told[1] -> told[1] = 0; assert(state[1] == FINISHED); state[1] = ENDED; used--; ended++ }
#if NT > 2
    :: atomic { told[2] -> told[2] = 0; assert(state[2] == FINISHED); state[2] = ENDED; used--; ended++ }
#endif
    :: !TOLD -> break
    od;
    feed()
}

inline bury_task(w, t)
{
    if
    :: (state[t] == CLAIMED || state[t] == FINISHED) && by[t] == w ->
        atomic { told[t] = 0; state[t] = ENDED; used--; ended++ }
    :: else
    fi
}

inline bury(w)
{
    if
    :: pidfd[w] ->
        pidfd[w] = 0;
        bury_task(w, 0);
        bury_task(w, 1);
#if NT > 2
        bury_task(w, 2);
#endif
        parked[w] = 0;
        spinning[w] = 0;
#if SUCCESSOR
        run Worker(LAST);
#endif
#ifndef BREAK_BURIAL
        flush();
#endif
        feed()
    :: else
    fi
}

/* ---- a worker ---- */

#ifdef BREAK_UNPARK
#define UNSPIN skip
#else
#define UNSPIN spinning[me] = 0
#endif

#define HAS_WORK (tail != head || closing)

proctype Worker(byte me)
{
    byte h, t, seen;
    bit mine, found;
    {
    skip;
take:
        h = head;
        t = tail;
        if
        :: h == t ->
            if
            :: closing -> goto out
            :: else -> goto dry
            fi
        :: else
        fi;
        t = line[h];
        atomic {
            if
            :: state[t] == READY -> state[t] = CLAIMED; by[t] = me; mine = 1
            :: else -> mine = 0
            fi
        };
        atomic {
            if
            :: head == h -> head = h + 1
            :: else
            fi
        };
        if
        :: !mine -> goto take
        :: else
        fi;

        /* The task. */
        if
#ifndef UNWATCHED
        :: t == 0 -> OTHERS_RAN
#endif
        :: else
        fi;

        state[t] = FINISHED;
        told[t] = 1;
        seen = armed;
        if
        :: seen == ARM_ANY || seen == ARM_SLOT + t ->
            atomic { seen = armed; armed = ARM_NONE };
            if
            :: seen != ARM_NONE -> eventfd = 1
            :: else
            fi
        :: else
        fi;
        seen = 0;
        goto take;

dry:
        if
        :: HAS_WORK -> goto take
        :: else
        fi;
#ifndef NO_SPINNING
        if
        :: true ->
            /* A core is idle: spin. */
            spinning[me] = 1;
            if
            :: HAS_WORK -> found = 1
            :: found = 0
            fi;
            spinning[me] = 0;
            if
            :: found -> found = 0; goto take
            :: else
            fi
        :: true
        fi;
#endif
        seen = bell[me];
        parked[me] = 1;
#ifndef BREAK_SECOND_LOOK
        if
        :: HAS_WORK -> parked[me] = 0; UNSPIN; seen = 0; goto take
        :: else
        fi;
#endif
        if
        :: hungry ->
            atomic { t = armed; armed = ARM_NONE };
            if
            :: t != ARM_NONE -> eventfd = 1
            :: else
            fi
        :: else
        fi;
        atomic {
            if
            :: bell[me] == seen -> sleeping[me] = 1
            :: else
            fi
        };
        sleeping[me] == 0;
        parked[me] = 0;
        UNSPIN;
        seen = 0;
        goto take
    } unless {
        killed[me] -> atomic { sleeping[me] = 0; dead[me] = 1; pidfd[me] = 1 }
    };
out:
    skip
}

/* ---- the parent's threads ---- */

/* Submits the tasks that are left. */
inline submit_all(left)
{
    do
    :: left > 0 ->
        left--;
        LOCK;
        expect();
        if
        :: (queued > 0 || used == BOARD) && TOLD -> collect()
        :: else
        fi;
        if
        :: queued == 0 && used < BOARD -> submitted++; post(submitted - 1)
        :: else ->
            submitted++;
            queued++;
            hungry = 1;
#ifndef BREAK_HUNGER
            /* A worker that finished between the look above and here, and found nobody
             * hungry, may have parked. */
            if
            :: TOLD -> collect()
            :: else
            fi
#endif
        fi;
#ifndef BREAK_DEBT
        if
        :: owed && asleep -> flush()
        :: else
        fi;
#endif
        UNLOCK
    :: left == 0 -> break
    od
}

inline close()
{
    closing = 1;
    if :: !dead[0] -> parked[0] = 0; ring(0) :: else fi;
    if :: !dead[1] -> parked[1] = 0; ring(1) :: else fi;
#if SUCCESSOR
    parked[LAST] = 0; ring(LAST);
#endif
}

/* Waits for the results of all tasks, in their order. */
proctype Leader()
{
    byte f;
#ifdef ALONE
    byte left = NT - 1;
    submit_all(left);
#endif
    do
    :: LOCK;
        collect();
        do
        :: f < NT && state[f] == ENDED -> f++
        :: else -> break
        od;
        if
        :: f == NT -> UNLOCK; break
        :: else
        fi;
        flush();
#ifdef BREAK_ARM
        if
        :: TOLD -> UNLOCK; goto again
        :: else
        fi;
#endif
        if
        :: state[f] == FREE -> armed = ARM_ANY
        :: else -> armed = ARM_SLOT + f
        fi;
#ifndef BREAK_ARM
        if
        :: TOLD -> UNLOCK; goto again
        :: else
        fi;
#endif
        asleep = 1;
        UNLOCK;
        (eventfd || pidfd[0] || pidfd[1]);
        eventfd = 0;
        LOCK;
        asleep = 0;
        bury(0);
        bury(1);
        UNLOCK;
again:
        skip
    od;
    LOCK;
    assert(ended == NT);
    close();
    UNLOCK
}

/* Nobody waits: all tasks are run all the same. */
proctype Judge()
{
    state[0] >= FINISHED && OTHERS_RAN;
    LOCK;
    close();
    UNLOCK
}

/* Another thread, which submits and does not come back. */
proctype Submitter()
{
#ifndef ALONE
    byte left = NT - 1;
    submit_all(left)
#else
    skip
#endif
}

/* Pays what is owed, after a moment, and buries the dead where nobody else does. */
proctype Helper()
{
#ifndef BREAK_DEBT
end:
    do
    :: owed ->
        LOCK;
        if
        :: owed -> flush()
        :: else
        fi;
        UNLOCK
#if defined(UNWATCHED) && !defined(BREAK_WATCH)
    :: pidfd[0] || pidfd[1] ->
        LOCK;
        bury(0);
        bury(1);
        UNLOCK
#endif
    od
#else
    skip
#endif
}

/* Wakes a worker that nobody has rung. */
proctype Signal()
{
    if
    :: sleeping[0] -> sleeping[0] = 0
    :: sleeping[1] -> sleeping[1] = 0
    :: closing
    fi
}

proctype Killer()
{
    if
    :: killed[0] = 1
    :: killed[1] = 1
    :: skip
    fi
}

init
{
    atomic {
        run Worker(0);
        run Worker(1);
        post(0);
        submitted = 1;
#ifdef UNWATCHED
        run Judge();
#else
        run Leader();
#endif
        run Submitter();
        run Helper();
#ifdef EXPECT
        run Signal();
#endif
#if KILLS
        run Killer()
#endif
    }
}
