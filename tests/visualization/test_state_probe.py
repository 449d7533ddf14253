"""The linear probe of states: both forms of its solution, and the choice of its strength."""

import pytest
import torch

from vjepa2_hf.visualization.state_probe import choose_probe, fit_ridge


def test_probe_is_the_same_from_few_frames_and_from_many():
    """Ridge regression in its two forms, against the textbook's."""
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(12, 5, generator=generator) + 3, torch.randn(12, 2, generator=generator)
    for columns in (5, 4):
        for rows in (12, 3):
            x, y = latents[:rows, :columns], states[:rows]
            centred, share = x - x.mean(0), 0.1
            penalty = share * centred.square().sum() / min(rows, columns)
            inverse = torch.linalg.inv(centred.T @ centred + penalty * torch.eye(columns))
            weights = inverse @ centred.T @ (y - y.mean(0))
            torch.testing.assert_close(fit_ridge(x, y, share).weights, weights, rtol=0, atol=1e-5)


def test_strength_of_the_probe_is_chosen_on_episodes_that_it_has_not_seen():
    """States that have nothing to do with the latents want a strong one, exact functions of them a weak one."""
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(4, 12, generator=generator) for _ in range(5)]
    unrelated = [torch.randn(4, 1, generator=generator) for _ in range(5)]
    assert choose_probe(latents, unrelated)[1] == 1.0
    assert choose_probe(latents, [part[:, :1] - part[:, 3:4] for part in latents])[1] == 1e-4
    with pytest.raises(ValueError, match="needs 2 or more training episodes with states, but found 1"):
        choose_probe(latents[:1], unrelated[:1])
