"""The app in headless Chromium, by selenium; needs the extras `app`, `demo` and `dev`, and the programs of `PROGRAMS`.

`make test-app` names a folder for screenshots in `VJEPA2_TEST_APP`, and fails where something is missing. Without that
variable the tests are skipped then, and screenshots go to a temporary folder.
"""

import base64
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import build_masked_latent, build_planner
from script_runs import clean_environment

from vjepa2_hf import VJepa2VideoProcessor
from vjepa2_hf.environments import PUSHING


ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "app" / "app.py"
PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver"}  # of Debian's packages
SECONDS = 180.0  # for anything that a page shows


def missing() -> list[str]:
    """What to install before these tests can run."""
    modules = {"gradio": 'pip install -e ".[app,demo]"', "selenium": 'pip install -e ".[dev]"'}
    found = [command for module, command in modules.items() if importlib.util.find_spec(module) is None]
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    return found + ([f"apt-get install {' '.join(packages)}"] if packages else [])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacks = missing()
    if not lacks:
        return
    text = f"The app's tests in a browser need: {'; '.join(lacks)}"
    if os.environ.get("VJEPA2_TEST_APP"):
        pytest.exit(text, returncode=1)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=text))


def wait_for(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first true value of `what`, which may find nothing while the page changes."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(WebDriverException, IndexError):
            if found := what():
                return found
        time.sleep(0.1)
    raise TimeoutError(f"Not seen on the page within {seconds:g} seconds.")


class Page:
    """A session of the app in a browser of its own."""

    wait = staticmethod(wait_for)

    def __init__(self, address: str, width: int):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        size = f"--window-size={width},900"
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", size):
            options.add_argument(argument)
        if width < 500:  # a window of Chromium is never narrower
            metrics = {"width": width, "height": 844, "pixelRatio": 1.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.get(address)
        self.wait(lambda: self.find("#plan-run")[0].is_displayed())

    def find(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, name: str) -> str:
        return self.wait(lambda: self.find(f"#{name}"))[0].text

    def press(self, selector: str) -> None:
        """Scrolls to an element that can be pressed, and clicks it."""

        def click() -> bool:
            element = self.find(selector)[0]
            self.driver.execute_script('arguments[0].scrollIntoView({block: "center"})', element)
            element.click()
            return True

        self.wait(click)

    def open(self, tab: str) -> None:
        self.wait(lambda: [each for each in self.find("button[role=tab]") if each.text == tab])[0].click()

    def upload(self, path: Path) -> None:
        self.wait(lambda: self.find("#look-upload input[type=file]"))[0].send_keys(str(path))

    def source(self) -> str:
        return self.driver.page_source

    def images(self, name: str) -> list[str]:
        """The addresses of the images in an element; those here hold the images themselves."""
        return [image.get_attribute("src") for image in self.find(f"#{name} img")]

    def widths(self) -> tuple[int, int]:
        """Of the window, and of what it holds."""
        return tuple(self.driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]"))

    def save(self, path: Path) -> None:
        """A screenshot of the whole page."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
        path.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))

    def close(self) -> None:
        self.driver.quit()


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def running_app(log: Path, *arguments: str) -> Iterator[str]:
    """The app as a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(APP), "--port", str(port), *arguments]
    environment = clean_environment() | {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    with open(log, "wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as app:
        try:
            end = time.monotonic() + SECONDS
            while not accepts(port):
                if app.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"The app did not start: {log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            app.terminate()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The app on models of random weights."""
    folder = tmp_path_factory.mktemp("models")
    fields = {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2, "action_low": [-1.0] * 4}
    build_planner(action_high=[1.0] * 4, options={"device": "cpu"}, **fields).save_pretrained(
        folder / "tiny" / "final"
    )
    build_masked_latent(frames_per_clip=4, normalize_targets="clip").save_pretrained(folder / "video")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(folder / "video")
    models = ("--model", str(folder / "tiny" / "final"), "--video_model", str(folder / "video"))
    with running_app(folder / "app.log", *models, "--env", PUSHING) as found:
        yield found


@pytest.fixture(scope="module")
def demo_address(tmp_path_factory) -> Iterator[str]:
    """The app on the models of the demo."""
    folder = Path(os.environ.get("VJEPA2_DEMO", ROOT / "runs" / "demo"))
    if not (folder / "world_model" / "final").is_dir():
        pytest.skip("Solving a task needs trained models: `make demo` first, or name its folder in VJEPA2_DEMO.")
    log = tmp_path_factory.mktemp("demo") / "app.log"
    with running_app(log, "--model", str(folder / "world_model" / "final")) as found:
        yield found


@pytest.fixture
def pages() -> Iterator[Callable[..., Page]]:
    """Opens pages, and closes them after the test."""
    opened = []

    def open_page(address: str, width: int = 1400) -> Page:
        opened.append(Page(address, width))
        return opened[-1]

    yield open_page
    for page in opened:
        page.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    named = os.environ.get("VJEPA2_TEST_APP")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
