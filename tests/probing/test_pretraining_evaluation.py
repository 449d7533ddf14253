"""The evaluation during pretraining: its numbers, and that it changes nothing."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pretrain
import pytest
import torch
from accelerate import Accelerator
from pretrain import build_model
from safetensors.torch import load_file
from script_runs import TINY_PRETRAIN, metrics, run_pretrain, run_processes, write_square_shards

from vjepa2_hf import VJepa2VideoProcessor
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.probing import pretraining_evaluation
from vjepa2_hf.probing.pretraining_evaluation import PretrainingEvaluation, neighbor_accuracy
from vjepa2_hf.training.monitor import Throughput
from vjepa2_hf.training.pretraining import PretrainConfig
from vjepa2_hf.training.settings import load_config


SAME_MASKS = "masks=[{type: future}]"  # in every batch


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Shards of training clips, and a folder of videos per class: dark and bright."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_square_shards(folder / "train")
    rng = np.random.default_rng(0)
    for name, brightness in (("dark", 20), ("bright", 200)):
        (folder / "labeled" / name).mkdir(parents=True)
        for number in range(4):
            frames = rng.integers(brightness, brightness + 40, (8, 40, 40, 3), dtype=np.uint8)
            (folder / "labeled" / name / f"{number}.mp4").write_bytes(encode_video(frames, fps=8))
    return folder


def settings(data) -> list[str]:
    return ["eval_every=2", f"eval_data={data}/train", f"eval_probe_data={data}/labeled"]


def test_a_run_with_evaluation_learns_the_same_to_the_bit(monkeypatch, data, tmp_path):
    plain = run_pretrain(monkeypatch, data / "train", tmp_path / "plain", "log_every=3")
    lines = run_pretrain(monkeypatch, data / "train", tmp_path / "evaluated", "log_every=3", *settings(data))
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("plain", "evaluated"))
    assert one.keys() == other.keys() and all(torch.equal(other[name], value) for name, value in one.items())
    measured = [line for line in lines if "eval_loss" in line]
    evaluated = {line["step"]: (line["eval_loss"], line["eval_probe_accuracy"]) for line in measured}
    assert list(evaluated) == [2, 4, 6] and [line["step"] for line in lines] == [2, 3, 4, 6]
    assert all(0 < loss < 2 and 0 <= accuracy <= 1 for loss, accuracy in evaluated.values())
    assert len({loss for loss, _ in evaluated.values()}) == 3  # of other weights
    logged = {line["step"]: line for line in lines}
    for line in plain:  # nor does it change what is logged
        assert {**logged[line["step"]], **line} == logged[line["step"]]


def evaluation(data, rank=0, processes=1, *overrides):
    """An evaluation of process `rank`, as if its loop were at step 2."""
    arguments = [f"data={data}/train", "output_dir=x", *TINY_PRETRAIN, SAME_MASKS, *settings(data), *overrides]
    config = load_config(PretrainConfig, None, arguments)
    plain = Accelerator(cpu=True)
    accelerator = SimpleNamespace(
        process_index=rank,
        num_processes=processes,
        is_main_process=rank == 0,
        device=plain.device,
        autocast=plain.autocast,
    )
    loop = SimpleNamespace(config=config, accelerator=accelerator, step=2, throughput=Throughput(plain))
    return PretrainingEvaluation(loop, VJepa2VideoProcessor(crop_size=32)), config


def in_processes(monkeypatch, evaluations, model) -> list[dict]:
    """What each process measures, in threads that gather as processes do."""
    barrier, shared, results = threading.Barrier(len(evaluations), timeout=60), {}, {}

    def gather(values):
        rank = int(threading.current_thread().name)
        shared[rank] = values
        barrier.wait()
        everyones = [value for number in range(len(evaluations)) for value in shared[number]]
        barrier.wait()
        return everyones

    monkeypatch.setattr(pretraining_evaluation, "gather_object", gather)
    threads = [
        threading.Thread(target=lambda n=n, one=one: results.update({n: one(model)}), name=str(n))
        for n, one in enumerate(evaluations)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(evaluations))]


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    return build_model(evaluation(data)[1]).eval()


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_measure_what_one_does(monkeypatch, data, model, processes):
    alone = evaluation(data)[0](model)
    found = in_processes(monkeypatch, [evaluation(data, rank, processes)[0] for rank in range(processes)], model)
    assert all(one == found[0] for one in found)
    assert found[0] == pytest.approx(alone, rel=1e-5) and alone["eval_probe_accuracy"] == 1.0


def test_it_leaves_modes_random_states_and_the_clock_as_they_were(data, model):
    measured, _ = evaluation(data)
    model.train()
    model.target_encoder.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    state, numpy, started = torch.get_rng_state(), np.random.get_state()[1].copy(), measured.loop.throughput.started
    first = measured(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy).all()
    assert measured.loop.throughput.started > started
    torch.manual_seed(6)
    assert measured(model) == first
    assert all(parameter.grad is None for parameter in model.parameters())
    measured.loop.step = 3
    assert measured(model) == {}
    model.eval()


def test_the_number_of_clips_is_limited(data, model):
    full, few = (evaluation(data, 0, 1, f"eval_clips={count}")[0](model)["eval_loss"] for count in (5, 2))
    assert full == evaluation(data)[0](model)["eval_loss"] != few


def test_data_that_breaks_is_a_warning_and_null(data, model, caplog, tmp_path):
    (tmp_path / "labeled" / "one").mkdir(parents=True)
    (tmp_path / "labeled" / "one" / "a.mp4").write_bytes((data / "labeled" / "dark" / "0.mp4").read_bytes())
    measured, _ = evaluation(data, 0, 1, f"eval_probe_data={tmp_path}/labeled")
    assert measured(model)["eval_probe_accuracy"] is None
    assert "no evaluation at step 2: eval_probe_data=" in caplog.text and "at least two classes" in caplog.text
    broken = write_square_shards(tmp_path / "shards")
    measured, _ = evaluation(data, 0, 1, f"eval_data={broken}")
    for shard in broken.iterdir():
        shard.write_bytes(b"no shard")
    assert measured(model)["eval_loss"] is None
    assert "eval_data=" in caplog.text


def test_data_that_does_not_exist_is_refused_at_the_start(data):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluation(data, 0, 1, "eval_data=/nowhere")


HALF = [["eval_every=2"], ["eval_data=x"], ["eval_probe_data=x"], ["eval_every=0", "eval_data=x"]]


@pytest.mark.parametrize("given", HALF)
def test_half_of_the_settings_is_refused(given):
    with pytest.raises(ValueError, match="set eval_every and at least one of the others|eval_every must be at least"):
        load_config(PretrainConfig, None, ["data=x", "output_dir=y", *given])


def test_neighbors_vote():
    generator = torch.Generator().manual_seed(0)
    labels = [number % 3 for number in range(60)]
    centers = 5 * torch.randn(3, 16, generator=generator)
    features = centers[torch.tensor(labels)] + torch.randn(60, 16, generator=generator)
    assert neighbor_accuracy(features, labels) == 1.0
    assert neighbor_accuracy(torch.randn(60, 16, generator=generator), labels) < 0.6
    assert neighbor_accuracy(torch.ones(3, 4), ["a", "b", "b"]) <= 1.0  # of equal features


@pytest.mark.slow
def test_two_processes_log_one_evaluation(data, tmp_path):
    arguments = [f"data={data}/train", f"output_dir={tmp_path}/two", *TINY_PRETRAIN, SAME_MASKS, *settings(data)]
    done = run_processes(Path(pretrain.__file__), arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = metrics(tmp_path / "two")
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4, 6]
