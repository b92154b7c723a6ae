"""The form of an answer: words, or JSON by a schema of the request (`response_format`, or a tool).

A user says words and may end the conversation. So the schema must have a field for the words, and
may have one that is true at the end; what else it requires must be something that a user can leave
open. Nothing is made up to satisfy a schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from userlm.content import joined, read_parts
from userlm.serving.schema import ChatRequest, NamedTool, RequestError, Tool
from userlm.text import END_SAYS

Schema = Mapping[str, Any]

WORDS = (
    *("message", "user_message", "next_message", "simulated_input", "content", "text"),
    *("utterance", "response", "reply", "user_input", "input", "query", "answer", "question"),
)  # fmt: skip
"""Names of a field for the words, the likeliest first."""

_END = re.compile(
    r"(?:(?:is|has|should|user|conversation|chat|dialogue|goal|task)_)*"
    r"(?:stop|stopped|done|end|ended|end_conversation|end_chat|finish|finished|over|complete|"
    r"completed|reached|achieved|met|satisfied|terminate|terminated|quit|exit|leave|hang_up)"
)
_THOUGHT = re.compile(
    r"(?:\w+_)?(?:reason(?:s|ing)?|thoughts?|thinking|rationale|explanation|analysis)"
)
_LIMITS = {"enum", "const", "pattern", "format", "maxLength", "not", "if", "allOf"}
"""Keywords with which not every text fits."""
_COMBINED = {
    *("anyOf", "oneOf", "allOf", "not", "if", "minProperties", "propertyNames"),
    *("patternProperties", "dependentRequired", "dependentSchemas", "dependencies"),
}
_MAX_REFERENCES = 8
_MAX_DEPTH = 32
"""Names in a reference."""

MAX_SCHEMA = 100_000
"""Characters of a schema as JSON; OpenAI allows 120,000 of names and values."""
MAX_COPIED = 20_000
"""Fields that are copied while a schema is read: references and alternatives multiply what it has,
and each other."""
MAX_ADDED = 4_000
"""Characters that a form adds to the words, in each choice of an answer."""


@dataclass(frozen=True, slots=True)
class Form:
    """Which fields of a JSON object have what the user says.

    Attributes:
        words: the name of the field for the words.
        wordless: what it has if there are none.
        in_list: whether it is a list, with the words as its only item.
        block: that item is an object with these fields beside `text`; `None`: it is a text.
        end: the name of the field that is true at the end; `None` if there is none.
        others: the fields that are required beside, and their values.
        tool: the tool that is called with the object; `None` if it is the content.
    """

    words: str
    wordless: str | None = ""
    in_list: bool = False
    block: Mapping[str, str] | None = None
    end: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    tool: str | None = None

    def filled(self, words: str, ended: bool) -> str:
        """Return the JSON object for what the user says."""
        found = {**self.others, self.words: self._said(words or self.wordless)}
        if self.end:
            found[self.end] = ended
        return json.dumps(found, ensure_ascii=False)

    def _said(self, words: str | None) -> Any:
        if not self.in_list or words is None:
            return words
        item = words if self.block is None else {**self.block, "text": words}
        return [item] if words else []

    def read(self, text: str) -> str:
        """Return the words in such an object, as in the history of a harness; no words if it says
        that the user ended the conversation. A text that is no such object is returned as it is."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if not isinstance(found, dict) or self.words not in found:
            return text
        is_end = self.end is not None and found.get(self.end) is True
        if is_end:
            return ""
        said = found[self.words]
        if isinstance(said, list):
            return joined(read_parts(said), "speech")
        return str(said or "")


def form_of(request: ChatRequest, system: str) -> tuple[Form | None, list[str]]:
    """Return the form that a request asks for, `None` for plain words, and notes.

    Raises:
        RequestError: if the request needs more than what a user says.
    """
    format = request.response_format
    if format and format.type == "json_object":
        raise RequestError(
            400,
            "response_format is json_object, which does not say where the user's words go; use "
            "json_schema, with a text field and a boolean for the end",
            "response_format",
        )
    tool, notes = _answer_tool(request, system)
    if tool and tool.function:
        where = f"the tool {tool.name!r}"
        return _form(tool.function.parameters or {}, where, "tools", tool.name), notes
    if format and format.type == "json_schema":
        schema = format.json_schema.schema_ if format.json_schema else {}
        return _form(schema, "response_format", "response_format"), notes
    return None, notes


# --- tools ----------------------------------------------------------------------------------------

_USES_TOOLS = re.compile(
    r"\b(?:you have|use|using|call|calling)\b[^.\n]{0,40}\btools?\b|\btool[ -]calls?\b",
    re.IGNORECASE,
)


