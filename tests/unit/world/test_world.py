"""The synthetic world: pure, labelled, fairly captioned, and held-out identities held out."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dreamfleet.errors import BadInputError, ResumeError
from dreamfleet.seeding import numpy_generator
from dreamfleet.world import captions, draw, splits
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.palette import COLOUR_NAMES
from dreamfleet.world.render import identity_traits, render
from dreamfleet.world.sampling import even_example, even_spec, training_example, training_spec
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.sheet import contact_sheet, write_sheet
from dreamfleet.world.spec import STATE_SHARES, ImageSpec, Rendered, WorldClass
from dreamfleet.world.styles import STYLES

NEUTRAL_DOG = ImageSpec("dog", 5, CLASSES["dog"].states[0].name, "beach", layout_seed=3)
EVERY_CLASS = pytest.mark.parametrize("world_class", CLASSES.values(), ids=list(CLASSES))
CHANGED = 24  # of 255, in some channel


def pixels(rendered: Rendered) -> npt.NDArray[np.int16]:
    return np.asarray(rendered.image).astype(np.int16)


def difference(one: Rendered, other: Rendered) -> npt.NDArray[np.bool_]:
    """Pixels that differ visibly."""
    changed: npt.NDArray[np.bool_] = np.abs(pixels(one) - pixels(other)).max(axis=2) > CHANGED
    return changed


# -- rendering -------------------------------------------------------------------------------------


@EVERY_CLASS
def test_a_picture_is_a_pure_function_of_its_spec(world_class: WorldClass) -> None:
    spec = ImageSpec(world_class.name, 11, world_class.states[3].name, "jungle", layout_seed=4)
    first = render(spec)
    np.random.seed(1)  # a global state that must not matter
    render(dataclasses.replace(spec, layout_seed=5))
    again = render(spec)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.part_masks.keys() == again.part_masks.keys()
    assert all(np.array_equal(first.part_masks[p], again.part_masks[p]) for p in first.part_masks)
    assert first.traits == again.traits


@pytest.mark.parametrize("style", STYLES)
def test_styles_are_pure_and_change_the_picture_but_not_the_masks(style: str) -> None:
    spec = dataclasses.replace(NEUTRAL_DOG, style=style)
    styled, photo = render(spec), render(NEUTRAL_DOG)
    assert styled.image.tobytes() == render(spec).image.tobytes()
    assert np.array_equal(styled.subject_mask, photo.subject_mask)
    share = difference(styled, photo).mean()
    assert share == 0 if style == "photo" else share > 0.3


@pytest.mark.parametrize("size_px", [64, 128, 256])
def test_every_size_shows_the_same_picture(size_px: int) -> None:
    rendered = render(NEUTRAL_DOG, size_px)
    assert rendered.image.size == (size_px, size_px)
    assert rendered.subject_mask.shape == (size_px, size_px)
    small = np.asarray(rendered.image.resize((64, 64), 4)).astype(np.int16)
    assert np.abs(small - pixels(render(NEUTRAL_DOG))).mean() < 8


@EVERY_CLASS
def test_masks_lie_on_the_subject(world_class: WorldClass) -> None:
    for state in world_class.states:
        rendered = render(ImageSpec(world_class.name, 2, state.name, "plain", layout_seed=1))
        mask = rendered.subject_mask
        assert 0.10 < mask.mean() < 0.60, state.name
        total = np.sum(list(rendered.part_masks.values()), axis=0)
        assert (total > 1).sum() < 0.05 * mask.sum()  # two parts only where each has half a pixel
        assert "background" not in rendered.part_masks
        columns = np.flatnonzero(mask.any(axis=0))
        assert 14 < columns.mean() < 50, state.name


@EVERY_CLASS
def test_scenes_hide_little_of_the_subject(world_class: WorldClass) -> None:
    state = world_class.states[0].name
    bare = render(ImageSpec(world_class.name, 2, state, "plain", layout_seed=7)).subject_mask
    for scene in SCENES:
        seen = render(ImageSpec(world_class.name, 2, state, scene, layout_seed=7)).subject_mask
        assert seen.sum() > 0.85 * bare.sum(), scene


@EVERY_CLASS
def test_a_prop_is_no_part_of_the_subject(world_class: WorldClass) -> None:
    without = ImageSpec(world_class.name, 3, world_class.states[0].name, "plain", layout_seed=1)
    bare, more = render(without), render(dataclasses.replace(without, prop=True))
    assert ("prop" in more.part_masks) == bool(world_class.prop)
    assert "prop" not in bare.part_masks
    both = more.part_masks["prop"] & more.subject_mask if world_class.prop else np.zeros(1)
    assert both.sum() <= 8  # only where each has half of a pixel


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"class_name": "cow"}, "cow"),
        ({"state": "flying a kite"}, "flying a kite"),
        ({"scene": "moon"}, "moon"),
        ({"view": "top"}, "top"),
        ({"style": "fresco"}, "fresco"),
    ],
)
def test_an_unknown_word_is_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        render(dataclasses.replace(NEUTRAL_DOG, **change))  # type: ignore[arg-type]


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(BadInputError, match="100"):
        render(NEUTRAL_DOG, 100)


# -- classes ---------------------------------------------------------------------------------------


@EVERY_CLASS
def test_a_class_has_what_the_world_promises(world_class: WorldClass) -> None:
    assert len(world_class.states) == len(STATE_SHARES) == 8
    assert len({state.name for state in world_class.states}) == 8
    assert len({state.phrase("x") for state in world_class.states}) == 8
    assert all(state.before or state.after for state in world_class.states)
    assert sum(state.fine for state in world_class.states) >= 3
    assert not world_class.states[0].fine
    traits = identity_traits(world_class.name, 0)
    assert traits["colour_name"] in COLOUR_NAMES
    assert len(set(traits) - {"colour", "colour_name", "pattern"}) >= 4
    assert len(captions.pattern_words(world_class.name)) >= 2
    for state_name, view in world_class.hidden:
        assert world_class.state(state_name)
        assert view in world_class.views


@functools.cache
def neutral_picture(world_class: WorldClass, seed: int, view: str) -> Rendered:
    """The neutral state on a plain background."""
    state = world_class.states[0].name
    return render(ImageSpec(world_class.name, seed, state, "plain", view, layout_seed=2))


def visible_pairs(world_class: WorldClass) -> list[tuple[str, str]]:
    return [
        (state.name, view)
        for state in world_class.states[1:]
        for view in world_class.views
        if (state.name, view) not in world_class.hidden
    ]


@EVERY_CLASS
def test_fine_states_are_small_but_visible_and_coarse_ones_large(world_class: WorldClass) -> None:
    wrong = []
    for state, view in visible_pairs(world_class):
        shares = []
        counts = []
        for seed in (0, 1, 2):
            neutral = neutral_picture(world_class, seed, view)
            changed = render(dataclasses.replace(neutral.spec, state=state))
            union = neutral.subject_mask | changed.subject_mask
            counts.append(int((difference(neutral, changed) & union).sum()))
            shares.append(counts[-1] / neutral.subject_mask.sum())
        fine = world_class.state(state).fine
        if min(counts) < 16 or (fine and view == "side" and max(shares) >= 0.10):
            wrong.append((state, view, counts, [round(share, 3) for share in shares]))
        if not fine and np.mean(shares) < 0.10:
            wrong.append((state, view, counts, [round(share, 3) for share in shares]))
    assert not wrong


@EVERY_CLASS
def test_identities_differ(world_class: WorldClass) -> None:
    state = world_class.states[0].name
    specs = [ImageSpec(world_class.name, s, state, "plain", layout_seed=2) for s in range(5)]
    pictures = [render(spec) for spec in specs]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            union = one.subject_mask | other.subject_mask
            assert (difference(one, other) & union).sum() > 0.15 * union.sum()


# -- captions --------------------------------------------------------------------------------------


def test_training_captions_keep_their_shares() -> None:
    count = 6000
    named: Counter[str] = Counter()
    for index in range(count):
        spec = training_spec(0, index)
        entry = CLASSES[spec.class_name]
        traits = {"pattern": "spotted", "colour_name": "purple"}
        text = captions.caption(spec, traits, numpy_generator("test caption", index))
        state = entry.state(spec.state)
        words = text.split()
        named["empty"] += not text
        named["token"] += bool(set(words) & set(captions.RARE_TOKENS))
        named["scene"] += bool(text) and SCENES[spec.scene].phrase in text
        named["pattern"] += "spotted" in words
        named["colour"] += "purple" in words
        wrapped = all(part in text for part in (state.before, state.after))
        named["state"] += bool(text) and wrapped
        if spec.style != "photo" and text:
            assert STYLES[spec.style].before in text
    told = count - named["empty"]
    assert named["empty"] / count == pytest.approx(0.10, abs=0.015)
    for key, share in (("token", 0.05), ("state", 0.55), ("scene", 0.55)):
        assert named[key] / told == pytest.approx(share, abs=0.03), key
    assert named["colour"] / told == pytest.approx(0.30, abs=0.03)
    assert named["pattern"] / told == pytest.approx(0.30, abs=0.03)


def test_views_are_named_by_their_share() -> None:
    entry = CLASSES["dog"]
    traits = {"pattern": "plain", "colour_name": "brown"}
    for view in entry.views:
        spec = dataclasses.replace(NEUTRAL_DOG, view=view)
        texts = [captions.caption(spec, traits, numpy_generator("v", i)) for i in range(3000)]
        told = [text for text in texts if text]
        share = sum(captions.VIEW_PHRASES[view] in text for text in told) / len(told)
        assert share == pytest.approx(0.15 if view == "side" else 0.60, abs=0.03)
        assert not any("plain" in text for text in told)


def test_prompts_are_exact() -> None:
    assert captions.prompt("dog") == "a photo of a dog"
    assert captions.prompt("dog", token="sks", scene="snow") == "a photo of sks dog in the snow"
    neutral = CLASSES["dog"].states[0].phrase("dog")
    assert captions.prompt("dog", token="sks", state=CLASSES["dog"].states[0].name) == (
        f"a photo of sks {neutral}"
    )
    assert captions.prompt("cat", view="front") == "a photo of a cat seen from the front"
    assert captions.prompt("vase", style="mosaic") == "a mosaic of a vase"
    assert captions.prompt("vase", template="{}") == "a vase"
    assert captions.article("orange cat") == "an orange cat"
    with pytest.raises(BadInputError, match="asleepish"):
        captions.prompt("dog", state="asleepish")


def test_the_vocabulary_holds_every_word() -> None:
    words = set(captions.vocabulary_words())
    assert set(captions.RARE_TOKENS) <= words
    assert len(captions.RARE_TOKENS) >= 16
    for index in range(1500):
        spec = training_spec(3, index)
        traits = identity_traits(spec.class_name, spec.identity_seed)
        text = captions.caption(spec, traits, numpy_generator("words", index))
        assert set(text.lower().split()) <= words


def test_rare_tokens_are_no_words_of_the_world() -> None:
    plain = {word for state in _all_phrases() for word in state.lower().split()}
    assert not plain & set(captions.RARE_TOKENS)


def _all_phrases() -> list[str]:
    phrases = [s.phrase(entry.name) for entry in CLASSES.values() for s in entry.states]
    return phrases + [scene.phrase for scene in SCENES.values()]


# -- sampling and splits ---------------------------------------------------------------------------


def test_training_specs_follow_their_shares() -> None:
    specs = [training_spec(1, index) for index in range(5000)]
    assert specs[:20] == [training_spec(1, index) for index in range(20)]
    assert specs[0] != training_spec(2, 0)
    total = sum(entry.frequency for entry in CLASSES.values())
    for entry in CLASSES.values():
        mine = [spec for spec in specs if spec.class_name == entry.name]
        assert len(mine) / 5000 == pytest.approx(entry.frequency / total, abs=0.02)
        assert not any((spec.state, spec.view) in entry.hidden for spec in mine)
        assert entry.prop or not any(spec.prop for spec in mine)
    assert np.mean([s.scene == "plain" for s in specs]) == pytest.approx(0.10, abs=0.02)
    assert np.mean([s.style == "photo" for s in specs]) == pytest.approx(0.80, abs=0.02)
    ranks = Counter(
        [state.name for state in CLASSES[s.class_name].states].index(s.state) for s in specs
    )
    for rank, share in enumerate(STATE_SHARES):
        assert ranks[rank] / 5000 == pytest.approx(share, abs=0.02)
    assert {splits.split_of(spec.identity_seed) for spec in specs} == {"train"}


def test_splits_share_no_identity() -> None:
    seen: set[tuple[str, int]] = set()
    for split in ("D", "C", "T", "R"):
        chosen = {(s.class_name, s.identity_seed) for s in splits.subjects(split, 48)}
        assert len(chosen) == 48
        assert not chosen & seen
        assert {splits.split_of(seed) for _, seed in chosen} == {split}
        seen |= chosen
    with pytest.raises(BadInputError):
        splits.identity_seed("D", 10**6)
    with pytest.raises(BadInputError):
        splits.subjects("train")


def test_subjects_are_balanced_over_the_classes() -> None:
    assert set(splits.SUBJECT_CLASSES) == set(CLASSES)
    assert {k: len(splits.subjects(k)) for k in "DCTR"} == {"D": 8, "C": 24, "T": 12, "R": 24}
    assert splits.subjects("D", 24)[:8] == splits.subjects("D")
    for split, each in (("C", 2), ("T", 1), ("R", 2)):
        counts = Counter(subject.class_name for subject in splits.subjects(split))
        assert set(counts.values()) == {each}


def test_benchmark_photos_show_neither_the_neutral_state_nor_the_plain_scene() -> None:
    for subject in splits.subjects("C"):
        photos = [splits.benchmark_photo(subject, index) for index in range(7)]
        neutral = CLASSES[subject.class_name].states[0].name
        assert all(p.state != neutral and p.scene != "plain" for p in photos)
        assert all(p.view == "side" and p.style == "photo" for p in photos)
        assert len({p.state for p in photos}) == len({p.scene for p in photos}) == 7
        assert photos[0] == splits.benchmark_photo(subject)


# -- on disk ---------------------------------------------------------------------------------------


def test_a_stopped_drawing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "BLOCK", 4)

    def stop_at_8(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw.draw_dataset(tmp_path / "a", 10, seed=6, start=100, progress=stop_at_8)
    with (tmp_path / "a" / "captions.jsonl").open("a") as stream:
        stream.write('{"half a li')
    draw.draw_dataset(tmp_path / "a", 10, seed=6, start=100)
    draw.draw_dataset(tmp_path / "b", 10, seed=6, start=100)
    for name in ("images.npy", "captions.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    images = np.load(tmp_path / "a" / "images.npy", mmap_mode="r")
    rendered, _ = training_example(6, 109)
    assert np.array_equal(images[9], np.asarray(rendered.image))
    with np.load(tmp_path / "a" / "labels.npz") as labels:
        assert tuple(labels["labels"][9]) == draw.label_indices(rendered.spec)
    with pytest.raises(ResumeError, match="new folder"):
        draw.draw_dataset(tmp_path / "a", 12, seed=6, start=100)


def test_even_pictures_follow_the_natural_ones(tmp_path: Path) -> None:
    draw.draw_dataset(tmp_path / "both", 6, seed=6, num_even=3)
    images = np.load(tmp_path / "both" / "images.npy")
    for index, example in enumerate([training_example] * 3 + [even_example] * 3):
        assert np.array_equal(images[index], np.asarray(example(6, index)[0].image))
    with pytest.raises(ResumeError, match="new folder"):
        draw.draw_dataset(tmp_path / "both", 6, seed=6)


def test_even_pictures_show_every_state_alike_often_and_say_so() -> None:
    specs = [even_spec(3, index) for index in range(4000)]
    fine = [CLASSES[s.class_name].state(s.state).fine for s in specs]
    states = [state for entry in CLASSES.values() for state in entry.states]
    weight = 2 * sum(state.fine for state in states)
    share = weight / (weight + sum(not state.fine for state in states))
    assert np.mean(fine) == pytest.approx(share, abs=0.03)
    seen = Counter((s.class_name, s.state) for s in specs)
    assert len(seen) == len(states) and min(seen.values()) > 12
    for index in range(40):
        rendered, text = even_example(3, index)
        state = CLASSES[rendered.spec.class_name].state(rendered.spec.state)
        assert not text or (state.before in text and state.after in text)


def test_a_mask_tells_what_a_fine_state_alone_changes() -> None:
    dog = ImageSpec("dog", 5, "hat", "plain", layout_seed=3)
    bare = dataclasses.replace(dog, state="standing")
    mask = draw.training_mask(render(dog))
    assert set(np.unique(mask)) == {0, draw.SUBJECT, draw.DETAIL}
    detail = mask == draw.DETAIL
    gap = np.abs(np.asarray(render(dog).image, int) - np.asarray(render(bare).image, int)).max(2)
    assert (gap[detail] > draw.VISIBLE_CHANGE).all() and (gap[~detail] <= draw.VISIBLE_CHANGE).all()
    assert 16 <= detail.sum() < 0.2 * (mask > 0).sum()
    assert draw.DETAIL not in draw.training_mask(render(bare))


def test_sheets_can_be_drawn(tmp_path: Path) -> None:
    sheet = contact_sheet("states", class_names=["dog", "vase"], zoom=1)
    assert sheet.width >= 8 * 64
    write_sheet(tmp_path / "classes.png", "classes", zoom=1)
    assert (tmp_path / "classes.png").stat().st_size > 1000
    with pytest.raises(BadInputError, match="nonsense"):
        contact_sheet("nonsense")
