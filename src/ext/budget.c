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
 * Sections: slots, what the kernel counts, the monitor, the interrupt, the call.
 */
#include "budget.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The low bits of a slot's word; the rest is a ticket. */
enum {
    IDLE = 0,    /* no budget runs */
    ARMED = 1,   /* one runs */
    CLAIMED = 2, /* the monitor is setting an asynchronous exception */
    FIRED = 3,   /* it has set it */
    STATE = 3,
};

#define LOOK_MIN INT64_C(1000000)  /* ns between two looks, at least */
#define LOOK_MAX INT64_C(5000000)  /* and at most */
#define LOOK_BUDGETS 4             /* in between: so many times the shortest budget */
#define LOOKS_IDLE 8               /* so many looks without a call, and the monitor parks */
#define RETRY INT64_C(100000)      /* ns until the next try when one was put off */
#define COUNTS_OLD INT64_C(250000) /* ns that a thread's counts are good for */
#define FRAMES_MAX 100000          /* stack frames that are looked at */

struct plait_monitor {
    /* The module's state, each slot in use, the thread and each pending call share it. */
    _Atomic int refs;
    pthread_mutex_t lock; /* guards what follows; never held while waiting for the interpreter */
    pthread_cond_t wake;
    struct plait_slot *_Atomic slots; /* owns; only ever grows, at its head */
    bool running;
    bool stop;
    bool over;           /* the interpreter ends: `stop` stays */
    _Atomic bool parked; /* partner of the exchange in `arm` */
    _Atomic int64_t look;
    pthread_t thread;
    PyInterpreterState *interp; /* borrows: the thread is stopped before it ends */
    PyObject *over_budget;      /* borrows from the module's state, likewise */

    /* The slot that was asked for last; the interpreter's lock guards them. */
    PyThreadState *last_tstate;
    struct plait_slot *last_slot;
};

/* ---- slots ---- */

/* Makes the lock and the condition, in a child over those that a lost thread may hold. */
static int monitor_reset(struct plait_monitor *m)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0)
        return -1;
    int error = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    if (error == 0)
        error = pthread_cond_init(&m->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    if (error != 0)
        return -1;
    if (pthread_mutex_init(&m->lock, NULL) == 0)
        return 0;
    (void)pthread_cond_destroy(&m->wake);
    return -1;
}

static struct plait_monitor *monitor_new(struct plait_state *state)
{
    struct plait_monitor *m = PyMem_RawCalloc(1, sizeof *m);
    if (m == NULL)
        return NULL;
    atomic_init(&m->refs, 1);
    atomic_init(&m->look, LOOK_MAX);
    m->interp = PyInterpreterState_Get();
    m->over_budget = state->over_budget; // borrowed
    if (monitor_reset(m) < 0) {
        PyMem_RawFree(m);
        return NULL;
    }
    return m;
}

static void monitor_share(struct plait_monitor *m)
{
    /* Relaxed: whoever shares holds a reference already. */
    (void)atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
}

static void monitor_release(struct plait_monitor *m)
{
    /* Releases what this holder wrote, and acquires what the others did, before the end. */
    if (atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) != 1)
        return;
    struct plait_slot *slot = atomic_load_explicit(&m->slots, memory_order_relaxed);
    while (slot != NULL) {
        struct plait_slot *next = slot->next;
        PyMem_RawFree(slot);
        slot = next;
    }
    (void)pthread_cond_destroy(&m->wake);
    (void)pthread_mutex_destroy(&m->lock);
    PyMem_RawFree(m);
}

static const char capsule_name[] = "plait._core.slot";

/* The thread ends: its slot is for the next one. */
static void drop_slot(PyObject *capsule)
{
    struct plait_slot *slot = PyCapsule_GetPointer(capsule, capsule_name);
    if (slot == NULL) {
        PyErr_Clear();
        return;
    }
    struct plait_monitor *m = slot->monitor;
    if (m->last_slot == slot) {
        m->last_slot = NULL;
        m->last_tstate = NULL;
    }
    slot->tstate = NULL;
    /* Idle already, unless the thread was lost in a fork; tickets go on counting. */
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    atomic_store_explicit(&slot->word, word & ~(uint64_t)STATE, memory_order_relaxed);
    monitor_release(m);
}

