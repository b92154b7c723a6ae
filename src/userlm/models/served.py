"""A user model on a server that continues token ids: vLLM, and whatever else can.

What a trained user needs of a model, and how it is asked for at `/v1/completions`:

    exactly these ids   `prompt` as ids, and `usage.prompt_tokens` has to count as many
    which token closed  `stop_token_ids` with `ignore_eos`, so that no other closes; it is the last of `token_ids`,
                        or the `stop_reason`
    P(end)              `logprob_token_ids`, in the same call; else a call of one token, the end, forced by
                        `logit_bias`: its log-probability is that of before the bias
    bans                `logit_bias`, which comes before temperature and top_p, as here
    bans at the first   two calls: one token, and what follows it
    position alone

A server ignores without a word what it does not know. So before anything else two tokens are
forced, the end and one that closes nothing. That shows whether the server says what closed, heeds
bans, and gives log-probabilities of before a ban.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from warnings import warn

import openai

from userlm.models.endpoint import NOT_OFFERED, EndpointModel
from userlm.models.templates import added_ids, unsaid_ids, words_of
from userlm.text import stable_hash
from userlm.types import Completion, InputError, ModelError, ModelWarning, Sampling, encodable

BIAS = 100
"""As far as servers let a logit be moved. What it bans keeps a 4e-44th of its odds."""

TAIL = 32
"""How many tokens of the first prompt are sent to find out what the server offers."""

ADVICE = "serve the model with vLLM, or give its folder"


class Completions:
    """Continues token ids on a server; many threads may ask at once.

    Args:
        endpoint: where it is; its retries and its care for the key serve here, too.
        tokenizer: of the model, from transformers; ids become words here, not on the server.
    """

    def __init__(self, endpoint: EndpointModel, tokenizer: Any) -> None:
        self.name = endpoint.name
        self._endpoint, self._tokenizer = endpoint, tokenizer
        self._unsaid = unsaid_ids(tokenizer)
        spelled = [text for text, id in added_ids(tokenizer).items() if id in self._unsaid]
        self._spelled = re.compile("|".join(map(re.escape, sorted(spelled, key=len, reverse=True))))
        self._offers: _Offers | None = None
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the server cannot do, a sentence each; nothing is known before the first
        completion."""
        return self._offers.notes if self._offers else ()

    def context_length(self) -> int | None:
        """The model's context in tokens, as `/v1/models` gives it; `None` if it does not.

        Raises:
            ModelError: if the server fails.
        """
        try:
            body, _, _ = self._endpoint.ask(lambda client: client.get("/models", cast_to=object))
        except ModelError as error:
            if error.reason not in NOT_OFFERED:
                raise
            return None
        models = body.get("data") if isinstance(body, dict) else None
        for model in models if isinstance(models, list) else ():
            if isinstance(model, dict) and model.get("id") == self.name:
                context_length = model.get("max_model_len")
                return (
                    context_length if type(context_length) is int and context_length > 0 else None
                )
        return None

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue the ids; see `Sampling`, whose `stop_ids` are needed here. Nothing comes from
        the server's generation_config. The tokens used are those of all calls that were made for
        it.

        Raises:
            InputError: if the server cannot do what is asked for; it says what to do.
            ModelError: if it fails, or if the ids do not fit its context_length.
        """
        with self._lock:
            offers = self._offers = self._offers or self._find_out(ids, sampling)
        if offers.context_length is not None:
            room = offers.context_length - len(ids)
            if room < 1:
                said = (
                    f"{self.name}: {len(ids)} tokens do not fit the server's context length "
                    "of "
                    f"{offers.context_length}"
                )
                raise ModelError(said, "too long")
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        answers: list[_Answer] = []
        try:
            text, stop_id, p_end = self._turn(ids, sampling, offers, answers)
        except ModelError as error:  # what was answered before it is lost, and billed
            faults, possibly_billed = _sum(answers)
            possibly_billed += len(answers) + error.possibly_billed
            raise ModelError(
                str(error),
                error.reason,
                permanent=error.permanent,
                faults=faults + error.faults,
                possibly_billed=possibly_billed,
            ) from None
        used = [answer.usage for answer in answers if answer.usage]
        tokens_in, tokens_out = (sum(tokens) for tokens in zip(*used, strict=True))
        return Completion(text, stop_id, p_end, tokens_in, tokens_out, *_sum(answers))

    def _turn(
        self, ids: Sequence[int], sampling: Sampling, offers: _Offers, answers: list[_Answer]
    ) -> tuple[str, int | None, float | None]:
        """The words, the id that closed them, and P(end). `answers` takes up what the server
        said."""
        above = sampling.end_threshold
        only_first = sampling.banned_first - sampling.banned_ids
        if above is not None and sampling.end_id is not None:
            only_first |= {sampling.end_id}
            if not offers.p_end:
                raise self._unfit(f"--end-threshold goes by P(end): {offers.notes[0]}")
        if only_first and not offers.ids:
            raise self._unfit(
                "--end-threshold and first words in a guard forbid tokens at the first position "
                "alone, and the server "
                "does not return the ids that it drew there; vLLM does from 0.10.2 on"
            )
        end = sampling.end_id if offers.p_end else None
        plain = replace(sampling, end_id=end)
        first = (
            replace(plain, max_tokens=1, banned_ids=plain.banned_ids | only_first)
            if only_first
            else plain
        )
        said = self._ask(ids, first, answers)
        p_end = said.p_end
        if end is not None and p_end is None:
            forced = self._ask(ids, plain, answers, forced=end)
            p_end = forced.p_first if forced.stop_id == end else None
        begun = said.ids or ()
        if (end is not None and p_end is None) or (offers.ids and said.ids is None):
            raise ModelError(
                f"{self.name}: the server left out P(end), or the ids that it drew", "broken answer"
            )
        if above is not None and p_end is not None and p_end >= above:
            return "", end, p_end
        if said.stop_id is None and only_first and plain.max_tokens > 1:
            seed = None if plain.seed is None else stable_hash(plain.seed, "behind the first token")
            rest = replace(plain, max_tokens=plain.max_tokens - 1, end_id=None, seed=seed)
            said = self._ask([*ids, *begun], rest, answers)
            said = replace(said, ids=(*begun, *(said.ids or ())))
        return self._words(said), said.stop_id, p_end

    def _words(self, said: _Answer) -> str:
        """Without any added token, but for white space, also where the server spells them."""
        if said.ids is None:
            return encodable(self._spelled.sub("", said.text))
        return words_of(self._tokenizer, said.ids, self._unsaid)

    def _ask(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        answers: list[_Answer],
        forced: int | None = None,
    ) -> _Answer:
        """One call, without what `sampling` says of the first position. With `forced` it is for
        that one token."""
        if forced is not None:
            sampling = replace(sampling, temperature=0, max_tokens=1, banned_ids=frozenset())
        said, faults, possibly_billed = self._endpoint.ask(
            lambda client: _send(client, self.name, ids, sampling, forced)
        )
        said = replace(said, faults=faults, possibly_billed=possibly_billed)
        answers.append(said)
        tokens_in, tokens_out = said.usage or (None, 0)
        context_length = self._offers and self._offers.context_length
        if tokens_in != len(ids):
            raise self._unfit(
                f"{len(ids)} token ids were sent, and the server counted {tokens_in}: it adds a "
                "token (a BOS?) or "
                "cuts the prompt; make it take ids as they are"
            )
        if said.finish == "stop" and said.stop_id is None:
            raise self._unfit(
                "the server does not say which token closed a turn, and nothing but the model's "
                "own end token may "
                f"end a conversation; {ADVICE}"
            )
        if not sampling.stop_ids.isdisjoint(said.ids or ()):
            raise self._unfit(f"the server goes on behind a token of `stop_token_ids`; {ADVICE}")
        if not sampling.banned_ids.isdisjoint({*(said.ids or ()), said.stop_id}):
            raise self._unfit(f"the server drew a token that `logit_bias` bans; {ADVICE}")
        if context_length and said.stop_id is None and tokens_out < sampling.max_tokens:
            raise self._unfit(
                f"the server stopped after {tokens_out} tokens, and {sampling.max_tokens} were "
                "allowed; if its "
                "generation_config holds a `max_new_tokens`, start vLLM with --generation-config "
                "vllm"
            )
        return said

    def _find_out(self, ids: Sequence[int], sampling: Sampling) -> _Offers:
        """What the server offers, from two calls for one token: the end, and one that closes
        nothing."""
        if not sampling.stop_ids or sampling.end_id not in (None, *sampling.stop_ids):
            raise ValueError("stop_ids must hold what closes a completion, end_id among them")
        context_length, tail = self.context_length(), ids[-TAIL:]
        end = min(sampling.stop_ids) if sampling.end_id is None else sampling.end_id
        word = next(id for id in count() if id not in sampling.stop_ids)
        for end_id in (end, None):  # perhaps it takes all but the wish for log-probabilities
            asked = Sampling(stop_ids=sampling.stop_ids, end_id=end_id)
            try:
                closed = self._ask(tail, asked, [], forced=end)
                break
            except ModelError as error:
                if error.reason not in NOT_OFFERED:
                    raise
                refused = str(error).removeprefix(f"{self.name}: ")
        else:
            raise self._unfit(f"{refused}; start it without what it names, {ADVICE}")
        went_on = self._ask(tail, asked, [], forced=word)
        if (closed.finish, closed.stop_id) != ("stop", end) or went_on.finish == "stop":
            raise self._unfit(
                f"made to draw the end token ({end}) by `logit_bias`, the server did not stop "
                "there, as "
                f"`stop_token_ids` wants it, or it stopped at another, too; {ADVICE}"
            )
        if went_on.ids not in (None, (word,)):
            raise self._unfit(
                f"made to draw token {word} by `logit_bias`, the server drew {went_on.ids}; "
                f"{ADVICE}"
            )
        notes = []
        if closed.p_first is None or went_on.p_first is None:
            notes.append("the server gives no log-probabilities, so P(end) is not known")
        elif closed.p_first + went_on.p_first > 1.01:  # after the bias each is all but certain
            notes.append(
                "the server's log-probabilities are those of after a ban, so P(end) is not known; "
                "start vLLM with "
                "--logprobs-mode raw_logprobs"
            )
        known = not notes
        if closed.ids is None:
            notes.append("the server returns no token ids, so words are taken from its text")
        for note in notes:
            warn(f"{self.name}: {note}", ModelWarning, stacklevel=2)
        return _Offers(context_length, known, closed.ids is not None, tuple(notes))

    def _unfit(self, why: str) -> InputError:
        return InputError(f"{self.name}: not usable as a trained user: {why}")


@dataclass(frozen=True, slots=True)
class _Offers:
    """What a server can do: its context_length, whether it gives P(end) and ids, and what there is
    to say of that."""

    context_length: int | None
    p_end: bool
    ids: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the server said to one call.

    Attributes:
        ids: that it drew, without the one that closed; `None` if it does not return them.
        stop_id: the one that closed; `None` if none did, or if it does not say.
        finish: `stop` or `length`.
        p_first: the probability of the first token that it drew.
        p_end: of `Sampling.end_id` at the first position.
        usage: tokens in and out; `None` if it does not count them.
        faults, possibly_billed: see `Completion`.
    """

    ids: tuple[int, ...] | None
    text: str
    stop_id: int | None
    finish: str
    p_first: float | None
    p_end: float | None
    usage: tuple[int, int] | None
    faults: tuple[str, ...] = ()
    possibly_billed: int = 0


