/* shape.c - the shape of a call's arguments: their types, and how large they are.
 *
 * Cost follows size, so values are put into classes: a small whole number is a class of its
 * own (the cost of fib(30) has nothing to do with that of fib(20)), larger ones share a
 * quarter of an octave, containers and buffers half an octave of their length. The key is
 * what every call computes; the label is made once for each class.
 */
#include "shape.h"

#include <math.h>
#include <stdbool.h>

#define ARGS_MAX 8      /* further arguments are not looked at */
#define EXACT_MIN (-16) /* whole numbers from here */
#define EXACT_MAX 256   /* to here, exclusive, are classes of their own */

enum what { BY_TYPE, WHOLE, FLOATING, TRUTH, LENGTH, BYTES };

struct shape {
    enum what what;
    bool negative;
    bool exact;
    int64_t size; /* the value when exact, else the lower end of the class; an exponent */
};

static int top_bit(uint64_t v)
{
    return 63 - __builtin_clzll(v);
}

/* v with all but its `keep` + 1 highest bits cleared. */
static uint64_t round_down(uint64_t v, int keep)
{
    int drop = v == 0 ? 0 : top_bit(v) - keep;
    return drop > 0 ? v >> drop << drop : v;
}

static void of_size(struct shape *s, enum what what, Py_ssize_t n)
{
    s->what = what;
    s->size = (int64_t)round_down((uint64_t)n, 1);
    s->exact = n < 4;
}

static void of_double(struct shape *s, double v)
{
    int exponent = 0;
    s->what = FLOATING;
    s->negative = v < 0;
    if (isnan(v))
        s->size = 100000;
    else if (isinf(v))
        s->size = 99999;
    else
        (void)frexp(v, &exponent), s->size = exponent;
}

static void of_whole(struct shape *s, PyObject *o)
{
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
    if (overflow != 0) {
        double d = PyLong_AsDouble(o);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            d = overflow < 0 ? -INFINITY : INFINITY;
        }
        of_double(s, d);
        return;
    }
    s->what = WHOLE;
    s->exact = v >= EXACT_MIN && v < EXACT_MAX;
    s->negative = v < 0;
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    s->size = (int64_t)(s->exact ? u : round_down(u, 2));
}

static struct shape shape_of(PyObject *o)
{
    struct shape s = {.what = BY_TYPE};
    if (PyLong_CheckExact(o)) {
        of_whole(&s, o);
    } else if (PyBool_Check(o)) {
        s.what = TRUTH;
        s.size = o == Py_True;
    } else if (PyFloat_CheckExact(o)) {
        of_double(&s, PyFloat_AS_DOUBLE(o));
    } else if (PyUnicode_Check(o)) {
        of_size(&s, LENGTH, PyUnicode_GET_LENGTH(o));
    } else if (PyBytes_Check(o)) {
        of_size(&s, LENGTH, PyBytes_GET_SIZE(o));
    } else if (PyTuple_Check(o)) {
        of_size(&s, LENGTH, PyTuple_GET_SIZE(o));
    } else if (PyList_Check(o)) {
        of_size(&s, LENGTH, PyList_GET_SIZE(o));
    } else if (PyDict_CheckExact(o)) {
        of_size(&s, LENGTH, PyDict_Size(o));
    } else if (PyAnySet_CheckExact(o)) {
        of_size(&s, LENGTH, PySet_Size(o));
    } else if (PyRange_Check(o)) {
        Py_ssize_t n = PyObject_Size(o);
        if (n >= 0)
            of_size(&s, LENGTH, n);
        else
            PyErr_Clear();
    } else if (PyObject_CheckBuffer(o)) {
        Py_buffer view;
        if (PyObject_GetBuffer(o, &view, PyBUF_FULL_RO) == 0) {
            of_size(&s, BYTES, view.len);
            PyBuffer_Release(&view);
        } else {
            PyErr_Clear();
        }
    }
    return s;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    h ^= v;
    h *= UINT64_C(0x9E3779B97F4A7C15); /* 2^64 divided by the golden ratio */
    return h ^ h >> 29;
}

static uint64_t add(uint64_t h, PyObject *o)
{
    struct shape s = shape_of(o);
    h = mix(h, (uint64_t)(uintptr_t)Py_TYPE(o));
    return mix(h, (uint64_t)s.size << 5 | (uint64_t)s.what << 2 | s.negative << 1 | s.exact);
}

uint64_t plait_shape_key(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    uint64_t h = mix(1, (uint64_t)nargs);
    for (Py_ssize_t i = 0; i < nargs && i < ARGS_MAX; i++)
        h = add(h, args[i]);
    Py_ssize_t named = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < named && i < ARGS_MAX; i++) {
        h = mix(h, (uint64_t)PyObject_Hash(PyTuple_GET_ITEM(kwnames, i))); /* strings have one */
        h = add(h, args[nargs + i]);
    }
    return h == 0 ? 1 : h;
}

static PyObject *label_of(PyObject *o)
{
    struct shape s = shape_of(o);
    PyObject *type = PyType_GetName(Py_TYPE(o));
    if (type == NULL)
        return NULL;
    const char *sign = s.negative ? "-" : "";
    PyObject *label = NULL;
    switch (s.what) {
    case BY_TYPE:
        return type;
    case WHOLE:
    case LENGTH:
        label =
            PyUnicode_FromFormat("%U %s%s%lld", type, s.exact ? "" : "~", sign, (long long)s.size);
        break;
    case FLOATING:
        label = PyUnicode_FromFormat("%U %s2^%lld", type, sign, (long long)s.size);
        break;
    case TRUTH:
        label = PyUnicode_FromFormat("%U %lld", type, (long long)s.size);
        break;
    case BYTES:
        label = PyUnicode_FromFormat("%U ~%lld B", type, (long long)s.size);
        break;
    }
    Py_DECREF(type);
    return label;
}

PyObject *plait_shape_label(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t named = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *parts = PyList_New(0);
    PyObject *comma = PyUnicode_FromString(", ");
    PyObject *label = NULL;
    if (parts == NULL || comma == NULL)
        goto out;
    for (Py_ssize_t i = 0; i < nargs + named; i++) {
        if (i < nargs ? i >= ARGS_MAX : i - nargs >= ARGS_MAX)
            continue;
        PyObject *part = label_of(args[i]);
        if (part != NULL && i >= nargs)
            Py_SETREF(part,
                      PyUnicode_FromFormat("%U=%U", PyTuple_GET_ITEM(kwnames, i - nargs), part));
        if (part == NULL || PyList_Append(parts, part) < 0) {
            Py_XDECREF(part);
            goto out;
        }
        Py_DECREF(part);
    }
    if (nargs > ARGS_MAX || named > ARGS_MAX) {
        PyObject *more =
            PyUnicode_FromFormat("%zd more", (nargs > ARGS_MAX ? nargs - ARGS_MAX : 0) +
                                                 (named > ARGS_MAX ? named - ARGS_MAX : 0));
        if (more == NULL || PyList_Append(parts, more) < 0) {
            Py_XDECREF(more);
            goto out;
        }
        Py_DECREF(more);
    }
    label = PyUnicode_Join(comma, parts);
out:
    Py_XDECREF(parts);
    Py_XDECREF(comma);
    return label;
}
