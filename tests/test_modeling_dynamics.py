"""Properties that every dynamics keeps, with every fusion, state and length of the window."""

from dataclasses import dataclass

import pytest
import torch
from builders import same_weights, spread
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa2_hf import VJepa2WorldModel, VJepa2WorldModelConfig


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ENCODER = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "patch_size": 8,
    "crop_size": 32,
    "frames_per_clip": 4,
}
STATES = {
    "tokens": {},
    "merged": {},
    "merged to 6": {"state_type": "merged", "state_dim": 6},
    "pooled": {},
    "projected": {"state_dim": 5},
    "projected slow": {"state_type": "projected", "state_dim": 5, "state_projection": "slow"},
    "pixels": {},
    "learned": {"state_dim": 5},
}
VARIANTS = [("transformer", fusion, state) for fusion in ("concat", "add", "cross_attention") for state in STATES]
VARIANTS += [("mlp", fusion, state) for fusion in ("concat", "add") for state in ("pooled", "projected", "learned")]

variants = pytest.mark.parametrize(("dynamics", "fusion", "state"), VARIANTS, ids=lambda name: name.replace(" ", "-"))


def build(dynamics: str, fusion: str, state: str, **fields) -> VJepa2WorldModel:
    """A world model of 2 actions, or 3 categories of them, with its state fitted where that is asked for."""
    torch.manual_seed(0)
    if dynamics == "mlp" or state == "learned":  # one camera
        fields["num_views"] = 1
    config = VJepa2WorldModelConfig(
        encoder_config=ENCODER,
        dynamics_type=dynamics,
        action_fusion=fusion,
        predictor_hidden_size=12,
        predictor_num_hidden_layers=2,
        predictor_num_attention_heads=2,
        **{"action_dim": 2, "state_type": state, **STATES[state], **fields},
    )
    model = spread(VJepa2WorldModel(config).eval())
    if config.state_dim is not None:
        model.fit_state(torch.randn(3, 20, *model.encode(torch.zeros(1, 1, config.num_views, 3, 32, 32)).shape[2:]))
    return model


