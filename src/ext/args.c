/* args.c - positional parameters that were given by name, for the rare calls that do so. */
#include <Python.h>

#include "args.h"

PyObject *plait_args_by_name(plait_fast_method fn, PyObject *self, const char *method,
                             const char *const *names, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    enum { MOST = 8 };
    PyObject *stack[MOST] = {NULL}; // borrowed, all of them
    PyObject *rest = NULL;          // the names of what is keyword-only
    PyObject *result = NULL;
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    Py_ssize_t places = 0;
    while (names[places] != NULL)
        places++;
    if (places + nkw > MOST) {
        PyErr_Format(PyExc_TypeError, "%s() got too many keyword arguments", method);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < nargs && i < places; i++)
        stack[i] = args[i];
    Py_ssize_t others = 0;
    rest = PyList_New(0);
    if (rest == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < nkw; i++) {
        PyObject *key = PyTuple_GET_ITEM(kwnames, i); // borrowed
        Py_ssize_t place = 0;
        while (place < places && PyUnicode_CompareWithASCIIString(key, names[place]) != 0)
            place++;
        if (place == places) {
            if (PyList_Append(rest, key) < 0)
                goto done;
            stack[places + others++] = args[nargs + i];
        } else if (stack[place] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'", method,
                         key);
            goto done;
        } else {
            stack[place] = args[nargs + i];
        }
    }
    for (Py_ssize_t i = 0; i < places; i++) {
        if (stack[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument: '%s'", method, names[i]);
            goto done;
        }
    }
    PyObject *tuple = PyList_AsTuple(rest);
    if (tuple != NULL)
        result = fn(self, stack, places, others > 0 ? tuple : NULL);
    Py_XDECREF(tuple);
done:
    Py_DECREF(rest);
    return result;
}

PyObject *plait_args_one_by_name(PyCFunction fn, PyObject *self, const char *method,
                                 const char *name, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (nargs == 0 && nkw == 1 &&
        PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), name) == 0)
        return fn(self, args[0]);
    PyErr_Format(PyExc_TypeError, "%s() takes exactly one argument, '%s' (%zd given)", method, name,
                 nargs + nkw);
    return NULL;
}
