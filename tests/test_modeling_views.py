"""World models of several cameras: their latents, rollouts and costs, and frames that lack a camera."""

import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, same_weights, spread

from vjepa2_hf import VJepa2PixelDecoder, VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.planning import LatentDistance, TemporalDistance


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
CAMERAS = {"num_views": 2, "view_names": ["front", "wrist"]}


def build(**fields) -> VJepa2WorldModel:
    torch.manual_seed(0)
    fields = {"action_dim": 2, "context_frames": 2, **CAMERAS, **TINY_PREDICTOR, **fields}
    return spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields))).eval()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FRAMES = random(2, 3, 2, 3, 32, 32)  # (B, T, V, C, H, W)
BY_NAME = {"wrist": FRAMES[:, :, 1], "front": FRAMES[:, :, 0]}
ACTIONS = random(2, 4, 3, 2, seed=1)  # (B, J, P, A)


class TestLatents:
    @pytest.mark.parametrize("state", ["tokens", "merged", "pooled", "projected", "pixels"])
    def test_views_stand_one_after_the_other_in_the_configs_order(self, state):
        model = build(state_type=state, **({"state_dim": 6} if state == "projected" else {}))
        if state == "projected":
            frames = random(4, 6, 2, 3, 32, 32, seed=3)
            model.fit_state(model.encode(frames))
        latents = model.encode(FRAMES)
        assert latents.shape == (2, 3, model.tokens_per_frame, model.latent_size)
        assert model.tokens_per_frame == 2 * model.tokens_per_view
        assert torch.equal(model.encode(BY_NAME), latents)
        split = model.split_views(latents)
        for index, name in enumerate(("front", "wrist")):
            alone = model.encode({name: BY_NAME[name]})
            assert torch.equal(alone, model.encode(FRAMES[:, :, index : index + 1], views=[name]))
            torch.testing.assert_close(split[:, :, index], alone, **CLOSE)
            assert torch.equal(model.split_views(alone, views=[name])[:, :, 0], alone)
        other = BY_NAME | {"front": FRAMES[:, :, 0].flip(-1)}
        changed = model.split_views(model.encode(other))
        torch.testing.assert_close(changed[:, :, 1], split[:, :, 1], **CLOSE)  # no camera changes another's tokens
        assert (changed[:, :, 0] - split[:, :, 0]).abs().max() > 1e-3

    def test_the_mean_of_a_state_is_each_views_own(self):
        model = build(state_type="pooled", normalize_latents="none")
        frames = random(8, 4, 2, 3, 32, 32, seed=3)
        frames[:, :, 1] += 2.0
        arranged = model.encode(frames)
        model.fit_state(arranged)
        state = model.encode(frames)
        torch.testing.assert_close(state.mean(dim=(0, 1)), torch.zeros(2, 24), atol=1e-4, rtol=0)
        torch.testing.assert_close(state, (arranged - arranged.mean(dim=(0, 1))) / model.state_scale, **CLOSE)

    @pytest.mark.parametrize(
        ("frames", "views", "message"),
        [
            ({"side": FRAMES[:, :, 0]}, None, "'side'; known ones are front, wrist"),
            (BY_NAME, ["front"], r"whose keys name the views: leave out views=\['front'\]"),
            (FRAMES[:, :, 0], None, r"expected frames \(B, T, V, C, H, W\), or a dict of cameras \(front, wrist\)"),
            (FRAMES[:, :, :1], None, r"has 1 views; expected 2 \(front, wrist\); name the views of fewer with views="),
            (FRAMES, ["front", "front"], "names a view twice"),
            (FRAMES, ["front", 2], "a view in views is 2; expected an integer from 0 to 1"),
            (BY_NAME | {"wrist": FRAMES[:, :, 1, :, :16]}, None, "the cameras of pixel_values_videos have shapes"),
            (BY_NAME | {"wrist": None}, None, r"pixel_values_videos\['wrist'\] is None; expected a float tensor"),
        ],
    )  # fmt: skip
    def test_other_frames_are_refused(self, frames, views, message):
        with pytest.raises(ValueError, match=message):
            build().encode(frames, views)

    @pytest.mark.parametrize(
        ("latents", "views", "message"),
        [
            ([[1.0]], None, r"^latents is \[\[1.0\]\]; expected a float tensor \(\.\.\., V·N, D\)\.$"),
            (random(24), None, r"latents has shape \(24,\); expected a float tensor \(\.\.\., V·N, D\)"),
            (random(2, 16, 24), None, "have 16 tokens per frame; expected those of 2 views, 2 · 16"),
            (random(2, 16, 24), "wrist", "^views is 'wrist'; expected a list of views out of front, wrist.$"),
            (random(2, 16, 24), 1, "^views is 1; expected a list of views out of front, wrist.$"),
            (random(2, 16, 24), {"wrist": 1}, "^views is {'wrist': 1}; expected a list of views"),
            (random(2, 16, 24), [0.5], "^a view in views is 0.5; expected an integer from 0 to 1.$"),
        ],
    )
    def test_only_latents_of_known_views_are_split(self, latents, views, message):
        with pytest.raises(ValueError, match=message):
            build().split_views(latents, views)

    def test_one_view_takes_both_forms(self):
        model = build(num_views=1, view_names=["front"])
        latents = model.encode(FRAMES[:, :, 0])
        assert torch.equal(model.encode(FRAMES[:, :, :1]), latents)
        assert torch.equal(model.encode({"front": FRAMES[:, :, 0]}), latents)
        assert not any("view" in name for name in model.state_dict())  # and has no weights for views


