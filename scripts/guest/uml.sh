# shellcheck shell=bash
# shellcheck disable=SC2154 # here, state, terminal and writable come from scripts/lab
# A User-Mode Linux guest: near the machine's speed inside the kernel, though not
# for system calls, and with one processor. Sourced by scripts/lab.

# uml_processor prints the last processor that this process may run on. A guest
# that wanders between processors is fast in one run and slow in the next.
uml_processor() {
	local allowed
	allowed=$(taskset -cp $$)
	echo "${allowed##*[:, -]}"
}

# uml_built tells whether a kernel is in the cache.
uml_built() { "$here/guest/kernel-uml" --cached >/dev/null; }

# uml_signal hands a signal to the guest.
uml_signal() {
	exit_unless_ready "$1"
	echo "$1" >&8
}

uml_run() {
	local kernel
	[[ -z $terminal ]] || fail 'a User-Mode Linux guest has no terminal; use VPCPROXY_LAB=qemu'
	kernel=$("$here/guest/kernel-uml") || exit 125
	note "uml: kernel $("$kernel" --version)"

	# A console for the kernel, one for each stream, and one for signals.
	mkfifo "$state/out" "$state/err" "$state/signals"
	# Its helper processes outlive it when it is killed, so it must not keep the
	# janitor's pipe (7) open: the janitor is who kills them.
	setsid cat "$state/out" 7>&- &
	local -a relays=($!)
	setsid cat "$state/err" >&2 7>&- &
	relays+=($!)
	exec 8<>"$state/signals" 5>"$state/out" 6>"$state/err"
	printf '%s\n' "${writable[@]}" >"$state/share/writable"
	mkdir "$state/uml"
	TMPDIR=$state/uml setsid setpriv --pdeathsig KILL -- taskset -c "$(uml_processor)" \
		"$kernel" mem="${VPCPROXY_LAB_MEMORY:-2048}M" umid=lab uml_dir="$state/uml/" \
		root=/dev/root rootfstype=hostfs rootflags=/ ro init="$here/guest/init-uml" \
		con=null con0=null,fd:1 con1=null,fd:5 con2=null,fd:6 con3=fd:8,null \
		quiet dummy.numdummies=0 bonding.max_bonds=0 ifb.numifbs=0 LAB_SHARE="$state/share" LAB_INIT="$here/guest/init" \
		</dev/null >"$state/console" 2>&1 7>&- &
	child=$!
	# It runs as several processes, in one process group.
	echo "$child" >"$state/group"
	exec 5>&- 6>&-
	forward_signals uml_signal
	watch_boot &
	await
	wait "${relays[@]}" || true
	[[ -s $state/share/status ]] || guest_verdict
	guest_complaints
	result
}
