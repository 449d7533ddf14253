"""The app's pages and its tab Plan, without a browser; needs the extra `app`."""

import asyncio
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from builders import build_planner
from PIL import Image


gr = pytest.importorskip("gradio")

import app  # noqa: E402
import plan_images  # noqa: E402
import plan_tab  # noqa: E402
from plan_parts import Results, read_settings, say_stopped  # noqa: E402
from uploads import Refused, SessionFiles  # noqa: E402

from vjepa2_hf.environments import FOUR_ROOMS, PUSHING, PushingEnv  # noqa: E402
from vjepa2_hf.environments.live_planning import SQUARED  # noqa: E402
from vjepa2_hf.environments.run_parts import find_parts  # noqa: E402
from vjepa2_hf.environments.shared_models import DATA, RANDOM, UNIFORM, SharedModels  # noqa: E402


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # gradio's own
FIELDS = {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2, "action_low": [-1.0] * 4, "action_high": [1.0] * 4}
CHOSEN = ("cem", 16, 2, SQUARED)


@pytest.fixture(scope="module", autouse=True)
def closed_loops():
    """Closes the event loops that `gr.Blocks` makes and leaves open."""
    made, new_event_loop = [], asyncio.new_event_loop

    def recorded() -> asyncio.AbstractEventLoop:
        made.append(new_event_loop())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", recorded)
        yield
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A saved planner of random weights."""
    folder = str(tmp_path_factory.mktemp("app") / "tiny" / "final")
    build_planner(options={"device": "cpu"}, **FIELDS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(folder) -> SharedModels:
    return SharedModels(find_parts(folder, env=PUSHING, random_model=folder), device="cpu")


@pytest.fixture(scope="module")
def tab(models) -> plan_tab.EnvironmentTab:
    return plan_tab.EnvironmentTab(models)


@pytest.fixture(scope="module")
def results() -> Results:
    with gr.Blocks():
        return Results.build("")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(PushingEnv, "max_steps", 4)


@pytest.fixture
def files():
    files = SessionFiles()
    yield files
    files.close()


def elements(page: gr.Blocks) -> dict[str, dict]:
    """Properties of the page's components by element id."""
    parts = [part["props"] for part in page.get_config_file()["components"]]
    return {part["elem_id"]: part for part in parts if part.get("elem_id")}


def test_the_page_has_its_tabs_with_labels_and_without_paths(models, files, folder):
    page = app.build(models, files)
    found, config = elements(page), str(page.get_config_file())
    named = {"plan-start", "plan-goal", "plan-run", "plan-stop", "plan-random", "plan-frames", "plan-status"}
    assert named | {"plan-costs", "plan-landscape", "model-card"} <= set(found)
    assert all(found[name]["alt_text"] for name in ("plan-start", "plan-goal"))
    inputs = ("plan-solver", "plan-candidates", "plan-horizon", "plan-distance", "plan-beside", "plan-start-numbers")
    assert all(found[name]["label"] for name in inputs)
    assert folder not in config and str(files.root) not in config.replace(str(files.root / "gradio"), "")
    assert [choice for choice, _ in found["plan-beside"]["choices"]] == [UNIFORM, DATA, RANDOM]


def test_a_run_shows_frames_figures_and_the_outcome(tab, results, short):
    outputs = list(tab.run(results, tab.sample(0), [UNIFORM, RANDOM], *CHOSEN))
    assert outputs[0][results.status].startswith("Planning") and outputs[0][results.frames] == ""
    first = outputs[1][results.frames]
    images = re.findall(r'<img decoding="sync" src="data:image/png;base64,[^"]+" alt="([^"]+)">', first)
    assert images[:2] == ["Step 0, with the imagined paths of the 8 cheapest candidates", "Goal"]
    assert images[2:4] == [f"Step 0, {UNIFORM}", f"Step 0, {RANDOM}"] and images[4] == "model step 1"
    assert 'alt="Cost of plan 1: from' in outputs[2][results.costs]
    assert "lowest at" in outputs[2][results.landscape]
    status = outputs[-1][results.status]
    assert len(re.findall("(Reached the goal after|Did not reach the goal in) [1-4] steps?", status)) == 3
    assert not re.search(r"/\w+/\w+", re.sub('src="[^"]+"', "", first))


