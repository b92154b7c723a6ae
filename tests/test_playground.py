"""The pages of `userlm serve`: who may call them, what they answer, and what they write."""

import errno
import importlib
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from flat import flat
from playing import LOOPBACK, Page, playing, while_serving

from userlm import Conversation, InputError, ModelError, Reply, Turn, inputs
from userlm.assistants import Clarifier, ModelAssistant, Script
from userlm.commands.options import User, UserSettings, rated_user, recorded
from userlm.commands.respond import Respond
from userlm.commands.respond import respond as respond_command
from userlm.commands.show import describe
from userlm.manifest import request
from userlm.metrics.ratings import RatedUser, Rating, read_ratings, taken_for_person
from userlm.metrics.verdict import finding
from userlm.rows import read_conversations, write_conversations
from userlm.runs import Run, measure_record
from userlm.serving import saved
from userlm.serving.blind import blind_pairs
from userlm.serving.playground import PAGES
from userlm.serving.schema import ServerConfig
from userlm.show import html
from userlm.show.blocks import Group
from userlm.show.finished import read_run
from userlm.show.page import describe as describe_runs
from userlm.simulate import respond
from userlm.text import INTENT_PREFIX
from userlm.types import Completion, Origin, Sampling
from userlm.users import TrainedUser

command = importlib.import_module("userlm.commands.serve")

ROME = INTENT_PREFIX + "plan a trip to Rome."
EMPTY = {"id": "new", "turns": []}
ASKED = {"id": "new", "intent": ROME, "turns": [{"role": "user", "text": "hi"}]}
ANSWERED = {**ASKED, "turns": [*ASKED["turns"], {"role": "assistant", "text": "yes?"}]}


@pytest.fixture
def page(tmp_path):
    speakers = {
        "user": Script(["plan a trip", "in may"]),
        "against": Script(["where to go"]),
        "assistant": Clarifier(),
    }
    with playing(speakers, tmp_path / "saved", guard="no-repeat", intent=ROME) as page:
        yield page


# --- who may call ---------------------------------------------------------------------------------


def test_the_pages_load_nothing_from_elsewhere_and_may_run_nothing_else(page):
    for path in PAGES:
        status, headers, text = page.request(path)
        assert status == 200 and not re.search(r"(https?:)?//[a-z]", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(| on\w+=", text)
        policy = headers["Content-Security-Policy"].split("; ")
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "script-src 'self'" in policy and "connect-src 'self'" in policy
        assert "unsafe" not in str(policy)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert page.request("/playground.html")[0] == 404
    assert page.request("/../../types.py")[0] == 404


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_no_other_site_opens_the_page_or_calls_it(page, site):
    for path in PAGES:
        assert page.request(path, Sec_Fetch_Site=site)[0] == 403
        assert page.request(path, Sec_Fetch_Site="none")[0] == 200
    assert page.call("state", Sec_Fetch_Site=site).startswith("403")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://localhost:3000", "http://127.0.0.1"],
)
def test_only_a_page_of_the_same_host_and_port_may_save(page, origin, tmp_path):
    body = {"conversation": ASKED}
    found = page.call("save", body, Origin=origin)
    assert found.startswith("403") and "page" in found
    assert not (tmp_path / "saved").exists()
    assert page.call("save", body)["id"]


def test_a_call_without_an_origin_or_without_json_is_refused(page):
    body = json.dumps({"conversation": ASKED})
    path = "/playground/save"
    assert page.request(path, "POST", body, Content_Type="application/json")[0] == 403
    assert page.request(path, "POST", body, **page.origin)[0] == 415
    assert page.request(path, "GET", **page.origin)[0] == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "x@localhost"]
)
def test_a_strange_host_name_is_refused_for_pages_and_calls(page, host):
    assert page.request("/", Host=host)[0] == 403
    assert page.call("state", Host=host, Origin=f"http://{host}").startswith("403")


def test_with_a_key_the_page_opens_and_every_call_needs_the_key(tmp_path):
    config = ServerConfig(key="sk-very-secret")
    with playing({"user": Script(["hi"])}, tmp_path, config) as page:
        for path in PAGES:
            status, _, text = page.request(path)
            assert status == 200 and "sk-very-secret" not in text
        assert page.call("state").startswith("401")
        assert page.call("save", {"conversation": ASKED}).startswith("401")
        found = page.call("state", Authorization="Bearer sk-very-secret")
        assert found["names"] and "sk-very-secret" not in str(found)


