# /// script
# requires-python = ">=3.11"
# dependencies = ["openai>=1.60", "userlm"]
# ///
"""A prompt of the shape that Lost in Conversation's user has: the transcript and what is left to
say in one message, an answer in JSON asked for in words."""

import openai
import peer

from userlm.bridges import Talk

PROMPT = f"""You simulate a person who works with a model on a task, and tells it only a part at a time.

The whole task, of which the model knows nothing:
{{"goal": "{peer.GOAL}", "facts": ["The booking is 4471."]}}

What was said so far:
[user] {peer.LINES[0]}
[assistant] {peer.AGENT}

Answer with JSON: {{"response": "...", "fact": 1}}"""

with peer.case("Lost in Conversation (its shape)", "", "base URL") as case:
    client = openai.OpenAI(base_url=peer.URL, api_key="none")
    try:
        client.chat.completions.create(
            model=peer.MODEL, messages=[{"role": "user", "content": PROMPT}]
        )
    except openai.BadRequestError:
        case.note = "BadRequestError"
    case.refused()

with peer.case("Lost in Conversation (its shape)", "", "bridge, `Talk`") as case:
    talk, history, said = Talk(peer.URL, peer.GOAL), [], []
    while (text := talk.say(history)) is not None and len(said) < 9:
        said.append(text)
        history.append({"role": "user", "content": text})
        history.append({"role": "assistant", "content": peer.AGENT})
    assert said == peer.LINES, said
    case.end_seen = True
