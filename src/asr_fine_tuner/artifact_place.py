"""The place of an artifact in the cache: the folder that it grows in, and how it replaces another one there."""

from __future__ import annotations

import logging
import shutil

from asr_fine_tuner.artifact_request import ArtifactRequest
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import mismatches, sync_folder
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.manifest import MANIFEST_NAME, Manifest, read_manifest
from asr_fine_tuner.shards import WorkingFolder

logger = logging.getLogger(__name__)


def begin(home: ArtifactHome, request: ArtifactRequest, *, overwrite: bool) -> Manifest | WorkingFolder:
    """The finished artifact of the request, else the folder to make it in, with what was made before.

    The caller holds the home's lock alone.
    Raises:
        PermanentError: an artifact of another request, or of another version, is there, or shards of one, without
            `overwrite`.
    """
    _settle_replacement(home)
    existing = _existing(home, overwrite=overwrite)
    if existing and existing.identity == request.identity:
        if not (problems := mismatches(home.artifact, existing.files)):
            return existing
        logger.warning("artifact %s is damaged (%s) and is made anew", home.name, "; ".join(problems))
    elif existing and not overwrite:
        raise request.name_is_taken(home.name, existing)
    return _working_folder(home, request, overwrite=overwrite)


def move_into_place(work: WorkingFolder, home: ArtifactHome) -> None:
    """Put a finished artifact where the one that it replaces was, which is removed only then."""
    if home.artifact.exists():
        home.artifact.rename(home.replaced)
    work.artifact.rename(home.artifact)
    sync_folder(home.folder)
    _settle_replacement(home)
    shutil.rmtree(work.folder)


def _existing(home: ArtifactHome, *, overwrite: bool) -> Manifest | None:
    if not (home.artifact / MANIFEST_NAME).is_file():
        return None
    try:
        return read_manifest(home.artifact)
    except PermanentError:
        if overwrite:
            return None
        raise


def _working_folder(home: ArtifactHome, request: ArtifactRequest, *, overwrite: bool) -> WorkingFolder:
    work = WorkingFolder(home.partial)
    identity = request.identity_of_work
    if work.is_for(identity):
        logger.info("continuing the unfinished artifact in %s", home.partial)
        work.remove_leftovers()
        return work
    # Without `artifact` it is what is left of one that was moved into place.
    if not overwrite and work.artifact.is_dir() and work.n_recorded():
        raise request.name_is_begun(home.name, work)
    if home.partial.exists():
        shutil.rmtree(home.partial)
    work.create(identity)
    return work


def _settle_replacement(home: ArtifactHome) -> None:
    """End a replacement: the artifact set aside is removed, or put back when a killed job had not moved the new one."""
    if not home.replaced.exists():
        return
    if home.artifact.exists():
        shutil.rmtree(home.replaced)
    else:
        home.replaced.rename(home.artifact)
