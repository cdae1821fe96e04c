/* following.c - plait._core.Following: a loop's future that follows one of concurrent.futures.
 *
 * What asyncio.wrap_future does, for run_in_executor with an executor that is not plait's: the
 * future of the loop gets what comes of the other one, and when it is cancelled, it cancels the
 * other one. asyncio does it with closures, and asks under the other future's lock four times;
 * a future that has a result keeps it, so here it is read as it lies there. All that is not a
 * plain result is left to asyncio's own function.
 *
 * _source_done runs in the thread that ends the work, all else in the loop's. The source keeps its
 * callbacks for ever, and with them this object: so that forgets both futures when all is told.
 */
#include "following.h"

#include "loop.h"

typedef struct {
    PyObject_HEAD
    struct plait_state *state; /* borrows: our type keeps the module alive */
    LoopObject *loop;
    PyObject *source; /* NULL when all is told */
    PyObject *target; /* NULL when all is told */
} FollowingObject;

#define FOLLOWING(o) ((FollowingObject *)(o))

static int following_clear(PyObject *self)
{
    Py_CLEAR(FOLLOWING(self)->source);
    Py_CLEAR(FOLLOWING(self)->target);
    return 0;
}

/* future.add_done_callback(self.name) */
static int call_when_done(PyObject *self, PyObject *future, PyObject *name)
{
    PyObject *method = PyObject_GetAttr(self, name);
    if (method == NULL)
        return -1;
    PyObject *told =
        PyObject_CallMethodOneArg(future, FOLLOWING(self)->state->name_add_done_callback, method);
    Py_DECREF(method);
    Py_XDECREF(told);
    return told == NULL ? -1 : 0;
}

PyDoc_STRVAR(following_doc, "Following(loop, source, /)\n--\n\n"
                            "The future of the loop that follows a concurrent.futures.Future.\n\n"
                            "In the loop's thread; what the source is must have been checked.");

static PyObject *following_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    struct plait_state *state = plait_state_of_type(type);
    PyObject *loop, *source;
    if (state == NULL)
        return NULL;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0)
        return PyErr_Format(PyExc_TypeError, "Following() takes no keyword arguments");
    if (!PyArg_ParseTuple(args, "O!O:Following", state->loop_type, &loop, &source))
        return NULL;
    PyObject *target = PyObject_CallMethodNoArgs(loop, state->name_create_future);
    if (target == NULL)
        return NULL;
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_DECREF(target);
        return NULL;
    }
    FollowingObject *f = FOLLOWING(self);
    f->state = state;
    f->loop = (LoopObject *)Py_NewRef(loop);
    f->source = Py_NewRef(source);
    f->target = target;
    /* The source may be done, and tell at once. */
    if (call_when_done(self, target, state->following_target_done) < 0 ||
        call_when_done(self, source, state->following_source_done) < 0)
        Py_CLEAR(self);
    return self;
}

/* In any thread. A loop that has been closed needs to hear of nothing. */
static PyObject *source_done(PyObject *self, PyObject *source)
{
    FollowingObject *f = FOLLOWING(self);
    PyObject *method = PyObject_GetAttr(self, f->state->following_deliver);
    if (method == NULL)
        return NULL;
    HandleObject *handle = NULL;
    if (plait_loop_is_own(f->state, (PyObject *)f->loop))
        handle = plait_loop_prepare_post(f->loop, method, source);
    if (handle != NULL) {
        pl_loop_post(&f->loop->core, &handle->post); /* moves the handle */
    } else if (!PyErr_Occurred()) {
        PyObject *args[] = {(PyObject *)f->loop, method, source};
        handle = (HandleObject *)PyObject_VectorcallMethod(f->state->name_call_soon_threadsafe,
                                                           args, 3, NULL);
        Py_XDECREF(handle);
    }
    Py_DECREF(method);
    if (PyErr_Occurred()) {
        if (!f->loop->closed || !PyErr_ExceptionMatches(PyExc_RuntimeError))
            return NULL;
        PyErr_Clear();
    }
    Py_RETURN_NONE;
}

