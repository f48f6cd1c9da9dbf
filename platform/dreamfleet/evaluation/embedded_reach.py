"""What the embedded base and its evaluators can do, measured on held-out seeds.

The figures of docs/embedded_base.md; `embedded_reach_report` writes them down.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreamfleet.bases import Base
from dreamfleet.engine.sampling import sample_images
from dreamfleet.evaluation.sheets import labelled_sheet, plain_sheet
from dreamfleet.seeding import key_to_int, numpy_generator
from dreamfleet.world.captions import full_caption, prompt
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.evaluators import (
    Clip,
    IdentityJudge,
    Oracle,
    load_clip,
    load_identity_encoder,
    load_oracle,
)
from dreamfleet.world.evaluators.load import to_pixels
from dreamfleet.world.render import render
from dreamfleet.world.sampling import training_spec
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import STATE_SHARES, ImageSpec, Rendered
from dreamfleet.world.splits import identity_seed
from dreamfleet.world.styles import STYLES

HELD_OUT_SEED = 987_654  # pictures of this training world were never drawn for training
IDENTITY_FIRST = 500_000  # development identities beyond every benchmark subject
HEADS = ("class", "state", "scene", "view", "style")
MIN_MASK_PX = 16
SAMPLE_BATCH = 64
Say = Callable[[str], None]


@dataclass(frozen=True)
class ReachPlan:
    """How much is measured.

    Attributes:
        guidance_scales: tried on a quarter of the pictures; the best one counts.
        per_cell: pictures of each class x state.
        pictures: renders for the oracles.
        pairs: captions and pictures for the CLIP.
        identities: of a class, for the identity encoder.
        portraits: of "photo of a {class}", per class.
        num_inference_steps: DDIM steps.
    """

    guidance_scales: tuple[float, ...] = (2.0, 3.0, 4.0)
    per_cell: int = 8
    pictures: int = 600
    pairs: int = 200
    identities: int = 30
    portraits: int = 24
    num_inference_steps: int = 25


QUICK = ReachPlan((3.0,), per_cell=1, pictures=120, pairs=100, identities=10, portraits=8)


@dataclass
class Part:
    """Figures by name, and pictures worth keeping."""

    figures: dict[str, Any] = field(default_factory=dict)
    sheets: dict[str, Image.Image] = field(default_factory=dict)


@dataclass
class Bench:
    """The base, its judges and the guidance scale in use (the best once it is known)."""

    base: Base
    oracle_a: Oracle
    oracle_b: Oracle
    identity: IdentityJudge
    clip: Clip
    plan: ReachPlan
    guidance_scale: float
    say: Say = print

    def draw(
        self, prompts: Sequence[str], key: str, guidance_scale: float | None = None
    ) -> list[Image.Image]:
        """One picture per prompt; seeds follow from `key`."""
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        out: list[Image.Image] = []
        for first in range(0, len(prompts), SAMPLE_BATCH):
            texts = prompts[first : first + SAMPLE_BATCH]
            seeds = [key_to_int(key, first + i) % 2**31 for i in range(len(texts))]
            out += sample_images(
                self.base,
                texts,
                seeds,
                guidance_scale=scale,
                num_inference_steps=self.plan.num_inference_steps,
            )
        return out


def load_bench(base: Base, plan: ReachPlan, evaluators: Path | None, say: Say = print) -> Bench:
    """`base` with the shipped judges, or those in the folder `evaluators`."""
    return Bench(
        base,
        load_oracle("A", evaluators),
        load_oracle("B", evaluators),
        load_identity_encoder(evaluators),
        load_clip(evaluators),
        plan,
        plan.guidance_scales[0],
        say,
    )


# -- the judges and the VAE ------------------------------------------------------------------------


def held_out_spec(index: int) -> ImageSpec:
    """A picture of the world with a held-out identity."""
    spec = training_spec(HELD_OUT_SEED, index)
    identity = identity_seed("D", IDENTITY_FIRST + index)
    return ImageSpec(**{**spec.__dict__, "identity_seed": identity})


def held_out_pictures(count: int) -> list[Rendered]:
    """The first `count` held-out pictures."""
    return [render(held_out_spec(i)) for i in range(count)]


def oracle_accuracy(oracle: Oracle, pictures: Sequence[Rendered]) -> dict[str, float]:
    """Share of right answers per question; the state counts only with the right class."""
    rows = oracle.read([p.image for p in pictures])
    hits = [_hits(row, p.spec) for row, p in zip(rows, pictures, strict=True)]
    return {head: float(np.mean([hit[head] for hit in hits])) for head in HEADS}


def _hits(row: Mapping[str, str], spec: ImageSpec) -> dict[str, bool]:
    truth = {"class": spec.class_name, **{head: getattr(spec, head) for head in HEADS[1:]}}
    hit = {head: row[head] == truth[head] for head in HEADS}
    return {**hit, "state": hit["state"] and hit["class"]}


def vae_quality(base: Base, pictures: Sequence[Rendered]) -> tuple[dict[str, float], np.ndarray]:
    """PSNR (dB) over all pixels, its median over pictures, the subjects' mean hue error (degrees).

    Also the decoded pictures, uint8 [N, 64, 64, 3].
    """
    mean, _ = base.encode_images(to_pixels([p.image for p in pictures]))
    decoded = base.decode_latents(mean).numpy()
    original = np.stack([np.asarray(p.image) for p in pictures])
    error = (decoded.astype(np.float64) - original) ** 2
    per_picture = 10 * np.log10(255.0**2 / error.mean(axis=(1, 2, 3)))
    masks = [p.subject_mask for p in pictures]
    hue_errors = [
        _hue_error(before[mask], after[mask])
        for before, after, mask in zip(original, decoded, masks, strict=True)
        if mask.sum() >= MIN_MASK_PX and _mean_hsv(before[mask])[1] > 0.25
    ]
    figures = {
        "psnr_db": float(10 * np.log10(255.0**2 / error.mean())),
        "psnr_median_db": float(np.median(per_picture)),
        "subject_hue_error_deg": float(np.mean(hue_errors)),
    }
    return figures, decoded


def _hue_error(before: np.ndarray, after: np.ndarray) -> float:
    """Degrees between the hues of two sets of pixels' mean colours."""
    gap = abs(_mean_hsv(before)[0] - _mean_hsv(after)[0])
    return 360 * min(gap, 1 - gap)