static struct plait_slot *take_slot(struct plait_monitor *m, PyThreadState *tstate)
{
    struct plait_slot *slot = atomic_load_explicit(&m->slots, memory_order_relaxed);
    while (slot != NULL && slot->tstate != NULL)
        slot = slot->next;
    if (slot == NULL) {
        slot = PyMem_RawCalloc(1, sizeof *slot);
        if (slot == NULL)
            return NULL;
        slot->monitor = m;
        slot->next = atomic_load_explicit(&m->slots, memory_order_relaxed);
        /* Release: the monitor's acquire finds the slot complete. */
        atomic_store_explicit(&m->slots, slot, memory_order_release);
    }
    slot->tstate = tstate;
    slot->ident = PyThread_get_thread_ident();
    slot->top = NULL;
    slot->depth = 0;
    slot->counts.at = 0;
    atomic_store_explicit(&slot->aside, false, memory_order_relaxed);
    /* That the process's first thread is also the interpreter's main one is a guess, and
     * `on_pending` corrects it where an embedding program does otherwise. */
    /* Relaxed: whichever way the monitor takes, it checks again. */
    atomic_store_explicit(&slot->in_main,
                          m->interp == PyInterpreterState_Main() && syscall(SYS_gettid) == getpid(),
                          memory_order_relaxed);
    return slot;
}

static struct plait_slot *find_slot(struct plait_state *state, struct plait_monitor *m)
{
    PyThreadState *tstate = PyThreadState_Get();
    PyObject *dict = PyThreadState_GetDict(); // borrowed
    if (dict == NULL)
        return (struct plait_slot *)PyErr_NoMemory();
    PyObject *capsule = PyDict_GetItemWithError(dict, state->slot_key); // borrowed
    struct plait_slot *slot;
    if (capsule != NULL) {
        slot = PyCapsule_GetPointer(capsule, capsule_name);
        if (slot == NULL)
            return NULL;
    } else {
        if (PyErr_Occurred())
            return NULL;
        slot = take_slot(m, tstate);
        if (slot == NULL)
            return (struct plait_slot *)PyErr_NoMemory();
        capsule = PyCapsule_New(slot, capsule_name, drop_slot);
        if (capsule == NULL) {
            slot->tstate = NULL;
            return NULL;
        }
        monitor_share(m);
        int error = PyDict_SetItem(dict, state->slot_key, capsule);
        Py_DECREF(capsule);
        if (error < 0)
            return NULL;
    }
    m->last_slot = slot;
    m->last_tstate = tstate;
    return slot;
}

struct plait_slot *plait_slot_get(struct plait_state *state)
{
    struct plait_monitor *m = state->budget.monitor;
    if (m == NULL) {
        m = state->budget.monitor = monitor_new(state);
        if (m == NULL)
            return (struct plait_slot *)PyErr_NoMemory();
    }
#ifndef Py_GIL_DISABLED
    if (m->last_tstate == PyThreadState_Get())
        return m->last_slot;
#endif
    return find_slot(state, m);
}

void plait_budget_step_aside(struct plait_state *state, unsigned long ident, bool aside)
{
    struct plait_monitor *m = state->budget.monitor;
    if (m == NULL)
        return;
    /* Relaxed, all of these: the interpreter's lock orders them. */
    struct plait_slot *slot = atomic_load_explicit(&m->slots, memory_order_relaxed);
    for (; slot != NULL; slot = slot->next)
        if (slot->tstate != NULL && slot->ident == ident)
            atomic_store_explicit(&slot->aside, aside, memory_order_relaxed);
}

/* ---- what the kernel counts ---- */

static void read_counts(struct plait_counts *counts)
{
    struct timespec cpu;
    struct rusage usage;
    /* Neither can fail for this thread. The times in `usage` are a tick old. */
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    (void)getrusage(RUSAGE_THREAD, &usage);
    counts->cpu_ns = (int64_t)cpu.tv_sec * 1000000000 + cpu.tv_nsec;
    counts->waits = usage.ru_nvcsw;
}

