"""`userlm assess`: a user beside people, by the verbs that measure them, within one budget."""

import json
import re
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest
from fake_server import Said, completion, error, serving
from flat import flat

from userlm import assets, commands, loading
from userlm.commands.assess import QUICK, QUICK_ITEMS, QUICK_TOKENS
from userlm.commands.costs import Limits
from userlm.commands.merge import Merge, merge
from userlm.json_files import read_json
from userlm.metrics.verdict import Finding
from userlm.models.budget import Amount
from userlm.models.endpoint import EndpointModel
from userlm.rows import read_conversations, write_conversations
from userlm.show import latex, verdicts
from userlm.show.finished import read_run
from userlm.show.html import inline
from userlm.show.page import describe
from userlm.show.verdicts import concluded
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, ModelError, Turn

TESTS = ("role", "intent", "robustness")


def person(i: int, said=("how to boil an egg", "thanks a lot"), intent="cook eggs"):
    """A conversation of a person of their own, who ended it."""
    turns = []
    for text in said:
        turns += [Turn("user", text), Turn("assistant", "Ten minutes.")]
    wanted = intent and f"{INTENT_PREFIX}{intent}."
    return Conversation(f"c{i}", tuple(turns), wanted, user=f"p{i}", ended=True)


def people(path: Path, count: int = 6, **same) -> Path:
    write_conversations(path, (person(i, **same) for i in range(count)))
    return path


def script(folder: Path, *lines: str) -> str:
    (folder / "script.txt").write_text("\n".join(lines or ("boil egg", "thanks")))
    return f"script:{folder / 'script.txt'}"


def items_file(folder: Path, kind: str, count: int) -> Path:
    """Test items: the first ones of the package."""
    path = folder / f"{count}-{kind}-items.jsonl"
    found = assets.role_items() if kind == "role" else assets.intent_items()
    write_conversations(path, islice(read_conversations(found), count))
    return path


def assess(folder: Path, **options):
    """An assessment with two test items of each kind."""
    given = {
        "reference": folder / "people.jsonl",
        "out": folder / "run",
        "role_items": items_file(folder, "role", 2),
        "intent_items": items_file(folder, "intent", 2),
    }
    return commands.assess(flat(commands.Assess, **{**given, **options}))


def by_name(results, stage):
    return {one["user"]["name"]: one for one in results["measures"][stage]}


@pytest.fixture
def quick(monkeypatch):
    """Endpoints with next to no pauses between tries."""

    def endpoint(name, url, variable):
        return EndpointModel(name, url, "a-key", timeout=20, pause=0.01)

    monkeypatch.setattr(loading, "_endpoint", endpoint)


def talk(body, n=0) -> Said:
    """What a server says: it depends on nothing but what it is asked."""
    asked = json.dumps([body["messages"], body["seed"]])
    digest = sha256(asked.encode()).hexdigest()
    return completion(f"{body['model']} {digest[:8]}", tokens_out=5)


def at_server(server, folder, **options):
    """An assessment of which both sides are at the server: 6 conversations of people, with 2 user
    turns each, so 3 prefixes."""
    both = {
        "user": f"prompted:{server.url}#user",
        "assistant": f"{server.url}#assistant",
        "max_turns": 2,
    }
    return assess(folder, **{**both, **options})


# --- what it finds --------------------------------------------------------------------------------


def test_user_and_people_stand_side_by_side_with_their_difference(tmp_path, capsys):
    people(tmp_path / "people.jsonl")
    results = assess(tmp_path, user=script(tmp_path), assistant="clarifier")
    # People: 5 + 3 words in 2 turns, 4 a turn. The script: 2 + 1, so 1.5; 2.5 less.
    for stage in ("respond", "simulate"):
        words = by_name(results, stage)["words per turn"]
        assert (words["user"]["value"], words["human"]["value"]) == (1.5, 4)
        assert words["user"]["distance"]["value"] == -2.5
    # Both end after 2 turns.
    assert (
        by_name(results, "simulate")["turns per conversation"]["user"]["distance"][
            "value"
        ]
        == 0
    )
    ends = by_name(results, "respond")["termination F1"]
    assert (ends["user"]["value"], ends["human"]) == (100, None)
    assert "distance" not in ends["user"]
    shown = capsys.readouterr().out
    assert (
        "Too little is known, from 6 people (30 are a beginning): of 22 measures"
        in " ".join(shown.split())
    )
    page = (tmp_path / "run/report.md").read_text()
    assert "How far from people?" in page and "-2.5" in page


def test_the_end_of_people_at_the_limit_of_turns_is_not_seen_as_it_is_not_of_a_user(
    tmp_path,
):
    # Half of the people say more, so that ends are measured.
    more = ("how to boil an egg", "in a pan", "thanks a lot")
    logs = [person(i, more if i % 2 else ("boil an egg", "thanks")) for i in range(12)]
    write_conversations(tmp_path / "people.jsonl", logs)
    replay = f"replay:{tmp_path / 'people.jsonl'}"
    results = assess(tmp_path, user=replay, assistant="clarifier", max_turns=3)
    ends = by_name(results, "simulate")["end rate"]
    assert ends["user"]["value"] == ends["human"]["value"] > 0


