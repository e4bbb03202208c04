"""Plans in files: JSON and npz keep them without loss, and a damaged file is a ValueError."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from gaussian_mixture import levels, network
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ddpm_deploy.plan import Plan
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

LINEAR = NoiseSchedule.linear()
EPS = network(levels(LINEAR.alphas_cumprod))


# -- any plan survives its files -------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def plans(draw):
    N, K = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    names = draw(
        st.lists(st.text(max_size=6).filter(lambda name: name != "x"), min_size=K - 1, max_size=K - 1, unique=True)
    )
    bounds = st.tuples(st.floats(-1e9, 0) | st.just(-np.inf), st.floats(1e-3, 1e9) | st.just(np.inf))

    def table(*shape, elements=numbers):
        return draw(hnp.arrays(np.float64, shape, elements=elements))

    return Plan(
        solver=draw(st.text(max_size=10)),
        state=("x", *names),
        t=table(N, elements=st.floats(0, 1e300)),
        predict=table(N, 2),
        clip=np.array([draw(bounds) for _ in range(N)]),
        update=table(N, K, K + 3),
        log_variance=table(N, 2) if draw(st.booleans()) else None,
    )


def assert_same(a, b):
    assert a == b
    assert (a.solver, a.state) == (b.solver, b.state)
    for name in ("t", "predict", "clip", "update", "log_variance"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.tobytes() == theirs.tobytes(), name


@settings(max_examples=80, deadline=None)
@given(plans())
def test_json_round_trip_is_lossless(plan):
    text = plan.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert_same(Plan.from_json(text), plan)


@settings(max_examples=40, deadline=None)
@given(plan=plans(), ending=st.sampled_from([".json", ".npz"]))
def test_file_round_trip_is_lossless(plan, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / f"plan{ending}"
    plan.save(path)
    assert_same(Plan.load(path), plan)
    assert_same(Plan.load(str(path)), plan)


@pytest.mark.parametrize("variance", ["small", "learned"])
@pytest.mark.parametrize("ending", ["json", "npz"])
def test_a_loaded_plan_draws_the_same_samples(tmp_path, ending, variance):
    plan = make_plan("ddpm", LINEAR, steps=5, clip=(-1.0, 1.0), variance=variance)
    plan.save(tmp_path / f"plan.{ending}")
    rng = np.random.default_rng(0)
    x_T, z = rng.standard_normal((2, 4)), rng.standard_normal((5, 2, 4))

    def denoise(x, t):
        m = EPS(x, t)
        return m if variance == "small" else np.concatenate([m, np.tanh(x)], axis=1)

    loaded = Plan.load(tmp_path / f"plan.{ending}")
    np.testing.assert_array_equal(loaded.run(denoise, x_T, z), plan.run(denoise, x_T, z))


def test_plans_differ_by_any_table():
    plan = make_plan("dpmpp_2m", LINEAR, steps=3)
    assert plan == make_plan("dpmpp_2m", LINEAR, steps=3)
    assert plan != make_plan("dpmpp_2m", LINEAR, steps=3, prediction="v")
    assert plan != make_plan("dpmpp_2m", LINEAR, steps=3, clip=(-1, 1))
    assert plan != make_plan("dpmpp_2m", LINEAR, steps=4)
    assert make_plan("ddpm", LINEAR, steps=3) != make_plan("euler_a", LINEAR, steps=3)
    assert plan != "plan"


# -- damaged files ---------------------------------------------------------------------------------

TEXT = make_plan("dpmpp_2m", LINEAR, steps=2, clip=(-1.0, 1.0)).to_json()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def loads_or_value_error(read):
    """The plan, or None where a ValueError said no; any other exception fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except ValueError:
            return None


@settings(max_examples=150, deadline=None)
@given(st.text() | json_values.map(json.dumps))
def test_any_text_gives_a_value_error(text):
    assert loads_or_value_error(lambda: Plan.from_json(text)) is None


