/* scope.c - what is hot in a scope: starting a coroutine, and its end.
 *
 * Two base types that plait._scope inherits from. ScopeBase keeps the list of what runs
 * and of what has finished; HandleBase is one started thing and is, at the same time, the
 * callback that its task calls at its end: so a start costs one object beside the task.
 *
 * Policy (limits, time, retries, errors, cancellation) is Python's. Here is only the case
 * that needs none: a coroutine function without options, in an open scope, that returns.
 * Whatever else happens goes to ScopeBase's Python methods `_start` and `_ended`.
 *
 * The live handles are a doubly linked list with owned references. A scope that belongs to
 * a loop is used in that loop's thread; one without a loop is used with its Python lock
 * held. The interpreter's lock covers the rest.
 */
#include "args.h"
#include "state.h"

#include <stddef.h>
#include <structmember.h>

/* As plait._handle says them. */
enum { WAITING, RUNNING, DONE };
enum { ON_LOOP };

/* More finished handles than this are folded into sums by Python. */
#define FINISHED_MAX 16384

struct scope;

struct handle {
    PyObject_HEAD
    struct scope *scope; /* owns */
    struct handle *prev; /* in the scope's list, which owns a reference while linked */
    struct handle *next;
    PyObject *fn;
    PyObject *task; /* the task or the future while it runs */
    PyObject *result;
    PyObject *error;
    PyObject *name;
    PyObject *extra; /* what only some have: timers, retries, who waits */
    PyObject *weakrefs;
    long long began; /* nanoseconds, monotonic; 0: not yet */
    long long ended;
    int state;
    int where;
    char linked;
    char quiet; /* completed() does not tell of it */
};

struct scope {
    PyObject_HEAD
    struct plait_state *state; /* borrows */
    struct handle *first;
    struct handle *last;
    Py_ssize_t live;
    PyObject *create_task; /* of the loop; NULL: every start is Python's business */
    PyObject *handle_type; /* Handle, a subclass of the base type here */
    PyObject *current;     /* the context variable that names the innermost scope */
    PyObject *finished;    /* list of handles */
    PyObject *waiter;      /* who waits for the list to be empty, or NULL */
    PyObject *dict;
    PyObject *weakrefs;
    char fast;    /* open, neither limited nor cancelled */
    char watched; /* each end is Python's business */
};

#define HANDLE(o) ((struct handle *)(o))
#define SCOPE(o) ((struct scope *)(o))

/* ---- the list ---- */

static void handle_link(struct scope *s, struct handle *h)
{
    Py_INCREF(h);
    h->linked = 1;
    h->prev = s->last;
    h->next = NULL;
    if (s->last != NULL)
        s->last->next = h;
    else
        s->first = h;
    s->last = h;
    s->live++;
}

/* Takes h off the list; the caller gets the list's reference. */
static void handle_unlink(struct scope *s, struct handle *h)
{
    if (h->prev != NULL)
        h->prev->next = h->next;
    else
        s->first = h->next;
    if (h->next != NULL)
        h->next->prev = h->prev;
    else
        s->last = h->prev;
    h->prev = h->next = NULL;
    h->linked = 0;
    s->live--;
}

/* Notes the end of a live handle. 0, or -1 with an exception set (and the end noted). */
static int settle(struct scope *s, struct handle *h, int state, PyObject *result, PyObject *error)
{
    h->state = state;
    h->ended = pl_sys_default()->now();
    Py_XSETREF(h->result, Py_XNewRef(result));
    Py_XSETREF(h->error, Py_XNewRef(error));
    handle_unlink(s, h);
    int failed = s->finished == NULL ? 0 : PyList_Append(s->finished, (PyObject *)h);
    Py_CLEAR(h->task);
    Py_DECREF(h);
    return failed;
}

/* ---- a handle ---- */

