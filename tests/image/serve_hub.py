"""A Hub in a container: prints where it listens, and serves until it is killed."""

import threading

from loopback.hub import LoopbackHub

with LoopbackHub() as hub:
    print(hub.url, flush=True)
    threading.Event().wait()
