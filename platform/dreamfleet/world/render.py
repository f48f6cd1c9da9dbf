"""From an `ImageSpec` to a picture with its ground truth: a pure function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.seeding import numpy_generator
from dreamfleet.world.canvas import Canvas, Pen
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.scenes import SCENES, Scene
from dreamfleet.world.spec import ImageSpec, Rendered, Traits, WorldClass
from dreamfleet.world.styles import STYLES, Style

SIZES_PX = (64, 128, 256)
_SHADOW_STRENGTH = 0.38
# A place looks one of a few ways, as a few real places do; only the plain background varies freely.
SCENE_VARIANTS = 8
STYLE_VARIANTS = 4
_GRADIENT_AT_EDGE = 180.0  # of Pillow's radial gradient, in the middle of a side

Named = TypeVar("Named")


def lookup(kind: str, name: str, table: Mapping[str, Named]) -> Named:
    """The entry of `table` called `name`, or an error that lists what there is."""
    if name not in table:
        raise BadInputError(f"{kind} {name!r} is none of: {', '.join(table)}")
    return table[name]


def identity_traits(class_name: str, identity_seed: int) -> Traits:
    """The private traits of one individual of a class."""
    world_class = lookup("class", class_name, CLASSES)
    return world_class.sample_traits(numpy_generator("identity", class_name, identity_seed))


def render(spec: ImageSpec, size_px: int = 64) -> Rendered:
    """Draw `spec` at `size_px` (64, 128 or 256); equal specs give equal pictures everywhere."""
    world_class, scene, style = _checked(spec, size_px)
    traits = identity_traits(spec.class_name, spec.identity_seed)
    canvas = Canvas(size_px)
    variant = spec.layout_seed if spec.scene == "plain" else spec.layout_seed % SCENE_VARIANTS
    scene_rng = numpy_generator("scene", spec.scene, variant)
    ground_y = scene.draw_background(canvas, scene_rng)
    _draw_subject(canvas, spec, world_class, traits, ground_y)
    if scene.draw_foreground is not None:
        scene.draw_foreground(canvas, scene_rng)
    style_rng = numpy_generator("style", spec.layout_seed % STYLE_VARIANTS)
    canvas.image = style.apply(canvas.image, style_rng)
    return Rendered(spec, canvas.reduced(), canvas.part_masks(), traits)


def _checked(spec: ImageSpec, size_px: int) -> tuple[WorldClass, Scene, Style]:
    if size_px not in SIZES_PX:
        raise BadInputError(f"size_px {size_px} is none of: {SIZES_PX}")
    world_class = lookup("class", spec.class_name, CLASSES)
    lookup("state", spec.state, {state.name: state for state in world_class.states})
    lookup("view", spec.view, {view: view for view in world_class.views})
    scene = lookup("scene", spec.scene, SCENES)
    return world_class, scene, lookup("style", spec.style, STYLES)


def _draw_subject(
    canvas: Canvas, spec: ImageSpec, world_class: WorldClass, traits: Traits, ground_y: float
) -> None:
    """Draw the subject over its shadow, y = 1 of its frame on the ground."""
    rng = numpy_generator("layout", spec.layout_seed)
    center_x = 0.5 + float(rng.uniform(-0.06, 0.06))
    scale = world_class.size * float(rng.uniform(0.92, 1.08))
    _draw_shadow(canvas, center_x, ground_y, 0.95 * scale, 0.16 * scale)
    pen = Pen(canvas, (center_x, ground_y - scale), scale)
    world_class.draw(pen, traits, spec.state, spec.view, spec.prop and bool(world_class.prop))


def _draw_shadow(
    canvas: Canvas, center_x: float, center_y: float, radius_x: float, radius_y: float
) -> None:
    side = canvas.side_px
    box = (
        round((center_x - radius_x) * side),
        round((center_y - radius_y) * side),
        round((center_x + radius_x) * side),
        round((center_y + radius_y) * side),
    )
    fade = Image.radial_gradient("L").resize((box[2] - box[0], box[3] - box[1]))
    depths = [max(0.0, 1 - i / _GRADIENT_AT_EDGE) for i in range(256)]
    mask = fade.point([round(255 * _SHADOW_STRENGTH * depth) for depth in depths])
    canvas.image.paste((20, 20, 30), box, mask)