@dataclass
class Case:
    """A variant of everything that is not in VARIANTS, and inputs of a rollout."""

    fields: dict
    past: int
    steps: int
    candidates: int
    seed: int

    def inputs(self, model: VJepa2WorldModel) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Latents (2, T0, N, D), actions (2, J, P, A), and the other arguments of a rollout."""
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape):
            return torch.randn(2, *shape, generator=generator)

        config, others = model.config, {}
        actions, context = random(self.candidates, self.steps, config.action_dim), random(self.past, config.action_dim)
        if config.action_type == "discrete":
            actions, context = ((part == part.amax(dim=-1, keepdim=True)).float() for part in (actions, context))
        if self.past:
            others["context_actions"] = context
        if config.proprio_dim:
            others["proprio_states"] = random(self.past + 1, config.proprio_dim)
        if config.extrinsics_dim:
            others["extrinsics"] = random(self.past + 1, config.extrinsics_dim)
        if config.num_embodiments > 1:
            others["embodiment_ids"] = torch.randint(2, (2,), generator=generator)
        return random(self.past + 1, model.tokens_per_frame, model.latent_size), actions, others


@st.composite
def cases(draw, robots: bool = True) -> Case:
    """`robots`: also several embodiments."""
    fields = {
        "context_frames": draw(st.integers(1, 4)),
        "predictor_position_embedding_type": draw(st.sampled_from(["rope", "learned"])),
        "residual": draw(st.booleans()),
        "proprio_dim": draw(st.sampled_from([0, 2])),
        "extrinsics_dim": draw(st.sampled_from([0, 3])),
        "num_views": draw(st.sampled_from([1, 2])),
        "predictor_num_key_value_heads": draw(st.sampled_from([None, 1])),
    }
    if draw(st.booleans()):
        fields |= {"action_type": "discrete", "action_dim": 3}
    elif robots and draw(st.booleans()):
        states = {"embodiment_proprio_dims": draw(st.sampled_from([[2, 1], [0, 2]]))} if fields["proprio_dim"] else {}
        fields |= {"num_embodiments": 2, "embodiment_action_dims": [1, 2], "action_std": [[3.0], [0.5, 2.0]], **states}
    past, steps, candidates = draw(st.integers(0, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return Case(fields, past, steps, candidates, seed=draw(st.integers(0, 1000)))


few = settings(max_examples=4, deadline=None, derandomize=True)


@variants
@few
@given(case=cases())
@torch.no_grad()
def test_candidates_are_separate_rollouts(dynamics, fusion, state, case):
    model = build(dynamics, fusion, state, **case.fields)
    latents, actions, others = case.inputs(model)
    future = model.rollout(latents, actions, **others)
    assert future.shape == (2, case.candidates, case.steps, model.tokens_per_frame, model.latent_size)
    for j in range(case.candidates):
        torch.testing.assert_close(future[:, j], model.rollout(latents, actions[:, j], **others), **CLOSE)


@variants
@few
@given(case=cases(), chunk=st.integers(1, 3))
@torch.no_grad()
def test_the_cache_changes_nothing(dynamics, fusion, state, case, chunk):
    model = build(dynamics, fusion, state, **case.fields)
    latents, actions, others = case.inputs(model)
    plain = model.rollout(latents, actions, use_cache=False, **others)
    torch.testing.assert_close(model.rollout(latents, actions, candidate_chunk_size=chunk, **others), plain, **CLOSE)


@variants
@few
@given(case=cases())
@torch.no_grad()
def test_the_first_step_is_the_teacher_forced_prediction(dynamics, fusion, state, case):
    model = build(dynamics, fusion, state, **case.fields)
    latents, actions, others = case.inputs(model)
    future = model.rollout(latents, actions[:, 0], **others)
    context = others.pop("context_actions", actions[:, 0, :0])
    padded = {
        name: torch.cat([part, part[:, -1:]], dim=1) if part.ndim > 1 else part for name, part in others.items()
    }  # a frame that is no input
    output = model(
        latents=torch.cat([latents, latents[:, -1:]], dim=1),
        actions=torch.cat([context, actions[:, 0, :1]], dim=1),
        rollout_weight=0,
        **padded,
    )
    torch.testing.assert_close(output.predicted_latents[:, -1], future[:, 0], **CLOSE)


@variants
@few
@given(case=cases())
@torch.no_grad()
def test_frames_outside_the_window_change_nothing(dynamics, fusion, state, case):
    model = build(dynamics, fusion, state, **case.fields)
    latents, actions, others = case.inputs(model)
    window = min(model.config.context_frames, case.past + 1)
    changed = {name: part.clone() for name, part in others.items()}
    for name, part in changed.items():
        if name != "embodiment_ids":
            part[:, : part.shape[1] - window + (name == "context_actions")] = 50.0
    other_latents = latents.clone()
    other_latents[:, :-window] = 50.0
    one = model.rollout(latents, actions, **others)
    assert torch.equal(model.rollout(other_latents, actions, **changed), one)
    other_latents[:, -window] += 1.0  # the oldest frame in the window does
    assert not torch.equal(model.rollout(other_latents, actions, **changed), one)


@variants
@few
@given(case=cases())
@torch.no_grad()
def test_the_rollout_loss_is_that_of_a_rollout(dynamics, fusion, state, case):
    fields = {**case.fields, "rollout_steps": case.steps, "rollout_discount": 0.5}
    model = build(dynamics, fusion, state, **fields)
    truth, _, others = Case(case.fields, case.steps, 1, 1, case.seed).inputs(model)
    actions = others.pop("context_actions")
    output = model(latents=truth, actions=actions, **others)
    future = model.rollout(truth[:, :1], actions, **others)
    steps = [0.5**k * model.latent_loss(future[:, k], truth[:, k + 1]) for k in range(case.steps)]
    torch.testing.assert_close(output.rollout_loss, sum(steps) / case.steps)


@variants
@torch.no_grad()
def test_a_saved_model_predicts_the_same(dynamics, fusion, state, tmp_path):
    model = build(dynamics, fusion, state, context_frames=3, proprio_dim=2)
    model.save_pretrained(tmp_path)
    loaded, info = VJepa2WorldModel.from_pretrained(tmp_path, output_loading_info=True)
    assert same_weights(model, loaded) and not info["missing_keys"] and not info["unexpected_keys"]
    frames, actions, proprio = torch.randn(2, 2, 3, 32, 32), torch.randn(2, 3, 2), torch.randn(2, 2, 2)
    arguments = {"context_actions": torch.randn(2, 1, 2), "proprio_states": proprio}
    futures = [each.rollout(each.encode(frames), actions, **arguments) for each in (model, loaded)]
    assert torch.equal(*futures)


@variants
def test_every_weight_learns(dynamics, fusion, state):
    model = build(dynamics, fusion, state, proprio_dim=2, extrinsics_dim=3, rollout_steps=3).train()
    truth, _, others = Case({}, 3, 1, 1, 0).inputs(model)
    model(latents=truth, actions=others.pop("context_actions"), **others).loss.backward()
    for name, parameter in model.predictor.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("forced", [0, 1], ids=["rollout", "both"])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize(
    ("dynamics", "fusion"), [("transformer", "concat"), ("transformer", "cross_attention"), ("mlp", "concat")]
)
def test_the_rollout_loss_has_the_gradients_of_frames_computed_again(dynamics, fusion, window, forced):
    state = "tokens" if dynamics == "transformer" else "pooled"
    model = build(dynamics, fusion, state, context_frames=window, rollout_steps=4, proprio_dim=2).train()
    truth, _, others = Case({}, 4, 1, 1, 0).inputs(model)
    actions = others.pop("context_actions")
    future = model.rollout(truth[:, :1], actions, use_cache=False, **others)
    losses = (
        model(latents=truth, actions=actions, teacher_forcing_weight=forced, **others).rollout_loss,
        sum(model.latent_loss(future[:, k], truth[:, k + 1]) for k in range(4)) / 4,
    )
    torch.testing.assert_close(*losses, **CLOSE)
    trained = [parameter for parameter in model.predictor.parameters() if parameter.requires_grad]
    for found, expected in zip(*(torch.autograd.grad(loss, trained) for loss in losses), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_frames_of_a_training_rollout_are_computed_once():
    model, computed = build("transformer", "concat", "tokens", context_frames=3, rollout_steps=3).train(), []
    model.predictor.register_forward_pre_hook(lambda module, args: computed.append(args[0].latents.shape[1]))
    truth, _, others = Case({}, 3, 1, 1, 0).inputs(model)
    model(latents=truth, actions=others["context_actions"])
    assert computed == [3, 1, 1]


@pytest.mark.parametrize("dynamics", ["transformer", "mlp"])
def test_gradient_checkpointing_gives_the_same(dynamics):
    fusion = "cross_attention" if dynamics == "transformer" else "concat"
    model, gradients = build(dynamics, fusion, "pooled", rollout_steps=3).train(), []
    truth, _, others = Case({}, 3, 1, 1, 0).inputs(model)
    for options in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        if options is not None:
            model.activation_checkpointing_enable(options)
        model.zero_grad()
        model(latents=truth, actions=others["context_actions"]).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.predictor.parameters()])
    for plain, *checkpointed in zip(*gradients, strict=True):
        for each in checkpointed:
            torch.testing.assert_close(each, plain)


@torch.no_grad()
def test_cross_attention_reaches_the_conditions_of_a_tokens_own_frame_alone():
    """With self-attention silenced a frame's prediction depends on its own action and on no other's."""
    model = build("transformer", "cross_attention", "tokens", context_frames=3, residual=True)
    for layer in model.predictor.layer:
        layer.attention.proj.weight.zero_()
    truth, _, others = Case({}, 3, 1, 1, 0).inputs(model)
    actions = others["context_actions"]
    one = model(latents=truth, actions=actions, rollout_weight=0).predicted_latents
    actions = actions.clone()
    actions[:, 1] += 1.0
    other = model(latents=truth, actions=actions, rollout_weight=0).predicted_latents
    assert torch.equal(one[:, 0], other[:, 0]) and torch.equal(one[:, 2], other[:, 2])
    assert (one[:, 1] - other[:, 1]).abs().amin(dim=(0, 2)).max() > 1e-4


@torch.no_grad()
def test_cross_attention_adds_no_tokens_to_the_sequence():
    model, lengths = build("transformer", "cross_attention", "tokens", proprio_dim=2, extrinsics_dim=3), []
    model.predictor.layer[0].register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    latents, actions, others = Case({}, 0, 1, 1, 0).inputs(model)
    model.rollout(latents, actions, **others)
    assert lengths == [16]


class TestDiscreteActions:
    def test_categories_and_one_hot_vectors_are_the_same(self):
        model = build("mlp", "concat", "pooled", action_type="discrete", action_dim=3)
        latents, categories = torch.randn(2, 4, 1, 8), torch.tensor([[0, 2, 1], [1, 1, 0]])
        one_hot = torch.nn.functional.one_hot(categories, 3).float()
        with torch.no_grad():
            one, two = (model(latents=latents, actions=actions) for actions in (categories, one_hot))
            assert torch.equal(one.loss, two.loss)
            futures = [
                model.rollout(latents[:, :2], actions, context_actions=context)
                for actions, context in ((categories, categories[:, :1]), (one_hot, one_hot[:, :1]))
            ]
            assert torch.equal(*futures)
            candidates = torch.stack([categories, categories.flip(1)], dim=1)  # (B, J, P)
            scores = [
                model.score(latents[:, :1], latents[:, -1:], actions)
                for actions in (candidates, torch.nn.functional.one_hot(candidates, 3).float())
            ]
        assert torch.equal(*scores) and scores[0].shape == (2, 2)

    def test_several_actions_a_step_stand_one_after_the_other(self):
        model = build("mlp", "concat", "pooled", action_type="discrete", action_dim=6, actions_per_step=2)
        latents, categories = torch.randn(1, 2, 1, 8), torch.tensor([[[2, 0]]])
        by_hand = torch.tensor([[[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]]])
        with torch.no_grad():
            one, two = (model(latents=latents, actions=actions, rollout_weight=0) for actions in (categories, by_hand))
        assert torch.equal(one.predicted_latents, two.predicted_latents)

    @pytest.mark.parametrize(
        ("actions", "message"),
        [
            (torch.tensor([[0, 3]]), "actions hold categories 0 to 3; the model knows 0 to 2"),
            (torch.tensor([[-1, 0]]), "actions hold categories -1 to 0"),
            (torch.tensor([0, 1]), r"actions are integers of shape \(2, 1\); expected categories \(B, steps\)"),
            (torch.zeros(1, 2), r"actions have shape \(1, 2\); expected \(1, 2, 3\)"),
        ],
    )
    def test_what_is_no_category_is_refused(self, actions, message):
        model = build("mlp", "concat", "pooled", action_type="discrete", action_dim=3)
        with pytest.raises(ValueError, match=message):
            model(latents=torch.randn(1, 3, 1, 8), actions=actions)


def test_states_of_several_tokens_are_refused_where_a_frame_is_one_vector():
    with pytest.raises(ValueError, match=r"latents have shape \(1, 3, 16, 8\); expected \(B, T, 1, 8\)"):
        build("mlp", "concat", "pooled")(latents=torch.randn(1, 3, 16, 8), actions=torch.randn(1, 2, 2))


@pytest.mark.parametrize(("dynamics", "fusion"), [("mlp", "concat"), ("transformer", "cross_attention")])
def test_two_frames_of_context_learn_a_velocity_and_one_does_not(dynamics, fusion):
    """x_{t+1} = x_t + v_t, v_{t+1} = v_t + a_t, and the latents show x alone: the last of three frames follows from
    two of them and the actions."""
    generator, errors = torch.Generator().manual_seed(0), {}
    velocity, actions = torch.randn(256, 1, 2, generator=generator), torch.randn(256, 2, 2, generator=generator)
    speeds = torch.cat([velocity, velocity + actions[:, :1]], dim=1)  # over the first and the second step
    positions = torch.cat([torch.zeros(256, 1, 2), speeds.cumsum(dim=1)], dim=1)
    latents = (positions @ torch.randn(2, 8, generator=generator)).unsqueeze(2)  # (B, 3, 1, 8)
    for context_frames in (1, 2):
        model = build(
            dynamics, fusion, "pooled", context_frames=context_frames, residual=True, loss_exponent=2,
            predictor_initializer_range=None,
        ).train()  # fmt: skip
        optimizer = torch.optim.Adam(model.predictor.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            model(latents=latents, actions=actions, rollout_weight=0).loss.backward()
            optimizer.step()
        with torch.no_grad():
            predicted = model(latents=latents, actions=actions, rollout_weight=0).predicted_latents[:, 1]
        copied = (latents[:, 2] - latents[:, 1]).square().mean()
        errors[context_frames] = ((predicted - latents[:, 2]).square().mean() / copied).item()
    assert errors[2] < 0.1 and errors[1] > 2 * errors[2], errors


MACRO = {"macro_action_dim": 2, "macro_action_low": [-0.5, -1.0], "macro_action_high": [0.5, 1.0]}


class TestMacroActions:
    @pytest.mark.parametrize(("dynamics", "fusion", "state"), [VARIANTS[0], VARIANTS[7], VARIANTS[-1]])
    @few
    @given(case=cases(robots=False))
    @torch.no_grad()
    def test_the_macro_model_predicts_what_the_model_predicts(self, dynamics, fusion, state, case):
        model = build(dynamics, fusion, state, **MACRO, **case.fields, reward_head=True)
        macro = model.macro_model()
        latents, actions, others = case.inputs(model)
        inner = {name: model.encode_actions(part) if "actions" in name else part for name, part in others.items()}
        macro_actions = model.encode_actions(actions)
        assert macro_actions.shape == (*actions.shape[:-1], 2) and macro_actions.abs().max() <= 1
        future = model.rollout(latents, actions, **others)
        torch.testing.assert_close(macro.rollout(latents, macro_actions, **inner), future, **CLOSE)
        assert macro.predictor.embed.weight.data_ptr() == model.predictor.embed.weight.data_ptr()
        assert macro.config.action_high == [0.5, 1.0] and not macro.config.reward_head

    def test_a_saved_macro_model_plans_alone(self, tmp_path):
        macro = build("mlp", "concat", "pooled", **MACRO, action_mean=[5.0] * 2).macro_model()
        macro.save_pretrained(tmp_path)
        loaded = VJepa2WorldModel.from_pretrained(tmp_path)
        latents, actions = torch.randn(2, 1, 1, 8), torch.rand(2, 3, 4, 2)
        scores = [each.score(latents, latents + 1, actions) for each in (macro, loaded)]
        assert torch.equal(*scores) and loaded.config.action_low == [-0.5, -1.0]

    def test_the_encoder_of_actions_learns_and_a_reward_sees_all_actions(self):
        model = build("mlp", "concat", "pooled", **MACRO, rollout_steps=2, reward_head=True).train()
        truth, _, others = Case({}, 3, 1, 1, 0).inputs(model)
        model(latents=truth, actions=others["context_actions"], rewards=torch.randn(2, 3)).loss.backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.predictor.macro_encoder.parameters())

    def test_models_without_macro_actions_are_refused(self):
        model = build("mlp", "concat", "pooled")
        for call in (model.macro_model, lambda: model.encode_actions(torch.zeros(1, 2))):
            with pytest.raises(ValueError, match=r"has no macro-actions \(macro_action_dim is None\)"):
                call()

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"macro_action_dim": 0}, "macro_action_dim is 0; expected a number above 0"),
            ({**MACRO, "macro_action_low": [0.0]}, "macro_action_low has 1 numbers; expected 2, as macro_action_dim"),
            ({**MACRO, "macro_action_low": [0.6, 0.0]}, "macro_action_low 0.6 exceeds macro_action_high 0.5"),
            ({**MACRO, "proprio_dim": 2, "proprio_transition": "add"}, "macro_action_dim=2 needs proprio_transition"),
        ],
    )
    def test_wrong_settings_are_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            build("mlp", "concat", "pooled", **fields)

    def test_actions_of_another_size_are_refused(self):
        with pytest.raises(
            ValueError, match=r"actions is a Tensor of shape \(1, 3\) and .* expected a tensor \(..., 2\)"
        ):
            build("mlp", "concat", "pooled", **MACRO).encode_actions(torch.zeros(1, 3))
