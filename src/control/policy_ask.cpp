// See policy.hpp: what is asked of the kernel for one connection, because no table of it can be kept: conntrack and cgroup BPF.
// Any thread, in the namespace of that thread. No libmnl here: two small messages.
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <cstdio>

#include "base/raw_syscall.hpp"
#include "control/policy.hpp"

namespace icepath {
namespace {

long read_file(const char* path, char* to, size_t room) {
  const long fd = raw_syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return fd;
  const long k = raw_syscall(SYS_read, fd, to, room - 1);
  raw_syscall(SYS_close, fd);
  to[k > 0 ? k : 0] = 0;
  return k;
}

struct message {
  alignas(4) char b[512];
  uint32_t n = 0;
  uint32_t begin(uint16_t type, const void* p, uint32_t len) {
    const uint32_t at = n;
    const nlattr a{static_cast<uint16_t>(NLA_HDRLEN + len), type};
    std::memcpy(b + n, &a, sizeof a);
    if (len) std::memcpy(b + n + NLA_HDRLEN, p, len);
    const uint32_t padded = NLA_ALIGN(NLA_HDRLEN + len);
    std::memset(b + n + NLA_HDRLEN + len, 0, padded - NLA_HDRLEN - len);
    n += padded;
    return at;
  }
  uint32_t nest(uint16_t type) { return begin(static_cast<uint16_t>(type | NLA_F_NESTED), nullptr, 0); }
  void end(uint32_t at) {
    const auto len = static_cast<uint16_t>(n - at);
    std::memcpy(b + at, &len, 2);
  }
};

// 1: tracked; 0: not; -errno.
int tracked(const four_tuple& t) {
  message m;
  const bool v4 = t.daddr.is_v4();
  nlmsghdr h{};
  nfgenmsg g{};
  h.nlmsg_type = (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_GET;
  h.nlmsg_flags = NLM_F_REQUEST;
  h.nlmsg_seq = 1;
  g.nfgen_family = v4 ? AF_INET : AF_INET6;
  g.version = NFNETLINK_V0;
  m.n = sizeof h + sizeof g;
  std::memcpy(m.b + sizeof h, &g, sizeof g);
  const uint8_t tcp = IPPROTO_TCP;
  const uint16_t ports[2] = {__builtin_bswap16(t.sport), __builtin_bswap16(t.dport)};
  const uint32_t len = v4 ? 4 : 16, skip = v4 ? 12 : 0;
  const uint32_t tuple = m.nest(CTA_TUPLE_ORIG), ip = m.nest(CTA_TUPLE_IP);
  m.begin(v4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC, t.saddr.b + skip, len);
  m.begin(v4 ? CTA_IP_V4_DST : CTA_IP_V6_DST, t.daddr.b + skip, len);
  m.end(ip);
  const uint32_t proto = m.nest(CTA_TUPLE_PROTO);
  m.begin(CTA_PROTO_NUM, &tcp, 1);
  m.begin(CTA_PROTO_SRC_PORT, &ports[0], 2);
  m.begin(CTA_PROTO_DST_PORT, &ports[1], 2);
  m.end(proto);
  m.end(tuple);
  h.nlmsg_len = m.n;
  std::memcpy(m.b, &h, sizeof h);
  const long fd = raw_syscall(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
  if (fd < 0) return static_cast<int>(fd);
  const timeval second{1, 0};
  raw_syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
  sockaddr_nl to{};
  to.nl_family = AF_NETLINK;
  long r = raw_syscall(SYS_sendto, fd, m.b, m.n, 0, &to, sizeof to);
  alignas(4) char answer[4096];
  if (r >= 0) r = raw_syscall(SYS_recvfrom, fd, answer, sizeof answer, 0, nullptr, nullptr);
  raw_syscall(SYS_close, fd);
  if (r < 0) return static_cast<int>(r);
  if (r < static_cast<long>(sizeof h + sizeof(int32_t))) return -EBADMSG;
  int32_t e;
  std::memcpy(&h, answer, sizeof h);
  std::memcpy(&e, answer + sizeof h, sizeof e);
  if (h.nlmsg_type != NLMSG_ERROR) return 1;
  return e == -ENOENT ? 0 : e ? e : -EBADMSG;
}

// A directory fd of the cgroup: by the path of this process when the number is the same, else by number (CAP_DAC_READ_SEARCH). -errno.
long open_cgroup(uint64_t id) {
  char b[4096], path[4400], mounts[16384];
  const long n = read_file("/proc/self/cgroup", b, sizeof b);
  if (n < 0) return n;
  if (read_file("/proc/self/mounts", mounts, sizeof mounts) < 0) return -ENOENT;
  // "device directory cgroup2 options": the first such line.
  const char *dir = nullptr, *dir_end = nullptr;
  for (const char* line = mounts; line && *line; line = std::strchr(line, '\n') ? std::strchr(line, '\n') + 1 : nullptr) {
    const char* d = std::strchr(line, ' ');
    const char* e = d ? std::strchr(d + 1, ' ') : nullptr;
    if (e && std::strncmp(e, " cgroup2 ", 9) == 0) {
      dir = d + 1;
      dir_end = e;
      break;
    }
  }
  if (!dir) return -ENOENT;
  const int dir_len = static_cast<int>(dir_end - dir);
  const char* own = std::strncmp(b, "0::", 3) == 0 ? b : std::strstr(b, "\n0::");
  long fd = -ENOENT;
  if (own) {
    own += *own == '\n' ? 4 : 3;
    const int len = static_cast<int>(std::strcspn(own, "\n"));
    std::snprintf(path, sizeof path, "%.*s%.*s", dir_len, dir, len, own);
    fd = raw_syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    struct stat s;
    if (fd >= 0 && (id == 0 || (::fstat(static_cast<int>(fd), &s) == 0 && s.st_ino == id))) return fd;
    if (fd >= 0) raw_syscall(SYS_close, fd);
    if (id == 0) return fd < 0 ? fd : -ENOENT;
  }
  std::snprintf(path, sizeof path, "%.*s", dir_len, dir);
  const long mount = raw_syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (mount < 0) return mount;
  struct {
    file_handle h;
    uint64_t id;
  } handle{};
  handle.h.handle_bytes = sizeof handle.id;
  handle.h.handle_type = 0xfe;   // FILEID_KERNFS
  std::memcpy(handle.h.f_handle, &id, sizeof id);
  fd = raw_syscall(SYS_open_by_handle_at, mount, &handle, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  raw_syscall(SYS_close, mount);
  return fd;
}

}  // namespace

const char* control_policy_conntrack(const four_tuple& t) {
  char b[32];
  const long n = read_file("/proc/sys/net/netfilter/nf_conntrack_count", b, sizeof b);   // of the reader's namespace
  if (n == -ENOENT) return nullptr;   // no conntrack in this kernel
  if (n > 0 && b[0] == '0' && (b[1] == '\n' || b[1] == 0)) return nullptr;
  for (const bool turned : {false, true}) {   // as the tuple of whoever spoke first
    const int r = tracked(turned ? t.reversed() : t);
    if (r == 1) return "conntrack: the connection is tracked";
    if (r < 0) return "conntrack: cannot be asked";
  }
  return nullptr;
}

const char* control_policy_cgroup(uint64_t id) {
  const long fd = open_cgroup(id);
  if (fd < 0) return "cgroup BPF: the socket's cgroup cannot be opened";
  static constexpr struct { uint32_t type; const char* why; } hooks[] = {
      {BPF_CGROUP_INET_INGRESS, "cgroup BPF: a program on ingress"}, {BPF_CGROUP_INET_EGRESS, "cgroup BPF: a program on egress"},
      {BPF_CGROUP_SOCK_OPS, "cgroup BPF: a sock_ops program"}, {BPF_CGROUP_GETSOCKOPT, "cgroup BPF: a getsockopt program"}};
  const char* why = nullptr;
  for (const auto& h : hooks) {
    bpf_attr a{};
    a.query.target_fd = static_cast<uint32_t>(fd);
    a.query.attach_type = h.type;
    a.query.query_flags = BPF_F_QUERY_EFFECTIVE;
    const long r = raw_syscall(SYS_bpf, BPF_PROG_QUERY, &a, sizeof a);
    if (r == -EINVAL && h.type == BPF_CGROUP_GETSOCKOPT) continue;   // a kernel without that hook
    if (r < 0) why = "cgroup BPF: programs cannot be asked for";
    else if (a.query.prog_cnt) why = h.why;
    if (why) break;
  }
  raw_syscall(SYS_close, fd);
  return why;
}

}  // namespace icepath