@pytest.mark.parametrize(
    ("host", "page", "status"),
    [
        ("127.0.0.1", "auto", 200),
        ("127.0.0.1", "off", 404),
        ("0.0.0.0", "auto", 404),
        ("0.0.0.0", "on", 200),
    ],
)
def test_the_page_is_served_to_this_machine_alone_unless_asked(
    host, page, status, tmp_path, monkeypatch, capsys
):
    (tmp_path / "lines.txt").write_text("hi\n", encoding="utf-8")
    found = []
    while_serving(
        monkeypatch,
        lambda _, port: found.append(Page(port).request("/")[0]),
        user=f"script:{tmp_path / 'lines.txt'}",
        host=host,
        page=page,
    )
    shown = " ".join(capsys.readouterr().err.split())
    assert found == [status]
    assert ("playground: http" in shown) == (status == 200)
    assert ("no playground, since others can connect" in shown) == (
        (host, page) == ("0.0.0.0", "auto")
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"blind": "runs/respond"}, "needs both --blind and --reference"),
        ({"reference": "runs/intents"}, "needs both --blind and --reference"),
        ({"page": "off", "assistant": "clarifier"}, "are for the pages"),
        ({"host": "0.0.0.0", "against": "script:x"}, "give --page on"),
        ({"against": "human"}, "--against human: a person cannot be served"),
        ({"assistant": "human"}, "--assistant human: a person cannot be served"),
    ],
)
def test_options_of_pages_that_cannot_be_meant_are_errors(options, why):
    with pytest.raises(InputError, match=why):
        command.serve(flat(command.Serve, user="script:nothing", port=0, **options))


# --- the next turn --------------------------------------------------------------------------------


def test_each_side_takes_its_turn(page):
    found = page.call("ask", {"conversation": EMPTY, "speaker": "user"})
    assert found == {"text": "plan a trip", "stop": None, "meta": {}}
    found = page.call("ask", {"conversation": ANSWERED, "speaker": "user"})
    assert found["text"] == "in may"
    found = page.call("ask", {"conversation": EMPTY, "speaker": "against"})
    assert found["text"] == "where to go"
    found = page.call("ask", {"conversation": ASKED, "speaker": "assistant"})
    assert found["text"] and found["meta"]["stub"] == "clarifier"


def test_a_goal_alone_is_completed_before_the_first_turn_and_the_page_hears_of_it(
    tiny, tmp_path
):
    with playing(
        {
            "user": TrainedUser(
                tiny, tiny.template(), tiny.context_length, Sampling(max_tokens=4)
            )
        },
        tmp_path,
    ) as page:
        body = {"speaker": "user", "conversation": {**EMPTY, "intent": "plan a trip"}}
        assert page.call("ask", body)["intent"] == INTENT_PREFIX + "plan a trip."
        body["conversation"] = {**ANSWERED, "intent": "plan a trip"}  # a stored one
        assert "intent" not in page.call("ask", body)


def test_whatever_code_notes_of_its_turn_the_page_is_answered(tmp_path):
    class Odd:
        def reply(self, conversation):
            return Reply("hi", meta={"b": b"x", "n": float("nan"), "s": {1}})

    with playing({"user": Odd()}, tmp_path) as page:
        found = page.call("ask", {"speaker": "user", "conversation": EMPTY})
    assert found == {
        "text": "hi",
        "stop": None,
        "meta": {"b": "b'x'", "n": None, "s": "{1}"},
    }


def test_the_assistant_sees_neither_intent_nor_profile(tmp_path):
    seen = []

    class Nosy:
        def reply(self, conversation):
            seen.append(conversation)
            return Reply("yes?")

    with playing({"user": Script(["hi"]), "assistant": Nosy()}, tmp_path) as page:
        talk = {**ASKED, "meta": {"condition": "You are from Brazil."}}
        talk["turns"] = [{**ASKED["turns"][0], "meta": {"p_end": 0.5}}]
        page.call("ask", {"conversation": talk, "speaker": "assistant"})
    [said] = seen
    assert (said.intent, said.meta) == (None, {}) and not said.turns[0].meta


def test_each_conversation_is_a_session_of_its_own_to_a_bot(tmp_path):
    """All of them have the id "new" until they are saved, and a bot remembers its sessions."""
    seen = []

    class Bot:
        def reply(self, conversation):
            seen.append(conversation.id)
            return Reply("yes?")

    with playing({"user": Script(["hi"]), "assistant": Bot()}, tmp_path) as page:
        asked = {"conversation": ASKED, "speaker": "assistant"}
        for session in ("a", "a", "b"):
            page.call("ask", {**asked, "session": session})
        assert page.call("ask", {**asked, "session": "x" * 101}).startswith("400")
    assert seen == ["a", "a", "b"]


