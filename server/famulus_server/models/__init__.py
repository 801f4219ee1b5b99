"""Models over the `openai` SDK, which is imported nowhere else.

A turn goes through four parts: `retry` tries again what failed before its first chunk, `streamed` reads raw bytes
under our own timers, `sse` cuts them into events, and one reader per wire format (`responses`, `chat`) makes model
events of them.
"""
