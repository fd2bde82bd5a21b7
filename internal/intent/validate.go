package intent

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// problems collects the FieldErrors of one object.
type problems struct {
	object string
	errs   []error
}

func newProblems(o Object) *problems {
	return &problems{object: Reference(o.ObjectKind(), o.ObjectName())}
}

func (p *problems) add(r Reason, field, format string, args ...any) {
	p.errs = append(p.errs, &FieldError{Object: p.object, Field: field, Problem: fmt.Sprintf(format, args...), Reason: r})
}

func (p *problems) invalid(field, format string, args ...any) {
	p.add(Invalid, field, format, args...)
}

func (p *problems) err() error { return errors.Join(p.errs...) }

// dnsLabel is RFC 1123 section 2.1 as Kubernetes reads it.
var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ValidName tells whether a name is a DNS label, as names of objects are.
func ValidName(name string) bool { return dnsLabel.MatchString(name) }

func (p *problems) name(field, name string) {
	switch {
	case name == "":
		p.invalid(field, "is missing; give a name such as orders-db")
	case !ValidName(name):
		p.invalid(field, "%q is not a DNS label: at most 63 characters of a-z, 0-9 and -, not at the ends", name)
	}
}

// reserved are ranges that no user subnet and no unicast address of ours can
// be in, with the reason.
var reserved = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "is 'this network' (RFC 791)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "is loopback (RFC 1122)"},
	{netip.MustParsePrefix("169.254.0.0/16"), "is link-local and holds the cloud's metadata service (RFC 3927)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "is multicast (RFC 5771)"},
	{netip.MustParsePrefix("240.0.0.0/4"), "is reserved (RFC 1112)"},
	{netip.MustParsePrefix("::1/128"), "is loopback (RFC 4291)"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "is IPv4-mapped; write the IPv4 form"},
	{netip.MustParsePrefix("fe80::/10"), "is link-local (RFC 4291)"},
	{netip.MustParsePrefix("ff00::/8"), "is multicast (RFC 4291)"},
}

func (p *problems) cidr(field string, c netip.Prefix) bool {
	switch {
	case !c.IsValid():
		p.invalid(field, "is missing")
		return false
	case c != c.Masked():
		p.invalid(field, "%s has host bits set; did you mean %s?", c, c.Masked())
		return false
	}
	return true
}

func (p *problems) destination(field string, c netip.Prefix) {
	if !p.cidr(field, c) {
		return
	}
	if c.Bits() == 0 {
		p.invalid(field, "%s is every address; name the user's subnets", c)
		return
	}
	if !p.ipv4(field, c.Addr()) {
		return
	}
	for _, r := range reserved {
		if r.prefix.Overlaps(c) {
			p.invalid(field, "%s overlaps %s, which %s", c, r.prefix, r.why)
			return
		}
	}
}

func (p *problems) ipv4(field string, a netip.Addr) bool {
	if !a.Is4() {
		p.invalid(field, "%s is IPv6; this release carries IPv4 between the pods and the user VPC", a)
	}
	return a.Is4()
}

// inner checks an address of the IPv4 path from the pods to the user VPC.
func (p *problems) inner(field string, a netip.Addr) {
	if a.IsValid() && p.ipv4(field, a) {
		p.unicast(field, a)
	}
}

func (p *problems) unicast(field string, a netip.Addr) {
	for _, r := range reserved {
		if r.prefix.Contains(a) {
			p.invalid(field, "%s cannot be a unicast address here: %s %s", a, r.prefix, r.why)
		}
	}
}

var (
	macAddress = regexp.MustCompile(`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`)
	pciAddress = regexp.MustCompile(`^[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$`)
)

// Validate implements Object.
func (a *Attachment) Validate() error {
	p := newProblems(a)
	p.name("metadata.name", a.Metadata.Name)
	p.name("spec.vpc", a.Spec.VPC)
	a.validateGroups(p)
	if len(a.Spec.CIDRs) == 0 {
		p.invalid("spec.cidrs", "is empty; give at least one subnet of the user VPC")
	}
	for i, c := range a.Spec.CIDRs {
		p.destination(fmt.Sprintf("spec.cidrs[%d]", i), c)
		for j := range i {
			if a.Spec.CIDRs[j].Overlaps(c) {
				p.invalid(fmt.Sprintf("spec.cidrs[%d]", i), "%s overlaps spec.cidrs[%d] (%s)", c, j, a.Spec.CIDRs[j])
			}
		}
	}
	a.validateScope(p)
	a.validateENIs(p)
	p.inner("spec.snatAddress", a.Spec.SNATAddress)
	a.validateHaVip(p)
	if a.Spec.GREKey != nil && *a.Spec.GREKey == 0 {
		p.invalid("spec.greKey", "is 0; leave it out, or give 1 to 4294967295")
	}
	return p.err()
}

