from __future__ import annotations

import functools
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from calico_cni.cli import below, cni
from calico_cni.install import install, list_text, self_test, shim_text, states, uninstall
from calico_cni.trial import reason_against
from calico_core.cli.main import calicoctl, globals_first
from calico_core.errors import InvalidRequest, ToolFailed
from calico_core.interfaces.integration import Call, CallReply
from calico_core.model.keys import ReadyKey
from tests.doubles.cni import CniSetup
from tests.doubles.node_socket import serving
from tests.unit.calico_cni.conftest import told

install_python = functools.partial(install, shim="python")


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "bin", tmp_path / "net.d"


def snapshot(*folders: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for folder in folders for path in folder.iterdir()}


def test_install_writes_executables_and_then_the_list(directories: tuple[Path, Path]) -> None:
    bin_directory, config_directory = directories
    written = install_python(*directories, socket="/run/x/node.sock", network="blue", has_port_mappings=True)
    assert [path.name for path in written] == ["calico", "calico-ipam", "10-calico.conflist"]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in written} == {
        "calico": 0o755,
        "calico-ipam": 0o755,
        "10-calico.conflist": 0o600,
    }
    text = (bin_directory / "calico").read_text()
    assert 'SOCKET = "/run/x/node.sock"' in text
    assert 'RUN_DIRECTORY = "/run/x"' in text
    assert f'PYTHON = "{sys.executable}"' in text
    shape = json.loads((config_directory / "10-calico.conflist").read_text())
    assert (shape["name"], shape["cniVersion"]) == ("blue", "1.0.0")
    assert [plugin["type"] for plugin in shape["plugins"]] == ["calico", "portmap"]
    assert shape["plugins"][0]["ipam"] == {"type": "calico-ipam"}


def test_installing_again_touches_nothing(directories: tuple[Path, Path]) -> None:
    install_python(*directories)
    before = snapshot(*directories)
    assert install_python(*directories) == ()
    assert snapshot(*directories) == before


def test_another_socket_or_a_changed_file_is_put_right(directories: tuple[Path, Path]) -> None:
    install_python(*directories)
    assert len(install_python(*directories, socket="/run/y/node.sock")) == 2
    (directories[0] / "calico").chmod(0o700)
    assert [path.name for path in install_python(*directories, socket="/run/y/node.sock")] == ["calico"]


def test_a_running_executable_is_replaced(directories: tuple[Path, Path]) -> None:
    install_python(*directories)
    program = directories[0] / "calico"
    running = subprocess.Popen([str(program)], env={"CNI_COMMAND": "ADD"}, stdin=subprocess.PIPE)
    try:
        assert program in install_python(*directories, socket="/run/z/node.sock")
    finally:
        running.kill()
        running.communicate()


def test_the_list_does_not_appear_when_the_self_test_fails(directories: tuple[Path, Path]) -> None:
    with pytest.raises(ToolFailed):
        install_python(*directories, interpreter="/bin/false")
    assert list(directories[1].iterdir()) == []


def test_a_program_that_is_not_ours_fails_the_self_test(tmp_path: Path) -> None:
    for text in ("#!/bin/sh\necho '{}'\n", "#!/bin/sh\necho hello\n", "#!/does/not/exist\n"):
        path = tmp_path / "calico"
        path.write_text(text)
        path.chmod(0o755)
        with pytest.raises(ToolFailed):
            self_test(path)


