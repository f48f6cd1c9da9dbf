"""The command line: parse, build, call. Nothing heavy is imported before a command runs.

Exit codes: 0 success, 2 bad input, 130 interrupted, 1 anything else. Messages for people go to
stderr, results to stdout; a traceback is shown only with --debug.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dreamfleet import __version__
from dreamfleet.errors import BadInputError, DreamfleetError

if TYPE_CHECKING:
    from PIL import Image

    from dreamfleet.assessment import JudgeNames
    from dreamfleet.config import RunConfig
    from dreamfleet.personalization import PersonalizeResult

INTERRUPTED = 130
SECTION_TITLES = {
    "": "Run", "sude": "SuDe", "cluster": "Ray cluster", "tracking": "MLflow",
    "tune": "Search", "space": "What is searched",
}  # fmt: skip

Command = Callable[..., Any]


def _underscores_too(name: str) -> str:
    return name.replace("_", "-")


CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": _underscores_too,
    "max_content_width": 110,
}


def debug_option(command: Command) -> Command:
    """`--debug`, before or after the command's name; `main` looks for it."""
    return click.option(
        "--debug", is_flag=True, expose_value=False, help="Show tracebacks and library warnings."
    )(command)


class ConfigCommand(click.Command):
    """A command whose options are the configuration's fields, made when the command is used."""

    _fields: list[click.Option] | None = None
    search = False  # whether the sections that only `tune` reads belong to it

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from dreamfleet import flags

        if self._fields is None:
            self._fields = flags.options(search=self.search)
        return [*super().get_params(ctx), *self._fields]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options in the sections of the YAML file."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(self._section(parameter), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    @staticmethod
    def _section(parameter: click.Parameter) -> str:
        if not (parameter.name or "").startswith("config__"):
            return "Options"
        section, _, name = str(parameter.name).removeprefix("config__").partition("__")
        key = section if name else ""
        return SECTION_TITLES.get(key, key.capitalize())


class SearchCommand(ConfigCommand):
    """A command that reads the sections `tune` and `space` too."""

    search = True


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="dreamfleet", message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """A few photos of one subject in, a measured adapter of a text-to-image model out.

    \b
    dreamfleet personalize photos/ --class-word dog --output-dir runs/biscuit
    dreamfleet generate --adapter runs/biscuit --prompt "a photo of sks dog" --output-dir pictures
    """


def config_option(command: Command) -> Command:
    return click.option(
        "--config", "config_file", metavar="FILE", help="YAML recipe; flags win over it."
    )(command)


def experiment_option(command: Command) -> Command:
    return click.option(
        "--tracking-experiment",
        "experiment",
        metavar="TEXT",
        help="Default: MLFLOW_EXPERIMENT_NAME, else dreamfleet.",
    )(command)


@cli.command(cls=ConfigCommand, context_settings=CONTEXT)
@click.argument("photos", nargs=-1)
@config_option
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder.")
@click.option("--overwrite", is_flag=True, help="Begin again in a used output folder.")
@debug_option
def personalize(
    photos: tuple[str, ...], config_file: str | None, resume: bool, overwrite: bool, **given: Any
) -> None:
    """Train an adapter for one subject or many.

    PHOTOS: a folder, zip or list of photos of one subject; several folders, or a CSV or YAML list,
    for many.
    """
    config = _config(photos, config_file, given)  # refused before anything heavy is imported

    from dreamfleet.personalization import personalize as run
    from dreamfleet.runtime.progress import ConsoleProgress

    result = run(config, resume=resume, overwrite=overwrite, progress=ConsoleProgress())
    for line in _result_lines(result, config):
        click.echo(line)
    if result.failures:
        total = len(result.subjects)
        raise DreamfleetError(f"{len(result.failures)} of {total} subjects failed, see above")


@cli.command("tune", cls=SearchCommand, context_settings=CONTEXT)
@click.argument("photos", nargs=-1)
@config_option
@click.option("--resume", is_flag=True, help="Go on with the studies in the output folder.")
@click.option("--overwrite", is_flag=True, help="Begin again in a used output folder.")
@debug_option
def tune_command(
    photos: tuple[str, ...], config_file: str | None, resume: bool, overwrite: bool, **given: Any
) -> None:
    """Find each subject's own setting by a study, and train its champion.

    PHOTOS: as for `dreamfleet personalize`. What is searched is the recipe's section `space`; the
    rest of the recipe holds for all trials.
    """
    config = _config(photos, config_file, given)

    from dreamfleet.runtime.progress import ConsoleProgress
    from dreamfleet.tuning.command import tune

    result = tune(config, resume=resume, overwrite=overwrite, progress=ConsoleProgress())
    for subject in result.subjects:
        for line in subject.lines():
            click.echo(line)
    if result.failures:
        total = len(result.subjects)
        raise DreamfleetError(f"{len(result.failures)} of {total} subjects failed, see above")


