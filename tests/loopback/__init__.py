"""Servers on the loopback interface that speak the protocols of the Hub and of W&B, for tests with the real clients."""
