/* shape.h - the shape of a call's arguments: what its cost may depend on. */
#ifndef PLAIT_SHAPE_H
#define PLAIT_SHAPE_H

#include <Python.h>

/* A number for the shape of the arguments; never 0, and never fails. */
uint64_t plait_shape_key(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

/* The same shape in words, "int 30, list ~64": what plait.explain shows and files keep.
 * A new reference; NULL with an exception set. */
PyObject *plait_shape_label(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);

#endif /* PLAIT_SHAPE_H */
