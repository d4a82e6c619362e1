"""The images as a cautious scheduler runs them: a numeric user without rights, nothing writable but one volume, and no
network but loopback, on which a Hub answers. `make test-image` runs this, with an engine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from engine import ROOT, Engine, Online

sys.path.insert(0, str(ROOT))
from demo.run import PREPROCESS, TRAIN

# Building the images takes minutes.
pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

USER = 65532
IMAGES = {"preprocess": "localhost/asr-preprocess:test", "train": "localhost/asr-train:test"}
DEMO = f"--volume={ROOT / 'demo'}:/opt/app/demo:ro"
NAME = f"asr-test-{uuid4().hex[:8]}"
PATHS = {"dataset_name": "/opt/app/demo/dataset", "model_id": "/opt/app/demo/model"}
# Bytes of the train image with CUDA without its base, as it was measured with PyTorch 2.13.0 on x86-64.
TRAIN_WITH_CUDA = 6.09e9
# Steps enough to be stopped among them.
SHORTER = {"max_steps": 60, "eval_steps": 60, "save_steps": 60, "warmup_steps": 5, "logging_steps": 1}


def flags(parameters: dict[str, object]) -> list[str]:
    given = {**parameters, **{name: path for name, path in PATHS.items() if name in parameters}}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """With both images built, train without CUDA."""
    engine = Engine(os.environ["CONTAINER_ENGINE"], os.environ["BASE_IMAGE"])
    engine.build("preprocess", IMAGES["preprocess"])
    engine.build("train", IMAGES["train"], TORCH="cpu")
    return engine


@pytest.fixture(scope="session")
def volume(engine: Engine) -> Iterator[str]:
    """A new one, as the engine makes it for the image's user."""
    engine.call("volume", "create", NAME)
    yield NAME
    engine.call("volume", "rm", "--force", NAME)


@pytest.fixture(scope="session")
def hub(engine: Engine) -> Iterator[Online]:
    """A Hub in a container, which others sign in to."""
    name = f"{NAME}-hub"
    mount = [f"--volume={ROOT / 'tests'}:/tests:ro", "--env=PYTHONPATH=/tests", "--entrypoint=python"]
    engine.start(name, IMAGES["train"], "/tests/image/serve_hub.py", options=[*engine.options(None), *mount])
    try:
        url = engine.wait_for(name, "http://").strip()
        yield Online(name, (f"HF_ENDPOINT={url}", "HF_TOKEN=hf_test", "HF_HUB_DISABLE_XET=1"))
    finally:
        engine.call("kill", name)
        engine.call("rm", name)


@pytest.fixture(scope="session")
def artifact(engine: Engine, volume: str) -> str:
    """The name of the artifact that the preprocess image made on the volume."""
    made = engine.run(IMAGES["preprocess"], *flags(PREPROCESS), options=[*engine.options(volume), DEMO])
    assert made.code == 0, made.stderr
    assert made.result["artifact"].startswith("/data/huggingface/")
    return str(made.result["artifact_name"])


def python(
    engine: Engine, script: str, volume: str | None = None, online: Online | None = None, image: str = "train"
) -> str:
    """Run a script with the image's Python, and return what it prints."""
    options = [*engine.options(volume, online), "--entrypoint=python"]
    ended = engine.run(IMAGES[image], "-c", script, options=options)
    assert ended.code == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("target", IMAGES)
def test_what_the_image_says_of_itself(target: str, engine: Engine) -> None:
    config = engine.inspect(IMAGES[target])["Config"]
    user, _, group = config["User"].partition(":")
    assert int(user) == int(group) == USER, "a number, by which Kubernetes knows that it is not root"
    assert config["Entrypoint"] == ["python", "-m", f"jobs.{target}"]
    assert not config.get("Cmd")
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == f"asr-{target}"
    assert labels["licenses"] == "Apache-2.0"
    assert {"description", "version", "revision", "base.name"} <= set(labels)
    environment = dict(line.split("=", 1) for line in config["Env"])
    assert not {name for name in environment if name.startswith("PIP_")}


_LEFT_BEHIND = """
import glob, shutil
print([name for name in ("pip", "pip3", "gcc", "cc", "g++", "ld", "make", "git", "curl") if shutil.which(name)])
print([path for pattern in ("/root/.cache/*", "/tmp/*", "/src", "/opt/pip", "/data/*") for path in glob.glob(pattern)])
"""


@pytest.mark.parametrize("target", IMAGES)
def test_no_tool_or_cache_of_the_build_is_left(target: str, engine: Engine) -> None:
    assert python(engine, _LEFT_BEHIND, image=target).splitlines() == ["[]", "[]"]
    ended = engine.run(IMAGES[target], "-m", "pip", options=[*engine.options(None), "--entrypoint=python3"])
    assert "No module named pip" in ended.stderr


