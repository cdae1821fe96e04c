/* transport.h - the transport's object, shared by its files. */
#ifndef PLAIT_EXT_TRANSPORT_H
#define PLAIT_EXT_TRANSPORT_H

#include "loop.h"

#define PLAIT_HIGH_WATER ((size_t)64 << 10)

/* X(name): what it owns and gives up early: the socket object, once there is one, which then
 * owns the descriptor; the protocol; the server; a future told when the connection is made,
 * and one when the write queue is empty; the exception for connection_lost. */
// clang-format off
#define PLAIT_TRANSPORT_OBJECTS(X) \
    X(sock)                        \
    X(protocol)                    \
    X(server)                      \
    X(waiter)                      \
    X(empty_waiter)                \
    X(lost)
// clang-format on

/* plait._core.SocketTransport. */
typedef struct {
    PyObject_HEAD
    PyObject *extra; /* the slot _extra of asyncio.BaseTransport */
    PyObject *weaklist;
    PyObject *dict; /* what a program has set on it, mostly nothing: made when first needed */
    struct pl_stream stream;
    struct pl_op start;
    LoopObject *loop;
    PyObject *context;
#define X(name) PyObject *name;
    PLAIT_TRANSPORT_OBJECTS(X)
#undef X
    ReaderState *feed;  /* borrows: the stream reader that takes what arrives, or NULL */
    PyObject *incoming; /* the bytes that a read is filling */
    Py_buffer *view;    /* the BufferedProtocol's buffer that a read is filling */
    size_t high;
    size_t low;
    unsigned lost_writes; /* writes after the connection was lost; 1 from the loss on */
    uint8_t peer_len;
    bool protocol_paused; /* these three are asked for by their names */
    bool paused;
    bool closing;
    /* Bits: each connection pays for what is here. */
    bool fd_open : 1;
    bool registered : 1; /* the core's reference is held */
    bool buffered : 1;   /* the protocol is a BufferedProtocol */
    bool tls : 1;        /* the protocol is an SSLTransport */
    bool eof_written : 1;
    bool started : 1;
    bool counted : 1; /* among the clients of its server, see clients.c */
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } peer;
} TransportObject;

/* Whether it is a transport of ours on which nothing was set: a method may be replaced there. */
static inline bool plait_transport_is_plain(struct plait_state *state, PyObject *object)
{
    return Py_IS_TYPE(object, state->transport_type) && ((TransportObject *)object)->dict == NULL;
}

/* The first half of a dealloc, for a transport with weak references. False when the finalizer has
 * given it another life. */
static inline bool plait_transport_dies(PyObject *self, PyObject *weaklist)
{
    if (PyObject_CallFinalizerFromDealloc(self) < 0)
        return false;
    PyObject_GC_UnTrack(self);
    if (weaklist != NULL)
        PyObject_ClearWeakRefs(self);
    return true;
}

static inline TransportObject *plait_transport_of(struct pl_stream *stream)
{
    return PL_CONTAINER_OF(stream, TransportObject, stream);
}

/* Whether the stream takes calls: neither lost nor left behind by a closed loop. */
static inline bool plait_transport_is_live(TransportObject *t)
{
    return t->registered && !t->stream.dead && t->loop->core_ready;
}

/* transport_protocol.c */
/* Calls protocol.name(arg) in the transport's context; arg may be NULL. */
PyObject *plait_transport_call(TransportObject *t, PyObject *name, PyObject *arg);
/* Tells the loop of the exception that is set, with transport and protocol. */
void plait_transport_tell(TransportObject *t, const char *text);
/* Closes at once, with an exception for connection_lost or NULL. */
void plait_transport_force_close(TransportObject *t, PyObject *exc);
/* An exception is set that the connection does not survive. */
void plait_transport_fatal(TransportObject *t, const char *text);
/* The same for a negative code of the core. */
void plait_transport_fatal_code(TransportObject *t, int code, const char *text);
/* Call pause_writing or resume_writing when the queue has passed a mark. */
void plait_transport_pause_writing(TransportObject *t);
void plait_transport_resume_writing(TransportObject *t);
/* Sets the result of the future at *place to None unless it is done, and forgets it. */
void plait_transport_finish_waiter(TransportObject *t, PyObject **place);

/* transport_stream.c */
extern const struct pl_stream_ops plait_transport_stream_ops;
void plait_transport_drop_view(TransportObject *t);
/* Closes the descriptor, by its socket object when there is one. */
void plait_transport_close_fd(TransportObject *t);
void plait_transport_detach_server(TransportObject *t);

/* transport_info.c */
/* The socket object, made when it is first asked for; it then owns the descriptor. Borrowed;
 * NULL when the transport is closed, or with an exception set. */
PyObject *plait_transport_socket(TransportObject *t);
/* Keeps the names for after the end, as asyncio's transports do. */
void plait_transport_remember_names(TransportObject *t);

/* Methods, for the type's table: transport_write.c, transport_info.c. */
PyObject *plait_transport_write(PyObject *self, PyObject *data);
#define PLAIT_WRITE_BATCH 16

/* Queues n bytes objects that are not empty, PLAIT_WRITE_BATCH at most, in one go. */
int plait_transport_write_bytes(TransportObject *t, PyObject *const *pieces, Py_ssize_t n);
/* Tells the future of _make_empty_waiter, which is there, that the queue is empty. */
void plait_transport_tell_empty(TransportObject *t);
PyObject *plait_transport_writelines(PyObject *self, PyObject *pieces);
PyObject *plait_transport_write_eof(PyObject *self, PyObject *ignored);
PyObject *plait_transport_can_write_eof(PyObject *self, PyObject *ignored);
PyObject *plait_transport_get_write_buffer_size(PyObject *self, PyObject *ignored);
PyObject *plait_transport_get_limits(PyObject *self, PyObject *ignored);
PyObject *plait_transport_set_limits(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *plait_transport_make_empty_waiter(PyObject *self, PyObject *ignored);
PyObject *plait_transport_reset_empty_waiter(PyObject *self, PyObject *ignored);
PyObject *plait_transport_get_extra_info(PyObject *self, PyObject *args, PyObject *kwargs);

extern const char plait_transport_write_doc[];
extern const char plait_transport_writelines_doc[];
extern const char plait_transport_write_eof_doc[];
extern const char plait_transport_can_write_eof_doc[];
extern const char plait_transport_get_write_buffer_size_doc[];
extern const char plait_transport_get_limits_doc[];
extern const char plait_transport_set_limits_doc[];
extern const char plait_transport_make_empty_waiter_doc[];
extern const char plait_transport_reset_empty_waiter_doc[];
extern const char plait_transport_get_extra_info_doc[];

#endif /* PLAIT_EXT_TRANSPORT_H */