def _answer_tool(request: ChatRequest, system: str) -> tuple[Tool | None, list[str]]:
    """Return the tool that is the form of the answer, and notes on those that are left out."""
    tools = request.tools or []
    choice = request.tool_choice
    if choice == "required" or isinstance(choice, NamedTool):
        return _required(tools, choice), []
    if not tools:
        return None, []
    forms = [tool for tool in tools if _has_form(tool)]
    if len(forms) == 1 and choice != "none":
        return forms[0], [f"the answer is a call of the tool {forms[0].name!r}"]
    if choice != "none" and _USES_TOOLS.search(system):
        raise _no_tools("the prompt tells the user to use tools")
    return None, [f"tools were left out ({len(tools)}): a simulated user only talks"]


def _required(tools: Sequence[Tool], choice: str | NamedTool) -> Tool:
    named = choice.function.name if isinstance(choice, NamedTool) else None
    chosen = [tool for tool in tools if tool.name and named in (None, tool.name)]
    if named is None and len(chosen) > 1:
        chosen = list(filter(_has_form, chosen))
    if len(chosen) != 1:
        what = "one of several tools" if named is None else f"the tool {named!r}"
        raise _no_tools(f"tool_choice requires {what}")
    return chosen[0]


def _has_form(tool: Tool) -> bool:
    """Whether a tool takes what a user says, and whether that is the end."""
    if tool.function is None:
        return False
    try:
        return _form(tool.function.parameters or {}, "", "tools").end is not None
    except RequestError:
        return False


def _no_tools(why: str) -> RequestError:
    return RequestError(
        400,
        f"{why}, and a simulated user has none: it only talks; serve tasks whose user only talks, "
        "or give one tool with a text field for its words and a boolean for the end",
        "tools",
        "user_tools",
    )


# --- schemas --------------------------------------------------------------------------------------


def _form(schema: Schema, where: str, param: str, tool: str | None = None) -> Form:
    """Return the form of a schema; raise `RequestError` for a schema that a user cannot fill."""

    def refused(why: str) -> RequestError:
        message = (
            f"{where}: {why}; a simulated user can fill a text field such as `message`, a boolean "
            "such as `stop` for the end, and what may be null or has a default"
        )
        return RequestError(400, message, param)

    if _length(schema) > MAX_SCHEMA:
        raise refused(f"its schema has more than {MAX_SCHEMA:,} characters")
    root = _Root(schema, refused)
    whole = _followed(schema, root)
    fields = whole.get("properties")
    if not isinstance(fields, dict) or _COMBINED & whole.keys():
        raise refused("it is no plain object with properties")
    options = {name: _options(each, root) for name, each in fields.items()}
    words = _words_field(options, root)
    if words is None:
        raise refused("it has no field that is clearly for the user's words")
    ends = [name for name in options if _is_end(name, options[name])]
    others: dict[str, Any] = {}
    missing: list[str] = []
    for name in _items(whole, "required"):
        if name == words or name in ends[:1]:
            continue
        values: list[Any] = []
        if isinstance(name, str):
            values = _values(name, options.get(name, []), fields.get(name))
        if values:
            others[name] = values[0]
        else:
            missing.append(str(name))
    if missing:
        raise refused(f"a user has nothing for the required {', '.join(missing)}")
    wordless: str | None = ""
    if any(each.get("minLength") or each.get("minItems") for each in options[words]):
        wordless = END_SAYS
    if any(each.get("type") == "null" for each in options[words]):
        wordless = None
    item = _list_item(options[words], root)
    form = Form(
        words,
        wordless,
        item is not None,
        _block(item, root) if item else None,
        next(iter(ends), None),
        others,
        tool,
    )
    if len(form.filled("", True)) > MAX_ADDED:
        raise refused(
            f"what it requires beside the words has more than {MAX_ADDED:,} characters"
        )
    return form


def _words_field(options: Mapping[str, Sequence[Schema]], root: _Root) -> str | None:
    """Return the name of the field for the words: the likeliest by its name, or the only text."""
    texts = []
    for name, each in options.items():
        if _is_text(each) and not _is_thought(name):
            texts.append(name)
    lists = []
    for name, each in options.items():
        if _is_list_or_null(each) or _list_item(each, root) is not None:
            lists.append(name)
    for names in (texts, lists):
        known = {_snake(name): name for name in names}
        if found := [known[name] for name in WORDS if name in known]:
            return found[0]
        if len(texts) == 1:
            return texts[0]
    return None


