"""What `famulus-server top` shows: the metrics of replicas, read twice, as figures, as tables, on a screen."""
