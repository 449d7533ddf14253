"""Distance heads through the scripts: trained with a world model, and added to a finished one."""

import json
import shutil
from pathlib import Path

import numpy as np
import plan
import pytest
import torch
import train_distance_head
import yaml
from script_runs import run_processes, run_script, run_train_world_model, write_noise_episodes

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2WorldModel
from vjepa2_hf.training import episode_latents


SHORT = ["distance={max_steps: 20, batch_size: 4}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with `episodes`, and the run of a world model without (`plain`) and with a distance head (`headed`)."""
    folder = tmp_path_factory.mktemp("runs")
    write_noise_episodes(folder / "episodes")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 32, "patch_size": 16}
    VJepa2Encoder(VJepa2EncoderConfig(**sizes)).save_pretrained(folder / "encoder")
    encoder = [f"encoder={folder / 'encoder'}", "encoder_config={}"]
    with pytest.MonkeyPatch.context() as patch:
        run_train_world_model(patch, folder / "episodes", folder / "plain", *encoder)
        with_head = ["world_model.distance_head=true", *encoder, *SHORT]
        run_train_world_model(patch, folder / "episodes", folder / "headed", *with_head)
    return folder


def arguments(runs: Path, output_dir: Path, *more: str) -> list[str]:
    cache = f"cache_dir={runs / 'latents'}"
    return [f"model={runs / 'plain' / 'final'}", f"data={runs / 'episodes'}", f"output_dir={output_dir}", cache, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return VJepa2WorldModel.from_pretrained(folder / "final").state_dict()


def test_a_world_model_is_trained_as_without_the_head_which_follows(runs):
    plain, headed = weights(runs / "plain"), weights(runs / "headed")
    assert all(torch.equal(headed[name], value) for name, value in plain.items())
    assert {name.partition(".")[0] for name in headed.keys() - plain.keys()} == {"distance_head"}
    written = json.loads((runs / "headed" / "distance.json").read_text())
    assert [row["step"] for row in written["losses"]] == [1, 20]
    assert written["held_out"]["pairs"] > 0 and not (runs / "plain" / "distance.json").exists()
    # A checkpoint is of the dynamics alone
    assert not VJepa2WorldModel.from_pretrained(runs / "headed" / "checkpoint-6").config.distance_head


def test_the_head_of_a_finished_model_is_the_same_and_its_latents_are_found(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(episode_latents, "build_encode", lambda *_: pytest.fail("encoded again"))
    run_script(monkeypatch, train_distance_head, arguments(runs, tmp_path / "added", *SHORT))
    added, headed = weights(tmp_path / "added"), weights(runs / "headed")
    assert added.keys() == headed.keys() and all(torch.equal(added[name], headed[name]) for name in added)
    files = [json.loads((run / "distance.json").read_text()) for run in (tmp_path / "added", runs / "headed")]
    assert files[0] == files[1]
    written = yaml.safe_load((tmp_path / "added" / "config.yaml").read_text())
    assert written["validation_fraction"] == 0.4  # of the model's run, for evaluate_world_model.py
    errors = (tmp_path / "added" / "rollout_error.json").read_text()
    assert errors == (runs / "plain" / "rollout_error.json").read_text()
    planner = VJepa2Planner.from_pretrained(
        tmp_path / "added" / "final", cost={"cost": "closest", "of": "temporal"}, horizon=2, num_candidates=4
    )
    image = np.full((32, 32, 3), 40, np.uint8)
    assert planner(image, np.zeros_like(image))["cost"] > 0


def test_a_new_head_leaves_out_the_subgoals_of_the_old_one(runs, tmp_path, monkeypatch):
    """They stand beside the planner that was given, not beside the result."""
    shutil.copytree(runs / "plain", tmp_path / "plain")
    path = tmp_path / "plain" / "final" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "planner": {"horizon": 2, "subgoals": "graph"}}))
    given = [f"model={path.parent}", "distance={max_steps: 1, batch_size: 2}"]
    run_script(monkeypatch, train_distance_head, arguments(runs, tmp_path / "added", *given))
    planner = VJepa2Planner.from_pretrained(tmp_path / "added" / "final", device="cpu")
    assert planner.subgoals is None and planner.solver.horizon == 2


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(runs, tmp_path):
    run_processes(Path(train_distance_head.__file__), arguments(runs, tmp_path / "two", *SHORT))
    two, headed = weights(tmp_path / "two"), weights(runs / "headed")
    assert all(torch.equal(two[name], headed[name]) for name in headed)


def test_a_crash_leaves_no_folder(runs, tmp_path, monkeypatch):
    def crash(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(train_distance_head, "measure_distance_head", crash)
    with pytest.raises(SystemExit):
        run_script(monkeypatch, train_distance_head, arguments(runs, tmp_path / "out", *SHORT))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["output_dir={runs}/plain"], "exists and is not empty; choose another output folder"),
        (["model={runs}/episodes"], "episodes"),
        (["model={runs}/copy", "distance.batch_size=3"], "validation_fraction is not given"),
        (["distance.batch_size=1"], "distance.batch_size must be at least 2"),
        (["distance.max_step=1"], "max_step"),
    ],
)
def test_what_does_not_fit_ends_in_a_sentence(runs, tmp_path, monkeypatch, capsys, changed, message):
    copy = runs / "copy"
    if not copy.exists():
        model = VJepa2WorldModel.from_pretrained(runs / "plain" / "final")
        model.save_pretrained(copy)
        VJepa2Planner.from_pretrained(runs / "plain" / "final").video_processor.save_pretrained(copy)
    changed = [each.format(runs=runs) for each in changed]
    with pytest.raises(SystemExit) as ended:
        run_script(monkeypatch, train_distance_head, [*arguments(runs, tmp_path / "out"), *changed])
    assert ended.value.code == 1 and message in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_encoder_that_learns_is_refused_before_training(runs, tmp_path, monkeypatch, capsys):
    settings = ["world_model.distance_head=true", "world_model.freeze_encoder=false"]
    with pytest.raises(SystemExit):
        run_train_world_model(monkeypatch, runs / "episodes", tmp_path / "run", *settings)
    assert "examples/train_distance_head.py" in capsys.readouterr().err


def test_plan_takes_the_cost_by_its_spec(runs, tmp_path, monkeypatch):
    spec = "{cost: closest, of: {cost: sum, parts: [[2.0, latent], [1.0, temporal]]}}"
    command = [
        f"models={{mine: {runs / 'headed' / 'final'}}}",
        "baselines=[]",
        "episodes=1",
        "videos=0",
    ]
    command += [f"rows={{learned: {{model: mine, planner: {{cost: {spec}}}}}}}", f"output_dir={tmp_path / 'plan'}"]
    command += ["solver={name: cem, horizon: 2, num_candidates: 4, num_iterations: 1, num_elites: 2}"]
    run_script(monkeypatch, plan, command)
    rows = json.loads((tmp_path / "plan" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["mine", "learned"]