class Recorder:
    """A model that notes how it is sampled."""

    def __init__(self):
        self.seen = []

    def complete(self, ids, sampling):
        self.seen.append(sampling)
        return Completion("hello there", p_end=0.25)

    def chat(self, messages, sampling):
        self.seen.append(sampling)
        return Completion("yes?")


def test_temperature_threshold_guard_and_seed_of_the_page_hold_for_the_turn(
    tiny, tmp_path
):
    model = Recorder()
    user = TrainedUser(model, tiny.template(), 256, Sampling(max_tokens=8))
    assistant = ModelAssistant(model)
    with playing({"user": user, "assistant": assistant}, tmp_path) as page:
        asked = {"conversation": EMPTY, "speaker": "user", "seed": 7}
        asked |= {
            "temperature": 0.25,
            "end_threshold": 0.5,
            "guard": "words=1-1,tries=2",
        }
        found = page.call("ask", asked)
        assert found["meta"]["p_end"] == 0.25
        assert found["meta"]["violates"] == ["too long"]
        assert [one["text"] for one in found["meta"]["rejected"]] == ["hello there"]
        first, _ = model.seen
        assert (first.temperature, first.end_threshold) == (0.25, 0.5)
        seeds = []
        for seed in (7, 7, 8):
            for speaker, talk in (("user", EMPTY), ("assistant", ASKED)):
                body = {"conversation": talk, "speaker": speaker, "seed": seed}
                page.call("ask", body)
                seeds.append(model.seen[-1].seed)
        assert seeds[:2] == seeds[2:4] and set(seeds[:2]).isdisjoint(seeds[4:])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"conversation": EMPTY, "speaker": "judge"}, "speaker is 'judge'"),
        ({"conversation": ASKED, "speaker": "user"}, "not the user's turn"),
        ({"conversation": EMPTY, "speaker": "assistant"}, "not the assistant's turn"),
        ({"conversation": {"id": "x"}, "speaker": "user"}, "turns"),
        ({"conversation": EMPTY, "speaker": "user", "temperature": -1}, "temperature"),
        ({"conversation": EMPTY, "speaker": "user", "guard": "polite"}, "polite"),
        (
            {"conversation": EMPTY, "speaker": "user", "guard": "no-end"},
            "only for users with a model",
        ),
        (
            {"conversation": {**EMPTY, "intent": "a" * 1_100_000}, "speaker": "user"},
            "shorten them",
        ),
    ],
)
def test_what_cannot_be_answered_is_said_in_words(page, body, why):
    found = page.call("ask", body)
    assert found.startswith("4") and why in found


def test_a_speaker_that_was_not_given_names_its_option_and_a_failed_one_says_why(
    tmp_path,
):
    class Broken:
        def reply(self, conversation):
            raise ModelError("the key was refused")

    with playing({"user": Broken()}, tmp_path) as page:
        asked = {"conversation": ASKED, "speaker": "assistant"}
        assert "start it with --assistant" in page.call("ask", asked)
        asked = {"conversation": EMPTY, "speaker": "against"}
        assert "start it with --against" in page.call("ask", asked)
        found = page.call("ask", {"conversation": EMPTY, "speaker": "user"})
        assert found == "503: the model failed: the key was refused"


def test_the_view_has_the_tokens_that_show_prints(tiny, tmp_path):
    user = TrainedUser(tiny, tiny.template(), 256, Sampling(max_tokens=8))

    def look(talk):
        return describe(talk, tiny, tiny.template(), 256)

    with playing({"user": user}, tmp_path, views={"user": look}) as page:
        blocks = page.call("view", {"conversation": ANSWERED, "speaker": "user"})
        [tokens, samples] = blocks[1]["blocks"]
        text = "".join(token["text"] for token in tokens["tokens"])
        assert ROME in text and {"system", "content", "trained"} <= {
            token["kind"] for token in tokens["tokens"]
        }
        assert "P(end) before it" in samples["head"]
        empty = page.call("view", {"conversation": EMPTY, "speaker": "user"})
        assert empty.startswith("400") and "nothing to see" in empty


def test_of_a_long_conversation_the_view_has_the_first_rows(tiny):
    user = TrainedUser(tiny, tiny.template(), 128, Sampling(max_tokens=8))
    look = command._view(user)
    talk = Conversation("new", intent=ROME)
    long = replace(talk, turns=talk.say("hi").say("yes?").turns * 200)
    *rows, more, later = look(long)[1:]
    assert len([block for block in rows if isinstance(block, Group)]) == 3
    assert "more rows" in more.line and later.line == "Not shown: 200 later turns."


