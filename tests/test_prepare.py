"""Rendered conversations on the disk are those in memory."""

import numpy as np

from userlm.flip import render, render_document, transcript, transcript_template
from userlm.training.prepare import is_complete, load, prepare
from userlm.types import Conversation, Turn


def test_rows_come_back_as_they_were_rendered(tiny, slides, tmp_path):
    template = tiny.template()
    long = (
        Conversation("long", intent=slides.intent).say("tell me more " * 12).say("no").say("why?")
    )
    long = long.say("because").close("end")
    for limit in (2048, 150):
        folder = tmp_path / str(limit)
        flips = prepare([slides, long], template, folder, limit)
        expected = [render(conversation, template, limit) for conversation in (slides, long)]
        rows = [row for flipped in expected for row in flipped.rows]
        assert [flips.row(i) for i in range(len(flips.rows))] == rows
        assert flips.dropped == sum(len(flipped.dropped) for flipped in expected)
        assert flips.samples == sum(len(row.targets) for row in rows)
        assert flips.tokens == sum(len(row.ids) for row in rows)
    assert flips.dropped and len(rows) > 2  # the second limit was short


def test_texts_that_are_encoded_together_give_the_same_rows(tiny, slides, tmp_path):
    template = tiny.template()
    asked = []

    def encode_all(texts):
        asked.append(len(texts))
        return [template.encode(text) for text in texts]

    alone = prepare([slides, slides], template, tmp_path / "alone")
    together = prepare([slides, slides], template, tmp_path / "together", encode_all=encode_all)
    assert asked == [7]  # six turns and an intent, each once
    assert (alone.ids == together.ids).all() and (alone.targets == together.targets).all()


def test_conversations_are_numbered_by_those_that_gave_rows_and_the_others_are_counted(
    tiny, slides, tmp_path
):
    greeting = Conversation("greeting", turns=(Turn("assistant", "How can I help?"),), ended=True)
    untold = Conversation("untold").say("hello")
    flips = prepare([greeting, slides, untold], tiny.template(), tmp_path)
    assert (flips.conversations, flips.without_user_turn, flips.without_system_turn) == (2, 1, 1)
    assert np.unique(flips.rows[:, 0]).tolist() == [0, 1]


def test_a_folder_is_complete_when_its_counts_are_written(tiny, slides, tmp_path):
    assert not is_complete(tmp_path)
    flips = prepare([slides], tiny.template(), tmp_path)
    assert is_complete(tmp_path)
    again = load(tmp_path)
    assert again.row(0) == flips.row(0) and again.conversations == 1


def test_no_conversations_give_no_rows(tiny, tmp_path):
    flips = prepare([], tiny.template(), tmp_path)
    assert (flips.samples, flips.tokens, len(flips.rows)) == (0, 0, 0)


def test_documents_come_back_as_they_were_spelled_and_what_is_cut_off_is_counted(
    tiny, slides, tmp_path
):
    template = transcript_template(tiny.encode, (0,), 1)
    texts = [transcript(slides), transcript(Conversation("short").say("hello"))]
    for long in ("truncate", "drop"):
        flips = prepare(
            texts, template, tmp_path / long, 40, long, tiny.encode_all, render_document
        )
        expected = [render_document(text, template, 40, long) for text in texts]
        rows = [row for flipped in expected for row in flipped.rows]
        assert [flips.row(i) for i in range(len(flips.rows))] == rows
        assert (flips.conversations, flips.samples) == (2, len(rows))
        assert flips.dropped == len(expected[0].dropped)
    assert flips.dropped > 1 and len(rows) == 2  # the slides take more than a row
