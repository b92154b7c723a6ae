# /// script
# requires-python = ">=3.11"
# dependencies = ["inspect_ai>=0.3.200"]
# ///
"""Inspect lists and reads a log."""

import exported
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_sample

with exported.case("Inspect", "inspect_ai", "inspect") as row:
    file = exported.export("inspect", "eval")
    [listed] = list_eval_logs(".")
    log = read_eval_log(listed)
    assert (log.status, len(log.samples)) == ("success", 2)
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    first = log.samples[0]
    again = read_eval_log_sample(listed, id=first.id, epoch=first.epoch)
    assert again.messages[-1].text == first.messages[-1].text
    row["note"] = "the log is listed; its samples have scores"
