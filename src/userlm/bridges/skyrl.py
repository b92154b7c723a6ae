"""Episodes as an environment of SkyRL-gym; docs/rl.md says how to register it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from userlm.bridges import needs
from userlm.episode import Episode
from userlm.types import InputError, Message, ModelError

with needs("skyrl-gym>=0.4"):
    from skyrl_gym.envs.base_text_env import BaseTextEnv


class UserEnv(BaseTextEnv):
    """A simulated user. The row of the data set has the name of an episode in `task`, and may have
    a `seed`; its `prompt` is at most a system message, since the user speaks first."""

    def __init__(
        self,
        env_config: Any = None,
        extras: Mapping[str, Any] | None = None,
        *,
        episode: Callable[[str], Episode],
    ) -> None:
        super().__init__()
        row = extras or {}
        self.episode = episode(row["task"])
        self.seed = int(row.get("seed", 0))
        self.max_turns = self.episode.max_turns

    def init(self, prompt: list[Message]) -> tuple[list[Message], dict[str, Any]]:
        if any(message["role"] != "system" for message in prompt):
            raise InputError(
                "the prompt of a row is a system message, or nothing: the simulated user speaks "
                "first"
            )
        return [*prompt, _said(self.episode.reset(self.seed))], {}

    def step(self, action: str) -> dict[str, Any]:
        text, done, reward = self.episode.step(action)
        if reward is None:
            talk = self.episode.conversation
            why = talk.meta.get("error", f"stopped by {talk.stop}, and no grade")
            raise ModelError(f"an episode has no reward: {why}")
        self.turns += 1
        return {
            "observations": [_said(text)] if text else [],
            "reward": reward,
            "done": done,
            "metadata": {"stop": self.episode.conversation.stop},
        }


def _said(text: str) -> Message:
    return {"role": "user", "content": text}
