/* watch.c - add_reader, add_writer, and the descriptors that sock_* calls wait for.
 *
 * See struct plait_watch for the one idea: a record per descriptor, which stays registered.
 * Runs in the loop's thread, with the interpreter attached.
 */
#include "watch.h"

#include "args.h"

static void watch_run(struct pl_loop *core, struct pl_op *op);

struct plait_watch *plait_watch_of_io(struct pl_io *io)
{
    return io == NULL ? NULL : plait_watch_of_op(&io->op);
}

struct plait_watch *plait_watch_of_op(struct pl_op *op)
{
    return op->run == watch_run ? PL_CONTAINER_OF(op, struct plait_watch, io.op) : NULL;
}

struct plait_watch *plait_watch_find(LoopObject *loop, int fd)
{
    return plait_watch_of_io(pl_io_find(&loop->core, fd));
}

/* ---- the life of a watch ------------------------------------------------ */

static struct plait_watch *watch_open(LoopObject *loop, int fd)
{
    struct plait_watch *w = PyMem_Calloc(1, sizeof(*w));
    if (w == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    int r = pl_io_open(&loop->core, &w->io, fd, PL_IO_LEVEL, watch_run);
    if (r < 0) {
        PyMem_Free(w);
        (void)plait_raise(loop->state, r, NULL);
        return NULL;
    }
    return w;
}

/* Leaves the table; freed when its op is not queued and it does not run. The caller has taken
 * its handles and waits. */
static void watch_close(LoopObject *loop, struct plait_watch *w)
{
    PyObject *file = w->file, *sock = w->sock;
    w->file = w->sock = NULL;
    pl_io_close(&loop->core, &w->io);
    if (!w->io.queued && !w->running)
        PyMem_Free(w);
    Py_XDECREF(file);
    Py_XDECREF(sock);
}

static bool watch_has_handles(const struct plait_watch *w)
{
    return w->reader != NULL || w->writer != NULL;
}

/* Nobody would miss it: what calls on a socket have left registered. */
static bool watch_is_idle(const struct plait_watch *w)
{
    return !watch_has_handles(w) && w->waits == NULL;
}

/* Asks the poller for what `add` and all that is there want. 0, or a negative code. */
static int watch_ask(LoopObject *loop, struct plait_watch *w, unsigned add, bool with_handles)
{
    unsigned want = add;
    for (struct plait_sock_wait *wait = w->waits; wait != NULL; wait = wait->next)
        want |= wait->events;
    enum pl_io_mode mode = PL_IO_LEVEL;
    if (with_handles) {
        want |= (w->reader != NULL ? PL_READABLE : 0u) | (w->writer != NULL ? PL_WRITABLE : 0u);
    } else {
        mode = PL_IO_EDGE;
        if (w->io.mode == PL_IO_EDGE) {
            if ((w->io.want & want) == want)
                return 0; /* the call to the kernel that is saved */
            want |= w->io.want;
        }
    }
    w->io.mode = (uint8_t)mode;
    return pl_io_watch(&loop->core, &w->io, want);
}

/* Drops one handle: it is cancelled. */
static void drop_handle(HandleObject **place)
{
    HandleObject *old = *place;
    if (old == NULL)
        return;
    *place = NULL;
    PyObject *result = PyObject_CallMethod((PyObject *)old, "cancel", NULL);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)old);
    Py_XDECREF(result);
    Py_DECREF(old);
}

/* Closes a watch whatever it has. Handles are cancelled; calls try again, and learn from their
 * socket what has become of it. */
static void watch_end(LoopObject *loop, struct plait_watch *w)
{
    HandleObject *reader = w->reader, *writer = w->writer;
    w->reader = w->writer = NULL;
    struct plait_sock_wait *waits = w->waits;
    w->waits = NULL;
    for (struct plait_sock_wait *wait = waits; wait != NULL; wait = wait->next)
        wait->watch = NULL;
    watch_close(loop, w);
    drop_handle(&reader);
    drop_handle(&writer);
    while (waits != NULL) {
        struct plait_sock_wait *wait = waits;
        waits = wait->next;
        plait_sock_wake(wait);
    }
}

void plait_watch_evict(LoopObject *loop, int fd)
{
    struct plait_watch *w = plait_watch_find(loop, fd);
    if (w == NULL)
        return;
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    watch_end(loop, w);
    PyErr_Restore(type, exc, tb);
}

void plait_watch_yield(LoopObject *loop, int fd)
{
    struct plait_watch *w = plait_watch_find(loop, fd);
    if (w != NULL && watch_is_idle(w) && !w->running)
        watch_close(loop, w);
}