@cli.command(cls=ConfigCommand, context_settings=CONTEXT)
@click.argument("photos", nargs=-1)
@config_option
@debug_option
def prepare(photos: tuple[str, ...], config_file: str | None, **given: Any) -> None:
    """Check and cache photos (and the prior set, where one is asked for) without training.

    PHOTOS: as for `dreamfleet personalize`. With --output-dir the squares that would be trained on
    are written there.
    """
    config = _config(photos, config_file, given)
    from dreamfleet import flags

    # The folder of a recipe is for what it trains.
    config.output_dir = flags.overrides(given).get("output_dir")

    from dreamfleet.personalization import prepare_subjects
    from dreamfleet.runtime.progress import ConsoleProgress

    prepared = prepare_subjects(config, progress=ConsoleProgress())
    for line in prepared.summary():
        click.echo(line)
    if prepared.failed:
        failed, usable = len(prepared.failed), len(prepared.subjects)
        raise DreamfleetError(f"{failed} of {failed + usable} subjects cannot be used, see above")


@cli.command(
    context_settings={**CONTEXT, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option(
    "--ray-address",
    metavar="URL",
    help="The head's dashboard; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.",
)
@click.option(
    "--working-dir", metavar="DIR", help="Sent along; default: the present folder, if a checkout."
)
@click.option("--submission-id", metavar="TEXT", help="Name of the job; default: Ray's choice.")
@click.option("--no-wait", is_flag=True, help="Return at once instead of showing the job's log.")
@debug_option
@click.argument("command", metavar="COMMAND ...", nargs=-1, type=click.UNPROCESSED, required=True)
def submit(
    command: tuple[str, ...],
    ray_address: str | None,
    working_dir: str | None,
    submission_id: str | None,
    no_wait: bool,
) -> int:
    """Run another dreamfleet command as a job on a Ray cluster, and return its exit code.

    \b
    dreamfleet submit personalize --config examples/recipes/dog.yaml --output-dir /shared/biscuit

    What the command would refuse is refused before anything is sent.
    """
    if working_dir is None:
        _refuse_early(command)
    from dreamfleet.runtime.jobs import Submission
    from dreamfleet.runtime.jobs import submit as hand_over

    job = Submission(command, ray_address, working_dir, submission_id)
    return hand_over(job, wait=not no_wait, say=lambda line: click.echo(line, err=True))


def _refuse_early(command: Sequence[str]) -> None:
    """Raise what the job would end with at once: a wrong command, flag, value or place."""
    from dreamfleet.runtime.jobs import check_job_places

    known = cli.commands.get(command[0])
    if known is None or command[0] == "submit":
        raise BadInputError(
            f"submit {command[0]}: expected a command, e.g. dreamfleet submit personalize --help"
        )
    given = known.make_context(command[0], list(command[1:])).params
    if isinstance(known, ConfigCommand):
        config = _config(given.pop("photos", ()), given.pop("config_file", None), given)
        check_job_places(config, writes_output=command[0] != "prepare", in_job=True)


@cli.command(context_settings=CONTEXT)
@click.option("--adapter", metavar="DIR", help="Output folder or URI of `dreamfleet personalize`.")
@click.option(
    "--base-model",
    "--pretrained-model-name-or-path",
    metavar="TEXT",
    help="Base model; default: the one that the adapter was trained on, else the embedded one.",
)
@click.option(
    "--prompt",
    required=True,
    metavar="TEXT",
    help="What to draw; {token} and {class} are the adapter's.",
)
@click.option("--negative-prompt", default="", metavar="TEXT", help="What not to draw.")
@click.option("--num-images", default=4, type=click.IntRange(1, 10_000), show_default=True)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**53 - 1),
    show_default=True,
    help="Image i is drawn from seed + i.",
)
@click.option(
    "--scheduler", default="ddim", type=click.Choice(["ddim", "euler", "dpm"]), show_default=True
)
@click.option("--num-inference-steps", default=25, type=click.IntRange(1, 500), show_default=True)
@click.option(
    "--guidance-scale", type=click.FloatRange(0, 100), help="Default: the base model's own."
)
@click.option(
    "--adapter-strength",
    default=1.0,
    type=click.FloatRange(-10, 10),
    show_default=True,
    help="Factor on a LoRA; 0 is the bare base.",
)
@click.option(
    "--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), show_default=True
)
@click.option(
    "--safety-checker",
    default="auto",
    type=click.Choice(["auto", "off"]),
    show_default=True,
    help="auto: the base's own, where it has one.",
)
@click.option("--batch-size", default=8, type=click.IntRange(1, 256), show_default=True)
@click.option(
    "--output-dir",
    required=True,
    metavar="DIR",
    help="Folder or URI where image_0.png, image_1.png … go.",
)
@debug_option
def generate(output_dir: str, **settings: Any) -> None:
    """Draw pictures with an adapter, or with the bare base model."""
    from dreamfleet.api import generate as draw
    from dreamfleet.api import writable_folder
    from dreamfleet.data.photos import to_png
    from dreamfleet.runtime.progress import ConsoleProgress
    from dreamfleet.runtime.storage import Folder, is_uri

    folder = Folder(output_dir if is_uri(output_dir) else str(writable_folder(output_dir)))
    progress = ConsoleProgress()

    def keep(index: int, image: Image.Image) -> None:
        folder.write(f"image_{index}.png", to_png(image))

    draw(progress=progress, on_image=keep, **settings)
    progress.info(f"{settings['num_images']} pictures in {folder.location}")


