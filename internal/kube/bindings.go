package kube

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/kube/names"
)

// Pod is what matters of a pod of this node.
type Pod struct {
	Namespace, Name, UID string
	// Annotation is the pod's own value; nil if it has none.
	Annotation *string
	// Addresses are none while they are not known, and if they are not its own
	// (host network) or no longer (it has ended).
	Addresses []netip.Addr
	Created   int64 // nanoseconds since 1970
}

// Bound is a binding of this node.
type Bound struct {
	Address     netip.Addr
	Attachments []string
	Interface   string
	Owner       string
}

// Change is what has to be done about one address. Without Attachments its
// binding is removed.
type Change struct {
	Bound
	Pod string // namespace/name, for messages
}

// parseNames reads an annotation's value.
func parseNames(s string) []string {
	var list []string
	for n := range strings.SplitSeq(s, ",") {
		if n = strings.TrimSpace(n); n != "" && !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// attachments returns those that a pod should have.
func attachments(own *string, namespaceDefault string) []string {
	if own != nil {
		return parseNames(*own)
	}
	return parseNames(namespaceDefault)
}

// changes compares what pods ask for with what is bound. defaults are the
// namespaces' values. What the CNI plugin has bound for a pod whose address is
// not published yet is left as it is.
func changes(pods []Pod, defaults map[string]string, bound []Bound) []Change {
	byAddress := map[netip.Addr]*Pod{}
	for i := range pods {
		p := &pods[i]
		for _, a := range p.Addresses {
			// One that ends may still show an address that another has by now.
			if q := byAddress[a]; q == nil || q.Created < p.Created {
				byAddress[a] = p
			}
		}
	}
	have := map[netip.Addr]Bound{}
	var out []Change
	for _, b := range bound {
		have[b.Address] = b
		if byAddress[b.Address] == nil && strings.HasPrefix(b.Owner, names.OwnerPod) {
			out = append(out, Change{Bound: Bound{Address: b.Address, Owner: b.Owner}})
		}
	}
	for a, p := range byAddress {
		if c, ok := change(a, p, attachments(p.Annotation, defaults[p.Namespace]), have[a]); ok {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(x, y Change) int {
		return cmp.Or(cmp.Compare(len(x.Attachments), len(y.Attachments)), x.Address.Compare(y.Address))
	})
	return out
}

func change(a netip.Addr, p *Pod, want []string, have Bound) (Change, bool) {
	ours := strings.HasPrefix(have.Owner, names.OwnerPod)
	follows := ours || strings.HasPrefix(have.Owner, names.OwnerCNI)
	if have.Address.IsValid() && !follows {
		return Change{}, false
	}
	c := Change{Bound: Bound{Address: a, Attachments: want, Interface: have.Interface, Owner: have.Owner}, Pod: p.Namespace + "/" + p.Name}
	if !have.Address.IsValid() || ours {
		c.Owner = names.OwnerPod + p.UID
	}
	if len(want) == 0 {
		c.Owner = have.Owner
		return c, have.Address.IsValid()
	}
	held := slices.Sorted(slices.Values(have.Attachments))
	return c, !slices.Equal(want, held) || c.Owner != have.Owner
}
