"""The command `vjepa2` runs the scripts by name, quickly, and passes on what they return."""

import ast
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import vjepa2_cli
from pathlib import Path

import pytest
import torch
from builders import EXAMPLES

import vjepa2_hf


CLI = Path(vjepa2_cli.__file__)


def call(capsys, monkeypatch, *arguments: str) -> tuple[str, str, int]:
    """What a command prints to stdout and stderr, and its exit code; without starting a script."""
    monkeypatch.setattr(sys, "argv", ["vjepa2", *arguments])
    code = 0
    try:
        vjepa2_cli.main()
    except SystemExit as ended:
        code = ended.code
    return (*capsys.readouterr(), code)


def run_script(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess:
    """`vjepa2 mine` in a process of its own, where `mine.py` is the only script."""
    (folder / "mine.py").write_text(textwrap.dedent(text))
    code = f"import vjepa2_cli, pathlib; vjepa2_cli.SCRIPTS = pathlib.Path({str(folder)!r}); vjepa2_cli.main()"
    command = [sys.executable, "-c", code, "mine", *arguments]
    (folder / "app").mkdir(exist_ok=True)
    (folder / "app" / "app.py").write_text("")
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(CLI.parent)})


def test_every_user_script_has_a_command():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8").split("## Studies")[0]
    scripts = {name.replace("_", "-") for name in re.findall(r"^\| `(\w+)\.py`", text, flags=re.MULTILINE)}
    known = vjepa2_cli.commands()
    assert set(known) == scripts | {"app", "convert"} and all(path.is_file() for path in known.values())


def test_the_page_lists_every_command():
    page = (EXAMPLES.parent / "docs" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE)) == {*vjepa2_cli.commands(), *vjepa2_cli.OWN}


def test_the_command_starts_without_any_package():
    names = set()
    for node in ast.walk(ast.parse(CLI.read_text(encoding="utf-8"))):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_help_lists_every_command_in_little_time():
    before = os.times()
    text = subprocess.run([sys.executable, CLI, "--help"], capture_output=True, text=True, check=True).stdout
    after = os.times()
    for name, first in vjepa2_cli.describe(vjepa2_cli.commands()).items():
        assert re.search(rf"^  {name} +{re.escape(first.split()[0])}", text, flags=re.MULTILINE) and first.endswith(
            "."
        )
    assert sum(after[2:4]) - sum(before[2:4]) < 1.5


QUICK = """if True:
    import contextlib, io, json, runpy, sys
    sys.argv = ["script.py", "--help"]
    import vjepa2_cli
    sys.excepthook = sys.__excepthook__  # a script that needs a real package fails
    texts = {}
    for script in SCRIPTS:
        sys.argv, sys.path[0], text = [script, "--help"], script.rpartition("/")[0], io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            runpy.run_path(script, run_name="__main__")
        texts[script] = text.getvalue()
    for name in ("convert_checkpoints", "training.capacity"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            runpy.run_module(f"vjepa2_hf.{name}", run_name="__main__")
    real = {name for name in vjepa2_cli.SLOW if getattr(sys.modules.get(name), "__file__", None)}
    print(json.dumps([texts, sorted(real)]))
"""


def test_help_of_scripts_imports_no_slow_package_and_is_the_same_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    scripts = [str(path) for path in scripts_with_quick_help()]
    environment = {**os.environ, "PYTHONPATH": str(CLI.parent)}
    command = [sys.executable, "-c", QUICK.replace("SCRIPTS", repr(scripts))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    texts, real = json.loads(done.stdout)
    assert not real
    for script in scripts:
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        monkeypatch.syspath_prepend(str(Path(script).parent))
        try:
            runpy.run_path(script, run_name="__main__")
        except ModuleNotFoundError as error:  # an extra that is not installed here
            assert error.name in vjepa2_cli.SLOW
        except SystemExit:
            assert capsys.readouterr().out == texts[script] != "", script


def scripts_with_quick_help() -> list[Path]:
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.rglob("*.py"))}
    return [path for path, text in texts.items() if "\nimport vjepa2_cli" in text]


