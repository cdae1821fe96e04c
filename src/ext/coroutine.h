/* coroutine.h - what objects have in common that look like coroutines and are C. */
#ifndef PLAIT_COROUTINE_H
#define PLAIT_COROUTINE_H

#include <Python.h>

#include <stdbool.h>

/* The beginning of throw(): 0, or -1 with an exception for wrong arguments or one that has ended.
 */
int plait_coroutine_may_throw(Py_ssize_t nargs, bool ended);
/* Raises what throw() was given, as a generator that has not started would. */
void plait_coroutine_raise(PyObject *const *args, Py_ssize_t nargs);
/* Tells of one that nobody has awaited; an exception that is set stays. */
void plait_coroutine_unawaited(PyTypeObject *type, const char *class_name, const char *name);
/* The getter of cr_running. */
PyObject *plait_coroutine_running(PyObject *self, void *closure);

#endif /* PLAIT_COROUTINE_H */
