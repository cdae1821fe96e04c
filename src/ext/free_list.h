/* free_list.h - objects of one size, kept for their next use.
 *
 * A parked object has had its fields cleared and is not tracked; it keeps the reference to its
 * type. One thread at a time uses a list: the interpreter's lock guards it. Without that lock
 * nothing is parked.
 */
#ifndef PLAIT_FREE_LIST_H
#define PLAIT_FREE_LIST_H

#include <Python.h>

#include <stdbool.h>

/* As many as a busy server or a burst has in flight at a time; at most half a megabyte. */
#define PLAIT_FREE_OBJECTS 2048

struct plait_free_list {
    int len;
    PyObject *objects[PLAIT_FREE_OBJECTS];
};

/* An object of this type, or new memory for one: an untracked one, with nothing but its header
 * filled in. The types that share a list have one size and no items. */
static inline PyObject *plait_free_list_new(struct plait_free_list *list, PyTypeObject *type)
{
#ifndef Py_GIL_DISABLED
    if (list->len > 0) {
        PyObject *o = list->objects[--list->len];
        if (Py_IS_TYPE(o, type)) {
            _Py_NewReference(o);
            return o;
        }
        PyTypeObject *kept = Py_TYPE(o);
        (void)PyObject_Init(o, type);
        Py_DECREF(kept);
        return o;
    }
#endif
    (void)list;
    return _PyObject_GC_New(type);
}

/* Takes an object whose last reference is gone. False when it is still the caller's: the list
 * is full. */
static inline bool plait_free_list_park(struct plait_free_list *list, PyObject *o)
{
#ifndef Py_GIL_DISABLED
    if (list->len < PLAIT_FREE_OBJECTS) {
        list->objects[list->len++] = o;
        return true;
    }
#endif
    (void)list;
    (void)o;
    return false;
}

static inline int plait_free_list_visit(struct plait_free_list *list, visitproc visit, void *arg)
{
    for (int i = 0; i < list->len; i++)
        Py_VISIT(Py_TYPE(list->objects[i]));
    return 0;
}

static inline void plait_free_list_clear(struct plait_free_list *list)
{
    while (list->len > 0) {
        PyObject *o = list->objects[--list->len];
        PyTypeObject *type = Py_TYPE(o);
        PyObject_GC_Del(o);
        Py_DECREF(type);
    }
}

#endif /* PLAIT_FREE_LIST_H */
