"""Any program that speaks the OpenAI API can talk to a user model. Here you are the assistant.

userlm serve                      # in another terminal; it says where
python openai_client.py [http://127.0.0.1:8765/v1]
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8765/v1"
client = OpenAI(base_url=url, api_key="none")
[model] = [one.id for one in client.models.list()][:1]


def my_assistant(messages: list[dict[str, str]]) -> str:
    return "Gladly. What else should I know?"


goal = (
    "You are a user chatting with an assistant language model to plan a trip to Rome."
)
messages = [{"role": "system", "content": goal}]
for turn in range(3):
    answer = client.chat.completions.create(model=model, messages=messages, seed=turn)
    said = answer.choices[0].message.content or ""
    if said:
        print(f"user: {said}")
    if answer.userlm["ended"]:  # with what probability is in answer.userlm["p_end"]
        print("(the user ended the conversation)")
        break
    messages.append({"role": "user", "content": said})
    messages.append({"role": "assistant", "content": my_assistant(messages)})
