/* stream_read.c - what read, readexactly, readuntil and readline of a stream return.
 *
 * A ReadOp is a coroutine in all but its type: it does nothing before it is awaited, can be
 * awaited once, made a task of, thrown into and closed. It waits by a future of the loop's,
 * so that tasks and debuggers see what they know. Semantics and error texts are those of
 * asyncio.StreamReader.
 */
#include "stream_reader.h"

#include "args.h"
#include "stop.h"

#include <stddef.h>

enum kind { READ, READ_ALL, READ_EXACTLY, READ_UNTIL, READ_LINE, READ_NEXT };
enum phase { FRESH, WAITING, DONE };

typedef struct {
    PyObject_HEAD
    ReaderState *s;
    PyObject *reader; /* whoever reads keeps the reader */
    PyObject *extra;  /* the separator, or the list of blocks of READ_ALL, or NULL */
    Py_ssize_t n;
    Py_ssize_t scanned; /* no separator begins before */
    uint8_t kind;
    uint8_t phase;
} ReadOpObject;

static const char *const names[] = {"read",      "read",     "readexactly",
                                    "readuntil", "readline", "__anext__"};

static PyObject *make_op(PyObject *reader, enum kind kind, Py_ssize_t n, PyObject *extra)
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(reader));
    if (state == NULL)
        return NULL;
    ReaderState *s = plait_reader_state(state, reader);
    if (s == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_AttributeError, "the stream reader has lost its state");
        return NULL;
    }
    ReadOpObject *op = (ReadOpObject *)plait_free_list_new(&state->loop.reads, state->read_op_type);
    if (op == NULL)
        return NULL;
    op->s = (ReaderState *)Py_NewRef(s);
    op->reader = Py_NewRef(reader);
    op->extra = Py_XNewRef(extra);
    op->n = n;
    op->scanned = 0;
    op->kind = kind;
    op->phase = FRESH;
    PyObject_GC_Track(op);
    return (PyObject *)op;
}

/* ---- the methods of a reader -------------------------------------------- */

/* The one argument of a method, by place or by name, or `fallback` (borrowed). */
static PyObject *one_argument(const char *method, const char *name, PyObject *const *args,
                              Py_ssize_t nargs, PyObject *kwnames, PyObject *fallback)
{
    PyObject *value;
    if (plait_args_keyword(method, args, nargs, kwnames, 0, name, &value) < 0)
        return NULL;
    if (nargs + (value != NULL) > 1)
        return PyErr_Format(PyExc_TypeError, "%s() takes one argument, got %zd", method,
                            nargs + (value != NULL));
    if (value == NULL)
        value = nargs == 1 ? args[0] : fallback;
    if (value == NULL)
        PyErr_Format(PyExc_TypeError, "%s() missing 1 required positional argument: '%s'", method,
                     name);
    return value;
}

PyObject *plait_reader_read(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames)
{
    Py_ssize_t n = -1;
    if (PL_LIKELY(nargs == 1 && kwnames == NULL && PyLong_CheckExact(args[0]))) {
        n = PyLong_AsSsize_t(args[0]);
        if (PL_LIKELY(n >= 0))
            return make_op(self, READ, n, NULL);
        PyErr_Clear(); /* a negative one, or one that is refused below */
    }
    PyObject *number = one_argument("read", "n", args, nargs, kwnames, Py_None);
    if (number == NULL)
        return NULL;
    if ((nargs > 0 || kwnames != NULL) && (n = PyNumber_AsSsize_t(number, NULL)) == -1 &&
        PyErr_Occurred())
        return NULL;
    return make_op(self, n < 0 ? READ_ALL : READ, n, NULL);
}

PyObject *plait_reader_readexactly(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *kwnames)
{
    PyObject *number = one_argument("readexactly", "n", args, nargs, kwnames, NULL);
    Py_ssize_t n = number == NULL ? -1 : PyNumber_AsSsize_t(number, NULL);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    return make_op(self, READ_EXACTLY, n, NULL);
}

