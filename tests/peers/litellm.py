# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm>=1.60"]
# ///
"""LiteLLM, through which many harnesses call their user."""

import litellm
import peer

with peer.case("LiteLLM", "litellm", "base URL") as case:
    case.stop_phrase = "[end]"
    messages = [{"role": "system", "content": peer.INTENT}]
    said = []
    while len(said) < 10:
        messages.append({"role": "user", "content": peer.AGENT})
        answer = litellm.completion(
            f"openai/{peer.MODEL}", messages, api_base=peer.URL, api_key="none"
        )
        said.append(answer.choices[0].message.content)
        if "[end]" in said[-1]:
            break
        messages.append({"role": "assistant", "content": said[-1]})
    assert said == [*peer.LINES, "[end]"], said
    case.end_seen = True
    case.note = peer.OWN_LOOP
