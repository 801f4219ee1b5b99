"""The entry point of the image, started with arguments, environment, files and ports of the manifests, and asked by
the public `grpc-health-probe` what the kubelet would ask."""

import asyncio
import contextlib
import http.client
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest_asyncio

from command import PROGRAM, Running, environment, run
from credentials import AUDIENCE, ISSUER, Authority, Signer, jwks
from famulus import FamulusSyncClient
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_service_pb2 import CreateRunRequest
from famulus.v1.thread_pb2 import Thread
from famulus_server.embedded.upstream import Scene, Script, ScriptedUpstream
from famulus_server.embedded.valkey import EmbeddedValkey
from k8s.manifests import CONFIG, Manifests, Workload, build, image_environment, metrics_of, tool

UNHEALTHY = 4
HOLDS_ITS_ANSWER = "[[scene]]\ntext = 'once upon a time'\nhold_after = 1\n"


@dataclass
class Pod:
    """Where on this machine a pod's paths and ports are."""

    workload: Workload
    folder: Path
    ports: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, made: Manifests, name: str, folder: Path, *, files: Mapping[str, Mapping[str, str]]) -> "Pod":
        """With `files` in its volumes, by the volume's name."""
        workload = made.workload(name)
        pod = cls(workload, folder / name)
        for mount in workload.container["volumeMounts"]:
            path = pod.path(mount["mountPath"])
            path.mkdir(parents=True)
            for file, text in files.get(mount["name"], {}).items():
                (path / file).write_text(text, encoding="utf-8")
        with contextlib.ExitStack() as open_ones:
            for port in {*workload.ports.values(), 7461}:
                taken = open_ones.enter_context(socket.socket())
                taken.bind(("127.0.0.1", 0))
                pod.ports[port] = taken.getsockname()[1]
        return pod

    def path(self, inside: str) -> Path:
        """Where a path of the container is."""
        return self.folder / inside.removeprefix("/")

    def environment(self, secrets: Mapping[str, str]) -> dict[str, str]:
        """The container's, with the paths and ports of this machine."""
        given = image_environment() | self.workload.environment(secrets)
        return environment({name: self._here(value) for name, value in given.items()})

    def probe(self, kind: str) -> int:
        """What grpc-health-probe says in place of the kubelet: its exit code."""
        asked = self.workload.probes[kind]
        return probed(self.ports[asked["grpc"]["port"]], asked["grpc"]["service"], seconds=asked["timeoutSeconds"])

    @contextlib.contextmanager
    def running(self, secrets: Mapping[str, str], **changes: str) -> Iterator[Running]:
        """Its process. `changes` are variables that the manifests give otherwise."""
        with Running(*self.workload.container["args"], env=self.environment(secrets) | changes) as running:
            yield running

    def _here(self, value: str) -> str:
        host, _, port = value.rpartition(":")
        if port.isdigit() and int(port) in self.ports:
            return f"{host}:{self.ports[int(port)]}"
        return str(self.path(value)) if value.startswith("/") else value


def probed(port: int, service: str, *, seconds: int) -> int:
    limits = (f"-connect-timeout={seconds}s", f"-rpc-timeout={seconds}s")
    command: Sequence[str] = (tool("grpc-health-probe"), f"-addr=127.0.0.1:{port}", f"-service={service}", *limits)
    return subprocess.run(command, capture_output=True, check=False).returncode


def becomes_ready(pod: Pod, running: Running) -> None:
    """Every probe of the manifest is answered with SERVING."""
    running.address()
    assert {kind: pod.probe(kind) for kind in pod.workload.probes} == {"startup": 0, "readiness": 0, "liveness": 0}
    assert probed(pod.ports[7462], "no such service", seconds=2) != 0


def scraped(pod: Pod) -> set[str]:
    """The names of the metrics that Prometheus gets there."""
    connection = http.client.HTTPConnection("127.0.0.1", pod.ports[pod.workload.ports["metrics"]], timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return set(re.findall(r"^(\w+)", answer.read().decode(), re.MULTILINE))


def ends_in_time(pod: Pod, running: Running) -> None:
    """SIGTERM comes when preStop is over; what is left of the grace period must do."""
    begun = time.monotonic()
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    left = pod.workload.pod["terminationGracePeriodSeconds"] - pod.workload.pre_stop_seconds
    assert time.monotonic() - begun < left


def test_everything_in_one_pod_serves_drains_and_ends(tmp_path: Path) -> None:
    tool("grpc-health-probe")
    made = build("overlays/dev")
    settings = made.config_of(made.workload("famulus-api"))
    pod = Pod.of(made, "famulus-api", tmp_path, files={"config": {CONFIG: settings}})
    script = tmp_path / "script.toml"
    script.write_text(HOLDS_ITS_ANSWER)
    # The shortest that shows: the held answer never ends by itself.
    changes = {"FAMULUS_EMBEDDED_SCRIPT": str(script), "FAMULUS_SERVER_DRAIN_SECONDS": "2"}
    with pod.running({}, **changes) as running:
        becomes_ready(pod, running)
        with FamulusSyncClient(running.address()) as client, client.stream_run(held_run(client)) as stream:
            assert next(event for event in stream if event.HasField("text_delta"))
            running.signal(signal.SIGTERM)
            running.line("Draining", on="stderr")
            assert (pod.probe("readiness"), pod.probe("liveness")) == (UNHEALTHY, 0)
            assert running.wait() == 0
    assert sorted(path.name for path in pod.path("/var/lib/famulus").iterdir() if path.suffix == ".db") == [
        "famulus.db"
    ]


def held_run(client: FamulusSyncClient) -> CreateRunRequest:
    assistant = Assistant(name="test", model="scripted")
    answer = client.assistants.EnsureAssistant(EnsureAssistantRequest(assistant=assistant))
    message = Message(role=MessageRole.MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text="Hello"))])
    return CreateRunRequest(new_thread=Thread(), assistant_id=answer.assistant.id, additional_messages=[message])


