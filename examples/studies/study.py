"""Studies: commands that run once, means over training seeds, and tables in docs.

A study trains and evaluates with the scripts of `examples/`, several seeds side by side on one thread each. A command
whose result exists is skipped, so a stopped study resumes. Results go to `results/NAME.json` and, as tables, between
the markers of NAME in the study's documents. `--collect` runs nothing: it publishes the runs that are finished, or,
where there are none, writes the tables of the results file again.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from vjepa2_hf.data.files import claim_folder, write_json, write_text
from vjepa2_hf.metrics.planning_success.planning_success import seed_interval
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.visualization.tables import format_table, publish_tables


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


ENVIRONMENTS = {  # commands that record episodes
    "pushing": "record_episodes.py --env vjepa2_hf/Pushing-v0 --policy drawn_to_block",
    "two_rooms": "record_episodes.py --env vjepa2_hf/TwoRooms-v0 --policy wander",
}
PUSHING_LEVELS = {  # of success; the first one is the environment's own
    "block": {"distance": 5, "columns": [2, 3]},
    "block and pusher": {"distance": 5, "columns": [[0, 1], [2, 3]]},
}
RECIPE = "recipe"  # the first row of ablations, with which the others are compared
MODEL = "world model"  # its name among the rows of plan.py in ablations
PROBE_SETTINGS = {  # of studies that pretrain and then probe
    "steps": (600, "steps of pretraining"),
    "probe_steps": (400, "steps of every probe"),
    "clips": (2000, "clips to fit probes on; half as many for scores"),
}
LINEAR_PROBES = [(readout, label) for readout in ("average", "tokens") for label in ("content", "motion")]


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------
def execute(command: list[str], log: Path) -> float:
    """Runs a script with its arguments and returns its core seconds, those of its processes included.

    Its output goes to a log, which the error names if the script fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as stream:
        environment = {**os.environ, **SINGLE_THREAD}
        done = subprocess.Popen([sys.executable, *command], stdout=stream, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(done.pid, 0)
    done.returncode = os.waitstatus_to_exitcode(status)
    if done.returncode:
        raise SystemExit(f"error: {log.stem} failed; see {log}.")
    return usage.ru_utime + usage.ru_stime


class RunFolder:
    """A folder of runs, with their logs, wall times (`timings.json`) and core times (`core_times.json`), seconds by
    name."""

    _lock = threading.Lock()  # of both files

    def __init__(self, path: Path):
        self.path = path

    def run(self, name: str, result: Path, script: str, *arguments: str) -> Path:
        """Runs a script of `examples/` unless its result exists, and returns the result's path."""
        if not result.exists():
            started = time.perf_counter()
            used = execute([str(EXAMPLES / script), *arguments], self.path / "logs" / f"{slug(name)}.log")
            with self._lock:
                timings = self.timings | {name: round(time.perf_counter() - started, 1)}
                write_json(self.path / "timings.json", timings)
                write_json(self.path / "core_times.json", self.core_times | {name: round(used, 2)})
        return result

    @property
    def timings(self) -> dict[str, float]:
        return self._seconds("timings.json")

    @property
    def core_times(self) -> dict[str, float]:
        return self._seconds("core_times.json")

    def _seconds(self, name: str) -> dict[str, float]:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def configured(
        self, name: str, script: str, config: str, settings: dict, output: Path | None = None, result: str = "final"
    ) -> Path:
        """Runs a script that takes `--config`, in one thread, and returns the path of its result.

        Args:
            config: in `examples/configs/`, or `CONFIG#ROW` for a row of `ablations.yaml`.
            settings: keys and values of the command line; they override the row's.
            output: `output_dir`, by default the folder NAME here.
            result: what a finished run leaves there.
        """
        config, _, row = config.partition("#")
        output = output or self.path / slug(name)
        settings = {"output_dir": output, "num_threads": 1} | (ablation(config, row) if row else {}) | settings
        arguments = ["--config", str(CONFIGS / config), *key_values(settings)]
        return self.run(name, output / result, script, *arguments)

    def record(self, target: Path, command: str) -> Path:
        """Runs a recording script, given with its arguments."""
        return self.run(f"record {target.name}", target, *command.split(), "--output", str(target))

    def train_distance_head(self, name: str, model: Path, data: dict[str, Any]) -> Path:
        """Adds a distance head to a world model, in a folder NAME here."""
        settings = {"model": model, "output_dir": self.path / name, "num_threads": 1} | data
        return self.run(name, self.path / name / "final", "train_distance_head.py", *key_values(settings))

    def train_probe(self, name: str, output: Path, settings: dict[str, Any]) -> None:
        settings = {"log_every": 50, **SHORT_RUN, **settings}
        self.configured(name, "train_probe.py", "demo/probe.yaml", settings, output, "results.json")

    def probe_linearly(self, row: str, encoder: Path | str, data: Path, random_seed: int | None = None) -> None:
        """Runs `linear_probes.py` on the clips of DATA/train and DATA/test; with a seed, on random weights."""
        result = self.path / f"{slug(row)}.json"
        arguments = ["--encoder", encoder, "--train", data / "train", "--test", data / "test", "--output", result]
        arguments += [] if random_seed is None else ["--weights", "random", "--seed", random_seed]
        self.run(f"probe {row}", result, "studies/linear_probes.py", *map(str, arguments))


def ablation(config: str, row: str) -> dict[str, Any]:
    """The settings that a row of `configs/ablations.yaml` changes in a config."""
    return yaml.safe_load((CONFIGS / "ablations.yaml").read_text(encoding="utf-8"))[config][row]


def demo_config(name: str, environment: str) -> str:
    return f"demo/{name}.yaml" if environment == "pushing" else f"demo/{name}_{environment}.yaml"


def key_values(settings: dict[str, Any]) -> list[str]:
    """Settings as `key=value` arguments."""
    return [
        f"{key}={value if isinstance(value, str | Path) else json.dumps(value)}" for key, value in settings.items()
    ]


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def record_episodes(folder: Path) -> None:
    """Records the 560 episodes of the environment that the folder is named after; all of its seeds share them."""
    RunFolder(folder).record(folder / "episodes", f"{ENVIRONMENTS[folder.name]} --episodes 560 --num_proc 2")


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
# Results and tables
# ---------------------------------------------------------------------------------------------------------------------
def read_results(files: Iterable[Path]) -> list[Any]:
    """The contents of the JSON files that exist."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def read_seeds(folder: Path, name: str, seeds: int) -> list[Any]:
    """The contents of `FOLDER/seed-*/NAME` of the seeds that have one."""
    return read_results(folder / f"seed-{seed}" / name for seed in range(seeds))


def copy_manifests(folder: Path, results: Path, plan: str = "plan", name: str = "") -> None:
    """Copies `FOLDER/seed-*/PLAN/manifest.json`, the tasks of each seed, to `manifests/` beside a results file; `name`
    is part of the names of the copies."""
    for path in sorted(folder.glob(f"seed-*/{plan}/manifest.json")):
        target = manifest_of(results, int(path.relative_to(folder).parts[0].removeprefix("seed-")), name)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, path.read_text(encoding="utf-8"))


def manifest_of(results: Path, seed: int, name: str = "") -> Path:
    """Where `copy_manifests` puts the tasks of a seed."""
    return results.parent / "manifests" / "-".join(filter(None, (results.stem, name, f"seed-{seed}.json")))


def over_seeds(values: list[float], interval: Callable = seed_interval) -> dict[str, Any]:
    """Mean, 95 % interval over seeds, and values by seed; `t_interval` suits values that are not within 0 and 1."""
    low, high = interval(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "by_seed": values}


def markdown(blocks: Callable[[dict[str, Any]], Iterator[str | tuple]]) -> Callable[[dict[str, Any]], str]:
    """Decorator: Markdown of a function that yields paragraphs and, as (titles, rows of values), tables."""

    @functools.wraps(blocks)
    def format_tables(results: dict[str, Any]) -> str:
        return "\n\n".join(
            block
            if isinstance(block, str)
            else "\n".join(format_table(block[0], [map(cell, row) for row in block[1]]))
            for block in blocks(results)
        )

    return format_tables


def table(title: str, rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Titles and rows of a table whose rows are {column: value} by name; `title` is that of the names."""
    return [title, *next(iter(rows.values()))], [[name, *row.values()] for name, row in rows.items()]


def cell(value: dict[str, Any] | list[float] | float | str | None) -> str:
    """A value in a table: of `over_seeds` the mean, with its interval if there were several runs; empty for None."""
    if isinstance(value, dict):
        interval = f" ({value['low']:.2f}–{value['high']:.2f})" if len(value["by_seed"]) > 1 else ""
        return f"{value['mean']:.2f}{interval}"
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    return f"{value:.2f}" if isinstance(value, int | float) else value or ""


def counted(number: int, noun: str) -> str:
    """A number of things: `1 seed`, `3 seeds`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def capitalized(name: str) -> str:
    return name.replace("_", " ").capitalize()


# ---------------------------------------------------------------------------------------------------------------------
# Ablations by planning success: rows of every environment
# ---------------------------------------------------------------------------------------------------------------------
def plan_row(
    runs: RunFolder, results: Path, environment: str, seed: int, model: Path, row: str, settings: dict[str, Any]
) -> None:
    """Plans with the world model of a row; the recipe's row also runs the methods without a world model."""
    given = {"models": {MODEL: str(model)}, "seed": seed, "videos": 0} | settings
    given |= {} if row == RECIPE else {"baselines": []}
    runs.configured("plan", "plan.py", demo_config("plan", environment), given, results.parent, results.name)


def planned_row(results: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """From a results file of plan.py: the row of the world model, and columns that all tables have of it."""
    rows = {row["name"]: row for row in json.loads(results.read_text(encoding="utf-8"))["rows"]}
    own = rows.pop(MODEL)
    columns = {name: own[name] for name in ("success", "plan_milliseconds")}
    return own, columns | {"baselines": {name: row["success"] for name, row in rows.items()}}


def collect_rows(
    options: argparse.Namespace,
    settings: Sequence[str],
    titles: dict[str, str],
    results_of: Callable[..., Path],
    columns: Callable[..., dict[str, Any]],
    pairs: Iterable[tuple[str, str]] = (),
) -> dict[str, Any] | None:
    """Rows and differences of success by environment, of finished seeds and of those in the earlier results file.

    Args:
        options: of the command line.
        settings: options that rows depend on; an earlier file counts if it has the same.
        titles: of the rows by name, in the table's order.
        results_of, columns: the file that a finished run leaves, and its columns (see `join_runs`), from options,
            environment, seed and row.
        pairs: rows whose success is compared, before the comparisons of all rows with the recipe.
    """
    known = known_rows(options.results, {name: getattr(options, name) for name in settings})
    pairs = dict.fromkeys([*pairs, *((name, RECIPE) for name in titles if name != RECIPE)])
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
    columns: dict[str, Any] = {}
    for name, value in runs[0].items() if runs else ():
        values = [run[name] for run in runs]
        if isinstance(value, dict):
            columns[name] = {key: over_seeds([one[key] for one in values]) for key in value}
        else:
            columns[name] = {"success": over_seeds, "parameters": itemgetter(0)}.get(name, np.mean)(values)
    return columns


def known_rows(path: Path, settings: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of an earlier table by environment and name, if it was measured with the same settings."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if any(known.get(name) != value for name, value in settings.items()):
        return {}
    return {(name, row["name"]): row for name, result in known["environments"].items() for row in result["rows"]}


def joined(known: dict[str, Any] | None, measured: dict[str, Any]) -> dict[str, Any]:
    """A row with the seeds of both, or as measured; columns without values by seed are averaged by number of seeds."""
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
    same["seeds"] = [known["seeds"][i] for i in kept] + measured["seeds"]
    return same | {name: join(known[name], value) for name, value in measured.items() if name not in same}


def differences(rows: list[dict[str, Any]], pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """For the pairs of rows that share seeds: differences of success on these seeds, see `over_seeds`."""
    success = {row["name"]: dict(zip(row["seeds"], row["success"]["by_seed"], strict=True)) for row in rows}
    found = []
    for one, other in pairs:
        mine, others = success.get(one, {}), success.get(other, {})
        values = [mine[seed] - others[seed] for seed in mine if seed in others]
        found += [{"row": one, "minus": other, **over_seeds(values, _difference_interval)}] if values else []
    return found


def paired(success: dict[str, dict[str, Any]], column: str, pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """`differences` in a column of rows by name, whose values (`over_seeds`) are of the seeds 0, 1, and so on."""
    found = {name: row[column] for name, row in success.items() if column in row}
    rows = [{"name": name, "seeds": range(len(one["by_seed"])), "success": one} for name, one in found.items()]
    return differences(rows, pairs)


def _difference_interval(values: list[float]) -> tuple[float, float]:
    # half of 1 + difference is within 0 and 1, as `seed_interval` expects
    low, high = seed_interval([(1 + value) / 2 for value in values])
    return 2 * low - 1, 2 * high - 1


def interval_cell(difference: dict[str, Any]) -> str:
    """The interval of a difference; "–" where all values are equal, which says nothing about their spread."""
    values = difference["by_seed"]
    if len(values) < 2:
        return "one seed"
    return "–" if np.ptp(values) < EQUAL else f"{difference['low']:+.2f} to {difference['high']:+.2f}"


def difference_cell(difference: dict[str, Any]) -> str:
    """The mean of a difference with its interval."""
    return f"{difference['mean']:+.2f} ({interval_cell(difference)})"


def baseline_rows(rows: list[dict[str, Any]], before: int, after: int) -> list[list[Any]]:
    """The methods without a world model: name, success and its values by seed, between empty columns."""
    baselines = [one for row in rows for one in row["baselines"].items()]
    return [[name, *[None] * before, value, value["by_seed"], *[None] * after] for name, value in baselines]


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Study:
    """The command line of a study.

    Attributes:
        name: of the results file, the markers, and by default the folder in `runs/`.
        collect: the results of the runs, without the settings; None if no run is finished.
        documents: pages with markers, from the root of the repository.
        settings: options that results depend on: default and help. A folder holds runs with one set of them, unless
            it is another study's: `output`.
        options: other options: default and help.
        choices: options with a list of values: all values and the default ones.
        output: folder of another study, where the paths of runs contain the settings.
        model: the option, if any, that names a model which must exist before anything is run.
        check: refuses options before anything is written.
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
    model: str | None = None
    check: Callable[[argparse.Namespace], Any] | None = None

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        style = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(description=self.description, formatter_class=style)
        own = {"output": (Path(self.output or f"runs/{self.name}"), "folder of the runs")}
        own |= self.settings | self.options | {"jobs": (2, "runs side by side, one thread each")}
        own |= {"results": (ROOT / "results" / f"{self.name}.json", "JSON file to write")}
        for name, (default, text) in own.items():
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
        for name, (values, default) in self.choices.items():
            text = "all" if tuple(default) == tuple(values) else ", ".join(map(repr, default))
            given = {"nargs": "+", "choices": list(values), "default": list(default)}
            parser.add_argument(f"--{name}", **given, help=f"which of them to measure (default: {text})")
        pages = [ROOT / document for document in self.documents]
        parser.add_argument("--documents", type=Path, nargs="*", default=pages, help="pages with markers")
        parser.add_argument("--collect", action="store_true", help="run nothing: publish what was measured so far")
        return parser.parse_args(arguments)

    @exit_on_user_error
    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Runs what is missing, and writes results and tables."""
        options = self.parse(arguments)
        if self.check:
            self.check(options)
        if not options.collect:
            if self.model:
                refuse_missing_model(getattr(options, self.model))
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
        """Writes the settings into the folder of the runs, or refuses a folder with others."""
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
