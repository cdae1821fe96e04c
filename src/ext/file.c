/* file.c - plait._core.FileQueue: file operations that do not block the loop.
 *
 * Each method starts one operation. What ends at once (most reads: the page cache has it) is
 * returned as it is; for the rest the method returns an asyncio.Future, which collect settles
 * when the queue's descriptor has become readable.
 *
 * A request holds the buffer that the kernel, or a thread, may be using until the operation
 * has ended, whatever becomes of its future.
 */
#include "loop.h"

#include <errno.h>
#include <unistd.h>

/* Copying more than this within a call is worth letting other threads run. */
#define LARGE ((size_t)128 << 10)
/* How long a queue that is dropped waits for what is in flight. */
#define PATIENCE (5 * PL_NSEC_PER_SEC)

struct request {
    struct pl_file_req core;
    struct request *next; /* in flight */
    struct request **link;
    PyObject *future; /* owns; NULL until the operation is known not to have ended at once */
    PyObject *object; /* owns: the bytes being read, or the path */
    Py_buffer view;   /* obj is NULL without one */
};

typedef struct {
    PyObject_HEAD
    struct plait_state *state; /* borrows: our type keeps the module alive */
    struct pl_files *files;    /* owns; apart, because it may have to outlive us */
    PyObject *loop;
    struct request *inflight;
    bool busy; /* within a call that has let other threads run */
} FileQueueObject;

/* ---- requests ----------------------------------------------------------- */

static void request_free(struct request *r)
{
    if (r->view.obj != NULL)
        PyBuffer_Release(&r->view);
    Py_XDECREF(r->object);
    Py_XDECREF(r->future);
    PyMem_Free(r);
}

