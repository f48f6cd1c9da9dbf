"""How good an adapter is: metrics, benchmarks, statistics and reports."""
