"""The world model against the published code, and every shortcut of its rollout against the plain computation."""

import pytest
import torch
from builders import (
    ENCODER,
    TINY_ENCODER,
    TINY_PREDICTOR,
    TOLERANCE,
    clips,
    golden,
    load_published,
    same_weights,
    spread,
)
from safetensors.torch import save_file

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.pose import move_pose


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
STATES = 2  # size of the proprio state


def build(**fields):
    torch.manual_seed(0)
    fields = {"action_dim": 2, "context_frames": 2, **TINY_PREDICTOR, **fields}
    model = VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields)).eval()
    return spread(model)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def episode(frames, seed=0):
    """Latents, the actions between them and proprio states of two episodes."""
    parts = (random(2, frames, 16, 24, seed=seed), random(2, frames - 1, 2, seed=seed + 1))
    return *parts, random(2, frames, STATES, seed=seed + 2)


@pytest.mark.parametrize("name", ["world_model_ac", "world_model_ac_extrinsics"])
class TestPublished:
    @pytest.fixture
    def published(self, name):
        data = golden(name)
        model = load_published(data, ENCODER, extrinsics=name.endswith("extrinsics"))
        return model, data, data["extrinsics"] if name.endswith("extrinsics") else None

    @torch.no_grad()
    def test_latents(self, published):
        model, data, _ = published
        torch.testing.assert_close(model.encode(data["frames"]).flatten(1, 2), data["latents"], **TOLERANCE)

    @torch.no_grad()
    def test_predictions_and_losses(self, published):
        model, data, extrinsics = published
        output = model(data["frames"], None, data["actions"], data["states"], extrinsics)
        torch.testing.assert_close(output.predicted_latents.flatten(1, 2), data["teacher_forced"], **TOLERANCE)
        torch.testing.assert_close(output.teacher_forcing_loss, data["loss_teacher_forcing"], atol=1e-5, rtol=0)
        torch.testing.assert_close(output.rollout_loss, data["loss_rollout"], atol=1e-5, rtol=0)
        torch.testing.assert_close(output.loss, output.teacher_forcing_loss + output.rollout_loss)

    @torch.no_grad()
    def test_rollout(self, published):
        model, data, extrinsics = published
        latents = data["latents"].unflatten(1, (4, 16))[:, :1]
        future = model.rollout(
            latents,
            data["actions"][:, :2],
            proprio_states=data["states"][:, :3],
            extrinsics=None if extrinsics is None else extrinsics[:, :3],
        )
        torch.testing.assert_close(future.flatten(1, 2), data["rollout"], **TOLERANCE)


SETTINGS = [
    {"context_frames": frames, "predictor_position_embedding_type": positions, "residual": residual, **fusion}
    for frames in (1, 2, 3, 8)
    for positions, residual, fusion in [
        ("rope", False, {"action_fusion": "concat", "action_encoder_num_layers": 2}),
        ("learned", True, {"action_fusion": "add", "proprio_transition": "hold"}),
        ("rope", True, {"action_fusion": "add", "loss_exponent": 2}),
        ("learned", False, {"action_fusion": "concat", "normalize_latents": "none"}),
    ]
]


@pytest.fixture(
    scope="module",
    params=SETTINGS,
    ids=lambda s: (
        f"W{s['context_frames']}-{s['predictor_position_embedding_type']}-{s['action_fusion']}-{s['residual']}"
    ),
)
def model(request):
    return build(proprio_dim=STATES, **{"proprio_transition": "add", **request.param})


