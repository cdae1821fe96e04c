/* coroutine.c - what objects have in common that look like coroutines and are C. */
#include "coroutine.h"

int plait_coroutine_may_throw(Py_ssize_t nargs, bool ended)
{
    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError, "throw() takes 1 to 3 arguments, got %zd", nargs);
        return -1;
    }
    if (!ended)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    return -1;
}

void plait_coroutine_raise(PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *type = args[0];
    PyObject *value = nargs > 1 && args[1] != Py_None ? args[1] : NULL;
    if (PyExceptionInstance_Check(type) && value == NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    else if (PyExceptionClass_Check(type))
        PyErr_SetObject(type, value);
    else
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances deriving from BaseException, not %s",
                     Py_TYPE(type)->tp_name);
}

void plait_coroutine_unawaited(PyTypeObject *type, const char *class_name, const char *name)
{
    PyObject *t, *error, *traceback;
    PyErr_Fetch(&t, &error, &traceback);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%s.%s' was never awaited", class_name,
                         name) < 0)
        PyErr_WriteUnraisable((PyObject *)type);
    PyErr_Restore(t, error, traceback);
}

PyObject *plait_coroutine_running(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    Py_RETURN_FALSE; /* who could ask runs between two steps */
}
