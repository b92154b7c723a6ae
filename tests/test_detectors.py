"""Pangram's API: what is read as a probability, and what is not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_server import CUT, FakeServer, Said, serving
from raw_server import sending

from userlm import loading
from userlm.detectors import CountedDetector, billed_words
from userlm.models.budget import Budget, Caps, Price
from userlm.models.endpoint import EndpointModel
from userlm.models.pangram import Pangram, read_answer
from userlm.types import Detection, InputError, ModelError

KEY = "secret-key-of-pangram"
HUMAN = {"fraction_human": 0.75, "fraction_ai": 0.25, "fraction_ai_assisted": 0.0}


def pangram(url: str, **options: Any) -> Pangram:
    given = {"timeout": 5.0, "pause": 0.01, **options}
    server = url.removesuffix("/v1")
    endpoint = EndpointModel(
        "pangram",
        server,
        KEY,
        key_variable="PANGRAM_API_KEY",
        key_header="x-api-key",
        **given,
    )
    return Pangram(endpoint, "/v1", "default", first_poll=0.01, longest_task=1)


def detect(
    *answers: Said, text: str = "how do i boil rice", **options: Any
) -> Detection:
    with serving(list(answers)) as server:
        [found] = pangram(server.url, **options).detect([text])
    return found


def test_the_share_of_a_text_that_is_a_persons_is_its_probability():
    found = detect(Said(body={**HUMAN, "version": "3.0"}))
    assert found == Detection(0.75, "", "3.0")


def test_the_older_likelihood_of_a_machine_is_turned_around():
    assert detect(Said(body={"ai_likelihood": 0.9})).p_human == pytest.approx(0.1)


def test_the_key_goes_into_the_header_of_this_api_and_nowhere_else():
    with serving([Said(body=HUMAN)]) as server:
        pangram(server.url).detect(["hi"])
    [headers] = server.headers
    assert headers["x-api-key"] == KEY
    assert "authorization" not in headers
    assert list(headers.values()).count(KEY) == 1
    assert server.bodies == [
        {"text": "hi", "model": "default", "public_dashboard_link": False}
    ]


def test_the_result_of_a_task_is_asked_for_until_it_is_there():
    # a stage that is not the last one may come with zeros
    running = {"task_id": "a/b", "stage": "STAGE_INFERENCE", "fraction_human": 0.0}
    with serving(
        [
            Said(body={"task_id": "a/b"}),
            Said(body=running),
            Said(body={**HUMAN, "stage": "STAGE_SUCCESS", "version": "4.0"}),
        ]
    ) as server:
        [found] = pangram(server.url).detect(["hi"])
    assert found == Detection(0.75, "", "4.0")
    assert [path for path, _, _ in server.requests] == ["/v1", "/v1/a%2Fb", "/v1/a%2Fb"]


def test_a_task_without_a_result_in_time_is_an_error_that_may_have_been_billed():
    def reply(body: dict[str, Any], n: int) -> Said:
        return Said(body={"task_id": "t", "stage": "STAGE_PREPROCESSING"})

    with serving(reply) as server, pytest.raises(ModelError) as caught:
        pangram(server.url).detect(["hi"])
    assert (caught.value.reason, caught.value.possibly_billed) == ("timed out", 1)
    assert "no result after 1 seconds" in str(caught.value)


def test_a_task_that_is_not_found_is_no_error_of_all_others():
    with (
        serving([Said(body={"task_id": "t"}), Said(404, {"detail": "no"})]) as server,
        pytest.raises(ModelError) as caught,
    ):
        pangram(server.url).detect(["hi"])
    assert not caught.value.permanent
    assert caught.value.possibly_billed == 1


def test_a_failed_task_has_a_reason_and_not_the_zeros_that_it_comes_with():
    failed = {"stage": "STAGE_FAILED", "fraction_human": 0.0, "version": ""}
    found = detect(Said(body={**failed, "headline": "no valid text"}))
    assert found == Detection(None, "no valid text")
    assert detect(Said(body=failed)).why == "no result"


ODD = [
    [],
    "0.7",
    {},
    {"error": "over capacity"},
    {"task_id": ""},
    {"task_id": 7},
    {"fraction_human": None},
    {"fraction_human": "0.7"},
    {"fraction_human": True},
    {"fraction_human": 1.2},
    {"fraction_human": -0.1},
    {"fraction_human": 1e400},
    {"ai_likelihood": 40},
    {"fraction_human": 0.0, "fraction_ai": 0.0, "fraction_ai_assisted": 0.0},
    '{"fraction_human": NaN}',
    '{"fraction_human": 0.7',
    "<html>busy</html>",
    "",
]


@pytest.mark.parametrize("body", ODD, ids=[str(body) for body in ODD])
def test_an_odd_answer_is_tried_again_and_never_read_as_a_number(body: Any):
    assert detect(Said(body=body), Said(body=HUMAN)).p_human == 0.75
    with pytest.raises(ModelError) as caught:
        detect(Said(body=body), Said(body=body), retries=1)
    assert caught.value.reason == "broken answer"
    assert caught.value.possibly_billed == 2


def test_half_a_body_and_a_slow_answer_are_tried_again():
    half = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with sending(half, b"") as url, pytest.raises(ModelError) as caught:
        pangram(url, timeout=0.2, retries=1).detect(["hi"])
    assert caught.value.faults == ("timed out", "timed out")
    slow = Said(body=HUMAN, hang=0.6)
    assert detect(slow, Said(body=HUMAN), timeout=0.3) == Detection(
        0.75, possibly_billed=1
    )
    assert detect(CUT, Said(body=HUMAN)).possibly_billed == 1


def test_a_busy_service_is_asked_again_after_as_long_as_it_says():
    busy = Said(429, {"detail": "slow down"}, {"Retry-After": "0"})
    assert detect(busy, busy, Said(body=HUMAN)) == Detection(0.75)
    late = Said(429, {"detail": "slow down"}, {"Retry-After": "7200"})
    with pytest.raises(ModelError, match="asks to come back") as caught:
        detect(late)
    assert (caught.value.permanent, caught.value.possibly_billed) == (True, 0)


@pytest.mark.parametrize("form", [KEY, KEY.upper(), KEY.encode().hex()])
def test_the_key_is_in_no_error_and_in_nothing_that_is_kept(form: str):
    with pytest.raises(ModelError, match="PANGRAM_API_KEY") as caught:
        detect(Said(401, {"detail": f"{form} is not valid"}))
    assert caught.value.permanent
    assert form not in str(caught.value)
    with pytest.raises(ModelError) as caught:
        detect(Said(422, {"message": f"bad text by {form}"}))
    assert form not in str(caught.value)
    failed = {"stage": "STAGE_FAILED", "headline": f"of {form}", "version": form}
    found = detect(Said(body=failed))
    assert (found.why, found.version) == ("of [key]", "[key]")


def test_no_zero_is_read_from_an_answer_in_progress():
    running = {"stage": "STAGE_X", "task_id": "t", **HUMAN}
    assert read_answer(running) == (None, "t")


# --- counting -------------------------------------------------------------------------------------


def test_words_are_rounded_up_to_the_blocks_that_are_billed():
    assert billed_words("one two three", 1) == 3
    assert billed_words("one two three", 100) == 100
    assert billed_words("word " * 101, 100) == 200
    assert billed_words("??? !!! ...", 1) == 3  # no words, but three symbols
    assert billed_words("", 1) == 1


def test_each_character_is_a_word_where_a_script_has_no_spaces():
    assert billed_words("今天天气很好", 1) == 6
    assert billed_words("今天 very 好 warm", 1) == 5
    assert billed_words("ใครเขียน", 1) == 8


@contextmanager
def counted(
    reply: Callable[[dict[str, Any], int], Said], path: Path, caps: Caps
) -> Iterator[tuple[FakeServer, CountedDetector, Budget]]:
    budget = Budget(caps, path / "usage.jsonl")
    # 1 $ for each 100 words begun
    side = budget.side("detector", "pangram", Price.parse("10000/0"), 6, True)
    with serving(reply) as server:
        yield server, CountedDetector(pangram(server.url), side, 100), budget


def test_each_text_is_a_call_and_its_words_are_what_it_costs(tmp_path):
    with counted(lambda *_: Said(body=HUMAN), tmp_path, Caps()) as (_, asked, budget):
        asked.detect(["one", "word " * 101])
    [usage] = budget.finish(["detector"])["usage"].values()
    assert (usage["calls"], usage["tokens_in"], usage["cost"]) == (2, 300, 3)


def test_a_cap_is_kept_and_polls_are_no_calls(tmp_path):
    def reply(body: dict[str, Any], n: int) -> Said:
        return Said(body=HUMAN if not body else {"task_id": "t"})

    with counted(reply, tmp_path, Caps(calls=2)) as (server, asked, _):
        asked.detect(["one", "two"])
        with pytest.raises(ModelError, match="--max-calls 2"):
            asked.detect(["three"])
    assert sum(bool(body) for body in server.bodies) == 2


# --- addresses ------------------------------------------------------------------------------------


def test_without_a_key_the_environment_variable_is_named(monkeypatch):
    monkeypatch.delenv("PANGRAM_API_KEY", raising=False)
    with pytest.raises(InputError, match="PANGRAM_API_KEY"):
        loading.detector("pangram")


def test_the_model_of_the_address_is_asked_for_at_the_url_of_the_environment(
    monkeypatch,
):
    monkeypatch.setenv("PANGRAM_API_KEY", KEY)
    with serving([Said(body=HUMAN)] * 2) as server:
        monkeypatch.setenv("PANGRAM_URL", f"{server.url}/")
        with pytest.warns(match="since PANGRAM_URL is set"):
            loading.detector("pangram:pangram-4").detect(["hi"])
        with pytest.warns(match="since PANGRAM_URL is set"):
            loading.detector("pangram").detect(["hi"])
    assert [body["model"] for body in server.bodies] == ["pangram-4", "default"]
    assert server.requests[0][0] == "/v1"
    monkeypatch.setenv("PANGRAM_URL", f"https://me:{KEY}@host/v3")
    with pytest.raises(InputError, match="PANGRAM_URL") as caught:
        loading.detector("pangram")
    assert KEY not in str(caught.value)


def test_an_unknown_kind_of_detector_is_told_which_there_are():
    with pytest.raises(InputError, match="did you mean pangram"):
        loading.detector("pangam:x")
    with pytest.raises(InputError, match="known are pangram, classifier"):
        loading.detector("openai:gpt-4o")
    with pytest.raises(InputError, match="the option is for classifier:MODEL"):
        loading.detector("pangram", human_label="HUMAN")
