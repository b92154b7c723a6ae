# /// script
# requires-python = ">=3.11"
# dependencies = ["datasets>=4"]
# ///
"""`datasets` reads an export in parquet."""

import exported
from datasets import load_dataset

with exported.case("datasets", "datasets", "parquet") as row:
    file = exported.export("parquet", "parquet")
    rows = load_dataset("parquet", data_files=file, split="train")
    assert sorted(rows["solved"]) == [False, True]
    assert rows[1]["messages"][1]["content"].endswith("é😀")
    row["note"] = f"{len(rows)} conversations"
