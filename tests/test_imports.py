"""Imports run one way, the Hub is behind one module, and what only computes does no I/O. Read from the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import asr_fine_tuner

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "asr_fine_tuner"

# A module imports only from layers above its own, wherever in it the import stands. A new module has to find its place.
LAYERS = (
    # the ground: errors, parameters, files, how a job begins and ends
    ("errors", "rejection"),
    ("launch",),
    ("stop", "parameters", "logs", "progress", "traffic", "cores", "quiet"),
    ("flops", "device_peak", "stage_clock", "reproducible"),
    ("throughput",),
    ("files", "disk", "locations", "command_line"),
    ("platform_folders", "torchrun"),
    ("outcome",),
    # what needs neither files nor network
    ("languages", "text", "normalizers", "truncation", "packing", "prefetching"),
    ("attention", "audio", "metrics"),
    # dataset -> examples
    ("examples", "filetree", "holdout", "columns", "hub_errors"),
    ("patience", "clips", "splits", "range_reader", "checkpoint_files"),
    ("hub_client", "hub_ranges"),
    ("hub_upload",),
    ("hub", "parquet", "tables", "webdataset"),
    ("layout",),
    ("dataset",),
    # examples -> features and labels -> artifact
    ("features", "labels", "manifest"),
    ("artifact",),
    ("encoding", "summary"),
    ("shards",),
    ("local_engine", "ray_engine", "artifact_request", "artifact_size"),
    ("engines", "artifact_assembly", "artifact_place"),
    ("parts", "artifact_repository"),
    ("preprocessing",),
    # artifact -> batches -> trainer -> results -> published model
    ("batches", "checkpoints", "device_plan", "evaluation", "lora", "model_folder", "results", "tracking"),
    ("best_weights", "training_input", "run_folder", "reporting", "curves", "model_card", "memory"),
    ("ranks", "base_model", "compilation", "training_arguments", "windows"),
    ("joining", "step_division", "stopping"),
    ("run_evaluations", "transcribing", "run_size", "throughput_meter"),
    ("trainer",),
    ("finished_run",),
    ("fine_tuning",),
    ("training",),
    # the rehearsal of all that
    ("checklist", "rehearsal"),
    ("preflight_report",),
    ("preflighting",),
    # the jobs on a platform of which the rest knows nothing
    ("digitalhub_project",),
    ("digitalhub_jobs",),
    ("digitalhub_functions",),
)
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")

_OF_THE_HUB = {"hub", "hub_client", "hub_ranges", "hub_upload"}
# What is taken of the Hub's client elsewhere: paths, cards, names of errors, its bar. None of it makes a request.
_LOCAL_PARTS_OF_THE_CLIENT = {
    "huggingface_hub.EvalResult",
    "huggingface_hub.ModelCard",
    "huggingface_hub.ModelCardData",
    "huggingface_hub.RepoCard",
    "huggingface_hub.cached_assets_path",
    "huggingface_hub.constants",
    "huggingface_hub.errors",
    "huggingface_hub.utils.tqdm",
    "httpx2",
}
_NETWORK = {
    "huggingface_hub",
    "httpx",
    "httpx2",
    "requests",
    "urllib3",
    "aiohttp",
    "http",
    "ftplib",
    "socketserver",
    "ssl",
}
# Functions and methods of several libraries that make requests.
_REQUESTS = {"push_to_hub", "load_dataset", "snapshot_download", "hf_hub_download"}

_IO = _NETWORK | {"os", "shutil", "socket", "subprocess", "sys", "tempfile", "logging", "wandb", "urllib"}
_COMPUTE_ONLY = ("audio", "text", "normalizers", "metrics", "truncation", "languages")


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Dotted name of everything that is imported anywhere in the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def our_modules(tree: ast.Module) -> set[str]:
    names = {name.split(".")[1] for name in imports_of(tree) if name.startswith("asr_fine_tuner.")}
    return names - {"__version__"}


def test_every_module_has_its_layer() -> None:
    listed = [module for layer in LAYERS for module in layer]
    assert sorted(listed) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_earlier_layers(module: str) -> None:
    layer_of = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    tree = tree_of(module)
    relative = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"relative imports in lines {relative}; imports name the package"
    assert "asr_fine_tuner" not in imports_of(tree), "names of the package are imported from their modules"
    later = {name for name in our_modules(tree) if layer_of[name] >= layer_of[module]}
    assert not later, f"{module} (layer {layer_of[module]}) imports {later}"


@pytest.mark.parametrize("module", [module for module in MODULES if module not in _OF_THE_HUB])
def test_only_hub_talks_to_the_hub(module: str) -> None:
    tree = tree_of(module)
    taken = {name for name in imports_of(tree) if name.split(".")[0] in _NETWORK}
    assert taken <= _LOCAL_PARTS_OF_THE_CLIENT
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not called & _REQUESTS


def test_only_hub_errors_names_the_transport() -> None:
    assert {module for module in MODULES if "httpx2" in set(imports_of(tree_of(module)))} <= {"hub", "hub_errors"}


@pytest.mark.parametrize("module", MODULES)
def test_from_pretrained_reads_what_hub_has_fetched(module: str) -> None:
    """transformers would otherwise ask the Hub by itself, past our retries, pins and counts."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            local = given.get("local_files_only")
            assert isinstance(local, ast.Constant), f"{module}, line {node.lineno}"
            assert local.value is True


@pytest.mark.parametrize("module", _COMPUTE_ONLY)
def test_what_computes_does_no_io(module: str) -> None:
    tree = tree_of(module)
    assert not {name.split(".")[0] for name in imports_of(tree)} & _IO
    opens = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in ("open", "print", "input")]
    assert not opens
    assert our_modules(tree) <= {*_COMPUTE_ONLY, "errors", "rejection"}


def test_jobs_hold_no_logic() -> None:
    jobs = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")
    assert [path.stem for path in jobs] == ["preflight", "preprocess", "train"]
    for path in jobs:
        assert len(path.read_text().splitlines()) <= 40
        tree = ast.parse(path.read_text())
        assert our_modules(tree) <= {"outcome", "parameters", "preflight_report"}
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert path.stem in named, "the job is the function of the package that has its name"


def test_no_module_has_the_name_of_what_the_package_offers() -> None:
    """Importing such a module would put it in the place of the function."""
    assert not set(MODULES) & set(asr_fine_tuner.__all__)
