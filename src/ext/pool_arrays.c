/* pool_arrays.c - numpy arrays in messages, without pickle.
 *
 * An array's pickle is a call of a function by its name with a type object and a tuple, and takes
 * longer to make and to read than 100 KiB of its data to copy. So arguments, or a result, that are
 * arrays and atoms (pool_atoms.c) go as
 *
 *     number of arrays, 1 byte; for each: place, index of its type, dimensions, 1 byte each, and
 *     its extents, 8 bytes each; then the atoms, in their order
 *
 * with the data as the message's buffers. Only what numpy's own pickle treats alike is taken: exact
 * ndarrays, contiguous, of numpy's own plain types in the machine's byte order, each given once.
 *
 * numpy is not needed to build this; it is asked for by name where an array is met.
 */
#include "pool.h"

#include <string.h>

/* numpy's characters of the types, by index. */
static const char TYPES[] = "?bBhHiIlLqQefdgFDG";
#define NTYPES (sizeof(TYPES) - 1)
#define DIMS_MAX 8

/* Learns numpy's types, once. -1 with an exception set. */
static int know_numpy(struct plait_state *state)
{
    if (state->np_dtypes != NULL)
        return 0;
    int error = -1;
    PyObject *dtypes = PyTuple_New((Py_ssize_t)NTYPES);
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *copyreg = PyImport_ImportModule("copyreg");
    PyObject *ndarray = numpy == NULL ? NULL : PyObject_GetAttrString(numpy, "ndarray");
    PyObject *reducers = copyreg == NULL ? NULL : PyObject_GetAttrString(copyreg, "dispatch_table");
    if (dtypes == NULL || ndarray == NULL || reducers == NULL)
        goto out;
    for (size_t i = 0; i < NTYPES; i++) {
        PyObject *dtype = PyObject_CallMethod(numpy, "dtype", "C", TYPES[i]);
        if (dtype == NULL)
            goto out;
        PyTuple_SET_ITEM(dtypes, (Py_ssize_t)i, dtype);
    }
    if (!PyType_Check(ndarray) || !PyDict_Check(reducers)) {
        PyErr_SetString(PyExc_TypeError, "numpy.ndarray is no type");
        goto out;
    }
    Py_XSETREF(state->np_ndarray, Py_NewRef(ndarray));
    Py_XSETREF(state->reducers, Py_NewRef(reducers));
    Py_XSETREF(state->np_dtypes, Py_NewRef(dtypes)); /* last: it says that all are known */
    error = 0;
out:
    Py_XDECREF(dtypes);
    Py_XDECREF(numpy);
    Py_XDECREF(copyreg);
    Py_XDECREF(ndarray);
    Py_XDECREF(reducers);
    return error;
}

static bool is_array(struct plait_state *state, PyObject *value)
{
    if (state->np_dtypes == NULL) {
        if (strcmp(Py_TYPE(value)->tp_name, "numpy.ndarray") != 0)
            return false;
        if (know_numpy(state) < 0) {
            PyErr_Clear(); /* pickle meets it again */
            return false;
        }
    }
    return (PyObject *)Py_TYPE(value) == state->np_ndarray;
}

/* ---- encoding ---- */

/* The index of an array's type, or -1. */
static int type_index(struct plait_state *state, PyObject *array)
{
    PyObject *dtype = PyObject_GetAttrString(array, "dtype");
    if (dtype == NULL) {
        PyErr_Clear();
        return -1;
    }
    Py_DECREF(dtype); /* the array has it */
    for (size_t i = 0; i < NTYPES; i++)
        if (PyTuple_GET_ITEM(state->np_dtypes, (Py_ssize_t)i) == dtype)
            return (int)i;
    return -1;
}

/* Appends the description of an array. 1, 0: it has to be pickled, -1 on error. */
static int describe(struct plait_state *state, struct plait_bytes *b, Py_ssize_t place,
                    PyObject *array)
{
    int type = type_index(state, array);
    if (type < 0)
        return 0;
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_ND) < 0) {
        PyErr_Clear(); /* not contiguous */
        return 0;
    }
    int done = 0;
    if (view.ndim <= DIMS_MAX) {
        const unsigned char head[] = {(unsigned char)place, (unsigned char)type,
                                      (unsigned char)view.ndim};
        int64_t extents[DIMS_MAX];
        for (int i = 0; i < view.ndim; i++)
            extents[i] = view.shape[i];
        done = plait_bytes_add(b, head, sizeof(head)) < 0 ||
                       plait_bytes_add(b, extents, (size_t)view.ndim * sizeof(*extents)) < 0
                   ? -1
                   : 1;
    }
    PyBuffer_Release(&view);
    return done;
}

