/* generators_io.c - sockets for generators: try first, then ask the poller.
 *
 * Every request is tried at once, and only what the kernel refuses waits; but a receive that
 * follows a short one is expected to find nothing and waits without trying. Nothing can be
 * missed by that, because the poller is level-triggered. A descriptor stays registered when
 * nobody waits: an event that nobody wants takes it out.
 *
 * A program may close a socket that a task waits for; the kernel then drops the registration
 * and says nothing. While tasks wait and others run, a timer looks once a second whether the
 * awaited sockets are still open (watch_closing). A request for a socket that has got the
 * number of a closed one finds out at once.
 */
#include "generators.h"
#include "spare_bytes.h"
#include "watch.h"

#include <errno.h>
#include <sys/socket.h>

/* Receives that brought this much are made into a bytes object directly, without the loop's
 * buffer in between. */
#define LARGE ((size_t)32 << 10)
#define LARGEST ((size_t)1 << 20)

/* Of each socket one message is kept, of this size at most: see keep_given. */
#define GIVEN_MAX ((size_t)4 << 10)

#define SWEEP_NS PL_NSEC_PER_SEC

static const char *const names[] = {"recv", "recv_into", "send", "accept", "connect"};

static void fd_run(struct pl_loop *core, struct pl_op *op);

/* ---- descriptors -------------------------------------------------------- */

static bool is_reader(const RequestObject *rq)
{
    return rq->kind == GEN_RECV || rq->kind == GEN_RECV_INTO || rq->kind == GEN_ACCEPT;
}

/* The descriptor of a socket object, -1 when it is closed, -2 with an exception set. */
static int fd_of(struct plait_state *state, PyObject *sock)
{
    PyObject *number = PL_LIKELY(state->generators.fileno != NULL)
                           ? state->generators.fileno(sock, NULL)
                           : PyObject_CallMethodNoArgs(sock, state->str_fileno);
    if (number == NULL)
        return -2;
    long fd = plait_fd_value(number);
    Py_DECREF(number);
    if (PL_UNLIKELY(fd == -1) && PyErr_Occurred())
        return -2;
    return fd < 0 ? -1 : (int)fd;
}

static bool stands_for(const struct gen_fd *rec, PyObject *sock)
{
    if (PL_LIKELY(rec->held == sock))
        return true;
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *found = NULL;
    if (PyWeakref_GetRef(rec->weak, &found) <= 0)
        return false;
    bool same = found == sock;
    Py_DECREF(found);
    return same;
#else
    return PyWeakref_GET_OBJECT(rec->weak) == sock;
#endif
}

/* Ends the waits for a socket that is not there any more. */
static void fail_waiters(struct gen_fd *rec)
{
    /* Giving up a wait may run code of the program's: so each is looked at anew. */
    for (size_t i = 0; i < 2; i++) {
        TaskObject *t = i == 0 ? rec->reader : rec->writer;
        if (t == NULL)
            continue;
        (void)plait_raise(t->loop->state, -EBADF,
                          "the socket was closed while a task waited for it");
        plait_gen_take_error(t);
        plait_gen_unhook(t, true);
        plait_gen_enqueue(t);
    }
}

/* The record of a socket, or NULL when there is none: the number may have been another
 * socket's, or the descriptor may be in other hands on this loop. */
static struct gen_fd *find_record(struct gen_loop *g, int fd, PyObject *sock)
{
    struct gen_fd *rec = (uint32_t)fd < g->nfds ? g->fds[fd] : NULL;
    if (rec == NULL || !pl_io_has_place(&g->loop->core, &rec->io))
        return NULL;
    if (PL_LIKELY(stands_for(rec, sock)))
        return rec;
    pl_io_close(&g->loop->core, &rec->io);
    fail_waiters(rec);
    return NULL;
}

static int grow(struct gen_loop *g, int fd)
{
    uint32_t n = g->nfds == 0 ? 64 : g->nfds;
    while (n <= (uint32_t)fd)
        n *= 2;
    struct gen_fd **fds = PyMem_Realloc(g->fds, n * sizeof(*fds));
    if (fds == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = g->nfds; i < n; i++)
        fds[i] = NULL;
    g->fds = fds;
    g->nfds = n;
    return 0;
}

