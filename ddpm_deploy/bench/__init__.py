"""The measuring protocol of the benchmarks, and the report that it fills."""