def test_directories_that_others_may_change_are_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    everybody = tmp_path / "everybody"
    everybody.mkdir()
    everybody.chmod(0o777)
    below = everybody / "below"
    for bad in (link, everybody, below):
        for pair in ((bad, tmp_path / "other"), (tmp_path / "other", bad)):
            with pytest.raises(InvalidRequest, match="everybody" if bad == below else bad.name):
                install_python(*pair)
    assert list(real.iterdir()) == []
    assert list(everybody.iterdir()) == []
    assert not (tmp_path / "other" / "calico").exists()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"socket": "node.sock"}, "socket"),
        ({"python": "python3"}, "python"),
        ({"interpreter": "python3"}, "interpreter"),
        ({"interpreter": "/opt/my python/bin/python3"}, "interpreter"),
        ({"network": "a/b"}, "network"),
        ({"cni_version": "0.2.0"}, "cni_version"),
        ({"cni_version": "2.0.0"}, "cniVersion"),
        ({"config_name": "../10-calico.conflist"}, "config_name"),
        ({"config_name": "10-calico.yaml"}, "config_name"),
    ],
)
def test_unusable_arguments_change_nothing(directories: tuple[Path, Path], options: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        install_python(*directories, **options)  # type: ignore[arg-type]
    assert not any(directory.exists() for directory in directories)


def test_uninstall_takes_what_is_ours_and_may_be_repeated(directories: tuple[Path, Path]) -> None:
    install_python(*directories)
    assert [path.name for path in uninstall(*directories)] == ["10-calico.conflist", "calico", "calico-ipam"]
    assert uninstall(*directories) == ()


def test_uninstall_leaves_another_plugin_of_that_name(directories: tuple[Path, Path]) -> None:
    install_python(*directories)
    foreign = directories[0] / "calico"
    foreign.write_bytes(b"\x7fELF")
    assert foreign not in uninstall(*directories)
    assert foreign.exists()


def test_states(directories: tuple[Path, Path]) -> None:
    def by_name() -> list[str]:
        return [each.state for each in states(*directories)]

    assert by_name() == ["missing", "missing", "missing"]
    install_python(*directories)
    assert by_name() == ["current", "current", "current"]
    install_python(*directories, socket="/run/other/node.sock")
    assert by_name() == ["outdated", "outdated", "current"]
    (directories[0] / "calico").write_bytes(b"\x7fELF")
    assert by_name() == ["foreign", "outdated", "current"]


@pytest.mark.parametrize(
    "text",
    ['{"broken', "[]", '{"plugins": null}', '{"plugins": [{"type": "bridge"}]}', '{"plugins": ["calico"]}', "\udcff"],
)
def test_a_list_that_is_not_ours(directories: tuple[Path, Path], text: str) -> None:
    install_python(*directories)
    network_list = directories[1] / "10-calico.conflist"
    network_list.write_bytes(text.encode(errors="surrogateescape"))
    assert states(*directories)[-1] == (network_list, "foreign")
    assert network_list not in uninstall(*directories)
    assert network_list.exists()


def test_nothing_is_left_beside_the_files(directories: tuple[Path, Path]) -> None:
    install_python(*directories)
    assert sorted(path.name for path in directories[0].iterdir()) == ["calico", "calico-ipam"]
    assert [path.name for path in directories[1].iterdir()] == ["10-calico.conflist"]


def test_the_executable_is_valid_whatever_the_paths_hold() -> None:
    text = shim_text(socket='/run/"odd\\path/node.sock', python="/usr/bin/python3")
    space: dict[str, object] = {"__name__": "shim"}
    exec(compile(text, "calico", "exec"), space)
    assert space["SOCKET"] == '/run/"odd\\path/node.sock'
    assert space["RUN_DIRECTORY"] == '/run/"odd\\path'


@pytest.mark.parametrize("version", ["0.3.0", "0.4.0", "1.1.0"])
def test_the_list_of_any_version_that_has_lists(version: str) -> None:
    assert json.loads(list_text("net1", version))["cniVersion"] == version


def test_the_plugins_behind_ours() -> None:
    shape = json.loads(list_text("net1", "1.0.0", has_port_mappings=True, has_bandwidth=True))
    assert shape["plugins"][0]["capabilities"] == {"ips": True, "mac": True, "dns": True}, "what we honour"
    assert [(each["type"], each["capabilities"]) for each in shape["plugins"][1:]] == [
        ("portmap", {"portMappings": True}),
        ("bandwidth", {"bandwidth": True}),
    ]


# --- commands --------------------------------------------------------------------------------------------------


def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        calicoctl, globals_first(["cni", arguments[0], "--root", str(tmp_path), *arguments[1:]])
    )
    return told(result)


def test_a_root_is_as_safe_as_who_named_it_says(tmp_path: Path) -> None:
    """An image that is being made may lie anywhere; what is in it is a host's."""
    image = tmp_path / "everybody" / "image"
    image.mkdir(parents=True)
    (tmp_path / "everybody").chmod(0o777)
    assert run(image, "install", "--shim", "python")[0] == 0
    (image / "etc" / "cni").chmod(0o777)
    code, output = run(image, "install", "--shim", "python")
    assert (code, f"{image / 'etc' / 'cni'} is writable by everybody" in output) == (2, True)


