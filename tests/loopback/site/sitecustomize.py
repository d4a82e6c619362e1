"""Python imports this when it starts with this folder on its path: child processes of the tests get the same guard."""

from loopback.guard import install

install()
