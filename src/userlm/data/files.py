"""Where logs lie: local files, folders and patterns, data sets of the Hugging Face hub, and
whatever fsspec reads.

`userlm import` runs this: `find` returns the files, `local` brings one of them to this machine
while it is read. Their contents do not matter here.
"""

from __future__ import annotations

import glob
import re
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from importlib import import_module
from pathlib import Path
from typing import Any

from userlm.rows import KINDS, replacing
from userlm.text import stable_hash
from userlm.types import InputError, encodable

ABOUT = ("dataset_info.json", "dataset_infos.json")
"""Files with which tools describe a data set; they are taken only where they are named."""

PAUSES = (2.0, 10.0, 30.0)
"""Seconds before a copy that failed is tried again."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of logs.

    Attributes:
        name: as messages and `run.json` show it: the path, or the address without its secrets.
        path: where it is on this machine; `None` if it is remote.
        stamp: for a remote file, what its file system says that changes with the contents: a
            checksum or a time, and the size. Empty where it says nothing, and for a local file,
            which the run hashes itself.
        url: for a remote file, the whole address, which must not be shown.
    """

    name: str
    path: Path | None
    stamp: str = ""
    url: str = field(default="", repr=False)


Keyed = tuple[Hashable, LogFile]
"""A file, after a key that is the same however the file was reached."""


def find(places: Sequence[str | Path]) -> list[LogFile]:
    """Return the files of logs in some places, in their order, sorted inside each; each file once.

    A folder stands for the files of the known kinds directly in it; if there are none, for those
    below it. A pattern (`*`, `?`, `[...]`, and `**` for folders of any depth) stands for the files
    that it matches, unless something has that very name. `hf://datasets/OWNER/NAME[@REVISION]`
    stands for all files of the data set; if some are parquet for these only, since many data sets
    hold the same rows in two kinds. Hidden files and folders, and those of `ABOUT`, are left out
    unless they are named.

    Args:
        places: paths, or addresses (`scheme://...`) as text.

    Raises:
        InputError: a place holds nothing, is of another kind, or cannot be read.
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
                f"two files are called {name} when the secret part of their addresses is left out; "
                "copy them to this machine under names of their own"
            )
    return list(found.values())


@contextmanager
def local(file: LogFile, scratch: Path) -> Iterator[Path]:
    """Provide the file on this machine: itself, or a copy in the folder `scratch` that is deleted
    afterwards.

    A copy of the same contents that a killed process left there is used again.

    Raises:
        InputError: it cannot be copied, or it is no longer what `find` saw.
    """
    if file.path is not None:
        yield file.path
        return
    copy = scratch / f"{stable_hash(file.name, file.stamp):016x}{_kind(file.name)}"
    try:
        if not (file.stamp and copy.is_file()):
            _fetch(file, copy)
        yield copy
    except InputError as error:  # it names the copy
        raise InputError(str(error).replace(str(copy), file.name)) from None
    finally:
        copy.unlink(missing_ok=True)


# --- on this machine ------------------------------------------------------------------------------

# Of a data set.
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
            f"{place}: there is no such home folder; write the path in full"
        ) from None
    for path in paths:
        if encodable(str(path)) != str(path):
            raise InputError(
                f"{encodable(str(path))}: its name is not UTF-8; rename it"
            )
        if not path.is_file():
            raise InputError(
                f"{path} is a link to nothing or not a plain file; remove it or copy it to a file"
            )
    return [(path.resolve(), LogFile(str(path), path)) for path in paths]


def _local_paths(place: Path) -> list[Path]:
    if place.is_dir():
        missing = "holds no"
        paths = _logs_among(place.iterdir()) or _below(place, {place.resolve()})
    elif place.exists():
        missing = "is no"
        paths = [place] if _kind(place.name) else []
    elif glob.has_magic(str(place)):
        missing = "matches no"
        matches = glob.glob(str(place), recursive=True)  # noqa: PTH207, it has no absolute pattern
        paths = _logs_among(map(Path, matches))
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


def _logs_among(paths: Iterable[Path]) -> list[Path]:
    return [path for path in sorted(paths) if _is_log(path.name) and not path.is_dir()]


def _below(folder: Path, seen: set[Path]) -> list[Path]:
    """Return the logs in a folder and below it, through links too. `seen` ends links that form a
    circle."""
    found = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            found += _logs_among([path])
        elif not path.name.startswith(".") and path.resolve() not in seen:
            seen.add(path.resolve())
            found += _below(path, seen)
    return found


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
"""What file systems call a checksum or a time, the most reliable first."""


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
        raise InputError(f"{name} is no data set of the Hugging Face hub; {hint}")
    if page := _HUB_PAGE.match(place):
        hint = f"write hf://datasets/{page[1]} for the data set on it"
        raise InputError(f"{name} is a page for people; {hint}")
    if "::" in place:
        hint = "unpack the archive and give its files"
        raise InputError(f"{name}: chained addresses (::) are not read; {hint}")


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
        if kind != "directory" and _kind(_public(place)):
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
        return [path for path in paths if path.endswith(".parquet")] or paths
    directly = _logs(root, fs.ls(root, detail=True))
    return directly or _logs(root, fs.find(root, detail=True).values())


def _logs(root: str, entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the logs among the entries of a folder, sorted, as paths in that folder."""
    names = [entry["name"] for entry in entries if entry["type"] != "directory"]
    paths = [name.removeprefix(root).lstrip("/") for name in names]
    return sorted(path for path in paths if _is_log(path))


