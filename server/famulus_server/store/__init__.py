"""SQL, the only source of truth (contract 1): the only package that holds SQL or imports its drivers."""