PyObject *plait_reader_readuntil(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames)
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    PyObject *separator = state == NULL ? NULL
                                        : one_argument("readuntil", "separator", args, nargs,
                                                       kwnames, state->newline);
    if (separator == NULL)
        return NULL;
    if (PyBytes_CheckExact(separator) && PyBytes_GET_SIZE(separator) > 0)
        return make_op(self, READ_UNTIL, PyBytes_GET_SIZE(separator), separator);
    /* Several separators, other types, and what is refused: asyncio's own. */
    PyObject *stock = PyDict_GetItemString(state->stock_reader, "readuntil"); // borrowed
    PyObject *argv[2] = {self, separator};
    return stock == NULL ? PyErr_Format(PyExc_RuntimeError, "asyncio's readuntil is gone")
                         : PyObject_Vectorcall(stock, argv, 2, NULL);
}

static PyObject *make_line_op(PyObject *self, enum kind kind)
{
    struct plait_state *state = plait_state_of_type(Py_TYPE(self));
    return state == NULL ? NULL : make_op(self, kind, 1, state->newline);
}

PyObject *plait_reader_readline(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return make_line_op(self, READ_LINE);
}

PyObject *plait_reader_anext(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return make_line_op(self, READ_NEXT);
}

PyObject *plait_reader_anext_slot(PyObject *self)
{
    return make_line_op(self, READ_NEXT);
}

/* ---- trying to read ----------------------------------------------------- */

/* Each of these gives a result, or NULL: with an exception set when it failed, without one
 * when more must arrive first. */

static PyObject *take(ReaderState *s, Py_ssize_t n)
{
    PyObject *data = plait_reader_take(s, n);
    if (data != NULL && plait_reader_maybe_resume(s) < 0)
        Py_CLEAR(data);
    return data;
}

/* asyncio waits once, and then gives what there is: nothing at the end of the stream. */
static PyObject *try_read(ReadOpObject *op, Py_ssize_t n, bool waited)
{
    Py_ssize_t len = plait_reader_len(op->s);
    if (len == 0 && !op->s->eof && !waited)
        return NULL;
    return take(op->s, n < len ? n : len);
}

static PyObject *try_read_all(ReadOpObject *op, bool waited)
{
    if (op->extra == NULL && (op->extra = PyList_New(0)) == NULL)
        return NULL;
    for (;; waited = false) {
        if (op->s->exception != NULL) {
            PyErr_SetObject((PyObject *)Py_TYPE(op->s->exception), op->s->exception);
            return NULL;
        }
        PyObject *block = try_read(op, op->s->limit, waited);
        if (block == NULL)
            return NULL;
        if (PyBytes_GET_SIZE(block) == 0) {
            PyObject *all = PyObject_CallMethod(block, "join", "O", op->extra);
            Py_DECREF(block);
            return all;
        }
        int r = PyList_Append(op->extra, block);
        Py_DECREF(block);
        if (r < 0)
            return NULL;
    }
}

static PyObject *raise_incomplete(ReadOpObject *op, PyObject *expected)
{
    PyObject *partial = plait_reader_take(op->s, plait_reader_len(op->s));
    if (partial == NULL || expected == NULL) {
        Py_XDECREF(partial);
        return NULL;
    }
    PyObject *class = op->s->loop->state->asyncio_incomplete_read;
    PyObject *exc = PyObject_CallFunctionObjArgs(class, partial, expected, NULL);
    Py_DECREF(partial);
    if (exc != NULL)
        PyErr_SetObject(class, exc);
    Py_XDECREF(exc);
    return NULL;
}

static PyObject *try_read_exactly(ReadOpObject *op)
{
    ReaderState *s = op->s;
    if (plait_reader_len(s) >= op->n)
        return take(s, op->n);
    if (s->eof) {
        PyObject *expected = PyLong_FromSsize_t(op->n);
        (void)raise_incomplete(op, expected);
        Py_XDECREF(expected);
    }
    return NULL;
}