def judge_options(command: Command) -> Command:
    """Which checkpoints judge pictures of a real base."""
    kinds = (
        ("evaluators", "Folder of other evaluators of the drawn world than the shipped ones."),
        (
            "blip",
            "BLIP-T: hub id or folder; empty: left out. Default: Salesforce/blip-itm-base-coco.",
        ),
        ("dino", "DINO-I, PRES: hub id or folder. Default: facebook/dino-vits16."),
        ("clip", "CLIP-I, CLIP-T: hub id or folder. Default: openai/clip-vit-base-patch32."),
    )
    for name, text in kinds:
        command = click.option(f"--{name}", metavar="TEXT", help=text)(command)
    return command


IMAGES_OPTION = click.option(
    "--images-per-prompt",
    type=click.IntRange(1, 1000),
    help="Pictures of each prompt; default: the protocol's.",
)


@cli.command(cls=ConfigCommand, context_settings=CONTEXT)
@click.option("--adapter", required=True, metavar="DIR", help="Output folder of personalize.")
@click.option(
    "--protocol",
    default="attributes",
    show_default=True,
    type=click.Choice(["attributes", "dreambench", "applications"]),
    help="Which prompts.",
)
@IMAGES_OPTION
@judge_options
@debug_option
def evaluate(
    adapter: str,
    protocol: str,
    images_per_prompt: int | None,
    clip: str | None,
    dino: str | None,
    blip: str | None,
    evaluators: str | None,
    **given: Any,
) -> None:
    """Score an adapter, and the bare base beside it, by a published protocol.

    The other options lay over the adapter's own configuration, e.g. --output-dir, --images (photos
    that have moved), --num-inference-steps.
    """
    from dreamfleet import flags

    overrides = flags.overrides(given)
    from dreamfleet.assessment import evaluate as run
    from dreamfleet.runtime.progress import ConsoleProgress

    result = run(
        adapter,
        protocol,
        overrides,
        num_images=images_per_prompt,
        judges=_judges(clip=clip, dino=dino, blip=blip, evaluators=evaluators),
        progress=ConsoleProgress(),
    )
    for line in result.lines():
        click.echo(line)


