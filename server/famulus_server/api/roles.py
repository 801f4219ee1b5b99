"""What each role may do. A method that does not stand here may not be called by anybody."""

from collections.abc import Mapping
from types import MappingProxyType

from famulus.v1 import error_reason_pb2 as reasons
from famulus_server.api.calls import Call, Method, Proceed
from famulus_server.engine.policy import Role
from famulus_server.errors import PermissionDenied

# What else somebody with a role may do, besides what the role says itself.
INCLUDED: Mapping[Role, frozenset[Role]] = MappingProxyType(
    {
        "reader": frozenset(),
        "writer": frozenset({"reader"}),
        "operator": frozenset({"writer", "reader"}),
        "privacy": frozenset(),
        "tools": frozenset(),
    }
)

REFLECTION = "grpc.reflection.v1alpha.ServerReflection"


def _of(service: str, **roles: Role) -> dict[str, Role]:
    return {f"/{service}/{method}": role for method, role in roles.items()}


# The least role that may call a method.
METHODS: Mapping[str, Role] = MappingProxyType(
    _of(
        "famulus.v1.AssistantService",
        CreateAssistant="operator",
        EnsureAssistant="operator",
        GetAssistant="reader",
        ListAssistants="reader",
        ListAssistantVersions="reader",
        UpdateAssistant="operator",
        DeleteAssistant="operator",
    )
    | _of(
        "famulus.v1.ThreadService",
        CreateThread="writer",
        GetThread="reader",
        ListThreads="reader",
        UpdateThread="writer",
        DeleteThread="writer",
        ForkThread="writer",
        CreateMessage="writer",
        GetMessage="reader",
        ListMessages="reader",
        UpdateMessage="writer",
        DeleteMessage="writer",
    )
    | _of(
        "famulus.v1.RunService",
        CreateRun="writer",
        StreamRun="writer",
        WatchRun="reader",
        WaitRun="reader",
        GetRun="reader",
        ListRuns="reader",
        UpdateRun="writer",
        CancelRun="writer",
        SubmitToolOutputs="writer",
        ListRunSteps="reader",
        GetRunStep="reader",
        RateRun="writer",
    )
    | _of("famulus.v1.UsageService", QueryUsage="reader")
    | _of(
        "famulus.v1.UserDataService",
        DeleteUserData="privacy",
        GetDeletionReceipt="privacy",
        ExportUserData="privacy",
    )
    | _of(REFLECTION, ServerReflectionInfo="reader")
)


class Roles:
    """The layer that refuses callers whose roles do not include the method. It comes after the one that finds out who
    calls; where nobody is asked for that, as for the health of the server, it asks for no role either."""

    def around(self, method: Method, proceed: Proceed) -> Proceed:
        allowed = who_may(method.name)

        async def check_roles(call: Call) -> None:
            if call.caller is not None and allowed.isdisjoint(call.caller.roles):
                raise _refusal(method.name)
            await proceed(call)

        return check_roles


def who_may(method: str) -> frozenset[str]:
    """The roles that may call the method: the one that it needs, and those that include that."""
    needed = METHODS.get(method)
    return frozenset(role for role, included in INCLUDED.items() if role == needed or needed in included)


def _refusal(method: str) -> PermissionDenied:
    needed = METHODS.get(method)
    if needed is None:
        return PermissionDenied(reasons.ERROR_REASON_PERMISSION_DENIED, "no role may call this method")
    return PermissionDenied(
        reasons.ERROR_REASON_PERMISSION_DENIED, f"this needs the role {needed}", metadata={"role": needed}
    )
