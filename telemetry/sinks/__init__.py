"""Sinks of metrics: files, Prometheus, Grafana, trackers."""
