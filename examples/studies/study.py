"""Studies: commands that run once, means over training seeds, and tables in docs.

A study trains and evaluates with the scripts of `examples/`, several seeds side by side on one thread each. A command
whose result exists is skipped, so a stopped study resumes. Results go to `results/NAME.json` and, as tables, between
the markers of NAME in the study's documents. `--collect` runs nothing: it publishes the runs that are finished, or,
where there are none, writes the tables of the results file again.
"""

import argparse
import json
import multiprocessing
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
# Many runs take seconds: they are forked from a process that has imported the package
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vjepa2_hf.probing.sweep", "vjepa2_hf.training.run"])

# The demo's environments: gymnasium id, policy that records, configs of the world model and of planning
ENVIRONMENTS = {
    "pushing": {
        "id": "vjepa2_hf/Pushing-v0",
        "policy": "drawn_to_block",
        "model": "demo/world_model.yaml",
        "plan": "demo/plan.yaml",
    },
    "two_rooms": {
        "id": "vjepa2_hf/TwoRooms-v0",
        "policy": "wander",
        "model": "demo/world_model_two_rooms.yaml",
        "plan": "demo/plan_two_rooms.yaml",
    },
}


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------
def execute(command: list[str], log: Path) -> None:
    """Runs a script with its arguments in a process of its own; its output goes to a log.

    Raises:
        SystemExit: the script failed; the message names the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=_become, args=(command, log))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"error: {log.stem} failed; see {log}.")


def _become(command: list[str], log: Path) -> None:
    with open(log, "w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


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
        """Runs a script that takes `--config`, in one thread.

        Args:
            name: of the run; its `output_dir` is `output`, by default the folder NAME here.
            script: in `examples/`.
            config: in `examples/configs/`, or `CONFIG#ROW` for a row of `ablations.yaml`.
            settings: keys and values of the command line; they override the row's.
            output: `output_dir`.
            result: what the run leaves in its `output_dir` at the end.

        Returns:
            The result's path.
        """
        config, _, row = config.partition("#")
        output = output or self.path / slug(name)
        common = {"output_dir": output, "num_threads": 1}
        settings = common | (ablation(config, row) if row else {}) | settings
        overrides = [f"{key}={to_text(value)}" for key, value in settings.items()]
        return self.run(name, output / result, script, "--config", str(CONFIGS / config), *overrides)


def ablation(config: str, row: str) -> dict[str, Any]:
    """The settings that a row of `configs/ablations.yaml` changes in a config."""
    return yaml.safe_load((CONFIGS / "ablations.yaml").read_text(encoding="utf-8"))[config][row]


def to_text(value: Any) -> str:
    """The value of a `key=value` argument."""
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value)


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def record_episodes(output: Path, environment: str) -> Path:
    """Records the 560 episodes of an environment that all of its seeds share."""
    settings, folder = ENVIRONMENTS[environment], output / environment
    arguments = ["--env", settings["id"], "--policy", settings["policy"], "--episodes", "560", "--num_proc", "2"]
    episodes = folder / "episodes"
    return RunFolder(folder).run("record", episodes, "record_episodes.py", *arguments, "--output", str(episodes))


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
# Tables by environment and row, whose seeds come from several collections
# ---------------------------------------------------------------------------------------------------------------------
def collect_rows(
    results: Path,
    settings: dict[str, Any],
    titles: dict[str, str],
    found: Callable[[str, str], dict[int, dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """Rows by environment: those of an earlier results file with the same settings, and those that were found.

    Args:
        results: the earlier file, which may be missing.
        settings: what the rows depend on.
        titles: of the rows by name, in the table's order.
        found: environment and row -> seed -> columns (see `join_runs`).
    """
    known = known_rows(results, settings)
    tables = {}
    for environment in ENVIRONMENTS:
        rows = []
        for name, title in titles.items():
            runs = found(environment, name)
            measured = {"name": name, "title": title, "seeds": list(runs), **join_runs(list(runs.values()))}
            row = joined(known.get((environment, name)), measured)
            rows += [row | {"title": title}] if row["seeds"] else []
        tables |= {environment: rows} if rows else {}
    return tables


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
        name: of the results file and the markers.
        description: of the command.
        run: runs what is missing.
        collect: the results of the runs, without the settings; None if no run is finished.
        format_tables: results as Markdown.
        documents: pages with markers, from the root of the repository.
        settings: options that results depend on: default and help. A folder holds runs with one set of them.
        seeds: default number of training seeds; None if the study has no such option.
        output: folder of the runs, by default `runs/NAME`.
        shares_output: the folder is another study's, and the paths of runs hold the settings.
        add_arguments: adds further options.
        check: raises ValueError or OSError for unusable options.
    """

    name: str
    description: str
    run: Callable[[argparse.Namespace], None]
    collect: Callable[[argparse.Namespace], dict[str, Any] | None]
    format_tables: Callable[[dict[str, Any]], str]
    documents: Sequence[str]
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    seeds: int | None = 3
    output: str | None = None
    shares_output: bool = False
    add_arguments: Callable[[argparse.ArgumentParser], Any] = lambda parser: None
    check: Callable[[argparse.Namespace], Any] = lambda options: None

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        output = Path(self.output or f"runs/{self.name}")
        parser.add_argument("--output", type=Path, default=output, help=f"folder of the runs (default: {output})")
        if self.seeds is not None:
            parser.add_argument(
                "--seeds", type=int, default=self.seeds, help=f"training seeds (default: {self.seeds})"
            )
        parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default: 2)")
        for name, (default, text) in self.settings.items():
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
        self.add_arguments(parser)
        results = ROOT / "results" / f"{self.name}.json"
        parser.add_argument("--results", type=Path, default=results, help="JSON file to write")
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
            os.environ.update(SINGLE_THREAD)  # processes inherit it
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
        """Writes the settings into the folder of the runs; refuses a folder whose runs have others.

        A folder without a settings file is taken to have these.

        Raises:
            ValueError: runs there have other settings.
        """
        if self.shares_output or not self.settings:
            return
        options.output.mkdir(parents=True, exist_ok=True)
        given = {name: getattr(options, name) for name in self.settings}
        if not (options.output / SETTINGS).is_file():
            write_json(options.output / SETTINGS, given)
        claim_folder(options.output / SETTINGS, given, contents="runs")

    def settings_of(self, options: argparse.Namespace) -> dict[str, Any]:
        """The settings of a folder's runs: those in its settings file, or the options."""
        path = options.output / SETTINGS
        if path.is_file() and not self.shares_output:
            return json.loads(path.read_text(encoding="utf-8"))
        return {name: getattr(options, name) for name in self.settings}
