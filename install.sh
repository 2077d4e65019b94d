#!/bin/bash
# Installs sealrun on Debian 12 (amd64), or removes it. See usage() below, and HACKING.md for how
# the installed tree is laid out. Safe to run again at any time: what is already there stays.

set -euo pipefail
umask 022

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
readonly here
prefix=/usr/local
sysconfdir=/etc
cache=/var/cache/sealrun
action=install
demo=no
tpm=no

# What runs sealrun and, next to it, an ordinary Podman.
readonly host_packages=(
    ca-certificates python3 python3-pip
    podman conmon crun netavark iptables uidmap catatonit
    golang-github-containers-common golang-github-containers-image
    qemu-system-x86
)
# What VMs with a TPM need (--tpm): the emulator, and firmware that measures what it boots.
readonly tpm_packages=(swtpm ovmf)
# What the demo builds, encrypts and pushes its image with.
readonly demo_packages=(buildah skopeo openssl)

usage() {
    cat <<'TEXT'
usage: sudo ./install.sh [options]

Installs sealrun, or removes it again. Needs Debian 12 on amd64.

  --demo            after the installation, run demo/run: an encrypted image in a sealed micro-VM
  --tpm             also install what VMs with a TPM need (tee = "tpm" in sealrun.toml);
                    with --demo: the VMs of the demonstration have one
  --prefix DIR      where programs, packages and guest image go (default /usr/local)
  --sysconfdir DIR  where drop-ins go: Podman's below containers/, CRI-O's where there is a crio/, that of
                    containerd 2 where there is a containerd/conf.d/ (default /etc, where they look)
  --cache DIR       where downloads for the guest image are kept (default /var/cache/sealrun)
  --uninstall       remove what an installation with the same directories put there
  --help            this text
TEXT
}

# --- telling ---------------------------------------------------------------------------------------

step_number=0
step_total=5

step() {
    step_number=$((step_number + 1))
    printf '[%d/%d] %s\n' "$step_number" "$step_total" "$*"
}

say() { printf '      %s\n' "$*"; }

die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

# Runs a command with its output in the log; on failure shows the end of it.
logged() {
    local what=$1 status=0
    shift
    printf -- '--- %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null || status=$?
    if ((status != 0)); then
        tail -n 15 "$log" >&2
        die "cannot $what: exit status $status; the whole output is in $log (run install.sh again to go on from here)"
    fi
}

# --- arguments -------------------------------------------------------------------------------------

