"""World models of several embodiments: padding, statistics, and embodiments that are added to a trained model."""

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, same_weights, spread

from vjepa2_hf import VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.modeling_embodiments import STATE_STATISTICS, embodiment_config
from vjepa2_hf.planning import ActionPenalty, LatentDistance, ProprioDistance
from vjepa2_hf.pose import move_pose


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PUSHER_AND_ARM = {
    "num_embodiments": 2,
    "embodiment_names": ["pusher", "arm"],
    "action_dim": 7,
    "embodiment_action_dims": [2, 7],
    "proprio_dim": 7,
    "embodiment_proprio_dims": [0, 7],
    "embodiment_proprio_transitions": ["hold", "pose_delta"],
    "action_mean": [[0.5, -0.5], None],
    "action_std": [[2.0, 4.0], [0.1] * 7],
    "action_low": [[-1.0, -1.0], [-0.05] * 7],
    "action_high": [[1.0, 1.0], [0.05] * 7],
    "proprio_mean": [None, [0.1] * 7],
}


def build(**fields) -> VJepa2WorldModel:
    torch.manual_seed(0)
    fields = {"context_frames": 2, "predictor_initializer_range": 0.2, **TINY_PREDICTOR, **fields}
    return spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields))).eval()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(values, size):
    return torch.nn.functional.pad(values, (0, size - values.shape[-1]))


IDS = torch.tensor([1, 0, 1])
LATENTS = random(3, 3, 16, 24)
STATES = random(3, 3, 7, seed=2) * 0.1
CONTEXT, ACTIONS = random(3, 2, 7, seed=3) * 0.1, random(3, 4, 3, 7, seed=4) * 0.1


def arguments(ids):
    return {"context_actions": CONTEXT, "proprio_states": STATES, "embodiment_ids": ids}