def test_views_are_shown_one_after_the_other_and_keep_no_turn_waiting(tmp_path):
    shown = threading.Event()
    begun = []

    def look(talk):
        begun.append(1)
        assert shown.wait(30)
        return []

    user, asked = Script(["hi"]), {"conversation": ASKED, "speaker": "user"}
    config = ServerConfig(hosts=LOOPBACK, batch=2)
    with (
        playing({"user": user}, tmp_path, config, views={"user": look}) as page,
        ThreadPoolExecutor(3) as pool,
    ):
        views = [pool.submit(page.call, "view", asked) for _ in range(3)]
        found = page.call("ask", {"conversation": EMPTY, "speaker": "user"})
        time.sleep(0.2)
        assert (found["text"], len(begun)) == ("hi", 1)
        shown.set()
        assert [view.result() for view in views] == [[], [], []]


def test_a_guard_of_the_page_is_no_longer_than_one_can_be(page):
    asked = {"conversation": EMPTY, "speaker": "user"}
    digits = page.call("ask", {**asked, "guard": f"words={'1' * 5_000}-"})
    assert digits.startswith("400: guard is") and "2000 characters" in digits
    many = page.call("ask", {**asked, "guard": f"words={'1' * 1_000}-"})
    assert many.startswith("400: ") and "is not a known part" in many


def test_a_view_without_a_model_here_is_refused_in_words(page):
    found = page.call("view", {"conversation": ASKED, "speaker": "user"})
    assert found.startswith("400") and "trained user on this machine" in found


# --- saving ---------------------------------------------------------------------------------------


def test_a_conversation_is_saved_continued_and_saved_in_its_place(page, tmp_path):
    first = page.call("save", {"conversation": ASKED})["id"]
    second = page.call("save", {"conversation": ASKED})["id"]
    loaded = page.call("load", {"id": first})
    talk, version = loaded["conversation"], loaded["version"]
    assert {**talk, "id": "new"} == ASKED
    talk["turns"].append({"role": "assistant", "text": "yes?"})
    again = {"conversation": {**talk, "stop": "end"}, "replaces": version}
    assert page.call("save", again)["id"] == first
    listed = page.call("saved")
    assert [(one["id"], one["turns"]) for one in listed] == [(second, 1), (first, 2)]
    run = Run.read(tmp_path / "saved")
    assert (run.verb, run.results["conversations"]) == ("serve", 2)
    assert run.results["stops"] == {"end": 1, "saved": 1}
    kept = list(read_conversations(run.path("conversations.jsonl")))
    assert [talk.id for talk in kept] == [first, second]
    assert first in html.render(describe_runs([read_run(run.folder)]))


def test_what_another_page_saved_meanwhile_is_not_replaced(page):
    first = page.call("save", {"conversation": ASKED})
    pages = [page.call("load", {"id": first["id"]}) for _ in range(2)]
    for number, loaded in enumerate(pages):
        assert loaded["version"] == first["version"]
        turn = {"role": "assistant", "text": f"page {number}"}
        loaded["conversation"]["turns"].append(turn)
    ids = []
    for loaded in pages:
        talk, version = loaded["conversation"], loaded["version"]
        done = page.call("save", {"conversation": talk, "replaces": version})
        # Each page goes on with its own.
        talk = {**talk, "id": done["id"], "stop": "end"}
        again = page.call("save", {"conversation": talk, "replaces": done["version"]})
        assert again["id"] == done["id"]
        ids.append(again["id"])
    assert ids[0] == first["id"] != ids[1]
    saved = [page.call("load", {"id": id})["conversation"] for id in ids]
    said = [talk["turns"][-1]["text"] for talk in saved]
    assert said == ["page 0", "page 1"]


def test_a_conversation_that_could_not_be_read_again_is_not_saved(page):
    page.call("save", {"conversation": ASKED})
    deep = 0
    for _ in range(400):
        deep = [deep]
    turn = {**ASKED["turns"][0], "meta": {"a": deep}}
    found = page.call("save", {"conversation": {**ASKED, "turns": [turn]}})
    assert found.startswith("400") and "nested more than 200 levels deep" in found
    assert len(page.call("saved")) == 1


def test_where_nothing_can_be_written_the_reason_is_said_and_nothing_is_lost(
    page, tmp_path, monkeypatch
):
    page.call("save", {"conversation": ASKED})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "saved/x")

    with monkeypatch.context() as patched:
        patched.setattr(saved, "write_conversations", full)
        found = page.call("save", {"conversation": ASKED})
    assert found == "507: saved/x: No space left on device; nothing was saved"
    assert Run.read(tmp_path / "saved").results["conversations"] == 1
    page.call("save", {"conversation": ASKED})
    assert len(page.call("saved")) == 2


