# /// script
# requires-python = ">=3.11"
# dependencies = ["xllamacpp", "gguf", "safetensors"]
# ///
"""llama.cpp's server, from the wheel of xllamacpp, with `userlm-small` as GGUF: the words of the
model on this machine at temperature 0, and its P(end).

Then, packed and not, with the model here that has the very weights of the GGUF: token by token
along the turns of the model here, is the most probable one the same there?"""

import json
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file, save_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""The names of modules, in transformers and in GGUF."""
END, CLOSE = "<|endconversation|>", "<|im_end|>"
KINDS = {"F32": 1.0, "Q8_0": 0.95, "Q4_1": 0.9}
"""How weights are packed, and which share of tokens should be the same."""
LARGEST_RATIO = 1.05
"""Of P(end) there and here. Both compute in float32, in another order."""


def local(*arguments: object) -> str:
    """Return what `local_user.py` prints."""
    script = Path(__file__).parent / "lib" / "local_user.py"
    command = [os.environ["PEER_USERLM_PYTHON"], script, *map(str, arguments)]
    source = {"PYTHONPATH": os.environ["PEER_USERLM"]}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **source}
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    return done.stdout


def write_gguf(folder: Path, path: Path, kind: str) -> None:
    """Write the model of a folder, with both of its ends in the metadata, and its matrices packed
    as `kind`; give the folder the weights as they are unpacked."""
    packing = gguf.GGMLQuantizationType[kind]
    unpacked = {}
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["attn_q"])
    writer.add_head_count_kv(heads["attn_k"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    ids = {id: text for text, id in tokenizer["model"]["vocab"].items()} | added
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([ids[id] for id in range(config["vocab_size"])])
    writer.add_token_types(
        [
            kinds.CONTROL if id in added else kinds.NORMAL
            for id in range(config["vocab_size"])
        ]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    named = {text: id for id, text in added.items()}
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(named[CLOSE])
    writer.add_eot_token_id(named[END])
    for name, weight in load_file(folder / "model.safetensors").items():
        unpacked[name] = weight
        if weight.ndim == 2:
            packed = gguf.quants.quantize(weight, packing)
            unpacked[name] = gguf.quants.dequantize(packed, packing)
        module = name.removesuffix(".weight")
        layer = ""
        if module.startswith("model.layers."):
            _, _, number, module = module.split(".", 3)
            layer = f"blk.{number}."
        place = NAMES[module]
        if place in heads:  # in GGUF the two halves of what RoPE rotates alternate
            rows, width = weight.shape
            halves = weight.reshape(heads[place], 2, rows // heads[place] // 2, width)
            weight = halves.swapaxes(1, 2).reshape(rows, width)
        if weight.ndim == 2:
            packed = gguf.quants.quantize(np.ascontiguousarray(weight), packing)
            writer.add_tensor(f"{layer}{place}.weight", packed, raw_dtype=packing)
        else:
            writer.add_tensor(f"{layer}{place}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(unpacked, folder / "model.safetensors", {"format": "pt"})


def serve(path: Path) -> xllamacpp.Server:
    """Return a running server of a GGUF file."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.fit_params = 2048, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    return xllamacpp.Server(params)


def print_row(how: str, ok: bool, note: str) -> None:
    row = {"harness": "llama.cpp (xllamacpp)", "version": version("xllamacpp")}
    print(json.dumps({**row, "how": how, "ok": ok, "note": note}), flush=True)


def turns(url: str) -> None:
    """Compare whole turns, and P(end)."""
    rows = json.loads(local("compare", f"{url}/v1"))
    equal = sum(here[:2] == there[:2] for here, there in rows)
    ratios = [there[2] / here[2] for here, there in rows]
    largest = max(max(ratio, 1 / ratio) for ratio in ratios)
    print_row(
        "trained: by URL",
        equal == len(rows) and largest < LARGEST_RATIO,
        f"{equal} of {len(rows)} turns of userlm-small in float32 equal to those of the "
        f"model here; P(end) within a factor of {largest:.4f}",
    )


def tokens(kind: str, url: str, folder: Path) -> None:
    """Compare single tokens."""
    rows = json.loads(local("tokens", url, folder.resolve()))
    share = sum(same for same, _ in rows) / len(rows)
    off = sorted(each for _, each in rows)
    print_row(
        f"the same weights as {kind}",
        share >= KINDS[kind],
        f"{share:.1%} of {len(rows)} most probable tokens equal to those of the model here; their "
        f"log-probabilities differ by {off[len(off) // 2]:.2g} (median), {off[-1]:.2g} (largest)",
    )


def main() -> None:
    """Print the rows."""
    whole = Path("weights")
    whole.mkdir()
    local("weights", whole.resolve())
    for kind in KINDS:
        folder = Path(shutil.copytree(whole, kind))
        write_gguf(folder, Path(f"{kind}.gguf"), kind)
        server = serve(Path(f"{kind}.gguf"))
        if kind == "F32":
            turns(server.listening_address)
        tokens(kind, server.listening_address, folder)
        del server


main()
os._exit(0)  # the server's threads do not end
