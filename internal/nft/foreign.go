package nft

import (
	"context"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ForeignChain is a base chain of somebody else, with what its rules, and those of
// the chains they call, do to packets. Rules of iptables-nft are among them, those of
// iptables-legacy are not.
type ForeignChain struct {
	Family   string // ip, ip6 or inet
	Table    string
	Name     string
	Hook     string // prerouting, input, forward, output, postrouting
	Priority int
	Policy   string // accept or drop
	Drops    int    // rules that drop or reject
	GRE      int    // of these, that name protocol 47
	Dropped  uint64 // packets, by the counters of these rules
}

var hooks = map[nftables.ChainHook]string{
	unix.NF_INET_PRE_ROUTING: "prerouting", unix.NF_INET_LOCAL_IN: "input", unix.NF_INET_FORWARD: "forward",
	unix.NF_INET_LOCAL_OUT: "output", unix.NF_INET_POST_ROUTING: "postrouting",
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// Foreign lists the base chains of others in a namespace. What changes while it
// is read may be missing.
func (ts *Tables) Foreign(ctx context.Context, netns string) ([]ForeignChain, error) {
	c, err := ts.open(ctx, netns)
	if err != nil {
		return nil, err
	}
	defer c.close()
	all, err := c.ListChains()
	if err != nil {
		return nil, c.wrap("listing chains beside", err)
	}
	s := &foreign{c: c, byName: map[chainName]*nftables.Chain{}}
	for _, ch := range all {
		s.byName[chainName{ch.Table.Family, ch.Table.Name, ch.Name}] = ch
	}
	var out []ForeignChain
	for _, ch := range all {
		family, ok := familyNames[ch.Table.Family]
		if !ok || ch.Hooknum == nil || ch.Table.Name == TableName || hooks[*ch.Hooknum] == "" {
			continue
		}
		f := ForeignChain{Family: family, Table: ch.Table.Name, Name: ch.Name, Hook: hooks[*ch.Hooknum], Policy: "accept"}
		if ch.Priority != nil {
			f.Priority = int(*ch.Priority)
		}
		if ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			f.Policy = "drop"
		}
		if err := s.count(&f, ch, map[string]bool{}); err != nil {
			return nil, c.wrap("listing rules beside", err)
		}
		out = append(out, f)
	}
	return out, nil
}

type chainName struct {
	family      nftables.TableFamily
	table, name string
}

type foreign struct {
	c      *conn
	byName map[chainName]*nftables.Chain
}

// count adds what the rules of a chain and of those it calls do.
func (s *foreign) count(f *ForeignChain, ch *nftables.Chain, seen map[string]bool) error {
	if seen[ch.Name] || strings.HasPrefix(ch.Name, "VPCPROXY-") {
		return nil
	}
	seen[ch.Name] = true
	rules, err := s.c.GetRules(ch.Table, ch)
	if err != nil {
		return err
	}
	for _, r := range rules {
		v := judge(r.Exprs)
		if v.drops {
			f.Drops++
			f.Dropped += v.packets
			if v.gre {
				f.GRE++
			}
		}
		if next := s.byName[chainName{ch.Table.Family, ch.Table.Name, v.calls}]; next != nil {
			if err := s.count(f, next, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

// effect is what a rule does.
type effect struct {
	drops, gre bool
	calls      string
	packets    uint64
}

func judge(exprs []expr.Any) (v effect) {
	protocol := false // the register holds the protocol
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			protocol = e.Key == expr.MetaKeyL4PROTO
			continue
		case *expr.Payload:
			// The protocol field of an IPv4 header (RFC 791).
			protocol = e.Base == expr.PayloadBaseNetworkHeader && e.Offset == 9 && e.Len == 1
			continue
		case *expr.Cmp:
			if protocol && e.Op == expr.CmpOpEq && len(e.Data) > 0 && e.Data[0] == unix.IPPROTO_GRE {
				v.gre = true
			}
		case *expr.Counter:
			v.packets = e.Packets
		case *expr.Reject:
			v.drops = true
		case *expr.Target:
			v.drops = v.drops || e.Name == "REJECT" || e.Name == "DROP"
		case *expr.Verdict:
			switch e.Kind {
			case expr.VerdictDrop:
				v.drops = true
			case expr.VerdictJump, expr.VerdictGoto:
				v.calls = e.Chain
			}
		}
		protocol = false
	}
	return v
}
