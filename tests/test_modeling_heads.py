"""The world model's optional parts: the reward head, and the Gaussian latent of a stochastic step."""

import itertools

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, same_weights

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2Planner,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
    modeling_world_model,
)
from vjepa2_hf.modeling_embodiments import normalize_inputs
from vjepa2_hf.modeling_heads import MIN_DEVIATION, VJepa2DistanceHead, VJepa2GaussianHead, VJepa2RewardHead


SIZES = {
    "action_dim": 2,
    "predictor_hidden_size": 24,
    "predictor_num_hidden_layers": 1,
    "predictor_num_attention_heads": 2,
    "predictor_initializer_range": None,
}
# dynamics, fusion, state, frames of context
VARIANTS = [
    ("transformer", "concat", "tokens", 1),
    ("transformer", "add", "merged", 3),
    ("transformer", "cross_attention", "tokens", 2),
    ("mlp", "concat", "pooled", 3),
    ("mlp", "add", "pooled", 1),
]


def build(variant=VARIANTS[0], encoder_config=TINY_ENCODER, **fields) -> VJepa2WorldModel:
    torch.manual_seed(0)
    dynamics, fusion, state, context = variant
    named = {"dynamics_type": dynamics, "action_fusion": fusion, "state_type": state, "context_frames": context}
    return VJepa2WorldModel(
        VJepa2WorldModelConfig(encoder_config=encoder_config, **{**SIZES, **named, **fields})
    ).eval()


def episodes(model: VJepa2WorldModel, frames: int = 5, batch_size: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, frames, model.tokens_per_frame, model.latent_size)
    return {
        "latents": torch.randn(shape, generator=generator),
        "actions": torch.randn(batch_size, frames - 1, 2, generator=generator),
    }


