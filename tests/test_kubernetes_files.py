"""howto/kubernetes: what the API server accepts, and what it cannot know: our exit codes, flags, user and folder."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models
from test_readme import commands
from torch.distributed.run import get_args_parser

from asr_fine_tuner.command_line import TOKENS, read_parameters
from asr_fine_tuner.errors import ExitCode
from asr_fine_tuner.parameters import JobParameters, PreprocessParameters, TrainParameters

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "howto" / "kubernetes"
PAGE = ROOT / "howto" / "kubernetes.md"
KINDS: dict[str, type[JobParameters]] = {"preprocess": PreprocessParameters, "train": TrainParameters}
# The first in which every field of the files is stable or on without being asked for.
OLDEST = 31
VERSIONS = [f"1.{minor}" for minor in range(OLDEST, int(kubernetes_validate.latest_version().split(".")[1]) + 1)]

Manifest = dict[str, Any]


def documents(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((FILES / name).read_text(encoding="utf-8")))


ALL = [(path.name, document) for path in sorted(FILES.glob("*.yaml")) for document in documents(path.name)]
JOBS = {name: document for name, document in ALL if document["kind"] == "Job"}
RUNTIME, TRAIN_JOB = documents("train_many_gpus.yaml")
_NODE = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
# Every description of a pod, with the rules for its failures.
POD_JOBS = {**{name: job["spec"] for name, job in JOBS.items()}, "train_many_gpus.yaml": _NODE}


def pod(name: str) -> Manifest:
    return POD_JOBS[name]["template"]["spec"]


def container(name: str) -> Manifest:
    (only,) = pod(name)["containers"]
    return only


def arguments(name: str) -> list[str]:
    given = TRAIN_JOB["spec"]["trainer"]["args"] if name == "train_many_gpus.yaml" else container(name)["args"]
    return [argument.replace("$(JOB_COMPLETION_INDEX)", "0") for argument in given]


def parameters(name: str) -> JobParameters:
    job = POD_JOBS[name]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
    return read_parameters(KINDS[job], job, arguments(name))


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


@pytest.mark.parametrize("version", VERSIONS)
def test_every_supported_kubernetes_knows_every_field(version: str) -> None:
    for _, document in ALL:
        if "kubeflow" not in document["apiVersion"]:
            kubernetes_validate.validate(document, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    wrong = copy.deepcopy(JOBS["train.yaml"])
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("document", [RUNTIME, TRAIN_JOB], ids=lambda document: document["kind"])
def test_kubeflow_knows_every_field(document: Manifest) -> None:
    model = getattr(models, f"TrainerV1alpha1{document['kind']}")
    # What it does not know it leaves out.
    assert model.from_dict(document).to_dict() == document


@pytest.mark.parametrize("name", JOBS)
def test_what_the_api_server_asks_of_jobs_beyond_its_schema(name: str) -> None:
    """https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy"""
    spec = JOBS[name]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["podReplacementPolicy"] == "Failed"
    assert ("backoffLimitPerIndex" in spec) == (spec.get("completionMode") == "Indexed")


@pytest.mark.parametrize("name", POD_JOBS)
def test_the_job_ends_on_the_exit_codes_after_which_the_same_command_fails_again(name: str) -> None:
    by_code = [rule for rule in POD_JOBS[name]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    (rule,) = by_code
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["values"] == [ExitCode.BUG, ExitCode.PERMANENT]
    assert rule["onExitCodes"]["containerName"] == container(name)["name"]


@pytest.mark.parametrize("name", JOBS)
def test_a_disruption_is_not_counted(name: str) -> None:
    last = JOBS[name]["spec"]["podFailurePolicy"]["rules"][-1]
    assert last == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


@pytest.mark.parametrize("name", POD_JOBS)
def test_the_job_understands_every_argument(name: str) -> None:
    given = arguments(name)
    understood = parameters(name)
    for flag, value in zip(given[::2], given[1::2], strict=True):
        assert str(getattr(understood, flag.removeprefix("--"))).lower().removesuffix(".0") == value


@pytest.mark.parametrize("name", POD_JOBS)
def test_the_job_may_save_before_it_is_killed(name: str) -> None:
    assert parameters(name).grace_period + 5 <= pod(name)["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", POD_JOBS)
def test_user_and_folder_are_those_of_the_image(name: str) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    user = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    folder = re.search(r"^WORKDIR (/\w+)$", dockerfile[user.start() - 50 :] if user else "", re.MULTILINE)
    assert user is not None
    assert folder is not None
    security = pod(name)["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (int(user[1]), *[int(user[2])] * 2)
    assert {"name": "data", "mountPath": folder[1]} in container(name)["volumeMounts"]
    (claim,) = [volume["persistentVolumeClaim"] for volume in pod(name)["volumes"] if volume["name"] == "data"]
    (volume,) = documents("volume.yaml")
    assert claim["claimName"] == volume["metadata"]["name"]
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("name", POD_JOBS)
def test_the_pod_is_restricted(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root."""
    of_pod, of_container = pod(name)["securityContext"], container(name)["securityContext"]
    assert of_pod["runAsNonRoot"]
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", POD_JOBS)
def test_tokens_come_from_the_secret(name: str) -> None:
    variables = container(name)["env"]
    assert {variable["name"] for variable in variables} <= set(TOKENS)
    for variable in variables:
        wanted = {"name": "asr-tokens", "key": variable["name"], "optional": True}
        assert variable["valueFrom"] == {"secretKeyRef": wanted}
    assert not [leaf for leaf in leaves(POD_JOBS[name]) if str(leaf).startswith("hf_")]


