"""User language models: models that play the user in a conversation with an AI assistant.

    user = userlm.user("trained:microsoft/UserLM-8b")
    intent = "You are a user chatting with an assistant language model to plan a trip."
    user.reply(userlm.Conversation(intent=intent))

Importing this package loads no torch, opens no socket and reads no key.
"""

from userlm.episode import Episode
from userlm.evaluation import evaluate
from userlm.flip import Template, render, samples
from userlm.guard import PAPER, Guard
from userlm.loading import assistant, chat_model, user
from userlm.rows import read_conversations, write_conversations
from userlm.simulate import converse, respond, simulate
from userlm.types import (
    Conversation,
    Fact,
    InputError,
    Measure,
    ModelError,
    ModelWarning,
    Origin,
    Reply,
    Sample,
    Sampling,
    Speaker,
    Task,
    Turn,
)

__version__ = "0.2.0.dev0"

__all__ = [
    "PAPER",
    "Conversation",
    "Episode",
    "Fact",
    "Guard",
    "InputError",
    "Measure",
    "ModelError",
    "ModelWarning",
    "Origin",
    "Reply",
    "Sample",
    "Sampling",
    "Speaker",
    "Task",
    "Template",
    "Turn",
    "assistant",
    "chat_model",
    "converse",
    "evaluate",
    "read_conversations",
    "render",
    "respond",
    "samples",
    "simulate",
    "user",
    "write_conversations",
]