static PyObject *raise_overrun(ReadOpObject *op, const char *text, Py_ssize_t consumed)
{
    PyObject *class = op->s->loop->state->asyncio_limit_overrun;
    PyObject *exc = PyObject_CallFunction(class, "sn", text, consumed);
    if (exc != NULL)
        PyErr_SetObject(class, exc);
    Py_XDECREF(exc);
    return NULL;
}

static PyObject *try_read_until(ReadOpObject *op)
{
    ReaderState *s = op->s;
    Py_ssize_t len = plait_reader_len(s), width = op->n;
    if (len - op->scanned >= width) {
        const char *data = plait_reader_data(s);
        const char *found = memmem(data + op->scanned, (size_t)(len - op->scanned),
                                   PyBytes_AS_STRING(op->extra), (size_t)width);
        if (found != NULL) {
            Py_ssize_t at = found - data;
            if (at > s->limit)
                return raise_overrun(op, "Separator is found, but chunk is longer than limit", at);
            return take(s, at + width);
        }
        /* The beginning of a separator may be there already. */
        op->scanned = len + 1 - width;
        if (op->scanned > s->limit)
            return raise_overrun(op, "Separator is not found, and chunk exceed the limit",
                                 op->scanned);
    }
    return s->eof ? raise_incomplete(op, Py_None) : NULL;
}

/* readline makes of the two errors of readuntil what is documented for lines. */
static PyObject *mend_line(ReadOpObject *op)
{
    struct plait_state *state = op->s->loop->state;
    bool incomplete = PyErr_ExceptionMatches(state->asyncio_incomplete_read);
    if (!incomplete && !PyErr_ExceptionMatches(state->asyncio_limit_overrun))
        return NULL;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    PyObject *result = NULL;
    if (incomplete) {
        result = PyObject_GetAttrString(exc, "partial");
    } else {
        ReaderState *s = op->s;
        PyObject *text = PyObject_Str(exc);
        PyObject *number = PyObject_GetAttrString(exc, "consumed");
        Py_ssize_t consumed = number == NULL ? -1 : PyLong_AsSsize_t(number);
        Py_ssize_t len = plait_reader_len(s);
        bool at_line = consumed >= 0 && consumed < len && plait_reader_data(s)[consumed] == '\n';
        if (text != NULL && number != NULL &&
            plait_reader_drop(s, at_line ? consumed + 1 : len) == 0 &&
            plait_reader_maybe_resume(s) == 0) {
            PyObject *error = PyObject_CallOneArg(PyExc_ValueError, text);
            if (error != NULL) {
                PyException_SetContext(error, Py_NewRef(exc));
                PyErr_SetObject(PyExc_ValueError, error);
                Py_DECREF(error);
            }
        }
        Py_XDECREF(number);
        Py_XDECREF(text);
    }
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
    return result;
}

static PyObject *attempt(ReadOpObject *op, bool waited)
{
    PyObject *result;
    switch ((enum kind)op->kind) {
    case READ:
        return try_read(op, op->n, waited);
    case READ_ALL:
        return try_read_all(op, waited);
    case READ_EXACTLY:
        return try_read_exactly(op);
    case READ_UNTIL:
        return try_read_until(op);
    case READ_LINE:
    case READ_NEXT:
        result = try_read_until(op);
        if (PL_UNLIKELY(result == NULL && PyErr_Occurred()))
            result = mend_line(op);
        if (op->kind == READ_NEXT && result != NULL && PyBytes_GET_SIZE(result) == 0) {
            Py_CLEAR(result);
            PyErr_SetNone(PyExc_StopAsyncIteration);
        }
        return result;
    }
    return NULL;
}

