# /// script
# requires-python = ">=3.11"
# dependencies = ["mlflow>=3.6"]
# ///
"""MLflow receives the spans over OTLP, and shows requests and responses."""

import sys

import exported
import mlflow
from servers import free_port, running

port = free_port()
server = [
    sys.executable,
    "-P",
    "-m",
    "mlflow",
    "server",
    "--port",
    str(port),
    "--workers",
    "1",
]
server += ["--backend-store-uri", "sqlite:///mlflow.db"]
url = f"http://127.0.0.1:{port}"
with (
    exported.case("MLflow", "mlflow", "otel --to") as row,
    running(server, f"{url}/health"),
):
    header = {"OTEL_EXPORTER_OTLP_HEADERS": "x-mlflow-experiment-id=0"}
    exported.userlm(
        "export", str(exported.run()), "--as", "otel", "--to", url, **header
    )
    mlflow.set_tracking_uri(url)
    traces = mlflow.search_traces(locations=["0"], return_type="list")
    assert len(traces) == 2
    kinds = {span.name: span.span_type for span in traces[0].data.spans}
    assert kinds == {"conversation": "AGENT", "chat": "CHAT_MODEL"}
    row["note"] = f"{len(traces)} traces"