@settings(max_examples=200, deadline=None)
@given(field=st.sampled_from(sorted(json.loads(TEXT))), value=json_values)
def test_any_value_in_any_field_gives_a_plan_or_a_value_error(field, value):
    plan = loads_or_value_error(lambda: Plan.from_json(json.dumps({**json.loads(TEXT), field: value})))
    if plan is not None:
        plan.run(EPS, np.zeros((1, 2)), np.zeros(1))


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["t", "predict", "clip", "update", "log_variance"]),
    value=json_values,
    depth=st.integers(0, 2),
)
def test_any_value_in_any_cell_gives_a_plan_or_a_value_error(name, value, depth):
    data = json.loads(make_plan("ddpm", LINEAR, steps=2, variance="learned", clip=(-1.0, 1.0)).to_json())
    cell = data[name]
    for _ in range(depth):
        if isinstance(cell[0], list):
            cell = cell[0]
    cell[0] = value
    loads_or_value_error(lambda: Plan.from_json(json.dumps(data)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, r"expected a file with format 'ddpm-deploy plan'"),
        ({"format_version": 2}, r"got format version 2, expected 1"),
        ({"colour": 1}, r"unknown fields \['colour'\]"),
        ({"t": [float("nan"), 1]}, r"t\[0\] is not finite"),
        ({"t": [-1, -2]}, r"t: got -2.0, expected numbers >= 0"),
        ({"t": []}, r"predict: got shape \(2, 2\), expected \(0, 2\)"),
        ({"t": None}, r"t must be a list"),
        ({"t": [10**400, 1]}, r"t: expected a table of float64 numbers"),
        ({"t": ["1", "0"]}, r"t: expected a table of float64 numbers"),
        ({"t": [[1], [1, 2]]}, r"t: expected a table of float64 numbers"),
        ({"predict": None}, r"predict"),
        ({"update": None}, r"update"),
        ({"clip": None}, r"clip"),
        ({"clip": [[1, -1], [1, -1]]}, r"clip: the lower bound must be below the upper one"),
        ({"clip": [[0, 0], [1, -1]]}, r"clip: the lower bound must be below the upper one"),
        ({"clip": [[1], [2]]}, r"clip: got \[1\], expected \[lower, upper\]"),
        ({"state": ["x", "x"]}, r"state: got \('x', 'x'\)"),
        ({"state": ["y", "x"]}, r"state: got \('y', 'x'\)"),
        ({"state": "x"}, r"state a list of names"),
        ({"solver": 3}, r"solver must be a string"),
        ({"update": [[[1.0]]]}, r"update: got shape \(1, 1, 1\), expected \(2, 2, 5\)"),
        ({"log_variance": [[1.0, 2.0]]}, r"log_variance: got shape \(1, 2\), expected \(2, 2\)"),
    ],
)
def test_a_damaged_field_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps({**json.loads(TEXT), **change}))


@pytest.mark.parametrize("field", sorted(set(json.loads(TEXT)) - {"format", "format_version"}))
def test_a_missing_field_is_named(field):
    data = json.loads(TEXT)
    del data[field]
    with pytest.raises(ValueError, match=rf"missing fields \['{field}'\]"):
        Plan.from_json(json.dumps(data))


def test_every_truncated_json_file_is_a_value_error(tmp_path):
    path = tmp_path / "plan.json"
    for size in range(len(TEXT)):
        path.write_text(TEXT[:size])
        assert loads_or_value_error(lambda: Plan.load(path)) is None


def test_deeply_nested_and_not_utf8_files_are_value_errors(tmp_path):
    path = tmp_path / "plan.json"
    for content in (b"[" * 100_000, b"\xff\xfe\x00", b'{"a": "\xff"}'):
        path.write_bytes(content)
        assert loads_or_value_error(lambda: Plan.load(path)) is None


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "plan.npz"
    make_plan("ddim", LINEAR, steps=2, clip=(-1.0, 1.0)).save(path)
    return path


def test_every_truncated_npz_file_is_a_value_error(npz):
    content = npz.read_bytes()
    for size in range(0, len(content), 7):
        npz.write_bytes(content[:size])
        assert loads_or_value_error(lambda: Plan.load(npz)) is None


def test_a_flipped_bit_in_an_npz_file_is_a_value_error_or_harmless(npz):
    content, plan = npz.read_bytes(), Plan.load(npz)
    for position in range(0, len(content), 3):  # coprime to 8, so every bit has its turn
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        npz.write_bytes(damaged)
        found = loads_or_value_error(lambda: Plan.load(npz))
        assert found is None or found == plan, position


def npz_with(**tables):
    """The bytes of a well-formed archive with other members."""
    plan = make_plan("ddim", LINEAR, steps=2)
    head = {"format": "ddpm-deploy plan", "format_version": 1, "solver": "ddim", "state": ["x"]}
    members = {"head": np.array(json.dumps(head)), "t": plan.t, "predict": plan.predict, "clip": plan.clip}
    buffer = io.BytesIO()
    np.savez(buffer, **{**members, "update": plan.update, **tables})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npz_with(head=np.array("[1]")),
        npz_with(head=np.array("null")),
        npz_with(head=np.array("{")),
        npz_with(head=np.array(1.0)),
        npz_with(t=np.array(1.0)),
        npz_with(t=np.array(["a", "b"])),
        npz_with(t=np.array([1 + 2j, 1])),
        npz_with(t=np.zeros((2, 2))),
        npz_with(update=np.zeros(0)),
        npz_with(update=np.zeros((2, 1, 4), dtype=[("a", "f8")])),
        npz_with(predict=np.array(None, dtype=object)),
        npz_with(extra=np.zeros(1)),
        b"",
        b"PK\x05\x06" + bytes(18),
        b"not a zip file at all",
        b"\x93NUMPY\x01\x00" + bytes(64),
    ],
)
def test_well_formed_archives_of_other_things_are_value_errors(npz, content):
    npz.write_bytes(content)
    assert loads_or_value_error(lambda: Plan.load(npz)) is None


def test_a_pickle_is_never_opened(npz):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file was unpickled",))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(npz, "w") as archive:
        archive.writestr("head.npy", buffer.getvalue())
    assert loads_or_value_error(lambda: Plan.load(npz)) is None


def test_a_missing_file_is_an_os_error_and_another_ending_is_refused(tmp_path):
    for name in ("none.json", "none.npz"):
        with pytest.raises(FileNotFoundError):
            Plan.load(tmp_path / name)
    for use in (Plan.load, make_plan("ddim", LINEAR, steps=1).save):
        with pytest.raises(ValueError, match=r"plan.txt: expected a file ending in .json or .npz"):
            use(tmp_path / "plan.txt")
