/* budget_monitor.c - the monitor of budgets, the slots of threads, and the counts of the kernel.
 *
 * See budget.c. The thread runs without the interpreter's lock, but where it interrupts; a slot is
 * never freed before the monitor, which all that may touch it share.
 *
 * Sections: slots, what the kernel counts, the monitor, the module's part.
 */
#include "budget_monitor.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOKS_IDLE 8               /* so many looks without a call, and the monitor parks */
#define COUNTS_OLD INT64_C(250000) /* ns that a thread's counts are good for */

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

void plait_monitor_share(struct plait_monitor *m)
{
    /* Relaxed: whoever shares holds a reference already. */
    (void)atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
}

void plait_monitor_release(struct plait_monitor *m)
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
    plait_monitor_release(m);
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
        plait_monitor_share(m);
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
        /* The deadline may be that of a call that came after this word: it copes. */
        plait_budget_fire(m, slot, word, tstate);
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
    plait_monitor_release(m);
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
    return slot == NULL ? 0 : plait_monitor_start(state, m);
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
int plait_monitor_start(struct plait_state *state, struct plait_monitor *m)
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
    plait_monitor_share(m);
    int error = pthread_create(&m->thread, NULL, monitor_main, m);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        plait_monitor_release(m);
        (void)plait_raise(state, -error, "cannot start the thread that watches budgets");
        return -1;
    }
    m->running = true;
    return 0;
}

void plait_monitor_wake(struct plait_monitor *m)
{
    (void)pthread_mutex_lock(&m->lock);
    atomic_store_explicit(&m->parked, false, memory_order_relaxed);
    (void)pthread_cond_signal(&m->wake);
    (void)pthread_mutex_unlock(&m->lock);
}

/* ---- the module's part ---- */

static PyMethodDef budget_methods[] = {
    {"_budget_stop", budget_stop, METH_NOARGS, NULL},
    {"_budget_before_fork", budget_before_fork, METH_NOARGS, NULL},
    {"_budget_after_fork", budget_after_fork, METH_NOARGS, NULL},
    {"_budget_after_fork_in_child", budget_after_fork_in_child, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int plait_monitor_exec(PyObject *module, struct plait_state *state)
{
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
    plait_monitor_release(m);
}
