"""`bench/gpu.sh`, dry: on a CPU, at tiny size, with what a bare GPU machine has installed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"

BARE = """
import sys
for name in (
    "datasets", "flash_attn", "fsspec", "h2", "openai", "orjson", "polars", "py3langid", "pydantic",
    "rensa", "starlette", "tiktoken", "trl", "uvicorn",
):
    sys.modules[name] = None  # cannot be imported
# Loaded here once, so that each part, a fork, has it.
import transformers.models.llama.modeling_llama
import transformers.models.mistral.modeling_mistral
import userlm.training.train
"""

VLLM = """
from types import SimpleNamespace

class LLM:
    def __init__(self, model, **options):
        assert json.loads(open(model + "/config.json").read())["architectures"] == ["LlamaForCausalLM"]
    def generate(self, prompts, sampling, use_tqdm):
        said = [range(one["max_tokens"]) for one in sampling]
        assert len(said) == len(prompts)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]) for ids in said]
    def reset_prefix_cache(self):
        pass

def SamplingParams(**options):
    return options
"""


@pytest.mark.slow
def test_every_part_runs_tiny_without_a_gpu_and_without_packages_that_a_bare_machine_lacks(
    tmp_path,
):
    (tmp_path / "sitecustomize.py").write_text(BARE)
    (tmp_path / "vllm.py").write_text("import json\n" + VLLM)
    out = tmp_path / "gpu.json"
    ran = subprocess.run(
        [BENCH / "gpu.sh", "--tiny", "--seed", "3", "--out", out],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    record = json.loads(out.read_text())
    assert ran.returncode == 0, ran.stdout + out.with_suffix(".log").read_text()
    assert {name: part["status"] for name, part in record["parts"].items()} == {
        "attention": "done",
        "train-1b": "done",
        "trl-1b": "skipped",
        "turns-1b": "done",
        "vllm-1b": "done",
        "train-8b": "done",
        "trl-8b": "skipped",
        "turns-8b": "done",
    }
    assert record["parts"]["trl-1b"]["why"] == "trl is not installed"
    assert record["seed"] == 3 and record["device"] == "cpu"
    assert "torch" in record["machine"]
    rows = [row for part in record["parts"].values() for row in part.get("results", ())]
    # Two architectures in two precisions and the engine; one epoch, the card and three numbers of
    # conversations, for both shapes; three numbers for vLLM.
    assert len(rows) == 5 + 2 * (1 + 4) + 3
    assert all(row.get("equal", True) for row in rows)
    epoch, *_ = record["parts"]["train-1b"]["results"]
    assert epoch["sizes"]["conversations"] == 3
    large, *_ = record["parts"]["train-8b"]["results"]
    assert large["sizes"] == {**epoch["sizes"], "checkpointing": True}
    assert large["loss"] == pytest.approx(epoch["loss"], rel=1e-5)
    assert epoch["rate"] == pytest.approx(epoch["sizes"]["tokens"] / epoch["seconds"])
    assert [row["measured"] for row in record["parts"]["turns-8b"]["results"]] == [
        "model card, 1 at once",
        "userlm, 1 at once",
        "userlm, 8 at once",
        "userlm, 32 at once",
    ]
    assert ran.stdout.count("\n| ") == 1 + 1 + len(rows) + 2  # head, rule, two skipped
    assert "its figures mean nothing" in ran.stdout


FAKE = """
import os, subprocess, sys, time
import gpu
from parts import Part, Skipped

def fine(out):
    yield {"measured": "fine", "rate": 2000.0, "unit": "turns"}

def slow(out):
    yield {"measured": "begun", "pid": subprocess.Popen(["sleep", "60"]).pid}
    time.sleep(60)

def crash(out):
    yield {"measured": "before"}
    os.abort()

def error(out):
    raise ValueError("no luck\\nat all")
    yield

def skipped(out):
    raise Skipped("no room")
    yield

def wrong(out):
    yield {"measured": "wrong", "equal": False, "note": "by far"}

