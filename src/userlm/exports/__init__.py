"""Conversations in the formats of others. `userlm export` runs this.

lineage        the files of conversations, who made them, and what may be done with them
training       messages, prompt-completion, dpo and sharegpt: rows for trainers
spans          otel: a trace for each conversation; `protobuf` sends them
inspect_log    inspect: a log of Inspect
table          parquet
"""