def test_sessions_at_once_see_their_own_tasks(tab, results, short):
    """Each session's last status is that of a run alone: nothing is shared but the models."""
    tasks = [tab.sample(seed) for seed in (0, 1)]
    alone = [list(tab.run(results, task, [], *CHOSEN))[-1] for task in tasks]
    together: dict[int, dict] = {}

    def session(number: int) -> None:
        together[number] = list(tab.run(results, tasks[number], [], *CHOSEN))[-1]

    threads = [threading.Thread(target=session, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in (0, 1)] == alone


def test_a_run_ends_at_its_time_limit_and_an_error_is_one_sentence(tab, results, monkeypatch):
    monkeypatch.setattr(plan_tab, "RUN_SECONDS", 0.0)
    *_, last = tab.run(results, tab.sample(0), [], *CHOSEN)
    assert "Stopped after 0 seconds, the limit." in last[results.status]
    monkeypatch.setattr(plan_tab, "read_settings", lambda *chosen: 1 / 0)
    *_, last = tab.streaming(results)(tab.sample(0), [], *CHOSEN)
    assert last[results.status].startswith("Something went wrong")


def test_a_click_moves_one_disc_of_one_image(tab):
    task = tab.sample(0)
    clicked = SimpleNamespace(index=[96, 288])  # pixels of an image of 384
    moved, start, goal, start_text, goal_text = tab.placing("goal")(task, "block", clicked)
    assert moved["start"] == task["start"] and moved["goal"][:2] == task["goal"][:2]
    assert moved["goal"][2:] == pytest.approx([0.25, 0.75], abs=0.02)
    np.testing.assert_array_equal(goal, tab.render(moved["goal"]))
    assert goal_text.split()[2:] == [f"{value:.3f}" for value in moved["goal"][2:]] and start.shape == (384, 384, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [("0.1 0.2", "are 2 numbers; expected 4"), ("a b c d", "not all numbers"), ("9 9 9 9", "expected 4 from 0 to 1")]
    + [("0.5 0.5 0.5 0.5", "overlap"), ("nan 0.1 0.1 0.1", "expected 4 from 0 to 1")],
)
def test_bad_positions_are_refused_in_a_sentence(tab, text, says):
    task = tab.sample(0)
    with pytest.raises(Refused, match=says):
        tab.read_numbers(task["start"], text)
    assert says in tab.typing("start")(task, text)[-1]


def test_positions_as_numbers_move_the_discs(tab):
    shown = tab.typing("start")(tab.sample(0), "0.2, 0.25 0.7 0.7")
    assert shown[0]["start"] == pytest.approx([0.2, 0.25, 0.7, 0.7]) and shown[-1] == plan_tab.HELLO


def test_positions_keep_the_velocity_of_a_disc(folder):
    four = plan_tab.EnvironmentTab(SharedModels(find_parts(folder, env=FOUR_ROOMS), device="cpu"))
    state = four.sample(0)["start"]
    assert four.read_numbers(state, four.to_text(state))[4:] == state[4:]


def test_random_tasks_differ(tab):
    assert tab.random_task()[0] != tab.random_task()[0]


def test_images_are_planned_once(folder, results, files, tmp_path):
    models = SharedModels(find_parts(folder), device="cpu")
    with gr.Blocks() as page:
        plan_tab.build(models, files)
    assert "plan-random" not in elements(page) and elements(page)["plan-start"]["sources"] == ["upload", "clipboard"]
    pair = [np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8) for seed in (0, 1)]
    first, figures = plan_images.plan_once(models, results, pair, {}, CHOSEN)
    assert first[results.status].startswith("Planned 4 actions") and "recorded episodes" in first[results.status]
    assert first[results.frames].count("<tr>") == 5 and "lowest at" in figures[results.landscape]
    Image.fromarray(pair[0]).save(tmp_path / "start.png")
    request = SimpleNamespace(session_hash="somebody")
    np.testing.assert_array_equal(plan_images._read(files, request, "start", str(tmp_path / "start.png")), pair[0])
    with pytest.raises(Refused, match="image of the goal is missing"):
        plan_images._read(files, request, "goal", None)


def test_states_of_the_robot_are_asked_for_and_checked(tmp_path, files):
    build_planner(proprio_dim=3, options={"device": "cpu"}, **FIELDS).save_pretrained(tmp_path / "final")
    models = SharedModels(find_parts(str(tmp_path / "final")), device="cpu")
    with gr.Blocks() as page:
        plan_tab.build(models, files)
    assert elements(page)["plan-proprio_state"]["label"] == "Proprio state"
    assert plan_images._numbers("Proprio state", 3, "1, 2 3.5").tolist() == [1.0, 2.0, 3.5]
    for text, says in (("1 2", "has 2 numbers; expected 3"), ("1 2 x", "no number"), ("1 2 inf", "expected 3 finite")):
        with pytest.raises(Refused, match=says):
            plan_images._numbers("Proprio state", 3, text)


def test_a_model_of_several_cameras_says_that_it_does_not_plan_here(tmp_path, files):
    build_planner(num_views=2, options={"device": "cpu"}, **FIELDS).save_pretrained(tmp_path / "final")
    models = SharedModels(find_parts(str(tmp_path / "final")), device="cpu")
    page = app.build(models, files)
    assert "2 cameras (view_0, view_1)" in models.refusal and models.refusal in str(page.get_config_file())
    assert "plan-run" not in elements(page) and "model-card" in elements(page)


def test_an_environment_with_other_actions_is_refused(tmp_path):
    build_planner(options={"device": "cpu"}, action_dim=3).save_pretrained(tmp_path / "final")
    with pytest.raises(ValueError, match="actions of 2 numbers, but those of the model have 3"):
        SharedModels(find_parts(str(tmp_path / "final"), env=PUSHING))


def test_arguments_and_settings(monkeypatch):
    monkeypatch.setenv("MODEL_ID", "somebody/model")
    assert app.parse([]).model == "somebody/model" and app.parse(["--env", PUSHING]).env == PUSHING
    settings = read_settings("icem", 32.0, 4.0, SQUARED)
    assert (settings.num_candidates, settings.horizon, settings.solver) == (32, 4, "icem")
    assert say_stopped(say_stopped("On its way.")) == "<strong>Stopped.</strong> On its way."
    assert say_stopped("Reached the goal after 3 steps.") == "Reached the goal after 3 steps."
