package survey

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/diagnose"
	"github.com/vpcproxy/vpcproxy/internal/meter"
	"github.com/vpcproxy/vpcproxy/internal/probe"
)

// maxPeers bounds how many peers are pinged, and parallel how many at a time.
const (
	maxPeers = 64
	parallel = 16
)

// peers measures the ways to the nodes that this one speaks GRE to.
func (l *look) peers(pings int) []diagnose.Peer {
	var addresses []netip.Addr
	for k := range l.plan.State.Peers {
		if k.Addr.IsValid() && k.Addr.Is4() {
			addresses = append(addresses, k.Addr)
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)
	addresses = addresses[:min(len(addresses), maxPeers)]
	out := make([]diagnose.Peer, len(addresses))
	turns := make(chan struct{}, parallel)
	var running sync.WaitGroup
	for i, a := range addresses {
		running.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			out[i] = l.peer(a, pings)
		})
	}
	running.Wait()
	return out
}

func (l *look) peer(a netip.Addr, pings int) diagnose.Peer {
	p := diagnose.Peer{Node: l.nodeAt(a), Address: a, Needed: l.fullPacket()}
	if pings == 0 {
		return p
	}
	way, err := probe.Ping(l.ctx, l.opts.Host, a, pings, p.Needed)
	p.Sent, p.Received, p.RTT, p.MTU = way.Sent, way.Received, way.RTT, way.MTU
	if err != nil && way.Received == 0 && l.ctx.Err() != nil {
		p.Sent = 0 // no time to measure
	}
	return p
}

// fullPacket is the largest packet that a tunnel of this node sends: the device's
// MTU and what GRE with a key adds (RFC 2784, RFC 2890: 28 octets).
func (l *look) fullPacket() int {
	const encapsulation = 28
	full := 0
	for _, v := range l.plan.State.Links {
		n := v.MTU + encapsulation
		if !v.Keyed {
			n -= 4
		}
		full = max(full, n)
	}
	return full
}

// nodeAt is the node, or the group, that has an underlay address.
func (l *look) nodeAt(a netip.Addr) string {
	if l.set != nil {
		for _, n := range l.set.Nodes {
			if n.Spec.UnderlayAddress == a {
				return n.ObjectName()
			}
		}
		for _, g := range l.set.Groups {
			if g.Spec.HaVip == a {
				return "group " + g.ObjectName()
			}
		}
	}
	return a.String()
}

func traffic(name string, s meter.Sample) diagnose.Traffic {
	t := diagnose.Traffic{Node: name, Time: time.Now(), Attachments: []diagnose.AttachmentTraffic{}}
	for _, a := range s.Attachments {
		at := diagnose.AttachmentTraffic{Attachment: a.Attachment, Connections: max(a.Connections, 0), Busiest: []diagnose.PortUse{}}
		if a.Tunnel != nil {
			at.InBytes, at.OutBytes, at.InPackets, at.OutPackets = a.Tunnel.RxBytes, a.Tunnel.TxBytes, a.Tunnel.RxPackets, a.Tunnel.TxPackets
		}
		for _, ns := range s.Namespaces {
			if ns.Attachment != a.Attachment {
				continue
			}
			for _, d := range ns.Busiest {
				at.Busiest = append(at.Busiest, diagnose.PortUse{Source: d.Source, Destination: d.Addr, Ports: d.Ports, Limit: meter.PortLimit, Exhausted: d.Exhausted})
			}
		}
		t.Attachments = append(t.Attachments, at)
	}
	return t
}