def test_versions_are_those_of_the_requirements(engine: Engine) -> None:
    script = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"
    pinned = {line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")}
    pinned = {line.partition(" ")[0].replace("_", "-").lower() for line in pinned}
    installed = {name.replace("_", "-").lower() for name in python(engine, script).split()}
    assert {name for name in installed - pinned if not name.startswith("asr-fine-tuner==")} == {"torch==2.13.0+cpu"}


_TRY_TO_WRITE = """
import os, pathlib
def writable(folder):
    try:
        (pathlib.Path(folder) / "written").write_text("x")
    except OSError:
        return False
    return True
folders = "/ /etc /home /opt/app /opt/app/jobs /opt/venv /root /run /tmp /usr/local /var/tmp /data".split()
print([folder for folder in folders if writable(folder)], os.getuid(), os.getgid(), os.getpid())
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["CapEff"], 16) | int(status["CapBnd"], 16), status["NoNewPrivs"].strip())
"""


@pytest.mark.parametrize("target", IMAGES)
def test_nothing_is_writable_but_the_volume(target: str, engine: Engine, volume: str) -> None:
    """What enforces it: the engine's read-only root; as process 1, as the image's user, who has no rights either."""
    assert python(engine, _TRY_TO_WRITE, volume, image=target).splitlines() == [f"['/data'] {USER} {USER} 1", "0 1"]


@pytest.mark.parametrize("target", IMAGES)
def test_help_needs_no_volume(target: str, engine: Engine) -> None:
    ended = engine.run(IMAGES[target], "--help", options=engine.options(None))
    assert ended.code == 0, ended.stderr
    assert "--model_id" in ended.stdout


def test_a_job_without_its_volume_says_so(engine: Engine) -> None:
    ended = engine.run(IMAGES["preprocess"], *flags(PREPROCESS), options=[*engine.options(None), DEMO])
    assert ended.code == 2, ended.stderr
    assert "/data" in ended.result["error"]["action"]


def test_last_words_are_where_kubernetes_reads_them(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    log.chmod(0o666)
    tmp_path.chmod(0o755)
    mount = f"--volume={log}:/dev/termination-log"
    ended = engine.run(IMAGES["train"], "--max_steps", "0", options=[*engine.options(None), mount])
    assert ended.code == 2
    assert log.read_text().startswith("train ended with 2: --max_steps: '0'\n  expected: ")


_OWNERS = """
import os
paths = [os.path.join(folder, name) for folder, folders, files in os.walk("/data") for name in folders + files]
print(len(paths), {(os.lstat(path).st_uid, os.lstat(path).st_gid) for path in paths})
"""
_COMPARE = """
import json, pathlib
from huggingface_hub import snapshot_download
there = pathlib.Path(snapshot_download("tester/whisper-demo-it", local_dir="/data/published"))
here = pathlib.Path("/data/outputs/whisper-demo-it/model")
names = [path.name for path in there.iterdir() if path.is_file() and path.name != ".gitattributes"]
print(json.dumps({name: (there / name).read_bytes() == (here / name).read_bytes() for name in names}))
"""


def test_training_is_stopped_continued_and_published(engine: Engine, volume: str, artifact: str, hub: Online) -> None:
    """Stopped as containers are, by SIGTERM to process 1; the same command again continues, and publishes."""
    name = f"{NAME}-train"
    online = [*engine.options(volume, hub), DEMO]
    train = [*flags({**TRAIN, **SHORTER, "artifact_name": artifact}), "--publish", "true"]
    engine.start(name, IMAGES["train"], *train, options=online)
    try:
        engine.wait_for(name, "step 3 of 60")
        engine.call("kill", "--signal=TERM", name)
        code = int(engine.call("wait", name))
        logs = engine.logs(name)
    finally:
        engine.call("rm", "--force", name)
    assert code == 143, logs
    assert json.loads(next(line for line in logs.splitlines() if line.startswith("{")))["status"] == "interrupted"
    saved = python(engine, "import glob; print(*glob.glob('/data/outputs/whisper-demo-it/checkpoint-*'))", volume)
    assert saved.strip(), logs

    done = engine.run(IMAGES["train"], *train, options=online)
    assert done.code == 0, done.stderr
    assert "step 60 of 60" in done.stderr
    assert "step 2 of 60" not in done.stderr, "it continues"
    assert done.result["repo_id"] == "tester/whisper-demo-it"
    published = json.loads(python(engine, _COMPARE, volume, hub))
    assert {"README.md", "model.safetensors", "results.json", "preprocessor_config.json"} <= set(published)
    assert all(published.values())


def test_several_processes_in_one_container(engine: Engine, volume: str, artifact: str) -> None:
    """As on a machine with several GPUs, but on the processor."""
    launcher = ["-m", "asr_fine_tuner.torchrun", "--standalone", "--nproc-per-node", "2", "-m", "jobs.train"]
    short = {"artifact_name": artifact, "max_steps": 2, "eval_steps": 2, "save_steps": 2, "evaluate_base": "false"}
    train = flags({**TRAIN, **SHORTER, **short, "train_batch_size": 8, "output_dir": "/data/two"})
    options = [*engine.options(volume), DEMO, "--entrypoint=python"]
    ended = engine.run(IMAGES["train"], *launcher, *train, options=options)
    assert ended.code == 0, ended.stderr
    assert ended.result["model_dir"] == "/data/two/model"


def test_the_demo(engine: Engine, volume: str) -> None:
    options = [*engine.options(volume), DEMO, "--entrypoint=python"]
    ended = engine.run(IMAGES["train"], "/opt/app/demo/run.py", "--output", "/data/demo", options=options, timeout=400)
    assert ended.code == 0, ended.stderr
    assert "normalised WER on held-out voices" in ended.stdout


def test_files_belong_to_the_user_of_the_image(engine: Engine, volume: str) -> None:
    """After all that was run above."""
    count, owners = python(engine, _OWNERS, volume).split(" ", 1)
    assert int(count) > 50
    assert owners.strip() == str({(USER, USER)})


def test_sizes(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {target: engine.inspect(image)["Size"] for target, image in IMAGES.items()}
    base = engine.inspect(engine.base)["Size"]
    with capsys.disabled():
        for target, size in sizes.items():
            print(f"\n{target}: {size / 1e9:.2f} GB, {base / 1e9:.2f} GB of it the base", end="")
    assert 3 * sizes["preprocess"] <= base + TRAIN_WITH_CUDA
