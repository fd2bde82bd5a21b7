// Package owned decides which kernel objects are ours, in one place: what is
// not ours is never touched, and what is ours and unwanted is removed by an
// agent that has just started and remembers nothing (DESIGN.md §4).
package owned

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// Name tells whether a link or a network namespace of this name is ours.
func Name(name string) bool {
	return strings.HasPrefix(name, desired.LinkPrefix)
}

// Tunnel tells whether a link is a tunnel device of ours, whatever its name is
// now.
func Tunnel(l kernel.Link) bool {
	return l.Type == "gre" && (Name(l.Name) || strings.HasPrefix(l.Alias, desired.AliasPrefix))
}

// fallback are the devices that tunnel modules put into every network namespace
// (net/ipv4/{ip_gre,ipip,ip_vti}.c, net/ipv6/{sit,ip6_tunnel,ip6_gre,ip6_vti}.c);
// they can be neither moved nor deleted.
var fallback = map[string]bool{
	"gre0": true, "gretap0": true, "erspan0": true, "tunl0": true, "ip_vti0": true,
	"sit0": true, "ip6tnl0": true, "ip6gre0": true, "ip6_vti0": true,
}

// ENI tells whether a link, found in a namespace of ours, is an interface that
// was moved there: a physical one, or one end of a veth pair. Everything with an
// Ethernet address is, unless the kernel or we made it there.
func ENI(l kernel.Link) bool {
	return l.MAC != "" && l.Name != "lo" && !fallback[l.Name] && !Name(l.Name) && !Tunnel(l)
}

// Namespaces lists the network namespaces of ours.
func Namespaces(ctx context.Context, host kernel.Host) ([]string, error) {
	all, err := host.Namespaces(ctx)
	if err != nil {
		return nil, err
	}
	var ours []string
	for _, n := range all {
		if Name(n) {
			ours = append(ours, n)
		}
	}
	return ours, nil
}

// Visit calls f for each network namespace of ours. One that vanishes meanwhile
// is passed over: f must report that as ErrNotFound, and keep nothing of it.
func Visit(ctx context.Context, host kernel.Host, f func(netns string, h kernel.Handle) error) error {
	names, err := Namespaces(ctx, host)
	if err != nil {
		return err
	}
	for _, n := range names {
		h, err := host.In(n)
		if err == nil {
			err = f(n, h)
		}
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			return fmt.Errorf("namespace %s: %w", n, err)
		}
	}
	return nil
}

// VisitAll is Visit, with the agent's own namespace first.
func VisitAll(ctx context.Context, host kernel.Host, f func(netns string, h kernel.Handle) error) error {
	h, err := host.In("")
	if err != nil {
		return err
	}
	if err := f("", h); err != nil {
		return err
	}
	return Visit(ctx, host, f)
}

// Link returns the link of this name in a namespace; the error tells both.
func Link(ctx context.Context, host kernel.Host, netns, name string) (kernel.Handle, kernel.Link, error) {
	h, err := host.In(netns)
	if err != nil {
		return nil, kernel.Link{}, err
	}
	l, err := h.LinkByName(ctx, name)
	if err != nil && netns != "" {
		err = fmt.Errorf("namespace %s: %w", netns, err)
	}
	return h, l, err
}

// Indexes returns the names and indexes of a namespace's links that keep
// accepts.
func Indexes(ctx context.Context, h kernel.Handle, keep func(kernel.Link) bool) (byName map[string]int, byIndex map[int]string, err error) {
	links, err := h.Links(ctx)
	if err != nil {
		return nil, nil, err
	}
	byName, byIndex = map[string]int{}, map[int]string{}
	for _, l := range links {
		if keep(l) {
			byName[l.Name], byIndex[l.Index] = l.Index, l.Name
		}
	}
	return byName, byIndex, nil
}