def test_people_are_cut_at_the_limit_on_simulated_turns_so_that_their_replay_does_not_differ(
    tmp_path,
):
    people(tmp_path / "people.jsonl")
    replay = f"replay:{tmp_path / 'people.jsonl'}"
    results = assess(tmp_path, user=replay, assistant="clarifier", max_turns=1)
    for name, one in by_name(results, "simulate").items():
        if one["user"].get("distance"):
            assert one["user"]["distance"]["value"] in (0, None), name
            assert one["human"]["max_turns"] == 1
    talks, turns = by_name(results, "simulate"), by_name(results, "respond")
    assert talks["turns per conversation"]["human"]["value"] == 1
    # Their first turns have 5 words, all turns 4 on average.
    assert talks["words per turn"]["human"]["value"] == 5
    assert turns["words per turn"]["human"]["value"] == 4


def test_what_a_user_repeats_of_its_training_logs_is_measured_if_they_are_given(
    tmp_path,
):
    people(tmp_path / "people.jsonl")
    write_conversations(tmp_path / "train.jsonl", [person(0, ("i boil egg", "hi"))])
    logs = {"trained_on": tmp_path / "train.jsonl"}
    results = assess(tmp_path, user=script(tmp_path), **logs)
    # "boil egg" is in them, "thanks" is not.
    overlap = by_name(results, "respond")["verbatim overlap"]
    assert overlap["user"]["value"] == 1


@pytest.mark.slow
def test_a_user_that_can_be_scored_has_its_perplexity_beside_and_others_are_told_why_not(
    tmp_path,
):
    people(tmp_path / "people.jsonl", 3)
    scored = assess(tmp_path, user="trained:userlm-tiny")
    assert {"with intent", "without intent"} <= scored["perplexity"].keys()
    assert scored["perplexity"]["with intent"]["value"] > 1
    assert scored["left_out"] == {"simulate": "no --assistant was given"}
    scripted = assess(tmp_path, user=script(tmp_path), out=tmp_path / "scripted")
    assert scripted["perplexity"] == {}
    assert "kind script: gives no log-probabilities" in scripted["left_out"]["ppl"]


def test_a_server_that_cannot_score_leaves_perplexity_out_and_nothing_else(
    quick, tmp_path
):
    people(tmp_path / "people.jsonl", 2)
    with serving(talk) as server:
        results = at_server(server, tmp_path)
    assert "the tokenizer of this model is needed" in results["left_out"]["ppl"]
    assert results["failed"] == {} and results["measures"]["simulate"]


def test_too_few_people_give_none_and_a_reason_and_never_a_zero(tmp_path):
    people(tmp_path / "people.jsonl", 1)
    results = assess(tmp_path, user=script(tmp_path))
    diversity = by_name(results, "respond")["first-turn diversity"]
    assert diversity["user"]["value"] is diversity["user"]["distance"]["value"] is None
    assert "no other first turn" in diversity["user"]["why"]
    words = by_name(results, "respond")["words per turn"]
    assert words["user"]["distance"]["value"] == -2.5
    assert words["user"]["distance"]["low"] is words["user"]["distance"]["high"] is None


def test_quick_takes_sixty_short_conversations_and_counts_the_others(tmp_path):
    long = person(0, said=("a" * 4 * QUICK_TOKENS,))
    many = [person(i) for i in range(1, QUICK + 11)]
    write_conversations(tmp_path / "people.jsonl", [long, *many])
    results = assess(tmp_path, user=script(tmp_path), quick=True)
    assert results["counts"] == {
        "in": QUICK + 11,
        "dropped: more than 384 tokens": 1,
        "dropped: not drawn by --quick, which takes 60": 10,
        "out": QUICK,
    }
    drawn = [one.id for one in read_conversations(tmp_path / "run/reference.jsonl")]
    assert len(drawn) == QUICK and "c0" not in drawn
    page = (tmp_path / "run/report.md").read_text()
    why = "not drawn by --quick, which takes 60, 10; more than 384 tokens, 1"
    assert f"60 real conversations (71 were read; left out: `{why}`)" in page
    other = {"user": script(tmp_path), "quick": True, "seed": 1}
    assess(tmp_path, **other, out=tmp_path / "other")
    path = tmp_path / "other/reference.jsonl"
    assert drawn != [one.id for one in read_conversations(path)]


