# shellcheck shell=bash
# shellcheck disable=SC2154 # here, state, terminal and writable come from scripts/lab
# A QEMU guest with the distribution's stock kernel. Sourced by scripts/lab.

# qemu_accelerator prints how the guest's processors are run. A /dev/kvm that is
# there may still not work (nested clouds), and QEMU then aborts: so it is tried.
qemu_accelerator() {
	local want=${VPCPROXY_LAB_ACCEL:-auto}
	case $want in
	kvm | tcg) echo "$want" ;;
	auto)
		if [[ -r /dev/kvm && -w /dev/kvm ]] &&
			echo quit | timeout 10 qemu-system-x86_64 -accel kvm -machine q35 -cpu max \
				-nodefaults -display none -S -monitor stdio >/dev/null 2>&1; then
			echo kvm
		else
			echo tcg
		fi
		;;
	*) fail "VPCPROXY_LAB_ACCEL=$want: want kvm, tcg or auto" ;;
	esac
}

# qemu_signal hands a signal to the guest.
qemu_signal() {
	exit_unless_ready "$1"
	echo "$1" >&8
}

qemu_run() {
	command -v qemu-system-x86_64 >/dev/null ||
		fail 'qemu-system-x86_64 is missing. Run: sudo scripts/setup'
	local kernel image options accelerator cpu=max i
	kernel=$("$here/guest/kernel") || exit 125
	accelerator=$(qemu_accelerator)
	case $accelerator in
	tcg) accelerator=tcg,thread=multi ;;
	kvm) cpu=host ;;
	esac
	note "qemu (${accelerator%%,*}): kernel $(<"$kernel/version")"

	[[ -z $terminal ]] || printf 'size=( %s )\n' "$(stty size </dev/tty)" >>"$state/share/session"
	printf '%s\n' "$kernel/lib/modules" >"$state/share/modules"
	: >"$state/share/writable"
	printf '%s\n' "$here/guest/init" >"$state/share/init"

	local -a shares=(
		-fsdev 'local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap'
		-device 'virtio-9p-pci,fsdev=machine,mount_tag=machine'
		-fsdev "local,id=lab,path=$state/share,security_model=none,multidevs=remap"
		-device 'virtio-9p-pci,fsdev=lab,mount_tag=lab'
	)
	for i in "${!writable[@]}"; do
		printf 'writable%s %s\n' "$i" "${writable[i]}" >>"$state/share/writable"
		shares+=(
			-fsdev "local,id=writable$i,path=${writable[i]//,/,,},security_model=none,multidevs=remap"
			-device "virtio-9p-pci,fsdev=writable$i,mount_tag=writable$i"
		)
	done

	local -a streams
	mkfifo "$state/signals.in" "$state/signals.out"
	streams=(
		-device virtio-serial-pci
		-chardev "pipe,id=signals,path=$state/signals" -device 'virtserialport,chardev=signals,nr=1'
	)
	local -a relays=()
	if [[ -n $terminal ]]; then
		streams+=(-chardev 'stdio,id=tty,signal=off' -device 'virtconsole,chardev=tty,nr=2')
		saved_tty=$(stty -g </dev/tty)
	else
		# Through cat, since QEMU leaves its files non-blocking, which would
		# outlive it in whoever shares our standard output.
		mkfifo "$state/out" "$state/err"
		setsid cat "$state/out" &
		relays+=($!)
		setsid cat "$state/err" >&2 &
		relays+=($!)
		streams+=(
			-chardev "file,id=out,path=$state/out" -device 'virtserialport,chardev=out,nr=2'
			-chardev "file,id=err,path=$state/err" -device 'virtserialport,chardev=err,nr=3'
		)
	fi

	[[ -e $kernel/vmlinux ]] && image=$kernel/vmlinux || image=$kernel/vmlinuz
	# no_timer_check: on a busy machine, emulated timers fail the kernel's test.
	# Emulated processors share the machine's clock: the kernel, which distrusts
	# it on two of them, would read a slow device for every time stamp instead.
	options='console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable cryptomgr.notests apparmor=0 audit=0'

	# In a session of its own, so that Ctrl-C does not end the guest before the
	# command could clean up; gone with us if we are killed.
	local -a qemu=(setpriv --pdeathsig KILL -- qemu-system-x86_64
		-machine q35 -accel "$accelerator" -cpu "$cpu"
		-smp "${VPCPROXY_LAB_CPUS:-2}" -m "${VPCPROXY_LAB_MEMORY:-4096}"
		-nodefaults -display none -no-reboot -rtc base=utc
		-kernel "$image" -initrd "$kernel/initramfs"
		-append "$options"
		-serial "file:$state/console"
		"${streams[@]}" "${shares[@]}")
	if [[ -n $terminal ]]; then
		"${qemu[@]}" 2>"$state/qemu.log" || true
		stty "$saved_tty" </dev/tty
	else
		setsid "${qemu[@]}" </dev/null >/dev/null 2>"$state/qemu.log" &
		# shellcheck disable=SC2034 # scripts/lab waits for it
		child=$!
		# Opened for reading too, so that writing to it never blocks.
		exec 8<>"$state/signals.in"
		forward_signals qemu_signal
		watch_boot &
		await
		wait "${relays[@]}" || true
	fi
	[[ -s $state/share/status ]] || guest_verdict
	guest_complaints
	result
}
