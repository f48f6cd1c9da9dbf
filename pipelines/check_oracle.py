"""Check the oracle against human eyes on generated pictures (docs/protocol.md, section 7).

\b
    python pipelines/check_oracle.py draw  --from RUN [--from RUN …] --output-dir DIR
    python pipelines/check_oracle.py label --output-dir DIR                  # on a page, or
    python pipelines/check_oracle.py label --output-dir DIR --from-csv FILE  # from DIR/sheet-*.png
    python pipelines/check_oracle.py score --output-dir DIR [--output-dir DIR …]

RUN is an output folder of `dreamfleet benchmark worldbench`, of check_embedded_base.py, or of a
study (runs/studies/a; --arm chosen --arm official: these arms only). A study that is run in pieces
is drawn and labelled piece by piece, and scored together.
"""

from __future__ import annotations

from pathlib import Path

import click

from dreamfleet.errors import DreamfleetError


@click.command(help=__doc__)
@click.argument("step", type=click.Choice(["draw", "label", "score"]))
@click.option(
    "--output-dir", "places", required=True, multiple=True, type=click.Path(file_okay=False)
)
@click.option("--from", "folders", multiple=True, type=click.Path(file_okay=False), help="RUN")
@click.option("--arm", "arms", multiple=True, help="of studies: only these arms")
@click.option("--pictures", default=300, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--from-csv",
    type=click.Path(dir_okay=False),
    help="label: take id,class,state,scene of all pictures or some; words: DIR/words.txt",
)
@click.option("--seed", default=0, show_default=True, help="of the drawing of lots")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8781, show_default=True, type=click.IntRange(1, 65535))
def main(
    step: str,
    places: tuple[str, ...],
    folders: tuple[str, ...],
    arms: tuple[str, ...],
    pictures: int,
    from_csv: str | None,
    seed: int,
    host: str,
    port: int,
) -> None:
    from dreamfleet.evaluation.preference import serve
    from dreamfleet.evaluation.worldbench import oracle_check

    if step != "score" and len(places) > 1:
        raise click.UsageError(f"{step}: give one --output-dir")
    place = Path(places[0])
    try:
        if step == "draw":
            runs = [Path(folder) for folder in folders]
            drawn = oracle_check.draw_sample(runs, place, pictures, seed, arms)
            click.echo(f"{drawn} pictures: {place}")
        elif step == "label" and from_csv is not None:
            taken, left = oracle_check.import_labels(place, Path(from_csv))
            click.echo(f"{taken} labels taken, {left} pictures left: {place}")
        elif step == "label":
            click.echo(f"http://{host}:{port}  (Ctrl-C ends)", err=True)
            serve(oracle_check.label_app(place), host, port)
        else:
            result = oracle_check.score_labels(*map(Path, places))
            click.echo(f"agreement {result['agreement']:.1%} of {result['num_pictures']} pictures")
            for arm, rate in result["error_rate_by_arm"].items():
                click.echo(f"  {arm}: {rate:.1%} wrong of {result['num_by_arm'][arm]}")
            verdict = "passed" if result["passed"] else "NOT passed"
            click.echo(f"arms differ by {result['spread']:.1%}; {verdict}")
    except DreamfleetError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
