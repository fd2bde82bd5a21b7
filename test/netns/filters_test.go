package netns

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// The filters of captures.

// isGRE finds GRE with the key, or without one if it is nil.
func isGRE(key *uint32) func(traffic.Packet) bool {
	return func(p traffic.Packet) bool {
		header, payload, ok := p.IPv4()
		if !ok || header.Protocol != unix.IPPROTO_GRE {
			return false
		}
		found, keyed := traffic.GREKey(payload)
		if key == nil {
			return !keyed
		}
		return keyed && found == *key
	}
}

// notFrom finds IPv4 packets that enter here with another source than these.
func notFrom(sources ...netip.Addr) func(traffic.Packet) bool {
	return func(p traffic.Packet) bool {
		header, _, ok := p.IPv4()
		if !ok || p.Outgoing {
			return false
		}
		for _, s := range sources {
			if header.Source == s {
				return false
			}
		}
		return true
	}
}

// toPrefix finds IPv4 packets, not encapsulated, for a prefix.
func toPrefix(prefix netip.Prefix) func(traffic.Packet) bool {
	return func(p traffic.Packet) bool {
		header, _, ok := p.IPv4()
		return ok && prefix.Contains(header.Destination)
	}
}

// from finds IPv4 packets of one protocol from an address.
func from(source netip.Addr, protocol byte) func(traffic.Packet) bool {
	return func(p traffic.Packet) bool {
		header, _, ok := p.IPv4()
		return ok && header.Source == source && header.Protocol == protocol
	}
}

// toPort finds datagrams for a UDP port.
func toPort(port uint16) func(traffic.Packet) bool {
	return func(p traffic.Packet) bool {
		header, payload, ok := p.IPv4()
		return ok && isUDPTo(header, payload, port)
	}
}

// encapsulated finds datagrams for a UDP port inside GRE that enter here.
func encapsulated(port uint16) func(traffic.Packet) bool {
	return func(p traffic.Packet) bool {
		header, payload, ok := p.IPv4()
		if !ok || p.Outgoing || header.Protocol != unix.IPPROTO_GRE {
			return false
		}
		inner, payload, ok := traffic.Decapsulate(payload)
		return ok && isUDPTo(inner, payload, port)
	}
}

func isUDPTo(header traffic.IPv4, payload []byte, port uint16) bool {
	return header.Protocol == unix.IPPROTO_UDP && len(payload) >= 4 && binary.BigEndian.Uint16(payload[2:]) == port
}

// outgoing finds IPv4 packets that leave here.
func outgoing(p traffic.Packet) bool {
	_, _, ok := p.IPv4()
	return ok && p.Outgoing
}
