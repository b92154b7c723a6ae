"""A transformers model on this machine: it completes, scores and chats.

Loading takes a folder or a hub id, and never runs code that lies beside the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from userlm.flip import Encode, EncodeAll, Offsets, Template, prompt
from userlm.models.attention import (
    MaskedIds,
    balanced_bins,
    check_document_masking,
    document_masking,
    target_logits,
)
from userlm.models.engine import Engine
from userlm.models.templates import control_ids, decode_content, special_ids, user_template
from userlm.text import INTENT_PREFIX
from userlm.types import (
    Completion,
    Conversation,
    InputError,
    Message,
    ModelError,
    Role,
    Sampling,
    Turn,
)

transformers_logging.disable_progress_bar()

SCORE_BUDGET = 8192
"""Tokens of a forward pass that scores."""
LOGITS = 2**28
"""Logits of a forward pass that scores, at most, if a single row does not need more: 1 GB in
float32."""

TALKS = (
    (
        "find out how to sort a list of names.",
        (
            "how do i sort a list of names in python",
            "Use sorted(names); it gives a new list in order.",
        ),
        ("perfect, that works. thanks, bye", "You're welcome! Goodbye, and have a nice day."),
    ),
    (
        "plan a weekend in Lisbon.",
        (
            "where should i stay in lisbon for two nights",
            "Alfama is charming. Is that where you want to be?",
        ),
        ("yes thank you, i have all i need now. bye", "Great! Enjoy your weekend. Goodbye!"),
    ),
)
"""For `LocalModel.check_user`: a goal, an exchange that leaves something open, and one after which
all is said."""
VOICES = (
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
    (True, "can you make it a bit shorter please", "Of course! Here is a much shorter version:"),
    (True, "and which one of these is the cheapest", "As an AI, I do not have prices."),
)
"""Whether the first exchange was had; what a user could say then; in as many words, what an
assistant would."""
ROLES: tuple[Role, Role] = ("user", "assistant")
DEAD_END = 1e-5
"""Below this, wherever it could come, an end is one that the model does not know."""
WRONG_VOICE = 1.0
"""By so many nats a token, an assistant's words are more probable than a user's where a user does
not speak."""


class LocalModel:
    """A causal language model with its tokenizer. Many threads may call it at once.

    Its weights must not change between two completions: the engine keeps what they gave for the
    next turn.

    Args:
        score_budget: tokens of a forward pass that scores, in as many rows as fit.
        batch: completions at once. With 1, the same prompt and seed give the same words, to the
            bit, whatever else is going on; with more, up to rounding.
        template: how it spells a dialogue, where that is not to be told from its tokenizer.
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
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.encode, self.offsets, self.encode_all = text_functions(tokenizer)
        self.context_length: int = getattr(model.config, "max_position_embeddings", None) or 8192
        self.score_budget = score_budget
        self.engine = Engine(self.model, name, self.context_length, batch)
        self._template = template
        self._masks_documents: bool | None = None  # packed rows; not known before it was tried
        self._special = frozenset(tokenizer.all_special_ids) | special_ids(tokenizer)
        self._control_ids = control_ids(tokenizer)

    @classmethod
    def load(
        cls, name: str, device: str | None = None, dtype: torch.dtype | None = None, batch: int = 1
    ) -> LocalModel:
        """Load a folder or a hub id; a quantised checkpoint as it is stored.

        Args:
            device: such as `cuda` or `cpu`; by default a GPU if there is one.
            dtype: of the weights, if they are not quantised; by default bfloat16 on a GPU and
                float32 on a CPU.

        Raises:
            InputError: if it cannot be loaded.
        """
        device, stored = usable_device(device), None
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            stored = getattr(AutoConfig.from_pretrained(name), "quantization_config", None)
            if stored is None:
                dtype = dtype or (torch.float32 if device.startswith("cpu") else torch.bfloat16)
                model, found = AutoModelForCausalLM.from_pretrained(
                    name, dtype=dtype, output_loading_info=True
                )
                if lacking := sorted(found["missing_keys"]):
                    lacks = (
                        f"{lacking[0]} and {len(lacking) - 1} more" if lacking[1:] else lacking[0]
                    )
                    raise ValueError(f"its weights lack {lacks}; is the file whole?")
                model = model.to(device)
            else:  # many kinds can be neither cast nor moved once they are loaded
                model = AutoModelForCausalLM.from_pretrained(
                    name, dtype="auto", device_map={"": device}
                )
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            kind = "folder" if Path(name).is_dir() else "hub id (and there is no such folder)"
            raise InputError(f"{name}: cannot load a model from this {kind}: {reason}") from None
        except (ImportError, RuntimeError) as error:
            if stored is None:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"{name}: cannot load this model to {device}: {reason}") from None
            missing = isinstance(error, ModuleNotFoundError) and error.name
            needs = f"pip install {missing}" if missing else str(error).strip().splitlines()[0]
            raise InputError(
                f"{name}: this checkpoint is quantised and needs more to be loaded: {needs}"
            ) from None
        rows = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise InputError(
                f"{name}: its tokenizer has {len(tokenizer)} tokens but the model only {rows} "
                "embeddings; "
                "the two do not belong together"
            )
        return cls(model, tokenizer, name, batch=batch)

    def template(self) -> Template:
        """How this checkpoint spells a dialogue.

        Raises:
            InputError: if it is no user model.
        """
        return self._template or user_template(self.tokenizer, self.encode, self.name)

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue the ids; see `Sampling`. Nothing comes from the checkpoint's generation_config.

        An added token that was drawn and closes nothing is counted and conditions what follows, but
        it is left out
        of the text: a control token is nobody's words. Only those that are mere white space stay,
        which some families keep among their added tokens.
        """
        drawn = self.engine.complete(ids, sampling)
        text = decode_content(self.tokenizer, drawn.ids, self._control_ids)
        return Completion(
            text, drawn.stop_id, drawn.p_end, len(ids), len(drawn.ids) + (drawn.stop_id is not None)
        )

    def check_user(self, template: Template) -> str | None:
        """A warning if the checkpoint does not look as if it was ever trained to be a user. It
        takes one pass.

        It has not if leaving is next to impossible wherever it asks, also where all is said; or if,
        in the user's place, the words of an assistant are much more probable, token by token, than
        those of a user.
        """

        def asked(goal: str, *exchanges: tuple[str, str]) -> list[int]:
            said = [
                Turn(role, text)
                for pair in exchanges
                for role, text in zip(ROLES, pair, strict=True)
            ]
            return list(
                prompt(Conversation(turns=tuple(said), intent=INTENT_PREFIX + goal), template)
            )

        ends, voices = [], []
        for goal, first, last in TALKS:
            ends += [
                (asked(goal, first), [template.end]),
                (asked(goal, first, last), [template.end]),
            ]
        goal, first, _ = TALKS[0]
        for later, *pair in VOICES:
            ids = asked(goal, first) if later else asked(goal)
            voices += [(ids, self.encode(text)) for text in pair]
        rows = [
            (ids + new, [False] * len(ids) + [True] * len(new)) for ids, new in (*ends, *voices)
        ]
        if max(len(ids) for ids, _ in rows) > self.context_length:
            return None
        means = [sum(found) / len(found) for found in self.score(rows)]
        leaves, means = math.exp(max(means[: len(ends)])), means[len(ends) :]
        gap = sum(means[1::2]) / len(VOICES) - sum(means[::2]) / len(VOICES)
        signs = []
        if leaves < DEAD_END:
            signs.append(
                f"even after a goodbye it leaves with a probability of {leaves:.0e} at most"
            )
        if gap > WRONG_VOICE:
            signs.append(
                f"in the user's place it would rather speak as the assistant (by {gap:.1f} nats a "
                "token)"
            )
        if not signs:
            return None
        return (
            f"{self.name} does not look like a user model: {' and '.join(signs)}; was "
            "it "
            "trained as one?"
        )

    @torch.inference_mode()
    def score(self, rows: Sequence[MaskedIds]) -> list[list[float]]:
        """The log-probability of each masked token, in nats, given all before it in its row.

        Rows are packed, and logits are computed where they are needed, so a row costs its tokens
        and its targets.
        """
        for ids, mask in rows:
            if len(ids) > self.context_length:
                raise ModelError(
                    f"{self.name}: {len(ids)} tokens do not fit its context length of "
                    f"{self.context_length}"
                )
            if len(mask) and mask[0]:
                raise ValueError(
                    "the first token of a row has nothing before it and cannot be scored"
                )
        counts = [sum(mask) for _, mask in rows]
        wanted = [i for i, count in enumerate(counts) if count]
        # A row takes its share of the logits of a pass, too: those of a long pasted turn would fill
        # memory.
        a_target = self.score_budget * self.model.get_input_embeddings().num_embeddings / LOGITS
        costs = [max(len(rows[i][0]), int(counts[i] * a_target)) for i in wanted]
        bins = (
            balanced_bins(costs, self.score_budget)
            if self._can_pack()
            else [[j] for j in range(len(wanted))]
        )
        scored: list[list[float]] = [[] for _ in rows]
        for bin in bins:
            here = [wanted[j] for j in bin]
            with self.engine.lock:
                logprobs = iter(self._logprobs([rows[i] for i in here]))
            for i in here:
                scored[i] = [next(logprobs) for _ in range(counts[i])]
        return scored

    def _can_pack(self) -> bool:
        """Whether packed rows get what they get alone; others, such as state spaces, are scored one
        by one."""
        with self.engine.lock:
            if self._masks_documents is None:
                try:
                    check_document_masking(self.model, self.name, self.context_length)
                    self._masks_documents = True
                except InputError:
                    self._masks_documents = False
            return self._masks_documents

    def _logprobs(self, rows: Sequence[MaskedIds]) -> list[float]:
        """Of the masked tokens of rows that are packed, or of a single row."""
        if self._masks_documents:
            with document_masking(self.model):
                logits, tokens = target_logits(self.model, rows)
        else:
            [(ids, mask)] = rows
            row = torch.tensor([list(ids)], device=self.model.device)
            index = torch.tensor(mask, dtype=torch.bool).nonzero()[:, 0].to(row.device)
            logits = self.model(input_ids=row, use_cache=False, logits_to_keep=index - 1).logits[0]
            tokens = row[0, index]
        slice_ = max(
            1, 2**24 // logits.shape[1]
        )  # 64 MB in float32, and as much again for the softmax
        parts = zip(torch.split(logits, slice_), torch.split(tokens, slice_), strict=True)
        return torch.cat(
            [-F.cross_entropy(part.float(), said, reduction="none") for part, said in parts]
        ).tolist()

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Answer as the assistant, through the checkpoint's own chat template."""
        return self.complete(
            self._chat_ids(messages),
            Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=sampling.seed,
                stop_ids=self._special,
            ),
        )

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        return chat_ids(self.tokenizer, self.encode, messages, self.name)


