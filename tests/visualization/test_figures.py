"""The figures hold what they were given, and files are what their ending says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.patches import Rectangle

import vjepa2_hf
from vjepa2_hf.video_io import VideoReader
from vjepa2_hf.visualization.figures import (
    plot_feature_pca,
    plot_loss_by_position,
    plot_nearest_frames,
    plot_probe_attention,
    plot_rows,
    render,
    write_figure,
)


RNG = np.random.default_rng(0)


def pictures(*shape: int) -> np.ndarray:
    return RNG.integers(0, 255, (*shape, 3), dtype=np.uint8)


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def row_names(figure) -> list[str]:
    return [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]


def images(figure) -> list[np.ndarray]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def test_rows_of_different_resolution_share_one_field():
    figure = plot_rows([("a", np.zeros((2, 16, 16, 3))), ("a", np.zeros((2, 4, 4, 3)))], ["0", "1"])
    assert len(figure.axes) == 4
    assert {axis.get_xlim() for axis in figure.axes} == {(0.0, 16.0)}


def test_a_frame_stands_over_the_features_of_its_tubelet():
    clips, colors = [pictures(8, 6, 6) for _ in range(2)], [RNG.random((4, 3, 3, 3)) for _ in range(2)]
    figure = plot_feature_pca(clips, colors)
    assert titles(figure) == ["frame 0", "frame 2", "frame 4", "frame 6"]
    assert row_names(figure) == ["clip 1", "clip 1:\nfeatures", "clip 2", "clip 2:\nfeatures"]
    np.testing.assert_array_equal(images(figure)[2], clips[0][4])
    np.testing.assert_array_equal(images(figure)[15], colors[1][3])
    assert len(titles(plot_feature_pca([pictures(60, 6, 6)], [RNG.random((30, 3, 3, 3))]))) == 8
    side_by_side = plot_feature_pca(clips, colors, shown=[5], names=["left", "left"])
    assert titles(side_by_side) == ["left", "left"] and row_names(side_by_side) == ["frame 5", "features"]
    np.testing.assert_array_equal(images(side_by_side)[1], clips[1][5])
    np.testing.assert_array_equal(images(side_by_side)[3], colors[1][2])


def test_attention_is_drawn_where_and_when_it_is():
    attention = torch.full((2, 4, 2, 2), 0.02)
    attention[0, 3, 0, 1] += 1 - attention[0].sum()
    attention[1, 3, 0, 1] += 1 - attention[1].sum()
    figure = plot_probe_attention(np.zeros((8, 8, 8, 3), np.uint8), attention, 2, by_head=True, title="jumps")
    assert row_names(figure)[:3] == ["attention", "head 1", "head 2"] and figure.get_suptitle() == "jumps"
    by_row = np.stack(images(figure)).reshape(4, 4, 8, 8, 3).sum(axis=-1)
    brightest = by_row[1] > by_row[1].max() - 0.01
    assert brightest[3, :4, 4:].all() and brightest.sum() == 16
    (curve,) = [axis for axis in figure.axes if axis.get_xlabel() == "frame"]
    np.testing.assert_allclose(curve.patches[0].get_data().values, [0.08, 0.08, 0.08, 0.76], rtol=1e-5)
    each = plot_probe_attention(np.zeros((8, 8, 8, 3), np.uint8), torch.full((2, 4, 2, 2), 0.25), 2)  # a query a step
    (curve,) = [axis for axis in each.axes if axis.get_xlabel() == "frame"]
    np.testing.assert_allclose(curve.patches[0].get_data().values, 0.25)
    one = plot_probe_attention(np.zeros((8, 8, 8, 3), np.uint8), attention, 2, shown=[6], by_head=True)
    assert titles(one) == ["attention", "head 1", "head 2"] and row_names(one)[0] == "frame 6"


def test_neighbors_stand_beside_their_query():
    queries, neighbors = pictures(9, 4, 4), pictures(9, 2, 4, 4)
    distances = torch.arange(18.0).reshape(9, 2)
    names, found = [f"q{q}" for q in range(9)], [[f"a{q}", f"b{q}"] for q in range(9)]
    assert len(row_names(plot_nearest_frames(queries, neighbors, distances, names, found))) == 6
    figure = plot_nearest_frames(queries, neighbors, distances, names, found, shown=[7, 3])
    assert row_names(figure) == ["q7", "q3"] and titles(figure) == ["frame", "nearest", "2."]
    np.testing.assert_array_equal(np.stack(images(figure)[:3]), [queries[7], *neighbors[7]])
    assert figure.axes[2].get_xlabel() == "b7\n15.000"


def test_losses_of_all_times_share_one_scale_and_what_was_never_hidden_is_grey():
    losses = np.arange(12.0).reshape(3, 2, 2)
    losses[:, 0, 0] = losses[0, 0, 1] = np.nan
    figure = plot_loss_by_position(losses, frames_per_step=2)
    assert titles(figure) == ["frames 0–1", "frames 2–3", "frames 4–5", "mean over time"]
    maps = images(figure)
    grey = np.full(3, 211 / 255)
    for place in (maps[0][0, 0], maps[0][0, 1], maps[3][0, 0]):
        np.testing.assert_allclose(place, grey)
    assert len({tuple(value) for one in maps[:3] for value in one.reshape(-1, 3)}) == 9  # grey and 8 losses
    (curve,) = [axis for axis in figure.axes if axis.get_xlabel() == "frame"]
    np.testing.assert_allclose(curve.patches[0].get_data().values, [2.5, 6, 10])


def test_one_picture_is_marked_among_the_times_and_a_long_title_is_broken():
    figure = plot_loss_by_position(np.arange(1, 13).reshape(3, 2, 2), 2, shown=[1], title="many words " * 20)
    (curve,) = [axis for axis in figure.axes if axis.get_xlabel() == "frame"]
    (band,) = [patch for patch in curve.patches if isinstance(patch, Rectangle)]
    assert (band.get_x(), band.get_width()) == (2, 2) and curve.get_ylim()[0] == 0
    title = render(figure)[:50]
    assert (title[:, :8] == 255).all() and (title[:, -8:] == 255).all() and title.min() < 50
    assert figure.get_suptitle().count("\n") >= 2


def test_files_are_what_their_ending_says(tmp_path):
    clip, colors = pictures(6, 6, 6), RNG.random((3, 3, 3, 3))

    def draw(shown):
        return plot_feature_pca([clip], [colors], shown)

    for ending in ("png", "gif", "mp4"):
        write_figure(tmp_path / "new" / f"look.{ending}", draw, count=6, fps=5)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["look.gif", "look.mp4", "look.png"]
    with PIL.Image.open(tmp_path / "new" / "look.png") as figure:
        assert figure.format == "PNG" and figure.width > figure.height  # three frames beside each other
    with PIL.Image.open(tmp_path / "new" / "look.gif") as animation:
        assert animation.format == "GIF" and animation.n_frames == 6
        assert animation.info["duration"] == 200 and animation.info["loop"] == 0
    with VideoReader(tmp_path / "new" / "look.mp4") as reader:
        assert len(reader) == 6 and reader.fps == pytest.approx(5)
        seen = reader.frames([5])[0].astype(int)
    expected = render(draw([5]))
    assert expected.shape[0] % 2 == expected.shape[1] % 2 == 0
    assert np.abs(seen - expected).mean() < 8


def test_nothing_is_left_of_a_picture_that_fails(tmp_path):
    (tmp_path / "look.gif").write_bytes(b"old")

    def draw(shown):
        if shown == [1]:
            raise ValueError("no such frame")
        return plot_rows([("a", np.zeros((1, 4, 4, 3)))], ["0"])

    with pytest.raises(ValueError, match="no such frame"):
        write_figure(tmp_path / "look.gif", draw, count=2)
    assert [path.name for path in tmp_path.iterdir()] == ["look.gif"]
    assert (tmp_path / "look.gif").read_bytes() == b"old"
    with pytest.raises(ValueError, match=r"'look.jpg'; expected a name that ends in .png, .gif or .mp4"):
        write_figure("look.jpg", draw, count=2)
    for count, fps, said in ((0, 6, "count is 0"), (2, 0, "frame rate of the animation is 0")):
        with pytest.raises(ValueError, match=said):
            write_figure(tmp_path / "look.gif", draw, count=count, fps=fps)


def test_nothing_is_drawn_for_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")

    def draw(shown):
        raise AssertionError("drawn")

    with pytest.raises(ValueError, match="file is not a writable folder"):
        write_figure(tmp_path / "file" / "new" / "look.gif", draw, count=2)


def test_two_processes_that_write_one_picture_do_not_share_a_file(tmp_path, monkeypatch):
    figure, seen = plot_rows([("a", np.zeros((1, 4, 4, 3)))], ["0"]), []
    save = type(figure).savefig

    def savefig(self, path, **options):
        save(self, path, **options)
        seen.append(path)
        if len(seen) == 1:  # the other process begins and ends before this one has renamed its file
            with monkeypatch.context() as patch:
                patch.setattr("os.getpid", lambda: -1)
                write_figure(tmp_path / "look.png", lambda shown: figure, count=1)

    monkeypatch.setattr(type(figure), "savefig", savefig)
    write_figure(tmp_path / "look.png", lambda shown: figure, count=1)
    assert len(set(seen)) == 2 and [path.name for path in tmp_path.iterdir()] == ["look.png"]


def test_nothing_is_left_of_a_file_that_ends_early(tmp_path, monkeypatch):
    figure = plot_rows([("a", np.zeros((1, 4, 4, 3)))], ["0"])

    def savefig(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(type(figure), "savefig", savefig)
    with pytest.raises(OSError, match="disk full"):
        write_figure(tmp_path / "look.png", lambda shown: figure, count=1)
    assert not list(tmp_path.iterdir())


def test_attention_over_other_times_than_the_pictures_is_refused():
    frames = np.zeros((8, 8, 8, 3), np.uint8)
    for steps in (3, 5, 8):  # of 8 steps each would pass for one frame
        with pytest.raises(ValueError, match=f"{steps} time steps, but 8 frames in tubelets of 2 have 4"):
            plot_probe_attention(frames, torch.ones(1, steps, 2, 2), 2)
    assert plot_probe_attention(frames[:1], torch.ones(1, 1, 2, 2), 2).axes  # a still picture


def test_numbers_of_any_dtype_are_drawn():
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    attention = torch.full((1, 1, 2, 2), 0.25, dtype=torch.bfloat16, requires_grad=True)
    (curve,) = [axis for axis in plot_probe_attention(frames, attention, 2).axes if axis.get_xlabel() == "frame"]
    assert curve.patches[0].get_data().values.tolist() == [1]
    assert plot_loss_by_position(torch.ones(1, 2, 2).bfloat16(), 2).axes
    assert plot_nearest_frames(frames[:1], frames[None], torch.ones(1, 2).bfloat16(), ["q"], [["a", "b"]]).axes


def test_without_matplotlib_the_error_says_what_to_install():
    code = """if True:
        import sys
        sys.modules["matplotlib"] = None
        import numpy as np
        from vjepa2_hf.visualization import figures as look
        frames = np.zeros((2, 4, 4, 3), np.uint8)
        for draw in (
            lambda: look.plot_rows([("a", frames)], ["0", "1"]),
            lambda: look.plot_probe_attention(frames, np.ones((1, 2, 2, 2)) / 8, 1),
            lambda: look.plot_loss_by_position(np.ones((1, 2, 2)), 2),
        ):
            try:
                draw()
            except ImportError as error:
                assert "pip install 'vjepa2-hf[demo]'" in str(error), error
            else:
                sys.exit("drawn")
    """
    source = str(Path(vjepa2_hf.__file__).parents[1])
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-500:]
