/* pool_atoms.c - small plain values as bytes.
 *
 * Most arguments and results are small plain values, and pickling them costs more than
 * running a short task. An atom is an exact None, bool, int of 64 bits, float, short str or
 * bytes; a tuple of such; a range; or a list of all these (chunks of a map are). All else is
 * pickled.
 *
 * What is encoded cannot be told from what is decoded but by identity. Strings of a list
 * that were one object become several, so only short ones are taken.
 */
#include "pool.h"

#include <string.h>

/* ---- bytes ---- */

/* Makes the string longer by `len` bytes that the caller fills in: where they begin. */
static char *room(struct plait_bytes *b, size_t len)
{
    if (b->cap - b->len < len) {
        size_t cap = b->cap < 256 ? 512 : b->cap * 2;
        while (cap - b->len < len)
            cap *= 2;
        char *grown = PyMem_Realloc(b->data, cap);
        if (grown == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        b->data = grown;
        b->cap = cap;
    }
    b->len += len;
    return b->data + b->len - len;
}

int plait_bytes_add(struct plait_bytes *b, const void *data, size_t len)
{
    if (len == 0)
        return 0;
    char *to = room(b, len);
    if (to == NULL)
        return -1;
    memcpy(to, data, len);
    return 0;
}

void plait_bytes_free(struct plait_bytes *b)
{
    PyMem_Free(b->data);
    *b = (struct plait_bytes){0};
}

/* ---- encoding ----
 *
 * All of these append: 1 when the value was an atom, 0 when it is none (and what was written
 * is for the caller to drop), -1 on error. */

#define TEXT_MAX 512
#define TUPLE_MAX 255
#define LIST_MAX (1 << 20)

static int add_tag(struct plait_bytes *b, char tag)
{
    char *to = room(b, 1);
    if (to == NULL)
        return -1;
    *to = tag;
    return 1;
}

static int add_word(struct plait_bytes *b, char tag, const void *word)
{
    char *to = room(b, 9);
    if (to == NULL)
        return -1;
    *to = tag;
    memcpy(to + 1, word, 8);
    return 1;
}

static int add_count(struct plait_bytes *b, char tag, uint32_t n)
{
    char *to = room(b, 1 + sizeof(n));
    if (to == NULL)
        return -1;
    *to = tag;
    memcpy(to + 1, &n, sizeof(n));
    return 1;
}

static int add_text(struct plait_bytes *b, char tag, const char *data, Py_ssize_t len)
{
    uint16_t n = (uint16_t)len;
    char *to = room(b, 1 + sizeof(n) + n);
    if (to == NULL)
        return -1;
    *to = tag;
    memcpy(to + 1, &n, sizeof(n));
    memcpy(to + 1 + sizeof(n), data, n);
    return 1;
}

/* The value of an int, if it has one in 64 bits. */
static inline bool whole_number(PyObject *value, int64_t *number)
{
#if PY_VERSION_HEX >= 0x030c0000
    if (PyUnstable_Long_IsCompact((PyLongObject *)value)) {
        *number = PyUnstable_Long_CompactValue((PyLongObject *)value);
        return true;
    }
#endif
    int overflow;
    *number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return overflow == 0;
}

static int encode_str(struct plait_bytes *b, PyObject *value)
{
    /* Length in characters bounds the one in bytes, and spares the encoding of what is too
     * long anyway. */
    Py_ssize_t len = PyUnicode_GET_LENGTH(value);
    if (len > TEXT_MAX / 4)
        return 0;
    if (PyUnicode_IS_COMPACT_ASCII(value))
        return add_text(b, 's', (const char *)PyUnicode_1BYTE_DATA(value), len);
    /* A new object, since the other way leaves the UTF-8 with the string for good. */
    PyObject *utf8 = PyUnicode_AsUTF8String(value);
    if (utf8 == NULL) {
        PyErr_Clear(); /* lone surrogates are pickle's business */
        return 0;
    }
    int done = add_text(b, 's', PyBytes_AS_STRING(utf8), PyBytes_GET_SIZE(utf8));
    Py_DECREF(utf8);
    return done;
}

static int encode_scalar(struct plait_bytes *b, PyObject *value)
{
    if (PyLong_CheckExact(value)) {
        int64_t number;
        return whole_number(value, &number) ? add_word(b, 'i', &number) : 0;
    }
    if (PyUnicode_CheckExact(value))
        return encode_str(b, value);
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AS_DOUBLE(value);
        return add_word(b, 'd', &number);
    }
    if (value == Py_None)
        return add_tag(b, 'N');
    if (value == Py_True || value == Py_False)
        return add_tag(b, value == Py_True ? 'T' : 'F');
    if (PyBytes_CheckExact(value) && PyBytes_GET_SIZE(value) <= TEXT_MAX)
        return add_text(b, 'b', PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    return 0;
}

static int encode_tuple(struct plait_bytes *b, PyObject *tuple)
{
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    if (n > TUPLE_MAX)
        return 0;
    int done = add_count(b, 'U', (uint32_t)n);
    for (Py_ssize_t i = 0; i < n && done == 1; i++)
        done = encode_scalar(b, PyTuple_GET_ITEM(tuple, i));
    return done;
}

static int encode_range(struct plait_bytes *b, PyObject *range)
{
    static const char *const names[] = {"start", "stop", "step"};
    int done = add_tag(b, 'R');
    for (size_t i = 0; i < PL_ARRAY_LEN(names) && done == 1; i++) {
        PyObject *end = PyObject_GetAttrString(range, names[i]);
        if (end == NULL)
            return -1;
        done = PyLong_CheckExact(end) ? encode_scalar(b, end) : 0;
        Py_DECREF(end);
    }
    return done;
}

/* A list of ints of 64 bits, or of floats: tag, number of items, items. */
static int encode_numbers(struct plait_bytes *b, PyObject *list, bool floats)
{
    Py_ssize_t n = PyList_GET_SIZE(list);
    if (add_count(b, floats ? 'D' : 'I', (uint32_t)n) < 0)
        return -1;
    char *to = room(b, (size_t)n * 8);
    if (to == NULL)
        return -1;
    for (Py_ssize_t i = 0; i < n; i++, to += 8) {
        PyObject *item = PyList_GET_ITEM(list, i); // borrowed
        if (floats) {
            if (!PyFloat_CheckExact(item))
                return 0;
            double number = PyFloat_AS_DOUBLE(item);
            memcpy(to, &number, 8);
        } else {
            int64_t number;
            if (!PyLong_CheckExact(item) || !whole_number(item, &number))
                return 0;
            memcpy(to, &number, 8);
        }
    }
    return 1;
}

static int encode_list(struct plait_bytes *b, PyObject *list)
{
#ifdef Py_GIL_DISABLED
    return 0; /* another thread may change the list meanwhile: pickle knows how to lock it */
#endif
    Py_ssize_t n = PyList_GET_SIZE(list);
    if (n > LIST_MAX)
        return 0;
    PyObject *first = n == 0 ? NULL : PyList_GET_ITEM(list, 0); // borrowed
    if (first != NULL && (PyFloat_CheckExact(first) || PyLong_CheckExact(first))) {
        size_t before = b->len;
        int done = encode_numbers(b, list, PyFloat_CheckExact(first));
        if (done != 0)
            return done;
        b->len = before;
    }
    int done = add_count(b, 'L', (uint32_t)n);
    /* No code of Python's runs in here, so the list stays as it is. */
    for (Py_ssize_t i = 0; i < n && done == 1; i++) {
        PyObject *item = PyList_GET_ITEM(list, i); // borrowed
        done = PyTuple_CheckExact(item) ? encode_tuple(b, item) : encode_scalar(b, item);
    }
    return done;
}

int plait_atoms_encode(struct plait_bytes *b, PyObject *const *values, Py_ssize_t n)
{
    size_t start = b->len;
    if (n > PLAIT_ATOMS_MAX)
        return 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        int done = encode_scalar(b, values[i]);
        if (done == 0 && PyList_CheckExact(values[i])) {
            /* A list that is given twice must arrive as one: pickle sees to that. */
            bool twice = false;
            for (Py_ssize_t k = 0; k < i; k++)
                twice = twice || values[k] == values[i];
            done = twice ? 0 : encode_list(b, values[i]);
        } else if (done == 0 && PyTuple_CheckExact(values[i])) {
            done = encode_tuple(b, values[i]);
        } else if (done == 0 && PyRange_Check(values[i])) {
            done = encode_range(b, values[i]);
        }
        if (done <= 0) {
            b->len = start;
            return done;
        }
    }
    return 1;
}

