// Package ipmasq reads the configuration file of ip-masq-agent
// (github.com/kubernetes-sigs/ip-masq-agent) as that program does, follows its
// changes, and says what it asks of a node: which destinations see a pod's own
// address, and that all others see the node's.
//
// What upstream accepts is accepted, with the same meaning: YAML or JSON, keys
// in any case, unknown keys ignored, the last of repeated keys counting, and its
// defaults for what is left out. What upstream refuses is refused. Beyond that,
// what it accepts but iptables then refuses (prefix lengths with a leading zero,
// IPv4 addresses mapped into IPv6) is refused here too.
package ipmasq

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unicode"

	"sigs.k8s.io/yaml"

	"github.com/vpcproxy/vpcproxy/internal/desired"
)

// Options are what upstream takes as flags.
type Options struct {
	IPv6        bool // --enable-ipv6
	AllReserved bool // --nomasq-all-reserved-ranges
}

// Config is a valid configuration.
type Config struct {
	// NonMasqueradeCIDRs are the destinations toward which sources stay, but
	// for the link-local ranges.
	NonMasqueradeCIDRs []netip.Prefix
	// MasqLinkLocal masquerades toward 169.254.0.0/16, too, and
	// MasqLinkLocalIPv6 toward fe80::/10.
	MasqLinkLocal, MasqLinkLocalIPv6 bool
	// ResyncInterval is how often the file is read without a notification.
	ResyncInterval time.Duration

	ipv6 bool
}

// Upstream's defaults: the private ranges of RFC 1918, at most 64 ranges, one
// minute.
var private = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}

// reserved are the further ranges of Options.AllReserved: RFC 6598, 6890, 5737,
// 7526, 2544, and 1112 section 4 (class E).
var reserved = []string{
	"100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
	"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
}

const (
	defaultLimit  = 64
	defaultResync = time.Minute
	// minResync bounds what upstream does not: 0 would read the file without
	// end.
	minResync = time.Second
)

// The link-local ranges (RFC 3927, RFC 4291).
var (
	linkLocal4 = netip.MustParsePrefix("169.254.0.0/16")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
)

// file is the file's form. encoding/json finds its keys in any case, as for
// upstream.
type file struct {
	NonMasqueradeCIDRs []string `json:"nonMasqueradeCIDRs"`
	CIDRLimit          int      `json:"cidrLimit"`
	MasqLinkLocal      bool     `json:"masqLinkLocal"`
	MasqLinkLocalIPv6  bool     `json:"masqLinkLocalIPv6"`
	ResyncInterval     interval `json:"resyncInterval"`
}

// interval is a time.Duration written as text; null is an error, as upstream.
type interval time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (i *interval) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New("resyncInterval: want a duration with its unit in quotes, such as \"60s\"")
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("resyncInterval: %q is not a duration with its unit, such as 60s", s)
	}
	*i = interval(d)
	return nil
}

// Parse reads a configuration. An empty text means the defaults, as does a file
// that does not exist.
func Parse(text []byte, o Options) (Config, error) {
	f := file{NonMasqueradeCIDRs: slices.Clone(private), CIDRLimit: defaultLimit, ResyncInterval: interval(defaultResync)}
	if o.AllReserved {
		f.NonMasqueradeCIDRs = append(f.NonMasqueradeCIDRs, reserved...)
	}
	// Upstream takes for JSON what begins with a brace, and for YAML all else.
	if !bytes.HasPrefix(bytes.TrimLeftFunc(text, unicode.IsSpace), []byte("{")) {
		var err error
		if text, err = yaml.YAMLToJSON(text); err != nil {
			return Config{}, err
		}
	}
	if err := json.Unmarshal(text, &f); err != nil {
		var t *json.UnmarshalTypeError
		if errors.As(err, &t) && t.Field != "" {
			return Config{}, fmt.Errorf("%s: is a %s; want %s", t.Field, t.Value, wanted(t.Field))
		}
		return Config{}, err
	}
	return f.check(o)
}

func wanted(field string) string {
	switch field {
	case "nonMasqueradeCIDRs":
		return "a list of CIDRs, such as [10.0.0.0/8]"
	case "cidrLimit":
		return "a whole number"
	}
	return "true or false"
}

func (f file) check(o Options) (Config, error) {
	c := Config{
		MasqLinkLocal: f.MasqLinkLocal, MasqLinkLocalIPv6: f.MasqLinkLocalIPv6,
		ResyncInterval: max(time.Duration(f.ResyncInterval), minResync), ipv6: o.IPv6,
	}
	if n := len(f.NonMasqueradeCIDRs); n > f.CIDRLimit {
		return Config{}, fmt.Errorf("nonMasqueradeCIDRs: has %d entries, more than cidrLimit (%d) allows; raise cidrLimit or merge ranges", n, f.CIDRLimit)
	}
	var errs []error
	for i, s := range f.NonMasqueradeCIDRs {
		p, err := cidr(s, o)
		if err != nil {
			errs = append(errs, fmt.Errorf("nonMasqueradeCIDRs[%d]: %w", i, err))
		}
		if !slices.Contains(c.NonMasqueradeCIDRs, p) {
			c.NonMasqueradeCIDRs = append(c.NonMasqueradeCIDRs, p)
		}
	}
	return c, errors.Join(errs...)
}

func cidr(s string, o Options) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8", s)
	case p != p.Masked():
		return p, fmt.Errorf("%s has host bits set; did you mean %s?", s, p.Masked())
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%s is an IPv4 range written as IPv6; write it as IPv4", s)
	case p.Addr().Is6() && !o.IPv6:
		return p, fmt.Errorf("%s is IPv6, which nat.masq.ipv6 has not switched on", s)
	}
	return p, nil
}

// Masquerade returns what the configuration asks for, in each address family
// that is on.
func (c Config) Masquerade() []desired.Masquerade {
	v4 := desired.Masquerade{Keep: c.keep(false)}
	if !c.ipv6 {
		return []desired.Masquerade{v4}
	}
	return []desired.Masquerade{v4, {IPv6: true, Keep: c.keep(true)}}
}

func (c Config) keep(ipv6 bool) []netip.Prefix {
	var keep []netip.Prefix
	switch {
	case ipv6 && !c.MasqLinkLocalIPv6:
		keep = append(keep, linkLocal6)
	case !ipv6 && !c.MasqLinkLocal:
		keep = append(keep, linkLocal4)
	}
	for _, p := range c.NonMasqueradeCIDRs {
		if p.Addr().Is6() == ipv6 && !slices.Contains(keep, p) {
			keep = append(keep, p)
		}
	}
	return keep
}
