/* tls.h - the TLS transport's object, shared by its files.
 *
 * One object is both: the protocol of the transport below, from which ciphertext comes, and
 * the transport of the program's protocol. The engine is the interpreter's own ssl object
 * between two memory BIOs; only the pumping is ours.
 */
#ifndef PLAIT_EXT_TLS_H
#define PLAIT_EXT_TLS_H

#include "loop.h"

/* What is encrypted in one go, before it is handed to the transport below. */
#define PLAIT_TLS_BATCH ((size_t)256 << 10)

enum tls_state {
    TLS_UNWRAPPED, /* not begun yet, or over */
    TLS_HANDSHAKE,
    TLS_OPEN,
    TLS_FLUSHING, /* to be shut down; what has arrived is still given to the protocol */
    TLS_SHUTDOWN,
};

/* What the protocol was told: made, end of stream, lost, in this order. */
enum tls_app_state { TLS_APP_INIT, TLS_APP_MADE, TLS_APP_EOF, TLS_APP_LOST };

/* X(name): what it owns: the transport below; the program's protocol; a future told of the
 * handshake's end; the ssl.SSLObject, its engine (itself when it is not the interpreter's
 * own class) and the engine's bound read; the BIOs; plaintext that waits; the running timer. */
// clang-format off
#define PLAIT_TLS_FIELDS(X) \
    X(raw)                  \
    X(protocol)             \
    X(waiter)               \
    X(ssl_object)           \
    X(engine)               \
    X(read)                 \
    X(incoming)             \
    X(outgoing)             \
    X(backlog)              \
    X(timer)
// clang-format on

/* Where the ciphertext that has come in is cut into records: enough to know when asking the
 * engine for more would be in vain (it says so by an exception, which costs). */
struct tls_framing {
    uint8_t header[5];
    uint8_t header_len;
    bool lost;     /* what came is no sequence of TLS records: nothing is known */
    bool fresh;    /* records have just come, and the engine has not been asked since */
    size_t whole;  /* records, at least as many as are whole in the BIO */
    uint32_t body; /* bytes of the current record that are still to come */
    size_t tail;   /* bytes that have come of a record that is not complete */
};

typedef struct {
    PyObject_HEAD
    PyObject *extra; /* the slot _extra of asyncio.BaseTransport */
    PyObject *weaklist;
    LoopObject *loop;
#define X(name) PyObject *name;
    PLAIT_TLS_FIELDS(X)
#undef X
    ReaderState *feed; /* borrows: the stream reader that takes what arrives, or NULL */
    struct tls_framing framing;
    Py_ssize_t backlog_at; /* the first piece of the backlog that is not encrypted whole */
    size_t backlog_offset; /* how much of that piece is */
    size_t backlog_size;   /* bytes to encrypt */
    size_t write_high;
    size_t write_low;
    size_t read_high;
    size_t read_low;
    double handshake_timeout; /* seconds */
    double shutdown_timeout;
    int64_t handshake_start; /* in debug mode */
    unsigned lost_writes;
    uint8_t state;     /* enum tls_state */
    uint8_t app_state; /* enum tls_app_state */
    bool stock;        /* the engine is the interpreter's own */
    bool raw_ours;     /* the transport below is a SocketTransport */
    bool buffered;     /* the protocol is a BufferedProtocol */
    bool closed;       /* close or abort was called, or the connection is lost */
    bool released;     /* close was called again: nobody asks for anything any more */
    bool eof_received; /* from the transport below */
    bool raw_paused;   /* the transport below takes no more */
    bool app_paused;   /* the protocol was told to pause writing */
    bool reading_paused;
    bool raw_reading_paused; /* we have paused the transport below */
    bool more;               /* the engine may hold plaintext that it has not given yet */
} TLSObject;

/* tls_pump.c: records in and out. All return 0, or -1 with an exception set. */
/* Loads what is needed of the ssl module into the state. */
int plait_tls_load(struct plait_state *state);
/* Gives ciphertext to the engine's side. */
int plait_tls_take_in(TLSObject *t, const char *data, size_t n);
/* Decrypts what there is, and these bytes of ciphertext, and gives it to the protocol; *closed
 * tells of close_notify. */
int plait_tls_deliver(TLSObject *t, const char *from, size_t len, bool *closed);
/* Adds plaintext, a bytes object, to what is to be encrypted. */
int plait_tls_push(TLSObject *t, PyObject *bytes);
/* Encrypts and hands down, until the transport below is full; all of it when forced. */
int plait_tls_do_write(TLSObject *t, bool force);
/* Hands down what the engine has to send, and minds the flow control. */
int plait_tls_process_outgoing(TLSObject *t);
void plait_tls_control_writing(TLSObject *t);
Py_ssize_t plait_tls_pending(PyObject *bio);
size_t plait_tls_write_size(TLSObject *t);
/* Clears and returns true when the exception that is set only means: not now. */
bool plait_tls_is_again(TLSObject *t);
/* Calls the engine's write; what it has made is in the BIO then. */
PyObject *plait_tls_encrypt(TLSObject *t, PyObject *data);
int plait_tls_window_type(PyObject *module, struct plait_state *state);

/* tls.c: the states. */
int plait_tls_do_read(TLSObject *t, const char *from, size_t len);
/* Pauses the transport below when much ciphertext waits, and lets it go on again. */
int plait_tls_control_reading(TLSObject *t);
void plait_tls_start_shutdown(TLSObject *t);
/* Takes the exception that is set: the connection does not survive it. Interpreter exits stay
 * set, and -1 is returned. */
int plait_tls_fatal(TLSObject *t, const char *message);
void plait_tls_force_close(TLSObject *t, PyObject *exc);
/* Lets go of the program's SSLContext once that is possible and allowed. */
void plait_tls_release(TLSObject *t);
int plait_tls_call_soon(TLSObject *t, const char *method);
/* Calls the protocol; arg may be NULL. */
PyObject *plait_tls_call_app(TLSObject *t, PyObject *name, PyObject *arg);
/* Calls a method without arguments of the transport below, if there is one. */
int plait_tls_call_raw(TLSObject *t, PyObject *name);
int plait_tls_set_protocol(TLSObject *t, PyObject *protocol);
extern PyMethodDef plait_tls_protocol_methods[];

#endif /* PLAIT_EXT_TLS_H */