static int call_ended(struct scope *s, struct handle *h, PyObject *result, PyObject *error)
{
    PyObject *args[] = {(PyObject *)s, (PyObject *)h, result == NULL ? Py_None : result,
                        error == NULL ? Py_None : error};
    PyObject *told = PyObject_VectorcallMethod(s->state->str_ended, args,
                                               4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(told);
    return told == NULL ? -1 : 0;
}

/* handle(task): the task has ended. */
static PyObject *handle_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    struct handle *h = HANDLE(self);
    if (PyTuple_GET_SIZE(args) != 1 || (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0)) {
        PyErr_SetString(PyExc_TypeError, "a handle is called by its task, with the task");
        return NULL;
    }
    struct scope *s = h->scope;
    if (s == NULL) /* cleared by the garbage collector */
        Py_RETURN_NONE;
    Py_INCREF(s);
    Py_INCREF(h);
    PyObject *call[] = {PyTuple_GET_ITEM(args, 0)};
    PyObject *result = PyObject_VectorcallMethod(s->state->str_result, call,
                                                 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    int failed;
    if (result != NULL && !s->watched && h->extra == NULL && h->linked) {
        failed = settle(s, h, DONE, result, NULL);
        if (failed == 0 &&
            ((s->live == 0 && s->waiter != NULL) || PyList_GET_SIZE(s->finished) > FINISHED_MAX)) {
            PyObject *told = PyObject_CallMethodNoArgs((PyObject *)s, s->state->str_idle);
            failed = told == NULL ? -1 : 0;
            Py_XDECREF(told);
        }
    } else if (result != NULL) {
        failed = call_ended(s, h, result, NULL);
    } else {
        PyObject *type, *error, *traceback;
        PyErr_Fetch(&type, &error, &traceback);
        PyErr_NormalizeException(&type, &error, &traceback);
        if (traceback != NULL)
            (void)PyException_SetTraceback(error, traceback);
        failed = call_ended(s, h, NULL, error);
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
    }
    Py_XDECREF(result);
    Py_DECREF(h);
    Py_DECREF(s);
    if (failed < 0)
        return NULL;
    Py_RETURN_NONE;
}

static int handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct handle *h = HANDLE(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(h->scope);
    Py_VISIT(h->fn);
    Py_VISIT(h->task);
    Py_VISIT(h->result);
    Py_VISIT(h->error);
    Py_VISIT(h->name);
    Py_VISIT(h->extra);
    return 0;
}

static int handle_clear(PyObject *self)
{
    struct handle *h = HANDLE(self);
    /* A linked handle is kept by its scope, which unlinks it first. */
    Py_CLEAR(h->fn);
    Py_CLEAR(h->task);
    Py_CLEAR(h->result);
    Py_CLEAR(h->error);
    Py_CLEAR(h->name);
    Py_CLEAR(h->extra);
    if (!h->linked)
        Py_CLEAR(h->scope);
    return 0;
}

static void handle_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (HANDLE(self)->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
    (void)handle_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define AT(type, field) offsetof(struct type, field)

static PyMemberDef handle_members[] = {
    {"_scope", T_OBJECT, AT(handle, scope), READONLY, NULL},
    {"_fn", T_OBJECT, AT(handle, fn), 0, NULL},
    {"_task", T_OBJECT, AT(handle, task), 0, NULL},
    {"_result", T_OBJECT, AT(handle, result), READONLY, NULL},
    {"_error", T_OBJECT, AT(handle, error), READONLY, NULL},
    {"_name", T_OBJECT, AT(handle, name), 0, NULL},
    {"_extra", T_OBJECT, AT(handle, extra), 0, NULL},
    {"_began", T_LONGLONG, AT(handle, began), 0, NULL},
    {"_ended", T_LONGLONG, AT(handle, ended), READONLY, NULL},
    {"_state", T_INT, AT(handle, state), 0, NULL},
    {"_where", T_INT, AT(handle, where), 0, NULL},
    {"_live", T_BOOL, AT(handle, linked), READONLY, NULL},
    {"_quiet", T_BOOL, AT(handle, quiet), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, AT(handle, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_call, handle_call},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_members, handle_members},
    {Py_tp_doc, "One started thing, and the callback of its task. Base of plait.Handle."},
    {0, NULL},
};

static PyType_Spec handle_spec = {
    .name = "plait._core.HandleBase",
    .basicsize = sizeof(struct handle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = handle_slots,
};

/* ---- a scope ---- */

/* A new live handle: one reference is the list's, the other the caller's. */
static struct handle *new_handle(struct scope *s, PyObject *fn)
{
    if (s->handle_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the scope is not set up");
        return NULL;
    }
    PyTypeObject *type = (PyTypeObject *)s->handle_type;
    struct handle *h = HANDLE(type->tp_alloc(type, 0));
    if (h == NULL)
        return NULL;
    h->scope = SCOPE(Py_NewRef((PyObject *)s));
    h->fn = Py_NewRef(fn);
    handle_link(s, h);
    return h;
}

/* Whether the innermost scope of this context is s; -1 with an exception set. */
static int is_current(struct scope *s)
{
    PyObject *value;
    if (s->current == NULL)
        return 0;
    if (PyContextVar_Get(s->current, NULL, &value) < 0)
        return -1;
    int same = value == (PyObject *)s;
    Py_XDECREF(value);
    return same;
}

/* Calls a method that ends what was not to begin; the exception that is set stays. */
static void call_off(PyObject *method, PyObject *what)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyObject *told = PyObject_CallMethodNoArgs(what, method);
    if (told == NULL)
        PyErr_WriteUnraisable(what);
    Py_XDECREF(told);
    PyErr_Restore(type, error, traceback);
}

static PyObject *start_coroutine(struct scope *s, PyObject *fn, PyObject *const *args,
                                 Py_ssize_t nargs)
{
    PyObject *coro = PyObject_Vectorcall(fn, args, (size_t)nargs, NULL);
    if (coro == NULL)
        return NULL;
    struct handle *h = new_handle(s, fn);
    if (h == NULL) {
        Py_DECREF(coro);
        return NULL;
    }
    h->state = RUNNING;
    h->where = ON_LOOP;
    h->began = pl_sys_default()->now();
    PyObject *create_task = Py_NewRef(s->create_task);
    PyObject *task = PyObject_CallOneArg(create_task, coro);
    Py_DECREF(create_task);
    if (task == NULL) {
        call_off(s->state->str_close, coro);
        goto fail;
    }
    Py_XSETREF(h->task, Py_NewRef(task));
    PyObject *call[] = {task, (PyObject *)h};
    PyObject *added = PyObject_VectorcallMethod(s->state->str_add_done_callback, call,
                                                2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (added == NULL) {
        /* Nobody would learn of its end, so it must not begin. */
        call_off(s->state->gen_str_cancel, task);
        Py_DECREF(task);
        goto fail;
    }
    Py_DECREF(task);
    Py_DECREF(coro);
    Py_DECREF(added);
    return (PyObject *)h;

fail:
    Py_DECREF(coro);
    if (h->linked) {
        handle_unlink(s, h);
        Py_DECREF(h);
    }
    Py_DECREF(h);
    return NULL;
}

/* The tuple (fn, args, kwargs) is what Python's part gets. */
static PyObject *start_slow(struct scope *s, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames)
{
    PyObject *kwargs = PyDict_New();
    PyObject *rest = PyTuple_New(nargs - 1);
    PyObject *handle = NULL;
    if (kwargs == NULL || rest == NULL)
        goto out;
    for (Py_ssize_t i = 1; i < nargs; i++)
        PyTuple_SET_ITEM(rest, i - 1, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++)
        if (PyDict_SetItem(kwargs, PyTuple_GET_ITEM(kwnames, i), args[nargs + i]) < 0)
            goto out;
    PyObject *call[] = {(PyObject *)s, args[0], rest, kwargs};
    handle = PyObject_VectorcallMethod(s->state->str_start, call,
                                       4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
out:
    Py_XDECREF(kwargs);
    Py_XDECREF(rest);
    return handle;
}

static PyObject *scope_start(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    struct scope *s = SCOPE(self);
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "start() needs a function to call");
        return NULL;
    }
    if (s->fast && kwnames == NULL && PyFunction_Check(args[0])) {
        PyCodeObject *code = (PyCodeObject *)PyFunction_GET_CODE(args[0]); // borrowed
        if (code->co_flags & CO_COROUTINE) {
            int mine = is_current(s);
            if (mine < 0)
                return NULL;
            if (mine)
                return start_coroutine(s, args[0], args + 1, nargs - 1);
        }
    }
    return start_slow(s, args, nargs, kwnames);
}

PyDoc_STRVAR(
    scope_start_doc,
    "start($self, fn, /, *args, where=None, timeout=None, name=None, retries=0, **kwargs)\n"
    "--\n\n"
    "Start fn(*args, **kwargs) in this scope, without waiting for it.\n\n"
    "Args:\n"
    "    fn: a coroutine function, a generator function or an ordinary function.\n"
    "    args: its arguments.\n"
    "    where: \"loop\", \"thread\", \"process\" or \"auto\". None is the loop for\n"
    "        coroutine and generator functions and \"auto\" for others.\n"
    "    timeout: seconds that one attempt may take; then it is stopped and fails with\n"
    "        TaskTimeout. Waiting for the scope's limit does not count.\n"
    "    name: for reports and errors; None for the function's.\n"
    "    retries: how often to start it again after an exception or a timeout.\n"
    "    kwargs: its named arguments. Ones that are called as the options above are\n"
    "        passed by functools.partial.\n\n"
    "Returns:\n"
    "    Handle: to await, to cancel and to ask.\n\n"
    "Raises:\n"
    "    ScopeClosed: the scope has ended, or was not entered.\n"
    "    TypeError, ValueError: an argument is not as above; nothing was started.\n\n"
    "Call it in the thread of the scope's loop; a scope without a loop takes calls from\n"
    "any thread.");

static PyObject *scope_open(PyObject *self, PyObject *args)
{
    struct scope *s = SCOPE(self);
    PyObject *create_task, *handle_type, *current;
    int fast;
    if (!PyArg_ParseTuple(args, "OOOp:_open", &create_task, &handle_type, &current, &fast))
        return NULL;
    if (!PyType_Check(handle_type) ||
        !PyType_IsSubtype((PyTypeObject *)handle_type, s->state->handle_base_type) ||
        !PyContextVar_CheckExact(current)) {
        PyErr_SetString(PyExc_TypeError, "_open() wants a handle type and a context variable");
        return NULL;
    }
    PyObject *finished = PyList_New(0);
    if (finished == NULL)
        return NULL;
    Py_XSETREF(s->create_task, create_task == Py_None ? NULL : Py_NewRef(create_task));
    Py_XSETREF(s->handle_type, Py_NewRef(handle_type));
    Py_XSETREF(s->current, Py_NewRef(current));
    Py_XSETREF(s->finished, finished);
    s->fast = fast != 0 && s->create_task != NULL;
    Py_RETURN_NONE;
}

static PyObject *scope_add(PyObject *self, PyObject *fn)
{
    return (PyObject *)new_handle(SCOPE(self), fn);
}

static PyObject *scope_settle(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct scope *s = SCOPE(self);
    if (nargs != 4 || !PyObject_TypeCheck(args[0], s->state->handle_base_type) ||
        HANDLE(args[0])->scope != s) {
        PyErr_SetString(PyExc_TypeError, "_settle() wants a handle of this scope, a state, a "
                                         "result and an error");
        return NULL;
    }
    long state = PyLong_AsLong(args[1]);
    if (state == -1 && PyErr_Occurred())
        return NULL;
    struct handle *h = HANDLE(args[0]);
    if (!h->linked) {
        PyErr_SetString(PyExc_RuntimeError, "a handle ends once");
        return NULL;
    }
    if (settle(s, h, (int)state, args[2], args[3] == Py_None ? NULL : args[3]) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Takes a handle off without a trace: its start has failed. */
static PyObject *scope_drop(PyObject *self, PyObject *arg)
{
    struct scope *s = SCOPE(self);
    if (PyObject_TypeCheck(arg, s->state->handle_base_type) && HANDLE(arg)->scope == s &&
        HANDLE(arg)->linked) {
        handle_unlink(s, HANDLE(arg));
        Py_DECREF(arg);
    }
    Py_RETURN_NONE;
}

static PyObject *scope_living(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct scope *s = SCOPE(self);
    PyObject *list = PyList_New(s->live);
    if (list == NULL)
        return NULL;
    Py_ssize_t i = 0;
    for (struct handle *h = s->first; h != NULL && i < PyList_GET_SIZE(list); h = h->next)
        PyList_SET_ITEM(list, i++, Py_NewRef((PyObject *)h));
    return list;
}

static PyObject *scope_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                           PyObject *Py_UNUSED(kwargs))
{
    struct plait_state *state = plait_state_of_type(type);
    if (state == NULL)
        return NULL;
    struct scope *s = SCOPE(type->tp_alloc(type, 0));
    if (s != NULL)
        s->state = state;
    return (PyObject *)s;
}

static int scope_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct scope *s = SCOPE(self);
    Py_VISIT(Py_TYPE(self));
    for (struct handle *h = s->first; h != NULL; h = h->next)
        Py_VISIT(h);
    Py_VISIT(s->create_task);
    Py_VISIT(s->handle_type);
    Py_VISIT(s->current);
    Py_VISIT(s->finished);
    Py_VISIT(s->waiter);
    Py_VISIT(s->dict);
    return 0;
}

static int scope_clear(PyObject *self)
{
    struct scope *s = SCOPE(self);
    s->fast = 0;
    while (s->first != NULL) {
        struct handle *h = s->first;
        handle_unlink(s, h);
        Py_DECREF(h);
    }
    Py_CLEAR(s->create_task);
    Py_CLEAR(s->handle_type);
    Py_CLEAR(s->current);
    Py_CLEAR(s->finished);
    Py_CLEAR(s->waiter);
    Py_CLEAR(s->dict);
    return 0;
}

static void scope_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (SCOPE(self)->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
    (void)scope_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef scope_methods[] = {
    {"start", (PyCFunction)(void (*)(void))scope_start, METH_FASTCALL | METH_KEYWORDS,
     scope_start_doc},
    {"_open", scope_open, METH_VARARGS, NULL},
    {"_add", scope_add, METH_O, NULL},
    {"_settle", (PyCFunction)(void (*)(void))scope_settle, METH_FASTCALL, NULL},
    {"_drop", scope_drop, METH_O, NULL},
    {"_living", scope_living, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef scope_members[] = {
    {"_count", T_PYSSIZET, AT(scope, live), READONLY, NULL},
    {"_finished", T_OBJECT, AT(scope, finished), READONLY, NULL},
    {"_waiter", T_OBJECT, AT(scope, waiter), 0, NULL},
    {"_fast", T_BOOL, AT(scope, fast), 0, NULL},
    {"_watched", T_BOOL, AT(scope, watched), 0, NULL},
    {"__dictoffset__", T_PYSSIZET, AT(scope, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, AT(scope, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot scope_slots[] = {
    {Py_tp_new, scope_new},
    {Py_tp_traverse, scope_traverse},
    {Py_tp_clear, scope_clear},
    {Py_tp_dealloc, scope_dealloc},
    {Py_tp_methods, scope_methods},
    {Py_tp_members, scope_members},
    {Py_tp_doc, "The lists of a scope. Base of plait.Scope."},
    {0, NULL},
};

static PyType_Spec scope_spec = {
    .name = "plait._core.ScopeBase",
    .basicsize = sizeof(struct scope),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = scope_slots,
};

int plait_scope_exec(PyObject *module, struct plait_state *state)
{
    state->handle_base_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &handle_spec, NULL);
    if (state->handle_base_type == NULL || PyModule_AddType(module, state->handle_base_type) < 0)
        return -1;
    state->scope_base_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &scope_spec, NULL);
    if (state->scope_base_type == NULL || PyModule_AddType(module, state->scope_base_type) < 0)
        return -1;
    if ((state->str_ended = PyUnicode_InternFromString("_ended")) == NULL ||
        (state->str_idle = PyUnicode_InternFromString("_idle")) == NULL ||
        (state->str_start = PyUnicode_InternFromString("_start")) == NULL ||
        (state->str_result = PyUnicode_InternFromString("result")) == NULL ||
        (state->str_add_done_callback = PyUnicode_InternFromString("add_done_callback")) == NULL)
        return -1;
    return 0;
}