void plait_counts_begin(struct plait_slot *slot, int64_t now, struct plait_counts *begin)
{
    if (PL_UNLIKELY(now - slot->counts.at > COUNTS_OLD)) {
        read_counts(&slot->counts);
        slot->counts.at = now;
    }
    *begin = slot->counts;
}

int64_t plait_counts_cost(const struct plait_counts *begin, int64_t took)
{
    struct plait_counts end;
    read_counts(&end);
    /* Waits that came before the call count, too, if its counts are old: then the clock decides,
     * as it does in a child that has been forked meanwhile and is counted anew. */
    int64_t ran = end.cpu_ns - begin->cpu_ns;
    return end.waits == begin->waits && ran >= 0 && ran < took ? ran : took;
}

/* ---- the monitor ---- */

static void fire(struct plait_monitor *m, struct plait_slot *slot, uint64_t word,
                 PyThreadState **tstate);

/* Looks at every slot. Returns when to look again; *busy tells whether a call runs or has
 * begun since the last look. */
static int64_t look_round(struct plait_monitor *m, uint64_t *seen, bool *busy,
                          PyThreadState **tstate)
{
    int64_t now = plait_budget_now();
    int64_t next = now + atomic_load_explicit(&m->look, memory_order_relaxed);
    uint64_t sum = 0;
    /* Acquire: partner of the release in take_slot. */
    struct plait_slot *slot = atomic_load_explicit(&m->slots, memory_order_acquire);
    for (; slot != NULL; slot = slot->next) {
        /* seq_cst: partner of the exchange in `arm`, see `park`. Also acquires the deadline. */
        uint64_t word = atomic_load_explicit(&slot->word, memory_order_seq_cst);
        sum += word >> 2;
        if ((word & STATE) == IDLE)
            continue;
        *busy = true;
        int64_t deadline = atomic_load_explicit(&slot->deadline, memory_order_relaxed);
        if (deadline > now) {
            if (deadline < next)
                next = deadline;
            continue;
        }
        /* The deadline may be that of a call that came after this word: fire copes. */
        fire(m, slot, word, tstate);
    }
    if (sum != *seen)
        *busy = true;
    *seen = sum;
    return next;
}

static void *monitor_main(void *arg)
{
    struct plait_monitor *m = arg;
    PyThreadState *tstate = NULL;
    uint64_t seen = 0;
    int idle = 0;
    (void)prctl(PR_SET_NAME, "plait-budget"); /* only a name */
    (void)prctl(PR_SET_TIMERSLACK, 10000UL);  /* without it deadlines are met 50 us later */
    (void)pthread_mutex_lock(&m->lock);
    while (!m->stop) {
        bool busy = false;
        (void)pthread_mutex_unlock(&m->lock);
        int64_t next = look_round(m, &seen, &busy, &tstate);
        (void)pthread_mutex_lock(&m->lock);
        if (m->stop)
            break;
        idle = busy ? 0 : idle + 1;
        if (idle >= LOOKS_IDLE) {
            /* Park. Either this store comes before the load of `parked` in `arm`, which then
             * wakes us, or the exchange there comes before the look below, which finds it. */
            atomic_store_explicit(&m->parked, true, memory_order_seq_cst);
            (void)pthread_mutex_unlock(&m->lock);
            (void)look_round(m, &seen, &busy, &tstate);
            (void)pthread_mutex_lock(&m->lock);
            while (!busy && !m->stop && atomic_load_explicit(&m->parked, memory_order_relaxed))
                (void)pthread_cond_wait(&m->wake, &m->lock);
            atomic_store_explicit(&m->parked, false, memory_order_relaxed);
            idle = 0;
            continue;
        }
        struct timespec until = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000};
        (void)pthread_cond_timedwait(&m->wake, &m->lock, &until);
    }
    (void)pthread_mutex_unlock(&m->lock);
    if (tstate != NULL) {
        PyEval_RestoreThread(tstate);
        PyThreadState_Clear(tstate);
        PyThreadState_DeleteCurrent();
    }
    monitor_release(m);
    return NULL;
}

