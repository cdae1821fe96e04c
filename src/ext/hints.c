/* hints.c - what pools tell those who meet them for the first time: mistakes that would otherwise
 * end in an error about something else.
 */
#include "future.h"

#include <string.h>

int plait_refuse_frames(PyObject *fn)
{
    PyObject *inner = Py_NewRef(fn);
    /* What is called in the end, under bound methods and partial objects. */
    while (!PyFunction_Check(inner)) {
        PyObject *next = NULL;
        if (PyMethod_Check(inner)) {
            next = Py_NewRef(PyMethod_GET_FUNCTION(inner));
        } else if (strcmp(Py_TYPE(inner)->tp_name, "functools.partial") == 0) {
            next = PyObject_GetAttrString(inner, "func");
            if (next == NULL)
                PyErr_Clear();
        }
        Py_DECREF(inner);
        if (next == NULL)
            return 0;
        inner = next;
    }
    int flags = ((PyCodeObject *)PyFunction_GET_CODE(inner))->co_flags;
    Py_DECREF(inner);
    if ((flags & CO_COROUTINE) != 0)
        PyErr_Format(PyExc_TypeError,
                     "%R is a coroutine function: a call in a worker process makes a coroutine "
                     "and does not run it. Start it on the event loop (`scope.start(fn, ...)` in "
                     "`async with plait.scope() as scope`), or submit a function that calls "
                     "`asyncio.run(fn(...))`",
                     fn);
    else if ((flags & (CO_GENERATOR | CO_ASYNC_GENERATOR)) != 0)
        PyErr_Format(PyExc_TypeError,
                     "%R is a generator function: a call in a worker process makes a generator, "
                     "which cannot be sent back. Submit a function that returns a list of its "
                     "items",
                     fn);
    else
        return 0;
    return -1;
}

void plait_hint_options(PyObject *fn, PyObject *given)
{
    if (!PyErr_ExceptionMatches(PyExc_TypeError))
        return;
    PyObject *error = plait_take_exception();
    PyObject *traceback = PyException_GetTraceback(error);
    if (traceback == NULL) { /* the call itself was refused, not one that it made */
        PyObject *module = PyImport_ImportModule("plait._hints");
        PyObject *told = NULL;
        if (module != NULL)
            told = PyObject_CallMethod(module, "about_options", "OOO", error, fn, given);
        if (told == NULL)
            PyErr_Clear(); /* the error is what matters */
        Py_XDECREF(told);
        Py_XDECREF(module);
    }
    Py_XDECREF(traceback);
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
}
