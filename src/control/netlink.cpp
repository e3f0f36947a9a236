// See netlink.hpp.
#include "control/netlink.hpp"

#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/fd.hpp"
#include "base/raw_syscall.hpp"

namespace icepath {
namespace {

constexpr size_t room = 32 * 1024;

long receive(int fd, char* buf, sockaddr_nl* from) {
  iovec iov{buf, room};
  for (;;) {
    msghdr h{};
    h.msg_name = from;
    h.msg_namelen = sizeof *from;
    h.msg_iov = &iov;
    h.msg_iovlen = 1;
    const long k = raw_syscall(SYS_recvmsg, fd, &h, 0);
    if (k == -EINTR) continue;
    if (k >= 0 && (h.msg_flags & MSG_TRUNC)) return -EMSGSIZE;
    if (k >= 0 && from->nl_pid != 0) continue;       // only the kernel is believed
    return k;
  }
}

struct attr_sink {
  const nlattr** tb;
  unsigned max;
};

int take(const nlattr* a, void* p) {
  auto* s = static_cast<attr_sink*>(p);
  const unsigned type = mnl_attr_get_type(a);
  if (type <= s->max) s->tb[type] = a;
  return MNL_CB_OK;
}

}  // namespace

int netlink_open(netlink& n, int protocol, bool nonblocking) {
  const long fd = raw_syscall(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0), protocol);
  if (fd < 0) return static_cast<int>(fd);
  n.fd = fd_move_high(static_cast<int>(fd));
  n.seq = 0;
  const int one = 1, size = 256 * 1024;
  const timeval second{1, 0};
  raw_syscall(SYS_setsockopt, n.fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
  raw_syscall(SYS_setsockopt, n.fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  raw_syscall(SYS_setsockopt, n.fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof one);
  raw_syscall(SYS_setsockopt, n.fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one);
  sockaddr_nl a{};
  a.nl_family = AF_NETLINK;
  if (const long e = raw_syscall(SYS_bind, n.fd, &a, sizeof a); e < 0) {
    netlink_close(n);
    return static_cast<int>(e);
  }
  return 0;
}

void netlink_close(netlink& n) {
  if (n.fd >= 0) raw_syscall(SYS_close, n.fd);
  n.fd = -1;
}

int netlink_join(netlink& n, unsigned group) {
  return static_cast<int>(raw_syscall(SYS_setsockopt, n.fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group));
}

int netlink_talk(netlink& n, nlmsghdr* m, bool (*each)(const nlmsghdr*, void*), void* arg) {
  alignas(nlmsghdr) char buf[room];
  m->nlmsg_seq = ++n.seq;
  sockaddr_nl to{}, from{};
  to.nl_family = AF_NETLINK;
  const long sent = raw_syscall(SYS_sendto, n.fd, m, m->nlmsg_len, 0, &to, sizeof to);
  if (sent < 0) return static_cast<int>(sent);
  bool listening = each != nullptr, interrupted = false;
  for (;;) {
    const long k = receive(n.fd, buf, &from);
    if (k < 0) return k == -EAGAIN ? -ETIMEDOUT : static_cast<int>(k);
    int left = static_cast<int>(k);
    for (auto* h = reinterpret_cast<nlmsghdr*>(buf); mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left)) {
      if (h->nlmsg_seq != n.seq) continue;           // of a conversation that was given up
      if (h->nlmsg_flags & NLM_F_DUMP_INTR) interrupted = true;
      if (h->nlmsg_type == NLMSG_ERROR || h->nlmsg_type == NLMSG_DONE) {
        int32_t e = 0;
        if (mnl_nlmsg_get_payload_len(h) >= sizeof e) std::memcpy(&e, mnl_nlmsg_get_payload(h), sizeof e);
        return e < 0 ? e : interrupted ? -EINTR : 0;
      }
      if (h->nlmsg_type < NLMSG_MIN_TYPE) continue;
      if (listening) listening = each(h, arg);
    }
  }
}

int netlink_events(netlink& n, void (*each)(const nlmsghdr*, void*), void* arg) {
  alignas(nlmsghdr) char buf[room];
  sockaddr_nl from{};
  const long k = receive(n.fd, buf, &from);
  if (k == -EAGAIN) return 0;
  if (k < 0) return static_cast<int>(k);
  int left = static_cast<int>(k);
  for (auto* h = reinterpret_cast<nlmsghdr*>(buf); mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left)) each(h, arg);
  return static_cast<int>(k);
}

bool netlink_attrs(const nlmsghdr* m, size_t header, const nlattr** tb, unsigned max) {
  for (unsigned i = 0; i <= max; ++i) tb[i] = nullptr;
  if (mnl_nlmsg_get_payload_len(m) < header) return false;
  attr_sink s{tb, max};
  return mnl_attr_parse(m, static_cast<unsigned>(header), take, &s) >= 0;
}

bool netlink_nested(const nlattr* a, const nlattr** tb, unsigned max) {
  for (unsigned i = 0; i <= max; ++i) tb[i] = nullptr;
  attr_sink s{tb, max};
  return a && mnl_attr_parse_nested(a, take, &s) >= 0;
}

void attr_name(const nlattr* a, char* to, size_t n) {
  std::memset(to, 0, n);
  if (!a) return;
  size_t k = mnl_attr_get_payload_len(a);
  if (k > n - 1) k = n - 1;
  std::memcpy(to, mnl_attr_get_payload(a), k);
  const size_t len = strnlen(to, k);
  std::memset(to + len, 0, n - len);
}

}  // namespace icepath