static struct gen_fd *open_record(struct gen_loop *g, int fd, PyObject *sock)
{
    if ((uint32_t)fd >= g->nfds && grow(g, fd) < 0)
        return NULL;
    struct gen_fd *rec = g->fds[fd];
    if (rec == NULL) {
        rec = PyMem_Calloc(1, sizeof(*rec));
        if (rec == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        g->fds[fd] = rec;
    }
    PyObject *weak = PyWeakref_NewRef(sock, NULL);
    if (weak == NULL)
        return NULL;
    /* An event of the last socket with this number may still have the op queued. */
    bool queued = rec->io.queued;
    plait_watch_yield(g->loop, fd);
    int r = pl_io_open(&g->loop->core, &rec->io, fd, PL_IO_LEVEL, fd_run);
    if (r < 0) {
        Py_DECREF(weak);
        if (r == -EEXIST)
            PyErr_Format(PyExc_RuntimeError,
                         "the descriptor %d is used by a transport, a server or add_reader() of "
                         "the same loop",
                         fd);
        else
            (void)plait_raise(g->loop->state, r, "cannot wait for the socket");
        return NULL;
    }
    rec->io.queued = queued;
    rec->io.idle = true;
    rec->dry = false;
    rec->hint = 0;
    rec->held = NULL;
    Py_CLEAR(rec->given);
    Py_XSETREF(rec->weak, weak);
    return rec;
}

/* Lets t wait for its descriptor. */
static int hook(TaskObject *t, struct gen_fd *rec, bool reads)
{
    struct pl_loop *core = &t->loop->core;
    unsigned event = reads ? PL_READABLE : PL_WRITABLE;
    if (!(rec->io.want & event)) {
        int r = pl_io_watch(core, &rec->io, rec->io.want | event);
        if (r < 0) {
            (void)plait_raise(t->loop->state, r, "cannot wait for the socket");
            return -1;
        }
    }
    if (reads)
        rec->reader = t;
    else
        rec->writer = t;
    rec->io.idle = false;
    t->fd = rec;
    t->loop->generators->waiting_fds++;
    return 0;
}

void plait_gen_io_unhook(TaskObject *t)
{
    struct gen_fd *rec = t->fd;
    t->fd = NULL;
    if (rec->reader == t)
        rec->reader = NULL;
    if (rec->writer == t)
        rec->writer = NULL;
    rec->io.idle = rec->reader == NULL && rec->writer == NULL;
    t->loop->generators->waiting_fds--;
}

/* ---- trying ------------------------------------------------------------- */

static enum gen_outcome failed(TaskObject *t, RequestObject *rq, ssize_t error)
{
    (void)plait_raise(t->loop->state, (int)error, names[rq->kind]);
    return GEN_FAILED;
}

static ssize_t receive(TaskObject *t, int fd, void *buf, size_t len)
{
    ssize_t n;
    do {
        n = t->loop->core.sys->recv(fd, buf, len, MSG_DONTWAIT);
    } while (n == -EINTR);
    return n;
}

/* Holds what is given to the generator, to be used again once it lets go of it: mostly when the
 * next message takes its place in a variable. */
static void keep_given(struct gen_fd *rec, PyObject *bytes)
{
#ifndef Py_GIL_DISABLED
    size_t n = bytes == NULL ? 0 : (size_t)PyBytes_GET_SIZE(bytes);
    Py_XSETREF(rec->given, n >= PLAIT_SPARE_MIN && n <= GIVEN_MAX ? Py_NewRef(bytes) : NULL);
#else
    (void)rec;
    (void)bytes;
#endif
}

static enum gen_outcome try_recv(TaskObject *t, RequestObject *rq, int fd, struct gen_fd *rec,
                                 PyObject **value)
{
    size_t len = (size_t)rq->n;
    PyObject *bytes = NULL;
    char *buf;
    if (rec != NULL && rec->hint >= LARGE && len > LARGE) {
        len = len > LARGEST ? LARGEST : len;
        if (len > 2 * (size_t)rec->hint)
            len = 2 * (size_t)rec->hint;
        bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
        if (bytes == NULL)
            return GEN_FAILED;
        buf = PyBytes_AS_STRING(bytes);
    } else {
        len = len > PLAIT_READ_BUFFER ? PLAIT_READ_BUFFER : len;
        buf = plait_sock_room(t->loop);
        if (buf == NULL)
            return GEN_FAILED;
    }
    ssize_t n = receive(t, fd, buf, len);
    if (n < 0) {
        Py_XDECREF(bytes);
        return n == -EAGAIN ? GEN_BLOCKED : failed(t, rq, n);
    }
    if (rec != NULL) {
        rec->hint = (uint32_t)n;
        rec->dry = n > 0 && (size_t)n < len;
    }
    if (bytes == NULL)
        bytes = plait_sock_received(t->loop, n);
    else if ((size_t)n < len)
        (void)_PyBytes_Resize(&bytes, n);
    if (rec != NULL)
        keep_given(rec, bytes);
    *value = bytes;
    return bytes == NULL ? GEN_FAILED : GEN_GOT;
}

static enum gen_outcome try_recv_into(TaskObject *t, RequestObject *rq, int fd, struct gen_fd *rec,
                                      PyObject **value)
{
    size_t len = (size_t)rq->view.len;
    if (rq->n > 0 && (size_t)rq->n < len)
        len = (size_t)rq->n;
    ssize_t n = receive(t, fd, rq->view.buf, len);
    if (n < 0)
        return n == -EAGAIN ? GEN_BLOCKED : failed(t, rq, n);
    if (rec != NULL)
        rec->dry = n > 0 && (size_t)n < len;
    *value = PyLong_FromSsize_t(n);
    return *value == NULL ? GEN_FAILED : GEN_GOT;
}

static enum gen_outcome try_send(TaskObject *t, RequestObject *rq, int fd, PyObject **value)
{
    const char *data = rq->has_view ? rq->view.buf : PyBytes_AS_STRING(rq->arg);
    size_t len = (size_t)(rq->has_view ? rq->view.len : PyBytes_GET_SIZE(rq->arg));
    size_t left = len - (size_t)rq->sent;
    if (left > 0) {
        ssize_t n;
        do {
            n = t->loop->core.sys->send(fd, data + rq->sent, left, MSG_DONTWAIT | MSG_NOSIGNAL);
        } while (n == -EINTR);
        if (n < 0)
            return n == -EAGAIN ? GEN_BLOCKED : failed(t, rq, n);
        rq->sent += n;
        /* The kernel took what it had room for: the rest waits. */
        if ((size_t)n < left)
            return GEN_BLOCKED;
    }
    *value = Py_NewRef(Py_None);
    return GEN_GOT;
}

/* The socket object of an accepted descriptor, which it takes over when it can be made. */
static PyObject *make_socket(struct plait_state *state, PyObject *fd)
{
    PyObject *kwnames = Py_BuildValue("(s)", "fileno");
    if (kwnames == NULL)
        return NULL;
    PyObject *args[2] = {NULL, fd};
    PyObject *sock = PyObject_Vectorcall(state->socket_type, args + 1,
                                         0 | PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames);
    Py_DECREF(kwnames);
    return sock;
}

static enum gen_outcome try_accept(TaskObject *t, RequestObject *rq, struct gen_fd *rec,
                                   PyObject **value)
{
    struct plait_state *state = t->loop->state;
    PyObject *pair = PyObject_CallMethod(rq->target, "_accept", NULL);
    if (pair == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_BlockingIOError))
            return GEN_FAILED;
        PyErr_Clear();
        return GEN_BLOCKED;
    }
    PyObject *fd, *address;
    if (!PyArg_ParseTuple(pair, "OO", &fd, &address)) {
        Py_DECREF(pair);
        return GEN_FAILED;
    }
    PyObject *sock = make_socket(state, fd);
    if (sock == NULL) {
        PyObject *type, *exc, *tb;
        PyErr_Fetch(&type, &exc, &tb);
        (void)t->loop->core.sys->close((int)PyLong_AsLong(fd));
        PyErr_Restore(type, exc, tb);
        Py_DECREF(pair);
        return GEN_FAILED;
    }
    PyObject *done = PyObject_CallMethod(sock, "setblocking", "(O)", Py_False);
    if (done != NULL)
        *value = PyTuple_Pack(2, sock, address);
    Py_XDECREF(done);
    Py_DECREF(sock);
    Py_DECREF(pair);
    /* The next one comes after everybody else had a turn; if it is there already the poller
     * says so. */
    if (rec != NULL)
        rec->dry = true;
    return *value == NULL ? GEN_FAILED : GEN_GOT;
}

