"""Where logs lie: files, folders and patterns here, data sets of the Hugging Face hub, whatever
else fsspec reads.

`userlm import` runs this: `find` says which files there are, `local` brings one of them to this
machine while it is read. What is in them is no matter here.
"""

from __future__ import annotations

import glob
import re
import time
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
"""Files that tools lay beside a data set to describe it; they are taken only where they are
named."""

PAUSES = (2.0, 10.0, 30.0)
"""Seconds before a copy that broke off is begun again."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of logs.

    Attributes:
        name: as messages and `run.json` show it: the path, or the address without what is secret in
            it.
        path: where it is on this machine; `None` if it is remote.
        stamp: of a remote file, what its file system says that changes with the contents: a
            checksum or a time, and the size. Empty where it says nothing, and for a local file,
            which the run hashes itself.
        url: of a remote file, the whole address, to be shown to nobody.
    """

    name: str
    path: Path | None
    stamp: str = ""
    url: str = field(default="", repr=False)


Keyed = tuple[Hashable, LogFile]
"""A file, after what tells it from others, however it was reached."""


def find(places: Sequence[str | Path]) -> list[LogFile]:
    """The files of logs in some places, in their order, sorted inside each; each file once.

    A folder stands for the files of the known kinds directly in it; if there are none, for those
    below it. A pattern (`*`, `?`, `[...]`, and `**` for folders of any depth) stands for the files
    that it matches, unless there is something of that very name.
    `hf://datasets/OWNER/NAME[@REVISION]` stands for all files of the data set; if some are parquet
    for these only, since many data sets hold the same rows in two kinds. Hidden files and folders,
    and those of `ABOUT`, are left out unless they are named.

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
        for key, file in _remote_files(name) if "://" in name else _local_files(Path(name)):
            found.setdefault(key, file)
    names: dict[str, LogFile] = {}
    for file in found.values():
        if names.setdefault(file.name, file) is not file:
            raise InputError(
                f"two files are called {file.name} when the secret part of their addresses is "
                "left out; "
                "copy them to this machine under names of their own"
            )
    return list(names.values())


@contextmanager
def local(file: LogFile, scratch: Path) -> Iterator[Path]:
    """The file on this machine: itself, or a copy in the folder `scratch` that is deleted
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
    except InputError as error:  # which names the copy
        raise InputError(str(error).replace(str(copy), file.name)) from None
    finally:
        copy.unlink(missing_ok=True)


# --- on this machine ------------------------------------------------------------------------------


def _local_files(place: Path) -> list[Keyed]:
    try:
        paths = _local_paths(place.expanduser())
    except OSError as error:
        raise InputError(
            f"{error.filename or place} cannot be read: {error.strerror or error}"
        ) from None
    except RuntimeError:
        raise InputError(f"{place}: there is no such home folder; write the path in full") from None
    for path in paths:
        if encodable(str(path)) != str(path):
            raise InputError(f"{encodable(str(path))}: its name is not UTF-8; rename it")
        if not path.is_file():
            raise InputError(
                f"{path} is a link to nothing, or no plain file; take it away or copy it to a file"
            )
    return [(path.resolve(), LogFile(str(path), path)) for path in paths]


def _local_paths(place: Path) -> list[Path]:
    if place.is_dir():
        paths = [
            path for path in sorted(place.iterdir()) if _is_log(path.name) and not path.is_dir()
        ]
        paths, missing = paths or _below(place, {place.resolve()}), "holds no"
    elif place.exists():
        paths, missing = [place] if _kind(place.name) else [], "is no"
    elif glob.has_magic(str(place)):
        matches = map(Path, sorted(glob.glob(str(place), recursive=True)))  # noqa: PTH207, it has no absolute pattern
        paths, missing = (
            [path for path in matches if _is_log(path.name) and not path.is_dir()],
            "matches no",
        )
    else:
        name = re.fullmatch(r"(?:datasets/)?((?!datasets/)\w[\w.-]*/\w[\w.-]*)", place.as_posix())
        meant = (
            f"write hf://datasets/{name[1]} for a data set of the Hugging Face hub" if name else ""
        )
        raise InputError(f"{place} does not exist; {meant or 'check the spelling'}")
    if not paths:
        raise _no_log(str(place), missing)
    return paths


