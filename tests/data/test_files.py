"""Atomic writes, folder locks and fingerprints."""

import json
import os
import stat
from types import SimpleNamespace

import pytest
import torch
from builders import TINY_ENCODER, tiny_run
from safetensors.torch import save_file
from torch import nn

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig
from vjepa2_hf.data.files import (
    claim_folder,
    config_fingerprint,
    lock_folder,
    locked,
    plain_numbers,
    staged_folder,
    used_fields,
    weights_fingerprint,
    write_aside,
    write_json,
    write_text,
    writing,
)
from vjepa2_hf.data.parts import save_part


def test_weights_have_their_hash():
    layer = nn.Linear(3, 2)
    before = weights_fingerprint(layer)
    assert weights_fingerprint(layer) == before
    layer.bias.data[0] += 1
    assert weights_fingerprint(layer) != before


def test_a_config_is_known_wherever_it_was_loaded_from(tmp_path):
    config = VJepa2EncoderConfig(**TINY_ENCODER)
    VJepa2Encoder(config).save_pretrained(tmp_path)
    assert config_fingerprint(VJepa2Encoder.from_pretrained(tmp_path).config) == config_fingerprint(config)
    other = VJepa2EncoderConfig(**{**TINY_ENCODER, "num_attention_heads": 4})  # the same weights' shapes
    assert config_fingerprint(other) != config_fingerprint(config)


def test_a_cache_of_0_1_counts_for_encoders_that_do_not_use_later_fields():
    config = VJepa2EncoderConfig(**TINY_ENCODER)
    fields = used_fields(config, config.to_diff_dict())
    assert "output_levels" not in fields and fields["hidden_size"] == config.hidden_size
    later = VJepa2EncoderConfig(**TINY_ENCODER, image_tubelet_size=1)
    assert used_fields(later, later.to_diff_dict())["image_tubelet_size"] == 1
    assert config_fingerprint(later) != config_fingerprint(config)


def test_a_folder_belongs_to_what_claimed_it(tmp_path):
    (tmp_path / "new").mkdir()
    manifest = tmp_path / "new" / "manifest.json"
    claim_folder(manifest, {"model": "here", "stride": 1})
    claim_folder(manifest, {"model": "moved", "stride": 1})
    assert json.loads(manifest.read_text()) == {"model": "here", "stride": 1}
    with pytest.raises(ValueError, match=r"holds features with other pool \(None, now clip\), stride \(1, now 2\)"):
        claim_folder(manifest, {"model": "here", "stride": 2, "pool": "clip"})
    with pytest.raises(FileExistsError, match="holds files, but no features"):
        claim_folder(tmp_path / "manifest.json", {})
    for damaged in ('{"stride": ', "[1]", ""):
        manifest.write_text(damaged)
        with pytest.raises(ValueError, match="manifest.json' is damaged .*; remove"):
            claim_folder(manifest, {"stride": 1})


@pytest.mark.parametrize("is_there", [True, False])
def test_a_new_folder_appears_where_a_link_leads(tmp_path, is_there):
    (tmp_path / "disk").mkdir()
    if is_there:
        (tmp_path / "disk" / "out").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    with staged_folder(tmp_path / "out") as folder:
        assert folder.parent == tmp_path / "disk"  # on the same disk, so that it can be renamed
        (folder / "a").write_text("b")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "out" / "a").read_text() == "b"
    with pytest.raises(FileExistsError, match="is not empty"), staged_folder(tmp_path / "out"):
        pass


def test_a_mounted_disk_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path))
    with pytest.raises(OSError, match="is where a disk is mounted; give a new folder in it"), staged_folder(tmp_path):
        pass


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_replaces_a_link_to_an_empty_or_missing_one(tmp_path, is_there):
    if is_there:
        (tmp_path / "disk").mkdir()
    (tmp_path / "final").symlink_to(tmp_path / "disk")
    with write_aside(tmp_path / "final") as partial:
        partial.mkdir()
        (partial / "a").write_text("b")
    assert not (tmp_path / "final").is_symlink() and (tmp_path / "final" / "a").read_text() == "b"


def test_a_folder_has_one_writer(tmp_path):
    with locked(tmp_path), pytest.raises(OSError, match="Another process writes to"), locked(tmp_path):
        pass
    with locked(tmp_path):
        write_json(tmp_path / "a.json", [1])
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["a.json"]


def test_the_same_process_locks_its_folder_again(tmp_path):
    first, second = lock_folder(tmp_path, reentrant=True), lock_folder(tmp_path, reentrant=True)
    first.release()
    with pytest.raises(OSError, match="Another process writes to"):
        lock_folder(tmp_path)
    second.release()
    lock_folder(tmp_path).release()


def test_the_processes_of_a_run_lock_a_folder_together(tmp_path):
    waited = []
    main = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: waited.append("main"))
    other = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: waited.append("other"))
    with locked(tmp_path / "cache", main, wait=True), locked(tmp_path / "cache", other, wait=True):
        assert waited == ["main", "other"]
        assert [path.name for path in tmp_path.iterdir()] == ["cache.lock"]  # the block may create the folder


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    values = {
        "iou": [0.5, float("nan")],
        "pair": (torch.tensor(2), -float("inf")),
        "name": "nan",
        "no": None,
        "yes": True,
    }
    write_json(tmp_path / "a.json", plain_numbers(values), allow_nan=False)
    expected = {"iou": [0.5, None], "pair": [2, None], "name": "nan", "no": None, "yes": True}
    assert json.loads((tmp_path / "a.json").read_text()) == expected


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "numbers.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), write_aside(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "[2]")
    assert json.loads(path.read_text()) == [2]


def test_a_text_is_on_the_disk_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        fsync(descriptor)
        events.append(os.fstat(descriptor).st_ino)

    def replaced(source, target):
        replace(source, target)
        events.append(os.path.basename(target))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    for text in ("new", "replaced"):
        events.clear()
        write_text(tmp_path / "config.yaml", text)
        file = (tmp_path / "config.yaml").stat().st_ino
        assert events == [file, "config.yaml", tmp_path.stat().st_ino]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_weights_have_the_permissions_of_other_new_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).save_pretrained(tmp_path / "model", max_shard_size="20KB")
        with write_aside(tmp_path / "part-0.safetensors") as partial:
            save_part(partial, {"a": torch.zeros(3)}, "note", 1)
        with write_aside(tmp_path / "checkpoint") as partial:
            partial.mkdir()
            save_file({"a": torch.zeros(3)}, partial / "model.safetensors")
        run, *_ = tiny_run(tmp_path / "run")
        run.save_checkpoint(1)
    finally:
        os.umask(before)
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) > 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}
    assert not list(tmp_path.rglob(".mode*"))


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for names in (["a", "b"], ["c"]):
        with write_aside(tmp_path / "model") as partial:
            partial.mkdir()
            for name in names:
                (partial / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["model", "model/c"]
    with pytest.raises(FileExistsError, match="exists and is not empty"), staged_folder(tmp_path / "model"):
        pass


def test_a_failed_write_names_the_file(tmp_path):
    message = "a.bin' could not be written .disk full.; see whether the disk is full, then wait"
    with pytest.raises(OSError, match=message), writing(tmp_path / "a.bin", "wait"):
        raise RuntimeError("disk full")


def test_a_second_writer_of_a_folder_is_refused_and_the_first_one_ends(tmp_path):
    with staged_folder(tmp_path / "out") as first:
        (first / "a").write_text("1")
        with pytest.raises(OSError, match="Another process writes to '.*out'"), staged_folder(tmp_path / "out"):
            pass
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