static enum gen_outcome connected(TaskObject *t, RequestObject *rq, int error, PyObject **value)
{
    if (error == 0) {
        *value = Py_NewRef(Py_None);
        return GEN_GOT;
    }
    if (error == EINPROGRESS)
        return GEN_BLOCKED;
    PyObject *text = PyUnicode_FromFormat("connect to %.200R", rq->arg);
    const char *utf8 = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    if (utf8 != NULL)
        (void)plait_raise(t->loop->state, -error, utf8);
    Py_XDECREF(text);
    return GEN_FAILED;
}

static enum gen_outcome begin_connect(TaskObject *t, RequestObject *rq, PyObject **value)
{
    PyObject *number = PyObject_CallMethod(rq->target, "connect_ex", "(O)", rq->arg);
    if (number == NULL)
        return GEN_FAILED;
    int error = (int)PyLong_AsLong(number);
    Py_DECREF(number);
    return connected(t, rq, error, value);
}

static enum gen_outcome end_connect(TaskObject *t, RequestObject *rq, int fd, PyObject **value)
{
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        error = errno;
    return connected(t, rq, error, value);
}

static enum gen_outcome try_once(TaskObject *t, RequestObject *rq, int fd, struct gen_fd *rec,
                                 bool first, PyObject **value)
{
    switch ((enum gen_kind)rq->kind) {
    case GEN_RECV:
        return try_recv(t, rq, fd, rec, value);
    case GEN_RECV_INTO:
        return try_recv_into(t, rq, fd, rec, value);
    case GEN_SEND:
        return try_send(t, rq, fd, value);
    case GEN_ACCEPT:
        return try_accept(t, rq, rec, value);
    default:
        return first ? begin_connect(t, rq, value) : end_connect(t, rq, fd, value);
    }
}

