"""A transformers model for sequence classification, as a detector of what people wrote."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from userlm.models.engine import first_line
from userlm.models.local import load_weights, usable_device, usable_dtype
from userlm.models.tokenization import damaged, load_problem, load_tokenizer
from userlm.types import Detection, InputError, ModelError

MAX_TOKENS = 512
"""What counts of a text if neither model nor tokenizer says how much can be read."""
NO_LIMIT = 10**6
"""A tokenizer without a limit reports a huge one."""
UNUSED_POSITIONS = 2
"""RoBERTa counts positions from 2 on."""


class Classifier:
    """A classifier that has a label for what people wrote. It is thread-safe.

    A text is cut to the length that the model can read.

    Args:
        human_label: the label of the model that means: written by a person.

    Raises:
        InputError: if the model has no such label; the message lists those that it has.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str, human_label: str | None
    ) -> None:
        labels = [str(label) for _, label in sorted(model.config.id2label.items())]
        known = ", ".join(labels)
        if len(labels) < 2:
            raise InputError(f"{name} has the label {known} only; a detector needs two")
        if human_label not in labels:
            given = f"--human-label {human_label}: " if human_label else ""
            raise InputError(
                f"{given}{name} has the labels {known}; give the one of people's texts with "
                "--human-label"
            )
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._name = name
        self._human = labels.index(human_label)
        self._max_tokens = _max_tokens(model.config, tokenizer)
        self._lock = threading.Lock()
        commit = getattr(model.config, "_commit_hash", None)
        self._version = str(commit)[:12] if commit else ""

    @classmethod
    def load(
        cls,
        name: str,
        human_label: str | None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Classifier:
        """Load a folder or a hub id; raise `InputError` if it is no trained classifier."""
        device = usable_device(device)
        tokenizer = load_tokenizer(name)
        try:
            model = load_weights(
                AutoModelForSequenceClassification,
                name,
                device,
                usable_dtype(dtype, device),
            )
        except (OSError, ValueError) as error:
            kind = "folder" if Path(name).is_dir() else "hub id"
            raise InputError(
                f"{name}: cannot load a classifier from this {kind}: {load_problem(error)}"
            ) from None
        except Exception as error:  # for a damaged file transformers raises any kind
            raise damaged(name, "this classifier", error) from error
        return cls(model, tokenizer, name, human_label)

    def detect(self, texts: Sequence[str]) -> list[Detection]:
        """Return its probability of the human label for each text.

        Raises:
            ModelError: if the model fails, as when the memory is not enough.
        """
        try:
            # A tokenizer that pads or cuts must not be used by two threads.
            with self._lock, torch.inference_mode():
                found = self._shares(texts)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise ModelError(f"{self._name}: {first_line(error)}") from None
        return [self._detection(share) for share in found]

    def _detection(self, share: float) -> Detection:
        if 0 <= share <= 1:
            return Detection(share, version=self._version)
        return Detection(None, "the model gives no number", self._version)

    def _shares(self, texts: Sequence[str]) -> list[float]:
        padding = self._model.config.pad_token_id
        can_pad = padding is not None and padding == self._tokenizer.pad_token_id
        size = len(texts) if can_pad else 1
        shares: list[float] = []
        for start in range(0, len(texts), size):
            # Text never becomes control: [SEP] in a turn is read as characters.
            batch = self._tokenizer(
                list(texts[start : start + size]),
                truncation=True,
                max_length=self._max_tokens,
                padding=size > 1,
                split_special_tokens=True,
                return_tensors="pt",
            )
            logits = self._model(**batch.to(self._model.device)).logits.float()
            is_multi = self._model.config.problem_type == "multi_label_classification"
            found = logits.sigmoid() if is_multi else logits.softmax(-1)
            shares += found[:, self._human].tolist()
        return shares


def _max_tokens(config: Any, tokenizer: Any) -> int:
    """Return how many tokens of a text the model reads."""
    if tokenizer.model_max_length < NO_LIMIT:
        return int(tokenizer.model_max_length)
    length = getattr(config, "max_position_embeddings", None)
    return length - UNUSED_POSITIONS if isinstance(length, int) else MAX_TOKENS
