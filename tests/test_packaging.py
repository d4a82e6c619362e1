"""pyproject.toml declares what is imported, requirements.txt pins it, and the trainer has what we override."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: needs for name, needs in PROJECT["optional-dependencies"].items() if name != "dev"}

OVERRIDDEN_PRIVATE = {
    "_clip_grad_norm",
    "_get_grad_norm",
    "_get_num_items_in_batch",
    "_get_output_dir",
    "_load_from_checkpoint",
    "_maybe_log_save_evaluate",
    "_prepare_inputs",
    "_run_epoch",
    "_save_checkpoint",
    "_save_rng_state",
}
OVERRIDDEN_PUBLIC = {
    "compute_loss",
    "evaluate",
    "floating_point_ops",
    "get_batch_samples",
    "get_train_dataloader",
    "log",
    "store_flos",
    "training_step",
}


def _name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _declared(requirements: list[str]) -> dict[str, Requirement]:
    return {_name(requirement.name): requirement for requirement in map(Requirement, requirements)}


def _pinned(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return _declared([line for line in lines if not line.startswith(("#", "-r"))])


def _imported() -> Iterator[tuple[str, str]]:
    """A module's name, and a package that it imports."""
    for folder in ("src", "jobs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names = [node.module]
                yield from ((path.stem, name.partition(".")[0]) for name in names)


def test_what_is_imported_is_declared() -> None:
    """By the modules of an extra what that extra brings, too."""
    homes = packages_distributions()
    undeclared = set()
    for module, package in _imported():
        declared = set(_declared(PROJECT["dependencies"]))
        for extra, requirements in EXTRAS.items():
            if module.startswith(f"{extra}_"):
                declared |= set(_declared(requirements))
        known = package in sys.stdlib_module_names or package == "asr_fine_tuner"
        if not known and not {_name(home) for home in homes[package]} & declared:
            undeclared.add((module, package))
    assert not undeclared


def test_what_is_declared_is_pinned_within_its_range() -> None:
    pinned = _pinned("requirements.txt")
    of_the_tests = {**pinned, **_pinned("requirements-dev.txt")}
    for pins, declared in (
        (pinned, PROJECT["dependencies"]),
        (of_the_tests, [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]),
    ):
        for name, requirement in _declared(declared).items():
            if name == PROJECT["name"]:  # with its extras
                continue
            (pin,) = pins[name].specifier
            assert pin.operator == "=="
            assert pin.version in requirement.specifier, name


def test_the_trainer_has_what_is_overridden() -> None:
    """A hook that transformers renamed would not be called any more, and nothing would fail."""
    from transformers import Seq2SeqTrainer, Trainer

    from asr_fine_tuner.trainer import WhisperTrainer

    ours = {name for name, member in vars(WhisperTrainer).items() if callable(member)}
    assert {*OVERRIDDEN_PRIVATE, *OVERRIDDEN_PUBLIC} == {name for name in ours if hasattr(Seq2SeqTrainer, name)} - {
        "__init__"
    }
    for name in OVERRIDDEN_PRIVATE:
        callers = [
            method
            for method in {**vars(Trainer), **vars(Seq2SeqTrainer)}.values()
            if name in getattr(getattr(method, "__code__", None), "co_names", ())
        ]
        assert callers, f"nothing in transformers calls {name}"


@pytest.mark.parametrize("version", ["5.23.1", "5.24.0"])
def test_transformers_is_held_to_the_minor_version_whose_hooks_are_known(version: str) -> None:
    held = _declared(PROJECT["dependencies"])["transformers"].specifier
    assert held.contains(version) == (version == "5.23.1")
