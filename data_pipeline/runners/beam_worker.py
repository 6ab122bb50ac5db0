"""A Beam worker process of the local runner, started by `beam.BeamRunner`.

It is Beam's own worker without its start-up log, which Beam gives no way to switch off.
"""

import logging
import sys

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
