"""Figures of dense features: overlays, encoders side by side, propagated and predicted labels."""

import numpy as np

from vjepa2_hf.visualization.dense_figures import (
    overlay_labels,
    plot_dense_predictions,
    plot_feature_comparison,
    plot_propagation,
)


FRAMES = np.random.default_rng(0).integers(0, 255, (6, 16, 24, 3), np.uint8)


def test_the_background_is_transparent_and_labels_have_colors():
    labels = np.zeros((6, 16, 24), int)
    labels[:, :4], labels[:, 4:8], labels[:, 8:12] = 1, 2, 7
    shown = overlay_labels(FRAMES, labels, opacity=1.0)
    assert np.array_equal(shown[:, 12:], FRAMES[:, 12:])
    assert len(np.unique(shown[:, :4].reshape(-1, 3), axis=0)) == 1
    assert not np.array_equal(shown[0, 0, 0], shown[0, 4, 0])
    assert np.array_equal(shown[0, 0, 0], shown[0, 8, 0])  # colors repeat after six labels


def images_of(figure):
    return [axis.images[0].get_array() for axis in figure.axes]


def test_encoders_of_different_grids_are_rows_or_columns():
    colors = {"one": np.random.rand(3, 2, 3, 3), "other": np.random.rand(6, 4, 6, 3)}
    figure = plot_feature_comparison(FRAMES, colors)
    assert len(figure.axes) == 9 and figure.axes[3].get_ylabel() == "one"
    assert np.array_equal(images_of(figure)[7], colors["other"][2])  # frame 2 of 0, 2, 4
    one = plot_feature_comparison(FRAMES, colors, shown=[5])
    assert [axis.get_title() for axis in one.axes] == ["frame 5", "one", "other"]
    assert np.array_equal(images_of(one)[1][::8, ::8], colors["one"][2])


def test_true_labels_are_shown_where_they_are_known():
    labels = np.ones((6, 16, 24), int)
    figure = plot_propagation(FRAMES, labels, {2: labels[2], 4: labels[4]})
    assert len(figure.axes) == 4 and figure.axes[0].get_title() == "frame 2"
    assert len(plot_propagation(FRAMES, labels).axes) == 6
    assert len(plot_propagation(FRAMES, labels, {2: labels[2]}, shown=[3]).axes) == 1


def test_pixels_without_a_label_are_no_class_and_no_depth():
    labels = np.zeros((2, 16, 24), int)
    labels[:, :8] = 255
    shown = images_of(plot_dense_predictions(FRAMES[:2], labels, np.zeros_like(labels)))
    assert len(shown) == 6 and np.array_equal(shown[2], FRAMES[0])
    depths = np.full((2, 16, 24), 5.0)
    depths[:, 8:], depths[0, 0] = 9.0, np.nan
    shown = images_of(plot_dense_predictions(FRAMES[:2], depths, depths))
    assert shown[2][0].max() == 0 and shown[2][4].max() == 0 and shown[2][12].min() == 1
