"""Find log files: local files, folders and globs, datasets of the Hugging Face hub, and whatever
fsspec reads.

`userlm import` runs this: `find` returns the files, `local` copies a remote one to this machine
while it is read. This module does not read their contents.
"""

from __future__ import annotations

import glob
import re
import shlex
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from importlib import import_module
from pathlib import Path
from typing import Any

from userlm.json_files import replacing
from userlm.rows import KINDS, kind_of
from userlm.tables import TABLES
from userlm.text import stable_hash
from userlm.types import InputError, encodable

ABOUT = ("dataset_info.json", "dataset_infos.json")
"""Metadata files of datasets; they are read only if they are named explicitly."""

PAUSES = (2.0, 10.0, 30.0)
"""Seconds before a copy that failed is tried again."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of logs.

    Attributes:
        name: its name in messages and `run.json`: the path, or the URL without secrets.
        path: where it is on this machine; `None` if it is remote.
        stamp: for a remote file, a checksum or time from its file system, and the size, to detect
            changes. Empty if there is none, and for a local file, which the run hashes itself.
        url: for a remote file, the full URL, which may contain secrets and must not be shown.
    """

    name: str
    path: Path | None
    stamp: str = ""
    url: str = field(default="", repr=False)


Keyed = tuple[Hashable, LogFile]
"""A unique key of a file, however it was named, and the file."""


def find(places: Sequence[str | Path]) -> list[LogFile]:
    """Return the log files in these places, each once: in the order of the places, sorted within
    each.

    A folder means the files of the known kinds directly in it; if there are none, those in its
    subfolders. A pattern (`*`, `?`, `[...]`, and `**` for folders of any depth) means the files
    that it matches, unless a file has exactly that name. `hf://datasets/OWNER/NAME[@REVISION]`
    means all files of the dataset, or only its parquet files if there are any, since many datasets
    contain the same rows in two formats. Hidden files and folders, and those in `ABOUT`, are
    skipped unless they are named. So are tables (`.csv`, `.tsv`), which lie beside many logs; a
    pattern with their ending names them.

    Args:
        places: paths, or addresses (`scheme://...`) as text.

    Raises:
        InputError: a place has no logs, is of another kind, or cannot be read.
    """
    found: dict[Hashable, LogFile] = {}
    for place in places:
        if not str(place):
            raise InputError(
                "one of the places of logs is empty; give a file, a folder or an address"
            )
        name = str(place).removeprefix("file://")
        keyed = _remote_files(name) if "://" in name else _local_files(Path(name))
        for key, file in keyed:
            found.setdefault(key, file)
    for name, count in Counter(file.name for file in found.values()).items():
        if count > 1:
            raise InputError(
                f"two files are both called {name} without the secret part of their URLs; copy "
                f"them to this machine under different names"
            )
    return list(found.values())


def left_out(place: str | Path, out: Path) -> Iterator[str]:
    """Yield what `find` leaves out of a folder or a pattern on this machine, in a sentence each:
    the logs of subfolders, if there are some in the folder itself, and files of other kinds. What
    is in the folder `out` does not count."""
    if "://" in str(place):
        return
    with suppress(OSError, RuntimeError):  # nobody asked for what may not be read
        folder = Path(place).expanduser()
        if folder.is_dir():
            seen = {folder.resolve(), out.resolve()}
            directly = [path for path in folder.iterdir() if not path.is_dir()]
            has_logs = bool(_logs_among(directly))
            below = [*_below(folder, seen, may_fail=True)]
            below = [path for path in below if path not in directly]
            if has_logs and (logs := _logs_among(below)):
                yield (
                    f"{place} has logs, so those in its subfolders are not read, as {logs[0]}; "
                    f"give the subfolders, too, or {shlex.quote(str(Path(place) / '**'))}"
                )
            paths = directly if has_logs else [*directly, *below]
        elif folder.exists():
            return
        else:
            paths = [*map(Path, _matches(folder))]
        read = {*_local_paths(folder)}
        others = [path for path in paths if path not in read and _may_be_log(path)]
        if others:
            first = min(others, key=_order)
            yield (
                f"{place}: files of other kinds are not read ({len(others)}), as {first}; unpack "
                "or convert those that hold logs, and give tables by name"
            )


