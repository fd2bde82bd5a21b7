package nftables

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// base is a base chain: where a chain of package nat hangs.
type base struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
}

// bases are the chains. iptables hooks in at -150 (mangle), 0 (filter) and 100
// (source NAT): ours come before, but masquerade, which comes after.
var bases = map[nat.Chain]base{
	nat.Postrouting: {"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 99},
	nat.Masq:        {"masq", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 101},
	nat.MSS:         {"mss", nftables.ChainTypeFilter, nftables.ChainHookForward, -151},
	nat.Input:       {"input", nftables.ChainTypeFilter, nftables.ChainHookInput, -1},
	nat.Forward:     {"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, -1},
}

func chainNamed(name string) (nat.Chain, bool) {
	for c, b := range bases {
		if b.name == name {
			return c, true
		}
	}
	return "", false
}

func tableFamily(f nat.Family) nftables.TableFamily {
	if f == nat.IPv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// header is where a family's header has what rules look at (RFC 791, RFC 8200).
type header struct{ src, dst, size uint32 }

func headerOf(f nat.Family) header {
	if f == nat.IPv6 {
		return header{8, 24, 16}
	}
	return header{12, 16, 4}
}

// passesOver says whether a chain passes over packets to this machine. The other
// matches of places are in the rules, too, and need nothing before them.
func passesOver(c nat.Chain) bool { return c.Place().Match == nat.NotToThisMachine }

// notToThisMachine is the first rule of such a chain.
func notToThisMachine() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Verdict{Kind: expr.VerdictReturn},
	}
}

// localComment is that rule's comment.
const localComment = "to this machine"

// expressions returns a rule of a chain in nftables' instructions.
func expressions(k nat.Key, r nat.Rule) []expr.Any {
	h := headerOf(k.Family)
	var e []expr.Any
	if r.Source.IsValid() {
		e = append(e, network(h.src, netip.PrefixFrom(r.Source, r.Source.BitLen()))...)
	}
	if r.Dest.IsValid() {
		e = append(e, network(h.dst, r.Dest)...)
	}
	e = append(e, link(expr.MetaKeyIIFNAME, r.In)...)
	e = append(e, link(expr.MetaKeyOIFNAME, r.Out)...)
	if r.SYN {
		const flagsAt, rst, syn = 13, 0x04, 0x02 // RFC 9293 section 3.1
		e = append(e, protocol(unix.IPPROTO_TCP)...)
		e = append(e,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}})
	}
	if r.ICMPv6 != 0 {
		e = append(e, protocol(unix.IPPROTO_ICMPV6)...)
		e = append(e,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{r.ICMPv6}})
	}
	e = append(e, state(r.State)...)
	return append(e, action(k, r)...)
}

func network(offset uint32, p netip.Prefix) []expr.Any {
	address := p.Addr().AsSlice()
	n := uint32(len(address))
	e := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}}
	if !p.IsSingleIP() {
		mask := make([]byte, n)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		e = append(e, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)})
	}
	return append(e, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address})
}

// link compares a name with its zero, and a pattern without.
func link(key expr.MetaKey, p nat.LinkPattern) []expr.Any {
	if p == "" {
		return nil
	}
	name, wild := strings.CutSuffix(string(p), "+")
	data := []byte(name)
	if !wild {
		data = make([]byte, unix.IFNAMSIZ)
		copy(data, name)
	}
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
	}
}

func protocol(n byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{n}},
	}
}

// stateBits are the kernel's (include/uapi/linux/netfilter/nf_conntrack_common.h).
var stateBits = map[string]uint32{
	"INVALID": expr.CtStateBitINVALID, "ESTABLISHED": expr.CtStateBitESTABLISHED,
	"RELATED": expr.CtStateBitRELATED, "UNTRACKED": expr.CtStateBitUNTRACKED,
}

func state(s nat.State) []expr.Any {
	if s == "" {
		return nil
	}
	var bits uint32
	for word := range strings.SplitSeq(string(s), ",") {
		bits |= stateBits[word]
	}
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func action(k nat.Key, r nat.Rule) []expr.Any {
	switch r.Action {
	case nat.Accept:
		if k.Chain == nat.Postrouting {
			// A verdict would leave the packet to the chains of others.
			return snat(k.Family, r.Source, false)
		}
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case nat.Drop:
		return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	case nat.Return:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	case nat.SNAT:
		return snat(k.Family, r.To, true)
	case nat.Masquerade:
		return []expr.Any{&expr.Masq{FullyRandom: true}}
	case nat.SetMSS:
		return append([]expr.Any{&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(r.MSS))}}, writeMSS())
	case nat.ClampMSS:
		return []expr.Any{
			&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
			writeMSS(),
		}
	}
	return nil
}

func snat(f nat.Family, to netip.Addr, random bool) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(tableFamily(f)), RegAddrMin: 1, FullyRandom: random},
	}
}

// writeMSS writes the size into the segment's MSS option (kind 2, RFC 9293
// section 3.7.1); the kernel never raises it (net/netfilter/nft_exthdr.c).
func writeMSS() expr.Any {
	const kindMSS, valueAt, size = 2, 2, 2
	return &expr.Exthdr{SourceRegister: 1, Type: kindMSS, Offset: valueAt, Len: size, Op: expr.ExthdrOpTcpopt}
}
