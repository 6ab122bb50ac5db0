"""Lets TensorFlow Datasets open a dataset directory: `tfds.builder_from_directory(DIR)`.

It gives each pair as {"LANG": text, "LANG": text, "source_ids": ids, "target_ids": ids}.
"""

import os
from typing import Any

from common import files
from data_pipeline.dataset.manifest import Manifest

_FEATURES = "tensorflow_datasets.core.features"


def write(manifest: Manifest, directory: str) -> list[str]:
    """Writes the two files that TFDS reads; returns their names.

    Args:
        manifest: of the dataset.
        directory: gets the files.
    """
    langs = (manifest.source_lang, manifest.target_lang)
    features = {lang: _feature("text_feature.Text", "text", {}) for lang in langs}
    for name in ("source_ids", "target_ids"):
        ids = _feature(
            "tensor_feature.Tensor",
            "tensor",
            {"shape": {}, "dtype": "int64", "encoding": "none"},
        )
        features[name] = _feature(
            "sequence_feature.Sequence", "sequence", {"feature": ids, "length": "-1"}
        )
    tree = _feature("features_dict.FeaturesDict", "featuresDict", {"features": features})
    info = {
        "name": "parallel_text",
        "version": "1.0.0",
        "description": f"Parallel text, {langs[0]} to {langs[1]}.",
        "fileFormat": "tfrecord",
        "supervisedKeys": {"tuple": {"items": [{"featureKey": lang} for lang in langs]}},
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
    contents = {"features.json": tree, "dataset_info.json": info}
    for name, content in contents.items():
        files.write_json(os.path.join(directory, name), content)
    return list(contents)


def _feature(python_class: str, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": f"{_FEATURES}.{python_class}", kind: content}
