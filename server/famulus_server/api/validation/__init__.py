"""What a request must be, whatever the state of the service: limits, forms, known values.

One module per noun. Every check collects all that is wrong, with paths such as `assistant.tools[3].function.name`.
"""
