# /// script
# requires-python = ">=3.11"
# dependencies = ["openai>=1.60"]
# ///
"""The client itself, with the roles as they are and swapped."""

import openai
import peer

client = openai.OpenAI(base_url=peer.URL, api_key="none")
SYSTEM = {"role": "system", "content": peer.INTENT}


def said_by_user(me: str, agent: str) -> list[str]:
    """What the user says until it ends, which has role `me` in the messages."""
    messages = [SYSTEM, {"role": agent, "content": peer.GREETING}]
    said = []
    while len(said) < 10:
        answer = client.chat.completions.create(model=peer.MODEL, messages=messages)
        if answer.userlm["ended"]:
            return said
        said.append(answer.choices[0].message.content)
        messages.append({"role": me, "content": said[-1]})
        messages.append({"role": agent, "content": peer.AGENT})
    raise AssertionError("the user did not end")


with peer.case("OpenAI client", "openai", "base URL") as case:
    assert said_by_user("user", "assistant") == peer.LINES
    case.end_seen = True
    case.note = f"`answer.userlm`; {peer.OWN_LOOP}"

with peer.case("OpenAI client", "openai", "base URL") as case:
    assert said_by_user("assistant", "user") == peer.LINES
    case.end_seen = True
    case.note = f"`answer.userlm`; {peer.OWN_LOOP}"
