"""What every kind of input does alike."""

import pytest
from tensorflow.python.data.ops import iterator_ops, multi_device_iterator_ops

from trainer.input import memory as trainer_input
from trainer.input.distribution import distribute
from trainer.input.evaluation import evaluation_batches


@pytest.fixture
def made_of(monkeypatch) -> list:
    """The datasets that iterators are made of, on the host and for each device."""
    datasets = []
    create = iterator_ops.OwnedIterator._create_iterator
    init = multi_device_iterator_ops.OwnedMultiDeviceIterator.__init__

    def create_and_tell(self, dataset):
        datasets.append(dataset)
        create(self, dataset)

    def init_and_tell(self, dataset=None, *arguments, **options):
        if dataset is not None:  # else it is one that is there already, inside of a function
            datasets.append(dataset)
        init(self, dataset, *arguments, **options)

    monkeypatch.setattr(iterator_ops.OwnedIterator, "_create_iterator", create_and_tell)
    monkeypatch.setattr(
        multi_device_iterator_ops.OwnedMultiDeviceIterator, "__init__", init_and_tell
    )
    return datasets


@pytest.mark.parametrize("name", ["one_device", "two_replicas"])
def test_nothing_is_tuned(made_of, make_pairs, tiny_config, request, name):
    """A thread that tunes would hold up whoever destroys the iterator."""
    strategy = request.getfixturevalue(name)
    replicas = strategy.num_replicas_in_sync
    pairs, config = make_pairs([(5, 5)] * 20), tiny_config()
    data = trainer_input.training_data(pairs, config, 3, replicas)
    next(distribute(data, strategy, 0))
    next(iter(evaluation_batches(pairs, config, 3, strategy)))
    assert len(made_of) == 2 * (1 + replicas)
    assert [dataset.options().autotune.enabled for dataset in made_of] == [False] * len(made_of)
