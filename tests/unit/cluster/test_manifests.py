"""What lies in cluster/: valid by the schemas of Kubernetes, KubeRay and Ray, and true to the tree.

The custom resources of KubeRay are judged by its own CRDs where a copy lies beside the checkout.
"""

from __future__ import annotations

import copy
import importlib.metadata
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamfleet import cli, flags
from dreamfleet.config import load_config

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
FOLDER = CLUSTER / "kubernetes"
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
KUBERNETES_VERSION = "1.33"
IMAGE_FOLDER = "/opt/dreamfleet"

Document = dict[str, Any]


def documents(name: str = "*") -> list[Document]:
    paths = sorted(FOLDER.glob(f"{name}.yaml"))
    return [doc for path in paths for doc in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


MANIFESTS = [doc for doc in documents() if doc["kind"] != "Kustomization"]
NATIVE = [doc for doc in MANIFESTS if "ray.io" not in doc["apiVersion"]]
RAY = [doc for doc in MANIFESTS if "ray.io" in doc["apiVersion"]]


def name_of(document: Document) -> str:
    metadata = document["metadata"]
    return f"{document['kind']}-{metadata.get('name') or metadata['generateName']}"


def pod_templates(node: Any) -> Iterator[Document]:
    """Every pod template anywhere in a manifest."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}) if isinstance(node.get("spec"), dict) else False:
            yield node
        for value in node.values():
            yield from pod_templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from pod_templates(value)


def containers() -> list[Document]:
    return [
        container
        for document in MANIFESTS
        for template in pod_templates(document)
        for container in template["spec"]["containers"]
    ]


class TestKubernetes:
    @pytest.mark.parametrize("document", NATIVE, ids=name_of)
    def test_valid(self, document: Document) -> None:
        import kubernetes_validate

        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)

    def test_a_wrong_key_would_be_seen(self) -> None:
        import kubernetes_validate

        broken = copy.deepcopy(next(doc for doc in NATIVE if doc["kind"] == "Deployment"))
        broken["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, KUBERNETES_VERSION, strict=True)

    def test_kustomization_takes_all_but_jobs(self) -> None:
        (kustomization,) = documents("kustomization")
        listed = set(kustomization["resources"])
        lasting = {
            path.name
            for path in FOLDER.glob("*.yaml")
            if not path.name.startswith(("ray-job", "ray-service"))
        }
        assert listed == lasting - {"kustomization.yaml"}


class TestKubeRay:
    @pytest.fixture(scope="class")
    def validators(self) -> dict[str, Any]:
        if not CRDS.is_dir():
            pytest.skip(f"no copy of KubeRay's CRDs in {CRDS}")
        import jsonschema

        found = {}
        for path in CRDS.glob("*.yaml"):
            crd = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
            (version,) = [item for item in crd["spec"]["versions"] if item["name"] == "v1"]
            schema = strict(version["schema"]["openAPIV3Schema"])
            found[crd["spec"]["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
        return found

    @pytest.mark.parametrize("document", RAY, ids=name_of)
    def test_valid(self, document: Document, validators: dict[str, Any]) -> None:
        errors = validators[document["kind"]].iter_errors(document)
        assert [f"{error.json_path}: {error.message[:200]}" for error in errors] == []

    def test_a_wrong_key_would_be_seen(self, validators: dict[str, Any]) -> None:
        (cluster,) = copy.deepcopy([doc for doc in RAY if doc["kind"] == "RayCluster"])
        cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
        assert not validators["RayCluster"].is_valid(cluster)

    def test_there_are_a_cluster_and_a_job(self) -> None:
        assert {doc["kind"] for doc in RAY} == {"RayCluster", "RayJob", "RayService"}

    def test_the_service_is_one_that_serve_deploy_would_take(self) -> None:
        from dreamfleet.serving.deploy import checked_serve_config

        (service,) = [doc for doc in RAY if doc["kind"] == "RayService"]
        content = yaml.safe_load(service["spec"]["serveConfigV2"])
        checked = checked_serve_config(content, "RayService")
        (application,) = checked["applications"]
        (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        assert application["args"]["max_replicas"] == workers["maxReplicas"]

    def test_every_cluster_asks_for_a_token_and_runs_the_pinned_ray(self) -> None:
        specs = [
            doc["spec"].get("rayClusterSpec") or doc["spec"].get("rayClusterConfig") or doc["spec"]
            for doc in RAY
        ]
        assert {spec["rayVersion"] for spec in specs} == {pinned("ray")}
        assert all(spec["authOptions"] == {"mode": "token"} for spec in specs)


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses unknown keys and takes int-or-string."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: strict(value) for key, value in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        if schema["properties"].keys() == {"apiVersion", "kind", "metadata", "spec", "status"}:
            result["properties"]["metadata"] = {"type": "object"}
        elif not result.get("additionalProperties") and set(schema["properties"]) != {"metadata"}:
            result["additionalProperties"] = False
    return result


class TestPods:
    """What the restricted pod security standard asks for, and sums that a scheduler needs."""

    @pytest.mark.parametrize("document", MANIFESTS, ids=name_of)
    def test_run_as_an_ordinary_user(self, document: Document) -> None:
        for template in pod_templates(document):
            pod = template["spec"]["securityContext"]
            assert pod["runAsNonRoot"] and pod["runAsUser"] > 0
            assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in template["spec"]["containers"]:
                own = container["securityContext"]
                assert own["allowPrivilegeEscalation"] is False
                assert own["capabilities"] == {"drop": ["ALL"]}

    def test_every_container_says_what_it_needs(self) -> None:
        assert len(containers()) >= 8
        for container in containers():
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"])
            assert "memory" in resources["limits"]

    def test_training_pods_take_one_gpu(self) -> None:
        workers = [item for item in containers() if item["name"] == "ray-worker"]
        assert len(workers) == 4
        assert {item["resources"]["limits"]["nvidia.com/gpu"] for item in workers} == {"1"}

    def test_images_are_pinned(self) -> None:
        (kustomization,) = documents("kustomization")
        (ours,) = kustomization["images"]
        version = importlib.metadata.version("dreamfleet")
        assert ours["newTag"] == version
        for container in containers():
            name, _, tag = container["image"].rpartition(":")
            if container["image"] == ours["name"]:
                continue  # kustomize puts the tag
            assert re.fullmatch(r"[\d.]+(-\w+)?", tag), container["image"]
            assert not name.endswith("dreamfleet") or tag == version

    def test_no_secret_is_written_down_and_the_readme_makes_each(self) -> None:
        assert [name_of(doc) for doc in MANIFESTS if doc["kind"] == "Secret"] == []
        text = yaml.safe_dump(MANIFESTS)
        named = set(re.findall(r"secretKeyRef:\s+key: \S+\s+name: (\S+)", text))
        named |= set(re.findall(r"secretName: (\S+)", text))
        readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
        assert named == set(re.findall(r"create secret generic (\S+)", readme))

    def test_policies_speak_of_pods_that_exist(self) -> None:
        roles = {
            template["metadata"]["labels"]["dreamfleet/role"]
            for document in MANIFESTS
            for template in pod_templates(document)
        }
        policies = [doc for doc in NATIVE if doc["kind"] == "NetworkPolicy"]
        chosen = [policy["spec"]["podSelector"].get("matchLabels", {}) for policy in policies]
        assert {} in chosen  # the one that denies everything
        assert {labels["dreamfleet/role"] for labels in chosen if labels} == roles


class TestWhatTheyRun:
    def test_ray_job_names_a_script_and_settings_that_exist(self) -> None:
        (job,) = [doc for doc in RAY if doc["kind"] == "RayJob"]
        program, script, *arguments = shlex.split(job["spec"]["entrypoint"])
        assert program == "python"
        assert (ROOT / Path(script).relative_to(IMAGE_FOLDER)).is_file()
        local = [entry.replace(IMAGE_FOLDER, str(ROOT)) for entry in arguments]
        given = cli.personalize.make_context("personalize", local).params
        config = load_config(given["config_file"], flags.overrides(given))
        assert config.output_dir == "s3://dreamfleet/runs/biscuit"
        assert given["resume"] and given["photos"] == ("s3://dreamfleet/photos/biscuit",)

    def test_commands_are_programs_of_the_image(self) -> None:
        programs = {
            entry.name for entry in importlib.metadata.entry_points(group="console_scripts")
        }
        own = [item for item in containers() if "dreamfleet" in item["image"] and "command" in item]
        assert len(own) == 2
        for container in own:
            assert container["command"][0] in programs | {"python"}

    def test_mlflow_server_knows_its_options(self) -> None:
        from mlflow.cli import cli as mlflow

        server = mlflow.commands["server"]
        known = {option for parameter in server.params for option in parameter.opts}
        (command,) = [item["command"] for item in containers() if item["name"] == "mlflow"]
        used = {part.partition("=")[0] for part in command if part.startswith("--")}
        script = (CLUSTER / "local" / "up.sh").read_text(encoding="utf-8")
        used |= set(re.findall(r"--[a-z-]+", script.split("mlflow server")[1].split("&\n")[0]))
        assert len(used) >= 6
        assert used <= known

    def test_buckets_and_services_have_one_name(self) -> None:
        services = {doc["metadata"]["name"] for doc in NATIVE if doc["kind"] == "Service"}
        (settings,) = documents("settings")
        text = f"{settings['data']} {yaml.safe_dump(MANIFESTS)}"
        hosts = set(re.findall(r"(?:http://|@)([a-z]+):\d+", text))
        assert hosts == services
        assert set(re.findall(r"s3://([a-z]+)/", text)) == {"dreamfleet"}


class TestImage:
    lines = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()

    def arguments(self, instruction: str) -> list[str]:
        lines = [line for line in self.lines if line.startswith(f"{instruction} ")]
        return [line.split(maxsplit=1)[1] for line in lines]

    def test_is_pinned_and_not_root(self) -> None:
        (base,) = self.arguments("FROM")
        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
        (user,) = self.arguments("USER")
        assert int(user) > 0
        installs = [line for line in self.arguments("RUN") if "pip install" in line]
        assert all("--constraint constraints.txt" in line for line in installs)
        assert self.arguments("WORKDIR") == [IMAGE_FOLDER]

    def test_has_the_programs_that_others_call_in_it(self) -> None:
        """KubeRay's probes; `ray up`, and the head's autoscaler, which runs in the container."""
        (installed,) = [line for line in self.arguments("RUN") if "apt-get install" in line]
        assert {"wget", "rsync", "openssh-client"} <= set(installed.split())

    def test_copies_what_exists_and_what_docker_sees(self) -> None:
        ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        seen = {line[1:] for line in ignored if line.startswith("!")}
        copied = {name for line in self.arguments("COPY") for name in line.split()[:-1]}
        assert copied == seen
        assert all((ROOT / name).exists() for name in copied)
        assert {"pipelines", "examples", "platform"} <= copied

    def test_the_extra_that_it_installs_is_pinned(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = project["optional-dependencies"]["cluster"]
        assert {re.split(r"[\[<>=]", entry)[0] for entry in wanted} == {"boto3", "psycopg"}
        assert all(pinned(re.split(r"[\[<>=]", entry)[0]) for entry in wanted)


class TestRayLauncher:
    def config(self) -> Document:
        loaded = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8"))
        assert isinstance(loaded, dict)
        return loaded

    def test_valid(self) -> None:
        from ray.autoscaler._private.util import prepare_config, validate_config

        config = prepare_config(self.config())
        validate_config(config)
        assert config["head_node_type"] in config["available_node_types"]
        broken = {**self.config(), "idle_minutes": 1}
        with pytest.raises(Exception, match="idle_minutes"):
            validate_config(broken)

    def test_on_demand_and_spot_groups_and_a_token(self) -> None:
        types = self.config()["available_node_types"]
        spot = [name for name, node in types.items() if "InstanceMarketOptions" in str(node)]
        assert spot == ["gpu_spot"]
        assert types["gpu_on_demand"]["min_workers"] == 1
        assert sum(node.get("max_workers", 0) for node in types.values()) <= 8
        assert "--env RAY_AUTH_MODE=token" in self.config()["docker"]["run_options"]
        assert any(path.endswith(".ray/auth_token") for path in self.config()["file_mounts"])


def test_finished_jobs_are_cleared_away_for_the_next_image() -> None:
    """A Job's template cannot change, and `apply -k` gives it the image."""
    jobs = [doc for doc in MANIFESTS if doc["kind"] == "Job"]
    assert jobs and all(job["spec"].get("ttlSecondsAfterFinished") for job in jobs)


def test_paths_in_the_documents_exist() -> None:
    for document in (ROOT / "README.md", CLUSTER / "README.md"):
        text = document.read_text(encoding="utf-8")
        paths = re.findall(r"(?<![\w/.-])(?:cluster|pipelines|examples)/[\w./-]*\w", text)
        assert len(paths) >= 5
        assert [path for path in paths if not (ROOT / path).exists()] == []


def pinned(package: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{package}==")]
    return line.partition("==")[2]
