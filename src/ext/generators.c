/* generators.c - the scheduler of plait.generators: starting, stepping, finishing, closing.
 *
 * A task is a generator with a place in the loop's ready queue. A step resumes it, carries
 * out the request that it yields, and goes on at once when that needs no waiting, STEP_LIMIT
 * times at most: then it takes its turn behind everybody else.
 *
 * Invariants:
 *   - A task is READY (its op is queued), RUNNING (at most one per loop), WAITING (exactly
 *     one of fd, joined, waiter is set, or the timer is started), or DONE.
 *   - `value` and `exc` are what the next step sends or throws; in a task that is DONE, the
 *     result and the exception it ended with.
 *   - The list of live tasks holds one reference to each. A task leaves it when it is DONE
 *     and the loop has no op of it, so a queued op never points to freed memory.
 */
#include "generators.h"

#include <errno.h>

/* Requests carried out in one go: a peer that always has data for one task must not keep the
 * others from theirs. */
#define STEP_LIMIT 16

/* How often a generator that is being closed may yield before it is given up. */
#define REFUSAL_LIMIT 8

/* ---- the loop's part ---------------------------------------------------- */

struct gen_loop *plait_generators_of(LoopObject *loop)
{
    if (plait_loop_check(loop) < 0)
        return NULL;
    if (loop->generators == NULL) {
        struct gen_loop *g = PyMem_Calloc(1, sizeof(*g));
        if (g == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        g->loop = loop;
        loop->generators = g;
    }
    if (loop->generators->closing) {
        PyErr_SetString(PyExc_RuntimeError,
                        "no generator can be started: the loop's generators are being closed");
        return NULL;
    }
    return loop->generators;
}

static void list_append(struct gen_loop *g, TaskObject *t)
{
    t->prev = g->last;
    t->next = NULL;
    if (g->last != NULL)
        g->last->next = t;
    else
        g->first = t;
    g->last = t;
    t->listed = true;
    Py_INCREF(t);
}

/* Takes the task out of the list, and gives up the list's reference. */
static void list_remove(struct gen_loop *g, TaskObject *t)
{
    if (t->prev != NULL)
        t->prev->next = t->next;
    else
        g->first = t->next;
    if (t->next != NULL)
        t->next->prev = t->prev;
    else
        g->last = t->prev;
    t->prev = t->next = NULL;
    t->listed = false;
    Py_DECREF(t);
}

/* Lets go of a task that has ended, unless the loop still has an op of it. */
void plait_gen_release(TaskObject *t)
{
    if (t->listed && t->state == GEN_DONE && !t->queued && !t->timed && t->stale_timers == 0)
        list_remove(t->loop->generators, t);
}

int plait_generators_visit(LoopObject *loop, visitproc visit, void *arg)
{
    struct gen_loop *g = loop->generators;
    for (TaskObject *t = g->first; t != NULL; t = t->next)
        Py_VISIT(t);
    for (uint32_t i = 0; i < g->nfds; i++) {
        if (g->fds[i] != NULL)
            Py_VISIT(g->fds[i]->weak);
    }
    return 0;
}

void plait_generators_close(LoopObject *loop)
{
    struct gen_loop *g = loop->generators;
    if (g == NULL || g->running != NULL)
        return;
    /* In a forked child they are the parent's: their `finally` blocks are not ours to run. */
    if (loop->core_ready && !pl_loop_is_ours(&loop->core))
        return;
    g->closing = true;
    /* The youngest first, as with-blocks end. Closing one can end others. */
    TaskObject *t = g->last;
    while (t != NULL) {
        if (t->state == GEN_DONE) {
            t = t->prev;
            continue;
        }
        Py_INCREF(t);
        plait_gen_close_now(t);
        TaskObject *next = t->listed ? t->prev : g->last;
        Py_DECREF(t);
        t = next;
    }
    g->closing = false;
}

void plait_generators_drop(LoopObject *loop)
{
    struct gen_loop *g = loop->generators;
    if (g == NULL)
        return;
    for (TaskObject *t = g->first; t != NULL; t = t->next) {
        t->queued = t->timed = false;
        t->stale_timers = 0;
        t->fd = NULL;
    }
    struct gen_fd **fds = g->fds;
    uint32_t nfds = g->nfds;
    g->fds = NULL;
    g->nfds = g->waiting_fds = 0;
    for (uint32_t i = 0; i < nfds; i++) {
        if (fds[i] == NULL)
            continue;
        Py_XDECREF(fds[i]->weak);
        Py_XDECREF(fds[i]->given);
        PyMem_Free(fds[i]);
    }
    PyMem_Free(fds);
    while (g->first != NULL)
        list_remove(g, g->first); /* may run code of the user's: it finds a closed loop */
    loop->generators = NULL;
    PyMem_Free(g);
}

/* ---- starting ----------------------------------------------------------- */

static int flag_of(PyObject *gen, const char *name)
{
    PyObject *flag = PyObject_GetAttrString(gen, name);
    int is = flag == NULL ? -1 : PyObject_IsTrue(flag);
    Py_XDECREF(flag);
    return is;
}

int plait_gen_check(const char *what, PyObject *gen)
{
    if (!PyGen_CheckExact(gen)) {
        const char *hint = "";
        if (PyFunction_Check(gen) || PyMethod_Check(gen))
            hint = "; call the function first";
        else if (PyCoro_CheckExact(gen))
            hint = "; a coroutine is started by asyncio's create_task";
        PyErr_Format(PyExc_TypeError, "%s(): gen must be a generator, not %.200R%s", what, gen,
                     hint);
        return -1;
    }
    int running = flag_of(gen, "gi_running");
    if (running < 0)
        return -1;
    int begun = running != 0 ? 1 : flag_of(gen, "gi_suspended");
    if (begun < 0)
        return -1;
    const char *problem = NULL;
    if (running != 0)
        problem = "is running already";
    else if (begun != 0)
        problem = "has been started already";
    if (problem == NULL) {
        PyObject *frame = PyObject_GetAttrString(gen, "gi_frame");
        if (frame == NULL)
            return -1;
        if (frame == Py_None)
            problem = "has ended already";
        Py_DECREF(frame);
    }
    if (problem == NULL)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s(): the generator %R %s", what, gen, problem);
    return -1;
}

static void task_run(struct pl_loop *core, struct pl_op *op);

TaskObject *plait_gen_start(LoopObject *loop, PyObject *gen, PyObject *name)
{
    struct gen_loop *g = plait_generators_of(loop);
    if (g == NULL)
        return NULL;
    if (!pl_loop_is_ours(&loop->core)) {
        (void)plait_raise(loop->state, PL_EFORKED, "cannot start a generator");
        return NULL;
    }
    TaskObject *t = plait_gen_task_new(loop, gen, name);
    if (t == NULL)
        return NULL;
    t->post.op.run = task_run;
    list_append(g, t);
    plait_gen_enqueue(t);
    return t;
}

void plait_gen_enqueue(TaskObject *t)
{
    t->state = GEN_READY;
    if (t->queued || !t->loop->core_ready)
        return;
    t->queued = true;
    /* Posts have a list of their own that needs no memory. */
    if (pl_loop_enqueue(&t->loop->core, &t->post.op) < 0)
        pl_loop_post(&t->loop->core, &t->post);
}

/* ---- finishing ---------------------------------------------------------- */

void plait_gen_take_error(TaskObject *t)
{
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb != NULL && exc != NULL)
        (void)PyException_SetTraceback(exc, tb);
    Py_XDECREF(type);
    Py_XDECREF(tb);
    Py_CLEAR(t->value);
    Py_CLEAR(t->source);
    Py_XSETREF(t->exc, exc);
}

