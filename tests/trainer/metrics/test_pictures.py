"""Attention maps of tiny models, and the pictures made of them."""

import numpy as np
import pytest
import tensorflow as tf

from configs.schema import OptimizerConfig
from trainer.metrics import pictures
from trainer.metrics.attention_maps import AttentionMap, attention_maps
from trainer.model.attention import recorded_weights
from trainer.optim.schedule import Schedule
from trainer.tasks.translation import Translation

EXAMPLE = {"source": [5, 6, 7, 8], "target": [9, 10, 11]}


class Pieces:
    """Stands for a tokenizer: the piece of an id is the id."""

    def pieces(self, ids):
        return [str(number) for number in ids]


@pytest.fixture(scope="module")
def maps(make_model, tiny_config):
    model = make_model(encoder_layers=2, decoder_layers=2)
    task = Translation(tiny_config(), 30, 30, joint=True)
    found = attention_maps(
        model, task, EXAMPLE, {"source": Pieces(), "target": Pieces()}, closing_id=3
    )
    return {one.kind: one for one in found}


def test_maps_have_every_layer_and_head_and_only_the_pieces(maps):
    assert {kind: one.weights.shape for kind, one in maps.items()} == {
        "encoder": (2, 2, 5, 5),
        "decoder": (2, 2, 4, 4),
        "cross": (2, 2, 4, 5),
    }
    assert maps["cross"].keys == ["5", "6", "7", "8", "3"]
    assert maps["cross"].queries == ["<s>", "9", "10", "11"]


def test_weights_sum_to_one_and_the_decoder_does_not_look_ahead(maps):
    for one in maps.values():
        np.testing.assert_allclose(one.weights.sum(-1), 1.0, rtol=1e-6)
    assert np.abs(np.triu(maps["decoder"].weights, 1)).max() == 0.0
    assert maps["encoder"].weights[0, 0, 0, 4] > 0.0
    # Two heads of two layers are four different maps.
    assert len({one.tobytes() for one in maps["cross"].weights.reshape(4, -1)}) == 4


def test_nothing_is_collected_outside(make_model):
    row = tf.constant([[5, 3]])
    model, ones = make_model(), tf.ones_like(row)
    with recorded_weights() as recorded:
        model.encode(row, ones)
    model.encode(row, ones)
    assert [weights.shape for weights in recorded] == [[1, 2, 2, 2]]


def test_picture_of_attention_is_dark_where_the_weight_is(tmp_path):
    weights = np.zeros((1, 2, 3, 3), np.float32)
    weights[0, :, :, 1] = 1.0  # everything looks at the second of three
    drawn = pictures.draw_attention(AttentionMap("cross", weights, list("abc"), list("def")), "x")
    image = tf.io.decode_png(drawn, channels=3).numpy()
    dark = (image == [8, 48, 107]).all(-1)  # the end of Matplotlib's map "Blues"
    columns = np.flatnonzero(dark.any(0))
    assert np.count_nonzero(np.diff(columns) > 1) == 1  # two bars, one a head
    # 2 of 7 columns of the grid, by all of its height.
    grid = (image.shape[1] - 1.2 * 130) * (image.shape[0] - 1.4 * 130)
    assert dark.sum() == pytest.approx(grid * 2 / 7, rel=0.1)


@pytest.mark.parametrize("names", [["$$", "x"], ["$10_$50", "$50_$99"]])
def test_dollars_are_text(names):
    """To Matplotlib they would begin a formula."""
    weights = np.full((1, 1, 2, 2), 0.5, np.float32)
    found = AttentionMap("encoder", weights, names, names)
    drawn = [
        pictures.draw_attention(found, "$_$"),
        pictures.draw_one_head(found, 0, 0, "$_$"),
        pictures.draw_confusion(np.eye(2, dtype=np.int64), names),
    ]
    assert all(tf.io.decode_png(one).shape[0] > 100 for one in drawn)


def test_pictures_of_positions_and_schedule_are_of_their_size():
    schedule = Schedule(OptimizerConfig(warmup_steps=10, learning_rate=0.5), 100)
    for drawn, size in (
        (pictures.draw_positions(16, 20), (10.0, 3.6)),
        (pictures.draw_schedule({"inverse_sqrt": schedule}, 100), (6.5, 2.8)),
        (
            pictures.draw_one_head(
                AttentionMap("x", np.eye(3)[None, None], list("abc"), list("abc")), 0, 0, "x"
            ),
            (3.0, 2.4),
        ),
    ):
        height, width, _ = tf.io.decode_png(drawn).shape
        assert (width, height) == (round(size[0] * 130), round(size[1] * 130))
