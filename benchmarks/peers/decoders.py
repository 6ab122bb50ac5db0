"""The contenders of `benchmarks.decode`, each in a process of its own."""

import importlib.util
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from common.errors import UsageError

FILES = {"CTranslate2": "ctranslate2", "transformers": "weights.npz"}
"""What `start_ours` writes for each peer."""

_LONGEST = 200  # tokens of a translation
_BATCH_TOKENS = 4096  # of the sources in a batch, padding included
_PAD, _UNKNOWN, _BOS, _EOS = 0, 1, 2, 3

_translate: Callable[[int], list[list[int]]] | None = None  # of this process


def translate(beam_size: int) -> tuple[float, list[list[int]]]:
    """Translate everything; return the seconds it took and the token ids of each translation."""
    assert _translate is not None
    began = time.perf_counter()
    found = _translate(beam_size)
    return time.perf_counter() - began, found


def start_ours(
    model_dir: str, checkpoint: str, folder: str, threads: int, lines: list[str]
) -> list[list[int]]:
    """Load our model, write what the peers need into `folder`, and return the sentences' ids."""
    global _translate
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from trainer.checkpoints import model_dir as model_directory
    from trainer.decoding.options import search_options
    from trainer.decoding.search import Decoder
    from trainer.exporting import ctranslate2_model

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    loaded = model_directory.load(model_dir, checkpoint)
    if loaded.facts.config.task != "translation":
        task = loaded.facts.config.task
        raise UsageError(f"{model_dir} holds a model for {task}, not for translation")
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    sentences = tokenizers[0].encode(lines)

    def options(beam_size: int):
        return search_options(
            loaded.facts.config.decode,
            beam_size,
            normalization="length",
            length_penalty=1.0,
            max_length_ratio=0.0,
            max_length_offset=_LONGEST,
            min_length=1,
            batch_tokens=_BATCH_TOKENS,
        )

    if importlib.util.find_spec("ctranslate2"):
        directory = os.path.join(folder, FILES["CTranslate2"])
        ctranslate2_model.save(loaded.model, tokenizers, directory, "float32", options(4), {})
    if _is_marian(loaded.facts.config.model):
        np.savez(os.path.join(folder, FILES["transformers"]), **_marian_weights(loaded.model))
    decoders: dict[int, Decoder] = {}

    def run(beam_size: int) -> list[list[int]]:
        if beam_size not in decoders:
            decoders[beam_size] = Decoder(loaded.model, options(beam_size))
        return decoders[beam_size].translate(sentences)

    _translate = run
    return sentences


def start_peer(name: str, folder: str, threads: int, sentences: list[list[int]]) -> None:
    """Load what `start_ours` wrote into a peer."""
    global _translate
    path = os.path.join(folder, FILES[name])
    start = {"CTranslate2": _ctranslate2, "transformers": _transformers}[name]
    _translate = start(path, threads, sentences)


def _ctranslate2(path: str, threads: int, sentences: list[list[int]]):
    from data_pipeline.dataset.tokenizer import load_tokenizer
    from trainer.exporting import ctranslate2_engine  # sets how OpenMP waits

    source, target = (
        load_tokenizer(os.path.join(path, f"{side}.model")) for side in ctranslate2_engine.SIDES
    )
    import ctranslate2

    translator = ctranslate2.Translator(path, intra_threads=threads)
    pieces = [source.pieces(ids) for ids in sentences]
    ids_of = {piece: i for i, piece in enumerate(target.pieces(range(target.vocab_size)))}

    def run(beam_size: int) -> list[list[int]]:
        results = translator.translate_batch(
            pieces,
            beam_size=beam_size,
            length_penalty=1.0,
            max_decoding_length=_LONGEST,
            max_batch_size=_BATCH_TOKENS,
            batch_type="tokens",
            suppress_sequences=[["<pad>"], ["<unk>"], ["<s>"]],
        )
        return [[ids_of[piece] for piece in result.hypotheses[0]] for result in results]

    return run