def _mean_hsv(pixels: np.ndarray) -> tuple[float, float, float]:
    """Hue, saturation and value in [0, 1] of the mean colour of uint8 [N, 3]."""
    red, green, blue = pixels.mean(axis=0) / 255
    return colorsys.rgb_to_hsv(red, green, blue)


def clip_retrieval(clip: Clip, count: int) -> dict[str, float]:
    """How often a full caption finds its picture among `count` held-out ones."""
    pictures = held_out_pictures(count)
    texts = [full_caption(picture.spec, picture.traits) for picture in pictures]
    scores = clip.embed_texts(texts) @ clip.embed_images([p.image for p in pictures]).T
    rank = (scores > np.diag(scores)[:, None]).sum(axis=1)
    return {"top1": float((rank < 1).mean()), "top5": float((rank < 5).mean())}


def identity_top1(judge: IdentityJudge, count: int) -> dict[str, float]:
    """Among `count` held-out identities of a class: the same one in another state and scene, top-1.

    Per class, and the mean. The subject is found by the segmenter.
    """
    out = {}
    for name, world_class in CLASSES.items():
        rng = numpy_generator("identity reach", name)
        states = [state.name for state in world_class.states]
        one: list[Image.Image] = []
        two: list[Image.Image] = []
        for i in range(count):
            first, second = (str(state) for state in rng.choice(states, 2, replace=False))
            here, there = (str(scene) for scene in rng.choice(list(SCENES), 2, replace=False))
            seed = identity_seed("D", IDENTITY_FIRST + i)
            one.append(render(ImageSpec(name, seed, first, here, layout_seed=2 * i)).image)
            two.append(render(ImageSpec(name, seed, second, there, layout_seed=2 * i + 1)).image)
        scores = judge.embed(one) @ judge.embed(two).T
        out[name] = float((scores.argmax(axis=1) == np.arange(count)).mean())
    out["mean"] = float(np.mean(list(out.values())))
    return out


def measure_evaluators(bench: Bench) -> Part:
    """Everything that needs no sampling."""
    plan = bench.plan
    pictures = held_out_pictures(plan.pictures)
    bench.say("oracles")
    figures: dict[str, Any] = {
        "oracle_a": oracle_accuracy(bench.oracle_a, pictures),
        "oracle_b": oracle_accuracy(bench.oracle_b, pictures),
    }
    bench.say("VAE")
    figures["vae"], decoded = vae_quality(bench.base, pictures[:200])
    bench.say("CLIP")
    figures["clip"] = clip_retrieval(bench.clip, plan.pairs)
    bench.say("identity encoder")
    figures["identity_top1"] = identity_top1(bench.identity, plan.identities)
    rows = [[p.image for p in pictures[:12]], [Image.fromarray(d) for d in decoded[:12]]]
    return Part(figures, {"vae": labelled_sheet(rows, row_labels=["before", "after"])})


