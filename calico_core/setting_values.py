"""What the texts of settings mean: one parser a kind. Each raises ``InvalidRequest`` with what would be right.

The model is imported inside, so that a program that only reads the environment does not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from calico_core.errors import InvalidRequest

CLIENT_AUTH = (
    "NoClientCert",
    "RequestClientCert",
    "RequireAnyClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
)
_TRUE = frozenset({"true", "1", "yes", "y", "t"})
_FALSE = frozenset({"false", "0", "no", "n", "f"})
_LEVEL_WORDS = {
    **dict.fromkeys(("trace", "verbose"), "debug"),
    "warn": "warning",
    "err": "error",
    **dict.fromkeys(("crit", "fatal"), "critical"),
}


_RATE_UNITS = ("second", "minute", "hour", "day")


def text(value: str) -> str:
    return value.strip()


def boolean(value: str) -> bool:
    lowered = value.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise InvalidRequest("value", f"{value!r} is not true or false")


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            found = float(int(value, 0)) if value.strip().lower().startswith("0x") else float(value)
        except (ValueError, OverflowError):
            raise InvalidRequest("value", f"{value!r} is not a number") from None
        if not low <= found <= high:
            raise InvalidRequest("value", f"{value} is not between {_plain(low)} and {_plain(high)}")
        return found

    return parse


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def integer(low: int, high: int) -> Callable[[str], int]:
    any_number = number(low, high)

    def parse(value: str) -> int:
        found = any_number(value)
        if found != int(found):
            raise InvalidRequest("value", f"{value!r} is not a whole number")
        return int(found)

    return parse


def mark_mask(value: str) -> int:
    """Bits of a packet's mark; every driver needs two."""
    found = integer(0, 0xFFFFFFFF)(value)
    if found.bit_count() < 2:
        raise InvalidRequest("value", f"{value} has fewer than two bits")
    return found


def rate(value: str) -> str:
    """``10`` or ``10/second``, or so many a minute, hour or day, as ``10/second``. 0 is no limit: ''."""
    amount, separator, word = value.strip().lower().partition("/")
    unit = next((each for each in _RATE_UNITS if word and each.startswith(word)), "")
    if separator and not unit:
        raise InvalidRequest("value", f"{value!r} is not a rate such as 10/second: {', '.join(_RATE_UNITS)}")
    found = integer(0, 1_000_000)(amount)
    return f"{found}/{unit or _RATE_UNITS[0]}" if found else ""


def choice(*choices: str) -> Callable[[str], str]:
    """One of these words in any case, as it is written here."""
    spellings = {each.lower(): each for each in choices}

    def parse(value: str) -> str:
        found = spellings.get(value.strip().lower())
        if found is None:
            raise InvalidRequest("value", f"{value!r} is not one of {', '.join(choices)}")
        return found

    return parse


def or_none(parse: Callable[[str], str]) -> Callable[[str], str]:
    """The word ``none`` means that there is no value."""
    return lambda value: "" if value.strip().lower() == "none" else parse(value)


def dataplane_driver(value: str) -> str:
    """The name of a driver, or ``auto``; the reference system's words for nftables too."""
    cleaned = value.strip()
    return {"enabled": "nftables", "disabled": "iptables", "auto": "auto"}.get(cleaned.lower(), cleaned)


def failsafe_ports(value: str) -> str:
    """As it is written, after a check."""
    from calico_core.model.failsafe import parse_failsafe_ports

    parse_failsafe_ports(value, field="value")
    return value.strip()


def host_or_none(value: str) -> str:
    """An address, a name that has one, or ``none``."""
    cleaned = value.strip()
    if cleaned.lower() == "none":
        return "none"
    is_name = bool(cleaned) and not any(
        letter.isspace() or letter == "/" or not letter.isprintable() for letter in cleaned
    )
    if is_name:
        try:
            cleaned.encode("idna")  # as the resolver does: no empty label, none of more than 63 bytes
        except UnicodeError:
            is_name = False
    if not is_name:
        raise InvalidRequest("value", f"{value!r} is not an address, a host name or none")
    return cleaned


def log_level(value: str) -> str:
    """The reference system's words too, in any case."""
    cleaned = value.strip().lower()
    return _LEVEL_WORDS.get(cleaned) or choice("debug", "info", "warning", "error", "critical", "none")(cleaned)


_DURATION = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(value: str) -> float:
    """Seconds: a number, or with units, as ``90s`` and ``1h30m``."""
    cleaned = value.strip().lower()
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", cleaned)
    if parts and "".join(map("".join, parts)) == cleaned:
        return sum(number(0, 1e9)(amount) * _DURATION[unit] for amount, unit in parts)
    try:
        return number(0, 1e9)(cleaned)
    except InvalidRequest:
        raise InvalidRequest("value", f"{value!r} is not a duration such as 90, 90s or 1h30m") from None


def limits(value: str) -> tuple[tuple[str, float], ...]:
    """``NAME=DURATION,…`` as names and seconds, which are more than 0."""
    found: list[tuple[str, float]] = []
    for part in names(value):
        label, separator, text = part.partition("=")
        if not (label.strip() and separator):
            raise InvalidRequest("value", f"{part!r} is not NAME=DURATION")
        seconds = duration(text)
        if not seconds:
            raise InvalidRequest("value", f"{part!r} gives no time")
        found.append((label.strip(), seconds))
    return tuple(found)


