"""Studies: commands that run once, means over training seeds, and tables in docs.

A study trains and evaluates with the scripts of `examples/`, several seeds side by side on one thread each. A command
whose result exists is skipped, so a stopped study resumes. Results go to `results/NAME.json` and, as tables, between
the markers of NAME in the study's documents. `--collect` runs nothing: it publishes the runs that are finished, or,
where there are none, writes the tables of the results file again.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from tqdm import tqdm

from vjepa2_hf.data.files import claim_folder, write_json
from vjepa2_hf.metrics.planning_success.planning_success import seed_interval
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.tables import publish_tables


ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CONFIGS = EXAMPLES / "configs"
SETTINGS = "settings.json"  # in the folder of the runs
EQUAL = 1e-9  # rounding error of differences of success
SINGLE_THREAD = {
    "OMP_NUM_THREADS": "1",
    # without these, small models spend half of the time in page faults: allocated memory is returned at once
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}
SHORT_RUN = {"num_workers": 0, "save_every": 1_000_000, "resume": "latest"}  # settings of runs that take minutes


class Environment(NamedTuple):
    """Gymnasium id and recording policy of a demo environment, and configs for it."""

    id: str
    policy: str
    world_model: str
    plan: str


ENVIRONMENTS = {
    "pushing": Environment("vjepa2_hf/Pushing-v0", "drawn_to_block", "demo/world_model.yaml", "demo/plan.yaml"),
    "two_rooms": Environment(
        "vjepa2_hf/TwoRooms-v0", "wander", "demo/world_model_two_rooms.yaml", "demo/plan_two_rooms.yaml"
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------
def execute(command: list[str], log: Path) -> None:
    """Runs a script with its arguments; its output goes to a log.

    Raises:
        SystemExit: the script failed; the message names the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as stream:
        environment = {**os.environ, **SINGLE_THREAD}
        done = subprocess.run([sys.executable, *command], stdout=stream, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise SystemExit(f"error: {log.stem} failed; see {log}.")


class RunFolder:
    """A folder of runs, with their logs and wall times (`timings.json`, seconds by name).

    Args:
        path: the folder.
    """

    _lock = threading.Lock()  # of timings.json

    def __init__(self, path: Path):
        self.path = path

    def run(self, name: str, result: Path, script: str, *arguments: str) -> Path:
        """Runs a script of `examples/` unless its result exists, and returns the result's path."""
        if not result.exists():
            started = time.perf_counter()
            execute([str(EXAMPLES / script), *arguments], self.path / "logs" / f"{slug(name)}.log")
            with self._lock:
                timings = self.timings | {name: round(time.perf_counter() - started, 1)}
                write_json(self.path / "timings.json", timings)
        return result

    @property
    def timings(self) -> dict[str, float]:
        path = self.path / "timings.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def configured(
        self,
        name: str,
        script: str,
        config: str,
        settings: dict[str, Any],
        output: Path | None = None,
        result: str = "final",
    ) -> Path:
        """Runs a script that takes `--config`, in one thread, and returns the path of its result.

        Args:
            name: of the run.
            script: in `examples/`.
            config: in `examples/configs/`, or `CONFIG#ROW` for a row of `ablations.yaml`.
            settings: keys and values of the command line; they override the row's.
            output: `output_dir`, by default the folder NAME here.
            result: what a finished run leaves in its `output_dir`.
        """
        config, _, row = config.partition("#")
        output = output or self.path / slug(name)
        settings = {"output_dir": output, "num_threads": 1} | (ablation(config, row) if row else {}) | settings
        arguments = ["--config", str(CONFIGS / config), *key_values(settings)]
        return self.run(name, output / result, script, *arguments)


def ablation(config: str, row: str) -> dict[str, Any]:
    """The settings that a row of `configs/ablations.yaml` changes in a config."""
    return yaml.safe_load((CONFIGS / "ablations.yaml").read_text(encoding="utf-8"))[config][row]


def key_values(settings: dict[str, Any]) -> list[str]:
    """Settings as `key=value` arguments."""
    return [
        f"{key}={value if isinstance(value, (str, Path)) else json.dumps(value)}" for key, value in settings.items()
    ]


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def record_episodes(output: Path, environment: str) -> Path:
    """Records the 560 episodes of an environment that all of its seeds share."""
    folder, (name, policy, *_) = output / environment, ENVIRONMENTS[environment]
    arguments = ["--env", name, "--policy", policy, "--episodes", "560", "--num_proc", "2", "--output"]
    episodes = folder / "episodes"
    return RunFolder(folder).run("record", episodes, "record_episodes.py", *arguments, str(episodes))


