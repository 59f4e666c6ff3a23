"""The data plane: bulk bytes over blocking sockets in threads.

``objects`` says what an object is, ``channel`` moves messages and raw bytes, ``send`` and ``receive`` move one object,
``server``, ``client`` and ``urls`` are what manager and worker use. Standard library only, so that a worker can run
from one file.
"""