def test_what_was_saved_is_so_though_its_counts_could_not_be_written(
    tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "saved/results.json")

    pairs = blind_pairs(responses(), LOGS, 0)
    folder = tmp_path / "saved"
    with playing({"user": Script(["hi"])}, folder, pairs=pairs) as page:
        chosen = told(page.call("pair"), "left", rater="ann")
        with monkeypatch.context() as patched:
            patched.setattr(Run, "finish", full)
            assert page.call("save", {"conversation": ASKED})["id"]
            assert page.call("rate", chosen)["rated"] == 1
        page.call("save", {"conversation": ASKED})
    found = Run.read(folder).results
    assert (found["conversations"], found["ratings"]) == (2, 1)


def test_what_was_saved_is_read_for_one_caller_at_a_time_and_keeps_no_turn_waiting(
    tmp_path, monkeypatch
):
    read = threading.Event()
    begun = []

    def conversations(_):
        begun.append(1)
        assert read.wait(30)
        return []

    monkeypatch.setattr(saved.Saved, "conversations", conversations)
    with (
        playing({"user": Script(["hi"])}, tmp_path) as page,
        ThreadPoolExecutor(40) as pool,
    ):
        lists = [pool.submit(page.call, "saved") for _ in range(40)]
        found = page.call("ask", {"conversation": EMPTY, "speaker": "user"})
        time.sleep(0.2)
        reading = len(begun)
        read.set()
        assert all(each.result() == [] for each in lists)
    assert (found["text"], reading) == ("hi", 1)


def test_a_rating_that_is_sent_many_times_at_once_is_one(tmp_path):
    pairs = blind_pairs(responses(), LOGS, 0)
    folder = tmp_path / "saved"
    with (
        playing({"user": Script(["hi"])}, folder, pairs=pairs) as page,
        ThreadPoolExecutor(12) as pool,
    ):
        chosen = told(page.call("pair"), "left", rater="ann")
        found = list(pool.map(lambda _: page.call("rate", chosen), range(24)))
    assert sum(not isinstance(one, str) for one in found) == 1
    assert len((folder / "ratings.jsonl").read_text().splitlines()) == 1


def test_a_report_of_ratings_alone_says_where_they_count(tmp_path):
    folder = tmp_path / "saved"
    pairs = blind_pairs(responses(), LOGS, 0)
    with playing({"user": Script(["hi"])}, folder, pairs=pairs) as page:
        page.call("rate", told(page.call("pair"), "left", rater="ann"))
    with pytest.raises(InputError, match=r"userlm assess --ratings .*ratings\.jsonl"):
        read_run(folder)


def test_a_rating_that_a_crash_cut_off_stops_no_test(tmp_path):
    folder = tmp_path / "saved"
    pairs = blind_pairs(responses(), LOGS, 0)
    with playing({"user": Script(["hi"])}, folder, pairs=pairs) as page:
        page.call("rate", told(page.call("pair"), "left", rater="ann"))
    with (folder / "ratings.jsonl").open("a") as file:
        file.write('{"rater": "a')
    with playing({"user": Script(["hi"])}, folder, pairs=pairs) as page:
        assert page.call("pair")["rated"] == 0


def test_a_link_in_the_folder_or_a_folder_that_is_no_run_is_refused_and_left_as_it_is(
    tmp_path,
):
    other, folder = tmp_path / "keys", tmp_path / "saved"
    other.write_text("a line that is no JSON\n")
    folder.mkdir()
    (folder / "ratings.jsonl").symlink_to(other)
    for problem in ("is not a run folder", "is a link"):
        with pytest.raises(InputError, match=problem):
            saved.Saved(folder)
        (folder / "run.json").write_text("{}")
    assert other.read_text() == "a line that is no JSON\n"


def test_no_id_and_no_call_leads_out_of_the_folder(page, tmp_path):
    for id in ("../../evil", "/etc/passwd", "a/b.jsonl"):
        given = page.call("save", {"conversation": {**ASKED, "id": id}})
        assert given["id"].startswith("playground-")
        assert page.call("load", {"id": id}).startswith("404")
    assert {path.name for path in tmp_path.iterdir()} == {"saved"}
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "run.json",
        "results.json",
        "conversations.jsonl",
        ".lock",
    }
    found = page.call("save", {"conversation": ASKED, "path": "x"})
    assert not isinstance(found, str)  # it has no effect
    assert page.request("/playground/..%2f..%2fsave", "POST")[0] in (403, 404)