def _below(folder: Path, seen: set[Path]) -> list[Path]:
    """The logs in a folder and those below it, through links too. `seen` ends links that go
    round."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.name.startswith(".") and path.resolve() not in seen:
                seen.add(path.resolve())
                found += _below(path, seen)
        elif _is_log(path.name):
            found.append(path)
    return found


# --- elsewhere ------------------------------------------------------------------------------------

_HUB = re.compile(
    r"hf://datasets/(?P<set>[^/@]+/[^/@]+)(?:@(?:refs/(?:convert|pr)/[^/]+|[^/]+))?/?(?P<path>.*)"
)
_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface|hf)\.co/datasets/([^/?#]+/[^/?#]+)(?!.*/resolve/)"
)
_STAMPS = (  # what file systems call a checksum or a time, the surest first
    *("ETag", "etag", "blob_id", "md5Hash", "Last-Modified", "LastModified", "last_modified"),
    *("updated", "mtime", "modified", "modify", "created"),
)


def _remote_files(place: str) -> list[Keyed]:
    _check_address(place)
    found: list[Keyed] = []
    with _plainly(_public(place)):
        for url in _remote_urls(place):
            fs, path = _open(url)
            found.append(((fs, path), LogFile(_public(url), None, _stamp(fs.info(path)), url)))
    return found


def _check_address(place: str) -> None:
    """Raise `InputError` for an address that fsspec would take for something that was not meant."""
    name = _public(place)
    if place.startswith("hf://") and not _HUB.fullmatch(place):
        meant = re.fullmatch(
            r"hf://(?!datasets/|models/|spaces/|buckets/|kernels/)([^/@]+/[^/@]+.*)", place
        )
        hint = (
            f"did you mean hf://datasets/{meant[1]}?" if meant else "write hf://datasets/OWNER/NAME"
        )
        raise InputError(f"{name} is no data set of the Hugging Face hub; {hint}")
    if page := _HUB_PAGE.match(place):
        raise InputError(
            f"{name} is a page for people; write hf://datasets/{page[1]} for the data set on it"
        )
    if "::" in place:
        raise InputError(
            f"{name}: chained addresses (::) are not read; unpack the archive and give its files"
        )


def _remote_urls(place: str) -> list[str]:
    """The addresses of the logs in a place, sorted."""
    fs, root = _open(place)
    fs.invalidate_cache()
    try:
        kind = fs.info(root)["type"]
    except FileNotFoundError:
        magic = re.search(
            r"[*[]" if place.startswith("http") else r"[*?[]", place
        )  # ? begins the query of a URL
        if not magic:
            raise
        folder = place[: place.rindex("/", 0, magic.start()) + 1]
        paths = _logs(_open(folder)[1], fs.glob(root, detail=True).values())
    else:
        folder = place
        if kind != "directory" and _kind(_public(place)):
            return [place]
        if kind != "directory" and not fs.isdir(root):  # over http everything is a file
            raise _no_log(_public(place), "is no")
        data_set = _HUB.fullmatch(place)
        if data_set and not data_set["path"]:
            paths = _logs(root, fs.find(root, detail=True).values())
            paths = [path for path in paths if path.endswith(".parquet")] or paths
        else:
            paths = _logs(root, fs.ls(root, detail=True)) or _logs(
                root, fs.find(root, detail=True).values()
            )
    if not paths:
        raise _no_log(_public(place), "holds no")
    return [f"{folder.removesuffix('/')}/{path}" for path in paths]


def _logs(root: str, entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The logs among the entries of a folder, sorted, as paths in that folder."""
    files = (
        entry["name"].removeprefix(root).lstrip("/")
        for entry in entries
        if entry["type"] != "directory"
    )
    return sorted(path for path in files if _is_log(path))


def _fetch(file: LogFile, copy: Path) -> None:
    """Copy a remote file, whole or not at all."""
    with replacing(copy) as partial:
        for pause in (*PAUSES, None):
            partial.touch()  # a folder that cannot be written to is no fault of the other side
            try:
                _copy(file, partial)
                break
            except InputError:
                raise
            except Exception as error:  # as in `_plainly`
                if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
                    raise
                if pause is None or _lasts(error):
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
    size, came = info.get("size"), partial.stat().st_size
    if size is not None and size != came:
        raise ConnectionError(f"{came:,} of {size:,} bytes came")


