"""How TensorBoard orders what a run writes: groups, the first page, the table of runs."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalars
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams import plugin_data_pb2

_GROUPS = {
    "speed": (
        "target_tokens_per_second",
        "source_tokens_per_second",
        "tokens_per_second",
        "examples_per_second",
        "mfu",
        "step_seconds",
        "step_seconds_p50",
        "step_seconds_p95",
        "compile_seconds",
        "evaluate_seconds",
        "train_seconds",
        "goodput",
    ),
    "input": ("epoch", "fill_rate", "input_wait", "corrupt_rows"),
    "optimizer": ("learning_rate", "grad_norm", "update_norm", "parameter_norm"),
    "health": ("loss_scale", "skipped_steps", "peak_memory_bytes"),
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}
# The three questions of the first page, and the charts that answer them.
FIRST_PAGE = {
    "Does it learn?": (
        "loss",
        "perplexity",
        "bits_per_byte",
        "token_accuracy",
        "accuracy",
        "macro_f1",
        "bleu",
        "chrf",
    ),
    "Is it fast?": ("target_tokens_per_second", "tokens_per_second", "mfu", "input_wait"),
    "Is it healthy?": ("grad_norm", "learning_rate", "peak_memory_bytes"),
}
# What the table of runs shows of the settings before one asks for more: it has room for five.
_COLUMNS = (
    "model.width",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "train.batch_tokens",
    "train.steps",
)
_ALWAYS = ("mfu", "input_wait", "grad_norm", "learning_rate", "peak_memory_bytes")


def tag_of(metric: str) -> str:
    """Return the tag of a metric: its group, which is "quality" for all scores, and its name."""
    return f"{_GROUP_OF.get(metric, 'quality')}/{metric}"


def first_page(metrics: Collection[str]) -> Any:
    """Return the layout of TensorBoard's custom scalars, a summary.

    Each chart shows all splits, so that training and validation are in one.

    Args:
        metrics: scores and rates of the task; others get no chart.
    """
    categories = []
    for title, names in FIRST_PAGE.items():
        charts = [
            layout_pb2.Chart(
                title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag_of(name)}$"])
            )
            for name in names
            if name in (*metrics, *_ALWAYS)
        ]
        categories.append(layout_pb2.Category(title=title, chart=charts))
    return custom_scalars.pb(layout_pb2.Layout(category=categories))


def table_of_runs(name: str, settings: Mapping[str, Any], scores: Collection[str]) -> list[Any]:
    """Return the summaries that put a run, written as "valid", into TensorBoard's HParams.

    Args:
        name: of the run.
        settings: "group.field" -> value.
        scores: names of the scores to sort by.
    """
    values = {
        setting: value if isinstance(value, bool | int | float | str) else str(value)
        for setting, value in settings.items()
    }
    columns = [
        hparams.Metric(tag_of(score), group=group, display_name=f"{split} {score}")
        for split, group in (("test", "../test"), ("valid", ""))
        for score in scores
    ]
    experiment = hparams.hparams_config_pb(
        hparams=[hparams.HParam(setting) for setting in values], metrics=columns
    )
    holder = experiment.value[0].metadata.plugin_data
    table = plugin_data_pb2.HParamsPluginData.FromString(holder.content)
    for setting in table.experiment.hparam_infos:
        setting.differs = setting.name in _COLUMNS  # puts it before the others
    holder.content = table.SerializeToString()
    return [experiment, hparams.hparams_pb(values, trial_id=name)]


def projector_files(pieces: Sequence[str], vectors: np.ndarray) -> dict[str, str]:
    """Return name -> content of the files that TensorBoard's projector reads.

    Args:
        pieces: labels of the points.
        vectors: float32 [pieces, D].
    """
    lines = ("\t".join(f"{value:.4g}" for value in vector) for vector in vectors)
    config = 'embeddings {\n  tensor_path: "embeddings.tsv"\n  metadata_path: "pieces.tsv"\n}\n'
    return {
        "embeddings.tsv": "\n".join(lines) + "\n",
        "pieces.tsv": "\n".join("".join(piece.split()) or "_" for piece in pieces) + "\n",
        "projector_config.pbtxt": config,
    }