def test_the_commands_below_a_root(tmp_path: Path) -> None:
    assert run(tmp_path, "status")[0] == 1
    code, output = run(tmp_path, "install")
    assert code == 0
    assert str(tmp_path / "opt/cni/bin/calico-ipam") in output
    assert (tmp_path / "etc/cni/net.d/10-calico.conflist").exists()
    assert run(tmp_path, "install") == (0, "everything is installed already\n")
    code, output = run(tmp_path, "status", "-o", "json", "--socket", str(tmp_path / "node.sock"))
    assert code == 1
    assert json.loads(output)[str(tmp_path / "node.sock")] == "missing"
    assert run(tmp_path, "uninstall")[0] == 0
    assert run(tmp_path, "uninstall") == (0, "nothing is installed\n")


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    code, output = run(tmp_path, "install", "--network", "a b")
    assert code == 2
    assert output.startswith("calicoctl: network: ")
    assert run(tmp_path, "install", "--cni-version", "9.9")[0] == 2


def test_below() -> None:
    assert below(Path("/host"), Path("/opt/cni/bin")) == Path("/host/opt/cni/bin")
    assert below(Path("/"), Path("/opt/cni/bin")) == Path("/opt/cni/bin")
    assert below(Path("/host"), Path("bin")) == Path("bin")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")
@pytest.mark.parametrize("shim", ["auto", "compiled"])
def test_the_compiled_shim(directories: tuple[Path, Path], shim: str) -> None:
    program = directories[0] / "calico"
    assert len(install(*directories, socket="/run/x/node.sock", shim=shim)) == 3
    assert program.read_bytes()[:4] == b"\x7fELF"
    assert b"/run/x/node.sock" in program.read_bytes()
    found = states(*directories, socket="/run/x/node.sock")
    assert {each.state for each in found} == {"current"}
    before = snapshot(*directories)
    assert install(*directories, socket="/run/x/node.sock", shim=shim) == ()
    assert snapshot(*directories) == before
    assert states(*directories, socket="/run/y/node.sock")[0].state == "outdated"
    program.chmod(0o700)
    assert install(*directories, socket="/run/x/node.sock", shim=shim) == (program,)
    assert len(install(*directories, socket="/run/x/node.sock", shim="python")) == 2
    assert program.read_bytes()[:2] == b"#!"
    assert len(uninstall(*directories)) == 3