class TestRollout:
    @pytest.fixture(autouse=True)
    def without_gradient(self):
        with torch.no_grad():
            yield

    @pytest.mark.parametrize("fusion", ["concat", "add", "cross_attention"])
    def test_a_row_of_a_batch_is_a_rollout_of_its_embodiment(self, fusion):
        model = build(**PUSHER_AND_ARM, action_fusion=fusion)
        future = model.rollout(LATENTS, ACTIONS, **arguments(IDS))
        for row, (embodiment, name, size, state_size) in enumerate(
            [(1, "arm", 7, 7), (0, "pusher", 2, 0), (1, "arm", 7, 7)]
        ):
            rows = slice(row, row + 1)
            given = {
                "context_actions": CONTEXT[rows, :, :size],
                "proprio_states": STATES[rows] if state_size else None,
            }
            for one in (embodiment, name):  # of its own sizes
                alone = model.rollout(LATENTS[rows], ACTIONS[rows, ..., :size], **given, embodiment_ids=one)
                torch.testing.assert_close(alone, future[rows], **CLOSE)
        other = model.rollout(LATENTS, ACTIONS, **arguments(1 - IDS))
        assert (other - future).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3

    def test_padding_never_influences(self):
        model = build(**PUSHER_AND_ARM)
        future = model.rollout(LATENTS, ACTIONS, **arguments(IDS))
        for value in (1e6, float("nan")):
            actions, context, states = ACTIONS.clone(), CONTEXT.clone(), STATES.clone()
            actions[1, ..., 2:], context[1, :, 2:], states[1] = value, value, value
            junk = {"context_actions": context, "proprio_states": states, "embodiment_ids": IDS}
            assert torch.equal(model.rollout(LATENTS, actions, **junk), future)
            training = {"latents": LATENTS, "embodiment_ids": IDS}
            with torch.enable_grad():
                losses = [
                    model(actions=each, proprio_states=state, **training).loss
                    for each, state in ((CONTEXT, STATES), (context, states))
                ]
                gradients = [torch.autograd.grad(loss, tuple(model.predictor.parameters())) for loss in losses]
            assert torch.equal(*losses) and all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))

    def test_statistics_are_those_of_the_embodiment(self):
        model = build(**PUSHER_AND_ARM)
        plain = build(**{**PUSHER_AND_ARM, "action_mean": None, "action_std": None, "proprio_mean": None})
        plain.load_state_dict(model.state_dict())
        for embodiment, size in ((0, 2), (1, 7)):
            config = embodiment_config(model.config, embodiment)
            mean = torch.tensor(config.action_mean or [0.0] * size)
            scaled = (ACTIONS[..., :size] - mean) / torch.tensor(config.action_std)
            states = STATES[:, :1] if size == 7 else None
            one = model.rollout(
                LATENTS[:, :1], ACTIONS[..., :1, :size], proprio_states=states, embodiment_ids=embodiment
            )
            states = None if states is None else states - 0.1
            two = plain.rollout(LATENTS[:, :1], scaled[..., :1, :], proprio_states=states, embodiment_ids=embodiment)
            torch.testing.assert_close(one, two, **CLOSE)

    def test_states_continue_by_the_transition_of_each(self):
        """A pose moves by its actions; given states of all frames have the same result."""
        model = build(**PUSHER_AND_ARM, context_frames=4)
        present = STATES[:, :1]
        future = model.rollout(LATENTS[:, :1], ACTIONS[:, 0], proprio_states=present, embodiment_ids=IDS)
        states = [present]
        for step in range(3):
            states.append(move_pose(states[-1], ACTIONS[:, 0, step : step + 1]))
        whole = torch.cat(states, dim=1)
        given = model.rollout(LATENTS[:, :1], ACTIONS[:, 0], proprio_states=whole, embodiment_ids=IDS)
        torch.testing.assert_close(future, given, **CLOSE)
        held = model.rollout(
            LATENTS[:, :1], ACTIONS[:, 0], proprio_states=present.expand(-1, 4, -1), embodiment_ids=IDS
        )
        assert (held - future)[IDS == 1].abs().max() > 1e-4 and torch.equal(held[IDS == 0], future[IDS == 0])

    def test_scores_of_a_mixed_batch_are_those_of_each(self):
        model, goal = build(**PUSHER_AND_ARM), random(3, 1, 16, 24, seed=9)
        cost = LatentDistance() + ActionPenalty()
        costs = model.score(LATENTS, goal, ACTIONS, cost=cost, **arguments(IDS))
        assert costs.shape == (3, 4)
        for row, (embodiment, size) in enumerate([(1, 7), (0, 2), (1, 7)]):
            rows = slice(row, row + 1)
            given = {"context_actions": CONTEXT[rows, :, :size], "proprio_states": STATES[rows] if size == 7 else None}
            actions = ACTIONS[rows, ..., :size]
            alone = model.score(LATENTS[rows], goal[rows], actions, cost=cost, embodiment_ids=embodiment, **given)
            torch.testing.assert_close(alone, costs[rows], **CLOSE)
            penalty = actions.square().mean(dim=-1).sum(dim=-1)  # of its own dimensions alone
            latent = model.score(LATENTS[rows], goal[rows], actions, embodiment_ids=embodiment, **given)
            torch.testing.assert_close(alone - latent, penalty, **CLOSE)

    def test_a_mixed_batch_needs_a_row_for_each_id(self):
        model, goal = build(**PUSHER_AND_ARM), random(3, 1, 16, 24, seed=9)
        for actions, goals in ((torch.cat([ACTIONS, ACTIONS]), goal), (ACTIONS[:1], goal), (ACTIONS, goal[:1])):
            with pytest.raises(
                ValueError, match="were given for 3 episodes; expected one row for each of embodiment_"
            ):
                model.score(LATENTS, goals, actions, **arguments(IDS))

    def test_a_goals_state_is_compared_in_the_embodiments_own_dimensions(self):
        model, goal_states = build(**PUSHER_AND_ARM), STATES[:1, -1] + 0.5
        given = {"context_actions": CONTEXT[:1], "proprio_states": STATES[:1], "goal_proprio_states": goal_states}
        costs = model.score(
            LATENTS[:1], None, ACTIONS[:1], cost=ProprioDistance([0, 1, 2]), embodiment_ids="arm", **given
        )
        reached = STATES[:1, -1:, :3] + ACTIONS[:1, :, :, :3].sum(dim=2)
        torch.testing.assert_close(costs, (reached - goal_states[:, None, :3]).square().mean(dim=-1), **CLOSE)

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (None, r"embodiment_ids are missing; expected int64 \(3,\), or an index for all, of 0 \(pusher\), 1 "),
            (2, "embodiment is 2; expected an integer from 0 to 1"),
            ("arms", "Unknown embodiment 'arms'; did you mean 'arm'?"),
            (torch.tensor([0, 1]), r"expected integers of shape \(3,\)"),
            (torch.tensor([0.0, 1.0, 1.0]), r"expected integers of shape \(3,\)"),
            (torch.tensor([0, 1, 2]), r"embodiment_ids are \[0, 1, 2\]; expected 0 to 1"),
        ],
    )  # fmt: skip
    def test_other_ids_are_refused(self, ids, message):
        with pytest.raises(ValueError, match=message):
            build(**PUSHER_AND_ARM).rollout(LATENTS, ACTIONS, **arguments(ids))

    def test_a_name_without_names_in_the_config_is_refused(self):
        config = VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **{**PUSHER_AND_ARM, "embodiment_names": None})
        with pytest.raises(ValueError, match="embodiment is 'arm'; expected an index out of 0, 1: the config has no"):
            embodiment_config(config, "arm")