class TestRollout:
    """2 episodes, 4 frames of context, 3 candidates of 4 steps, for every kind of dynamics."""

    @pytest.fixture(autouse=True)
    def without_gradient(self):
        with torch.no_grad():
            yield

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def inputs(cls):
        cls.latents, cls.context_actions, cls.states = episode(4)
        cls.actions = random(2, 3, 4, 2, seed=7)
        cls.arguments = (cls.latents, cls.actions, cls.context_actions, cls.states)

    def test_candidates_are_separate_rollouts(self, model):
        future = model.rollout(*self.arguments)
        assert future.shape == (2, 3, 4, 16, 24)
        for j in range(3):
            alone = model.rollout(self.latents, self.actions[:, j], self.context_actions, self.states)
            torch.testing.assert_close(future[:, j], alone, **CLOSE)
        assert (future[:, 0] - future[:, 1]).abs().max() > 1e-3  # the actions matter

    def test_cached_is_uncached_and_chunks_do_not_matter(self, model):
        plain = model.rollout(*self.arguments, use_cache=False, candidate_chunk_size=3)
        for chunk in (1, 2, None):
            torch.testing.assert_close(model.rollout(*self.arguments, candidate_chunk_size=chunk), plain, **CLOSE)

    def test_with_gradient_the_same(self, model):
        """Without, keys and values grow in place and GELU overwrites its input."""
        with torch.enable_grad():
            actions = self.actions.clone().requires_grad_()
            future = model.rollout(self.latents, actions, self.context_actions, self.states)
            future.square().sum().backward()
        torch.testing.assert_close(model.rollout(*self.arguments), future.detach(), **CLOSE)
        assert torch.isfinite(actions.grad).all() and (actions.grad.abs().amax(dim=(0, 1, 3)) > 0).all()

    def test_one_frame_of_context(self, model):
        latents, states = self.latents[:, :1], self.states[:, :1]
        plain = model.rollout(latents, self.actions, proprio_states=states, use_cache=False)
        cached = model.rollout(latents, self.actions, proprio_states=states)
        torch.testing.assert_close(cached, plain, **CLOSE)

    def test_a_step_is_the_teacher_forced_prediction_of_the_last_window(self, model):
        """Feeding the imagined latents back by hand, through `forward`, gives every step of the rollout."""
        actions = self.actions[:, 0]
        future = model.rollout(self.latents, actions, self.context_actions, self.states)
        latents, known, states = self.latents, self.context_actions, self.states
        for step in range(4):
            known = torch.cat([known, actions[:, step : step + 1]], dim=1)
            padded = torch.cat([latents, latents[:, -1:]], dim=1)
            padded_states = torch.cat([states, states[:, -1:]], dim=1)
            output = model(latents=padded, actions=known, proprio_states=padded_states, rollout_weight=0)
            torch.testing.assert_close(output.predicted_latents[:, -1], future[:, step], **CLOSE)
            latents = torch.cat([latents, future[:, step : step + 1]], dim=1)
            moved = states[:, -1:] + (actions[:, step : step + 1] if model.config.proprio_transition == "add" else 0)
            states = torch.cat([states, moved], dim=1)

    def test_nothing_earlier_than_the_window_matters(self, model):
        window = min(model.config.context_frames, 4)
        latents, context_actions, states = (part.clone() for part in (self.latents, self.context_actions, self.states))
        latents[:, :-window], states[:, :-window] = 100.0, -100.0
        context_actions[:, : 4 - window] = 100.0
        one, two = (model.rollout(*a) for a in (self.arguments, (latents, self.actions, context_actions, states)))
        assert torch.equal(one, two)
        if window > 1:  # and what is within it does
            latents[:, -window:], context_actions[:, 4 - window :] = self.latents[:, -window:], 100.0
            assert not torch.equal(model.rollout(latents, self.actions, context_actions, states), one)

    def test_score_by_hand(self, model):
        future, goal = model.rollout(*self.arguments)[:, :, -1], random(2, 1, 16, 24, seed=5)
        states = {"context_actions": self.context_actions, "proprio_states": self.states}
        for distance, power in (("l1", 1), ("l2", 2)):
            expected = (future - goal).abs().pow(power).mean(dim=(2, 3))
            for chunk in (None, 2):
                cost = model.score(
                    self.latents, goal, self.actions, distance=distance, candidate_chunk_size=chunk, **states
                )
                torch.testing.assert_close(cost, expected, **CLOSE)


