"""Draws the pictures of the tour from a model that `make demo` has trained.

    python -m docs.tour.make_pictures --model_dir=models/demo --runs_dir=models/tour

The pictures that compare runs need these in --runs_dir, of 150 steps each with
--config.train.steps_per_loop=5: post, pre (--config.model.norm=pre) and two_replicas
(--num_virtual_devices=2); those of two other pages need tour_lm and tour_classifier, which the
commands on the pages train. The rest is drawn without them.
"""

import io
import os
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import tensorflow as tf
from absl import flags
from matplotlib.figure import Figure

from common.errors import run_app
from configs.schema import OptimizerConfig
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import read_examples
from data_pipeline.dataset.manifest import load_manifest
from trainer.checkpoints import model_dir as model_directory
from trainer.metrics import pictures
from trainer.metrics.attention_maps import AttentionMap, attention_maps
from trainer.model.encodings import alibi_slopes, rotary_angles, rotate, t5_buckets
from trainer.model.positions import causal_mask, same_segment_mask
from trainer.optim.schedule import Schedule
from trainer.reporting.records import RunRecord, read_run

_MODEL_DIR = flags.DEFINE_string("model_dir", "models/demo", "What make demo has trained.")
_RUNS_DIR = flags.DEFINE_string("runs_dir", None, "Holds the runs to compare.")
_OUTPUT = flags.DEFINE_string(
    "output", os.path.join(os.path.dirname(__file__), "pictures"), "Folder for the pictures."
)

SENTENCE = "Eva says that Julia bought the black picture on January 4, 1990."
QUESTION = "Would you like some tea or coffee before we go to the station?"
TRANSLATION = "Eva sagt, dass Julia am 4. Januar 1990 das schwarze Bild gekauft hat."
_WORDS = {
    "months": "Januar Februar April Mai Juni Juli August September Oktober November",
    "weekdays": "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    "names": "Anna Eva Julia Peter Paul Thomas Maria Lukas Felix Laura",
    "verbs": "hat ist kommt kann wird war",
}
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA8800", "#66CCEE", "#AA3377")
_DPI = 120


def main(argv: list[str]) -> None:
    """Draw everything that the given runs allow."""
    os.makedirs(_OUTPUT.value, exist_ok=True)
    for draw in (draw_model, draw_data):
        draw(_MODEL_DIR.value, save)
    draw_curves(read_run(_MODEL_DIR.value, "demo"), save)
    if _RUNS_DIR.value:
        draw_experiments(_RUNS_DIR.value, save)
        draw_comparisons(_RUNS_DIR.value, save)


def save(name: str, picture: Figure | bytes) -> None:
    """Write a picture as NAME.png."""
    if isinstance(picture, Figure):
        content = io.BytesIO()
        picture.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
        picture = content.getvalue()
    path = os.path.join(_OUTPUT.value, f"{name}.png")
    with open(path, "wb") as file:
        file.write(picture)
    print(path, flush=True)


def draw_model(model_dir: str, save: Callable) -> None:
    """Draw what the model does with a sentence: pieces, embeddings, attention."""
    loaded = model_directory.load(model_dir, "best")
    source, target = loaded.tokenizers["source"], loaded.tokenizers["target"]
    example = {"source": source.encode([SENTENCE])[0], "target": target.encode([TRANSLATION])[0]}
    save("tokens", _pieces([source.pieces(example["source"]), target.pieces(example["target"])]))
    table = loaded.model.target_embedding.embeddings.numpy()
    words = {
        kind: [word for word in text.split() if len(target.encode([word])[0]) == 1]
        for kind, text in _WORDS.items()
    }
    places = {
        kind: {word: table[target.encode([word])[0][0]] for word in found}
        for kind, found in words.items()
    }
    save("embeddings", _plane(places))
    maps = attention_maps(loaded.model, loaded.task, example, loaded.tokenizers, closing_id=3)
    of_kind = {one.kind: one for one in maps}
    cross = of_kind["cross"]
    layer, head = len(cross.weights) - 1, _sharpest(cross.weights[-1])
    title = f"cross-attention, layer {layer + 1}, head {head + 1}"
    save("attention", pictures.draw_one_head(cross, layer, head, title))
    save("heads", pictures.draw_attention(of_kind["encoder"], "encoder self-attention"))
    ends = AttentionMap(
        "encoder",
        of_kind["encoder"].weights[[0, -1]],
        of_kind["encoder"].queries,
        of_kind["encoder"].keys,
    )
    title = "encoder self-attention: first layer above, last layer below"
    save("encoder", pictures.draw_attention(ends, title))
    save("decoder", pictures.draw_attention(of_kind["decoder"], "decoder self-attention"))


