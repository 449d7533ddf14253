from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from builders import EXAMPLES

from vjepa2_hf.training.settings import (
    dump_yaml,
    exit_on_user_error,
    find_config,
    load_config,
    parse_arguments,
    parse_yaml,
)


@dataclass
class Inner:
    peak: float = 1e-3
    kind: Literal["cosine", "constant"] = "cosine"


@dataclass
class Config:
    output_dir: str
    max_steps: int = 10
    """Of the
    optimizer."""
    rate: Inner = field(default_factory=lambda: Inner(peak=0.5))
    second_rate: Inner | None = None
    encoder: dict[str, Any] = field(default_factory=dict)
    masks: list[dict[str, Any]] = field(default_factory=list)
    fps: float | None = None
    scale: tuple[float, float] = (0.3, 1.0)
    data: str | list[Inner] = "x"
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16"] | None = None


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_bare_no_is_the_word_where_a_setting_knows_it(tmp_path):
    path = write(tmp_path / "c.yaml", "output_dir: runs/a\nmixed_precision: no\n")
    assert load_config(Config, path).mixed_precision == "no"
    assert load_config(Config, path, ["mixed_precision=bf16"]).mixed_precision == "bf16"
    assert load_config(Config, path, ["gradient_checkpointing=no"]).gradient_checkpointing is False


def test_config_file_and_overrides_make_one_config(tmp_path):
    path = write(
        tmp_path / "c.yaml", "output_dir: runs/a\nmasks: [{type: future}, {num_blocks: 8}]\nscale: [0.5, 1]\n"
    )
    overrides = ["encoder.hidden_size=96", "rate.peak=3e-4", "masks.1.num_blocks=2", "fps=4", "max_steps=7"]
    config = load_config(Config, path, overrides)
    assert config.encoder == {"hidden_size": 96}
    assert config.rate.peak == 3e-4 and config.rate.kind == "cosine"
    assert config.masks == [{"type": "future"}, {"num_blocks": 2}]
    assert config.fps == 4.0 and isinstance(config.fps, float)
    assert config.scale == (0.5, 1.0) and config.max_steps == 7


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", ["output_dr=x"], "'output_dr'; did you mean 'output_dir'"),
        ("output_dir: x", ["rate.peek=1"], "'rate.peek'; did you mean 'rate.peak'"),
        ("output_dir: x", ["zzz=1"], "known ones are data, encoder, "),
        ("max_steps: 3", [], "'output_dir' is missing"),
        ("output_dir: x", ["max_steps=many"], "'max_steps' must be int, got 'many'"),
        ("output_dir: x", ["max_steps=true"], "'max_steps' must be int, got True"),
        ("output_dir: x", ["max_steps=1.5"], "'max_steps' must be int, got 1.5"),
        ("output_dir: x", ["rate.kind=cosin"], "must be one of 'cosine', 'constant', got 'cosin'"),
        ("output_dir: x", ["rate=3"], "'rate' must hold"),
        ("output_dir: x", ["fps=fast"], "'fps' must be float, got 'fast'"),
        ("output_dir: x", ["scale=[1, 2, 3]"], "'scale' must be tuple"),
        ("output_dir: x", ["masks=[1]"], "'masks.0' must be dict"),
        ("output_dir: x", ["data=[{peek: 1}]"], "'data.0.peek'; did you mean 'data.0.peak'"),
        ("output_dir: x", ["data=[{peak: 1}, {peak: many}]"], "'data.1.peak' must be float, got 'many'"),
        ("output_dir: x", ["data={peak: 1}"], "'data' must be str or list"),
        ("masks: [{}]", ["masks.3.num_blocks=1"], "'masks.3' does not exist: 'masks' is a list of 1"),
        ("max_steps: 3", ["max_steps.a=1"], "'max_steps' is the single value 3"),
        ("output_dir: x", ["max_steps"], "not of the form key=value"),
        ("output_dir: x", ["max_steps=[1"], "not valid YAML"),
        ("output_dir: [x", [], "not valid YAML"),
        ("- a\n- b", [], "holds a list"),
    ],
)
def test_a_wrong_config_is_one_sentence_that_names_it(tmp_path, text, overrides, message):
    with pytest.raises(ValueError, match=r"^[A-Z]") as error:
        load_config(Config, write(tmp_path / "c.yaml", text or "{}"), overrides)
    assert message in str(error.value)


BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "holds more than 100000 values"),
        (f"output_dir: x\nencoder: {'[' * 900}", "nested deeper than 50 levels"),
        (f"output_dir: x\nencoder: {'{a: ' * 60}1{'}' * 60}", "nested deeper than 50 levels"),
        ("output_dir: x\nencoder: &a {b: *a}", "line 2 holds itself"),
        ("output_dir: x\nmax_steps: 3\nmax_steps: 4", "the key 'max_steps' is given twice, in lines 2 and 3"),
        ("output_dir: x\nencoder: {a: 1, a: 2}", "the key 'a' is given twice"),
        ("output_dir: x\nmax_steps: 1:30", "'max_steps' must be int, got '1:30'"),
        ("output_dir: x\nmax_steps: 010", "'max_steps' must be int, got '010'"),
        ("output_dir: x\nfps: 1:30.5", "'fps' must be float, got '1:30.5'"),
        (f"output_dir: x\nmax_steps: {'9' * 5000}", "not valid YAML"),
        (f"output_dir: x\nfps: 1{'0' * 400}", "'fps' must be a number, got an integer"),
        (f"output_dir: x\nmax_steps: {'z' * 10**4}", "'max_steps' must be int, got 'zz"),
        (b"output_dir: caf\xe9", "is not UTF-8 text"),
        ("output_dir: x\ndata: \x07", "not valid YAML"),
    ],
)
def test_a_hostile_config_is_one_short_sentence(tmp_path, text, message):
    (tmp_path / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_config(Config, tmp_path / "c.yaml")
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


@pytest.mark.parametrize(
    "override",
    [f"encoder={'[' * 900}", f"encoder={'{a: ' * 60}1{'}' * 60}", f"encoder{'.a' * 900}=1", "encoder={a: 1, a: 2}"],
)
def test_a_hostile_override_is_one_short_sentence(override):
    with pytest.raises(ValueError, match="nested deeper|given twice") as caught:
        load_config(Config, None, ["output_dir=x", override])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1.5", 1.5), (".5", 0.5), ("2.", 2.0), ("-.inf", float("-inf")), ("1_000", 1000),
        ("0x1f", 31), ("0", 0), ("-7", -7), ("+7", 7), ("0.5e+3", 500.0), ("010", "010"), ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("2026-01-31", "2026-01-31"), ("1.2.3", "1.2.3"), (".", "."), ("..", ".."), ("null", None), ("~", None),
        ("true", True), ("'1e-3'", "1e-3"), ("{<<: {a: 1}, a: 2}", {"a": 2}),
    ],
)  # fmt: skip
def test_values_are_read_as_they_are_written_and_survive_a_saved_config(text, value):
    assert parse_yaml(f"a: {text}") == {"a": value} and type(parse_yaml(text)) is type(value)
    assert parse_yaml(dump_yaml({"a": value})) == {"a": value}
    if isinstance(value, str):  # other readers take version 1.1
        assert yaml.safe_load(dump_yaml({"a": value})) == {"a": value}


def test_anchors_and_merges_are_read():
    text = "base: &base {a: 1, b: 2}\none: &one {<<: *base, b: 3}\ntwo: {<<: *one, c: 4}\nthree: *one"
    one = {"a": 1, "b": 3}
    assert parse_yaml(text) == {"base": {"a": 1, "b": 2}, "one": one, "two": {**one, "c": 4}, "three": one}


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "c.yaml").write_bytes("\ufeffoutput_dir: été".encode())
    assert load_config(Config, tmp_path / "c.yaml").output_dir == "été"


def test_missing_config_file_is_named():
    with pytest.raises(FileNotFoundError, match="'nowhere.yaml' does not exist"):
        load_config(Config, "nowhere.yaml")


