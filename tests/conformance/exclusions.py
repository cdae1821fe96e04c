"""What of CPython's asyncio tests does not run on plait, and why.

A pattern names a class, or a test: "module.Class" or "module.Class.test". Tests in which no
loop takes part (of the policies, of mock objects) are skipped by suite.py, and not listed.
"""

from __future__ import annotations

_SAME = "the same tests with another of the selectors module's classes, which plait has not"
_WINDOWS = "Windows only"
_MOCKS = "asyncio's transport classes by themselves, between a mock loop and mock sockets"
_MOCK_LOOP = "asyncio's pipe transport against a mock loop; test_events has the real one"
_QUEUES = "looks into BaseEventLoop._ready and _scheduled, which are C structures here"
_SELECT = "replaces the selector, or one of the private steps of BaseEventLoop's iteration"
_MOCK_SOCKET = "a mock without a descriptor as the socket, where C reads from the descriptor"
_PATCHED = "replaces a method of the transport object, which C types do not allow"
_HOOK = "calls a hook for tests of asyncio's private transport; test_loop_tls has the same test"
_ABSTRACT = "asserts what the abstract base class leaves out"

_BASE = "test_base_events.BaseEventLoopTests."
_WITH_SELECTOR = "test_base_events.BaseEventLoopWithSelectorTests."

EXCLUSIONS: dict[str, str] = {
    "*.PollEventLoopTests": _SAME,
    "*.SelectEventLoopTests": _SAME,
    "test_proactor_events.*": _WINDOWS,
    "test_selector_events.*": _MOCKS,
    "test_unix_events.UnixReadPipeTransportTests": _MOCK_LOOP,
    "test_unix_events.UnixWritePipeTransportTests": _MOCK_LOOP,
    "test_ssl.TestSSL.test_remote_shutdown_receives_trailing_data": _HOOK,
    "test_ssl.TestSSL.test_remote_shutdown_receives_trailing_data_on_slow_socket": _PATCHED,
    _BASE + "test__add_callback_handle": _QUEUES,
    _BASE + "test__run_once*": _QUEUES,
    _BASE + "test_custom_run_forever_integration": _SELECT,
    _BASE + "test_run_forever_pre_stopped": _SELECT,
    _BASE + "test_single_selecter_event_callback_after_stopping": _SELECT,
    _BASE + "test_call_later": _QUEUES,
    _BASE + "test_call_soon": _QUEUES,
    _BASE + "test_not_implemented": _ABSTRACT,
    _WITH_SELECTOR + "test_create_connection_ip_addr": _MOCK_SOCKET,
    _WITH_SELECTOR + "test_create_connection_ipv6_scope": _MOCK_SOCKET,
    _WITH_SELECTOR + "test_create_connection_no_inet_pton": _MOCK_SOCKET,
    _WITH_SELECTOR + "test_create_connection_service_name": _MOCK_SOCKET,
    _WITH_SELECTOR + "test_create_datagram_endpoint_ip_addr": _MOCK_SOCKET,
    _WITH_SELECTOR + "test_create_server_soreuseport_only_defined": _MOCK_SOCKET,
}
