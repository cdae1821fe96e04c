/* task.c - functions that are placed by measurement.
 *
 * A Task calls its function at once, in the caller's thread, where that is known or hoped to
 * be short, and hands it to `elsewhere` (plait._auto, which has the pools) where it is not.
 * What is known is kept by the shape of the arguments, one record each.
 *
 * A record's state is HERE or AWAY. It leaves HERE when a call takes longer than the budget,
 * and comes back when `need` calls in a row, measured elsewhere, have taken less than half of
 * it. `need` doubles each time that it leaves, and falls slowly while it stays: so a cost that
 * lies near the budget or changes back and forth does not make calls flap.
 *
 * Sections: records, the call, the type.
 */
#include "budget.h"
#include "call.h"
#include "shape.h"

#include <structmember.h>

/* ---- records ---- */

enum { HERE, AWAY };

#define RECORDS_MAX 256 /* shapes that are told apart; the last record takes all others */
#define NEED_MAX 1024
#define CALM 4096      /* calls inline without a strike that halve `need` */
#define PROVEN 16      /* calls inline after which a shape is trusted to be short */
#define NEWBORNS_BAD 8 /* so many new shapes in a row too long: the next ones start away */

struct record {
    uint64_t key;
    PyObject *label; /* owns */
    uint8_t where;
    uint32_t need; /* short calls elsewhere that bring it back */
    uint32_t good; /* how many there were in a row */
    uint32_t calm;
    uint64_t calls; /* inline, that ended within the budget */
    uint64_t strikes;
    uint64_t away;
    int64_t total_ns; /* of `calls` */
    int64_t max_ns;
    int64_t recent_ns;   /* a moving mean of `calls` */
    int64_t away_cpu_ns; /* a moving mean of what was measured elsewhere */
    int64_t away_wall_ns;
};

struct task {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *fn;        /* owns */
    PyObject *elsewhere; /* owns: elsewhere(task, fn, record, args, kwargs, wait) */
    PyObject *seeds;     /* owns: {label: tuple}, what a file told; or NULL */
    PyObject *dict;
    PyObject *weakrefs;
    struct plait_state *state; /* borrows: the type keeps the module */
    int64_t budget_ns;
    bool pure;
    uint32_t newborns_bad;
    uint32_t probe;
    struct record *records; /* owns; the index of a record never changes */
    uint32_t nrecords;
    uint32_t cap;
    uint16_t *table; /* owns; open addressing: index + 1 by key */
    uint32_t table_len;
};

#define TASK(o) ((struct task *)(o))