class TestSharedContext:
    @pytest.mark.parametrize("context_frames", [3, 8])
    def test_earlier_frames_are_computed_once_for_all_candidates_and_chunks(self, context_frames):
        model = build(context_frames=context_frames)
        latents, context_actions, _ = episode(3)
        calls = []

        def note(module, args, output):
            inputs = args[0]
            calls.append((len(inputs.latents), inputs.latents.shape[1]))

        model.predictor.register_forward_hook(note)
        model.score(
            latents, latents[:, :1], random(2, 6, 1, 2), context_actions=context_actions, candidate_chunk_size=2
        )
        assert calls == [(2, 2)] + [(4, 1)] * 3  # context: 2 episodes; then 3 chunks of 2 · 2, last frame

    def test_steps_within_the_window_compute_only_the_newest_frame(self):
        model, frames = build(context_frames=4), []
        hook = model.predictor.register_forward_hook(
            lambda module, args, output: frames.append(args[0].latents.shape[1])
        )
        model.rollout(episode(1)[0], random(2, 3, 5, 2))
        hook.remove()
        assert frames == [1, 1, 1, 1, 4]  # the fifth frame moves the window

    def test_memory_of_256_candidates(self):
        """Chunks and cache need at most a quarter of what all candidates at once, recomputed, need."""
        model = build(context_frames=8, predictor_num_hidden_layers=1)
        latents, context_actions, _ = episode(3)
        actions = random(1, 256, 5, 2)
        arguments = (latents[:1], actions, context_actions[:1])
        goal = latents[:1, :1]

        def thrifty():
            return model.score(latents[:1], goal, actions, context_actions[:1], candidate_chunk_size=16)

        @torch.no_grad()
        def plain():
            return (model.rollout(*arguments, candidate_chunk_size=256, use_cache=False)[:, :, -1] - goal).square()

        costs, expected = thrifty(), plain().mean(dim=(2, 3))
        torch.testing.assert_close(costs, expected, **CLOSE)
        assert peak_bytes(thrifty) <= peak_bytes(plain) / 4


