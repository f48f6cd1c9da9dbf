"""World metrics with judges whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.world_metrics import (
    PictureScore,
    Request,
    WorldScorer,
    identity_fidelity,
    is_aligned,
    is_copied,
    selection_fidelity,
)
from dreamfleet.world.evaluators import IdentityJudge, Oracle, SegmenterJudge
from dreamfleet.world.evaluators.models import IdentityEncoder, OracleA, Segmenter
from dreamfleet.world.render import render
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import Subject, identity_seed

TEAPOT = Subject("teapot", identity_seed("D", 1), "D01-teapot")
PHOTO = TEAPOT.spec("steaming", "beach")
GOLDEN = Request("a photo of sks golden teapot", "state", state="golden")
SNOW = Request("a photo of sks teapot in the snow", "scene", scene="snow")
PLAIN_PROMPT = Request("a photo of sks teapot", "subject")


def seen(state: str = "golden", scene: str = "snow", name: str = "teapot") -> dict[str, str]:
    return {"class": name, "state": state, "scene": scene}


class FixedOracle:
    """Sees what it was told, picture by picture."""

    def __init__(self, *rows: dict[str, str]) -> None:
        self.rows = rows

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        assert len(images) == len(self.rows)
        return list(self.rows)


class ColourJudge:
    """An identity is the mean colour of a picture's middle, away from grey."""

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        rows = [np.asarray(image.convert("RGB"), float)[24:48, 24:40].mean(axis=(0, 1)) - 127
                for image in images]  # fmt: skip
        vectors = np.stack(rows)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestAlignment:
    def test_state_prompt(self) -> None:
        assert is_aligned(GOLDEN, "teapot", seen("golden")) is True
        assert is_aligned(GOLDEN, "teapot", seen("plain")) is False

    def test_scene_prompt_asks_for_no_state(self) -> None:
        assert is_aligned(SNOW, "teapot", seen("broken", "snow")) is True
        assert is_aligned(SNOW, "teapot", seen("golden", "beach")) is False

    def test_wrong_class_and_unreadable_fail(self) -> None:
        assert is_aligned(GOLDEN, "teapot", seen("golden", name="vase")) is False
        assert is_aligned(SNOW, "teapot", seen("", "snow", "unreadable")) is False

    def test_nothing_asked_is_not_scored(self) -> None:
        assert is_aligned(PLAIN_PROMPT, "teapot", seen()) is None
        assert is_copied(PLAIN_PROMPT, PHOTO, seen()) is None


class TestCopies:
    def test_the_photo_s_state_instead_of_the_asked_one(self) -> None:
        assert is_copied(GOLDEN, PHOTO, seen("steaming", "snow")) is True
        assert is_copied(GOLDEN, PHOTO, seen("broken", "beach")) is False  # a fault, but no copy

    def test_the_photo_s_scene_instead_of_the_asked_one(self) -> None:
        assert is_copied(SNOW, PHOTO, seen("steaming", "beach")) is True
        assert is_copied(SNOW, PHOTO, seen("steaming", "jungle")) is False

    def test_a_state_that_was_asked_is_no_copy(self) -> None:
        asked = Request("a photo of sks steaming teapot", "state", state="steaming")
        assert is_copied(asked, PHOTO, seen("steaming")) is False

    def test_another_class_in_a_state_of_that_name_is_no_copy(self) -> None:
        photo = TEAPOT.spec("golden", "beach")
        asked = Request("a photo of sks broken teapot", "state", state="broken")
        assert is_copied(asked, photo, seen("golden", name="vase")) is False


