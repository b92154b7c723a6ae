"""A transformers model on this machine: it completes, scores and chats.

A model is loaded from a folder or by its hub id. Python code in the model folder is never run:
without `trust_remote_code=False`, transformers would ask on the terminal whether to run it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from userlm.flip import Template, prompt
from userlm.models.attention import (
    MaskedIds,
    balanced_bins,
    check_document_masking,
    document_masking,
    target_logits,
)
from userlm.models.budget import check_wanted
from userlm.models.engine import Engine, check_length, first_line
from userlm.models.templates import (
    control_ids,
    decode_content,
    special_ids,
    thought_ids,
    user_template,
)
from userlm.models.tokenization import (
    chat_ids,
    damaged,
    load_problem,
    text_functions,
)
from userlm.text import INTENT_PREFIX
from userlm.thought import open_thought, spoken
from userlm.types import (
    Completion,
    Conversation,
    InputError,
    Message,
    Sampling,
)

transformers_logging.disable_progress_bar()

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SCORE_BUDGET = 8192
"""Number of tokens in a forward pass for scoring."""
MAX_LOGITS = 2**28
"""Maximum number of logits in a forward pass for scoring, unless one row needs more: 1 GB in
float32."""
SOFTMAX_LOGITS = 2**24
"""Number of logits in one softmax: 64 MB in float32, and the same again for the result."""

MAX_TAG_TOKENS = 16
"""Number of tokens at the end of a prompt in which a tag that opens a thought is looked for."""

Exchange = tuple[str, str]
"""A user turn and the assistant's answer."""
PROBE_DIALOGUES: tuple[tuple[str, Exchange, Exchange], ...] = (
    (
        "find out how to sort a list of names.",
        (
            "how do i sort a list of names in python",
            "Use sorted(names); it gives a new list in order.",
        ),
        (
            "perfect, that works. thanks, bye",
            "You're welcome! Goodbye, and have a nice day.",
        ),
    ),
    (
        "plan a weekend in Lisbon.",
        (
            "where should i stay in lisbon for two nights",
            "Alfama is charming. Is that where you want to be?",
        ),
        (
            "yes thank you, i have all i need now. bye",
            "Great! Enjoy your weekend. Goodbye!",
        ),
    ),
)
"""For `LocalModel.check_user`: a goal, an exchange that leaves something open, and a goodbye."""
PROBE_TURNS = (
    (
        False,
        "how do i sort a list of names in python",
        "Certainly! To sort a list of names there is sorted().",
    ),
    (
        True,
        "ok but what if two of them are the same",
        "I'm glad I could help! Let me know if needed.",
    ),
    (
        True,
        "can you make it a bit shorter please",
        "Of course! Here is a much shorter version:",
    ),
    (True, "and which one of these is the cheapest", "As an AI, I do not have prices."),
)
"""For `LocalModel.check_user`: whether the turn comes after the first exchange; a plausible user
turn; an assistant's turn with the same number of words."""
MIN_END_PROBABILITY = 1e-5
"""A model with a lower P(end) even after a goodbye was not trained on the end token."""
MAX_ASSISTANT_GAP = 1.0
"""A model that prefers an assistant's words in user turns by this much, in nats per token, does not
write as a user."""