def _list_item(options: Sequence[Schema], root: _Root) -> Schema | None:
    """Return the schema of the item of a list that takes the words; `None` if the field is none, or
    takes a text.

    Strands writes `str | list[ContentBlock] | None` as a list that may be null, and takes only the
    text.
    """
    if _is_text(options):
        return None
    for array in options:
        if array.get("type") != "array" or array.get("minItems", 0) not in (0, 1):
            continue
        for item in _options(array.get("items"), root):
            fields = item.get("properties")
            is_strands = isinstance(fields, dict) and "toolUse" in fields
            if is_strands and _is_list_or_null(options):
                return None
            if _is_text([item]) or _block(item, root) is not None:
                return item
    return None


def _block(item: Schema, root: _Root) -> Mapping[str, str] | None:
    """Return the fields that a content block needs beside its `text`; `None` if it is none."""
    fields = item.get("properties")
    if not isinstance(fields, dict) or not _is_text(_options(fields.get("text"), root)):
        return None
    needs_type = "type" in fields
    kinds = _options(fields.get("type"), root)
    if needs_type and not any(
        _is_text([each]) or _is_named_text(each) for each in kinds
    ):
        return None
    if any(name not in ("text", "type") for name in _items(item, "required")):
        return None
    return {"type": "text"} if needs_type else {}


def _is_named_text(kind: Schema) -> bool:
    return kind.get("const") == "text" or "text" in _items(kind, "enum")


def _items(schema: Schema, name: str) -> list[Any]:
    """Return the items of a keyword; none if it has no list."""
    found = schema.get(name)
    return found if isinstance(found, list) else []


def _is_list_or_null(options: Sequence[Schema]) -> bool:
    kinds = [each.get("type") for each in options]
    return kinds in (["array", "null"], ["null", "array"])


def _values(name: str, options: Sequence[Schema], field: Any) -> list[Any]:
    """Return the value of a field that no user fills, in a list; an empty one if there is none."""
    if isinstance(field, dict) and "default" in field:
        return [field["default"]]
    for each in options:
        if "const" in each:
            return [each["const"]]
        if isinstance(each.get("enum"), list) and len(each["enum"]) == 1:
            return [each["enum"][0]]
    if any(each.get("type") == "null" for each in options):
        return [None]
    is_thought = _is_thought(name) and _is_text(options)
    return (
        [""] if is_thought and not any("minLength" in each for each in options) else []
    )


def _is_text(options: Sequence[Schema]) -> bool:
    texts = [each for each in options if each.get("type") == "string"]
    for each in texts:
        if _LIMITS & each.keys() or each.get("minLength", 0) not in (0, 1):
            return False
    return bool(texts)


def _is_end(name: str, options: Sequence[Schema]) -> bool:
    is_boolean = any(
        each.get("type") == "boolean" and not _LIMITS & each.keys() for each in options
    )
    return is_boolean and _END.fullmatch(_snake(name)) is not None


def _is_thought(name: str) -> bool:
    """Whether a field is for what its writer thought; a user's thoughts are not known."""
    return _THOUGHT.fullmatch(_snake(name)) is not None


def _snake(name: str) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])|-", "_", name[:100]).lower()


@dataclass(slots=True)
class _Root:
    """A schema, to which the references within it refer.

    Attributes:
        left: how many fields may still be copied.
    """

    schema: Schema
    refused: Callable[[str], RequestError]
    left: int = MAX_COPIED

    def merged(self, schema: Schema, other: Schema) -> dict[str, Any]:
        """Return a schema with the fields of both; those of the other win."""
        self.left -= 1 + len(schema) + len(other)
        if self.left < 0:
            raise self.refused("its references and alternatives make it too large")
        return {**schema, **other}


def _length(schema: Schema) -> float:
    """Return the length of a schema as JSON; infinite if it is nested too deep for that."""
    try:
        return len(json.dumps(schema))
    except RecursionError:
        return math.inf


def _options(schema: Any, root: _Root) -> list[Schema]:
    """Return the alternatives of a field's schema, each with one type."""
    schema = _followed(schema, root)
    several = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(several, list):
        rest = {name: schema[name] for name in schema if name not in ("anyOf", "oneOf")}
        return [root.merged(rest, _followed(each, root)) for each in several]
    if isinstance(schema.get("type"), list):
        return [root.merged(schema, {"type": kind}) for kind in schema["type"]]
    return [schema]


def _followed(schema: Any, root: _Root) -> dict[str, Any]:
    """Return a schema with its reference replaced by what it refers to; empty if that is none."""
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        found: Any = root.schema
        for name in reference.removeprefix("#").split("/", _MAX_DEPTH)[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return {}
        rest = {name: schema[name] for name in schema if name != "$ref"}
        schema = root.merged(found, rest)
    return {}
