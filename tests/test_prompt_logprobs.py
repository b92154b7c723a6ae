"""Scoring on a server: the requests that servers support, and the servers that are refused because
they would be wrong silently."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest

from userlm import loading
from userlm.commands import Limits, Ppl, ppl
from userlm.models.endpoint import EndpointModel
from userlm.models.prompt_logprobs import PromptLogprobs
from userlm.rows import write_conversations
from userlm.training.base import CHAT_TEMPLATE
from userlm.types import Conversation, InputError, ModelError

Answer = tuple[int, Any]
Body = dict[str, Any]


class Server:
    """A server on this machine. `answers(body, earlier)` gives a status and a body; `earlier` are
    the prompts that were asked before."""

    def __init__(self, answers: Callable[[Body, list[list[int]]], Answer]) -> None:
        self.answers, self.bodies, self.lock, self.url = (
            answers,
            list[Body](),
            threading.Lock(),
            "",
        )

    @property
    def prompts(self) -> list[list[int]]:
        return [body["prompt"] for body in self.bodies]


@contextmanager
def serving(answers: Callable[[Body, list[list[int]]], Answer]) -> Iterator[Server]:
    made = Server(answers)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with made.lock:
                status, answer = (
                    made.answers(body, made.prompts)
                    if "chat" not in self.path
                    else (200, {})
                )
                made.bodies.append(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def truth(ids: list[int]) -> list[float | None]:
    """The log-probabilities of the model behind the servers: the farther an id is from the one before
    it, the less probable it is; `None` for the first."""
    return [None, *(-0.25 * (1 + abs(b - a)) for a, b in pairwise(ids))]


def scorer(server: Server, workers: int = 4) -> PromptLogprobs:
    return PromptLogprobs(
        EndpointModel("m", server.url, "secret-key", pause=0.001), workers
    )


ROWS = [
    ([3, 5, 9, 4, 8, 7, 6, 5], [False, True, False, True, True, False, True, True]),
    ([9, 3], [False, True]),
]
RIGHT = [[-0.75, -1.5, -1.25, -0.5, -0.5], [-1.75]]


# --- servers --------------------------------------------------------------------------------------


def entries(ids: list[int], values: list[float | None]) -> list[Any]:
    """vLLM's entries: by id, the prompt's own and the most probable one."""
    found: list[Any] = [None]
    for id, value in zip(ids[1:], values[1:], strict=True):
        found.append(
            {str(id): {"logprob": value, "rank": 4}, "1": {"logprob": -0.1, "rank": 1}}
        )
    return found


def completion(ids: list[int], **choice: Any) -> Answer:
    usage = {
        "prompt_tokens": len(ids),
        "completion_tokens": 1,
        "total_tokens": len(ids) + 1,
    }
    about = {
        "id": "1",
        "object": "text_completion",
        "created": 0,
        "model": "m",
        "usage": usage,
    }
    return 200, about | {
        "choices": [{"index": 0, "text": ".", "finish_reason": "length", **choice}]
    }


def error(status: int, message: str) -> Answer:
    return status, {"error": {"message": message}}


def vllm(body: Body, earlier: list[list[int]]) -> Answer:
    if body["max_tokens"] < 1:
        return error(400, "max_tokens must be at least 1")
    assert (body["temperature"], body["prompt_logprobs"]) == (0, 0)
    return completion(
        body["prompt"], prompt_logprobs=entries(body["prompt"], truth(body["prompt"]))
    )


def echoing(body: Body, earlier: list[list[int]]) -> Answer:
    """An older llama.cpp server, or the first OpenAI models: unknown fields are ignored."""
    if not body.get("echo"):
        return completion(body["prompt"])
    return completion(
        body["prompt"], logprobs=echoed(body["prompt"], body["max_tokens"])
    )


def echoed(ids: list[int], generated: int) -> Body:
    values = truth(ids) + [-9.0] * generated
    return {
        "tokens": ["x"] * len(values),
        "token_logprobs": values,
        "text_offset": [0] * len(values),
    }


def generating(body: Body, earlier: list[list[int]]) -> Answer:
    return (
        error(400, "max_tokens: at least 1")
        if body["max_tokens"] < 1
        else echoing(body, earlier)
    )


def shared(ids: list[int], earlier: list[list[int]]) -> int:
    """How many of the first ids an earlier prompt began with too, in whole blocks of 2."""

    def alike(other: list[int]) -> int:
        return next(
            (i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b),
            min(len(ids), len(other)),
        )

    return max(map(alike, earlier), default=0) // 2 * 2


# --- tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [vllm, echoing, generating])
def test_each_request_gives_the_log_probability_of_each_masked_token(answers):
    with serving(answers) as server:
        assert scorer(server).score(ROWS) == RIGHT


@pytest.mark.slow
def test_rows_come_back_in_order_and_the_request_is_found_out_once():
    rows = [([1, *range(i, i + 9)], [False] + [True] * 9) for i in range(2, 60)]
    with serving(vllm) as server:
        model = scorer(server, workers=8)
        assert model.score(rows) == [truth(ids)[1:] for ids, _ in rows]
        assert len(server.bodies) == 3 + len(rows)
        model.score(rows[:5])
        assert len(server.bodies) == 3 + len(rows) + 5


def test_a_row_without_a_masked_token_is_not_asked_for():
    with serving(vllm) as server:
        assert scorer(server).score([([1, 2], [False, False]), ROWS[1]]) == [
            [],
            RIGHT[1],
        ]
        assert [1, 2] not in server.prompts
        assert scorer(server).score([([1, 2], [False, False])]) == [[]]
        with pytest.raises(ValueError, match="nothing before it"):
            scorer(server).score([([1, 2], [True, True])])


@pytest.mark.parametrize("gap", [None, -30.0])
def test_a_server_whose_cache_loses_log_probabilities_is_refused_before_the_run(gap):
    """A row that shares its beginning with an earlier one gets the beginning from a cache, without
    its numbers or with wrong ones."""

    def cached(body: Body, earlier: list[list[int]]) -> Answer:
        ids, values = body["prompt"], truth(body["prompt"])
        for i in range(1, shared(ids, earlier)):
            values[i] = gap
        return completion(ids, prompt_logprobs=entries(ids, values))

    with serving(cached) as server:
        with pytest.raises(
            InputError,
            match=r"m: cannot be used for scoring: .*--no-enable-prefix-caching",
        ):
            scorer(server).score(ROWS)
        assert all(ids not in server.prompts for ids, _ in ROWS)


def test_half_precision_is_no_broken_cache():
    def wavering(body: Body, earlier: list[list[int]]) -> Answer:
        values = [
            value and value + 0.03 * (-1) ** len(earlier)
            for value in truth(body["prompt"])
        ]
        return completion(
            body["prompt"], prompt_logprobs=entries(body["prompt"], values)
        )

    with serving(wavering) as server:
        assert scorer(server).score(ROWS)[1] == pytest.approx(RIGHT[1], abs=0.04)


def test_a_probe_starts_with_random_tokens_so_that_no_cache_holds_it():
    with serving(vllm) as server:
        scorer(server).score(ROWS)
        scorer(server).score(ROWS)
        first, beside, again, other = (server.prompts[i] for i in (0, 1, 2, 5))
        assert first == again != other
        assert (
            len(first) == 400
            and first[:300] == beside[:300]
            and first[300:] == beside[:299:-1]
        )


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize(
    ("spell", "said"),
    [
        (
            lambda ids: [1, *ids],
            "400 token ids were sent, and 401 log-probabilities were returned",
        ),
        (
            lambda ids: ids[2:],
            "400 token ids were sent, and 398 log-probabilities were returned",
        ),
    ],
)
def test_a_server_that_adds_a_bos_or_cuts_the_prompt_is_refused(spell, said, echo):
    def wrong(body: Body, earlier: list[list[int]]) -> Answer:
        ids = spell(body["prompt"])
        return (echoing if echo else vllm)({**body, "prompt": ids}, earlier)

    with serving(wrong) as server, pytest.raises(InputError, match=said):
        scorer(server).score(ROWS)


def test_a_bos_is_noticed_where_a_token_is_generated_after_the_prompt_too():
    def wrong(body: Body, earlier: list[list[int]]) -> Answer:
        return generating({**body, "prompt": [1, *body["prompt"]]}, earlier)

    def without_usage(body: Body, earlier: list[list[int]]) -> Answer:
        status, answer = generating(body, earlier)
        return status, {key: value for key, value in answer.items() if key != "usage"}

    with (
        serving(wrong) as server,
        pytest.raises(InputError, match="400 token ids were sent, and 401 log-prob"),
    ):
        scorer(server).score(ROWS)
    with (
        serving(without_usage) as server,
        pytest.raises(InputError, match="returns no log-probabilities of a prompt"),
    ):
        scorer(server).score(ROWS)


def test_log_probabilities_of_other_ids_are_refused():
    def other(body: Body, earlier: list[list[int]]) -> Answer:
        ids = [1, *body["prompt"]][:-1]
        return completion(ids, prompt_logprobs=entries(ids, truth(ids)))

    with (
        serving(other) as server,
        pytest.raises(
            InputError, match=r"the log-probability of token \d+ of 400 is None"
        ),
    ):
        scorer(server).score(ROWS)


def test_the_key_is_in_no_error_even_if_the_server_repeats_it():
    def repeats(body: Body, earlier: list[list[int]]) -> Answer:
        values = [None, *["leaks secret-key"] * (len(body["prompt"]) - 1)]
        return completion(
            body["prompt"], prompt_logprobs=entries(body["prompt"], values)
        )

    with (
        serving(repeats) as server,
        pytest.raises(InputError, match="is imp") as caught,
    ):
        scorer(server).score(ROWS)
    assert "secret-key" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [None, math.nan, -math.inf, "-1", True, -(10**400), 10**400, -1e300, 0.5]
)
@pytest.mark.parametrize("odd", [range(4, 5), range(4, 99)])
def test_in_a_run_a_value_that_is_no_number_is_asked_for_again_and_ends_one_row(
    value, odd
):
    def sometimes(body: Body, earlier: list[list[int]]) -> Answer:
        values = truth(body["prompt"])
        if len(earlier) in odd:
            values[-1] = value
        return completion(
            body["prompt"], prompt_logprobs=entries(body["prompt"], values)
        )

    with serving(sometimes) as server:
        model = scorer(server, workers=1)
        assert model.score(ROWS[:1]) == RIGHT[:1]
        if len(odd) == 1:
            assert model.score(ROWS) == RIGHT
            return
        with pytest.raises(ModelError, match="the log-probability of token 2 of 2 is"):
            model.score(ROWS[1:])


@pytest.mark.parametrize(
    "answers",
    [
        lambda body, earlier: error(404, "only /v1/chat/completions here"),
        lambda body, earlier: completion(body["prompt"]),
        lambda body, earlier: error(400, "echo and prompt_logprobs are not supported"),
    ],
)
def test_a_server_that_supports_neither_request_is_not_scorable(answers):
    with (
        serving(answers) as server,
        pytest.raises(
            InputError,
            match="m: cannot be used for scoring: the server returns no log-prob",
        ),
    ):
        scorer(server).score(ROWS)


def test_a_server_that_fails_at_times_is_asked_again_and_one_that_is_down_is_no_bad_input():
    def at_times(body: Body, earlier: list[list[int]]) -> Answer:
        return error(503, "busy") if len(earlier) % 3 else vllm(body, earlier)

    with serving(at_times) as server:
        assert scorer(server).score(ROWS) == RIGHT
    with pytest.raises(ModelError, match="no connection") as caught:
        PromptLogprobs(EndpointModel("m", server.url, None, retries=0)).score(ROWS)
    assert caught.value.permanent
    with serving(lambda body, earlier: error(401, "wrong key: secret-key")) as server:
        with pytest.raises(ModelError, match="USERLM_API_KEY") as caught:
            scorer(server).score(ROWS)
        assert "secret-key" not in str(caught.value)


def test_what_is_no_completion_is_a_broken_answer():
    with (
        serving(lambda body, earlier: (200, ["hello"])) as server,
        pytest.raises(ModelError, match="does the URL end in /v1"),
    ):
        PromptLogprobs(
            EndpointModel("m", server.url, None, retries=1, pause=0.001)
        ).score(ROWS)


@pytest.mark.slow
def test_perplexity_on_a_server_is_that_of_the_same_weights_on_this_machine(
    tiny, tmp_path, monkeypatch
):
    """In each form, on a server that computes with the same model."""
    tiny.model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(tiny.tokenizer, "chat_template", CHAT_TEMPLATE)
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    logs = [
        Conversation(f"c{i}", intent=f"do {i}").say(f"sort {i}").say("ok").say("thanks")
        for i in range(3)
    ]
    write_conversations(tmp_path / "logs.jsonl", logs)

    def served(body: Body, earlier: list[list[int]]) -> Answer:
        ids = body["prompt"]
        [values] = tiny.score([(ids, [False] + [True] * (len(ids) - 1))])
        return completion(ids, prompt_logprobs=entries(ids, [None, *values]))

    folder = str(tmp_path / "model")
    with serving(served) as server:
        for form in ("trained", "base", "prompted"):
            logs = tmp_path / "logs.jsonl"
            here = ppl(Ppl(logs, f"{form}:{folder}", tmp_path / f"here-{form}"))
            there = ppl(
                Ppl(
                    logs,
                    f"{form}:{server.url}#m",
                    tmp_path / form,
                    tokenizer=folder,
                    workers=3,
                )
            )
            usage, _ = there.pop("usage"), there.pop("caps")
            assert usage["model"]["cost"] is None
            for column, records in there.items():
                for record, same in zip(records, here[column], strict=True):
                    assert (record["name"], record["value"] is None) == (
                        same["name"],
                        same["value"] is None,
                    )
                    assert record["value"] is None or record["value"] == pytest.approx(
                        same["value"], rel=1e-5
                    )
            assert (
                there["with intent"][0]["n"],
                there["with intent"][0]["missing"],
            ) == (6, 0)


# --- what `ppl` on a server costs, and how it goes on ---------------------------------------------

PROBES = 3
"""Requests before the first row."""
ROWS_OF_LOGS = 8 * 3
"""Eight conversations, each without an intent, with its own and with another's."""


