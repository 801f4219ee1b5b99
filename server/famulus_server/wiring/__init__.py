"""The only place that knows every concrete class: makes them, opens them in order, and closes them in reverse."""
