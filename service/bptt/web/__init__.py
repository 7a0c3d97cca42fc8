"""The HTTP side of a server: metrics and probes. Starlette and uvicorn are imported here only."""