/* The result of a source that has one and no exception: 1; 0 for all other ends. */
static int plain_result(struct plait_state *state, PyObject *source, PyObject **result)
{
    *result = NULL;
    PyObject *end = PyObject_GetAttr(source, state->following_state);
    PyObject *exception = end == NULL ? NULL : PyObject_GetAttr(source, state->following_exception);
    bool plain = exception == Py_None && PyUnicode_Check(end) &&
                 PyUnicode_CompareWithASCIIString(end, "FINISHED") == 0;
    bool failed = exception == NULL;
    Py_XDECREF(end);
    Py_XDECREF(exception);
    if (plain)
        *result = PyObject_GetAttr(source, state->following_result);
    return failed || (plain && *result == NULL) ? -1 : plain;
}

static PyObject *deliver(PyObject *self, PyObject *source)
{
    FollowingObject *f = FOLLOWING(self);
    struct plait_state *state = f->state;
    PyObject *target = f->target;
    f->target = NULL;
    if (target == NULL) /* it was cancelled */
        Py_RETURN_NONE;
    Py_CLEAR(f->source);
    PyObject *told = NULL;
    PyObject *result = NULL;
    PyObject *answer = PyObject_CallMethodNoArgs(target, state->name_done);
    int done = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    int plain = done == 0 ? plain_result(state, source, &result) : -1;
    if (done > 0) {
        told = Py_NewRef(Py_None);
    } else if (plain > 0) {
        told = PyObject_CallMethodOneArg(target, state->name_set_result, result);
    } else if (plain == 0) {
        PyObject *copy = PyDict_GetItemString(state->asyncio_futures, "_copy_future_state");
        if (copy == NULL)
            PyErr_SetString(PyExc_AttributeError, "asyncio has no _copy_future_state any more");
        else
            told = PyObject_CallFunctionObjArgs(copy, source, target, NULL);
    }
    Py_XDECREF(result);
    Py_DECREF(target);
    return told;
}

/* In the loop's thread, like all callbacks of its futures. */
static PyObject *target_done(PyObject *self, PyObject *target)
{
    FollowingObject *f = FOLLOWING(self);
    if (f->source == NULL) /* it was delivered */
        Py_RETURN_NONE;
    PyObject *cancelled = PyObject_CallMethodNoArgs(target, f->state->following_cancelled);
    PyObject *told = Py_XNewRef(cancelled);
    if (cancelled == Py_True)
        Py_XSETREF(told, PyObject_CallMethodNoArgs(f->source, f->state->name_cancel));
    Py_XDECREF(cancelled);
    (void)following_clear(self);
    return told;
}

static PyObject *get_future(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *target = FOLLOWING(self)->target;
    return Py_NewRef(target != NULL ? target : Py_None);
}

static int following_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(FOLLOWING(self)->loop);
    Py_VISIT(FOLLOWING(self)->source);
    Py_VISIT(FOLLOWING(self)->target);
    return 0;
}

static void following_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)following_clear(self);
    Py_XDECREF(FOLLOWING(self)->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef following_methods[] = {
    {"_source_done", source_done, METH_O, NULL},
    {"_target_done", target_done, METH_O, NULL},
    {"_deliver", deliver, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef following_getset[] = {
    {"future", get_future, NULL, "The future of the loop; None when all has been told.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot following_slots[] = {
    {Py_tp_doc, (void *)following_doc}, {Py_tp_new, following_new},
    {Py_tp_dealloc, following_dealloc}, {Py_tp_traverse, following_traverse},
    {Py_tp_clear, following_clear},     {Py_tp_methods, following_methods},
    {Py_tp_getset, following_getset},   {0, NULL},
};

static PyType_Spec following_spec = {
    .name = "plait._core.Following",
    .basicsize = sizeof(FollowingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = following_slots,
};

int plait_following_type(PyObject *module, struct plait_state *state)
{
#define X(name, text)                                                                              \
    if ((state->name = PyUnicode_InternFromString(text)) == NULL)                                  \
        return -1;
    PLAIT_FOLLOWING_NAMES(X)
#undef X
    PyObject *type = PyType_FromModuleAndSpec(module, &following_spec, NULL);
    int r = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return r;
}
