# /// script
# requires-python = ">=3.11"
# dependencies = ["trl>=1.10", "datasets>=4"]
# ///
"""TRL trains a step on rows as they are. Without a GPU, PyTorch for a CPU is enough: install it into
`.peers/trl_export` first, or pip brings the large one."""

import os
from pathlib import Path

import exported
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

MODEL = str(Path(os.environ["PEER_USERLM"], "userlm/assets/models/assistant-tiny"))
SETTINGS = {"max_steps": 1, "per_device_train_batch_size": 1, "report_to": "none"}
SETTINGS |= {"use_cpu": True, "bf16": False, "save_strategy": "no", "output_dir": "out"}

FORMS = [("messages",), ("messages", "--for", "user"), ("prompt-completion",), ("dpo",)]
for form, *options in FORMS:
    with exported.case("TRL", "trl", " ".join((form, *options))) as row:
        file = exported.export(form, "jsonl", *options)
        rows = load_dataset("json", data_files=file, split="train")
        dpo = form == "dpo"
        config = (DPOConfig if dpo else SFTConfig)(**SETTINGS)
        trainer = (DPOTrainer if dpo else SFTTrainer)(
            MODEL, args=config, train_dataset=rows
        )
        loss = trainer.train().training_loss
        row["note"] = f"{type(trainer).__name__}, {len(rows)} rows, loss {loss:.2f}"
