"""Options by their names on the command line, without regard to the groups that they stand in."""

from typing import Any, TypeVar

from userlm.commands.options import build, described

T = TypeVar("T")


def flat(options: type[T], **values: Any) -> T:
    """The options of a verb with these values, and the defaults of the others."""
    defaults = {each.name: each.default for each in described(options)}
    assert values.keys() <= defaults.keys()
    return build(options, defaults | values)
