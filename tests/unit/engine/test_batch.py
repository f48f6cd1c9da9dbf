"""Counter-based draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreamfleet.engine.batch import LatentSet, make_batch, sample_positions
from tests.tiny_jobs import CLASS_PROMPT, PROMPT, latent_set, tiny_spec

SUBJECT, PRIOR = latent_set(PROMPT), latent_set(CLASS_PROMPT, seed=1)


def draws(indices: list[int], seed: int = 0, **options: object) -> dict[str, Tensor]:
    batch = make_batch(seed, indices, SUBJECT, [CLASS_PROMPT] * 3, PRIOR, **options)  # type: ignore[arg-type]
    rows: dict[str, Tensor] = {}
    for name, part in (("subject", batch.subject), ("prior", batch.prior)):
        assert part is not None
        rows |= {f"{name}.{key}": getattr(part, key) for key in ("latents", "noise", "t")}
    return rows


def test_a_sample_does_not_depend_on_how_samples_are_grouped() -> None:
    whole = draws(list(range(8)))
    for size in (1, 2, 4):
        parts = [draws(list(range(i, i + size))) for i in range(0, 8, size)]
        for key in whole:
            assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])


def test_seeds_and_streams_differ() -> None:
    first, other = draws([0, 1]), draws([0, 1], seed=1)
    assert all(not torch.equal(first[key], other[key]) for key in first)
    assert not torch.equal(first["subject.noise"], first["prior.noise"])
    assert not torch.equal(first["subject.noise"][0], first["subject.noise"][1])


def test_without_prior_the_subject_draws_are_the_same() -> None:
    alone = make_batch(0, [0, 1], SUBJECT, [CLASS_PROMPT] * 3)
    assert torch.equal(alone.subject.noise, draws([0, 1])["subject.noise"]) and alone.prior is None


def test_timesteps_cover_the_schedule() -> None:
    t = draws(list(range(600)))["subject.t"]
    assert 0 <= int(t.min()) < 20 and 980 <= int(t.max()) <= 999
    assert int(draws(list(range(50)), num_train_timesteps=10)["subject.t"].max()) <= 9


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "world_size"), [(4, 1, 1), (2, 2, 1), (1, 2, 2), (1, 4, 1)]
)
def test_every_split_of_a_step_covers_the_same_positions(
    batch_size: int, accumulation: int, world_size: int
) -> None:
    for step in range(3):
        seen = [
            n
            for rank in range(world_size)
            for micro in range(accumulation)
            for n in sample_positions(
                step,
                micro,
                batch_size=batch_size,
                accumulation=accumulation,
                rank=rank,
                world_size=world_size,
            )
        ]
        assert sorted(seen) == list(range(4 * step, 4 * step + 4))


def test_photos_are_drawn_by_weight() -> None:
    count = 400
    means = torch.arange(3.0).view(3, 1, 1, 1)
    photos = LatentSet(
        means, torch.zeros(3, 1, 1, 1), ["a", "b", "c"], torch.tensor([1.0, 1.0, 2.0])
    )
    batch = make_batch(0, list(range(count)), photos, ["x", "y", "z"])
    shares = torch.bincount(batch.subject.latents.flatten().long(), minlength=3) / count
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]), atol=0.07, rtol=0)
    named = [dict(a="x", b="y", c="z")[prompt] for prompt in batch.subject.prompts]
    assert list(batch.class_prompts) == named


def test_latents_are_posterior_draws_and_mirroring_is_half_of_them() -> None:
    zeros = torch.zeros(1, 1, 8, 8)
    photos = LatentSet(zeros + 3, zeros + 0.5, ["a"], None, zeros - 3, zeros + 0.5)
    latents = make_batch(0, list(range(200)), photos, ["a"]).subject.latents
    means = latents.mean(dim=(1, 2, 3))
    assert 0.4 < float((means < 0).float().mean()) < 0.6
    assert float((latents - 3 * means.sign().view(-1, 1, 1, 1)).std()) == pytest.approx(
        0.5, rel=0.05
    )
    plain = LatentSet(zeros + 3, zeros + 0.5, ["a"])
    assert (
        make_batch(0, list(range(50)), plain, ["a"]).subject.latents.mean(dim=(1, 2, 3)) > 0
    ).all()


def test_sets_that_do_not_fit_are_refused() -> None:
    zeros = torch.zeros(2, 1, 1, 1)
    with pytest.raises(ValueError, match="1 prompts"):
        LatentSet(zeros, zeros, ["a"])
    with pytest.raises(ValueError, match="go together"):
        LatentSet(zeros, zeros, ["a", "b"], flipped_mean=zeros)


def test_a_set_without_its_mirror_pictures_is_made_once(tiny_base_folder: Path) -> None:
    spec = tiny_spec(tiny_base_folder, data__random_flip=False)
    own = spec.subject
    spec = replace(spec, subject=replace(own, flipped_mean=own.mean, flipped_std=own.std))
    assert spec._subject_set is spec._subject_set, "its key is not made anew for every step"
    assert spec._subject_set.key == own.key != spec.subject.key