def test_only_training_has_gpus() -> None:
    limits = {name: container(name)["resources"]["limits"] for name in JOBS}
    assert [name for name, limit in limits.items() if "nvidia.com/gpu" in limit] == ["train.yaml"]
    assert limits["train.yaml"]["nvidia.com/gpu"] == "1"


def test_every_pod_of_the_indexed_job_makes_one_part() -> None:
    spec = JOBS["preprocess_sharded.yaml"]["spec"]
    given = container("preprocess_sharded.yaml")["args"]
    assert given[given.index("--shard_index") + 1] == "$(JOB_COMPLETION_INDEX)"
    assert given[given.index("--shard_count") + 1] == str(spec["completions"])
    assert spec["parallelism"] <= spec["completions"]
    alone = container("preprocess.yaml")["args"]
    assert [part for part in given if part not in alone] == [
        "--shard_index",
        "$(JOB_COMPLETION_INDEX)",
        "--shard_count",
        "8",
    ]


def test_every_gpu_of_the_train_job_has_a_process() -> None:
    spec = TRAIN_JOB["spec"]
    assert spec["runtimeRef"] == {"kind": "TrainingRuntime", "name": RUNTIME["metadata"]["name"]}
    assert spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == str(spec["trainer"]["numProcPerNode"])


def test_torchrun_waits_for_ranks_that_save() -> None:
    python, *command = container("train_many_gpus.yaml")["command"]
    assert (python, command[:2]) == ("python", ["-m", "asr_fine_tuner.torchrun"])
    given = get_args_parser().parse_args([*command[2:], *arguments("train_many_gpus.yaml")])
    assert (given.module, given.training_script) == (True, "jobs.train")
    assert given.training_script_args == arguments("train_many_gpus.yaml")
    grace, kill = parameters("train_many_gpus.yaml").grace_period, pod("train_many_gpus.yaml")
    assert grace < given.shutdown_timeout < kill["terminationGracePeriodSeconds"]


def test_all_nodes_begin_anew_together_unless_the_same_command_fails_again() -> None:
    """A Job of the set fails for the reason PodFailurePolicy when a rule of its own ended it."""
    policy = RUNTIME["spec"]["template"]["spec"]["failurePolicy"]
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    assert policy["maxRestarts"] > 0
    assert _NODE["backoffLimit"] == 0


def test_the_table_of_platforms_says_what_the_file_says() -> None:
    table = (FILES.parent / "train_container.md").read_text(encoding="utf-8")
    (row,) = [line for line in table.splitlines() if line.startswith("| Kubernetes |")]
    spec = JOBS["train.yaml"]["spec"]
    assert f"{spec['template']['spec']['terminationGracePeriodSeconds']} s, as the file has it" in row
    assert f"a new pod, {spec['backoffLimit']} times" in row


def test_the_page_applies_every_file_and_asks_for_jobs_that_there_are() -> None:
    told = " ".join(commands(PAGE, "sh"))
    assert set(re.findall(r"-f howto/kubernetes/(\S+)", told)) == {name for name, _ in ALL}
    assert set(re.findall(r"job/(\S+)", told)) <= {job["metadata"]["name"] for job in JOBS.values()}
    assert set(re.findall(r"jobset-name=(\S+)", told)) == {TRAIN_JOB["metadata"]["name"]}
    assert set(re.findall(r"secret generic (\S+)", told)) == {"asr-tokens"}