@contextmanager
def local(file: LogFile, scratch: Path) -> Iterator[Path]:
    """Yield a local path of the file: its own, or that of a copy in the folder `scratch` that is
    deleted afterwards.

    A copy of the same contents that a killed process left behind is reused.

    Raises:
        InputError: it cannot be copied, or it changed since `find`.
    """
    if file.path is not None:
        yield file.path
        return
    copy = scratch / f"{stable_hash(file.name, file.stamp):016x}{kind_of(file.name)}"
    try:
        if not (file.stamp and copy.is_file()):
            _fetch(file, copy)
        yield copy
    except InputError as error:  # it names the copy
        raise InputError(str(error).replace(str(copy), file.name)) from None
    finally:
        copy.unlink(missing_ok=True)


# --- on this machine ------------------------------------------------------------------------------

# The given path looks like the name of a dataset.
_BARE_NAME = re.compile(r"(?:datasets/)?((?!datasets/)\w[\w.-]*/\w[\w.-]*)")


def _local_files(place: Path) -> list[Keyed]:
    try:
        paths = _local_paths(place.expanduser())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{error.filename or place} cannot be read: {reason}"
        ) from None
    except RuntimeError:
        raise InputError(
            f"{place}: there is no such home folder; write the full path"
        ) from None
    for path in paths:
        if encodable(str(path)) != str(path):
            raise InputError(
                f"{encodable(str(path))}: its name is not UTF-8; rename it"
            )
        if not path.is_file():
            raise InputError(
                f"{path} is a broken link or not a regular file; remove it or replace it by a file"
            )
    return [(path.resolve(), LogFile(str(path), path)) for path in paths]


def _local_paths(place: Path) -> list[Path]:
    if place.is_dir():
        missing = "holds no"
        below = _below(place, {place.resolve()})
        paths = _logs_among(place.iterdir()) or [
            each for each in below if _is_log(each.name)
        ]
    elif place.exists():
        missing = "is no"
        paths = [place] if kind_of(place.name) else []
    elif glob.has_magic(str(place)):
        missing = "matches no"
        matches = _matches(place)
        paths = _logs_among(matches)
        if kind_of(place.name) in TABLES:
            paths = sorted(matches, key=_order)
    else:
        remedy = "check the spelling"
        if name := _BARE_NAME.fullmatch(place.as_posix()):
            remedy = (
                f"write hf://datasets/{name[1]} for a data set of the Hugging Face hub"
            )
        raise InputError(f"{place} does not exist; {remedy}")
    if not paths:
        raise _no_log(str(place), missing)
    return paths


def _matches(pattern: Path) -> list[Path]:
    found = glob.glob(str(pattern), recursive=True)  # noqa: PTH207, it has no absolute pattern
    return [*map(Path, found)]


def _logs_among(paths: Iterable[Path]) -> list[Path]:
    logs = (path for path in paths if _is_log(path.name) and not path.is_dir())
    return sorted(logs, key=_order)


def _below(folder: Path, seen: set[Path], may_fail: bool = False) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, following links. `seen` stops cycles of
    links; if a folder `may_fail`, it is skipped where nobody may read it."""
    try:
        paths = sorted(folder.iterdir(), key=_order)
    except OSError:
        if not may_fail:
            raise
        return
    for path in paths:
        if not path.is_dir():
            yield path
        elif not path.name.startswith(".") and path.resolve() not in seen:
            seen.add(path.resolve())
            yield from _below(path, seen, may_fail)


# --- elsewhere ------------------------------------------------------------------------------------

_HUB = re.compile(
    r"hf://datasets/(?P<set>[^/@]+/[^/@]+)"
    r"(?:@(?:refs/(?:convert|pr)/[^/]+|[^/]+))?/?(?P<path>.*)"
)
_HUB_NAME = re.compile(
    r"hf://(?!(?:datasets|models|spaces|buckets|kernels)/)([^/@]+/[^/@]+.*)"
)
_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface|hf)\.co/datasets/([^/?#]+/[^/?#]+)(?!.*/resolve/)"
)
_STAMPS = """
    ETag etag blob_id md5Hash Last-Modified LastModified last_modified
    updated mtime modified modify created