/* ---- requests ----------------------------------------------------------- */

static int take_view(RequestObject *rq)
{
    int flags;
    if (rq->kind == GEN_RECV_INTO)
        flags = PyBUF_WRITABLE;
    else if (rq->kind == GEN_SEND && !PyBytes_CheckExact(rq->arg))
        flags = PyBUF_SIMPLE;
    else
        return 0;
    if (PyObject_GetBuffer(rq->arg, &rq->view, flags) < 0)
        return -1;
    rq->has_view = true;
    return 0;
}

static enum gen_outcome refuse_second(TaskObject *other, RequestObject *rq)
{
    /* Held, since a repr may run code of the program's. */
    PyObject *name = Py_NewRef(other->name);
    PyObject *request = Py_NewRef((PyObject *)other->request);
    PyErr_Format(PyExc_RuntimeError, "%R: task %U waits for the same socket already: %R", rq, name,
                 request);
    Py_DECREF(name);
    Py_DECREF(request);
    return GEN_FAILED;
}

enum gen_outcome plait_gen_io_begin(TaskObject *t, RequestObject *rq, PyObject **value)
{
    struct gen_loop *g = t->loop->generators;
    int fd = fd_of(t->loop->state, rq->target);
    if (PL_UNLIKELY(fd < 0)) {
        if (fd == -1)
            PyErr_Format(PyExc_OSError, "%s(): the socket is closed", names[rq->kind]);
        return GEN_FAILED;
    }
    struct gen_fd *rec = find_record(g, fd, rq->target);
    bool reads = is_reader(rq);
    TaskObject *other = rec == NULL ? NULL : reads ? rec->reader : rec->writer;
    if (PL_UNLIKELY(other != NULL))
        return refuse_second(other, rq);
    rq->sent = 0;
    if (take_view(rq) < 0)
        return GEN_FAILED;
    enum gen_outcome outcome = GEN_BLOCKED;
    if (!reads || rec == NULL || !rec->dry)
        outcome = try_once(t, rq, fd, rec, true, value);
    if (outcome == GEN_BLOCKED) {
        if (rec == NULL)
            rec = open_record(g, fd, rq->target);
        if (rec == NULL || hook(t, rec, reads) < 0)
            outcome = GEN_FAILED;
    }
    if (outcome == GEN_BLOCKED)
        rq->busy = true;
    else
        plait_gen_request_end(rq);
    return outcome;
}