def test_role_and_intent_are_tested_and_their_mean_is_the_robustness(tmp_path, capsys):
    people(tmp_path / "people.jsonl")
    # The first choices of the first two items, which are asked after one turn of the user.
    said = script(tmp_path, "boil egg", "a pump")
    results = assess(tmp_path, user=said)
    role = by_name(results, "role")["user-role adherence"]["user"]
    # A choice of the first item is an answer; none of the second is named.
    assert (role["value"], role["outcomes"]) == (50, {"answers": 1, "adheres": 1})
    intent = by_name(results, "intent")["intent adherence (rule)"]["user"]
    assert (intent["value"], intent["outcomes"]) == (0, {"other": 2})
    both = by_name(results, "robustness")["robustness"]
    assert (both["user"]["value"], both["human"]) == (25, None)
    assert results["items"] == {
        kind: {"in": 2, "out": 2} for kind in ("role", "intent")
    }
    assert "keeping its role" in capsys.readouterr().out
    assert "answers 1, adheres 1" in (tmp_path / "run/report.md").read_text()


def test_sixty_items_of_each_are_in_the_package_and_quick_draws_twenty(tmp_path):
    people(tmp_path / "people.jsonl")
    embedded = {"role_items": None, "intent_items": None, "user": script(tmp_path)}
    whole = assess(tmp_path, **embedded)
    assert whole["items"]["role"] == whole["items"]["intent"] == {"in": 60, "out": 60}
    drawn = []
    for seed in (0, 1, 0):
        out = tmp_path / f"quick-{len(drawn)}"
        quick = assess(tmp_path, **embedded, quick=True, seed=seed, out=out)
        assert quick["items"]["role"] == {"in": 60, "out": QUICK_ITEMS}
        page = (out / "report.md").read_text()
        assert "20 of 60 items of the kind role, 20 of 60 items" in page
        drawn.append([one.id for one in read_conversations(out / "role.jsonl")])
    assert drawn[0] == drawn[2] != drawn[1]


def test_people_of_a_log_were_not_asked_the_items_and_that_is_said(tmp_path):
    path = people(tmp_path / "people.jsonl")
    results = assess(tmp_path, user=f"replay:{path}")
    assert not results["failed"] and "role" not in results["measures"]
    for kind in ("role", "intent"):
        assert "not asked these questions" in results["left_out"][kind]


# --- wrong input ----------------------------------------------------------------------------------


def test_conversations_without_intents_are_counted_and_refused_if_there_are_no_others(
    tmp_path,
):
    mixed = [person(0, intent=None), *(person(i) for i in range(1, 4))]
    write_conversations(tmp_path / "people.jsonl", mixed)
    results = assess(tmp_path, user=script(tmp_path))
    assert results["counts"] == {"in": 4, "dropped: no intent": 1, "out": 3}
    people(tmp_path / "none.jsonl", 2, intent=None)
    options = {"reference": tmp_path / "none.jsonl", "out": tmp_path / "other"}
    with pytest.raises(InputError, match=r"no intent: 2.*run `userlm intents` first"):
        assess(tmp_path, user=script(tmp_path), **options)


def judging(body, n=0) -> Said:
    """A server whose judge finds that everybody stays with what they want."""
    if not body["model"].startswith("judge"):
        return talk(body, n)
    label = "USER" if "USER" in str(body["messages"]) else "ADHERES"
    return completion(json.dumps({"reason": "So it is.", "label": label}), tokens_out=5)


def test_the_judge_of_merged_parts_has_what_their_limits_leave_together(
    tmp_path, quick
):
    people(tmp_path / "people.jsonl")
    outs = [tmp_path / "part-1", tmp_path / "part-2"]
    with serving(judging) as server:
        options = {"judge": f"{server.url}#judge", "assistant": None, "max_calls": 20}
        for number, out in enumerate(outs, 1):
            at_server(server, tmp_path, part=f"{number}/2", out=out, **options)
        asked = len(server.requests)
        results = merge(Merge(outs, tmp_path / "run"))
        assert asked == 6 * 3 + 4 and len(server.requests) == asked + 4
    assert not results["incomplete"] and not results["failed"]


def test_a_judge_stands_beside_the_rules_and_is_asked_once_within_the_one_budget(
    tmp_path, quick, capsys
):
    people(tmp_path / "people.jsonl")
    with serving(judging) as server:
        options = {"judge": f"{server.url}#judge", "assistant": None}
        first = at_server(server, tmp_path, max_calls=6 * 3 + 4 + 3, **options)
        results = at_server(server, tmp_path, **options)
        calls = len(server.requests)
    assert first["incomplete"] == ["judge-intent"] and not results["incomplete"]
    assert calls == 6 * 3 + 4 + 4
    judged = by_name(results, "judge-role")["user-role adherence (judge)"]["user"]
    assert (judged["value"], judged["n"]) == (100, 2)
    assert judged["outcomes"] == {"USER": 2, "ANSWERS": 0, "OTHER": 0}
    assert (
        by_name(results, "judge-intent")["intent adherence (judge)"]["user"]["n"] == 2
    )
    assert "#judge, prompt user-role" in (tmp_path / "run/report.md").read_text()
    assert "keeping its intent" in " ".join(capsys.readouterr().out.split())


