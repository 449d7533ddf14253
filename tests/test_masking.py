"""Mask samplers: what every mask must be, the published statistics, and that no frame is favoured."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa2_hf import masking
from vjepa2_hf.masking import (
    MASK_SAMPLERS,
    PUBLISHED_MASKS,
    FutureMask,
    MultiBlockMask,
    build_mask_samplers,
)


STATISTICS = json.loads((Path(__file__).parent / "fixtures" / "mask_statistics.json").read_text())
SEED_003 = {
    "num_blocks": (4, 8),
    "spatial_scale": (0.15, 0.7),
    "temporal_scale": (0.4, 1.0),
    "mask_ratio": (0.75, 0.9),
}
SAMPLERS = [*build_mask_samplers(PUBLISHED_MASKS), MultiBlockMask(**SEED_003), FutureMask(0.5)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_masks(context_mask, target_mask, batch_size, grid):
    num_tokens = math.prod(grid)
    for ids in (context_mask, target_mask):
        assert ids.dtype == torch.int64 and ids.dim() == 2 and ids.is_contiguous()
        assert ids.shape[0] == batch_size and ids.shape[1] > 0
        assert ids.min() >= 0 and ids.max() < num_tokens
        assert (ids.diff(dim=1) > 0).all(), "ids are sorted and none is there twice"
    both = torch.cat([context_mask, target_mask], dim=1).sort(dim=1).values
    assert (both.diff(dim=1) > 0).all(), "context and target never overlap"


@settings(max_examples=60, deadline=None)
@given(
    sampler=st.sampled_from(SAMPLERS),
    seed=st.integers(0, 2**31),
    batch_size=st.integers(1, 6),
    grid=st.tuples(st.integers(2, 6), st.integers(3, 8), st.integers(3, 8)),
)
def test_masks_are_disjoint_sorted_in_range_never_empty_and_the_same_for_the_same_seed(
    sampler, seed, batch_size, grid
):
    first = sampler(batch_size, grid, seeded(seed))
    second = sampler(batch_size, grid, generator=seeded(seed))
    check_masks(*first, batch_size, grid)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    grid=st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(2, 7)),
    num_blocks=st.tuples(st.integers(1, 3), st.integers(0, 3)).map(lambda pair: (pair[0], sum(pair))),
    scales=st.tuples(st.floats(0.01, 0.5), st.floats(0.05, 1.0), st.floats(0.3, 3.0)),
)
def test_any_settings_give_valid_masks_or_say_why_not(seed, grid, num_blocks, scales):
    sampler = MultiBlockMask(num_blocks, scales[0], (0.01, scales[1]), scales[2])
    try:
        masks = sampler(3, grid, seeded(seed))
    except ValueError as error:
        assert "leave no context" in str(error)
    else:
        check_masks(*masks, 3, grid)


def test_without_a_generator_the_global_seed_counts():
    torch.manual_seed(5)
    first = MultiBlockMask()(2, (4, 8, 8))
    torch.manual_seed(5)
    second = MultiBlockMask()(2, (4, 8, 8))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(MultiBlockMask()(2, (4, 8, 8))[1], second[1])


@pytest.mark.parametrize(("name", "spec"), list(zip(("short", "long"), PUBLISHED_MASKS)))
def test_published_masks_cover_what_the_published_code_covers(name, spec):
    grid, generator, golden = (8, 16, 16), seeded(), STATISTICS[name]
    (sampler,) = build_mask_samplers([spec])
    masks = [sampler(1, grid, generator) for _ in range(1000)]
    # a batch of one is not trimmed: context and target are the whole clip
    assert all(context.shape[1] + target.shape[1] == math.prod(grid) for context, target in masks)
    ratio = torch.tensor([target.shape[1] / math.prod(grid) for _, target in masks])
    assert ratio.mean().item() == pytest.approx(golden["mean_target_ratio"], abs=0.01)
    assert ratio.std().item() == pytest.approx(golden["std"], abs=0.008)
    # the area of a clip's least and most covered mask: for two blocks both are set by the block size alone
    assert ratio.min().item() == pytest.approx(golden["min"], abs=0.08)
    assert ratio.max().item() == pytest.approx(golden["max"], abs=0.08)


def test_block_size_is_drawn_once_a_batch_and_positions_for_each_clip():
    sampler = MultiBlockMask(num_blocks=1, spatial_scale=(0.1, 0.6))
    generator, sizes = seeded(), set()
    for _ in range(8):
        context_mask, target_mask = sampler(16, (2, 8, 8), generator)
        # one block: were the sizes different, trimming would leave tokens that are neither
        assert context_mask.shape[1] + target_mask.shape[1] == 128
        assert len({tuple(row) for row in target_mask.tolist()}) > 1
        sizes.add(target_mask.shape[1])
    assert len(sizes) > 3


def test_a_block_has_the_published_size_and_lies_anywhere_in_the_clip():
    # 0.15 of 16 x 16 is 38 patches; aspect 1.5 makes sides of sqrt(57) and sqrt(25.3): 8 x 5; 0.5 of 9 frames: 4
    sampler, grid = MultiBlockMask(1, 0.15, 0.5, 1.5), (9, 16, 16)
    _, target_mask = sampler(3000, grid, seeded())
    assert target_mask.shape[1] == 4 * 8 * 5
    for axis, (divisor, length, extent) in enumerate(((256, 9, 4), (16, 16, 8), (1, 16, 5))):
        starts = (target_mask[:, 0] // divisor % length).bincount()
        expected = 3000 / (length - extent + 1)
        assert len(starts) == length - extent + 1, f"axis {axis}"
        # chi-square, at most 11 degrees of freedom: above 40 in less than one of 10^4 cases
        assert ((starts - expected) ** 2 / expected).sum() < 40, f"axis {axis}"


# --- Trimming


def record_untrimmed(monkeypatch) -> list[torch.Tensor]:
    """A list to which every call of a sampler adds the untrimmed context and target, bool (B, N)."""
    recorded, trim = [], masking._random_ids

    def record(chosen, generator):
        recorded.append(chosen)
        return trim(chosen, generator)

    monkeypatch.setattr(masking, "_random_ids", record)
    return recorded


def untrimmed_and_trimmed(sampler, grid, batch_size, num_batches, monkeypatch):
    """Per-token counts (N,) of the trimmed contexts, and those expected when each clip keeps K of its own tokens."""
    recorded = record_untrimmed(monkeypatch)
    observed, expected = torch.zeros(math.prod(grid)), torch.zeros(math.prod(grid))
    generator, num_trimmed = seeded(1), 0
    for _ in range(num_batches):
        recorded.clear()
        context_mask, _ = sampler(batch_size, grid, generator)
        context = recorded[0].float()
        num_trimmed += (context.sum(1) > context_mask.shape[1]).sum().item()
        observed += context_mask.flatten().bincount(minlength=math.prod(grid))
        expected += (context * context_mask.shape[1] / context.sum(1, keepdim=True)).sum(0)
    assert num_trimmed > batch_size * num_batches / 2, "the test needs clips that were trimmed"
    return observed, expected


def chi_square(observed, expected) -> float:
    return ((observed - expected) ** 2 / expected).sum().item()


# Above this in one of 10^4 cases, for 7 degrees of freedom (8 frames).
CHI_SQUARE_8_FRAMES = 29.9


def trim_from_the_end(chosen, generator):
    """What the published collator does."""
    count = int(chosen.sum(1).min())
    return torch.stack([row.nonzero().flatten()[:count] for row in chosen])


@pytest.mark.parametrize("spec", PUBLISHED_MASKS)
def test_every_frame_is_equally_likely_to_stay_in_the_context(spec, monkeypatch):
    grid = (8, 8, 8)
    (sampler,) = build_mask_samplers([spec])
    observed, expected = untrimmed_and_trimmed(sampler, grid, 24, 40, monkeypatch)
    frames, uniform = observed.reshape(8, -1).sum(1), observed.sum() / 8
    # at temporal scale 1 the untrimmed sampler treats all frames alike, and so must the trimmed one
    assert torch.allclose(expected.reshape(8, -1).sum(1), uniform.expand(8), rtol=1e-5)
    assert chi_square(frames, uniform) < CHI_SQUARE_8_FRAMES


def test_the_published_way_of_trimming_fails_the_same_test(monkeypatch):
    monkeypatch.setattr(masking, "_random_ids", trim_from_the_end)
    (sampler,) = build_mask_samplers(PUBLISHED_MASKS[:1])
    observed, _ = untrimmed_and_trimmed(sampler, (8, 8, 8), 24, 40, monkeypatch)
    frames = observed.reshape(8, -1).sum(1)
    assert chi_square(frames, frames.sum() / 8) > 100 * CHI_SQUARE_8_FRAMES
    assert frames[-1] < frames[0] / 5


def test_trimming_keeps_each_token_of_a_clip_as_often_as_the_untrimmed_sampler_shows_it(monkeypatch):
    # seed 003's shorter blocks favour the clip's ends by themselves: trimming must not add to that nor take from it
    observed, expected = untrimmed_and_trimmed(MultiBlockMask(**SEED_003), (8, 6, 6), 16, 150, monkeypatch)
    assert chi_square(observed.reshape(8, -1).sum(1), expected.reshape(8, -1).sum(1)) < CHI_SQUARE_8_FRAMES
    # tokens in the middle of the frame are hardly ever context: too few for the statistic
    often = expected > 5
    assert often.sum() > 200 and (observed[expected == 0] == 0).all()
    # at most 288 tokens: above 380 in less than one of 10^4 cases
    assert chi_square(observed[often], expected[often]) < 380
    assert observed.reshape(8, -1).sum(1)[0] > 1.3 * observed.reshape(8, -1).sum(1)[3]


def test_trimming_one_clip_keeps_every_one_of_its_tokens_equally_often():
    chosen = torch.zeros(2, 40, dtype=torch.bool)
    chosen[0, 4:34] = True
    chosen[1, ::4] = True
    generator, counts = seeded(2), torch.zeros(40)
    for _ in range(1500):
        ids = masking._random_ids(chosen, generator)
        assert ids.shape == (2, 10) and ids[1].tolist() == list(range(0, 40, 4))
        counts[ids[0]] += 1
    assert counts[:4].sum() == 0 and counts[34:].sum() == 0
    # 29 degrees of freedom: above 63 in less than three of 10^4 cases
    assert chi_square(counts[4:34], torch.tensor(500.0)) < 63


# --- Seed 003


@pytest.mark.parametrize("grid", [(8, 14, 14), (8, 8, 8), (4, 4, 4)])
def test_seed_003_covers_75_to_90_percent_of_every_clip(grid, monkeypatch):
    recorded = record_untrimmed(monkeypatch)
    check_masks(*MultiBlockMask(**SEED_003)(64, grid, seeded()), 64, grid)
    ratio = recorded[1].float().mean(1)
    assert ratio.min() >= 0.75 and ratio.max() <= 0.9
    # clips differ in what is covered: number and size of the blocks are each clip's own
    assert len(ratio.unique()) > 4


def test_a_ratio_out_of_reach_is_an_error_that_names_settings_and_grid():
    with pytest.raises(ValueError, match=r"num_blocks=1.*grid \(4, 8, 8\).*never lies within 0.75 to 0.9"):
        MultiBlockMask(1, 0.15, mask_ratio=(0.75, 0.9))(2, (4, 8, 8), seeded())


def test_blocks_that_fill_the_grid_are_an_error():
    with pytest.raises(ValueError, match="cover every token and leave no context; use a larger grid"):
        MultiBlockMask()(2, (1, 1, 1), seeded())


def test_a_block_size_that_fills_the_grid_is_drawn_again():
    # half of the sizes fill the 2 x 2 frame at temporal scale 1
    sampler = MultiBlockMask(1, spatial_scale=(0.5, 1.0), aspect_ratio=1.0)
    for seed in range(10):
        check_masks(*sampler(4, (2, 2, 2), seeded(seed)), 4, (2, 2, 2))


# --- Future


@pytest.mark.parametrize(
    ("ratio", "frames", "context_frames"), [(0.5, 8, 4), (0.25, 8, 2), (0.01, 4, 1), (0.99, 4, 3), (0.5, 2, 1)]
)
def test_future_mask_keeps_the_first_frames(ratio, frames, context_frames):
    context_mask, target_mask = FutureMask(ratio)(3, (frames, 2, 3))
    check_masks(context_mask, target_mask, 3, (frames, 2, 3))
    assert context_mask.tolist() == [list(range(context_frames * 6))] * 3
    assert target_mask.tolist() == [list(range(context_frames * 6, frames * 6))] * 3


# --- Settings


def test_specs_as_yaml_gives_them():
    samplers = build_mask_samplers(
        [{"type": "multi_block", "num_blocks": [4, 8], "mask_ratio": [0.75, 0.9]}, {"type": "future"}]
    )
    assert samplers == [MultiBlockMask(num_blocks=(4, 8), mask_ratio=(0.75, 0.9)), FutureMask()]
    assert "num_blocks=(4, 8)" in repr(samplers[0])
    assert set(MASK_SAMPLERS) == {"multi_block", "future"}
    assert build_mask_samplers([]) == []


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: MultiBlockMask(num_blocks=0), "num_blocks is 0, expected an integer above 0"),
        (lambda: MultiBlockMask(num_blocks=2.0), "num_blocks is 2.0"),
        (lambda: MultiBlockMask(num_blocks=(8, 4)), r"num_blocks is \(8, 4\)"),
        (lambda: MultiBlockMask(spatial_scale=1.5), "spatial_scale is 1.5, expected a number above 0 and at most 1"),
        (lambda: MultiBlockMask(spatial_scale=(0.1, 0.2, 0.3)), "spatial_scale is"),
        (lambda: MultiBlockMask(temporal_scale="half"), "temporal_scale is 'half'"),
        (lambda: MultiBlockMask(temporal_scale=True), "temporal_scale is True"),
        (lambda: MultiBlockMask(aspect_ratio=float("nan")), "aspect_ratio is nan"),
        (lambda: MultiBlockMask(aspect_ratio=float("inf")), "aspect_ratio is inf"),
        (lambda: MultiBlockMask(mask_ratio=(0.75, 1.0)), r"mask_ratio is \(0.75, 1.0\)"),
        (lambda: MultiBlockMask(mask_ratio=0.8), "mask_ratio is 0.8, expected a range"),
        (lambda: FutureMask(1.0), "context_ratio is 1.0"),
        (lambda: FutureMask((0.2, 0.5)), "expected one number"),
        (lambda: FutureMask()(1, (1, 4, 4)), "at least 2 tubelets"),
        (lambda: FutureMask()(0, (2, 4, 4)), "batch_size is 0"),
        (lambda: MultiBlockMask()(1, (2, 4)), "three positive numbers"),
        (lambda: MultiBlockMask()(1, (0, 4, 4)), "three positive numbers"),
        (lambda: build_mask_samplers([{"type": "multiblock"}]), r"unknown \(did you mean 'multi_block'\?\)"),
        (lambda: build_mask_samplers([{"num_blocks": 8}]), "has no 'type'"),
        (lambda: build_mask_samplers(["future"]), "has no 'type'"),
        (
            lambda: build_mask_samplers([{"type": "multi_block", "spacial_scale": 0.15}]),
            r"no setting 'spacial_scale' \(did you mean 'spatial_scale'\?\)",
        ),
    ],
)
def test_bad_settings_and_grids_are_refused_with_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