# Sets the variable that the option $1 names to the directory $2.
read_directory() {
    [[ $# -ge 2 ]] || die "$1 needs a directory"
    [[ $2 == /* && $2 != / ]] || die "$1 needs an absolute path, not '$2'"
    [[ $2 =~ ^[A-Za-z0-9._/+-]+$ ]] || die "$1 cannot have special characters: '$2'"
    printf -v "${1#--}" '%s' "${2%/}"
}

parse_arguments() {
    while [[ $# -gt 0 ]]; do
        case $1 in
        --prefix=* | --sysconfdir=* | --cache=*)
            set -- "${1%%=*}" "${1#*=}" "${@:2}"
            continue
            ;;
        --prefix | --sysconfdir | --cache)
            read_directory "$@"
            shift
            ;;
        --demo) demo=yes ;;
        --tpm) tpm=yes ;;
        --uninstall) action=uninstall ;;
        --help | -h) usage && exit 0 ;;
        *) usage >&2 && die "unknown argument '$1'" ;;
        esac
        shift
    done
    [[ $action == install || $demo == no ]] || die "--demo and --uninstall exclude each other"
    lib=$prefix/lib/sealrun
    share=$prefix/share/sealrun
    dropin=$sysconfdir/containers/containers.conf.d/50-sealrun.conf
    crio_dropin=$sysconfdir/crio/crio.conf.d/50-sealrun.conf
    containerd_dropin=$sysconfdir/containerd/conf.d/50-sealrun.toml
    log=/var/log/sealrun-install.log
    readonly prefix sysconfdir cache action demo tpm lib share dropin crio_dropin containerd_dropin log
}

# --- machine ---------------------------------------------------------------------------------------

check_machine() {
    step "this machine"
    local system version
    system=$(sed -n 's/^ID=//p' /etc/os-release | tr -d '"')
    version=$(sed -n 's/^VERSION_ID=//p' /etc/os-release | tr -d '"')
    [[ $system == debian && $version == 12 ]] ||
        die "cannot install on $system $version: the pinned packages are those of Debian 12"
    [[ $(dpkg --print-architecture) == amd64 ]] ||
        die "cannot install on $(dpkg --print-architecture): only amd64 is supported"
    local virtualization="no usable KVM: virtual machines will be emulated, which is slow"
    if [[ -w /dev/kvm ]] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
        virtualization="hardware virtualization by KVM"
    fi
    say "Debian 12, amd64, $virtualization"
}

# --- Debian packages -------------------------------------------------------------------------------

missing_packages() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            printf '%s\n' "$package"
    done
}

apt_install() {
    local -a apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -q
        --no-remove -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    # A fresh machine has no package lists, and old lists name files that are gone: then update.
    if apt-cache show "$@" >/dev/null 2>&1 &&
        "${apt[@]}" install --no-install-recommends "$@" >>"$log" 2>&1 </dev/null; then
        return
    fi
    say "updating apt's package lists"
    logged "update apt's package lists" "${apt[@]}" update
    logged "install Debian packages" "${apt[@]}" install --no-install-recommends "$@"
}

# The package starts a registry on a fixed port and at every boot. The demo starts its own, on a
# free port, so the packaged service is kept from starting: now by policy-rc.d, later by disabling
# it. A machine that has docker-registry already is left as it is.
install_registry() {
    [[ -n $(missing_packages docker-registry) ]] || return 0
    say "installing docker-registry for the demo; its packaged service stays off"
    if [[ ! -e /usr/sbin/policy-rc.d ]]; then
        made_policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$made_policy"
        chmod 755 "$made_policy"
    fi
    apt_install docker-registry
    [[ -z $made_policy ]] || rm -f "$made_policy"
    made_policy=
    if [[ -d /run/systemd/system ]]; then
        systemctl disable docker-registry.service >>"$log" 2>&1 || true
    fi
}

install_packages() {
    step "Debian packages"
    local -a wanted=("${host_packages[@]}" "${demo_packages[@]}") missing
    if [[ $tpm == yes ]]; then wanted+=("${tpm_packages[@]}"); fi
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    if [[ ${#missing[@]} -gt 0 ]]; then
        say "installing ${#missing[@]}: ${missing[*]}"
        apt_install "${missing[@]}"
    else
        say "all there"
    fi
    install_registry
}

# --- our programs and packages ---------------------------------------------------------------------

# A digest over names, modes and contents of everything below the given paths.
digest_of() {
    (cd "$here" && find "$@" \( -name __pycache__ -o -name '.*_cache' \) -prune -o -type f -printf '%m %p\0' |
        sort -z | tee >(tr '\0' '\n' | cut -d' ' -f2- | tr '\n' '\0' | xargs -0 cat | sha256sum) |
        sha256sum) | sort | sha256sum | cut -c1-64
}

# Puts the finished directory $1 in the place of $2 at one stroke, so that whoever looks meets
# either the old tree or the new one; renameat2 exchanges the two where the file system can.
switch_tree() {
    local new=$1 place=$2
    if [[ -d $place ]]; then
        /usr/bin/python3 -ISE -c '
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
new, place = map(os.fsencode, sys.argv[1:])
if libc.renameat2(-100, new, -100, place, 2) != 0:  # AT_FDCWD, RENAME_EXCHANGE
    os.rename(place, place + b".old")
    os.rename(new, place)
    os.rename(place + b".old", new)
' "$new" "$place"
        rm -rf -- "$new"
    else
        mv -T -- "$new" "$place"
    fi
}

install_wheels() {
    local target=$1 wheels
    wheels=$(digest_of config/requirements/host.txt config/requirements/broker.txt)
    if [[ -f $lib/site-packages/.digest && $(<"$lib/site-packages/.digest") == "$wheels" ]]; then
        cp -a -- "$lib/site-packages" "$target"
        return
    fi
    say "third-party Python packages, pinned and hashed"
    logged "install third-party Python packages" \
        /usr/bin/python3 -I -m pip install --quiet --no-input --disable-pip-version-check \
        --root-user-action ignore --require-hashes --only-binary :all: --no-deps --no-compile \
        --target "$target" \
        -r "$here/config/requirements/host.txt" -r "$here/config/requirements/broker.txt"
    rm -rf -- "${target:?}/bin"
    printf '%s\n' "$wheels" >"$target/.digest"
}

build_programs() {
    step "programs and packages in $lib"
    local -a parts=(runtime/bin runtime/sealrun_runtime vmm/sealrun_vmm
        guest-agent/sealrun_protocol key-broker/bin key-broker/sealrun_broker)
    local part digest
    for part in "${parts[@]}" guest-agent/image guest-agent/sealrun_agent config/requirements; do
        [[ -d $here/$part ]] || die "cannot install: $here/$part is missing from this checkout"
    done
    digest="$(digest_of "${parts[@]}" config/requirements config/sealrun.toml) $(/usr/bin/python3 -V)"
    if [[ -f $lib/.digest && $(<"$lib/.digest") == "$digest" ]]; then
        say "up to date"
    else
        new_lib=$prefix/lib/.sealrun.new
        rm -rf -- "$new_lib"
        mkdir -p -- "$new_lib"
        tar -C "$here" --exclude=__pycache__ --owner=0 --group=0 --mode=u=rwX,go=rX -cf - "${parts[@]}" |
            tar -C "$new_lib" --no-same-owner -xf -
        install_wheels "$new_lib/site-packages"
        logged "byte-compile" /usr/bin/python3 -ISE -m compileall -q \
            --invalidation-mode unchecked-hash -s "$new_lib" -p "$lib" "$new_lib"
        printf '%s\n' "$digest" >"$new_lib/.digest"
        say "copied and byte-compiled"
    fi
}

# A symbolic link, replaced by rename so that the name is never missing.
link() {
    [[ $(readlink -- "$2" || true) == "$1" ]] && return
    [[ ! -e $2 || -L $2 ]] || die "cannot install $2: something else is there"
    ln -s -- "$1" "$2.new"
    mv -T -- "$2.new" "$2"
}

# --- guest image -----------------------------------------------------------------------------------

# The builder works in a copy made of hard links and replaces files by rename, so the image in use is
# untouched until the finished one is exchanged for it. It does nothing where nothing changed.
build_guest_image() {
    step "guest image in $share/guest"
    new_guest=$share/.guest.new
    rm -rf -- "$new_guest"
    mkdir -p -- "$share" "$cache"
    if [[ -d $share/guest ]]; then cp -al -- "$share/guest" "$new_guest"; fi
    if ! run_builder; then
        say "once more, with fresh package lists"
        logged "update apt's package lists" apt-get -q update
        run_builder || die "cannot build the guest image: the reason stands above"
    fi
    if [[ $new_guest/manifest.json -ef $share/guest/manifest.json ]]; then
        rm -rf -- "$new_guest"
    fi
}

run_builder() {
    /usr/bin/python3 -I "$here/guest-agent/image/build" \
        --output "$new_guest" --cache "$cache/guest-image" 2>&1 </dev/null |
        tee -a "$log" | sed -u "s|^guest image: |      |; s|$new_guest|$share/guest|g"
}

# Both trees at once, since runtime and guest image have to be of the same release.
put_in_place() {
    if [[ -d $new_guest ]]; then switch_tree "$new_guest" "$share/guest"; fi
    if [[ -d $new_lib ]]; then switch_tree "$new_lib" "$lib"; fi
    mkdir -p -- "$prefix/bin"
    link ../lib/sealrun/runtime/bin/sealrun "$prefix/bin/sealrun"
    link ../lib/sealrun/key-broker/bin/sealrun-broker "$prefix/bin/sealrun-broker"
}

# --- configuration ---------------------------------------------------------------------------------

# Writes standard input to the file $1 by rename, where it differs.
place() {
    local new=$1.new
    mkdir -p -- "$(dirname -- "$1")"
    cat >"$new"
    if cmp -s -- "$new" "$1"; then
        rm -f -- "$new"
    else
        mv -T -- "$new" "$1"
        say "wrote $1"
    fi
}

# The program that a drop-in names, where it is another installation's, and is there.
other_program() {
    local named
    named=$(grep -oEs -m 1 '"/[^"]*/bin/sealrun"' "$1" | tr -d '"') || return 0
    if [[ $named != "$prefix/bin/sealrun" && -e $named ]]; then printf '%s\n' "$named"; fi
}

# Writes standard input to the drop-in $1. An engine knows sealrun by one name, which is then this installation's.
place_drop_in() {
    local other
    other=$(other_program "$1")
    place "$1"
    if [[ -n $other ]]; then say "which named $other until now: an engine knows one installation by that name, and it is this one"; fi
}

with_prefix() { sed "s|/usr/local/bin/|$prefix/bin/|" "$here/config/$1"; }

# CRI-O's drop-in goes where it looks, on a machine that has its directory, and so does that of containerd 2. containerd
# before version 2 merges no drop-in with its own settings, and does not start with one of version 3; a RuntimeClass is the
# cluster's: these are for the administrator to take.
install_drop_ins() {
    with_prefix containers.conf.d/50-sealrun.conf | place_drop_in "$dropin"
    local name
    for name in containerd/{,50-}sealrun.toml crio/50-sealrun.conf kubernetes/runtime-class.yaml; do
        with_prefix "$name" | place "$share/$name"
    done
    if [[ -d $sysconfdir/crio ]]; then
        place_drop_in "$crio_dropin" <"$share/crio/50-sealrun.conf"
        say "CRI-O knows it after a restart: handler sealrun-kata"
    fi
    if [[ -d ${containerd_dropin%/*} ]] && grep -Eqs '^ *version *= *[3-9]' "$sysconfdir/containerd/config.toml"; then
        place_drop_in "$containerd_dropin" <"$share/containerd/50-sealrun.toml"
        say "containerd knows it after a restart, if its config.toml imports ${containerd_dropin%/*}/*.toml: handler sealrun-kata"
    elif [[ -d $sysconfdir/containerd ]]; then
        say "for Kubernetes on containerd 1: append $share/containerd/sealrun.toml to $sysconfdir/containerd/config.toml"
        say "on containerd 2: import $share/containerd/50-sealrun.toml there"
    fi
    say "for other engines and for clusters: $share/{containerd,crio,kubernetes}"
}

install_configuration() {
    step "configuration"
    place "$share/sealrun.toml" <"$here/config/sealrun.toml"
    install_drop_ins
    local version
    version=$("$prefix/bin/sealrun" --version | head -n 1) || die "cannot run $prefix/bin/sealrun"
    say "$version is ready"
    if [[ $sysconfdir == /etc ]]; then
        local name
        # Podman's first call on a machine warns about CNI plugins while it settles for netavark.
        name=$(podman --runtime sealrun info --format '{{.Host.OCIRuntime.Name}}' 2>>"$log" </dev/null) ||
            die "cannot use sealrun from Podman: $(tail -n 1 "$log")"
        [[ $name == sealrun ]] || die "cannot use sealrun from Podman: it chose $name"
        say "Podman knows it: podman --runtime sealrun run ..."
    fi
}

# --- removal ---------------------------------------------------------------------------------------

# Process ids that run a program of this installation: a sandbox that is still there.
running_sandboxes() {
    local process
    for process in /proc/[0-9]*; do
        if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -qF -- " $lib/runtime/bin/sealrun-shim"; then
            printf '%s\n' "${process#/proc/}"
        fi
    done
}

remove_path() {
    if [[ -e $1 || -L $1 ]]; then
        rm -rf -- "$1"
        say "removed $1"
    fi
}

uninstall() {
    step_total=1
    step "removing sealrun from $prefix and $sysconfdir"
    local -a sandboxes
    mapfile -t sandboxes < <(running_sandboxes)
    [[ ${#sandboxes[@]} -eq 0 ]] ||
        die "cannot uninstall: sandboxes are running (shim pids ${sandboxes[*]}); remove their containers first"
    local name
    for name in sealrun sealrun-broker; do
        if [[ $(readlink -- "$prefix/bin/$name" || true) == ../lib/sealrun/* ]]; then
            remove_path "$prefix/bin/$name"
        fi
    done
    local file other
    for file in "$dropin" "$crio_dropin" "$containerd_dropin"; do
        other=$(other_program "$file")
        if [[ -n $other ]]; then say "left $file: it names $other"; else remove_path "$file"; fi
    done
    remove_path "$share"
    remove_path "$lib"
    remove_path "$prefix/lib/.sealrun.new"   # of an installation that was killed
    remove_path "$cache/guest-image"
    # Whatever else is in these directories, or was given as one of them, is somebody else's.
    rmdir -- "$cache" "${dropin%/*}" "$sysconfdir/containers" "${crio_dropin%/*}" 2>/dev/null || true
    if [[ -d /etc/sealrun ]]; then
        say "left /etc/sealrun: what it holds is yours"
    fi
    if [[ -d /var/lib/sealrun/tpm ]]; then
        say "left /var/lib/sealrun/tpm: the keys of this host's TPMs, which others may trust"
    fi
    say "Debian packages stay: others may use them by now"
    rm -f -- "$log"
}

# --- main ------------------------------------------------------------------------------------------

new_lib=
new_guest=
made_policy=

clean_up() {
    [[ -z $new_lib ]] || rm -rf -- "$new_lib"
    [[ -z $new_guest ]] || rm -rf -- "$new_guest"
    [[ -z $made_policy ]] || rm -f -- "$made_policy"
}

main() {
    parse_arguments "$@"
    [[ $(id -u) == 0 ]] || die "must run as root: sudo ./install.sh"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkdir --parents /run/lock   # a fresh /run may not have it yet
    exec 9>/run/lock/sealrun-install.lock
    flock --nonblock 9 || die "another install.sh is running"
    printf '=== install.sh %s\n' "$*" >>"$log"
    if [[ $action == uninstall ]]; then
        uninstall
        return
    fi
    check_machine
    install_packages
    build_programs
    build_guest_image
    put_in_place
    install_configuration
    exec 9>&-
    if [[ $demo == yes ]]; then
        printf '\n'
        local -a how=(--prefix "$prefix")
        if [[ $tpm == yes ]]; then how+=(--tpm); fi
        "$here/demo/run" "${how[@]}"
    fi
}

main "$@"