def run_side_by_side(runs: Sequence[Callable[[], Any]], jobs: int) -> None:
    """Calls all, in order, `jobs` at a time; the first error ends the study when the calls in progress have ended."""
    with tqdm(total=len(runs), desc="runs") as progress, ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(run) for run in runs]:
                done.result()
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------
def read_results(files: Iterable[Path]) -> list[Any]:
    """The contents of the JSON files that exist."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def read_seeds(folder: Path, name: str, seeds: int) -> list[Any]:
    """The contents of `FOLDER/seed-*/NAME` of the seeds that have one."""
    return read_results(folder / f"seed-{seed}" / name for seed in range(seeds))


def over_seeds(values: list[float], interval: Callable = seed_interval) -> dict[str, Any]:
    """Mean, 95 % interval over seeds, and values by seed; `t_interval` suits values that are not within 0 and 1."""
    low, high = interval(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "by_seed": values}


def cell(value: dict[str, Any] | None) -> str:
    """The mean, with its interval if there were several runs; empty where nothing was measured."""
    if value is None:
        return ""
    interval = f" ({value['low']:.2f}–{value['high']:.2f})" if len(value["by_seed"]) > 1 else ""
    return f"{value['mean']:.2f}{interval}"


def by_seed(values: Iterable[float], form: str = ".2f") -> str:
    return ", ".join(f"{value:{form}}" for value in values)


def capitalized(name: str) -> str:
    return name.replace("_", " ").capitalize()


# ---------------------------------------------------------------------------------------------------------------------
# Tables of planning success, by environment and row
# ---------------------------------------------------------------------------------------------------------------------
def collect_rows(
    options: argparse.Namespace,
    settings: Sequence[str],
    titles: dict[str, str],
    pairs: Sequence[tuple[str, str]],
    results_of: Callable[..., Path],
    columns: Callable[..., dict[str, Any]],
) -> dict[str, Any] | None:
    """Rows and differences of success by environment: seeds of the earlier results file with the same settings, and
    those that are finished.

    Args:
        options: of the command line.
        settings: options that rows depend on.
        titles: of the rows by name, in the table's order.
        pairs: rows whose success is compared.
        results_of: options, environment, seed, row -> the file that a finished row leaves.
        columns: the same -> columns of the row (see `join_runs`).
    """
    known = known_rows(options.results, {name: getattr(options, name) for name in settings})
    tables = {}
    for environment in ENVIRONMENTS:
        rows = []
        for name, title in titles.items():
            finished = [(environment, seed, name) for seed in seeds_of(options.output / environment)]
            finished = [run for run in finished if results_of(options, *run).exists()]
            measured = {"name": name, "title": title, "seeds": [seed for _, seed, _ in finished]}
            measured |= join_runs([columns(options, *run) for run in finished])
            row = joined(known.get((environment, name)), measured)
            rows += [row | {"title": title}] if row["seeds"] else []
        tables |= {environment: {"rows": rows, "differences": differences(rows, pairs)}} if rows else {}
    return {"environments": tables} if tables else None


def seeds_of(folder: Path) -> list[int]:
    """Numbers of the folders `seed-*`."""
    return sorted(int(path.name[5:]) for path in folder.glob("seed-*"))


def join_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns of one row over its seeds: `over_seeds` of "success" and of the values of nested columns, the first of
    "parameters", means of other columns."""
    if not runs:
        return {}
    columns: dict[str, Any] = {}
    for name, value in runs[0].items():
        values = [run[name] for run in runs]
        if isinstance(value, dict):
            columns[name] = {key: over_seeds([one[key] for one in values]) for key in value}
        elif name == "parameters":
            columns[name] = value
        else:
            columns[name] = over_seeds(values) if name == "success" else float(np.mean(values))
    return columns


