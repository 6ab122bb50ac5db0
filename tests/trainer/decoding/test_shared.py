"""Two workers of a training translate a split between them."""

from itertools import chain

from tests.trainer.distributed.test_cluster import free_ports, run_workers

_WORKER = """
import hashlib, json, os
import numpy as np
from configs.schema import from_dict
from tests.trainer.worker_script import task_of
from trainer.decoding.options import SearchOptions
from trainer.decoding.search import Decoder
from trainer.distributed import cluster
from trainer.distributed.strategy import make_strategy
from trainer.model.seeds import seeded_weights

strategy, _ = make_strategy("multi_worker", timeout_seconds=100)
worker = cluster.worker_of(strategy)
sizes = {"width": 16, "feed_forward": 24, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
config = from_dict({"model": sizes})
# Other initial weights on every worker: those of the first one, the chief, must count.
with strategy.scope(), seeded_weights(3 + worker.index):
    model = task_of(config).build_model()
rng = np.random.default_rng(0)
lines = [rng.integers(4, 30, size).tolist() for size in rng.integers(1, 15, 50)] + [[]]
options = SearchOptions(beam_size=3, batch_tokens=64, max_length_ratio=0.5)
decoder, calls, own = Decoder(model, options, strategy=strategy), [], []
search = decoder._search_batch
decoder._search_batch = lambda batch, weights: own.append(batch.numbers) or search(batch, weights)
shared = decoder.search(lines, between=calls.append)
alone = Decoder(model, options).search(lines)
nothing = decoder.search([[], []])
print(json.dumps({
    "same": shared == alone, "found": sum(map(bool, shared)), "nothing": nothing,
    "texts": hashlib.sha256(str(shared).encode()).hexdigest(),
    "calls": len(calls), "translated": sum(calls), "own": own,
    "kinds": len({tuple(best.ids) for best, *_ in shared[:-1]}),
    "gathered": [cluster.gather(strategy, text) for text in ("", "a" * worker.index, "\\u00e9\\n")],
}), flush=True)
cluster.leave(strategy)
os._exit(0)
"""


def test_two_workers_share_the_sentences():
    """Each translates half of the batches, and has all translations in the end: those of one."""
    jobs = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    first, second = run_workers(_WORKER, jobs)
    for result in (first, second):
        assert result["same"] and result["found"] == 50 and result["kinds"] > 20
        assert result["nothing"] == [[], []]
        assert result["gathered"] == [["", ""], ["", "a"], ["é\n", "é\n"]]
    assert first["texts"] == second["texts"]
    assert first["calls"] == second["calls"] == len(first["own"]) == len(second["own"]) + 1
    assert first["translated"] + second["translated"] == 50
    assert sorted(chain(*first["own"], *second["own"])) == list(range(50))
