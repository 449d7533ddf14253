"""Mask samplers: what every mask must be, the published statistics, and that trimming favours no token."""

import importlib
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
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
    MultiRateMask,
    PeriodicMask,
    RandomFrameMask,
    build_mask_samplers,
)


STATISTICS = json.loads((Path(__file__).parent / "fixtures" / "mask_statistics.json").read_text())
TWO_PHASE = {
    "num_blocks": (4, 8),
    "spatial_scale": (0.15, 0.7),
    "temporal_scale": (0.4, 1.0),
    "mask_ratio": (0.75, 0.9),
}
TRIMMING = {
    "published, 8 small blocks": build_mask_samplers(PUBLISHED_MASKS)[0],
    "published, 2 large blocks": build_mask_samplers(PUBLISHED_MASKS)[1],
    "two-phase recipe": MultiBlockMask(**TWO_PHASE),
}
FIXED = [FutureMask(0.5), PeriodicMask(3), MultiRateMask(0.3, (1, 2))]
DRAWING = [*TRIMMING.values(), RandomFrameMask(0.5)]


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


def numbers_or_ranges(low, high):
    """A number, or a range of two, as the samplers take them."""
    one = st.floats(low, high)
    return one | st.tuples(one, one).map(lambda pair: (min(pair), max(pair)))


ratios = st.floats(0.01, 0.99)
block_settings = {
    "num_blocks": st.integers(1, 6) | st.tuples(st.integers(1, 3), st.integers(3, 8)),
    "spatial_scale": numbers_or_ranges(0.01, 1.0),
    "temporal_scale": numbers_or_ranges(0.01, 1.0),
    "aspect_ratio": numbers_or_ranges(0.2, 5.0),
}
any_sampler = st.one_of(
    st.sampled_from(DRAWING),
    st.builds(MultiBlockMask, **block_settings),
    st.builds(MultiBlockMask, **block_settings, mask_ratio=st.just((0.2, 0.9)) | st.just((0.05, 0.6))),
    st.builds(FutureMask, ratios),
    st.builds(RandomFrameMask, ratios),
    st.builds(PeriodicMask, st.integers(2, 9)),
    st.builds(MultiRateMask, ratios, st.sets(st.integers(1, 6), min_size=1, max_size=4).map(tuple)),
)
grids = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
REFUSALS = {
    MultiBlockMask: "leave no context|never lies within",
    FutureMask: "needs at least 2 tubelets",
    RandomFrameMask: "needs at least 2 tubelets",
    PeriodicMask: "needs at least 2 tubelets",
    MultiRateMask: "needs at least 2 tubelets|tubelets after the",
}