@pytest.mark.parametrize("name", ["demo/pretrain", "demo/pretrain.yaml", "examples/configs/demo/pretrain.yaml"])
def test_a_shipped_config_is_found_by_name_and_a_file_of_that_name_comes_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == EXAMPLES / "configs" / "demo" / "pretrain.yaml"
    (tmp_path / name).parent.mkdir(parents=True)
    assert parse_arguments(Config, "test", ["--config", write(Path(name), "output_dir: mine")]).output_dir == "mine"


def test_every_shipped_config_has_a_name():
    for path in (EXAMPLES / "configs").rglob("*.yaml"):
        assert find_config(path.relative_to(EXAMPLES / "configs").with_suffix("").as_posix()) == path


@pytest.mark.parametrize(("name", "near"), [("demo/pretrian", "name: demo/pretrain,"), ("xyz", ", demo/plan, ")])
def test_a_wrong_name_of_a_config_names_what_exists_nearby(name, near):
    with pytest.raises(FileNotFoundError, match=f"{name!r} does not exist; give the path of a YAML file") as error:
        load_config(Config, name)
    assert near in str(error.value)


def test_command_line(tmp_path):
    config = parse_arguments(Config, "test", ["--config", write(tmp_path / "c.yaml", "output_dir: a"), "max_steps=3"])
    assert (config.output_dir, config.max_steps) == ("a", 3)


def test_help_lists_every_key_with_its_type_and_default(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(Config, "test", ["--help"])
    assert capsys.readouterr().out.split("keys:\n")[1].splitlines() == [
        "  output_dir: str (required)",
        "  max_steps: int = 10   # Of the optimizer.",
        "  rate: Inner",
        "  rate.peak: float = 0.5",
        '  rate.kind: "cosine" | "constant" = "cosine"',
        "  second_rate: Inner | null = null",
        "  second_rate.peak: float = 0.001",
        '  second_rate.kind: "cosine" | "constant" = "cosine"',
        "  encoder: dict[str, Any] = {}",
        "  masks: list[dict[str, Any]] = []",
        "  fps: float | null = null",
        "  scale: tuple[float, float] = [0.3, 1.0]",
        '  data: str | list[test_settings.Inner] = "x"',
        "  gradient_checkpointing: bool = false",
        '  mixed_precision: "no" | "bf16" | null = null',
    ]


@pytest.mark.parametrize(
    "error", [ValueError("the value\nis wrong"), FileNotFoundError("no file"), OSError("no disk")]
)
def test_user_errors_end_in_one_line_without_a_traceback(error, capsys):
    @exit_on_user_error
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


def test_ctrl_c_ends_in_one_line_without_a_traceback(capsys):
    @exit_on_user_error
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 130
    assert capsys.readouterr().err.splitlines() == ["error: interrupted by the user; results saved so far stay."]


def test_an_error_inside_a_data_worker_is_one_line_too(capsys):
    class Broken(torch.utils.data.IterableDataset):
        def __iter__(self):
            raise FileNotFoundError("The shard 'a' is gone.")

    @exit_on_user_error
    def main():
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: The shard 'a' is gone.\n"


def test_a_programming_error_keeps_its_traceback():
    @exit_on_user_error
    def main():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        main()


@dataclass
class Special(Config):
    depth: int = 2
    """Of the special part."""


def test_help_tells_what_inherited_keys_mean(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(Special, "Script.", ["--help"])
    printed = capsys.readouterr().out
    assert "max_steps: int = 10   # Of the optimizer." in printed and "# Of the special part." in printed


@dataclass
class Renamed(Config):
    renamed_settings = {"length": "max_steps"}


def test_an_old_name_of_a_setting_is_read_with_one_warning(tmp_path, caplog):
    path = write(tmp_path / "c.yaml", "output_dir: a\nlength: 7\n")
    for overrides in ([], ["length=7"]):
        assert load_config(Renamed, path, overrides).max_steps == 7
    assert [record.getMessage() for record in caplog.records] == [
        "The setting 'length' is now called 'max_steps'; please use the new name."
    ]