# -- samples ---------------------------------------------------------------------------------------

Cells = dict[tuple[str, str], list[Image.Image]]


def sample_reach(
    bench: Bench, guidance_scale: float, per_cell: int, stream: str
) -> tuple[dict[str, Any], Cells]:
    """Each class x state x random scene, `per_cell` pictures: do the oracles see what was asked?

    Returns shares (class, scene, coarse and fine states, all states; by A, and by B under "b") and
    the pictures by (class, state). The state counts only with the right class.
    """
    cells: Cells = {}
    marks: list[dict[str, Any]] = []
    for name, world_class in CLASSES.items():
        bench.say(f"guidance {guidance_scale:g}: {name}")
        specs = _asked(name, per_cell, stream)
        texts = [prompt(name, state=spec.state, scene=spec.scene) for spec in specs]
        images = bench.draw(texts, f"{stream}/{name}", guidance_scale)
        a, b = bench.oracle_a.read(images), bench.oracle_b.read(images)
        for spec, seen_a, seen_b in zip(specs, a, b, strict=True):
            mark = {"cell": f"{name}: {spec.state}", "fine": world_class.state(spec.state).fine}
            marks.append({**mark, "a": _hits(seen_a, spec), "b": _hits(seen_b, spec)})
        for i, state in enumerate(world_class.states):
            cells[name, state.name] = images[i * per_cell : (i + 1) * per_cell]
    return {**_shares(marks, "a"), "b": _shares(marks, "b")}, cells


def _asked(class_name: str, per_cell: int, stream: str) -> list[ImageSpec]:
    """Every state of a class `per_cell` times in a row, each in a random scene."""
    out = []
    for state in CLASSES[class_name].states:
        rng = numpy_generator(stream, class_name, state.name)
        scenes = rng.choice(list(SCENES), per_cell)
        out += [ImageSpec(class_name, 0, state.name, str(scene)) for scene in scenes]
    return out


def _shares(marks: Sequence[Mapping[str, Any]], oracle: str) -> dict[str, Any]:
    def share(head: str, chosen: Sequence[Mapping[str, Any]]) -> float:
        return float(np.mean([mark[oracle][head] for mark in chosen]))

    cells = {str(mark["cell"]): [m for m in marks if m["cell"] == mark["cell"]] for mark in marks}
    return {
        "class": share("class", marks),
        "scene": share("scene", marks),
        "state": share("state", marks),
        "coarse": share("state", [mark for mark in marks if not mark["fine"]]),
        "fine": share("state", [mark for mark in marks if mark["fine"]]),
        "per_state": {cell: share("state", chosen) for cell, chosen in cells.items()},
    }