int plait_watch_visit(struct plait_watch *w, visitproc visit, void *arg)
{
    Py_VISIT(w->reader);
    Py_VISIT(w->writer);
    Py_VISIT(w->file);
    Py_VISIT(w->sock);
    for (struct plait_sock_wait *wait = w->waits; wait != NULL; wait = wait->next)
        Py_VISIT(plait_sock_of_wait(wait));
    return 0;
}

void plait_watch_drop(LoopObject *loop, struct plait_watch *w)
{
    HandleObject *reader = w->reader, *writer = w->writer;
    w->reader = w->writer = NULL;
    struct plait_sock_wait *waits = w->waits;
    w->waits = NULL;
    for (struct plait_sock_wait *wait = waits; wait != NULL; wait = wait->next)
        wait->watch = NULL;
    watch_close(loop, w);
    Py_XDECREF(reader);
    Py_XDECREF(writer);
    while (waits != NULL) {
        struct plait_sock_wait *wait = waits;
        waits = wait->next;
        Py_DECREF(plait_sock_of_wait(wait));
    }
}

void plait_watch_drop_op(LoopObject *loop, struct plait_watch *w)
{
    w->io.queued = false;
    if (pl_io_find(&loop->core, w->io.fd) != &w->io)
        PyMem_Free(w);
}

/* ---- events ------------------------------------------------------------- */

/* Wakes the calls that wait for one of the events: each tries, and those that come too late
 * wait again. */
static void wake_waits(struct plait_watch *w, unsigned ready)
{
    struct plait_sock_wait *due = NULL, **last = &due;
    for (struct plait_sock_wait **at = &w->waits; *at != NULL;) {
        struct plait_sock_wait *wait = *at;
        if ((wait->events & ready) == 0) {
            at = &wait->next;
            continue;
        }
        *at = wait->next;
        wait->next = NULL;
        wait->watch = NULL;
        *last = wait;
        last = &wait->next;
    }
    while (due != NULL) {
        struct plait_sock_wait *wait = due;
        due = wait->next;
        plait_sock_wake(wait);
    }
}

/* As in asyncio, a handle that somebody else has cancelled watches no more: its level would be
 * told for ever. The watch may be freed. */
static void drop_cancelled(LoopObject *loop, struct plait_watch *w)
{
    HandleObject *reader = NULL, *writer = NULL;
    if (w->reader != NULL && w->reader->cancelled) {
        reader = w->reader;
        w->reader = NULL;
    }
    if (w->writer != NULL && w->writer->cancelled) {
        writer = w->writer;
        w->writer = NULL;
    }
    if (PL_LIKELY(reader == NULL && writer == NULL))
        return;
    if (watch_is_idle(w))
        watch_close(loop, w);
    else
        (void)watch_ask(loop, w, 0, watch_has_handles(w)); /* fails for one that is closed:
                                                              no events, as wanted */
    Py_XDECREF(reader);
    Py_XDECREF(writer);
}

static void watch_run(struct pl_loop *core, struct pl_op *op)
{
    struct plait_watch *w = PL_CONTAINER_OF(op, struct plait_watch, io.op);
    unsigned ready = w->io.ready;
    w->io.queued = false;
    w->io.ready = 0;
    w->running = true;
    /* The callbacks may remove or replace their handles. What the first takes away the
     * second does not see; both belong to one event of the poller, as in asyncio. */
    HandleObject *reader = ready & PL_READABLE ? (HandleObject *)Py_XNewRef(w->reader) : NULL;
    HandleObject *writer = ready & PL_WRITABLE ? (HandleObject *)Py_XNewRef(w->writer) : NULL;
    bool woke = w->waits != NULL;
    if (woke)
        wake_waits(w, ready);
    if (reader != NULL) {
        plait_handle_call(reader);
        Py_DECREF(reader);
    }
    if (writer != NULL) {
        plait_handle_call(writer);
        Py_DECREF(writer);
    }
    w->running = false;
    if (pl_io_find(core, w->io.fd) != &w->io) {
        if (!w->io.queued)
            PyMem_Free(w); /* closed by the callbacks */
        return;
    }
    /* A level that only calls wanted, which do not wait any more, would be told for ever. */
    if (woke && w->io.mode == PL_IO_LEVEL)
        (void)watch_ask(plait_loop_of_core(core), w, 0, watch_has_handles(w));
    drop_cancelled(plait_loop_of_core(core), w);
}

/* ---- what the methods name ---------------------------------------------- */

