"""What the embedded default starts and owns: child processes and the scripted upstream."""
