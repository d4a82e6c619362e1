"""What failures of the Hub's client mean for the person who submitted the job."""

from __future__ import annotations

import errno
import os

from asr_fine_tuner.errors import JobError, PermanentError, TransientError, is_transient_status

_ASK_FOR_ACCESS = "accept its conditions at {url} with the account HF_TOKEN belongs to, and set HF_TOKEN"
_CHECK_THE_NAME = "check the name; for a private repository set HF_TOKEN to a token that may read it"


class RepositoryNotFound(PermanentError):
    """The Hub has no such repository, or none that this token may see; it does not tell which."""


def translate(error: BaseException, subject: str) -> JobError | None:
    """The expected failure that an exception of the Hub's client stands for; None when it is a bug.

    subject: what was being done, for the message (`the dataset google/fleurs`).

    The client wraps what really happened: a missing repository and a server that is down both arrive as
    LocalEntryNotFoundError once the cache has nothing either, so the chain of causes is searched.
    """
    for cause in reversed(_chain(error)):
        if translated := _translate(cause, subject):
            return translated
    return None


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _translate(error: BaseException, subject: str) -> JobError | None:
    import httpx2
    from huggingface_hub import errors

    match error:
        case JobError():
            return error
        case errors.OfflineModeIsEnabled():
            return PermanentError(
                given=f"{subject} is not complete in the cache, and HF_HUB_OFFLINE is set",
                expected="everything the job reads in the cache below HF_HOME",
                action="run once without HF_HUB_OFFLINE so that it is downloaded, or give a local folder",
            )
        case errors.GatedRepoError():
            return PermanentError(
                given=f"{subject} is gated, and {_whose_token()} has no access to it",
                expected="an account that has accepted its conditions",
                action=_ASK_FOR_ACCESS.format(url=_page(error)),
            )
        case errors.RevisionNotFoundError():
            return PermanentError(
                given=f"{subject} has no such revision",
                expected="a branch, tag or commit of the repository",
                action=f"see its history at {_page(error)}/commits/main and correct the revision, or leave it out",
            )
        case errors.RemoteEntryNotFoundError():
            return PermanentError(
                given=f"{subject}: the file at {_path(error)} does not exist",
                expected="a repository that has this file at this revision",
                action="check the repository and the revision",
            )
        case errors.DisabledRepoError():
            return PermanentError(
                given=f"{subject} was disabled by the Hub",
                expected="a repository that can be read",
                action="use another",
            )
        case errors.HfHubHTTPError():
            return _translate_status(error, subject)
        case errors.HFValidationError():
            return PermanentError(
                given=f"{subject}: {error}",
                expected="a repository id such as google/fleurs, or the path of a folder that exists",
                action="correct the name",
            )
        case errors.FileMetadataError():
            return PermanentError(
                given=f"{subject}: the server at {_endpoint()} does not answer as a Hub does ({error})",
                expected="the Hugging Face Hub or a mirror of it",
                action="check HF_ENDPOINT and the proxy settings",
            )
        case httpx2.UnsupportedProtocol() | httpx2.LocalProtocolError():
            return PermanentError(
                given=f"{subject}: {error}", expected="an address beginning with https://", action="check HF_ENDPOINT"
            )
        case httpx2.TransportError() | ConnectionError() | TimeoutError() | errors.XetDownloadError():
            return TransientError(
                given=f"{subject}: {_endpoint()} cannot be reached ({type(error).__name__}: {error})",
                expected="an answer from the Hub",
                action="check the network and HF_ENDPOINT, then run the same command again",
            )
        case OSError(errno=errno.ENOSPC):
            return PermanentError(
                given=f"{subject}: the disk is full ({error})",
                expected="room for it below HF_HOME",
                action="free space, or point HF_HOME at a larger disk",
            )
        case OSError() if "Consistency check failed" in str(error):
            return TransientError(
                given=f"{subject}: a download ended early",
                expected="the whole file",
                action="run the same command again",
            )
        case errors.LocalEntryNotFoundError() | errors.RevisionResolutionError():
            return PermanentError(
                given=f"{subject} is not in the cache ({error})",
                expected="a repository that was downloaded before, or a connection to the Hub",
                action="run once with a connection so that it is downloaded",
            )
    return None


def _translate_status(error: BaseException, subject: str) -> JobError:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    message = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
    if is_transient_status(status):
        return TransientError(
            given=f"{subject}: {_endpoint()} answers {status} ({message})",
            expected="an answer from the Hub",
            action="wait a while, then run the same command again",
        )
    if status == 401 and os.environ.get("HF_TOKEN"):
        return PermanentError(
            given=f"{subject}: the Hub does not accept HF_TOKEN (401), or there is no such repository",
            expected="a valid token and a repository it may see",
            action="make a token at https://huggingface.co/settings/tokens, and check the name",
        )
    if status in (401, 404):
        return RepositoryNotFound(
            given=f"{subject} was not found on the Hub with {_whose_token()} ({status})",
            expected="a repository that exists and may be read",
            action=_CHECK_THE_NAME,
        )
    if status == 403:
        return PermanentError(
            given=f"{subject}: the Hub forbids this to {_whose_token()} (403: {message})",
            expected="a token with the right to do it",
            action="use a token with that right; where the repository is gated, "
            + _ASK_FOR_ACCESS.format(url=_page(error)),
        )
    return PermanentError(
        given=f"{subject}: the Hub refuses the request ({status}: {message})",
        expected="a request that the Hub accepts",
        action="check the names and the revision",
    )


def _whose_token() -> str:
    return "the account of HF_TOKEN" if os.environ.get("HF_TOKEN") else "no HF_TOKEN"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _page(error: BaseException) -> str:
    repo_id = getattr(error, "repo_id", None)
    kind = "datasets/" if getattr(error, "repo_type", None) == "dataset" else ""
    return f"{_endpoint()}/{kind}{repo_id}" if repo_id else _endpoint()


def _path(error: BaseException) -> str:
    request = getattr(getattr(error, "response", None), "request", None)
    return str(request.url.path) if request is not None else "the given path"
