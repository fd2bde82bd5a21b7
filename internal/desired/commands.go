package desired

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Op is what happens to an object.
type Op string

// The operations of a plan.
const (
	Create Op = "create"
	Repair Op = "repair"
	Delete Op = "delete"
)

// Commander is implemented by every key of a State but NATKey: it prints one change as
// the commands that an operator would type for the same effect. want is the
// object to be made; for Delete it is what is there.
type Commander[V any] interface {
	comparable
	Commands(op Op, want V) []string
}

func inNetns(netns, format string, args ...any) string {
	return InNetns(netns, fmt.Sprintf(format, args...))
}

// InNetns turns a command into one that runs it in a namespace; "" changes
// nothing.
func InNetns(netns, s string) string {
	if netns == "" {
		return s
	}
	if rest, ok := strings.CutPrefix(s, "ip "); ok {
		return "ip -n " + netns + " " + rest
	}
	return "ip netns exec " + netns + " " + s
}

// NamespaceKey is the name of a namespace as a key that prints itself.
type NamespaceKey string

// Commands implements Commander.
func (k NamespaceKey) Commands(op Op, _ Namespace) []string {
	if op == Delete {
		return []string{"ip netns del " + string(k)}
	}
	return []string{"ip netns add " + string(k)}
}

// Commands implements Commander.
func (k LinkKey) Commands(op Op, l Link) []string {
	if op == Delete {
		return []string{inNetns(k.Netns, "ip link del %s", k.Name)}
	}
	key := ""
	if l.Keyed {
		key = fmt.Sprintf(" key %d", l.Key)
	}
	out := []string{fmt.Sprintf("ip tunnel add %s mode gre local %s%s ttl %d", k.Name, l.Local, key, l.TTL)}
	if op == Repair {
		out = nil
	}
	if k.Netns != "" && op == Create {
		out = append(out, fmt.Sprintf("ip link set %s netns %s", k.Name, k.Netns))
	}
	arp := ""
	if l.ARP {
		arp = " arp on"
	} else if op == Repair {
		arp = " arp off"
	}
	return append(out, inNetns(k.Netns, "ip link set %s mtu %d alias %q%s up", k.Name, l.MTU, l.Alias, arp))
}

// Commands implements Commander.
func (k ENIKey) Commands(op Op, _ ENI) []string {
	if op == Delete {
		return []string{inNetns(k.Netns, "ip link set %s netns 1  # with its addresses and routes", k.Name)}
	}
	return []string{
		fmt.Sprintf("ip link set %s netns %s  # with its addresses and routes", k.Name, k.Netns),
		inNetns(k.Netns, "ip link set %s up", k.Name),
	}
}

// Commands implements Commander.
func (k EgressKey) Commands(op Op, e Egress) []string {
	if op == Delete {
		return []string{inNetns(k.Netns, "tc qdisc del dev %s clsact", k.Link)}
	}
	var out []string
	if op == Create {
		out = append(out, inNetns(k.Netns, "tc qdisc add dev %s clsact", k.Link))
	}
	out = append(out, inNetns(k.Netns, "tc filter add dev %s egress protocol ip flower ip_proto tcp ip_ttl 64 tcp_flags 0x4/0x4 action drop", k.Link))
	for _, s := range e.Sources {
		proto := "ip"
		if s.Is6() {
			proto = "ipv6"
		}
		out = append(out, inNetns(k.Netns, "tc filter add dev %s egress protocol %s flower src_ip %s action pass", k.Link, proto, s))
	}
	return append(out, inNetns(k.Netns, "tc filter add dev %s egress protocol ip matchall action drop", k.Link))
}

// Commands implements Commander.
func (k AddressKey) Commands(op Op, _ Address) []string {
	if op == Delete {
		return []string{inNetns(k.Netns, "ip address del %s dev %s", k.Prefix, k.Link)}
	}
	return []string{inNetns(k.Netns, "ip address add %s dev %s", k.Prefix, k.Link)}
}

// Commands implements Commander.
func (k NeighborKey) Commands(op Op, n Neighbor) []string {
	if op == Delete {
		return []string{inNetns(k.Netns, "ip neigh del %s dev %s", k.Addr, k.Link)}
	}
	if n.OnDemand && op == Create {
		return []string{"# when asked: " + inNetns(k.Netns, "ip neigh replace %s lladdr %s dev %s", k.Addr, n.NBMA, k.Link)}
	}
	return []string{inNetns(k.Netns, "ip neigh replace %s lladdr %s dev %s", k.Addr, n.NBMA, k.Link)}
}

// Commands implements Commander.
func (k RouteKey) Commands(op Op, r Route) []string {
	verb := "replace"
	switch op {
	case Create:
		verb = "add"
	case Delete:
		verb = "del"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "ip route %s ", verb)
	if r.Type == Unreachable {
		b.WriteString("unreachable ")
	}
	if k.Dst.Bits() == 0 {
		b.WriteString("default")
	} else {
		b.WriteString(k.Dst.String())
	}
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %s", r.Via)
	}
	if r.Link != "" {
		fmt.Fprintf(&b, " dev %s", r.Link)
	}
	if r.Onlink {
		b.WriteString(" onlink")
	}
	if r.Nexthop != 0 {
		fmt.Fprintf(&b, " nhid %d", r.Nexthop)
	}
	if r.Source.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Source)
	}
	if k.Table != 254 { // RT_TABLE_MAIN is what ip assumes
		fmt.Fprintf(&b, " table %d", k.Table)
	}
	if k.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", k.Metric)
	}
	fmt.Fprintf(&b, " proto %d", Protocol)
	return []string{inNetns(k.Netns, "%s", b.String())}
}