def known_rows(path: Path, settings: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of an earlier table by environment and name, if it was measured with the same settings."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if any(known.get(name) != value for name, value in settings.items()):
        return {}
    return {
        (environment, row["name"]): row
        for environment, result in known["environments"].items()
        for row in result["rows"]
    }


def joined(known: dict[str, Any] | None, measured: dict[str, Any]) -> dict[str, Any]:
    """A row with the seeds of both; a seed that both have counts as measured.

    Columns without values by seed are averaged by the number of seeds.
    """
    if not known or not measured["seeds"]:
        return known or measured
    kept = [i for i, seed in enumerate(known["seeds"]) if seed not in measured["seeds"]]
    counts = len(kept), len(measured["seeds"])

    def join(old: Any, new: Any) -> Any:
        if not isinstance(new, dict):
            return (old * counts[0] + new * counts[1]) / sum(counts)
        if "by_seed" in new:
            return over_seeds([old["by_seed"][i] for i in kept] + new["by_seed"])
        return {key: join(old[key], value) for key, value in new.items()}

    same = {name: measured[name] for name in ("name", "title", "parameters") if name in measured}
    seeds = {"seeds": [known["seeds"][i] for i in kept] + measured["seeds"]}
    return (
        same | seeds | {name: join(known[name], value) for name, value in measured.items() if name not in same | seeds}
    )


def differences(rows: list[dict[str, Any]], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """`paired` of the pairs of rows that share a seed."""
    found = [{"row": one, "minus": other, **paired(rows, one, other)} for one, other in pairs]
    return [difference for difference in found if "mean" in difference]


def paired(rows: list[dict[str, Any]], one: str, other: str) -> dict[str, Any]:
    """Differences of success on the seeds that two rows share: mean, interval, values; {} without a shared seed."""
    found = {row["name"]: dict(zip(row["seeds"], row["success"]["by_seed"], strict=True)) for row in rows}
    mine, others = found.get(one, {}), found.get(other, {})
    values = [mine[seed] - others[seed] for seed in mine if seed in others]
    # half of 1 + difference is within 0 and 1, as `seed_interval` expects
    return over_seeds(values, _difference_interval) if values else {}


def _difference_interval(values: list[float]) -> tuple[float, float]:
    low, high = seed_interval([(1 + value) / 2 for value in values])
    return 2 * low - 1, 2 * high - 1


def success_cells(success: dict[str, Any]) -> list[str]:
    """Mean with interval, and values by seed."""
    return [cell(success), by_seed(success["by_seed"])]


def interval_cell(difference: dict[str, Any]) -> str:
    """The interval of `paired`; "–" where all differences are equal, which says nothing about their spread."""
    values = difference["by_seed"]
    if len(values) < 2:
        return "one seed"
    return "–" if np.ptp(values) < EQUAL else f"{difference['low']:+.2f} to {difference['high']:+.2f}"


def planned_row(results: Path, model: str) -> tuple[dict[str, Any], dict[str, float]]:
    """From a results file of plan.py: the row of a model, and the success of the other methods by name."""
    rows = {row["name"]: row for row in json.loads(results.read_text(encoding="utf-8"))["rows"]}
    own = rows.pop(model)
    return own, {name: row["success"] for name, row in rows.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Study:
    """The command line of a study.

    Attributes:
        name: of the results file, the markers, and by default the folder in `runs/`.
        description: of the command.
        run: runs what is missing.
        collect: the results of the runs, without the settings; None if no run is finished.
        format_tables: results as Markdown.
        documents: pages with markers, from the root of the repository.
        settings: options that results depend on: default and help. A folder holds runs with one set of them, unless
            it is another study's: `output`.
        options: other options: default and help.
        choices: options with a list of values: all values and the default ones.
        output: folder of another study, where the paths of runs contain the settings.
        check: raises ValueError or OSError for unusable options.
    """

    name: str
    description: str
    run: Callable[[argparse.Namespace], None]
    collect: Callable[[argparse.Namespace], dict[str, Any] | None]
    format_tables: Callable[[dict[str, Any]], str]
    documents: Sequence[str]
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    options: dict[str, tuple[Any, str]] = field(default_factory=lambda: {"seeds": (3, "training seeds")})
    choices: dict[str, tuple[Sequence[str], Sequence[str]]] = field(default_factory=dict)
    output: str | None = None
    check: Callable[[argparse.Namespace], Any] = lambda options: None

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        own = {"output": (Path(self.output or f"runs/{self.name}"), "folder of the runs")}
        own |= self.settings | self.options | {"jobs": (2, "runs side by side, one thread each")}
        own |= {"results": (ROOT / "results" / f"{self.name}.json", "JSON file to write")}
        for name, (default, text) in own.items():
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
        for name, (values, default) in self.choices.items():
            parser.add_argument(f"--{name}", nargs="+", choices=list(values), default=list(default))
        pages = [ROOT / document for document in self.documents]
        parser.add_argument("--documents", type=Path, nargs="*", default=pages, help="pages with markers")
        parser.add_argument("--collect", action="store_true", help="run nothing: publish what was measured so far")
        return parser.parse_args(arguments)

    @exit_on_user_error
    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Runs what is missing, and writes results and tables."""
        options = self.parse(arguments)
        if not options.collect:
            self.check(options)
            self.claim(options)
            self.run(options)
        results = self.collect(options)
        if results is not None:
            results = self.settings_of(options) | results
        elif options.collect and options.results.is_file():
            results = json.loads(options.results.read_text(encoding="utf-8"))
        else:
            raise SystemExit(f"error: no run is finished in {options.output}: nothing to publish.")
        publish_tables(results, self.format_tables(results), options.results, options.documents, self.name)

    def claim(self, options: argparse.Namespace) -> None:
        """Writes the settings into the folder of the runs. A folder without them is taken to have these.

        Raises:
            ValueError: runs there have other settings.
        """
        if self.settings and not self.output:
            options.output.mkdir(parents=True, exist_ok=True)
            given, path = {name: getattr(options, name) for name in self.settings}, options.output / SETTINGS
            if not path.is_file():
                write_json(path, given)
            claim_folder(path, given, contents="runs")

    def settings_of(self, options: argparse.Namespace) -> dict[str, Any]:
        """The settings of a folder's runs: those in its settings file, or the options."""
        path = options.output / SETTINGS
        if path.is_file() and not self.output:
            return json.loads(path.read_text(encoding="utf-8"))
        return {name: getattr(options, name) for name in self.settings}