static void monitor_stop(struct plait_monitor *m)
{
    (void)pthread_mutex_lock(&m->lock);
    bool running = m->running;
    m->stop = true;
    m->running = false;
    (void)pthread_cond_signal(&m->wake);
    (void)pthread_mutex_unlock(&m->lock);
    if (!running)
        return;
    /* It may be waiting for the interpreter's lock. */
    Py_BEGIN_ALLOW_THREADS(void) pthread_join(m->thread, NULL);
    Py_END_ALLOW_THREADS
}

static int monitor_start(struct plait_state *state, struct plait_monitor *m);

/* atexit: before the interpreter takes away what the thread uses. */
static PyObject *budget_stop(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    struct plait_state *state = plait_state_of_module(module);
    if (state->budget.monitor != NULL) {
        state->budget.monitor->over = true;
        monitor_stop(state->budget.monitor);
    }
    Py_RETURN_NONE;
}

/* A fork copies one thread only. The monitor ends before it, and begins anew behind it, so
 * that the child finds no lock that is held for ever. Other threads may run while it ends, and
 * fork, too, or begin budgets: `forking` counts forks and keeps the monitor from being started. */
static PyObject *budget_before_fork(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    struct plait_state *state = plait_state_of_module(module);
    struct plait_monitor *m = state->budget.monitor;
    state->budget.forking++;
    if (m != NULL && m->running) {
        monitor_stop(m);
        m->stop = m->over;
    }
    Py_RETURN_NONE;
}

/* The next call with a budget starts it; but one may be running now, perhaps the very one that
 * forks. The slots of threads that the child does not have were given up before this. */
static int resume_after_fork(struct plait_state *state)
{
    struct plait_monitor *m = state->budget.monitor;
    if (m == NULL || state->budget.forking > 0)
        return 0;
    /* Relaxed: the interpreter's lock is held, and no monitor is there to race with. */
    struct plait_slot *slot = atomic_load_explicit(&m->slots, memory_order_relaxed);
    for (; slot != NULL; slot = slot->next)
        if ((atomic_load_explicit(&slot->word, memory_order_relaxed) & STATE) != IDLE)
            break;
    return slot == NULL ? 0 : monitor_start(state, m);
}