def test_a_report_of_saved_conversations_names_no_user_that_it_does_not_know(
    page, tmp_path
):
    page.call("save", {"conversation": ASKED})
    shown = html.render(describe_runs([read_run(tmp_path / "saved")]))
    assert "held in the playground" in shown and "None talks to" not in shown
    assert "<title>saved</title>" in shown


def test_a_folder_of_another_run_is_refused_in_words(tmp_path):
    Run.open(tmp_path / "saved", "score", {}).finish({})
    with playing({"user": Script(["hi"])}, tmp_path / "saved") as page:
        found = page.call("save", {"conversation": ASKED})
        assert found.startswith("400") and "choose another --out" in found


# --- the blind test -------------------------------------------------------------------------------


def log(n, *texts):
    turns = tuple(
        Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)
    )
    return Conversation(f"log-{n}", turns, ROME, ended=len(turns) % 2 == 0)


LOGS = {f"log-{n}": log(n, f"first {n}", "sure", f"person {n}", "ok") for n in range(9)}


def responses():
    """A response to each log at its second turn."""
    user = Script(["first", "model"])
    for one in LOGS.values():
        prefix = replace(
            one,
            id=f"{one.id}/1",
            turns=one.turns[:2],
            ended=False,
            origin=Origin(one.id, 1, one.turns[2].text, False),
        )
        yield respond(user, prefix)


def test_a_pair_of_responses_shows_the_same_turns_before_and_never_whose_is_which():
    pairs = blind_pairs(responses(), LOGS, 0)
    assert len(pairs) == 9
    assert {one.human_side for one in pairs} == {"left", "right"}
    assert [one.id_human for one in pairs] != sorted(LOGS)
    for one in pairs:
        shown = one.shown()
        n = one.id_human[-1]
        assert [text for _, text in shown["before"]] == [f"first {n}", "sure"]
        sides = {shown["left"][0][1], shown["right"][0][1]}
        assert sides == {f"person {n}", "model"}
        assert shown[one.human_side] == [("user", f"person {n}")]
        assert set(shown) == {"intent", "before", "left", "right"}
    assert blind_pairs(responses(), LOGS, 0) == pairs
    assert blind_pairs(responses(), LOGS, 1) != pairs


def test_whole_conversations_are_cut_to_as_many_turns_without_a_reason_to_stop():
    talk = log(0, "a", "b").close("max_turns")
    talk = replace(talk, id="log-0#0", origin=Origin("log-0"))
    failed = replace(talk, id="log-1#0", stop="error", origin=Origin("log-1"))
    stranger = replace(talk, id="x#0", origin=Origin("x"))
    [one] = blind_pairs([talk, failed, stranger], LOGS, 0)
    assert (one.human, one.model) == ([("user", "first 0")], [("user", "a")])


def test_an_end_looks_the_same_on_both_sides():
    ended = Conversation(
        "log-0/2",
        LOGS["log-0"].turns,
        ROME,
        origin=Origin("log-0", 2, None, True),
        meta={"end_meta": {"p_end": 0.9}},
    ).close("end")
    [one] = blind_pairs([ended], LOGS, 0)
    assert one.human == one.model == [("end", "(ends the conversation here)")]


def test_a_run_that_starts_from_other_logs_is_an_error():
    with pytest.raises(InputError, match="none of its conversations starts from one"):
        blind_pairs(responses(), {}, 0)


def told(shown, side, **given):
    """What the page sends about the pair that it shows."""
    return {"test": shown["test"], "id": shown["id"], "side": side, **given}


def test_ratings_are_written_as_rows_are_given_and_a_pair_is_rated_once(tmp_path):
    pairs = blind_pairs(responses(), LOGS, 0)
    folder = tmp_path / "saved"
    rated = RatedUser("trained:x", "1f")
    with playing({"user": Script(["hi"])}, folder, pairs=pairs, rated=rated) as page:
        first = page.call("pair", {"rater": "ann"})
        assert (first["pair"], first["of"], first["rated"]) == (1, 9, 0)
        chosen = told(first, pairs[0].human_side, rater="ann")
        second = page.call("rate", chosen)
        assert second["pair"] == 2
        assert page.call("rate", chosen).startswith("409")
        wrong = "left" if pairs[1].human_side == "right" else "right"
        page.call("rate", told(second, wrong, rater="ann", answers=True))
        assert page.call("pair", {"rater": "bob"})["pair"] == 1
        assert page.call("rate", {**chosen, "rater": "x" * 101}).startswith("400")
    with playing({"user": Script(["hi"])}, folder, pairs=pairs[:2]) as page:
        done = page.call("pair", {"rater": "ann"})
        assert done == {"pair": None, "of": 2, "rated": 2, "taken": 1}
    rows = [json.loads(line) for line in (folder / "ratings.jsonl").open()]
    assert rows[0] == {
        "pair": 1,
        "id_human": pairs[0].id_human,
        "id_model": pairs[0].id_model,
        "chosen": "human",
        "rater": "ann",
        "answers": False,
        "shown": pairs[0].id,
        "user": "trained:x",
        "version": "1f",
    }
    assert (rows[1]["chosen"], rows[1]["answers"]) == ("model", True)
    assert Run.read(folder).results["ratings"] == 2