int plait_watch_fd(PyObject *obj)
{
    int fd = PyObject_AsFileDescriptor(obj);
    if (fd >= 0)
        return fd;
    /* selectors' error for what is no file. */
    if (PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "Invalid file object: %R", obj);
    }
    return -1;
}

/* The watch that arg names. A program may close a file before it stops watching it, and asyncio
 * then still knows it by the object; -1 with an exception when nothing goes by that name. */
static int find_by_name(LoopObject *loop, PyObject *arg, struct plait_watch **out)
{
    *out = NULL;
    int fd = plait_watch_fd(arg);
    if (fd >= 0) {
        *out = plait_watch_find(loop, fd);
        return 0;
    }
    if (PyLong_Check(arg) || !PyErr_ExceptionMatches(PyExc_ValueError))
        return -1;
    for (uint32_t i = 0; i < loop->core.nfds; i++) {
        struct plait_watch *w = plait_watch_of_io(loop->core.fds[i].io);
        if (w != NULL && w->file == arg) {
            PyErr_Clear();
            *out = w;
            return 0;
        }
    }
    return -1;
}

/* ---- the calls that wait ------------------------------------------------ */

/* Whether the weak reference is to this object. */
static bool refers_to(PyObject *ref, PyObject *object)
{
    if (ref == NULL)
        return false;
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *target;
    if (PyWeakref_GetRef(ref, &target) < 0) {
        PyErr_Clear();
        return false;
    }
    Py_XDECREF(target);
    return target == object;
#else
    return PyWeakref_GetObject(ref) == object;
#endif
}

/* Whether the socket of the weak reference still goes by this descriptor: then two objects have
 * it at once. */
static bool still_has(PyObject *ref, int fd)
{
    PyObject *target = NULL;
#if PY_VERSION_HEX >= 0x030d0000
    if (ref != NULL && PyWeakref_GetRef(ref, &target) < 0)
        PyErr_Clear();
#else
    if (ref != NULL && PyWeakref_GetObject(ref) != Py_None)
        target = Py_XNewRef(PyWeakref_GetObject(ref));
#endif
    if (target == NULL)
        return false;
    int its = PyObject_AsFileDescriptor(target);
    if (its < 0)
        PyErr_Clear(); /* it was closed */
    Py_DECREF(target);
    return its == fd;
}

int plait_watch_wait(LoopObject *loop, struct plait_sock_wait *wait, PyObject *sock, int fd,
                     unsigned events)
{
    struct pl_io *io = pl_io_find(&loop->core, fd);
    struct plait_watch *w = plait_watch_of_io(io);
    if (io != NULL && w == NULL) {
        PyErr_Format(PyExc_RuntimeError, "File descriptor %d is used by a transport or server", fd);
        return -1;
    }
    if (w != NULL && !watch_has_handles(w) && !refers_to(w->sock, sock)) {
        /* Calls of two objects may wait side by side. But either may stand for a file that was
         * closed behind its back: only the kernel knows, so it is to be asked again. */
        if (still_has(w->sock, fd))
            w->io.mode = PL_IO_LEVEL;
        else
            watch_end(loop, w); /* the descriptor was closed and reused */
        w = plait_watch_find(loop, fd);
    }
    if (w == NULL) {
        w = watch_open(loop, fd);
        if (w == NULL)
            return -1;
    }
    if (w->sock == NULL || !refers_to(w->sock, sock)) {
        PyObject *ref = PyWeakref_NewRef(sock, NULL);
        if (ref == NULL)
            goto failed;
        Py_XSETREF(w->sock, ref);
    }
    int r = watch_ask(loop, w, events, watch_has_handles(w));
    if (r < 0) {
        (void)plait_raise(loop->state, r, NULL);
        goto failed;
    }
    wait->watch = w;
    wait->events = events;
    wait->next = NULL;
    struct plait_sock_wait **at = &w->waits;
    while (*at != NULL)
        at = &(*at)->next;
    *at = wait;
    return 0;

failed:
    if (watch_is_idle(w))
        watch_close(loop, w);
    return -1;
}

void plait_watch_unwait(struct plait_sock_wait *wait)
{
    struct plait_watch *w = wait->watch;
    if (w == NULL)
        return;
    wait->watch = NULL;
    for (struct plait_sock_wait **at = &w->waits; *at != NULL; at = &(*at)->next) {
        if (*at == wait) {
            *at = wait->next;
            break;
        }
    }
    wait->next = NULL;
}

/* ---- add_reader and its kin --------------------------------------------- */

