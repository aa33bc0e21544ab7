"""The laboratory: real services, a real Envoy, a real Prometheus and real load on the loopback interface.

`make demo` and every end-to-end test stand on it. It knows nothing of canaryd's own modules, so what it shows
is what any other program would see.
"""