class TestDynamics:
    def test_swapped_cameras_give_another_prediction(self):
        """Positions are the same in both views: the view embedding distinguishes them."""
        model = build()
        latents = model.encode(FRAMES)[:, :1]
        swapped = torch.cat(latents.chunk(2, dim=2)[::-1], dim=2)
        with torch.no_grad():
            plain, other = (model.rollout(each, ACTIONS[:, 0]) for each in (latents, swapped))
            named = model.rollout(swapped, ACTIONS[:, 0], views=["wrist", "front"])
        other, named = (torch.cat(each.chunk(2, dim=2)[::-1], dim=2) for each in (other, named))
        torch.testing.assert_close(named, plain, **CLOSE)
        assert (other - plain).abs().max() > 1e-3

    def test_every_view_informs_the_prediction_of_the_other(self):
        model = build()
        latents = model.encode(FRAMES)[:, :1]
        changed = latents.clone()
        changed[:, :, :16] += 1.0
        with torch.no_grad():
            one, two = (model.rollout(each, ACTIONS[:, 0]) for each in (latents, changed))
        assert (one[:, :, 16:] - two[:, :, 16:]).abs().max() > 1e-4

    @torch.no_grad()
    @pytest.mark.parametrize("views", [["wrist"], [1, 0]])
    def test_fewer_views_are_a_smaller_frame(self, views):
        model = build(context_frames=3, proprio_dim=2)
        names = [("front", "wrist")[view] if isinstance(view, int) else view for view in views]
        latents = model.encode(torch.stack([BY_NAME[name] for name in names], dim=2), views=views)
        others = {"context_actions": random(2, 2, 2, seed=5), "proprio_states": random(2, 3, 2, seed=6)}
        future = model.rollout(latents, ACTIONS, views=views, **others)
        assert future.shape == (2, 4, 3, 16 * len(views), 24)
        plain = model.rollout(latents, ACTIONS, views=views, use_cache=False, **others)
        torch.testing.assert_close(future, plain, **CLOSE)
        output = model(latents=latents, actions=others["context_actions"], proprio_states=others["proprio_states"],
                       views=views)  # fmt: skip
        assert output.predicted_latents.shape == (2, 2, 16 * len(views), 24)

    @torch.no_grad()
    def test_latents_of_fewer_views_must_be_named(self):
        model = build()
        latents = model.encode({"wrist": BY_NAME["wrist"]})
        message = r"have 16 tokens per frame; expected those of 2 views, 2 · 16: latents of fewer views"
        with pytest.raises(ValueError, match=message):
            model.rollout(latents[:, :1], ACTIONS)
        with pytest.raises(ValueError, match="have 32 tokens per frame; expected those of 1 views"):
            model.rollout(model.encode(FRAMES)[:, :1], ACTIONS, views=["front"])

    def test_view_dropout_trains_on_parts_of_the_views(self):
        model, sizes = build(view_dropout=0.5, rollout_weight=0.0), []
        model.predictor.embed.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[2]))
        latents, actions = model.encode(FRAMES), random(2, 2, 2)
        for _ in range(20):
            model.train()(latents=latents, actions=actions)
        assert set(sizes) == {16, 32}
        sizes.clear()
        for _ in range(10):
            model.eval()(latents=latents, actions=actions)
        assert set(sizes) == {32}

    def test_a_saved_model_predicts_the_same(self, tmp_path):
        model = build(state_type="merged", state_dim=6, predictor_num_key_value_heads=1)
        model.fit_state(random(30, 8, 96))
        model.save_pretrained(tmp_path)
        loaded = VJepa2WorldModel.from_pretrained(tmp_path)
        assert same_weights(model, loaded) and loaded.config.view_names == ["front", "wrist"]
        futures = [each.rollout(each.encode(BY_NAME)[:, :1], ACTIONS) for each in (model, loaded)]
        assert torch.equal(*futures)

    def test_training_the_encoder_encodes_every_view(self):
        model = build(freeze_encoder=False).train()
        output = model(BY_NAME, actions=random(2, 2, 2))
        output.loss.backward()
        assert output.predicted_latents.shape == (2, 2, 32, 24)
        assert model.encoder.patch_embeddings.proj.weight.grad.abs().max() > 0