/* The poller has reported the descriptor of a waiting task. */
static void retry(TaskObject *t, struct gen_fd *rec)
{
    RequestObject *outer = (RequestObject *)Py_NewRef(t->request);
    RequestObject *rq = plait_gen_inner(outer, t->loop->state);
    PyObject *value = NULL;
    PyObject *spent = NULL; /* what the last receive gave, until the step has replaced it */
    if (rq->kind == GEN_RECV) {
        spent = rec->given;
        rec->given = NULL;
    }
    enum gen_outcome outcome = try_once(t, rq, rec->io.fd, rec, false, &value);
    /* The methods of a socket of the program's own class may have ended the wait. */
    bool waits = t->request == outer && t->state == GEN_WAITING;
    if (PL_UNLIKELY(!waits || outcome == GEN_BLOCKED)) {
        if (!waits)
            PyErr_Clear();
        Py_XDECREF(value);
        Py_XDECREF(spent);
        Py_DECREF(outer);
        return;
    }
    if (outcome == GEN_FAILED)
        plait_gen_take_error(t);
    else
        Py_XSETREF(t->value, value);
    /* The request keeps the socket alive for the step, in which it is likely to be met again. */
    rec->held = rq->target;
    plait_gen_unhook(t, false);
    plait_gen_step(t);
    LoopObject *loop = t->loop;
    if (loop->generators != NULL) { /* else the record is gone as well */
        rec->held = NULL;
        if (rec->given != NULL && Py_REFCNT(rec->given) == 1) {
            PyObject *dropped = rec->given;
            rec->given = NULL;
            plait_spare_bytes_release(loop, dropped);
        }
    }
    if (spent != NULL)
        plait_spare_bytes_release(loop, spent);
    Py_DECREF(outer);
}

static void fd_run(struct pl_loop *core, struct pl_op *op)
{
    struct gen_fd *rec = PL_CONTAINER_OF(op, struct gen_fd, io.op);
    unsigned ready = rec->io.ready;
    rec->io.queued = false;
    rec->io.ready = 0;
    if (ready == 0 || !pl_io_has_place(core, &rec->io))
        return;
    if (ready & PL_HANGUP)
        ready |= PL_READABLE | PL_WRITABLE;
    if (ready & PL_READABLE)
        rec->dry = false;
    TaskObject *reader = ready & PL_READABLE ? rec->reader : NULL;
    TaskObject *writer = ready & PL_WRITABLE ? rec->writer : NULL;
    /* What nobody waits for is asked for no longer, or the poller would repeat it. */
    unsigned want = rec->io.want;
    if ((ready & PL_READABLE) && reader == NULL)
        want &= ~(unsigned)PL_READABLE;
    if ((ready & PL_WRITABLE) && writer == NULL)
        want &= ~(unsigned)PL_WRITABLE;
    if (want != rec->io.want && pl_io_watch(core, &rec->io, want) < 0)
        rec->io.want = (uint8_t)want; /* the descriptor is closed: no events, as wanted */
    Py_XINCREF(reader);
    Py_XINCREF(writer);
    if (reader != NULL)
        retry(reader, rec);
    /* The first may have ended the second's wait. */
    if (writer != NULL && writer->fd == rec && rec->writer == writer)
        retry(writer, rec);
    Py_XDECREF(reader);
    Py_XDECREF(writer);
}

/* ---- sockets that were closed ------------------------------------------- */

static void sweep_run(struct pl_loop *core, struct pl_op *op)
{
    struct gen_loop *g = PL_CONTAINER_OF(op, struct gen_loop, sweep.op);
    struct plait_state *state = g->loop->state;
    for (uint32_t i = 0; i < g->nfds && g->waiting_fds > 0; i++) {
        struct gen_fd *rec = g->fds[i];
        TaskObject *t = rec == NULL ? NULL : rec->reader != NULL ? rec->reader : rec->writer;
        if (t == NULL)
            continue;
        int fd = fd_of(state, plait_gen_inner(t->request, state)->target);
        if (fd == (int)i)
            continue;
        if (fd == -2)
            PyErr_Clear(); /* it has no descriptor, whatever the reason */
        if (pl_io_has_place(core, &rec->io))
            pl_io_close(core, &rec->io);
        fail_waiters(rec);
    }
}

void plait_gen_io_watch_closing(struct gen_loop *g)
{
    if (pl_timer_active(&g->sweep))
        return;
    g->sweep.op.run = sweep_run;
    struct pl_loop *core = &g->loop->core;
    /* Without memory for it the next step tries again. */
    (void)!pl_timer_start(core, &g->sweep, pl_loop_now(core) + SWEEP_NS);
}
