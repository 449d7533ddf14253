"""A small draw of the fault suite, which `make faults` runs whole; the suite finds faults where there are some."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from builders import ROOT
from faults import contents, crashes, data, power, suite, table
from faults.disk import Disk, Fault

from vjepa2_hf.data.files import remove_folder, sync, write_text
from vjepa2_hf.data.parts import PartWriter, save_part
from vjepa2_hf.training import checkpoints


DRAW = suite.Counts(
    kills=(3, 1), random_kills=(0, 0), power_losses=1, signals=(1, 0), second_signals=(0, 0), full_disks=(1, 0),
    worker_kills=(0, 0), damages=(1, 0), writers=(0, 0),
)  # fmt: skip


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> suite.Stage:
    found = suite.Stage(tmp_path_factory.mktemp("faults") / "stage")
    found.jobs = dict.fromkeys(found.jobs, found.jobs["pretrain"])  # of one job: every other needs an undisturbed run
    return found


def test_a_draw_of_faults_loses_nothing_and_ends_as_the_undisturbed_run(stage, tmp_path):
    verdicts = suite.run_cases(suite.all_cases(stage, DRAW), tmp_path, workers=1, progress=False)
    assert len({verdict.fault for verdict in verdicts}) == 5
    assert [verdict for verdict in verdicts if verdict.problems] == []


def test_the_suite_finds_checkpoints_that_are_not_synced(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "commit_folder", lambda partial, whole: os.replace(partial, whole))
    broken = suite.make_reference(stage.jobs["pretrain"], tmp_path / "reference")
    last = len(broken.recorded[0]["operations"])
    found = crashes._lose_power(broken, last, "names", tmp_path / "case", random.Random(0))
    assert {problem.kind for problem in found} >= {"lost"}


def in_child(folder: Path, fault: Fault, function) -> dict:
    """What a Disk has seen of a function that runs in a forked process."""
    path = folder.with_name("seen.pt")

    def watched() -> None:
        disk = Disk(folder, fault)
        disk.install()
        function()
        torch.save({name: getattr(disk, name) for name in ("events", "operations", "root")}, path)

    path.unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if not pid:
        try:
            watched()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return torch.load(path, weights_only=False) if path.exists() else {}


def write_and_rename(folder: Path, sync: bool) -> None:
    if sync:
        write_text(folder / "a.txt", "whole")
    else:
        (folder / "a.tmp").write_text("whole")
        os.replace(folder / "a.tmp", folder / "a.txt")


def test_a_file_that_another_process_removes_while_the_disk_is_measured_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "here").write_bytes(b"123")
    monkeypatch.setattr(os, "walk", lambda root: [(root, [], ["here", "gone"])])
    assert Disk(tmp_path).size() == 3


@pytest.mark.parametrize("sync", [True, False])
def test_power_loss_keeps_what_was_synced_and_may_empty_the_rest(tmp_path, sync):
    folder = tmp_path / "disk"
    seen = in_child(folder, Fault(record=True), lambda: write_and_rename(folder, sync))
    found = set()
    for number in range(20):
        for mode in power.MODES:
            tree, _ = power.replay(seen["operations"], seen["root"], power.Folder())
            place = tmp_path / f"{number}-{mode}"
            tree.write_to(place, random.Random(number), mode)
            found.add((place / "a.txt").read_text() if (place / "a.txt").exists() else None)
    assert found == {"whole"} if sync else {None, "", "whole"} < found


def test_after_a_power_loss_a_removed_folder_is_whole_or_gone(tmp_path):
    folder = tmp_path / "disk"

    def remove() -> None:
        (folder / "old").mkdir()
        for name in ("a", "b"):
            write_text(folder / "old" / name, name)
        sync(folder)
        remove_folder(folder / "old")

    seen = in_child(folder, Fault(record=True), remove)
    made = 1 + next(
        n for n, (kind, *paths) in enumerate(seen["operations"]) if kind == "rename" and "old.tmp" in paths[1]
    )
    for number in range(made - 1, len(seen["operations"]) + 1):
        for mode in power.MODES:
            tree, _ = power.replay(seen["operations"][:number], seen["root"], power.Folder())
            place = tmp_path / f"{number}-{mode}"
            tree.write_to(place, random.Random(number), mode)
            names = sorted(path.name for path in (place / "old").glob("*")) if (place / "old").exists() else None
            assert names in (None, ["a", "b"])


def test_a_part_writer_leaves_nothing_of_a_killed_one(tmp_path):
    folder = tmp_path / "disk"

    def write() -> None:
        writer = PartWriter(folder, "part-{:03d}.safetensors", lambda path, items: save_part(path, items[0], "n", 1))
        writer.add({"a": torch.zeros(2)}, 8)
        writer.flush()

    events = in_child(folder, Fault(), write)["events"]
    for number in range(1, len(events) + 1):
        shutil.rmtree(folder)
        assert in_child(folder, Fault(kill_at=number), write) == {}
        PartWriter(folder, "part-{:03d}.safetensors", None)
        assert [path.name for path in folder.iterdir()] in ([], ["part-000.safetensors"])


@pytest.mark.parametrize("torn", [False, True])
def test_every_operation_of_a_native_writer_is_a_point_to_die_at(tmp_path, torn):
    folder = tmp_path / "disk"

    def save() -> None:
        torch.save({"a": torch.arange(100)}, folder / "a.pt")

    seen = in_child(folder, Fault(), save)["events"]
    assert [kind for kind, _, _ in seen] == ["open", "write", "write", "write"]
    whole = (folder / "a.pt").read_bytes()
    assert torch.load(folder / "a.pt")["a"].sum() == 4950
    sizes = []
    for number in range(1, len(seen) + 1):
        (folder / "a.pt").unlink(missing_ok=True)
        assert in_child(folder, Fault(kill_at=number, torn=torn), save) == {}
        left = (folder / "a.pt").read_bytes() if (folder / "a.pt").exists() else None
        assert left is None or whole.startswith(left)
        sizes.append(-1 if left is None else len(left))
    assert sizes == sorted(set(sizes)) and sizes[0] == -1 and sizes[-1] < len(whole)


def test_a_full_disk_takes_what_fits(tmp_path):
    folder = tmp_path / "disk"

    def fill() -> None:
        try:
            (folder / "a.bin").write_bytes(bytes(100))
        except OSError as error:
            folder.with_name("error").write_text(error.strerror)

    in_child(folder, Fault(quota=60), fill)
    assert (folder / "a.bin").stat().st_size == 60
    assert folder.with_name("error").read_text() == "No space left on device"


@pytest.mark.parametrize(("name", "format_table_of"), [("faults", table.format_table_of)])
def test_the_table_is_the_one_of_the_last_run(name, format_table_of):
    results = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    written = page.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]
    assert written.strip() == format_table_of(results).strip()


def test_files_of_the_user_are_missed(tmp_path):
    job = data.make_jobs(tmp_path)["pretrain"]
    contents.plant(tmp_path / "case", job)
    assert contents.lost_files(tmp_path / "case", job) == []
    (tmp_path / "case" / "run" / "notes.txt").write_text("other")
    assert contents.lost_files(tmp_path / "case", job) == ["the user's run/notes.txt was touched"]