def test_items_of_the_other_kind_are_refused_by_file_line_and_field(tmp_path):
    people(tmp_path / "people.jsonl")
    wrong = {"role_items": items_file(tmp_path, "intent", 1)}
    said = r"1-intent-items\.jsonl, line 1: field 'meta\.item' must be 'role', not 'intent'"
    with pytest.raises(InputError, match=said):
        assess(tmp_path, user=script(tmp_path), **wrong)
    assert not (tmp_path / "run/respond").exists()


def test_an_empty_reference_is_refused(tmp_path):
    (tmp_path / "people.jsonl").touch()
    with pytest.raises(InputError, match=r"people\.jsonl"):
        assess(tmp_path, user=script(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_calls": 3}, "are for models; none is called here"),
        ({"price": "1/1"}, "--price is for the assistant"),
        ({"assistant": "clarifyer"}, "did you mean clarifier"),
        (
            {"assistant": "http://127.0.0.1:9/v1#m", "budget": 1.0},
            "--budget needs the price of the tokens of .*give --price",
        ),
    ],
)
def test_what_is_wrong_with_the_assistant_or_the_limits_is_said_before_a_turn_is_taken(
    options, said, tmp_path
):
    people(tmp_path / "people.jsonl")
    with pytest.raises(InputError, match=said):
        assess(tmp_path, user=script(tmp_path), **options)
    assert not (tmp_path / "run/respond").exists()


# --- resumed, within one budget -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "cap",
    [{"max_calls": 40}, {"max_tokens_total": 25_000}, {"budget": 0.06}],
    ids=lambda cap: next(iter(cap)),
)
def test_a_cap_holds_for_all_stages_together_and_a_higher_one_goes_on(
    cap, quick, tmp_path
):
    people(tmp_path / "people.jsonl")
    prices = {"user_price": "2/8", "price": "1/4", "workers": 2}
    with serving(talk) as server:
        whole = at_server(server, tmp_path, out=tmp_path / "whole", **prices)
        calls = len(server.requests)
    # A call for each prefix, for each simulated turn, and for each of 2 test items of 2 kinds.
    assert calls == 6 * 3 + 6 * 4 + 2 * 2
    [(name, most)] = cap.items()
    with serving(talk) as server:
        for _ in range(2):  # what an earlier attempt used counts too
            with suppress(ModelError):
                at_server(server, tmp_path, **prices, **cap)
        asked = len(server.requests)
        # `respond` alone takes 18.
        assert 18 < asked < calls
        tokens = server.tokens_in + server.tokens_out
        dollars = sum(
            Decimal(used["cost"])
            for stage in ("respond", "simulate")
            for used in read_json(tmp_path / f"run/{stage}/results.json")["usage"].values()
        )  # fmt: skip
        took = {"max_calls": asked, "max_tokens_total": tokens, "budget": dollars}
        assert took[name] <= most
        done = at_server(server, tmp_path, **prices, **{name: 1000 * most})
        assert len(server.requests) == calls  # nothing was asked twice
    assert done["measures"] == whole["measures"]
    assert not done["incomplete"]


def test_what_is_left_of_limits_is_never_less_than_nothing():
    limits = Limits(budget=0.3, max_calls=5)
    used = Amount(calls=7, tokens=100, dollars=Decimal("0.1"))
    assert limits.less(used) == Limits(budget=0.2, max_calls=0)


def test_a_failed_stage_leaves_the_others_and_the_same_command_tries_it_again(
    quick, tmp_path
):
    people(tmp_path / "people.jsonl")
    down = error(400, "no such model")
    with serving(lambda body, n: down if body["model"] == "assistant" else talk(body)) as server:  # fmt: skip
        with pytest.raises(ModelError, match="simulate: 6 of 6 conversations ended"):
            at_server(server, tmp_path)
        first = read_json(tmp_path / "run/results.json")
        assert first["failed"].keys() == {"simulate"}
        assert first["measures"].keys() == {"respond", "detect", *TESTS}
        assert (tmp_path / "run/report.html").is_file()
        server.requests.clear()
        server.reply = talk
        done = at_server(server, tmp_path)
    # The user's 6 first turns are not asked for again, nor any turn of `respond`.
    assert len(server.requests) == 6 * 3
    assert not done["failed"]
    assert done["measures"].keys() == {"respond", "simulate", "detect", *TESTS}


def test_if_everything_failed_the_exit_is_an_error_and_no_number_is_shown(
    quick, tmp_path
):
    people(tmp_path / "people.jsonl")
    said = pytest.raises(ModelError, match="respond: 18 of 18 conversations ended")
    with serving(lambda body, n: error(400, "no such model")) as server, said:
        at_server(server, tmp_path)
    results = read_json(tmp_path / "run/results.json")
    assert results["measures"] == {}
    assert results["failed"].keys() == {"respond", "simulate", "role", "intent"}


