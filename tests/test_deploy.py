"""Deployment files hold together: fields, versions, graceful times, commands, and the scripts of the docs."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import signal
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import cli

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kuberay").glob("*.yaml"))
PAGES = [ROOT / "docs" / "cluster.md", ROOT / "docs" / "slurm.md"]


def job(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = spec["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def parsed(words: list[str]) -> click.Context:
    """The context of a `clip-pipe ...` command. Raises UsageError for words it does not know."""
    context, command = click.Context(cli.main), cli.main
    while isinstance(command, click.Group):
        _, command, words = command.resolve_command(context, words)  # type: ignore[assignment]
    return command.make_context("clip-pipe", words)


def test_what_could_not_be_run_says_so_first() -> None:
    assert len(MANIFESTS) == 2
    for path in [*MANIFESTS, DEPLOY / "Dockerfile"]:
        assert path.read_text().startswith("# UNTESTED"), path


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_a_ray_job_that_ends_by_itself(path: Path) -> None:
    found = job(path)
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    spec = found["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["submissionMode"] == "K8sJob"
    pins = (ROOT / "requirements" / "cpu.txt").read_text()
    assert f"\nray=={spec['rayClusterSpec']['rayVersion']} " in pins
    auth = spec["rayClusterSpec"]["authOptions"]
    assert auth == {"mode": "token", "secretName": "clip-pipe-token"}
    head, *workers = groups(spec)
    assert head["rayStartParams"]["num-cpus"] == "0"
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    words = shlex.split(spec["entrypoint"])
    assert words.pop(0) == "clip-pipe"
    parsed(words)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_are_not_root_keep_no_secret_and_have_their_memory(path: Path) -> None:
    for group in groups(job(path)["spec"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "clip-pipe-storage"}}]
        asked = container["resources"]
        assert asked["requests"]["memory"] == asked["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        store = int(group["rayStartParams"]["object-store-memory"])
        (shm,) = [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm"]
        assert store < int(shm.removesuffix("Gi")) << 30  # or Ray puts it on the disk


def test_a_training_has_time_for_its_checkpoint() -> None:
    spec = job(DEPLOY / "kuberay" / "train.yaml")["spec"]
    wait_s = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    for group in groups(spec):
        pod = group["template"]["spec"]
        command = " ".join(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])
        hook_s = int(command.partition("--seconds ")[2])
        assert wait_s < hook_s < pod["terminationGracePeriodSeconds"]
        assert ("--wait-only" in command) == ("groupName" in group)


def test_ranks_are_the_gpus_there_are() -> None:
    spec = job(DEPLOY / "kuberay" / "train.yaml")["spec"]
    params = parsed(shlex.split(spec["entrypoint"])[1:]).params
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert params["ray_workers"] == group["replicas"] * int(limits["nvidia.com/gpu"])
    assert params["resume"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_fields_are_those_of_the_crd(path: Path) -> None:
    """With CLIP_PIPE_RAYJOB_CRD: KubeRay's ray.io_rayjobs.yaml, which is not ours to keep here."""
    crd = os.environ.get("CLIP_PIPE_RAYJOB_CRD")
    if not crd:
        pytest.skip("set CLIP_PIPE_RAYJOB_CRD to KubeRay's ray.io_rayjobs.yaml to run this")
    import jsonschema

    versions = yaml.safe_load(Path(crd).read_text())["spec"]["versions"]
    schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    _make_strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    check = jsonschema.Draft202012Validator(schema)
    assert [fault.message for fault in check.iter_errors(job(path))] == []
    wrong = job(path)
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["nodeSelectr"] = {}
    assert len(list(check.iter_errors(wrong))) == 1


