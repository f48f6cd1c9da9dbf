"""Fill docs/evidence.md from studies: tables, intervals, figures, pictures and the summary.

\b
    python pipelines/report_studies.py                        # from the committed tables alone
    python pipelines/report_studies.py --study b --from runs/studies     # take a finished study in,
                                                    # or hosts or subjects of it, beside the others
    python pipelines/report_studies.py --study step4 --from runs/studies # and settle SuDe's setting
"""

from __future__ import annotations

from pathlib import Path

import click

from dreamfleet.errors import DreamfleetError


@click.command(help=__doc__)
@click.option("--study", "studies", multiple=True, help="of --from: a finished study to take in")
@click.option("--from", "source", type=click.Path(file_okay=False), help="output of run_study.py")
@click.option("--docs", default="docs/evidence.md", show_default=True)
@click.option("--evidence", default="docs/evidence", show_default=True, help="committed tables")
@click.option("--recipes", default="pipelines/recipes/studies", show_default=True)
def main(
    studies: tuple[str, ...], source: str | None, docs: str, evidence: str, recipes: str
) -> None:
    if source is not None and not studies:
        raise click.UsageError(f"--from {source}: name the studies to take in (--study), too")
    from dreamfleet.evaluation.studies.command import take_in
    from dreamfleet.evaluation.studies.page import fill_page, how_many_ran

    try:
        for name in studies:
            for line in take_in(name, source, Path(recipes), Path(evidence)):
                click.echo(line)
        known = fill_page(Path(docs), Path(recipes), Path(evidence))
    except DreamfleetError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    click.echo(f"{docs}: {how_many_ran(known)}")


if __name__ == "__main__":
    main()
