// SCM_RIGHTS: descriptors that leave through a Unix socket and descriptors that arrive. The control data is the program's memory: read by copy_from_user,
// and what is wrong with it is the kernel's to report.
#include "rights.hpp"

#include <algorithm>
#include <cstring>

#include "base/usercopy.hpp"
#include "export.hpp"
#include "sock/mux.hpp"

namespace icepath {
namespace {

constexpr size_t most = 1024;                     // SCM_MAX_FD is 253: what is longer the kernel refuses

template <class F>
void each_fd(const msghdr* user, F fn) {
  msghdr h;
  alignas(cmsghdr) char room[most + sizeof(long)];
  if (copy_from_user(&h, user, sizeof h) || h.msg_controllen < CMSG_LEN(sizeof(int)) || !h.msg_control) return;
  const size_t len = std::min<size_t>(h.msg_controllen, 64 * 1024);
  size_t at = 0;
  while (at + sizeof(cmsghdr) <= len) {
    cmsghdr c;
    const char* const base = static_cast<const char*>(h.msg_control) + at;
    if (copy_from_user(&c, base, sizeof c) || c.cmsg_len < sizeof c || c.cmsg_len > len - at) return;
    if (c.cmsg_level == SOL_SOCKET && c.cmsg_type == SCM_RIGHTS) {
      const size_t bytes = std::min(c.cmsg_len - CMSG_LEN(0), most);
      if (copy_from_user(room, base + CMSG_LEN(0), bytes)) return;
      for (size_t i = 0; i + sizeof(int) <= bytes; i += sizeof(int)) {
        int fd;
        std::memcpy(&fd, room + i, sizeof fd);
        fn(fd);
      }
    }
    at += CMSG_ALIGN(c.cmsg_len);
  }
}

}  // namespace

bool has_control(const msghdr* user) {
  if (!active()) return false;
  size_t n = 0;
  return copy_from_user(&n, &user->msg_controllen, sizeof n) == 0 && n != 0;
}

// What cannot be shared by count is brought back to the kernel for good.
void rights_leave(const msghdr* user) {
  each_fd(user, [](int fd) {
    if (file* const f = fd_lookup(fd); f && f->kind == file_kind::epoll) epoll_export(fd);
    else if (f && !sock_before_pass(fd)) demote_for(fd, "fd passed");
  });
}

void rights_stayed(const msghdr* user) {
  each_fd(user, [](int fd) { sock_pass_failed(fd); });
}

void rights_arrived(const msghdr* user, int flags) {
  each_fd(user, [flags](int fd) { sock_on_received(fd, flags & MSG_PEEK); });
}

}  // namespace icepath