class TestIdentity:
    def test_true_renders_score_one_and_others_zero(self) -> None:
        """Over many pictures: pictures of the subject and of other identities in what is seen."""
        true = [render(TEAPOT.spec("plain", "snow", layout_seed=i)).image for i in range(24)]
        other = [
            render(ImageSpec("teapot", identity_seed("D", 700_000 + i), "plain", "snow")).image
            for i in range(24)
        ]
        rows = [seen("plain", "snow")] * 24
        scorer = WorldScorer(FixedOracle(*rows), ColourJudge())
        of_true = scorer.score(TEAPOT, PHOTO, [SNOW] * 24, true)
        of_other = scorer.score(TEAPOT, PHOTO, [SNOW] * 24, other)
        assert identity_fidelity([vars(s) for s in of_true]) == pytest.approx(1.0, abs=0.1)
        assert identity_fidelity([vars(s) for s in of_other]) == pytest.approx(0.0, abs=0.35)
        assert np.mean([bool(s.joint) for s in of_true]) > 0.9

    def test_the_yardstick_follows_what_is_seen(self) -> None:
        image = render(TEAPOT.spec("golden", "snow")).image
        rows = (seen("golden", "snow"), seen("plain", "snow"))
        scorer = WorldScorer(FixedOracle(*rows), ColourJudge())
        as_golden, as_plain = scorer.score(TEAPOT, PHOTO, [GOLDEN, GOLDEN], [image, image])
        assert as_golden.ceiling != as_plain.ceiling
        assert as_golden.similarity > as_plain.similarity
        assert as_golden.joint is True or not as_golden.is_same_individual
        assert as_plain.aligned is False and as_plain.joint is False

    def test_another_class_counts_as_another_identity(self) -> None:
        image = render(TEAPOT.spec("plain", "snow")).image
        scorer = WorldScorer(FixedOracle(seen("", "snow", "unreadable")), ColourJudge())
        score = scorer.score(TEAPOT, PHOTO, [SNOW], [image])[0]
        assert score.similarity == score.floor
        assert not score.is_same_individual and score.joint is False

    def test_a_state_that_hides_everything_weighs_nothing(self) -> None:
        rows = [
            {"similarity": 0.8, "floor": 0.4, "ceiling": 0.9},
            {"similarity": 0.71, "floor": 0.7, "ceiling": 0.7},
        ]
        assert identity_fidelity(rows) == pytest.approx((0.4 + 0.01) / 0.5)

    def test_nothing_to_see_is_nan(self) -> None:
        assert math.isnan(identity_fidelity([]))

    def test_half_way_is_the_border(self) -> None:
        def score(similarity: float) -> PictureScore:
            return PictureScore("c", "s", "p", None, None, similarity, 0.2, 0.6, None)

        assert score(0.41).is_same_individual and not score(0.39).is_same_individual

    def test_one_request_per_picture(self) -> None:
        with pytest.raises(BadInputError, match="D01-teapot: 1 requests for 0 pictures"):
            WorldScorer(FixedOracle(), ColourJudge()).score(TEAPOT, PHOTO, [SNOW], [])


class TestShippedKinds:
    def test_works_with_the_world_s_own_evaluators(self) -> None:
        """Untrained ones: only that everything fits together."""
        oracle = Oracle("A", OracleA().eval())
        judge = IdentityJudge(IdentityEncoder().eval(), SegmenterJudge(Segmenter().eval()))
        images = [render(TEAPOT.spec("plain", "snow", layout_seed=i)).image for i in range(2)]
        scores = WorldScorer(oracle, judge).score(TEAPOT, PHOTO, [SNOW, PLAIN_PROMPT], images)
        assert [s.aligned is None for s in scores] == [False, True]
        assert all(-1 <= s.similarity <= 1.0001 for s in scores)

    def test_an_oracle_averages_its_readings_of_moved_pictures(self) -> None:
        torch.manual_seed(0)
        model = OracleA().eval()
        images = [render(TEAPOT.spec("plain", "snow", layout_seed=0)).image]
        moved = [ImageChops.offset(images[0], 1, 0)]  # the border, which wraps around, is replaced
        moved[0].paste(images[0].crop((0, 0, 1, 64)), (0, 0))
        alone, right = Oracle("A", model), Oracle("A", model, ((1, 0),))
        both = Oracle("A", model, ((0, 0), (1, 0)))
        for head, own in right.probabilities(images).items():
            torch.testing.assert_close(own, alone.probabilities(moved)[head])
            product = own * alone.probabilities(images)[head]
            expected = product.sqrt() / product.sqrt().sum(dim=1, keepdim=True)
            torch.testing.assert_close(both.probabilities(images)[head], expected)

    def test_selection_fidelity_sees_photos_only(self) -> None:
        photo = render(PHOTO).image
        assert selection_fidelity([photo], [photo], ColourJudge()) == pytest.approx(1.0)
        with pytest.raises(BadInputError, match="0 photos"):
            selection_fidelity([photo], [], ColourJudge())
