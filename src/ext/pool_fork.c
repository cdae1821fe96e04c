/* pool_fork.c - a copy of this process, for pools whose workers begin as such copies.
 *
 * os.fork warns, from Python 3.12 on, when other threads run. A pool says so itself, before it
 * has changed anything and in words of its own, so this fork does not.
 */
#include "pool.h"

#include <unistd.h>

const char plait_fork_doc[] =
    "fork($module, /)\n--\n\n"
    "Copy this process as os.fork does, and run what os.register_at_fork was told.\n\n"
    "Returns:\n    int: 0 in the copy, its process id in this process.\n\n"
    "Raises:\n    OSError: the system refuses another process.";

PyObject *plait_fork(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    PyOS_BeforeFork();
    pid_t pid = fork();
    int error = errno; /* what runs at a fork may overwrite it */
    if (pid == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    if (pid < 0)
        return plait_raise(plait_state_of_module(module), -error, "forking a process for a pool");
    return PyLong_FromLong(pid);
}