def usable_device(device: str | None) -> str:
    """The device that was asked for, or a GPU if there is one; raises `InputError` if it is not
    there."""
    try:
        return str(
            torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
        )
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {device}: {str(error).splitlines()[0]}; give cpu or cuda"
        ) from None


def load_tokenizer(name: str) -> Any:
    """The tokenizer in a folder or with a hub id; raises `InputError` if it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name}: cannot load a tokenizer from there: {reason}") from None


def text_encoder(tokenizer: Any) -> Encode:
    """The first of `text_functions`."""
    return text_functions(tokenizer)[0]


def text_functions(tokenizer: Any) -> tuple[Encode, Offsets, EncodeAll]:
    """Text to ids, and to where they stand in it, and many texts to ids, on all cores; no id is
    that of an added
    token: text never becomes control.

    `split_special_tokens` is not enough, as it lets added tokens that are not registered as special
    through, such as the end token of UserLM-8b. So the tokenizer is built again without any.

    Raises:
        InputError: for a tokenizer that has no fast form, or that spells an added token all the
            same.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no fast form (tokenizer.json)"
        )
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token["content"] for token in parts["added_tokens"]}
    parts.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    _stand_behind_a_token(parts["pre_tokenizer"])
    bare = Tokenizer.from_str(json.dumps(parts))

    def encode(text: str) -> list[int]:
        ids: list[int] = bare.encode(text, add_special_tokens=False).ids
        return ids

    def offsets(text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = bare.encode(text, add_special_tokens=False).offsets
        return offsets

    def encode_all(texts: Sequence[str]) -> list[list[int]]:
        return [
            encoding.ids
            for encoding in bare.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    for content in added.values():
        if not added.keys().isdisjoint(encode(content)):
            raise InputError(
                f"{tokenizer.name_or_path}: its tokenizer turns the text {content!r} into a "
                "control token even "
                "when told not to; it cannot be used safely"
            )
    return encode, offsets, encode_all


def _stand_behind_a_token(pre_tokenizer: Any) -> None:
    """Words never stand first here, but behind a header; some tokenizers (Llama-2's, Mistral's) put
    a space before what stands first, and before nothing else."""
    if pre_tokenizer is None:
        return
    for part in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"


def chat_ids(
    tokenizer: Any, encode: Encode, messages: Sequence[Message], name: str, today: str | None = None
) -> list[int]:
    """Messages spelled by the tokenizer's own chat template, the assistant's turn open at the end.

    Args:
        encode: see `text_encoder`.
        name: of the model, for errors.
        today: the date that a template is to state, if it states one; by default the machine's.

    Raises:
        InputError: if there is no chat template.
        ModelError: if it refuses the messages, such as one that knows no system role.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{name} has no chat template: a base model cannot be talked to; give a chat model"
        )

    def spell(messages: Sequence[Message], tokenize: bool) -> Any:
        try:
            return tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=tokenize,
                add_generation_prompt=True,
                return_dict=False,
                **({"date_string": today} if today else {}),  # as Llama-3.1 and later call it
            )
        except TemplateError as error:
            raise ModelError(
                f"{name}: its chat template refuses these messages: {error} (one that knows no "
                "system role takes "
                "`prompted:`, and no --system)"
            ) from None

    controls = [token.content for token in tokenizer.added_tokens_decoder.values()]
    if not any(control in m["content"] for m in messages for control in controls):
        return [int(i) for i in spell(messages, tokenize=True)]
    # A text that spells a control token must stay text: the template is rendered around marks that
    # stand for the contents, and the contents are encoded apart.
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
    shown = [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)]
    rest = spell(shown, tokenize=False)
    ids: list[int] = []
    for message, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise ModelError(
                f"{name}: its chat template leaves out a message or changes their order"
            )
        ids += tokenizer.encode(before, add_special_tokens=False) + encode(message["content"])
    return [*ids, *tokenizer.encode(rest, add_special_tokens=False)]