/* What is checked before the first try. 1 and a result, 0, or -1. */
static int begin(ReadOpObject *op, PyObject **result)
{
    ReaderState *s = op->s;
    if (op->kind == READ_EXACTLY && op->n < 0) {
        PyErr_SetString(PyExc_ValueError, "readexactly size can not be less than zero");
        return -1;
    }
    if (PL_UNLIKELY(s->exception != NULL)) {
        PyErr_SetObject((PyObject *)Py_TYPE(s->exception), s->exception);
        return -1;
    }
    if (op->n == 0) {
        *result = PyBytes_FromStringAndSize(NULL, 0);
        return *result == NULL ? -1 : 1;
    }
    return 0;
}

/* Makes the future that the reader waits by. */
static PyObject *wait_for_data(ReadOpObject *op)
{
    ReaderState *s = op->s;
    struct plait_state *state = s->loop->state;
    if (s->waiter != NULL) {
        const char *name = op->kind >= READ_LINE ? "readuntil" : names[op->kind];
        return PyErr_Format(PyExc_RuntimeError,
                            "%s() called while another coroutine is already waiting for "
                            "incoming data",
                            name);
    }
    if (plait_reader_resume(s) < 0)
        return NULL;
    PyObject *future = plait_reader_future(s->loop);
    if (future == NULL || PyObject_SetAttr(future, state->str_blocking, Py_True) < 0) {
        Py_XDECREF(future);
        return NULL;
    }
    Py_XSETREF(s->waiter, Py_NewRef(future));
    op->phase = WAITING;
    return future;
}

/* ---- the coroutine ------------------------------------------------------ */

static void stop_waiting(ReadOpObject *op)
{
    if (op->phase == WAITING)
        Py_CLEAR(op->s->waiter);
    op->phase = DONE;
}

static PyObject *refuse_again(void)
{
    PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    return NULL;
}

static PySendResult step(ReadOpObject *op, PyObject **result)
{
    *result = NULL;
    bool waited = op->phase == WAITING;
    if (PL_UNLIKELY(op->phase == DONE)) {
        (void)refuse_again();
        return PYGEN_ERROR;
    }
    if (waited)
        Py_CLEAR(op->s->waiter);
    int r = waited ? 0 : begin(op, result);
    op->phase = DONE; /* unless it waits */
    if (r == 0)
        *result = attempt(op, waited);
    if (*result != NULL)
        return PYGEN_RETURN;
    if (r < 0 || PyErr_Occurred())
        return PYGEN_ERROR;
    *result = wait_for_data(op);
    return *result != NULL ? PYGEN_NEXT : PYGEN_ERROR;
}

static PySendResult op_am_send(PyObject *self, PyObject *Py_UNUSED(value), PyObject **result)
{
    return step((ReadOpObject *)self, result);
}

static PyObject *op_iternext(PyObject *self)
{
    PyObject *result;
    PySendResult r = step((ReadOpObject *)self, &result);
    if (r == PYGEN_RETURN) {
        plait_stop_raise(((ReadOpObject *)self)->s->loop->state, result);
        Py_CLEAR(result);
    }
    return result;
}

PyDoc_STRVAR(send_doc, "send($self, value, /)\n--\n\nGo on; the value is not used.");

static PyObject *op_send(PyObject *self, PyObject *Py_UNUSED(value))
{
    return op_iternext(self);
}

PyDoc_STRVAR(throw_doc, "throw($self, type, value=None, traceback=None, /)\n--\n\n"
                        "Stop waiting and raise the exception.");

static PyObject *op_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ReadOpObject *op = (ReadOpObject *)self;
    if (nargs < 1 || nargs > 3)
        return PyErr_Format(PyExc_TypeError, "throw() takes 1 to 3 arguments, got %zd", nargs);
    if (op->phase == DONE)
        return refuse_again();
    PyObject *type = args[0], *value = nargs > 1 ? args[1] : Py_None;
    if (PyExceptionInstance_Check(type)) {
        value = type;
        type = PyExceptionInstance_Class(type);
    } else if (!PyExceptionClass_Check(type)) {
        return PyErr_Format(PyExc_TypeError, "exceptions must derive from BaseException, not %R",
                            (PyObject *)Py_TYPE(type));
    }
    stop_waiting(op);
    PyErr_SetObject(type, value == Py_None ? NULL : value);
    return NULL;
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nStop waiting.");

