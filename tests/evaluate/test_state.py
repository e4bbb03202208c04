"""An evaluation that was stopped goes on; one of something else is not mixed in."""

from __future__ import annotations

import numpy as np
import pytest

from ddpm_deploy.evaluate import state as module
from ddpm_deploy.evaluate.state import State

KEY = {"bundle": "sha256:a", "seed": 0, "interval": (1, 2)}


def test_what_was_saved_is_there_in_the_next_run(tmp_path):
    State.open(tmp_path, KEY).save("bound x/y", {"terms": np.arange(3)}, last=True)
    assert State.open(tmp_path, KEY).load("bound x/y")["terms"].tolist() == [0, 1, 2]
    assert State.open(tmp_path, KEY).load("other") is None


def test_a_state_of_another_bundle_is_refused_by_name_until_it_is_discarded(tmp_path):
    State.open(tmp_path, KEY).save("a", {"x": np.zeros(1)}, last=True)
    with pytest.raises(ValueError, match='with another bundle: "sha256:a", now "sha256:b"; give --restart'):
        State.open(tmp_path, {**KEY, "bundle": "sha256:b"})
    assert State.open(tmp_path, {**KEY, "bundle": "sha256:b"}, restart=True).load("a") is None


def test_saving_is_rare_but_for_the_last_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    state = State.open(tmp_path, KEY)
    state.save("a", {"x": np.zeros(1)})
    assert state.load("a") is None
    now[0] = module.SAVE_EVERY_S + 1
    state.save("a", {"x": np.zeros(1)})
    state.save("a", {"x": np.ones(1)})
    assert state.load("a")["x"] == 0
    state.save("a", {"x": np.ones(1)}, last=True)
    assert state.load("a")["x"] == 1


def test_without_a_folder_nothing_is_kept():
    state = State.open(None, KEY)
    state.save("a", {"x": np.zeros(1)}, last=True)
    assert state.load("a") is None