def _open(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path there."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    if not url.startswith(("http://", "https://")):
        return url_to_fs(url)  # type: ignore[no-any-return]
    # On its own, aiohttp ends each copy after five minutes, and does not look at HTTPS_PROXY.
    timeout = import_module("aiohttp").ClientTimeout(total=None, sock_connect=30, sock_read=60)
    return url_to_fs(url, client_kwargs={"timeout": timeout, "trust_env": True})  # type: ignore[no-any-return]


def _stamp(info: Mapping[str, Any]) -> str:
    said = [str(info[key]).strip('"') for key in _STAMPS if info.get(key)][:1]
    return ", ".join([*said, f"{info['size']} bytes"] if info.get("size") is not None else said)


# --- what can go wrong there ----------------------------------------------------------------------


@contextmanager
def _plainly(name: str) -> Iterator[None]:
    """Whatever a file system raises, in one sentence.

    The errors of s3fs, gcsfs, httpx and the rest have only `Exception` in common. The sentence
    carries no cause, since the text of that may hold a signed address.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise _explained(name, error) from None


def _explained(name: str, error: BaseException) -> InputError:
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            package = cause.name.partition(".")[0]
            return InputError(
                f"{name} needs a package that is not installed; run `pip install {package}`"
            )
    hub = _HUB.match(name)
    if hub and (known := _of_the_hub(hub["set"], causes)):
        return InputError(f"{name} {known}, then run the same command again")
    status = _status(causes)
    if status in (401, 403) or any(isinstance(cause, PermissionError) for cause in causes):
        remedy = "run `hf auth login`" if hub else "check your credentials for it"
        return InputError(f"{name} may not be read; {remedy}, then run the same command again")
    if status in (404, 410) or isinstance(causes[-1], FileNotFoundError):
        return InputError(f"{name} does not exist; check the spelling")
    words = _public(" ".join(str(causes[-1]).split()))[:200]
    reason = f"status {status}" if status else words or type(causes[-1]).__name__
    return InputError(
        f"{name} cannot be read ({reason}); check address and network, then run the same command "
        "again"
    )


def _of_the_hub(data_set: str, causes: Sequence[BaseException]) -> str | None:
    """What is wrong with a data set, and what to do; `None` if it could be so anywhere."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{data_set}"
    sentences = {
        errors.OfflineModeIsEnabled: "cannot be reached offline; unset HF_HUB_OFFLINE",
        errors.GatedRepoError: f"is gated; accept its terms on {page}, run `hf auth login`",
        errors.RepositoryNotFoundError: "does not exist or is private; check the spelling or run "
        "`hf auth login`",
        errors.RevisionNotFoundError: f"names a revision that does not exist; take one from {page}",
    }
    return next(
        (said for kind, said in sentences.items() for cause in causes if isinstance(cause, kind)),
        None,
    )


def _lasts(error: BaseException) -> bool:
    """Whether it is no use to try again."""
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
    """An error and those behind it, the first cause last."""
    return [error, *_causes(error.__cause__)] if error.__cause__ else [error]


def _status(causes: Sequence[BaseException]) -> int | None:
    """The status that an HTTP server answered, wherever the library that raised it keeps that."""
    for cause in causes:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for status in (
            response,
            getattr(response, "status_code", None),
            getattr(cause, "status", None),
        ):
            if isinstance(status, int):
                return status
    return None


# --- names ----------------------------------------------------------------------------------------


def _public(text: str) -> str:
    """A text without what may be secret in addresses: passwords, the queries of URLs, tokens of the
    hub."""
    text = re.sub(r"(https?://)[^/\s]*@", r"\1", text)
    text = re.sub(r"(://)[^/\s]*:[^/\s]*@", r"\1", text)
    text = re.sub(r"(https?://[^\s?#]*)[?#]\S*", r"\1", text)
    return re.sub(r"\?\S*=\S*|\bhf_\w{30,}", "", text)


def _kind(name: str) -> str:
    """Which of `KINDS` a file is of; empty if of none."""
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def _is_log(path: str) -> bool:
    """Whether to take a file that nobody named, by its path from the folder that was named."""
    *folders, name = path.split("/")
    return (
        bool(_kind(name))
        and name not in ABOUT
        and not any(part.startswith(".") for part in (*folders, name))
    )


def _no_log(place: str, missing: str) -> InputError:
    known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
    return InputError(f"{place} {missing} {known} file; give such files, or folders of them")
