/* stop.c - StopIteration with a value, without making one each time.
 *
 * The interpreter runs what is awaited by tp_iternext, whose result comes in an exception. To
 * make one, raise it and take it apart costs more than most steps that end so.
 */
#include "stop.h"

#ifndef Py_GIL_DISABLED
/* Whether the instance that is kept is as new. Who caught it in Python has left a traceback on
 * it, which would grow with each use and keep frames alive. */
static bool is_clean(PyObject *kept)
{
    const PyBaseExceptionObject *e = (PyBaseExceptionObject *)kept;
    return e->traceback == NULL && e->context == NULL && e->cause == NULL && e->dict == NULL;
}
#endif

static PyObject *stop_with(struct plait_state *state, PyObject *value)
{
#ifndef Py_GIL_DISABLED
    PyObject *kept = state->stop;
    if (kept != NULL && Py_REFCNT(kept) == 1) {
        if (is_clean(kept)) {
            Py_XSETREF(((PyStopIterationObject *)kept)->value, Py_NewRef(value));
            return Py_NewRef(kept);
        }
        kept = NULL;
        Py_CLEAR(state->stop);
    }
#endif
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
#ifndef Py_GIL_DISABLED
    /* Only an empty one is kept: args would hold the value. */
    if (stop != NULL && kept == NULL) {
        state->stop = PyObject_CallNoArgs(PyExc_StopIteration);
        if (state->stop == NULL)
            PyErr_Clear(); /* no memory: the next time, perhaps */
    }
#endif
    return stop;
}

void plait_stop_raise(struct plait_state *state, PyObject *value)
{
    PyObject *stop = stop_with(state, value);
    if (stop == NULL)
        return;
#if PY_VERSION_HEX >= 0x030c0000
    PyErr_SetRaisedException(stop);
#else
    PyErr_Restore(Py_NewRef(PyExc_StopIteration), stop, NULL);
#endif
}

void plait_stop_forget(struct plait_state *state)
{
#ifndef Py_GIL_DISABLED
    PyObject *kept = state->stop;
    if (kept == NULL || Py_REFCNT(kept) != 1)
        return;
    if (is_clean(kept))
        Py_XSETREF(((PyStopIterationObject *)kept)->value, Py_NewRef(Py_None));
    else
        Py_CLEAR(state->stop);
#else
    (void)state;
#endif
}
