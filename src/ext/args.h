/* args.h - the small parser for fast calls. */
#ifndef PLAIT_ARGS_H
#define PLAIT_ARGS_H

#include <Python.h>

#include <stdbool.h>
#include <string.h>

/* Whether a str is this ASCII text, without a call: nearly every call with a keyword has the
 * right one. */
static inline bool plait_args_is(PyObject *key, const char *name)
{
    return PyUnicode_IS_COMPACT_ASCII(key) &&
           strcmp((const char *)PyUnicode_1BYTE_DATA(key), name) == 0;
}

/* Finds the one keyword that a method takes, `name`, and refuses all others and fewer than
 * `least` positional arguments. *value is borrowed, or NULL when the keyword was not given.
 * 0, or -1 with TypeError set. */
static inline int plait_args_keyword(const char *method, PyObject *const *args, Py_ssize_t nargs,
                                     PyObject *kwnames, Py_ssize_t least, const char *name,
                                     PyObject **value)
{
    *value = NULL;
    if (nargs < least) {
        PyErr_Format(PyExc_TypeError, "%s() needs at least %zd positional argument%s, got %zd",
                     method, least, least == 1 ? "" : "s", nargs);
        return -1;
    }
    if (kwnames == NULL)
        return 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *key = PyTuple_GET_ITEM(kwnames, i); // borrowed
        if (!plait_args_is(key, name)) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", method,
                         key);
            return -1;
        }
        *value = args[nargs + i];
    }
    return 0;
}

#endif /* PLAIT_ARGS_H */
