"""What of CPython's concurrent.futures tests does not run on plait's pools, and why.

A pattern names a class, or a test: "module.Class" or "module.Class.test". The module is
test_concurrent_futures in Python 3.11, and the package's module from 3.12 on.
"""

from __future__ import annotations

_NAME = "asserts the name of the interpreter's class in the names of threads"
_PRIVATE = "looks into the executor's private table of processes, queues or manager thread"
_BREAKS = "asserts that the death of one worker breaks the pool, which is what plait does not do"
_CHILD = "max_tasks_per_child: asserts a private table, or a default context of the interpreter's"
_REPLACED = "prevents the start of multiprocessing's processes, which are not the pool's"
_QUEUE = "a multiprocessing.Queue as an argument, which only its own processes inherit"
_EARLY = "asserts that some tasks have begun at once; workers that are still starting begin none"
_CAUSE = "asserts the interpreter's private class of the cause; test_pool has the traceback"
_DROPPED = "asserts that a dropped pool's tasks fail; plait's are done: test_pool_death has that"

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
    _PROCESS + ".test_max_tasks_per_child*": _CHILD,
    _PROCESS + ".test_force_shutdown_during_max_tasks_worker_exit": _REPLACED,
    _PROCESS + ".test_max_tasks_shutdown*": _REPLACED,
    _PROCESS + ".test_failed_worker_replacement_breaks_pool": _REPLACED,
    _PROCESS + ".test_shutdown_gh_132969_*": _REPLACED,
    _PROCESS + ".test_force_shutdown_workers": _PRIVATE,
    _PROCESS + ".test_force_shutdown_workers_[!dn]*": _PRIVATE,
    _PROCESS + ".test_force_shutdown_workers_kill*": _PRIVATE,
    _PROCESS + ".test_force_shutdown_workers_terminate*": _PRIVATE,
    _PROCESS + ".test_kill_workers*": _PRIVATE,
    _PROCESS + ".test_terminate_workers*": _PRIVATE,
    _PROCESS + ".test_gc_during_max_tasks_worker_exit_*": _DROPPED,
    _PROCESS + ".test_shutdown_no_wait_max_tasks_*": _DROPPED,
    _PROCESS + "FailingInitializerTest": _QUEUE,
    _PROCESS + ".test_cancel_futures": _EARLY,
    _PROCESS + ".test_traceback": _CAUSE,
    _PROCESS + ".test_traceback_when_child_process_terminates_abruptly": _CAUSE,
}
