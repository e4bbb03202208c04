"""CIFAR-10's pickled files: read as published, refused when they want more than arrays."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy.errors import TrainingError
from ddpm_deploy.train import load_data
from ddpm_deploy.train.cifar10 import TRAIN_NAMES, read_cifar10


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_pickle(pixels: np.ndarray[Any, Any]) -> bytes:
    """The bytes that Python 2's cPickle, protocol 2, wrote for {"data": uint8 array, "labels": list}.

    Written opcode by opcode, because Python 3 stores text where Python 2 stored byte strings.
    """
    raw = pixels.tobytes()
    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    rows, columns = (b"J" + struct.pack("<i", number) for number in pixels.shape)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    array += b"(K\x01" + rows + columns + b"\x86" + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([i % 10]) for i in range(len(pixels))) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + labels + b"u."


def python3_pickle(pixels: np.ndarray[Any, Any]) -> bytes:
    return pickle.dumps({b"data": pixels, b"labels": [0] * len(pixels)}, protocol=2)


def some_pixels(seed: int, count: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def write_folder(folder: Path, batches: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in batches.items():
        (folder / name).write_bytes(data)
    return folder


def test_the_hand_written_pickle_is_one_that_python_reads() -> None:
    batch = pickle.loads(python2_pickle(some_pixels(0)), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], some_pixels(0))
    assert batch[b"labels"] == [0, 1, 2]


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_a_folder_of_batches_is_read_in_order_without_the_test_batch(tmp_path: Path, dump: Any, inner: str) -> None:
    batches = {name: dump(some_pixels(i)) for i, name in enumerate((*TRAIN_NAMES, "test_batch"))}
    write_folder(tmp_path / inner, batches)
    expected = np.concatenate([some_pixels(i) for i in range(5)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(read_cifar10(tmp_path)[0], expected)


def test_the_archive_is_read_without_unpacking(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for i, name in reversed(list(enumerate((*TRAIN_NAMES, "batches.meta")))):
            add_member(archive, name, python2_pickle(some_pixels(i)))
    expected = np.concatenate([some_pixels(i) for i in range(5)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(read_cifar10(path)[0], expected)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def test_a_partial_set_is_refused_by_the_names_that_are_missing(tmp_path: Path) -> None:
    write_folder(tmp_path, {name: python2_pickle(some_pixels(0)) for name in TRAIN_NAMES if name[-1] not in "24"})
    with pytest.raises(TrainingError, match="holds no data_batch_2, data_batch_4; give all"):
        read_cifar10(tmp_path)


def test_an_archive_with_a_batch_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar.tar", "w") as archive:
        for name in (*TRAIN_NAMES, "data_batch_3"):
            add_member(archive, name, python2_pickle(some_pixels(0)))
    with pytest.raises(TrainingError, match="holds data_batch_3 twice"):
        read_cifar10(tmp_path / "cifar.tar")


@pytest.mark.parametrize("key", ["data", b"data"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_in_column_order_and_of_either_numpy_are_read(tmp_path: Path, key: Any, protocol: int) -> None:
    data = pickle.dumps({key: np.asfortranarray(some_pixels(0)), b"labels": [0, 1, 2]}, protocol=protocol)
    if protocol == 2:  # where names are lines of text, and may change their length
        data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        assert b"numpy.core" in data
    write_folder(tmp_path, dict.fromkeys(TRAIN_NAMES, data))
    np.testing.assert_array_equal(read_cifar10(tmp_path)[0][:3], some_pixels(0).reshape(-1, 3, 32, 32))


def test_pixels_reach_the_network_in_range(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(TRAIN_NAMES, python2_pickle(some_pixels(0))))
    data = load_data(f"cifar10:{tmp_path}")
    sample = data.dataset[1]
    assert (data.sample_shape, tuple(sample.shape)) == ((3, 32, 32), (3, 32, 32))
    np.testing.assert_allclose(sample.numpy().reshape(-1), some_pixels(0)[1] / 127.5 - 1, atol=1e-6)


def test_labels_come_with_their_names_when_they_are_asked_for(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(TRAIN_NAMES, python2_pickle(some_pixels(0))))
    data = load_data(f"cifar10:{tmp_path}", labels=True)
    (condition,) = data.conditions
    assert (condition.classes[0], condition.classes[9], condition.null) == ("airplane", "truck", 10)
    x, given = data.dataset[4]
    assert (tuple(x.shape), given["labels"].item()) == ((3, 32, 32), 1)


class Malicious:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call = (call, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "attack",
    [
        lambda canary: Malicious(os.system, f"touch {canary}"),
        lambda canary: Malicious(eval, f"open({str(canary)!r}, 'w')"),
        lambda canary: Malicious(open, str(canary), "w"),
        lambda canary: Malicious(np.memmap, str(canary), "uint8", "w+", 0, (4,)),
        lambda canary: Malicious(np.load, str(canary)),
    ],
)
def test_a_pickle_that_calls_anything_is_refused_before_it_runs(tmp_path: Path, attack: Any) -> None:
    canary = tmp_path / "canary"
    write_folder(tmp_path / "data", {"data_batch_1": pickle.dumps({b"data": attack(canary)}, protocol=2)})
    with pytest.raises(TrainingError, match=r"data_batch_1: the pickle asks for .*; do not trust it"):
        read_cifar10(tmp_path / "data")
    assert not canary.exists()


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
BYTES_DTYPE = b"cnumpy\ndtype\n(U\x02V8K\x00K\x01tR"
OBJECT_STATE = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
OBJECT_DTYPE = b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR"
REFERENCE_STATE = b"(K\x03U\x01|N(X\x01\x00\x00\x00at}X\x01\x00\x00\x00a(" + OBJECT_DTYPE + b"K\x00tsK\x08K\x01K\x3ftb"
FOREIGN = b"U\x08AAAAAAAA"


@pytest.mark.parametrize(
    "data",
    [
        # an array of V8 over raw bytes, whose dtype is then altered into one that holds references
        ARRAY + b"(K\x01(K\x01t" + BYTES_DTYPE + b"q\x01\x89" + FOREIGN + b"tbh\x01" + REFERENCE_STATE + b"0",
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR" + OBJECT_STATE,
        OBJECT_DTYPE,
        ARRAY + b"(K\x01(J\xff\xff\xff\x7ft" + b"cnumpy\ndtype\n(U\x02u1tR\x89" + FOREIGN + b"tb",
        ARRAY + b"(K\x01(J\xff\xff\xff\xffJ\xf8\xff\xff\xfft" + b"cnumpy\ndtype\n(U\x02u1tR\x89" + FOREIGN + b"tb",
        b"cnumpy\nndarray\n(K\x08tR",
        b"cnumpy\ndtype\n}U\x07kindU\x01xsb",
        b"c_codecs\nencode\nN}U\x0c__defaults__NsU\x01x\x86b",
    ],
)
def test_a_pickle_that_forges_an_array_is_refused_without_a_crash(tmp_path: Path, data: bytes) -> None:
    write_folder(tmp_path, {"data_batch_1": b"\x80\x02}U\x04data" + data + b"s."})
    code = (
        "import sys; from pathlib import Path; from ddpm_deploy.train.cifar10 import read_cifar10\n"
        "try: read_cifar10(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("TrainingError ")
    assert "data_batch_1: is no file of CIFAR-10" in result.stdout


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}",
        b"no pickle",
        python2_pickle(some_pixels(0))[:-2000],
        pickle.dumps([1, 2]),
        pickle.dumps({b"labels": [0]}),
        pickle.dumps({b"data": np.zeros((2, 3072))}, protocol=2),
        pickle.dumps({b"data": np.zeros((2, 100), np.uint8)}, protocol=2),
        pickle.dumps({b"data": some_pixels(0)}, protocol=2),
        pickle.dumps({b"data": some_pixels(0), b"labels": [0, 1]}, protocol=2),
        pickle.dumps({b"data": some_pixels(0), b"labels": [0, 1, 10]}, protocol=2),
        pickle.dumps({b"data": some_pixels(0), b"labels": [0, 1, True]}, protocol=2),
    ],
)
def test_a_file_that_is_no_batch_is_named(tmp_path: Path, data: bytes) -> None:
    write_folder(tmp_path, {"data_batch_3": data})
    with pytest.raises(TrainingError, match=r"data_batch_3: .*download it again"):
        read_cifar10(tmp_path)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises((TrainingError, OSError), match=r"cifar.tar.gz"):
        read_cifar10(path)
