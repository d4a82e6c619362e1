"""Parts of a dataset's files by range requests (RFC 9110, section 14)."""

from __future__ import annotations

import functools
import os

from asr_fine_tuner import traffic
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.patience import with_patience

_SMALL_READ = 1 << 16  # bytes: a parquet footer, as pyarrow asks for it; these are read again and again, and kept


def read_range(repo_id: str, commit: str, name: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file of a dataset repository.

    Raises PermanentError where the server knows no ranges or refuses them, TransientError while it cannot be reached.
    """
    fetch = _fetch_small_range if end - start <= _SMALL_READ else _fetch_range
    return fetch(repo_id, commit, name, start, end)


@with_patience
def _fetch_range(repo_id: str, commit: str, name: str, start: int, end: int) -> bytes:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    headers = build_hf_headers(token=os.environ.get("HF_TOKEN") or False)
    content = bytearray()
    with http_stream_backoff(
        "GET",
        hf_hub_url(repo_id, name, repo_type="dataset", revision=commit),
        # Of a compressed answer the range would be one of the compressed bytes.
        headers=headers | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),  # the client cannot repeat what fails while the body is read; patience does
    ) as response:
        if response.is_error:
            response.read()  # the message is in the body
        hf_raise_for_status(response)
        if response.status_code != 206 and start > 0:
            raise PermanentError(
                given=f"{repo_id}: the server at {response.url.host} sends the whole of {name} when it is asked for "
                f"bytes {start} to {end} (status {response.status_code})",
                expected="a server that answers range requests (RFC 9110, section 14), as the Hub does",
                action="check HF_ENDPOINT and the proxy settings, or download the dataset and give its folder",
            )
        for block in response.iter_bytes(_SMALL_READ):
            content += block
            if len(content) >= end - start:
                break
    traffic.count(len(content))
    del content[end - start :]
    if len(content) != end - start:
        raise TransientError(
            given=f"{repo_id}: {name} ended early",
            expected=f"bytes {start} to {end}",
            action="run the same command again",
        )
    return bytes(content)


_fetch_small_range = functools.lru_cache(maxsize=128)(_fetch_range)  # a commit's files do not change
