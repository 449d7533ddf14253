"""The command `vjepa2`: runs the scripts of the package by name.

    vjepa2 pretrain --config demo/pretrain output_dir=runs/mine     # examples/pretrain.py
    vjepa2 convert vjepa2-ac-vitg.pt runs/ac                        # python -m vjepa2_hf.convert_checkpoints
    vjepa2 env                                                      # versions, for bug reports
    cp "$(vjepa2 path demo/pretrain)" mine.yaml                     # a shipped config to start from
    accelerate launch "$(vjepa2 path pretrain)" --config mine.yaml  # several processes

A command is replaced by its script, which does everything else: arguments, `--help`, errors and exit status. This
module imports the standard library alone, because `import vjepa2_hf` takes seconds.

Scripts import this module before PyTorch: then their own `--help` is quick, too (see `StandIn`).
"""

import ast
import difflib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from abc import ABCMeta
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any


HERE = Path(__file__).resolve().parent
# In an installed wheel the scripts lie in the package, in a clone in examples/
SCRIPTS = HERE / "vjepa2_hf" / "scripts" if (HERE / "vjepa2_hf" / "scripts").is_dir() else HERE.parent / "examples"
CONFIGS = SCRIPTS / "configs"
CONVERT = HERE / "vjepa2_hf" / "convert_checkpoints.py"
OWN = {
    "env": "Prints versions and devices, for bug reports.",
    "path": "Prints the file of a command or of a shipped config.",
}
USAGE = """\
usage: vjepa2 COMMAND [arguments of the command]

Pretrain a video encoder, train a world model, plan. `vjepa2 COMMAND --help` lists the arguments of a command.

commands:"""
# What a bug report needs to name, beside torch
PACKAGES = [
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "pillow",
]
# What scripts import and `--help` does not need
SLOW = {
    "accelerate", "av", "datasets", "einops", "evaluate", "gradio", "gym_pusht", "gymnasium", "h5py", "matplotlib",
    "onnx", "onnxruntime", "pandas", "pyarrow", "safetensors", "scipy", "sklearn", "stable_worldmodel", "torch",
    "torchdata", "torchvision", "transformers",
}  # fmt: skip
REAL_PACKAGES = "VJEPA2_HELP_FROM_REAL_PACKAGES"
EXTRAS = ["gymnasium", "matplotlib", "gradio", "peft", "h5py", "stable-worldmodel", "onnx", "onnxruntime", "trackio"]


def commands() -> dict[str, Path]:
    """Every command that runs a script, and its file."""
    scripts = {path.stem.replace("_", "-"): path for path in SCRIPTS.glob("*.py")}
    return dict(sorted({**scripts, "app": SCRIPTS / "app" / "app.py", "convert": CONVERT}.items()))


def main() -> None:
    """Runs the command that the arguments name."""
    name, *arguments = sys.argv[1:] or ["--help"]
    known = commands()
    if name in ("-h", "--help", "help"):
        fill = partial(textwrap.fill, width=shutil.get_terminal_size().columns, subsequent_indent=" " * 24)
        lines = [fill(text, initial_indent=f"  {one:<22}") for one, text in describe(known).items()]
        print("\n".join([USAGE, *lines]))
    elif name == "env":
        print("\n".join(f"{what}: {value}" for what, value in environment()))
    elif name == "path":
        known |= {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in CONFIGS.rglob("*.yaml")}
        print(known[one_of(known, " ".join(arguments), "command or config")])
    else:
        start(known[one_of(known, name)], arguments)


