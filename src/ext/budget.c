/* budget.c - interrupts a Python function when its budget of time is used up.
 *
 * One thread for each interpreter, the monitor, watches a word and a deadline in the slot of
 * every thread that runs budgeted calls. To arm costs a clock reading and an exchange; to end,
 * another of each; no system call, and no lock. The monitor looks every few milliseconds while
 * calls come, sleeps until the exact deadline when one is under way, and parks when none has
 * come for a while: then the first call wakes it. So does a call that nothing is known about
 * (`eager`), whose end is to be met exactly; one that has always been short may be met a few
 * milliseconds late, should it be long for once.
 *
 * How the interrupt reaches the thread, and why it cannot meet anything else
 *
 * 1. A thread that handles pending calls (the main one of the main interpreter). The monitor
 *    adds a pending call, for which it needs no interpreter lock. The interpreter runs it in
 *    that very thread, between two bytecodes, and there `on_pending` decides: does a budget run
 *    in this thread, is its deadline over by the clock now, is the function itself still on the
 *    stack? Only then it raises OverBudget. So the monitor is but an alarm clock; one that
 *    rings late, for a call that has ended, or twice, does nothing. (Before Python 3.13 the
 *    thread notices a pending call only when somebody wants the lock, too, so the monitor asks
 *    for it and the interrupt comes up to a switch interval later, as in 2.)
 *
 * 2. Any other thread. The monitor takes the interpreter's lock, claims the word with a
 *    compare-and-swap on the ticket that it saw, and sets an asynchronous exception. Whoever
 *    ends a call exchanges the word: when the monitor was first, the exception is taken back
 *    before any other bytecode runs in this thread. So again none outlives its call.
 *    It lands up to a switch interval (sys.getswitchinterval) later than in the main thread.
 *
 * - Between the function's return and the hand-over of its result no bytecode of this thread
 *   runs, and the budget is off before the first reference is dropped. Destructors of the
 *   function's own variables run in its return; `may_raise` finds the function gone from the
 *   stack, or a __del__ on it, and lets them be.
 * - `may_raise` also waits while an import, __enter__, __exit__, __del__ or a signal handler
 *   is on top of the function: what they guard would be left half done.
 * - C code is never interrupted: both ways act where the interpreter looks for such requests.
 *   C code that calls Python may meet the exception in there, as it may meet Ctrl+C.
 * - A call in which the exception was raised counts as interrupted, whatever it made of it:
 *   a function that swallows it may have computed nonsense. It runs again elsewhere, so there
 *   is one result, and it comes from an undisturbed run.
 * - Nested budgets: the tighter deadline is armed, and the exception belongs to its owner; an
 *   inner call that is not the owner passes it on.
 *
 * Sections: the interrupt, the call. The monitor and the slots are in budget_monitor.c.
 */
#include "budget_monitor.h"

#include <sched.h>
#include <signal.h>
#include <string.h>

#define LOOK_BUDGETS 4        /* between two looks: so many times the shortest budget */
#define RETRY INT64_C(100000) /* ns until the next try when one was put off */
#define FRAMES_MAX 100000     /* stack frames that are looked at */

/* ---- the interrupt ---- */

struct plait_budget {
    struct plait_budget *outer;
    struct plait_budget *owner; /* whose deadline is armed: this one, or one further out */
    int64_t deadline;
    int64_t length;
    PyObject *code;      /* owns: of the function that runs; NULL when it is not Python's own */
    PyFrameObject *base; /* owns: who calls a function without code; NULL when nobody does */
    bool raised;
};

/* The code that runs when fn is called. Borrowed; NULL when it is none of Python's. */
static PyObject *code_of(PyObject *fn)
{
    if (PyMethod_Check(fn))
        fn = PyMethod_GET_FUNCTION(fn);
    return PyFunction_Check(fn) ? PyFunction_GET_CODE(fn) : NULL;
}