class TestAdding:
    @pytest.mark.parametrize("states", [0, 2])
    @pytest.mark.parametrize("embodiments", [1, 2])
    def test_the_others_predict_the_same_to_the_bit_also_when_loaded(self, states, embodiments, tmp_path):
        fields = {"action_dim": 2, "proprio_dim": states, "action_std": [2.0, 3.0], "proprio_transition": "add"}
        if embodiments == 2:
            fields |= {"num_embodiments": 2, "action_std": [[2.0, 3.0], None]}
        model, ids = build(**fields), None if embodiments == 1 else torch.tensor([0, 1, 0])
        given = {"context_actions": CONTEXT[..., :2], "embodiment_ids": ids}
        given |= {"proprio_states": STATES[..., :2]} if states else {}
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            before = model.rollout(LATENTS, ACTIONS[..., :2], **given)
        low, high = [-0.05] * 7, [0.05] * 7
        index = model.add_embodiment(7, 7 if states else 0, name="arm", action_low=low, action_high=high,
                                     proprio_transition="pose_delta" if states else "hold")  # fmt: skip
        assert index == embodiments and model.config.num_embodiments == embodiments + 1
        model.save_pretrained(tmp_path)
        loaded = VJepa2WorldModel.from_pretrained(tmp_path)
        given["context_actions"] = padded(CONTEXT[..., :2], 7)
        if states:
            given["proprio_states"] = padded(STATES[..., :2], 7)
        given["embodiment_ids"] = torch.tensor([0, 0, 0]) if ids is None else ids
        for each in (model, loaded):
            with torch.no_grad():
                assert torch.equal(each.rollout(LATENTS, padded(ACTIONS[..., :2], 7), **given), before)
                arm = each.rollout(
                    LATENTS, ACTIONS, **{**arguments("arm"), **({} if states else {"proprio_states": None})}
                )
            assert torch.isfinite(arm).all() and (arm - before).abs().max() > 1e-3
        kept = {name.replace("embodiments.0.", ""): value for name, value in model.state_dict().items()}
        assert all(torch.equal(kept.get(name, model.state_dict().get(name)), value) for name, value in weights.items())
        assert loaded.config.action_low[index] == low and loaded.config.embodiment_names[index] == "arm"
        assert loaded.config.action_std == [*(fields["action_std"] if embodiments == 2 else [[2.0, 3.0]]), None]

    def test_its_projections_train_alone(self):
        model = build(action_dim=2)
        model.add_embodiment(3)
        model.freeze_trunk()
        model.train()
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained and all(name.startswith("predictor.embodiments.1.") for name in trained)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(latents=LATENTS, actions=CONTEXT[..., :3], embodiment_ids=1).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]
        assert sorted(changed) == sorted(trained)

    def test_it_starts_where_the_others_are(self):
        model = build(**PUSHER_AND_ARM)
        model.add_embodiment(3, name="gripper")
        embeddings = [each.embedding for each in model.predictor.embodiments]
        torch.testing.assert_close(embeddings[2], (embeddings[0] + embeddings[1]) / 2)

    def test_its_statistics_may_be_of_numpy_or_torch(self, tmp_path):
        model = build(action_dim=2)
        vectors = {"action_mean": [np.float32(0.5), np.float32(1)], "action_std": np.array([0.1, 2.0])}
        model.add_embodiment(2, **vectors, action_low=torch.tensor([-1.0, 0.5]))
        model.save_pretrained(tmp_path)
        config = VJepa2WorldModel.from_pretrained(tmp_path).config
        assert [config.action_mean[1], config.action_std[1], config.action_low[1]] == [[0.5, 1], [0.1, 2], [-1, 0.5]]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"action_dim": 0}, "embodiment_action_dims is .2, 0.; expected 2 integers of at least 1"),
            (
                {"action_dim": 3, "proprio_dim": 3},
                "proprio_dim is 3, but the model was trained without proprio states",
            ),
            ({"action_dim": 3, "action_low": [0.0]}, r"action_low\[1\] has 1 numbers; expected 3"),
            ({"action_dim": 3, "proprio_transition": "pose_delta"}, "needs proprio_dim and action_dim 7; got 0 and 3"),
            (
                {"action_dim": 3, "action_mean": 5.0},
                "action_mean is 5.0; expected a list of numbers, one per dimension",
            ),
            ({"action_dim": 3, "action_mean": "abc"}, "action_mean is 'abc'; expected numbers"),
            ({"action_dim": 3, "actions_low": [0.0] * 3}, "add_embodiment has no argument 'actions_low'"),
        ],
    )
    def test_a_refused_one_changes_nothing(self, given, message):
        model = build(action_dim=2)
        before, config = {name: value.clone() for name, value in model.state_dict().items()}, model.config.to_dict()
        with pytest.raises(ValueError, match=message):
            model.add_embodiment(**given)
        assert model.config.to_dict() == config and before.keys() == model.state_dict().keys()

    def test_a_single_embodiment_has_no_trunk_to_freeze(self):
        with pytest.raises(ValueError, match="freeze_trunk needs a model of several embodiments"):
            build(action_dim=2).freeze_trunk()


