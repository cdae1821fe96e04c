/* args.h - the small parser for fast calls. */
#ifndef PLAIT_ARGS_H
#define PLAIT_ARGS_H

#include <Python.h>

#include "pl_base.h"

#include <stdbool.h>
#include <string.h>

typedef PyObject *(*plait_fast_method)(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                       PyObject *kwnames);

/* Calls `fn` again with its positional parameters in their places, of which some came by name:
 * `names` are these, up to a NULL; there may be eight arguments in all. NULL with TypeError
 * set when one is missing or there twice; other names are left to `fn`. */
PyObject *plait_args_by_name(plait_fast_method fn, PyObject *self, const char *method,
                             const char *const *names, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames);

PyObject *plait_args_one_by_name(PyCFunction fn, PyObject *self, const char *method,
                                 const char *name, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames);

/* Calls `fn`, whose only parameter is called `name`. */
static inline PyObject *plait_args_one(PyCFunction fn, PyObject *self, const char *method,
                                       const char *name, PyObject *const *args, Py_ssize_t nargs,
                                       PyObject *kwnames)
{
    if (PL_LIKELY(nargs == 1 && kwnames == NULL))
        return fn(self, args[0]);
    return plait_args_one_by_name(fn, self, method, name, args, nargs, kwnames);
}

/* Whether a str is this ASCII text, without a call: nearly every call with a keyword has the
 * right one. The name is a literal, so that its length is known and comparing takes an
 * instruction or two. */
static inline bool plait_args_is(PyObject *key, const char *name)
{
    size_t len = strlen(name);
    return PyUnicode_IS_COMPACT_ASCII(key) && (size_t)PyUnicode_GET_LENGTH(key) == len &&
           memcmp(PyUnicode_1BYTE_DATA(key), name, len) == 0;
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