/* The same for a budget: sees through partials and __call__. A new reference, or NULL. */
static PyObject *code_behind(PyObject *fn)
{
    PyObject *code = code_of(fn);
    if (PL_LIKELY(code != NULL) || PyCFunction_Check(fn))
        return Py_XNewRef(code);
    Py_INCREF(fn);
    while (code == NULL && strcmp(Py_TYPE(fn)->tp_name, "functools.partial") == 0) {
        PyObject *inner = PyObject_GetAttrString(fn, "func");
        if (inner == NULL)
            break;
        Py_SETREF(fn, inner);
        code = code_of(fn);
    }
    if (code == NULL && !PyErr_Occurred() && !PyType_Check(fn)) {
        PyObject *call = PyObject_GetAttrString((PyObject *)Py_TYPE(fn), "__call__");
        if (call != NULL)
            Py_SETREF(fn, call);
        code = code_of(fn);
    }
    PyErr_Clear();
    Py_XINCREF(code);
    Py_DECREF(fn);
    return code;
}

/* Whether `code` belongs to a handler of a signal. */
static int handles_signal(PyObject *signal_module, PyObject *code)
{
    for (int i = 1; i < NSIG; i++) {
        PyObject *handler = PyObject_CallMethod(signal_module, "getsignal", "i", i);
        if (handler == NULL) {
            PyErr_Clear(); /* not a signal that Python knows */
            continue;
        }
        if (handler == Py_None || PyLong_Check(handler)) { /* none of Python's, or the default */
            Py_DECREF(handler);
            continue;
        }
        PyObject *inner = PyObject_GetAttrString(handler, "func"); /* of functools.partial */
        if (inner != NULL)
            Py_SETREF(handler, inner);
        else
            PyErr_Clear();
        bool same = code_of(handler) == code;
        Py_DECREF(handler);
        if (same)
            return 1;
    }
    return 0;
}

