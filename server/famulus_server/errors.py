"""The one tree of errors.

    FamulusError                what a caller of the API is told, with a reason of the documented enum
    ├── InvalidArgument         a field is wrong; `violations` name the fields
    ├── NotFound                no such resource, or another tenant's: the same, byte for byte
    ├── AlreadyExists           a request id was used for another request
    ├── FailedPrecondition      the resource is not in a state that allows this
    ├── Aborted                 somebody else was faster
    ├── OutOfRange              a sequence behind the end
    ├── Unauthenticated         nobody knows who calls
    ├── PermissionDenied        the caller may not do this
    ├── ResourceExhausted       a limit or budget of the caller is used up
    ├── Unavailable             overloaded, draining, or the store is away; says when to come back
    └── Internal                a fault of ours; the text says nothing, a reference finds it in the log
    LeaseLost                   this worker no longer owns the run: stop, close the upstream call, write nothing
    ModelError                  a model turn failed; see its subclasses
    ├── ModelUnavailable        refused, reset, 5xx
    │   └── ModelSuspended      it failed too often lately, and was not asked
    ├── ModelRateLimited        429
    ├── ModelTimeout            silent for too long
    ├── ModelProtocolError      the stream was broken, or ended without its terminal event
    ├── ModelRejectedRequest    4xx: the request will never work
    │   └── ModelRemoved        the configuration no longer has a model for it
    └── ModelAuthenticationError   the provider refused our key

`api/errors.py` has the table from these to gRPC codes. Texts in them are public: nothing of an exception's own words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from famulus.v1 import error_reason_pb2 as reasons
from famulus.v1.run_pb2 import RunErrorCode

ErrorReason = reasons.ErrorReason


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field of a request: its path (`assistant.tools[3].function.name`) and a sentence."""

    field: str
    description: str


class FamulusError(Exception):
    """A refusal that a caller may read.

    `message` is a sentence for people, `metadata` are short machine-readable facts, `retry_after` is in seconds.
    """

    def __init__(
        self,
        reason: "ErrorReason.ValueType",
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after


class InvalidArgument(FamulusError):
    """The request is wrong whatever the state of the service."""

    @classmethod
    def fields(cls, violations: Sequence[Violation]) -> "InvalidArgument":
        """The error for wrong fields; its message tells the first of them."""
        first = violations[0]
        return cls(reasons.ERROR_REASON_INVALID_FIELD, f"{first.field}: {first.description}", violations=violations)


class NotFound(FamulusError):
    """No such resource for this tenant. `reason` is another one only where the caller saw it exist before."""

    def __init__(
        self,
        resource_type: str,
        resource_id: str,
        *,
        reason: "ErrorReason.ValueType" = reasons.ERROR_REASON_RESOURCE_NOT_FOUND,
    ) -> None:
        super().__init__(reason, f"no such {resource_type}")
        self.resource_type = resource_type
        self.resource_id = resource_id


class AlreadyExists(FamulusError):
    """The request id stands for another request."""


class FailedPrecondition(FamulusError):
    """The resource's state does not allow the call."""


class Aborted(FamulusError):
    """Somebody else was faster, or the reader too slow."""


class OutOfRange(FamulusError):
    """Behind the end of something that has ended."""


class Unauthenticated(FamulusError):
    """The credentials are missing, wrong or no longer valid. The text never says which part of them is wrong."""


class PermissionDenied(FamulusError):
    """The caller is known, and has no role that allows the method."""


class ResourceExhausted(FamulusError):
    """The caller has used up what he may use: whose that is, and how much it is, as in "tenant:acme" and "600 requests
    per minute"."""

    def __init__(
        self,
        reason: "ErrorReason.ValueType",
        message: str,
        *,
        subject: str,
        description: str,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata, retry_after=retry_after)
        self.subject = subject
        self.description = description


class Unavailable(FamulusError):
    """Not now; `retry_after` says when."""


class Internal(FamulusError):
    """A fault of ours. Carries the reference under which the log has the cause."""

    def __init__(self, reference: str) -> None:
        super().__init__(
            reasons.ERROR_REASON_INTERNAL,
            f"internal error, reference {reference}",
            metadata={"reference": reference},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a provider says is left of its own limits on us, and in how many seconds all of it is back. None where it
    does not say. It tells with its answers, and with its refusals."""

    requests_left: int | None = None
    requests_reset: float | None = None
    tokens_left: int | None = None
    tokens_reset: float | None = None


class LeaseLost(Exception):
    """This worker no longer owns the run (contract 8)."""


class ModelError(Exception):
    """A model turn failed. The text is for the log; callers see `Run.error`, made from `code` and `public`."""

    code: ClassVar["RunErrorCode.ValueType"] = RunErrorCode.RUN_ERROR_CODE_SERVER_ERROR
    public: ClassVar[str] = "the model failed"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        retry_after: float | None = None,
        retry: bool | None = None,
        allowance: Allowance | None = None,
        status: int | None = None,
    ) -> None:
        """`retry_after`: seconds the provider asked to wait; `retry`: its own word (x-should-retry), if it gave one;
        `allowance`: what it says is left of its limits, if it says so; `status`: that of its HTTP answer, if that is
        what failed."""
        super().__init__(detail)
        self.retry_after = retry_after
        self.allowance = allowance
        self.status = status
        self.may_retry = self.retryable if retry is None else retry


class ModelUnavailable(ModelError):
    """Connection refused or reset, 5xx, 408, 409."""

    code = RunErrorCode.RUN_ERROR_CODE_MODEL_UNAVAILABLE
    public = "the model could not be reached or failed"
    retryable = True


class ModelSuspended(ModelUnavailable):
    """The model failed too often lately: it was not asked. After `retry_after` seconds somebody may try whether it is
    back."""

    public = "the model failed too often lately and is not asked for a while"
    retryable = False


class ModelRateLimited(ModelError):
    """429."""

    code = RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED
    public = "the model's provider limits the rate of requests"
    retryable = True


class ModelTimeout(ModelError):
    """One of our timers ran out: connect, first event, idle."""

    code = RunErrorCode.RUN_ERROR_CODE_MODEL_TIMEOUT
    public = "the model was silent for too long"
    retryable = True


class ModelProtocolError(ModelError):
    """Bad bytes, bad JSON, a line over the cap, or no terminal event (contract 17)."""

    code = RunErrorCode.RUN_ERROR_CODE_MODEL_PROTOCOL
    public = "the model's answer was broken off or malformed"
    retryable = True


class ModelRejectedRequest(ModelError):
    """The provider calls the request invalid; asking again is useless."""

    code = RunErrorCode.RUN_ERROR_CODE_INVALID_PROMPT
    public = "the model's provider refused the request as invalid"


class ModelRemoved(ModelRejectedRequest):
    """The configuration has changed under the run: it no longer has a model that can answer it."""

    public = "the server's configuration no longer has a model for this run"


class ModelAuthenticationError(ModelError):
    """The provider refused our key."""

    code = RunErrorCode.RUN_ERROR_CODE_MODEL_AUTHENTICATION
    public = "the model's provider refused the service's credentials"