def _sum(answers: Sequence[_Answer]) -> tuple[tuple[str, ...], int]:
    return tuple(kind for answer in answers for kind in answer.faults), sum(
        answer.possibly_billed for answer in answers
    )


def _send(
    client: openai.OpenAI, model: str, ids: Sequence[int], sampling: Sampling, forced: int | None
) -> _Answer:
    bias = (
        {str(id): -BIAS for id in sorted(sampling.banned_ids)}
        if forced is None
        else {str(forced): BIAS}
    )
    extra: dict[str, Any] = {
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": True,
        "include_stop_str_in_output": False,
        "skip_special_tokens": False,
        "return_token_ids": True,
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1,
    }
    if sampling.end_id is not None:
        extra |= {"logprob_token_ids": [sampling.end_id], "return_tokens_as_token_ids": True}
    answer = client.completions.create(
        model=model,
        prompt=[*ids],
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        presence_penalty=0,
        frequency_penalty=0,
        seed=openai.omit if sampling.seed is None else sampling.seed % 2**31,
        logit_bias=bias or openai.omit,
        logprobs=openai.omit if sampling.end_id is None else 1,
        extra_body=extra,
    )
    return _read(answer, sampling)


def _read(answer: Any, sampling: Sampling) -> _Answer:
    """What a completion says; raises `ValueError` if it is none."""
    try:
        choice, usage = answer.choices[0], answer.usage
        text, finish = choice.text, choice.finish_reason
    except (AttributeError, LookupError, TypeError):  # a page, an array, an answer without choices
        raise ValueError("this is no completion; does the URL end in /v1?") from None
    if not isinstance(text, str) or finish not in (
        "stop",
        "length",
    ):  # such as `abort`, of a server that is going
        raise ValueError(f"finish_reason is {finish!r}, and the text {text!r:.40}")
    tokens_in, tokens_out = (
        getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")
    )
    used = (tokens_in, tokens_out) if type(tokens_in) is int and type(tokens_out) is int else None
    drawn = getattr(choice, "token_ids", None)
    ids = tuple(drawn) if isinstance(drawn, list) and {*map(type, drawn)} <= {int} else None
    stop_id = None
    if ids and ids[-1] in sampling.stop_ids:
        ids, stop_id = ids[:-1], ids[-1]
    elif (
        type(reason := getattr(choice, "stop_reason", None)) is int and reason in sampling.stop_ids
    ):
        stop_id = reason
    listed = getattr(choice, "logprobs", None)
    first, top = (
        _at_first(getattr(listed, name, None)) for name in ("token_logprobs", "top_logprobs")
    )
    p_end = top.get(f"token_id:{sampling.end_id}") if isinstance(top, dict) else None
    return _Answer(ids, text, stop_id, finish, _probability(first), _probability(p_end), used)


def _at_first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else None


def _probability(logprob: Any) -> float | None:
    """`None` for what is no log-probability; rounding may put one above 0."""
    return math.exp(min(logprob, 0)) if type(logprob) in (int, float) and logprob < 1e-3 else None
