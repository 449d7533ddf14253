"""What every test process needs, with pytest-xdist's workers and without."""

import os
import signal
import sys
from pathlib import Path

import pytest


# Before anything imports torch. One thread is fastest for models 8 to 48 wide, and several workers share the cores.
# Scripts that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def evaluate_modules(tmp_path_factory):
    """`evaluate` copies the modules it loads into a package of its own, of which a process has one: all tests of a
    process share a folder of theirs, and load without the Hub."""
    import evaluate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        yield


@pytest.fixture(autouse=True)
def stop_signals():
    """Gives the stop signals back after a run that an error has ended: pytest keeps the error, and with it the run."""
    yield
    if "vjepa2_hf.training.signals" in sys.modules:
        from vjepa2_hf.training.signals import STOP_SIGNALS, StopSignals

        for number in STOP_SIGNALS:
            owner = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(owner, StopSignals):
                owner.restore()


@pytest.fixture(scope="module")
def processor():
    from vjepa2_hf import VJepa2VideoProcessor

    return VJepa2VideoProcessor(size=32, crop_size=32)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """The path of a video of 23 frames of noise at 10 fps."""
    from builders import noise_frames

    from vjepa2_hf.data.video_writing import encode_video

    path = tmp_path_factory.mktemp("video") / "video.mp4"
    path.write_bytes(encode_video(noise_frames(23), fps=10, gop_size=5))
    return path


@pytest.fixture(scope="module")
def encoder():
    from builders import build_encoder

    return build_encoder()


@pytest.fixture
def notes(caplog):
    """What the package has logged so far, as one text."""
    caplog.set_level("INFO", logger="vjepa2_hf")
    return lambda: " | ".join(record.getMessage() for record in caplog.records)


class FakeHub:
    """The Hub's side of `push_to_hub`: keeps what is committed, and for each repository that was created, whether it
    is private."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.private: list[bool | None] = []

    def create_repo(self, repo_id, private=None, **_):
        self.private.append(private)
        return type("Repo", (), {"repo_id": repo_id})

    def create_commit(self, repo_id, operations, **_):
        for operation in operations:
            self.files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
        return repo_id

    def write_to(self, folder: Path) -> Path:
        """Writes the repository's files, as a download would."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@pytest.fixture
def hub(monkeypatch):
    """A Hub without any card, which `push_to_hub` uploads to."""
    from huggingface_hub.errors import EntryNotFoundError

    def no_card(*_, **__):
        raise EntryNotFoundError("no card")

    found = FakeHub()
    for module in ("transformers.utils.hub", "transformers.video_processing_utils", "transformers.modeling_utils"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: found, raising=False)
    monkeypatch.setattr("transformers.utils.hub.ModelCard.load", no_card)
    return found
