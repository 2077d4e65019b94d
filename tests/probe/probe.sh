#!/bin/sh
# Runs inside a container and tells what it sees there, for fixtures/probe.py to read.
#
# Every line is `topic TAB what it is about TAB what was found`. It needs a busybox at /bin/busybox, and
# nothing else of the root file system. Arguments: paths of which it is told whether anything is there.

b=/bin/busybox
tab=$(printf '\t')

say() { # topic, subject, text (its lines joined by blanks)
    printf '%s\t%s\t%s\n' "$1" "$2" "$(printf '%s' "$3" | $b tr '\n\t' '  ')"
}

read_file() { # topic, subject, path: its content, or why it cannot be read
    say "$1" "$2" "$($b cat "$3" 2>&1 | $b head -c 600)"
}

# --- the process ---------------------------------------------------------------------------------

while IFS=":$tab" read -r name value; do
    case $name in
    Uid | Gid | Groups | CapInh | CapPrm | CapEff | CapBnd | CapAmb | NoNewPrivs | Seccomp | Umask)
        say status "$name" "$value"
        ;;
    esac
done </proc/self/status
say process cwd "$($b pwd)"
say process umask "$(umask)"
say process pid "$$"
read_file process oom_score_adj /proc/self/oom_score_adj
read_file process personality /proc/self/personality
for descriptor in /proc/self/fd/*; do
    number=${descriptor##*/}
    [ "$number" -gt 2 ] || say process "fd $number" open
done
while read -r line; do
    case $line in
    Max*) say limit "$(printf '%s' "$line" | $b cut -c 1-25 | $b sed 's/ *$//')" \
        "$(printf '%s' "$line" | $b cut -c 27-64 | $b tr -s ' ' | $b sed 's/ $//')" ;;
    esac
done </proc/self/limits
$b env | while IFS='=' read -r name value; do
    say env "$name" "$value"
done

# --- what is around it ---------------------------------------------------------------------------

say system hostname "$($b hostname)"
read_file system domainname /proc/sys/kernel/domainname
for map in uid_map gid_map setgroups; do
    say user "$map" "$($b tr -s ' ' </proc/self/$map | $b sed 's/^ //')"
done
for setting in kernel/shmmax kernel/msgmax kernel/sem fs/mqueue/msg_max net/ipv4/ip_unprivileged_port_start; do
    read_file sysctl "$setting" "/proc/sys/$setting"
done
while read -r _ _ _ _ place options rest; do
    optional=${rest%% - *}
    case $rest in "- "*) optional= ;; esac
    kind=${rest#*- }
    super=${kind#* * }
    say mount "$place" "${kind%% *} $options $(printf '%s' "$optional" | $b sed 's/:[0-9]*//g') super:$super"
done </proc/self/mountinfo
for node in /dev/* /dev/*/*; do
    [ -e "$node" ] || continue
    case $node in /dev/pts/[0-9]* | /dev/fd/*) continue ;; esac
    say device "$node" "$($b stat -c '%F %t:%T %a %u:%g' "$node" 2>&1)$([ -h "$node" ] && $b readlink "$node")"
done

# --- what it may do ------------------------------------------------------------------------------

try() { # name, command...: how it ends, in the words of the one who tried
    name=$1
    shift
    words=$("$@" 2>&1 >/dev/null </dev/null)
    say try "$name" "$? ${words##*: }"
}

try "write to the root" $b touch /written
try "make a directory" $b mkdir /made
try "change a mode" $b chmod 700 /made
try "change the host name" $b hostname changed
try "mount" $b mount -t tmpfs none /mnt-of-probe
try "make a node" $b mknod /node c 1 3
$b mknod /serial c 4 64 2>/dev/null
try "open a device that is not a container's" $b sh -c ': </serial'
try "set the clock back by nothing" $b date -s "@$($b date +%s)"
try "signal 0 to pid 1" $b kill -0 1
try "write to sysctl" $b sh -c 'echo 0 >/proc/sys/kernel/panic'
for path in "$@"; do
    if [ -d "$path" ]; then
        found=$($b ls -A "$path" 2>/dev/null)
    else
        found=$($b head -c 1 "$path" 2>/dev/null | $b wc -c)
        found=${found#0}
    fi
    say content "$path" "${found:+some}"
done

# --- its control group ---------------------------------------------------------------------------

g=/sys/fs/cgroup
for file in memory.max memory.low memory.high pids.max cpu.max cpu.max.burst cpu.weight cpu.idle cpuset.cpus.effective \
    memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes pids/pids.max cpu/cpu.shares cpu/cpu.cfs_quota_us \
    cpu/cpu.cfs_period_us cpuset/cpuset.cpus; do
    [ ! -e $g/$file ] || read_file cgroup "$file" $g/$file
done
say end "" ""
