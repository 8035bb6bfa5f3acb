"""One process's pool. `core` decides, `runtime` performs, `aio` and `threads` are its two faces."""
