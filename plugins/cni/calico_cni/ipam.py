"""The IPAM plugin ``calico-ipam``, for other network plugins: ADD, DEL, CHECK, STATUS.

It assigns and releases addresses and touches neither interface nor endpoint. The configuration is the calling
plugin's, so only the parts that concern addresses are looked at. Source: cni specification 5.6.
"""

from __future__ import annotations

from calico_cni.commands import addresses_before
from calico_cni.environment import Invocation
from calico_cni.errors import CheckFailed, InvalidEnvironment
from calico_cni.identity import handle_of, legacy_handles
from calico_cni.outcome import Outcome
from calico_cni.requested import address_request
from calico_cni.results import Ip, Result, encode_result
from calico_cni.status import check_available
from calico_cni.versions import check_command
from calico_cni.wire import CommonConfiguration, MinimalConfiguration, parse_configuration
from calico_core.interfaces.integration import Call, IntegrationContext
from calico_core.model.addresses import host_network


class IpamCommands:
    """Any thread."""

    def __init__(self, context: IntegrationContext) -> None:
        self._context = context

    def run(self, call: Call, invocation: Invocation) -> Outcome:
        """Raises what the table in ``errors`` maps."""
        if invocation.command == "DEL":
            return self._delete(parse_configuration(call.stdin, MinimalConfiguration), invocation)
        configuration = parse_configuration(call.stdin, CommonConfiguration)
        check_command(configuration.version, invocation.command)
        match invocation.command:
            case "ADD":
                return self._add(configuration, invocation)
            case "CHECK":
                return self._check(configuration, invocation)
            case "STATUS":
                return check_available(self._context.records, configuration.ipam)
        raise InvalidEnvironment("CNI_COMMAND", f"{invocation.command} is not implemented")

    def _add(self, configuration: CommonConfiguration, invocation: Invocation) -> Outcome:
        handle = _handle(configuration, invocation)
        request = address_request(configuration, invocation, handle=handle, host=self._context.host)
        addresses = self._context.ipam.auto_assign(request)
        result = Result(ips=tuple(Ip(address=str(host_network(address))) for address in addresses))
        return Outcome(encode_result(result, configuration.version))

    def _delete(self, configuration: MinimalConfiguration, invocation: Invocation) -> Outcome:
        legacy = legacy_handles(invocation.container_id, invocation.interface)
        self._context.ipam.release_by_handle((_handle(configuration, invocation), *legacy))
        return Outcome()

    def _check(self, configuration: CommonConfiguration, invocation: Invocation) -> Outcome:
        handle = _handle(configuration, invocation)
        held = set(self._context.ipam.by_handle(handle))
        missing = addresses_before(configuration, invocation.interface) - held
        if missing or not held:
            what = ", ".join(map(str, sorted(missing))) or "any address"
            raise CheckFailed(f"handle {handle} does not hold {what}")
        return Outcome()


def _handle(configuration: MinimalConfiguration, invocation: Invocation) -> str:
    return handle_of(configuration.name, invocation.container_id, invocation.interface)
