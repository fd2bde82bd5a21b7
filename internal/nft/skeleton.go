package nft

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The names of sets and chains; see the package comment.
const (
	setEndpoints  = "endpoints4"
	setPeers      = "peers4"
	setPeersNoKey = "peers4_nokey"
	setRemotes    = "remotes4"

	chainPrerouting = "prerouting"
	chainOutput     = "gre_output"
	chainForward    = "gre_forward"
	chainGRE        = "gre"
)

// setDef defines a set: of keys, or a map of keys to verdicts.
type setDef struct {
	key     nftables.SetDatatype
	verdict bool
}

func (d setDef) concatenated() bool {
	return d.key.Name != typeAddr4.Name && d.key.Name != nftables.TypeIFName.Name
}

// chainDef defines a chain. A chain without a hook is one to jump to.
type chainDef struct {
	hook  *nftables.ChainHook
	prio  *nftables.ChainPriority
	rules []rule
}

// rule is a sequence of expressions.
type rule []expr.Any

// skeleton is all of the table but the elements and the counters' values. It
// follows from which steering maps, marks and zones there are.
type skeleton struct {
	sets   map[string]setDef
	chains map[string]chainDef
}

var (
	typeAddr4 = nftables.TypeIPAddr
	typePair4 = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	typePair6 = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIP6Addr)
	// The GRE key has the type of an address: iproute2 writes keys as dotted
	// quads too, so that `nft list` and `ip -d link` show the same.
	typePairKey4 = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr, nftables.TypeIPAddr)
)

// counterNames are the named counters that the table has.
var counterNames = []string{CounterForged, CounterUnknownPeer}

// parts are what a skeleton follows from.
type parts struct {
	maps  []steerMap
	marks []Mark
	zones []uint16 // of links
	links bool     // whether links have zones
}

func newSkeleton(p parts) skeleton {
	s := skeleton{
		sets: map[string]setDef{
			setEndpoints:  {key: typeAddr4},
			setRemotes:    {key: typeAddr4},
			setPeers:      {key: typePairKey4},
			setPeersNoKey: {key: typePair4},
		},
		chains: map[string]chainDef{
			chainPrerouting: {hook: nftables.ChainHookPrerouting, prio: nftables.ChainPriorityRaw, rules: preroutingRules(p)},
			chainOutput: {hook: nftables.ChainHookOutput, prio: nftables.ChainPriorityRaw, rules: []rule{
				join(isGRE4(), inSet(ip4Src(), setEndpoints), rule{&expr.Notrack{}}),
			}},
			// The hook sees the destination after DNAT and the packet before
			// masquerading would give it our address.
			chainForward: {hook: nftables.ChainHookForward, prio: nftables.ChainPriorityFilter, rules: []rule{
				join(isGRE4(), inSet(ip4Dst(1), setRemotes), drop(CounterForged)),
			}},
			chainGRE: {rules: greRules()},
		},
	}
	if p.links {
		s.sets[setZones] = setDef{key: nftables.TypeIFName, verdict: true}
	}
	for _, z := range p.zones {
		s.chains[zoneChain(z)] = chainDef{rules: []rule{join(setZone(z), verdict(expr.VerdictAccept, ""))}}
	}
	for _, m := range p.maps {
		key := typePair4
		if m.v6 {
			key = typePair6
		}
		s.sets[m.name()] = setDef{key: key, verdict: true}
	}
	for _, m := range p.marks {
		s.chains[m.chain()] = chainDef{rules: []rule{m.rule()}}
	}
	return s
}

// The first four bytes of a GRE header (RFC 2784 and 2890): flags, version 0,
// protocol type. The only flag of a keyed packet is K; checksum and sequence
// number are never set by us.
const (
	greKeyed    = 0x20000000
	greIPv4     = unix.ETH_P_IP
	greIPv6     = unix.ETH_P_IPV6
	greMeasures = unix.ETH_P_802_EX1 // measures the way (package echo)
)