@pytest.mark.slow
def test_a_complete_run_is_shown_again_and_force_begins_it_anew(tmp_path, capsys):
    people(tmp_path / "people.jsonl")
    options = {"user": script(tmp_path), "assistant": "clarifier"}
    first = assess(tmp_path, **options)
    answers = (tmp_path / "run/respond/turns.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert assess(tmp_path, **options) == first
    assert "Too little is known" in capsys.readouterr().out
    assert (tmp_path / "run/respond/turns.jsonl").stat().st_mtime_ns == answers
    options["user"] = script(tmp_path, "boil an egg", "thanks a lot")
    with pytest.raises(InputError, match=r"script\.txt changed"):
        assess(tmp_path, **options)
    anew = assess(tmp_path, **options, force=True)
    words = by_name(anew, "respond")["words per turn"]
    assert words["user"]["distance"]["value"] == -1  # 3 words a turn, and 4
    assert not (tmp_path / "run/.replaced").exists()


def test_a_report_shows_an_assessment_beside_other_runs(tmp_path):
    people(tmp_path / "people.jsonl")
    assess(tmp_path, user=script(tmp_path))
    runs = [read_run(tmp_path / "run"), read_run(tmp_path / "run/score")]
    sections = {section.id for section in describe(runs).sections}
    assert {"assess", "figures"} <= sections


# --- naturalness ----------------------------------------------------------------------------------


def natural(body, n=0) -> Said:
    """What Pangram says: turns of people are those that boil an egg, or thank a lot."""
    is_human = body["text"] in ("how to boil an egg", "thanks a lot")
    return Said(body={"fraction_human": 0.75 if is_human else 0.5, "version": "4.0"})


@pytest.fixture
def pangram(monkeypatch):
    """Sets where Pangram is; its endpoint makes next to no pauses."""

    def endpoint(name, url, variable, header):
        pace = {"retries": 1, "timeout": 5, "pause": 0.01}
        return EndpointModel(name, url, "a-key", key_header=header, **pace)

    monkeypatch.setattr(loading, "_endpoint", endpoint)
    monkeypatch.setenv("PANGRAM_API_KEY", "a-key")
    return lambda url: monkeypatch.setenv("PANGRAM_URL", url)


def test_without_a_detector_naturalness_is_not_measured_and_the_row_says_what_needs_none(
    tmp_path,
):
    people(tmp_path / "people.jsonl")
    results = assess(tmp_path, user=script(tmp_path))
    user = by_name(results, "detect")["naturalness"]["user"]
    assert (user["value"], user["n"]) == (None, 0)
    assert "two-sample AUROC" in user["why"]
    page = (tmp_path / "run/report.md").read_text()
    assert "no --detector was given" in page


@pytest.mark.filterwarnings("ignore:pangram is asked at")
def test_a_detector_reads_the_responses_and_is_named_with_its_auroc(pangram, tmp_path):
    people(tmp_path / "people.jsonl")
    with serving(natural) as server:
        pangram(server.url)
        results = assess(tmp_path, user=script(tmp_path), detector="pangram")
        asked = len(server.requests)
        assess(tmp_path, user=script(tmp_path), detector="pangram")
    assert len(server.requests) == asked
    found = by_name(results, "detect")["naturalness"]
    assert (found["user"]["value"], found["human"]["value"]) == (50, 75)
    assert found["user"]["distance"]["value"] == -25
    shown = (tmp_path / "run/report.md").read_text()
    assert "pangram 4.0" in shown
    assert "people from assistants 1.00" in shown
    assert "pangram 4.0" in (tmp_path / "run/report.md").read_text()


@pytest.mark.filterwarnings("ignore:pangram is asked at")
def test_the_calls_of_a_detector_are_in_the_one_budget_and_go_on_with_a_higher_one(
    pangram, tmp_path
):
    people(tmp_path / "people.jsonl")
    given = {"user": script(tmp_path), "detector": "pangram"}
    with serving(natural) as server:
        pangram(server.url)
        results = assess(tmp_path, **given, max_calls=2, workers=1)
        assert results["incomplete"] == ["detect"]
        assert len(server.requests) == 2
        results = assess(tmp_path, **given, max_calls=20)
    assert results["incomplete"] == []
    assert by_name(results, "detect")["naturalness"]["user"]["value"] == 50


@pytest.mark.filterwarnings("ignore:pangram is asked at")
def test_a_detector_that_is_down_fails_its_stage_and_no_other(pangram, tmp_path):
    people(tmp_path / "people.jsonl")
    with serving(lambda *_: Said(503, {"detail": "down"})) as server:
        pangram(server.url)
        with pytest.raises(ModelError, match=r"detect: .* texts ended in an error"):
            assess(tmp_path, user=script(tmp_path), detector="pangram")
    results = read_json(tmp_path / "run/results.json")
    assert results["measures"]["respond"]
    assert by_name(results, "detect")["naturalness"]["user"]["value"] is None


def test_what_is_wrong_with_a_detector_is_said_before_the_first_turn(
    tmp_path, monkeypatch
):
    people(tmp_path / "people.jsonl")
    monkeypatch.delenv("PANGRAM_API_KEY", raising=False)
    wrong = [
        ({"detector": "pangram"}, "PANGRAM_API_KEY"),
        ({"detector": "pangram", "budget": 1.0}, "--detector-price"),
        ({"human_label": "person"}, "--detector"),
        ({"detector": "pangam"}, "did you mean|known are"),
    ]
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            assess(tmp_path, user=script(tmp_path), **options)
        assert not (tmp_path / "run/respond").exists()


def test_each_progress_bar_begins_with_the_stage_that_it_is_of(tmp_path, capsys):
    people(tmp_path / "people.jsonl")
    assess(tmp_path, user=script(tmp_path), assistant="clarifier")
    shown = capsys.readouterr().err
    for stage in ("respond", "simulate", "role", "intent", "score"):
        assert f"\n{stage}: " in f"\n{shown}"


# --- the page -------------------------------------------------------------------------------------


def page_of(folder: Path):
    run = read_run(folder)
    return run, {section.id: section for section in describe([run]).sections}


def test_the_page_begins_with_the_answer_and_results_have_the_same_verdict(tmp_path):
    people(tmp_path / "people.jsonl", 8)
    options = {"user": script(tmp_path), "assistant": "clarifier"}
    results = assess(tmp_path, **options)
    run, sections = page_of(tmp_path / "run")
    order = [name for name in sections if name != "figures"]
    expected = ["found", "pairs", "conversations", "verdict", "published", "assess"]
    assert order[: len(expected)] == expected
    page = (tmp_path / "run/report.md").read_text()
    answer = results["verdict"]["answer"]
    assert "undecided." in answer
    assert page.index("good enough?") < page.index(answer) < page.index("UserLM-8b")
    assert concluded(run).record() == results["verdict"]
    html = (tmp_path / "run/report.html").read_text()
    assert html.count('"anchor":"c-run%2Fsimulate-') == html.count('"anchor":"') == 8


def test_a_user_that_replays_people_is_not_told_from_them_by_any_sentence(tmp_path):
    openers = "how to boil an egg;what is a good soup;fix my python loop;plan a trip"
    said = [line.split() for line in openers.split(";")]
    many = []
    for i in range(40):
        first = " ".join([*said[i % 4], *said[(i // 4) % 4][:2]])
        many.append(person(i, (first, "and then?")[: 1 + i % 2], intent=f"goal {i}"))
    path = tmp_path / "people.jsonl"
    write_conversations(path, many)
    results = assess(tmp_path, user=f"replay:{path}")
    kinds = {one["kind"] for one in results["verdict"]["findings"]}
    assert "bad" not in kinds and "good" in kinds


def test_single_turns_and_whole_conversations_stand_beside_those_of_the_person(
    tmp_path,
):
    people(tmp_path / "people.jsonl", 12)
    assess(tmp_path, user=script(tmp_path), assistant="clarifier")
    run, sections = page_of(tmp_path / "run")
    drawn = [len({person.id for person, _ in pairs}) for pairs in run.drawn.values()]
    assert drawn == [5, 5]  # ten together, and nobody twice in a stage
    groups = sections["pairs"].blocks
    [[responses], [talks]] = [[group.blocks[0].items] for group in groups]
    for one in responses:
        k = len(one.before) // 2
        of_person = ["how to boil an egg", "thanks a lot", "the person wrote no more"]
        of_user = ["boil egg", "thanks", "the user ended the conversation"]
        assert [said.text for said in one.person] == [of_person[k]]
        assert [said.text for said in one.user] == [of_user[k]]
    whole = [said.text for said in talks[0].person]
    assert whole[0] == "how to boil an egg" and whole[-1] == "the person wrote no more"
    assert talks[0].user[0].text == "boil egg"
    page = (tmp_path / "run/report.html").read_text()
    assert page.count('class="sides"') == 10


def test_the_tables_are_written_as_latex_in_which_nothing_of_a_text_is_a_command(
    tmp_path, monkeypatch
):
    people(tmp_path / "people.jsonl", 8)
    monkeypatch.chdir(tmp_path)
    odd = Path(r"a_b%$#{~\input")
    odd.mkdir()
    assess(tmp_path, user=script(odd))
    tables = (tmp_path / "run/report.tex").read_text()
    assert tables.count(r"\toprule") == tables.count(r"\end{table}") > 3
    assert r"UserLM-8b\\(published)" in tables and "set, not measured" in tables
    assert r"a\_b\%\$\#\{\textasciitilde{}\textbackslash{}input" in tables
    assert "\\input" not in tables and tables.isascii()
    assert latex.escape("50 % → 日本") == r"50 \% \texttt{U+2192} \texttt{U+65E5}\texttt{U+672C}"  # fmt: skip


def test_latex_has_the_main_tables_first_and_one_for_each_stage_not_for_each_family(
    tmp_path,
):
    people(tmp_path / "people.jsonl", 8)
    assess(tmp_path, user=script(tmp_path), assistant="clarifier")
    tables = (tmp_path / "run/report.tex").read_text()
    main, _, rest = tables.partition("% The rest")
    begin = r"\begin{table}"
    captions = [one.partition(r"\caption{")[2] for one in main.split(begin)[1:]]
    expected = ["Beside the users", "All measures in", "How far from people"]
    assert [
        one[: len(two)] for one, two in zip(captions, expected, strict=True)
    ] == expected
    # Whole conversations, naturalness, tests, and what it did there.
    assert rest.count(begin) == 4
    assert r"\multicolumn{4}{l}{\emph{How it ends}}" in main


def test_two_users_stand_side_by_side_with_their_difference_on_the_same_people(
    tmp_path,
):
    folders = []
    egg = "how to boil an egg"
    for name, lines in (
        ("a", ("egg", "egg please", "boil egg please")),
        ("b", (egg, "why", "go")),
    ):
        (tmp_path / name).mkdir()
        # Three each say 1, 2 and 3 turns; users are asked at each, and at the end.
        logs = [person(i, ("a", "b", "c")[: 1 + i % 3]) for i in range(9)]
        write_conversations(tmp_path / name / "people.jsonl", logs)
        assess(tmp_path / name, user=script(tmp_path / name, *lines))
        folders.append(tmp_path / name / "run")
    commands.report(commands.Report(folders, tmp_path / "both"))
    page = (tmp_path / "both/report.md").read_text()
    [apart] = page.partition("How far are the users from one another?")[2:]
    # Words of a: 3 in 2 turns (of 3 people), 6 in 3 turns (6 people): 45 in 24, 1.875.
    # Words of b: 6 in 2, 7 in 3: 60 in 24, 2.5; 0.625 less.
    assert "| 1.9 words | 2.5 words | -0.6 (" in apart
    [words] = [line for line in apart.splitlines() if "`words per turn`" in line]
    assert words.endswith(" | 9 |")
    # There are no rows to pair of the diversity of first turns, which do not differ: 0.
    assert "| `first-turn diversity` | 0.0 % | 0.0 % | 0.0 | – |" in apart
    assert "run (2)" in apart
    alone = (folders[0] / "report.md").read_text()
    assert "from one another" not in alone


def test_other_people_with_the_same_ids_are_not_paired(tmp_path):
    folders = []
    for name, said in (("a", ("egg",)), ("b", ("how to boil an egg", "thanks"))):
        (tmp_path / name).mkdir()
        people(tmp_path / name / "people.jsonl", said=said)
        assess(tmp_path / name, user=script(tmp_path / name, "egg"))
        folders.append(tmp_path / name / "run")
    commands.report(commands.Report(folders, tmp_path / "both"))
    page = (tmp_path / "both/report.md").read_text()
    assert "were not measured on the same people" in page
    [apart] = page.partition("How far are the users from one another?")[2:]
    [rate] = [line for line in apart.splitlines() if "`end rate`" in line]
    assert rate.endswith(" | – |")


def test_what_was_not_measured_takes_one_line_of_a_table_and_its_reason_stands_below(
    tmp_path,
):
    people(tmp_path / "people.jsonl", 1)
    assess(tmp_path, user=script(tmp_path))
    page = (tmp_path / "run/report.md").read_text()
    assert "| `first-turn diversity` | not measured | not measured | – |" in page
    assert "no other first turn" in page.partition("What was not measured")[2]


def test_a_report_without_an_assessment_has_no_latex(tmp_path):
    people(tmp_path / "people.jsonl")
    assess(tmp_path, user=script(tmp_path))
    written = commands.report(commands.Report([tmp_path / "run/score"], tmp_path / "r"))
    assert written.keys() == {"html", "md"} and not (tmp_path / "r/report.tex").exists()


def test_a_page_says_what_its_parts_its_scales_and_its_counts_are(tmp_path):
    people(tmp_path / "people.jsonl", 8)
    assess(tmp_path, user=script(tmp_path), assistant="clarifier")
    page = (tmp_path / "run/report.md").read_text()
    html = (tmp_path / "run/report.html").read_text()
    single = "ingle turns, each after a person's real conversation up to there"
    assert f"#### `S{single}`" in page and f"`respond`: s{single}. " in page
    whole = "hole conversations of the user with the assistant"
    assert f"#### `W{whole}`" in page and f"`simulate`: w{whole}. " in page
    assert "`role, intent`: replies to test items. " in page
    assert ">points of percent more or less than people</text>" in html
    assert ", 8 people" in page and ", 2 test items" in page
    for text in (page, html):
        told = re.sub(r"<style>.*?</style>|<script.*?</script>", "", text, flags=re.S)
        assert not re.search("clusters?|by construction", told)


def test_only_what_is_to_be_typed_is_marked_in_a_remedy():
    finding = Finding("bad", "m", "respond", "It is odd: 1", mend="--guard paper, why")
    intents = "other intents (userlm intents --writer MODEL)"
    other = replace(finding, mend=intents, sentence="It is so: 2")
    rest = replace(finding, mend="")
    first, second, last = (
        str(inline(one.line)) for one in verdicts.mends([finding, other, rest])
    )
    assert 'run it with <span class="mend">--guard paper</span>, why.' in first
    assert '(<span class="mend">userlm intents --writer MODEL</span>).' in second
    assert last.startswith("No option mends the rest; another user,")


def test_the_verdict_fits_on_a_screen(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    people(tmp_path / "people.jsonl", 30)
    assess(tmp_path, user=script(tmp_path), assistant="clarifier")
    assert len(capsys.readouterr().out.splitlines()) <= 24


# --- ratings --------------------------------------------------------------------------------------


def rating(n, user="", chosen="human", **given):
    ids = {"pair": n, "id_human": f"c{n}", "id_model": f"c{n}/1"}
    return json.dumps({**ids, "chosen": chosen, "user": user, **given}) + "\n"


def test_ratings_of_other_users_are_left_out_and_counted(tmp_path, capsys):
    """Of its own 10 ratings 5 chose the model; those of others would make it 50 of 60."""
    people(tmp_path / "people.jsonl")
    user = script(tmp_path)
    path = tmp_path / "ratings.jsonl"
    own = [rating(n, user, ("human", "model")[n % 2]) for n in range(10)]
    others = [rating(n, "py:mine:User", "model") for n in range(50)]
    path.write_text("".join(own + others))
    results = assess(tmp_path, user=user, ratings=path)
    [rated] = results["measures"]["ratings"]
    assert (rated["user"]["value"], rated["user"]["n"]) == (50, 10)
    assert results["ratings"]["left_out"] == 50
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "50 of 60 ratings" in told and "but of py:mine:User; they are left out" in told
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"user": "py:mine:User"}, "but of py:mine:User; give those of a blind test"),
        ({"version": "0000"}, "as it was with other files"),
    ],
)
def test_ratings_that_are_all_of_others_are_refused(given, why, tmp_path):
    people(tmp_path / "people.jsonl")
    user = script(tmp_path)
    (tmp_path / "ratings.jsonl").write_text(rating(1, **{"user": user, **given}))
    with pytest.raises(InputError, match=why):
        assess(tmp_path, user=user, ratings=tmp_path / "ratings.jsonl")
    assert not (tmp_path / "run/respond").exists()


def test_ratings_that_do_not_say_their_user_count_and_are_said_to(tmp_path, capsys):
    people(tmp_path / "people.jsonl")
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(rating(n) for n in range(3)))
    results = assess(tmp_path, user=script(tmp_path), ratings=path)
    assert results["measures"]["ratings"][0]["user"]["n"] == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "do not say whose turns were rated" in told
    assert "take those of other users out of the file" in told


def test_ratings_of_people_are_added_to_a_complete_assessment_and_shown(
    tmp_path, capsys
):
    """Of 40 pairs, 4 were taken wrongly: 10 %, 40 points less than if nobody could tell."""
    people(tmp_path / "people.jsonl")
    user = script(tmp_path)
    before = assess(tmp_path, user=user)
    assert "ratings" not in before["measures"]
    answered = (tmp_path / "run/respond/turns.jsonl").read_bytes()
    path = tmp_path / "ratings.jsonl"
    rows = [
        {
            "pair": n,
            "id_human": f"c{n}",
            "id_model": f"c{n}/1",
            "chosen": "model" if n < 4 else "human",
            "rater": f"r{n % 2}",
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = assess(tmp_path, user=user, ratings=path)
    [rated] = results["measures"]["ratings"]
    assert rated["user"]["value"] == 10 and rated["human"] is None
    assert (rated["user"]["n"], results["ratings"]["raters"]) == (40, 2)
    assert rated["user"]["low"] < 10 < rated["user"]["high"] < 50
    said = [one["sentence"] for one in results["verdict"]["findings"]]
    assert any(one.startswith("People tell it from a person") for one in said)
    assert (tmp_path / "run/respond/turns.jsonl").read_bytes() == answered
    page = (tmp_path / "run/report.html").read_text()
    assert "taken for a person" in page and "Blind test" in page
    assert assess(tmp_path, user=user) == results, "they stay"
    with pytest.raises(InputError, match="chosen is 'left'"):
        path.write_text(json.dumps({**rows[0], "chosen": "left"}) + "\n")
        assess(tmp_path, user=user, ratings=path)