// Commands implements Commander.
func (k RuleKey) Commands(op Op, _ Rule) []string {
	verb, family := "add", ""
	if op == Delete {
		verb = "del"
	}
	if k.IPv6 {
		family = "-6 "
	}
	return []string{inNetns(k.Netns, "ip %srule %s priority %d fwmark %#x/%#x table %d protocol %d", family, verb, k.Priority, k.Mark, k.Mask, k.Table, Protocol)}
}

// Commands implements Commander.
func (k SysctlKey) Commands(op Op, s Sysctl) []string {
	if op == Delete {
		return nil // nothing is put back
	}
	return []string{inNetns(k.Netns, "sysctl -w %s=%s", k.Name, s.Value)}
}

// Commands implements Commander.
func (k PeerKey) Commands(op Op, _ Peer) []string {
	verb := "add"
	if op == Delete {
		verb = "delete"
	}
	if !k.Addr.IsValid() {
		return []string{inNetns(k.Netns, "nft %s element inet vpcproxy endpoints4 { %s }", verb, k.Local)}
	}
	if !k.Keyed {
		return []string{inNetns(k.Netns, "nft %s element inet vpcproxy peers4_nokey { %s . %s }", verb, k.Addr, k.Local)}
	}
	return []string{inNetns(k.Netns, "nft %s element inet vpcproxy peers4 { %s . %s . %d }", verb, k.Addr, k.Local, k.Key)}
}

// Commands implements Commander.
func (k SteerKey) Commands(op Op, s Steer) []string {
	verb, family, target := "add", 4, " : goto "+s.target(k.Link != "")
	if op == Delete {
		verb, target = "delete", ""
	}
	if k.Link != "" {
		return []string{inNetns(k.Netns, "nft %s element inet vpcproxy zones { %q%s }", verb, k.Link, target)}
	}
	if k.Src.Addr().Is6() {
		family = 6
	}
	return []string{inNetns(k.Netns, "nft %s element inet vpcproxy steer%d_%d_%d { %s . %s%s }",
		verb, family, k.Src.Bits(), k.Dst.Bits(), k.Src.Addr(), k.Dst.Addr(), target)}
}

// target is the chain that does it.
func (s Steer) target(zoneOnly bool) string {
	switch {
	case s.Refuse:
		return "refuse"
	case zoneOnly:
		return fmt.Sprintf("zone_%04x", s.Zone)
	case s.Zone == 0:
		return fmt.Sprintf("mark_%08x_%08x", s.Mark, s.Mask)
	}
	return fmt.Sprintf("mark_%08x_%08x_%04x", s.Mark, s.Mask, s.Zone)
}

// lines describes address translation and filters in words: how they are
// typed depends on the backend that programs them.
func (n NAT) lines() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, s := range n.SNAT {
		to := "the interface's address"
		if s.To.IsValid() {
			to = s.To.String()
		}
		add("translate out %s to %s, except %v", s.Out, to, s.Except)
	}
	for _, c := range n.Clamp {
		add("clamp TCP through %s to MTU %d", c.Link, c.MTU)
	}
	for _, f := range n.Forward {
		in := f.In
		if in == "" {
			in = "anywhere"
		}
		add("allow connections from %s to %s", in, f.Out)
	}
	for _, g := range n.Guarded {
		add("refuse connections from %s", g)
	}
	return out
}

// Dump writes the whole state as the commands that would make it, in the order
// in which it is made.
func (s State) Dump(w io.Writer) error {
	d := &dumper{w: w}
	dump(d, "namespaces", keyed(s.Namespaces))
	s.dumpNAT(d)
	dump(d, "peers", s.Peers)
	dump(d, "links", s.Links)
	dump(d, "enis", s.ENIs)
	dump(d, "egress guards", s.Egress)
	dump(d, "addresses", s.Addresses)
	dump(d, "neighbors", s.Neighbors)
	dump(d, "sysctls", s.Sysctls)
	dump(d, "nexthops", s.Nexthops)
	dump(d, "routes", s.Routes)
	dump(d, "rules", s.Rules)
	dump(d, "steers", s.Steers)
	dump(d, "paths", s.Paths)
	return d.err
}

func (s State) dumpNAT(d *dumper) {
	keys := make([]NATKey, 0, len(s.NAT))
	for k := range s.NAT {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b NATKey) int { return cmp.Compare(a.Netns, b.Netns) })
	for _, k := range keys {
		d.line(strings.TrimSpace("# nat " + k.Netns))
		for _, l := range s.NAT[k].lines() {
			d.line("#   " + l)
		}
	}
}

func keyed(m map[string]Namespace) map[NamespaceKey]Namespace {
	out := make(map[NamespaceKey]Namespace, len(m))
	for k, v := range m {
		out[NamespaceKey(k)] = v
	}
	return out
}

type dumper struct {
	w   io.Writer
	err error
}

func (d *dumper) line(s string) {
	if d.err == nil {
		_, d.err = fmt.Fprintln(d.w, s)
	}
}

func dump[K Commander[V], V any](d *dumper, title string, m map[K]V) {
	if len(m) == 0 {
		return
	}
	d.line("# " + title)
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b K) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	for _, k := range keys {
		for _, c := range k.Commands(Create, m[k]) {
			d.line(c)
		}
	}
}
