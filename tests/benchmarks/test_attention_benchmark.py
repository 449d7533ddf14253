"""benchmarks/attention.py at its tiny size."""

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark as a module; it finds its neighbors as it does when run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import attention

    threads = torch.get_num_threads()
    yield attention
    torch.set_num_threads(threads)


def test_all_ways_agree_and_the_page_gets_their_ratios(benchmark, tmp_path, capsys):
    page, output = tmp_path / "page.md", tmp_path / "attention.json"
    page.write_text("before\n<!-- attention:begin -->\nold\n<!-- attention:end -->\nafter\n")
    results = benchmark.main(["--tiny", "--output", str(output), "--publish", str(page)])
    assert json.loads(output.read_text()) == results
    assert [(row["frames"], row["keys"], row["backward"]) for row in results["training"]] == [
        (1, 5, False), (2, 10, False), (1, 5, True), (2, 10, True),
    ]  # fmt: skip
    assert [(row["horizon"], row["context"], row["keys"]) for row in results["rollouts"]] == [(2, 1, 10), (2, 2, 15)]
    assert [list(row["ratio"]) for row in results["works"]][-1] == ["products"]
    assert "frames computed again" in results["works"][0]["ratio"]
    for row in (row for rows in ("training", "rollouts", "works") for row in results[rows]):
        assert row["seconds"] > 0 and all(0 < each["minimum"] <= each["maximum"] for each in row["ratio"].values())
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert benchmark.main(["--table", "--output", str(output)]) == results
    assert "| frames | keys | fused kernel with mask, ms | no mask | split |" in capsys.readouterr().out
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match=r"page.md has no lines <!-- attention:begin --> .*add them"):
        benchmark.main(["--table", "--output", str(output), "--publish", str(page)])


def test_a_way_that_computes_something_else_is_not_timed(benchmark, monkeypatch):
    from measure import DisagreementError

    monkeypatch.setattr(benchmark, "products", lambda query, key, value, mask=None: value + query)
    with pytest.raises(DisagreementError, match="products with mask, 1 frames"):
        benchmark.training_call(benchmark.TINY, 1, False, False)
