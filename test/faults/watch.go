package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const (
	// askEvery is how often neighbors ask who has a HaVip.
	askEvery = 20 * time.Millisecond
	// bothLimit is for how long two may answer for a HaVip: three intervals of
	// 100 ms and the longest skew, and what the lab adds.
	bothLimit = 550 * time.Millisecond
)

// watch sees what must never be: packets on the ENIs, and who has the HaVips.
type watch struct {
	enis   []*traffic.Capture
	leaked int // that has been reported
	// tagged counts the packets of each tenant that left an ENI of its own.
	tagged map[string]*atomic.Int64
	askers map[string]*traffic.Asker
}

// tag is what the packets of a tenant's pods carry as their TOS, which nothing
// on their way changes: a class selector (RFC 2474) of the tenant's own.
func tag(tenant string) byte { return byte(1+slices.Index(tenants, tenant)) << 5 }

// tagLines have a pod tag all that it sends.
func tagLines(tenant string) []string {
	return []string{
		"nft add table ip tag", "nft 'add chain ip tag out { type filter hook output priority mangle; }'",
		fmt.Sprintf("nft add rule ip tag out ip dscp set %d", tag(tenant)>>2),
	}
}

// tagOwner is the tenant that has a tag; "" if none has.
func tagOwner(tos byte) string {
	for _, tenant := range tenants {
		if tos&^3 == tag(tenant) { // without ECN
			return tenant
		}
	}
	return ""
}

func startWatch(lab *topo.Lab) (*watch, error) {
	w := &watch{askers: map[string]*traffic.Asker{}, tagged: map[string]*atomic.Int64{}}
	for _, tenant := range tenants {
		w.tagged[tenant] = new(atomic.Int64)
	}
	for _, x := range lab.Proxies {
		for _, tenant := range tenants {
			c, err := traffic.StartCapture(lab.VPCs[tenant].Machine, x.ENIs[tenant].Port, w.strange(tenant, x.ENIs[tenant].Address.Addr(), innerVip))
			if err != nil {
				return w, err
			}
			w.enis = append(w.enis, c)
		}
	}
	outer, err := traffic.StartAsker(lab.Router, "proxies", outerVip, askEvery)
	if err != nil {
		return w, err
	}
	w.askers["underlay"] = outer
	for _, tenant := range tenants {
		inner, err := traffic.StartAsker(lab.VPCs[tenant].Machine, "subnet", innerVip, askEvery)
		if err != nil {
			return w, err
		}
		w.askers[tenant] = inner
	}
	return w, nil
}

// strange finds packets that left an ENI and must not: with a source that is
// not its own, or from another tenant's pod.
func (w *watch) strange(tenant string, own ...netip.Addr) func(traffic.Packet) bool {
	return func(packet traffic.Packet) bool {
		header, _, ok := packet.IPv4()
		if !ok || packet.Outgoing {
			return false
		}
		switch tagOwner(header.TOS) {
		case tenant:
			w.tagged[tenant].Add(1)
		case "":
		default:
			return true
		}
		return !slices.Contains(own, header.Source)
	}
}

// sees tells whether packets of every tenant have been seen: otherwise their
// absence elsewhere would say nothing.
func (w *watch) sees() error {
	for tenant, n := range w.tagged {
		if n.Load() == 0 {
			return fmt.Errorf("no packet that the pods of %s have tagged was seen", tenant)
		}
	}
	return nil
}

// leaks returns how many packets were found since it was asked last.
func (w *watch) leaks() (int, string) {
	total, example := 0, ""
	for _, c := range w.enis {
		n, found := c.Count()
		total += n
		if len(found) > 0 {
			h, _, _ := found[len(found)-1].IPv4()
			example = fmt.Sprintf("%s: %s to %s", c.Name, h.Source, h.Destination)
			if tenant := tagOwner(h.TOS); tenant != "" {
				example += ", from a pod of " + tenant
			}
		}
	}
	n := total - w.leaked
	w.leaked = total
	return n, example
}

// both is the longest time for which two held one HaVip, since a moment.
func (w *watch) both(since time.Time) time.Duration {
	var longest time.Duration
	for _, a := range w.askers {
		longest = max(longest, traffic.Overlap(traffic.Holders(a.Claims(since), 4*askEvery)))
	}
	return longest
}

// heldBy tells whether a proxy answers for all HaVips.
func (w *watch) heldBy(x *topo.Proxy) error {
	b := x.Underlay.As4()
	want := map[string]string{"underlay": fmt.Sprintf("02:00:00:%02x:%02x:%02x", b[1], b[2], b[3])}
	for _, tenant := range tenants {
		want[tenant] = x.ENIs[tenant].MAC
	}
	for name, a := range w.askers {
		claim := a.Last()
		if ago := time.Since(claim.At); ago > 10*askEvery {
			return fmt.Errorf("nobody answers for the HaVip of %s", name)
		}
		if claim.MAC != want[name] {
			return fmt.Errorf("%s answers for the HaVip of %s, not %s of %s", claim.MAC, name, want[name], x.Name)
		}
	}
	return nil
}

func (w *watch) stop() error {
	for _, a := range w.askers {
		a.Stop()
	}
	var errs []error
	for _, c := range w.enis {
		errs = append(errs, c.Stop())
	}
	return errors.Join(errs...)
}