/* ---- decoding ---- */

struct reader {
    const char *at;
    const char *end;
};

static PyObject *bad_message(void)
{
    PyErr_SetString(PyExc_RuntimeError, "a message between processes is damaged");
    return NULL;
}

/* The next `len` bytes, or NULL with an exception set. */
static const char *take(struct reader *r, size_t len)
{
    if ((size_t)(r->end - r->at) < len) {
        (void)bad_message();
        return NULL;
    }
    const char *at = r->at;
    r->at += len;
    return at;
}

static PyObject *decode_word(struct reader *r, bool is_float)
{
    const char *at = take(r, 8);
    if (at == NULL)
        return NULL;
    if (is_float) {
        double number;
        memcpy(&number, at, 8);
        return PyFloat_FromDouble(number);
    }
    int64_t number;
    memcpy(&number, at, 8);
    return PyLong_FromLongLong(number);
}

static PyObject *decode_text(struct reader *r, bool is_str)
{
    uint16_t n;
    const char *at = take(r, sizeof(n));
    if (at == NULL)
        return NULL;
    memcpy(&n, at, sizeof(n));
    at = take(r, n);
    if (at == NULL)
        return NULL;
    return is_str ? PyUnicode_DecodeUTF8(at, n, "strict") : PyBytes_FromStringAndSize(at, n);
}