def draw_data(model_dir: str, save: Callable) -> None:
    """Draw what needs no weights: positions, masks, schedules, packed rows."""
    save("positions", pictures.draw_positions(128, 64))
    segments = tf.constant([[1] * 5 + [2] * 7 + [3] * 4 + [0] * 2])
    mask = same_segment_mask(segments, segments)
    causal = mask & causal_mask(segments.shape[1])
    shown = {"encoder": mask, "decoder, self-attention": causal}
    save("masks", _squares({name: one[0, 0].numpy() for name, one in shown.items()}))
    schedules = {
        name: Schedule(OptimizerConfig(schedule=name, learning_rate=4e-3, warmup_steps=200), 800)
        for name in ("inverse_sqrt", "cosine", "linear", "constant")
    }
    save("schedule", pictures.draw_schedule(schedules, 800))
    save("family", _distances())
    manifest = load_manifest(model_directory.read_facts(model_dir).data_dir)
    rows = packing.pack(read_examples(manifest, "valid"), 64, manifest.closing_id)
    title = f"target side of 12 rows of 64; fill rate of all rows {rows.fill_rate():.3f}"
    save("batching", _rows(rows.arrays["target_segments"][:12], title))


def draw_curves(run: RunRecord, save: Callable) -> None:
    """Draw the course of the demonstration."""
    lines = {"training": run.points("train", "nll"), "validation": run.points("valid", "loss")}
    save("loss", _curves(lines, "nats per target token"))
    save("search", _curves({"greedy": run.points("valid", "bleu")}, "validation BLEU"))
    speed = {"": run.points("train", "target_tokens_per_second")}
    waits = {"": run.points("train", "input_wait")}
    save("scaling", _two(speed, "target tokens/s", waits, "waiting for input"))


def draw_experiments(runs_dir: str, save: Callable) -> None:
    """Draw the models that the pages of the language model and of the classifier train."""
    loaded = model_directory.load(os.path.join(runs_dir, "tour_lm"), "best")
    example = {"text": loaded.tokenizers["text"].encode([SENTENCE[:24]])[0]}
    (found,) = attention_maps(
        loaded.model, loaded.task, example, loaded.tokenizers, closing_id=None
    )
    save("language_model", pictures.draw_attention(found, "self-attention of a language model"))
    loaded = model_directory.load(os.path.join(runs_dir, "tour_classifier"), "best")
    words = QUESTION.split()
    prefixes = [" ".join(words[:count]) for count in range(1, len(words) + 1)]
    classifier = loaded.task.classifier(loaded.model, loaded.tokenizers)
    probabilities, _ = classifier.probabilities(prefixes)  # [prefixes, classes]
    likeliest = np.argsort(-probabilities.max(axis=0))[: len(_COLOURS)]
    lines = {
        loaded.facts.labels[label]: list(enumerate(probabilities[:, label].tolist(), start=1))
        for label in likeliest
    }
    save("classifier", _curves(lines, "probability", "words read"))


def draw_comparisons(runs_dir: str, save: Callable) -> None:
    """Draw runs side by side."""
    post, pre, two = (
        read_run(os.path.join(runs_dir, name), name) for name in ("post", "pre", "two_replicas")
    )
    lines = {"post-norm": post.points("train", "nll"), "pre-norm": pre.points("train", "nll")}
    save("residual", _curves(lines, "nats per target token"))
    one_loss, two_loss = post.points("train", "loss"), two.points("train", "loss")
    difference = [(step, abs(a - b)) for (step, a), (_, b) in zip(one_loss, two_loss, strict=True)]
    both = {"one replica": one_loss, "two replicas": two_loss}
    save("train_step", _two(both, "loss", {"": difference}, "difference", logarithmic=True))


def _sharpest(weights: np.ndarray) -> int:
    """Return the head of float32 [heads, query, key] that looks at single pieces most."""
    return int(weights.max(-1).mean(-1).argmax())