// preroutingRules are all that a packet meets before connection tracking: one
// chain, because most of what a chain costs a packet is to enter it.
func preroutingRules(p parts) []rule {
	return slices.Concat(
		[]rule{join(isGRE4(), verdict(expr.VerdictJump, chainGRE))},
		zoneRules(p.links),
		steerRules(p.maps),
	)
}

// greRules judge GRE. What nearly all of it is comes first: a peer's IPv4 with its
// key, to an endpoint as every peer's. What else goes to an endpoint and is not
// exactly as our devices send it is dropped before the kernel could decapsulate it,
// or answer a wrong key with an ICMP error that tells right keys from wrong ones.
func greRules() []rule {
	return []rule{
		join(fragment(expr.CmpOpEq), peerKey(greIPv4)),
		join(ip4Dst(1), rule{&expr.Lookup{SourceRegister: 1, SetName: setEndpoints, Invert: true}}, verdict(expr.VerdictReturn, "")),
		join(fragment(expr.CmpOpNeq), drop(CounterUnknownPeer)),
		peerNoKey(greIPv4),
		peerKey(greIPv6), peerNoKey(greIPv6),
		peerKey(greMeasures), peerNoKey(greMeasures),
		drop(CounterUnknownPeer),
	}
}

// peerKey admits what a peer sends with its key.
func peerKey(protocol uint32) rule {
	return join(greHeader(greKeyed|protocol), ip4Src(), ip4Dst(reg32(1)),
		rule{&expr.Payload{DestRegister: reg32(2), Base: expr.PayloadBaseTransportHeader, Offset: 4, Len: 4}},
		inSet(nil, setPeers), rule{&expr.Notrack{}}, verdict(expr.VerdictAccept, ""))
}

// peerNoKey admits what a peer without a key sends.
func peerNoKey(protocol uint32) rule {
	return join(greHeader(protocol), ip4Src(), ip4Dst(reg32(1)),
		inSet(nil, setPeersNoKey), rule{&expr.Notrack{}}, verdict(expr.VerdictAccept, ""))
}

// fragment compares fragment offset and MF with none: a later fragment has no GRE
// header to look at. The mask leaves out DF and the reserved bit.
func fragment(op expr.CmpOp) rule {
	return rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{0, 0}},
	}
}

// steerRules look a packet up in one map after the other; a mark chain ends
// the search.
func steerRules(steerMaps []steerMap) []rule {
	// The longest source prefix first, then the longest destination prefix.
	steerMaps = slices.Clone(steerMaps)
	slices.SortFunc(steerMaps, func(a, b steerMap) int {
		return cmp.Or(cmp.Compare(b.src, a.src), cmp.Compare(b.dst, a.dst), cmp.Compare(b.bytes(), a.bytes()))
	})
	rules := make([]rule, 0, len(steerMaps))
	for _, m := range steerMaps {
		family, src, dst, second := byte(unix.NFPROTO_IPV4), ip4Src(), ip4Dst(reg32(1)), reg32(1)
		if m.v6 {
			family, second = unix.NFPROTO_IPV6, unix.NFT_REG_2
			src = rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}}
			dst = rule{&expr.Payload{DestRegister: second, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16}}
		}
		rules = append(rules, join(
			nfproto(family), src, prefixMask(1, m.src, m.bytes()), dst, prefixMask(second, m.dst, m.bytes()),
			rule{&expr.Lookup{SourceRegister: 1, SetName: m.name(), IsDestRegSet: true}},
		))
	}
	return rules
}

// rule sets the mark and ends the search.
func (m Mark) rule() rule {
	if m.Refuse {
		return rule{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH}}
	}
	return join(rule{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^m.Mask),
			Xor:  binaryutil.NativeEndian.PutUint32(m.Mark),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}, setZone(m.Zone), verdict(expr.VerdictAccept, ""))
}

