"""Configurations: round trips, and errors that name the field."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

import configs.schema
from configs import schema

FILES = sorted(
    path.stem
    for path in Path(configs.schema.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "flags", "schema")
)


@pytest.mark.parametrize("name", FILES)
def test_shipped_configurations_are_valid(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    schema.validate(config)
    assert schema.from_dict(json.loads(json.dumps(schema.to_dict(config)))) == config


def test_round_trip_through_json():
    config = schema.Config()
    config.model.width, config.data.buckets, config.train.seed = 64, (8, 24), 7
    again = schema.from_dict(json.loads(json.dumps(schema.to_dict(config))))
    assert again == config and again.data.buckets == (8, 24)
    assert again != schema.Config()


def test_missing_fields_have_their_defaults():
    """A config.json of an older version lacks the fields that came later."""
    config = schema.from_dict({"model": {"heads": 4}})
    assert config == schema.Config(model=schema.ModelConfig(heads=4))


@pytest.mark.parametrize(
    ("values", "name"),
    [({"model": {"widht": 8}}, "model.widht"), ({"modle": {"width": 8}}, "modle.width")],
)
def test_unknown_fields(values, name):
    with pytest.raises(ValueError, match=f"unknown configuration field {name}"):
        schema.from_dict(values)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("model.norm", "layer", "one of post, pre, deepnorm"),
        ("model.tied_embeddings", "some", "one of all, target, none"),
        ("model.norm_kind", "batch", "one of layer, rms"),
        ("model.activation", "tanh", "one of relu, gelu, swiglu"),
        ("model.positions", "fixed", "one of sinusoidal, learned, t5, rotary, alibi, none"),
        ("model.pooling", "sum", "one of mean, max, first"),
        ("model.kv_heads", -1, "0 or more"),
        ("model.attention_window", -1, "0 or more"),
        ("model.attention_block", -1, "0 or more"),
        ("model.qk_norm", 1, "of type bool"),
        ("optimizer.name", "sgd", "one of adam, adamw, adafactor, lion, muon"),
        ("data.batching", "sorted", "one of packed, bucketed"),
        ("optimizer.schedule", "noam", "one of inverse_sqrt, cosine, linear, constant"),
        ("train.keep_best", 0, "more than 0"),
        ("train.keep_every_hours", -1.0, "0 or more"),
        ("model.dropout", 1.0, "at least 0 and, in float32, less than 1"),
        ("model.attention_dropout", -0.1, "at least 0 and, in float32, less than 1"),
        ("train.label_smoothing", 1.5, "at least 0 and, in float32, less than 1"),
        ("optimizer.beta_1", 1.0, "at least 0 and, in float32, less than 1"),
        ("optimizer.beta_2", 1.0, "at least 0 and, in float32, less than 1"),
        ("optimizer.beta_2", 1 - 1e-8, "at least 0 and, in float32, less than 1"),
        ("optimizer.clip_norm", float("inf"), "finite"),
        ("optimizer.learning_rate", 0.0, "more than 0"),
        ("optimizer.learning_rate", float("nan"), "more than 0"),
        ("optimizer.clip_norm", -1.0, "0 or more"),
        ("optimizer.warmup_steps", -1, "0 or more"),
        ("train.steps", 0, "more than 0"),
        ("train.batch_tokens", -4, "more than 0"),
        ("train.steps_per_loop", 0, "more than 0"),
        ("data.row_length", 0, "more than 0"),
        ("data.buckets", (), "rising positive numbers"),
        ("data.buckets", (8, 8), "rising positive numbers"),
        ("data.buckets", (0, 8), "rising positive numbers"),
        ("decode.beam_size", 0, "more than 0"),
        ("model.heads", 0, "more than 0"),
    ],
)
def test_errors_name_the_field_and_what_it_may_be(name, value, wanted):
    config = schema.Config()
    group, field = name.split(".")
    setattr(getattr(config, group), field, value)
    with pytest.raises(ValueError) as error:
        schema.validate(config)
    message = str(error.value)
    assert message == f"--config.{name} is {value!r}, but must be {wanted}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"width": 30, "heads": 4}, "width is 30, but must be a multiple of"),
        ({"width": 9, "heads": 3}, "width must be even"),
        ({"heads": 8, "kv_heads": 3}, "kv_heads is 3, but must be a divisor of"),
        ({"width": 12, "heads": 4, "positions": "rotary"}, "heads is 3, but must be even"),
        ({"attention_block": 64, "positions": "t5"}, "attention_block is 64, but must be 0 for"),
        (
            {"positions": "learned", "max_positions": 255},
            "max_positions is 255, but must be at least 256, the longest row",
        ),
    ],
)
def test_sizes_that_do_not_fit(model, message):
    with pytest.raises(ValueError, match=message):
        schema.from_dict({"model": model})


@pytest.mark.parametrize(
    "setting", [{"train": {"loss_chunk_tokens": 64}}, {"model": {"attention_block": 8}}]
)
def test_rows_of_several_lengths(setting):
    """What needs static shapes is refused with several buckets, and taken with one."""
    data = {"batching": "bucketed", "buckets": (8, 16)}
    with pytest.raises(ValueError, match=r"is for rows of one length, and .*buckets has 2"):
        schema.from_dict({**setting, "data": data})
    schema.from_dict({**setting, "data": {**data, "buckets": (16,)}})


@pytest.mark.parametrize(
    "name", ["optimizer.clip_norm", "optimizer.warmup_steps", "train.seed", "model.dropout"]
)
def test_zero_may_be(name):
    config = schema.Config()
    group, field = name.split(".")
    setattr(getattr(config, group), field, 0)
    schema.validate(config)


def test_every_field_can_be_set_by_its_type():
    """Flags are made from the annotations: only plain types and tuples of integers."""
    plain = [field for field in dataclasses.fields(schema.Config) if field.name == "task"]
    for group in dataclasses.fields(schema.Config):
        if group not in plain:
            plain += dataclasses.fields(group.default_factory)
    assert len(plain) > 40
    for field in plain:
        assert field.type in (bool, int, float, str, tuple[int, ...]), field.name
        assert field.default is not dataclasses.MISSING, field.name
