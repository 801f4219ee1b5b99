"""Callers with tokens and static keys, over a real socket: who is let in, and that nobody else is."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from credentials import ISSUER, Signer, bearer, claims, forged
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import CreateAssistantRequest, ListAssistantsRequest
from famulus.v1.thread_pb2 import Thread
from famulus.v1.thread_service_pb2 import CreateThreadRequest, GetThreadRequest
from famulus_server.identity.settings import AuthSettings, IssuerSettings, KeySettings, hash_of_key
from grpc.access.conftest import Guarded, Start
from serving import Refusal, Stubs, refusal
