# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm>=1.60"]
# ///
"""LiteLLM, through which many harnesses call their user."""

import litellm
import peer


def say(messages: list, url: str) -> str:
    messages.append({"role": "user", "content": peer.AGENT})
    answer = litellm.completion(
        f"openai/{peer.MODEL}", messages, api_base=url, api_key="none"
    )
    messages.append(answer.choices[0].message.model_dump())
    return messages[-1]["content"]


with peer.case("LiteLLM", "litellm", "base URL") as case:
    case.stop_phrase = "[end]"
    messages = [{"role": "system", "content": peer.INTENT}]
    said = []
    while len(said) < 10:
        said.append(say(messages, peer.URL))
        if "[end]" in said[-1]:
            break
    assert said == [*peer.LINES, "[end]"], said
    case.end_seen = True
    case.note = peer.OWN_LOOP

for ending in peer.endings("LiteLLM", "litellm"):
    with ending:
        messages = [{"role": "system", "content": peer.INTENT}]
        for _ in range(6):
            say(messages, ending.url)