static PyObject *decode_scalar(struct reader *r, char tag)
{
    switch (tag) {
    case 'i':
    case 'd':
        return decode_word(r, tag == 'd');
    case 's':
    case 'b':
        return decode_text(r, tag == 's');
    case 'N':
        return Py_NewRef(Py_None);
    case 'T':
        return Py_NewRef(Py_True);
    case 'F':
        return Py_NewRef(Py_False);
    default:
        return bad_message();
    }
}

/* The number of items that follow; each has at least `least` bytes. -1 with an exception. */
static Py_ssize_t decode_count(struct reader *r, size_t least)
{
    uint32_t n;
    const char *at = take(r, sizeof(n));
    if (at == NULL)
        return -1;
    memcpy(&n, at, sizeof(n));
    if ((size_t)(r->end - r->at) / least < n) {
        (void)bad_message();
        return -1;
    }
    return (Py_ssize_t)n;
}

static PyObject *decode_tuple(struct reader *r)
{
    Py_ssize_t n = decode_count(r, 1);
    PyObject *tuple = n < 0 ? NULL : PyTuple_New(n);
    for (Py_ssize_t i = 0; tuple != NULL && i < n; i++) {
        const char *tag = take(r, 1);
        PyObject *item = tag == NULL ? NULL : decode_scalar(r, *tag);
        if (item == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, item);
    }
    return tuple;
}

static PyObject *decode_range(struct reader *r)
{
    PyObject *ends[3] = {NULL};
    PyObject *range = NULL;
    const char *tag = NULL;
    for (size_t i = 0; i < PL_ARRAY_LEN(ends); i++) {
        tag = take(r, 1);
        ends[i] = tag == NULL ? NULL : decode_scalar(r, *tag);
        if (ends[i] == NULL)
            goto out;
    }
    range = PyObject_Vectorcall((PyObject *)&PyRange_Type, ends, 3, NULL);
out:
    for (size_t i = 0; i < PL_ARRAY_LEN(ends); i++)
        Py_XDECREF(ends[i]);
    return range;
}

static PyObject *decode_list(struct reader *r, char kind)
{
    Py_ssize_t n = decode_count(r, kind == 'L' ? 1 : 8);
    PyObject *list = n < 0 ? NULL : PyList_New(n);
    for (Py_ssize_t i = 0; list != NULL && i < n; i++) {
        PyObject *item;
        if (kind != 'L') {
            item = decode_word(r, kind == 'D');
        } else {
            const char *tag = take(r, 1);
            item = tag == NULL ? NULL : *tag == 'U' ? decode_tuple(r) : decode_scalar(r, *tag);
        }
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

Py_ssize_t plait_atoms_decode(const char *data, size_t len, PyObject **values, Py_ssize_t max)
{
    struct reader r = {data, data + len};
    Py_ssize_t n = 0;
    while (r.at < r.end) {
        PyObject *value;
        char tag = *r.at++;
        if (n == max)
            value = bad_message();
        else if (tag == 'I' || tag == 'D' || tag == 'L')
            value = decode_list(&r, tag);
        else if (tag == 'U')
            value = decode_tuple(&r);
        else if (tag == 'R')
            value = decode_range(&r);
        else
            value = decode_scalar(&r, tag);
        if (value == NULL) {
            while (n > 0)
                Py_DECREF(values[--n]);
            return -1;
        }
        values[n++] = value;
    }
    return n;
}
