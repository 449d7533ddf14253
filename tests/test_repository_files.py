"""Files for GitHub parse, and what they name exists: versions, make targets, files, extras."""

import configparser
import re
from pathlib import Path

import pytest
import versions
import yaml


ROOT = Path(__file__).resolve().parents[1]
GITHUB = sorted((ROOT / ".github").rglob("*.yml"))
WORKFLOWS = [path for path in GITHUB if path.parent.name == "workflows"]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def read(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: dict) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_the_citation_names_this_version_and_this_repository():
    citation, about = read(ROOT / "CITATION.cff"), SETUP["metadata"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == about["version"] and citation["license"] == about["license_expression"]
    assert citation["repository-code"] == about["url"]
    assert citation["preferred-citation"]["url"] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_changelog_begins_with_this_version():
    heading = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE).group(1)
    assert heading.startswith(f"[{SETUP['metadata']['version']}] - ")


def test_the_extras_of_make_test_app_hold_what_its_tests_import():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = {name for given in re.findall(r'-e "\.\[([\w,]+)\]"', makefile) for name in given.split(",")}
    needed = "\n".join(SETUP["options.extras_require"][name] for name in extras & {"app", "demo", "dev"})
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for module in ("gradio", "pytest", "selenium"):
        assert re.search(rf"^{module}>=", needed, flags=re.MULTILINE), module
        assert re.search(rf"^{module}==", pins, flags=re.MULTILINE), module


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_exists(path):
    workflow = read(path)
    assert workflow.keys() >= {"name", True, "permissions", "jobs"}  # YAML 1.1 reads the key `on` as true
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for command in commands(workflow):
        for target in re.findall(r"\bmake ([\w-]+)", command):
            assert target in targets, command
        for script in re.findall(r"\bpython ([\w/]+\.py)", command):
            assert (ROOT / script).is_file(), command
    for job in workflow["jobs"].values():
        assert all(re.fullmatch(r"[\w./-]+@[\w./-]+", step.get("uses", "a@b")) for step in job["steps"])


def test_only_the_job_that_uploads_may_ask_for_an_identity_and_no_workflow_holds_a_password():
    for path in WORKFLOWS:
        assert "secrets." not in path.read_text(encoding="utf-8"), path
        assert read(path)["permissions"] == {"contents": "read"}, path
    jobs = read(ROOT / ".github" / "workflows" / "publish.yml")["jobs"]
    assert [name for name, job in jobs.items() if job.get("permissions", {}).get("id-token")] == ["publish"]


def test_the_tests_of_versions_exist_and_the_pins_of_torch_are_found():
    assert all((ROOT / path).is_file() for path in versions.TESTS)
    assert [pin.partition("==")[0] for pin in versions.PINNED_TORCH] == ["torch", "torchvision"]
    jobs = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    assert {one["combination"] for one in jobs["versions"]["strategy"]["matrix"]["include"]} <= set(
        versions.COMBINATIONS
    )


def test_issue_forms_have_unique_fields_and_a_bug_report_asks_for_the_environment():
    forms = {path.stem: read(path) for path in GITHUB if path.parent.name == "ISSUE_TEMPLATE"}
    assert forms.pop("config")["contact_links"][0]["url"].startswith(SETUP["metadata"]["url"])
    for form in forms.values():
        assert {"name", "description", "body"} <= form.keys()
        fields = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(fields) == len(set(fields))
    environment = next(field for field in forms["bug_report"]["body"] if field.get("id") == "environment")
    assert "`vjepa2 env`" in environment["attributes"]["label"] and environment["validations"]["required"]
