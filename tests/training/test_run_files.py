"""What lies in a run's folder: metrics read from the end, and files of a user."""

import json
import tracemalloc

import pytest
from builders import FIXTURES, TinyRunConfig, tiny_run, train_tiny_run

from vjepa2_hf.training import run_files
from vjepa2_hf.training.run_files import iterate_metrics, read_metrics, truncate_metrics
from vjepa2_hf.training.settings import dump_yaml, read_yaml


def lines_of(steps) -> str:
    return "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps)


@pytest.mark.parametrize("block", [1, 7, 64, 2**16])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        (lines_of([1, 2, 3]), lines_of([1, 2])),
        (lines_of([1, 2]), lines_of([1, 2])),
        (lines_of([5, 6]), ""),
        (lines_of([1, 2]) + '{"step": 3, "lo', lines_of([1, 2])),
        (lines_of([1]) + '{"step": 2}', lines_of([1])),  # whole but for its end: the run logs it again
        (lines_of([1, 2]) + "\0" * 200, lines_of([1, 2])),  # after a power loss
        ("# mine\n" + lines_of([1, 3]), "# mine\n" + lines_of([1])),
        (
            lines_of([1, 3]) + "# mine\n[1]\n" + lines_of([4]) + '{"step": "b"}\n',
            lines_of([1]) + '# mine\n[1]\n{"step": "b"}\n',
        ),
        (lines_of([1]) + "\n" + lines_of([3]), lines_of([1])),
    ],
)
def test_metrics_are_cut_after_a_step_and_lines_of_others_stay(tmp_path, monkeypatch, block, text, kept):
    monkeypatch.setattr(run_files, "_BLOCK", block)
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    truncate_metrics(path, 2)
    assert path.read_text() == kept


FOREIGN = [b"\xff\xfe", b"null", b"[]", b'{"loss": 1}', b'{"step": "a"}', b'{"step": true}', b"[" * 10000, b"9" * 5000]


@pytest.mark.parametrize("line", FOREIGN, ids=range(len(FOREIGN)))
def test_a_run_resumes_beside_foreign_lines(tmp_path, caplog, line):
    run, model, optimizer = tiny_run(tmp_path)
    run.resume(None)
    train_tiny_run(run, model, optimizer, [1])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n")
    train_tiny_run(run, model, optimizer, [2])
    run.save_checkpoint(2)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n")
    assert tiny_run(tmp_path)[0].resume("latest")[0] == 2
    assert [found["step"] for found in read_metrics(tmp_path)] == [1, 2]
    assert "left out line 2 of" in caplog.text


def test_a_long_log_is_neither_read_whole_nor_held_in_memory(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines_of(range(1, 30_001)))
    size, read = path.stat().st_size, []
    tracemalloc.start()
    truncate_metrics(path, 29_990)
    assert sum(1 for _ in iterate_metrics(tmp_path)) == 29_990
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2, (peak, size)
    with open(path, "rb") as file:

        class Counted:
            def seek(self, *arguments):
                return file.seek(*arguments)

            def read(self, count):
                read.append(count)
                return file.read(count)

        next(run_files._lines_from_the_end(Counted()))
    assert sum(read) <= run_files._BLOCK


NAMES = ("config.yaml", "metrics.jsonl", "offending_batch.json", "skipped.jsonl", "skipped-3.jsonl", "results.json")


@pytest.mark.parametrize("resume", [None, "latest", "latest_undamaged"])
@pytest.mark.parametrize("name", [*NAMES, "final"])
def test_a_run_in_the_folder_of_a_project_overwrites_no_file_of_it(tmp_path, monkeypatch, name, resume):
    """output_dir=. beside a user's own files, which have the contents that a run's could have."""
    monkeypatch.setattr(TinyRunConfig, "result_files", ("results.json",))
    monkeypatch.chdir(tmp_path)
    text = {"config.yaml": "output_dir: .\nmax_steps: 10\n", "metrics.jsonl": lines_of([1, 2])}.get(name, "{}\n")
    if name == "final":
        (tmp_path / "final").mkdir()
    else:
        (tmp_path / name).write_text(text)
    for start in ("check", "resume"):
        message = "already holds a run" if (name, resume) == ("final", None) else f"holds {name}, which no run in this"
        with pytest.raises(ValueError, match=message):
            getattr(tiny_run(".")[0], start)(resume)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", name]
    assert name == "final" or (tmp_path / name).read_text() == text


def test_a_config_that_a_person_wrote_is_not_a_runs(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.resume(None)
    own = (tmp_path / "config.yaml").read_text()
    tiny_run(tmp_path)[0].check("latest")
    (tmp_path / "config.yaml").write_text("# how I train\n" + own)
    with pytest.raises(ValueError, match="holds config.yaml, which no run in this folder has written"):
        tiny_run(tmp_path)[0].check("latest")


def test_a_batch_file_that_is_not_a_runs_is_kept_beside_checkpoints_too(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.resume(None)
    run.save_checkpoint(1)
    (tmp_path / "offending_batch.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="holds offending_batch.json, which no run"):
        tiny_run(tmp_path)[0].resume("latest")
    assert (tmp_path / "offending_batch.json").read_text() == '{"mine": 1}'


def test_a_finished_run_without_its_checkpoints_is_not_trained_again(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.resume(None)
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "training_step.json").write_text('{"step": 10}')
    with pytest.raises(ValueError, match="holds final, but no checkpoint to continue from"):
        tiny_run(tmp_path)[0].check("latest")


@pytest.mark.parametrize("run", ["pretrain", "world_model"])
def test_the_config_of_an_old_run_is_a_runs(run):
    path = FIXTURES / "v0_1" / "runs" / run / "config.yaml"
    assert dump_yaml(read_yaml(path)) == path.read_text()
    run_files.refuse_files_of_others(path.parent, started=False)
