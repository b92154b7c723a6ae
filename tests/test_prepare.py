"""Rendered conversations on the disk are those in memory."""

from dataclasses import replace

import numpy as np
import pytest

from userlm.flip import (
    render,
    render_document,
    swap_roles,
    transcript,
    transcript_template,
)
from userlm.training.prepare import is_complete, load, prepare, training_view
from userlm.types import Conversation, InputError, Turn


def test_rows_come_back_as_they_were_rendered(tiny, slides, tmp_path):
    template = tiny.template()
    long = (
        Conversation("long", intent=slides.intent)
        .say("tell me more " * 12)
        .say("no")
        .say("why?")
    )
    long = long.say("because").close("end")
    for limit in (2048, 150):
        folder = tmp_path / str(limit)
        dataset = prepare([slides, long], template, folder, limit)
        expected = [
            render(conversation, template, limit) for conversation in (slides, long)
        ]
        rows = [row for rendered in expected for row in rendered.rows]
        assert [dataset.row(i) for i in range(len(dataset.rows))] == rows
        assert dataset.dropped == sum(len(rendered.dropped) for rendered in expected)
        assert dataset.samples == sum(len(row.spans) for row in rows)
        assert dataset.tokens == sum(len(row.ids) for row in rows)
    assert dataset.dropped and len(rows) > 2  # the second limit was short


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_samples_are_counted_before_and_after_the_limit_under_both_policies(
    tiny, tmp_path, overlong
):
    template = tiny.template()
    # Three turns and the end. The second turn alone is longer than a row; without its context the
    # third fits, and so does the end.
    log = Conversation("c").say("hi").say("yes?").say("why " * 300).say("so").say("ok")
    log = log.say("fine").close("end")
    found = prepare([log], template, tmp_path, 200, overlong)
    assert found.sample_counts == {"all": 4, "truncate": 3, "drop": 1}
    assert found.samples == found.sample_counts[overlong]


def test_texts_that_are_encoded_together_give_the_same_rows(tiny, slides, tmp_path):
    template = tiny.template()
    asked = []

    def encode_all(texts):
        asked.append(len(texts))
        return [template.encode(text) for text in texts]

    alone = prepare([slides, slides], template, tmp_path / "alone")
    together = prepare(
        [slides, slides], template, tmp_path / "together", encode_all=encode_all
    )
    assert asked == [7]  # six turns and an intent, each once
    assert (alone.ids == together.ids).all() and (
        alone.targets == together.targets
    ).all()


def test_conversations_are_numbered_by_those_that_gave_rows_and_the_others_are_counted(
    tiny, slides, tmp_path
):
    greeting = Conversation(
        "greeting", turns=(Turn("assistant", "How can I help?"),), ended=True
    )
    without_intent = Conversation("without_intent").say("hello")
    dataset = prepare([greeting, slides, without_intent], tiny.template(), tmp_path)
    assert (
        dataset.conversations,
        dataset.without_user_turn,
        dataset.without_system_turn,
    ) == (
        2,
        1,
        1,
    )
    assert np.unique(dataset.rows["conversation"]).tolist() == [0, 1]


def test_a_folder_is_complete_when_its_counts_are_written(tiny, slides, tmp_path):
    assert not is_complete(tmp_path)
    dataset = prepare([slides], tiny.template(), tmp_path)
    assert is_complete(tmp_path)
    again = load(tmp_path)
    assert again.row(0) == dataset.row(0) and again.conversations == 1


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("rows.npy", b"\x93NUMPY"),
        ("targets.npy", np.array([print, {}])),  # holds a pickle
        ("targets.npy", np.array([1.5])),
        ("counts.json", b"[]"),
        ("counts.json", b'{"dropped'),
        ("ids.bin", b""),
    ],
)
def test_a_damaged_folder_is_named_and_no_pickle_is_loaded(
    tiny, slides, tmp_path, name, contents
):
    prepare([slides], tiny.template(), tmp_path)
    if isinstance(contents, bytes):
        (tmp_path / name).write_bytes(contents)
    else:
        np.save(tmp_path / name, contents)
    with pytest.raises(InputError, match=r"is damaged \(.*another --out"):
        load(tmp_path)


def test_no_conversations_give_no_rows(tiny, tmp_path):
    dataset = prepare([], tiny.template(), tmp_path)
    assert (dataset.samples, dataset.tokens, len(dataset.rows)) == (0, 0, 0)


def test_documents_come_back_as_they_were_rendered_and_what_is_cut_off_is_counted(
    tiny, slides, tmp_path
):
    template = transcript_template(tiny.encode, (0,), 1)
    logs = [slides, Conversation("short").say("hello")]
    texts = [transcript(log.without_system()) for log in logs]
    for overlong in ("truncate", "drop"):
        folder = tmp_path / overlong
        dataset = prepare(logs, template, folder, 40, overlong, tiny.encode_all, "both")
        expected = [render_document(text, template, 40, overlong) for text in texts]
        rows = [row for rendered in expected for row in rendered.rows]
        assert [dataset.row(i) for i in range(len(dataset.rows))] == rows
        assert (dataset.conversations, dataset.samples) == (2, len(rows))
        assert dataset.dropped == len(expected[0].dropped)
    assert dataset.dropped > 1 and len(rows) == 2  # the slides take more than a row


def test_a_side_sees_its_own_view_of_a_conversation(slides):
    told = replace(slides, meta={"condition": "The user is in a hurry."})
    assert training_view(told, "user") == told
    assert training_view(told, "user", intent=False) == told.without_system()
    assert training_view(told, "user", intent=False).system is None
    assert training_view(told, "assistant") == swap_roles(told)
    assert training_view(told, "both") == transcript(told.without_system())


def test_without_intent_a_row_starts_with_the_user_turn(tiny, slides, tmp_path):
    told = replace(slides, meta={"condition": "The user is in a hurry."})
    template = tiny.template()
    dataset = prepare([told], template, tmp_path, intent=False)
    row = dataset.row(0)
    header = template.headers["user"]
    assert row.ids[: len(header)] == header
    assert row == render(told.without_system(), template).rows[0]
    assert dataset.without_system_turn == 1
