"""Comparing runtimes with what export recorded in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Bundle, Condition, Manifest
from ddpm_deploy.errors import BundleError
from ddpm_deploy.guidance import Guidance
from ddpm_deploy.job import kept_channels
from ddpm_deploy.parity.measure import Comparison, clean_error, compare, relative_l2_each, replay
from ddpm_deploy.reference import REFERENCE_NAME, Reference, read_reference
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.schedule import x0_coefficients

Array = NDArray[Any]


def recorded_reference(bundle: Bundle) -> Reference:
    """The reference of a bundle, its shapes checked against the manifest.

    Raises ValueError where the bundle has none, BundleError where it does not fit.
    """
    if bundle.manifest.reference is None:
        raise ValueError("--against reference: the bundle records none; export it again, or use --against torch")
    reference = read_reference(bundle.open_bytes(bundle.manifest.reference))
    _check_shapes(reference, bundle.manifest)
    return reference


def compare_recorded(
    reference: Reference, samplers: Mapping[str, Sampler], peak: float, on_row: Callable[[], object] = lambda: None
) -> list[Comparison]:
    """Run every candidate along the recorded trajectory and at the recorded points; arguments as in `compare`."""
    run = reference.trajectory
    guidance = None if run.guidance is None else Guidance(run.guidance)
    denoisers = {name: sampler.denoiser(run.plan, run.conditions, guidance) for name, sampler in samplers.items()}
    manifest = next(iter(samplers.values())).manifest
    predictions = run.predictions[:, :, : kept_channels(manifest, run.plan)]
    results = compare(replay(predictions), denoisers, run.plan, run.x_T, run.noise, peak=peak, on_row=on_row)
    return [_with_points(result, reference, samplers[result.name]) for result in results]


def about_recorded(reference: Reference) -> dict[str, Any]:
    """What was compared, for a report."""
    run = reference.trajectory
    return {"solver": run.plan.solver, "nfe": run.plan.nfe, "samples": len(run.x_T), "points": len(reference.t)}


def _with_points(result: Comparison, reference: Reference, sampler: Sampler) -> Comparison:
    """The same with the errors at the recorded points."""
    (output,) = (spec.name for spec in sampler.backend.outputs)
    got = sampler.backend.run({"x": reference.x, "t": reference.t, **reference.conditions})[output]
    manifest, truth = sampler.manifest, reference.prediction
    predict = x0_coefficients(*manifest.schedule.at(reference.t), manifest.prediction)
    return replace(
        result,
        points_t=reference.t,
        points_relative_l2=relative_l2_each(got, truth),
        points_clean_relative_l2=clean_error(predict, reference.x, got, truth),
    )


def _check_shapes(reference: Reference, manifest: Manifest) -> None:
    shape = manifest.sample_shape
    channels = shape[0] * (2 if manifest.variance == "learned" else 1)
    _check("x", reference.x.shape[1:], shape)
    _check_guidance(reference, manifest)
    _check("prediction", reference.prediction.shape[1:], (channels, *shape[1:]))
    for prefix, given in (("", reference.conditions), ("trajectory.", reference.trajectory.conditions)):
        _check(f"{prefix}condition", tuple(sorted(given)), tuple(sorted(c.name for c in manifest.conditions)))
        for condition in manifest.conditions:
            _check_condition(f"{prefix}condition.{condition.name}", given[condition.name], condition)


def _check_guidance(reference: Reference, manifest: Manifest) -> None:
    if reference.trajectory.guidance is not None and not manifest.guided:
        raise BundleError(
            f"{REFERENCE_NAME}: trajectory.guidance: got weights, but no condition of bundle.json has a null; "
            "export the model again"
        )


def _check_condition(name: str, array: Array, condition: Condition) -> None:
    _check(name, (str(array.dtype), *array.shape[1:]), (str(np.dtype(condition.dtype)), *condition.shape))


def _check(name: str, got: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    if got != expected:
        raise BundleError(
            f"{REFERENCE_NAME}: {name}: got {got}, expected {expected} as in bundle.json; export the model again"
        )
