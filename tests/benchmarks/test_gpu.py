"""benchmarks/gpu.py at tiny size on the CPU: every section has results, and an error costs only its own variant."""

import json
import sys
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    """benchmarks/gpu.py as a module; it finds its neighbors as it does when run."""
    sys.path.insert(0, str(BENCHMARKS))
    import gpu

    tf32 = torch.backends.cudnn.allow_tf32
    yield gpu
    torch.backends.cudnn.allow_tf32 = tf32
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def sections(gpu, tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("gpu") / "folder" / "gpu.json"
    assert gpu.main(["--tiny", "--output", str(path)]) == 0
    assert [file.name for file in path.parent.iterdir()] == ["gpu.json"]
    return json.loads(path.read_text())["sections"]


def test_every_section_has_results_with_ratios(sections):
    assert set(sections) == {"machine", "encoder", "pretraining", "plan", "decoding"}
    timed = [each for found in sections.values() for each in found.values() if "ratio" in each]
    assert len(timed) == 6
    for each in timed:
        for ratio in each["ratio"].values():
            assert 0 < ratio["minimum"] <= ratio["median"] <= ratio["maximum"]
        assert all(value > 0 for value in each["fraction_of"]["matmul"].values())
    assert all(sections["pretraining"][name]["largest_batch"] == 4 for name in ("ours alone", "transformers alone"))
    assert sections["encoder"]["tiny, 4 frames, compiled"]["graphs"] == 1  # one serves all layers


def test_both_sides_agreed(sections):
    checks = [check for found in sections.values() for each in found.values() for check in each.get("checks", [])]
    assert {"tokens, float32", "tokens, bfloat16", "tokens, compiled"} < {check["what"] for check in checks}
    assert {"costs, float32", "costs, bfloat16", "gradients of that loss"} < {check["what"] for check in checks}
    assert all(check["passed"] for check in checks)


def test_a_table_holds_every_variant(gpu, sections, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    machine = {"device": "some GPU", "torch": "2", "transformers": "5"}
    path.write_text(json.dumps({"machine": machine, "sections": sections}))
    assert gpu.main(["--table", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for found in sections.values() for name in found)


def test_documents_get_what_was_compared(gpu, sections, tmp_path):
    path, document = tmp_path / "gpu.json", tmp_path / "page.md"
    machine = {"device": "some GPU", "torch": "2", "transformers": "5"}
    path.write_text(json.dumps({"machine": machine, "sections": sections}))
    document.write_text("before\n<!-- gpu:begin -->\nold\n<!-- gpu:end -->\nafter\n")
    assert gpu.main(["--publish", str(document), "--output", str(path)]) == 0
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    ratio = sections["pretraining"]["step"]["ratio"]["transformers / ours"]["median"]
    assert "| pretraining: step | ours, transformers |" in text and f"| {ratio:.2f} (" in text
    assert "| transformers alone | – | 4 | none tried |" in text


def test_a_failed_variant_is_recorded_and_others_go_on(gpu, monkeypatch, tmp_path, capsys):
    def failing():
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(gpu, "variants", lambda settings: [("plan", "a", failing), ("plan", "b", dict)])
    path = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--output", str(path)]) == 1
    found = json.loads(path.read_text())["sections"]["plan"]
    assert found["a"]["error"] == "OutOfMemoryError: no memory is left" and "error" not in found["b"]
    assert "plan, a: OutOfMemoryError: no memory is left" in capsys.readouterr().out


def test_what_the_budget_leaves_out_is_named(gpu, tmp_path):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--output", str(path), "--seconds", "0", "--sections", "plan"]) == 0
    sections = json.loads(path.read_text())["sections"]
    assert set(sections) == {"machine", "plan"}
    assert all(each["skipped"] == "the time budget of 0 s was used up" for each in sections["plan"].values())


def test_a_larger_error_than_the_other_sides_fails(gpu):
    from gpu_measure import precision_check, with_checks

    reference = torch.ones(4)
    check = precision_check("tokens", reference + 0.1, reference + 0.02, reference)
    assert not check["passed"] and check["tolerance"] == pytest.approx(0.03)
    assert with_checks({}, [check])["error"].startswith("DisagreementError: tokens")
    assert precision_check("tokens", reference + 0.02, reference + 0.02, reference)["passed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_sentence_says_so(gpu, tmp_path, capsys):
    assert gpu.main(["--output", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out.startswith("No GPU was found") and not list(tmp_path.iterdir())