static PyObject *budget_after_fork(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    struct plait_state *state = plait_state_of_module(module);
    /* 0 where they were registered between the two. */
    if (state->budget.forking > 0)
        state->budget.forking--;
    if (resume_after_fork(state) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* In the child there is no monitor, whatever was under way in the parent's other threads. */
static PyObject *budget_after_fork_in_child(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    struct plait_state *state = plait_state_of_module(module);
    struct plait_monitor *m = state->budget.monitor;
    state->budget.forking = 0;
    if (m == NULL)
        Py_RETURN_NONE;
    if (m->running) {
        /* One that was started too late to be ended: its locks are given up with it. */
        m->running = false;
        if (monitor_reset(m) < 0)
            return PyErr_NoMemory();
    }
    m->stop = m->over;
    if (resume_after_fork(state) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static int register_hooks(struct plait_state *state)
{
    if (state->budget.hooked)
        return 0;
    PyObject *atexit = PyImport_ImportModule("atexit");
    if (atexit == NULL)
        return -1;
    PyObject *told = PyObject_CallMethod(atexit, "register", "O", state->budget_stop);
    Py_DECREF(atexit);
    if (told == NULL)
        return -1;
    Py_DECREF(told);
    PyObject *os = PyImport_ImportModule("os");
    PyObject *hook = os == NULL ? NULL : PyObject_GetAttrString(os, "register_at_fork");
    PyObject *none = hook == NULL ? NULL : PyTuple_New(0);
    PyObject *kwargs = none == NULL
                           ? NULL
                           : Py_BuildValue("{s:O,s:O,s:O}", "before", state->budget_before_fork,
                                           "after_in_parent", state->budget_after_fork,
                                           "after_in_child", state->budget_after_fork_in_child);
    told = kwargs == NULL ? NULL : PyObject_Call(hook, none, kwargs);
    Py_XDECREF(os);
    Py_XDECREF(hook);
    Py_XDECREF(none);
    Py_XDECREF(kwargs);
    if (told == NULL)
        return -1;
    Py_DECREF(told);
    state->budget.hooked = true;
    return 0;
}

/* Starts the thread, on the first call with a budget. After `stop` there is none any more:
 * budgets of code that runs at the interpreter's exit do not end. */
static int monitor_start(struct plait_state *state, struct plait_monitor *m)
{
    if (m->stop)
        return 0;
    if (register_hooks(state) < 0)
        return -1;
    /* Importing may have let another thread in. After a fork it is started anew. */
    if (m->running || m->stop || state->budget.forking > 0)
        return 0;
    atomic_store_explicit(&m->parked, false, memory_order_relaxed); /* no thread reads it yet */
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the others */
    monitor_share(m);
    int error = pthread_create(&m->thread, NULL, monitor_main, m);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        monitor_release(m);
        (void)plait_raise(state, -error, "cannot start the thread that watches budgets");
        return -1;
    }
    m->running = true;
    return 0;
}

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
    monitor_release(m);
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

static void fire(struct plait_monitor *m, struct plait_slot *slot, uint64_t word,
                 PyThreadState **tstate)
{
    if (!atomic_load_explicit(&slot->in_main, memory_order_relaxed)) {
        fire_async(m, slot, word, tstate);
        return;
    }
    /* Acquire: partner of the store in on_pending. */
    if (atomic_exchange_explicit(&slot->posted, true, memory_order_acquire))
        return;
    monitor_share(m);
    if (Py_AddPendingCall(on_pending, slot) < 0) {
        atomic_store_explicit(&slot->posted, false, memory_order_relaxed);
        monitor_release(m); /* the queue is full: at the next look */
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

static void wake(struct plait_monitor *m)
{
    (void)pthread_mutex_lock(&m->lock);
    atomic_store_explicit(&m->parked, false, memory_order_relaxed);
    (void)pthread_cond_signal(&m->wake);
    (void)pthread_mutex_unlock(&m->lock);
}

/* Makes b's deadline the one that the monitor watches. */
static void arm(struct plait_slot *slot, struct plait_budget *b)
{
    struct plait_monitor *m = slot->monitor;
    atomic_store_explicit(&slot->deadline, b->deadline, memory_order_relaxed);
    /* seq_cst: releases the deadline, and comes before the load of `parked`: partner of the
     * monitor's store there. Tickets never come twice in the life of a slot. */
    (void)atomic_exchange_explicit(&slot->word, ++slot->tickets << 2 | ARMED, memory_order_seq_cst);
    if (atomic_load_explicit(&m->parked, memory_order_seq_cst))
        wake(m);
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
        if (monitor_start(state, m) < 0) {
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
        wake(m);
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
            wake(m);
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

static PyMethodDef budget_methods[] = {
    {"_budget_stop", budget_stop, METH_NOARGS, NULL},
    {"_budget_before_fork", budget_before_fork, METH_NOARGS, NULL},
    {"_budget_after_fork", budget_after_fork, METH_NOARGS, NULL},
    {"_budget_after_fork_in_child", budget_after_fork_in_child, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

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
    state->slot_key = PyUnicode_InternFromString("plait._core.slot");
    if (state->slot_key == NULL || PyModule_AddFunctions(module, budget_methods) < 0)
        return -1;
    state->budget_stop = PyObject_GetAttrString(module, "_budget_stop");
    state->budget_before_fork = PyObject_GetAttrString(module, "_budget_before_fork");
    state->budget_after_fork = PyObject_GetAttrString(module, "_budget_after_fork");
    state->budget_after_fork_in_child =
        PyObject_GetAttrString(module, "_budget_after_fork_in_child");
    if (state->budget_stop == NULL || state->budget_before_fork == NULL)
        return -1;
    if (state->budget_after_fork == NULL)
        return -1;
    return state->budget_after_fork_in_child == NULL ? -1 : 0;
}

void plait_budget_clear(struct plait_state *state)
{
    plait_free_list_clear(&state->budget.calls);
    struct plait_monitor *m = state->budget.monitor;
    state->budget.monitor = NULL;
    if (m == NULL)
        return;
    monitor_stop(m);
    monitor_release(m);
}