static int enter(struct task *t, uint64_t key, uint32_t index)
{
    if (2 * (t->nrecords + 1) > t->table_len) {
        uint32_t len = t->table_len == 0 ? 16 : 2 * t->table_len;
        uint16_t *table = PyMem_Calloc(len, sizeof *table);
        if (table == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        for (uint32_t i = 0; i < t->nrecords; i++) {
            uint32_t at = (uint32_t)t->records[i].key & (len - 1);
            while (table[at] != 0)
                at = (at + 1) & (len - 1);
            table[at] = (uint16_t)(i + 1);
        }
        PyMem_Free(t->table);
        t->table = table;
        t->table_len = len;
    }
    uint32_t at = (uint32_t)key & (t->table_len - 1);
    while (t->table[at] != 0)
        at = (at + 1) & (t->table_len - 1);
    t->table[at] = (uint16_t)(index + 1);
    return 0;
}

/* Takes over what a file has told about this label. Wrong entries were refused at loading. */
static void seed(struct task *t, struct record *r)
{
    PyObject *known = t->seeds == NULL ? NULL : PyDict_GetItemWithError(t->seeds, r->label);
    if (known == NULL || !PyTuple_Check(known)) {
        PyErr_Clear();
        return;
    }
    unsigned char where;
    unsigned int need;
    unsigned long long calls, strikes, away;
    long long total, max, recent, cpu, wall;
    if (!PyArg_ParseTuple(known, "bIKKKLLLLL", &where, &need, &calls, &strikes, &away, &total, &max,
                          &recent, &cpu, &wall)) {
        PyErr_Clear();
        return;
    }
    r->where = where == AWAY ? AWAY : HERE;
    r->need = need;
    r->calls = calls;
    r->strikes = strikes;
    r->away = away;
    r->total_ns = total;
    r->max_ns = max;
    r->recent_ns = recent;
    r->away_cpu_ns = cpu;
    r->away_wall_ns = wall;
}

/* Makes the record of a shape that comes for the first time: its index, -1 on error. */
static int add_record(struct task *t, uint64_t key, PyObject *label)
{
    if (t->nrecords == t->cap) {
        uint32_t cap = t->cap == 0 ? 8 : 2 * t->cap;
        struct record *records = PyMem_Realloc(t->records, cap * sizeof *records);
        if (records == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        t->records = records;
        t->cap = cap;
    }
    if (enter(t, key, t->nrecords) < 0)
        return -1;
    struct record *r = &t->records[t->nrecords];
    *r = (struct record){.key = key, .label = Py_NewRef(label), .need = 1};
    if (!t->pure) {
        /* It cannot be interrupted, so it must prove that it is short. */
        r->where = AWAY;
        r->need = 3;
    } else if (t->newborns_bad >= NEWBORNS_BAD && ++t->probe % 8 != 0) {
        r->where = AWAY;
    }
    seed(t, r);
    return (int)t->nrecords++;
}

static int find_record(struct task *t, uint64_t key)
{
    if (t->table_len == 0)
        return -1;
    uint32_t mask = t->table_len - 1;
    for (uint32_t at = (uint32_t)key & mask; t->table[at] != 0; at = (at + 1) & mask)
        if (t->records[t->table[at] - 1].key == key)
            return t->table[at] - 1;
    return -1;
}

/* The record for these arguments: its index, -1 with an exception set. */
static int record_of(struct task *t, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    uint64_t key = plait_shape_key(args, nargs, kwnames);
    int index = find_record(t, key);
    if (index >= 0)
        return index;
    PyObject *label;
    if (t->nrecords >= RECORDS_MAX - 1) {
        key = 0; /* no shape has this key */
        index = find_record(t, key);
        if (index >= 0)
            return index;
        label = PyUnicode_FromString("(other shapes)");
    } else {
        label = plait_shape_label(args, nargs, kwnames);
        /* Making the label may have run Python, and another thread may have been here. */
        index = label == NULL ? -1 : find_record(t, key);
    }
    if (label != NULL && index < 0)
        index = add_record(t, key, label);
    Py_XDECREF(label);
    return index;
}

static int64_t mean(int64_t old, int64_t value, uint64_t seen)
{
    return seen <= 1 ? value : old + (value - old) / 8;
}

/* A call inline has ended within its time, or beyond it where it could not be interrupted. */
static void note_here(struct task *t, struct record *r, int64_t took)
{
    r->calls++;
    r->total_ns += took;
    if (took > r->max_ns)
        r->max_ns = took;
    r->recent_ns = mean(r->recent_ns, took, r->calls);
    if (r->calls == 1)
        t->newborns_bad = 0;
    if (++r->calm >= CALM) {
        r->calm = 0;
        if (r->need > 1)
            r->need /= 2;
    }
}

static void note_strike(struct task *t, struct record *r)
{
    if (r->calls == 0 && r->strikes == 0)
        t->newborns_bad++;
    r->where = AWAY;
    r->good = 0;
    r->calm = 0;
    /* The first strike may be the machine's fault, so one good measurement undoes it. */
    if (r->strikes++ > 0 && r->need < NEED_MAX)
        r->need *= 2;
}

/* ---- the call ---- */

/* Hands the call over. A new reference to what `elsewhere` returns. */
static PyObject *go_elsewhere(struct task *t, PyObject *fn, int index, PyObject *const *args,
                              Py_ssize_t nargs, PyObject *kwnames, bool wait)
{
    PyObject *tuple = PyTuple_New(nargs);
    PyObject *kwargs = PyDict_New();
    PyObject *told = NULL;
    if (tuple == NULL || kwargs == NULL)
        goto out;
    for (Py_ssize_t i = 0; i < nargs; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++)
        if (PyDict_SetItem(kwargs, PyTuple_GET_ITEM(kwnames, i), args[nargs + i]) < 0)
            goto out;
    told = PyObject_CallFunction(t->elsewhere, "OOiOOO", t, fn, index, tuple, kwargs,
                                 wait ? Py_True : Py_False);
out:
    Py_XDECREF(tuple);
    Py_XDECREF(kwargs);
    return told;
}

/* Runs fn in this thread if that is where it belongs. Whether it has ended, with *result or an
 * exception; else it is to run elsewhere. */
static bool try_here(struct plait_state *state, struct plait_slot *slot, struct task *t,
                     PyObject *fn, int index, PyObject *const *args, size_t nargsf,
                     PyObject *kwnames, PyObject **result)
{
    if (t->records[index].where == AWAY)
        return false;
    int64_t took;
    struct plait_counts begin = {0};
    bool interrupted = false;
    if (t->pure) {
        interrupted = plait_budget_call(state, slot, fn, args, nargsf, kwnames, t->budget_ns,
                                        t->records[index].calls < PROVEN, result, &took) != 0;
    } else {
        int64_t start = plait_budget_now();
        plait_counts_begin(slot, start, &begin);
        *result = plait_slot_call(slot, fn, args, nargsf, kwnames);
        took = plait_budget_now() - start;
    }
    struct record *r = &t->records[index]; /* calls within may have moved the records */
    if (interrupted) {
        note_strike(t, r);
        return false;
    }
    note_here(t, r, took);
    /* Time in which others had the processor says nothing about the function. */
    if (!t->pure && took > t->budget_ns && plait_counts_cost(&begin, took) > t->budget_ns)
        note_strike(t, r);
    return true;
}

/* Calls fn, the task's own function or one that shares its figures. */
static PyObject *call_placed(struct plait_state *state, struct task *t, PyObject *fn,
                             PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    struct plait_slot *slot = plait_slot_get(state);
    if (slot == NULL)
        return NULL;
    if (slot->depth > 0) /* within a task: a plain call */
        return plait_slot_call(slot, fn, args, nargsf, kwnames);
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    int index = record_of(t, args, nargs, kwnames);
    if (index < 0)
        return NULL;
    PyObject *result = NULL;
    if (!try_here(state, slot, t, fn, index, args, nargsf, kwnames, &result)) {
        PyObject *inner = go_elsewhere(t, fn, index, args, nargs, kwnames, false);
        return inner == NULL ? NULL : plait_call_new(state, fn, NULL, NULL, inner);
    }
    if (result != NULL)
        return plait_call_new(state, fn, result, NULL, NULL);
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL; /* Ctrl+C and the like are for whoever runs now */
    PyObject *error = plait_take_error();
    return error == NULL ? NULL : plait_call_new(state, fn, NULL, error, NULL);
}

static PyObject *task_vectorcall(PyObject *self, PyObject *const *args, size_t nargsf,
                                 PyObject *kwnames)
{
    struct task *t = TASK(self);
    return call_placed(t->state, t, t->fn, args, nargsf, kwnames);
}

/* The task that keeps the figures of fn, or fn itself: a new reference. A function's code is told
 * by its address, for its hash would cost more than the rest of a call; the entry keeps the code,
 * so nothing else can come to have the address. */
static PyObject *task_for(struct plait_state *state, PyObject *fn)
{
    struct plait_known *entry = NULL;
    if (PyFunction_Check(fn)) {
        PyObject *code = PyFunction_GET_CODE(fn); // borrowed
        uintptr_t at = (uintptr_t)code;
        entry = &state->budget.known[(at >> 5 ^ at >> 12) % PLAIT_KNOWN];
        if (entry->code == code)
            return Py_NewRef(entry->task);
    }
    if (state->call_finder == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "plait.call is not set up: import plait");
        return NULL;
    }
    PyObject *found = PyObject_CallOneArg(state->call_finder, fn);
    if (found == NULL || !Py_IS_TYPE(found, state->task_type) || found == fn)
        return found;
#ifndef Py_GIL_DISABLED
    if (entry != NULL) {
        struct plait_known old = *entry;
        *entry = (struct plait_known){Py_NewRef(PyFunction_GET_CODE(fn)), Py_NewRef(found)};
        Py_XDECREF(old.code); /* may run Python, which may come here */
        Py_XDECREF(old.task);
    }
#endif
    return found;
}

void plait_task_clear(struct plait_state *state)
{
    for (int i = 0; i < PLAIT_KNOWN; i++) {
        struct plait_known old = state->budget.known[i];
        state->budget.known[i] = (struct plait_known){NULL, NULL};
        Py_XDECREF(old.code);
        Py_XDECREF(old.task);
    }
}

PyDoc_STRVAR(call_doc,
             "call($module, fn, /, *args, **kwargs)\n--\n\n"
             "Call a function where it belongs by what its calls have cost.\n\n"
             "Figures are kept for any callable; a function that is called often is better made a\n"
             "`task`. See there for where calls run.\n\n"
             "Args:\n"
             "    fn: An ordinary function or other callable.\n"
             "    *args: Passed on.\n"
             "    **kwargs: Passed on.\n\n"
             "Returns:\n"
             "    Call: to await, or to ask for its ``result()``.\n\n"
             "Raises:\n"
             "    TypeError: `fn` is not callable, or asynchronous.");

static PyObject *call_any(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames)
{
    struct plait_state *state = plait_state_of_module(module);
    if (nargs < 1)
        return PyErr_Format(PyExc_TypeError, "call() needs a function");
    PyObject *task = task_for(state, args[0]);
    if (task == NULL)
        return NULL;
    PyObject *call =
        task == args[0]
            ? PyObject_Vectorcall(task, args + 1, (size_t)(nargs - 1), kwnames)
            : call_placed(state, TASK(task), args[0], args + 1, (size_t)(nargs - 1), kwnames);
    Py_DECREF(task);
    return call;
}

/* _call_by(finder): finder(fn) gives the task that keeps the figures of fn, or fn. */
static PyObject *call_by(PyObject *module, PyObject *finder)
{
    Py_XSETREF(plait_state_of_module(module)->call_finder, Py_NewRef(finder));
    Py_RETURN_NONE;
}

/* _call_forget(): the finder's books have lost some. */
static PyObject *call_forget(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    plait_task_clear(plait_state_of_module(module));
    Py_RETURN_NONE;
}

static PyObject *task_sync(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    struct task *t = TASK(self);
    struct plait_slot *slot = plait_slot_get(t->state);
    if (slot == NULL)
        return NULL;
    int index = record_of(t, args, nargs, kwnames);
    if (index < 0)
        return NULL;
    PyObject *result = NULL;
    if (try_here(t->state, slot, t, t->fn, index, args, (size_t)nargs, kwnames, &result))
        return result;
    return go_elsewhere(t, t->fn, index, args, nargs, kwnames, true);
}

/* _run_plain(fn, *args, **kwargs): fn as a task, without measuring: what runs in the thread or
 * the process chosen. */
static PyObject *run_plain(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    if (nargs < 1)
        return PyErr_Format(PyExc_TypeError, "_run_plain() needs a function");
    struct plait_slot *slot = plait_slot_get(plait_state_of_module(module));
    if (slot == NULL)
        return NULL;
    return plait_slot_call(slot, args[0], args + 1, (size_t)(nargs - 1), kwnames);
}

/* record(args, kwargs): the index of the record, and whether it is AWAY. */
static PyObject *task_record(PyObject *self, PyObject *arguments)
{
    PyObject *args, *kwargs;
    if (!PyArg_ParseTuple(arguments, "O!O!:_record", &PyTuple_Type, &args, &PyDict_Type, &kwargs))
        return NULL;
    Py_ssize_t nargs = PyTuple_GET_SIZE(args);
    PyObject *names = PySequence_Tuple(kwargs);
    PyObject *values = names == NULL ? NULL : PyDict_Values(kwargs);
    PyObject *list = values == NULL ? NULL : PySequence_List(args);
    PyObject *all = list == NULL ? NULL : PySequence_InPlaceConcat(list, values);
    PyObject *told = NULL;
    if (all != NULL) {
        PyObject *const *items = PySequence_Fast_ITEMS(all);
        int index = record_of(TASK(self), items, nargs, names);
        if (index >= 0)
            told = Py_BuildValue("iO", index,
                                 TASK(self)->records[index].where == AWAY ? Py_True : Py_False);
    }
    Py_XDECREF(names);
    Py_XDECREF(values);
    Py_XDECREF(list);
    Py_XDECREF(all);
    return told;
}

static struct record *record_at(struct task *t, long index)
{
    if (index >= 0 && index < (long)t->nrecords)
        return &t->records[index];
    PyErr_Format(PyExc_IndexError, "there is no record %ld", index);
    return NULL;
}

static PyObject *task_note_away(PyObject *self, PyObject *arguments)
{
    struct task *t = TASK(self);
    long index;
    long long cpu, wall;
    if (!PyArg_ParseTuple(arguments, "lLL:_note_away", &index, &cpu, &wall))
        return NULL;
    struct record *r = record_at(t, index);
    if (r == NULL)
        return NULL;
    r->away++;
    r->away_cpu_ns = mean(r->away_cpu_ns, cpu, r->away);
    r->away_wall_ns = mean(r->away_wall_ns, wall, r->away);
    /* What waits holds the caller up as what computes does; but in a worker process that
     * shares its processor, only the time that it ran says something about the function. */
    int64_t cost = t->pure ? cpu : wall;
    if (cost > t->budget_ns / 2)
        r->good = 0;
    else if (++r->good >= r->need && r->where == AWAY)
        r->where = HERE, r->good = 0;
    Py_RETURN_NONE;
}

static PyObject *task_note_here(PyObject *self, PyObject *arguments)
{
    struct task *t = TASK(self);
    long index;
    long long wall;
    if (!PyArg_ParseTuple(arguments, "lL:_note_here", &index, &wall))
        return NULL;
    struct record *r = record_at(t, index);
    if (r == NULL)
        return NULL;
    note_here(t, r, wall);
    if (wall > t->budget_ns)
        note_strike(t, r);
    Py_RETURN_NONE;
}

static PyObject *record_tuple(const struct record *r)
{
    return Py_BuildValue("OiIKKKLLLLL", r->label, r->where, r->need, (unsigned long long)r->calls,
                         (unsigned long long)r->strikes, (unsigned long long)r->away,
                         (long long)r->total_ns, (long long)r->max_ns, (long long)r->recent_ns,
                         (long long)r->away_cpu_ns, (long long)r->away_wall_ns);
}

static PyObject *task_records(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct task *t = TASK(self);
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < t->nrecords; i++) {
        PyObject *item = record_tuple(&t->records[i]);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* Replaces what is known: shapes that have been seen get it at once, others when they come. */
static PyObject *task_seed(PyObject *self, PyObject *seeds)
{
    struct task *t = TASK(self);
    if (!PyDict_Check(seeds))
        return PyErr_Format(PyExc_TypeError, "_seed() takes a dict, not %R", seeds);
    Py_XSETREF(t->seeds, Py_NewRef(seeds));
    for (uint32_t i = 0; i < t->nrecords; i++)
        seed(t, &t->records[i]);
    Py_RETURN_NONE;
}

/* ---- the type ---- */

static PyObject *task_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fn", "elsewhere", "budget", "pure", NULL};
    PyObject *fn, *elsewhere;
    double budget;
    int pure;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOdp:Task", names, &fn, &elsewhere, &budget,
                                     &pure))
        return NULL;
    if (!PyCallable_Check(fn))
        return PyErr_Format(PyExc_TypeError, "fn must be callable, not %R", fn);
    if (!(budget > 0 && budget <= 3600))
        return PyErr_Format(PyExc_ValueError, "budget must be above 0 and at most 3600 seconds");
    struct task *t = TASK(type->tp_alloc(type, 0));
    if (t == NULL)
        return NULL;
    t->vectorcall = task_vectorcall;
    t->state = plait_state_of_type(type);
    if (t->state == NULL) {
        Py_DECREF(t);
        return NULL;
    }
    t->fn = Py_NewRef(fn);
    t->elsewhere = Py_NewRef(elsewhere);
    t->budget_ns = (int64_t)(budget * 1e9);
    t->pure = pure != 0;
    return (PyObject *)t;
}