func (a *Attachment) validateScope(p *problems) {
	switch a.EffectiveScope() {
	case ScopePods:
	case ScopeHost:
		if len(a.Spec.Pods) > 0 {
			p.invalid("spec.pods", "is set, but scope host takes the whole host's traffic; leave it out, or use scope: pods")
		}
		if a.Spec.Prewarm {
			p.invalid("spec.prewarm", "is set, but the path of scope host is always prepared; leave it out, or use scope: pods")
		}
	default:
		p.invalid("spec.scope", "%q is not known; want pods or host", a.Spec.Scope)
	}
	for i, c := range a.Spec.Pods {
		f := fmt.Sprintf("spec.pods[%d]", i)
		if p.cidr(f, c) && p.ipv4(f, c.Addr()) && c.Bits() == 0 {
			p.invalid(f, "%s is every address; use scope: host, or name the pods", c)
		}
		for j := range i {
			if a.Spec.Pods[j].Overlaps(c) {
				p.invalid(f, "%s overlaps spec.pods[%d] (%s)", c, j, a.Spec.Pods[j])
			}
		}
	}
	for i, n := range a.Spec.Nodes {
		p.name(fmt.Sprintf("spec.nodes[%d]", i), n)
	}
}

func (a *Attachment) validateENIs(p *problems) {
	if len(a.Spec.ENIs) == 0 {
		p.invalid("spec.enis", "is empty; say which interface of the proxy is in the user's subnet, by name, mac or pci")
	}
	for i, e := range a.Spec.ENIs {
		f := fmt.Sprintf("spec.enis[%d]", i)
		if slices.ContainsFunc(a.Spec.ENIs[:i], func(o ENI) bool { return o.Node == e.Node }) {
			p.invalid(f+".node", "%q appears twice; each proxy has one interface for an attachment", e.Node)
		}
		e.validate(p, f)
	}
}

func (e ENI) validate(p *problems, field string) {
	n := 0
	for _, s := range []string{e.Name, e.MAC, e.PCI} {
		if s != "" {
			n++
		}
	}
	if n != 1 {
		p.invalid(field, "names %d of name, mac and pci; want exactly one", n)
	}
	if e.Node != "" {
		p.name(field+".node", e.Node)
	}
	// 15 is IFNAMSIZ-1 (include/uapi/linux/if.h); the rest is dev_valid_name
	// (net/core/dev.c).
	if len(e.Name) > 15 || e.Name == "." || e.Name == ".." || strings.ContainsFunc(e.Name, notInInterfaceName) {
		p.invalid(field+".name", "%q is not an interface name: at most 15 characters, no slash, colon or space", e.Name)
	}
	if e.MAC != "" && !macAddress.MatchString(e.MAC) {
		p.invalid(field+".mac", "%q is not a MAC address such as 02:42:ac:10:65:04", e.MAC)
	}
	if e.PCI != "" && !pciAddress.MatchString(e.PCI) {
		p.invalid(field+".pci", "%q is not a PCI address such as 0000:00:05.0", e.PCI)
	}
	for i, a := range e.Addresses {
		f := fmt.Sprintf("%s.addresses[%d]", field, i)
		p.unicast(f, a.Addr())
		if a.Bits() == 0 {
			p.invalid(f, "%s has the prefix length 0; give the subnet's", a)
		}
	}
	p.inner(field+".gateway", e.Gateway)
}

func notInInterfaceName(r rune) bool {
	return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r)
}

// Validate implements Object.
func (g *ProxyGroup) Validate() error {
	p := newProblems(g)
	p.name("metadata.name", g.Metadata.Name)
	g.validateMembers(p)
	p.inner("spec.tunnelAddress", g.Spec.TunnelAddress)
	g.validateElection(p)
	return p.err()
}

// Validate implements Object.
func (n *Node) Validate() error {
	p := newProblems(n)
	p.name("metadata.name", n.Metadata.Name)
	if len(n.Spec.Roles) == 0 {
		p.invalid("spec.roles", "is empty; want function, proxy, controller or reflector")
	}
	for i, r := range n.Spec.Roles {
		if r != RoleFunction && r != RoleProxy && r != RoleController && r != RoleReflector {
			p.invalid(fmt.Sprintf("spec.roles[%d]", i), "%q is not known; want function, proxy, controller or reflector", r)
		}
	}
	if n.HasRole(RoleFunction) || n.HasRole(RoleProxy) {
		switch {
		case !n.Spec.UnderlayAddress.IsValid():
			p.invalid("spec.underlayAddress", "is missing; give the node's address in the platform VPC")
		case !n.Spec.UnderlayAddress.Is4():
			p.invalid("spec.underlayAddress", "%s is not IPv4; GRE between nodes runs over IPv4", n.Spec.UnderlayAddress)
		default:
			p.unicast("spec.underlayAddress", n.Spec.UnderlayAddress)
		}
	}
	p.inner("spec.tunnelAddress", n.Spec.TunnelAddress)
	if n.Spec.Zone != "" {
		p.name("spec.zone", n.Spec.Zone)
	}
	for i, c := range n.Spec.UnderlayCIDRs {
		p.cidr(fmt.Sprintf("spec.underlayCIDRs[%d]", i), c)
	}
	for i, c := range n.Spec.PodCIDRs {
		p.cidr(fmt.Sprintf("spec.podCIDRs[%d]", i), c)
	}
	return p.err()
}