@cli.command(cls=ConfigCommand, context_settings=CONTEXT)
@click.argument("name", type=click.Choice(["worldbench", "dreambench"]))
@config_option
@click.option(
    "--split",
    default="D",
    show_default=True,
    type=click.Choice(["D", "C", "T", "R"]),
    help="WorldBench: development, confirmation, tuning, reserve.",
)
@click.option("--data-dir", metavar="DIR", help="DreamBench: the folder with its photographs.")
@click.option(
    "--one-shot", is_flag=True, help="DreamBench: train on 00.jpg alone, not on all photos."
)
@click.option(
    "--subjects", type=click.IntRange(1, 1000), help="How many; default: all that there are."
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Training seeds: the recipe's and those after it.",
)
@click.option(
    "--base-report", metavar="FILE", help="WorldBench: base.json with guidance and scored states."
)
@IMAGES_OPTION
@judge_options
@debug_option
def benchmark(
    name: str,
    config_file: str | None,
    split: str,
    data_dir: str | None,
    one_shot: bool,
    subjects: int | None,
    seeds: int,
    base_report: str | None,
    images_per_prompt: int | None,
    clip: str | None,
    dino: str | None,
    blip: str | None,
    evaluators: str | None,
    **given: Any,
) -> None:
    """Train a recipe on a benchmark's subjects and score the adapters.

    NAME: worldbench (individuals of the drawn world) or dreambench (photographs, yours to bring).
    Run the same command again to go on where it stopped.
    """
    config = _config((), config_file, given)
    from dreamfleet import flags
    from dreamfleet.assessment import BenchmarkPlan
    from dreamfleet.assessment import benchmark as run
    from dreamfleet.runtime.progress import ConsoleProgress

    own_workers = "cluster.num_workers" in flags.overrides(given)
    plan = BenchmarkPlan(
        benchmark="worldbench" if name == "worldbench" else "dreambench",
        config=config,
        split=split,
        num_subjects=subjects,
        num_seeds=seeds,
        num_images=images_per_prompt,
        data_dir=data_dir,
        one_shot=one_shot,
        arm=Path(config_file).stem if config_file else "defaults",
        own_num_workers=config.cluster.num_workers if own_workers else None,
        judges=_judges(clip=clip, dino=dino, blip=blip, evaluators=evaluators),
    ).with_base_report(base_report)
    for line in run(plan, ConsoleProgress()).lines():
        click.echo(line)


@cli.command(context_settings=CONTEXT)
@click.argument("places", nargs=-1, metavar="A B [C …]")
@click.option("--tracking-uri", metavar="URI", help="Default: as for personalize.")
@experiment_option
@debug_option
def compare(places: tuple[str, ...], tracking_uri: str | None, experiment: str | None) -> None:
    """Paired differences of A minus each of the others, over the subjects that they share.

    Each is an output folder of evaluate, benchmark or personalize, or an MLflow run id.
    """
    if len(places) < 2:
        raise click.UsageError(f"give two or more to compare; got {len(places)}")
    from dreamfleet.assessment import compare as run
    from dreamfleet.assessment import comparison_lines

    for line in comparison_lines(*run(places, tracking_uri=tracking_uri, experiment=experiment)):
        click.echo(line)


@cli.command(context_settings=CONTEXT)
@click.argument("a")
@click.argument("b")
@click.option("--votes", metavar="FILE", help="SQLite file; default: votes.db in A.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8780, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--comparisons",
    default=25,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Pages per person.",
)
@click.option("--results", is_flag=True, help="Show the shares so far, and serve nothing.")
@debug_option
def preference(
    a: str, b: str, votes: str | None, host: str, port: int, comparisons: int, results: bool
) -> None:
    """Serve a page on which people compare A's and B's pictures, blind to which is whose.

    A and B are output folders of evaluate or benchmark (the same protocol), or of personalize.
    """
    from dreamfleet.evaluation import preference as study

    names = Path(a).expanduser().absolute(), Path(b).expanduser().absolute()
    pairs = study.load_pairs(*names)  # first: a mistyped folder is refused, not made
    kept = study.Votes(votes or names[0] / "votes.db", *map(str, names))
    if results:
        current, everything = {pair.pair_id for pair in pairs}, kept.all()
        counted = [vote for vote in everything if vote.pair in current]
        if len(counted) < len(everything):
            old = len(everything) - len(counted)
            click.echo(f"{old} votes on other pictures than A and B hold now: left out", err=True)
        for line in study.share_lines(study.preference_shares(counted), a, b):
            click.echo(line)
        return
    app = study.preference_app(pairs, kept, comparisons=comparisons)
    click.echo(f"http://{host}:{port}  (votes: {kept.path}; Ctrl-C ends)", err=True)
    study.serve(app, host, port)


