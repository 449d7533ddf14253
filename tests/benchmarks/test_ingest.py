"""The ingest benchmark measures what it says, at tiny size."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ingest(monkeypatch):
    """benchmarks/ingest.py as a module, with one second of video and few rows."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ingest

    monkeypatch.setattr(ingest, "SECONDS", 1)
    monkeypatch.setattr(ingest, "CLIPS", 2)
    monkeypatch.setattr(ingest, "FILES", 200)
    monkeypatch.setattr(ingest, "ROWS", 40)
    monkeypatch.setattr(ingest, "torchcodec_decoder", lambda: None)
    return ingest


def test_throughput_of_small_videos_is_written(ingest, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "scale.md").write_text("a\n<!-- ingest:begin -->\n<!-- ingest:end -->\nb\n")
    monkeypatch.setattr(ingest, "ROOT", tmp_path)
    monkeypatch.setattr(ingest, "SOURCES", {"64 x 48": (48, 64)})
    monkeypatch.setattr(sys, "argv", ["ingest.py", "--height", "32"])
    ingest.main()
    found = json.loads((tmp_path / "results" / "ingest.json").read_text())
    (result,) = found["results"]
    assert result["source"] == "64 x 48" and all(value > 0 for name, value in result.items() if name != "source")
    assert result["gigabytes_per_hour_of_video"] < 1
    assert [row["video"] for row in found["frames"]] == ["64 x 48", "64 x 48, in the shard"]
    assert all(row["in_order_pyav"] > 0 and row["clips_pyav"] > 0 for row in found["frames"])
    assert len(found["metadata"]) == 4 and min(found["metadata"].values()) > 0
    page = (tmp_path / "docs" / "scale.md").read_text()
    assert "| 64 x 48 |" in page and "| not installed |" in page
    assert "| 64 x 48 |" in capsys.readouterr().out


def test_videos_of_a_folder_are_printed_alone(ingest, tmp_path, monkeypatch, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(ingest.make_video(48, 64))
    monkeypatch.setattr(ingest, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ingest.py", "--height", "32", "--videos", str(tmp_path / "videos")])
    ingest.main()
    assert "videos |" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_torchcodec_is_measured_where_it_is_installed(ingest, monkeypatch):
    class Decoder:
        def __init__(self, video, **options):
            self.video = video

        def get_frames_at(self, indices):
            return SimpleNamespace(data=torch.from_numpy(ingest.read_by_pyav(self.video, indices)))

    monkeypatch.setattr(ingest, "torchcodec_decoder", lambda: Decoder)
    found = ingest.frames_per_second("a", [ingest.make_video(48, 64)])
    assert found["in_order_torchcodec"] > 0 and found["clips_torchcodec"] > 0