@pytest.mark.parametrize("reason", ["no compiler", "the compiler fails", "the path is too long"])
def test_where_it_cannot_be_compiled(
    directories: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    socket = f"/run/{'x' * 110}.sock" if reason == "the path is too long" else "/run/x.sock"
    if reason != "the path is too long":
        tools = tmp_path / "tools"
        tools.mkdir()
        monkeypatch.setenv("PATH", str(tools))
        if reason == "the compiler fails":
            (tools / "cc").write_text("#!/bin/sh\nexit 1\n")
            (tools / "cc").chmod(0o755)
    with pytest.raises(ToolFailed):
        install(*directories, socket=socket, shim="compiled")
    assert list(directories[0].iterdir()) == []
    install(*directories, socket=socket)
    assert (directories[0] / "calico").read_bytes()[:2] == b"#!"


def test_an_unknown_shim(directories: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidRequest, match="shim"):
        install(*directories, shim="bash")


def test_the_list_of_an_earlier_installation_goes_once_ours_stands(directories: tuple[Path, Path]) -> None:
    directories[1].mkdir(parents=True, exist_ok=True)
    old, other = (directories[1] / name for name in ("05-old.conf", "20-other.conflist"))
    for path in (old, other):
        path.write_text("{}")
    with pytest.raises(ToolFailed):
        install_python(*directories, interpreter="/bin/false", old_config_name=old.name)
    assert old.exists()
    for _ in range(2):  # it may be gone already
        install_python(*directories, old_config_name=old.name)
        assert sorted(path.name for path in directories[1].iterdir()) == ["10-calico.conflist", other.name]


@pytest.mark.parametrize("name", ["../x.conf", ".x.conf", "10-calico.conflist", "calico-kubeconfig"])
def test_an_old_name_that_is_none_changes_nothing(directories: tuple[Path, Path], name: str) -> None:
    install_python(*directories)
    before = snapshot(*directories)
    with pytest.raises(InvalidRequest, match="old_config_name"):
        install_python(*directories, old_config_name=name)
    assert snapshot(*directories) == before


# --- several directories, and executables that others look after -------------------------------------------------

UNWRITABLE = Path("/sys/kernel")  # no file can be made there, by root either


def installed(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_each_directory_that_can_be_written(tmp_path: Path) -> None:
    said: list[str] = []
    first, second, lists = (tmp_path / name for name in ("first", "second", "net.d"))
    written = install_python([first, UNWRITABLE, UNWRITABLE / "below", second], lists, tell=said.append)
    assert len(written) == 5
    assert installed(first) == installed(second) == ["calico", "calico-ipam"]
    assert [each.partition(":")[0] for each in said] == [f"left out {UNWRITABLE}", f"left out {UNWRITABLE}/below"]
    assert {each.state for each in states([first, second], lists)} == {"current"}
    assert len(uninstall([first, second], lists)) == 5


def test_none_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"no directory can be written: {UNWRITABLE}"):
        install_python([UNWRITABLE], tmp_path / "net.d")
    assert list(tmp_path.iterdir()) == []


def test_executables_that_are_left_as_they_are(directories: tuple[Path, Path]) -> None:
    bin_directory, lists = directories
    written = install_python(*directories, skipped=["calico", "flannel", ""])
    assert [path.name for path in written] == ["calico-ipam", "10-calico.conflist"]
    uninstall(*directories)
    bin_directory.mkdir(exist_ok=True)
    (bin_directory / "calico").write_text("#!/bin/sh\nexit 1\n")
    install_python(*directories, skipped=["calico"])
    assert (bin_directory / "calico").read_text() == "#!/bin/sh\nexit 1\n"
    uninstall(*directories)
    assert [path.name for path in install_python(UNWRITABLE, lists, skipped=["calico", "calico-ipam"])] == [
        "10-calico.conflist"
    ]


def an_older_plugin(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\necho \'{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "1.0.0"]}\'\n')
    path.chmod(0o755)


def test_without_updates_both_must_be_there(tmp_path: Path, directories: tuple[Path, Path]) -> None:
    bin_directory, lists = directories
    elsewhere = tmp_path / "elsewhere"
    an_older_plugin(bin_directory / "calico")
    an_older_plugin(elsewhere / "calico-ipam")
    before = snapshot(bin_directory, elsewhere)
    with pytest.raises(InvalidRequest, match=f"UPDATE_CNI_BINARIES: is false, and {bin_directory}/calico-ipam"):
        install_python([bin_directory, elsewhere], lists, may_update=False)
    assert not lists.exists()
    an_older_plugin(elsewhere / "calico")
    before = snapshot(bin_directory, elsewhere)
    for expected in (["10-calico.conflist"], []):
        written = install_python([bin_directory, elsewhere], lists, may_update=False)
        assert [path.name for path in written] == expected
    assert snapshot(bin_directory, elsewhere) == before


def test_without_updates_they_must_run(directories: tuple[Path, Path]) -> None:
    for program in ("calico", "calico-ipam"):
        an_older_plugin(directories[0] / program)
    (directories[0] / "calico-ipam").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ToolFailed):
        install_python(*directories, may_update=False)
    assert not (directories[1] / "10-calico.conflist").exists()


# --- certificates and keys ---------------------------------------------------------------------------------------


def a_secret(directory: Path) -> Path:
    """As a kubelet mounts one: links to links, beside hidden entries."""
    (directory / "..2026").mkdir(parents=True)
    for name in ("etcd-ca", "etcd-cert", "etcd-key"):
        (directory / "..2026" / name).write_text(f"{name} of now")
    (directory / "..data").symlink_to("..2026")
    for name in ("etcd-ca", "etcd-cert", "etcd-key"):
        (directory / name).symlink_to(f"..data/{name}")
    (directory / ".hidden").write_text("no")
    return directory