@pytest.fixture(scope="module", autouse=True)
def few_tries():
    """Settings that no mask can meet are refused at once; those here that can be met need a few tries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "MAX_TRIES", 200)
        yield


@settings(max_examples=120, deadline=None)
@given(sampler=any_sampler, seed=st.integers(0, 2**63 - 1), batch_size=st.integers(1, 6), grid=grids)
def test_masks_are_disjoint_sorted_in_range_never_empty_and_the_same_for_the_same_seed(
    sampler, seed, batch_size, grid
):
    try:
        first = sampler(batch_size, grid, seeded(seed))
    except ValueError as error:
        assert re.search(REFUSALS[type(sampler)], str(error))
        assert str(tuple(grid)) in str(error), "a refusal names the grid"
        return
    check_masks(*first, batch_size, grid)
    second = sampler(batch_size, grid, generator=seeded(seed))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@settings(max_examples=60, deadline=None)
@given(sampler=any_sampler, seed=st.integers(0, 2**31), batch_size=st.integers(1, 6), grid=grids)
def test_a_generator_moves_on_by_one_number_whatever_is_drawn_and_the_global_one_not_at_all(
    sampler, seed, batch_size, grid
):
    generator, expected, before = seeded(seed), seeded(seed), torch.get_rng_state()
    try:
        sampler(batch_size, grid, generator)
    except ValueError:
        return
    if not isinstance(sampler, (FutureMask, PeriodicMask, MultiRateMask)):
        torch.randint(2**63 - 1, (), generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=40, deadline=None)
@given(sampler=st.sampled_from(FIXED), batch_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_masks_without_chance_are_the_same_at_every_place_in_a_batch_of_any_size(sampler, batch_size, seed):
    alone = sampler(1, (6, 3, 4))
    for mask, expected in zip(sampler(batch_size, (6, 3, 4), seeded(seed)), alone):
        assert torch.equal(mask, expected.expand(batch_size, -1))


@pytest.mark.parametrize("sampler", DRAWING, ids=[*TRIMMING, "random frames"])
def test_a_mask_does_not_depend_on_the_clips_place_in_the_batch(sampler, monkeypatch):
    # also where clips are drawn again until they serve: the last of a batch are no other than the first
    recorded, generator, batch_size, num_batches = record_untrimmed(monkeypatch), seeded(3), 8, 300
    contrasts = []
    for _ in range(num_batches):
        recorded.clear()
        context_mask, _ = sampler(batch_size, (6, 6, 6), generator)
        shown = ~recorded[0] if recorded else torch.zeros(batch_size, 216).scatter(1, context_mask, 1.0)
        figures = torch.cat([shown.float(), shown.float().sum(1, keepdim=True)], dim=1)  # each token, and their number
        contrasts.append(figures[:4].mean(0) - figures[4:].mean(0))
    contrasts = torch.stack(contrasts)
    assert (contrasts != 0).any(0)[:216].sum() > 100, "clips of a batch differ"
    deviation = contrasts.std(0).clamp(min=1e-6) / math.sqrt(num_batches)
    # one of 217 normal figures lies above 5 deviations in one of 10^4 cases
    assert (contrasts.mean(0).abs() / deviation).max() < 5


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
#
# Given what its blocks cover, a clip of c context tokens keeps K of them at random. Over many clips the counts of
# tokens (or frames) differ from those expected by a statistic that is chi-square distributed, if trimming favours
# none. Every threshold is exceeded in one of 10^4 cases.


def chi_square(observed, expected, variance=None) -> float:
    return ((observed - expected) ** 2 / (expected if variance is None else variance)).sum().item()


def chi_square_limit(degrees: int) -> float:
    """Exceeded in one of 10^4 cases (Wilson and Hilferty's approximation: 30.4 for 7, where 29.9 is exact)."""
    ninth = 2 / (9 * degrees)
    return degrees * (1 - ninth + 3.719 * math.sqrt(ninth)) ** 3


def trim_from_the_end(covered, rng):
    """What the published collator does."""
    rows = {True: covered, False: ~covered}
    count = {kind: int(chosen.sum(1).min()) for kind, chosen in rows.items()}
    ids = {kind: np.stack([np.flatnonzero(row)[: count[kind]] for row in chosen]) for kind, chosen in rows.items()}
    return ids[False], ids[True]


def record_untrimmed(monkeypatch, trim=masking._trim):
    """What `_trim` (or another in its place) was given, a list of bool (B, N): the target before trimming."""
    recorded = []

    def record(covered, rng):
        recorded.append(torch.from_numpy(covered))
        return trim(covered, rng)

    monkeypatch.setattr(masking, "_trim", record)
    return recorded


def trimming_statistics(sampler, trim, monkeypatch, grid=(8, 6, 6), batch_size=16, num_batches=150):
    """Chi-square of context and target, over tokens and over frames: {name: (statistic, threshold)}.

    The expectation of each token is the untrimmed sampler's: the chance K / c in every clip that shows it. Without
    replacement the variance is smaller by (c - K) / (c - 1) than that of independent draws.
    """
    recorded = record_untrimmed(monkeypatch, trim)
    num_tokens, generator = math.prod(grid), seeded(1)
    totals = torch.zeros(2, 3, num_tokens, dtype=torch.float64)
    for _ in range(num_batches):
        recorded.clear()
        masks = sampler(batch_size, grid, generator)
        for total, kept, untrimmed in zip(totals, masks, (~recorded[0], recorded[0])):
            count = untrimmed.sum(1, keepdim=True).double()
            chance = untrimmed * (kept.shape[1] / count)
            total[0] += kept.flatten().bincount(minlength=num_tokens)
            total[1] += chance.sum(0)
            total[2] += (chance * (count - kept.shape[1]) / (count - 1)).sum(0)
    statistics = {}
    for name, total in zip(("context", "target"), totals):
        assert (total[0][total[1] == 0] == 0).all()
        often = total[:, total[2] > 5]  # rarely seen tokens are too few for the statistic
        assert often.shape[1] > num_tokens / 2, "the test needs clips that were trimmed"
        statistics[f"{name} tokens"] = (chi_square(*often), chi_square_limit(often.shape[1] - 1))
        frames = total.reshape(3, grid[0], -1).sum(2)
        statistics[f"{name} frames"] = (chi_square(*frames), chi_square_limit(grid[0] - 1))
    return statistics


@pytest.mark.parametrize("name", TRIMMING)
def test_trimming_favours_no_token_and_no_frame_against_the_untrimmed_sampler(name, monkeypatch):
    for what, (statistic, limit) in trimming_statistics(TRIMMING[name], masking._trim, monkeypatch).items():
        assert statistic < limit, what
        # nor is it too even: one of 10^4 cases lies below a third (tokens) or a hundredth (frames) of the limit
        assert statistic > limit / (3 if "tokens" in what else 100), what


@pytest.mark.parametrize("name", TRIMMING)
def test_the_published_way_of_trimming_fails_the_same_test(name, monkeypatch):
    for what, (statistic, limit) in trimming_statistics(TRIMMING[name], trim_from_the_end, monkeypatch).items():
        assert statistic > 3 * limit, what


def test_one_batch_in_forty_cut_from_the_end_fails_the_same_test(monkeypatch):
    trim = masking._trim

    def now_and_then_from_the_end(covered, rng):
        return (trim_from_the_end if rng.random() < 1 / 40 else trim)(covered, rng)

    sampler = TRIMMING["published, 8 small blocks"]
    statistic, limit = trimming_statistics(sampler, now_and_then_from_the_end, monkeypatch)["context frames"]
    assert statistic > limit


@pytest.mark.parametrize("spec", PUBLISHED_MASKS)
def test_every_frame_is_equally_likely_in_both_masks_at_temporal_scale_1(spec):
    grid, generator = (8, 8, 8), seeded(1)
    (sampler,) = build_mask_samplers([spec])
    counts = torch.zeros(2, 8)
    for _ in range(40):
        for count, ids in zip(counts, sampler(24, grid, generator)):
            count += (ids.flatten() // 64).bincount(minlength=8)
    for count in counts:
        assert chi_square(count, count.mean()) < chi_square_limit(7)


def test_shorter_blocks_favour_the_ends_of_the_clip_by_themselves():
    frames = (MultiBlockMask(**TWO_PHASE)(2000, (8, 6, 6), seeded())[0].flatten() // 36).bincount()
    assert frames[0] > 1.3 * frames[3] and frames[7] > 1.3 * frames[4]


def test_trimming_one_clip_keeps_every_one_of_its_tokens_equally_often():
    covered = np.zeros((2, 40), dtype=bool)
    covered[0, 4:34] = True
    covered[1, ::4] = True
    rng, counts = np.random.default_rng(2), torch.zeros(40)
    for _ in range(1500):
        context_ids, target_ids = masking._trim(covered, rng)
        assert target_ids.shape == (2, 10) and target_ids[1].tolist() == list(range(0, 40, 4))
        assert context_ids.shape == (2, 10) and context_ids[0].tolist() == [0, 1, 2, 3, *range(34, 40)]
        counts[target_ids[0]] += 1
    assert counts[:4].sum() == 0 and counts[34:].sum() == 0
    # each clip takes 10 of 30 without replacement
    assert chi_square(counts[4:34], torch.tensor(500.0), torch.tensor(500.0 * 20 / 29)) < chi_square_limit(29)


@pytest.mark.parametrize("num_tokens", [40, 5000])
def test_equal_keys_at_the_boundary_are_drawn_again(num_tokens, monkeypatch):
    covered = np.zeros((3, num_tokens), dtype=bool)
    covered[:, : num_tokens // 2] = True
    covered[0, :4] = False
    covered[2, -4:] = True
    draw, drawn = masking._random_keys, []

    def equal_at_first(rows, num_tokens, dtype, rng):
        keys = draw(rows, num_tokens, dtype, rng)
        drawn.append((rows, dtype))
        if len(drawn) == 1:
            keys[1:] = 7
        return keys

    monkeypatch.setattr(masking, "_random_keys", equal_at_first)
    context_ids, target_ids = masking._trim(covered, np.random.default_rng(0))
    assert drawn[0][0] == 3 and drawn[1][0] in (2, 3)
    assert drawn[0][1] is (np.uint16 if num_tokens == 40 else np.uint32)
    check_masks(torch.from_numpy(context_ids), torch.from_numpy(target_ids), 3, (1, 1, num_tokens))
    assert np.take_along_axis(covered, target_ids, 1).all() and not np.take_along_axis(covered, context_ids, 1).any()


# --- Seed 003


@pytest.mark.parametrize("grid", [(8, 14, 14), (8, 8, 8), (4, 4, 4)])
def test_seed_003_covers_75_to_90_percent_of_every_clip(grid, monkeypatch):
    recorded = record_untrimmed(monkeypatch)
    check_masks(*MultiBlockMask(**TWO_PHASE)(64, grid, seeded()), 64, grid)
    ratio = recorded[0].float().mean(1)
    assert ratio.min() >= 0.75 and ratio.max() <= 0.9
    # clips differ in what is covered: number and size of the blocks are each clip's own
    assert len(ratio.unique()) > 4


def test_rejected_clips_are_replaced_in_few_rounds(monkeypatch):
    sample, rows = masking._sample_union, []

    def record(sizes, exists, number, grid, rng):
        rows.append(number)
        return sample(sizes, exists, number, grid, rng)

    monkeypatch.setattr(masking, "_sample_union", record)
    for seed in range(50):
        MultiBlockMask(**TWO_PHASE)(64, (8, 16, 16), seeded(seed))
    assert len(rows) / 50 < 4 and sum(rows) / 50 < 4 * 64


def test_a_ratio_out_of_reach_ends_after_a_bounded_number_of_tries(monkeypatch):
    monkeypatch.setattr(masking, "MAX_TRIES", 7)
    calls = []
    monkeypatch.setattr(
        masking, "_sample_union", lambda s, e, rows, grid, rng: calls.append(rows) or np.ones((rows, 8)) > 0
    )
    with pytest.raises(ValueError, match="in 7 tries"):
        MultiBlockMask(**TWO_PHASE)(5, (2, 2, 2), seeded())
    assert calls == [5] * 7


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


@pytest.mark.parametrize("sampler", [RandomFrameMask(), PeriodicMask(), MultiRateMask(), FutureMask()])
def test_whole_frames_are_masked(sampler):
    context_mask, target_mask = sampler(3, (8, 2, 3), seeded())
    check_masks(context_mask, target_mask, 3, (8, 2, 3))
    for ids in (context_mask, target_mask):
        frames = (ids // 6).reshape(3, -1, 6)
        assert (frames == frames[..., :1]).all() and (ids.reshape(3, -1, 6) % 6 == torch.arange(6)).all()


def frames_of(ids, patches):
    return (ids[:, ::patches] // patches).tolist()


# --- Random frames


@pytest.mark.parametrize(("ratio", "frames", "targets"), [(0.5, 8, 4), (0.25, 8, 2), (0.01, 4, 1), (0.99, 4, 3)])
def test_random_frames_drop_that_share_of_the_frames(ratio, frames, targets):
    context_mask, target_mask = RandomFrameMask(ratio)(64, (frames, 2, 3), seeded())
    assert target_mask.shape == (64, 6 * targets) and context_mask.shape == (64, 6 * (frames - targets))


def test_every_set_of_frames_is_equally_likely():
    _, target_mask = RandomFrameMask(0.5)(6000, (4, 1, 2), seeded())
    counts = dict.fromkeys(itertools.combinations(range(4), 2), 0)
    for frames in frames_of(target_mask, 2):
        counts[tuple(frames)] += 1
    assert chi_square(torch.tensor(list(counts.values()), dtype=torch.float), torch.tensor(1000.0)) < chi_square_limit(
        5
    )


# --- Periodic


@pytest.mark.parametrize(
    ("period", "frames", "context", "target"),
    [(2, 8, [0, 2, 4, 6], [1, 3, 5, 7]), (3, 8, [0, 3, 6], [1, 2, 4, 5, 7]), (2, 2, [0], [1]), (9, 3, [0], [1, 2])],
)
def test_every_period_th_tubelet_is_context(period, frames, context, target):
    context_mask, target_mask = PeriodicMask(period)(2, (frames, 2, 3))
    assert frames_of(context_mask, 6) == [context] * 2 and frames_of(target_mask, 6) == [target] * 2


# --- Multi-rate


@pytest.mark.parametrize(
    ("sampler", "frames", "context", "target"),
    [
        (MultiRateMask(), 8, [0, 1, 2, 3], [4, 5, 7]),
        (MultiRateMask(0.25, (4, 1)), 8, [0, 1], [2, 5]),
        (MultiRateMask(0.01, (1,)), 4, [0], [1]),
        (MultiRateMask(0.99, (1,)), 4, [0, 1, 2], [3]),
    ],
)
def test_targets_are_tubelets_at_the_horizons_after_the_context(sampler, frames, context, target):
    context_mask, target_mask = sampler(2, (frames, 2, 3))
    assert frames_of(context_mask, 6) == [context] * 2 and frames_of(target_mask, 6) == [target] * 2


# --- Settings


def test_specs_as_yaml_gives_them():
    samplers = build_mask_samplers(
        [{"type": "multi_block", "num_blocks": [4, 8], "mask_ratio": [0.75, 0.9]}, {"type": "future"}]
    )
    assert samplers == [MultiBlockMask(num_blocks=(4, 8), mask_ratio=(0.75, 0.9)), FutureMask()]
    assert "num_blocks=(4, 8)" in repr(samplers[0])
    samplers = build_mask_samplers(
        [
            {"type": "random_frame", "mask_ratio": 0.25},
            {"type": "periodic", "period": 3},
            {"type": "multi_rate", "context_ratio": 0.25, "horizons": [1, 3]},
        ]
    )
    assert samplers == [RandomFrameMask(0.25), PeriodicMask(3), MultiRateMask(0.25, (1, 3))]
    assert set(MASK_SAMPLERS) == {"multi_block", "future", "random_frame", "periodic", "multi_rate"}
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
        (lambda: FutureMask()(1, (1, 4, 4)), "FutureMask needs at least 2 tubelets"),
        (lambda: RandomFrameMask(0.0), "mask_ratio is 0.0"),
        (lambda: RandomFrameMask([0.2, 0.5]), "expected one number"),
        (lambda: RandomFrameMask()(1, (1, 4, 4)), "RandomFrameMask needs at least 2 tubelets"),
        (lambda: PeriodicMask(1), "period is 1, expected an integer of at least 2"),
        (lambda: PeriodicMask(2.0), "period is 2.0"),
        (lambda: PeriodicMask()(1, (1, 4, 4)), "PeriodicMask needs at least 2 tubelets"),
        (lambda: MultiRateMask(horizons=()), r"horizons is \(\), expected different integers"),
        (lambda: MultiRateMask(horizons=4), "horizons is 4"),
        (lambda: MultiRateMask(horizons=(1, 1)), r"horizons is \(1, 1\)"),
        (lambda: MultiRateMask(horizons=(0, 1)), r"horizons is \(0, 1\)"),
        (lambda: MultiRateMask(1.5), "context_ratio is 1.5"),
        (
            lambda: MultiRateMask()(1, (4, 4, 4)),
            r"needs 4 tubelets after the 2 of the context but the grid \(4, 4, 4\) has 4 in all; use longer clips",
        ),
        (lambda: MultiRateMask()(1, (1, 4, 4)), "MultiRateMask needs at least 2 tubelets"),
        (lambda: FutureMask()(0, (2, 4, 4)), "batch_size is 0"),
        (lambda: MultiBlockMask()(1, (2, 4)), "three positive numbers"),
        (lambda: MultiBlockMask()(1, (0, 4, 4)), "three positive numbers"),
        (
            lambda: build_mask_samplers([{"type": "multiblock"}]),
            "Unknown mask 'multiblock'; did you mean 'multi_block'",
        ),
        (lambda: build_mask_samplers([{"num_blocks": 8}]), "expected a dict with 'type'"),
        (lambda: build_mask_samplers(["future"]), "expected a dict with 'type'"),
        (
            lambda: build_mask_samplers([{"type": "multi_block", "spacial_scale": 0.15}]),
            "'multi_block.spacial_scale'; did you mean 'multi_block.spatial_scale'",
        ),
    ],
)
def test_bad_settings_and_grids_are_refused_with_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# --- Speed


@pytest.fixture
def benchmark(monkeypatch):
    """benchmarks/masks.py as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("masks")


def test_the_baseline_cuts_the_end_and_follows_its_spec(benchmark):
    for spec in (*PUBLISHED_MASKS, benchmark.TWO_PHASE):
        context_mask, target_mask = benchmark.sample_clip_by_clip(spec, 8, (8, 8, 8), seeded())
        check_masks(context_mask, target_mask, 8, (8, 8, 8))
        assert (target_mask < 448).sum(1).float().mean() > 0.9 * target_mask.shape[1], "the last frame is cut most"
    ratios = [
        benchmark.sample_clip_by_clip(benchmark.TWO_PHASE, 1, (8, 8, 8), seeded(seed))[1].shape[1] / 512
        for seed in range(20)
    ]
    assert 0.75 <= min(ratios) < max(ratios) <= 0.9


def test_other_masks_than_the_published_are_not_timed(benchmark):
    (sampler,) = build_mask_samplers([{**PUBLISHED_MASKS[0], "num_blocks": 7}])
    generator = seeded()
    with pytest.raises(ValueError, match="seven blocks: mean_target_ratio is 0.5"):
        benchmark.check_statistics(
            "seven blocks", lambda: sampler(1, benchmark.GRID, generator), STATISTICS["short"], count=300
        )


def test_the_benchmark_writes_its_section_and_leaves_the_others(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "check_published", lambda: [])
    threads = torch.get_num_threads()
    path = tmp_path / "results.json"
    path.write_text('{"comparisons": [1]}')
    section = benchmark.main(["--tiny", "--output", str(path)])
    torch.set_num_threads(threads)
    assert json.loads(path.read_text()) == {"comparisons": [1], "masks": section}
    assert [each["name"] for each in section["comparisons"]][0] == "both published sets"
    for each in section["comparisons"]:
        assert 0 < each["ratio"]["minimum"] <= each["ratio"]["median"] <= each["ratio"]["maximum"]
