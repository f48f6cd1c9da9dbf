"""What the embedded base and its evaluators can do, measured on held-out seeds: the figures of docs/embedded_base.md."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from dreamfleet.bases import Base
from dreamfleet.engine.sampling import sample_images
from dreamfleet.seeding import key_to_int, numpy_generator
from dreamfleet.world.captions import prompt
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.evaluators import Oracle, load_clip, load_identity_encoder, load_oracle
from dreamfleet.world.evaluators.load import to_pixels
from dreamfleet.world.palette import colour_name
from dreamfleet.world.render import identity_traits, render
from dreamfleet.world.sampling import training_spec
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec, Rendered, STATE_SHARES
from dreamfleet.world.splits import identity_seed

HELD_OUT_SEED = 987_654  # pictures of this training world were never drawn for training
IDENTITY_FIRST = 500_000  # development identities beyond every benchmark subject
Report = Callable[[str], None]


@dataclass
class Reach:
    """Figures by name, and pictures worth keeping."""

    figures: dict[str, Any] = field(default_factory=dict)
    sheets: dict[str, Image.Image] = field(default_factory=dict)


def held_out_spec(index: int) -> ImageSpec:
    """A picture of the world with a held-out identity."""
    spec = training_spec(HELD_OUT_SEED, index)
    identity = identity_seed("D", IDENTITY_FIRST + index)
    return ImageSpec(**{**spec.__dict__, "identity_seed": identity})


def held_out_pictures(count: int) -> list[Rendered]:
    return [render(held_out_spec(i)) for i in range(count)]


def oracle_accuracy(oracle: Oracle, pictures: Sequence[Rendered]) -> dict[str, float]:
    """Share of right answers per question; the state counts only with the right class."""
    rows = oracle.read([p.image for p in pictures])
    right: dict[str, float] = {}
    for head in ("class", "state", "scene", "view", "style"):
        hits = [row[head] == _truth(p.spec, head) and (head != "state" or row["class"] == p.spec.class_name)
                for row, p in zip(rows, pictures, strict=True)]  # fmt: skip
        right[head] = float(np.mean(hits))
    return right


def _truth(spec: ImageSpec, head: str) -> str:
    return spec.class_name if head == "class" else str(getattr(spec, head))


@torch.no_grad()
def vae_quality(base: Base, pictures: Sequence[Rendered]) -> dict[str, float]:
    """PSNR (dB, over all pixels of all pictures) and the mean hue error of subjects (degrees)."""
    x = to_pixels([p.image for p in pictures])
    mean, _ = base.encode_images(x)
    decoded = base.decode_latents(mean)  # uint8 [N, 64, 64, 3]
    original = np.stack([np.asarray(p.image) for p in pictures])
    error = (np.asarray(decoded, dtype=np.float64) - original) ** 2
    per_picture = 10 * np.log10(255.0**2 / error.mean(axis=(1, 2, 3)))
    hue_errors = []
    for picture, after in zip(pictures, np.asarray(decoded), strict=True):
        mask = picture.subject_mask
        before_hue, strength = _mean_hue(np.asarray(picture.image)[mask])
        after_hue, _ = _mean_hue(after[mask])
        if strength > 0.25:
            gap = abs(before_hue - after_hue)
            hue_errors.append(360 * min(gap, 1 - gap))
    return {
        "psnr_db": float(10 * np.log10(255.0**2 / error.mean())),
        "psnr_median_db": float(np.median(per_picture)),
        "subject_hue_error_deg": float(np.mean(hue_errors)),
    }


def _mean_hue(pixels: np.ndarray) -> tuple[float, float]:
    """Hue in [0, 1) and saturation of the mean colour."""
    if not len(pixels):
        return 0.0, 0.0
    h, s, _ = colorsys.rgb_to_hsv(*(pixels.reshape(-1, 3).mean(axis=0) / 255))
    return h, s


def clip_retrieval(count: int = 200) -> float:
    """Top-5 rate of finding the picture of a full caption among `count` held-out ones."""
    pictures = held_out_pictures(count)
    texts = []
    for picture in pictures:
        spec = picture.spec
        words = [str(picture.traits[key]) for key in ("pattern", "colour_name")]
        noun = " ".join(word for word in words if word != "plain")
        text = prompt(spec.class_name, state=spec.state, scene=spec.scene, style=spec.style,
                      view=spec.view if spec.view != "side" else None)  # fmt: skip
        texts.append(text.replace(spec.class_name, f"{noun} {spec.class_name}", 1))
    clip = load_clip()
    scores = clip.embed_texts(texts) @ clip.embed_images([p.image for p in pictures]).T
    rank = (scores > np.diag(scores)[:, None]).sum(axis=1)
    return float((rank < 5).mean())


def identity_top1(count: int = 30) -> dict[str, float]:
    """Among `count` held-out identities of a class: same identity in another state and scene, top-1, per class."""
    judge = load_identity_encoder()
    out = {}
    for name, world_class in CLASSES.items():
        rng = numpy_generator("identity reach", name)
        states = [state.name for state in world_class.states]
        one: list[Rendered] = []
        two: list[Rendered] = []
        for i in range(count):
            first, second = rng.choice(states, 2, replace=False)
            here, there = rng.choice(list(SCENES), 2, replace=False)
            seed = identity_seed("D", IDENTITY_FIRST + i)
            one.append(render(ImageSpec(name, seed, str(first), str(here), layout_seed=2 * i)))
            two.append(render(ImageSpec(name, seed, str(second), str(there), layout_seed=2 * i + 1)))
        scores = judge.embed([p.image for p in one]) @ judge.embed([p.image for p in two]).T
        out[name] = float((scores.argmax(axis=1) == np.arange(count)).mean())
    out["mean"] = float(np.mean(list(out.values())))
    return out


def sample_reach(
    base: Base, oracle: Oracle, guidance_scale: float, per_cell: int, report: Report | None = None
) -> tuple[dict[str, Any], dict[tuple[str, str], list[Image.Image]]]:
    """Each class x state x random scene, `per_cell` pictures: does the oracle see what was asked?

    Returns shares (class, scene, coarse states, fine states, per state) and the pictures by (class, state).
    """
    pictures: dict[tuple[str, str], list[Image.Image]] = {}
    hits: dict[str, list[bool]] = {"class": [], "scene": [], "coarse": [], "fine": []}
    per_state: dict[str, float] = {}
    for name, world_class in CLASSES.items():
        for state in world_class.states:
            rng = numpy_generator("sample reach", name, state.name)
            scenes = [str(scene) for scene in rng.choice(list(SCENES), per_cell)]
            texts = [prompt(name, state=state.name, scene=scene) for scene in scenes]
            seeds = [key_to_int("sample reach", name, state.name, i) % 2**31 for i in range(per_cell)]
            images = sample_images(base, texts, seeds, guidance_scale=guidance_scale)
            rows = oracle.read(images)
            state_hits = [row["class"] == name and row["state"] == state.name for row in rows]
            hits["class"] += [row["class"] == name for row in rows]
            hits["scene"] += [row["scene"] == scene for row, scene in zip(rows, scenes, strict=True)]
            hits["fine" if state.fine else "coarse"] += state_hits
            per_state[f"{name}: {state.name}"] = float(np.mean(state_hits))
            pictures[name, state.name] = images
        if report is not None:
            report(f"guidance {guidance_scale}: {name} done")
    figures: dict[str, Any] = {key: float(np.mean(values)) for key, values in hits.items()}
    figures["state"] = float(np.mean(hits["coarse"] + hits["fine"]))
    figures["per_state"] = per_state
    return figures, pictures


def hue_spread(base: Base, guidance_scale: float, count: int = 24) -> dict[str, float]:
    """Circular spread of the subject's hue in "photo of a {class}" over the world's own, per class and in all."""
    judge = load_identity_encoder().segmenter
    out = {}
    for name, world_class in CLASSES.items():
        seeds = [key_to_int("hue spread", name, i) % 2**31 for i in range(count)]
        made = sample_images(base, [f"photo of a {name}"] * count, seeds, guidance_scale=guidance_scale)
        rng = numpy_generator("hue spread", name)
        true = []
        for i in range(4 * count):
            state = world_class.states[int(rng.choice(len(STATE_SHARES), p=STATE_SHARES))].name
            scene = str(rng.choice(list(SCENES)))
            seed = identity_seed("D", IDENTITY_FIRST + i)
            true.append(render(ImageSpec(name, seed, state, scene, layout_seed=i)).image)
        out[name] = _spread(made, judge.masks(made)) / max(_spread(true, judge.masks(true)), 1e-6)
    out["mean"] = float(np.mean(list(out.values())))
    return out


def _spread(images: Sequence[Image.Image], masks: np.ndarray) -> float:
    """Root mean square distance of the subjects' mean colours (in RGB) from their common mean."""
    colours = [np.asarray(image)[mask].mean(axis=0) for image, mask in zip(images, masks, strict=True)
               if mask.sum() >= 16]  # fmt: skip
    points = np.stack(colours)
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


