"""From decided finals to the champion: its folder (the same as of `personalize`), the registry, the
study's report.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.config import RunConfig, SpaceConfig, TuneConfig
from dreamfleet.data.names import safe_id
from dreamfleet.data.subjects import SubjectRequest
from dreamfleet.personalization.publishing import Publication, Published
from dreamfleet.runtime.progress import Progress
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.checkpoints import CheckpointFolder, json_lines
from dreamfleet.training.export import ADAPTER
from dreamfleet.training.output import CONFIG, OutputFolder
from dreamfleet.training.samples import INDEX
from dreamfleet.training.task import TrainOutcome
from dreamfleet.training.worker import HISTORY
from dreamfleet.tuning.finals import Exported, Finals
from dreamfleet.tuning.pictures import Shot
from dreamfleet.tuning.plots import write_plots
from dreamfleet.tuning.report import TuneReport, write_tune_report
from dreamfleet.tuning.results import SubjectTuned
from dreamfleet.tuning.space import applied
from dreamfleet.tuning.study import SubjectStudy

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles
    from dreamfleet.data.preparation import Preparation
    from dreamfleet.tracking import Run

CHAMPION, PLOTS, PUBLISHED = "champion", "plots", "published"


def publish_champion(
    *,
    study: SubjectStudy,
    finals: Finals,
    seed: int,
    exported: Exported,
    run: Run,
    request: SubjectRequest,
    preparation: Preparation,
    files: BaseFiles,
    folder: Path,
    sheets: Callable[[int], Folder],
    ruler: str,
    tracking_uri: str | None,
    progress: Progress,
    output: Path,
) -> SubjectTuned:
    """Write `champion/`, `plots/` and `report.html` below `folder`, and record all of it.

    Args:
        seed: the training seed whose adapter is published: the first of the new ones, unchosen.
        sheets: folder of a trial's pictures, by the number of its first attempt.
        ruler: of all that final scores depend on beside the adapter.
        output: of the whole command, for the command that makes the champion again.
    """
    from dreamfleet.tracking import Contest

    winner, place = finals.winner, folder / CHAMPION
    config = champion_config(study.config, finals, seed, place)
    out = OutputFolder.of(Folder(str(place)), None, study.name)
    out.begin(overwrite=True, info={"subject": study.name, "status": "finished"})
    adapter = {**exported.files, **_sample_files(exported), HISTORY: json_lines([])}
    steps = winner.contender.steps
    CheckpointFolder(out.checkpoints).write(ADAPTER, adapter, {"step": steps})
    contest = Contest(winner.alignment, ruler, winner.fidelity, study.tune.fidelity_margin)
    publication = Publication(
        outcome=TrainOutcome(study.name, "finished", steps),
        request=SubjectRequest(request.id, request.display_name, config, request.found),
        subject=preparation.subject_set(request),
        folder=out,
        base=files,
        hardware=_hardware(preparation),
        timings=preparation.timings,
        tracking_uri=tracking_uri,
        contest=contest,
    )
    published = publication.publish(run, progress)
    out.checkpoints.delete_folder(ADAPTER)
    alias = run.alias_of(published.model_version) or ""
    if alias == "candidate":
        progress.warn(
            f"{study.name}: version {published.model_version} is registered as candidate: the "
            "present champion is better or nearer to the subject, or was judged by other pictures, "
            "judges or photos"
        )
    result = _result(study, request, folder, finals, config, published, alias)
    plots = write_plots(study, folder / PLOTS)
    write_tune_report(
        TuneReport(
            study=study,
            finals=finals,
            result=result,
            photos=[photo.png for photo in preparation.subject_set(request).photos],
            exported=exported,
            plots=plots,
            sheets=sheets,
            command=again_command(output),
        )
    )
    run.set_tags({"champion.trial": winner.contender.number})
    _record(run, result, plots, folder)
    study.study.set_user_attr(PUBLISHED, {**_judged(study, ruler), **_plain(result)})
    return result


def again_command(output: Path) -> str:
    """What makes all of a command's output again."""
    return f"dreamfleet tune --config {shlex.quote(str(output / CONFIG))} --overwrite"


