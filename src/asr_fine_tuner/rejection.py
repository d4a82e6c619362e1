"""Why a clip is left out of the artifact."""

from __future__ import annotations


class ClipRejected(Exception):
    """An example that cannot be learned from.

    reason: stable, what rejections are counted by (`too_long`, `truncated`, `empty_text`, ...).
    detail: what was found, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