def _make_strict(schema: Any) -> None:
    """No unknown fields; numbers or text where Kubernetes takes both."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        if schema.pop("x-kubernetes-int-or-string", None):
            for key in ("type", "anyOf", "pattern"):
                schema.pop(key, None)
    for inner in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(inner, dict | list):
            _make_strict(inner)


def test_the_image_gets_all_that_it_copies_and_all_packages() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        copied |= set(sources)
    for source in {name.replace("${BACKEND}", "cpu") for name in copied}:
        assert (ROOT / source).exists(), source
        assert source in let_in, source
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    assert {name.split(".")[0] for name in packages} <= copied
    assert not any(fnmatch.fnmatch(".venv", pattern) for pattern in let_in)
    users = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert users
    assert users[-1] != "0"


def scripts(page: Path) -> list[str]:
    return re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_of_the_docs_are_shell(page: Path) -> None:
    assert scripts(page)
    for script in scripts(page):
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_docs_are_ours(page: Path) -> None:
    found = 0
    for script in scripts(page):
        for line in script.replace("\\\n", " ").splitlines():
            told = re.search(r"(?:clip-pipe|cli\.py) ((?:curate|train|status|forecast) .*)", line)
            if told:
                parsed(shlex.split(told[1].split(" &")[0], comments=True))
                found += 1
    assert found


SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
"$@" & child=$!
trap 'kill -TERM $child' TERM
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'a\\nb\\n'; else echo "$*" >> "$LOG"; fi
"""
RAY_COMMAND = """#!/bin/bash
[ "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" = 600 ] && [ "$(wc -c < "$RAY_AUTH_TOKEN_PATH")" = 64 ] || exit 9
case "$1" in
  start) [ -z "$NO_HEAD" ] || exit 1
         mkdir -p "$RAY_TMPDIR"; echo "start $2" >> "$LOG"
         trap 'echo "end $2" >> "$LOG"; exit 0' TERM
         while :; do sleep 0.05; done ;;
  health-check) grep -q 'start --head' "$LOG" 2>/dev/null ;;
  status) sed -n 's/^start.*/ 1 node_x/p' "$LOG" ;;
esac
"""
DRIVER = """#!/bin/bash
echo "$*" >> "$LOG"
trap 'echo stopped >> "$LOG"; exit 143' TERM
touch "$BEGUN"
for _ in $(seq "$TENTHS"); do sleep 0.1; done
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job of two nodes, with commands that do as little as the script needs."""
    fakes = {"srun": SRUN, "scontrol": SCONTROL, "ray": RAY_COMMAND, "clip-pipe": DRIVER}
    for name, body in {**fakes, "sleep": "#!/bin/bash\nexec /bin/sleep 0.1\n"}.items():
        path = tmp_path / name
        path.write_text(body)
        path.chmod(0o755)
    (script,) = [text for text in scripts(ROOT / "docs" / "slurm.md") if "ray start --head" in text]
    (tmp_path / "job.sh").write_text(script.replace("/tmp/ray-", f"{tmp_path}/ray-"))
    return {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "NO_HEAD": "",
        "LOG": str(tmp_path / "log"), "BEGUN": str(tmp_path / "begun"), "TENTHS": "1", "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": "2", "SLURM_CPUS_ON_NODE": "4",
    }  # fmt: skip


@pytest.mark.parametrize("end", ["done", "stopped", "no head"])
def test_the_slurm_script_ends_cleanly(slurm: dict[str, str], tmp_path: Path, end: str) -> None:
    changes = {"done": {}, "stopped": {"TENTHS": "3000"}, "no head": {"NO_HEAD": "1"}}[end]
    process = subprocess.Popen(
        ["bash", str(tmp_path / "job.sh")], env={**slurm, **changes}, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while end == "stopped" and time.monotonic() < deadline:
            if (tmp_path / "begun").exists():
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.02)
        assert process.wait(timeout=60) == {"done": 0, "stopped": 143, "no head": 1}[end]
    finally:
        process.kill()
    assert not (tmp_path / ".clip-pipe" / "77").exists()  # the token
    assert not (tmp_path / "ray-77").exists()
    log = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
    if end == "no head":
        assert log == []
        return
    assert log[0] == "start --head"
    assert log[1].startswith("start --address=")
    assert re.fullmatch(r"curate my/recipe.toml --address [\w.:]+:20077", log[2])
    assert sum(line.startswith("end ") for line in log) == 2
    assert (log[3] == "stopped") == (log[-1] == "requeue 77") == (end == "stopped")
