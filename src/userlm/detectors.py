"""Detectors say how probably a person wrote a text: `models.pangram` is a service,
`models.classifier` a model on this machine, and any judge can be one. `userlm detect` runs this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from userlm.judges import Judge
from userlm.models.budget import Side
from userlm.text import words
from userlm.types import Completion, Conversation, Detection, Message, Sample

if TYPE_CHECKING:
    from userlm.models.pangram import Pangram


@dataclass(frozen=True, slots=True)
class JudgeDetector:
    """A judge that says whether a person wrote a text: its positive label counts 1, others 0.

    It sees the text as a user's turn without what came before.
    """

    judge: Judge

    @property
    def version(self) -> str:
        """The hash of the prompt that it judges by."""
        return f"prompt {self.judge.prompt.hash[:8]}"

    def request(self, text: str) -> list[Message]:
        """Return the messages that ask about a text."""
        return self.judge.prompt.request(Sample(_turn(text), 0))

    def detect(self, texts: Sequence[str]) -> list[Detection]:
        """Return what the judge says of each text, with one call for each."""
        return [self._detect(text) for text in texts]

    def _detect(self, text: str) -> Detection:
        verdict, _ = self.judge.judge(_turn(text), seed=0)
        if verdict.label is None:
            return Detection(None, verdict.reason, self.version)
        is_human = verdict.label == self.judge.prompt.positive
        return Detection(float(is_human), version=self.version)


def _turn(text: str) -> Conversation:
    return Conversation().say(text)


@dataclass(frozen=True, slots=True)
class CountedDetector:
    """A service whose calls are counted and limited; see `Side.call`. Its tokens are words.

    Attributes:
        block: the words of a text are rounded up to a multiple of it, as they are billed.
    """

    detector: Pangram
    side: Side
    block: int = 1

    def detect(self, texts: Sequence[str]) -> list[Detection]:
        """What the service says of each text, with one call for each that it did not get before."""
        return [self._detect(text) for text in texts]

    def _detect(self, text: str) -> Detection:
        if fetched := self.detector.fetched(text):
            return fetched
        billed = billed_words(text, self.block)
        found: list[Detection] = []

        def send() -> Completion:
            found.extend(self.detector.detect([text]))
            tries = found[0].possibly_billed
            return Completion("", tokens_in=billed, tokens_out=0, possibly_billed=tries)

        self.side.call(billed, 0, send)
        return found[0]


_WITHOUT_SPACES = re.compile(
    # Thai, Lao, Burmese, Khmer; Japanese, Chinese.
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Characters of scripts that put no spaces between words."""


def billed_words(text: str, block: int) -> int:
    """Return the number of words, rounded up to blocks of this many. In a script without spaces
    each character counts as a word: there are no more words than that."""
    others, characters = _WITHOUT_SPACES.subn(" ", text)
    # At least those between white space: a service may count each symbol as a word.
    count = characters + max(len(words(others)), len(others.split()))
    return -(-max(count, 1) // block) * block
