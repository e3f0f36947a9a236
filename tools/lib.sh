# shellcheck shell=bash
# What tools/demo and tools/check share: missing packages, the build. To be sourced; sets `top`.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

group_packages() { sed -n "s/^$1: //p" "$top/tools/packages"; }

# Packages of the groups named that are not installed.
missing_packages() {
  local group package
  local -A seen=()
  for group in "$@"; do
    for package in $(group_packages "$group"); do
      [[ -n ${seen[$package]:-} ]] && continue
      seen[$package]=1
      [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s\n' "$package"
    done
  done
}

# Installs what the groups need. Nothing is run when everything is there.
install_packages() {
  local -a missing as_root=()
  mapfile -t missing < <(missing_packages "$@")
  [[ ${#missing[@]} -eq 0 ]] && return 0
  local line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    printf 'These Debian packages are missing, and there is no apt-get here:\n  %s\n' "${missing[*]}" >&2
    exit 2
  fi
  if [[ $(id -u) -ne 0 ]]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    elif command -v sudo >/dev/null && [[ -t 0 ]]; then
      as_root=(sudo)
    else
      printf 'Packages are missing. Run this as root, then start again:\n  %s\n' "$line" >&2
      exit 2
    fi
  fi
  say "installing ${missing[*]}"
  keep_services_off
  if ! { "${as_root[@]}" apt-get -q update &&
         "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}"; }; then
    let_services_start
    printf 'Installing failed. The line was:\n  %s\n' "$line" >&2
    exit 2
  fi
  let_services_start
}

# redis-server and nginx would be started by their packages: not on account of a demo. Debian's own switch for that.
policy=/usr/sbin/policy-rc.d policy_is_ours=
keep_services_off() {
  [[ -e $policy ]] && return
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null && "${as_root[@]}" chmod 755 "$policy" && policy_is_ours=1
  trap let_services_start EXIT
}
let_services_start() {
  [[ -n $policy_is_ours ]] && "${as_root[@]}" rm -f "$policy"
  policy_is_ours=
  trap - EXIT
}

# configure DIR [meson options]: makes or corrects a build directory.
configure() {
  local dir=$1
  shift
  if [[ -f $dir/build.ninja ]]; then
    [[ $(cat "$dir/.configured" 2>/dev/null) == "$*" ]] && return 0
    meson setup --reconfigure "$@" "$dir" "$top" >"$dir.log" 2>&1 || { tail -n 40 "$dir.log" >&2; die "meson failed in $dir"; }
  else
    meson setup "$@" "$dir" "$top" >"$dir.log" 2>&1 || { tail -n 40 "$dir.log" >&2; die "meson failed in $dir"; }
  fi
  printf '%s\n' "$*" >"$dir/.configured"
  rm -f "$dir.log"
}

# build DIR [targets]
build() {
  local dir=$1
  shift
  ninja -C "$dir" "$@" >"$dir/build.log" 2>&1 || { grep -A 25 -m 3 '^FAILED: ' "$dir/build.log" >&2; return 1; }
}
