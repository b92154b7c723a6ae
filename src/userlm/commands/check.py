"""`check`: whether a server can be used for a trained user."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from userlm import address, loading
from userlm.commands.options import argument, option
from userlm.commands.steps import Results
from userlm.show.terminal import console
from userlm.types import InputError, ModelError


@dataclass(frozen=True, slots=True)
class Check:
    """Check whether a server can be used for a trained user: it takes token ids, bans tokens, stops
    at both ends, shows P(end), and continues the user's turn as a user.

    What fails is shown with what to do about it, and the exit code is 1. A dozen short requests are
    made.

    $ userlm check http://localhost:8000/v1#my-user --tokenizer runs/train
    """

    server: str = argument(..., "The model on its server: http://HOST:PORT/v1#NAME.")
    tokenizer: str | None = option(
        None,
        "Tokenizer of the model: folder or hub id. Default: the model's name as hub id.",
    )
    json: bool = option(
        False, "Print the points as JSON.", flag="--json", recorded=False
    )


def check(options: Check) -> Results:
    """Show each point, and return them all.

    Raises:
        ModelError: if there is no server, or if a point failed.
    """
    model = address.parse(options.server)
    if not model.url or model.form not in ("", "trained", "profile"):
        raise InputError(
            f"{options.server}: give a trained user on a server, as http://HOST:PORT/v1#NAME"
        )
    from userlm.models.server_check import check_server  # heavy: transformers

    points = []
    for point in check_server(*loading.served_model(model, options.tokenizer)):
        points.append(asdict(point))
        if not options.json:
            mark = {True: "yes", False: "no", None: "-"}[point.ok]
            said = f": {point.said}" if point.said else ""
            console.print(f"{mark:4}{point.what}{said}", soft_wrap=True, markup=False)
    results = {"server": model.model, "points": points}
    if options.json:
        print(json.dumps(results, indent=2))
    failed = sum(point["ok"] is not True for point in points)
    if failed:
        raise ModelError(
            f"{model.model}: {failed} of {len(points)} points are not as a trained user needs them"
        )
    return results
