"""gRPC in, gRPC out: translates a call, makes one call into the engine, translates what comes back."""
