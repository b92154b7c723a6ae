"""Episodes as an `environment_factory` of TRL's GRPOTrainer; docs/rl.md has an example.

In TRL an environment is its tools, so the model speaks to the user by calling `say`. TRL masks the
result of a tool, which are the user's words, in the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from userlm.episode import Episode


class SimulatedUser:
    """An environment of TRL. A row of the data set has the name of an episode in `task`, and may
    have a `seed`. All public methods but `reset` and `get_reward` are tools."""

    def __init__(self, episode: Callable[[str], Episode]) -> None:
        self._make = episode

    def reset(self, task: str, seed: int = 0, **_row: Any) -> str:
        """Begin the episode of a row. TRL puts what the user says first after the prompt."""
        self._episode = self._make(task)
        return self._episode.reset(seed)

    def say(self, text: str) -> str:
        """Say something to the user and read what they answer. They hear nothing else.

        Args:
            text: What to say to the user.
        """
        answer, done, _ = self._episode.step(text)
        return f"{answer}\n(The conversation is over.)".strip() if done else answer

    def get_reward(self) -> float | None:
        """The reward, also if the model stopped speaking; `None`, which TRL leaves out, if it
        cannot be said."""
        return self._episode.current_reward()
