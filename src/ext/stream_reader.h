/* stream_reader.h - the state of a stream reader that is fed and read in C.
 *
 * An asyncio.StreamReader whose connection a transport of ours makes is given a subclass
 * without fields (by class assignment); what was in its dict moves into a state object,
 * which stands in the dict under one private key. One that nobody has seen yet, a server's, is
 * replaced by one of a class that has a field for the state, and no dict. asyncio's own methods
 * that are not replaced find the fields where they were, through descriptors.
 */
#ifndef PLAIT_EXT_STREAM_READER_H
#define PLAIT_EXT_STREAM_READER_H

#include "loop.h"

struct reader_state {
    PyObject_HEAD
    LoopObject *loop;
    /* What is buffered: `chunk` from `offset` on, or all of `buffer`; not both. */
    PyObject *chunk;  /* bytes, NULL without */
    PyObject *buffer; /* bytearray, NULL without */
    Py_ssize_t offset;
    PyObject *waiter;    /* the future of the one reader that waits, or NULL */
    PyObject *exception; /* or NULL */
    PyObject *transport; /* or NULL */
    Py_ssize_t limit;
    ReaderState **link; /* borrows; where a transport keeps its way to us, or NULL */
    bool exposed;       /* somebody has seen `buffer`: it stays the place of the data */
    bool eof;
    bool paused; /* we have paused the transport's reading */
};

/* stream_reader.c */
/* The state of a reader of ours, borrowed: it lives as long as the reader does. NULL without
 * an exception for all other objects. */
ReaderState *plait_reader_state(struct plait_state *state, PyObject *reader);
Py_ssize_t plait_reader_len(ReaderState *s);
/* Where what is buffered begins. Valid until the state changes. */
const char *plait_reader_data(ReaderState *s);
/* Takes the first n bytes, which are there, out as a bytes object. */
PyObject *plait_reader_take(ReaderState *s, Py_ssize_t n);
/* Drops the first n bytes, which are there. */
int plait_reader_drop(ReaderState *s, Py_ssize_t n);
/* Let the transport go on reading: when what is buffered is within the limit, or at once. */
int plait_reader_maybe_resume(ReaderState *s);
int plait_reader_resume(ReaderState *s);

/* Moves the fields of an exact StreamReader into a state. 1, 0 when it has anything that a
 * fresh reader of this loop has not, or -1. The dict stays as it is. */
int plait_reader_move_fields(PyObject *dict, ReaderState *s);
/* A pending asyncio.Future of the loop's, new or used again. */
PyObject *plait_reader_future(LoopObject *loop);
/* Keeps a future that is done for plait_reader_future; steals it. */
void plait_reader_keep(LoopObject *loop, PyObject *future);

/* stream_read.c: the methods that wait. */
PyObject *plait_reader_read(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames);
PyObject *plait_reader_readexactly(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *kwnames);
PyObject *plait_reader_readuntil(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames);
PyObject *plait_reader_readline(PyObject *self, PyObject *ignored);
PyObject *plait_reader_anext(PyObject *self, PyObject *ignored);
PyObject *plait_reader_anext_slot(PyObject *self);
int plait_read_op_type(PyObject *module, struct plait_state *state);

/* stream_writer.c */
/* Lets the writer of a server's connection, when asyncio makes it, become one of ours. */
int plait_writer_expect(struct plait_state *state, PyObject *protocol);
int plait_writer_types(PyObject *module, struct plait_state *state);

/* stream_adopt.c */
/* The object's dict, for exact instances of asyncio's classes; a new reference. */
PyObject *plait_stream_dict(PyObject *object);
/* Whether a class still has the functions that asyncio gave it. 1, 0, or -1. */
int plait_stream_is_stock(PyObject *type, PyObject *stock);
/* {name: function} of those of a class of asyncio's that we replace or go around; an empty
 * dict when somebody has put others there already. */
PyObject *plait_stream_stock(PyObject *type, const char *const *names);
/* A subclass of one of asyncio's classes; the spec has its name and no fields. */
PyObject *plait_stream_subclass(PyObject *module, PyType_Spec *spec, PyObject *base);

#endif /* PLAIT_EXT_STREAM_READER_H */
