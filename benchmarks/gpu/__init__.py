"""One command that measures everything on an NVIDIA GPU within minutes: `python -m benchmarks.gpu --out FILE.json`.

Parity first, then whole samplings beside their peers in interleaved rounds, in groups of which the most important come
first. What is missing or does not fit into the time is skipped with its reason. `--rehearse` runs all of it on a CPU.
"""
