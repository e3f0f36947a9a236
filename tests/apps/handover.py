#!/usr/bin/python3
# One connection, both ends in this process, used for a while by one pair of threads, then by another, and so on: 64-byte messages
# that are echoed and compared. Prints the number of messages.
import socket
import threading

ROUNDS, MESSAGES = 4, 3000


def main():
    lst = socket.socket()
    lst.bind(("127.0.0.1", 0))
    lst.listen()
    c = socket.create_connection(lst.getsockname())
    s, _ = lst.accept()
    good = []

    def echo():
        for _ in range(MESSAGES):
            s.sendall(s.recv(64, socket.MSG_WAITALL))

    def client(first):
        for i in range(MESSAGES):
            out = b"%08d" % (first + i) * 8
            c.sendall(out)
            if c.recv(64, socket.MSG_WAITALL) == out:
                good.append(i)
    # Threads that have ended and those that work now: the first pair stays alive, so that its stacks cannot be taken over by the later ones.
    park = threading.Event()
    for r in range(ROUNDS):
        pair = [threading.Thread(target=lambda: (echo(), park.wait()), daemon=True), threading.Thread(target=client, args=(r * MESSAGES,))]
        for t in pair:
            t.start()
        pair[1].join()
    park.set()
    print(len(good))


main()