def peak_bytes(function) -> int:
    """Most memory that torch held at once for tensors made during a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert peak > 0
    return peak


class TestStates:
    def test_proprio_states_go_on_by_the_transition(self):
        latents, _, states = episode(1)
        actions = random(2, 3, 2, seed=4)
        for transition in ("hold", "add"):
            model = build(proprio_dim=2, proprio_transition=transition)
            moved = actions.cumsum(1) if transition == "add" else torch.zeros_like(actions)
            given = torch.cat([states, states + moved], dim=1)
            with torch.no_grad():
                one = model.rollout(latents, actions, proprio_states=states)
                two = model.rollout(latents, actions, proprio_states=given)
                other = model.rollout(latents, actions, proprio_states=torch.cat([states, states + moved + 1], dim=1))
            torch.testing.assert_close(one, two, **CLOSE)
            assert (one - other)[:, 1:].abs().max() > 1e-3 and torch.equal(one[:, 0], other[:, 0])

    def test_pose_delta(self):
        model = build(action_dim=7, proprio_dim=7, proprio_transition="pose_delta")
        latents, states, actions = episode(1)[0], random(2, 1, 7), random(2, 3, 7, seed=4) * 0.3
        given = [states[:, 0]]
        for step in range(3):
            given.append(move_pose(given[-1], actions[:, step]))
        with torch.no_grad():
            one = model.rollout(latents, actions, proprio_states=states)
            two = model.rollout(latents, actions, proprio_states=torch.stack(given, dim=1))
        torch.testing.assert_close(one, two, **CLOSE)

    def test_the_model_standardizes_actions_and_states_inside(self):
        plain = build(proprio_dim=2)
        scaled = build(
            proprio_dim=2,
            action_mean=[1.0, 2.0],
            action_std=[2.0, 4.0],
            proprio_mean=[-1.0, 0.0],
            proprio_std=[0.5, 3.0],
        )
        latents, actions, states = episode(3)
        with torch.no_grad():
            one = plain(latents=latents, actions=actions, proprio_states=states, rollout_weight=0)
            two = scaled(
                latents=latents,
                actions=actions * torch.tensor([2.0, 4.0]) + torch.tensor([1.0, 2.0]),
                proprio_states=states * torch.tensor([0.5, 3.0]) + torch.tensor([-1.0, 0.0]),
                rollout_weight=0,
            )
        torch.testing.assert_close(one.predicted_latents, two.predicted_latents, **CLOSE)

    @torch.no_grad()
    def test_extrinsics_are_held_where_they_are_not_given(self):
        model = build(extrinsics_dim=6)
        latents, actions, extrinsics = episode(1)[0], random(2, 3, 2), random(2, 1, 6)
        one = model.rollout(latents, actions, extrinsics=extrinsics)
        torch.testing.assert_close(
            one, model.rollout(latents, actions, extrinsics=extrinsics.repeat(1, 4, 1)), **CLOSE
        )
        assert (one - model.rollout(latents, actions, extrinsics=extrinsics + 1)).abs().max() > 1e-3


class TestLoss:
    @pytest.mark.parametrize(("exponent", "expected"), [(1, (1 + 2 + 0 + 3) / 4), (2, (1 + 4 + 0 + 9) / 4 / 2)])
    def test_four_numbers_by_hand(self, exponent, expected):
        predicted, target = torch.tensor([1.0, 2.0, 0.5, -1.0]), torch.tensor([0.0, 4.0, 0.5, 2.0])
        assert build(loss_exponent=exponent).latent_loss(predicted, target).item() == pytest.approx(expected)

    @pytest.mark.parametrize("context_frames", [1, 2, 8])
    def test_rollout_loss_is_the_discounted_mean_over_the_steps_of_a_rollout(self, context_frames):
        model = build(
            context_frames=context_frames, rollout_steps=3, rollout_discount=0.5, rollout_weight=0.3, loss_exponent=2
        )
        latents, actions, _ = episode(5)
        with torch.no_grad():
            output = model(latents=latents, actions=actions)
            future = model.rollout(latents[:, :1], actions[:, :3])
            steps = [model.latent_loss(future[:, k], latents[:, k + 1]) * 0.5**k for k in range(3)]
        torch.testing.assert_close(output.rollout_loss, sum(steps) / 3)
        expected = model.latent_loss(output.predicted_latents, latents[:, 1:])
        torch.testing.assert_close(output.teacher_forcing_loss, expected)
        torch.testing.assert_close(output.loss, expected + 0.3 * output.rollout_loss)

    def test_a_weight_of_zero_computes_no_rollout(self):
        model = build()
        latents, actions, _ = episode(3)
        output = model(latents=latents, actions=actions, rollout_weight=0)
        assert output.rollout_loss is None
        torch.testing.assert_close(output.loss, output.teacher_forcing_loss)
        weighted = model(latents=latents, actions=actions, rollout_weight=2.0)
        torch.testing.assert_close(weighted.loss, weighted.teacher_forcing_loss + 2 * weighted.rollout_loss)

    def test_gradients_reach_all_of_the_dynamics_and_nothing_of_the_encoder(self):
        model = build(context_frames=1, proprio_dim=2).train()
        _, actions, states = episode(3)
        video = clips(3)
        model(video, actions=actions, proprio_states=states).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
        assert not model.encoder.training

    def test_gradient_checkpointing_gives_the_same(self):
        model = build().train()
        latents, actions, _ = episode(4)
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.activation_checkpointing_enable()
            model.zero_grad()
            model(latents=latents, actions=actions).loss.backward()
            gradients.append([p.grad.clone() for p in model.predictor.parameters()])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, checkpointed)

    def test_pixels_or_latents(self):
        model, (_, actions, _) = build(), episode(3)
        with torch.no_grad():
            one = model(clips(3), actions=actions)
            two = model(latents=model.encode(clips(3)), actions=actions)
        assert torch.equal(one.loss, two.loss)
        for both in ({}, {"pixel_values_videos": clips(3), "latents": model.encode(clips(3))}):
            with pytest.raises(ValueError, match="either pixel_values_videos or latents"):
                model(actions=actions, **both)

    @pytest.mark.parametrize("positions", ["rope", "learned"])
    def test_a_residual_model_starts_by_copying(self, positions):
        config = VJepa2WorldModelConfig(
            encoder_config=TINY_ENCODER,
            action_dim=2,
            residual=True,
            predictor_position_embedding_type=positions,
            **TINY_PREDICTOR,
        )
        latents = episode(1)[0]
        with torch.no_grad():
            future = VJepa2WorldModel(config).eval().rollout(latents, random(2, 3, 2))
        assert torch.equal(future, latents.expand(-1, 3, -1, -1))


class TestState:
    @torch.no_grad()
    def test_each_frame_is_encoded_on_its_own(self):
        model, video = build(), clips(3)
        latents = model.encode(video)
        assert latents.shape == (2, 3, 16, 24)
        alone = torch.cat([model.encode(video[:, t : t + 1]) for t in range(3)], dim=1)
        torch.testing.assert_close(latents, alone, **CLOSE)
        tokens = model.encoder(video[:, :1].repeat(1, 2, 1, 1, 1)).last_hidden_state
        torch.testing.assert_close(latents[:, 0], torch.nn.functional.layer_norm(tokens, (24,)), **TOLERANCE)

    @torch.no_grad()
    def test_without_normalization(self):
        model = build(normalize_latents="none")
        expected = model.encoder(clips(1)).last_hidden_state
        torch.testing.assert_close(model.encode(clips(1))[:, 0], expected, **CLOSE)

    @torch.no_grad()
    def test_fit_state_standardizes_every_place_with_one_deviation(self, tmp_path):
        model, video = build(), clips(6, batch_size=8)
        raw = model.encode(video)
        model.fit_state(raw)
        state = model.encode(video)
        assert torch.equal(state, model.standardize(raw))
        torch.testing.assert_close(state.mean(dim=(0, 1)), torch.zeros(16, 24), atol=1e-5, rtol=0)
        assert state.square().mean().sqrt().item() == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(state * model.state_scale + raw.mean(dim=(0, 1)), raw, **CLOSE)
        with pytest.raises(ValueError, match="the state is already fitted"):
            model.fit_state(raw)
        model.save_pretrained(tmp_path)
        loaded = VJepa2WorldModel.from_pretrained(tmp_path)
        assert same_weights(model, loaded) and "state_mean" in loaded.state_dict()
        assert torch.equal(loaded.encode(video), state)
        with pytest.raises(ValueError, match="the frame has 4 tokens, but the state was fitted on 16"):
            model.encode(clips(1, 16, 16))

    @pytest.mark.parametrize("shape", [(5, 16, 23), (5, 4, 24)])
    def test_fit_state_refuses_latents_that_could_not_be_loaded_back(self, shape):
        with pytest.raises(ValueError, match=r"latents have shape .*; expected \(..., 16, 24\)"):
            build().fit_state(torch.randn(shape))

    @torch.no_grad()
    def test_pixels_as_the_state(self, tmp_path):
        model = build(state_type="pixels", normalize_latents="none")
        video = clips(2)
        latents = model.encode(video)
        assert latents.shape == (2, 2, 16, 3 * 8 * 8)
        assert torch.equal(latents[1, 0, 6].view(3, 8, 8), video[1, 0, :, 8:16, 16:24])
        assert model.rollout(latents[:, :1], random(2, 3, 4, 2)).shape == (2, 3, 4, 16, 192)
        assert not any(name.startswith("encoder.") for name in model.state_dict())
        model.save_pretrained(tmp_path)
        assert same_weights(model, VJepa2WorldModel.from_pretrained(tmp_path))


class TestFolders:
    def test_save_and_load(self, tmp_path):
        model = build(context_frames=3, action_low=[-1.0, -1.0], action_high=[1.0, 1.0], fps=10, frame_skip=2)
        model.save_pretrained(tmp_path)
        loaded, info = VJepa2WorldModel.from_pretrained(tmp_path, output_loading_info=True)
        assert same_weights(model, loaded) and not info["missing_keys"] and not info["unexpected_keys"]
        assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
        config = loaded.config
        assert (config.action_low, config.action_high, config.fps, config.frame_skip) == ([-1, -1], [1, 1], 10, 2)

    def test_from_encoder_takes_an_encoder_or_a_folder(self, tmp_path):
        encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)))
        encoder.save_pretrained(tmp_path)
        for source in (encoder, tmp_path):
            model = VJepa2WorldModel.from_encoder(source, action_dim=3, **TINY_PREDICTOR)
            assert same_weights(model.encoder, encoder) and model.config.action_dim == 3
            assert not any(parameter.requires_grad for parameter in model.encoder.parameters())


LATENTS, ACTIONS, PROPRIO = episode(3)


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({}, {"actions": ACTIONS[..., :1]}, r"actions have shape \(2, 2, 1\); expected \(2, 2, 2\)"),
        ({}, {"actions": ACTIONS[:, :1]}, r"actions have shape \(2, 1, 2\); expected \(2, 2, 2\)"),
        ({}, {}, r"actions are missing; expected \(2, 2, 2\)"),
        ({}, {"actions": ACTIONS, "latents": LATENTS[..., :5]}, "latents have shape .*expected .B, T, N, 24"),
        (
            {},
            {"actions": ACTIONS, "proprio_states": PROPRIO},
            "proprio_states were given, but the model does not use them",
        ),
        ({"proprio_dim": 2}, {"actions": ACTIONS}, r"proprio_states are missing; expected \(2, 3, 2\)"),
        ({"rollout_steps": 5}, {"actions": ACTIONS}, "episodes have 3 frames; rollout_steps=5 needs 6 or more"),
    ],
)
def test_wrong_training_inputs_are_refused(fields, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)(**{"latents": LATENTS, **arguments})


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({}, {"actions": random(2, 4, 3)}, r"actions have shape .*\b3\); expected \(2, steps, 2\) or"),
        ({}, {"actions": random(1, 4, 2)}, "actions have shape"),
        ({}, {"actions": random(2, 4, 0, 2)}, "at least one candidate and one step"),
        ({}, {"context_actions": None}, r"3 frames of context need context_actions \(2, 2, A\)"),
        ({}, {"context_actions": ACTIONS[:, :1]}, "actions have shape"),
        ({"proprio_dim": 2}, {}, "proprio_states are missing"),
        (
            {"proprio_dim": 2},
            {"proprio_states": random(2, 5, 2)},
            r"proprio_states cover 5 frames; expected 3 .* or 7",
        ),
    ],
)
def test_wrong_rollout_inputs_are_refused(fields, arguments, message):
    arguments = {"latents": LATENTS, "actions": random(2, 4, 2), "context_actions": ACTIONS, **arguments}
    with pytest.raises(ValueError, match=message):
        build(**fields).rollout(**arguments)


def test_wrong_frames_and_goals_are_refused():
    model = build()
    with pytest.raises(ValueError, match="height=20 .*expected a multiple of 8"):
        model.encode(clips(2, 20, 32))
    with pytest.raises(ValueError, match="the goal's latents have 4 tokens of size 24, the observation's 16 of 24"):
        model.score(clips(1), clips(1, 16, 16), random(2, 3, 4, 2))
    with pytest.raises(ValueError, match="distance is 'l3'; expected one of 'l1', 'l2', 'cosine'"):
        model.score(clips(1), clips(1), random(2, 3, 4, 2), distance="l3")


def test_a_grid_that_learned_positions_do_not_know_is_refused():
    model = build(predictor_position_embedding_type="learned")
    with pytest.raises(ValueError, match="the frame has 4 tokens, but learned positions are for 16"):
        model.rollout(random(2, 1, 4, 24), random(2, 3, 2))


def test_weights_under_the_names_of_0_1_load_and_resume(tmp_path):
    torch.manual_seed(0)
    model = VJepa2WorldModel(
        VJepa2WorldModelConfig(
            encoder_config=TINY_ENCODER,
            action_dim=2,
            stochastic_dim=2,
            predictor_position_embedding_type="learned",
            **TINY_PREDICTOR,
        )
    )
    renamed = {"stochastic_head.": "chance_head.", "predictor.position_embedding": "predictor.place_embedding"}
    old = {}
    for name, value in model.state_dict().items():
        for new, before in renamed.items():
            name = name.replace(new, before)
        old[name] = value
    assert any("chance" in name for name in old) and any("place" in name for name in old)
    model.save_pretrained(tmp_path)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = VJepa2WorldModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    resumed = VJepa2WorldModel(model.config)
    resumed.load_state_dict(old)
    for again in (loaded, resumed):
        assert again.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
