"""Metadata with which TensorFlow Datasets opens the directory: `tfds.builder_from_directory(DIR)`.

It yields each record as a dictionary: the text under the name of its language ("text" for tasks
with one sequence), `NAME_ids` for each sequence, and the label if there are labels.
"""

import os
from typing import Any

from common import files
from data_pipeline.dataset.examples import LABEL, text_keys
from data_pipeline.dataset.manifest import Manifest

_FEATURES = "tensorflow_datasets.core.features"
_NAMES = {
    "translation": "parallel_text",
    "language_model": "plain_text",
    "classification": "labelled_text",
}


def write(manifest: Manifest, directory: str) -> list[str]:
    """Write the files that TFDS reads; return their names.

    Args:
        manifest: of the dataset.
        directory: gets the files.
    """
    texts = list(text_keys(manifest.languages).values())
    features = {name: _feature("text_feature.Text", "text", {}) for name in texts}
    for name in manifest.sequences:
        ids = _feature(
            "tensor_feature.Tensor",
            "tensor",
            {"shape": {}, "dtype": "int64", "encoding": "none"},
        )
        features[f"{name}_ids"] = _feature(
            "sequence_feature.Sequence", "sequence", {"feature": ids, "length": "-1"}
        )
    contents: dict[str, Any] = {}
    if manifest.labels:
        features[LABEL] = _feature(
            "class_label_feature.ClassLabel",
            "classLabel",
            {"numClasses": str(len(manifest.labels))},
        )
        contents[f"{LABEL}.labels.txt"] = "".join(f"{label}\n" for label in manifest.labels)
    languages = [manifest.languages[name] for name in manifest.sequences]
    info: dict[str, Any] = {
        "name": _NAMES[manifest.task],
        "version": "1.0.0",
        "description": (
            f"Parallel text, {' to '.join(languages)}."
            if manifest.task == "translation"
            else f"Text ({languages[0]}) for {manifest.task.replace('_', ' ')}."
        ),
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": name,
                "filepathTemplate": "{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}",
                "shardLengths": [str(file.records) for file in split.files],
                "numBytes": str(sum(file.bytes for file in split.files)),
            }
            for name, split in manifest.splits.items()
        ],
    }
    supervised = [*texts, *([LABEL] if manifest.labels else [])]
    if len(supervised) > 1:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in supervised]}}
    contents["features.json"] = _feature(
        "features_dict.FeaturesDict", "featuresDict", {"features": features}
    )
    contents["dataset_info.json"] = info
    for name, content in contents.items():
        path = os.path.join(directory, name)
        if isinstance(content, str):
            files.write_bytes(path, content.encode())
        else:
            files.write_json(path, content)
    return list(contents)


def _feature(python_class: str, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": f"{_FEATURES}.{python_class}", kind: content}
