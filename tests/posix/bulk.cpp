// Large transfers, every byte checked: one way, both ways at once, small buffers, slow readers, every call that moves data, and files.
#include <sys/sendfile.h>
#include <sys/stat.h>

#include "common.hpp"

namespace {

constexpr size_t mib = 1 << 20;
using sender = ssize_t (*)(int fd, uint8_t* p, size_t n);

ssize_t by_send(int fd, uint8_t* p, size_t n) { return send(fd, p, n, 0); }
ssize_t by_write(int fd, uint8_t* p, size_t n) { return write(fd, p, n); }
ssize_t by_recv(int fd, uint8_t* p, size_t n) { return recv(fd, p, n, 0); }
ssize_t by_read(int fd, uint8_t* p, size_t n) { return read(fd, p, n); }

// Splits the buffer into pieces of growing size.
int pieces(iovec* v, uint8_t* p, size_t n) {
  int k = 0;
  size_t step = 1;
  while (n && k < 30) {
    size_t m = k == 29 || step > n ? n : step;
    v[k++] = {p, m};
    p += m, n -= m;
    step = step * 2 + 1;
  }
  return k;
}
ssize_t by_writev(int fd, uint8_t* p, size_t n) {
  iovec v[30];
  return writev(fd, v, pieces(v, p, n));
}
ssize_t by_readv(int fd, uint8_t* p, size_t n) {
  iovec v[30];
  return readv(fd, v, pieces(v, p, n));
}
ssize_t by_sendmsg(int fd, uint8_t* p, size_t n) {
  iovec v[30];
  msghdr m{};
  m.msg_iov = v, m.msg_iovlen = static_cast<size_t>(pieces(v, p, n));
  return sendmsg(fd, &m, 0);
}
ssize_t by_recvmsg(int fd, uint8_t* p, size_t n) {
  iovec v[30];
  msghdr m{};
  m.msg_iov = v, m.msg_iovlen = static_cast<size_t>(pieces(v, p, n));
  return recvmsg(fd, &m, 0);
}
// Each message of the vector is filled or taken as far as it goes; only a short last one is tolerated.
ssize_t by_sendmmsg(int fd, uint8_t* p, size_t n) {
  mmsghdr mm[4]{};
  iovec v[4];
  size_t part = n / 4;
  for (size_t i = 0; i < 4; i++) {
    v[i] = {p + i * part, i == 3 ? n - 3 * part : part};
    mm[i].msg_hdr.msg_iov = &v[i], mm[i].msg_hdr.msg_iovlen = 1;
  }
  int r = sendmmsg(fd, mm, 4, 0);
  if (r <= 0) return r;
  size_t sum = 0;
  for (int i = 0; i < r; i++) {
    if (mm[i].msg_len != v[i].iov_len && i + 1 < r) return -2;
    sum += mm[i].msg_len;
  }
  return static_cast<ssize_t>(sum);
}
ssize_t by_recvmmsg(int fd, uint8_t* p, size_t n) {
  mmsghdr mm[3]{};
  iovec v[3];
  size_t part = n / 3;
  for (size_t i = 0; i < 3; i++) {
    v[i] = {p + i * part, i == 2 ? n - 2 * part : part};
    mm[i].msg_hdr.msg_iov = &v[i], mm[i].msg_hdr.msg_iovlen = 1;
  }
  int r = recvmmsg(fd, mm, 3, MSG_WAITFORONE, nullptr);
  if (r <= 0) return r;
  size_t sum = 0;
  for (int i = 0; i < r; i++) {
    memmove(p + sum, v[i].iov_base, mm[i].msg_len);
    sum += mm[i].msg_len;
  }
  return static_cast<ssize_t>(sum);
}

bool pour(int fd, size_t total, size_t chunk, uint32_t seed, sender out, long pause_every = 0) {
  std::vector<uint8_t> b(chunk);
  size_t pos = 0;
  long calls = 0;
  while (pos < total) {
    size_t n = std::min(chunk, total - pos);
    stream_fill(b.data(), pos, n, seed);
    for (size_t off = 0; off < n;) {
      ssize_t r = out(fd, b.data() + off, n - off);
      if (r <= 0) return false;
      off += static_cast<size_t>(r);
    }
    pos += n;
    if (pause_every && ++calls % pause_every == 0) nap_us(500);
  }
  return true;
}

// Takes exactly total bytes; how many were there and right.
bool drink(int fd, size_t total, size_t chunk, uint32_t seed, sender in, long pause_every = 0) {
  std::vector<uint8_t> b(chunk);
  size_t pos = 0;
  long calls = 0;
  while (pos < total) {
    ssize_t r = in(fd, b.data(), std::min(chunk, total - pos));
    if (r <= 0 || !stream_check(b.data(), pos, static_cast<size_t>(r), seed)) {
      say("at byte %zu of %zu: %s", pos, total, r > 0 ? "wrong bytes" : res(r).c_str());
      return false;
    }
    pos += static_cast<size_t>(r);
    if (pause_every && ++calls % pause_every == 0) nap_us(500);
  }
  return true;
}

struct plan {
  size_t total, out_chunk, in_chunk;
  sender out, in;
  int rcvbuf = 0, sndbuf = 0;
  long out_pause = 0, in_pause = 0;
};

void one_way(duo& d, const plan& p) {
  d.connect(true, p.rcvbuf, p.sndbuf);
  bool sent = true, came = true;
  d.both(
      [&](int fd) {
        sent = pour(fd, p.total, p.out_chunk, 5, p.out, p.out_pause);
        shutdown(fd, SHUT_WR);
      },
      [&](int fd) {
        came = drink(fd, p.total, p.in_chunk, 5, p.in, p.in_pause);
        uint8_t end;
        came &= p.in(fd, &end, 1) == 0;
      });
  d.a([&](int) { say("%zu bytes sent: %s", p.total, sent ? "yes" : "no"); });
  d.b([&](int) { say("all received, then the end: %s", came ? "yes" : "no"); });
  d.close_both();
}

void duplex(duo& d, size_t total, int bufs) {
  d.connect(true, bufs, bufs);
  auto side = [&](int fd, uint32_t mine, uint32_t theirs) {
    bool sent = true;
    std::thread w([&] { sent = pour(fd, total, 70001, mine, by_send); });
    bool came = drink(fd, total, 65537, theirs, by_recv);
    w.join();
    return sent && came;
  };
  bool ok = true;
  d.both([&](int fd) { ok = side(fd, 1, 2); }, [&](int fd) { ok = side(fd, 2, 1); });
  d.a([&](int) { ask("A sent and received all", ok); });
  d.b([&](int) { ask("B sent and received all", ok); });
  d.close_both();
}

// One thread, both ends, both directions at once, non-blocking with poll.
void event_loop(duo& d) {
  d.connect();
  struct half {
    int fd;
    uint32_t mine, theirs;
    size_t out = 0, in = 0;
  } h[2] = {{d.fd_a, 1, 2}, {d.fd_b, 2, 1}};
  constexpr size_t total = 8 * mib;
  std::vector<uint8_t> b(40009);
  bool right = true;
  nonblock(d.fd_a), nonblock(d.fd_b);
  while (right && (h[0].in < total || h[1].in < total)) {
    pollfd p[2];
    for (int i = 0; i < 2; i++)
      p[i] = {h[i].fd, static_cast<short>((h[i].out < total ? POLLOUT : 0) | POLLIN), 0};
    if (poll(p, 2, 5000) <= 0) break;
    for (int i = 0; i < 2; i++) {
      if (p[i].revents & POLLOUT) {
        size_t n = std::min(b.size(), total - h[i].out);
        stream_fill(b.data(), h[i].out, n, h[i].mine);
        ssize_t r = send(h[i].fd, b.data(), n, 0);
        if (r > 0) h[i].out += static_cast<size_t>(r);
        else if (errno != EAGAIN) right = false;
      }
      if (p[i].revents & POLLIN) {
        ssize_t r = recv(h[i].fd, b.data(), b.size(), 0);
        if (r > 0) right &= stream_check(b.data(), h[i].in, static_cast<size_t>(r), h[i].theirs), h[i].in += static_cast<size_t>(r);
        else if (r == 0 || errno != EAGAIN) right = false;
      }
    }
  }
  say("A received %zu, B received %zu", h[0].in, h[1].in);
  ask("right", right);
  d.close_both();
}

void from_file(duo& d) {
  constexpr size_t size = 6 * mib + 123;
  d.connect();
  bool came = true;
  d.both(
      [&](int fd) {
        char name[] = "/tmp/posix-bulk-XXXXXX";
        int f = mkstemp(name);
        if (f < 0) give_up("mkstemp");
        unlink(name);
        std::vector<uint8_t> v(size);
        stream_fill(v.data(), 0, size, 9);
        if (write(f, v.data(), size) != static_cast<ssize_t>(size)) give_up("write");
        off_t off = 0;
        bool ok = true;
        while (off < static_cast<off_t>(size / 2)) {
          ssize_t r = sendfile(fd, f, &off, size / 2 - static_cast<size_t>(off));
          if (r <= 0) ok = false;
          if (r <= 0) break;
        }
        ask("first half by offset", ok && off == static_cast<off_t>(size / 2));
        lseek(f, off, SEEK_SET);
        size_t rest = size - size / 2;
        while (rest) {
          ssize_t r = sendfile(fd, f, nullptr, rest);
          if (r <= 0) break;
          rest -= static_cast<size_t>(r);
        }
        ask("second half by position", rest == 0 && lseek(f, 0, SEEK_CUR) == static_cast<off_t>(size));
        SHOW(sendfile(fd, f, nullptr, 10));
        close(f);
        send_all(fd, "trailer", 7);
        shutdown(fd, SHUT_WR);
      },
      [&](int fd) {
        came = drink(fd, size, 60000, 9, by_recv);
        char t[16] = "";
        came &= recv_upto(fd, t, 16) == 7 && memcmp(t, "trailer", 7) == 0;
      });
  d.b([&](int) { ask("received all and the trailer", came); });
  d.close_both();
}

// Many connections at once, little on each, so that rings and pools wrap in different places.
void many_flows(duo& d) {
  constexpr int flows = 24;
  int fds[flows];
  int l = -1;
  long port = d.b([&](int) {
    l = listen_on(64);
    return port_of(l);
  });
  bool ok = true;
  d.both(
      [&](int) {
        for (int& fd : fds) fd = connect_to(static_cast<uint16_t>(port));
        for (int fd : fds) warm_up_ask(fd);
        for (int round = 0; round < 20; round++)
          for (int i = 0; i < flows; i++) ok &= pour(fds[i], 10007, 1 + 977 * static_cast<size_t>(i + 1) % 9000, static_cast<uint32_t>(i), by_send);
        for (int fd : fds) close(fd);
      },
      [&](int) {
        for (int& fd : fds) fd = accept(l, nullptr, nullptr);
        for (int fd : fds) warm_up_answer(fd);
        for (int round = 0; round < 20; round++)
          for (int i = 0; i < flows; i++) ok &= drink(fds[i], 10007, 4001, static_cast<uint32_t>(i), by_read);
        uint8_t c;
        for (int fd : fds) ok &= read(fd, &c, 1) == 0;
        for (int fd : fds) close(fd);
        close(l);
      });
  d.a([&](int) { ask("A", ok); });
  d.b([&](int) { ask("B", ok); });
}

}  // namespace