def gradients(model: VJepa2WorldModel, loss: torch.Tensor) -> dict[str, float]:
    """The largest gradient of every part of the model."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        size = 0.0 if parameter.grad is None else parameter.grad.abs().max().item()
        found[part] = max(found.get(part, 0.0), size)
    return found


class TestHead:
    def test_it_knows_the_place(self):
        """The mean over positions comes after a layer that knows them: swapping two tokens is noticed."""
        head, states = VJepa2RewardHead(build().config), torch.randn(2, 2, 16, 24)
        swapped = states[:, :, [1, 0, *range(2, 16)]]
        actions = torch.zeros(2, 2)
        assert (head(actions, *states) - head(actions, *swapped)).abs().max() > 1e-4

    def test_it_reads_action_and_every_state(self):
        head = VJepa2RewardHead(build().config)
        parts = [torch.randn(2, 5, 2), torch.randn(2, 5, 16, 24), torch.randn(2, 5, 16, 24)]
        base = head(*parts)
        assert base.shape == (2, 5)
        for i in range(3):
            changed = [part + (i == j) for j, part in enumerate(parts)]
            assert (head(*changed) - base).abs().min() > 0


class TestRewards:
    def test_loss_by_hand_in_standardized_units(self):
        model = build(reward_head=True, reward_mean=3.0, reward_std=2.0)
        batch = episodes(model)
        rewards = torch.randn(2, 4)
        output = model(**batch, rewards=rewards)
        predicted = model.predict_rewards(batch["latents"], batch["actions"])  # environment units
        expected = ((predicted - rewards) / 2.0).square().mean() / 2
        torch.testing.assert_close(output.reward_loss, expected)
        torch.testing.assert_close(output.loss, output.teacher_forcing_loss + output.rollout_loss + output.reward_loss)
        doubled = build(reward_head=True, reward_mean=3.0, reward_std=2.0, reward_weight=2.0)
        torch.testing.assert_close(doubled(**batch, rewards=rewards).loss - output.loss, output.reward_loss)

    def test_the_head_changes_nothing_in_the_dynamics(self):
        model, plain = build(reward_head=True), build()
        plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
        batch = episodes(model)
        output = model(**batch, rewards=torch.randn(2, 4))
        assert torch.equal(output.predicted_latents, plain(**batch).predicted_latents)
        found = gradients(model, output.reward_loss)
        assert found["reward_head"] > 0 and found["predictor"] == 0

    def test_the_head_changes_nothing_in_an_encoder_that_learns(self):
        model = build(reward_head=True, freeze_encoder=False).train()
        output = model(torch.rand(2, 3, 3, 32, 32), actions=torch.randn(2, 2, 2), rewards=torch.randn(2, 2))
        found = gradients(model, output.reward_loss)
        assert found["reward_head"] > 0 and found["encoder"] == 0

    @torch.no_grad()
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_without_a_goal_the_cost_is_minus_the_imagined_rewards(self, variant):
        model = build(variant, reward_head=True, reward_mean=1.0, reward_std=2.0)
        latents, actions = episodes(model)["latents"][:, :1], torch.randn(2, 5, 3, 2)
        future = model.rollout(latents, actions)
        joined = torch.cat([latents.unsqueeze(1).expand(-1, 5, -1, -1, -1), future], dim=2)
        expected = -model.predict_rewards(joined, actions).sum(dim=-1)
        torch.testing.assert_close(model.score(latents, None, actions), expected)
        chunked = model.score(latents, None, actions, candidate_chunk_size=2)
        torch.testing.assert_close(chunked, expected)

    def test_a_reward_is_learned(self):
        """The reward is a coordinate of the next state minus what the action costs; unseen steps are told."""
        encoder_config = {**TINY_ENCODER, "hidden_size": 8}
        model = build(VARIANTS[4], encoder_config, reward_head=True, rollout_weight=0.0).train()
        optimizer = torch.optim.AdamW(model.reward_head.parameters(), lr=1e-2)

        def draw() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            batch = {"latents": torch.randn(64, 2, 1, 8), "actions": torch.randn(64, 1, 2)}
            return batch, batch["latents"][:, 1:, 0, 0] - 0.5 * batch["actions"].square().sum(-1)

        for _ in range(150):
            batch, rewards = draw()
            model(**batch, rewards=rewards).reward_loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        batch, rewards = draw()
        error = (model.predict_rewards(**batch) - rewards).square().mean()
        assert error < 0.1 * rewards.var()

    def test_missing_and_superfluous_rewards_are_refused(self):
        model, plain = build(reward_head=True), build()
        batch = episodes(model)
        with pytest.raises(ValueError, match=r"rewards are missing; the reward head needs \(2, 4\)"):
            model(**batch)
        with pytest.raises(ValueError, match=r"of shape \(2, 5\); the reward head needs \(2, 4\)"):
            model(**batch, rewards=torch.zeros(2, 5))
        with pytest.raises(ValueError, match="no reward head"):
            plain(**batch, rewards=torch.zeros(2, 4))
        with pytest.raises(ValueError, match="no reward head"):
            plain.predict_rewards(**batch)
        with pytest.raises(ValueError, match="goal is missing"):
            plain.score(batch["latents"][:, :1], None, torch.zeros(2, 3, 2, 2))
        with pytest.raises(ValueError, match=r"actions have shape \(2, 3, 2\); expected \(2, 4, 2\)"):
            model.predict_rewards(batch["latents"], batch["actions"][:, 1:])


class TestStochastic:
    @torch.no_grad()
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("drawn", [False, True])
    def test_cache_and_chunks_change_no_sample(self, variant, drawn):
        model = build(variant, stochastic_dim=3)
        batch, actions = episodes(model, frames=2), torch.randn(2, 5, 4, 2)
        context = (batch["latents"], actions, batch["actions"])

        def rollout(**options) -> torch.Tensor:
            generator = torch.Generator().manual_seed(3) if drawn else None
            return model.rollout(*context, generator=generator, **options)

        expected = rollout()
        assert expected.shape == (2, 5, 4, model.tokens_per_frame, model.latent_size)
        for cache, chunk in itertools.product([True, False], [1, 2, 5]):
            found = rollout(use_cache=cache, candidate_chunk_size=chunk)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    @torch.no_grad()
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_samples_differ_and_the_middle_does_not(self, variant):
        model = build(variant, stochastic_dim=3)
        latents, actions = episodes(model)["latents"][:, :1], torch.randn(2, 1, 3, 2).expand(-1, 4, -1, -1)
        middle = model.rollout(latents, actions)
        torch.testing.assert_close(middle, middle[:, :1].expand_as(middle))
        samples = model.rollout(latents, actions, generator=torch.Generator().manual_seed(0))
        assert (samples.std(dim=1).flatten(2).amax(-1) > 1e-3).all()  # at every step
        again = model.rollout(latents, actions, generator=torch.Generator().manual_seed(0))
        assert torch.equal(samples, again)

    @torch.no_grad()
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_a_step_is_the_middle_plus_what_chance_adds_to_it(self, variant):
        """And the next one starts from there."""
        model = build(variant, stochastic_dim=3)
        latents, actions = episodes(model)["latents"][:, :1], torch.randn(2, 2, 2)
        positions, size = latents.shape[2:]
        noise = torch.randn(2, 1, 2, 3 + positions * size, generator=torch.Generator().manual_seed(5))[:, 0]
        samples = model.rollout(latents, actions, generator=torch.Generator().manual_seed(5))
        inputs = normalize_inputs(model.config, latents, actions[:, :1], None, None)
        for step in range(2):
            deviation, together, alone = model.stochastic_head(model.predictor.hidden_states(inputs)[:, -1])
            z, e = noise[:, step].split([3, positions * size], dim=-1)
            added = deviation * ((together * z.unsqueeze(1)).sum(-1) + alone * e)
            expected = model.predictor.predict(inputs)[:, -1] + added.view(2, positions, size)
            torch.testing.assert_close(samples[:, step], expected, atol=1e-5, rtol=0)
            following = normalize_inputs(model.config, samples[:, :1], actions[:, 1:], None, None)
            inputs = inputs.append(following).map(lambda part: part[:, -model.config.context_frames :])
        assert deviation.min() > MIN_DEVIATION

    @torch.no_grad()
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("one_step", [True, False])
    def test_loss_is_the_likelihood_of_a_full_covariance(self, variant, one_step):
        """-log N(s' | ŝ', L Lᵀ + diag d²) / (N · D), one step ahead whichever losses are asked for."""
        model = build(variant, stochastic_dim=3, nll_weight=0.5)
        batch = episodes(model)
        output = model(**batch, teacher_forcing_weight=float(one_step), rollout_weight=float(not one_step))
        inputs = normalize_inputs(model.config, batch["latents"][:, :-1], batch["actions"], None, None)
        deviation, together, alone = model.stochastic_head(model.predictor.hidden_states(inputs))
        factor = deviation.unsqueeze(-1) * together
        covariance = factor @ factor.mT + torch.diag_embed((deviation * alone).square())
        torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), deviation.square())
        middle = model.predictor.predict(inputs).flatten(2)
        gaussian = torch.distributions.MultivariateNormal(middle.double(), covariance.double())
        expected = -gaussian.log_prob(batch["latents"][:, 1:].flatten(2).double()).mean() / middle.shape[-1]
        torch.testing.assert_close(output.nll_loss.double(), expected, rtol=1e-4, atol=1e-5)
        latents = output.teacher_forcing_loss if one_step else output.rollout_loss
        margins = -torch.distributions.Normal(middle, deviation).log_prob(batch["latents"][:, 1:].flatten(2)).mean()
        torch.testing.assert_close(output.loss, latents + 0.5 * (output.nll_loss + margins))

    def test_chance_changes_nothing_in_the_dynamics(self):
        model, plain = build(stochastic_dim=3).train(), build().train()
        plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
        batch = episodes(model)
        output, without = model(**batch), plain(**batch)
        assert torch.equal(output.rollout_loss, without.rollout_loss)
        found = gradients(model, output.nll_loss)
        assert found["stochastic_head"] > 0 and found["predictor"] == 0
        assert gradients(model, model(**batch).loss)["predictor"] == gradients(plain, without.loss)["predictor"]
        assert torch.equal(
            model.rollout(batch["latents"][:, :1], batch["actions"]),
            plain.rollout(batch["latents"][:, :1], batch["actions"]),
        )

    def test_chance_changes_nothing_in_an_encoder_that_learns(self):
        model = build(stochastic_dim=3, freeze_encoder=False).train()
        output = model(torch.rand(2, 3, 3, 32, 32), actions=torch.randn(2, 2, 2))
        found = gradients(model, output.nll_loss)
        assert found["stochastic_head"] > 0 and found["encoder"] == 0 and found["predictor"] == 0

    def test_likelihood_is_float32_for_bfloat16_latents(self):
        """A small deviation of 384 numbers has a determinant that bfloat16 does not hold."""
        head = VJepa2GaussianHead(build(stochastic_dim=3).config).bfloat16()
        hidden_states, errors = torch.randn(2, 16, 24).bfloat16(), 0.1 * torch.randn(2, 16, 24).bfloat16()
        found = torch.stack(head.negative_log_likelihood(hidden_states, errors))
        head.float()
        exact = torch.stack(head.negative_log_likelihood(hidden_states.float(), errors.float()))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = torch.stack(head.negative_log_likelihood(hidden_states.float(), errors.float()))
        assert found.dtype == mixed.dtype == torch.float32
        torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)
        torch.testing.assert_close(mixed, exact, rtol=0.02, atol=0.02)

    def test_intervals_cover_what_they_claim_where_the_middle_alone_does_not(self):
        """s' = 0.9 s + a + noise along one direction: 90 % intervals of one and of three steps hold nearly that."""
        model = build(
            VARIANTS[4],
            {**TINY_ENCODER, "hidden_size": 8},
            stochastic_dim=2,
            normalize_latents="none",
            residual=True,
            loss_exponent=2,
            rollout_weight=0.0,
        ).train()
        direction = torch.tensor([0, 0, 0.6, 0.8, 0, 0, 0, 0])

        def draw(count: int, frames: int) -> dict[str, torch.Tensor]:
            actions, states = torch.rand(count, frames - 1, 2) * 2 - 1, [torch.randn(count, 8)]
            for t in range(frames - 1):
                moved = torch.nn.functional.pad(actions[:, t], (0, 6))
                states.append(0.9 * states[-1] + 0.5 * moved + 0.5 * torch.randn(count, 1) * direction)
            return {"latents": torch.stack(states, dim=1).unsqueeze(2), "actions": actions}

        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        steps = 300
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
            model(**draw(128, 3)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        batch = draw(200, 4)
        with torch.no_grad():
            actions = batch["actions"].unsqueeze(1).expand(-1, 60, -1, -1)
            samples = model.eval().rollout(batch["latents"][:, :1], actions, generator=torch.Generator())
        found, true = samples[:, :, :, 0] @ direction, batch["latents"][:, 1:, 0] @ direction
        low, high = found.quantile(0.05, dim=1), found.quantile(0.95, dim=1)
        covered = ((low <= true) & (true <= high)).float().mean(dim=0)
        assert (covered > 0.8).all() and (covered < 0.97).all()
        across = (samples[:, :, 0, 0, 4:].std(dim=1)).mean()
        assert across < 0.1 * found[:, :, 0].std(dim=1).mean()  # no noise where there is none

    @torch.no_grad()
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_cost_over_samples_is_their_mean_and_a_penalty(self, variant, monkeypatch):
        model = build(variant, stochastic_dim=3)
        batch, actions = episodes(model), torch.randn(2, 3, 2, 2)
        latents, goal = batch["latents"][:, :1], batch["latents"][:, 1:2]
        size = 3 + latents[0, 0].numel()
        noise = torch.randn(4, 2, size, generator=torch.Generator().manual_seed(0))  # shared by all candidates
        monkeypatch.setattr(modeling_world_model, "sample_noise", lambda *_: noise.expand(2, 4, 2, size))
        costs, deviations = [], []
        for j in range(3):
            candidate = actions[:, j : j + 1].expand(-1, 4, -1, -1)
            last = model.rollout(latents, candidate, generator=torch.Generator())[:, :, -1]
            costs.append((last - goal).square().flatten(2).mean(-1).mean(1))
            deviations.append(last.var(dim=1).flatten(1).mean(-1).sqrt())
        costs, deviations = torch.stack(costs, dim=1), torch.stack(deviations, dim=1)
        torch.testing.assert_close(model.score(latents, goal, actions, num_samples=4), costs)
        for chunk in (None, 1, 5):
            found = model.score(
                latents, goal, actions, num_samples=4, uncertainty_weight=2.0, candidate_chunk_size=chunk
            )
            torch.testing.assert_close(found, costs + 2.0 * deviations)

    def test_chance_is_refused_where_there_is_none(self):
        model = build()
        batch = episodes(model)
        latents, goal = batch["latents"][:, :1], batch["latents"][:, 1:2]
        with pytest.raises(ValueError, match="model is deterministic"):
            model.rollout(latents, batch["actions"], generator=torch.Generator())
        with pytest.raises(ValueError, match="model is deterministic"):
            model.score(latents, goal, torch.zeros(2, 3, 2, 2), num_samples=2)
        with pytest.raises(ValueError, match="num_samples is 1; expected 2 or more"):
            build(stochastic_dim=3).score(latents, goal, torch.zeros(2, 3, 2, 2), uncertainty_weight=1.0)


def test_save_and_load(tmp_path):
    model = build(reward_head=True, reward_std=2.0, stochastic_dim=3)
    model.save_pretrained(tmp_path)
    loaded, info = VJepa2WorldModel.from_pretrained(tmp_path, output_loading_info=True)
    assert same_weights(model, loaded) and not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.reward_std == 2.0 and loaded.config.stochastic_dim == 3
    batch = episodes(model)
    expected = model.rollout(batch["latents"][:, :1], batch["actions"], generator=torch.Generator().manual_seed(0))
    found = loaded.eval().rollout(
        batch["latents"][:, :1], batch["actions"], generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(found, expected)
    assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), model.encoder)