def test_copies_of_certificates_and_keys(tmp_path: Path, directories: tuple[Path, Path]) -> None:
    secret = a_secret(tmp_path / "secret")
    copies = directories[1] / "calico-tls"
    written = install_python(*directories, tls_assets=secret)
    assert [path.name for path in written][2:] == ["etcd-ca", "etcd-cert", "etcd-key", "10-calico.conflist"]
    assert installed(copies) == ["etcd-ca", "etcd-cert", "etcd-key"]
    assert {stat.S_IMODE(path.lstat().st_mode) for path in copies.iterdir()} == {0o600}
    assert stat.S_IMODE(copies.stat().st_mode) == 0o700
    before = snapshot(copies)
    assert install_python(*directories, tls_assets=secret) == ()
    assert snapshot(copies) == before
    (secret / "..2026" / "etcd-key").write_text("a new one")
    assert install_python(*directories, tls_assets=secret) == (copies / "etcd-key",)
    assert (copies / "etcd-key").read_text() == "a new one"
    assert {path.name for path in uninstall(*directories)} >= {"etcd-ca", "etcd-cert", "etcd-key"}
    assert not copies.exists()


def test_a_secret_that_is_not_there(tmp_path: Path, directories: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidRequest, match="TLS_ASSETS_DIR"):
        install_python(*directories, tls_assets=tmp_path / "secret")
    assert not (directories[1] / "10-calico.conflist").exists()


# --- what the reference installer's manifests set -----------------------------------------------------------------


def test_the_variables_of_a_manifest(tmp_path: Path) -> None:
    secret = a_secret(tmp_path / "secret")
    plugin = {"type": "calico", "ipam": {"type": "calico-ipam"}, "etcd_key_file": "__ETCD_KEY_FILE__"}
    plugin |= {"etcd_ca_cert_file": "__ETCD_CA_CERT_FILE__", "kubernetes": {"kubeconfig": "__KUBECONFIG_FILEPATH__"}}
    inline = {"name": "inline", "cniVersion": "1.0.0", "plugins": [plugin]}
    environment = {
        "CNI_NETWORK_CONFIG": json.dumps(inline),
        "CNI_NET_DIR": "/etc/other/net.d",
        "CNI_CONF_NAME": "05-other.conflist",
        "TLS_ASSETS_DIR": str(secret),
        "SKIP_CNI_BINARIES": "calico-ipam, flannel",
        "CNI_CONF_ETCD_CA": "/by/hand",
    }
    arguments = ["install", "--root", str(tmp_path), "--shim", "python"]
    done = CliRunner().invoke(cni, arguments, env=environment)
    assert done.exit_code == 0, done.output
    assert installed(tmp_path / "opt/cni/bin") == ["calico"]
    target = tmp_path / "etc/other/net.d/05-other.conflist"
    shape = json.loads(target.read_text())
    assert shape["name"] == "inline"
    assert shape["plugins"][0]["etcd_key_file"] == "/etc/other/net.d/calico-tls/etcd-key"
    assert shape["plugins"][0]["etcd_ca_cert_file"] == "/by/hand"
    assert shape["plugins"][0]["kubernetes"] == {"kubeconfig": "/etc/other/net.d/calico-kubeconfig"}
    assert "of now" not in done.output

    template = tmp_path / "template"
    template.write_text(json.dumps({**inline, "name": "from-a-file"}))
    environment |= {"CNI_NETWORK_CONFIG_FILE": str(template), "UPDATE_CNI_BINARIES": "false"}
    done = CliRunner().invoke(cni, arguments, env=environment)
    assert done.exit_code == 0, done.output
    assert json.loads(target.read_text())["name"] == "from-a-file"
    environment["SKIP_CNI_BINARIES"] = ""
    done = CliRunner().invoke(cni, arguments, env=environment)
    code, output = told(done)
    assert (code, "calico-ipam is missing" in output) == (2, True)

    before = target.read_bytes()
    environment |= {"CNI_NETWORK_CONFIG_FILE": "", "CNI_NETWORK_CONFIG": "{", "UPDATE_CNI_BINARIES": "true"}
    done = CliRunner().invoke(cni, arguments, env=environment)
    code, output = told(done)
    assert (code, "not JSON" in output) == (2, True)
    assert target.read_bytes() == before


