package desired

import (
	"fmt"
	"strings"
)

// Commands implements Commander.
func (k NexthopKey) Commands(op Op, n Nexthop) []string {
	if op == Delete {
		return []string{inNetns(k.Netns, "ip nexthop del id %d", k.ID)}
	}
	verb := "replace"
	if op == Create {
		verb = "add"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "ip nexthop %s id %d ", verb, k.ID)
	if n.IsGroup() {
		members := make([]string, len(n.Members))
		for i, m := range n.Members {
			members[i] = fmt.Sprint(m)
		}
		fmt.Fprintf(&b, "group %s", strings.Join(members, "/"))
		if n.Resilient {
			fmt.Fprintf(&b, " type resilient buckets %d idle_timer %d", NexthopBuckets, n.IdleSeconds)
		}
	} else {
		fmt.Fprintf(&b, "via %s dev %s", n.Via, n.Link)
		if n.Onlink {
			b.WriteString(" onlink")
		}
	}
	fmt.Fprintf(&b, " proto %d", Protocol)
	return []string{inNetns(k.Netns, "%s", b.String())}
}

// NexthopBuckets is what flows of a resilient group are hashed to: enough that
// a handful of members get shares that differ by a few per cent.
const NexthopBuckets = 128

// String is the customary form, such as 1124:4097.
func (d RouteDistinguisher) String() string { return fmt.Sprintf("%d:%d", d.Admin, d.Number) }

// String is the customary form, such as 65000:4097 or 100.64.0.2:1.
func (t RouteTarget) String() string {
	if t.Addr.IsValid() {
		return fmt.Sprintf("%s:%d", t.Addr, t.Number)
	}
	return fmt.Sprintf("%d:%d", t.ASN, t.Number)
}

// Commands implements Commander, as one would type it for gobgp(1).
func (k PathKey) Commands(op Op, p Path) []string {
	afi := "vpnv4"
	if k.Prefix.Addr().Is6() {
		afi = "vpnv6"
	}
	if op == Delete {
		return []string{fmt.Sprintf("gobgp global rib -a %s del %s label 3 rd %s", afi, k.Prefix, k.RD)}
	}
	line := fmt.Sprintf("gobgp global rib -a %s add %s label 3 rd %s rt", afi, k.Prefix, k.RD)
	for _, t := range p.Targets {
		line += " " + t.String()
	}
	line += fmt.Sprintf(" nexthop %s encap gre", p.NextHop)
	if p.Keyed {
		line += fmt.Sprintf(":%d", p.Key)
	}
	return []string{line}
}