static struct request *request_new(FileQueueObject *q, enum pl_file_op op, int fd)
{
    if (q->files == NULL || q->busy) {
        PyErr_SetString(PyExc_RuntimeError, q->files == NULL
                                                ? "the queue of file operations is closed"
                                                : "another thread uses this loop's file queue");
        return NULL;
    }
    struct request *r = PyMem_Calloc(1, sizeof(*r));
    if (r == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    r->core.op = op;
    r->core.fd = fd;
    return r;
}

static void unlink_request(struct request *r)
{
    *r->link = r->next;
    if (r->next != NULL)
        r->next->link = r->link;
}

/* The value of an operation that has ended, or NULL with an exception set. */
static PyObject *request_value(FileQueueObject *q, struct request *r)
{
    int64_t result = r->core.result;
    if (result < 0) {
        if (r->core.op == PL_FILE_OPEN && result != -ENOMEM) {
            PyObject *args =
                Py_BuildValue("(isO)", (int)-result, pl_error_text((int)result), r->object);
            if (args != NULL) {
                PyErr_SetObject(PyExc_OSError, args); /* chooses the subclass by the number */
                Py_DECREF(args);
            }
            return NULL;
        }
        return plait_raise(q->state, (int)result, NULL);
    }
    if (r->core.op == PL_FILE_READ && r->view.obj == NULL) {
        PyObject *bytes = r->object;
        r->object = NULL;
        if (result < PyBytes_GET_SIZE(bytes) && _PyBytes_Resize(&bytes, (Py_ssize_t)result) < 0)
            return NULL;
        return bytes;
    }
    return PyLong_FromLongLong(result);
}

/* Settles the future of an operation that has ended, and frees the request. */
static void request_finish(FileQueueObject *q, struct request *r)
{
    struct plait_state *state = q->state;
    int is_done = 1;
    if (r->future != NULL) {
        PyObject *done = PyObject_CallMethodNoArgs(r->future, state->str_done);
        is_done = done == NULL ? -1 : PyObject_IsTrue(done);
        Py_XDECREF(done);
    }
    if (is_done != 0) {
        if (is_done < 0)
            PyErr_WriteUnraisable((PyObject *)q);
        if (r->core.op == PL_FILE_OPEN && r->core.result >= 0)
            (void)q->files->sys->close((int)r->core.result); /* nobody wants it any more */
        request_free(r);
        return;
    }
    PyObject *value = request_value(q, r);
    PyObject *answer;
    if (value != NULL) {
        answer = PyObject_CallMethodOneArg(r->future, state->str_set_result, value);
        Py_DECREF(value);
    } else {
        PyObject *type, *error, *tb;
        PyErr_Fetch(&type, &error, &tb);
        PyErr_NormalizeException(&type, &error, &tb);
        answer = PyObject_CallMethodOneArg(r->future, state->str_set_exception, error);
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(tb);
    }
    if (answer == NULL)
        PyErr_WriteUnraisable(r->future);
    Py_XDECREF(answer);
    request_free(r);
}

/* Starts an operation: its value, or its future. Takes the request over. */
static PyObject *request_start(FileQueueObject *q, struct request *r)
{
    int code;
    /* Looked at before, but a buffer's own code has run meanwhile. */
    if (q->files == NULL || q->busy) {
        request_free(r);
        PyErr_SetString(PyExc_RuntimeError, "the queue of file operations is closed, or in use");
        return NULL;
    }
    if (r->core.len > LARGE) {
        q->busy = true;
        Py_BEGIN_ALLOW_THREADS;
        code = pl_files_submit(q->files, &r->core);
        Py_END_ALLOW_THREADS;
        q->busy = false;
    } else {
        code = pl_files_submit(q->files, &r->core);
    }
    if (code < 0) {
        request_free(r);
        return plait_raise(q->state, code, "cannot start a file operation");
    }
    if (code == 1) {
        PyObject *value = request_value(q, r);
        request_free(r);
        return value;
    }
    r->next = q->inflight;
    r->link = &q->inflight;
    if (r->next != NULL)
        r->next->link = &r->next;
    q->inflight = r;
    /* It may end and be freed by what the loop's method runs: so nobody may collect until then. */
    q->busy = true;
    r->future = PyObject_CallMethodNoArgs(q->loop, q->state->str_create_future);
    q->busy = false;
    return Py_XNewRef(r->future); /* without one the operation ends unseen */
}

/* ---- methods ------------------------------------------------------------ */

/* An argument that fits an int64_t; -1 for None when that is allowed. */
static int parse_offset(PyObject *arg, const char *name, bool none, int64_t *out)
{
    if (none && arg == Py_None) {
        *out = -1;
        return 0;
    }
    *out = PyLong_AsLongLong(arg);
    if (*out == -1 && PyErr_Occurred())
        return -1;
    if (*out < 0) {
        PyErr_Format(PyExc_ValueError, "%s must not be negative, got %lld", name, (long long)*out);
        return -1;
    }
    return 0;
}

static int parse_fd(PyObject *arg)
{
    int fd = PyObject_AsFileDescriptor(arg);
    return fd;
}

static int check_count(const char *method, Py_ssize_t nargs, Py_ssize_t wanted)
{
    if (nargs == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, got %zd", method, wanted, nargs);
    return -1;
}

PyDoc_STRVAR(open_doc, "open($self, path, flags, mode, name, /)\n--\n\n"
                       "Open path (bytes) as open(2) does, close-on-exec; name is for errors.\n\n"
                       "Returns:\n"
                       "    int | asyncio.Future[int]: the descriptor.");

static PyObject *queue_open(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    FileQueueObject *q = (FileQueueObject *)self;
    if (check_count("open", nargs, 4) < 0)
        return NULL;
    long flags = PyLong_AsLong(args[1]);
    if (flags == -1 && PyErr_Occurred())
        return NULL;
    unsigned long mode = PyLong_AsUnsignedLong(args[2]);
    if (mode == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    char *path;
    if (PyBytes_AsStringAndSize(args[0], &path, NULL) < 0) /* refuses null bytes */
        return NULL;
    struct request *r = request_new(q, PL_FILE_OPEN, -1);
    if (r == NULL)
        return NULL;
    /* The view keeps the path's bytes, the object its name for errors. */
    if (PyObject_GetBuffer(args[0], &r->view, PyBUF_SIMPLE) < 0) {
        request_free(r);
        return NULL;
    }
    r->object = Py_NewRef(args[3]);
    r->core.path = path;
    r->core.flags = (int)flags;
    r->core.mode = (unsigned)mode;
    return request_start(q, r);
}

PyDoc_STRVAR(read_doc, "read($self, fd, n, offset, /)\n--\n\n"
                       "Read at most n bytes at offset (None: at the file's own position).\n\n"
                       "Returns:\n"
                       "    bytes | asyncio.Future[bytes]: empty at the end of the file.");

static PyObject *queue_read(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    FileQueueObject *q = (FileQueueObject *)self;
    int64_t n, offset;
    if (check_count("read", nargs, 3) < 0)
        return NULL;
    int fd = parse_fd(args[0]);
    if (fd < 0 || parse_offset(args[1], "n", false, &n) < 0 ||
        parse_offset(args[2], "offset", true, &offset) < 0)
        return NULL;
    if (n > PY_SSIZE_T_MAX - 64)
        return PyErr_NoMemory();
    struct request *r = request_new(q, PL_FILE_READ, fd);
    if (r == NULL)
        return NULL;
    r->object = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
    if (r->object == NULL) {
        request_free(r);
        return NULL;
    }
    r->core.data = PyBytes_AS_STRING(r->object);
    r->core.len = (size_t)n;
    r->core.offset = offset;
    return request_start(q, r);
}

static PyObject *transfer(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                          const char *method, enum pl_file_op op, int access)
{
    FileQueueObject *q = (FileQueueObject *)self;
    int64_t offset;
    if (check_count(method, nargs, 3) < 0)
        return NULL;
    int fd = parse_fd(args[0]);
    if (fd < 0 || parse_offset(args[2], "offset", true, &offset) < 0)
        return NULL;
    struct request *r = request_new(q, op, fd);
    if (r == NULL)
        return NULL;
    if (PyObject_GetBuffer(args[1], &r->view, access) < 0) {
        r->view.obj = NULL;
        request_free(r);
        return NULL;
    }
    r->core.data = r->view.buf;
    r->core.len = (size_t)r->view.len;
    r->core.offset = offset;
    return request_start(q, r);
}

PyDoc_STRVAR(readinto_doc, "readinto($self, fd, buffer, offset, /)\n--\n\n"
                           "Read into a writable buffer, at offset (None: as in read).\n\n"
                           "Returns:\n"
                           "    int | asyncio.Future[int]: bytes read.");

static PyObject *queue_readinto(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return transfer(self, args, nargs, "readinto", PL_FILE_READ, PyBUF_WRITABLE);
}

PyDoc_STRVAR(write_doc, "write($self, fd, data, offset, /)\n--\n\n"
                        "Write data at offset (None: at the file's own position).\n\n"
                        "Returns:\n"
                        "    int | asyncio.Future[int]: bytes written, maybe fewer than given.");

static PyObject *queue_write(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return transfer(self, args, nargs, "write", PL_FILE_WRITE, PyBUF_SIMPLE);
}

static PyObject *simple(PyObject *self, enum pl_file_op op, PyObject *fd_arg)
{
    int fd = parse_fd(fd_arg);
    if (fd < 0)
        return NULL;
    struct request *r = request_new((FileQueueObject *)self, op, fd);
    return r == NULL ? NULL : request_start((FileQueueObject *)self, r);
}

PyDoc_STRVAR(fsync_doc, "fsync($self, fd, /)\n--\n\n"
                        "Wait until the file is on the disk: 0, or a future of it.");

static PyObject *queue_fsync(PyObject *self, PyObject *arg)
{
    return simple(self, PL_FILE_SYNC, arg);
}

PyDoc_STRVAR(fdatasync_doc, "fdatasync($self, fd, /)\n--\n\n"
                            "As fsync, without what is not needed to read the data back.");

static PyObject *queue_fdatasync(PyObject *self, PyObject *arg)
{
    return simple(self, PL_FILE_DATASYNC, arg);
}

PyDoc_STRVAR(close_fd_doc, "close_fd($self, fd, /)\n--\n\n"
                           "Close a descriptor: 0, or a future of it.");

static PyObject *queue_close_fd(PyObject *self, PyObject *arg)
{
    return simple(self, PL_FILE_CLOSE, arg);
}

PyDoc_STRVAR(truncate_doc, "truncate($self, fd, size, /)\n--\n\n"
                           "Set a file's size in bytes: 0, or a future of it.");

static PyObject *queue_truncate(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    int64_t size;
    if (check_count("truncate", nargs, 2) < 0)
        return NULL;
    int fd = parse_fd(args[0]);
    if (fd < 0 || parse_offset(args[1], "size", false, &size) < 0)
        return NULL;
    struct request *r = request_new((FileQueueObject *)self, PL_FILE_TRUNCATE, fd);
    if (r == NULL)
        return NULL;
    r->core.offset = size;
    return request_start((FileQueueObject *)self, r);
}

/* Settles what has ended. */
static void collect(FileQueueObject *q)
{
    struct pl_file_req *list = pl_files_collect(q->files);
    /* Out of the queue's list first: what settling a future runs may use the queue. */
    for (struct pl_file_req *c = list; c != NULL; c = c->next)
        unlink_request(PL_CONTAINER_OF(c, struct request, core));
    while (list != NULL) {
        struct request *r = PL_CONTAINER_OF(list, struct request, core);
        list = list->next;
        request_finish(q, r);
    }
}

/* From the loop's run, for what has ended in its own ring. */
static void on_collectable(struct pl_files *files)
{
    FileQueueObject *q = files->user;
    if (q == NULL)
        return; /* given up, with operations that could not be stopped */
    if (!q->busy)
        collect(q);
    else /* a loop within a call of ours: when it has ended */
        files->queued = pl_loop_enqueue(files->loop, &files->op) == 0;
}

PyDoc_STRVAR(collect_doc, "collect($self, /)\n--\n\n"
                          "Settle the futures of what has ended. For the loop, when the queue's\n"
                          "descriptor is readable.");

static PyObject *queue_collect(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    FileQueueObject *q = (FileQueueObject *)self;
    if (q->files != NULL && !q->busy)
        collect(q);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(cancel_doc, "cancel($self, future, /)\n--\n\n"
                         "Ask for the end of the operation behind a future of this queue.\n\n"
                         "Its buffer stays in use until it has ended. A transfer between memory\n"
                         "and a disk cannot be stopped; waiting for a pipe or terminal can.");

static PyObject *queue_cancel(PyObject *self, PyObject *future)
{
    FileQueueObject *q = (FileQueueObject *)self;
    for (struct request *r = q->inflight; r != NULL; r = r->next) {
        if (r->future == future) {
            pl_files_cancel(q->files, &r->core);
            break;
        }
    }
    Py_RETURN_NONE;
}

/* Waits for what is in flight and gives the queue up; what cannot be stopped keeps it, and its
 * buffers, for good. The number of those. */
static uint32_t shut(FileQueueObject *q, int64_t timeout_ns)
{
    struct pl_files *files = q->files;
    if (files == NULL)
        return 0;
    uint32_t left = 0;
    /* To the end: what futures and buffers run when they are dropped may come back here. */
    q->busy = true;
    /* Nobody is told any more: the loop ends, or nothing refers to it. */
    for (struct request *r = q->inflight; r != NULL; r = r->next)
        Py_CLEAR(r->future);
    if (files->pid == getpid()) {
        Py_BEGIN_ALLOW_THREADS;
        left = pl_files_settle(files, timeout_ns);
        Py_END_ALLOW_THREADS;
        collect(q);
    } else {
        while (q->inflight != NULL) { /* the parent's; the copies here are ours alone */
            struct request *r = q->inflight;
            unlink_request(r);
            request_free(r);
        }
    }
    q->files = NULL;
    q->inflight = NULL;
    q->busy = false;
    files->user = NULL;
    if (left == 0) {
        pl_files_fini(files);
        PyMem_Free(files);
    }
    return left;
}

PyDoc_STRVAR(close_doc, "close($self, timeout, /)\n--\n\n"
                        "End the queue, after at most timeout seconds for what is in flight.\n\n"
                        "Returns:\n"
                        "    int: operations that could not be stopped. Their buffers, and this\n"
                        "    queue's thread or ring, are never freed.");

static PyObject *queue_close(PyObject *self, PyObject *arg)
{
    double seconds = PyFloat_AsDouble(arg);
    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    if (!(seconds >= 0 && seconds <= 1e9))
        return PyErr_Format(PyExc_ValueError, "timeout must be from 0 to 1e9 seconds, not %R", arg);
    FileQueueObject *q = (FileQueueObject *)self;
    if (q->busy)
        return PyErr_Format(PyExc_RuntimeError, "the queue of file operations is in use");
    return PyLong_FromUnsignedLong(shut(q, (int64_t)(seconds * 1e9)));
}

PyDoc_STRVAR(fileno_doc, "fileno($self, /)\n--\n\n"
                         "Return the descriptor that is readable when collect has work.");

static PyObject *queue_fileno(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    FileQueueObject *q = (FileQueueObject *)self;
    return PyLong_FromLong(q->files == NULL ? -1 : pl_files_fd(q->files));
}

PyDoc_STRVAR(queue_statistics_doc,
             "statistics($self, /)\n--\n\n"
             "Return counters since the queue was made.\n\n"
             "Returns:\n"
             "    dict[str, int | str | None]: engine; why_not_io_uring (the kernel's answer, or\n"
             "    None); at_once, ring, threads (operations that ended within their call, in the\n"
             "    kernel, in a thread); inflight (now).");

static PyObject *queue_statistics(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    FileQueueObject *q = (FileQueueObject *)self;
    if (q->files == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the queue of file operations is closed");
        return NULL;
    }
    const struct pl_files_stats *s = &q->files->stats;
    return Py_BuildValue(
        "{s:s, s:z, s:K, s:K, s:K, s:I}", "engine", pl_files_engine(q->files), "why_not_io_uring",
        q->files->why == 0 ? NULL : pl_error_text(q->files->why), "at_once",
        (unsigned long long)s->at_once, "ring", (unsigned long long)s->ring, "threads",
        (unsigned long long)s->threads, "inflight", (unsigned int)s->inflight);
}

/* ---- the type ----------------------------------------------------------- */

PyDoc_STRVAR(queue_doc,
             "FileQueue(loop, engine='auto', /)\n--\n\n"
             "File operations for one event loop, in the kernel or in threads.\n\n"
             "Args:\n"
             "    loop (asyncio.AbstractEventLoop): whose futures are returned. The caller\n"
             "        makes it watch fileno() and call collect().\n"
             "    engine (str): 'auto', 'io_uring' or 'threads'.\n\n"
             "Raises:\n"
             "    OSError: engine is 'io_uring' and the kernel refuses it.\n\n"
             "Only from the loop's thread.");

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const struct {
        const char *name;
        enum pl_file_engine engine;
    } engines[] = {
        {"auto", PL_FILE_AUTO}, {"io_uring", PL_FILE_URING}, {"threads", PL_FILE_THREADS}};
    PyObject *loop;
    const char *name = "auto";
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "FileQueue() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O|s:FileQueue", &loop, &name))
        return NULL;
    size_t i = 0;
    while (i < PL_ARRAY_LEN(engines) && strcmp(engines[i].name, name) != 0)
        i++;
    if (i == PL_ARRAY_LEN(engines))
        return PyErr_Format(PyExc_ValueError,
                            "engine must be 'auto', 'io_uring' or 'threads', not '%s'", name);
    struct plait_state *state = plait_state_of_type(type);
    if (state == NULL)
        return NULL;
    FileQueueObject *q = (FileQueueObject *)type->tp_alloc(type, 0);
    if (q == NULL)
        return NULL;
    q->state = state;
    q->loop = Py_NewRef(loop);
    struct pl_files *files = PyMem_Malloc(sizeof(*files));
    if (files == NULL) {
        Py_DECREF(q);
        return PyErr_NoMemory();
    }
    int r = pl_files_init(files, pl_sys_default(), engines[i].engine);
    if (r < 0) {
        PyMem_Free(files);
        Py_DECREF(q);
        return plait_raise(state, r, "cannot make a queue of file operations");
    }
    q->files = files;
    if (PyObject_TypeCheck(loop, state->loop_type)) {
        files->user = q;
        pl_files_join(files, &((LoopObject *)loop)->core, on_collectable);
    }
    return (PyObject *)q;
}

static int queue_traverse(PyObject *self, visitproc visit, void *arg)
{
    FileQueueObject *q = (FileQueueObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(q->loop);
    for (struct request *r = q->inflight; r != NULL; r = r->next)
        Py_VISIT(r->future);
    return 0;
}

static int queue_clear(PyObject *self)
{
    FileQueueObject *q = (FileQueueObject *)self;
    for (struct request *r = q->inflight; r != NULL; r = r->next)
        Py_CLEAR(r->future);
    Py_CLEAR(q->loop);
    return 0;
}

static void queue_finalize(PyObject *self)
{
    PyObject *type, *error, *tb;
    PyErr_Fetch(&type, &error, &tb);
    uint32_t left = shut((FileQueueObject *)self, PATIENCE);
    if (left > 0 &&
        PyErr_ResourceWarning(self, 1, "%u file operations could not be stopped; %R leaks them",
                              (unsigned)left, self) < 0)
        PyErr_WriteUnraisable(self);
    PyErr_Restore(type, error, tb);
}

static void queue_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0)
        return;
    PyObject_GC_UnTrack(self);
    (void)queue_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define FAST(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef queue_methods[] = {
    {"open", FAST(queue_open), METH_FASTCALL, open_doc},
    {"close_fd", queue_close_fd, METH_O, close_fd_doc},
    {"read", FAST(queue_read), METH_FASTCALL, read_doc},
    {"readinto", FAST(queue_readinto), METH_FASTCALL, readinto_doc},
    {"write", FAST(queue_write), METH_FASTCALL, write_doc},
    {"fsync", queue_fsync, METH_O, fsync_doc},
    {"fdatasync", queue_fdatasync, METH_O, fdatasync_doc},
    {"truncate", FAST(queue_truncate), METH_FASTCALL, truncate_doc},
    {"collect", queue_collect, METH_NOARGS, collect_doc},
    {"cancel", queue_cancel, METH_O, cancel_doc},
    {"close", queue_close, METH_O, close_doc},
    {"fileno", queue_fileno, METH_NOARGS, fileno_doc},
    {"statistics", queue_statistics, METH_NOARGS, queue_statistics_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_doc, (void *)queue_doc},   {Py_tp_new, queue_new},
    {Py_tp_dealloc, queue_dealloc},   {Py_tp_finalize, queue_finalize},
    {Py_tp_traverse, queue_traverse}, {Py_tp_clear, queue_clear},
    {Py_tp_methods, queue_methods},   {0, NULL},
};

static PyType_Spec queue_spec = {
    .name = "plait._core.FileQueue",
    .basicsize = sizeof(FileQueueObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = queue_slots,
};

int plait_file_exec(PyObject *module, struct plait_state *state)
{
    state->str_set_exception = PyUnicode_InternFromString("set_exception");
    if (state->str_set_exception == NULL)
        return -1;
    state->file_queue_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &queue_spec, NULL);
    return state->file_queue_type == NULL ? -1 : PyModule_AddType(module, state->file_queue_type);
}
