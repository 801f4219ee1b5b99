"""What replicas share through Redis or Valkey, and may lose (contract 2). The only place that imports redis."""