@cli.command(context_settings=CONTEXT)
@click.argument("adapter", metavar="ADAPTER")
@click.option(
    "--format",
    "file_format",
    default="kohya",
    type=click.Choice(["kohya"]),
    show_default=True,
    help="kohya: for ComfyUI, A1111 and kohya's scripts.",
)
@click.option(
    "--base-model",
    metavar="TEXT",
    help="Default: the one that the adapter was trained on.",
)
@click.option("--output", required=True, metavar="FILE.safetensors", help="File to write.")
@debug_option
def export(adapter: str, file_format: str, base_model: str | None, output: str) -> None:
    """Write a LoRA for other programs; diffusers reads ADAPTER, a run's folder, as it is."""
    from dreamfleet.api import export_adapter

    click.echo(str(export_adapter(adapter, output, file_format=file_format, base_model=base_model)))


@cli.command("import", context_settings=CONTEXT)
@click.argument("file", metavar="FILE.safetensors")
@click.option("--base-model", required=True, metavar="TEXT", help="The base it was trained on.")
@click.option("--output-dir", required=True, metavar="DIR", help="Where the adapter goes.")
@debug_option
def import_command(file: str, base_model: str, output_dir: str) -> None:
    """Make an adapter of a LoRA file in the naming of kohya's scripts and ComfyUI."""
    from dreamfleet.api import import_adapter

    click.echo(str(import_adapter(file, output_dir, base_model=base_model)))


@cli.command(context_settings=CONTEXT)
@click.argument("run_ids", nargs=-1, metavar="[RUN RUN]")
@click.option("--tracking-uri", metavar="URI", help="Default: as for personalize.")
@experiment_option
@click.option("--limit", default=20, type=click.IntRange(1, 10_000), show_default=True)
@click.option("--flush", is_flag=True, help="First send what a tracking server did not take.")
@debug_option
def runs(
    run_ids: tuple[str, ...],
    tracking_uri: str | None,
    experiment: str | None,
    limit: int,
    flush: bool,
) -> None:
    """List recorded runs; give two to compare them, each by its id, a unique beginning of it, or
    the folder of an adapter that it made."""
    if len(run_ids) not in (0, 2):
        raise click.UsageError(f"give no run id, or two to compare; got {len(run_ids)}")
    from dreamfleet.tracking.runs import flush_and_tell, show_runs

    if flush:
        flush_and_tell()
    wanted = [_run_id(given) for given in run_ids]
    show_runs(wanted, tracking_uri=tracking_uri, experiment=experiment, limit=limit)


@cli.command(context_settings=CONTEXT)
@click.option("--tracking-uri", metavar="URI", help="The tracking server to look at.")
@debug_option
def doctor(tracking_uri: str | None) -> None:
    """Look at this machine: versions, cores, memory, GPU, Ray, storage, tracking, base model."""
    from dreamfleet.doctor import examine

    findings = examine(tracking_uri)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.mark:<7}  {finding.name:<{width}}  {finding.text}")
    failed = [finding.name for finding in findings if finding.mark == "problem"]
    if failed:
        raise DreamfleetError(f"problems with: {', '.join(failed)}")


@cli.command(context_settings=CONTEXT)
@click.option("--sheet", required=True, metavar="FILE.png", help="Picture to write.")
@click.option(
    "--kind",
    default="all",
    show_default=True,
    type=click.Choice(["all", "classes", "states", "views", "styles", "scenes", "identities"]),
    help="What the sheet shows.",
)
@click.option(
    "--size", default=64, type=click.IntRange(16, 1024), show_default=True, help="Pixels."
)
@debug_option
def world(sheet: str, kind: str, size: int) -> None:
    """Draw a contact sheet of the synthetic world that the embedded base was trained on."""
    from dreamfleet.api import writable_folder
    from dreamfleet.world.sheet import write_sheet

    path = Path(sheet)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise BadInputError(f"--sheet {sheet}: expected a picture's name such as world.png")
    writable_folder(path.parent)
    write_sheet(path, kind, size)
    click.echo(str(path))


@cli.group(context_settings=CONTEXT)
@debug_option
def cache() -> None:
    """Look at the cache of prepared photos and prior sets, or empty it."""


@cache.command("info", context_settings=CONTEXT)
@debug_option
def cache_info() -> None:
    """Entries and size of each kind."""
    from dreamfleet.data.cache import open_cache

    store = open_cache()
    click.echo(str(store.root))
    for use in store.info():
        click.echo(f"  {use.kind:<12} {use.entries:>6} entries {use.bytes / 2**20:>10.1f} MiB")


@cache.command("clear", context_settings=CONTEXT)
@debug_option
def cache_clear() -> None:
    """Delete every entry; the next run makes what it needs again."""
    from dreamfleet.data.cache import open_cache

    click.echo(f"{open_cache().clear() / 2**20:.1f} MiB freed")


