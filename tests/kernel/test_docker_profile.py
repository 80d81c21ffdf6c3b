"""The filter that is made of Docker's profile is the one that a container runtime makes of it."""

from __future__ import annotations

import errno
import json
import sys

import pytest

from tests import syscall_prober
from tests.confined import in_child
from tests.docker_matrix import RECORDED, SEEN
from tests.docker_profile import PROFILE, allow_all_but, compile_profile
from tests.environments import ENVIRONMENTS
from tests.internals import NUMBERS, prctl, seccomp, syscalls

pytestmark = [
    pytest.mark.sole,
    pytest.mark.part(name="environments"),
    pytest.mark.one_loop,
    pytest.mark.skipif(
        sys.platform != "linux" or not seccomp.available(), reason="there are no filters here"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

_seen = json.loads(SEEN.read_text())["containers"]
# The highest number that the libseccomp of the recording knows.
_KNOWN = NUMBERS["x86_64"]["futex_requeue"]


def probed(*programs):
    """What the prober finds in a child, under these filters."""

    def install():
        prctl.set_no_new_privs()
        for program in programs:
            seccomp.install(program)

    return json.loads(in_child(lambda: json.dumps(dict(syscall_prober.probe())), install))


@pytest.mark.skipif(syscalls.machine() != "x86_64", reason="it was recorded on x86-64")
@pytest.mark.parametrize("name", RECORDED)
def test_it_refuses_what_a_container_runtime_refuses(name):
    capabilities = next(one.spec.capabilities for one in ENVIRONMENTS if one.name == name)
    free = probed()
    found = probed(compile_profile(capabilities, known=_KNOWN))
    refused = _seen[name]["refused"]
    for call, code in found.items():
        if call in refused:
            assert code == refused[call], call
        elif call not in _seen[name]["unknown"]:
            assert code == free[call], call
    # The three differ.
    assert len({tuple(sorted(one["refused"])) for one in _seen.values()}) == len(RECORDED)


@pytest.mark.parametrize("capabilities", [(), ("SYS_ADMIN", "SYS_PTRACE")])
@pytest.mark.parametrize("machine", NUMBERS)
def test_every_machine_has_one(machine, capabilities):
    program = compile_profile(capabilities, machine=machine)
    assert 0 < len(program) // 8 <= 4096


def test_changes():
    free = probed()
    changed = probed(compile_profile(changes={"memfd_create": errno.ENOSYS, "keyctl": 0}))
    assert changed["memfd_create(0, 0)"] == errno.ENOSYS
    assert changed["keyctl(-1, 0, 0, 0, 0)"] == free["keyctl(-1, 0, 0, 0, 0)"] != errno.EPERM
    some = probed(allow_all_but({"memfd_create": errno.EPERM}, user_namespaces=False))
    differ = {call for call in some if some[call] != free[call]}
    assert differ == {
        "memfd_create(0, 0)",
        "clone3(0, 0)",
        "clone(268435968, 0, 0, 0, 0)",
        "unshare(268435457,)",
    }


def test_the_profile_is_as_it_was_published():
    profile = json.loads(PROFILE.read_text())
    operations = {arg["op"] for rule in profile["syscalls"] for arg in rule.get("args", ())}
    assert operations == {f"SCMP_CMP_{name}" for name in ("EQ", "LT", "GT", "MASKED_EQ")}
    conditions = {
        key
        for rule in profile["syscalls"]
        for which in ("includes", "excludes")
        for key in rule.get(which, ())
    }
    assert conditions == {"caps", "arches", "minKernel"}
