"""What nvidia-smi tells of a GPU at one moment: clocks, power, what slows it down, who else is on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddpm_deploy.backends.base import device_index
from ddpm_deploy.backends.cuda.gpus import visible_uuids
from ddpm_deploy.bench.machine import UNKNOWN, run_quietly

FIELDS = {  # by nvidia-smi's names; clocks in MHz, memory in MiB, power in W
    "power_cap_w": "power.limit",
    "power_w": "power.draw",
    "sm_clock_mhz": "clocks.sm",
    "max_sm_clock_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "max_memory_clock_mhz": "clocks.max.mem",
    "temperature_c": "temperature.gpu",
    "memory_used_mib": "memory.used",
    "ecc": "ecc.mode.current",
    "ecc_errors": "ecc.errors.uncorrected.volatile.total",
    "mig": "mig.mode.current",
    "throttle": "clocks_event_reasons.active",
}
OLD_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}  # before driver 535
REASONS = {  # bits of NVML's clock event reasons
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
HARMLESS = ("idle",)


def snapshot(device: str, when: str) -> dict[str, Any] | None:
    """Everything now; None for a CPU, or where nvidia-smi is not there. when: in words, for the report."""
    index = device_index(device)
    if index is None:
        return None
    card = _card(index)
    facts = _ask(card, list(FIELDS.values()))
    return None if facts is None else {"when": when, **facts, "processes": _processes(card)}


def parse_facts(text: str, names: Sequence[str]) -> dict[str, Any] | None:
    """The line of one GPU, of nvidia-smi's fields `names`, under our names; None where the line is another."""
    line = text.strip().splitlines()[:1]
    cells = [cell.strip() for cell in line[0].split(",")] if line else []
    if len(cells) != len(names):
        return None
    ours = {theirs: name for name, theirs in FIELDS.items()}
    return {ours[name]: _value(ours[name], cell) for name, cell in zip(names, cells, strict=True)}


def parse_reasons(text: str) -> list[str] | None:
    """What slows the clocks down, from a bit mask such as 0x0000000000000004; None where it is none."""
    try:
        mask = int(text, 16)
    except ValueError:
        return None
    unknown = mask & ~sum(REASONS)
    named = [reason for bit, reason in REASONS.items() if mask & bit]
    return [*named, *([hex(unknown)] if unknown else [])]


def parse_processes(text: str) -> dict[str, Any]:
    """How many compute on the GPU, and the memory of all of them; neither who nor what."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    memory = [float(row[1]) for row in rows if len(row) == 2 and row[1].replace(".", "", 1).isdecimal()]
    return {"count": len(rows), "memory_mib": sum(memory)}


def slowed(facts: Sequence[dict[str, Any]]) -> list[str]:
    """Whatever slowed the clocks down at any of these moments, each once."""
    found = [reason for fact in facts for reason in fact.get("throttle") or ()]
    return [reason for reason in dict.fromkeys(found) if reason not in HARMLESS]


def _card(index: int) -> str:
    """How nvidia-smi, which heeds no CUDA_VISIBLE_DEVICES and has its own order, calls CUDA's device."""
    uuids = visible_uuids()
    return (uuids[index] if index < len(uuids) else "") or str(index)


def _ask(card: str, names: list[str]) -> dict[str, Any] | None:
    """All at once, or else one by one, as a driver that does not know one of the fields refuses them all."""
    facts = parse_facts(_query(card, names) or "", names)
    if facts is not None:
        return facts
    found: dict[str, Any] = {}
    for name in names:
        text = _query(card, [name]) or _query(card, [OLD_NAMES.get(name, name)]) or ""
        found |= parse_facts(text, [name]) or {}
    return found or None


def _query(card: str, names: Sequence[str]) -> str | None:
    what = [f"--id={card}", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    return run_quietly(["nvidia-smi", *what])


def _processes(card: str) -> dict[str, Any] | None:
    what = [f"--id={card}", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    text = run_quietly(["nvidia-smi", *what])
    return None if text is None else parse_processes(text)


def _value(name: str, cell: str) -> Any:
    if cell in UNKNOWN:
        return None
    if name == "throttle":
        return parse_reasons(cell)
    try:
        return float(cell)
    except ValueError:
        return cell