class TestStatesOfEach:
    """Means and deviations of the states of each embodiment."""

    def pair(self, **fields) -> tuple[VJepa2WorldModel, VJepa2WorldModel, torch.Tensor, float]:
        """A model without statistics and its copy with some of the pusher, whose mean and deviation these are; its
        steps change by as much."""
        fields = {**PUSHER_AND_ARM, "rollout_steps": 2, **fields}
        plain, fitted = build(**fields), build(**fields)
        for model in (plain, fitted):
            model.fit_state(LATENTS)
        shape = LATENTS.shape[2:]
        half = torch.arange(shape.numel()).view(shape) % 2
        angles = torch.arange(6).view(6, 1, 1) * torch.pi / 3  # a step changes as much as the states deviate
        unit = 2**0.5 * (angles.cos() * half + angles.sin() * (1 - half))
        mean = 5.0 * random(*shape, seed=7)
        fitted.fit_embodiment("pusher", (mean + 0.1 * unit)[None])
        fitted.fit_embodiment("arm", unit[None])
        return plain, fitted, mean, 0.1

    @pytest.mark.parametrize("fields", [{}, {"residual": True}, {"num_views": 2, "view_names": ["front", "side"]}])
    def test_the_dynamics_sees_them_in_its_own_units(self, fields, monkeypatch):
        views = fields.get("num_views", 1)
        monkeypatch.setattr(f"{__name__}.LATENTS", LATENTS.repeat(1, 1, views, 1))
        plain, fitted, mean, scale = self.pair(**fields)
        given = {"context_actions": CONTEXT[..., :2], "embodiment_ids": "pusher"}
        for kept in [None] if views == 1 else [None, ["side"]]:
            own = slice(None) if kept is None else slice(16, None)
            latents, offset = LATENTS[:, :, own], mean[own]
            with torch.no_grad():
                expected = plain.rollout(latents, ACTIONS[..., :2], **given, views=kept)
                found = fitted.rollout(offset + scale * latents, ACTIONS[..., :2], **given, views=kept)
                losses = [
                    model(latents=each, actions=CONTEXT[..., :2], embodiment_ids="pusher", views=kept).loss
                    for model, each in ((plain, latents), (fitted, offset + scale * latents))
                ]
            torch.testing.assert_close((found - offset) / scale, expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)

    def test_a_mixed_batch_and_a_saved_model_predict_the_same(self, tmp_path):
        _, model, mean, scale = self.pair(residual=True)
        model.save_pretrained(tmp_path)
        loaded = VJepa2WorldModel.from_pretrained(tmp_path)
        assert loaded.config.embodiment_states_fitted
        latents = LATENTS.clone()
        latents[1] = mean + scale * latents[1]
        with torch.no_grad():
            future = model.rollout(latents, ACTIONS, **arguments(IDS))
            assert torch.equal(loaded.rollout(latents, ACTIONS, **arguments(IDS)), future)
            for row in range(3):
                part = {name: each[row : row + 1] for name, each in arguments(IDS).items()}
                alone = model.rollout(latents[row : row + 1], ACTIONS[row : row + 1], **part)
                torch.testing.assert_close(alone, future[row : row + 1], **CLOSE)

    def test_a_new_embodiment_changes_nothing_for_the_others(self):
        model = build(action_dim=2)
        model.fit_state(LATENTS)
        with torch.no_grad():
            before = model.rollout(LATENTS, ACTIONS[..., :2], context_actions=CONTEXT[..., :2])
            for size in (7, 3):
                model.fit_embodiment(model.add_embodiment(size), 3 + 2 * LATENTS)
                given = {"context_actions": padded(CONTEXT[..., :2], 7), "embodiment_ids": 0}
                assert torch.equal(model.rollout(LATENTS, padded(ACTIONS[..., :2], 7), **given), before)
        mean, scale, change = (getattr(model.predictor.embodiments, name) for name in STATE_STATISTICS)
        torch.testing.assert_close(mean[2], 3 + 2 * LATENTS.mean(dim=(0, 1)))
        deviation = 2 * (LATENTS - LATENTS.mean(dim=(0, 1))).square().mean().sqrt()
        torch.testing.assert_close(scale, torch.stack([torch.ones(()), deviation, deviation]))
        moved = 2 * (LATENTS[:, 1:] - LATENTS[:, :-1]).square().mean().sqrt()
        torch.testing.assert_close(change, torch.stack([torch.ones(()), moved, moved]))

    def test_frames_of_another_size_are_refused(self):
        _, model, _, _ = self.pair()
        with pytest.raises(ValueError, match="9 tokens, but the states of its embodiments were fitted on 16"):
            model.rollout(LATENTS[:, :1, :9], ACTIONS[..., :2], embodiment_ids="pusher")

    def test_what_cannot_be_measured_is_refused(self):
        model = build(**PUSHER_AND_ARM)
        with pytest.raises(ValueError, match="fit_embodiment needs fit_state first"):
            model.fit_embodiment("arm", LATENTS)
        model.fit_state(LATENTS)
        for latents, message in (
            (LATENTS[..., :2], r"latents have shape \(3, 3, 16, 2\); expected \(B, T, 16, 24\)"),
            (LATENTS[:, :1], "episodes of T > 1 consecutive frames"),
            (LATENTS[0], r"latents has shape \(3, 16, 24\)"),
            (LATENTS * float("nan"), "not finite"),
            (torch.ones_like(LATENTS), "latents change by 0 in a step"),
            (1e30 * LATENTS, "latents change by inf in a step"),
        ):
            with pytest.raises(ValueError, match=message):
                model.fit_embodiment("arm", latents)
        with pytest.raises(ValueError, match="fit_embodiment needs several embodiments"):
            build(action_dim=2).fit_embodiment(0, LATENTS)
        assert not model.config.embodiment_states_fitted
        with pytest.raises(ValueError, match="embodiment_states_fitted=True"):
            VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, embodiment_states_fitted=True)