def measure_samples(bench: Bench) -> Part:
    """Find the best guidance on a few pictures, then measure it on others."""
    plan = bench.plan
    scan: dict[str, float] = {}
    if len(plan.guidance_scales) > 1:
        for scale in plan.guidance_scales:
            few, _ = sample_reach(bench, scale, max(1, plan.per_cell // 4), "guidance scan")
            scan[f"{scale:g}"] = float(np.mean([few["class"], few["scene"], few["state"]]))
        bench.guidance_scale = max(plan.guidance_scales, key=lambda scale: scan[f"{scale:g}"])
    figures, cells = sample_reach(bench, bench.guidance_scale, plan.per_cell, "sample reach")
    figures = {"guidance_scale": bench.guidance_scale, "guidance_scan": scan, **figures}
    rows = [[cells[c.name, s.name][0] for s in c.states] for c in CLASSES.values()]
    labels = [[s.name for s in c.states] for c in CLASSES.values()]
    sheets = {
        "states": labelled_sheet(rows, cell_labels=labels, row_labels=list(CLASSES)),
        "states_unlabelled": plain_sheet(rows),
    }
    return Part({"samples": figures}, sheets)


def measure_variety(bench: Bench) -> Part:
    """Spread of the subject's colour and hue in "photo of a {class}", over the world's own."""
    count = bench.plan.portraits
    colour: dict[str, float] = {}
    hue: dict[str, float] = {}
    rows = []
    for name in CLASSES:
        bench.say(f"variety: {name}")
        made = bench.draw([f"photo of a {name}"] * count, f"variety/{name}")
        rows.append(made[:10])
        ours, true = (
            _subject_colours(bench, made),
            _subject_colours(bench, _population(name, count)),
        )
        colour[name] = colour_spread(ours) / max(colour_spread(true), 1e-6)
        hue[name] = hue_spread(ours) / max(hue_spread(true), 1e-6)
    for ratios in (colour, hue):
        ratios["mean"] = float(np.mean(list(ratios.values())))
    sheet = labelled_sheet(rows, row_labels=[f"photo of a {name}" for name in CLASSES])
    return Part({"colour_spread": colour, "hue_spread": hue}, {"identities": sheet})


def _population(class_name: str, count: int) -> list[Image.Image]:
    """4 x `count` true pictures of a class with the training shares of states."""
    rng = numpy_generator("hue spread", class_name)
    states = CLASSES[class_name].states
    out = []
    for i in range(4 * count):
        state = states[int(rng.choice(len(STATE_SHARES), p=STATE_SHARES))].name
        scene = str(rng.choice(list(SCENES)))
        seed = identity_seed("D", IDENTITY_FIRST + i)
        out.append(render(ImageSpec(class_name, seed, state, scene, layout_seed=i)).image)
    return out


def _subject_colours(bench: Bench, images: Sequence[Image.Image]) -> np.ndarray:
    """Mean RGB in [0, 1] of each subject that the segmenter finds, [N, 3]."""
    masks = bench.identity.segmenter.masks(images)
    found = [
        np.asarray(image)[mask].mean(axis=0) / 255
        for image, mask in zip(images, masks, strict=True)
        if mask.sum() >= MIN_MASK_PX
    ]
    return np.stack(found) if found else np.zeros((1, 3))


def colour_spread(colours: np.ndarray) -> float:
    """Root mean square distance of RGB colours [N, 3] from their mean."""
    return float(np.sqrt(((colours - colours.mean(axis=0)) ** 2).sum(axis=1).mean()))


def hue_spread(colours: np.ndarray) -> float:
    """Circular variance of the hues of RGB colours [N, 3], weighted by saturation; 0 to 1."""
    rows = [colorsys.rgb_to_hsv(*colour) for colour in colours]
    weights = np.array([saturation for _, saturation, _ in rows])
    angles = 2 * np.pi * np.array([hue for hue, _, _ in rows])
    return float(1 - abs((weights * np.exp(1j * angles)).sum()) / max(weights.sum(), 1e-6))


def measure_words(bench: Bench) -> Part:
    """Styles, views and scenes in samples: what the oracle sees of them, and sheets."""
    part = Part()
    grids = {
        "styles": [
            [ImageSpec(name, 0, "", "", style=style) for name in CLASSES]
            for style in STYLES
            if style != "photo"
        ],
        "views": [
            [ImageSpec(c.name, 0, "", "", view=view) for view in c.views for _ in range(3)]
            for c in CLASSES.values()
            if len(c.views) > 1
        ],
        "scenes": [[ImageSpec(name, 0, "", scene) for name in CLASSES] for scene in SCENES],
    }
    for kind, grid in grids.items():
        bench.say(kind)
        specs = [spec for row in grid for spec in row]
        images = bench.draw([_words_prompt(kind, spec) for spec in specs], f"words/{kind}")
        head = kind.removesuffix("s")
        answers = bench.oracle_a.read(images)
        hits = [row[head] == getattr(spec, head) for row, spec in zip(answers, specs, strict=True)]
        part.figures[f"sample_{kind}"] = float(np.mean(hits))
        labels = [[_words_label(kind, spec) for spec in row] for row in grid]
        part.sheets[kind] = labelled_sheet(_rows_of(images, grid), cell_labels=labels)
    return part


def _words_prompt(kind: str, spec: ImageSpec) -> str:
    return prompt(
        spec.class_name,
        scene=spec.scene or None,
        view=spec.view if kind == "views" else None,
        style=spec.style,
    )


def _words_label(kind: str, spec: ImageSpec) -> str:
    return f"{spec.class_name}, {getattr(spec, kind.removesuffix('s'))}"


def _rows_of(
    images: Sequence[Image.Image], grid: Sequence[Sequence[object]]
) -> list[list[Image.Image]]:
    left = iter(images)
    return [[next(left) for _ in row] for row in grid]


PARTS: dict[str, Callable[[Bench], Part]] = {
    "evaluators": measure_evaluators,
    "samples": measure_samples,
    "variety": measure_variety,
    "words": measure_words,
}