def likely(body: Body, earlier: list[list[int]]) -> Answer:
    ids = body["prompt"]
    values = [None, *(-0.001 * (1 + abs(b - a)) for a, b in pairwise(ids))]
    return completion(ids, prompt_logprobs=entries(ids, values))


@pytest.fixture
def on_server(tmp_path, monkeypatch):
    """Runs `ppl` on a server, and returns its results."""
    monkeypatch.setattr(
        loading,
        "_endpoint",
        lambda name, url, key: EndpointModel(name, url, None, 1, pause=0),
    )
    logs = []
    for i in range(8):
        log = Conversation(f"c{i}", intent=f"do {i}", user=f"p{i}")
        logs.append(log.say(f"sort {i}").say("ok").say("thanks"))
    write_conversations(tmp_path / "logs.jsonl", logs)

    def run(server, workers=2, out="out", **more):
        names = ("max_calls", "max_tokens_total", "budget")
        limits = {name: more.pop(name) for name in names if name in more}
        options = Ppl(
            tmp_path / "logs.jsonl",
            f"{server.url}#m",
            tmp_path / out,
            tokenizer="userlm-tiny",
            workers=workers,
            limits=Limits(**limits),
            **more,
        )
        return ppl(options)

    return run


def lines_of(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").open()]


def test_each_answered_row_is_written_at_once_and_not_asked_for_again(
    on_server, tmp_path
):
    written = []

    def watched(body, earlier):
        if len(earlier) == PROBES + 10:
            written.extend(lines_of(tmp_path / "out"))
            return 400, {"error": {"message": "gone"}}
        return likely(body, earlier)

    with serving(likely) as server:
        whole = on_server(server, out="whole")
        assert len(server.bodies) == PROBES + ROWS_OF_LOGS
    with serving(watched) as server:
        on_server(server, workers=1)
        # Two turns of each of ten rows; the eleventh failed.
        assert len(written) == 20
        asked = len(server.bodies)
        on_server(server, workers=1)
        assert len(server.bodies) == asked + PROBES + 1
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "whole")
    assert whole["usage"]["model"]["calls"] == PROBES + ROWS_OF_LOGS


