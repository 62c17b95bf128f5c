# $0 is our program for single reads, $1 the engine, $2 the number of repetitions. Both sides of a connection are in this guest.
set -e
program=$0 engine=$1 reps=$2
server=10.9.0.1

# The server of perftest serves one client.
perftest() {
    tool=$1
    shift
    "$tool" -d rxe0 -x 1 "$@" >/dev/null 2>&1 &
    server_pid=$!
    # It listens when the port of the bootstrap is there.
    until grep -q ':4853 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.02; done
    "$tool" -d rxe0 -x 1 "$@" "$server"
    wait "$server_pid"
}

"$program" serve "$server:18600" >/run/one_sided.address &
own_pid=$!
until [ -s /run/one_sided.address ]; do sleep 0.02; done

mkdir /run/volume
needles=$("$program" volume /run/volume $(for _ in $(seq 16); do echo 1048576; done))
"$engine" serve --listen "$server:18601" --status-addr 127.0.0.1:0 --volume-dir /run/volume >/run/engine.log 2>&1 &
engine_pid=$!
until grep -q ^serving /run/engine.log; do sleep 0.02; done

# From the engine, through the client: asked for, granted, read, verified or not, given back. Gives MB/s and the median in µs.
engine_bench() {
    "$engine" bench "$server:18601" $needles --transports verbs --sizes "$1" --depths "$2" --seconds 4 |
        awk 'NR > 1 { print $4, $6 }'
}

for _ in $(seq "$reps"); do
    for row in "1m 1048576 128" "64k 65536 1024"; do
        set -- $row
        # -t keeps reads on the way; the last line of the table has: bytes, iterations, peak, average MiB/s, messages/s.
        value=$(perftest ib_read_bw -s "$2" -n "$3" -t 16 -F | awk -v size="$2" '$1 == size { print $4 }')
        echo "$1 perftest $value"
        echo "$1 ours $("$program" bandwidth "$server:18600" "$2" 16 "$3")"
        echo "engine-$1 perftest $value"
        echo "engine-$1 ours $(engine_bench "$2" 16 | awk '{ print $1 * 1000000 / 1048576 }')"
    done
    # bytes, iterations, least, most, typical (median) in µs, ... Polling without a pause takes the processor away from soft-RoCE's own threads
    # where there are only two; with -e perftest sleeps until there is an event.
    value=$(perftest ib_read_lat -s 4096 -n 1000 -F | awk '$1 == 4096 { print $5 }')
    echo "latency perftest $value"
    echo "engine-4k perftest $value"
    own=$(engine_bench 4096 1 | awk '{ print $2 }')
    echo "engine-4k ours $own"
    # A request and its answer are two messages, each of which takes what perftest tells.
    echo "trip-4k perftest $(perftest ib_send_lat -s 4096 -n 1000 -F | awk '$1 == 4096 { print 2 * $5 }')"
    echo "trip-4k ours $own"
    echo "events perftest $(perftest ib_read_lat -s 4096 -n 1000 -F -e | awk '$1 == 4096 { print $5 }')"
    value=$("$program" latency "$server:18600" 4096 1000)
    echo "latency ours $value"
    echo "events ours $value"
done
kill "$own_pid" "$engine_pid"
