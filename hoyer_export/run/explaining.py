"""Where the time of a measured file goes, for the report: what ``explain`` finds in a tenth of its benchmark."""

from collections import defaultdict
from pathlib import Path

from hoyer_export.deploy.explain import explain
from hoyer_export.errors import HoyerExportError
from hoyer_export.recipe.tables import Bench
from hoyer_export.report.stage_records import FileLatency, NodeLatency


def explained(latency: FileLatency, path: Path, bench: Bench) -> FileLatency:
    """Return the latency with that of its nodes; as it is where they cannot be told (a file above 2 GiB)."""
    try:
        found = explain(path, batch_size=bench.batch_size, threads=bench.threads, min_seconds=bench.min_seconds / 10)
    except HoyerExportError:
        return latency
    nodes = [NodeLatency(layer=it.layer or it.name, op=it.op, ms=it.ms, macs=it.macs) for it in found.nodes if it.macs]
    others: dict[str, float] = defaultdict(float)
    for node in found.nodes:
        if not node.macs:
            others[node.op or node.name] += node.ms
    nodes += [NodeLatency(layer="", op=op, ms=ms) for op, ms in others.items()]
    return latency.model_copy(update={"nodes": tuple(nodes), "findings": found.findings})