/* The generator has ended: `result`, which moves, or t->exc when it is NULL. */
static void finish(TaskObject *t, PyObject *result)
{
    LoopObject *loop = t->loop;
    if (result != NULL)
        Py_CLEAR(t->exc);
    Py_XSETREF(t->value, result);
    t->state = GEN_DONE;
    t->closing = false;
    Py_CLEAR(t->gen);
    Py_CLEAR(t->context);
    bool fatal = t->exc != NULL && (PyErr_GivenExceptionMatches(t->exc, PyExc_SystemExit) ||
                                    PyErr_GivenExceptionMatches(t->exc, PyExc_KeyboardInterrupt));
    plait_gen_tell_joiners(t);
    plait_gen_call_back(t);
    if (fatal) {
        /* These leave the loop, whoever waits for the task. */
        t->retrieved = true;
        PyErr_SetObject((PyObject *)Py_TYPE(t->exc), t->exc);
        plait_loop_handle_error(loop, NULL, NULL, NULL, NULL, NULL);
    }
}

/* ---- stepping ----------------------------------------------------------- */

/* What a StopIteration that is set carries. A new reference; NULL with another exception. */
static PyObject *take_return_value(void)
{
    if (!PyErr_ExceptionMatches(PyExc_StopIteration))
        return NULL;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    PyObject *value = exc == NULL ? NULL : PyObject_GetAttrString(exc, "value");
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
    return value;
}

