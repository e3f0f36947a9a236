// Random programs of socket and epoll calls, differential: every call's result is printed, so that the same seed on the kernel and on icepath must give
// the same text (diff.py compares). One thread holds both ends of several connections. After each step the program waits until all that the step has
// set off is over (the model knows what that is), so that the answer to the next call does not depend on time:
//   bytes have arrived; Nagle is off, because otherwise that would depend on delayed acknowledgements
//   an end or a reset is visible at the other side
//   a FIN is acknowledged: Linux delays that ACK by up to 40 ms, and it changes the sender's state, which is an edge for every epoll item of the sender
// A wait that comes to nothing is printed: then the model is wrong, or bytes are lost.
//
// Usage: diff_epoll [first seed [number [steps [cold]]]]. With "cold", a third of the connections are promoted before the program begins, the others in its
// midst, if at all: lanes change with bytes unread and items registered. Otherwise all are promoted before. Every step draws from a generator of its own, so that a part of the steps ("0-40,55") is a program too:
// what is left of a failing one when everything is taken away that it does not need.
#include <algorithm>

#include "common.hpp"

namespace {

struct rng {
  uint64_t s;
  uint32_t operator()(uint32_t n) {
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    return static_cast<uint32_t>((s * 0x2545F4914F6CDD1Dull) >> 33) % n;
  }
};

constexpr int conns = 3, ends = 2 * conns, sets = 2;

struct end_state {
  int fd = -1;
  int arrived = 0;                        // unread bytes that must be here when all is quiet
  bool open = false, wr_shut = false, reset = false, fin_acked = false;
};

class program {
 public:
  program(uint64_t seed, bool cold) : cold_(cold), seed_(seed) {
    for (int c = 0; c < conns; c++) make(c, !cold || c == static_cast<int>(seed % conns));
    for (int& s : ep_) s = epoll_create1(0);
  }
  ~program() {
    for (end_state& e : e_)
      if (e.open) close(e.fd);
    for (int s : ep_) close(s);
  }
  void run(const std::vector<bool>& steps) {
    for (now_ = 0; now_ < static_cast<int>(steps.size()); now_++) {
      if (!steps[static_cast<size_t>(now_)]) continue;
      r_.s = ((seed_ << 10) + static_cast<uint64_t>(now_) + 1) * 0x9E3779B97F4A7C15ull;
      for (int i = 0; i < 4; i++) r_(2);
      settle(step());
    }
    for (int s = 0; s < sets; s++) harvest(s);
    say("%s", text_.c_str());
  }

 private:
  static int peer(int i) { return i ^ 1; }

  void make(int c, bool warm) {
    int l = listen_on();
    int a = connect_to(port_of(l)), b = accept(l, nullptr, nullptr);
    ::close(l);
    set_opt(a, IPPROTO_TCP, TCP_NODELAY, 1), set_opt(b, IPPROTO_TCP, TCP_NODELAY, 1);
    if (warm) warm_up(a, b);
    nonblock(a), nonblock(b);
    e_[2 * c] = {a, 0, true};
    e_[2 * c + 1] = {b, 0, true};
  }

  [[gnu::format(printf, 2, 3)]] void note(const char* f, ...) {
    char t[400];
    va_list ap;
    va_start(ap, f);
    vsnprintf(t, sizeof t, f, ap);
    va_end(ap);
    text_ += std::to_string(now_) + ' ' + t + '\n';
  }

  template <class F>
  void wait_for(const char* what, int i, F pred) {
    if (!until(pred, 1000)) note("end %d: no %s", i, what);
  }
  static int tcp_state(int fd) {
    tcp_info t{};
    socklen_t l = sizeof t;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &t, &l) < 0 ? -1 : t.tcpi_state;
  }

  // Nothing of connection c is under way any more.
  void settle(int c) {
    for (int i : {2 * c, 2 * c + 1}) {
      end_state &e = e_[i], &p = e_[peer(i)];
      if (!e.open) continue;
      if (e.reset) {
        wait_for("reset", i, [&] { return poll_now(e.fd) & POLLHUP; });
        continue;
      }
      wait_for("bytes", i, [&] { return unread(e.fd) >= e.arrived; });
      if (p.wr_shut) wait_for("end", i, [&] { return poll_now(e.fd) & POLLRDHUP; });
      if (p.wr_shut && e.wr_shut) wait_for("hangup", i, [&] { return poll_now(e.fd) & POLLHUP; });
      if (!e.wr_shut || e.fin_acked) continue;
      if (p.open) set_opt(p.fd, IPPROTO_TCP, TCP_QUICKACK, 1);
      wait_for("answer to FIN", i, [&] {
        int st = tcp_state(e.fd);
        return st != TCP_FIN_WAIT1 && st != TCP_CLOSING && st != TCP_LAST_ACK;
      });
      e.fin_acked = true;
    }
  }

  // Returns the connection that the step was about.
  int step() {
    int i = static_cast<int>(r_(ends));
    act(i);
    return i / 2;
  }

