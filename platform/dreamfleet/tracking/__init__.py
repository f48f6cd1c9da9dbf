"""MLflow: runs, per-step figures, pictures, and the adapter as a registered model version.

    tracker = open_tracker(config.tracking, dreamfleet_home() / "spool", notify=progress.warn)
    run = tracker.start_run("biscuit", params=config.model_dump(), tags={"subject": "biscuit"})
    run.log_metrics({"loss": 0.3}, step=1)
    version = run.register_adapter(out, "biscuit", base_model=str(base.path), tags={"method":
    "dreambooth"})
    run.finish()
    tracker.close()

Nothing here waits for a server while training runs, and nothing raises because one is down: every
record first goes
into a journal under DREAMFLEET_HOME/spool, and a background thread plays the journal to MLflow.
What a dead server
did not take stays there; the next run sends it, and so does `flush_spool`.

This is the only package that imports mlflow, and it does so lazily.
"""

from dreamfleet.tracking.base import (
    Contest,
    NullRun,
    NullTracker,
    Run,
    RunHandle,
    Tracker,
    flatten,
    resolve_uri,
)
from dreamfleet.tracking.mlflow_tracker import MlflowRun, MlflowTracker, open_run, open_tracker
from dreamfleet.tracking.spool import FlushResult, flush_spool

__all__ = [
    "Contest",
    "FlushResult",
    "MlflowRun",
    "MlflowTracker",
    "NullRun",
    "NullTracker",
    "Run",
    "RunHandle",
    "Tracker",
    "flatten",
    "flush_spool",
    "open_run",
    "open_tracker",
    "resolve_uri",
]
