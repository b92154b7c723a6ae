"""`userlm detect`: a simulated user beside people, by a detector whose worth is measured too."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fake_server import Said, completion, serving
from flat import flat

from userlm import commands, loading
from userlm.models.endpoint import EndpointModel
from userlm.rows import write_conversations
from userlm.types import Conversation, InputError, ModelError, ModelWarning, Turn

KEY = "secret-key-of-pangram"
PEOPLE = 6


def talk(i: int, said: str, answer: str) -> Conversation:
    turns = (Turn("user", said), Turn("assistant", answer))
    return Conversation(f"c{i}", turns, user=f"p{i}", ended=True)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Six people and their simulated users: each says something of their own."""
    people = [talk(i, f"yo {i}", f"Certainly {i}") for i in range(PEOPLE)]
    users = [talk(i, f"please {i}", "Fine.") for i in range(PEOPLE)]
    write_conversations(tmp_path / "people.jsonl", people)
    write_conversations(tmp_path / "users.jsonl", users)
    return tmp_path


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets where Pangram is; its endpoint makes next to no pauses."""

    def endpoint(name: str, url: str, variable: str, header: str) -> EndpointModel:
        return EndpointModel(
            name,
            url,
            KEY,
            retries=1,
            timeout=20,
            pause=0.01,
            key_variable=variable,
            key_header=header,
        )

    monkeypatch.setattr(loading, "_endpoint", endpoint)
    monkeypatch.setenv("PANGRAM_API_KEY", KEY)
    return lambda url: monkeypatch.setenv("PANGRAM_URL", url)


def detect(folder: Path, **options: Any) -> dict[str, Any]:
    given = {
        "run": folder / "users.jsonl",
        "human": folder / "people.jsonl",
        "detector": "pangram",
        "out": folder / "detect",
        **options,
    }
    return commands.detect(flat(commands.Detect, **given))


def share(text: str) -> float:
    """What the service says: people write "yo", machines "Certainly"."""
    return {"yo": 0.75, "please": 0.5, "Certainly": 0.25}[text.split()[0]]


def answer(body: dict[str, Any], n: int = 0) -> Said:
    return Said(body={"fraction_human": share(body["text"]), "version": "4.0"})


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """All that was printed, without line breaks."""
    return " ".join("".join(capsys.readouterr()).split())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


pytestmark = pytest.mark.filterwarnings("ignore:pangram is asked at")


def test_user_people_and_assistant_stand_beside_the_worth_of_the_detector(
    files, at, capsys
):
    with serving(answer) as server:
        at(server.url)
        results = detect(files)
    [every, first] = results["measures"]
    assert every["user"]["value"] == pytest.approx(50)
    assert every["human"]["value"] == pytest.approx(75)
    assert every["assistant"]["value"] == pytest.approx(25)
    assert every["user"]["distance"]["value"] == pytest.approx(-25)
    assert first["user"]["value"] is first["human"]["value"] is None
    assert "50 to 200 tokens" in first["user"]["why"]
    # Each person has more than each assistant and each simulated user.
    assistants, simulated = results["auroc"]
    assert assistants["detector"]["value"] == simulated["detector"]["value"] == 1
    # All texts have two words, so length alone cannot tell them.
    assert assistants["length"]["value"] == 0.5
    assert results["detector"] == {"name": "pangram", "versions": {"4.0": 3 * PEOPLE}}
    assert "pangram 4.0" in said(capsys)
    rows = lines(files / "detect/scores.jsonl")
    assert {row["column"] for row in rows} == {"user", "human", "assistant"}


def test_the_same_text_is_asked_about_once(files, at):
    write_conversations(
        files / "users.jsonl", [talk(i, "yo 1", "Fine.") for i in range(PEOPLE)]
    )
    with serving(answer) as server:
        at(server.url)
        results = detect(files)
    assert len(server.requests) == 2 * PEOPLE
    assert results["measures"][0]["user"]["n"] == PEOPLE


def test_the_name_and_the_auroc_of_the_detector_are_in_page_and_markdown(files, at):
    with serving(answer) as server:
        at(server.url)
        detect(files)
    commands.report(commands.Report([files / "detect"], files / "report"))
    for page in ("report.html", "report.md"):
        text = (files / "report" / page).read_text()
        assert "pangram 4.0" in text
        assert "people from assistants 1.00, people from this user 1.00" in text
        assert "people from assistants" in text


def test_a_damaged_result_is_named(files, at):
    with serving(answer) as server:
        at(server.url)
        detect(files)
    path = files / "detect/results.json"
    path.write_text(path.read_text().replace('"user": "users.jsonl"', '"user": 7'))
    with pytest.raises(InputError, match="'user' is damaged"):
        commands.report(commands.Report([files / "detect"], files / "report"))


# --- what goes wrong ------------------------------------------------------------------------------


def test_odd_answers_are_missing_and_counted_and_the_same_command_asks_again(
    files, at, capsys
):
    def odd(body: dict[str, Any], n: int) -> Said:
        if body["text"] == "please 0":
            return Said(body={"fraction_human": 7})
        return answer(body)

    with serving(odd) as server:
        at(server.url)
        results = detect(files)
        user = results["measures"][0]["user"]
        assert (user["n"], user["missing"], user["value"]) == (PEOPLE - 1, 1, 50)
        assert results["failed"] == 1
        assert "the same command tries these again" in said(capsys)
        asked = len(server.requests)
        server.reply = answer
        results = detect(files)
    assert len(server.requests) == asked + 1
    assert (results["failed"], results["measures"][0]["user"]["n"]) == (0, PEOPLE)


def test_a_text_that_the_detector_cannot_read_has_no_number_and_is_not_asked_again(
    files, at
):
    def short(body: dict[str, Any], n: int) -> Said:
        if body["text"].startswith("please"):
            return Said(body={"stage": "STAGE_FAILED", "headline": "too short"})
        return answer(body)

    with serving(short) as server:
        at(server.url)
        results = detect(files)
        asked = len(server.requests)
        detect(files)
    user = results["measures"][0]["user"]
    assert (user["value"], user["missing"], user["why"]) == (None, PEOPLE, "too short")
    assert user["distance"]["value"] is None
    assert results["counts"]["not read"] == {"too short": PEOPLE}
    assert results["auroc"][1]["detector"]["value"] is None
    assert len(server.requests) == asked


def test_a_detector_that_reads_nothing_fails_and_is_asked_about_no_text_twice_but_by_force(
    files, at, monkeypatch
):
    monkeypatch.setattr(import_module("userlm.commands.detect"), "UNUSABLE", 3)
    broken = Said(body={"stage": "STAGE_FAILED", "headline": "too short"})
    with serving(lambda body, n: broken) as server:
        at(server.url)
        for attempt in range(1, PEOPLE + 2):
            with pytest.raises(ModelError):
                detect(files, workers=1)
            # Three more texts at each attempt, until there are no others.
            asked = [body["text"] for body in server.bodies]
            assert len(asked) == len(set(asked)) == min(3 * attempt, 3 * PEOPLE)
        server.reply = lambda body, n: answer(body)
        with pytest.raises(ModelError, match="--force asks about all again"):
            detect(files)
        results = detect(files, force=True)
    assert results["counts"]["not read"] == {}


def test_a_service_that_refuses_all_further_texts_fails_and_is_asked_again(
    files, at, monkeypatch
):
    monkeypatch.setattr(import_module("userlm.commands.detect"), "GIVE_UP", 2)
    broke = Said(400, {"message": "insufficient credits"})
    with serving(lambda body, n: answer(body) if n < 3 else broke) as server:
        at(server.url)
        assert detect(files, workers=1)["failed"] > 0
        server.reply = lambda body, n: answer(body)
        results = detect(files, workers=1)
    assert results["counts"]["not read"] == {} and results["failed"] == 0


def test_a_refused_text_is_asked_about_once_and_gives_up_no_others(files, at):
    with serving(answer) as server:
        at(server.url)
        detect(files)
        asked = len(server.requests)
        talks = [talk(i, f"pleas {i}", ".") for i in range(PEOPLE)]
        write_conversations(files / "users.jsonl", talks)
        server.reply = lambda *_: Said(422, {"message": "too short"})
        results = detect(files, workers=1)
        assert results["failed"] == 0
        user = results["measures"][0]["user"]
        assert (user["value"], user["missing"]) == (None, PEOPLE)
        assert "too short" in user["why"]
        detect(files)
    assert len(server.requests) == asked + PEOPLE


def test_a_refused_key_ends_the_asking_and_is_in_no_file_and_no_message(
    files, at, capsys
):
    with serving(lambda *_: Said(401, {"detail": f"bad key {KEY}"})) as server:
        at(server.url)
        with pytest.raises(ModelError, match="18 of 18 texts ended in an error"):
            detect(files, workers=1)
    assert len(server.requests) == 1
    shown = said(capsys)
    assert "PANGRAM_API_KEY" in shown
    assert KEY not in shown
    for path in (files / "detect").rglob("*"):
        if path.is_file():
            assert KEY not in path.read_text()
    results = json.loads((files / "detect/results.json").read_text())
    assert results["measures"][0]["user"]["value"] is None


def test_a_service_that_is_down_is_given_up_after_some_calls(files, at, monkeypatch):
    monkeypatch.setattr(import_module("userlm.commands.detect"), "GIVE_UP", 3)
    with serving(lambda *_: Said(503, {"detail": "down"})) as server:
        at(server.url)
        with pytest.raises(ModelError, match="18 of 18 texts"):
            detect(files, workers=1)
    # three calls, each of which was tried twice, and one that had begun meanwhile
    assert len(server.requests) <= 2 * (3 + 1)


def test_a_limit_leaves_texts_unasked_and_a_higher_one_goes_on(files, at, capsys):
    with serving(answer) as server:
        at(server.url)
        results = detect(files, max_calls=10, workers=1)
        assert results["failed"] == 8
        assert "Run the same command with a higher limit" in said(capsys)
        measured = [results["measures"][0][side]["n"] for side in ("user", "human")]
        # the order is random: each side is measured in part
        assert all(0 < n < PEOPLE for n in measured)
        results = detect(files, max_calls=100)
    assert len(server.requests) == 3 * PEOPLE
    assert results["failed"] == 0
    assert results["usage"]["detector"]["calls"] == 3 * PEOPLE


def test_the_budget_is_in_blocks_of_words(files, at):
    with pytest.raises(InputError, match="give --detector-price DOLLARS/WORDS"):
        detect(files, budget=1.0)
    for price in ("0.05", "x/1000", "1/0", "NaN/100", "-1/100", "5/1"):
        with pytest.raises(InputError, match="started block of words"):
            detect(files, detector_price=price)
    with serving(answer) as server:
        at(server.url)
        # A call may be tried 6 times, so 6 blocks are reserved; then it costs one.
        results = detect(files, budget=0.60, detector_price="0.05/100", workers=1)
    assert len(server.requests) == 7
    assert results["usage"]["detector"]["cost"] == pytest.approx(0.35)


def test_another_detector_or_another_run_does_not_go_on_with_the_run(files, at):
    with serving(answer) as server:
        at(server.url)
        detect(files)
        with pytest.raises(InputError, match="detector"):
            detect(files, detector="pangram:pangram-4")
        (files / "others.jsonl").write_bytes((files / "users.jsonl").read_bytes())
        with pytest.raises(InputError, match="run changed now"):
            detect(files, run=files / "others.jsonl")


def test_turns_that_changed_since_are_read_and_the_others_not_asked_about_again(
    files, at
):
    with serving(answer) as server:
        at(server.url)
        detect(files)
        asked = len(server.requests)
        talks = [talk(i, "yo 99" if i == 0 else f"please {i}", ".") for i in range(6)]
        write_conversations(files / "users.jsonl", talks)
        results = detect(files)
        assert len(server.requests) == asked + 1
    # five turns with 0.5 and one with 0.75
    assert results["measures"][0]["user"]["value"] == pytest.approx(325 / 6)


def test_answers_of_two_versions_are_said(files, at, capsys):
    def changing(body: dict[str, Any], n: int) -> Said:
        body = answer(body).body
        return Said(body={**body, "version": "4.0" if n else "3.0"})

    with serving(changing) as server:
        at(server.url)
        results = detect(files)
    assert results["detector"]["versions"] == {"3.0": 1, "4.0": 3 * PEOPLE - 1}
    assert "several versions: 3.0, 4.0" in said(capsys)


def labelled(body: dict[str, Any], n: int = 0) -> Said:
    """What a judge says: people write "yo", machines "Certainly"; of others it cannot say."""
    asked = body["messages"][-1]["content"]
    label = {"yo": "HUMAN", "Certainly": "AI"}.get(
        next((word for word in ("yo", "Certainly") if f"\n{word} " in asked), "")
    )
    if label is None:
        return completion("Hard to say, it could be a person or not.")
    return completion(json.dumps({"reason": "so", "label": label}))


def test_a_judge_is_a_detector_whose_labels_count_1_and_0_and_prose_nothing(
    files, monkeypatch, capsys
):
    monkeypatch.setattr(
        loading, "_endpoint", lambda name, url, key: EndpointModel(name, url, None)
    )
    with serving(labelled) as server:
        results = detect(files, detector=f"judge:{server.url}#some-judge")
        asked = len(server.requests)
        assert detect(files, detector=f"judge:{server.url}#some-judge") == results
    assert asked == len(server.requests) == 3 * PEOPLE
    [every, _] = results["measures"]
    assert (every["human"]["value"], every["assistant"]["value"]) == (100, 0)
    assert (every["user"]["value"], every["user"]["missing"]) == (None, PEOPLE)
    assert results["counts"]["not read"] == {"no label": PEOPLE}
    assert results["auroc"][0]["detector"]["value"] == 1
    assert results["usage"]["detector"]["calls"] == 3 * PEOPLE
    assert results["failed"] == 0
    assert server.bodies[0]["temperature"] == 0
    [version] = results["detector"]["versions"]
    assert version.startswith("prompt ")
    assert f"#some-judge {version}" in said(capsys)


def test_a_judge_that_is_the_model_of_the_user_is_warned_of(files):
    (files / "judge.txt").write_text("HUMAN")
    talks = files / "run"
    talks.mkdir()
    (files / "users.jsonl").rename(talks / "conversations.jsonl")
    script = f"script:{files / 'judge.txt'}"
    (talks / "run.json").write_text(json.dumps({"options": {"user": script}}))
    with pytest.warns(ModelWarning, match="are one model"):
        results = detect(
            files, run=talks / "conversations.jsonl", detector=f"judge:{script}"
        )
    assert results["user"] == script
    assert "are one model" in results["warning"]
    assert results["measures"][0]["user"]["value"] == 100


def test_limits_and_a_price_are_refused_for_a_model_on_this_machine(files):
    for options in ({"max_calls": 3}, {"detector_price": "1/1"}):
        with pytest.raises(InputError):
            detect(files, detector="classifier:nowhere/at-all", **options)


# --- tasks of the service -------------------------------------------------------------------------


class Tasks:
    """A service that makes a task of each text, and says of them what it is told to."""

    def __init__(self, result: Said) -> None:
        self.result = result
        self.sent: list[str] = []

    def __call__(self, body: dict[str, Any], n: int) -> Said:
        if not body:
            return self.result
        self.sent.append(body["text"])
        return Said(body={"task_id": f"t{len(self.sent)}"})


@pytest.mark.slow
def test_what_the_service_took_is_not_sent_again_and_its_result_is_asked_for_first(
    files, at
):
    service = Tasks(Said(503, {"detail": "down"}))
    with serving(service) as server:
        at(server.url)
        with pytest.raises(ModelError, match="6 of 6 texts ended in an error"):
            detect(files, limit=2, workers=1)
        sent = len(service.sent)
        # After three without a result no more are sent, but one that had begun meanwhile.
        assert 3 <= sent <= 4
        service.result = Said(body={"fraction_human": 0.5})
        begun = len(server.requests)
        results = detect(files, limit=2, workers=1)
    paths = [path for path, _, _ in server.requests[begun : begun + sent]]
    assert [path.rpartition("/")[2] for path in paths] == [
        f"t{n + 1}" for n in range(sent)
    ]
    assert len(service.sent) == len({*service.sent}) == 6
    assert results["failed"] == 0
    assert results["usage"]["detector"]["calls"] == 6


@pytest.mark.slow
def test_a_text_whose_task_is_not_known_any_more_is_sent_again(files, at):
    service = Tasks(Said(503, {"detail": "down"}))

    def forgets(body: dict[str, Any], n: int) -> Said:
        said = service(body, n)
        if body:
            service.result = Said(body={"fraction_human": 0.5})
        return said

    with serving(service) as server:
        at(server.url)
        with pytest.raises(ModelError):
            detect(files, limit=1, workers=1)
        service.result = Said(404, {"detail": "no such task"})
        server.reply = forgets
        assert detect(files, limit=1, workers=1)["failed"] == 0
    assert len(service.sent) > len({*service.sent}) == 3


@pytest.mark.slow
def test_a_task_that_is_named_like_the_key_is_in_no_file(files, at):
    named = Said(body={"task_id": KEY})
    with serving(lambda body, n: named if body else Said(503, {})) as server:
        at(server.url)
        with pytest.raises(ModelError):
            detect(files, limit=1, workers=1)
    for path in (files / "detect").rglob("*"):
        assert not path.is_file() or KEY not in path.read_text()