def test_every_script_with_slow_imports_has_a_quick_help():
    """A script starts with `import vjepa2_cli`, before what takes seconds to import."""
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("studies/*.py"), EXAMPLES / "app" / "app.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        is_program = any(isinstance(node, ast.If) and "'__main__'" in ast.dump(node.test) for node in tree.body)
        names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
        modules = {node.module.partition(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
        is_slow = bool({"vjepa2_hf", "study", *vjepa2_cli.SLOW} & {*modules, *(name.split(".")[0] for name in names)})
        assert not (is_program and is_slow) or "vjepa2_cli" in names, f"add `import vjepa2_cli` to {path.name}"


@pytest.mark.skipif(os.name == "nt", reason="exec returns to the shell")
def test_a_script_whose_help_needs_a_real_package_starts_again_with_it(tmp_path):
    (tmp_path / "mine.py").write_text("import vjepa2_cli\nimport packaging, h5py\nprint(sum([h5py.__name__ + 1]))")
    (tmp_path / "h5py.py").write_text("print('the real one')")
    command = [sys.executable, tmp_path / "mine.py", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(CLI.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "the real one\n" and "TypeError" in done.stderr and done.returncode == 1


def run_beside(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python mine.py` next to a package h5py, which says that it is imported."""
    (folder / "mine.py").write_text(text)
    (folder / "h5py.py").write_text("print('the real one')")
    environment = {**os.environ, "PYTHONPATH": str(CLI.parent)}
    command = [sys.executable, folder / "mine.py", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_name_that_looks_like_help_gets_no_stand_ins(tmp_path):
    text = "import vjepa2_cli\nimport h5py"
    assert run_beside(tmp_path, text, "--", "--help").stdout == "the real one\n"
    assert run_beside(tmp_path, text, "--help", "--").stdout == ""


@pytest.mark.skipif(os.name == "nt", reason="exec returns to the shell")
def test_an_interrupted_help_does_not_start_again(tmp_path):
    done = run_beside(tmp_path, "import vjepa2_cli\nprint('once')\nraise KeyboardInterrupt", "--help")
    assert done.stdout == "once\n" and "KeyboardInterrupt" in done.stderr and done.returncode != 0


def test_arguments_output_and_exit_code_are_those_of_the_script(tmp_path):
    done = run_script(tmp_path, "import sys; print(sys.argv[1:]); sys.exit('it failed')", "--config", "a b", "key={}")
    assert done.stdout == "['--config', 'a b', 'key={}']\n" and done.stderr == "it failed\n" and done.returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_signal_reaches_the_script_itself(tmp_path):
    done = run_script(tmp_path, f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert done.returncode == -signal.SIGKILL  # no process of ours between the caller and the script


def test_a_script_whose_packages_are_missing_is_one_sentence(tmp_path):
    script = """
        # dependencies = ["vjepa2-hf[app]"]
        import json, not_installed_anywhere
        from neither.this import one
    """
    done = run_script(tmp_path, script)
    install = 'pip install "vjepa2-hf[app]"'
    assert done.stderr == f"error: neither, not_installed_anywhere is not installed; run: {install}\n"
    assert done.returncode == 1 and not done.stdout


def test_convert_is_the_module(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append((program, command)))
    monkeypatch.setattr(sys, "argv", ["vjepa2", "convert", "SOURCE", "OUT_DIR"])
    vjepa2_cli.main()
    convert = [sys.executable, "-m", "vjepa2_hf.convert_checkpoints", "SOURCE", "OUT_DIR"]
    assert started == [(sys.executable, convert)]


def test_path_is_the_file_of_a_command_for_accelerate_launch_or_of_a_config(capsys, monkeypatch):
    config = EXAMPLES / "configs" / "demo" / "world_model.yaml"
    assert call(capsys, monkeypatch, "path", "demo/world_model")[0] == f"{config}\n"
    assert call(capsys, monkeypatch, "path", "train-world-model")[0] == f"{EXAMPLES / 'train_world_model.py'}\n"
    assert call(capsys, monkeypatch, "path", "pretrian")[1:] == (
        "error: There is no command or config 'pretrian'; did you mean 'pretrain'?\n",
        2,
    )


def test_an_unknown_command_names_the_nearest(capsys, monkeypatch):
    _, error, code = call(capsys, monkeypatch, "train_wrold_model")
    assert error == "error: There is no command 'train_wrold_model'; did you mean 'train-world-model'?\n" and code == 2
    assert "`vjepa2 --help` lists them" in call(capsys, monkeypatch, "--verbose")[1]


def test_env_fits_a_screen_and_names_versions(capsys, monkeypatch):
    text, _, code = call(capsys, monkeypatch, "env")
    assert f"vjepa2-hf: {vjepa2_hf.__version__}" in text and torch.__version__ in text and "libavcodec" in text
    assert code == 0 and len(text.splitlines()) < 24 and str(Path.home()) not in text


def test_env_names_a_broken_package_without_the_folder_of_the_user(capsys, monkeypatch):
    def fail(name):
        raise OSError(f"{Path.home() / 'mine' / 'lib.so'}: undefined symbol")

    monkeypatch.setattr(vjepa2_cli.importlib, "import_module", fail)
    text = call(capsys, monkeypatch, "env")[0]
    assert "torch: does not import (OSError: ~/mine/lib.so: undefined symbol)" in text.replace(os.sep, "/")