int plait_arrays_encode(struct plait_state *state, PyObject *const *values, Py_ssize_t n,
                        PyObject **body, PyObject **buffers)
{
    unsigned char count = 0;
    if (n > PLAIT_ATOMS_MAX)
        return 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        count += is_array(state, values[i]);
        /* What is given twice must arrive as one: pickle sees to that. */
        for (Py_ssize_t k = 0; k < i; k++)
            if (values[k] == values[i] && (is_array(state, values[i]) || PyList_Check(values[i])))
                return 0;
    }
    if (count == 0 || PyDict_Contains(state->reducers, state->np_ndarray) != 0)
        return PyErr_Occurred() != NULL ? -1 : 0;
    struct plait_bytes b = {0};
    PyObject *list = PyList_New(0);
    int done = list == NULL ? -1 : 1;
    if (done == 1 && plait_bytes_add(&b, &count, 1) < 0)
        done = -1;
    for (Py_ssize_t i = 0; i < n && done == 1; i++) {
        if (!is_array(state, values[i]))
            continue;
        done = describe(state, &b, i, values[i]);
        if (done == 1 && PyList_Append(list, values[i]) < 0)
            done = -1;
    }
    for (Py_ssize_t i = 0; i < n && done == 1; i++)
        if (!is_array(state, values[i]))
            done = plait_atoms_encode(&b, &values[i], 1);
    if (done == 1 && (*body = PyBytes_FromStringAndSize(b.data, (Py_ssize_t)b.len)) == NULL)
        done = -1;
    if (done == 1)
        *buffers = Py_NewRef(list);
    Py_XDECREF(list);
    plait_bytes_free(&b);
    return done;
}

/* ---- decoding ---- */

static int damaged(void)
{
    PyErr_SetString(PyExc_RuntimeError, "a message between processes is damaged");
    return -1;
}

/* Makes an array with data of its own from a small buffer that came in the message itself. It must
 * not lie on that one: a bytearray can be resized, and numpy holds no export of what it lies on. */
static PyObject *make_small(struct plait_state *state, PyObject *shape, PyObject *dtype,
                            PyObject *buffer)
{
    PyObject *args[] = {NULL, shape, dtype};
    PyObject *array =
        PyObject_Vectorcall(state->np_ndarray, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_buffer view;
    if (array == NULL || PyObject_GetBuffer(array, &view, PyBUF_CONTIG) < 0) {
        Py_XDECREF(array);
        return NULL;
    }
    if (view.len == PyByteArray_GET_SIZE(buffer)) {
        memcpy(view.buf, PyByteArray_AS_STRING(buffer), (size_t)view.len);
    } else {
        (void)damaged();
        Py_CLEAR(array);
    }
    PyBuffer_Release(&view);
    return array;
}

/* Makes the array that *at describes on a buffer. numpy checks that it has room. */
static PyObject *make_array(struct plait_state *state, const char **at, const char *end,
                            PyObject *buffer)
{
    const unsigned char *head = (const unsigned char *)*at;
    if (end - *at < 3 || head[1] >= NTYPES || head[2] > DIMS_MAX ||
        (size_t)(end - *at - 3) < head[2] * sizeof(int64_t)) {
        (void)damaged();
        return NULL;
    }
    *at += 3;
    PyObject *shape = PyTuple_New(head[2]);
    for (int i = 0; shape != NULL && i < head[2]; i++) {
        int64_t extent;
        memcpy(&extent, *at, sizeof(extent));
        *at += sizeof(extent);
        PyObject *number = PyLong_FromLongLong(extent);
        if (number == NULL)
            Py_CLEAR(shape);
        else
            PyTuple_SET_ITEM(shape, i, number);
    }
    if (shape == NULL)
        return NULL;
    PyObject *dtype = PyTuple_GET_ITEM(state->np_dtypes, head[1]); // borrowed
    PyObject *array;
    if (PyByteArray_CheckExact(buffer)) {
        array = make_small(state, shape, dtype, buffer);
    } else {
        PyObject *args[] = {NULL, shape, dtype, buffer};
        array = PyObject_Vectorcall(state->np_ndarray, args + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                    NULL);
    }
    Py_DECREF(shape);
    return array;
}

Py_ssize_t plait_arrays_decode(struct plait_state *state, const char *data, size_t len,
                               PyObject *buffers, PyObject **values, Py_ssize_t max)
{
    const char *at = data;
    const char *end = data + len;
    PyObject *atoms[PLAIT_ATOMS_MAX];
    PyObject *arrays[PLAIT_ATOMS_MAX] = {NULL}; /* by place */
    Py_ssize_t natoms = -1;
    if (len < 1 || buffers == NULL || know_numpy(state) < 0)
        return PyErr_Occurred() != NULL ? -1 : damaged();
    Py_ssize_t count = (unsigned char)*at++;
    Py_ssize_t made = 0;
    if (count != PyList_GET_SIZE(buffers))
        return damaged();
    for (; made < count; made++) {
        Py_ssize_t place = at < end ? (unsigned char)*at : PLAIT_ATOMS_MAX;
        if (place >= PLAIT_ATOMS_MAX || arrays[place] != NULL) {
            (void)damaged();
            goto fail;
        }
        arrays[place] = make_array(state, &at, end, PyList_GET_ITEM(buffers, made));
        if (arrays[place] == NULL)
            goto fail;
    }
    natoms = plait_atoms_decode(at, (size_t)(end - at), atoms, PLAIT_ATOMS_MAX);
    if (natoms < 0)
        goto fail;
    Py_ssize_t n = count + natoms;
    Py_ssize_t used = 0;
    bool sound = n <= max && n <= PLAIT_ATOMS_MAX;
    for (Py_ssize_t i = n; sound && i < PLAIT_ATOMS_MAX; i++)
        sound = arrays[i] == NULL;
    if (!sound) {
        (void)damaged();
        goto fail;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        values[i] = arrays[i] != NULL ? arrays[i] : atoms[used++];
    return n;
fail:
    for (Py_ssize_t i = 0; i < PLAIT_ATOMS_MAX; i++)
        Py_XDECREF(arrays[i]);
    while (natoms > 0)
        Py_DECREF(atoms[--natoms]);
    return -1;
}