static PyObject *task_get(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

static PyObject *task_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyObject_GetAttrString(self, "__qualname__"); /* by reference, as functions go */
}

static PyObject *task_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<plait.Task of %R>", TASK(self)->fn);
}

static int task_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct task *t = TASK(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(t->fn);
    Py_VISIT(t->elsewhere);
    Py_VISIT(t->seeds);
    Py_VISIT(t->dict);
    return 0;
}

static int task_clear(PyObject *self)
{
    struct task *t = TASK(self);
    Py_CLEAR(t->elsewhere);
    Py_CLEAR(t->seeds);
    Py_CLEAR(t->dict);
    return 0;
}

static void task_dealloc(PyObject *self)
{
    struct task *t = TASK(self);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (t->weakrefs != NULL)
        PyObject_ClearWeakRefs(self);
    (void)task_clear(self);
    Py_CLEAR(t->fn);
    for (uint32_t i = 0; i < t->nrecords; i++)
        Py_DECREF(t->records[i].label);
    PyMem_Free(t->records);
    PyMem_Free(t->table);
    type->tp_free(self);
    Py_DECREF(type);
}

#define FAST(f) (PyCFunction)(void (*)(void)) f, METH_FASTCALL | METH_KEYWORDS

static PyMethodDef task_methods[] = {
    {"sync", FAST(task_sync),
     "sync($self, /, *args, **kwargs)\n--\n\nCall the function and return its value; wait in this "
     "thread when it was placed elsewhere.\n\nRaises:\n    BaseException: what the function "
     "raised."},
    {"_record", task_record, METH_VARARGS, NULL},
    {"_note_away", task_note_away, METH_VARARGS, NULL},
    {"_note_here", task_note_here, METH_VARARGS, NULL},
    {"_records", task_records, METH_NOARGS, NULL},
    {"_seed", task_seed, METH_O, NULL},
    {"__reduce__", task_reduce, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef task_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(struct task, vectorcall), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(struct task, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct task, weakrefs), READONLY, NULL},
    {"fn", T_OBJECT_EX, offsetof(struct task, fn), READONLY, "The function itself."},
    {"pure", T_BOOL, offsetof(struct task, pure), READONLY,
     "Whether it may be interrupted and started again."},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *task_get_budget(PyObject *self, void *Py_UNUSED(closure))
{
    return PyFloat_FromDouble((double)TASK(self)->budget_ns / 1e9);
}

static PyGetSetDef task_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {"budget", task_get_budget, NULL, "Seconds that a call may take inline.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot task_slots[] = {
    {Py_tp_new, task_new},
    {Py_tp_dealloc, task_dealloc},
    {Py_tp_traverse, task_traverse},
    {Py_tp_clear, task_clear},
    {Py_tp_methods, task_methods},
    {Py_tp_members, task_members},
    {Py_tp_getset, task_getset},
    {Py_tp_repr, task_repr},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, task_get},
    {Py_tp_doc, "A function that is placed by measurement; plait.task makes them.\n\n"
                "Calling it gives a Call to await; within another task, its plain result."},
    {0, NULL},
};

static PyType_Spec task_spec = {
    .name = "plait.Task",
    .basicsize = sizeof(struct task),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .slots = task_slots,
};

static PyMethodDef functions[] = {
    {"_run_plain", FAST(run_plain), NULL},
    {"call", FAST(call_any), call_doc},
    {"_call_by", call_by, METH_O, NULL},
    {"_call_forget", call_forget, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int plait_task_exec(PyObject *module, struct plait_state *state)
{
    if (plait_call_exec(module, state) < 0)
        return -1;
    state->task_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &task_spec, NULL);
    if (state->task_type == NULL ||
        PyModule_AddObjectRef(module, "Task", (PyObject *)state->task_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
