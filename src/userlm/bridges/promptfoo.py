"""A provider for promptfoo that plays a whole conversation, since the user of its own
`promptfoo:simulated-user` is a model that it hosts.

    # provider.py
    from userlm.bridges.promptfoo import call_api

    # promptfooconfig.yaml: a prompt is the intent
    providers:
      - id: file://provider.py
        config: {user: "trained:userlm-small", assistant: "py:my_bot:answer", max_turns: 10}
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from uuid import uuid4

from userlm import loading
from userlm.bridges import find_user, intent_of
from userlm.simulate import converse
from userlm.types import FAILED, Conversation, messages_of

_assistant = cache(loading.assistant)


def call_api(
    prompt: str, options: Mapping[str, Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the conversation as a text, and as messages in its metadata."""
    config = options["config"]
    done = converse(
        find_user(config["user"]),
        _assistant(config["assistant"]),
        Conversation(uuid4().hex, intent=intent_of(prompt)),
        config.get("max_turns", 10),
    )
    if done.stop in FAILED:
        return {"error": str(done.meta.get("error", done.stop))}
    lines = [f"{turn.role.title()}: {turn.text}" for turn in done.turns]
    metadata = {"messages": messages_of(done.turns), "stop": done.stop}
    return {"output": "\n---\n".join(lines), "metadata": metadata}
