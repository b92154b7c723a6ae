"""Event loops in threads of their own, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from functools import cache


@cache
def event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return the loop of this name: clients that belong to a loop are always asked in the same
    one."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
    return loop