class TestScore:
    @pytest.fixture(autouse=True)
    def without_gradient(self):
        with torch.no_grad():
            yield

    def test_the_goal_is_compared_over_the_views_it_shows(self):
        model = build()
        latents, goals = model.encode(FRAMES)[:, :1], model.encode(FRAMES)[:, 2:]
        future = model.rollout(latents, ACTIONS)[:, :, -1]
        whole = (future - goals).square().mean(dim=(2, 3))
        torch.testing.assert_close(model.score(latents, goals, ACTIONS), whole, **CLOSE)
        wrist = (future - goals)[:, :, 16:].square().mean(dim=(2, 3))
        for chunk in (None, 1):
            found = model.score(latents, goals[:, :, 16:], ACTIONS, goal_views=["wrist"], candidate_chunk_size=chunk)
            torch.testing.assert_close(found, wrist, **CLOSE)
        goal = {"wrist": BY_NAME["wrist"][:, 2:]}
        observation = {name: frames[:, :1] for name, frames in BY_NAME.items()}
        torch.testing.assert_close(model.score(observation, goal, ACTIONS), wrist, **CLOSE)
        torch.testing.assert_close(model.score(observation, goal, ACTIONS, cost=LatentDistance()), wrist, **CLOSE)

    def test_a_goal_of_a_view_that_the_observation_lacks_is_refused(self):
        model, wrist = build(), {"wrist": BY_NAME["wrist"][:, :1]}
        message = "the goal shows front, which the observation lacks .it shows wrist."
        with pytest.raises(ValueError, match=message):
            model.score(wrist, {name: frames[:, 2:] for name, frames in BY_NAME.items()}, ACTIONS)
        costs = model.score(wrist, {"wrist": BY_NAME["wrist"][:, 2:]}, ACTIONS)
        assert costs.shape == (2, 4) and torch.isfinite(costs).all()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"goal": {"wrist": BY_NAME["wrist"][:, 2:]}, "goal_views": ["wrist"]}, r"^goal is a dict, .* goal_views"),
            ({"goal": {"side": FRAMES[:, 2:, 0]}}, "^Unknown view in goal: 'side'"),
            ({"goal": FRAMES[:, 2:, :1]}, r"^goal of shape .* has 1 views; .* fewer with goal_views=\[…\]"),
            ({"goal": random(2, 1, 16, 24)}, r"^goal of shape .* have 16 tokens per frame; .* need goal_views=\[…\]"),
            ({"goal": None, "cost": "uncertainty", "goal_views": ["wrist"]}, "^goal_views is .* there is no goal"),
            ({"goal_views": ["side"]}, "^Unknown view in goal_views: 'side'"),
            ({"goal_views": "front"}, "^goal_views is 'front'; expected a list of views"),
            ({"observation": BY_NAME, "views": [0]}, r"^observation is a dict, .* out views=\[0\]"),
            ({"observation": FRAMES[:, :1, :1]}, r"^observation of shape .* has 1 views; .* fewer with views=\[…\]"),
        ],
    )  # fmt: skip
    def test_errors_name_the_argument(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            build().score(**{"observation": FRAMES[:, :1], "goal": FRAMES[:, 2:], "actions": ACTIONS} | arguments)

    def test_heads_read_all_views(self):
        model = build(distance_head=True, reward_head=True, stochastic_dim=2)
        latents, goals = model.encode(FRAMES)[:, :1], model.encode(FRAMES)[:, 2:]
        assert model.temporal_distance(latents, goals).shape == (2, 1)
        for cost in (TemporalDistance(), "reward", "uncertainty"):
            assert model.score(latents, goals, ACTIONS, cost=cost, num_samples=2).shape == (2, 4)
        alone = {"views": ["front"], "num_samples": 2}
        assert model.score(latents[:, :, :16], goals[:, :, :16], ACTIONS, cost="uncertainty", **alone).shape == (2, 4)
        with pytest.raises(ValueError, match="made for frames of 32 tokens"):
            model.score(latents[:, :, :16], goals[:, :, :16], ACTIONS, cost=TemporalDistance(), **alone)
        with pytest.raises(ValueError, match="the reward head reads all 2 views, 32 tokens"):
            model.score(latents[:, :, :16], goals[:, :, :16], ACTIONS, cost="reward", **alone)

    def test_a_decoder_decodes_each_view(self):
        model = build()
        decoder = VJepa2PixelDecoder.from_world_model(model, hidden_size=24, num_attention_heads=2).eval()
        images = decoder.decode(model.split_views(model.encode(FRAMES)))
        assert images.shape == (2, 3, 2, 3, 32, 32)
        torch.testing.assert_close(images[:, :, 1], decoder.decode(model.encode({"wrist": BY_NAME["wrist"]})), **CLOSE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"view_names": ["front"]}, r"view_names is \['front'\]; expected 2 different names \(num_views\)"),
        ({"view_names": ["front", "front"]}, "expected 2 different names"),
        ({"num_views": 0, "view_names": None}, "num_views is 0; expected a number above 0"),
        ({"dynamics_type": "mlp", "state_type": "pooled"}, "dynamics_type='mlp' reads one vector per frame"),
        ({"view_dropout": 1.0}, "view_dropout is 1.0; expected 0 <= fraction < 1"),
        ({"view_dropout": 0.5, "reward_head": True}, "view_dropout=0.5 with reward_head=True"),
        ({"view_dropout": 0.5, "num_views": 1, "view_names": None}, "view_dropout=0.5 needs several views"),
        ({"predictor_num_key_value_heads": 3}, "predictor_num_key_value_heads=3 must divide"),
        ({"state_levels": "all"}, "state_levels='all' needs an encoder with output_levels"),
    ],
)
def test_configs_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **{**CAMERAS, **TINY_PREDICTOR, **fields})


