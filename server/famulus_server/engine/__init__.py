"""What a run is and how it proceeds. Knows neither gRPC nor openai, Redis or SQL."""
