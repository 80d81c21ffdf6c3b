"""What each call of an Isolator does again and again, or gets again: who is told, and what."""

from __future__ import annotations

import contextlib
import importlib
import random
import re
import sys
import warnings

import numpy as np
import pytest

from aioisolate import ForkSafetyWarning, Isolator, PerformanceWarning
from tests.helpers import python
from tests.internals import Conversation, Kind, ProtocolError, encode, reseeder

pytestmark = pytest.mark.part(name="functions")

NONCE = b"8 bytes."


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module, import it, and take it away again after the test."""
    made = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        made.append(name)
        return importlib.import_module(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


GENERATORS = """
import random
from numpy import random as numbers
rng = numbers.default_rng()
again = rng
dice = random.Random()
secret = random.SystemRandom()
def draw():
    return dice.random(), rng.random(), random.random(), numbers.rand()
"""


@pytest.mark.one_loop
@pytest.mark.parametrize("start", ["zygote", "template"])
async def test_11_16_generators_that_children_get_copies_of(write_module, start):
    module = write_module("module_with_generators", GENERATORS)
    iso = Isolator(start, preload=["module_with_generators"] if start == "zygote" else ())
    with pytest.warns(ForkSafetyWarning) as told:
        await iso.__aenter__()
    async with contextlib.aclosing(iso):
        first = await iso.run(module.draw)
        second = await iso.run(module.draw)
    assert len(told) == 1
    assert told[0].filename == __file__
    said = re.findall(r"module_with_generators\.(\w+ \(\w+\))", str(told[0].message))
    assert sorted(said) == ["dice (Random)", "rng (Generator)"]
    # What it says: those repeat, and the modules' own do not.
    assert first[:2] == second[:2]
    assert len({*first[2:], *second[2:]}) == 4


@pytest.mark.one_loop
async def test_11_16_generators_of_libraries_that_nobody_has_named():
    with no_warning():
        async with Isolator(preload=["trio", "numpy.random", "random", "secrets"]) as iso:
            assert await iso.run(abs, -1) == 1


def test_11_16_torch_is_seeded_like_numpy():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    reseeder()()
    assert first != torch.rand(1)


def test_11_16_a_large_global_of_main_that_each_call_sends():
    result = python(
        """
        import asyncio, functools, sys
        from aioisolate import Isolator
        table = bytes(20_000_000)
        few = list(range(100))
        def look(i):
            return len(table)
        def look_through(i):
            return look(i)
        def add(data):
            return len(few) + len(data)
        async def main():
            async with Isolator() as iso:
                for i in range(2):
                    await iso.run(add, bytes(20_000_000))  # which is as asked
                for i in range(3):
                    print(i, file=sys.stderr)
                    await iso.run(look, i)
                for i in range(2):
                    await iso.run(functools.partial(look_through, i))
        asyncio.run(main())
        """
    )
    before, _, after = result.stderr.partition("\n1\n")
    assert "Warning" not in before
    told = re.findall(r"^<string>:(\d+): PerformanceWarning: (.*)$", after, re.MULTILINE)
    assert [line for line, _ in told] == ["6", "8"]  # where the functions are
    assert told[0][1].startswith("each call of look sends 20 MB to its child: global 'table' of")
    assert all(word in told[0][1] for word in ("preload", "Snapshot", "template", "about 20 MB"))


@pytest.mark.one_loop
async def test_11_16_a_large_variable_of_a_closure():
    table = np.zeros(3_000_000)
    async with Isolator() as iso:
        with no_warning():
            await iso.run(lambda: table.size)
        with pytest.warns(
            PerformanceWarning, match="variable 'table' of tests.contract.test_burden, which"
        ):
            await iso.run(lambda: table.size)


SLOW = """
import time
end = time.process_time() + 0.11
while time.process_time() < end:
    pass
def work():
    return 1
"""


@pytest.mark.one_loop
@pytest.mark.parametrize("warm", [0, 1])
async def test_11_16_imports_that_each_call_waits_for(write_module, tmp_path, warm):
    work = write_module("module_that_is_slow", SLOW).work
    async with Isolator(warm=warm) as iso:
        with no_warning():
            assert await iso.run(work) == 1  # once may be all
        with pytest.warns(PerformanceWarning) as told:
            assert await iso.run(work) == 1
        with no_warning():
            assert await iso.run(work) == 1
            assert await iso.run(work, codec="json") == 1  # of which only the result is read
    assert len(told) == 1
    assert told[0].filename == str(tmp_path / "module_that_is_slow.py")
    said = str(told[0].message)
    found = re.match(
        r"each call of work waits (\S+) s while its child imports module_that_is_slow: "
        r'Isolator\(preload=\["module_that_is_slow"\]\)',
        said,
    )
    assert float(found[1]) >= 0.1


@pytest.mark.one_loop
async def test_11_16_imports_that_a_preload_has_done(write_module):
    work = write_module("module_that_was_slow", SLOW).work
    with no_warning():
        async with Isolator(preload=["module_that_was_slow"]) as iso:
            for _ in range(2):
                assert await iso.run(work) == 1


@pytest.mark.one_loop
async def test_11_16_a_warning_that_is_an_error_is_the_calls(write_module):
    work = write_module("module_that_is_refused", SLOW).work
    async with Isolator() as iso:
        await iso.run(work)
        with no_warning(), pytest.raises(PerformanceWarning):
            await iso.run(work)
        assert await iso.run(work) == 1


def test_11_16_what_was_imported_is_told_once_and_before_the_call():
    told = encode(NONCE, Kind.IMPORTED, b"0.1 0.2\nthis,that")
    conversation = Conversation(NONCE)
    assert not conversation.receive(told)
    assert conversation.imported == b"0.1 0.2\nthis,that"
    with pytest.raises(ProtocolError, match="IMPORTED"):
        conversation.receive(told)
    conversation = Conversation(NONCE)
    with pytest.raises(ProtocolError, match="IMPORTED"):
        conversation.receive(encode(NONCE, Kind.STARTED) + told)


def test_11_16_a_generator_is_what_the_docs_say():
    assert isinstance(random.SystemRandom(), random.Random)  # so it has to be told apart
    assert np.random.rand.__self__ is np.random.mtrand._rand
    assert random.random.__self__ is random._inst
