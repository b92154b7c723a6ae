"""The run folder of the pages: conversations that were saved, and ratings of the blind test."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from userlm.journal import Journal, is_whole
from userlm.json_files import dump
from userlm.lines import parse_line
from userlm.metrics.ratings import Rating, read_ratings
from userlm.rows import read_conversations, to_record, write_conversations
from userlm.runs import Run, check_may_be_run
from userlm.types import Conversation, InputError

CONVERSATIONS = "conversations.jsonl"
RATINGS = "ratings.jsonl"


def version_of(conversation: Conversation) -> str:
    """Return a text that is another one once anything of a saved conversation is."""
    return sha256(dump(to_record(conversation))).hexdigest()


class Saved:
    """A run folder that is made when the first thing is saved. All its files have fixed names.

    Raises:
        InputError: if nothing can be saved in the folder; see `check_may_be_run`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._run: Run | None = None
        check_may_be_run(folder)
        if (ratings := folder / RATINGS).is_file() and not is_whole(ratings):
            Journal(self._opened().path(RATINGS)).close()  # removes half a last line

    def conversations(self) -> list[Conversation]:
        """Return what was saved, the oldest first."""
        path = self.folder / CONVERSATIONS
        if not path.is_file():
            return []
        return list(read_conversations(path, may_be_empty=True))

    def ratings(self) -> Sequence[Rating]:
        """Return the ratings that were given."""
        path = self.folder / RATINGS
        return read_ratings(path) if path.is_file() and path.stat().st_size else []

    def save(self, conversation: Conversation, replaces: str = "") -> Conversation:
        """Save a conversation, and return it as it is saved: in place of the one with its id, if
        that has the version that it `replaces`, else under a new id. Another page may have saved
        more of it meanwhile.

        Raises:
            InputError: if the folder belongs to another run, or the conversation could not be read
                again.
        """
        if problem := parse_line(1, dump(to_record(conversation))).error:
            raise InputError(f"it cannot be saved: the conversation {problem}")
        with self._lock:
            run = self._opened()
            talks = {talk.id: talk for talk in self.conversations()}
            id = conversation.id
            if id not in talks or version_of(talks[id]) != replaces:
                id = f"playground-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
            talks[id] = replace(conversation, id=id)
            write_conversations(run.path(CONVERSATIONS), talks.values())
            self._finish(run)
            return next(talk for talk in self.conversations() if talk.id == id)

    def add(self, rating: Rating) -> bool:
        """Append a rating; return whether its rater has not rated the pair before."""
        with self._lock:
            run = self._opened()
            if any(map(rating.repeats, self.ratings())):
                return False
            journal = Journal(run.path(RATINGS))
            journal.add(asdict(rating))
            journal.close()
            self._finish(run)
        return True

    def _opened(self) -> Run:
        # One folder for all that is saved, whichever users were served: without options.
        if self._run is None:
            self._run = Run.open(self.folder, "serve", {})
        return self._run

    def _finish(self, run: Run) -> None:
        # What was saved is saved, also if there is no room for the counts, which come next time.
        with suppress(InputError, OSError):
            talks = self.conversations()
            stops = Counter(talk.stop or "saved" for talk in talks)
            counts = {"conversations": len(talks), "ratings": len(self.ratings())}
            run.finish({**counts, "stops": dict(stops)})
