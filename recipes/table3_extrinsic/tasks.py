"""Write the tasks of some ids to one file.

    python recipes/table3_extrinsic/tasks.py IDS OUT SOURCE [SOURCE ...]

IDS has an id a line, such as GSM8K/117. A SOURCE is what `--tasks` takes; of two with the same id,
the first is taken. An id may have the opening `sharded-` there.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from userlm.json_files import write_lines
from userlm.tasks import scan, to_record
from userlm.types import Task


def find(ids: Iterable[str], sources: Iterable[str]) -> list[Task]:
    """Return the tasks in the order of the ids.

    Raises:
        SystemExit: if some are in none of the sources.
    """
    known: dict[str, Task] = {}
    for source in sources:
        for found in scan(source):
            if found.task:  # other rows of a set may be of no use
                known.setdefault(found.task.id.removeprefix("sharded-"), found.task)
    missing = [id for id in ids if id not in known]
    if missing:
        sys.exit(f"no source has {', '.join(missing)}")
    return [known[id] for id in ids]


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    wanted = Path(sys.argv[1]).read_text(encoding="utf-8").split()
    tasks = find(wanted, sys.argv[3:])
    write_lines(Path(sys.argv[2]), map(to_record, tasks))
