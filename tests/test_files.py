"""Where logs are found, and how those from elsewhere come here."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from userlm.data import files
from userlm.data.files import LogFile, find, local
from userlm.rows import count_rows, read_rows
from userlm.types import InputError


def lay(folder: Path, *names: str) -> Path:
    """Empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def names(*places: str | Path, inside: Path | None = None) -> list[str]:
    """What is found, as paths in a folder if one is given."""
    return [
        file.name.removeprefix(f"{inside}/" if inside else "") for file in find(places)
    ]


def test_a_log_of_a_subfolder_that_is_left_out_is_found(tmp_path):
    lay(tmp_path, "in/a.jsonl", "in/out/b.jsonl", "in/older/c.jsonl", "other/x/d.jsonl")
    place, out = tmp_path / "in", tmp_path / "in/out"
    [said] = files.left_out(place, out)
    assert (
        f"as {place}/older/c.jsonl; give the subfolders, too, or '{place}/**'" in said
    )
    for whole in (place / "older", place / "a.jsonl", tmp_path / "other", "s3://a/b"):
        assert [*files.left_out(whole, out)] == []


def test_files_of_other_kinds_that_are_left_out_are_told(tmp_path):
    lay(
        tmp_path,
        "in/b.jsonl.zst",
        "in/c.csv",
        "in/README.md",
        "in/LICENSE",
        "in/.x.zip",
    )
    lay(tmp_path, "in/deep/e.jsonl.bz2")
    lay(tmp_path, "in/deep/a.jsonl")
    place = tmp_path / "in"
    [said] = files.left_out(place, tmp_path / "out")
    assert said.startswith(
        f"{place}: files of other kinds are not read (3), as {place}/b.jsonl.zst;"
    )
    lay(tmp_path, "in/a.jsonl", "in/_SUCCESS")
    assert files._may_be_log(tmp_path / "_chats.zst")
    assert files._may_be_log(tmp_path / "2024.ZIP")
    _, said = files.left_out(place, tmp_path / "out")
    assert "not read (2), as" in said
    [said] = files.left_out(place / "*", tmp_path / "out")
    assert "not read (2), as" in said
    lay(tmp_path, "in/part-00000")
    _, said = files.left_out(place, tmp_path / "out")
    assert "not read (3), as" in said
    (place / "part-00000").unlink()
    assert [*files.left_out(place / "*.jsonl", tmp_path / "out")] == []
    assert [*files.left_out(place / "*.csv", tmp_path / "out")] == []


def test_an_ending_in_capitals_is_the_same(tmp_path):
    rows = ['{"messages": [{"role": "user", "content": "hi"}]}\n'] * 2
    lay(tmp_path, "in/a.JSONL", "in/b.ndjson", "in/c.NDJSON.GZ", "in/d.Json")
    with gzip.open(tmp_path / "in/c.NDJSON.GZ", "wt") as packed:
        packed.writelines(rows)
    for name in ("a.JSONL", "b.ndjson", "d.Json"):
        (tmp_path / "in" / name).write_text("".join(rows))
    assert names(tmp_path / "in", inside=tmp_path / "in") == [
        "a.JSONL",
        "b.ndjson",
        "c.NDJSON.GZ",
        "d.Json",
    ]
    for path in (tmp_path / "in").iterdir():
        assert len([*read_rows(path)]) == 2
        assert count_rows([path]) in (2, None)
    (tmp_path / "t.TSV").write_text('a\tb\n1,2,3,4\t"\n')
    [row] = read_rows(tmp_path / "t.TSV", quotes="text")
    assert row.row == {"a": "1,2,3,4", "b": '"'}


def test_numbers_in_names_are_sorted_by_their_value(tmp_path):
    parts = [f"in/{day}/part-{n}.jsonl" for day in (9, 10) for n in (1, 2, 10, 11)]
    lay(tmp_path, *parts[::-1])
    assert names(tmp_path / "in", inside=tmp_path) == parts
    assert names(tmp_path / "in/*/*.jsonl", inside=tmp_path) == parts
    lay(tmp_path / "all", "2024/a.jsonl", "\uff12\uff10/a.jsonl", "old/a.jsonl")
    assert len(names(tmp_path / "all")) == 3


