"""CalicoError → CNI error code: one table, read from the top. Source: cni specification 2.4.

The classes here say which part of the protocol was violated; they are raised and caught inside this package only.
"""

from __future__ import annotations

from calico_core.errors import (
    AddressInUse,
    CalicoError,
    DataplaneError,
    InterfaceTaken,
    InvalidInput,
    InvalidRecord,
    InvalidRequest,
    InvalidSettings,
    NamespaceGone,
    NoPools,
    OutsidePools,
    PoolExhausted,
)

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
BAD_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIGURATION = 7
INVALID_NAMESPACE = 8
TRY_AGAIN_LATER = 11
PLUGIN_NOT_AVAILABLE = 50
EXISTING_LIMITED = 51
GENERIC = 100
ADDRESSES_EXHAUSTED = 101
ADDRESS_IN_USE = 102
POLICY_SOURCE_FAILED = 103
DELEGATE_FAILED = 104
KERNEL_REFUSED = 105
INTERFACE_TAKEN = 106

KNOWN_TO_ALL = frozenset({INCOMPATIBLE_VERSION, UNSUPPORTED_FIELD})
"""The reserved codes that versions before 0.4.0 define; there, every other reserved one becomes 100."""

EARLY_VERSIONS = frozenset({"0.1.0", "0.2.0", "0.3.0", "0.3.1"})


class IncompatibleVersion(InvalidRequest):
    """``what`` is a command that the version does not have, or empty when the version itself is unknown."""

    def __init__(self, version: str, supported: tuple[str, ...], *, what: str = "") -> None:
        reason = f"{what} does not exist in version {version}" if what else f"version {version} is not supported"
        super().__init__("cniVersion", reason)
        self.version, self.supported = version, supported

    @property
    def hint(self) -> str:  # type: ignore[override]
        return f"requested: {self.version}; supported: {', '.join(self.supported)}"


class UnsupportedField(InvalidRequest):
    """A legal configuration that asks for something we do not do. ``value`` as it was written."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(field, reason)
        self.value = value

    @property
    def hint(self) -> str:  # type: ignore[override]
        return f"{self.field}={self.value}"


class InvalidEnvironment(InvalidRequest):
    """One or more CNI variables are missing or wrong; ``field`` lists them."""


class Undecodable(InvalidRequest):
    """Standard input is not what the protocol says: no JSON, no object, no version."""


class InvalidNamespace(InvalidRequest):
    """``CNI_NETNS`` leads nowhere, or to where no container is."""


class CheckFailed(CalicoError):
    """CHECK: something an ADD made is missing or different; the text names it."""


class NotAvailable(CalicoError):
    """STATUS: an ADD would not be served now."""


class ExistingLimited(NotAvailable):
    """STATUS: nor can the containers that run already count on their policy."""


class DelegateFailed(CalicoError):
    """Another plugin, run for a part of the work, failed. ``code``, ``message`` and ``details`` are its own where it
    gave any."""

    def __init__(self, plugin: str, message: str, *, code: int = DELEGATE_FAILED, details: str = "") -> None:
        super().__init__(f"plugin {plugin}: {message}")
        self.plugin, self.message, self.code, self.details = plugin, message, code, details

    @property
    def hint(self) -> str:  # type: ignore[override]
        return self.details


class PolicySourceFailed(CalicoError):
    """The Kubernetes API answered, but not with what an ADD needs to know of the pod."""


class CollectionFailed(CalicoError):
    """GC: some of what is stale could not be removed; the rest is gone. ``failures`` in the order they happened."""

    def __init__(self, failures: tuple[BaseException, ...]) -> None:
        super().__init__("; ".join(str(failure) or type(failure).__name__ for failure in failures))
        self.failures = failures


TABLE: tuple[tuple[type[BaseException], int], ...] = (
    (IncompatibleVersion, INCOMPATIBLE_VERSION),
    (UnsupportedField, UNSUPPORTED_FIELD),
    (InvalidEnvironment, BAD_ENVIRONMENT),
    (Undecodable, DECODING_FAILURE),
    (InvalidNamespace, INVALID_NAMESPACE),
    (NamespaceGone, INVALID_NAMESPACE),
    (ExistingLimited, EXISTING_LIMITED),
    (NotAvailable, PLUGIN_NOT_AVAILABLE),
    (InvalidRecord, GENERIC),
    (InvalidSettings, GENERIC),
    (InvalidInput, INVALID_CONFIGURATION),
    (PoolExhausted, ADDRESSES_EXHAUSTED),
    (NoPools, ADDRESSES_EXHAUSTED),
    (AddressInUse, ADDRESS_IN_USE),
    (OutsidePools, INVALID_CONFIGURATION),
    (InterfaceTaken, INTERFACE_TAKEN),
    (DataplaneError, KERNEL_REFUSED),
    (PolicySourceFailed, POLICY_SOURCE_FAILED),
)


def code_of(error: BaseException, version: str) -> int:
    """The code for a runtime that asked for ``version``. Retryable errors are 11, everything unlisted is 100."""
    code = _modern_code(error)
    if code < GENERIC and code not in KNOWN_TO_ALL and version in EARLY_VERSIONS:
        return GENERIC
    return code


def _modern_code(error: BaseException) -> int:
    if isinstance(error, CalicoError) and error.retryable:
        return TRY_AGAIN_LATER
    if isinstance(error, DelegateFailed):
        return error.code
    if isinstance(error, CollectionFailed):
        return _modern_code(error.failures[0])
    return next((code for kind, code in TABLE if isinstance(error, kind)), GENERIC)


def details_of(error: BaseException) -> str:
    return error.hint if isinstance(error, CalicoError) else ""
