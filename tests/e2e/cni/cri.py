"""The few messages of the container runtime interface (CRI v1) that make and end a pod, as a kubelet sends them.

Described here and compiled at run time: no generated code, no tools. Source of names and numbers: the CRI's api.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "runtime.v1"
_SERVICE = f"/{PACKAGE}.RuntimeService"
_CALL_S = 120.0

_STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_UINT32 = descriptor_pb2.FieldDescriptorProto.TYPE_UINT32
_BOOL = descriptor_pb2.FieldDescriptorProto.TYPE_BOOL

_MESSAGES: dict[str, tuple[tuple[int, str, Any], ...]] = {
    "PodSandboxMetadata": (
        (1, "name", _STRING),
        (2, "uid", _STRING),
        (3, "namespace", _STRING),
        (4, "attempt", _UINT32),
    ),
    "LinuxPodSandboxConfig": ((1, "cgroup_parent", _STRING),),
    "PodSandboxConfig": (
        (1, "metadata", "PodSandboxMetadata"),
        (2, "hostname", _STRING),
        (3, "log_directory", _STRING),
        (8, "linux", "LinuxPodSandboxConfig"),
    ),
    "RunPodSandboxRequest": ((1, "config", "PodSandboxConfig"),),
    "RunPodSandboxResponse": ((1, "pod_sandbox_id", _STRING),),
    "StopPodSandboxRequest": ((1, "pod_sandbox_id", _STRING),),
    "StopPodSandboxResponse": (),
    "RemovePodSandboxRequest": ((1, "pod_sandbox_id", _STRING),),
    "RemovePodSandboxResponse": (),
    "PodSandboxStatusRequest": ((1, "pod_sandbox_id", _STRING),),
    "PodSandboxNetworkStatus": ((1, "ip", _STRING),),
    "PodSandboxStatus": ((1, "id", _STRING), (5, "network", "PodSandboxNetworkStatus")),
    "PodSandboxStatusResponse": ((1, "status", "PodSandboxStatus"),),
    "StatusRequest": (),
    "RuntimeCondition": ((1, "type", _STRING), (2, "status", _BOOL), (3, "reason", _STRING), (4, "message", _STRING)),
    "RuntimeStatus": ((1, "conditions", ["RuntimeCondition"]),),
    "StatusResponse": ((1, "status", "RuntimeStatus"),),
}


def _compiled() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            is_list = isinstance(kind, list)
            described = message.field.add(
                name=field,
                number=number,
                label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
                if is_list
                else descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            )
            inner = kind[0] if is_list else kind
            if isinstance(inner, str):
                described.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                described.type_name = f".{PACKAGE}.{inner}"
            else:
                described.type = inner
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES = _compiled()


class Cri:
    """A runtime's socket. Any thread."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def close(self) -> None:
        self._channel.close()

    def run(self, name: str, *, attempt: int = 0, uid: str = "") -> str:
        """The id of a new pod's sandbox, its network up."""
        config = _CLASSES["PodSandboxConfig"](hostname=name, log_directory="", linux={"cgroup_parent": ""})
        config.metadata.name, config.metadata.uid = name, uid or f"uid-{name}"
        config.metadata.namespace, config.metadata.attempt = "default", attempt
        found: str = self._call("RunPodSandbox", config=config).pod_sandbox_id
        return found

    def address(self, pod: str) -> str:
        found: str = self._call("PodSandboxStatus", pod_sandbox_id=pod).status.network.ip
        return found

    def stop(self, pod: str) -> None:
        self._call("StopPodSandbox", pod_sandbox_id=pod)

    def remove(self, pod: str) -> None:
        self._call("RemovePodSandbox", pod_sandbox_id=pod)

    def is_network_ready(self) -> bool:
        conditions = self._call("Status").status.conditions
        return all(each.status for each in conditions) and len(conditions) == 2

    def _call(self, method: str, **fields: Any) -> Any:
        call = self._channel.unary_unary(
            f"{_SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_CLASSES[f"{method}Response"].FromString,
        )
        return call(_CLASSES[f"{method}Request"](**fields), timeout=_CALL_S, wait_for_ready=True)