def error(*places: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        find(places)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None
    return str(caught.value)


# --- on this machine ------------------------------------------------------------------------------


def test_a_folder_gives_the_known_kinds_directly_in_it_by_name(tmp_path):
    lay(tmp_path, "c.json", "b.parquet", "a.jsonl.gz", "e.json.gz", "d.jsonl")
    lay(
        tmp_path,
        "notes.txt",
        "x.csv",
        ".hidden.jsonl",
        "dataset_infos.json",
        "below/f.jsonl",
        "g.jsonl/part.txt",
    )
    wanted = ["a.jsonl.gz", "b.parquet", "c.json", "d.jsonl", "e.json.gz"]
    assert names(tmp_path, inside=tmp_path) == wanted
    assert names(f"{tmp_path}/", inside=tmp_path) == wanted
    assert names(f"file://{tmp_path}", inside=tmp_path) == wanted
    assert find([tmp_path / "c.json"]) == [
        LogFile(str(tmp_path / "c.json"), tmp_path / "c.json")
    ]


def test_a_folder_without_logs_is_searched_below_but_not_in_hidden_folders(tmp_path):
    lay(
        tmp_path,
        "README.md",
        "dataset_infos.json",
        "data/train-1.parquet",
        "data/train-0.parquet",
        "a/b/c.jsonl",
    )
    lay(tmp_path, ".cache/old.jsonl", "data/.partial/x.parquet")
    assert names(tmp_path, inside=tmp_path) == [
        "a/b/c.jsonl",
        "data/train-0.parquet",
        "data/train-1.parquet",
    ]


def test_links_are_followed_and_may_go_round(tmp_path):
    lay(tmp_path, "disk/data/a.jsonl", "top/.keep")
    (tmp_path / "top/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/data/round").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/data/up").symlink_to(tmp_path / "top")
    assert names(tmp_path / "top", inside=tmp_path) == ["top/linked/data/a.jsonl"]


def test_a_file_that_is_reached_twice_is_taken_once_where_it_came_first(
    tmp_path, monkeypatch
):
    lay(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "z.jsonl").symlink_to("a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert names("b.jsonl", tmp_path, "*.jsonl", "./a.jsonl") == [
        "b.jsonl",
        str(tmp_path / "a.jsonl"),
    ]


def test_a_pattern_matches_files_and_two_stars_go_down(tmp_path):
    lay(
        tmp_path,
        "a-1.jsonl",
        "a-2.jsonl",
        "a-3.txt",
        "b-1.jsonl",
        "deep/er/a-4.jsonl",
        "a-5.jsonl/inside.jsonl",
    )
    assert names(f"{tmp_path}/a-*", inside=tmp_path) == ["a-1.jsonl", "a-2.jsonl"]
    assert names(f"{tmp_path}/?-[12].jsonl", inside=tmp_path) == [
        "a-1.jsonl",
        "a-2.jsonl",
        "b-1.jsonl",
    ]
    assert names(f"{tmp_path}/**/a-4*", inside=tmp_path) == ["deep/er/a-4.jsonl"]
    said = error(f"{tmp_path}/c*")
    assert said.startswith(f"{tmp_path}/c* matches no .jsonl,")
    assert ".json.gz or .parquet file; give such files" in said


def test_a_name_that_is_there_is_no_pattern(tmp_path):
    lay(tmp_path, "day[1].jsonl", "day1.jsonl", "set[2]/in.jsonl", "set2/out.jsonl")
    assert names(tmp_path / "day[1].jsonl", inside=tmp_path) == ["day[1].jsonl"]
    assert names(tmp_path / "set[2]", inside=tmp_path) == ["set[2]/in.jsonl"]


def test_a_home_folder_is_spelled_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(lay(tmp_path, "logs/a.jsonl")))
    assert names("~/logs", inside=tmp_path) == ["logs/a.jsonl"]