def serve_options(command: Command) -> Command:
    """The settings of a Serve application."""
    choices = (
        click.option("--adapters", metavar="DIR", help="An adapter's folder, or a folder of them."),
        click.option(
            "--registry",
            is_flag=True,
            help="Adapters from MLflow's registry instead (--tracking-uri).",
        ),
        click.option("--tracking-uri", metavar="URI", help="Default: as for personalize."),
        click.option(
            "--base-model",
            metavar="TEXT",
            help="Default: the one that most adapters of the folder were made for; embedded with "
            "--registry.",
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="[auto]"),
        click.option("--mixed-precision", default="no", type=click.Choice(["no", "fp16", "bf16"])),
        click.option("--safety-checker", default="auto", type=click.Choice(["auto", "off"])),
        click.option("--num-replicas", type=click.IntRange(1), help="Engines. [1]"),
        click.option(
            "--max-replicas", type=click.IntRange(1), help="Autoscaling, up to so many engines."
        ),
        click.option("--max-slots", type=click.IntRange(1), help="Adapters on a device. [16]"),
        click.option(
            "--cache-mib", type=click.IntRange(1), help="Adapters in host memory, MiB. [1024]"
        ),
        click.option("--max-waiting", type=click.IntRange(0), help="Pictures that wait. [64]"),
        click.option(
            "--public-url",
            metavar="URL",
            help="Behind a TLS proxy: its address, for the addresses of pictures.",
        ),
        click.option(
            "--sample-images", type=click.IntRange(0), help="Pictures a minute kept in MLflow. [0]"
        ),
    )
    for option in reversed(choices):
        command = option(command)
    return command


@cli.group(context_settings=CONTEXT, invoke_without_command=True)
@serve_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--no-auth", is_flag=True, help="Ask for no API keys; on this machine only.")
@click.option("--tracking/--no-tracking", default=True, help="Record the service in MLflow.")
@click.option("--ray-address", metavar="URL", help="A running Ray; default: a private one.")
@debug_option
@click.pass_context
def serve(
    context: click.Context,
    /,
    host: str,
    port: int,
    no_auth: bool,
    tracking: bool,
    ray_address: str | None,
    **given: Any,
) -> None:
    """Serve adapters behind an OpenAI-compatible images endpoint, until Ctrl-C or SIGTERM.

    \b
    dreamfleet keys create
    dreamfleet serve --adapters runs/biscuit --port 8000
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    from dreamfleet.config import ClusterConfig, TrackingConfig
    from dreamfleet.runtime.progress import ConsoleProgress
    from dreamfleet.serving.command import settings_from_flags
    from dreamfleet.serving.recording import recorder
    from dreamfleet.serving.server import serve_foreground

    settings = settings_from_flags({**given, "auth": not no_auth})
    progress = ConsoleProgress()
    recorded = TrackingConfig(uri=given["tracking_uri"])
    serve_foreground(
        settings,
        host=host,
        port=port,
        cluster=ClusterConfig(ray_address=ray_address),
        progress=progress,
        on_ready=[recorder(settings, recorded, progress.warn)] if tracking else [],
    )


def _refuse_options_before(context: click.Context) -> None:
    """Options of a group whose command does not see them; but for `--debug`, which is all's."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name != "debug":
            raise click.UsageError(
                f"{'/'.join([*option.opts, *option.secondary_opts])} stands before "
                f"{context.invoked_subcommand!r}, which does not see it; give its options behind it"
            )


@cli.command(cls=SearchCommand, context_settings=CONTEXT)
@click.argument("photos", nargs=-1)
@config_option
@click.option("--prompt", metavar="TEXT", help="Of the first picture; default: on the beach.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0: any free one.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder.")
@click.option("--overwrite", is_flag=True, help="Begin again in a used output folder.")
@click.option("--open/--no-open", "show", default=True, help="Show the first picture.")
@click.option("--once", is_flag=True, help="End after the first picture instead of serving on.")
@debug_option
def launch(
    photos: tuple[str, ...],
    config_file: str | None,
    prompt: str | None,
    host: str,
    port: int,
    resume: bool,
    overwrite: bool,
    show: bool,
    once: bool,
    **given: Any,
) -> None:
    """From photos to a served subject: prepare, train or tune, register, serve, show a picture.

    PHOTOS: as for `dreamfleet personalize`. With --num-samples, or anything else about a search,
    as flag or in the recipe, it is a study as of `dreamfleet tune`, and its champion is served.
    """
    config = _config(photos, config_file, given)
    from dreamfleet.launch import LaunchSettings
    from dreamfleet.launch import launch as run
    from dreamfleet.runtime.progress import ConsoleProgress

    settings = LaunchSettings(prompt, host, port, resume, overwrite, show, once)
    made = run(config, settings, say=click.echo, progress=ConsoleProgress())
    if made.failures:
        raise DreamfleetError(f"{made.failures} subjects failed, see above")


