// Counts and flags of send and recv on an established connection.
#include "common.hpp"

namespace {

void simple(duo& d) {
  d.connect();
  d.a([](int fd) { SHOW(send(fd, "hello", 5, 0)); });
  d.b([](int fd) {
    wait_unread(fd, 5);
    show_recv("recv 2", fd, 2);
    show_recv("recv 10", fd, 10);
    SHOW(send(fd, "answer", 6, MSG_NOSIGNAL));
    SHOW(write(fd, "written", 7));
  });
  d.a([](int fd) {
    wait_unread(fd, 13);
    char b[32];
    SHOW(read(fd, b, sizeof b));
  });
  d.close_both();
}

void peek(duo& d) {
  d.connect();
  d.a([](int fd) { send_all(fd, "abcdefgh", 8); });
  d.b([](int fd) {
    wait_unread(fd, 8);
    show_recv("peek 3", fd, 3, MSG_PEEK);
    show_recv("peek 20", fd, 20, MSG_PEEK);
    show_recv("recv 4", fd, 4);
    show_recv("peek 20", fd, 20, MSG_PEEK);
    show_recv("peek|waitall 4", fd, 4, MSG_PEEK | MSG_WAITALL);
    show_recv("recv 20", fd, 20);
    show_recv("peek|dontwait of nothing", fd, 4, MSG_PEEK | MSG_DONTWAIT);
  });
  d.close_a();
  d.b([](int fd) {
    wait_hangup(fd);
    show_recv("peek at the end", fd, 4, MSG_PEEK);
    show_recv("peek at the end again", fd, 4, MSG_PEEK);
  });
  d.close_both();
}

void waitall(duo& d) {
  d.connect();
  d.both(
      [](int fd) {
        for (int i = 0; i < 10; i++) {
          send_all(fd, "0123456789", 10);
          nap_us(300);
        }
      },
      [](int fd) { show_recv("recv 100 waitall", fd, 100, MSG_WAITALL); });
  d.a([](int fd) {
    send_all(fd, "short", 5);
    shutdown(fd, SHUT_WR);
  });
  d.b([](int fd) {
    show_recv("recv 100 waitall cut by the end", fd, 100, MSG_WAITALL);
    show_recv("recv 100 waitall at the end", fd, 100, MSG_WAITALL);
  });
  d.close_both();
}

void waitall_dontwait(duo& d) {
  d.connect();
  d.a([](int fd) { send_all(fd, "xyz", 3); });
  d.b([](int fd) {
    wait_unread(fd, 3);
    show_recv("recv 10 waitall|dontwait", fd, 10, MSG_WAITALL | MSG_DONTWAIT);
    show_recv("again", fd, 10, MSG_WAITALL | MSG_DONTWAIT);
  });
  d.close_both();
}

// MSG_TRUNC on TCP throws the bytes away.
void trunc(duo& d) {
  d.connect();
  d.a([](int fd) { send_all(fd, "discarded-kept", 14); });
  d.b([](int fd) {
    wait_unread(fd, 14);
    char b[16] = "untouched";
    SHOW(recv(fd, b, 10, MSG_TRUNC));
    say("buffer: %s", b);
    SHOW(recv(fd, nullptr, 0, MSG_TRUNC));
    show_recv("recv 10", fd, 10);
  });
  d.close_both();
}

void zero_lengths(duo& d) {
  d.connect();
  d.a([](int fd) {
    SHOW(send(fd, "", 0, 0));
    SHOW(write(fd, "", 0));
    SHOW(send(fd, nullptr, 0, 0));
    char b;
    SHOW(recv(fd, &b, 0, MSG_DONTWAIT));
    SHOW(read(fd, &b, 0));
    msghdr m{};
    SHOW(sendmsg(fd, &m, 0));
    SHOW(recvmsg(fd, &m, MSG_DONTWAIT));
    SHOW(writev(fd, nullptr, 0));
    SHOW(readv(fd, nullptr, 0));
    send_all(fd, "end", 3);
  });
  d.b([](int fd) {
    wait_unread(fd, 3);
    char b;
    SHOW(recv(fd, &b, 0, 0));
    SHOW(recv(fd, &b, 0, MSG_PEEK));
    iovec none[3] = {{nullptr, 0}, {&b, 0}, {nullptr, 0}};
    SHOW(readv(fd, none, 3));
    show_recv("recv", fd, 10);
  });
  d.close_a();
  d.b([](int fd) {
    wait_hangup(fd);
    char b;
    SHOW(recv(fd, &b, 0, 0));
    SHOW(recv(fd, &b, 1, 0));
  });
  d.close_both();
}

void dontwait(duo& d) {
  d.connect();
  d.a([](int fd) {
    char b[4];
    SHOW(recv(fd, b, 4, MSG_DONTWAIT));
    nonblock(fd);
    SHOW(recv(fd, b, 4, 0));
    SHOW(read(fd, b, 4));
    iovec v{b, 4};
    SHOW(readv(fd, &v, 1));
    msghdr m{};
    m.msg_iov = &v, m.msg_iovlen = 1;
    SHOW(recvmsg(fd, &m, 0));
    nonblock(fd, false);
  });
  d.b([](int fd) { send_all(fd, "ok", 2); });
  d.a([](int fd) { show_recv("blocking again", fd, 10); });
  d.close_both();
}

// Fills a non-blocking socket, then drains: what was counted as sent is what arrives, in order; a full socket becomes writable again.
void fill_and_drain(duo& d) {
  d.connect();
  long sent = d.a([](int fd) {
    nonblock(fd);
    std::vector<uint8_t> chunk(50001);
    long n = 0;
    for (;;) {
      stream_fill(chunk.data(), static_cast<uint64_t>(n), chunk.size(), 7);
      ssize_t r = send(fd, chunk.data(), chunk.size(), 0);
      if (r < 0) {
        say("send on the full socket: %s", res(r).c_str());
        // Acknowledgements may make room for a moment; full means full for a while.
        nap_us(2000);
        if (poll_now(fd) & POLLOUT) continue;
        break;
      }
      n += r;
    }
    return n;
  });
  (void)sent;
  d.b([&](int fd) {
    std::vector<uint8_t> b(77777);
    bool right = true;
    long n = 0;
    while (n < sent) {
      ssize_t r = recv(fd, b.data(), b.size(), 0);
      if (r <= 0) break;
      right &= stream_check(b.data(), static_cast<uint64_t>(n), static_cast<size_t>(r), 7);
      n += r;
    }
    ask("all that was counted arrived", n == sent);
    ask("in order", right);
    SHOW(recv(fd, b.data(), 1, MSG_DONTWAIT));
  });
  d.a([](int fd) {
    ask("writable again", wait_event(fd, POLLOUT));
    SHOW(send(fd, "more", 4, 0));
  });
  d.b([](int fd) { show_recv("recv", fd, 10); });
  d.close_both();
}

void addresses(duo& d) {
  d.connect();
  d.a([](int fd) {
    sockaddr_in other = loopback(1);
    SHOW(sendto(fd, "x", 1, 0, sa(other), sizeof other));
    SHOW(sendto(fd, "y", 1, 0, nullptr, 0));
    msghdr m{};
    iovec v{const_cast<char*>("z"), 1};
    m.msg_iov = &v, m.msg_iovlen = 1;
    m.msg_name = &other, m.msg_namelen = sizeof other;
    SHOW(sendmsg(fd, &m, 0));
  });
  d.b([](int fd) {
    wait_unread(fd, 2);
    sockaddr_in from;
    memset(&from, 0x55, sizeof from);
    socklen_t len = sizeof from;
    char b[8];
    long r = recvfrom(fd, b, sizeof b, MSG_DONTWAIT, sa(from), &len);
    say("recvfrom = %s, address length %u, address touched: %s", res(r).c_str(), len, from.sin_family == 0x5555 ? "no" : "yes");
    while (recv(fd, b, sizeof b, MSG_DONTWAIT) > 0) {}
  });
  d.a([](int fd) { send_all(fd, "msg", 3); });
  d.b([](int fd) {
    wait_unread(fd, 3);
    sockaddr_in from;
    memset(&from, 0x55, sizeof from);
    char b[8], control[64];
    iovec v{b, sizeof b};
    msghdr m{};
    m.msg_name = &from, m.msg_namelen = sizeof from;
    m.msg_iov = &v, m.msg_iovlen = 1;
    m.msg_control = control, m.msg_controllen = sizeof control;
    m.msg_flags = 0x1234;
    long r = recvmsg(fd, &m, 0);
    say("recvmsg = %s, namelen %u, controllen %zu, flags %#x", res(r).c_str(), m.msg_namelen, m.msg_controllen,
        static_cast<unsigned>(m.msg_flags));
  });
  d.close_both();
}

// A stream has no records: many small sends may be read at once, one large one in parts.
void stream_not_records(duo& d) {
  d.connect();
  d.a([](int fd) {
    long sent = 0;
    for (int i = 0; i < 100; i++) sent += send(fd, &"0123456789"[i % 8], static_cast<size_t>(1 + i % 3), i % 2 ? MSG_MORE : 0);
    say("sent %ld", sent);
    send_all(fd, ".", 1);
  });
  d.b([](int fd) {
    std::string all;
    char c[7];
    while (all.empty() || all.back() != '.') {
      ssize_t r = recv(fd, c, sizeof c, 0);
      if (r <= 0) break;
      all.append(c, static_cast<size_t>(r));
    }
    say("%s", all.c_str());
  });
  d.close_both();
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv,
                 {{"simple", simple, everywhere},
                  {"peek", peek, everywhere},
                  {"waitall", waitall, everywhere},
                  {"waitall_dontwait", waitall_dontwait, everywhere},
                  {"trunc", trunc, everywhere},
                  {"zero_lengths", zero_lengths, everywhere},
                  {"T04_dontwait", dontwait, everywhere},
                  {"T11j_fill_and_drain", fill_and_drain, everywhere},
                  {"T04_addresses", addresses, everywhere},
                  {"stream_not_records", stream_not_records, everywhere}});
}