def test_what_cannot_be_taken_is_an_error_that_names_it(tmp_path, monkeypatch):
    lay(tmp_path, "notes.txt", "empty/notes.txt")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/a.jsonl").symlink_to(tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    assert error("notes.txt").startswith("notes.txt is no .jsonl, .jsonl.gz")
    assert error("empty").startswith("empty holds no .jsonl, .jsonl.gz")
    assert error("absent.jsonl") == "absent.jsonl does not exist; check the spelling"
    assert error("gone").startswith("gone/a.jsonl is a broken link")
    assert error("").startswith("one of the places of logs is empty")
    assert "too long" in error("x" * 5000)


def test_a_name_that_is_not_utf8_is_an_error_that_can_be_shown(tmp_path):
    lay(tmp_path, os.fsdecode(b"caf\xe9.jsonl"))
    for place in (
        tmp_path,
        f"{tmp_path}/*.jsonl",
        tmp_path / os.fsdecode(b"caf\xe9.jsonl"),
    ):
        said = error(place)
        assert said == f"{tmp_path}/caf\ufffd.jsonl: its name is not UTF-8; rename it"
        assert said.encode()


def test_a_folder_that_may_not_be_read_is_no_empty_folder(tmp_path, monkeypatch):
    lay(tmp_path, "open/a.jsonl", "shut/b.jsonl")
    reads = Path.iterdir

    def refuse(
        folder: Path,
    ) -> Iterator[Path]:
        # root may read everything, so the bits of the mode will not do
        if folder.name == "shut":
            raise PermissionError(13, "Permission denied", str(folder))
        return reads(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert error(tmp_path) == f"{tmp_path}/shut cannot be read: Permission denied"


@pytest.mark.parametrize("place", ["datasets/team/chats", "team/chats"])
def test_a_data_set_without_its_scheme_gets_it_suggested(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "write hf://datasets/team/chats" in error(place)


def test_a_local_file_is_read_where_it_is_and_stays(tmp_path):
    path = lay(tmp_path, "a.jsonl") / "a.jsonl"
    with local(find([path])[0], tmp_path / "scratch") as here:
        assert here == path
    assert path.exists() and not (tmp_path / "scratch").exists()


# --- any file system of fsspec --------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[object]:
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def test_remote_folders_and_patterns_are_like_local_ones(memory):
    for name in ("b.jsonl", "a.parquet", "notes.txt", "below/c.jsonl", ".d.jsonl"):
        memory.pipe(f"/logs/{name}", b"{}\n")
    memory.pipe("/deep/data/e.json.gz", b"x")
    memory.pipe("/deep/.cache/f.jsonl", b"x")
    memory.pipe("/odd/day[1].jsonl", b"x")
    # A folder, as Spark writes it.
    memory.pipe("/parts/rows.parquet/part-0.parquet", b"x")
    assert (
        names("memory://logs")
        == names("memory://logs/")
        == ["memory://logs/a.parquet", "memory://logs/b.jsonl"]
    )
    assert names("memory://logs/**/?.jsonl") == [
        "memory://logs/b.jsonl",
        "memory://logs/below/c.jsonl",
    ]
    assert names("memory://logs/?.jsonl") == ["memory://logs/b.jsonl"]
    part = "memory://parts/rows.parquet/part-0.parquet"
    assert (
        names("memory://parts")
        == names("memory://parts/rows.parquet")
        == names("memory://parts/**")
        == [part]
    )
    assert names("memory://deep") == ["memory://deep/data/e.json.gz"]
    assert names("memory://odd/day[1].jsonl") == ["memory://odd/day[1].jsonl"]
    assert names("memory://logs/b.jsonl", "memory:///logs", "memory://logs/*") == [
        "memory://logs/b.jsonl",
        "memory:///logs/a.parquet",
    ]
    assert error("memory://logs/notes.txt").startswith(
        "memory://logs/notes.txt is no .jsonl"
    )
    assert error("memory://logs/z*").startswith("memory://logs/z* holds no .jsonl")
    assert (
        error("memory://nowhere")
        == "memory://nowhere does not exist; check the spelling"
    )


def test_a_copy_keeps_its_kind_and_is_gone_afterwards(memory, tmp_path):
    memory.pipe("/logs/a.jsonl.gz", b"some bytes")
    (file,) = find(["memory://logs/a.jsonl.gz"])
    assert file.path is None and file.stamp.endswith(", 10 bytes")
    with (
        pytest.raises(ZeroDivisionError),
        local(file, tmp_path / "new/scratch") as here,
    ):
        assert here.read_bytes() == b"some bytes" and here.name.endswith(".jsonl.gz")
        assert list(here.parent.iterdir()) == [here]
        raise ZeroDivisionError
    assert list((tmp_path / "new/scratch").iterdir()) == []


def test_a_file_that_changed_since_it_was_found_is_not_read(memory, tmp_path):
    memory.pipe("/logs/a.jsonl", b"one")
    (file,) = find(["memory://logs/a.jsonl"])
    memory.pipe("/logs/a.jsonl", b"two")
    assert find(["memory://logs/a.jsonl"])[0].stamp != file.stamp
    with pytest.raises(InputError, match="has changed since"), local(file, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def breaking(memory, monkeypatch, *answers: object) -> Counter[str]:
    """Let copies out of memory fail in turn: with an error, or by bytes that stay away. Counts the
    copies."""
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    left, counts, copy = list(answers), Counter[str](), type(memory).get_file

    def get_file(self: object, path: str, to: str) -> None:
        counts["copies"] += 1
        answer = left.pop(0) if left else None
        if isinstance(answer, Exception):
            Path(to).write_bytes(b"half of")
            raise answer
        if isinstance(answer, bytes):
            Path(to).write_bytes(answer)
        else:
            copy(self, path, to)

    monkeypatch.setattr(type(memory), "get_file", get_file)
    return counts


def test_a_copy_that_breaks_off_or_comes_short_is_begun_again(
    memory, tmp_path, monkeypatch
):
    memory.pipe("/logs/a.jsonl", b"all of it")
    counts = breaking(
        memory, monkeypatch, ConnectionResetError("reset"), TimeoutError(), b"short"
    )
    with local(find(["memory://logs/a.jsonl"])[0], tmp_path) as here:
        assert here.read_bytes() == b"all of it"
    assert counts["copies"] == 4


def test_a_copy_that_never_comes_says_to_run_again_and_leaves_nothing(
    memory, tmp_path, monkeypatch
):
    memory.pipe("/logs/a.jsonl", b"all of it")
    counts = breaking(memory, monkeypatch, *[b"short"] * 9)
    with (
        pytest.raises(InputError) as caught,
        local(find(["memory://logs/a.jsonl"])[0], tmp_path),
    ):
        pass
    assert "5 of 9 bytes were received" in str(caught.value) and str(
        caught.value
    ).endswith("run the same command again")
    assert counts["copies"] == 4 and list(tmp_path.iterdir()) == []


class Refused(Exception):
    """As the errors of HTTP libraries look from outside."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


@pytest.mark.parametrize(
    ("failure", "copies", "told"),
    [
        (Refused(403), 1, "may not be read; check your credentials"),
        (Refused(404), 1, "does not exist"),
        (PermissionError("denied"), 1, "may not be read"),
        (FileNotFoundError("/logs/a.jsonl"), 1, "does not exist"),
        (Refused(503), 4, "(status 503); check address and network"),
        (Refused(429), 4, "(status 429)"),
    ],
)
def test_only_what_may_pass_is_tried_again(
    failure, copies, told, memory, tmp_path, monkeypatch
):
    memory.pipe("/logs/a.jsonl", b"x")
    counts = breaking(memory, monkeypatch, *[failure] * 9)
    with (
        pytest.raises(InputError) as caught,
        local(find(["memory://logs/a.jsonl"])[0], tmp_path),
    ):
        pass
    assert told in str(caught.value) and counts["copies"] == copies


def test_a_full_disk_is_not_blamed_on_the_network(memory, tmp_path, monkeypatch):
    memory.pipe("/logs/a.jsonl", b"x")
    counts = breaking(memory, monkeypatch, OSError(28, "No space left on device"))
    with (
        pytest.raises(OSError, match="No space left"),
        local(find(["memory://logs/a.jsonl"])[0], tmp_path),
    ):
        pass
    assert counts["copies"] == 1 and list(tmp_path.iterdir()) == []


def test_no_secret_of_an_address_is_shown(memory, monkeypatch, tmp_path):
    shown = files._public
    assert (
        shown("https://me:pw@host/a.jsonl?X-Amz-Signature=abc&k=v#top")
        == "https://host/a.jsonl"
    )
    assert shown("https://token@host/a.jsonl?bare") == "https://host/a.jsonl"
    assert shown("sftp://me:p@ss@host/logs/*.jsonl") == "sftp://host/logs/*.jsonl"
    assert shown("s3://bucket/a?.jsonl") == "s3://bucket/a?.jsonl"
    assert shown("s3://bucket/a.jsonl?X-Amz-Signature=abc") == "s3://bucket/a.jsonl"
    assert (
        shown("hf://datasets/o/n@refs/pr/1/a.jsonl")
        == "hf://datasets/o/n@refs/pr/1/a.jsonl"
    )
    assert shown("abfs://box@account.dfs.core.windows.net/a.jsonl").startswith(
        "abfs://box@account"
    )
    assert "url" not in repr(LogFile("n", None, "s", "https://host/?key"))
    memory.pipe("/logs/a.jsonl", b"x")
    file = find(["memory://logs/a.jsonl"])[0]
    token = "hf_" + "a" * 34
    breaking(
        memory,
        monkeypatch,
        ValueError(f"bad https://u:pw@host/a.jsonl?sig=abc, {token}"),
    )
    with pytest.raises(InputError) as caught, local(file, tmp_path):
        pass
    assert (
        "(bad https://host/a.jsonl )" in str(caught.value)
        and caught.value.__cause__ is None
    )


def test_addresses_that_differ_only_in_secrets_are_not_mixed_up(memory):
    memory.pipe({"/a.jsonl?day=1": b"x", "/a.jsonl?day=2": b"y"})
    assert names("memory://a.jsonl?day=1", "memory:///a.jsonl?day=1") == [
        "memory://a.jsonl"
    ]
    assert error("memory://a.jsonl?day=1", "memory://a.jsonl?day=2").startswith(
        "two files are both called memory://a.j"
    )


def test_a_missing_package_is_named(monkeypatch):
    registry = pytest.importorskip("fsspec.registry")
    for scheme, package in {"s3": "s3fs", "gs": "gcsfs", "https": "aiohttp"}.items():
        monkeypatch.delitem(registry._registry, scheme, raising=False)
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
        place = f"{scheme}://somewhere/a.jsonl"
        assert (
            error(place)
            == f"{place} needs a package that is not installed; run `pip install {package}`"
        )


def test_an_address_that_means_something_else_says_how_it_is_written():
    assert error("hf://team/chats/a.jsonl").endswith(
        "did you mean hf://datasets/team/chats/a.jsonl?"
    )
    assert error("hf://models/team/thing").endswith("write hf://datasets/OWNER/NAME")
    assert error("hf://datasets/chats").endswith("write hf://datasets/OWNER/NAME")
    assert "write hf://datasets/team/chats " in error(
        "https://huggingface.co/datasets/team/chats/tree/main"
    )
    # A file it is.
    files._check_address(
        "https://huggingface.co/datasets/team/chats/resolve/main/a.jsonl"
    )
    assert "unpack" in error("zip://a.jsonl::https://host/a.zip")
    assert "Protocol not known: s4" in error("s4://bucket/a.jsonl")


# --- servers on this machine ----------------------------------------------------------------------


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Answering(BaseHTTPRequestHandler):
    """What the servers here share."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def test_files_of_a_web_server_are_found_and_copied(tmp_path):
    pytest.importorskip("aiohttp")
    index = b'<a href="../">up</a> <a href="a.jsonl">a</a> <a href="about.html">?</a>'

    class Web(Answering):
        def do_GET(self) -> None:
            match urlsplit(self.path).path:
                case "/logs/":
                    self.answer(200, index, Content_Type="text/html")
                case "/logs/a.jsonl":
                    self.answer(200, b"{}", ETag='"v1"')
                case "/shut.jsonl":
                    self.answer(403)
                case _:
                    self.answer(404)

    with serving(Web) as host:
        (file,) = find([f"{host}/logs/a.jsonl?key=secret"])
        assert (file.name, file.stamp) == (f"{host}/logs/a.jsonl", "v1, 2 bytes")
        with local(file, tmp_path) as here:
            assert here.read_bytes() == b"{}"
        assert (
            names(f"{host}/logs/")
            == names(f"{host}/logs/*.jsonl")
            == [f"{host}/logs/a.jsonl"]
        )
        assert "may not be read" in error(f"{host}/shut.jsonl?key=secret")
        assert (
            error(f"{host}/gone.jsonl?key=secret")
            == f"{host}/gone.jsonl does not exist; check the spelling"
        )


SETS = {
    "team/chats": {
        "README.md": b"words",
        "rows.jsonl": b"{}\n",
        "data/train-00001.parquet": b"one",
        "data/train-00000.parquet": b"zero",
    },
    "team/lines": {"dataset_infos.json": b"{}", "b.jsonl": b"{}\n", "a/c.json": b"[]"},
    "team/gated": {"rows.jsonl": b"{}\n"},
}


@pytest.fixture
def hub() -> Iterator[tuple[str, Counter[str]]]:
    """As much of the Hub's API as reading needs: what is known of a data set, its tree, its files
    by a redirect.

    Real ones page long trees, hold large files elsewhere (xet) and look at tokens; this one does
    not. The second time a file is asked for, it comes; the first time the server is busy.
    """
    counts: Counter[str] = Counter()

    class Hub(Answering):
        def do_GET(self) -> None:
            path = (
                unquote(urlsplit(self.path).path)
                .removeprefix("/api")
                .removeprefix("/datasets/")
            )
            owner, name, *rest = path.split("/") if "/" in path else (path, "")
            held = SETS.get(f"{owner}/{name}")
            if name == "shut" or (name == "gated" and rest[:1] == ["resolve"]):
                return self.answer(403, X_Error_Code="GatedRepo")
            if held is None:
                return self.answer(401, X_Error_Code="RepoNotFound")
            if rest[1:2] not in ([], ["main"], ["v1"]):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            inside = "/".join(rest[2:])
            match rest[:1]:
                case [] | ["revision"]:
                    return self.answer(
                        200,
                        json.dumps({"id": f"{owner}/{name}", "sha": "0" * 40}).encode(),
                    )
                case ["tree"]:
                    return self.tree(
                        held,
                        f"{inside}/" if inside else "",
                        "recursive=true" in self.path.lower(),
                    )
                case ["resolve"]:
                    return self.answer(
                        302,
                        Location=f"/datasets/{owner}/{name}/blob/main/{inside}?signed=secret",
                    )
                case ["blob"]:
                    counts[inside] += 1
                    return (
                        self.answer(503)
                        if counts[inside] == 1
                        else self.answer(200, held[inside])
                    )
            return self.answer(404)

        def tree(self, held: dict[str, bytes], inside: str, deep: bool) -> None:
            entries: dict[str, dict[str, object]] = {}
            for path, body in held.items():
                head, slash, _ = path.removeprefix(inside).partition("/")
                if path.startswith(inside) and slash:
                    entries[inside + head] = {
                        "type": "directory",
                        "oid": "t",
                        "size": 0,
                        "path": inside + head,
                    }
                if path.startswith(inside) and (deep or not slash):
                    entries[path] = {
                        "type": "file",
                        "oid": f"id-{path}",
                        "size": len(body),
                        "path": path,
                    }
            if not entries:
                return self.answer(404, X_Error_Code="EntryNotFound")
            return self.answer(
                200,
                json.dumps(list(entries.values())).encode(),
                Content_Type="application/json",
            )

    with serving(Hub) as host:
        yield host, counts


VISIT = """
import json, os, signal, sys
from pathlib import Path
from userlm.data import files
from userlm.rows import count_rows, read_rows
from userlm.types import InputError
files.PAUSES = (0.0,)
for place in sys.argv[2:]:
    try:
        for file in files.find([place]):
            with files.local(file, Path(sys.argv[1])) as here:
                if "KILL" in os.environ:
                    os.kill(os.getpid(), signal.SIGKILL)
                print(json.dumps([file.name, file.stamp, here.read_text(), here.suffix]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def visit(host: str, scratch: Path, *places: str, **environment: str) -> list[object]:
    """What a process of its own finds in places of a hub: `huggingface_hub` looks at HF_ENDPOINT
    only once."""
    known = {
        "HF_ENDPOINT": host,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(scratch / "home"),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", VISIT, str(scratch / "copies"), *places],
        env={**os.environ, **known, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_data_sets_of_the_hub_are_found_and_copied(hub, tmp_path):
    host, counts = hub
    chats = "hf://datasets/team/chats"
    zero = [
        f"{chats}/data/train-00000.parquet",
        "id-data/train-00000.parquet, 4 bytes",
        "zero",
        ".parquet",
    ]
    one = [
        f"{chats}/data/train-00001.parquet",
        "id-data/train-00001.parquet, 3 bytes",
        "one",
        ".parquet",
    ]
    rows = [f"{chats}/rows.jsonl", "id-rows.jsonl, 3 bytes", "{}\n", ".jsonl"]
    a, b = "hf://datasets/team/lines/a/c.json", "hf://datasets/team/lines/b.jsonl"
    assert visit(host, tmp_path, chats) == [zero, one]
    assert counts == {"data/train-00000.parquet": 2, "data/train-00001.parquet": 2}
    assert visit(
        host,
        tmp_path,
        f"{chats}/rows.jsonl",
        f"{chats}/data/",
        f"{chats}/**/*1.parquet",
    ) == [
        *(rows, zero, one, one),
    ]
    found = visit(
        host,
        tmp_path,
        "hf://datasets/team/lines",
        "hf://datasets/team/lines@v1/b.jsonl",
    )
    assert [row[0] for row in found] == [a, b, "hf://datasets/team/lines@v1/b.jsonl"]
    assert not list((tmp_path / "copies").iterdir())


@pytest.mark.slow
def test_the_hub_s_refusals_say_what_to_do(hub, tmp_path):
    host, _ = hub
    gated, shut, absent, old, gone = visit(
        host,
        tmp_path,
        "hf://datasets/team/gated",
        "hf://datasets/team/shut",
        "hf://datasets/team/absent",
        "hf://datasets/team/chats@v0",
        "hf://datasets/team/chats/data/train-7.parquet",
    )
    advice = (
        "accept its terms on https://huggingface.co/datasets/team/{}, run `hf auth "
        "login`, "
        "then run the same"
    )
    assert (
        gated
        == f"hf://datasets/team/gated/rows.jsonl is gated; {advice.format('gated')} command again"
    )
    assert (
        shut
        == f"hf://datasets/team/shut is gated; {advice.format('shut')} command again"
    )
    assert (
        "absent does not exist or is private; check the spelling or run `hf auth login`"
        in absent
    )
    assert "chats@v0 names a revision that does not exist" in old
    assert (
        gone
        == "hf://datasets/team/chats/data/train-7.parquet does not exist; check the spelling"
    )
    (offline,) = visit(host, tmp_path, "hf://datasets/team/chats", HF_HUB_OFFLINE="1")
    assert "cannot be reached offline; unset HF_HUB_OFFLINE" in offline


@pytest.mark.slow
def test_a_copy_that_a_killed_process_left_is_used_again(hub, tmp_path):
    host, counts = hub
    place = "hf://datasets/team/chats/rows.jsonl"
    assert visit(host, tmp_path, place, KILL="1") == []
    assert len(list((tmp_path / "copies").iterdir())) == 1
    assert counts["rows.jsonl"] == 2
    assert visit(host, tmp_path, place)[0][2] == "{}\n"
    assert counts["rows.jsonl"] == 2
    assert not list((tmp_path / "copies").iterdir())
