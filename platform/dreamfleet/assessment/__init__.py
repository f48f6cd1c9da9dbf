"""`dreamfleet evaluate`, `benchmark`, `compare`: adapters judged by published protocols.

adapter, or a recipe trained on a benchmark's subjects → pictures, drawn and scored by Ray Data
→ results.parquet, summary.json, report.html, an MLflow run → paired differences
"""

from dreamfleet.assessment.benchmarks import BenchmarkPlan, benchmark
from dreamfleet.assessment.common import AssessmentResult, JudgeNames
from dreamfleet.assessment.comparisons import compare, comparison_lines
from dreamfleet.assessment.evaluations import evaluate

__all__ = [
    "AssessmentResult",
    "BenchmarkPlan",
    "JudgeNames",
    "benchmark",
    "compare",
    "comparison_lines",
    "evaluate",
]