parts = {name: Part(globals()[name], 0.2) for name in ("slow", "crash", "error", "skipped", "wrong")}
gpu.PARTS = {**parts, "absent": Part(fine, 0.2, "no_such_package"), "fine": Part(fine, 0.2)}
sys.exit(gpu.main())
"""


def fake(tmp_path: Path, *options: object) -> tuple[subprocess.Popen[str], Path]:
    """The bench with other parts, begun; and its file."""
    (tmp_path / "fake.py").write_text(FAKE)
    out = tmp_path / "out.json"
    process = subprocess.Popen(
        [sys.executable, tmp_path / "fake.py", "--out", out, *map(str, options)],
        env={**os.environ, "PYTHONPATH": f"{BENCH}:{BENCH.parent / 'src'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, out


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended may still wait for its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_parts_that_take_too_long_crash_or_fail_leave_the_rest_and_the_table_says_why(
    tmp_path,
):
    process, out = fake(tmp_path, "--minutes", 0.1)  # 1.2 s for each
    table, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    parts = json.loads(out.read_text())["parts"]
    assert {
        name: (part["status"], part.get("why")) for name, part in parts.items()
    } == {
        "slow": ("out of time", "ended after 1 s"),
        "crash": ("failed", "its process ended with code -6"),
        "error": ("failed", "ValueError: no luck"),
        "skipped": ("skipped", "no room"),
        "wrong": ("done", None),
        "absent": ("skipped", "no_such_package is not installed"),
        "fine": ("done", None),
    }
    begun = parts["slow"]["results"][0]
    assert begun["measured"] == "begun" and not is_alive(begun["pid"])
    assert parts["crash"]["results"] == [{"measured": "before"}]
    assert 1.2 <= parts["slow"]["seconds"] < 10
    for words in (
        "OUT OF TIME: ended after 1 s",
        "FAILED: ValueError: no luck",
        "DOES NOT AGREE: by far",
        "2,000.0 turns",
    ):
        assert words in table
    assert "no luck\nat all" in out.with_suffix(".log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_keeps_what_was_measured(tmp_path, number):
    process, out = fake(tmp_path, "--parts", "fine,slow,crash")
    while "begun" not in (out.read_text() if out.exists() else ""):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    table, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    parts = json.loads(out.read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "fine": "done",
        "slow": "stopped",
    }
    assert not is_alive(parts["slow"]["results"][0]["pid"])
    assert "2,000.0 turns" in table and "STOPPED: by a signal" in table


def test_an_unknown_part_is_named(tmp_path):
    process, out = fake(tmp_path, "--parts", "fine,nice")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2 and "--parts: nice; there are slow, crash" in said
    assert not out.exists()


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import gpu

    return gpu


@pytest.mark.slow
def test_attention_that_sees_what_comes_later_does_not_agree(gpu, monkeypatch):
    from torch.nn.functional import scaled_dot_product_attention

    from userlm.models import attention

    def of_all(query, keys, values, *_):
        return scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    monkeypatch.setattr(attention, "_attend", of_all)
    results = list(gpu.attention(gpu.Run("1b", True, "cpu", 0, {})))
    assert [result["equal"] for result in results] == [False] * 5


def test_what_is_trained_fits_into_the_free_memory(gpu):
    """1.24 and 8.03 billion weights at 18 bytes with AdamW or 10 with Adafactor, 8,192 tokens at 2.1
    and 0.8 MB, and 4 GB."""
    affordable = gpu.epoch.affordable
    # 22.3 + 17.2 + 4.
    assert affordable("1b", 43.6e9) == ("adamw_torch", 8192)
    assert affordable("1b", 43.4e9) == ("adamw_torch", 4096)
    # 12.4 + 4.3 + 4.
    assert affordable("1b", 24e9) == ("adafactor", 2048)
    # 144.5 + 1.6 + 4 is too much for a H200; 80.3 + 6.6 + 4 is not.
    assert affordable("8b", 149e9) == ("adafactor", 8192)
    # 80.3 + 1.6 + 4.
    with pytest.raises(gpu.Skipped, match="needs 86 GB, and 80 are free"):
        affordable("8b", 80e9)


def test_operations_are_those_of_layers_of_the_head_at_targets_and_of_causal_attention(
    gpu,
):
    """A layer has 4,096 + 2,048 + 2,048 + 4,096 weights of attention, 3 x 64 x 176 of the rest and
    128 of norms: 46,208. For 10 tokens, 3 of them targets, in 2 layers of width 64:
    6 x 92,416 x 10 + 6 x 64 x 1,000 x 3 + 6 x 2 x 64 x 100."""
    from userlm.flip import Row, TargetSpan

    model = gpu.dialogues.llama("tiny", 1000, 0)
    row = Row(tuple(range(10)), (TargetSpan(0, 5, 6, 8),))
    assert gpu.epoch.useful_flops(model, [row]) == 5_544_960 + 1_152_000 + 76_800


def test_the_peak_of_a_device_is_known_by_its_name_or_not_at_all(gpu):
    peak = gpu.epoch.peak_flops
    assert peak("NVIDIA H200") == 989e12
    assert peak("NVIDIA H200 NVL") == 835e12
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak("cpu") is None
