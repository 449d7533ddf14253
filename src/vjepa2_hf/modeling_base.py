"""Base class of all models: loading, saving, initialization, and the EMA target encoder."""

import difflib
import functools
import inspect
import json
import logging
import os
import pickle
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import TransformersKwargs, find_adapter_config_file
from transformers.utils.output_capturing import OutputRecorder

from .configuration_vjepa2 import TRANSFORMERS_MODEL_TYPE, config_of, refuse_missing_folder, transformers_format
from .modeling_layers import VJepa2Attention, VJepa2Layer, bfloat16_instructions
from .specs import check_flag, check_fraction, check_known, refuse


logger = logging.getLogger(__name__)

_OUTPUT_KEYWORDS = ("output_attentions", "output_hidden_states", "return_dict")
# What transformers itself may pass to any model's forward
_TRANSFORMERS_KEYWORDS = frozenset(
    {*TransformersKwargs.__annotations__, *_OUTPUT_KEYWORDS, "use_cache", "debug_io", "debug_io_dir", "prune_layers"}
)
_FITTED = ("state_mean", "state_map", "state_scale", "state_change", "state_whitening")  # of a world model's state
_DTYPES = ("float32", "bfloat16", "float16", "float64")  # of weights
_OPTIONAL_PARTS = re.compile(r"(target_encoder|(reward|stochastic|distance)_head)\.")  # the others work without them


