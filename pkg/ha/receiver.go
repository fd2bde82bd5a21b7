package ha

import (
	"net/netip"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/ha/vrrp"
)

// Datagram is a received IP payload and what its header said.
type Datagram struct {
	Src, Dst netip.Addr
	TTL      int // or hop limit
	Payload  []byte
	// Waited is how long ago the packet had arrived when it was read; 0 if that
	// is not known.
	Waited time.Duration
}

// receive judges a packet (RFC 9568 section 7.1 and the unicast rules). Every
// error is a vrrp.Reason.
func receive(cfg *Config, v *vrrp.Verifier, d Datagram) (Advert, vrrp.Packet, error) {
	fail := func(r vrrp.Reason) (Advert, vrrp.Packet, error) { return Advert{}, vrrp.Packet{}, r }
	if d.Src == cfg.Local {
		return fail(vrrp.OwnAddress)
	}
	admits := func(ttl int) bool { return ttl == vrrp.HopLimit }
	if cfg.multicast() {
		if !d.Dst.IsMulticast() {
			return fail(vrrp.Unicast)
		}
	} else {
		if d.Dst.IsMulticast() {
			return fail(vrrp.Multicast)
		}
		peer, ok := cfg.peer(d.Src)
		if !ok {
			return fail(vrrp.UnknownPeer)
		}
		admits = peer.admits
	}
	if !admits(d.TTL) {
		return fail(vrrp.TTL)
	}
	// The VRID before the rest: the sequences of another virtual router on
	// the same link are none of this one's business.
	if len(d.Payload) > 1 && d.Payload[1] != cfg.VRID {
		return fail(vrrp.VRID)
	}
	p, err := vrrp.Parse(d.Payload, d.Src, d.Dst, v)
	if err != nil {
		return Advert{}, vrrp.Packet{}, err
	}
	return Advert{From: d.Src, Priority: p.Priority, Interval: p.Interval, Addresses: p.Addresses, Waited: d.Waited}, p, nil
}

func (c *Config) peer(a netip.Addr) (Peer, bool) {
	for _, p := range c.Peers {
		if p.Addr == a {
			return p, true
		}
	}
	return Peer{}, false
}
