// Command line of `icepath`: only parsing here, every subcommand is a file of its own.
#include <CLI/CLI.hpp>
#include <cstring>
#include "cli.hpp"

int main(int argc, char** argv) {
  using namespace icepath;
  CLI::App app{
      "icepath makes existing TCP programs faster without changing them.\n"
      "Connections between two accelerated processes of this host, and on request those with other hosts over an interface,\n"
      "are carried by a TCP/IP stack inside the processes; everything else stays with the kernel.",
      "icepath"};
  app.set_version_flag("--version,-V", "icepath " ICEPATH_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  icepath run -- redis-server --port 7000\n"
      "  icepath run -- redis-benchmark -p 7000 -t get -c 1\n"
      "  icepath ss\n"
      "  icepath off 4711      # bring every connection of process 4711 back to the kernel\n"
      "Manual pages: icepath(1), icepath-run(1), icepath-ss(1), libicepath(7).");

  cli::run_options run;
  auto* r = app.add_subcommand("run", "run a program with acceleration: icepath run [OPTIONS] -- CMD [ARG...]");
  r->add_flag("--require", run.require, "end the program with a message when the fast path cannot be set up at all (ICEPATH_REQUIRE=1)");
  r->add_option("--ports", run.ports, "ports that may carry connections, separated by commas: local, xdp:IFNAME (ICEPATH_PORTS)")->type_name("PORTS");
  r->add_option("--promote", run.promote, "when a connection leaves the kernel: lazy, eager or never (ICEPATH_PROMOTE)")
      ->check(CLI::IsMember({"lazy", "eager", "never"}))->type_name("WHEN");
  r->add_flag("--stats", run.stats, "one line of counters on stderr when the program ends (ICEPATH_STATS=1)");
  r->footer("Exit status: the program's; 126 when it cannot be executed, 127 when it is not found.");
  r->prefix_command();                 // parsing stops at CMD: its options are its own

  bool ss_json = false, stat_json = false;
  auto* s = app.add_subcommand("ss", "one row for each socket of every accelerated process");
  s->add_flag("--json,-j", ss_json, "print a JSON array");
  s->footer("PATH is `fast` or `kernel`, REASON says why.");
  auto* t = app.add_subcommand("stat", "counters for each accelerated process and layer");
  t->add_flag("--json,-j", stat_json, "print a JSON array");

  pid_t pid = 0;
  const CLI::Range a_pid(1, 1 << 22);   // PID_MAX_LIMIT, proc(5)
  auto* off = app.add_subcommand("off", "bring a process's connections back to the kernel and keep them there");
  off->add_option("PID", pid, "process")->required()->check(a_pid);
  auto* on = app.add_subcommand("on", "allow a process's connections onto the fast path again");
  on->add_option("PID", pid, "process")->required()->check(a_pid);

  cli::doctor_options ask;
  auto* d = app.add_subcommand("doctor", "what would be accelerated on this machine, and what is missing");
  d->add_option("IFNAME", ask.ifname, "only this interface");
  d->add_option("--peer", ask.peer, "also: a connection to this address and port")->type_name("ADDR:PORT");
  d->footer("Exit status: 0 when nothing is missing, 1 otherwise.");

  int own = 0;                         // arguments of ours: all that stand before the first `--`
  while (own < argc && strcmp(argv[own], "--") != 0) ++own;
  try {
    app.parse(own, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? cli::exit_ok : cli::exit_usage;
  }
  if (*r) {
    run.command = r->remaining();
    for (int i = own + 1; i < argc; ++i) run.command.push_back(argv[i]);
    return cli::run(run);
  }
  if (*s) return cli::ss(ss_json);
  if (*t) return cli::stat(stat_json);
  if (*d) return cli::doctor(ask);
  return cli::control(*off ? control_cmd::off : control_cmd::on, pid);
}
