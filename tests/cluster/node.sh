#!/bin/sh
# What a virtual node does when it boots; it runs as the child of the node's pid 1, in namespaces of its own.
#   node.sh NAME DIRECTORY SOCKETS REPOSITORY [dockerd options...]
# The node's directories are moved to /run/lab; then all that belongs to this machine and its users is covered, so that
# nothing on a node can use a path of the machine by mistake. /run/lab/machine keeps it, for nodes with a shared file system.
set -eu
name=$1 directory=$2 sockets=$3 repository=$4
shift 4
hostname "$name"
run=$directory/nodes/$name/run # becomes /run when all that it takes from the machine is in it
mkdir -p "$run"
mount -t tmpfs -o mode=755 tmpfs "$run"
for made in sshd lock lab/etc lab/bin lab/node lab/shared lab/slurm lab/socket "${sockets#/run/}/munge"; do
  mkdir -p "$run/$made"
done
mount --bind "$directory/etc" "$run/lab/etc"
mount --bind "$directory/bin" "$run/lab/bin"
mount --bind "$directory/nodes/$name" "$run/lab/node"
mount --bind "$directory/shared" "$run/lab/shared"
mount --bind "$directory/slurm" "$run/lab/slurm"
mount --bind "$sockets/$name" "$run/lab/socket"
mount --bind "$sockets/munge" "$run/${sockets#/run/}/munge"
mount -n --move "$run" /run
for hidden in "$repository" /tmp /home /root; do
  mkdir -p "/run/lab/machine$hidden"
  mount --bind "$hidden" "/run/lab/machine$hidden"
done
for hidden in "$repository" /tmp /home /root; do
  mkdir -p "$hidden"
  mount -t tmpfs -o mode=755 tmpfs "$hidden"
done
chmod 1777 /tmp
chmod 700 /root
mkdir -p "$directory/shared"
mount --bind /run/lab/shared "$directory/shared"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for file in hosts passwd shadow group; do
  mount --bind /run/lab/etc/$file /etc/$file
done
for file in subuid subgid; do
  [ ! -e /etc/$file ] || mount --bind /run/lab/etc/$file /etc/$file
done
[ ! -d /etc/slurm ] || mount --bind /run/lab/slurm/etc /etc/slurm
install -d -o tfjob-user -g tfjob-user -m 700 /home/tfjob-user
cd /
/usr/sbin/sshd -f /run/lab/etc/sshd_config -h "/run/lab/etc/$name" -E /run/lab/node/sshd.log
printf '%s\n' "$repository" /tmp /home /root >/run/lab/hidden
if [ $# -gt 0 ]; then
  printf '%s\n' "$@" >/run/lab/engine-options
  /run/lab/bin/start-engine
fi
exec sleep infinity