def test_a_model_without_the_parts_has_none_of_their_weights():
    names = {name.partition(".")[0] for name in build().state_dict()}
    assert names == {"encoder", "predictor"}
    assert not any("stochastic" in name for name in build().state_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stochastic_dim": -1}, "stochastic_dim is -1; expected 0 or more"),
        ({"nll_weight": -0.5}, "nll_weight is -0.5"),
        ({"reward_std": 0.0}, "reward_std is 0.0"),
        ({"reward_hed": True}, "Did you mean 'reward_head'"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields)


class TestPlanner:
    def planner(self, model: VJepa2WorldModel, **settings) -> VJepa2Planner:
        solver = {"horizon": 2, "num_candidates": 8, "num_iterations": 2, "num_elites": 3}
        return VJepa2Planner(model, VJepa2VideoProcessor(size=32, crop_size=32), **solver, **settings)

    def test_cost_of_a_plan_is_the_penalised_score_and_settings_are_saved(self, tmp_path):
        model = build(stochastic_dim=3)
        rng = np.random.default_rng(0)
        now, goal = (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2))
        planner = self.planner(model, num_samples=4, uncertainty_weight=3.0)
        plan = planner(now, goal)
        frames, target = (planner.video_processor(x, return_tensors="pt")["pixel_values_videos"] for x in (now, goal))
        actions = torch.from_numpy(plan["actions"])[None, None]
        score = model.score(frames, target, actions, num_samples=4, uncertainty_weight=3.0)
        assert plan["cost"] == pytest.approx(score.item(), rel=1e-4)
        assert plan["cost"] > model.score(frames, target, actions, num_samples=4).item()
        planner.save_pretrained(tmp_path)
        loaded = VJepa2Planner.from_pretrained(tmp_path)
        assert (loaded.num_samples, loaded.uncertainty_weight) == (4, 3.0)
        assert loaded(now, goal)["cost"] == pytest.approx(plan["cost"], rel=1e-4)

    def test_settings_that_do_not_fit_are_refused(self):
        model = build(stochastic_dim=3)
        with pytest.raises(ValueError, match="num_samples is 1, but a cost with an uncertainty .* needs at least 2"):
            self.planner(model, uncertainty_weight=1.0)
        with pytest.raises(ValueError, match="num_samples is 0"):
            self.planner(model, num_samples=0)
        with pytest.raises(ValueError, match="model is deterministic"):
            self.planner(build(), num_samples=4)


