/* module.c - plait._core: initialisation only (PEP 489, multi-phase). */
#include "loop.h"

static PyObject *build_config(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    (void)module;
    return Py_BuildValue("{s:s, s:s, s:O, s:O}", "version", pl_version(), "compiler", __VERSION__,
                         "io_uring", PL_HAVE_IO_URING ? Py_True : Py_False, "assertions",
#ifdef NDEBUG
                         Py_False
#else
                         Py_True
#endif
    );
}

PyDoc_STRVAR(build_config_doc, "build_config($module, /)\n--\n\n"
                               "Tell how this extension was built.\n\n"
                               "Returns:\n"
                               "    dict: version, compiler, whether io_uring is built in, and\n"
                               "    whether assertions are compiled in.");

PyDoc_STRVAR(getattr_doc, "__getattr__($module, name, /)\n--\n\n"
                          "Make the parts that build on asyncio, and look again.");

static PyObject *module_getattr(PyObject *module, PyObject *name)
{
    struct plait_state *state = plait_state_of_module(module);
    /* The import system asks for names like __path__, which are not there in any case. */
    bool special = PyUnicode_Check(name) && PyUnicode_GetLength(name) > 2 &&
                   PyUnicode_ReadChar(name, 0) == '_' && PyUnicode_ReadChar(name, 1) == '_';
    /* Without a state the module is not executed yet. */
    if (state != NULL && !state->whole && !special) {
#define X(part)                                                                                    \
    if (plait_##part##_exec(module, state) < 0)                                                    \
        return NULL;
        PLAIT_LATER_PARTS(X)
#undef X
        state->whole = true;
    }
    PyObject *value = PyDict_GetItemWithError(PyModule_GetDict(module), name); // borrowed
    if (value != NULL)
        return Py_NewRef(value);
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_AttributeError, "module 'plait._core' has no attribute %R", name);
    return NULL;
}

static PyMethodDef methods[] = {
    {"build_config", build_config, METH_NOARGS, build_config_doc},
    {"__getattr__", module_getattr, METH_O, getattr_doc},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    struct plait_state *state = plait_state_of_module(module);
    if (PyModule_AddStringConstant(module, "__version__", pl_version()) < 0)
        return -1;
    return plait_pool_exec(module, state);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct plait_state *state = plait_state_of_module(module);
#define X(type, name) Py_VISIT(state->name);
    PLAIT_OBJECTS(X)
#undef X
    /* What waits for its next use keeps its type. */
    int r = 0;
#define X(name)                                                                                    \
    if (r == 0)                                                                                    \
        r = plait_free_list_visit(&state->loop.name, visit, arg);
    PLAIT_LOOP_FREE_LISTS(X)
#undef X
    if (r == 0)
        r = plait_free_list_visit(&state->generators.requests, visit, arg);
    if (r == 0)
        r = plait_free_list_visit(&state->budget.calls, visit, arg);
    if (r == 0)
        r = plait_free_list_visit(&state->scope.ops, visit, arg);
    if (r != 0)
        return r;
    for (int i = 0; i < PLAIT_KNOWN; i++) {
        Py_VISIT(state->budget.known[i].code);
        Py_VISIT(state->budget.known[i].task);
    }
    return 0;
}

static int module_clear(PyObject *module)
{
    struct plait_state *state = plait_state_of_module(module);
    plait_loop_clear(state);
    plait_pool_clear(state);
    plait_thread_clear(state);
    plait_generators_clear(state);
    plait_budget_clear(state);
    plait_scope_clear(state);
    plait_task_clear(state);
#define X(type, name) Py_CLEAR(state->name);
    PLAIT_OBJECTS(X)
#undef X
    return 0;
}

static void module_free(void *module)
{
    (void)module_clear((PyObject *)module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

struct PyModuleDef plait_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "plait._core",
    .m_doc = "The C core of plait, bound to Python. Private: use the names in plait.",
    .m_size = sizeof(struct plait_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&plait_module);
}
