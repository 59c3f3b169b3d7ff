# What a base image has, asked inside it: lines of `key value` on stdout. Any POSIX shell, no program but the C library's.
# Arguments: the question to each Python, as its -c text.
question=$1
echo "machine $(uname -m)"
for one in /lib/ld-musl-*; do [ -e "$one" ] && echo "musl $one"; done
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc=
if [ -z "$libc" ]; then libc=$(ldd --version 2>/dev/null | head -n 1); fi
if [ -z "$libc" ]; then
    for one in /lib/*/libc.so.6 /lib64/libc.so.6 /usr/lib/libc.so.6; do
        if [ -e "$one" ]; then libc=$("$one" 2>/dev/null | head -n 1) && break; fi
    done
fi
echo "libc $libc"
if [ -r /etc/os-release ]; then (. /etc/os-release && echo "system ${PRETTY_NAME:-$ID}"); fi
for one in sshd ssh ssh-keygen bash tar mpirun g++ make apt-get dnf microdnf yum apk zypper; do
    for folder in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
        if [ -x "$folder/$one" ]; then echo "tool $one" && break; fi
    done
done
IFS=:
for folder in $PATH:/usr/local/bin:/usr/bin:/opt/conda/bin:/opt/python/bin; do
    for one in "$folder"/python3 "$folder"/python3.[0-9] "$folder"/python3.[0-9][0-9]; do
        if [ -x "$one" ] && [ ! -d "$one" ]; then
            real=$(readlink -f "$one" 2>/dev/null) || real=$one
            case ":$asked:" in *":$real:"*) continue ;; esac
            asked="$asked:$real"
            answer=$("$real" -I -S -c "$question" 2>/dev/null) && echo "python $answer $real"
        fi
    done
done
exit 0
