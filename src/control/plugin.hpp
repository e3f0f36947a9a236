// The writer of the mirror as a plugin, libicepath-control.so: it needs libmnl, which only a process with a port to the outside should map.
// One exported symbol; the functions are those of mirror.hpp.
#pragma once
#include "control/mirror.hpp"

namespace icepath {

struct control_plugin {
  uint32_t abi, size;
  control* (*open)(int* err);
  void (*close)(control* c);
  const control_tables* (*view)(const control* c);
  int (*fd)(const control* c);
  control_changes (*step)(control* c, nsec now, nsec* next);
  void (*forget)(control* c);
  int (*fds)(const control* c, int* to, int room);
};
constexpr uint32_t control_plugin_abi = 1;

}  // namespace icepath

extern "C" const icepath::control_plugin* icepath_control_plugin_get();   // static