/* Sends t->value or throws t->exc. */
static PySendResult resume(TaskObject *t, PyObject **out)
{
    PyObject *value = t->value;
    PyObject *exc = t->exc;
    t->value = t->exc = NULL;
    PySendResult r;
    if (PL_LIKELY(exc == NULL)) {
        r = PyGen_Type.tp_as_async->am_send(t->gen, value != NULL ? value : Py_None, out);
        Py_XDECREF(value);
        return r;
    }
    if (t->source != NULL) {
        ((TaskObject *)t->source)->retrieved = true;
        Py_CLEAR(t->source);
    }
    *out = PyObject_CallMethodOneArg(t->gen, t->loop->state->gen_str_throw, exc);
    r = PYGEN_NEXT;
    if (*out == NULL) {
        *out = take_return_value();
        r = *out != NULL ? PYGEN_RETURN : PYGEN_ERROR;
    }
    Py_XDECREF(value);
    Py_DECREF(exc);
    return r;
}

static void refuse_value(PyObject *yielded)
{
    const char *hint = "";
    if (PyGen_CheckExact(yielded))
        hint = "; a generator is run by `yield from`, spawn() or timeout()";
    else if (PyCoro_CheckExact(yielded))
        hint = "; a coroutine can be waited for as an asyncio task";
    else if (PyObject_HasAttrString(yielded, "add_done_callback"))
        hint = "; a task or future is waited for by wait()";
    PyErr_Format(PyExc_TypeError,
                 "a generator yielded %.200R, which is no request: it can yield what recv(), "
                 "send(), sleep(), wait() and the others of plait.generators return%s",
                 yielded, hint);
}

/* It was told to exit and yields again. False when it is given up. */
static bool refuse_to_wait(TaskObject *t, PyObject *yielded)
{
    PyErr_Format(PyExc_RuntimeError,
                 "a generator that is being closed cannot wait: %U yielded %.200R", t->name,
                 yielded);
    plait_gen_take_error(t);
    return ++t->refusals <= REFUSAL_LIMIT;
}

enum step_end {
    STEP_LEFT,  /* it waits, or is queued again */
    STEP_VALUE, /* it returned */
    STEP_ERROR, /* it raised t->exc */
    STEP_EXIT,  /* it was closed */
};

/* A generator started by someone else meanwhile must not be resumed by us. */
static int check_first(TaskObject *t)
{
    t->fresh = false;
    return plait_gen_check("spawn", t->gen);
}

/* Resumes the generator until it has to wait. Its context is entered. */
static enum step_end run_generator(TaskObject *t, PyObject **result)
{
    struct plait_state *state = t->loop->state;
    if (t->fresh && check_first(t) < 0) {
        plait_gen_take_error(t);
        return STEP_ERROR;
    }
    for (int left = STEP_LIMIT;; left--) {
        if (PL_UNLIKELY(t->closing && !t->exiting)) {
            t->exiting = true;
            PyErr_SetNone(PyExc_GeneratorExit);
            plait_gen_take_error(t);
        } else if (left == 0) {
            plait_gen_enqueue(t);
            return STEP_LEFT;
        }
        PyObject *yielded;
        PySendResult r = resume(t, &yielded);
        if (PL_UNLIKELY(r == PYGEN_RETURN)) {
            if (t->exiting) {
                Py_DECREF(yielded);
                return STEP_EXIT;
            }
            *result = yielded;
            return STEP_VALUE;
        }
        if (PL_UNLIKELY(r == PYGEN_ERROR)) {
            bool exit = t->exiting && PyErr_ExceptionMatches(PyExc_GeneratorExit);
            plait_gen_take_error(t);
            return exit ? STEP_EXIT : STEP_ERROR;
        }
        if (PL_UNLIKELY(t->exiting)) {
            bool again = refuse_to_wait(t, yielded);
            Py_DECREF(yielded);
            if (!again)
                return STEP_ERROR;
            left = STEP_LIMIT;
            continue;
        }
        if (PL_UNLIKELY(t->closing)) { /* it has cancelled itself */
            Py_DECREF(yielded);
            continue;
        }
        enum gen_outcome outcome = GEN_FAILED;
        RequestObject *rq = (RequestObject *)yielded;
        PyObject *value = NULL;
        if (PL_UNLIKELY(!Py_IS_TYPE(yielded, state->gen_request_type)))
            refuse_value(yielded);
        else
            outcome = plait_gen_begin(t, rq, &value);
        if (outcome == GEN_GOT) {
            Py_DECREF(yielded);
            t->value = value;
        } else if (outcome == GEN_BLOCKED) {
            t->request = rq;
            t->state = GEN_WAITING;
            if (PL_LIKELY(!t->closing))
                return STEP_LEFT;
            plait_gen_unhook(t, true); /* what the request called has cancelled us */
            t->state = GEN_RUNNING;
        } else if (outcome == GEN_AGAIN) {
            Py_DECREF(yielded);
            plait_gen_enqueue(t);
            return STEP_LEFT;
        } else {
            plait_gen_take_error(t);
            Py_DECREF(yielded);
        }
    }
}

