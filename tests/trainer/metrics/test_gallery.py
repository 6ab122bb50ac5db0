"""What TensorBoard finds in the events of a run: groups, layout, table of runs, pictures."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from configs.schema import OptimizerConfig
from trainer.metrics import boards
from trainer.metrics.gallery import Gallery, buckets_of
from trainer.metrics.writer import MetricsWriter
from trainer.optim.schedule import Schedule
from trainer.tasks.translation import Translation


class Pieces:
    """Stands for a tokenizer: the piece of an id is the id."""

    def pieces(self, ids):
        return [f"piece {number}" for number in ids]


def read(directory, split):
    events = EventAccumulator(str(directory / "tensorboard" / split), size_guidance={"tensors": 0})
    events.Reload()
    return events


@pytest.fixture
def gallery(make_model, make_pairs, tiny_config, tmp_path):
    """Return a gallery, and the list whose last number is the training time that it sees."""
    writer, seconds = MetricsWriter(str(tmp_path), 0), [0.0]
    task = Translation(tiny_config(), 30, 30, joint=True)
    model = make_model()
    made = Gallery(
        writer,
        task,
        model,
        {"source": Pieces(), "target": Pieces()},
        make_pairs([[60, 60], [4, 5], [6, 3], [7, 7]]),
        closing_id=3,
        device="/device:CPU:0",
        schedule=Schedule(OptimizerConfig(), 20),
        steps=20,
        seconds=lambda: seconds[-1],
    )
    return made, writer, model, seconds


def test_pictures_histograms_and_embeddings(gallery, tmp_path):
    made, writer, model, seconds = gallery
    seconds.append(1e6)
    made.add(10)
    for variable in model.trainable_variables:
        variable.assign(variable * 1.25)
    made.add(20)
    writer.flush()
    events = read(tmp_path, "valid")
    tags = set(events.Tags()["tensors"])
    pictures = {tag for tag in tags if tag.startswith("attention/")}
    assert pictures == {
        f"attention/{kind}/{number}"
        for kind in ("encoder", "decoder", "cross")
        for number in (1, 2)
    }
    assert {"positions", "schedule", "update_to_weight"} <= tags
    weights = {tag for tag in tags if tag.startswith("weights/")}
    matrices = [one for one in model.trainable_variables if len(one.shape) > 1]
    assert len(weights) == len(matrices) == 17
    assert "weights/encoder_0/self_attention/query/kernel" in weights
    assert len(events.Tensors("attention/cross/1")) == 2
    assert len(events.Tensors("schedule")) == 1  # it does not change
    # All weights grew by a quarter, which is a fifth of what they are now.
    bins = tf.make_ndarray(events.Tensors("update_to_weight")[0].tensor_proto)  # [bins, 3]
    assert bins[:, 2].sum() == len(matrices)
    assert bins[0, 0] == pytest.approx(0.2) and bins[-1, 1] == pytest.approx(0.2)
    drawn = {path.name: path.read_bytes()[:4] for path in (tmp_path / "pictures").iterdir()}
    assert drawn == {f"{tag.replace('/', '-')}.png": b"\x89PNG" for tag in pictures}
    scopes = {name for node in events.Graph().node for name in node.name.split("/")}
    assert {"encoder_0_1", "decoder_0_1", "self_attention_1"} <= scopes
    files = tmp_path / "tensorboard" / "valid"
    vectors = np.loadtxt(files / "embeddings.tsv")
    table = model.target_embedding.embeddings.numpy()
    np.testing.assert_allclose(vectors, table, rtol=1e-3)
    assert (files / "pieces.tsv").read_text().splitlines()[4] == "piece4"
    assert "embeddings.tsv" in (files / "projector_config.pbtxt").read_text()


def test_what_would_take_too_much_of_the_time_is_left_out(gallery, tmp_path):
    made, writer, _, seconds = gallery
    # 2 % are allowed, 0.4 s is guessed for histograms, and 2 s for pictures.
    for training in (0.0, 19.0):
        seconds.append(training)
        made.add(10)
    writer.flush()
    assert not (tmp_path / "tensorboard").exists()
    seconds.append(60.0)  # 1.2 s so far, and as much again; the end needs 2.4 s
    made.add(10)
    writer.flush()
    assert not (tmp_path / "tensorboard").exists()
    seconds.append(100.0)
    made.add(10)
    writer.flush()
    tags = set(read(tmp_path, "valid").Tags()["tensors"])
    assert "weights/encoder_0/self_attention/query/kernel" in tags and "schedule" not in tags


def test_a_histogram_counts_what_is_finite():
    """Gradients may be infinite, and a picture must not end a run."""
    largest = np.finfo(np.float32).max
    values = np.array([[np.nan, np.inf, -np.inf], [-largest, 0.0, largest]], np.float32)
    buckets = buckets_of(values)
    assert buckets.shape == (30, 3) and np.isfinite(buckets).all()
    assert buckets[:, 2].sum() == 3 and buckets[[0, -1], 2].tolist() == [1, 1]
    assert buckets_of(np.array([np.nan], np.float32))[:, 2].sum() == 0


def test_groups_of_scalars_and_the_first_page(tmp_path):
    writer = MetricsWriter(str(tmp_path), 0)
    writer.start_boards(0, {"model.width": 16, "optimizer.name": "adam"}, ["bleu"], ["tokens_x"])
    writer.write("valid", 5, {"bleu": 12.5, "mfu": 0.5, "fill_rate": 0.9, "grad_norm": 1.0})
    writer.write("valid", 5, {"loss_scale": 1.0, "signature": "text"})
    writer.flush()
    events = read(tmp_path, "valid")
    scalars = {"quality/bleu", "speed/mfu", "input/fill_rate", "optimizer/grad_norm"}
    assert scalars | {"health/loss_scale"} <= set(events.Tags()["tensors"])
    assert events.SummaryMetadata("quality/bleu").plugin_data.plugin_name == "scalars"
    page = layout_pb2.Layout()
    page.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {group.title: [chart.title for chart in group.chart] for group in page.category}
    assert charts == {
        "Does it learn?": ["bleu"],
        "Is it fast?": ["mfu", "input_wait"],
        "Is it healthy?": ["grad_norm", "learning_rate", "peak_memory_bytes"],
    }
    assert page.category[0].chart[0].multiline.tag == ["^quality/bleu$"]


def test_table_of_runs_has_settings_and_final_scores(tmp_path):
    experiment, session = boards.table_of_runs(
        "models/a", {"model.width": 16, "x": (1, 2)}, ["bleu"]
    )
    data = plugin_data_pb2.HParamsPluginData()
    data.ParseFromString(session.value[0].metadata.plugin_data.content)
    assert data.session_start_info.hparams["model.width"].number_value == 16
    assert data.session_start_info.hparams["x"].string_value == "(1, 2)"
    assert data.session_start_info.group_name == "models/a"
    data.ParseFromString(experiment.value[0].metadata.plugin_data.content)
    shown = {info.name: info.differs for info in data.experiment.hparam_infos}
    assert shown == {"model.width": True, "x": False}
    names = [(info.name.group, info.name.tag) for info in data.experiment.metric_infos]
    assert names == [("../test", "quality/bleu"), ("", "quality/bleu")]
