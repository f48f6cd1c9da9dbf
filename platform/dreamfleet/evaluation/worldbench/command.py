"""The benchmark as a command: plain options in, result files out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dreamfleet.bases import inspect_base, load_base
from dreamfleet.errors import BadInputError, TrainingError
from dreamfleet.evaluation.judges import JudgeSpec
from dreamfleet.evaluation.worldbench.frozen import check_frozen, frozen_now
from dreamfleet.evaluation.worldbench.guidance import measure_base, read_gate, write_gate
from dreamfleet.evaluation.worldbench.plan import BenchSettings, named_hosts
from dreamfleet.evaluation.worldbench.publish import check_text, publish, shipped_scorer
from dreamfleet.evaluation.worldbench.run import WorldBench
from dreamfleet.evaluation.worldbench.summary import GUIDANCES

Report = Callable[[str], None]
GATING_ORACLE = "A"  # B is kept for final scores
BASE_REPORT = "base.json"


def check_base(output_dir: Path, options: Mapping[str, Any], report: Report) -> None:
    """Measure the bare base by guidance scale; writes `base.json` (protocol, step 2)."""
    guidance = options.get("guidance")
    base = load_base(str(options["base_model"]), device=options["device"])
    steps = int(options["num_inference_steps"])
    scorer, evaluators = shipped_scorer(GATING_ORACLE)
    gate = measure_base(
        base,
        scorer.oracle,
        guidances=GUIDANCES if guidance is None else (float(guidance),),
        images_per_state=int(options["images_per_prompt"]),
        num_inference_steps=steps,
        judged_by=evaluators,
        kept=output_dir,
        report=report,
    )
    gate["frozen"] = frozen_now(base.hash, steps)
    write_gate(gate, output_dir / BASE_REPORT)
    report(f"guidance {gate['guidance']:g}; {output_dir / BASE_REPORT}")


def check_hosts(output_dir: Path, options: Mapping[str, Any], report: Report) -> None:
    """Train hosts on subjects and score them against the bare base (protocol, step 3).

    Raises:
        TrainingError: trainings broke down; all others are written.
    """
    gate = read_gate(Path(options["base_report"])) if options.get("base_report") else {}
    base_hash = inspect_base(str(options["base_model"])).hash
    frozen = frozen_now(base_hash, int(options["num_inference_steps"]))
    check_frozen(gate.get("frozen", {}), frozen, str(options.get("base_report")))
    settings = BenchSettings(
        split=str(options["split"]),
        num_subjects=int(options["subjects"]),
        first_subject=int(options["first_subject"]),
        steps=parse_steps(str(options["steps"])),
        images_per_prompt=int(options["images_per_prompt"]),
        class_images=int(options["class_images"]),
        num_inference_steps=int(options["num_inference_steps"]),
        guidance_scale=options.get("guidance", gate.get("guidance")),
        training_seed=int(options["seed"]),
        num_class_images=int(options["num_class_images"]),
    )
    hosts = named_hosts([name.strip() for name in str(options["hosts"]).split(",")])
    scorer, evaluators = shipped_scorer(GATING_ORACLE)
    broken = WorldBench(
        base_name=str(options["base_model"]),
        hosts=hosts,
        settings=settings,
        scorer=scorer,
        evaluators=evaluators,
        output_dir=output_dir,
        device=str(options["device"]),
        report=report,
    ).run()
    judges = JudgeSpec(world=True, oracle=GATING_ORACLE, required=True).fingerprint()
    summary = publish(output_dir, settings, gate.get("scored_states"), frozen, judges)
    report(check_text(summary))
    report(f"results, table and pictures: {output_dir}")
    if broken:
        raise TrainingError(f"not in the table: {'; '.join(broken)}")


def write_evidence(output_dir: Path, options: Mapping[str, Any], report: Report) -> None:
    """Put a finished ladder and the base's measurement into a page of the docs."""
    from dreamfleet.evaluation.worldbench.evidence import fill_page

    for name in ("base_report", "docs"):
        if not options.get(name):
            raise BadInputError(
                f"--mode evidence: --{name.replace('_', '-')} is missing; expected "
                "--base-report base.json --docs docs/evidence.md --output-dir LADDER"
            )
    page = Path(options["docs"])
    fill_page(page, Path(options["base_report"]), output_dir)
    report(f"{page}: measured block written")
    if options.get("settings"):
        settle(Path(options["settings"]), Path(options["base_report"]), output_dir, options)
        report(f"{options['settings']}: guidance, scored states, hosts and hashes settled")


def settle(
    path: Path, base_report: Path, ladder: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Write what steps 1 to 3 found for the studies: guidance, scored states, each host's N and
    whether it is diseased, and the hashes that are frozen from here on.
    """
    from dreamfleet.evaluation.results import SUMMARY, read_summary
    from dreamfleet.evaluation.studies.command import current_hashes
    from dreamfleet.evaluation.studies.settings import write_settings

    gate, ladders = read_gate(base_report), read_summary(ladder / SUMMARY)["ladders"]
    hosts = {
        name: {"diseased": bool(own["diseased"]), "n": own["at"] or own["learnt_at"]}
        for name, own in ladders.items()
    }
    settled = {
        "guidance": gate["guidance"],
        "scored_states": gate["scored_states"],
        "hosts": hosts,
        "frozen": current_hashes(str(options["base_model"])),
    }
    write_settings(path, **settled)
    return settled


def parse_steps(text: str) -> tuple[int, ...]:
    """ "200,400" -> (200, 400).

    Raises:
        BadInputError: something else than whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadInputError(
            f"steps {text!r}: expected rising whole numbers with commas between, e.g. 200,400,800"
        ) from error