void plait_gen_step(TaskObject *t)
{
    LoopObject *loop = t->loop;
    struct gen_loop *g = loop->generators;
    Py_INCREF(t);
    int64_t t0 = PL_UNLIKELY(loop->debug) ? loop->core.sys->now() : 0;
    TaskObject *outer = g->running;
    enum step_end end = STEP_ERROR;
    PyObject *result = NULL;
    t->state = GEN_RUNNING;
    g->running = t;
    g->steps++;
    if (PL_LIKELY(PyContext_Enter(t->context) == 0)) {
        end = run_generator(t, &result);
        if (PyContext_Exit(t->context) < 0)
            PyErr_WriteUnraisable((PyObject *)t);
    } else {
        plait_gen_take_error(t);
    }
    g->running = outer;
    if (end == STEP_VALUE) {
        finish(t, result);
    } else if (end == STEP_ERROR) {
        finish(t, NULL);
    } else if (end == STEP_EXIT) {
        t->cancelled = true;
        finish(t, Py_NewRef(Py_None));
    }
    if (PL_UNLIKELY(g->waiting_fds > 0))
        plait_gen_io_watch_closing(g);
    if (PL_UNLIKELY(t0 != 0))
        plait_loop_report_slow(loop, (PyObject *)t, t0);
    plait_gen_release(t);
    Py_DECREF(t);
}

static void task_run(struct pl_loop *core, struct pl_op *op)
{
    (void)core;
    TaskObject *t = PL_CONTAINER_OF(op, TaskObject, post.op);
    t->queued = false;
    if (PL_UNLIKELY(t->state != GEN_READY))
        plait_gen_release(t); /* closed while it was queued */
    else if (PL_UNLIKELY(t->closing))
        plait_gen_close_now(t);
    else
        plait_gen_step(t);
}

/* ---- closing ------------------------------------------------------------ */

void plait_gen_close_now(TaskObject *t)
{
    if (t->state == GEN_DONE || t->state == GEN_RUNNING)
        return;
    /* From the innermost task that timeout() started for this one outwards, as `yield from`
     * would; in a loop, because they may be many. */
    TaskObject *inner = t;
    for (;;) {
        inner->closing = true;
        if (!inner->owns_joined || inner->joined == NULL || inner->joined->state == GEN_RUNNING)
            break;
        inner = inner->joined;
    }
    for (;;) {
        TaskObject *outer = inner == t ? NULL : inner->first_joiner;
        if (inner->state == GEN_WAITING)
            plait_gen_unhook(inner, true);
        plait_gen_step(inner);
        if (outer == NULL)
            return;
        inner = outer;
    }
}

/* ---- the module's part -------------------------------------------------- */

static int import_from(const char *module_name, const char *name, PyObject **place)
{
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return -1;
    *place = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return *place == NULL ? -1 : 0;
}

