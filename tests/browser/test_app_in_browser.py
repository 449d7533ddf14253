"""The app as its users meet it: the three tabs in Chromium. A task is solved on the demo's models where there are
some; everything else runs on models of random weights."""

import base64
import io
import struct
import time

import numpy as np
import pytest
from builders import moving_square
from PIL import Image


pytestmark = [pytest.mark.browser, pytest.mark.slow]
TABS = ("Plan", "Look", "Model")
NAMED = {"button", "textbox", "slider", "spinbutton", "checkbox", "radio", "combobox", "tab", "link"}
SCRIPT = "<img src=x onerror=window.evil=1>.mp4"


def pixels(address: str) -> np.ndarray:
    """The image that a data address holds, as the environment rendered it: 64 x 64 pixels."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))
    step = len(image) // 64
    return image[step // 2 :: step, step // 2 :: step]


def unnamed(page) -> list[str]:
    """Roles of what a screen reader cannot name."""
    page.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in NAMED]
    assert len(seen) > 5
    return [node["role"]["value"] for node in seen if not node.get("name", {}).get("value", "").strip()]


@pytest.mark.parametrize("width", [1400, 390])
def test_each_tab_fits_the_window_and_names_its_inputs(address, pages, screenshots, width):
    page = pages(address, width)
    for selector in ("#plan-settings button", "#plan-numbers button"):
        page.press(selector)
    for tab in TABS:
        page.open(tab)
        if tab == "Look":
            page.press("#look-run")
            page.wait(lambda: page.images("look-figure"))
        page.save(screenshots / f"{tab.lower()}_{width}.png")
        window, content = page.widths()
        assert window == width and content <= window, f"The tab {tab} is {content} pixels wide"
        assert not page.find("img:not([alt])") and unnamed(page) == [], f"The tab {tab} has inputs without a label"
        assert not [
            place for place in ("/tmp/", "/home/", "/root/", "/work/", "site-packages") if place in page.source()
        ]


def test_frames_arrive_and_stop_ends_them(address, pages):
    page = pages(address)
    page.press("#plan-stop")
    time.sleep(1)
    assert page.text("plan-status").startswith("Click in Start or Goal")
    page.press("#plan-run")
    page.wait(lambda: page.images("plan-frames"), 20)
    page.press("#plan-stop")
    page.wait(lambda: page.text("plan-status").startswith("Stopped. world model: On its way"))
    status, images = page.text("plan-status"), page.images("plan-frames")
    time.sleep(3)
    assert page.text("plan-status") == status and page.images("plan-frames") == images
    page.press("#plan-run")
    page.wait(lambda: page.text("plan-status") != status)
    page.wait(lambda: page.images("plan-frames") != images)


def test_a_click_moves_the_chosen_disc(address, pages):
    page = pages(address)
    start, goal = (pixels(page.images(name)[0]) for name in ("plan-start", "plan-goal"))
    page.press("#plan-start img")  # its middle
    page.wait(lambda: not np.array_equal(pixels(page.images("plan-start")[0]), start))
    red, green, blue = pixels(page.images("plan-start")[0])[32, 32].tolist()
    assert blue > 150 > red
    np.testing.assert_array_equal(pixels(page.images("plan-goal")[0]), goal)


def test_sessions_at_once_do_not_mix(address, pages):
    both = [pages(address), pages(address)]
    for page in both:
        before = page.images("plan-goal")
        page.press("#plan-random")
        page.wait(lambda page=page, before=before: page.images("plan-goal") != before)
    for page in both:
        page.press("#plan-run")
    for page in both:
        page.wait(lambda page=page: len(page.images("plan-frames")) > 2)
    goals = []
    for page in both:
        _, shown, *_ = page.images("plan-frames")
        goals.append(pixels(shown))
        np.testing.assert_array_equal(goals[-1], pixels(page.images("plan-goal")[0]))
    assert not np.array_equal(*goals)


def test_an_uploaded_video_is_shown(address, pages, tmp_path):
    page = pages(address)
    page.open("Look")
    page.press("#look-run")
    page.wait(lambda: page.images("look-figure"))
    assert page.text("look-status").startswith("Left: ")
    bundled = page.images("look-figure")
    (tmp_path / "video.mp4").write_bytes(moving_square(20))
    page.upload(tmp_path / "video.mp4")
    page.wait(lambda: page.text("look-status").startswith("Your video has 2.0 seconds"))
    page.press("#look-run")
    page.wait(lambda: page.images("look-figure") not in ([], bundled))
    assert page.text("look-status").startswith("Left: 20 frames")


EVIL = {  # name of the file: content, and what the page says
    "text.mp4": (b"no video " * 100, "is not a video that can be read"),
    "two_gigabytes.mp4": (
        struct.pack(">I", 16) + b"ftypisom" + bytes(4) + struct.pack(">I", 2**31) + b"mdat" + bytes(999),
        "is not a video that can be read",
    ),
    SCRIPT: (b"<script>window.evil = 1</script>" * 20, "is not a video that can be read"),
}


def test_evil_uploads_are_refused_in_a_sentence(address, pages, tmp_path):
    page = pages(address)
    page.open("Look")
    for name, (content, says) in EVIL.items():
        (tmp_path / name).write_bytes(content)
        page.upload(tmp_path / name)
        page.wait(lambda says=says: says in page.text("look-status"))
        assert len(page.text("look-status").split(". ")) == 1 and page.source().count("onerror") == 0
        page.press("#look-run")  # the sentence goes before the next file
        page.wait(lambda: page.text("look-status").startswith("Left: "))
    assert page.driver.execute_script("return window.evil") is None
    assert "Your video" not in page.text("look-clip")


def test_a_video_of_two_gigabytes_is_not_sent(address, pages, tmp_path):
    page = pages(address)
    page.open("Look")
    with open(tmp_path / SCRIPT, "wb") as file:
        file.truncate(2**31)
    page.upload(tmp_path / SCRIPT)
    page.wait(lambda: "exceed the maximum allowed size of 50.0 Mb" in page.find("body")[0].text)
    assert "Your video" not in page.text("look-clip")
    assert page.driver.execute_script("return window.evil") is None


def test_a_good_video_with_a_script_in_its_name_runs_none(address, pages, tmp_path):
    page = pages(address)
    page.open("Look")
    (tmp_path / SCRIPT).write_bytes(moving_square(8))
    page.upload(tmp_path / SCRIPT)
    page.wait(lambda: page.text("look-status").startswith("Your video has"))
    assert page.driver.execute_script("return window.evil") is None and "onerror" not in page.source()


def test_the_planner_solves_a_task(demo_address, pages, screenshots):
    page = pages(demo_address)
    page.press("#plan-run")
    page.wait(lambda: "goal after" in page.text("plan-status") or "not reach" in page.text("plan-status"), 240)
    assert page.text("plan-status").startswith("world model: Reached the goal after ")
    assert len(page.images("plan-costs")) == len(page.images("plan-landscape")) == 1
    page.save(screenshots / "solved_1400.png")
    page.open("Model")
    page.wait(lambda: page.images("model-curves"))
    page.save(screenshots / "demo_model_1400.png")