int main(int argc, char** argv) {
  constexpr unsigned two = in_threads | in_procs;
  auto way = [](plan p) { return [p](duo& d) { one_way(d, p); }; };
  return run_all(argc, argv,
                 {{"64_mib_odd_chunks", way({64 * mib, 65521, 100003, by_send, by_recv}), in_procs},
                  {"16_mib_threads", way({16 * mib + 1, 131072, 16384, by_send, by_recv}), in_threads},
                  {"T05_one_huge_send", way({24 * mib, 24 * mib, 3 * mib, by_send, by_recv}), two},
                  {"T11j_small_sends", way({mib, 61, 65536, by_send, by_recv}), two},
                  {"small_reads", way({mib, 65536, 61, by_send, by_recv}), two},
                  {"small_receive_buffer", way({2 * mib, 50000, 50000, by_send, by_recv, 4096, 0}), two},
                  {"small_send_buffer", way({4 * mib, 50000, 50000, by_send, by_recv, 0, 4096}), two},
                  {"small_buffers", way({mib, 50000, 3000, by_send, by_recv, 4096, 4096}), two},
                  {"slow_reader", way({8 * mib, 65536, 30000, by_send, by_recv, 0, 0, 0, 4}), two},
                  {"slow_reader_small_window", way({mib, 65536, 8000, by_send, by_recv, 16384, 0, 0, 4}), two},
                  {"slow_writer", way({2 * mib, 9999, 65536, by_send, by_recv, 0, 0, 2, 0}), two},
                  {"write_read", way({8 * mib, 33333, 22222, by_write, by_read}), two},
                  {"writev_readv", way({8 * mib, 33333, 44444, by_writev, by_readv}), two},
                  {"sendmsg_recvmsg", way({8 * mib, 99999, 77777, by_sendmsg, by_recvmsg}), two},
                  {"sendmmsg_recvmmsg", way({8 * mib, 40000, 50000, by_sendmmsg, by_recvmmsg}), two},
                  {"writev_read", way({4 * mib, 30000, 1000, by_writev, by_read}), two},
                  {"duplex", [](duo& d) { duplex(d, 16 * mib, 0); }, two},
                  {"duplex_small_buffers", [](duo& d) { duplex(d, mib / 4, 16384); }, two},
                  {"event_loop", event_loop, in_self},
                  {"from_file", from_file, two},
                  {"many_flows", many_flows, two}});
}
