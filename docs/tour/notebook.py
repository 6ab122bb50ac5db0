# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From text to a translation
#
# The tour in one notebook: every step with the code that trains here. Open it in Jupyter with
# jupytext, or run its cells in an editor; a test runs it as a script. It works in the folder that
# it is started in, and takes about a minute on two CPU cores.

# %%
import os
import subprocess
import sys

import numpy as np
import tensorflow as tf

from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import load_tokenizers, read_examples
from data_pipeline.dataset.manifest import load_manifest
from trainer.checkpoints import model_dir
from trainer.metrics import pictures
from trainer.metrics.attention_maps import attention_maps
from trainer.model.attention import dot_product_attention
from trainer.model.encodings import sinusoidal_positions
from trainer.model.positions import causal_mask, same_segment_mask, shift_right
from trainer.tasks.losses import token_sums


def run(module: str, *arguments: str) -> str:
    """Run a command of the pipeline, and return the end of what it prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout[-1500:]


def show(png: bytes) -> None:
    """Show a picture, in a notebook."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(png))


# %% [markdown]
# ## 1. Text becomes pieces
#
# The data job makes a dataset: it cleans, learns a vocabulary of pieces, encodes and packs.

# %%
if not os.path.exists("data/notebook/dataset.json"):
    run(
        "data_pipeline.main",
        "--train=builtin:train?size=4000",
        "--valid=builtin:valid?size=100",
        "--test=builtin:test?size=100",
        "--source_lang=en",
        "--target_lang=de",
        "--vocab_size=1000",
        "--row_length=64",
        "--output_dir=data/notebook",
    )
manifest = load_manifest("data/notebook")
tokenizers = load_tokenizers(manifest)
sentence = "Eva bought the black picture on January 4, 1990."
ids = tokenizers["source"].encode([sentence])[0]
print(tokenizers["source"].pieces(ids))
assert tokenizers["source"].decode([ids]) == [sentence]

# %% [markdown]
# ## 2. Sentences share rows
#
# Segments number the sentences of a row; 0 is padding.

# %%
rows = packing.pack(read_examples(manifest, "valid"), 64, manifest.closing_id)
batch = {name: tf.constant(array[:4]) for name, array in rows.arrays.items()}
print(batch["target_segments"][0].numpy())
print(f"{rows.fill_rate():.1%} of the positions hold a token")

# %% [markdown]
# ## 3. Positions
#
# The dot product of two positions depends on their distance alone.

# %%
encoding = sinusoidal_positions(tf.range(100)[tf.newaxis], 128)[0].numpy()
likeness = encoding @ encoding.T
assert abs(likeness[10, 13] - likeness[50, 53]) < 1e-3
show(pictures.draw_positions(128, 64))

# %% [markdown]
# ## 4. Attention and masks
#
# A query looks at the keys that fit, and only at those that its mask allows.

# %%
segments = batch["target_segments"][:1]
mask = same_segment_mask(segments, segments) & causal_mask(segments.shape[1])
vectors = tf.random.stateless_normal([1, 1, 64, 16], seed=[1, 2])
mixed = dot_product_attention(vectors, vectors, vectors, mask)
# The first token of a sentence sees itself only.
np.testing.assert_allclose(mixed[0, 0, 0], vectors[0, 0, 0], rtol=1e-5)

# %% [markdown]
# ## 5. What the decoder reads, and what it is to predict

# %%
target = batch["target"][:1]
print("reads   ", shift_right(target, segments, manifest.bos_id)[0, :12].numpy())
print("predicts", target[0, :12].numpy())

# %% [markdown]
# ## 6. The loss
#
# A guess among V pieces costs log(V).

# %%
logits = tf.zeros([1, 64, 1000])
sums = token_sums(logits, target, tf.cast(segments > 0, tf.float32), 0.1)
print(f"{sums['nll'] / sums['tokens']:.3f} nats a token, log(1000) is {np.log(1000):.3f}")
assert abs(float(sums["nll"] / sums["tokens"]) - np.log(1000)) < 1e-4

# %% [markdown]
# ## 7. Training
#
# A few steps are enough to see the loss fall. With `train.steps=800` on the whole corpus this is
# `make demo`.

# %%
print(
    run(
        "trainer.main",
        "--strategy=mirrored",
        "--data_dir=data/notebook",
        "--model_dir=models/notebook",
        "--config.train.steps=60",
        "--config.train.evaluate_every=60",
        "--config.optimizer.warmup_steps=30",
        "--config.decode.validation_sentences=20",
    )
)

# %% [markdown]
# ## 8. Where it looks
#
# The cross-attention of the trained model, all layers and heads. After so few steps it is diffuse;
# put `models/demo` there instead.

# %%
loaded = model_dir.load("models/notebook", "best")
example = {
    "source": ids,
    "target": tokenizers["target"].encode(["Eva hat am 4. Januar 1990 das Bild gekauft."])[0],
}
found = attention_maps(
    loaded.model, loaded.task, example, loaded.tokenizers, closing_id=manifest.closing_id
)
for one in found:
    print(one.kind, one.weights.shape)
    np.testing.assert_allclose(one.weights.sum(-1), 1.0, rtol=1e-4)
    show(pictures.draw_attention(one, f"{one.kind} attention"))
