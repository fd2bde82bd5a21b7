# shellcheck shell=bash
# shellcheck disable=SC2154 # here, state and terminal come from scripts/lab
# The machine's own kernel, in namespaces of its own. Sourced by scripts/lab.

# native_missing names the first thing that this kernel cannot do.
# The probes run in a network namespace that goes with them.
native_missing() {
	((EUID == 0)) || { echo 'root (use sudo)' && return; }
	local -a modules
	mapfile -t modules < <(grep -v '^#' "$here/guest/modules")
	# Loaded on the machine because a network namespace has no modules of its own.
	modprobe --quiet --all "${modules[@]}" 2>/dev/null || true
	unshare --net bash -s <<'PROBE' 2>/dev/null
try() {
	local what=$1
	shift
	"$@" >/dev/null || { echo "$what" && exit 0; }
}
try 'GRE (ip_gre)' ip link add probe-gre type gre local 192.0.2.1 key 7
try 'dummy devices' ip link add probe-dummy type dummy
try 'VXLAN' ip link add probe-vxlan type vxlan dstport 4789 external
try 'VRF' ip link add probe-vrf type vrf table 7
try 'netem' tc qdisc add dev probe-dummy root netem delay 1ms
try 'clsact' tc qdisc add dev probe-dummy clsact
try 'FoU' ip fou add port 5555 ipproto 47
try 'nftables NAT' nft 'add table ip probe; add chain ip probe c { type nat hook postrouting priority 100; }; add rule ip probe c masquerade'
try 'iptables-legacy' iptables-legacy -t nat -S
try 'ip6tables-legacy' ip6tables-legacy -t nat -S
try 'iptables-nft' iptables-nft -t nat -A POSTROUTING -m comment --comment probe -j MASQUERADE
try 'ipset' ipset create probe hash:ip
PROBE
}

native_usable() {
	native_lack=$(native_missing)
	[[ -z $native_lack ]]
}

# native_signal hands a signal to the lab's PID 1; unshare itself ignores it.
native_signal() {
	exit_unless_ready "$1"
	pkill "-$1" -P "$child" || true
}

native_run() {
	native_usable || fail "this kernel ($(uname -r)) lacks: $native_lack. Use VPCPROXY_LAB=qemu"
	note "native: kernel $(uname -r)"
	# TMPDIR below the state directory, so that a killed test leaves nothing.
	mkdir "$state/share/tmp"
	printf 'export TMPDIR=/run/lab/tmp\n' >>"$state/share/session"
	local -a enter=(setpriv --pdeathsig KILL -- unshare --net --mount --uts --pid --fork
		--kill-child=KILL -- "$here/guest/init" native "$state/share")
	if [[ -n $terminal ]]; then
		# A job in the background would be stopped on its first read.
		# Not ignored, or Ctrl-C would be ignored in there too.
		trap : INT
		"${enter[@]}" || true
	else
		# With job control, or the lab would start with SIGINT ignored for good.
		set -m
		"${enter[@]}" </dev/null &
		child=$!
		set +m
		forward_signals native_signal
		await
	fi
	result
	fail 'the command left no exit status'
}
