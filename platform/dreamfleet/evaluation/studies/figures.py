"""Figures and pictures of a study: charts from its table, a sheet from its first subject."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dreamfleet.evaluation.sheets import save_for_page
from dreamfleet.evaluation.studies.plan import BARE
from dreamfleet.evaluation.studies.recipe import BASE, Study
from dreamfleet.evaluation.studies.run import StudyRun, first_pictures
from dreamfleet.evaluation.studies.tables import TITLES, means, values
from dreamfleet.evaluation.world_metrics import Request
from dreamfleet.evaluation.worldbench.pictures import grid
from dreamfleet.evaluation.worldbench.summary import mean_of

Row = Mapping[str, Any]
WIDTH_IN, HEIGHT_IN, DPI = 6.6, 3.4, 110
SHEET_CELL_PX = 60
STEP_BINS, TIME_BINS = 8, 4
TIMES = 1000
LEGEND_ROWS = 20  # beside a chart, in one column


def draw_chart(study: Study, table: Sequence[Row], rho: Sequence[Row], path: Path) -> None:
    """Write the study's chart as WebP, from its table alone."""
    from matplotlib.figure import Figure

    hosts = list(dict.fromkeys(str(r["host"]) for r in table if r["host"] != BASE))
    names = study.chart.figures
    scattered = study.chart.kind == "scatter"
    panels = max(1, len(hosts if scattered else names)) + bool(rho)
    columns = min(panels, 2) if scattered else panels
    lines = -(-panels // columns)
    figure = Figure(figsize=(WIDTH_IN * max(1.0, columns / 2), HEIGHT_IN * lines), dpi=DPI)
    places = list(figure.subplots(lines, columns, squeeze=False).flat)
    axes = places[:panels]
    for empty in places[panels:]:
        empty.remove()
    if scattered:
        for axis, host in zip(axes, hosts, strict=False):
            _scatter(axis, study, table, host)
            if len(hosts) > 1:
                axis.set_title(host, fontsize=9)
        shown = 1 + len(study.arms)
        if hosts:  # one legend for all, at the right
            axes[min(columns, len(hosts)) - 1].legend(
                fontsize=6, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
                ncols=-(-shown // LEGEND_ROWS),
            )  # fmt: skip
    else:
        for axis, name in zip(axes, names, strict=False):
            _curve(axis, study, table, hosts, name)
    if rho:
        _rho(axes[-1], rho)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(buffer) as image:
        image.convert("RGB").save(path, "WEBP", quality=88, method=4)


def _scatter(axis: Any, study: Study, table: Sequence[Row], host: str) -> None:
    """A host's arms, numbered as the recipe has them: a number means the same in all panels."""
    from matplotlib import colormaps

    x_name, y_name = study.chart.figures[:2]
    rung, arms = study.rungs[-1], [BASE, *(own.name for own in study.arms)]
    colours = colormaps["tab10" if len(arms) <= 10 else "tab20"]
    for number, arm in enumerate(arms, start=1):
        xs = values(table, host, arm, rung, x_name)
        ys = values(table, host, arm, rung, y_name)
        common = sorted(set(xs) & set(ys))
        if not common:
            continue
        x, y = mean_of(xs[s] for s in common), mean_of(ys[s] for s in common)
        colour = [colours((number - 1) % colours.N)]
        axis.scatter([x], [y], s=36, zorder=3, color=colour, label=f"{number}  {arm}")
        axis.scatter([xs[s] for s in common], [ys[s] for s in common], s=7, alpha=0.35,
                     color=colour)  # fmt: skip
        # Names would cover each other where arms are alike; even numbers stand to the left.
        aside = (6, 3) if number % 2 else (-11, 3)
        axis.annotate(str(number), (x, y), textcoords="offset points", xytext=aside, fontsize=7)
    axis.set_xlabel(TITLES.get(x_name, x_name), fontsize=8)
    axis.set_ylabel(TITLES.get(y_name, y_name), fontsize=8)


def _curve(axis: Any, study: Study, table: Sequence[Row], hosts: Sequence[str], name: str) -> None:
    for host in hosts:
        if study.chart.kind == "by_x":
            points = [
                (float(arm.x), mean_of(values(table, host, arm.name, study.rungs[-1],
                                              name).values()))
                for arm in study.arms if arm.x is not None
            ]  # fmt: skip
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=host)
            continue
        for arm in study.arms:
            rows = [r for r in means(table, [name]) if r["host"] == host and r["arm"] == arm.name]
            label = arm.name if len(hosts) == 1 else f"{host}: {arm.name}"
            axis.plot([r["steps"] for r in rows], [r[name] for r in rows], marker="o",
                      markersize=4, label=label)  # fmt: skip
    bare = values(table, BASE, BASE, 0.0, name)
    if bare:
        axis.axhline(mean_of(bare.values()), linestyle=":", color="grey", label="bare base")
    axis.set_title(TITLES.get(name, name), fontsize=9)
    axis.set_xlabel(study.chart.x_title or "training steps", fontsize=8)
    axis.legend(fontsize=6)


def _rho(axis: Any, rows: Sequence[Row]) -> None:
    series: dict[str, dict[int, list[float]]] = {}
    several = len({row["host"] for row in rows}) > 1
    for row in rows:
        name = f"{row['host']}: {row['arm']}" if several else str(row["arm"])
        own = series.setdefault(name, {})
        own.setdefault(int(row["steps"]), []).append(float(row["rho"]))
    for name, points in series.items():
        axis.plot(sorted(points), [mean_of(points[s]) for s in sorted(points)], marker=".",
                  label=name)  # fmt: skip
    axis.axhline(1.0, linestyle=":", color="grey")
    axis.set_title("ρ: class direction kept", fontsize=9)
    axis.set_xlabel("training steps", fontsize=8)
    axis.legend(fontsize=6)


def rho_table(logs: Sequence[Row]) -> list[dict[str, Any]]:
    """ρ and the share of samples with SuDe on, by arm, part of the training and range of t.

    Args:
        logs: of `StudyRun.logs`; rows without ρ are passed over.
    """
    rows = [row for row in logs if row.get("rho") is not None and row.get("t") is not None]
    if not rows:
        return []
    longest: dict[str, int] = {}
    for row in rows:
        longest[row["host"]] = max(int(row["step"]), longest.get(row["host"], 0))
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        part = min((int(row["step"]) - 1) * STEP_BINS // longest[row["host"]], STEP_BINS - 1)
        time = min(int(row["t"]) * TIME_BINS // TIMES, TIME_BINS - 1)
        groups.setdefault((row["host"], row["arm"], part, time), []).append(row)
    arms = list(dict.fromkeys(key[:2] for key in groups))  # in the recipe's order

    def place(item: tuple[tuple[Any, ...], list[Row]]) -> tuple[int, ...]:
        key, _ = item
        return (arms.index(key[:2]), *key[2:])

    return [
        {
            "host": host, "arm": arm, "steps": (part + 1) * longest[host] // STEP_BINS,
            "t_from": time * TIMES // TIME_BINS,
            "rho": mean_of(float(r["rho"]) for r in own),
            "hinge_share": mean_of(float(r["hinge_share"]) for r in own), "samples": len(own),
        }
        for (host, arm, part, time), own in sorted(groups.items(), key=place)
    ]  # fmt: skip


def draw_sheet(run: StudyRun, path: Path) -> bool:
    """Pictures of the study's first subject: prompts across, arms down, all from the same noise; as
    WebP.

    Returns whether there was anything to show; where not, an older sheet is removed.
    """
    path.unlink(missing_ok=True)
    study = run.study
    member = run.field.members()[0]
    if member.subject_id not in [own.subject_id for own in run.members()]:
        return False  # another part's
    seed = study.training_seeds[0]
    bare = first_pictures(run, member, BARE, seed)
    shown = [key for key, (job, _) in bare.items() if job.request.kind in study.sheet.kinds]
    shown = _spread(shown, study.sheet.columns)
    lines = []
    side = run.base.resolution
    wanted = study.sheet.arms or [arm.name for arm in study.arms]
    for arm in [BARE, *(own for own in run.arms_of(member) if own.name in wanted)]:
        own = first_pictures(run, member, arm, seed)
        if not own:
            continue
        blank = Image.new("RGB", (side, side), "white")
        name = "bare base" if arm is BARE else f"{arm.host}: {arm.name}"
        photo = run.field.photos(member, arm, side)[0]
        lines.append((name, [photo, *(own[key][1] if key in own else blank for key in shown)]))
    if not lines or not shown:
        return False
    heads = [f"photo of {member.subject_id}"]
    heads += [_label(bare[key][0].request, member.class_name) for key in shown]
    sheet = grid(heads, lines, SHEET_CELL_PX)
    save_for_page(sheet, path)
    return True


def _spread(keys: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly."""
    if len(keys) <= count:
        return list(keys)
    return [keys[i * len(keys) // count] for i in range(count)]


def _label(request: Request, class_name: str) -> str:
    """What is asked, in a few words."""
    if request.kind in ("state", "scene", "combined"):
        return request.name.replace("_", " ")
    return request.prompt.removeprefix("a photo of ").replace(class_name, "…", 1)