static PyObject *watch_add(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames, const char *method, unsigned event)
{
    LoopObject *loop = (LoopObject *)self;
    PyObject *context;
    if (plait_args_keyword(method, args, nargs, kwnames, 2, "context", &context) < 0 ||
        plait_loop_check(loop) < 0)
        return NULL;
    int fd = plait_watch_fd(args[0]);
    if (fd < 0)
        return NULL;
    /* Making the handle may run code of the user's, so the watch is looked up afterwards. */
    HandleObject *h = plait_handle_new(loop, args[1], args + 2, nargs - 2, context);
    if (h == NULL)
        return NULL;
    if (plait_loop_check(loop) < 0)
        goto failed;
    struct pl_io *io = pl_io_find(&loop->core, fd);
    struct plait_watch *w = plait_watch_of_io(io);
    if (io != NULL && w == NULL) {
        PyErr_Format(PyExc_RuntimeError, "File descriptor %d is used by a transport or server", fd);
        goto failed;
    }
    if (w != NULL && watch_is_idle(w) && !w->running) {
        watch_close(loop, w); /* it may be of a socket that was closed since */
        w = NULL;
    }
    if (w == NULL)
        w = watch_open(loop, fd);
    if (w == NULL)
        goto failed;
    if (w->file == NULL)
        w->file = Py_NewRef(args[0]);
    int r = watch_ask(loop, w, event, true);
    if (r < 0) {
        if (watch_is_idle(w))
            watch_close(loop, w);
        (void)plait_raise(loop->state, r, NULL);
        goto failed;
    }
    HandleObject **place = event == PL_READABLE ? &w->reader : &w->writer;
    HandleObject *old = *place;
    *place = (HandleObject *)Py_NewRef(h);
    drop_handle(&old);
    return (PyObject *)h;

failed:
    Py_DECREF(h);
    return NULL;
}

static PyObject *watch_remove(PyObject *self, PyObject *arg, unsigned event)
{
    LoopObject *loop = (LoopObject *)self;
    if (loop->closed || !loop->core_ready)
        Py_RETURN_FALSE;
    struct plait_watch *w;
    if (find_by_name(loop, arg, &w) < 0)
        return NULL;
    HandleObject **place = w == NULL ? NULL : event == PL_READABLE ? &w->reader : &w->writer;
    if (w == NULL || *place == NULL)
        Py_RETURN_FALSE;
    HandleObject *old = *place;
    *place = NULL;
    if (watch_is_idle(w))
        watch_close(loop, w);
    else
        (void)watch_ask(loop, w, 0, watch_has_handles(w)); /* fails for one that is closed:
                                                              no events, as wanted */
    drop_handle(&old);
    Py_RETURN_TRUE;
}

PyObject *plait_loop_add_reader(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    return watch_add(self, args, nargs, kwnames, "add_reader", PL_READABLE);
}

PyObject *plait_loop_add_writer(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    return watch_add(self, args, nargs, kwnames, "add_writer", PL_WRITABLE);
}

PyObject *plait_loop_remove_reader(PyObject *self, PyObject *arg)
{
    return watch_remove(self, arg, PL_READABLE);
}

PyObject *plait_loop_remove_writer(PyObject *self, PyObject *arg)
{
    return watch_remove(self, arg, PL_WRITABLE);
}

PyObject *plait_loop_watched(PyObject *self, PyObject *arg)
{
    LoopObject *loop = (LoopObject *)self;
    int fd = plait_watch_fd(arg);
    if (fd < 0)
        return NULL;
    struct plait_watch *w = loop->core_ready ? plait_watch_find(loop, fd) : NULL;
    if (w == NULL || !watch_has_handles(w))
        Py_RETURN_NONE;
    return PyTuple_Pack(2, w->reader != NULL ? (PyObject *)w->reader : Py_None,
                        w->writer != NULL ? (PyObject *)w->writer : Py_None);
}

PyObject *plait_loop_owner_of_fd(PyObject *self, PyObject *arg)
{
    LoopObject *loop = (LoopObject *)self;
    int fd = plait_watch_fd(arg);
    if (fd < 0) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError))
            return NULL;
        PyErr_Clear(); /* closed: nobody's */
        Py_RETURN_NONE;
    }
    struct pl_io *io = loop->core_ready ? pl_io_find(&loop->core, fd) : NULL;
    PyObject *owner = NULL;
    if (io != NULL)
        owner = plait_transport_of_op(&io->op);
    if (io != NULL && owner == NULL)
        owner = plait_listener_of_op(&io->op);
    return Py_NewRef(owner != NULL ? owner : Py_None);
}