@pytest_asyncio.fixture
async def secrets(new_database: str, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """What the Secrets of `prod` hold here: a database without tables, a Valkey, a key."""
    valkey = EmbeddedValkey(data_dir=tmp_path)
    redis_url = await valkey.start()
    yield {"FAMULUS_STORE_URL": new_database, "FAMULUS_REDIS_URL": redis_url, "OPENAI_API_KEY": "key of a model"}
    await valkey.close()


@dataclass
class Outside:
    """What production has around it: a CA, an issuer of tokens, a provider of models."""

    folder: Path
    base_url: str
    authority: Authority = field(default_factory=Authority)
    signer: Signer = field(default_factory=lambda: Signer.new("k1"))

    def files(self, made: Manifests, workload: Workload) -> dict[str, dict[str, str]]:
        """What is in the pods' volumes: settings that name these, and the certificate."""
        (self.folder / "keys.json").write_bytes(jwks(self.signer))
        settings = made.config_of(workload)
        for theirs, ours in {
            'base_url = "https://api.openai.com/v1"': f'base_url = "{self.base_url}"',
            'jwks_url = "https://login.example.com/keys"': f'jwks_file = "{self.folder / "keys.json"}"',
            'issuer = "https://login.example.com/"': f'issuer = "{ISSUER}"',
            'audience = "famulus"': f'audience = "{AUDIENCE}"',
        }.items():
            assert theirs in settings
            settings = settings.replace(theirs, ours)
        pair = self.authority.server()
        return {
            "config": {CONFIG: settings},
            "tls": {"tls.crt": pair.chain.decode(), "tls.key": pair.key.decode()},
        }

    def ask(self, address: str) -> subprocess.CompletedProcess[str]:
        """A conversation with whoever serves at an address, over TLS and with a token."""
        (self.folder / "ca.crt").write_bytes(self.authority.pem)
        shown = environment({"FAMULUS_TOKEN": self.signer.token()})
        trusting = ("--address", address, "--ca-file", str(self.folder / "ca.crt"))
        return run("chat", *trusting, "--model", "gpt-5-mini", "--message", "Hello", env=shown)


def migrate(folder: Path, secrets: Mapping[str, str]) -> str:
    """Runs the Job; gives what it says."""
    made = build("overlays/prod/migration")
    pod = Pod.of(made, "famulus-migrate", folder, files={})
    done = subprocess.run(
        [PROGRAM, *pod.workload.container["args"]],
        env=pod.environment(secrets),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_production_is_migrated_serves_a_conversation_and_ends(tmp_path: Path, secrets: dict[str, str]) -> None:
    tool("grpc-health-probe")
    async with ScriptedUpstream(script=Script(scenes=(Scene(text="fine"),))) as upstream:
        await asyncio.to_thread(live_in_production, Outside(tmp_path, upstream.base_url), secrets)
        assert upstream.requests


def live_in_production(outside: Outside, secrets: Mapping[str, str]) -> None:
    assert "now at version" in migrate(outside.folder / "first", secrets)
    assert "already at version" in migrate(outside.folder / "second", secrets)
    made = build("overlays/prod")
    pods = [
        Pod.of(made, workload.name, outside.folder, files=outside.files(made, workload)) for workload in made.servers
    ]
    with contextlib.ExitStack() as processes:
        running = [processes.enter_context(pod.running(secrets)) for pod in pods]
        for pod, process in zip(pods, running, strict=True):
            becomes_ready(pod, process)
        # Asked of the API, answered by the worker.
        [api] = [pod for pod in pods if pod.workload.name == "famulus-api"]
        answered = outside.ask(f"localhost:{api.ports[7461]}")
        assert (answered.returncode, answered.stdout) == (0, "fine\n"), answered.stderr
        for scaler in made.of("HorizontalPodAutoscaler"):
            [scaled] = [pod for pod in pods if pod.workload.name == scaler["spec"]["scaleTargetRef"]["name"]]
            assert metrics_of(scaler) <= scraped(scaled)
        for pod, process in zip(pods, running, strict=True):
            ends_in_time(pod, process)
