"""How many requests per second a server answers when the client costs next to nothing.

Prints it. The client writes requests in pipelined batches and only counts the bytes that come back.
"""

import argparse
import socket
import time

PATH = "/api"
_BODY = b'{"model":"GPT-5-Mini","messages":[{"role":"user","content":"%b"}]}' % (b"x" * 400)
_REQUEST = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    PATH.encode(),
    len(_BODY),
    _BODY,
)
_BATCH = 16


def measure(port: int, seconds: float, connections: int = 4) -> float:
    """Requests per second, over a few connections with a batch of requests under way on each."""
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    try:
        sockets[0].sendall(_REQUEST)
        size = len(sockets[0].recv(65536))
        answered = 0
        started = time.perf_counter()
        for connection in sockets:
            connection.sendall(_REQUEST * _BATCH)
        while (elapsed := time.perf_counter() - started) < seconds:
            for connection in sockets:
                due = size * _BATCH
                while due > 0:
                    due -= len(connection.recv(65536))
                answered += _BATCH
                connection.sendall(_REQUEST * _BATCH)
        return answered / elapsed
    finally:
        for connection in sockets:
            connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    print(measure(**vars(parser.parse_args())))