@pytest.mark.parametrize("workers", [1, 6])
def test_equal_rows_are_asked_for_once(on_server, tmp_path, workers):
    logs = [Conversation(f"c{i}", intent="do it", user=f"p{i}") for i in range(6)]
    write_conversations(tmp_path / "logs.jsonl", [log.say("hi") for log in logs])
    with serving(likely) as server:
        found = on_server(server, workers=workers, controls=False)
        used = found["usage"]["model"]
        assert len(server.bodies) == used["calls"] == PROBES + 2
    assert len(lines_of(tmp_path / "out")) == 6 * 2


def test_the_rows_of_a_conversation_that_is_cut_off_are_not_asked_for_again(
    on_server, tmp_path
):
    long = Conversation("long", intent="do it", user="p")
    for i in range(20):
        long = long.say(f"and what about number {i} of all of them?").say("ok")
    more = {"workers": 1, "max_tokens": 64, "controls": False}
    with serving(likely) as server:
        write_conversations(tmp_path / "logs.jsonl", [long])
        on_server(server, out="whole", **more)
        rows = len(server.bodies) - PROBES
        assert rows > 10
    with serving(likely) as server:
        for cap in (PROBES + 4, 2 * (PROBES + 4)):
            with pytest.raises(ModelError, match="1 of 1 conversations ended in an"):
                on_server(server, max_calls=cap, **more)
        on_server(server, max_calls=1000, **more)
        assert len(server.bodies) == rows + 3 * PROBES
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "whole")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_what_ppl_used_is_counted_and_shown(on_server, capsys):
    with serving(likely) as server:
        used = on_server(server, price="2/8")["usage"]["model"]
        tests, rows = server.prompts[:PROBES], server.prompts[PROBES:]
    tokens = sum(map(len, rows))
    tested = sum(map(len, tests))
    assert used == {
        "calls": PROBES + ROWS_OF_LOGS,
        "drafts": ROWS_OF_LOGS,
        "tokens_in": tokens,
        "tokens_out": ROWS_OF_LOGS,
        "possibly_billed": 0,
        "cost": pytest.approx(
            (2 * (tested + tokens) + 8 * ROWS_OF_LOGS) / 1e6, abs=1e-6
        ),
        "price": "2/8",
    }
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"{ROWS_OF_LOGS} calls, about " in said
    assert (
        f"calls {used['calls']} tokens in {tokens:,} tokens out {ROWS_OF_LOGS}" in said
    )