def published_before(
    study: SubjectStudy, request: SubjectRequest, folder: Path, ruler: str
) -> SubjectTuned | None:
    """The result of an earlier command on the very same trials and finals, if its champion is still
    there.
    """
    stored, now = study.study.user_attrs.get(PUBLISHED), _judged(study, ruler)
    same = stored and all(stored.get(name) == value for name, value in now.items())
    if not same or not (folder / CHAMPION).is_dir():
        return None
    values = {name: value for name, value in stored.items() if name not in now}
    return SubjectTuned(
        study.name, request.display_name, "finished", folder, trials=_counts(study), **values
    )


def _judged(study: SubjectStudy, ruler: str) -> dict[str, Any]:
    """What a champion is chosen from, and how."""
    return {"trials": study.done, "final_seeds": study.tune.final_seeds, "ruler": ruler}


def champion_config(config: RunConfig, finals: Finals, seed: int, place: Path) -> RunConfig:
    """What makes the champion again by `dreamfleet personalize`."""
    winner = finals.winner.contender
    own = applied(config, winner.params, seed=seed)
    train = own.train.model_copy(update={"max_train_steps": winner.steps})
    return own.model_copy(
        update={
            "train": train,
            "output_dir": str(place),
            "tune": TuneConfig(),
            "space": SpaceConfig(),
        }
    )


def _sample_files(exported: Exported) -> dict[str, bytes]:
    """Pictures below `samples/` with their index, as training leaves them."""
    files: dict[str, bytes] = {}
    index: list[dict[str, Any]] = []
    rows = zip(exported.shots, exported.pngs, exported.bare, strict=True)
    numbers: Counter[str] = Counter()
    for shot, png, bare in _comparable(list(rows)):
        name = f"{safe_id(shot.prompt)}_{numbers[shot.prompt]}.png"
        numbers[shot.prompt] += 1
        picture, plain = f"samples/{name}", f"samples/without_adapter/{name}"
        files[picture], files[plain] = png, bare
        index.append({"prompt": shot.prompt, "seed": shot.seed, "file": picture,
                      "without_adapter": plain})  # fmt: skip
    files[INDEX] = json.dumps(index, indent=1, ensure_ascii=False).encode()
    return files


def _comparable(rows: Sequence[tuple[Shot, bytes, bytes]]) -> list[tuple[Shot, bytes, bytes]]:
    """The subject's own prompt first."""
    return sorted(rows, key=lambda row: row[0].kind != "subject")


def _hardware(preparation: Preparation) -> str:
    session = preparation.session
    return "" if session is None else f"{session.num_gpus:g} GPU, {session.num_cpus:g} CPU"


def _counts(study: SubjectStudy) -> dict[str, int]:
    return dict(Counter(trial.state.name for trial in study.trials()))


def _result(
    study: SubjectStudy,
    request: SubjectRequest,
    folder: Path,
    finals: Finals,
    config: RunConfig,
    published: Published,
    alias: str,
) -> SubjectTuned:
    winner, host = finals.winner, finals.host
    return SubjectTuned(
        study.name,
        request.display_name,
        "finished",
        folder,
        trials=_counts(study),
        setting={**winner.contender.params, "train.max_train_steps": winner.contender.steps},
        alignment=winner.alignment,
        fidelity=winner.fidelity,
        host_alignment=host.alignment,
        host_fidelity=host.fidelity,
        run_id=published.run_id,
        model_version=published.model_version,
        alias=alias,
    )


def _plain(result: SubjectTuned) -> dict[str, Any]:
    names = ("setting", "alignment", "fidelity", "host_alignment", "host_fidelity", "run_id",
             "model_version", "alias")  # fmt: skip
    return {name: getattr(result, name) for name in names}


def _record(run: Run, result: SubjectTuned, plots: dict[str, Path], folder: Path) -> None:
    scores = {
        "final.alignment": result.alignment,
        "final.fidelity": result.fidelity,
        "final.host_alignment": result.host_alignment,
        "final.host_fidelity": result.host_fidelity,
    }
    run.log_metrics(scores, int(result.setting["train.max_train_steps"]))
    run.set_tags({f"champion.{name}": value for name, value in result.setting.items()})
    for path in plots.values():
        run.log_artifact(path, PLOTS)
    run.log_artifact(folder / "report.html", "study")
    run.finish()
