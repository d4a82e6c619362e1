"""Model repositories that want to hurt: no pickle is read, no code is run, no file but the model's own is opened."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loopback.hub import LoopbackHub
from tiny_training import changed, given_of
from warm_jobs import WarmJobs

from asr_fine_tuner import PermanentError, TrainParameters
from asr_fine_tuner.labels import load_tokenizer


class _Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self._touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._touched,)


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    return tmp_path / "touched"


@pytest.fixture
def hostile(tiny_model: Path, touched: Path, tmp_path: Path) -> Path:
    """A checkpoint that works, beside pickles that touch a file and code that does, which every file refers to."""
    folder = shutil.copytree(tiny_model, tmp_path / "hostile-whisper")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(pickle.dumps(_Payload(touched)))
    (folder / "evil.py").write_text(f"open({str(touched)!r}, 'w')\nclass Evil: pass\n")
    auto_map = dict.fromkeys(("AutoConfig", "AutoModelForSpeechSeq2Seq", "AutoFeatureExtractor"), "evil.Evil")
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json", "processor_config.json"):
        said = json.loads((folder / name).read_text())
        own = {**auto_map, "AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoProcessor": "evil.Evil"}
        (folder / name).write_text(json.dumps({**said, "auto_map": own}))
    return folder


def _one_step(parameters: TrainParameters, model_id: object) -> dict[str, object]:
    return given_of(changed(parameters, model_id=model_id, max_steps=1, eval_steps=1, evaluate_base=True))


def test_pickles_and_code_beside_good_weights_are_not_touched(
    jobs: WarmJobs, hub: LoopbackHub, parameters: TrainParameters, hostile: Path, touched: Path, tmp_path: Path
) -> None:
    hub.add_repo("model", "evil/whisper", hostile)
    for model_id in (hostile, "evil/whisper"):
        given = {**_one_step(parameters, model_id), "output_dir": tmp_path / Path(model_id).name}
        ended = jobs.run("train", given, env={"HF_TOKEN": ""})
        assert ended.returncode == 0, ended.stderr
        assert not touched.exists()
    fetched = " ".join(request.path for request in hub.requested("evil/whisper/resolve"))
    assert "model.safetensors" in fetched
    assert not any(name in fetched for name in (".bin", ".pt", ".py"))


def test_pickled_weights_alone_are_refused(
    jobs: WarmJobs, parameters: TrainParameters, hostile: Path, touched: Path
) -> None:
    (hostile / "model.safetensors").unlink()
    ended = jobs.run("train", _one_step(parameters, hostile))
    assert ended.returncode == 2, ended.stderr
    assert "only pickled ones" in ended.result["error"]["given"]
    assert not touched.exists()


@pytest.mark.parametrize("weights", [b"", b"\xff" * 8 + b"{", b"\x10" + bytes(7) + b"[" * 16, pickle.dumps(b"")])
def test_weights_that_are_no_safetensors_are_refused(
    weights: bytes, jobs: WarmJobs, parameters: TrainParameters, hostile: Path
) -> None:
    (hostile / "model.safetensors").write_bytes(weights)
    ended = jobs.run("train", _one_step(parameters, hostile))
    assert ended.returncode == 2, ended.stderr
    assert str(hostile) in ended.result["error"]["given"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_configuration_that_is_no_json_is_refused(
    name: str, jobs: WarmJobs, parameters: TrainParameters, hostile: Path
) -> None:
    for content in ("{", "[" * 100_000, "[]", "17"):
        (hostile / name).write_text(content)
        ended = jobs.run("train", _one_step(parameters, hostile))
        assert ended.returncode == 2, ended.stderr
        assert str(hostile) in ended.result["error"]["given"] or hostile.name in ended.result["error"]["given"]


# Prints what of a folder was opened while the tokenizer of another one was loaded.
_WATCHED_LOADING = """
import sys
from pathlib import Path
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.labels import load_tokenizer
sys.addaudithook(lambda event, given: event == "open" and sys.argv[2] in str(given[0]) and print("opened", given[0]))
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        n_tokens = len(load_tokenizer(folder))
    except PermanentError as error:
        n_tokens = "refused: " + error.given
    print(folder.name, n_tokens)
"""
_NAME_FILES = {
    "vocab_file": False,
    "merges_file": False,
    "tokenizer_file": False,
    "normalizer_file": False,
    "special_tokens_map_file": False,
    "added_tokens_file": False,
    "chat_template_file": False,
    "gguf_file": True,
    "fast_tokenizer_files": True,
    "init_inputs": True,
    "vocab": True,
    "merges": True,
}


def test_a_tokenizer_that_names_files_of_this_machine(tiny_model: Path, tmp_path: Path) -> None:
    """Without tokenizer.json too, where the vocabulary is read from other files."""
    baits = tmp_path / "baits"
    baits.mkdir()
    (baits / "tokenizer.4.0.0.json").write_text("{}")
    models = tmp_path / "models"
    for name in _NAME_FILES:
        for form, path in (
            ("absolute", baits / "tokenizer.4.0.0.json"),
            ("relative", "../../baits/tokenizer.4.0.0.json"),
        ):
            folder = shutil.copytree(tiny_model, models / f"{name} {form}")
            said = json.loads((folder / "tokenizer_config.json").read_text())
            value = [str(path)] if name in ("fast_tokenizer_files", "init_inputs") else str(path)
            (folder / "tokenizer_config.json").write_text(json.dumps({**said, name: value}))
            bare = shutil.copytree(folder, models / f"{name} {form} bare")
            load_tokenizer(tiny_model).save_vocabulary(str(bare))
            (bare / "tokenizer.json").unlink()
    loaded = subprocess.run(
        [sys.executable, "-c", _WATCHED_LOADING, str(models), str(baits)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "opened" not in loaded
    for name, refused in _NAME_FILES.items():
        lines = [line for line in loaded.splitlines() if line.startswith(f"{name} ")]
        assert len(lines) == 4
        assert all(("refused" in line) is refused for line in lines), lines


def test_the_refusal_says_what_was_found(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "gguf_file": "/etc/passwd"}))
    with pytest.raises(PermanentError, match="gguf_file='/etc/passwd'"):
        load_tokenizer(folder)