class TestDistance:
    """The distance head: a quasimetric, of one size of frames, beside a model that it does not change."""

    @pytest.mark.parametrize("variant", VARIANTS)
    @torch.no_grad()
    def test_it_is_a_quasimetric(self, variant):
        model = build(variant, distance_head=True)
        a, b, c = torch.randn(3, 7, model.tokens_per_frame, model.latent_size).unbind()
        there, back = model.temporal_distance(a, b), model.temporal_distance(b, a)
        assert there.shape == (7,) and there.dtype == torch.float32 and (there > 0).all()
        assert (there - back).abs().min() > 1e-4  # farther one way than the other
        assert torch.equal(model.temporal_distance(a, a), torch.zeros(7))
        assert (there <= model.temporal_distance(a, c) + model.temporal_distance(c, b) + 1e-5).all()

    def test_numbers_by_hand(self):
        head = VJepa2DistanceHead(build(distance_embedding_size=4).config)
        start, end = torch.tensor([[3.0, 4.0, 1.0, -2.0], [0.0, 0.0, -3.0, -1.0]]), torch.zeros(2, 4)
        scale = head.scale.item()
        torch.testing.assert_close(head.between(start, end), scale * torch.tensor([5.0 + 1.0, 0.0]))
        torch.testing.assert_close(head.between(end, start), scale * torch.tensor([5.0 + 2.0, 3.0]))

    def test_it_knows_the_place(self):
        model = build(distance_head=True)
        latents, goal = torch.randn(2, 16, 24), torch.randn(2, 16, 24)
        swapped = latents[:, [1, 0, *range(2, 16)]]
        change = model.temporal_distance(latents, goal) - model.temporal_distance(swapped, goal)
        assert change.abs().min() > 1e-4

    def test_distances_of_embeddings_broadcast_and_have_gradients(self):
        model = build(distance_head=True)
        latents = torch.randn(3, 16, 24, requires_grad=True)
        embedded = model.distance_embedding(latents)
        assert embedded.shape == (3, 64)
        pairs = model.embedded_distance(embedded.unsqueeze(1), embedded)  # diagonal: 0, whose gradient is finite
        direct = model.temporal_distance(latents.unsqueeze(1), latents)
        torch.testing.assert_close(pairs, direct)
        (gradient,) = torch.autograd.grad(pairs.sum(), latents)
        assert gradient.isfinite().all() and gradient.abs().max() > 0

    def test_it_is_saved_and_old_models_load_without_it(self, tmp_path, caplog):
        model, plain = build(distance_head=True), build()
        plain.save_pretrained(tmp_path / "plain")
        model.save_pretrained(tmp_path / "model")
        loaded = VJepa2WorldModel.from_pretrained(tmp_path / "model")
        assert same_weights(model, loaded)
        assert "Distance head" in (tmp_path / "model" / "README.md").read_text()
        assert not VJepa2WorldModel.from_pretrained(tmp_path / "plain").config.distance_head
        with pytest.raises(ValueError, match="lacks 7 weights of VJepa2WorldModel, the first of them distance_head"):
            VJepa2WorldModel.from_pretrained(tmp_path / "plain", distance_head=True)
        started = VJepa2WorldModel.from_pretrained(tmp_path / "plain", distance_head=True, allow_missing=True)
        assert started.distance_head.scale.item() == 10 and started.distance_head.proj.weight.isfinite().all()
        caplog.clear()
        VJepa2Encoder.from_pretrained(tmp_path / "model")
        assert "distance_head" not in caplog.text  # no warning of weights that an encoder does not have

    def test_a_head_can_be_added(self):
        model, batch = build(), episodes(build())
        before = model(**batch).loss
        model.add_distance_head()
        assert model.config.distance_head and torch.equal(model(**batch).loss, before)
        assert model.temporal_distance(batch["latents"], batch["latents"][:, :1]).shape == (2, 5)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (
                lambda model: model.temporal_distance(torch.zeros(2, 16, 24), torch.zeros(2, 9, 24)),
                "made for frames of 16",
            ),
            (lambda model: model.distance_embedding(torch.zeros(24)), r"shape \(24,\); the distance head was made"),
            (lambda model: model.embedded_distance(torch.zeros(3, 64), torch.zeros(2, 64)), "which broadcast"),
            (
                lambda _: build().temporal_distance(torch.zeros(2, 16, 24), torch.zeros(2, 16, 24)),
                "train_distance_head.py",
            ),
            (lambda _: build(distance_embedding_size=5), "distance_embedding_size is 5; expected an even number"),
            (lambda _: build(distance_hidden_size=0), "distance_hidden_size"),
        ],
    )
    def test_what_does_not_fit_is_refused_with_a_sentence(self, call, message):
        with pytest.raises(ValueError, match=message):
            call(build(distance_head=True))
