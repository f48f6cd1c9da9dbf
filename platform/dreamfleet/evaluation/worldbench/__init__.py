"""WorldBench: held-out individuals of the drawn world, trained from one photo, scored by an oracle.

plan       subjects, hosts, prompts, seeds
ladder     one training run, read at several steps
run        all pairs of subject and host, resumable
summary    tables, paired differences, the rules of docs/protocol.md
guidance   what the bare base can do: guidance scale and scored states
publish    results.parquet, summary.json, table.md, picture grids
"""

from dreamfleet.evaluation.worldbench.guidance import measure_base, read_gate, write_gate
from dreamfleet.evaluation.worldbench.plan import BenchSettings, Host, named_hosts
from dreamfleet.evaluation.worldbench.publish import check_text, publish, shipped_scorer
from dreamfleet.evaluation.worldbench.run import WorldBench
from dreamfleet.evaluation.worldbench.summary import summarise

__all__ = [
    "BenchSettings",
    "Host",
    "WorldBench",
    "check_text",
    "measure_base",
    "named_hosts",
    "publish",
    "read_gate",
    "shipped_scorer",
    "summarise",
    "write_gate",
]