@serve.command("build", context_settings=CONTEXT)
@serve_options
@click.option("--host", default="0.0.0.0", show_default=True, help="Address of the proxies.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--output", metavar="FILE.yaml", help="File to write; default: standard output.")
@debug_option
def serve_build(host: str, port: int, output: str | None, **given: Any) -> None:
    """Write a Serve YAML file of a service, for `serve deploy` or a RayService."""
    from dreamfleet.serving.command import settings_from_flags
    from dreamfleet.serving.deploy import serve_file

    text = serve_file(settings_from_flags(given, own_machine=False), host=host, port=port)
    if output is None:
        click.echo(text, nl=False)
        return
    Path(output).write_text(text, encoding="utf-8")
    click.echo(output)


@serve.command("deploy", context_settings=CONTEXT)
@click.argument("file", metavar="FILE.yaml")
@click.option(
    "--ray-address",
    metavar="URL",
    help="The head's dashboard; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.",
)
@click.option("--tracking-uri", metavar="URI", help="Default: as for personalize.")
@click.option("--tracking/--no-tracking", default=True, help="Record the deployment in MLflow.")
@debug_option
def serve_deploy(
    file: str, ray_address: str | None, tracking_uri: str | None, tracking: bool
) -> None:
    """Check a Serve YAML file strictly and hand it to a Ray cluster."""
    from dreamfleet.serving.deploy import application_settings, deploy, read_serve_file
    from dreamfleet.serving.recording import record_deployment

    content = read_serve_file(file)
    place = deploy(content, ray_address)
    click.echo(f"taken by {place}; `serve status` there tells when it runs", err=True)
    if tracking:
        settings = application_settings(content)
        record_deployment(
            settings, tracking_uri, place, notify=lambda line: click.echo(line, err=True)
        )


@cli.command(context_settings=CONTEXT)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The service.")
@click.option("--model", required=True, metavar="TEXT", help="Adapter id, id@alias, or base.")
@click.option(
    "--prompt",
    required=True,
    metavar="TEXT",
    help="What to draw; {token} and {class} are the adapter's.",
)
@click.option("--negative-prompt", metavar="TEXT", help="What not to draw.")
@click.option("--num-images", default=1, type=click.IntRange(1, 10), show_default=True)
@click.option("--size", metavar="WxH", help="Pixels; default: the base model's own.")
@click.option("--seed", type=click.IntRange(0, 2**53 - 1), help="Default: at random.")
@click.option("--scheduler", type=click.Choice(["ddim", "euler", "dpm"]))
@click.option("--num-inference-steps", type=click.IntRange(1, 150))
@click.option("--guidance-scale", type=click.FloatRange(0, 50))
@click.option("--adapter-strength", type=click.FloatRange(-10, 10))
@click.option("--output-dir", default=".", show_default=True, metavar="DIR")
@debug_option
def query(url: str, output_dir: str, num_images: int, **given: Any) -> None:
    """Ask a running service for pictures; the key is taken from DREAMFLEET_API_KEY."""
    from dreamfleet.api import writable_folder
    from dreamfleet.runtime.progress import ConsoleProgress
    from dreamfleet.serving.client import query as ask

    folder = writable_folder(output_dir)
    wish = {name: value for name, value in given.items() if value is not None}
    for seed, picture in ask(url, {**wish, "n": num_images}, progress=ConsoleProgress()):
        path = folder / f"{given['model'].replace('/', '_')}_{seed}.png"
        path.write_bytes(picture)
        click.echo(str(path))


@cli.group(context_settings=CONTEXT)
@debug_option
def keys() -> None:
    """API keys of `dreamfleet serve`: made, listed, revoked; they hold at once."""


