# /// script
# requires-python = ">=3.11"
# dependencies = ["arize-phoenix>=12"]
# ///
"""Phoenix receives the spans over OTLP, and reads messages in them."""

import json
import os
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import exported
from servers import free_port, running

port = free_port()
os.environ |= {"PHOENIX_PORT": str(port), "PHOENIX_GRPC_PORT": str(free_port())}
os.environ |= {
    "PHOENIX_WORKING_DIR": str(Path.cwd()),
    "PHOENIX_TELEMETRY_ENABLED": "false",
}
server = [str(Path(sys.executable).with_name("phoenix")), "serve"]
url = f"http://127.0.0.1:{port}"
with (
    exported.case("Phoenix", "arize-phoenix", "otel --to") as row,
    running(server, f"{url}/healthz"),
):
    exported.userlm("export", str(exported.run()), "--as", "otel", "--to", url)
    spans = []
    for _ in range(20):
        with urlopen(f"{url}/v1/projects/default/spans?limit=100") as answer:
            spans = json.load(answer)["data"]
        if len(spans) == 4:
            break
        time.sleep(1)
    calls = [span for span in spans if span["span_kind"] == "LLM"]
    assert len(spans) == 4 and len(calls) == 2
    assert "llm.output_messages.0.message.content" in calls[0]["attributes"]
    row["note"] = f"{len(spans)} spans, of which {len(calls)} are calls with messages"
