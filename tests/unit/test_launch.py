"""The launch files: whole shell scripts and YAML, whose options are the program's."""

import re
import runpy
import subprocess
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import yaml

from vqathinker_jax.processes import Processes
from vqathinker_jax.recipe import TrainConfig

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docs" / "launch").iterdir())


def test_there_is_one_for_a_pod_for_slurm_and_for_gke():
    assert [file.name for file in FILES] == ["gke.yaml", "slurm.sbatch", "tpu_pod.sh"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_options_are_those_of_train(file: Path):
    text = file.read_text(encoding="utf-8")
    recipe = re.search(r"configs/\w+\.py", text)
    assert recipe
    config = runpy.run_path(str(ROOT / recipe[0]))["config"]
    assert isinstance(config, TrainConfig)
    command = text[text.index("run.py") if file.suffix != ".yaml" else text.index("- train") :]
    options = re.findall(r"--([\w.-]+\.[\w-]+|run-dir|checkpoint)[= ]", command)
    assert {"run-dir", "checkpoint", "processes.count"} <= set(options)
    for option in options:
        value = {"processes": Processes(), "run": None}.get(option.split(".")[0].split("-")[0], config)
        for name in option.replace("-", "_").removeprefix("processes.").split("."):
            if value is not None:
                assert is_dataclass(value), option
                assert hasattr(value, name), f"{file.name}: train knows no --{option}"
                value = getattr(value, name)


@pytest.mark.parametrize("file", [file for file in FILES if file.suffix != ".yaml"], ids=lambda file: file.name)
def test_scripts_parse(file: Path):
    subprocess.run(["bash", "-n", str(file)], check=True)


def test_the_yaml_is_a_service_and_a_job_of_as_many_pods_as_the_slice_has_hosts():
    service, job = yaml.safe_load_all((ROOT / "docs" / "launch" / "gke.yaml").read_text(encoding="utf-8"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == rows * columns // chips
