from __future__ import annotations

import dataclasses
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_deploy.errors import BundleError
from ddpm_deploy.reference import Reference, Trajectory, read_reference, write_reference
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

PLANS = {name: make_plan(name, NoiseSchedule.linear(50), steps=3) for name in ("unipc", "ddpm")}


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def sample_reference(solver: str = "ddpm") -> Reference:
    plan = PLANS[solver]
    noise = None if plan.is_deterministic else numbers(3, 2, 4, 4)
    guidance = np.array([2.0, 0.5], np.float32)
    run = Trajectory(
        plan, numbers(2, 4, 4), noise, numbers(3, 2, 4, 4), numbers(4, 2, 4, 4), {"labels": np.array([1, 2])}, guidance
    )
    return Reference(numbers(5, 4, 4), np.arange(5, dtype=np.float32), numbers(5, 4, 4), run, {"labels": np.arange(5)})


DATA = write_reference(sample_reference())


@pytest.mark.parametrize("solver", PLANS)
def test_reference_survives_storage_without_loss(solver: str) -> None:
    reference = sample_reference(solver)
    read = read_reference(write_reference(reference))
    assert read.trajectory.plan == PLANS[solver]
    for name in ("x", "t", "prediction"):
        np.testing.assert_array_equal(getattr(read, name), getattr(reference, name))
    for name in ("x_T", "predictions", "states", "guidance"):
        np.testing.assert_array_equal(getattr(read.trajectory, name), getattr(reference.trajectory, name))
    assert (read.trajectory.noise is None) == (solver == "unipc")
    np.testing.assert_array_equal(read.conditions["labels"], np.arange(5))
    np.testing.assert_array_equal(read.trajectory.conditions["labels"], [1, 2])


def test_same_reference_gives_the_same_bytes() -> None:
    assert write_reference(sample_reference()) == DATA


def test_numpy_reads_it_too() -> None:
    with np.load(io.BytesIO(DATA), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["x"], sample_reference().x)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    good = sample_reference()
    run = good.trajectory
    wrong = [
        dataclasses.replace(good, t=good.t[:-1]),
        dataclasses.replace(good, x=good.x.astype(np.float64)),
        dataclasses.replace(good, prediction=good.prediction * np.nan),
        dataclasses.replace(good, conditions={"labels": np.arange(4)}),
        dataclasses.replace(good, trajectory=dataclasses.replace(run, noise=None)),
        dataclasses.replace(good, trajectory=dataclasses.replace(run, guidance=np.ones(3, np.float32))),
        dataclasses.replace(good, trajectory=dataclasses.replace(run, states=run.states[:-1])),
        dataclasses.replace(good, trajectory=dataclasses.replace(run, x_T=run.x_T[:0])),
    ]
    for reference in wrong:
        with pytest.raises(ValueError, match=r"got|missing"):
            write_reference(reference)


def archive(compression: int = zipfile.ZIP_STORED, **changes: bytes | None) -> bytes:
    """reference.npz with members replaced, added, or (None) left out."""
    with zipfile.ZipFile(io.BytesIO(DATA)) as source:
        members = {name: source.read(name) for name in source.namelist()}
    members |= {f"{name}.npy": data for name, data in changes.items() if data is not None}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        for name, data in members.items():
            if changes.get(name.removesuffix(".npy"), b"") is not None:
                target.writestr(name, data)
    return buffer.getvalue()


def npy(array: np.ndarray, **header: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    data = buffer.getvalue()
    for old, new in header.items():
        data = data.replace(old.encode(), new.encode())
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a zip file"),
        (DATA[:-30], "zip"),
        (archive(zipfile.ZIP_DEFLATED), "is compressed, expected a stored member"),
        (archive(x=None), "'x' is missing"),
        (archive(extra=npy(np.zeros(1))), "unknown member 'extra'"),
        (archive(x=npy(np.array([{}], dtype=object))), "got dtype object"),
        (archive(x=npy(np.zeros(5, dtype="<U3"))), "got dtype <U3"),
        (
            archive(x=npy(numbers(5, 4, 4)).replace(b"(5, 4, 4)", b"(9, 9, 9)")),
            "x.npy: got 320 bytes, expected float32",
        ),
        (archive(x=npy(numbers(5, 4, 4)).replace(b"(5, 4, 4)", b"(-5,4, 4)")), "got dtype float32, shape (-5, 4, 4)"),
        (archive(x=b"not an array"), "magic string"),
        (archive(t=npy(np.zeros(4, np.float32))), "t: got float32 (4,), expected finite float32 (5,)"),
        (archive(**{"trajectory.plan": npy(np.frombuffer(b"{}", np.uint8))}), "plan"),
    ],
)
def test_damaged_reference_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=r"^reference.npz: ") as caught:
        read_reference(data)
    assert message in str(caught.value)


def test_header_that_claims_terabytes_allocates_nothing() -> None:
    claim = npy(numbers(5, 4, 4)).replace(b"(5, 4, 4), }" + b" " * 8, b"(99999, 9999, 99), }")
    assert b"(99999, 9999, 99)" in claim
    with pytest.raises(BundleError, match=r"expected float32 of shape \(99999, 9999, 99\)"):
        read_reference(archive(x=claim))


@given(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_damage_ends_in_bundle_error_or_a_sound_reference(start: int, patch: bytes) -> None:
    try:
        reference = read_reference(DATA[:start] + patch + DATA[start + len(patch) :])
    except BundleError:
        return
    assert read_reference(write_reference(reference)).trajectory.plan == reference.trajectory.plan