def _pieces(sentences: Sequence[Sequence[str]]) -> Figure:
    figure = Figure(figsize=(9.5, 0.45 * len(sentences) + 0.3))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_ylim(0, len(sentences))
    longest = max(sum(len(piece) + 1.2 for piece in pieces) for pieces in sentences)
    axis.set_xlim(0, longest)
    for row, pieces in enumerate(reversed(sentences)):
        left = 0.3
        for number, piece in enumerate(pieces):
            width = len(piece) + 0.9
            colour = _COLOURS[number % len(_COLOURS)] + "33"
            box = matplotlib.patches.FancyBboxPatch(
                (left, row + 0.2), width, 0.6, boxstyle="round,pad=0,rounding_size=0.3", fc=colour
            )
            axis.add_patch(box)
            place = (left + width / 2, row + 0.5)
            axis.annotate(piece, place, ha="center", va="center", family="monospace", fontsize=8.5)
            left += width + 0.3
    return figure


def _plane(places: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw vectors of some kinds along the two directions in which they differ most."""
    vectors = np.array([vector for kind in places.values() for vector in kind.values()])
    centre = vectors.mean(0)
    directions = np.linalg.svd(vectors - centre, full_matrices=False)[2][:2]  # [2, D]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    for colour, (kind, words) in zip(_COLOURS, places.items(), strict=False):
        at = (np.array(list(words.values())) - centre) @ directions.T
        axis.scatter(at[:, 0], at[:, 1], color=colour, label=kind, s=18)
        for word, (x, y) in zip(words, at, strict=True):
            axis.annotate(word, (x, y), (4, 2), textcoords="offset points", fontsize=8)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _squares(masks: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    for axis, (name, mask) in zip(figure.subplots(1, len(masks)), masks.items(), strict=True):
        axis.imshow(mask, cmap="Blues", vmin=0, vmax=1.3)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("key")
        axis.set_ylabel("query")
    return figure


def _distances() -> Figure:
    """Draw what three schemes say about distances up to 64."""
    distance = np.arange(65, dtype=np.int32)
    figure = Figure(figsize=(9.5, 2.8), layout="constrained")
    alibi, t5, rotary = figure.subplots(1, 3)
    for colour, slope in zip(_COLOURS, alibi_slopes(4), strict=False):
        alibi.plot(distance, -slope * distance, color=colour)
    alibi.set_title("ALiBi: bias of each head", fontsize=10)
    buckets = t5_buckets(tf.constant(-distance), two_sided=False).numpy()
    t5.step(distance, buckets, color=_COLOURS[0])
    t5.set_title("T5: bucket, looking back", fontsize=10)
    ones = tf.ones([1, 1, len(distance), 32]) / 32**0.5
    turned = rotate(ones, rotary_angles(tf.constant(distance), 32)).numpy()[0, 0]
    rotary.plot(distance, turned @ turned[0], color=_COLOURS[0])
    rotary.set_title("rotary: product of equal vectors", fontsize=10)
    for axis in (alibi, t5, rotary):
        axis.set_xlabel("distance")
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _rows(segments: np.ndarray, title: str) -> Figure:
    palette = [(1, 1, 1), *(matplotlib.colors.to_rgb(colour) for colour in _COLOURS)]
    shown = np.where(segments > 0, 1 + (segments - 1) % len(_COLOURS), 0)
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.array(palette)[shown], aspect="auto", interpolation="nearest", alpha=0.75)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("position, in tokens")
    axis.set_ylabel("row")
    return figure


def _draw_lines(axis, lines: dict, label: str) -> None:
    for colour, (name, points) in zip(_COLOURS, lines.items(), strict=False):
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, color=colour, label=name, marker="o" if len(points) < 8 else None)
    axis.set_ylabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    if len(lines) > 4:  # beside the lines, which fill the picture
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif any(lines):
        axis.legend(frameon=False)


def _curves(lines: dict, label: str, below: str = "step") -> Figure:
    figure = Figure(figsize=(6.5, 3), layout="constrained")
    axis = figure.subplots()
    _draw_lines(axis, lines, label)
    axis.set_xlabel(below)
    return figure


def _two(first: dict, label: str, second: dict, its_label: str, logarithmic=False) -> Figure:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_lines(top, first, label)
    _draw_lines(bottom, second, its_label)
    if logarithmic:
        bottom.set_yscale("log")
    bottom.set_xlabel("step")
    return figure


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    run_app(main)
