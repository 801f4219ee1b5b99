# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm[proxy]==1.106.2"]
# ///
"""LiteLLM's proxy, what many put before their models today. It has an environment of its own because it pins what it
needs to versions that are not the server's.

`python litellm_proxy.py CONFIG PORT` serves on a port of loopback, with one process, which is its default.
"""

import sys

from litellm import run_server

if __name__ == "__main__":
    run_server(["--config", sys.argv[1], "--host", "127.0.0.1", "--port", sys.argv[2], "--telemetry", "False"])
