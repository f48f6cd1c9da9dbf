"""Registered adapters behind an OpenAI-compatible images endpoint on Ray Serve.

client ── HTTP ──► ingress (FastAPI: keys, limits, fair queue) ──► router ──► engine replicas

schemas      what a request may hold, with units and limits
problems     errors in the shape that OpenAI's clients read
keys         API keys: a file of hashes
catalogue    which adapters there are: a folder or MLflow's registry; aliases
admission    the bounded, fair queue in front of the engines
cache        adapters in an engine's host memory: counted, bounded in bytes
replica      an engine behind Serve
routing      which replica draws: the one that holds the adapter, unless it is busier
service      a request's way through all of these; knows no HTTP
api          the HTTP side
application  the Serve application and its settings
server       `dreamfleet serve` in the foreground
"""