static bool is_shielded(PyCodeObject *code)
{
    static const char *const names[] = {"__del__", "__enter__", "__exit__"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (PyUnicode_CompareWithASCIIString(code->co_name, names[i]) == 0)
            return true;
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    if (file == NULL) {
        PyErr_Clear();
        return false;
    }
    return strncmp(file, "<frozen importlib", 17) == 0;
}

/* Whether the exception may be raised in what this thread runs now: the function must be on
 * the stack, and on top of it nothing that must not be left half done. Of a function without
 * code, what is above its caller counts: that is Python that it has called, or a destructor.
 * Errors count as no. */
static bool may_raise(PyThreadState *tstate, const struct plait_budget *b)
{
    PyFrameObject *frame = PyThreadState_GetFrame(tstate);
    PyObject *signal_module = NULL;
    bool found = false;
    for (int i = 0; frame != NULL && i < FRAMES_MAX; i++) {
        if (frame == b->base) { /* at the top of the stack: nothing of the function's runs */
            found = i > 0;
            break;
        }
        PyCodeObject *running = PyFrame_GetCode(frame);
        found = (PyObject *)running == b->code;
        bool shielded = !found && is_shielded(running);
        if (!found && !shielded && i < 8) {
            if (signal_module == NULL)
                signal_module = PyImport_ImportModule("_signal");
            shielded = signal_module == NULL || handles_signal(signal_module, (PyObject *)running);
        }
        Py_DECREF(running);
        if (found || shielded)
            break;
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
        found = frame == NULL && b->code == NULL && b->base == NULL; /* C called it */
    }
    Py_XDECREF(frame);
    Py_XDECREF(signal_module);
    if (PyErr_Occurred())
        PyErr_Clear();
    return found;
}

/* Runs in the thread that handles pending calls, between two bytecodes. */
static int on_pending(void *arg)
{
    struct plait_slot *slot = arg;
    struct plait_monitor *m = slot->monitor;
    int result = 0;
    struct plait_budget *owner = NULL;
    if (slot->tstate != PyThreadState_Get())
        atomic_store_explicit(&slot->in_main, false,
                              memory_order_relaxed); /* no main thread: the other way, then */
    else if (slot->top != NULL)
        owner = slot->top->owner;
    int64_t now = plait_budget_now();
    if (owner != NULL && now >= owner->deadline) {
        if (may_raise(slot->tstate, owner)) {
            owner->raised = true;
            owner->deadline = now + owner->length; /* again, in case it is swallowed */
            PyErr_SetNone(m->over_budget);
            result = -1;
        } else {
            owner->deadline = now + RETRY;
        }
        /* Relaxed: an old value only makes the monitor ring once more. */
        atomic_store_explicit(&slot->deadline, owner->deadline, memory_order_relaxed);
    }
    /* Release: partner of the exchange in fire. */
    atomic_store_explicit(&slot->posted, false, memory_order_release);
    plait_monitor_release(m);
    return result;
}

/* Takes the interpreter's lock for the monitor's thread; false without memory. */
static bool attach(struct plait_monitor *m, PyThreadState **tstate)
{
    if (*tstate == NULL && (*tstate = PyThreadState_New(m->interp)) == NULL)
        return false;
    PyEval_RestoreThread(*tstate);
    return true;
}

/* Sets the exception from the monitor's thread, for the call with this word and no other. */
static void fire_async(struct plait_monitor *m, struct plait_slot *slot, uint64_t word,
                       PyThreadState **tstate)
{
    if (!attach(m, tstate))
        return; /* no memory: at the next look */
    uint64_t expected = word;
    uint64_t ticket = word & ~(uint64_t)STATE;
    int64_t now = plait_budget_now();
    /* Acquire: the deadline read below is that of this ticket, or of none. Fails when the call
     * has ended meanwhile. */
    if (atomic_compare_exchange_strong_explicit(&slot->word, &expected, ticket | CLAIMED,
                                                memory_order_acq_rel, memory_order_relaxed)) {
        int64_t deadline = atomic_load_explicit(&slot->deadline, memory_order_relaxed);
        bool due = deadline <= now;
        bool aside = atomic_load_explicit(&slot->aside, memory_order_relaxed);
#ifndef Py_GIL_DISABLED
        /* Its frames stand still while this thread has the lock. Whoever claimed the word
         * keeps the budget's frame in C from being left. */
        bool allowed = due && !aside && may_raise(slot->tstate, slot->top->owner);
#else
        bool allowed = due && !aside;
#endif
        if (allowed)
            allowed = PyThreadState_SetAsyncExc(slot->ident, m->over_budget) == 1;
        if (due)
            atomic_store_explicit(&slot->deadline, now + (allowed ? LOOK_MAX : RETRY),
                                  memory_order_relaxed);
        /* Release: partner of the exchange in `disarm`. */
        atomic_store_explicit(&slot->word, allowed ? (ticket | FIRED) : word, memory_order_release);
    }
    (void)PyEval_SaveThread();
}

void plait_budget_fire(struct plait_monitor *m, struct plait_slot *slot, uint64_t word,
                       PyThreadState **tstate)
{
    if (!atomic_load_explicit(&slot->in_main, memory_order_relaxed)) {
        fire_async(m, slot, word, tstate);
        return;
    }
    /* Acquire: partner of the store in on_pending. */
    if (atomic_exchange_explicit(&slot->posted, true, memory_order_acquire))
        return;
    plait_monitor_share(m);
    if (Py_AddPendingCall(on_pending, slot) < 0) {
        atomic_store_explicit(&slot->posted, false, memory_order_relaxed);
        plait_monitor_release(m); /* the queue is full: at the next look */
        return;
    }
#if PY_VERSION_HEX < 0x030d0000
    /* Before 3.13 the main thread is told about a pending call of another thread only together
     * with something else: here, that this thread wants the interpreter's lock. */
    if (attach(m, tstate))
        (void)PyEval_SaveThread();
#endif
}

/* ---- the call ---- */

/* Makes b's deadline the one that the monitor watches. */
static void arm(struct plait_slot *slot, struct plait_budget *b)
{
    struct plait_monitor *m = slot->monitor;
    atomic_store_explicit(&slot->deadline, b->deadline, memory_order_relaxed);
    /* seq_cst: releases the deadline, and comes before the load of `parked`: partner of the
     * monitor's store there. Tickets never come twice in the life of a slot. */
    (void)atomic_exchange_explicit(&slot->word, ++slot->tickets << 2 | ARMED, memory_order_seq_cst);
    if (atomic_load_explicit(&m->parked, memory_order_seq_cst))
        plait_monitor_wake(m);
}

/* Ends the watch: after it, no exception for this thread is under way. Returns whether one
 * had been set. */
static bool disarm(struct plait_slot *slot)
{
    for (;;) {
        uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
        if ((word & STATE) == CLAIMED) {
            /* Only where threads run Python at the same time, or let others in on the way:
             * the monitor needs the interpreter to go on. */
            Py_BEGIN_ALLOW_THREADS(void) sched_yield();
            Py_END_ALLOW_THREADS continue;
        }
        /* acq_rel: partner of the monitor's compare-and-swap and of its store of FIRED. */
        if (!atomic_compare_exchange_weak_explicit(&slot->word, &word, word & ~(uint64_t)STATE,
                                                   memory_order_acq_rel, memory_order_relaxed))
            continue;
        if ((word & STATE) != FIRED)
            return false;
        /* Taken back, if still there; what has come in its place is not ours to take. */
        if (!atomic_load_explicit(&slot->aside, memory_order_relaxed))
            (void)PyThreadState_SetAsyncExc(slot->ident, NULL);
        return true;
    }
}

/* Whether the exception that is set is one that ends more than this function. */
static bool must_pass(PyObject *over_budget)
{
    return PyErr_Occurred() && !PyErr_ExceptionMatches(over_budget) &&
           !PyErr_ExceptionMatches(PyExc_Exception) && !PyErr_ExceptionMatches(PyExc_GeneratorExit);
}

int plait_budget_call(struct plait_state *state, struct plait_slot *slot, PyObject *fn,
                      PyObject *const *args, size_t nargsf, PyObject *kwnames, int64_t length,
                      bool eager, PyObject **result, int64_t *took)
{
    struct plait_monitor *m = slot->monitor;
    if (!m->running) {
        if (plait_monitor_start(state, m) < 0) {
            *result = NULL;
            *took = 0;
            return 0;
        }
    }
    int64_t look = length > LOOK_MAX / LOOK_BUDGETS ? LOOK_MAX : length * LOOK_BUDGETS;
    if (look < LOOK_MIN)
        look = LOOK_MIN;
    if (look < atomic_load_explicit(&m->look, memory_order_relaxed))
        atomic_store_explicit(&m->look, look, memory_order_relaxed);
    /* Before the time is taken: waking somebody is no work of the function's. Relaxed: `arm`
     * looks again. */
    if (atomic_load_explicit(&m->parked, memory_order_relaxed))
        plait_monitor_wake(m);
    int64_t start = plait_budget_now();
    struct plait_budget b = {
        .outer = slot->top,
        .owner = &b,
        .deadline = start + length,
        .length = length,
        .code = code_behind(fn),
    };
    if (PL_UNLIKELY(b.code == NULL))
        b.base = PyThreadState_GetFrame(PyThreadState_Get());
    if (b.outer != NULL && b.outer->owner->deadline <= b.deadline)
        b.owner = b.outer->owner;
    if (b.owner == &b && b.outer != NULL && disarm(slot)) {
        /* The outer budget's time is over just now. */
        b.outer->owner->raised = true;
        PyErr_SetNone(m->over_budget);
        atomic_store_explicit(&slot->deadline, start + LOOK_MAX, memory_order_relaxed);
        arm(slot, b.outer->owner);
        Py_XDECREF(b.code);
        Py_XDECREF(b.base);
        *result = NULL;
        *took = 0;
        return 0;
    }
    slot->top = &b;
    if (b.owner == &b) {
        arm(slot, &b);
        if (eager)
            plait_monitor_wake(m);
    }
    slot->depth++;
    *result = PyObject_Vectorcall(fn, args, nargsf, kwnames);
    /* From here to the end of the watch no bytecode of this thread runs. */
    slot->depth--;
    slot->top = b.outer;
    if (b.owner == &b) {
        if (disarm(slot))
            b.raised = true;
        if (b.outer != NULL)
            arm(slot, b.outer->owner);
    }
    *took = plait_budget_now() - start;
    Py_XDECREF(b.code);
    Py_XDECREF(b.base);
    if (!b.raised || must_pass(m->over_budget))
        return 0;
    PyErr_Clear();
    Py_CLEAR(*result);
    return 1;
}

PyDoc_STRVAR(over_budget_doc,
             "Raised in a function whose budget of time is used up.\n\n"
             "It is no Exception: let it pass. The call's result is dropped, whatever the\n"
             "function does with it, and the function runs again in another process.");

int plait_budget_exec(PyObject *module, struct plait_state *state)
{
    state->over_budget =
        PyErr_NewExceptionWithDoc("plait.OverBudget", over_budget_doc, PyExc_BaseException, NULL);
    if (state->over_budget == NULL ||
        PyModule_AddObjectRef(module, "OverBudget", state->over_budget) < 0)
        return -1;
    return plait_monitor_exec(module, state);
}