def describe(known: dict[str, Path]) -> dict[str, str]:
    """The first line of each script's docstring, and of our own commands."""
    firsts = {name: (ast.get_docstring(parse(path)) or "").partition("\n")[0] for name, path in known.items()}
    return {**firsts, **OWN}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def one_of(known: dict[str, Path], name: str, kind: str = "command") -> str:
    """`name`, if it is known, also with underscores; otherwise the program ends with one sentence and exit code 2."""
    for same in (name, name.replace("_", "-")):
        if same in known:
            return same
    nearest = difflib.get_close_matches(name, [*known, *OWN], n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else "`vjepa2 --help` lists them."
    sys.stderr.write(f"error: There is no {kind} {name!r}; {advice}\n")
    sys.exit(2)


def start(script: Path, arguments: list[str]) -> None:
    """Replaces this process by the script, so that signals and exit codes are the script's own."""
    refuse_missing_packages(script)
    target = ["-m", "vjepa2_hf.convert_checkpoints"] if script == CONVERT else [str(script)]
    command = [sys.executable, *target, *arguments]
    if os.name == "nt":  # where exec returns to the shell before the script has ended
        sys.exit(subprocess.call(command))
    sys.stdout.flush()
    os.execv(command[0], command)


def refuse_missing_packages(script: Path) -> None:
    """Ends the program with one sentence if a package that the script imports is not installed."""
    names = {alias.name for node in parse(script).body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in parse(script).body if isinstance(node, ast.ImportFrom) and not node.level}
    tops = sorted({name.partition(".")[0] for name in names})
    missing = [top for top in tops if not ((script.parent / f"{top}.py").exists() or importlib.util.find_spec(top))]
    if missing:
        extra = re.search(r'"(vjepa2-hf\[[^"]*\])"', script.read_text(encoding="utf-8"))  # of its `# /// script` lines
        needed = extra.group(1) if extra else " ".join(missing)
        sys.stderr.write(f'error: {", ".join(missing)} is not installed; run: pip install "{needed}"\n')
        sys.exit(1)


def environment() -> Iterator[tuple[str, object]]:
    """Versions and devices, without names of folders."""
    package = load("vjepa2_hf")
    yield "vjepa2-hf", getattr(package, "__version__", package)
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPU cores"
    torch = load("torch")
    if isinstance(torch, ModuleType):
        yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {cpu_capability(torch)}"
        yield "CUDA of torch", torch.version.cuda or torch.version.hip or "none"
        yield "devices", "; ".join(devices(torch)) or "cpu"
    else:
        yield "torch", torch
    for name in PACKAGES:
        yield name, version(name)
    yield "av", f"{version('av')} ({ffmpeg()})"
    yield (
        "extras",
        ", ".join(f"{name} {version(name)}" for name in EXTRAS if version(name) != "not installed") or "none",
    )


def load(name: str) -> ModuleType | str:
    """A module, or why it cannot be imported, without the folder of the user."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken package is what a report is about
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"does not import ({reason.replace(str(Path.home()), '~')[:300]})"


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_capability(torch: ModuleType) -> str:
    """The instructions that torch uses on this CPU, such as AVX2."""
    return f"{torch.backends.cpu.get_cpu_capability()} on the CPU"


def devices(torch: ModuleType) -> Iterator[str]:
    """The accelerators that torch can use."""
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield f"{device.name}, {device.total_memory >> 30} GiB, compute capability {device.major}.{device.minor}"
    if torch.backends.mps.is_available():
        yield "mps"


def ffmpeg() -> str:
    """The version of FFmpeg's decoders inside the package av."""
    av = load("av")
    return f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}" if isinstance(av, ModuleType) else av


# --- `--help` of a script, without the packages that take seconds to import


class StandIn(ABCMeta):
    """The type of classes that stand for those of `SLOW` packages while a script builds its `--help`.

    A script's arguments and their defaults come from its own code, which subclasses, calls and names classes of these
    packages, but does not need what they do. `autodoc_mock_imports` of Sphinx reads documentation this way.
    """

    def __getattr__(cls, name: str) -> Any:
        # `strict` of huggingface_hub wants no further methods of a dataclass
        if name.startswith("__") or (is_dataclass(cls) and cls.__module__ != __name__):
            raise AttributeError(name)
        return stand_in(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__ != __name__:
            return super().__call__(*args, **kwargs)
        is_decorator = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if is_decorator else cls

    def register(cls, *args: Any, **kwargs: Any) -> None:
        """Does nothing, for `AutoModel.register`; ABCMeta has a method of this name."""

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __contains__(cls, key: Any) -> bool:
        return False


def stand_in(name: str) -> StandIn:
    """An empty class; `PreTrainedConfig` and its subclasses are dataclasses, as in transformers."""
    prepare = dataclass(kw_only=True) if name == "PreTrainedConfig" else lambda kind, **kwargs: kind
    return prepare(StandIn(name, (), {"__module__": __name__, "__init_subclass__": classmethod(prepare)}))


class StandInModule(ModuleType):
    """A module of which every name is a stand-in."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `SLOW` packages before Python does, and imports stand-ins for them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        is_slow = name.partition(".")[0] in SLOW
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_slow else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def start_with_real_packages(kind: type[BaseException], *error: Any) -> None:
    """Starts the program again without stand-ins: one of them did not do, as in a script that a user has changed.
    Ctrl-C ends it."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, *error)
        return
    os.environ[REAL_PACKAGES] = "1"
    os.execv(sys.executable, sys.orig_argv)


def asks_a_script_for_help() -> bool:
    """Whether this process is `python SCRIPT.py --help` or `python -m vjepa2_hf.MODULE --help`."""
    is_script = __name__ != "__main__" and (sys.argv[0].endswith(".py") or sys.argv[0] == "-m")
    is_fresh = "torch" not in sys.modules and REAL_PACKAGES not in os.environ
    options = itertools.takewhile(lambda argument: argument != "--", sys.argv[1:])  # names follow after it
    return is_script and is_fresh and not {"-h", "--help"}.isdisjoint(options)


if asks_a_script_for_help():
    sys.meta_path.insert(0, StandInFinder())
    sys.excepthook = start_with_real_packages

if __name__ == "__main__":
    main()
