"""What a configuration needs of a cluster, from arithmetic alone (no GPU, no process group, no training library); and a preflight
of the machines that a run is started on."""