class VJepa2PreTrainedModel(PreTrainedModel):
    """Base of all models; its attributes list what transformers may ask of them. From a config, weights are random."""

    base_model_prefix = ""
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VJepa2Layer", "VJepa2FactorizedLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True  # on a CPU without gradient
    _can_record_outputs = {"hidden_states": VJepa2Layer, "attentions": OutputRecorder(VJepa2Attention, index=1)}
    accepts_loss_kwargs = False  # Trainer: losses are means, to be divided by the number of micro-batches
    _has_transformers_counterpart = False  # whether `from_pretrained` takes a transformers `vjepa2` folder too
    _loadable_model_types = ()  # ours, whose folders this class loads from; empty: its own
    _keep_in_fp32_modules_strict = list(_FITTED)  # subtracting a rounded mean would round small differences away
    renamed_weights: dict[str, str] = {}  # pattern of an old weight name -> replacement
    card_facts = None  # additions to the model card: `vjepa2_hf.hub.model_card.CardFacts`
    _loading_infos = ()  # what transformers found in each of the files that a model is being loaded from
    _weight_conversions = ()  # of the file a model was loaded from; emptied, so that `save_pretrained` keeps our names

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, allow_missing: bool = False, **kwargs):
        """Loads one of our models or, where transformers has the same model, a transformers `vjepa2` checkpoint.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            allow_missing: load one of our models although the file lacks some of its weights, which start random, or
                has weights that the model of this config lacks, which are dropped. A transformers checkpoint, which
                may have no head, always loads; a target encoder or an optional head may always be left out.
            args, kwargs: of transformers' `from_pretrained` (`dtype`, `device_map`, …), and config fields to replace.

        Raises:
            FileNotFoundError: a local folder that does not exist.
            ValueError: a folder of another model, missing or corrupt weights, or weights that do not fit the config.
        """
        path, allow_missing = pretrained_model_name_or_path, check_flag("allow_missing", allow_missing)
        if path is None:
            return super().from_pretrained(None, *args, **kwargs)
        check_dtype(kwargs.get("dtype"))
        given = getattr(kwargs.get("config"), "model_type", None)
        if given == TRANSFORMERS_MODEL_TYPE:
            kwargs["config"] = cls.config_class.from_dict(kwargs["config"].to_dict())
        # a folder may hold only weights, with the config passed as an argument
        source = read_config_dict(path, kwargs).get("model_type") or given
        loadable = cls._loadable_model_types or [cls.config_class.model_type]
        loadable = [*loadable, *[TRANSFORMERS_MODEL_TYPE][: cls._has_transformers_counterpart]]
        if source not in loadable:
            hint = " Start one on an encoder with from_encoder." if hasattr(cls, "from_encoder") else ""
            if os.path.isdir(os.path.join(path, "final")):
                hint = f" The folder of a run holds its models in subfolders: load {os.path.join(path, 'final')}."
            expected = f"{cls.__name__} loads {' or '.join(map(repr, loadable))}.{hint}"
            raise ValueError(f"{path} holds a model of type {source!r}; {expected}")
        mapping = cls.renamed_weights
        if source == TRANSFORMERS_MODEL_TYPE:
            mapping = transformers_format().TRANSFORMERS_KEY_MAPPINGS[cls.config_class.model_type]
            transformers_format().register_conversions(cls.__name__)
        if mapping:
            kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **mapping}
        return cls._load(path, *args, allow_missing=allow_missing or source == TRANSFORMERS_MODEL_TYPE, **kwargs)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # all attention goes through `attend`, which transformers' search of the source does not find

    @classmethod
    def _load(
        cls,
        path,
        *args,
        allow_missing: bool,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs,
    ):
        """transformers' `from_pretrained`; refuses in one sentence weights that are missing, corrupt or do not fit."""
        try:
            model, info = super().from_pretrained(
                path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except (SafetensorError, json.JSONDecodeError, EOFError) as error:
            raise ValueError(
                f"the weights in {path} are unreadable ({error}): the file is corrupt or truncated; download it again."
            ) from error
        except (RuntimeError, pickle.UnpicklingError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
                raise
            raise ValueError(
                f"the weights in {path} are unreadable as tensors: the file is corrupt, truncated, or holds code, "
                "which was not run; download it again from its publisher."
            ) from error
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, expected = sorted(info["mismatched_keys"])[0]
            raise ValueError(
                f"{path}: {name} has shape {tuple(found)} in the weights, {tuple(expected)} in the config "
                f"({len(info['mismatched_keys'])} mismatches in all): config and weights are of different models"
                f"{_differences(model, info)}."
            )
        # With an adapter there is one for the base model too, which `info` leaves out
        missing = sorted(set().union(info["missing_keys"], *(one.missing_keys for one in model._loading_infos)))
        model._loading_infos = ()
        fitted = [name for name in missing if name.rpartition(".")[2] in _FITTED]
        if fitted:
            raise ValueError(
                f"{path} has no {fitted[0]}, which is fitted and never random: leave out the fields that ask for "
                "it, such as state_fitted, state_whitened or embodiment_states_fitted."
            )
        if missing and not allow_missing:
            raise ValueError(
                f"{path} lacks {len(missing)} weights of {cls.__name__}, the first of them {missing[0]}: save or "
                "download the model again, or pass allow_missing=True to start them at random values"
                f"{_differences(model, info)}."
            )
        dropped = sorted(name for name in info["unexpected_keys"] if not _OPTIONAL_PARTS.match(name))
        if dropped and not allow_missing:
            raise ValueError(
                f"{path} holds {len(dropped)} weights that a {cls.__name__} of this config lacks, the first of them "
                f"{dropped[0]}: change the config, or pass allow_missing=True to drop them{_differences(model, info)}."
            )
        model._weight_conversions = ()
        if not torch.accelerator.is_available():  # where the model could go yet
            warn_if_bfloat16_is_slow(model.device, model.dtype)
        return (model, info) if output_loading_info else model

    def _apply(self, fn, recurse: bool = True):
        """As in PyTorch (`to`, `bfloat16`, …), but half precision leaves the statistics of a state in float32."""
        fitted = [name for name, _ in self.named_buffers() if name.rpartition(".")[2] in _FITTED]
        before = {name: self.get_buffer(name) for name in fitted}
        super()._apply(fn, recurse)
        for name, value in before.items():
            if (after := self.get_buffer(name)).dtype in (torch.bfloat16, torch.float16):
                parent, _, own = name.rpartition(".")
                setattr(self.get_submodule(parent), own, value.to(after.device, torch.float32))
        return self

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        self._loading_infos = (*self._loading_infos, loading_info)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Renames old weights in training checkpoints, which do not go through `from_pretrained`."""
        for pattern, replacement in self.renamed_weights.items():
            for name in [name for name in state_dict if name.startswith(prefix)]:
                new = prefix + re.sub(pattern, replacement, name.removeprefix(prefix))
                state_dict[new] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def save_pretrained(
        self, save_directory, is_main_process: bool = True, state_dict=None, push_to_hub: bool = False, *args, **kwargs
    ):
        """Saves as transformers does, with a model card (README.md) unless a user wrote the one that is there.

        The card describes the config, the results of the run in the folder above `final/`, and `card_facts`
        ([`vjepa2_hf.hub.model_card.CardFacts`]).
        """
        cards = _model_cards()
        self._users_card = cards and cards.users_card(save_directory)
        sizes = {name: value.numel() for name, value in (state_dict or {}).items()}  # saving empties the dict
        super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, *args, **kwargs)
        configs = (Path(save_directory, name) for name in ("config.json", "adapter_config.json"))
        config = next(filter(Path.is_file, configs), None)
        if config and self.should_save_on_this_rank(is_main_process):
            for weights in Path(save_directory).glob("*model*.safetensors"):
                weights.chmod(stat.S_IMODE(config.stat().st_mode))  # safetensors 0.8 lets only the owner read them
        if cards and self.should_save_on_this_rank(is_main_process) and not push_to_hub:
            cards.write_model_card(self, save_directory, sizes=sizes)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """Replaces the card that transformers has just written by ours, unless the repository has its own."""
        if cards := _model_cards():
            if self._users_card is not None:
                (Path(working_dir) / cards.README).write_text(self._users_card, encoding="utf-8")
            cards.write_model_card(self, working_dir, load_from=repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            init.trunc_normal_(module.weight, std=std * getattr(module, "init_scale", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
            if start := getattr(module, "init_query_key_bias", 0.0):
                thirds = torch.tensor([start, start, 0.0], device=module.bias.device)
                init.copy_(module.bias, thirds.repeat_interleave(len(module.bias) // 3))
        elif isinstance(module, nn.LayerNorm):
            super()._init_weights(module)


def attention_mask(
    config: PreTrainedConfig, attends: Callable, batch_size: int, num_queries: int, num_keys: int, device
) -> Any:
    """Where `attends(clip, query, key)` of indices is true, as the attention that `config` chooses takes it: boolean,
    (L, M) or (B, 1, L, M) if it depends on the clip, or a `BlockMask` of FlexAttention."""
    if config._attn_implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask  # imports the compiler, which takes seconds

        return create_block_mask(
            lambda clip, head, query, key: attends(clip, query, key), batch_size, None, num_queries, num_keys, device
        )
    clip, query, key = (torch.arange(size, device=device) for size in (batch_size, num_queries, num_keys))
    return attends(clip.view(-1, 1, 1, 1), query.unsqueeze(1), key)


def check_dtype(dtype: Any) -> None:
    """Refuses a type that models do not load in, or a name that is none, such as "bf16". `None`, "auto" and a dict by
    parts of a model are transformers' own."""
    if dtype not in (None, "auto") and not isinstance(dtype, dict):
        check_known(str(dtype).removeprefix("torch."), _DTYPES, "dtype")


def warn_if_bfloat16_is_slow(device: torch.device, dtype: torch.dtype) -> None:
    """Warns once of bfloat16 on a CPU without instructions for it."""
    if device.type == "cpu" and dtype == torch.bfloat16 and bfloat16_instructions() == frozenset():
        _warn_of_slow_bfloat16()


@functools.cache
def _warn_of_slow_bfloat16() -> None:
    logger.warning(
        "this processor has no bfloat16 instructions, so bfloat16 is slower here than float32: use dtype=float32, in "
        "training mixed_precision=no, or another machine"
    )


@functools.cache
def _warn_of_rounded_average() -> None:
    logger.warning(
        "the target encoder has half-precision weights, in which most of its updates are rounded away: keep the model "
        "in float32 (model.float()) and compute in half precision by autocast (mixed_precision=bf16)"
    )


class TargetEncoderMixin:
    """For models with an `encoder` and an EMA copy of it, `target_encoder`."""

    @torch.no_grad()
    def update_target_encoder(self, momentum: float) -> None:
        """ξ ← τ ξ + (1 − τ) θ, in place (two-phase recipe, Algorithm 1 line 13). Half precision rounds it away."""
        try:
            momentum = check_fraction("momentum", momentum)
        except ValueError:
            refuse("momentum", momentum, "0 (copies the encoder) to 1 (keeps the target)")
        targets, sources = list(self.target_encoder.parameters()), list(self.encoder.parameters())
        if 0 < momentum < 1 and any(target.dtype in (torch.bfloat16, torch.float16) for target in targets):
            _warn_of_rounded_average()
        torch._foreach_lerp_(targets, [source.detach() for source in sources], 1.0 - momentum)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        """If a checkpoint holds one encoder (transformers' `VJEPA2Model`), the target encoder starts as its copy."""
        self._target_encoder_copied = False
        if hasattr(self, "target_encoder") and not any(_loaded(self.target_encoder)):
            offloaded, waiting = (next(part.parameters()).is_meta for part in (self.encoder, self.target_encoder))
            if offloaded and not waiting:
                raise ValueError(
                    "the checkpoint holds one encoder, and weights offloaded to disk cannot be copied to the target "
                    "encoder: convert it first (python -m vjepa2_hf.convert_checkpoints), or load without offload."
                )
            self._target_encoder_copied = all(_loaded(self.encoder))
        if self._target_encoder_copied:
            logger.info("the checkpoint holds one encoder: the target encoder starts as its copy")
            for target, source in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
                target.data.copy_(source.data)
                target._is_hf_initialized = True
        super()._initialize_missing_keys(is_quantized)

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        if self._target_encoder_copied:
            missing = {name for name in loading_info.missing_keys if not name.startswith("target_encoder.")}
            loading_info.missing_keys = missing


def _loaded(module: nn.Module) -> list[bool]:
    """Whether each parameter came from the checkpoint that is being loaded."""
    return [getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()]


def check_keywords(model: nn.Module, given: dict, *passed_on: str) -> None:
    """Refuses the keyword arguments in a forward's `**kwargs` that have a value and are neither transformers' own nor
    `passed_on` to the encoder. (PEFT passes `input_ids=None` and the like.)"""
    for name, value in given.items():
        if value is None or name in _TRANSFORMERS_KEYWORDS or name in passed_on:
            continue
        known = [*inspect.signature(type(model).forward).parameters, *passed_on, *_OUTPUT_KEYWORDS]
        known = [each for each in known if each not in ("self", "kwargs")]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known ones are {', '.join(known)}."
        raise TypeError(f"{type(model).__name__} got an unexpected keyword argument {name!r}; {hint}")


def _differences(model: nn.Module, info: dict) -> str:
    """Depth, width, levels and tensors in which a file and the config differ, in parentheses; the package has it."""
    try:
        from vjepa2_hf.hub.mismatch import describe_loading
    except ImportError:  # code exported to the Hub
        return ""
    return f" ({text})" if (text := describe_loading(model, info)) else ""


def _model_cards():
    """The module that writes model cards; `None` for code exported to the Hub where the package is not installed."""
    try:
        from vjepa2_hf.hub import model_card
    except ImportError:
        return None
    return model_card


def read_config_dict(path: str | os.PathLike, options: dict) -> dict:
    """The raw config file of a folder or Hub id, located with the `options` of `from_pretrained`; for an adapter, of
    the model it belongs to."""
    refuse_missing_folder(path)
    if os.path.isfile(path) and not os.fspath(path).endswith(".json"):
        raise ValueError(
            f"{path} is a file; from_pretrained takes a folder or a Hub id. Convert a published `.pt` with "
            f"`python -m vjepa2_hf.convert_checkpoints {path} OUT_DIR`."
        )
    hub = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
    hub = {key: options[key] for key in hub if key in options}
    try:
        config = PreTrainedConfig.get_config_dict(path, **hub)[0]
    except OSError as error:
        raise OSError(f"No model loads from {os.fspath(path)!r}: {' '.join(str(error).split())}") from error
    config = config if options.get("config") else config_of(path, config)
    if not isinstance(config, dict):
        raise ValueError(f"config.json of {path} is not a JSON object; expected the config of a model.")
    adapter = None if config else find_adapter_config_file(path, **hub)
    if adapter is not None:  # a PEFT adapter's folder: transformers loads the model that it belongs to
        return read_config_dict(json.loads(Path(adapter).read_text())["base_model_name_or_path"], options)
    return config
