"""What `famulus-server doctor` looks at: a module for each part of the world, each with its verdicts."""