def test_a_test_of_another_user_on_the_same_logs_begins_without_any_rating(tmp_path):
    """Ids of responses are those of the logs, so both users' responses have the same."""
    others = [
        replace(one, turns=(*one.turns[:-1], Turn("user", "another")))
        for one in responses()
    ]
    folder = tmp_path / "saved"
    for talks in (responses(), others):
        pairs = blind_pairs(talks, LOGS, 0)
        with playing({"user": Script(["hi"])}, folder, pairs=pairs) as page:
            shown = page.call("pair", {"rater": "ann"})
            assert shown["rated"] == 0
            while shown["pair"]:
                shown = page.call("rate", told(shown, "left", rater="ann"))
            assert shown["rated"] == 9
    assert len(read_ratings(folder / "ratings.jsonl")) == 18


def test_what_two_users_say_alike_is_rated_for_each_of_them(tmp_path):
    pairs = blind_pairs(responses(), LOGS, 0)[:1]
    folder = tmp_path / "saved"
    for user in (RatedUser("a", "1f"), RatedUser("b"), RatedUser("a", "2e")):
        with playing({"user": Script(["hi"])}, folder, pairs=pairs, rated=user) as page:
            shown = page.call("pair", {"rater": "ann"})
            assert (shown["pair"], shown["rated"]) == (1, 0)
            answer = told(shown, "left", rater="ann")
            assert page.call("rate", answer)["rated"] == 1
            assert page.call("rate", answer).startswith("409")
    rated = [rating.of for rating in read_ratings(folder / "ratings.jsonl")]
    assert rated == [RatedUser("a", "1f"), RatedUser("b"), RatedUser("a", "2e")]


def test_a_page_that_was_open_while_the_sides_changed_rates_nothing(tmp_path):
    """Of the second seed another pair is the first, and some sides are exchanged."""
    folder = tmp_path / "saved"
    user = {"user": Script(["hi"])}
    before, after = (blind_pairs(responses(), LOGS, seed) for seed in (0, 1))
    with playing(user, folder, pairs=before) as page:
        first = page.call("pair", {"rater": "ann"})
        second = page.call("rate", told(first, "left", rater="ann"))
    with playing(user, folder, pairs=after) as page:
        refused = page.call("rate", told(second, "left", rater="ann"))
        assert refused.startswith("409: the test was started anew")
        assert page.call("pair", {"rater": "ann"})["rated"] == 1, "what was rated stays"
    assert len(read_ratings(folder / "ratings.jsonl")) == 1


def test_ratings_of_an_older_version_are_read_and_said_not_to_count(tmp_path, capsys):
    pairs = blind_pairs(responses(), LOGS, 0)
    row = {"pair": 1, "id_human": pairs[0].id_human, "id_model": pairs[0].id_model}
    Run.open(tmp_path, "serve", {}).finish({})
    (tmp_path / "ratings.jsonl").write_text(json.dumps({**row, "chosen": "human"}))
    command._show_nameless(saved.Saved(tmp_path), RatedUser("trained:x"))
    told = " ".join(capsys.readouterr().err.split())
    assert "1 rating" in told and "do not count in this test" in told
    with playing({"user": Script(["hi"])}, tmp_path, pairs=pairs) as page:
        assert page.call("pair", {"rater": ""})["rated"] == 0


def test_whose_turns_are_rated_is_known_of_a_run_and_not_of_a_file(tmp_path):
    write_conversations(tmp_path / "people.jsonl", LOGS.values())
    (tmp_path / "said.txt").write_text("hi\n")
    user = f"script:{tmp_path / 'said.txt'}"
    out = tmp_path / "respond"
    respond_command(
        flat(Respond, user=user, data=tmp_path / "people.jsonl", out=out, limit=2)
    )
    found = command._rated_user(out / "conversations.jsonl")
    assert found.name == user and found.version
    assert found.may_be(RatedUser(user)) and not found.may_be(RatedUser(user, "2e"))
    assert command._rated_user(tmp_path / "people.jsonl") == RatedUser()


