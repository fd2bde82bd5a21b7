package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// elements are a set's elements: raw keys, and for maps the chain to jump to.
type elements map[string]string

// elements returns the elements of all sets that hold the contents.
func (c Contents) elements() map[string]elements {
	all := map[string]elements{}
	add := func(set, key, chain string) {
		if all[set] == nil {
			all[set] = elements{}
		}
		all[set][key] = chain
	}
	for p := range c.Peers {
		local := string(p.Local.AsSlice())
		add(setEndpoints, local, "")
		if !p.Addr.IsValid() {
			continue
		}
		remote := string(p.Addr.AsSlice())
		add(setRemotes, remote, "")
		if p.Keyed {
			add(setPeers, remote+local+string(binary.BigEndian.AppendUint32(nil, p.Key)), "")
		} else {
			add(setPeersNoKey, remote+local, "")
		}
	}
	for match, mark := range c.Steers {
		key := string(match.Src.Addr().AsSlice()) + string(match.Dst.Addr().AsSlice())
		add(match.steerMap().name(), key, mark.chain())
	}
	for link, zone := range c.Zones {
		add(setZones, linkKey(link), zoneChain(zone))
	}
	return all
}

// decode adds a set's elements to the contents, but for those that are not
// ours: the error names one of them.
func (c Contents) decode(set string, elems elements) error {
	m, steers := parseSteerMap(set)
	var foreign error
	for key, chain := range elems {
		k := []byte(key)
		switch {
		case steers:
			match, mark, err := decodeSteer(m, k, chain)
			if err != nil {
				foreign = err
				continue
			}
			c.Steers[match] = mark
		case set == setZones:
			link, zone, err := decodeZone(k, chain)
			if err != nil {
				foreign = err
				continue
			}
			c.Zones[link] = zone
		case set == setEndpoints && len(k) == 4:
			c.Peers[Peer{Local: addr4(k)}] = struct{}{}
		case set == setPeersNoKey && len(k) == 8:
			c.Peers[Peer{Addr: addr4(k), Local: addr4(k[4:])}] = struct{}{}
		case set == setPeers && len(k) == 12:
			c.Peers[Peer{Addr: addr4(k), Local: addr4(k[4:]), Keyed: true, Key: binary.BigEndian.Uint32(k[8:])}] = struct{}{}
		case set == setRemotes && len(k) == 4: // derived
		default:
			foreign = fmt.Errorf("set %s has an element of %d bytes", set, len(k))
		}
	}
	return foreign
}

func decodeSteer(m steerMap, key []byte, chain string) (Match, Mark, error) {
	n := m.bytes()
	if len(key) != 2*n {
		return Match{}, Mark{}, fmt.Errorf("map %s has an element of %d bytes", m.name(), len(key))
	}
	src, _ := netip.AddrFromSlice(key[:n])
	dst, _ := netip.AddrFromSlice(key[n:])
	match := Match{Src: netip.PrefixFrom(src, m.src), Dst: netip.PrefixFrom(dst, m.dst)}
	if err := match.Validate(); err != nil {
		return match, Mark{}, err
	}
	mark, ok := parseMarkChain(chain)
	if !ok {
		return match, mark, fmt.Errorf("map %s steers %v to %v elsewhere than to a mark chain", m.name(), match.Src, match.Dst)
	}
	return match, mark, nil
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b[:4])) }

// element converts an element for the library.
func element(key, chain string) nftables.SetElement {
	e := nftables.SetElement{Key: []byte(key)}
	if chain != "" {
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}
	}
	return e
}

// jumpTarget returns the chain that a map's element goes to; "" if it does
// something else. The library leaves the verdict as it came: NFTA_VERDICT_CODE
// and NFTA_VERDICT_CHAIN.
func jumpTarget(raw []byte) (string, error) {
	var chain string
	var code int32
	err := nested(raw, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			code = int32(ad.Uint32())
		case unix.NFTA_VERDICT_CHAIN:
			chain = ad.String()
		}
	})
	if code != unix.NFT_GOTO {
		chain = ""
	}
	return chain, err
}
