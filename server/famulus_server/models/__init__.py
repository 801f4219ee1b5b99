"""Models over the `openai` SDK, which is imported nowhere else.

A turn goes through five parts: `retry` tries again what failed before its first chunk, `breaker` spares a model that
fails all the time, `streamed` reads raw bytes under our own timers, `sse` cuts them into events, and one reader per
wire format (`responses`, `chat`) makes model events of them.
"""