""".split()
"""The names that file systems use for a checksum or a time, the most reliable first."""


def _remote_files(place: str) -> list[Keyed]:
    _check_address(place)
    found: list[Keyed] = []
    with _plain_errors(_public(place)):
        for url in _remote_urls(place):
            fs, path = _open(url)
            stamp = _stamp(fs.info(path))
            found.append(((fs, path), LogFile(_public(url), None, stamp, url)))
    return found


def _check_address(place: str) -> None:
    """Raise `InputError` for an address that fsspec would misunderstand."""
    name = _public(place)
    if place.startswith("hf://") and not _HUB.fullmatch(place):
        hint = "write hf://datasets/OWNER/NAME"
        if meant := _HUB_NAME.fullmatch(place):
            hint = f"did you mean hf://datasets/{meant[1]}?"
        raise InputError(f"{name} is not a dataset of the Hugging Face hub; {hint}")
    if page := _HUB_PAGE.match(place):
        hint = f"write hf://datasets/{page[1]} for its dataset"
        raise InputError(f"{name} is a web page, not a file; {hint}")
    if "::" in place:
        hint = "unpack the archive and give its files"
        raise InputError(f"{name}: chained addresses (::) are not supported; {hint}")


def _remote_urls(place: str) -> list[str]:
    """Return the addresses of the logs in a place, sorted."""
    fs, root = _open(place)
    fs.invalidate_cache()
    try:
        kind = fs.info(root)["type"]
    except FileNotFoundError:
        magic = re.search(r"[*[]" if place.startswith("http") else r"[*?[]", place)
        if not magic:  # in a URL, ? begins the query
            raise
        folder, _, _ = place[: magic.start()].rpartition("/")
        _, folder_root = _open(f"{folder}/")
        paths = _logs(folder_root, fs.glob(root, detail=True).values())
    else:
        folder = place
        if kind != "directory" and kind_of(_public(place)):
            return [place]
        if kind != "directory" and not fs.isdir(root):  # over http everything is a file
            raise _no_log(_public(place), "is no")
        paths = _in_folder(fs, root, _HUB.fullmatch(place))
    if not paths:
        raise _no_log(_public(place), "holds no")
    return [f"{folder.removesuffix('/')}/{path}" for path in paths]


def _in_folder(fs: Any, root: str, data_set: re.Match[str] | None) -> list[str]:
    if data_set and not data_set["path"]:
        paths = _logs(root, fs.find(root, detail=True).values())
        return [path for path in paths if kind_of(path) == ".parquet"] or paths
    directly = _logs(root, fs.ls(root, detail=True))
    return directly or _logs(root, fs.find(root, detail=True).values())


def _logs(root: str, entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the logs among the entries of a folder, sorted, as paths relative to it."""
    names = [entry["name"] for entry in entries if entry["type"] != "directory"]
    paths = [name.removeprefix(root).lstrip("/") for name in names]
    return sorted(filter(_is_log, paths), key=_order)


def _fetch(file: LogFile, copy: Path) -> None:
    """Copy a remote file atomically."""
    with replacing(copy) as partial:
        for pause in (*PAUSES, None):
            partial.touch()  # fail here if the folder is not writable, since no retry would help
            try:
                _copy(file, partial)
                break
            except InputError:
                raise
            except Exception as error:  # as in `_plain_errors`
                if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
                    raise
                if pause is None or _is_lasting(error):
                    raise _explained(file.name, error) from None
            time.sleep(pause)


def _copy(file: LogFile, partial: Path) -> None:
    fs, path = _open(file.url)
    fs.invalidate_cache()
    info = fs.info(path)
    if _stamp(info) != file.stamp:
        raise InputError(
            f"{file.name} has changed since this command started; run the same command again"
        )
    fs.get_file(path, str(partial))
    expected, received = info.get("size"), partial.stat().st_size
    if expected is not None and expected != received:
        raise ConnectionError(f"{received:,} of {expected:,} bytes were received")


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path there."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    options = {}
    if url.startswith(("http://", "https://")):
        # By default, aiohttp ends each copy after five minutes and ignores HTTPS_PROXY.
        aiohttp = import_module("aiohttp")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    return url_to_fs(url, **options)  # type: ignore[no-any-return]


def _stamp(info: Mapping[str, Any]) -> str:
    parts = []
    if key := next((key for key in _STAMPS if info.get(key)), None):
        parts.append(str(info[key]).strip('"'))
    if info.get("size") is not None:
        parts.append(f"{info['size']} bytes")
    return ", ".join(parts)


# --- errors of file systems -----------------------------------------------------------------------

_RETRY = ", then run the same command again"


@contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """Turn any error of a file system into an `InputError` of one sentence.

    The errors of s3fs, gcsfs, httpx and others have only the base class `Exception` in common. The
    cause is not kept, since its text may contain a signed URL.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise _explained(name, error) from None


def _explained(name: str, error: BaseException) -> InputError:
    return InputError(f"{name} {_problem(name, _causes(error))}")


def _problem(name: str, causes: Sequence[BaseException]) -> str:
    for cause in causes:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            package, _, _ = cause.name.partition(".")
            return f"needs a package that is not installed; run `pip install {package}`"
    hub = _HUB.match(name)
    if hub and (problem := _hub_problem(hub["set"], causes)):
        return problem + _RETRY
    first = causes[-1]
    status = _status(causes)
    if status in (401, 403) or any(
        isinstance(cause, PermissionError) for cause in causes
    ):
        remedy = "run `hf auth login`" if hub else "check your credentials for it"
        return f"may not be read; {remedy}{_RETRY}"
    if status in (404, 410) or isinstance(first, FileNotFoundError):
        return "does not exist; check the spelling"
    message = " ".join(str(first).split())
    reason = _public(message)[:200] or type(first).__name__
    if status:
        reason = f"status {status}"
    return f"cannot be read ({reason}); check address and network{_RETRY}"


def _hub_problem(data_set: str, causes: Sequence[BaseException]) -> str | None:
    """Return what is wrong with a dataset, and what to do; `None` if the error is not specific to
    the hub."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{data_set}"
    problems = {
        errors.OfflineModeIsEnabled: "cannot be reached offline; unset HF_HUB_OFFLINE",
        errors.GatedRepoError: f"is gated; accept its terms on {page}, run `hf auth login`",
        errors.RepositoryNotFoundError: (
            "does not exist or is private; check the spelling or run `hf auth login`"
        ),
        errors.RevisionNotFoundError: (
            f"names a revision that does not exist; choose one from {page}"
        ),
    }
    for kind, problem in problems.items():
        if any(isinstance(cause, kind) for cause in causes):
            return problem
    return None


def _is_lasting(error: BaseException) -> bool:
    """Return whether a retry cannot help."""
    causes = _causes(error)
    if status := _status(causes):
        return status < 500 and status not in (408, 425, 429)
    lasting = (
        ImportError,
        ValueError,
        TypeError,
        NotImplementedError,
        FileNotFoundError,
        PermissionError,
    )
    return isinstance(causes[-1], lasting)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and its chain of causes, the root cause last."""
    return [error, *_causes(error.__cause__)] if error.__cause__ else [error]


def _status(causes: Sequence[BaseException]) -> int | None:
    """Return the HTTP status of an error, from the attribute where its library stores it."""
    for cause in causes:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = getattr(response, "status_code", None)
        for status in (response, code, getattr(cause, "status", None)):
            if isinstance(status, int):
                return status
    return None


_NUMBER = re.compile("([0-9]{1,18})")

# --- names ----------------------------------------------------------------------------------------


def _public(text: str) -> str:
    """Return a text without secrets: passwords and queries in URLs, and hub tokens."""
    text = re.sub(r"(https?://)[^/\s]*@", r"\1", text)
    text = re.sub(r"(://)[^/\s]*:[^/\s]*@", r"\1", text)
    text = re.sub(r"(https?://[^\s?#]*)[?#]\S*", r"\1", text)
    return re.sub(r"\?\S*=\S*|\bhf_\w{30,}", "", text)


def _order(path: str | Path) -> list[list[str | int]]:
    """Return what to sort paths by: numbers in them by their value, so that `part-10` is after
    `part-9`."""
    return [_pieces(part) for part in Path(path).parts]


def _pieces(name: str) -> list[str | int]:
    pieces = _NUMBER.split(name)  # every second one is a number
    return [int(piece) if n % 2 else piece for n, piece in enumerate(pieces)]


def _is_log(path: str) -> bool:
    """Return whether to include a file of a folder, by its path relative to the folder."""
    parts = path.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return kind_of(path) in KINDS and parts[-1] not in ABOUT and not hidden


def _may_be_log(path: Path) -> bool:
    """Return whether somebody may take a file for a log: not a hidden one, a README or LICENSE, or
    what Spark writes beside its `part-00000`."""
    name = path.name
    is_about = name in ABOUT or path.suffix.lower() == ".md"
    is_note = not path.suffix and (name.isupper() or name.startswith("_"))
    return not (is_about or is_note or name.startswith(".") or path.is_dir())


def _no_log(place: str, missing: str) -> InputError:
    known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
    return InputError(
        f"{place} {missing} {known} file; give such files, or folders of them, or tables (.csv, "
        ".tsv) by name"
    )