def test_a_user_is_known_by_what_it_is_and_not_by_how_it_is_spelled(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("said.txt").write_text("hi\n")
    Path("same").mkdir()
    Path("same/as.txt").write_text("hi\n")
    Path("other.txt").write_text("hello\n")

    def of(user, **settings):
        whose = User(user, UserSettings(**settings))
        return rated_user(request("respond", recorded(whose), whose.files, {}))

    one = of("script:said.txt", guard="no-end,no-echo")
    assert one.may_be(of("script:./same/as.txt", guard="no-echo,no-end"))
    assert not one.may_be(of("script:said.txt"))
    assert not one.may_be(of("script:other.txt", guard="no-end,no-echo"))
    assert not of("script:said.txt", top_p=0.5).may_be(of("script:said.txt", top_p=1))
    assert not of("human").may_be(of("single"))


def test_a_user_on_the_hub_is_known_by_its_name_too(monkeypatch):
    """The hashes of the prompts of both are the same."""

    def of(user):
        stamps = inputs.stamps(user)
        return rated_user(request("respond", recorded(User(user)), (), stamps))

    assert of("prompted:some/model").version
    assert not of("prompted:some/model").may_be(of("prompted:another/model"))


def test_a_server_without_a_blind_test_says_how_to_have_one(page):
    found = page.call("pair", {"rater": ""})
    assert found.startswith("404") and "--blind RUN --reference LOGS" in found


def test_the_pairs_of_a_run_folder_are_those_of_the_command(tmp_path):
    write_conversations(tmp_path / "people.jsonl", LOGS.values())
    write_conversations(tmp_path / "said.jsonl", responses())
    options = flat(
        command.Serve,
        user="script:x",
        blind=tmp_path / "said.jsonl",
        reference=tmp_path / "people.jsonl",
        seed=3,
    )
    assert command._pairs(options) == blind_pairs(responses(), LOGS, 3)


def test_conversations_that_the_blind_test_leaves_out_are_counted(tmp_path, capsys):
    write_conversations(tmp_path / "people.jsonl", LOGS.values())
    strange = [Conversation("x", (Turn("user", "hi"),)), *responses()]
    write_conversations(tmp_path / "said.jsonl", strange)
    files = {"blind": tmp_path / "said.jsonl", "reference": tmp_path / "people.jsonl"}
    pairs = command._pairs(flat(command.Serve, user="script:x", **files))
    shown = " ".join(capsys.readouterr().err.split())
    left_out = len(strange) - len(pairs)
    assert left_out and f"leaves out {left_out} conversation" in shown


# --- ratings as a measure -------------------------------------------------------------------------


def test_the_measure_of_ratings_is_the_share_taken_for_the_person():
    """10 pairs; of 12 ratings, 3 chose the model: 25 %. Two pairs were rated twice, so the
    interval is over 10 clusters."""
    ratings = [
        Rating(n % 10 + 1, f"h{n % 10}", f"m{n % 10}", "model" if n < 3 else "human")
        for n in range(12)
    ]
    found = taken_for_person(ratings)
    assert found.value == 25.0 and (found.n, found.clusters) == (12, 10)
    assert found.low is not None and 0 < found.low < 25 < found.high < 70


def test_users_who_are_told_from_people_are_said_to_be_so_and_50_percent_is_fine():
    def said(wrong, total):
        chosen = ["model"] * wrong + ["human"] * (total - wrong)
        ratings = [Rating(n, f"h{n}", f"m{n}", one) for n, one in enumerate(chosen)]
        user = measure_record(taken_for_person(ratings)) | {
            "better": "higher",
            "unit": "%",
        }
        return finding("ratings", user, None, {"measures": {}}, {})

    told = said(10, 100)
    assert told.kind == "bad"
    assert told.sentence.startswith(
        "People tell it from a person: it was taken for one in 10 % of ratings; if nobody could "
    )
    assert said(50, 100).kind == "good"
    assert said(3, 6).kind == "unknown"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"pair": 1, "id_human": "a", "id_model": "b", "chosen": "left"}, "chosen is"),
        ({"pair": 1, "id_human": "a", "chosen": "human"}, "id_model"),
        ({"pair": "1", "id_human": "a", "id_model": "b", "chosen": "human"}, "pair"),
    ],
)
def test_a_file_that_has_no_ratings_is_an_error_that_names_the_line(row, why, tmp_path):
    path = tmp_path / "ratings.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"line 1: .*{why}"):
        read_ratings(path)