def measure_evaluators(base: Base, count: int = 600) -> dict[str, Any]:
    """Everything that needs no sampling."""
    pictures = held_out_pictures(count)
    return {
        "oracle_a": oracle_accuracy(load_oracle("A"), pictures),
        "oracle_b": oracle_accuracy(load_oracle("B"), pictures),
        "vae": vae_quality(base, pictures[:200]),
        "clip_top5": clip_retrieval(),
        "identity_top1": identity_top1(),
    }


def sheet(rows: Sequence[Sequence[Image.Image]], cell_px: int = 96) -> Image.Image:
    """A grid of pictures, enlarged without smoothing."""
    width = max(len(row) for row in rows)
    grid = Image.new("RGB", (width * cell_px, len(rows) * cell_px), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            grid.paste(image.resize((cell_px, cell_px), Image.Resampling.NEAREST), (x * cell_px, y * cell_px))
    return grid


def named_colours(class_name: str, count: int = 50) -> dict[str, int]:
    """How often each coarse colour occurs among held-out identities of a class."""
    out: dict[str, int] = {}
    for i in range(count):
        color = identity_traits(class_name, identity_seed("D", IDENTITY_FIRST + i))["colour"]
        out[colour_name(color)] = out.get(colour_name(color), 0) + 1
    return out
