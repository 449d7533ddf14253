"""The judge ckpt-chaos (PyPI) on the training scripts: a kill at every file event, and lost work counts as a failure.

    python3 -m venv /tmp/venv-chaos && /tmp/venv-chaos/bin/pip install ckpt-chaos==0.1.8
    python tests/faults/chaos.py --judge /tmp/venv-chaos/bin/python [--script pretrain] [--ranks 2] [--plain]

The judge starts a script twice for every point. Here it starts a small client instead, for which this process, which
has imported everything, forks the script; `--plain` starts the script itself, which takes 20 times as long. Writes
results/chaos.json and the table of docs/reliability.md, if all points of the three scripts were judged.
"""

import argparse
import collections
import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
sys.path[:0] = [str(ROOT / folder) for folder in ("src", "examples", "tests")]

from faults import jobs, suite  # noqa: E402

from vjepa2_hf.visualization.tables import format_table, publish_tables  # noqa: E402


SCRIPTS = ("pretrain", "world_model", "probe")
MODES, POINTS = "before,torn,term,unsynced", 4000  # all of them
VERDICTS = ("PASS", "HARD_FAIL", "SILENT_DIVERGENCE", "LOST_WORK")


class Server:
    """Forks a script for every client, and sends back its exit code."""

    def __init__(self, path: Path):
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(path))
        self.listening.listen(64)
        self.clients: dict[int, socket.socket] = {}

    def step(self) -> None:
        """Serves those who ask, and those whose script has ended."""
        if select.select([self.listening], [], [], 0.01)[0]:
            client, _ = self.listening.accept()
            data, files, _, _ = socket.recv_fds(client, 2**20, 2)
            while more := client.recv(2**20):
                data += more
            pid = os.fork()
            if not pid:
                self.listening.close()
                code = 70
                try:
                    code = run_script(json.loads(data), files)
                finally:
                    os._exit(code)
            for file in files:
                os.close(file)
            self.clients[pid] = client
        for pid in list(self.clients):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                with self.clients.pop(pid) as client, contextlib.suppress(OSError):
                    code = os.waitstatus_to_exitcode(status)
                    client.sendall(str(code if code >= 0 else 128 - code).encode())


def run_script(request: dict[str, Any], files: list[int]) -> int:
    """The script of a request in this forked process, armed as the judge arms a program of its own."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.chdir(request["folder"])
    jobs.renew(*files)
    if "CKPT_CHAOS_WATCH" in os.environ:
        sys.path += os.environ["PYTHONPATH"].split(os.pathsep)
        from ckpt_chaos.targets.common import arm_from_env

        arm_from_env(int(os.environ.get("RANK", 0)), lazy=True)
    script, *arguments = request["arguments"]
    code = jobs.call_main(script, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def judge(job: jobs.Job, server: Server, options: argparse.Namespace, folder: Path) -> dict[str, int]:
    """Verdicts of all points of a script, by verdict."""
    arguments = [value for value in job.arguments if not value.startswith(("output_dir=", "keep_last="))]
    program = [sys.executable, str(ROOT / "examples" / f"{job.script}.py")]
    if not options.plain:
        program = [
            sys.executable,
            "-S",
            str(Path(__file__).with_name("chaos_client.py")),
            str(folder / "socket"),
            job.script,
        ]
    work = folder / job.name
    command = [
        options.judge, "-m", "ckpt_chaos", "run", "--checkpoint-glob", "{out}/checkpoint-*", "--step-regex",
        rf"{job.name}: [^\n]*?(\d+)/{job.steps} \[", "--result-file", "{out}/final/model.safetensors",
        "--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL", "--max-points", str(options.points),
        "--modes", options.modes, "--ranks", str(options.ranks), "--jobs", str(options.jobs), "--work", str(work),
        "--", *program, "output_dir={out}", "keep_last=null", f"cache_dir={folder}/cache", *arguments,
    ]  # fmt: skip
    if job.name == "pretrain":
        command.remove(f"cache_dir={folder}/cache")
    with open(folder / f"{job.name}.log", "w+") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
        judging = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        while judging.poll() is None:
            server.step()
        log.seek(0)
        print(log.read()[-6000:], flush=True)  # noqa: T201
    found = collections.Counter(json.loads(line)["verdict"] for line in verdicts_of(work, options.judge))
    if judging.returncode and not set(found) - {"PASS"}:
        raise RuntimeError(f"The judge failed on {job.script} (exit code {judging.returncode}).")
    return {verdict: found[verdict] for verdict in VERDICTS}


def verdicts_of(work: Path, judge: str) -> list[str]:
    """A JSON line for every point, by the judge's own rules."""
    code = (
        "import json, sys; from pathlib import Path; from ckpt_chaos.runner import rejudge\n"
        "for row in rejudge(Path(sys.argv[1])): print('@' + json.dumps({'verdict': row.verdict, 'label': row.label}))"
    )
    found = subprocess.run([judge, "-c", code, str(work)], capture_output=True, text=True, check=True).stdout
    return [line[1:] for line in found.splitlines() if line.startswith("@")]


def format_table_of(results: dict[str, Any]) -> str:
    """The table of `results/chaos.json`."""
    rows = [
        [f"`{name}`", *(str(found[verdict]) for verdict in VERDICTS)] for name, found in results["scripts"].items()
    ]
    return "\n".join(format_table(("script", *VERDICTS), rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True, help="Python of an environment that holds ckpt-chaos")
    parser.add_argument("--script", choices=SCRIPTS, help="one script (default: all three)")
    parser.add_argument("--modes", default=MODES, help=f"of the judge (default: {MODES})")
    parser.add_argument("--points", type=int, default=POINTS, help="most points of a script (default: all)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="points judged at once (default: 2)")
    parser.add_argument("--plain", action="store_true", help="start the script itself for every point")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        stage = suite.Stage(folder / "stage")
        server = Server(folder / "socket")
        chosen = [options.script] if options.script else SCRIPTS
        found = {stage.jobs[name].script: judge(stage.jobs[name], server, options, folder) for name in chosen}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = {"judge": "ckpt-chaos", "modes": options.modes, "ranks": options.ranks, "scripts": found}
    if options.script is None and options.points == POINTS and options.modes == MODES and options.ranks == 1:
        page = ROOT / "docs" / "reliability.md"
        publish_tables(results, format_table_of(results), ROOT / "results" / "chaos.json", [page], "chaos")
    else:
        print(format_table_of(results))  # noqa: T201
    return int(any(verdicts[name] for verdicts in found.values() for name in VERDICTS[1:]))


if __name__ == "__main__":
    sys.exit(main())