class TestGroupedHeads:
    def test_they_are_plain_attention_with_repeated_keys_and_values(self):
        grouped = build(predictor_num_key_value_heads=1)
        plain = build()
        state = grouped.state_dict()
        for name, value in state.items():
            if ".qkv." in name and name.startswith("predictor"):  # queries of two heads, a key and a value of 12
                query, key, value = value.split([24, 12, 12])
                state[name] = torch.cat([query, key, key, value, value])
        plain.load_state_dict(state)
        latents = plain.encode(FRAMES)
        with torch.no_grad():
            futures = [model.rollout(latents[:, :1], ACTIONS) for model in (plain, grouped)]
        torch.testing.assert_close(*futures, **CLOSE)
        for model in (plain, grouped):  # with gradient: another path of the rotation
            model(latents=latents, actions=random(2, 2, 2)).loss.backward()
        torch.testing.assert_close(plain.predictor.embed.weight.grad, grouped.predictor.embed.weight.grad, **CLOSE)

    def test_the_cache_holds_the_shared_heads_alone(self):
        model = build(predictor_num_key_value_heads=1, context_frames=4)
        latents, shapes = model.encode(FRAMES), []
        model.predictor.register_forward_hook(lambda _, __, output: shapes.append(output[1][0][0].shape))
        model(latents=latents, actions=random(2, 2, 2), rollout_weight=0)
        assert shapes == [(2, 1, 2 * 33, 12)]

    def test_as_many_as_heads_is_the_plain_model(self):
        one, other = build(), build(predictor_num_key_value_heads=2)
        assert same_weights(one, other)


def test_the_robot_preset_has_22_million_parameters_in_its_blocks():
    config = VJepa2WorldModelConfig.from_preset("giant", predictor="robot-22m", action_dim=7, proprio_dim=7, **CAMERAS)
    with torch.device("meta"):
        model = VJepa2WorldModel(config)
    assert 21.5e6 < sum(part.numel() for part in model.predictor.layer.parameters()) < 22.5e6
    sizes = (config.predictor_hidden_size, config.predictor_num_hidden_layers, config.predictor_num_attention_heads)
    assert sizes == (512, 7, 4) and (config.context_frames, config.rollout_steps) == (8, 2)
    with pytest.raises(ValueError, match="predictor is 'robot-8b'; expected one of 'robot-22m'"):
        VJepa2WorldModelConfig.from_preset("giant", predictor="robot-8b")
