"""A transformers model on this machine: it completes, scores and chats.

Loading takes a folder or a hub id, and never runs code that lies beside the weights.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from userlm.flip import Template, userlm_template
from userlm.types import Completion, InputError, Message, ModelError, Sampling

transformers_logging.disable_progress_bar()


class LocalModel:
    """A causal language model with its tokenizer. Answers one call at a time, so that the same seed gives the
    same words whatever else is going on."""

    def __init__(self, model: Any, tokenizer: Any, name: str = "model") -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.encode = text_encoder(tokenizer)
        self.window: int = getattr(model.config, "max_position_embeddings", None) or 8192
        self._special = frozenset(tokenizer.all_special_ids) | _special_ids(tokenizer)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, name: str, device: str | None = None, dtype: torch.dtype | None = None) -> LocalModel:
        """Load a folder or a hub id.

        Args:
            device: such as `cuda` or `cpu`; by default a GPU if there is one.
            dtype: of the weights; by default bfloat16 on a GPU and float32 on a CPU.

        Raises:
            InputError: if it cannot be loaded.
        """
        device = usable_device(device)
        dtype = dtype or (torch.float32 if device.startswith("cpu") else torch.bfloat16)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            kind = "folder" if Path(name).is_dir() else "hub id (and there is no such folder)"
            raise InputError(f"{name}: cannot load a model from this {kind}: {reason}") from None
        rows = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise InputError(
                f"{name}: its tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings; "
                "the two do not belong together"
            )
        return cls(model.to(device), tokenizer, name)

    def template(self) -> Template:
        """How this checkpoint spells a dialogue.

        Raises:
            InputError: if it is no user model.
        """
        try:
            return template_of(self.tokenizer)
        except ValueError as error:
            raise InputError(
                f"{self.name}: {error}, so it is no user model; train one from it (`userlm train --base "
                f"{self.name}`) or have it prompted (`prompted:{self.name}`)"
            ) from None

    @torch.inference_mode()
    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue the ids; see `Sampling`. Nothing comes from the checkpoint's generation_config."""
        room = self.window - len(ids)
        if room < 1:
            raise ModelError(f"{self.name}: {len(ids)} tokens do not fit its window of {self.window}")
        device = self.model.device
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed % 2**63)
        cache = DynamicCache(config=self.model.config)
        step = torch.tensor([list(ids)], device=device)
        out: list[int] = []
        p_watch = stop_id = None
        with self._lock:
            while len(out) < min(sampling.max_tokens, room):
                logits = self.model(
                    input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1
                ).logits[0, -1]
                logits = logits.float().cpu()
                if p_watch is None and sampling.watch_id is not None:
                    p_watch = float(torch.softmax(logits, -1)[sampling.watch_id])
                token = draw(logits, sampling, generator)
                if token in sampling.stop_ids:
                    stop_id = token
                    break
                out.append(token)
                step = torch.tensor([[token]], device=device)
        text = self.tokenizer.decode(out, clean_up_tokenization_spaces=False)
        return Completion(text, stop_id, p_watch, len(ids), len(out) + (stop_id is not None))

    @torch.inference_mode()
    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> list[list[float]]:
        """The log-probability of each masked token, in nats, given all before it. Logits are computed only
        where they are needed."""
        scored: list[list[float]] = []
        for ids, mask in rows:
            where = [i for i, wanted in enumerate(mask) if wanted]
            if not where:
                scored.append([])
                continue
            if where[0] == 0:
                raise ValueError("the first token of a row has nothing before it and cannot be scored")
            if len(ids) > self.window:
                raise ModelError(f"{self.name}: {len(ids)} tokens do not fit its window of {self.window}")
            row = torch.tensor([list(ids)], device=self.model.device)
            index = torch.tensor(where, device=row.device)
            with self._lock:
                logits = self.model(input_ids=row, use_cache=False, logits_to_keep=index - 1).logits[0]
            chosen = torch.log_softmax(logits.float(), -1).gather(1, row[0, index, None])
            scored.append(chosen[:, 0].tolist())
        return scored

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
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{self.name} has no chat template: a base model cannot be talked to; give a chat model"
            )
        controls = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        hostile = any(control in m["content"] for m in messages for control in controls)
        if not hostile:
            ids = self._apply_template(messages, tokenize=True)
            return [int(i) for i in ids]
        # A text that spells a control token must stay text: the template is rendered around marks that stand
        # for the contents, and the contents are encoded apart.
        marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
        shown = [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)]
        rest = self._apply_template(shown, tokenize=False)
        ids = []
        for message, mark in zip(messages, marks, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise ModelError(f"{self.name}: its chat template leaves out a message or changes their order")
            ids += self.tokenizer.encode(before, add_special_tokens=False) + self.encode(message["content"])
        return [*ids, *self.tokenizer.encode(rest, add_special_tokens=False)]

    def _apply_template(self, messages: Sequence[Message], tokenize: bool) -> Any:
        try:
            return self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=tokenize, add_generation_prompt=True, return_dict=False
            )
        except TemplateError as error:  # such as a template that knows no system role
            raise ModelError(f"{self.name}: its chat template refuses these messages: {error}") from None


def usable_device(device: str | None) -> str:
    """The device that was asked for, or a GPU if there is one; raises `InputError` if it is not there."""
    try:
        return str(torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {str(error).splitlines()[0]}; give cpu or cuda") from None


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from logits of shape (vocabulary,): temperature, then nucleus (Holtzman et al., 2020)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, index = probabilities.sort(descending=True)
        outside = ordered.cumsum(0) - ordered >= sampling.top_p  # what is before it is enough already
        probabilities = torch.zeros_like(probabilities).scatter(0, index, ordered.masked_fill(outside, 0))
    return int(torch.multinomial(probabilities, 1, generator=generator))


def template_of(tokenizer: Any) -> Template:
    """The template in the ids of a tokenizer; raises `ValueError` if it lacks one of the tokens."""
    known = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
    return userlm_template(text_encoder(tokenizer), known.get, _special_ids(tokenizer))


def text_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """A function from text to ids that never gives an added token: text never becomes control.

    `split_special_tokens` is not enough, as it lets added tokens that are not registered as special through,
    such as the end token of UserLM-8b. So the tokenizer is built again without any.

    Raises:
        InputError: for a tokenizer that has no fast form, or that spells an added token all the same.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{tokenizer.name_or_path}: its tokenizer has no fast form (tokenizer.json)")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token["content"] for token in parts["added_tokens"]}
    parts.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    bare = Tokenizer.from_str(json.dumps(parts))

    def encode(text: str) -> list[int]:
        ids: list[int] = bare.encode(text, add_special_tokens=False).ids
        return ids

    for content in added.values():
        if not added.keys().isdisjoint(encode(content)):
            raise InputError(
                f"{tokenizer.name_or_path}: its tokenizer turns the text {content!r} into a control token even "
                "when told not to; it cannot be used safely"
            )
    return encode


def _special_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
