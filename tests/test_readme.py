"""The README and the guides: their links, their tables, and every command in them."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from loopback.hub_answers import Account
from readme_tables import README, readme_with_tables

from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.parameters import JobParameters, PreprocessParameters, TrainParameters

if TYPE_CHECKING:
    from conftest import RunJob
    from loopback.hub import LoopbackHub

ROOT = README.parent
PAGES = [README, *sorted((ROOT / "howto").glob("*.md"))]
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)")
# Steps of a real run, cut down to what a test can wait for.
_SHORTER = {"--max_steps": "4", "--eval_steps": "2", "--save_steps": "2", "--warmup_steps": "1"}
_TOKEN = "hf_readme_canary"


def commands(page: Path, language: str = "bash") -> list[str]:
    blocks = (match for match in _FENCE.finditer(page.read_text(encoding="utf-8")) if match[1] == language)
    return [line.strip() for block in blocks for line in block[2].splitlines() if line]


ALL_COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]
JOB_COMMANDS = [(page, command) for page, command in ALL_COMMANDS if command.startswith("python -m jobs.")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_parameter_tables_are_those_of_the_parameters() -> None:
    readme = README.read_text(encoding="utf-8")
    assert readme == readme_with_tables(readme), "python tests/readme_tables.py writes them anew"


@pytest.mark.parametrize(("page", "command"), JOB_COMMANDS)
def test_the_jobs_understand_every_command(page: str, command: str) -> None:
    module, *arguments = shlex.split(command)[2:]
    kinds: dict[str, type[JobParameters]] = {"preprocess": PreprocessParameters}
    kind = kinds.get(module.removeprefix("jobs."), TrainParameters)
    if "--help" in arguments:
        pytest.skip("only shows help")
    given = read_parameters(kind, module, arguments)
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        assert str(getattr(given, flag[2:])).lower() == value.lower()


def test_other_commands_are_known() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    others = {command for _, command in ALL_COMMANDS} - {command for _, command in JOB_COMMANDS}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    sdk = " ".join(f'"{package}"' for package in extras["digitalhub"] if package.startswith("digitalhub"))
    installs = {"pip install -r requirements.txt", "pip install --no-deps -e .", f"pip install {sdk}"}
    # test_digitalhub_jobs.py runs these.
    submissions = {f"python howto/digitalhub/submit.py {kind}" for kind in ("container", "python")}
    assert others - installs - submissions == {"make demo"}
    assert {"demo", "test", "lint", "bench"} <= set(targets)


@pytest.fixture
def fleurs_and_whisper(hub: LoopbackHub) -> LoopbackHub:
    """google/fleurs as the Hub has it, a script with a parquet conversion, and a tiny model as openai/whisper-small."""
    hub.add_repo(
        "dataset", "google/fleurs", {"fleurs.py": b"raise SystemExit", "README.md": b"---\nlicense: cc-by-4.0\n---\n"}
    )
    files = {}
    for split, rows in tiny.all_splits(8, 3).items():
        table = pa.table(
            {
                "id": pa.array(range(len(rows)), pa.int32()),
                "path": [row.path for row in rows],
                "audio": [{"bytes": row.audio, "path": row.path} for row in rows],
                "transcription": [str(row.text).lower() for row in rows],
                "raw_transcription": [row.text for row in rows],
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        files[f"it_it/{split}/0000.parquet"] = sink.getvalue().to_pybytes()
    hub.add_repo("dataset", "google/fleurs", files, revision="refs/convert/parquet")
    model = {path.name: path.read_bytes() for path in tiny.model().iterdir() if path.is_file()}
    hub.add_repo("model", "openai/whisper-small", model)
    hub.tokens[_TOKEN] = Account("ada", role="write")
    return hub


def test_the_two_commands_of_the_readme(fleurs_and_whisper: LoopbackHub, run_job: RunJob, tmp_path: Path) -> None:
    preprocess, train = (shlex.split(command)[2:] for command in commands(README) if command.startswith("python -m"))
    made = run_job("preprocess", *preprocess[1:])
    assert made.returncode == 0, made.stderr
    assert made.result["splits"]["train"]["clips"] == 8
    assert made.result["bytes_fetched"] > 0
    shorter = [_SHORTER.get(flag, value) for flag, value in zip(["", *train[1:]], train[1:], strict=False)]
    done = run_job("train", *shorter, env={"HF_TOKEN": _TOKEN})
    assert done.returncode == 0, done.stderr
    assert done.result["repo_id"] == "ada/whisper-small-it"
    published = fleurs_and_whisper.files("model", "ada/whisper-small-it")
    card = published["README.md"].decode()
    assert "google/fleurs" in card
    assert "openai/whisper-small" in card
    assert "model.safetensors" in published
    assert "predictions.jsonl" in published
    assert (tmp_path / "outputs" / "whisper-small-it" / "model" / "predictions.jsonl").is_file()
    assert _TOKEN not in done.stdout + done.stderr + card


def test_the_python_of_the_readme_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that needs no network: its names exist and its parameters are accepted."""
    (block,) = (match[2] for match in _FENCE.finditer(README.read_text()) if "asr_fine_tuner" in match[2])
    imports, _, calls = block.partition("\n\n")
    built = re.findall(r"(?:Preprocess|Train)Parameters\([^)]*\)", calls)
    assert len(built) == 2
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "readme.py"
    script.write_text("\n".join([imports, *built]))
    defined = runpy.run_path(str(script))
    assert callable(defined["preprocess"])
    assert callable(defined["train"])
