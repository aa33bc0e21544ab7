"""The test bench: a real control plane and mesh on one machine, without Docker. Start with tests/cluster/README.md."""

from bench.apps import App
from bench.audit import Request
from bench.bench import Bench
from bench.client import ApiError, Client
from bench.load import Load, Totals
from bench.prometheus import BenchPrometheus

__all__ = ["ApiError", "App", "Bench", "BenchPrometheus", "Client", "Load", "Request", "Totals"]
