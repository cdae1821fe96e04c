/* transport_info.c - get_extra_info: names and the socket object, made when asked for.
 */
#include "transport.h"

#include <arpa/inet.h>

static PyObject *name_of(const struct sockaddr *addr)
{
    /* As the socket module does: without the interface, which has a place of its own. */
    char host[INET6_ADDRSTRLEN];
    if (addr->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)addr;
        if (inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host)) == NULL)
            Py_RETURN_NONE;
        return Py_BuildValue("(si)", host, ntohs(in->sin_port));
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)addr;
    if (inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host)) == NULL)
        Py_RETURN_NONE;
    return Py_BuildValue("(siII)", host, ntohs(in6->sin6_port), (unsigned)ntohl(in6->sin6_flowinfo),
                         (unsigned)in6->sin6_scope_id);
}

PyObject *plait_socket_new(struct plait_state *state, int fd)
{
    PyObject *number = PyLong_FromLong(fd);
    if (number == NULL)
        return NULL;
    PyObject *args[2] = {NULL, number};
    PyObject *sock = PyObject_Vectorcall(state->socket_type, args + 1,
                                         0 | PY_VECTORCALL_ARGUMENTS_OFFSET, state->kwnames_fileno);
    Py_DECREF(number);
    if (sock == NULL)
        return NULL;
    PyObject *result = PyObject_CallMethod(sock, "setblocking", "i", 0);
    if (result == NULL) {
        PyObject *type, *exc, *tb;
        PyErr_Fetch(&type, &exc, &tb);
        /* The descriptor stays the caller's, so the object must not close it. */
        Py_XDECREF(PyObject_CallMethod(sock, "detach", NULL));
        PyErr_Restore(type, exc, tb);
        Py_CLEAR(sock);
    }
    Py_XDECREF(result);
    return sock;
}

PyObject *plait_transport_socket(TransportObject *t)
{
    if (t->sock == NULL && t->fd_open)
        t->sock = plait_socket_new(t->loop->state, t->stream.io.fd);
    return t->sock;
}

/* Puts a value into the dict of extra information; steals it. */
static PyObject *remember(TransportObject *t, const char *name, PyObject *value)
{
    if (value == NULL)
        return NULL;
    if (t->extra == NULL)
        t->extra = PyDict_New();
    if (t->extra == NULL || PyDict_SetItemString(t->extra, name, value) < 0)
        Py_CLEAR(value);
    return value;
}

/* A value that costs something, made when it is asked for. NULL without an exception: there
 * is none by this name. */
static PyObject *make_extra(TransportObject *t, const char *name)
{
    bool peer = strcmp(name, "peername") == 0;
    if (strcmp(name, "socket") == 0) {
        PyObject *sock = plait_transport_socket(t);
        if (sock == NULL)
            return NULL;
        return remember(t, name,
                        PyObject_CallOneArg(t->loop->state->asyncio_transport_socket, sock));
    }
    if (peer && t->peer_len > 0)
        return remember(t, name, name_of(&t->peer.any));
    if (peer || strcmp(name, "sockname") == 0) {
        PyObject *sock = plait_transport_socket(t);
        if (sock == NULL)
            return NULL;
        PyObject *value = PyObject_CallMethod(sock, peer ? "getpeername" : "getsockname", NULL);
        if (value == NULL && PyErr_ExceptionMatches(PyExc_OSError)) {
            PyErr_Clear();
            value = Py_NewRef(Py_None);
        }
        return remember(t, name, value);
    }
    return NULL;
}

/* asyncio's transports know their names after they are closed. */
void plait_transport_remember_names(TransportObject *t)
{
    if (t->sock == NULL && t->extra == NULL)
        return; /* nobody ever asked for anything */
    static const char *const names[] = {"sockname", "peername"};
    for (size_t i = 0; i < PL_ARRAY_LEN(names); i++) {
        if (t->extra != NULL && PyDict_GetItemString(t->extra, names[i]) != NULL)
            continue;
        PyObject *value = make_extra(t, names[i]);
        if (value == NULL)
            PyErr_Clear();
        Py_XDECREF(value);
    }
}

const char plait_transport_get_extra_info_doc[] =
    PyDoc_STR("get_extra_info($self, name, default=None)\n--\n\n"
              "Return what is known about the connection: socket, sockname, peername.");

PyObject *plait_transport_get_extra_info(PyObject *self, PyObject *args, PyObject *kwargs)
{
    TransportObject *t = (TransportObject *)self;
    static char *names[] = {"name", "default", NULL};
    PyObject *name, *fallback = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:get_extra_info", names, &name, &fallback))
        return NULL;
    if (t->extra != NULL) {
        PyObject *value = PyDict_GetItemWithError(t->extra, name); // borrowed
        if (value != NULL)
            return Py_NewRef(value);
        if (PyErr_Occurred())
            return NULL;
    }
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : "";
    PyObject *value = text == NULL ? NULL : make_extra(t, text);
    if (value == NULL && !PyErr_Occurred())
        value = Py_NewRef(fallback);
    return value;
}