@keys.command("create", context_settings=CONTEXT)
@click.option(
    "--scope",
    default="generate",
    show_default=True,
    type=click.Choice(["generate", "admin"]),
    help="generate: draw and list; admin: change adapters too.",
)
@click.option("--name", default="", metavar="TEXT", help="For whom, to find it in the list.")
@debug_option
def keys_create(scope: str, name: str) -> None:
    """Make a key and print it: this once only, what is kept is its hash."""
    from dreamfleet.serving.keys import KeyFile

    key, entry = KeyFile().create(scope, name)
    click.echo(f"key {entry.id}, scope {entry.scope}; it is not shown again", err=True)
    click.echo(key)


@keys.command("list", context_settings=CONTEXT)
@debug_option
def keys_list() -> None:
    """Ids, scopes and names; never the keys."""
    from dreamfleet.serving.keys import KeyFile

    for entry in KeyFile().keys():
        click.echo(f"{entry.id}  {entry.scope:<8}  {entry.created}  {entry.name}".rstrip())


@keys.command("revoke", context_settings=CONTEXT)
@click.argument("key_id", metavar="ID")
@debug_option
def keys_revoke(key_id: str) -> None:
    """Make a key worthless, by its id."""
    from dreamfleet.serving.keys import KeyFile

    click.echo(f"key {KeyFile().revoke(key_id).id} is revoked", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    if not debug:
        _calm_libraries()
    try:
        code = cli.main(args=given, prog_name="dreamfleet", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"interrupted{_how_to_go_on(given)}", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except DreamfleetError as error:
        return _complain(str(error), error.exit_code, debug)
    except Exception as error:
        text = f"{type(error).__name__}: {error} (unexpected; --debug shows where)"
        return _complain(text, 1, debug)


def _complain(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {text}", err=True)
    return code


def _calm_libraries() -> None:
    """Library warnings are for developers; they come back with --debug, or with PYTHONWARNINGS."""
    import warnings

    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _run_id(given: str) -> str:
    """The run that made the adapter in a folder; what is no folder is an id."""
    if not Path(given).is_dir():
        return given
    from dreamfleet.evaluation.cards import read_adapter_json

    run_id = read_adapter_json(given).tracking.get("run_id")
    if not run_id:
        raise BadInputError(
            f"{given}: its adapter.json names no MLflow run; give the id of one (`dreamfleet runs`)"
        )
    return run_id


def _judges(**given: str | None) -> JudgeNames:
    from dreamfleet.assessment import JudgeNames

    return JudgeNames(**{name: value for name, value in given.items() if value is not None})


def _config(photos: Sequence[str], config_file: str | None, given: dict[str, Any]) -> RunConfig:
    from dreamfleet import flags
    from dreamfleet.config import load_config

    overrides = flags.overrides(given)
    if photos:
        overrides["subject.images"] = [*photos, *overrides.get("subject.images", [])]
    return load_config(config_file, overrides)


def _result_lines(result: PersonalizeResult, config: RunConfig) -> Iterator[str]:
    """Where to look now."""
    for subject in result.subjects:
        if subject.status != "finished":
            continue
        yield f"{subject.display_name}: {subject.steps} steps in {subject.train_seconds:.0f} s"
        yield f"  report    {_shown(subject.file('report.html'))}"
        yield f"  pictures  {_shown(subject.file('samples'))}"
        yield f"  adapter   {_shown(subject.file())}"
        if subject.run_id:
            version = f", model {subject.id} version {subject.model_version}"
            yield f"  MLflow    run {subject.run_id}{version if subject.model_version else ''}"
    if any(subject.run_id for subject in result.subjects):
        from dreamfleet.tracking.base import resolve_uri, ui_command

        yield f"MLflow in a browser: {ui_command(resolve_uri(config.tracking.uri))}"


def _shown(location: str) -> str:
    """Short below the working folder, else absolute, or a URI."""
    path = Path(location)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else location


def _how_to_go_on(arguments: Sequence[str]) -> str:
    """For the commands that can: the present one, for the user to paste."""
    name = next((text for text in arguments if text in cli.commands), "")
    if name in ("evaluate", "benchmark"):
        return "; the same command goes on"
    if name not in ("personalize", "tune", "launch"):
        return ""
    kept = [text for text in sys.argv[1:] if text not in ("--resume", "--overwrite")]
    program = Path(sys.argv[0]).name
    shown = ["python", "-m", "dreamfleet"] if program == "__main__.py" else [program]
    return f"; go on with: {shlex.join([*shown, *kept, '--resume'])}"
