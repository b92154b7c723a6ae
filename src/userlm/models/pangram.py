"""Pangram Labs' service, a detector of what people wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import openai

from userlm.models.endpoint import EndpointModel
from userlm.models.faults import NOT_OFFERED, possibly_billed
from userlm.types import Detection, ModelError, encodable

SUCCESS, FAILED = "STAGE_SUCCESS", "STAGE_FAILED"
"""The stages of a finished task."""
LIKELIHOOD = "ai_likelihood"
"""What the older API says: 1 for a text of a machine."""
FRACTIONS = ("fraction_human", "fraction_ai", "fraction_ai_assisted")
MAX_ROUNDING = 0.05
"""How far the sum of the fractions may be from 1."""
FIRST_POLL = 0.5
LONGEST_POLL = 5.0
LONGEST_TASK = 300.0
"""Seconds until a task is asked about for the first time; between later times; and until it is
given up."""
MOST_UNFETCHED = 3
"""After this many tasks in a row without a result no more texts should be sent: each is billed."""
MAX_SERVER_TEXT = 200
"""Characters that are kept of what the server says."""

Answer = tuple[Detection | None, str]
"""What the server says about a text, else `None` and the id of its task."""


class Pangram:
    """The detector of Pangram Labs: the share of a text that it takes for a person's.

    It answers at once (version 3 of its API, or the older likelihood of AI), or with the id of a
    task, whose result is asked for until it is there.

    Args:
        endpoint: sends the requests, with retries and deadlines.
        path: where texts are sent, under the URL of the endpoint.
        model: one of the models of the service, or `default`.
        first_poll, longest_task: seconds; see `FIRST_POLL` and `LONGEST_TASK`.
    """

    def __init__(
        self,
        endpoint: EndpointModel,
        path: str,
        model: str,
        first_poll: float = FIRST_POLL,
        longest_task: float = LONGEST_TASK,
    ) -> None:
        self._endpoint = endpoint
        self._path = path
        self._model = model
        self._first_poll = first_poll
        self._longest_task = longest_task
        self._unfetched = 0
        self._tasks: Mapping[str, str] = {}
        self._keep: Callable[[str, str], object] = lambda text, task: None

    def resume(
        self, tasks: Mapping[str, str], keep: Callable[[str, str], object]
    ) -> None:
        """Take the ids of tasks of an earlier attempt, by text, and what keeps those of others."""
        self._tasks = tasks
        self._keep = keep

    def detect(self, texts: Sequence[str]) -> list[Detection]:
        """Return what it says of each text; raise `ModelError` if there is no answer after all
        retries."""
        return [self._detect(text) for text in texts]

    def _detect(self, text: str) -> Detection:
        faults: list[str] = []
        body = {"text": text, "model": self._model, "public_dashboard_link": False}
        found, task = self._endpoint.ask(partial(self._post, body), faults)
        billed = possibly_billed(faults)
        if found is None:
            if self._endpoint.masked(task) == task:  # no file has the key
                self._keep(text, task)
            found = self._result(task, billed)
        return self._detection(found, billed)

    def fetched(self, text: str) -> Detection | None:
        """Return the result of the task of an earlier attempt, which was billed then; `None` if
        there is no such task, or if the service does not know it any more."""
        task = self._tasks.get(text)
        if task is None:
            return None
        try:
            return self._detection(self._result(task, 0), 0)
        except ModelError as error:
            self._unfetched = 0  # it was paid before: others go on
            if error.reason in NOT_OFFERED:
                return None
            error.permanent = False
            raise

    def _detection(self, found: Detection, billed: int) -> Detection:
        """Return a result with short texts, and without the key in them."""
        why, version = (
            self._endpoint.masked(encodable(said))[:MAX_SERVER_TEXT]
            for said in (found.why, found.version)
        )
        return Detection(found.p_human, why, version, billed)

    def _result(self, task: str, billed: int) -> Detection:
        """Return the result of a task; a `ModelError` counts it as billed, and is permanent after
        `MOST_UNFETCHED` in a row."""
        wait = self._first_poll
        deadline = time.monotonic() + self._longest_task
        try:
            while time.monotonic() < deadline:
                time.sleep(wait)
                wait = min(1.5 * wait, LONGEST_POLL)
                get = partial(self._get, task)
                found, _ = self._endpoint.ask(get, [], may_bill=False)
                if found:
                    self._unfetched = 0
                    return found
            why = f"{self._endpoint.name}: no result after {self._longest_task:.3g} seconds"
            raise ModelError(why, "timed out")
        except ModelError as error:
            # Another task may well have a result.
            self._unfetched += 1
            raise ModelError(
                str(error),
                error.reason,
                permanent=self._unfetched >= MOST_UNFETCHED,
                possibly_billed=billed + 1,
            ) from None

    async def _post(
        self, body: Mapping[str, Any], client: openai.AsyncOpenAI
    ) -> Answer:
        return read_answer(await client.post(self._path, body=body, cast_to=object))

    async def _get(self, task: str, client: openai.AsyncOpenAI) -> Answer:
        path = f"{self._path}/{quote(task, safe='')}"
        return read_answer(await client.get(path, cast_to=object), task)


def read_answer(answer: object, task: str = "") -> Answer:
    """Return what an answer of Pangram says.

    Args:
        task: the id of the task that was asked about.

    Raises:
        ValueError: if it is no answer.
    """
    if not isinstance(answer, Mapping):
        raise ValueError("it is not a JSON object")
    version = answer.get("version")
    version = version if isinstance(version, str) else ""
    stage = answer.get("stage", SUCCESS)
    if stage == FAILED:
        headline = answer.get("headline")
        why = headline if isinstance(headline, str) and headline else "no result"
        return Detection(None, why, version), task
    # Zeros stand in answers without a result, so the stage decides, and the sum.
    if stage == SUCCESS and FRACTIONS[0] in answer:
        fractions = [_share(answer, name) for name in FRACTIONS if name in answer]
        has_all = len(fractions) == len(FRACTIONS)
        if has_all and abs(sum(fractions) - 1) > MAX_ROUNDING:
            raise ValueError(f"its fractions add up to {sum(fractions):.3g}")
        return Detection(fractions[0], version=version), task
    if stage == SUCCESS and LIKELIHOOD in answer:
        return Detection(1 - _share(answer, LIKELIHOOD), version=version), task
    task = answer.get("task_id", task)
    if isinstance(task, str) and task:
        return None, task
    raise ValueError(f"it has neither {FRACTIONS[0]} nor {LIKELIHOOD} nor task_id")


def _share(answer: Mapping[Any, Any], name: str) -> float:
    """Return a number from 0 to 1; raise `ValueError` if it is none."""
    share = answer[name]
    if type(share) not in (int, float):
        raise ValueError(f"{name} is no number")
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share:.6g}, which is not from 0 to 1")
    return float(share)
