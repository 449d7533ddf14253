"""Configuration of the action-conditioned world model."""

import math
from typing import Literal

from transformers import PreTrainedConfig

from .configuration_vjepa2 import (
    VJepa2EncoderConfig,
    VJepa2NestedConfig,
    check,
    check_heads,
    check_numbers,
    preset_name,
    strict_config,
)
from .specs import check_choice, is_integer, is_number


# Fields with one number per dimension, of actions, proprio states or macro-actions; with several embodiments the first
# two kinds hold one list per embodiment
EMBODIMENT_VECTORS = ("action_mean", "action_std", "action_low", "action_high", "proprio_mean", "proprio_std")
VECTORS = (*EMBODIMENT_VECTORS, "macro_action_low", "macro_action_high")
EMBODIMENT_SIZES = {"embodiment_action_dims": "action_dim", "embodiment_proprio_dims": "proprio_dim"}
PROPRIO_TRANSITIONS = ("hold", "add", "pose_delta")
ONE_VECTOR = ("pooled", "projected", "learned")  # states of one vector per frame
LEARNED_DIM = 64  # numbers of a learned state, if `state_dim` is not given

# Predictors by name, for `from_preset(…, predictor=name)`
PREDICTORS = {
    # arXiv 2610.10515: 22 million parameters in the blocks. Actions and states are given when the model is built.
    "robot-22m": {
        "predictor_hidden_size": 512,
        "predictor_num_hidden_layers": 7,
        "predictor_num_attention_heads": 4,
        "context_frames": 8,
        "loss_exponent": 1,
        "teacher_forcing_weight": 1.0,
        "rollout_weight": 1.0,
        "rollout_steps": 2,
    },
}
# The demo's, by preset of the encoder (examples/configs/demo/world_model.yaml)
SMALL_DYNAMICS = {
    "single-frame": {
        "predictor_hidden_size": 64,
        "predictor_num_hidden_layers": 2,
        "predictor_num_attention_heads": 4,
        "predictor_position_embedding_type": "learned",
        "predictor_position_std": 0.5,
        "predictor_initializer_range": None,
        "action_encoder_num_layers": 2,
        "context_frames": 1,
        "residual": True,
        "loss_exponent": 2,
        "teacher_forcing_weight": 0.0,
        "rollout_weight": 1.0,
        "rollout_steps": 3,
    },
}