def _fetch(file: LogFile, copy: Path) -> None:
    """Copy a remote file, whole or not at all."""
    with replacing(copy) as partial:
        for pause in (*PAUSES, None):
            partial.touch()  # fails here if the folder is not writable, which no retry would mend
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
            f"{file.name} was changed since this command began; run the same command again"
        )
    fs.get_file(path, str(partial))
    expected, received = info.get("size"), partial.stat().st_size
    if expected is not None and expected != received:
        raise ConnectionError(f"{received:,} of {expected:,} bytes came")


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


# --- what can go wrong there ----------------------------------------------------------------------

_RETRY = ", then run the same command again"


@contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """Turn whatever a file system raises into one sentence.

    The errors of s3fs, gcsfs, httpx and the rest have only `Exception` in common. The sentence
    carries no cause, whose text may hold a signed address.
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
    """Return what is wrong with a data set, and what to do; `None` if it is nothing particular to
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
            f"names a revision that does not exist; take one from {page}"
        ),
    }
    for kind, problem in problems.items():
        if any(isinstance(cause, kind) for cause in causes):
            return problem
    return None


def _is_lasting(error: BaseException) -> bool:
    """Return whether trying again is useless."""
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
    """Return an error and those behind it, the first cause last."""
    return [error, *_causes(error.__cause__)] if error.__cause__ else [error]


def _status(causes: Sequence[BaseException]) -> int | None:
    """Return the status of an HTTP answer, wherever the library that raised the error keeps it."""
    for cause in causes:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = getattr(response, "status_code", None)
        for status in (response, code, getattr(cause, "status", None)):
            if isinstance(status, int):
                return status
    return None


# --- names ----------------------------------------------------------------------------------------


def _public(text: str) -> str:
    """Return a text without the secrets of addresses: passwords, the queries of URLs, tokens of the
    hub."""
    text = re.sub(r"(https?://)[^/\s]*@", r"\1", text)
    text = re.sub(r"(://)[^/\s]*:[^/\s]*@", r"\1", text)
    text = re.sub(r"(https?://[^\s?#]*)[?#]\S*", r"\1", text)
    return re.sub(r"\?\S*=\S*|\bhf_\w{30,}", "", text)


def _kind(name: str) -> str:
    """Return which of `KINDS` a file is of; empty if of none."""
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def _is_log(path: str) -> bool:
    """Return whether to take a file that was not named, by its path from the folder that was."""
    parts = path.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return bool(_kind(path)) and parts[-1] not in ABOUT and not hidden


def _no_log(place: str, missing: str) -> InputError:
    known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
    return InputError(
        f"{place} {missing} {known} file; give such files, or folders of them"
    )
