"""Labels and splits of files, from metadata, folders that name classes, or lists: never from a split's name."""

import pytest

from vjepa2_hf.data.labels import describe_files, label_files, read_path_list, split_of, split_of_shard
from vjepa2_hf.video_io import ReadLimits


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"), ("Training", "train"), ("train2017", "train"), ("train_256", "train"), ("TEST", "test"),
        ("val", "validation"), ("val-1", "validation"), ("dev", "validation"), ("test_videos", "test"),
        ("videos_val", "validation"), ("test set", "test"), ("evaluation", "test"),
        ("cat", None), ("test tube", None), ("trainer", None), ("train_ride", None), ("contest", None),
    ],
)  # fmt: skip
def test_names_of_splits(folder, split):
    assert split_of(folder) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00010.parquet", "train"), ("test.parquet", "test"), ("x/val_003.tar", "validation"),
        ("test/data-00000.parquet", "test"), ("data-00000-of-00010.parquet", None), ("trains-0.parquet", None),
    ],
)  # fmt: skip
def test_splits_of_shards(name, split):
    assert split_of_shard(name) == split


# Names, labels, splits
LAYOUTS = {
    "classes": (["cat/a.mp4", "dog/b.mp4"], ["cat", "dog"], [None, None]),
    "splits of classes": (
        ["train/cat/a.mp4", "train/dog/a.mp4", "test/cat/a.mp4", "val/dog/a.mp4"],
        ["cat", "dog", "cat", "dog"], ["train", "train", "test", "validation"],
    ),
    "classes of splits": (["cat/train/a.mp4", "dog/test/a.mp4"], ["cat", "dog"], ["train", "test"]),
    "splits alone": (["train/a.mp4", "test/b.mp4"], [None, None], ["train", "test"]),
    "no folders": (["a.mp4", "b.mp4"], [None, None], [None, None]),
    "a folder per video": (
        ["cat/v1/rgb.mp4", "cat/v2/rgb.mp4", "dog/v3/rgb.mp4", "dog/v4/rgb.mp4"],
        ["cat", "cat", "dog", "dog"], [None] * 4,
    ),
    "a folder below all": (["cat/rgb/a.mp4", "dog/rgb/b.mp4"], ["cat", "dog"], [None, None]),
    "subjects": (
        ["s1/run/a.mp4", "s1/walk/a.mp4", "s2/run/a.mp4", "s2/walk/a.mp4"], ["run", "walk", "run", "walk"], [None] * 4,
    ),
    "one class": (["cat/a.mp4", "cat/b.mp4"], ["cat", "cat"], [None, None]),
    "windows": (["train\\cat\\a.mp4".replace("\\", "/")], ["cat"], ["train"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_folder_that_names_classes_is_the_label(layout):
    names, labels, splits = LAYOUTS[layout]
    found = label_files(names)
    assert (found.labels, found.splits, found.problem) == (labels, splits, None)


def test_files_without_a_class_are_named():
    found = label_files(["train/cat/a.mp4", "train/dog/b.mp4", "train/loose.mp4"])
    assert found.labels == ["cat", "dog", None] and found.classes == ["cat", "dog"]
    assert "1 of 3 files lie in no class folder, like train/loose.mp4" in found.problem


def test_of_folders_of_several_depths_the_level_that_all_have_names_classes_and_that_is_said():
    found = label_files(["cat/a.mp4", "train/dog/day1/b.mp4"])
    assert found.labels == ["cat", "dog"]
    assert "differ in depth, like cat/a.mp4 and train/dog/day1/b.mp4: the labels are" in found.problem


class TestMetadata:
    NAMES = ("train/x/a.mp4", "test/x/b.mp4", "train/x/c.mp4")

    def test_it_comes_before_folders(self, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "metadata.csv").write_text("file_name,label,speed\ntest/x/b.mp4,2,0.5\n")
        (tmp_path / "train/metadata.jsonl").write_text(
            '{"file_name": "x/a.mp4", "label": 1}\n\n{"file_name": "./x/c.mp4", "label": 0, "split": "val"}\n'
        )
        found = describe_files(tmp_path, self.NAMES)
        assert found.labels == [1, 2, 0] and found.splits == ["train", "test", "validation"] and not found.problem
        assert found.columns[1] == {"label": 2, "speed": 0.5}

    def test_without_labels_folders_are_asked(self, tmp_path):
        (tmp_path / "metadata.csv").write_text("file_name,fps\ntest/x/b.mp4,25\n")
        found = describe_files(tmp_path, ["train/x/a.mp4", "test/y/b.mp4"])
        assert found.labels == ["x", "y"] and found.splits == ["train", "test"]

    def test_files_that_it_leaves_out_are_named(self, tmp_path):
        (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/x/a.mp4,cat\n")
        found = describe_files(tmp_path, self.NAMES)
        assert found.labels == ["cat", None, None] and "2 of 3 files have no label" in found.problem

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("metadata.csv", b"file_name,label\n,1\n", "A row of .* has no 'file_name'"),
            ("metadata.jsonl", b"{bad", "Line 1 of .* is not JSON"),
            ("metadata.jsonl", b"[" * 10**5, "Line 1 of .* is not JSON"),
            ("metadata.jsonl", b'{"file_name": "a.mp4"}\n[1]\n', "has no 'file_name'"),
            ("metadata.jsonl", b'{"file_name": "a.mp4", "label": 1}\n{"file_name": "b.mp4", "label": "x"}', "numbers"),
            ("metadata.jsonl", b'{"file_name": "a.mp4", "label": [1]}', "is .1.; expected text or a number"),
            ("metadata.csv", b"file_name,label\na.mp4,1\na.mp4,0\n", "gives 'a.mp4' the label 0, but it has 1"),
            ("metadata.csv", b"\xff\xfe", "is not UTF-8 text"),
            ("metadata.csv", b"file_name,label\n" + b"x" * 200_000 + b",1", "not a table of comma-separated"),
        ],
    )  # fmt: skip
    def test_metadata_that_cannot_be_read_is_refused_by_name(self, tmp_path, name, content, reason):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            describe_files(tmp_path, ["a.mp4", "b.mp4"])

    @pytest.mark.parametrize(
        ("text", "labels"),
        [
            ("a.mp4,1\nb.mp4,0\nc.mp4,\n", [1, 0, None]),
            ("a.mp4,1\nb.mp4,0\nc.mp4,nan\n", [1.0, 0.0, None]),
            ("a.mp4,x\nb.mp4,y\nc.mp4,\n", ["x", "y", None]),
            ('a.mp4,1\nb.mp4,0\nc.mp4," "\n', [1, 0, None]),
        ],
    )
    def test_an_empty_label_is_no_class(self, tmp_path, text, labels):
        (tmp_path / "metadata.csv").write_text("file_name,label\n" + text)
        found = describe_files(tmp_path, ["a.mp4", "b.mp4", "c.mp4"])
        assert found.labels == labels and len(found.classes) == 2
        assert "1 of 3 files have no label in the metadata, like c.mp4" in found.problem

    @pytest.mark.parametrize("name", ["cat/a", "cat\\\\a.mp4", "videos/cat/a.mp4"])
    def test_labels_of_files_that_are_not_there_are_not_passed_over_in_silence(self, tmp_path, name):
        (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "{name}", "label": 1}}')
        found = describe_files(tmp_path, ["cat/a.mp4", "dog/b.mp4"])
        assert found.labels == ["cat", "dog"] and "labels, but of none of the files" in found.problem

    def test_a_split_of_an_unknown_name_is_named(self, tmp_path):
        (tmp_path / "metadata.csv").write_text("file_name,label,split\na.mp4,1,train\nb.mp4,2,holdout\n")
        assert "puts b.mp4 into a split that is not known" in describe_files(tmp_path, ["a.mp4", "b.mp4"]).problem

    def test_line_ends_within_a_value_are_part_of_it(self, tmp_path):
        line = '{"file_name": "%s.mp4", "label": %d, "text": "x\u2028y\x85z"}\n'
        (tmp_path / "metadata.jsonl").write_text(line % ("a", 1) + line % ("b", 2), encoding="utf-8")
        assert describe_files(tmp_path, ["a.mp4", "b.mp4"]).labels == [1, 2]
        (tmp_path / "metadata.jsonl").unlink()
        (tmp_path / "metadata.csv").write_text('file_name,text,label\na.mp4,"x\ny",1\nb.mp4,"x\x85y",2\n', "utf-8")
        found = describe_files(tmp_path, ["a.mp4", "b.mp4"])
        assert found.labels == [1, 2] and [row["text"] for row in found.columns] == ["x\ny", "x\x85y"]

    @pytest.mark.parametrize(
        ("name", "text"), [("metadata.csv", "id,title\n3,x\n"), ("metadata.jsonl", '{"id": 3}\n')]
    )
    def test_a_table_of_something_else_is_left_alone_and_said_so(self, tmp_path, caplog, name, text):
        (tmp_path / name).write_text(text)
        found = describe_files(tmp_path, ["cat/a.mp4", "dog/b.mp4"])
        assert found.labels == ["cat", "dog"] and f"{name} has no column file_name" in caplog.text

    def test_it_is_read_up_to_a_limit(self, tmp_path):
        (tmp_path / "metadata.csv").write_text("file_name,label\n" + "a.mp4,1\n" * 100)
        with pytest.raises(ValueError, match="has 816 bytes, more than limits.max_bytes=500"):
            describe_files(tmp_path, ["a.mp4"], ReadLimits(max_bytes=500))


LISTS = {
    "spaces": ("/v/a.mp4 0\n/v/b c.mp4 12\n", [("/v/a.mp4", 0), ("/v/b c.mp4", 12)]),
    "commas": ("a.mp4,cat\n b.mp4 , dog \n", [("{}/a.mp4", "cat"), ("{}/b.mp4", "dog")]),
    "colons": ("/v/a.mp4::3\n", [("/v/a.mp4", 3)]),
    "tabs": ("/v/a.webm\t-1\n", [("/v/a.webm", -1)]),
    "no labels": ("/v/a.mp4\n# more\n\n/v/a 1.mp4\n", [("/v/a.mp4", None), ("/v/a 1.mp4", None)]),
    "quotes": ('"/v/a b.mp4" 3\n', [("/v/a b.mp4", 3)]),
    "mixed labels": ("/v/a.mp4 0\n/v/b.mp4 cat\n", [("/v/a.mp4", "0"), ("/v/b.mp4", "cat")]),
    "a header": ("video,label,split\n/v/a.mp4,4,train\n", [("/v/a.mp4", 4)]),
    "a header with spaces": ("path label\nv/a.mp4 4\n", [("{}/v/a.mp4", 4)]),
    "a header after empty lines": ("\n\npath,label\n/v/a.mp4,4\n/v/b.mp4,\n", [("/v/a.mp4", 4), ("/v/b.mp4", None)]),
    "a mark of Windows": ("\ufeff/v/a.mp4 0\r\n/v/b.mp4 1\r\n", [("/v/a.mp4", 0), ("/v/b.mp4", 1)]),
    "a URL": ("https://x.org/a.mp4 1\n", [("https://x.org/a.mp4", 1)]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_paths_and_labels(tmp_path, kind):
    text, expected = LISTS[kind]
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    rows = read_path_list(tmp_path / "list.csv")
    assert [(row["path"], row.get("label")) for row in rows] == [(p.format(tmp_path), label) for p, label in expected]
    assert not any("problem" in row for row in rows)


def test_lines_that_name_no_file_are_kept_with_their_reason(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 0\nnothing here\n")
    rows = read_path_list(tmp_path / "list.txt")
    assert rows[0]["label"] == 0 and "line 2 of" in rows[1]["problem"] and "'nothing here'" in rows[1]["problem"]


def test_an_empty_list_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="names no file; expected one path per line"):
        read_path_list(tmp_path / "list.txt")