static int make_exceptions(PyObject *functions, struct plait_state *state)
{
    PyObject *base;
    if (import_from("plait._exceptions", "PlaitError", &base) < 0)
        return -1;
    state->gen_cancelled = PyErr_NewExceptionWithDoc(
        "plait.generators.Cancelled", "What a task waited for, a task or a future, was cancelled.",
        base, NULL);
    PyObject *bases = PyTuple_Pack(2, base, PyExc_RuntimeError);
    Py_DECREF(base);
    if (bases != NULL)
        state->gen_deadlock = PyErr_NewExceptionWithDoc(
            "plait.generators.Deadlock",
            "Tasks would wait for each other in a circle; raised in the one that would close it.",
            bases, NULL);
    Py_XDECREF(bases);
    if (state->gen_cancelled == NULL || state->gen_deadlock == NULL ||
        PyObject_SetAttrString(functions, "Cancelled", state->gen_cancelled) < 0 ||
        PyObject_SetAttrString(functions, "Deadlock", state->gen_deadlock) < 0)
        return -1;
    return 0;
}

/* What the method of the C type does, without the way there: it is asked for each request. Sockets
 * of a program that has put a class of its own in the place of socket.socket may be no such type:
 * none then. */
static int take_fileno(struct plait_state *state, PyObject *base_socket)
{
    if (!PyType_IsSubtype((PyTypeObject *)state->socket_type, (PyTypeObject *)base_socket))
        return 0;
    const PyMethodDef *def = Py_IS_TYPE(state->gen_fileno, &PyMethodDescr_Type)
                                 ? ((PyMethodDescrObject *)state->gen_fileno)->d_method
                                 : NULL;
    if (def == NULL || def->ml_flags != METH_NOARGS) {
        PyErr_Format(PyExc_SystemError, "%R is no method of C without arguments",
                     state->gen_fileno);
        return -1;
    }
    state->generators.fileno = def->ml_meth;
    return 0;
}

int plait_generators_exec(PyObject *module, struct plait_state *state)
{
    static const struct {
        size_t offset;
        const char *text;
    } names[] = {
#define NAME(field, text) {offsetof(struct plait_state, field), text}
        NAME(gen_str_add_done_callback, "add_done_callback"),
        NAME(gen_str_blocking, "_asyncio_future_blocking"),
        NAME(gen_str_call_soon_threadsafe, "call_soon_threadsafe"),
        NAME(gen_str_cancel, "cancel"),
        NAME(gen_str_cancelled, "cancelled"),
        NAME(gen_str_get_loop, "get_loop"),
        NAME(gen_str_remove_done_callback, "remove_done_callback"),
        NAME(gen_str_result, "result"),
        NAME(gen_str_throw, "throw"),
#undef NAME
    };
    for (size_t i = 0; i < PL_ARRAY_LEN(names); i++) {
        PyObject **place = (PyObject **)(void *)((char *)state + names[i].offset);
        *place = PyUnicode_InternFromString(names[i].text);
        if (*place == NULL)
            return -1;
    }
    PyObject *base_socket;
    if (import_from("asyncio", "CancelledError", &state->gen_asyncio_cancelled) < 0 ||
        import_from("asyncio", "InvalidStateError", &state->gen_invalid_state) < 0 ||
        import_from("asyncio.events", "_get_running_loop", &state->gen_running_loop) < 0 ||
        import_from("concurrent.futures", "Future", &state->gen_cf_future) < 0 ||
        import_from("_socket", "socket", &base_socket) < 0)
        return -1;
    state->gen_fileno = PyObject_GetAttrString(base_socket, "fileno");
    int r = state->gen_fileno == NULL ? -1 : take_fileno(state, base_socket);
    Py_DECREF(base_socket);
    if (r < 0)
        return -1;
    PyObject *functions = PyModule_New("plait.generators");
    if (functions == NULL)
        return -1;
    r = make_exceptions(functions, state);
    if (r == 0)
        r = plait_gen_request_type(module, functions, state);
    if (r == 0)
        r = plait_gen_task_type(module, functions, state);
    if (r == 0)
        r = plait_gen_wait_types(module, state);
    if (r == 0)
        r = PyObject_SetAttrString(functions, "Request", (PyObject *)state->gen_request_type);
    if (r == 0)
        r = PyObject_SetAttrString(functions, "Task", (PyObject *)state->gen_task_type);
    if (r == 0)
        r = PyModule_AddObjectRef(module, "generators", functions);
    Py_DECREF(functions);
    return r;
}

void plait_generators_clear(struct plait_state *state)
{
    plait_free_list_clear(&state->generators.requests);
}
