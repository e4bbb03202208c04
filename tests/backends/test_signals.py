"""Signals still arrive after runtimes were opened and closed in a process with an alternate signal stack."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_deploy.backends import available_backends

CODE = """
import faulthandler, gc, os, signal, sys, time
from ddpm_deploy import Sampler
faulthandler.enable()
arrived = []
signal.signal(signal.SIGUSR1, lambda *_: arrived.append(1))
first, second = (Sampler.load(sys.argv[1], backend=sys.argv[2], threads=1) for _ in range(2))
for sampler in (first, second):
    sampler.sample(1, steps=2)
    sampler.close()
del first, second, sampler
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
time.sleep(0.01)
print(len(arrived))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGUSR1 here")
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_signals_arrive_after_a_backend_was_closed(
    name: str, tiny_bundle: Path, run_python: Callable[..., str]
) -> None:
    found = available_backends()[name]
    if not found.available:
        pytest.skip(f"{name}: {found.reason}")
    assert run_python(CODE, str(tiny_bundle), name) == "1\n"
