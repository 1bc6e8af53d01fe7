"""Where metrics go: files, Prometheus, Grafana, trackers."""
