"""Calls of several threads that ask the same at the same time: one of them asks for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SharedCalls(Generic[Result]):
    """The calls in flight, by what is asked. One that has returned is forgotten: whoever wants to
    keep its result does so in the call. It is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight: dict[Hashable, Future[Result]] = {}

    def result(self, key: Hashable, call: Callable[[], Result]) -> tuple[Result, bool]:
        """Return what the call returns, or that of the same key that is in flight; and whether it
        was this one. What it raises is raised in every thread that waits for it."""
        with self._lock:
            found = self._in_flight.get(key)
            is_own = found is None
            future = self._in_flight[key] = found or Future()
        if is_own:
            try:
                future.set_result(self._called(key, call))
            except BaseException as error:
                future.set_exception(error)
        return future.result(), is_own

    def _called(self, key: Hashable, call: Callable[[], Result]) -> Result:
        try:
            return call()
        finally:  # before others hear of it: who asks again after an error begins a new call
            with self._lock:
                del self._in_flight[key]
