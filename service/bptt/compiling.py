"""The name under which a server says that it compiles kernels."""

COMPILING_KEY = "bptt-compiling"
"""Key in a call's initial metadata. The server sends the metadata at once when it begins to compile
a kernel that the call waits for; the value is the kernel's name."""