static PyObject *op_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    stop_waiting((ReadOpObject *)self);
    Py_RETURN_NONE;
}

static PyObject *op_await(PyObject *self)
{
    if (((ReadOpObject *)self)->phase == DONE)
        return refuse_again();
    return Py_NewRef(self);
}

static PyObject *get_name(PyObject *self, void *closure)
{
    return PyUnicode_FromFormat("%s%s", closure == NULL ? "" : (const char *)closure,
                                names[((ReadOpObject *)self)->kind]);
}

static PyObject *op_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<coroutine object StreamReader.%s at %p>",
                                names[((ReadOpObject *)self)->kind], self);
}

static int op_traverse(PyObject *self, visitproc visit, void *arg)
{
    ReadOpObject *op = (ReadOpObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(op->s);
    Py_VISIT(op->reader);
    Py_VISIT(op->extra);
    return 0;
}

static int op_clear(PyObject *self)
{
    ReadOpObject *op = (ReadOpObject *)self;
    stop_waiting(op);
    Py_CLEAR(op->reader);
    Py_CLEAR(op->extra);
    return 0;
}

static void op_finalize(PyObject *self)
{
    ReadOpObject *op = (ReadOpObject *)self;
    if (PL_LIKELY(op->phase != FRESH))
        return;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine 'StreamReader.%s' was never awaited",
                         names[op->kind]) < 0)
        PyErr_WriteUnraisable(self);
    PyErr_Restore(type, exc, tb);
}

static void op_dealloc(PyObject *self)
{
    ReadOpObject *op = (ReadOpObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (PL_UNLIKELY(op->phase == FRESH) && PyObject_CallFinalizerFromDealloc(self) < 0)
        return;
    PyObject_GC_UnTrack(self);
    (void)op_clear(self);
    /* The state goes last: with its loop perhaps the module goes, and its lists. */
    ReaderState *s = op->s;
    op->s = NULL;
    plait_stop_forget(s->loop->state);
    bool kept = plait_free_list_park(&s->loop->state->loop.reads, self);
    Py_DECREF(s);
    if (PL_LIKELY(kept))
        return;
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef op_methods[] = {
    {"send", op_send, METH_O, send_doc},
    {"throw", (PyCFunction)(void (*)(void))op_throw, METH_FASTCALL, throw_doc},
    {"close", op_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef op_getset[] = {
    {"__name__", get_name, NULL, NULL, NULL},
    {"__qualname__", get_name, NULL, NULL, (void *)"StreamReader."},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot op_slots[] = {
    {Py_tp_doc, (void *)"A stream reader's read, to be awaited."},
    {Py_tp_dealloc, op_dealloc},
    {Py_tp_finalize, op_finalize},
    {Py_tp_traverse, op_traverse},
    {Py_tp_clear, op_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, op_iternext},
    {Py_am_await, op_await},
    {Py_am_send, op_am_send},
    {Py_tp_repr, op_repr},
    {Py_tp_methods, op_methods},
    {Py_tp_getset, op_getset},
    {0, NULL},
};

static PyType_Spec op_spec = {
    .name = "plait._core.StreamRead",
    .basicsize = sizeof(ReadOpObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = op_slots,
};

int plait_read_op_type(PyObject *module, struct plait_state *state)
{
    state->read_op_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &op_spec, NULL);
    if (state->read_op_type == NULL)
        return -1;
    PyObject *abc = PyImport_ImportModule("collections.abc");
    PyObject *coroutine = abc == NULL ? NULL : PyObject_GetAttrString(abc, "Coroutine");
    PyObject *done = coroutine == NULL
                         ? NULL
                         : PyObject_CallMethod(coroutine, "register", "O", state->read_op_type);
    Py_XDECREF(abc);
    Py_XDECREF(coroutine);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}
