"""README and docs keep their promises: quickstart, links, commands, tables, keys of the configs."""

import ast
import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from plan import PlanConfig
from plan_arm import PlanArmConfig
from pretrain import PretrainConfig
from train_actor import ActorConfig
from train_cloning import CloningConfig
from train_decoder import DecoderTrainingConfig
from train_probe import ProbeConfig

from vjepa2_hf.training.settings import load_config
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = {"pretrain": PretrainConfig, "train_world_model": WorldModelTrainingConfig, "train_probe": ProbeConfig}
SETTINGS |= {"train_decoder": DecoderTrainingConfig, "train_cloning": CloningConfig, "train_actor": ActorConfig}
SETTINGS |= {"plan": PlanConfig, "plan_arm": PlanArmConfig}
# Examples that scripts are made of, without a command of their own
PARTS = {"study.py", *(path.name for path in (ROOT / "examples" / "app").glob("*.py"))} - {"app.py"}
CONFIGS = sorted((ROOT / "examples" / "configs").rglob("*.yaml"))
CONFIGS = [path for path in CONFIGS if path.parent.name != "accelerate" and path.name != "ablations.yaml"]


def test_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_the_quickstart_runs_without_any_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = README.split("## Quickstart")[1].split("## ")[0]
    (snippet,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile(snippet, "the quickstart", "exec"), names)
    assert names["tokens"].shape == (1, 128, 96) and names["plan"]["actions"].shape == (3, 2)


def test_every_page_of_docs_is_listed_and_every_link_leads_somewhere():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    listed = README.split("## Documentation")[1].split("## Citation")[0]
    assert pages == set(re.findall(r"\(docs/([a-z_]+\.md)\)", listed))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name, link in re.findall(r"\[([^]]*)\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
            if link.endswith(".py") and re.fullmatch(r"`[A-Z]\w+`", name):
                assert f"class {name[1:-1]}" in (page.parent / link).read_text(encoding="utf-8"), (
                    f"{page.name}: {name}"
                )


def test_tests_that_documents_name_exist():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`([tT]est_?[a-zA-Z0-9_]+)`", page.read_text(encoding="utf-8")):
            assert re.search(rf"(def|class) {name}\b", tests), f"{page.name}: {name}"


def commands(page: Path) -> list[list[str]]:
    """The commands in the fenced blocks of a page that name no language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = "".join(text for language, text in fenced if not language).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem
)
def test_commands_name_scripts_configs_and_settings_that_are_there(page):
    for command in commands(page):
        script = next((part for part in command if part.endswith(".py")), None)
        if script is None:
            continue
        assert (ROOT / script).is_file(), script
        if "--config" in command:
            arguments = command[command.index(script) + 1 :]
            overrides = [part for part in arguments if re.match(r"[\w.]+=", part)]
            load_config(SETTINGS[Path(script).stem], ROOT / arguments[arguments.index("--config") + 1], overrides)


def test_make_targets_that_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_tables_of_readme_are_those_of_the_last_measurement():
    """Figures are written by the command that measures them: results/reproduce.json and README say the same."""
    from reproduce import format_tables

    results = json.loads((ROOT / "results" / "reproduce.json").read_text(encoding="utf-8"))
    for document in (README, (ROOT / "model_cards" / "demo.md").read_text(encoding="utf-8")):
        written = document.split("<!-- reproduce:begin -->")[1].split("<!-- reproduce:end -->")[0]
        assert written.strip() == format_tables(results).strip()


@pytest.mark.parametrize(
    ("page", "name", "script"),
    [
        ("world_model", "world_model", "ablate_world_model"),
        ("world_model", "optional_parts", "measure_optional_parts"),
        ("world_model", "two_views", "two_views"),
        ("world_model", "two_embodiments", "two_embodiments"),
        ("planning_evaluation", "planning", "ablate_planning"),
        ("planning_evaluation", "four_rooms", "four_rooms"),
        ("planning_evaluation", "small_agent", "small_agent"),
        ("planning_evaluation", "push_t", "push_t"),
        ("planning_evaluation", "public_environments", "public_environments"),
        ("states", "few_actions", "few_actions"),
        ("states", "compare_inputs", "compare_inputs"),
        ("states", "learned_states", "learned_states"),
        ("fine_tuning", "fine_tuning", "measure_fine_tuning"),
        ("pretraining", "pretraining", "ablate_pretraining"),
        ("probes", "probes", "compare_probes"),
        ("dense", "dense_features", "dense_features"),
        ("scale", "scaling", "scaling"),
    ],
)
def test_tables_of_docs_are_those_of_the_last_measurement(page, name, script):
    results = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    written = text.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]
    assert written.strip() == importlib.import_module(script).format_tables(results).strip()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_loads_without_an_unknown_key(path):
    classes = dict.fromkeys(("pretrain", "cooldown", "distill"), PretrainConfig) | {"plan": PlanConfig}
    classes |= {"decoder": DecoderTrainingConfig, "cloning": CloningConfig, "actor": ActorConfig}
    classes |= {"probe": ProbeConfig}
    classes |= {"plan": PlanArmConfig} if path.parent.name == "franka" else {}
    config_class = classes.get(path.stem.split("_")[0], WorldModelTrainingConfig)
    assert load_config(config_class, path).output_dir.startswith("runs/")


def test_example_scripts_compile_and_document_their_command():
    for path in (ROOT / "examples").rglob("*.py"):
        documented = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert documented, path
        if path.name not in PARTS:
            assert str(path.relative_to(ROOT)) in documented, path


def test_nothing_that_a_run_leaves_is_tracked():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [name for name in tracked if name.startswith(("runs/", ".venv/")) or name.endswith(".pyc")]


def test_every_cell_of_the_table_of_checkpoints_has_its_test():
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("|") and not row.startswith(("|---", "| source"))]
    files = [ROOT / "tests" / "hub" / f"test_{name}.py" for name in ("transformers_format", "files_2_1", "mismatch")]
    files.append(ROOT / "tests" / "test_convert_checkpoints.py")
    tests = "".join(file.read_text(encoding="utf-8") for file in files)
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        assert all(f"def {name}(" in tests for name in named), row
