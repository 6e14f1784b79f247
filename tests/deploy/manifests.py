"""What Kubernetes would be given, overlay by overlay, and the Pods in it."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu-demo", "gpu", "multi-node-tp")

Manifest = dict[str, Any]


def render(overlay: str) -> list[Manifest]:
    """The objects of an overlay; skips the test where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl to render with")
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@dataclass(frozen=True, slots=True)
class Pod:
    """One template of Pods."""

    labels: dict[str, str]
    spec: Manifest

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    def containers(self) -> Iterator[Manifest]:
        """All of them, sidecars first."""
        yield from self.spec.get("initContainers", ())
        yield from self.spec["containers"]

    def container(self, name: str) -> Manifest:
        return next(container for container in self.containers() if container["name"] == name)

    def port_names(self) -> set[str]:
        return {port["name"] for container in self.containers() for port in container.get("ports", ())}


def pods(manifests: list[Manifest]) -> list[Pod]:
    """The templates of all that makes Pods."""
    templates = []
    for manifest in manifests:
        match manifest["kind"]:
            case "Deployment":
                templates.append(manifest["spec"]["template"])
            case "LeaderWorkerSet":
                group = manifest["spec"]["leaderWorkerTemplate"]
                templates += [group["leaderTemplate"], group["workerTemplate"]]
    return [Pod(template["metadata"]["labels"], template["spec"]) for template in templates]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def selected(all_pods: list[Pod], labels: dict[str, str]) -> list[Pod]:
    return [pod for pod in all_pods if labels.items() <= pod.labels.items()]


def service_flags(container: Manifest) -> list[str]:
    """The flags of the project's command, without those of torchrun before it."""
    args: list[str] = container["args"]
    return args[args.index("executor_svc") + 1 :] if "executor_svc" in args else args
