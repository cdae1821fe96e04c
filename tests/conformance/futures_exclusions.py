"""What of CPython's concurrent.futures tests does not run on plait's pools, and why.

A pattern names a class, or a test: "module.Class" or "module.Class.test". The module is
test_concurrent_futures in Python 3.11, and the package's module from 3.12 on.
"""

from __future__ import annotations

_NAME = "asserts the name of the interpreter's class in the names of threads"
_PRIVATE = "looks into the executor's private table of processes, queues or manager thread"
_BREAKS = "asserts that the death of one worker breaks the pool, which is what plait does not do"
_CHILD = "max_tasks_per_child, as multiprocessing's processes count it"
_QUEUE = "a multiprocessing.Queue as an argument, which only its own processes inherit"
_EARLY = "asserts that some tasks have begun at once; workers that are still starting begin none"
_CAUSE = "asserts the interpreter's private class of the cause; test_pool has the traceback"
_REFERENCES = "a result that nobody waits for is dropped when the pool is next looked at"
_FORCE = "terminate_workers and kill_workers, which the interpreter's process pool alone has"
_ITERATOR = "asserts that map's iterator holds no reference to the result that it gave last"

_PROCESS = "*.ProcessPoolSpawn*"

EXCLUSIONS: dict[str, str] = {
    "*.ThreadPoolShutdownTest.test_thread_names_default": _NAME,
    _PROCESS + ".test_saturation": _PRIVATE,
    _PROCESS + ".test_idle_process_reuse_*": _PRIVATE,
    _PROCESS + ".test_processes_terminate": _PRIVATE,
    _PROCESS + ".test_context_manager_shutdown": _PRIVATE,
    _PROCESS + ".test_del_shutdown": _PRIVATE,
    _PROCESS + ".test_shutdown_no_wait": _PRIVATE,
    _PROCESS + ".test_shutdown_deadlock_pickle": _PRIVATE,
    _PROCESS + ".test_python_finalization_error": _PRIVATE,
    _PROCESS + ".test_gh105829_*": _PRIVATE,
    _PROCESS + ".test_killed_child": _BREAKS,
    _PROCESS + ".test_broken_process_pool_traceback": _PRIVATE,
    _PROCESS + ".*_max_tasks_*": _CHILD,
    _PROCESS + ".test_failed_worker_replacement_breaks_pool": _CHILD,
    _PROCESS + ".test_shutdown_gh_132969_*": _CHILD,
    _PROCESS + ".test_force_shutdown_workers*": _FORCE,
    _PROCESS + ".test_kill_workers*": _FORCE,
    _PROCESS + ".test_terminate_workers*": _FORCE,
    _PROCESS + "FailingInitializerTest": _QUEUE,
    _PROCESS + ".test_cancel_futures": _EARLY,
    _PROCESS + ".test_traceback": _CAUSE,
    _PROCESS + ".test_traceback_when_child_process_terminates_abruptly": _CAUSE,
    _PROCESS + ".test_no_stale_references": _REFERENCES,
    _PROCESS + ".test_free_reference": _ITERATOR,
}
