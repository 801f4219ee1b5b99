"""The famulus server: it owns assistants, threads and runs, and executes runs on OpenAI-compatible models."""