const (
	chainMarkPrefix = "mark_"
	chainRefuse     = "refuse"
)

func (m Mark) chain() string {
	switch {
	case m.Refuse:
		return chainRefuse
	case m.Zone == 0:
		return fmt.Sprintf(chainMarkPrefix+"%08x_%08x", m.Mark, m.Mask)
	}
	return fmt.Sprintf(chainMarkPrefix+"%08x_%08x_%04x", m.Mark, m.Mask, m.Zone)
}

// parseMarkChain is called for every element: it does not scan by a format.
func parseMarkChain(name string) (Mark, bool) {
	if name == chainRefuse {
		return Mark{Refuse: true}, true
	}
	rest, ok := strings.CutPrefix(name, chainMarkPrefix)
	zoned := len(rest) == 22 && rest[17] == '_'
	if !ok || len(rest) != 17 && !zoned || rest[8] != '_' || strings.ToLower(rest) != rest {
		return Mark{}, false
	}
	mark, err := strconv.ParseUint(rest[:8], 16, 32)
	mask, err2 := strconv.ParseUint(rest[9:17], 16, 32)
	m := Mark{Mark: uint32(mark), Mask: uint32(mask)}
	if zoned {
		zone, err := strconv.ParseUint(rest[18:], 16, 16)
		if m.Zone = uint16(zone); err != nil || zone == 0 {
			return Mark{}, false
		}
	}
	return m, err == nil && err2 == nil && m.Validate() == nil
}

// steerMap identifies a steering map: a family and two prefix lengths.
type steerMap struct {
	v6       bool
	src, dst int
}

func (m Match) steerMap() steerMap {
	return steerMap{v6: m.Src.Addr().Is6(), src: m.Src.Bits(), dst: m.Dst.Bits()}
}

// bytes is the length of an address.
func (m steerMap) bytes() int {
	if m.v6 {
		return 16
	}
	return 4
}

func (m steerMap) name() string {
	family := 4
	if m.v6 {
		family = 6
	}
	return fmt.Sprintf("steer%d_%d_%d", family, m.src, m.dst)
}

func parseSteerMap(name string) (steerMap, bool) {
	var m steerMap
	var family int
	_, err := fmt.Sscanf(name, "steer%d_%d_%d", &family, &m.src, &m.dst)
	m.v6 = family == 6
	bits := m.bytes() * 8
	return m, err == nil && m.name() == name && 0 <= m.src && m.src <= bits && 0 <= m.dst && m.dst <= bits
}

// reg32 is the n-th register of four bytes. Register 0 of these has another
// number when the kernel reports it: NFT_REG_1.
func reg32(n uint32) uint32 { return unix.NFT_REG32_00 + n }

func join(parts ...rule) rule { return slices.Concat(parts...) }

func nfproto(family byte) rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}
}

func isGRE4() rule {
	return join(nfproto(unix.NFPROTO_IPV4), rule{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_GRE}},
	})
}

func ip4Src() rule {
	return rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}}
}

func ip4Dst(register uint32) rule {
	return rule{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}}
}

// greHeader compares the first four bytes of the GRE header.
func greHeader(first uint32) rule {
	return rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint32(nil, first)},
	}
}

// inSet looks up what load, and registers before it, have put together.
func inSet(load rule, set string) rule {
	return join(load, rule{&expr.Lookup{SourceRegister: 1, SetName: set}})
}

func drop(counter string) rule {
	return join(rule{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}}, verdict(expr.VerdictDrop, ""))
}

func verdict(kind expr.VerdictKind, chain string) rule {
	return rule{&expr.Verdict{Kind: kind, Chain: chain}}
}

// prefixMask clears the host bits in a register; nothing for a whole address.
func prefixMask(register uint32, bits, bytes int) rule {
	if bits == bytes*8 {
		return nil
	}
	mask := make([]byte, bytes)
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return rule{&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(bytes), Mask: mask, Xor: make([]byte, bytes)}}
}