def test_a_try_of_ppl_that_may_have_been_billed_counts_in_full(on_server):
    def cut_once(body, earlier):
        odd = len(earlier) == PROBES + 2
        return (200, {"choices": []}) if odd else likely(body, earlier)

    with serving(cut_once) as server:
        used = on_server(server, workers=1, price="1/1")["usage"]["model"]
        tokens = sum(map(len, server.prompts)) + len(server.prompts[PROBES:])
    assert (used["calls"], used["possibly_billed"]) == (PROBES + ROWS_OF_LOGS + 1, 1)
    assert used["cost"] == pytest.approx(tokens / 1e6, abs=1e-6)


@pytest.mark.parametrize("workers", [1, 4])
def test_caps_of_ppl_hold_and_the_same_command_with_a_higher_one_goes_on(
    on_server, workers, capsys
):
    with serving(likely) as server:
        first = on_server(server, workers, max_calls=10)
        assert len(server.bodies) == first["usage"]["model"]["calls"] == 10
        said = " ".join("".join(capsys.readouterr()).split())
        assert "cap reached: --max-calls 10 does not cover the worst case" in said
        last = on_server(server, workers, max_calls=1000)
        # The server is tested again; no row is asked for again.
        assert len(server.bodies) == ROWS_OF_LOGS + 2 * PROBES
    assert (last["without intent"][0]["n"], last["without intent"][0]["missing"]) == (
        16,
        0,
    )