  void act(int i) {
    end_state &e = e_[i], &p = e_[peer(i)];
    int s = static_cast<int>(r_(sets));
    uint32_t what = r_(100);
    if (!e.open) what = what < 50 ? 60 : 95;
    if (what < 25) return transmit(i);
    if (what < 45) return receive(i);
    if (what < 60) return control(s, i);
    if (what < 85) return harvest(s);
    if (what < 91) {
      uint32_t m = poll_now(e.fd);
      return note("poll %d: %s", i, mask_text(m).c_str());
    }
    if (what < 94) {
      int how = static_cast<int>(r_(3));
      if (how != SHUT_WR) return note("FIONREAD %d: %d", i, unread(e.fd));
      long r = shutdown(e.fd, SHUT_WR);
      note("shutdown %d: %s", i, res(r).c_str());
      if (r == 0) e.wr_shut = true;
      return;
    }
    if (what < 97) {
      if (!e.open && !p.open) {
        note("new connection %d", i / 2);
        return make(i / 2, !cold_ || r_(2));
      }
      if (!e.open) return;
      bool unread_data = unread(e.fd) > 0, hard = r_(4) == 0;
      linger l{hard, 0};
      if (hard) setsockopt(e.fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
      note("close %d%s: %s", i, hard ? " hard" : "", res(close(e.fd)).c_str());
      e.open = false;
      if (p.open) {
        // A side that had already ended both ways sees nothing more of a hard close.
        if ((hard || unread_data) && !(e.wr_shut && p.wr_shut)) p.reset = true;
        e.wr_shut = true;
      }
      return;
    }
    note("SO_ERROR %d: %s", i, err_name(get_opt(e.fd, SOL_SOCKET, SO_ERROR)));
  }

  void transmit(int i) {
    end_state &e = e_[i], &p = e_[peer(i)];
    if (p.arrived > 20000) return;  // never near a full buffer
    size_t n = r_(3) ? 1 + r_(100) : 1 + r_(3000);
    uint8_t b[3100];
    stream_fill(b, 0, n, static_cast<uint32_t>(i));
    long r;
    if (r_(2)) {
      r = send(e.fd, b, n, MSG_NOSIGNAL);
    } else {
      size_t k = n / 2;
      iovec v[2] = {{b, k}, {b + k, n - k}};
      r = writev(e.fd, v, 2);
    }
    note("send %d %zu: %s", i, n, res(r).c_str());
    if (r > 0 && p.open) p.arrived += static_cast<int>(r);
    if (r > 0 && !p.open) e.reset = true;  // the answer is RST
  }

  void receive(int i) {
    end_state& e = e_[i];
    size_t n = r_(2) ? 1 + r_(50) : 1 + r_(4000);
    bool peek = r_(5) == 0;
    char b[4100];
    long r = recv(e.fd, b, n, peek ? MSG_PEEK : 0);
    note("%s %d %zu: %s", peek ? "peek" : "recv", i, n, res(r).c_str());
    if (r > 0 && !peek) e.arrived -= static_cast<int>(r);
  }

  void control(int s, int i) {
    static const uint32_t modes[] = {EPOLLIN, EPOLLIN | EPOLLOUT, EPOLLIN | EPOLLRDHUP, 0,
                                     EPOLLIN | static_cast<uint32_t>(EPOLLET), EPOLLIN | EPOLLOUT | EPOLLRDHUP | static_cast<uint32_t>(EPOLLET),
                                     EPOLLIN | static_cast<uint32_t>(EPOLLONESHOT), EPOLLOUT | static_cast<uint32_t>(EPOLLONESHOT)};
    uint32_t m = r_(8), op = r_(5);
    int o = op < 3 ? EPOLL_CTL_ADD : op == 3 ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    epoll_event ev{modes[m], {.u64 = static_cast<uint64_t>(i)}};
    int fd = e_[i].open ? e_[i].fd : 100000;
    note("ctl set %d op %d end %d mode %u: %s", s, o, i, m, res(epoll_ctl(ep_[s], o, fd, &ev)).c_str());
  }

  void harvest(int s) {
    epoll_event ev[ends];
    int n = epoll_wait(ep_[s], ev, ends, 0);
    std::sort(ev, ev + std::max(n, 0), [](const epoll_event& x, const epoll_event& y) { return x.data.u64 < y.data.u64; });
    std::string t;
    for (int k = 0; k < n; k++) t += " " + std::to_string(ev[k].data.u64) + "=" + mask_text(ev[k].events);
    note("wait %d: %s%s", s, res(n).c_str(), t.c_str());
  }

  const bool cold_;
  const uint64_t seed_;
  rng r_{1};
  int now_ = 0;                           // number of the step
  end_state e_[ends];
  int ep_[sets];
  std::string text_;
};

constexpr int all_steps = 100;

// "3-7,9": those steps. Empty on a text that is none of that.
std::vector<bool> parse_steps(const char* t) {
  std::vector<bool> steps(all_steps);
  while (*t) {
    char* end;
    long from = strtol(t, &end, 10), to = from;
    if (end == t) return {};
    if (*end == '-') {
      t = end + 1;
      to = strtol(t, &end, 10);
      if (end == t) return {};
    }
    if (from < 0 || to < from || to >= all_steps || (*end && *end != ',')) return {};
    for (long i = from; i <= to; i++) steps[static_cast<size_t>(i)] = true;
    t = *end ? end + 1 : end;
  }
  return steps;
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  uint64_t first = argc > 1 ? strtoull(argv[1], nullptr, 10) : 1, count = argc > 2 ? strtoull(argv[2], nullptr, 10) : 50;
  bool cold = argc > 4 && strcmp(argv[4], "cold") == 0;
  std::vector<bool> steps = argc > 3 ? parse_steps(argv[3]) : std::vector<bool>(all_steps, true);
  if (!first || !count || steps.empty()) {
    fprintf(stderr, "usage: diff_epoll [first seed [number [steps [cold]]]]; seeds from 1, steps like 0-40,55 below %d\n", all_steps);
    return 2;
  }
  for (uint64_t seed = first; seed < first + count; seed++) {
    say("== seed %lu", seed);
    program(seed, cold).run(steps);
  }
  return 0;
}