def name(value: str) -> str:
    from calico_core.model.ids import check_name

    return check_name(value.strip(), field="value")


def interface_prefixes(value: str) -> str:
    """One or a list, each once, in order."""
    from calico_core.model.ids import check_interface

    found = dict.fromkeys(check_interface(each, field="value") for each in names(value))
    if not found:
        raise InvalidRequest("value", f"{value!r} names no prefix of interfaces such as cali or cali,tap")
    return ",".join(found)


def url(value: str) -> str:
    scheme, separator, rest = value.strip().partition("://")
    if not (scheme and separator and rest):
        raise InvalidRequest("value", f"{value!r} is not a URL such as etcd3://HOST:2379 or sqlite:///PATH")
    return value.strip()


def path(value: str) -> str:
    if not value.strip().startswith("/"):
        raise InvalidRequest("value", f"{value!r} is not an absolute path")
    return value.strip()


def pattern(value: str) -> str:
    """A regular expression, as it is written."""
    cleaned = value.strip()
    try:
        re.compile(cleaned)
    except re.error as error:
        raise InvalidRequest("value", f"{value!r} is not a regular expression: {error}") from None
    return cleaned


def interface_names(value: str) -> str:
    """A list of names and ``/expressions/``, as it is written."""
    from calico_core.model.interface_names import parse_interface_names

    parse_interface_names(value)
    return value.strip()


def text_or_none_word(value: str) -> str:
    return "none" if value.strip().lower() == "none" else text(value)


def path_or_none_word(value: str) -> str:
    """An absolute path, or ``none`` as it is, where nothing means something else."""
    return "none" if value.strip().lower() == "none" else path(value)


def own_address(version: int) -> Callable[[str], str]:
    """``autodetect``, ``none`` or an address that others can reach, of which a prefix length is dropped."""

    def parse(value: str) -> str:
        from calico_core.model.addresses import not_reachable, parse_address, parse_network

        cleaned = value.strip().lower()
        if cleaned in {"autodetect", "none"}:
            return cleaned
        own = cleaned.partition("/")[0]
        try:
            parse_network(cleaned, version=version)
        except InvalidRequest:
            wanted = f"an IPv{version} address, 'autodetect' or 'none'"
            raise InvalidRequest("value", f"{value!r} is not {wanted}") from None
        kind = not_reachable(parse_address(own))
        if kind:
            raise InvalidRequest("value", f"{value!r} is {kind}: give one by which other hosts reach this host")
        return own

    return parse


def address(value: str) -> str:
    """One of either family."""
    from calico_core.model.addresses import parse_address

    return str(parse_address(value.strip(), field="value"))


def address_of(version: int) -> Callable[[str], str]:
    """One of this family."""

    def parse(value: str) -> str:
        from calico_core.model.addresses import parse_address

        return str(parse_address(value.strip(), field="value", version=version))

    return parse


def networks(value: str) -> tuple[str, ...]:
    """CIDRs and addresses of either family, as CIDRs; ``none`` for none."""
    from calico_core.model.addresses import parse_network

    given = () if value.strip().lower() == "none" else names(value)
    return tuple(str(parse_network(each, field="value")) for each in given)


def port_range(value: str) -> str:
    """``FIRST:LAST``, or one port; 0:0 is none."""
    from calico_core.model.numbers import decimal

    parts = [decimal(part) for part in value.strip().split(":")]
    first, last = parts[0], parts[-1]
    if first is None or last is None or len(parts) > 2:
        raise InvalidRequest("value", f"{value!r} is not FIRST:LAST, as in 32768:65535")
    if not first and not last:
        return ""
    if not 1 <= first <= last <= 65535:
        raise InvalidRequest("value", f"{value!r} must rise, from 1 to 65535")
    return f"{first}:{last}"


def interface_match(value: str) -> str:
    """The name of an interface, with a ``+`` at the end for all that begin so."""
    cleaned = value.strip()
    if not re.fullmatch(r"(?=.{1,15}$)[A-Za-z0-9_.:@-]+\+?", cleaned):
        raise InvalidRequest("value", f"{value!r} is not the name of an interface, or how names begin and a +")
    return cleaned


def pool(version: int) -> Callable[[str], str]:
    """A CIDR that holds a block at least, or ``none``."""

    def parse(value: str) -> str:
        from calico_core.model.addresses import parse_network
        from calico_core.model.pools import BLOCK_PREFIX

        cleaned = value.strip().lower()
        if cleaned == "none":
            return cleaned
        network = parse_network(cleaned, field="value", version=version)
        if network.prefixlen > BLOCK_PREFIX[version]:
            raise InvalidRequest("value", f"{network} holds no block: give /{BLOCK_PREFIX[version]} or shorter")
        return str(network)

    return parse


def as_number(value: str) -> str:
    from calico_core.model.bgp import parse_as_number

    parse_as_number(value, field="value")
    return value.strip()


def names(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
