package kernel

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Entries that the kernel makes and forgets by itself are no hint; somebody's
// request that makes a permanent entry one of these is.
func TestNeighborsOfTheKernelsOwn(t *testing.T) {
	for state, name := range map[uint16]string{unix.NUD_INCOMPLETE: "incomplete", unix.NUD_FAILED: "failed", unix.NUD_NOARP: "noarp", unix.NUD_PERMANENT: "permanent"} {
		body := make([]byte, unix.SizeofNdMsg)
		native.PutUint16(body[8:], state) // ndm_state
		for _, port := range []uint32{0, 77} {
			m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_DELNEIGH, Pid: port}, Data: body}
			want := port != 0 || state == unix.NUD_PERMANENT
			if got := len(routeHints(m)) > 0; got != want {
				t.Errorf("%s, by port %d: a hint %v, want %v", name, port, got, want)
			}
		}
	}
}