def _is_marian(config: Any) -> bool:
    """Return whether Marian can hold a model: the paper's, with one embedding for all."""
    from trainer.exporting import ctranslate2_model

    try:
        ctranslate2_model.check(config)  # refuses every variant that it does not know
    except UsageError:
        return False
    return (config.norm, config.activation, config.tied_embeddings) == ("post", "relu", "all")


def _marian_weights(model: Any) -> dict[str, Any]:
    """Return our weights under the names that Marian has for them, and the configuration."""
    config = model.config
    embedding = np.asarray(model.target_embedding.embeddings)
    facts = {
        "vocab_size": embedding.shape[0],
        "d_model": config.width,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.feed_forward,
        "decoder_ffn_dim": config.feed_forward,
    }
    weights: dict[str, Any] = {
        "config": np.array(json.dumps(facts)),
        "model.shared.weight": embedding,
    }

    def linear(name: str, layer: Any) -> None:
        weights[f"{name}.weight"] = np.asarray(layer.kernel).T
        weights[f"{name}.bias"] = np.asarray(layer.bias)

    def norm(name: str, residual: Any) -> None:
        weights[f"{name}.weight"] = np.asarray(residual.norm.gamma)
        weights[f"{name}.bias"] = np.asarray(residual.norm.beta)

    def attention(name: str, layer: Any) -> None:
        linear(f"{name}.q_proj", layer.query)
        linear(f"{name}.k_proj", layer.key)
        linear(f"{name}.v_proj", layer.value)
        linear(f"{name}.out_proj", layer.output_projection)

    for side in ("encoder", "decoder"):
        for number, layer in enumerate(getattr(model, side).layers):
            name = f"model.{side}.layers.{number}"
            attention(f"{name}.self_attn", layer.attention)
            norm(f"{name}.self_attn_layer_norm", layer.around_attention)
            if layer.reads_memory:
                attention(f"{name}.encoder_attn", layer.cross_attention)
                norm(f"{name}.encoder_attn_layer_norm", layer.around_cross)
            linear(f"{name}.fc1", layer.feed_forward.inner)
            linear(f"{name}.fc2", layer.feed_forward.outer)
            norm(f"{name}.final_layer_norm", layer.around_feed_forward)
    return weights


def _transformers(path: str, threads: int, sentences: list[list[int]]):
    import torch
    import transformers

    torch.set_num_threads(threads)
    with np.load(path) as file:
        weights = dict(file)
    config = transformers.MarianConfig(
        **json.loads(str(weights.pop("config"))),
        max_position_embeddings=1024,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=_PAD,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        decoder_start_token_id=_BOS,
        forced_eos_token_id=None,
    )
    model = transformers.MarianMTModel(config).eval()
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    # The embedding has four names; the positions and the bias of the logits stay as they are.
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    known = ("embed_tokens.weight", "embed_positions.weight", "lm_head.weight", "logits_bias")
    strange = [name for name in missing if not name.endswith(known)] + list(unexpected)
    if strange:
        raise ValueError(f"this version of transformers names weights otherwise: {strange[0]}")
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6  # ours

    order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number]))

    def batches():
        begin = 0
        while begin < len(order):
            length = len(sentences[order[begin]]) + 1
            rows = max(1, _BATCH_TOKENS // length)
            yield order[begin : begin + rows], length
            begin += rows

    def run(beam_size: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in sentences]
        for numbers, length in batches():
            source = torch.zeros([len(numbers), length], dtype=torch.long)
            for row, number in enumerate(numbers):
                ids = [*sentences[number], _EOS]
                source[row, : len(ids)] = torch.tensor(ids)
            with torch.inference_mode():
                output = model.generate(
                    input_ids=source,
                    attention_mask=(source != _PAD).long(),
                    num_beams=beam_size,
                    do_sample=False,
                    length_penalty=1.0,
                    max_new_tokens=_LONGEST,
                    suppress_tokens=[_PAD, _UNKNOWN, _BOS],
                )
            for number, row in zip(numbers, output.tolist(), strict=True):
                text = row[1:]
                ends = text.index(_EOS) if _EOS in text else len(text)
                found[number] = text[:ends]
        return found

    return run
