"""The process that serves the local model; its arguments are the weights' path, the model's name, the slots,
the port (0: any that is free).

It is a process of its own because loading holds the GIL for half a second. Once the model is loaded it writes
the address it listens on to standard output, one line; everything else goes to standard error.
"""

from __future__ import annotations

import os
import signal
import sys

_TOKENS_PER_SLOT = 2048
_CACHE_MIB = 64  # of prompts seen; llama.cpp's own default is 8 GiB
_WARNINGS = 2


def serve(weights: str, name: str, slots: int, port: int) -> None:
    """Serve until a signal ends the process; raises RuntimeError for weights that cannot be loaded."""
    report = os.dup(1)
    os.dup2(2, 1)  # whatever native code prints must not be taken for the address

    import xllamacpp  # only now, for the same reason

    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.model_alias = {name}
    params.offline = True
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * _TOKENS_PER_SLOT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
    params.cache_ram_mib = _CACHE_MIB
    params.fit_params = False  # it would load the model twice, to see whether so small a one fits
    params.ui = False
    params.endpoint_slots = False  # it shows other callers' prompts
    params.cors_origins = ""  # no web page may use it
    params.cors_credentials = False
    params.verbosity = _WARNINGS
    server = xllamacpp.Server(params)

    os.write(report, f"{server.listening_address}\n".encode())
    os.close(report)
    while True:
        signal.pause()


def _threads() -> int:
    # Its threads spin for each other: one core short, as when the service streams beside it, and it is 15 times
    # slower than on one thread. So it leaves a core free; more than four gain so small a model nothing.
    return max(1, min(4, (os.cpu_count() or 1) - 1))


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
