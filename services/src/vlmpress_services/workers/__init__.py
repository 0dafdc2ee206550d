"""The only modules that import Ray."""

import os

# Whoever reaches a Ray cluster can run code on it. Ray 2.60 turns 127.0.0.1 into the machine's address and listens
# everywhere unless this says, before Ray is imported, that its clusters have one machine.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
