// Several threads on one connection, and connections that move between threads.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "common.hpp"

namespace {

// Two writers: each send of a record that fits the buffer is whole, records of one writer are in order. (Linux may mix sends that have to wait for room.)
void two_writers(duo& d, size_t record, int count) {
  d.connect();
  d.both(
      [&](int fd) {
        auto writer = [&](uint8_t id) {
          std::vector<uint8_t> r(record, id);
          for (int i = 0; i < count; i++) {
            uint32_t n = static_cast<uint32_t>(i);
            memcpy(r.data() + 4, &n, 4);
            if (send(fd, r.data(), record, 0) != static_cast<ssize_t>(record)) give_up("writer");
          }
        };
        std::thread one(writer, 1), two(writer, 2);
        one.join(), two.join();
        shutdown(fd, SHUT_WR);
      },
      [&](int fd) {
        std::vector<uint8_t> r(record);
        uint32_t next[3] = {};
        bool whole = true, order = true;
        while (recv_upto(fd, r.data(), record) == record) {
          uint8_t id = r[0];
          if (id != 1 && id != 2) whole = false;
          if (!whole) continue;
          for (size_t i = 0; i < record; i++) whole &= (i >= 4 && i < 8) || r[i] == id;
          uint32_t n;
          memcpy(&n, r.data() + 4, 4);
          order &= n == next[id]++;
        }
        say("records %u and %u, whole %s, in order %s", next[1], next[2], whole ? "yes" : "no", order ? "yes" : "no");
      });
  d.close_both();
}

// Two readers: every byte goes to exactly one of them.
void two_readers(duo& d) {
  d.connect();
  constexpr size_t total = 1000000;
  d.both(
      [&](int fd) {
        std::vector<uint8_t> v(total);
        for (size_t i = 0; i < total; i++) v[i] = static_cast<uint8_t>(i % 251);
        send_all(fd, v.data(), total);
        shutdown(fd, SHUT_WR);
      },
      [&](int fd) {
        std::atomic<uint64_t> bytes{0}, sum{0};
        auto reader = [&] {
          uint8_t b[3001];
          for (ssize_t r; (r = recv(fd, b, sizeof b, 0)) > 0;) {
            uint64_t s = 0;
            for (ssize_t i = 0; i < r; i++) s += b[i];
            sum += s, bytes += static_cast<uint64_t>(r);
          }
        };
        std::thread one(reader), two(reader);
        one.join(), two.join();
        uint64_t want = 0;
        for (size_t i = 0; i < total; i++) want += i % 251;
        say("bytes %lu, sum right: %s", bytes.load(), sum == want ? "yes" : "no");
      });
  d.close_both();
}

// One thread reads and another writes the same socket, request by request without waiting for each other.
void reader_and_writer(duo& d) {
  d.connect();
  constexpr int count = 20000;
  auto side = [](int fd) {
    std::thread w([fd] {
      for (uint32_t i = 0; i < count; i++)
        if (!send_all(fd, &i, 4)) give_up("writer");
    });
    bool right = true;
    for (uint32_t i = 0; i < count; i++) {
      uint32_t n = 0;
      right &= recv_upto(fd, &n, 4) == 4 && n == i;
    }
    w.join();
    return right;
  };
  bool ok = true;
  d.both([&](int fd) { ok = side(fd); }, [&](int fd) { ok = side(fd); });
  d.a([&](int) { ask("A right", ok); });
  d.b([&](int) { ask("B right", ok); });
  d.close_both();
}

void echo(int fd) {
  char b[4096];
  for (ssize_t r; (r = recv(fd, b, sizeof b, 0)) > 0;)
    if (!send_all(fd, b, static_cast<size_t>(r))) break;
  close(fd);
}

bool ask_echo(int fd, int rounds, uint32_t seed) {
  uint8_t out[777], in[777];
  for (int i = 0; i < rounds; i++) {
    size_t n = 1 + static_cast<size_t>(i * 37 % 776);
    stream_fill(out, static_cast<uint64_t>(i), n, seed);
    if (!send_all(fd, out, n) || recv_upto(fd, in, n) != n || memcmp(in, out, n)) return false;
  }
  return true;
}

// A acts as many clients, B accepts in one thread and serves in others.
void accept_here_serve_there(duo& d) {
  constexpr int clients = 12;
  int l = -1;
  long port = d.b([&](int) {
    l = listen_on(32);
    return port_of(l);
  });
  bool ok = true;
  d.both(
      [&](int) {
        std::vector<std::thread> t;
        std::atomic<bool> good{true};
        for (uint32_t i = 0; i < clients; i++)
          t.emplace_back([&, i] {
            int fd = connect_to(static_cast<uint16_t>(port));
            if (!ask_echo(fd, 150, i)) good = false;
            close(fd);
          });
        for (auto& x : t) x.join();
        ok = good;
      },
      [&](int) {
        std::mutex m;
        std::condition_variable cv;
        std::deque<int> q;
        std::vector<std::thread> pool;
        for (int i = 0; i < clients; i++)
          pool.emplace_back([&] {
            std::unique_lock lock(m);
            cv.wait(lock, [&] { return !q.empty(); });
            int fd = q.front();
            q.pop_front();
            lock.unlock();
            echo(fd);
          });
        for (int i = 0; i < clients; i++) {
          int fd = accept(l, nullptr, nullptr);
          std::lock_guard lock(m);
          q.push_back(fd);
          cv.notify_one();
        }
        for (auto& x : pool) x.join();
        close(l);
      });
  d.a([&](int) { ask("every client got its echo", ok); });
}

// One connection is used by one thread after the other.
void moves_between_threads(duo& d) {
  d.connect();
  bool ok = true;
  d.both(
      [&](int fd) {
        for (uint32_t i = 0; i < 30; i++) std::thread([&] { ok &= ask_echo(fd, 20, i); }).join();
        shutdown(fd, SHUT_WR);
      },
      [&](int fd) {
        bool end = false;
        while (!end)
          std::thread([&] {
            for (int i = 0; i < 50 && !end; i++) {
              char b[4096];
              ssize_t r = recv(fd, b, sizeof b, 0);
              if (r <= 0) end = true;
              else send_all(fd, b, static_cast<size_t>(r));
            }
          }).join();
      });
  d.a([&](int) { ask("echo right", ok); });
  d.close_both();
}

// The thread that made the connection is gone; the connection is not.
void orphan_of_thread(duo& d) {
  d.connect(false);
  int keep = -1;
  d.both(
      [&](int fd) {
        std::thread([&] { warm_up_ask(fd); }).join();
        char c[8];
        keep = static_cast<int>(recv_upto(fd, c, 5));
      },
      [&](int fd) {
        std::thread([&] { warm_up_answer(fd); }).join();
        nap_us(10000);
        send_all(fd, "later", 5);
      });
  d.a([&](int) { say("received %d", keep); });
  d.close_both();
}

// Many threads open, use and close connections at the same time.
void churn(duo&) {
  int l = listen_on(128);
  uint16_t port = port_of(l);
  constexpr int threads = 4, each = 40;
  std::thread server([&] {
    std::vector<std::thread> serving;
    for (int i = 0; i < threads * each; i++) {
      int fd = accept(l, nullptr, nullptr);
      serving.emplace_back(echo, fd);
      if (serving.size() > 30) {
        for (auto& t : serving) t.join();
        serving.clear();
      }
    }
    for (auto& t : serving) t.join();
  });
  std::atomic<int> good{0};
  std::vector<std::thread> t;
  for (uint32_t k = 0; k < threads; k++)
    t.emplace_back([&, k] {
      for (uint32_t i = 0; i < each; i++) {
        int fd = connect_to(port);
        if (ask_echo(fd, static_cast<int>(i % 30), k * 100 + i)) good++;
        close(fd);
      }
    });
  for (auto& x : t) x.join();
  server.join();
  close(l);
  say("good connections: %d", good.load());
}

}  // namespace

int main(int argc, char** argv) {
  constexpr unsigned two = in_threads | in_procs;
  return run_all(argc, argv,
                 {{"two_writers_small", [](duo& d) { two_writers(d, 16, 5000); }, two},
                  {"two_writers_larger", [](duo& d) { two_writers(d, 256, 300); }, two},
                  {"two_readers", two_readers, two},
                  {"reader_and_writer", reader_and_writer, two},
                  {"accept_here_serve_there", accept_here_serve_there, two},
                  {"moves_between_threads", moves_between_threads, two},
                  {"orphan_of_thread", orphan_of_thread, two},
                  {"churn", churn}});
}
