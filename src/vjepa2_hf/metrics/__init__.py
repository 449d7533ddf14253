"""Metrics as `evaluate` modules, loaded without the Hub: `evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/NAME")`."""

import inspect
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import torch

from ..specs import refuse


class Metric(evaluate.Metric):
    """Base of the modules: descriptions are the docstrings of the class and of `_compute` (or `compute`).

    A module refers to it as `metrics.Metric`: `evaluate` takes the first metric class that a module imports by name.
    """

    columns: ClassVar[dict[str, Any]]

    def _info(self) -> evaluate.MetricInfo:
        kind = type(self)
        return evaluate.MetricInfo(
            description=inspect.getdoc(kind),
            citation="",
            inputs_description=inspect.getdoc(kind.compute if "compute" in vars(kind) else kind._compute),
            features=datasets.Features(self.columns),
        )


class OneProcessMetric(Metric):
    """Base of modules that keep their inputs themselves, in one process."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.num_process != 1:
            raise ValueError(f"num_process is {self.num_process}, but {type(self).__name__} runs in one process.")


NUMBER, INTEGER = datasets.Value("float64"), datasets.Value("int64")
NUMBERS, INTEGERS = datasets.List(NUMBER), datasets.List(INTEGER)


def to_array(name: str, value: Any, dtype: Any = np.float64) -> np.ndarray:
    """Numbers of any shape, tensors too, as an array."""
    try:
        value = value.detach().cpu().to(torch.float64) if isinstance(value, torch.Tensor) else value
        return np.asarray(value) if dtype is None else np.asarray(value, dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        refuse(name, value, "an array of numbers")
