/* pool_figures.c - what a pool can tell about itself. */
#include "pool_parent.h"

/* {50: seconds, ...}, empty before the first task. */
static PyObject *percentiles(const struct plait_histogram *histogram)
{
    static const unsigned wanted[] = {50, 90, 99, 100};
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && histogram->n > 0 && i < PL_ARRAY_LEN(wanted); i++) {
        PyObject *key = PyLong_FromUnsignedLong(wanted[i]);
        PyObject *value =
            PyFloat_FromDouble(plait_histogram_percentile(histogram, wanted[i]) / 1e9);
        if (key == NULL || value == NULL || PyDict_SetItem(dict, key, value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

PyObject *plait_pool_figures(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    if (!plait_pool_usable(pool))
        return NULL;
    uint64_t spins = pool->core.spin.spins;
    uint64_t met = pool->core.spin.hits;
    for (uint32_t i = 0; i < pool->core.seats_high; i++) {
        const struct pl_seat *seat = pl_pool_place(&pool->core, i);
        if (seat == NULL)
            continue;
        /* Relaxed: a worker's word for it. */
        spins += atomic_load_explicit(&seat->spins, memory_order_relaxed);
        met += atomic_load_explicit(&seat->hits, memory_order_relaxed);
    }
    uint32_t parked = 0;
    for (int i = 0; i < PL_SEAT_WORDS; i++)
        parked += (uint32_t)__builtin_popcountll(
            atomic_load_explicit(&pool->core.share->parked[i], memory_order_relaxed));
    PyObject *waited = percentiles(&pool->waited);
    PyObject *ran = waited == NULL ? NULL : percentiles(&pool->ran);
    if (ran == NULL) {
        Py_XDECREF(waited);
        return NULL;
    }
    return Py_BuildValue(
        "{s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:L,s:K,s:K,s:K,s:K,s:K,s:L,s:K,s:K,s:N,s:N}", "posted",
        (unsigned long long)pool->core.posted, "finished", (unsigned long long)pool->core.finished,
        "queued", (unsigned long long)pool->queued, "outstanding",
        (unsigned long long)pool->outstanding, "wakes", (unsigned long long)pool->core.wakes,
        "arena_used", (unsigned long long)pool->core.heap.used, "parked", parked, "mean_ns",
        (long long)pool->core.mean_ns, "done", (unsigned long long)pool->ended_done, "failed",
        (unsigned long long)pool->ended_failed, "cancelled",
        (unsigned long long)pool->ended_cancelled, "timed_out",
        (unsigned long long)pool->ended_timed_out, "retried", (unsigned long long)pool->retried,
        "wake_ns", (long long)pool->core.wake_ns, "spins", (unsigned long long)spins, "spins_met",
        (unsigned long long)met, "waited", waited, "ran", ran);
}

/* What runs now: list of (seat, future, nanoseconds or -1). */
PyObject *plait_pool_running(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct plait_pool *pool = POOL(self);
    if (!plait_pool_usable(pool))
        return NULL;
    PyObject *list = PyList_New(0);
    for (uint32_t cell = 0; list != NULL && cell < pool->core.nslots; cell++) {
        uint32_t seat;
        int64_t since;
        if (!pl_pool_holder(&pool->core, cell, &seat, &since))
            continue;
        PyObject *item =
            Py_BuildValue("IOL", seat, pool->core.cells[cell].user,
                          (long long)(since == 0 ? -1 : pool->core.sys->now() - since));
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}