def test_the_tokens_that_test_a_server_are_below_the_cap_too(on_server):
    with serving(likely) as server:
        for cap in (500, 2000, 3000):
            with suppress(ModelError):
                on_server(server, max_tokens_total=cap)
            read = sum(map(len, server.prompts))
            assert read <= cap
        assert read > 500


def test_a_server_that_says_to_come_back_later_ends_ppl_after_one_call(on_server):
    with serving(
        lambda body, earlier: (402, {"error": {"message": "top up"}})
    ) as server:
        with pytest.raises(ModelError, match="top up"):
            on_server(server, workers=1)
        assert len(server.bodies) == 1


def test_a_server_that_fails_on_the_first_few_rows_ends_ppl(on_server):
    with serving(lambda body, earlier: (500, {"error": {"message": "no"}})) as server:
        with pytest.raises(ModelError, match="the server failed: no"):
            on_server(server, workers=1)
        assert len(server.bodies) == 3 * 2  # two tries each


def test_limits_for_a_model_on_this_machine_are_refused(tmp_path):
    for more in ({"price": "1/1"}, {"limits": Limits(max_calls=3)}):
        with pytest.raises(InputError, match="are for a model on a server"):
            ppl(Ppl(tmp_path / "logs.jsonl", "userlm-tiny", tmp_path / "out", **more))


def test_the_tokenizer_of_a_server_is_named_or_has_the_name_of_the_model(
    tiny, tmp_path
):
    tiny.tokenizer.save_pretrained(tmp_path)
    url = "http://127.0.0.1:9/v1"
    assert loading.scorer(f"{url}#{tmp_path}")[2] is None
    with pytest.raises(
        InputError,
        match=r"#no/such/model: the tokenizer of this model is needed; give it with --tokenizer",
    ):
        loading.scorer(f"trained:{url}#no/such/model")
    with pytest.raises(
        InputError, match="nowhere/at/all: cannot load a tokenizer from there"
    ):
        loading.scorer(f"trained:{url}#m", tokenizer="nowhere/at/all")
