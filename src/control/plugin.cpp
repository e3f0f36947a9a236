// See plugin.hpp.
#include "control/plugin.hpp"

extern "C" [[gnu::visibility("default")]] const icepath::control_plugin* icepath_control_plugin_get() {
  using namespace icepath;
  static constexpr control_plugin plugin = {control_plugin_abi, sizeof(control_plugin), control_open, control_close,
                                            [](const control* c) { return &control_view(c); }, control_fd, control_step, control_forget, control_fds};
  return &plugin;
}