# --- the test of what is installed ----------------------------------------------------------------------------------

LIST = Path("etc/cni/net.d/10-calico.conflist")


class Node:
    """Answers as the real integration does; ``needed`` is how often it is not ready first."""

    def __init__(self, needed: int = 0) -> None:
        self.needed = needed
        self.calls: list[Call] = []
        self._setup = CniSetup(-1)
        self._setup.records.put(ReadyKey(), "false")

    def answer(self, call: Call) -> CallReply:
        self.calls.append(call)
        if len(self.calls) > self.needed:
            self._setup.records.put(ReadyKey(), "true")
        return self._setup.integration.handle(call)


@pytest.mark.parametrize(
    ("test", "needed", "calls", "code", "says", "is_written"),
    [
        ("no", 9, 0, 0, "", True),
        ("warn", 0, 1, 0, "", True),
        ("require", 0, 1, 0, "", True),
        ("require", 1, 2, 0, "", True),
        ("warn", 9, 1, 0, "warning: no container would be attached now: calico -t: ", True),
        ("require", 9, 1, 3, "the list is not written", False),
    ],
)
def test_whether_containers_would_be_attached(
    tmp_path: Path, test: str, needed: int, calls: int, code: int, says: str, is_written: bool
) -> None:
    node = Node(needed)
    wait_s = "0" if needed == 9 else "60"
    where = ("--socket", str(tmp_path / "node.sock"), "--shim", "python", "--network", "blue")
    with serving(tmp_path / "node.sock", node.answer):
        found, output = run(tmp_path, "install", *where, "--test", test, "--test-wait", wait_s)
    assert (found, says in output, (tmp_path / LIST).exists()) == (code, True, is_written), output
    assert len(node.calls) == calls
    for call in node.calls:
        assert (call.environment["CNI_COMMAND"], json.loads(call.stdin)["name"]) == ("TEST", "blue")
    if not says:
        assert "warning" not in output


def test_a_list_that_stands_stays_when_the_test_fails(tmp_path: Path) -> None:
    where = ("--socket", str(tmp_path / "node.sock"), "--shim", "python", "--python", "/does/not/exist")
    assert run(tmp_path, "install", *where)[0] == 0
    before = (tmp_path / LIST).read_bytes()
    failing = (*where, "--network", "blue", "--test", "require", "--test-wait", "0")
    code, output = run(tmp_path, "install", *failing)
    assert (code, "the node does not answer" in output) == (3, True)
    assert (tmp_path / LIST).read_bytes() == before


@pytest.mark.parametrize(("program", "kind"), [("calico", "calico"), ("calico-ipam", "bridge"), ("", "portmap")])
def test_which_executable_is_asked(tmp_path: Path, program: str, kind: str) -> None:
    """With each plugin's part of the list, as a runtime would hand it over."""
    for name in ("calico", "calico-ipam"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nprintf \'{{"msg": "%s %s"}}\' {name} "$(tr -d \'"\')"\nexit 1\n')
        path.chmod(0o755)
    ipam = {} if kind == "portmap" else {"ipam": {"type": "calico-ipam"}}
    shape = {"cniVersion": "1.0.0", "name": "blue", "plugins": [{"type": kind, **ipam}]}
    executables = [tmp_path / "calico", tmp_path / "calico-ipam"]
    reason = reason_against(executables, json.dumps(shape).encode(), {"PATH": os.environ["PATH"]}, wait_s=0)
    expected = f"{program} -t: {program} {{cniVersion: 1.0.0, name: blue, type: {kind}, ipam: {{type: calico-ipam}}}}"
    assert reason == (expected if program else "")


@pytest.mark.parametrize(("script", "says"), [("echo bad >&2; exit 3", "bad"), ("exit 3", "status 3"), ("exit 0", "")])
def test_an_executable_that_answers_oddly(tmp_path: Path, script: str, says: str) -> None:
    path = tmp_path / "calico"
    path.write_text(f"#!/bin/sh\ncat >/dev/null\n{script}\n")
    path.chmod(0o755)
    reason = reason_against([path], list_text("blue", "1.0.0"), {"PATH": os.environ["PATH"]}, wait_s=0)
    assert reason == (f"calico -t: {says}" if says else "")