class LocalModel:
    """A causal language model with its tokenizer. It is thread-safe.

    Its weights must not change between completions, since the engine's KV cache depends on them.

    Args:
        score_budget: the number of tokens in a forward pass for scoring.
        batch: the number of concurrent completions. With 1, the same prompt and seed always give
            the same text; with more, rounding may change it.
        template: how a dialogue is tokenized; by default detected from the tokenizer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str = "model",
        score_budget: int = SCORE_BUDGET,
        batch: int = 1,
        template: Template | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.encode, self.offsets, self.encode_all = text_functions(tokenizer)
        self.context_length: int = (
            getattr(model.config, "max_position_embeddings", None) or 8192
        )
        self.score_budget = score_budget
        self.engine = Engine(self.model, name, self.context_length, batch)
        self._template = template
        self._packs_rows: bool | None = None  # unknown before the first scoring
        self._special = frozenset(tokenizer.all_special_ids) | special_ids(tokenizer)
        self._control_ids = control_ids(tokenizer)

    @classmethod
    def load(
        cls,
        name: str,
        device: str | None = None,
        dtype: str | None = None,
        batch: int = 1,
    ) -> LocalModel:
        """Load a folder or a hub id; a quantised checkpoint stays quantised.

        Args:
            device: such as `cuda` or `cpu`; by default a GPU if there is one.
            dtype: the precision of the weights, one of `DTYPES`; by default bfloat16 on a GPU and
                float32 on a CPU. A quantised checkpoint has its own.

        Raises:
            InputError: if it cannot be loaded.
        """
        device = usable_device(device)
        precision = usable_dtype(dtype, device)
        quantised = False
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            quantised = getattr(config, "quantization_config", None) is not None
            model = load_weights(
                AutoModelForCausalLM, name, device, precision, quantised
            )
        except (OSError, ValueError, SafetensorError) as error:
            kind = "hub id (and there is no such folder)"
            if Path(name).is_dir():
                kind = "folder"
            raise InputError(
                f"{name}: cannot load a model from this {kind}: {load_problem(error)}"
            ) from None
        except (ImportError, RuntimeError) as error:
            problem = f"cannot load this model to {device}"
            if quantised:
                problem = "this checkpoint is quantised and needs more to be loaded"
            needs = first_line(error)
            if isinstance(error, ModuleNotFoundError) and error.name:
                needs = f"pip install {error.name}"
            raise InputError(f"{name}: {problem}: {needs}") from None
        except UnpicklingError:  # torch advises to run what is in the file
            raise InputError(
                f"{name}: cannot load this model: its .bin file is damaged or holds more than "
                "weights, and Python code in it is never run; give weights as model.safetensors"
            ) from None
        except Exception as error:  # for a damaged file transformers raises any kind
            raise damaged(name, "this model", error) from error
        _check_sizes(model, tokenizer, name)
        return cls(model, tokenizer, name, batch=batch)

    def template(self) -> Template:
        """Return how this checkpoint tokenizes a dialogue; raise `InputError` if it is not a user
        model."""
        return self._template or user_template(self.tokenizer, self.encode, self.name)

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue the ids; see `Sampling`. The checkpoint's generation_config is not used.

        Sampled added tokens that do not end the completion are counted and stay in its context, but
        are not part of the text, except white space, which is among the added tokens of some model
        families.
        """
        return self._complete(ids, sampling)

    def _complete(
        self, ids: Sequence[int], sampling: Sampling, opened: str = ""
    ) -> Completion:
        """Continue the ids, which may have opened a thought with this tag."""
        out = self.engine.complete(ids, sampling)
        text = decode_content(self.tokenizer, out.ids, self._control_ids)
        tokens_out = len(out.ids) + int(out.stop_id is not None)
        return spoken(
            Completion(opened + text, out.stop_id, out.p_end, len(ids), tokens_out)
        )

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Answer as the assistant, through the checkpoint's own chat template."""
        ids = chat_ids(self.tokenizer, self.encode, messages, self.name)
        opened = open_thought(self.tokenizer.decode(ids[-MAX_TAG_TOKENS:]))
        stop_ids = self._special - thought_ids(self.tokenizer)
        answer = self._complete(ids, replace(sampling, stop_ids=stop_ids), opened)
        return replace(answer, cut=answer.stop_id is None)

    def check_user(self, template: Template) -> str | None:
        """Return a warning if the checkpoint does not look as if it was trained to be a user;
        `None` if it does. It takes one forward pass.

        It does not if it almost never ends a conversation, even after a goodbye, or if an
        assistant's words in user turns are much more probable to it than a user's.
        """
        end = [template.end]
        rows = []
        for goal, first, last in PROBE_DIALOGUES:
            for exchanges in ([first], [first, last]):
                rows.append(_probe_row(template, goal, exchanges, end))
        ends = len(rows)
        goal, first, _ = PROBE_DIALOGUES[0]
        for after_first, *voices in PROBE_TURNS:
            exchanges = [first] if after_first else []
            for text in voices:
                rows.append(_probe_row(template, goal, exchanges, self.encode(text)))
        if max(len(ids) for ids, _ in rows) > self.context_length:
            return None
        means = [fmean(logprobs) for logprobs in self.score(rows)]
        p_end = math.exp(max(means[:ends]))
        users = means[ends::2]
        assistants = means[ends + 1 :: 2]
        gap = fmean(assistants) - fmean(users)
        signs = []
        if p_end < MIN_END_PROBABILITY:
            signs.append(
                "even after a goodbye it ends the conversation with a probability of "
                f"{p_end:.0e} at most"
            )
        if gap > MAX_ASSISTANT_GAP:
            signs.append(
                f"in user turns it prefers the words of an assistant (by {gap:.1f} nats a token)"
            )
        if not signs:
            return None
        why = " and ".join(signs)
        return f"{self.name} does not look like a user model: {why}; was it trained as one?"

    @torch.inference_mode()
    def score(
        self, rows: Sequence[MaskedIds], instead: int | None = None
    ) -> list[list[float]]:
        """Return the log-probability of each masked token, or of the token `instead` of it, in
        nats, given all before it in its row.

        Rows are packed, and logits are computed only for masked tokens.
        """
        for ids, _ in rows:
            check_length(self.name, len(ids), self.context_length)
        self.engine.drop_rows()  # scoring needs memory too, and comes after the conversations
        counts = [sum(mask) for _, mask in rows]
        scored: list[list[float]] = [[] for _ in rows]
        for bin in self._score_bins(rows, counts):
            check_wanted()
            with self.engine.lock:
                logprobs = iter(self._logprobs([rows[i] for i in bin], instead))
            for i in bin:
                scored[i] = list(islice(logprobs, counts[i]))
        return scored

    def _score_bins(
        self, rows: Sequence[MaskedIds], counts: Sequence[int]
    ) -> list[list[int]]:
        """The indices of the rows of each forward pass; rows without a masked token are left out.

        A pass is limited in logits as well as tokens, since the logits of a long pasted turn would
        fill the memory.
        """
        wanted = [i for i, count in enumerate(counts) if count]
        if not self._can_pack():
            return [[i] for i in wanted]
        vocabulary = self.model.get_input_embeddings().num_embeddings
        target_cost = self.score_budget * vocabulary / MAX_LOGITS
        costs = [max(len(rows[i][0]), int(counts[i] * target_cost)) for i in wanted]
        bins = balanced_bins(costs, self.score_budget)
        return [[wanted[n] for n in bin] for bin in bins]

    def _can_pack(self) -> bool:
        """Whether packed rows get the same log-probabilities as single rows. Other architectures,
        such as state space models, score one row at a time."""
        with self.engine.lock:
            if self._packs_rows is None:
                try:
                    check_document_masking(self.model, self.name, self.context_length)
                    self._packs_rows = True
                except InputError:
                    self._packs_rows = False
            return self._packs_rows

    def _logprobs(self, rows: Sequence[MaskedIds], instead: int | None) -> list[float]:
        """The log-probabilities of the masked tokens, or of the token `instead` of them, of packed
        rows, or of a single row."""
        packed = bool(self._packs_rows)
        with document_masking(self.model) if packed else nullcontext():
            logits, tokens = target_logits(self.model, rows, packed)
        if instead is not None:
            tokens = torch.full_like(tokens, instead)
        size = max(1, SOFTMAX_LOGITS // logits.shape[1])
        parts = zip(torch.split(logits, size), torch.split(tokens, size), strict=True)
        losses = []
        for part, wanted in parts:
            losses.append(F.cross_entropy(part.float(), wanted, reduction="none"))
        logprobs: list[float] = (-torch.cat(losses)).tolist()
        return logprobs


def load_weights(
    kind: Any, name: str, device: str, dtype: torch.dtype, quantised: bool = False
) -> Any:
    """Return the model in a folder or with a hub id, of a kind such as `AutoModelForCausalLM`;
    raise `ValueError` if it lacks weights."""
    load = partial(kind.from_pretrained, trust_remote_code=False)
    if quantised:  # many kinds cannot be cast or moved after loading
        return load(name, dtype="auto", device_map={"": device})
    model, found = load(name, dtype=dtype, output_loading_info=True)
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ValueError(
            f"its weights lack {missing[0]}{others}; is the file complete?"
        )
    return model.to(device)


def _check_sizes(model: Any, tokenizer: Any, name: str) -> None:
    """Raise `InputError` if the model has no embedding for a token, or no room for any."""
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise InputError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens but the model only "
            f"{embeddings} embeddings; the two do not match"
        )
    length = getattr(model.config, "max_position_embeddings", None)
    if length is not None and not (isinstance(length, int) and length > 0):
        raise InputError(
            f"{name}: max_position_embeddings in its config.json is {length!r}; give the "
            "length of its context in tokens"
        )


def _probe_row(
    template: Template,
    goal: str,
    exchanges: Sequence[Exchange],
    content: list[int],
) -> MaskedIds:
    """Return a conversation with a user turn of this content, to predict it."""
    conversation = Conversation(intent=INTENT_PREFIX + goal)
    for user, assistant in exchanges:
        conversation = conversation.say(user).say(assistant)
    context = prompt(conversation, template)
    mask = [False] * len(context) + [True] * len(content)
    return [*context, *content], mask


def usable_device(device: str | None) -> str:
    """Return the requested device, by default a GPU if there is one; raise `InputError` if it does
    not exist."""
    if not device:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.empty(0, device=device).device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {device}: {first_line(error)}; give cpu or cuda"
        ) from None


def usable_dtype(dtype: str | None, device: str) -> torch.dtype:
    """Return the requested precision, by default bfloat16 on a GPU and float32 on a CPU; raise
    `InputError` if its name is unknown."""
    dtype = dtype or ("float32" if device.startswith("cpu") else "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: give float32, bfloat16 or float16")
    return DTYPES[dtype]
