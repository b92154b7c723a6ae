"""Event loops in threads of their own, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from functools import cache

from userlm.types import ModelError


@cache
def event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return the loop of this name: clients that belong to a loop are always asked in the same
    one."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
    return loop


def late(seconds: float) -> ModelError:
    """Return the error for an answer that took too long."""
    message = f"did not answer in time ({seconds:.3g} seconds)"
    return ModelError(message, "timed out")
