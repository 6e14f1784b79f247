"""The manifests of deploy/kubernetes, as kustomize renders them: whether what they name is there, and fits."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from manifests import FOLDER, OVERLAYS, ROOT, Manifest, Pod, of_kind, pods, render, selected, service_flags

from executor_svc.config import parse_config as parse_executor
from nanoserve_client.cli import build_parser
from scheduler_svc.config import SchedulerConfig
from scheduler_svc.config import parse_config as parse_scheduler

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
SERVICE_IMAGE = re.compile(r"nanoserve-([a-z-]+):(.+)")


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(request.param)


@pytest.fixture(scope="module")
def all_pods(manifests: list[Manifest]) -> list[Pod]:
    return pods(manifests)


@pytest.fixture(scope="module")
def pair(all_pods: list[Pod]) -> Pod:
    """The one kind of Pod with a scheduler in it."""
    (pair,) = (pod for pod in all_pods if pod.component == "pair")
    return pair


def scheduler_config(pair: Pod) -> SchedulerConfig:
    return parse_scheduler(service_flags(pair.container("scheduler")))


def test_every_selector_finds_pods_and_every_named_port_is_theirs(
    manifests: list[Manifest], all_pods: list[Pod]
) -> None:
    for service in of_kind(manifests, "Service"):
        found = selected(all_pods, service["spec"]["selector"])
        assert found
        for port in service["spec"]["ports"]:
            assert all(port["targetPort"] in pod.port_names() for pod in found)
    for kind in ("Deployment", "PodDisruptionBudget"):
        for manifest in of_kind(manifests, kind):
            assert selected(all_pods, manifest["spec"]["selector"]["matchLabels"])
    for policy in of_kind(manifests, "NetworkPolicy"):
        found = selected(all_pods, policy["spec"]["podSelector"]["matchLabels"])
        for rule in policy["spec"]["ingress"]:
            for port in rule.get("ports", ()):
                assert all(port["port"] in pod.port_names() for pod in found)


def test_everything_is_in_the_namespace_that_is_made(manifests: list[Manifest]) -> None:
    (namespace,) = of_kind(manifests, "Namespace")
    for manifest in manifests:
        if manifest is not namespace:
            assert manifest["metadata"]["namespace"] == namespace["metadata"]["name"]


def test_images_are_targets_of_the_dockerfile_at_this_version(all_pods: list[Pod]) -> None:
    targets = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in all_pods:
        for container in pod.containers():
            if container["name"] in ("scheduler", "executor"):
                image = SERVICE_IMAGE.fullmatch(container["image"])
                assert image is not None
                assert image[1] in targets
                assert image[2] == version
            assert not container["image"].endswith(":latest")


def test_both_services_of_a_pair_take_their_flags_and_agree(all_pods: list[Pod], pair: Pod) -> None:
    config = scheduler_config(pair)
    assert config.executor == parse_executor(service_flags(pair.container("executor"))).listen
    for pod in all_pods:
        if pod.component in ("pair", "rank"):
            assert parse_executor(service_flags(pod.container("executor"))).model == config.model


def test_a_scheduler_is_probed_where_it_listens(pair: Pod) -> None:
    scheduler, config = pair.container("scheduler"), scheduler_config(pair)
    ports = {port["name"]: port["containerPort"] for port in scheduler["ports"]}
    assert config.listen.endswith(f":{ports['grpc']}")
    assert (config.metrics_listen or "").endswith(f":{ports['metrics']}")
    for probe in ("startupProbe", "readinessProbe"):
        assert scheduler[probe]["grpc"]["port"] == ports["grpc"]


def test_probes_that_run_a_command_ask_who_is_there(pair: Pod) -> None:
    for container in pair.containers():
        asked = [
            container[probe]["exec"]["command"] for probe in PROBES if "exec" in container.get(probe, {})
        ]
        assert asked
        for command in asked:
            arguments = build_parser().parse_args(command[1:])
            listen = scheduler_config(pair).listen
            here = listen.replace("0.0.0.0", "127.0.0.1")
            assert arguments.server == (
                scheduler_config(pair).executor if container["name"] == "executor" else here
            )


def test_no_liveness_probe_ends_who_answers_and_does_not_serve(pair: Pod) -> None:
    probes = [container["livenessProbe"] for container in pair.containers() if "livenessProbe" in container]
    assert probes
    for probe in probes:
        assert "--alive" in probe["exec"]["command"]


def test_the_executor_outlives_the_scheduler_and_both_have_the_time(pair: Pod) -> None:
    assert pair.container("executor") in pair.spec["initContainers"]
    assert pair.container("executor")["restartPolicy"] == "Always"
    wait = int(pair.container("scheduler")["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pair.spec["terminationGracePeriodSeconds"] >= wait + scheduler_config(pair).drain_timeout + 10


def test_every_mount_has_its_volume(all_pods: list[Pod]) -> None:
    for pod in all_pods:
        volumes = [volume["name"] for volume in pod.spec["volumes"]]
        mounts = {mount["name"] for container in pod.containers() for mount in container["volumeMounts"]}
        assert mounts == set(volumes)
        assert len(set(volumes)) == len(volumes)


def test_every_claim_and_config_map_is_there(manifests: list[Manifest], all_pods: list[Pod]) -> None:
    named = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for pod in all_pods:
        for volume in pod.spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in named
            if config := volume.get("configMap"):
                assert ("ConfigMap", config["name"]) in named


def test_no_container_can_become_root_or_write_to_its_image(all_pods: list[Pod]) -> None:
    for pod in all_pods:
        assert pod.spec["securityContext"]["runAsNonRoot"]
        assert not pod.spec["automountServiceAccountToken"]
        for container in pod.containers():
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_ranks_are_as_many_as_the_gpus_of_a_group() -> None:
    manifests = render("multi-node-tp")
    (group,) = of_kind(manifests, "LeaderWorkerSet")
    # Its controller makes a Service of that name.
    assert group["metadata"]["name"] not in [m["metadata"]["name"] for m in of_kind(manifests, "Service")]
    size = group["spec"]["leaderWorkerTemplate"]["size"]
    for pod in pods(manifests):
        if pod.component in ("pair", "rank"):
            executor = pod.container("executor")
            per_node = next(arg for arg in executor["args"] if arg.startswith("--nproc-per-node="))
            gpus = int(executor["resources"]["limits"]["nvidia.com/gpu"])
            assert int(per_node.partition("=")[2]) == gpus
            assert parse_executor(service_flags(executor)).tensor_parallel_size == size * gpus


def test_the_autoscaler_asks_for_metrics_that_schedulers_have() -> None:
    (scaler,) = of_kind(render("gpu"), "HorizontalPodAutoscaler")
    rules = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    series = {rule["name"]["as"]: rule["seriesQuery"] for rule in rules}
    documented = (ROOT / "docs" / "metrics.md").read_text()
    for metric in scaler["spec"]["metrics"]:
        name = re.search(r'__name__="([^"]+)"', series[metric["pods"]["metric"]["name"]])
        assert name is not None
        assert f"`{name[1]}`" in documented
    target = scaler["spec"]["scaleTargetRef"]
    named = {(m["kind"], m["metadata"]["name"]): m for m in render("gpu")}
    assert "replicas" not in named[target["kind"], target["name"]]["spec"]


def test_the_gateway_sends_what_has_one_prefix_key_to_one_pair(manifests: list[Manifest]) -> None:
    (config_map,) = of_kind(manifests, "ConfigMap")
    envoy: Any = yaml.safe_load(config_map["data"]["envoy.yaml"])["static_resources"]
    (cluster,) = envoy["clusters"]
    assert cluster["lb_policy"] == "MAGLEV"
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    address = endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    service = next(s for s in of_kind(manifests, "Service") if s["spec"].get("clusterIP") == "None")
    metadata = service["metadata"]
    assert address["address"] == f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local"
    assert address["port_value"] in [port["port"] for port in service["spec"]["ports"]]
    manager = envoy["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert route["route"]["hash_policy"][0]["header"]["header_name"] == "x-nanoserve-prefix-key"
    assert route["route"]["timeout"] == manager["stream_idle_timeout"] == "0s"
