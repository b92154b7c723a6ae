"""The content of a message: what was said, what was thought, and what tools did."""

import json
import time

import pytest

from userlm.content import read_parts, split_content


@pytest.mark.parametrize(
    "content",
    [
        "Good day.",
        ["Good day."],
        {"type": "text", "text": "Good day."},
        {"content_type": "text", "parts": ["Good day."]},
        [{"type": "text", "text": "Good day."}],
        [{"type": "output_text", "text": "Good day.", "annotations": []}],
        [{"type": "text", "text": {"value": "Good day.", "annotations": []}}],
        [{"type": "text", "content": "Good day."}],
        [{"type": "refusal", "refusal": "Good day."}],
        [{"type": "audio", "audio": {"transcript": "Good day."}}],
        [{"text": "Good day.", "thought": False, "thoughtSignature": "c2lnbg=="}],
    ],
)
def test_what_was_said_is_found_in_every_shape(content):
    assert split_content(content) == ("Good day.", "")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "Be kind.", "signature": "c2lnbg=="},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Be kind."}]},
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "Be kind."}],
        },
        {"type": "reasoning", "text": "Be kind."},
        {"type": "reasoning_content", "reasoning_content": {"text": "Be kind."}},
        {"reasoningContent": {"reasoningText": {"text": "Be kind."}}},
        {"text": "Be kind.", "thought": True},
        {"content_type": "thoughts", "thoughts": [{"content": "Be kind."}]},
    ],
)
def test_a_thought_is_not_said(part):
    assert split_content([part, "Good day."]) == ("Good day.", "Be kind.")


def test_a_text_that_is_nested_deep_is_not_copied_at_each_level_but_left_out():
    part = "é" * 8_000_000
    for _ in range(300):
        part = {"value": "z", "text": part}
    begun = time.process_time()
    parts = read_parts([{"type": "text", "text": part}])
    assert time.process_time() - begun < 1  # it was 2 s
    assert (parts[0].text, len(parts)) == ("z", 1)
    lists = json.loads("[" * 600 + '"a"' + "]" * 600)
    assert [part.kind for part in read_parts([{"text": lists}])] == ["other"]


def test_a_redacted_thought_has_no_words():
    part = {"type": "redacted_thinking", "data": "c2VjcmV0"}
    assert split_content([part, "Good day."]) == ("Good day.", "")


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "tool_use", "name": "search", "input": {}}, "call"),
        ({"type": "server_tool_use", "name": "web_search"}, "call"),
        ({"type": "tool-call", "toolName": "search"}, "call"),
        ({"type": "tool-search", "state": "input-available"}, "call"),
        ({"toolUse": {"name": "search"}}, "call"),
        ({"functionCall": {"name": "search"}}, "call"),
        ({"executableCode": {"code": "1 + 1"}}, "call"),
        ({"type": "tool_result", "content": [{"type": "text", "text": "7"}]}, "result"),
        ({"type": "web_search_tool_result", "content": []}, "result"),
        ({"type": "function_call_output", "output": "7"}, "result"),
        ({"toolResult": {"content": [{"text": "7"}]}}, "result"),
        ({"functionResponse": {"name": "search", "response": {}}}, "result"),
        ({"type": "image_url", "image_url": {"url": "https://example.org"}}, "other"),
        ({"type": "input_audio", "input_audio": {"data": "UklGRg=="}}, "other"),
        ({"type": "blob", "content": "UklGRg=="}, "other"),
        ({"type": "file", "file": {"filename": "a.pdf"}}, "other"),
        ({"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}}, "other"),
        (7, "other"),
    ],
)
def test_tools_and_parts_without_words_are_skipped(part, kind):
    assert [found.kind for found in read_parts([part])] == [kind]
    assert split_content([part, "Good day."]) == ("Good day.", "")


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        ({"text": "short", "content": "the long answer"}, ["speech"]),
        ([{"type": "text", "text": "a", "refusal": "b"}], ["speech"]),
        ({"parts": ["short"], "text": "the long answer"}, ["speech", "other"]),
        ({"type": "reasoning", "text": "a", "summary": "b"}, ["thought"]),
        ({"type": "text", "text": "a", "thinking": "b"}, ["speech", "other"]),
        ({"text": "the same", "value": "the  same", "content": ""}, ["speech"]),
    ],
)
def test_words_in_a_second_field_of_a_part_are_counted_as_left_out(content, kinds):
    assert [part.kind for part in read_parts(content)] == kinds


def test_a_result_in_several_fields_is_kept_whole():
    part = {"type": "tool_result", "output": "7", "content": "seven"}
    assert json.loads(read_parts(part)[0].text) == part


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["On the page, ", "grass is green", "."], "On the page, grass is green."),
        (["Grass", " ", "is green"], "Grass is green"),
        (["Two files", ".env", ", and one more"], "Two files\n\n.env, and one more"),
        (
            [" ", "Grass is green.", "The sky is blue."],
            "Grass is green.\n\nThe sky is blue.",
        ),
    ],
)
def test_no_empty_line_is_put_into_a_sentence(texts, said):
    parts = [{"type": "text", "text": text, "citations": None} for text in texts]
    assert split_content(parts) == (said, "")


def test_parts_are_joined_with_an_empty_line():
    assert split_content(["One.", {"text": "Two."}]) == ("One.\n\nTwo.", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"text": "Short.", "content": "The long answer."},
            "Short.\n\nThe long answer.",
        ),
        ({"text": "Same.", "content": "Same."}, "Same."),
        ({"text": "", "content": "Only here."}, "Only here."),
        ([{"type": "text", "text": "A.", "refusal": "B."}], "A.\n\nB."),
        ({"type": "audio", "transcript": "Hi.", "audio": "UklGRg=="}, "Hi."),
        ({"text": ""}, ""),
    ],
)
def test_the_words_of_all_fields_of_a_part_are_kept(content, said):
    assert split_content(content) == (said, "")


def test_a_thought_and_its_summary_are_kept():
    part = {"type": "reasoning", "summary": [{"text": "In short."}], "content": "Long."}
    assert split_content([part]) == ("", "Long.\n\nIn short.")


def test_no_content_has_no_words():
    assert split_content(None) == ("", "")
    assert split_content([]) == ("", "")


def test_the_type_of_a_part_takes_no_time_however_long():
    begun = time.process_time()
    assert split_content([{"type": "tool" * 40_000, "text": "hello"}]) == ("", "")
    assert split_content([{"tool" * 40_000: "hello"}]) == ("", "")
    assert time.process_time() - begun < 2  # it was minutes
