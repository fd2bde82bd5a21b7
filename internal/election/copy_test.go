package election

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha"
	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// A preferred node that comes back leaves the other active until its copy of the
// connections is whole.
func TestPreemptsWithACopyOnly(t *testing.T) {
	r := newRig(t)
	var copied atomic.Bool
	r.opts.Copied = func(group string) bool { return group == "g" && copied.Load() }
	e := election()
	e.Peers[0].Priority = 50
	r.start(e)
	r.eventually("opened", func() bool { return r.opened() == 1 })
	stop := make(chan struct{})
	defer close(stop)
	go advertise(t, r.line(), stop)
	r.eventually("hears the other", func() bool {
		s := r.Status()
		return len(s) == 1 && s[0].Node.Active == peer
	})
	// Many down intervals, and longer than health is looked at again.
	for until := time.Now().Add(2 * lookEvery); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if !r.idle() {
			t.Fatalf("took %v without a copy", r.held())
		}
	}
	if !r.Status()[0].Node.Behind {
		t.Error("it does not say that it is behind")
	}
	copied.Store(true)
	r.eventually("active", r.active)
}

// advertise is a peer of priority 50 that believes to be active.
func advertise(t *testing.T, l *line, stop chan struct{}) {
	e := election()
	a := vrrp.Advertisement{VRID: e.VRID, Priority: 50, Interval: e.Interval, Addresses: configOf(e).Addresses}
	b, err := a.Append(nil, peer, local, vrrp.RFC9568, nil)
	if err != nil {
		t.Error(err)
		return
	}
	ticker := time.NewTicker(e.Interval / 4)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
			select {
			case l.in <- ha.Datagram{Src: peer, Dst: local, TTL: vrrp.HopLimit, Payload: b}:
			case <-stop:
				return
			}
		}
	}
}
