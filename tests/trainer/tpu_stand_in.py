"""`trainer.main` with TensorFlow's calls to the TPU system replaced, run by test_tpu_strategy.py.

The stand-in for TPUStrategy mirrors over two CPU devices, which exist only once the "TPU" is
initialized. What it is given to run on the replicas, it looks at: a TPU compiles nothing but
int32 and float arguments of static shapes, and no call to the host. At the end it writes what it
saw: to the file that the environment variable SEEN names.
"""

import json
import os

import tensorflow as tf

from common.errors import run_app
from launch.compiler.programs import forbidden, graphs_of
from trainer import loop, main, run, step

seen: dict = {"calls": [], "arguments": [], "forbidden": [], "functions": [], "compiled": []}
seen["optimized"] = []


class Resolver:
    def __init__(self, **options):
        seen["calls"].append(["resolve", options])


def connect(resolver):
    seen["calls"].append(["connect"])


def initialize(resolver):
    """What runs before this on a TPU host is lost; here it would make splitting the CPU fail."""
    seen["calls"].append(["initialize"])
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


class Strategy(tf.distribute.MirroredStrategy):
    def __init__(self, resolver):
        seen["calls"].append(["strategy"])
        super().__init__(["/device:CPU:0", "/device:CPU:1"])
        self.extended.num_hosts = 1

    def run(self, fn, args=(), kwargs=None, options=None):
        def traced(*args, **kwargs):
            graph = tf.compat.v1.get_default_graph()
            before = set(graph.get_operations())
            result = fn(*args, **kwargs)
            inside = [one for one in graph.get_operations() if one not in before]
            names = {
                attribute.func.name
                for one in inside
                for attribute in one.node_def.attr.values()
                if attribute.func.name
            }
            for name in names:
                for called in graphs_of(graph._get_function(name).graph, set()):
                    inside += called.get_operations()
            bad = [f"{why} ({one.type} {one.name})" for one in inside if (why := forbidden(one))]
            seen["forbidden"] += bad
            return result

        if not tf.executing_eagerly():
            seen["functions"].append(fn.__name__)
            for value in tf.nest.flatten(
                [self.experimental_local_results(one) for one in tf.nest.flatten(args)]
            ):
                seen["arguments"].append([value.dtype.name, value.shape.as_list()])
            return super().run(traced, args, kwargs, options)
        seen["functions"].append(f"eager {fn.__name__}")
        return super().run(fn, args, kwargs, options)


tf.distribute.cluster_resolver.TPUClusterResolver = Resolver
tf.config.experimental_connect_to_cluster = connect
tf.tpu.experimental.initialize_tpu_system = initialize
tf.distribute.TPUStrategy = Strategy
# As on a TPU. The rest of the step is built as for other devices: so it is equal to the bit.
run.compiles_itself = lambda strategy: True
run.optimize_for_tpu = lambda model: seen["optimized"].append(type(model).__name__)
step.Steps._norms = tf.autograph.experimental.do_not_convert(
    lambda self: self._first_of(self.strategy.run(self.replica_norms))
)

function = tf.function


def noted(*args, **options):
    seen["compiled"] += [True] if options.get("jit_compile") else []
    return function(*args, **options)


tf.function = noted

if "LOST_AT" in os.environ:
    ask = loop.Loop._is_asked_to_stop

    def lost(self, call):
        if int(self._run.optimizer.iterations.numpy()) >= int(os.environ["LOST_AT"]):
            raise tf.errors.UnavailableError(None, None, "Socket closed")
        return ask(self, call)

    loop.Loop._is_asked_to_stop = lost

try:
    run_app(main.main, main.parse_flags)
finally:
    with open(os.environ["SEEN"], "w", encoding="utf-8") as file:
        json.dump(seen, file)
