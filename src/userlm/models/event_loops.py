"""Event loops in threads of their own, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import cache

from userlm.types import ModelError

_BEGINNING = threading.Lock()


def event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return the loop of this name: clients that belong to a loop are always asked in the same
    one."""
    with _BEGINNING:  # threads that ask at the same time would get two
        return _begun(name)


@cache
def _begun(name: str) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
    return loop


def cancel(name: str) -> None:
    """Cancel all that runs in the loop of this name, and wait a moment until it has ended: a
    command that runs for a bot is killed."""

    async def cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    with suppress(TimeoutError):  # code of others may block the loop
        asyncio.run_coroutine_threadsafe(cancel_all(), event_loop(name)).result(2)


def late(seconds: float) -> ModelError:
    """Return the error for an answer that took too long."""
    message = f"did not answer in time ({seconds:.3g} seconds)"
    return ModelError(message, "timed out")