@strict_config
class VJepa2WorldModelConfig(VJepa2NestedConfig, PreTrainedConfig):
    r"""Configuration of [`VJepa2WorldModel`].

    encoder_config (`dict` or [`VJepa2EncoderConfig`]): the encoder of single frames.
    Inputs, in environment units; A and S are sizes per model step:
        action_dim (`int`, defaults to 7): A. With `actions_per_step` = k, the k environment actions of a step are
            concatenated, so A is k times the environment's action size.
        action_type (`str`, defaults to "continuous"): "discrete" actions are one-hot vectors of A / k categories, k of
            them concatenated, and have no statistics; a category whose `action_high` is 0 is never planned.
        proprio_dim, extrinsics_dim (`int`, default to 0: no such token): S; camera extrinsics (6 published).
        stored_extrinsics_dim (`int`, defaults to 0: none): size of an extrinsics encoder whose weights are kept
            although the model does not use them. Every published action-conditioned file has one (6);
            `from_pretrained(folder, extrinsics_dim=6)` turns it on.
        action_mean, action_std, proprio_mean, proprio_std (lists or `None`): the model standardizes its inputs by
            them.
        action_low, action_high (lists of A or `None`): bounds of the planner's search.
        fps (`float` or `None`), frame_skip, actions_per_step (`int`, default to 1): frame rate of the environment's
            video, its frames per model step, and environment actions per model step.
    Cameras:
        num_views (`int`, defaults to 1): V, cameras whose tokens form a frame, one view after the other.
        view_names (list of V or `None`): names of the cameras, such as ["front", "wrist"]; `None`: "view_0", "view_1".
        view_dropout (`float`, defaults to 0.0): fraction of training steps that see a random part of the views, so
            that the model also predicts from fewer cameras.
    Embodiments, robots or environments of different actions and proprio states:
        num_embodiments (`int`, defaults to 1): E. With several, each has projections of its own and a learned
            embedding, and the statistics and bounds of actions and states (`action_mean`, …) are lists of E lists.
        embodiment_names (list of E or `None`): names that may replace the index.
        embodiment_action_dims, embodiment_proprio_dims (lists of E or `None`: all the same): sizes of each;
            `action_dim` and `proprio_dim` are the largest. An embodiment of proprio size 0 has no state.
        embodiment_proprio_transitions (list of E or `None`): each one's `proprio_transition`.
        embodiment_states_fitted (`bool`): set by `fit_embodiment`; the dynamics then sees the states of each
            embodiment in units of its own.
    State:
        state_type (`str`, defaults to "tokens"): what the N tokens of width D of a frame become. "tokens": unchanged.
            "merged": 2×2 neighbors concatenated (a quarter of the tokens, four times as wide) and, with `state_dim`,
            mapped to it. "pooled": their mean (N = 1). "projected": all concatenated and mapped linearly to
            `state_dim` (N = 1). "pixels": the raw patches (the baseline without an encoder). "learned": one vector of
            `state_dim` numbers from a network of its own, [`VJepa2LearnedState`], which is trained before the dynamics
            (N = 1).
        state_dim (`int` or `None`): D of merged and projected states, for which `fit_state` fits the map, and of
            learned ones (`None`: 64).
        state_input (`str`, defaults to "pixels"): what the network of a learned state reads: the frame itself, without
            an encoder, or the encoder's "tokens".
        state_stem (`str`, defaults to "conv"): first layers of a learned state that reads pixels: "conv" (four
            convolutions of stride 2) or "patches" (a linear embedding of patches).
        standardize_frames (`bool`, defaults to `True`): a learned state that reads pixels subtracts the mean of each
            image and divides by its standard deviation, so that brightness and contrast do not count.
        state_projection (`str`, defaults to "pca"): how the map is fitted: principal components, or "slow" (projected
            states only): the directions that change least over time within an episode.
        normalize_latents (`str`, defaults to "layer"): LayerNorm without affine on the encoder's tokens, or "none".
        state_levels (`str`, defaults to "last"): what is read of an encoder with `output_levels`: its last level, or
            "all" levels side by side, each normalized alone (the width of a token is L times the encoder's).
        state_fitted (`bool`): set by `fit_state`; latents are then standardized per position (and mapped).
        state_whitened (`bool`): set by `fit_state` where it was given episodes; the model then has the matrix of
            `distance="whitened"`.
    Dynamics:
        dynamics_type (`str`, defaults to "transformer"), predictor_hidden_size, predictor_num_hidden_layers,
            predictor_num_attention_heads, predictor_mlp_ratio: 1024, 24, 16, 4 published; the two-phase recipe has
            the encoder's width and 6 to 12 layers. "mlp" is a residual MLP on the concatenated states of the window's
            frames, for pooled, projected and learned states; it has no attention heads.
        predictor_num_key_value_heads (`int` or `None`: as many as heads): heads of keys and values, each of which a
            group of query heads shares (arXiv 2305.13245).
        action_fusion (`str`, defaults to "concat"): how action, proprio state and extrinsics enter: each as a token
            ("concat"; the MLP concatenates them to the state), added to every token ("add"), or as what a frame's
            tokens attend to in every block ("cross_attention", transformer only).
        action_encoder_num_layers (`int`, defaults to 1): 1 is linear (published); more is an MLP with GELU (two-phase
            recipe).
        macro_action_dim (`int` or `None`): M, a bottleneck of the action encoder: the dynamics see the k actions of a
            model step as M numbers within -1 and 1. A planner may search over these macro-actions, see
            [`VJepa2WorldModel.macro_model`] (arXiv 2610.06805).
        macro_action_low, macro_action_high (lists of M or `None`): range of the macro-actions of the training data.
        context_frames (`int`, defaults to 8): frames that a prediction sees, in training and in rollout; 1 is the
            Markov model g(s_t, a_t).
        residual (`bool`, defaults to `False`): the dynamics predicts the change; its last layer starts at zero.
        predictor_position_embedding_type (`str`, defaults to "rope"; "learned" fixes the frame's grid),
            predictor_position_std (`float`, defaults to 0.02): initial standard deviation of learned positions.
        predictor_initializer_range (`float` or `None`, defaults to 0.02): `None` is PyTorch's own initialization.
        proprio_transition (`str`, defaults to "hold"): how a proprio state continues in a rollout: "hold", "add"
            (state plus action) or "pose_delta" (xyz, Euler angles and gripper moved by the action; published).
    Loss:
        loss_exponent (`int`, defaults to 1), teacher_forcing_weight, rollout_weight (`float`, default to 1, 1),
            rollout_steps (`int`, defaults to 2), rollout_discount (`float`, defaults to 1.0): published; the two-phase
            recipe is 2, 0, 1, 5 and λ of its multi-step loss.
        freeze_encoder (`bool`, defaults to `True`): the encoder gets no gradient. `False` trains it too, usually with
            a small learning rate; the targets then come from its EMA copy, see
            [`VJepa2WorldModel.update_target_encoder`] (two-phase recipe: momentum 0.9999).
    Optional heads (temporal recipe, "Limitations", 2 and 3):
        reward_head (`bool`, defaults to `False`): predicts the reward of a step, which a planner may maximize. It
            reads latents and does not change them.
        reward_mean, reward_std (`float` or `None`): statistics that standardize the rewards of the head.
        reward_weight (`float`, defaults to 1.0): weight of its squared error in the loss.
        stochastic_dim (`int`, defaults to 0: none): Z, size of the latent z of the Gaussian of a step's outcome, see
            [`VJepa2GaussianHead`]: the rank of its covariance beside the diagonal.
        nll_weight (`float`, defaults to 1.0): weight of its negative log-likelihood (nats per number) in the loss.
        distance_head (`bool`, defaults to `False`): estimates how many frames of video it takes from one frame to
            another, see [`VJepa2DistanceHead`]. It is trained after the dynamics and does not change them.
        distance_hidden_size, distance_embedding_size (`int`, default to 256, 64): width of its hidden layer and of a
            frame's embedding, an even number.
    Planning:
        planner (`dict` or `None`): default solver settings of [`VJepa2Planner`], written by its `save_pretrained`.
    """

    model_type = "vjepa2_hf_world_model"
    # V-JEPA 2-AC: poses of an arm and its gripper at 4 frames per second. Planning searches ±5 cm per step and the
    # gripper, with no rotation; a planned gripper value below 0.25 in size becomes 0.
    published = {
        "action_dim": 7,
        "proprio_dim": 7,
        "stored_extrinsics_dim": 6,
        "proprio_transition": "pose_delta",
        "fps": 4,
        "action_low": [-0.05, -0.05, -0.05, 0.0, 0.0, 0.0, -0.75],
        "action_high": [0.05, 0.05, 0.05, 0.0, 0.0, 0.0, 0.75],
        "planner": {
            "solver": "cem",
            "horizon": 2,
            "num_candidates": 400,
            "num_iterations": 10,
            "num_elites": 10,
            "momentum": 0.15,
            "init_std": [0.05, 0.05, 0.05, 0.0, 0.0, 0.0, 1.0],
            "sample_noise_per_step": True,
            "cost": "l1",
            "constraints": [
                {"constraint": "fixed", "dims": [3, 4, 5], "value": 0.0},
                {"constraint": "dead_zone", "dim": 6, "below": 0.25},
            ],
        },
    }
    sub_configs_defaults = {"encoder_config": VJepa2EncoderConfig}

    encoder_config: dict | PreTrainedConfig | None = None

    action_dim: int = 7
    action_type: Literal["continuous", "discrete"] = "continuous"
    proprio_dim: int = 0
    extrinsics_dim: int = 0
    stored_extrinsics_dim: int = 0
    action_mean: list | None = None
    action_std: list | None = None
    proprio_mean: list | None = None
    proprio_std: list | None = None
    action_low: list | None = None
    action_high: list | None = None
    fps: int | float | None = None
    frame_skip: int = 1
    actions_per_step: int = 1

    num_views: int = 1
    view_names: list | None = None
    view_dropout: int | float = 0.0

    num_embodiments: int = 1
    embodiment_names: list | None = None
    embodiment_action_dims: list | None = None
    embodiment_proprio_dims: list | None = None
    embodiment_proprio_transitions: list | None = None
    embodiment_states_fitted: bool = False

    state_type: Literal["tokens", "merged", "pooled", "projected", "pixels", "learned"] = "tokens"
    state_dim: int | None = None
    state_input: Literal["pixels", "tokens"] = "pixels"
    state_stem: Literal["conv", "patches"] = "conv"
    standardize_frames: bool = True
    state_projection: Literal["pca", "slow"] = "pca"
    normalize_latents: Literal["layer", "none"] = "layer"
    state_levels: Literal["last", "all"] = "last"
    state_fitted: bool = False
    state_whitened: bool = False

    dynamics_type: Literal["transformer", "mlp"] = "transformer"
    predictor_hidden_size: int = 1024
    predictor_num_hidden_layers: int = 24
    predictor_num_attention_heads: int = 16
    predictor_num_key_value_heads: int | None = None
    predictor_mlp_ratio: int | float = 4.0
    action_fusion: Literal["concat", "add", "cross_attention"] = "concat"
    action_encoder_num_layers: int = 1
    macro_action_dim: int | None = None
    macro_action_low: list | None = None
    macro_action_high: list | None = None
    context_frames: int = 8
    residual: bool = False
    predictor_position_embedding_type: Literal["rope", "learned"] = "rope"
    predictor_position_std: float = 0.02
    predictor_initializer_range: float | None = 0.02
    proprio_transition: Literal["hold", "add", "pose_delta"] = "hold"

    loss_exponent: Literal[1, 2] = 1
    teacher_forcing_weight: int | float = 1.0
    rollout_weight: int | float = 1.0
    rollout_steps: int = 2
    rollout_discount: int | float = 1.0
    freeze_encoder: bool = True

    reward_head: bool = False
    reward_mean: int | float | None = None
    reward_std: int | float | None = None
    reward_weight: int | float = 1.0
    stochastic_dim: int = 0
    nll_weight: int | float = 1.0
    distance_head: bool = False
    distance_hidden_size: int = 256
    distance_embedding_size: int = 64

    planner: dict | None = None

    @classmethod
    def from_preset(cls, name: str, encoder_config: dict | None = None, predictor: str | None = None, **fields):
        """The configuration of the published action-conditioned model around a released encoder, see
        [`VJepa2EncoderConfig.from_preset`]; around "single-frame" the demo's small dynamics, for actions of any size.

        Args:
            encoder_config: replaces fields of the encoder.
            predictor: "robot-22m" instead: width 512, 7 blocks, 4 heads and a window of 8 frames (arXiv 2610.10515),
                for actions and states of any size.
            fields: replace those of the preset.
        """
        if predictor is not None:
            check_choice("predictor", predictor, PREDICTORS)
        own = SMALL_DYNAMICS.get(preset_name(name)) if predictor is None else PREDICTORS[predictor]
        if own is None:
            return super().from_preset(name, encoder_config, **fields)
        encoder = VJepa2EncoderConfig.from_preset(name, **(encoder_config or {}))
        return cls(encoder_config=encoder, **{**own, **fields})

    def __post_init__(self, **kwargs):
        if self.state_type == "learned" and self.state_dim is None:
            self.state_dim = LEARNED_DIM
        positive = "num_views num_embodiments action_dim predictor_hidden_size predictor_num_key_value_heads "
        positive += "action_encoder_num_layers context_frames frame_skip fps "
        positive += "state_dim actions_per_step rollout_steps rollout_discount predictor_mlp_ratio reward_std "
        positive += "predictor_position_std predictor_initializer_range macro_action_dim "
        positive += "distance_hidden_size distance_embedding_size"
        not_negative = "proprio_dim extrinsics_dim stored_extrinsics_dim predictor_num_hidden_layers stochastic_dim "
        not_negative += "teacher_forcing_weight rollout_weight reward_weight nll_weight"
        check_numbers(self, positive, not_negative)
        mean = self.reward_mean
        finite = mean is None or is_number(mean) and math.isfinite(mean)
        check(finite, f"reward_mean is {mean!r}; expected a finite number, or None.")
        embedding = self.distance_embedding_size
        check(
            embedding % 2 == 0, f"distance_embedding_size is {embedding}; expected an even number: it has two halves."
        )
        if self.dynamics_type != "mlp":
            size, heads = self.predictor_hidden_size, self.predictor_num_attention_heads
            check_heads("predictor_hidden_size", size, "predictor_num_attention_heads", heads)
            groups = self.predictor_num_key_value_heads or heads
            check_heads("predictor_num_attention_heads", heads, "predictor_num_key_value_heads", groups)
        self._check_views()
        self._check_embodiments()
        self._check_inputs()
        super().__post_init__(**self._refuse_unknown(kwargs))
        self._check_state()

    def _check_views(self) -> None:
        if self.view_names is not None:
            _check_names("view_names", self.view_names, "num_views", self.num_views)
        dropout = self.view_dropout
        check(0 <= dropout < 1, f"view_dropout is {dropout!r}; expected 0 <= fraction < 1.")
        several = self.num_views > 1
        rewards = f"view_dropout={dropout} with reward_head=True: the reward head reads all views; leave one out."
        check(not (dropout and self.reward_head), rewards)
        check(several or not dropout, f"view_dropout={dropout} needs several views; got num_views={self.num_views}.")
        mlp = f"dynamics_type='mlp' reads one vector per frame; num_views={self.num_views} needs 'transformer'."
        check(not (several and self.dynamics_type == "mlp"), mlp)

    def _check_embodiments(self) -> None:
        """Sizes per embodiment, and what several of them rule out."""
        count = self.num_embodiments
        if self.embodiment_names is not None:
            _check_names("embodiment_names", self.embodiment_names, "num_embodiments", count)
        for name, largest in EMBODIMENT_SIZES.items():
            sizes, lowest = getattr(self, name), int(largest == "action_dim")
            if sizes is not None:
                fitting = len(sizes) == count and all(is_integer(size) and size >= lowest for size in sizes)
                check(fitting, f"{name} is {sizes}; expected {count} integers of at least {lowest} (num_embodiments).")
                found = f"{name} is {sizes}, but {largest} is {getattr(self, largest)}"
                check(max(sizes) == getattr(self, largest), f"{found}; expected the largest of them.")
        kinds = self.embodiment_proprio_transitions
        if kinds is not None:
            check(len(kinds) == count, f"embodiment_proprio_transitions is {kinds}; expected {count} of them.")
            for kind in kinds:
                check_choice("a transition in embodiment_proprio_transitions", kind, PROPRIO_TRANSITIONS)
        unfitted = "state_whitened=True (set by `fit_state`) needs state_fitted=True"
        check(self.state_fitted or not self.state_whitened, f"{unfitted}; got False.")
        if self.embodiment_states_fitted:
            needs = (
                "embodiment_states_fitted=True (set by `fit_embodiment`) needs several embodiments and a fitted state"
            )
            found = f"got num_embodiments={count}, state_fitted={self.state_fitted}."
            check(count > 1 and self.state_fitted, f"{needs}; {found}")
        if count > 1:
            one = f"needs one embodiment; got num_embodiments={count}."
            check(not self.reward_head, f"reward_head=True reads one kind of actions and {one}")
            check(self.macro_action_dim is None, f"macro_action_dim={self.macro_action_dim} {one}")
            check(self.action_type == "continuous", f"action_type='discrete' {one}")

    def embodiment_sizes(self, index: int) -> tuple[int, int, str]:
        """Action size, proprio size and proprio transition of an embodiment."""
        actions, states = self.embodiment_action_dims, self.embodiment_proprio_dims
        kinds = self.embodiment_proprio_transitions
        return (
            actions[index] if actions else self.action_dim,
            states[index] if states else self.proprio_dim,
            kinds[index] if kinds else self.proprio_transition,
        )

    def _check_inputs(self) -> None:
        stored = self.stored_extrinsics_dim
        if stored and self.extrinsics_dim not in (0, stored):
            raise ValueError(f"extrinsics_dim is {self.extrinsics_dim}; expected 0 or stored_extrinsics_dim={stored}.")
        for index in range(self.num_embodiments):
            self._check_sizes(*self.embodiment_sizes(index))
        for name in VECTORS:
            if getattr(self, name) is not None:
                self._check_vectors(name, getattr(self, name))
        for kind in ("action", "macro_action"):
            low, high = getattr(self, f"{kind}_low") or [], getattr(self, f"{kind}_high") or []
            several = self.num_embodiments > 1 and kind == "action"
            for lows, highs in zip(low, high) if several else [(low, high)]:
                for dimension, (low, high) in enumerate(zip(lows or [], highs or [])):
                    check(low <= high, f"{kind}_low {low} exceeds {kind}_high {high} in dimension {dimension}.")
        if self.macro_action_dim is not None and self.proprio_transition != "hold":
            needs = "needs proprio_transition='hold': macro-actions do not move a proprio state"
            raise ValueError(f"macro_action_dim={self.macro_action_dim} {needs}; got {self.proprio_transition!r}.")
        if self.action_type == "discrete":
            for name in ("action_mean", "action_std"):
                check(getattr(self, name) is None, f"{name} does not apply to action_type='discrete': leave it out.")
            hold = self.proprio_transition == "hold"
            check(hold, f"proprio_transition={self.proprio_transition!r} needs action_type='continuous': use 'hold'.")

    def _check_sizes(self, action: int, proprio: int, transition: str) -> None:
        """Sizes of the actions and proprio states of one embodiment."""
        if action % self.actions_per_step:
            raise ValueError(f"action_dim={action} must be a multiple of actions_per_step={self.actions_per_step}.")
        if transition == "add" and proprio not in (0, action):
            raise ValueError(f"proprio_transition='add' needs proprio_dim={proprio} equal to action_dim={action}.")
        if transition == "pose_delta" and not proprio == action == 7:
            sizes = f"proprio_dim and action_dim 7; got {proprio} and {action}."
            raise ValueError(f"proprio_transition='pose_delta' (xyz, Euler angles, gripper) needs {sizes}")

    def _check_vectors(self, name: str, values: list) -> None:
        """One vector, or one per embodiment."""
        dimension = f"{name.rpartition('_')[0]}_dim"
        if self.num_embodiments == 1 or name not in EMBODIMENT_VECTORS:
            return _check_vector(name, values, getattr(self, dimension), dimension)
        lists = len(values) == self.num_embodiments and all(one is None or isinstance(one, list) for one in values)
        expected = f"{self.num_embodiments} lists, one per embodiment (None: it has none)"
        check(lists, f"{name} is {values}; expected {expected}.")
        for index, one in enumerate(values):
            size = self.embodiment_sizes(index)[name.startswith("proprio")]
            if one is not None:
                _check_vector(f"{name}[{index}]", one, size, f"embodiment_{dimension}s")

    @property
    def reads_pixels(self) -> bool:
        """Whether states are computed from the pixels, without an encoder."""
        return self.state_type == "pixels" or self.state_type == "learned" and self.state_input == "pixels"

    @property
    def has_state_map(self) -> bool:
        """Whether `fit_state` fits a linear map to `state_dim`."""
        return self.state_dim is not None and self.state_type != "learned"

    def _check_state(self) -> None:
        """What state, dynamics and encoder require of each other; `encoder_config` is built by now."""
        kind, mlp = self.state_type, self.dynamics_type == "mlp"
        side = self.encoder_config.crop_size // self.encoder_config.patch_size
        if self.state_dim is not None and kind not in ("merged", "projected", "learned"):
            kinds = "'merged', 'projected' or 'learned'"
            raise ValueError(f"state_dim={self.state_dim} is for state_type {kinds}; got {kind!r}.")
        if kind == "projected" and self.state_dim is None:
            raise ValueError("state_type='projected' needs state_dim, the size of the state, for example 64.")
        if self.state_projection != "pca" and kind != "projected":
            raise ValueError(f"state_projection='slow' is for state_type='projected'; got {kind!r}.")
        if kind == "merged" and side % 2:
            advice = "choose a crop_size divisible by twice the patch_size."
            raise ValueError(f"state_type='merged' merges 2×2 tokens, but a frame has {side}×{side}: {advice}")
        if mlp and kind not in ONE_VECTOR:
            raise ValueError(f"dynamics_type='mlp' needs state_type 'pooled', 'projected' or 'learned'; got {kind!r}.")
        if mlp and self.action_fusion == "cross_attention":
            raise ValueError("dynamics_type='mlp' needs action_fusion 'concat' or 'add'; got 'cross_attention'.")
        if kind == "pixels" and not self.freeze_encoder:
            raise ValueError("freeze_encoder=False with state_type='pixels': raw patches have no encoder to train.")
        if self.state_levels == "all" and not getattr(self.encoder_config, "output_levels", None):
            raise ValueError("state_levels='all' needs an encoder with output_levels; got one without: use 'last'.")
        if self.state_levels == "all" and self.reads_pixels:
            raise ValueError(f"state_levels='all' with state_type={kind!r}: pixels have no levels; use 'last'.")
        self._check_learned_state()

    def _check_learned_state(self) -> None:
        """What a learned state rules out, and the fields that only it has."""
        if self.state_type != "learned":
            for name, usual in (("state_input", "pixels"), ("state_stem", "conv"), ("standardize_frames", True)):
                found = f"{name}={getattr(self, name)!r} is for state_type='learned'"
                check(getattr(self, name) == usual, f"{found}; got {self.state_type!r}.")
            return
        views = f"state_type='learned' reads one camera; got num_views={self.num_views}."
        check(self.num_views == 1, views)
        trained = "its encoder is trained before the dynamics, by state.train_encoder of train_world_model.py."
        check(self.freeze_encoder, f"freeze_encoder=False with state_type='learned': {trained}")
        side, patch = self.encoder_config.crop_size, self.encoder_config.patch_size
        divided = f"state_type='learned' needs crop_size={side} to be a multiple of patch_size={patch}."
        check(self.state_input == "tokens" or side % patch == 0, divided)


def _check_vector(name: str, values: list, size: int, dimension: str) -> None:
    """One finite number per dimension. A bound may be infinite: a solver then needs an `init_std`."""
    check(len(values) == size, f"{name} has {len(values)} numbers; expected {size}, as {dimension} says.")
    field = name.partition("[")[0]
    bound = field.endswith(("_low", "_high"))
    for value in values:
        number = is_number(value) and (math.isfinite(value) or bound and math.isinf(value))
        check(number, f"{name} holds {value!r}; expected finite numbers.")
    positive = not field.endswith("_std") or all(value > 0 for value in values)
    check(positive, f"{name} is {values}; expected numbers above 0.")


def _check_names(field: str, names: list, count_field: str, count: int) -> None:
    """As many different names as a count says."""
    fitting = len(names) == count and all(isinstance(name, str) and name for name in names)
    check(
        fitting and len(set(names)) == count, f"{field} is {names}; expected {count} different names ({count_field})."
    )
