# /// script
# requires-python = ">=3.11"
# dependencies = ["skyrl-gym>=0.4", "userlm"]
# ///
"""Episodes as an environment of SkyRL-gym, as in docs/rl.md."""

import json
from functools import partial
from importlib.metadata import version

import peer
import skyrl_gym

from userlm import Episode, Task
from userlm.assistants import Script
from userlm.bridges.skyrl import UserEnv
from userlm.types import Contains, RulesCheck

TASK = Task("flight", peer.INTENT, check=RulesCheck((Contains("it is moved"),)))
user = Script(peer.LINES)
skyrl_gym.register(
    "user", entry_point=partial(UserEnv, episode=lambda name: Episode(user, TASK))
)
environment = skyrl_gym.make("user", env_config=None, extras={"task": "flight"})
system = {"role": "system", "content": "You move flights."}
said = [{"role": "user", "content": line} for line in peer.LINES]
assert environment.init([system]) == ([system, said[0]], {})
first = environment.step("Which booking?")
assert first["observations"] == [said[1]] and not first["done"], first
last = environment.step("It is moved.")
assert (last["reward"], last["done"], last["observations"]) == (1.0, True, []), last

row = {"harness": "SkyRL-gym", "version": version("skyrl-gym"), "how": "an environment"}
print(json.dumps({**row, "ok": True, "note": "docs/rl.md"}))
