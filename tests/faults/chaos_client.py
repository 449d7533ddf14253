"""Asks the server of `chaos.py` to run a script, and ends with its exit code; the standard library alone.

python -S chaos_client.py SOCKET SCRIPT ARGUMENT...
"""

import json
import os
import socket
import sys


request = {"environment": dict(os.environ), "folder": os.getcwd(), "arguments": sys.argv[2:]}
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
    server.shutdown(socket.SHUT_WR)
    code = server.recv(16)
sys.exit(int(code or 70))