def test_a_saved_model_predicts_the_same(tmp_path):
    model = build(**PUSHER_AND_ARM, num_views=2)
    model.save_pretrained(tmp_path)
    loaded = VJepa2WorldModel.from_pretrained(tmp_path)
    assert same_weights(model, loaded) and loaded.config.embodiment_action_dims == [2, 7]
    latents = random(3, 3, 32, 24)
    with torch.no_grad():
        assert torch.equal(*(each.rollout(latents, ACTIONS, **arguments(IDS)) for each in (model, loaded)))


def test_the_config_of_one_embodiment():
    config = embodiment_config(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **PUSHER_AND_ARM), "pusher")
    assert (config.action_dim, config.proprio_dim, config.proprio_transition) == (2, 0, "hold")
    assert (config.action_mean, config.action_high, config.proprio_mean) == ([0.5, -0.5], [1.0, 1.0], None)
    assert config.num_embodiments == 1 and VJepa2WorldModelConfig(**config.to_dict()).action_dim == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embodiment_names": ["arm"]}, r"expected 2 different names \(num_embodiments\)"),
        ({"embodiment_action_dims": [2]}, r"embodiment_action_dims is \[2\]; expected 2 integers of at least 1"),
        ({"embodiment_action_dims": [2, 6]}, "but action_dim is 7; expected the largest of them"),
        ({"action_low": [-1.0] * 7}, "expected 2 lists, one per embodiment"),
        ({"action_std": [[1.0, 0.0], None]}, r"action_std\[0\] is \[1.0, 0.0\]; expected numbers above 0"),
        ({"action_low": [[2.0, 0.0], None]}, "action_low 2.0 exceeds action_high 1.0 in dimension 0"),
        ({"embodiment_proprio_transitions": ["hold", "jump"]}, "in embodiment_proprio_transitions is 'jump'"),
        ({"embodiment_proprio_transitions": ["pose_delta", "hold"]}, "action_dim 7; got 0 and 2"),
        ({"reward_head": True}, "reward_head=True reads one kind of actions and needs one embodiment"),
        ({"macro_action_dim": 2}, "macro_action_dim=2 needs one embodiment; got num_embodiments=2"),
        ({"actions_per_step": 7}, "action_dim=2 must be a multiple of actions_per_step=7"),
    ],
)  # fmt: skip
def test_configs_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **{**PUSHER_AND_ARM, **TINY_PREDICTOR, **fields})
