package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// cidrList is a flag of CIDRs. A single address stands for itself alone.
type cidrList struct{ list []netip.Prefix }

func (l *cidrList) String() string { return textList(l.list) }

func (l *cidrList) Type() string { return "CIDRs" }

func (l *cidrList) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		p, err := parseCIDR(strings.TrimSpace(word))
		if err != nil {
			return err
		}
		l.list = append(l.list, p)
	}
	return nil
}

func parseCIDR(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not an address or a CIDR such as 172.16.101.0/24", s)
	case p != p.Masked():
		return p, fmt.Errorf("%s has host bits set; did you mean %s?", p, p.Masked())
	}
	return p, nil
}

// addrValue is a flag of one address.
type addrValue struct{ addr netip.Addr }

func (v *addrValue) String() string {
	if !v.addr.IsValid() {
		return ""
	}
	return v.addr.String()
}

func (v *addrValue) Type() string { return "address" }

func (v *addrValue) Set(s string) (err error) {
	if v.addr, err = netip.ParseAddr(s); err != nil {
		return fmt.Errorf("%q is not an IP address such as 172.16.101.4", s)
	}
	return nil
}

// keyValue is a flag of a GRE key.
type keyValue struct{ key *uint32 }

func (v *keyValue) String() string {
	if v.key == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*v.key), 10)
}

func (v *keyValue) Type() string { return "key" }

func (v *keyValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not a key: want a number from 1 to 4294967295, or 0x and hexadecimal digits", s)
	}
	key := uint32(n)
	v.key = &key
	return nil
}

// eniList is a flag of interfaces.
type eniList struct{ list []intent.ENI }

func (l *eniList) String() string {
	words := make([]string, 0, len(l.list))
	for _, e := range l.list {
		words = append(words, eniText(e))
	}
	return strings.Join(words, " ")
}

func (l *eniList) Type() string { return "interface" }

var errENI = errors.New("want [NODE:]mac=…, [NODE:]name=… or [NODE:]pci=…, then perhaps ,address=CIDR and ,gateway=ADDRESS")

func (l *eniList) Set(s string) error {
	var e intent.ENI
	for i, part := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(part, "=")
		if !ok || value == "" {
			return fmt.Errorf("%q is not understood: %w", part, errENI)
		}
		if i == 0 {
			if at := strings.LastIndex(key, ":"); at >= 0 {
				e.Node, key = key[:at], key[at+1:]
			}
		}
		if err := setENI(&e, i == 0, key, value); err != nil {
			return err
		}
	}
	l.list = append(l.list, e)
	return nil
}

func setENI(e *intent.ENI, first bool, key, value string) error {
	switch {
	case first && key == "mac":
		e.MAC = value
	case first && key == "name":
		e.Name = value
	case first && key == "pci":
		e.PCI = value
	case !first && key == "address":
		p, err := netip.ParsePrefix(value)
		if err != nil {
			return fmt.Errorf("address %q is not an address with its prefix length, such as 172.16.101.4/24", value)
		}
		e.Addresses = append(e.Addresses, p)
	case !first && key == "gateway":
		a, err := netip.ParseAddr(value)
		if err != nil {
			return fmt.Errorf("gateway %q is not an IP address such as 172.16.101.1", value)
		}
		e.Gateway = a
	default:
		return fmt.Errorf("%q is not understood: %w", key+"="+value, errENI)
	}
	return nil
}

// eniText is an interface as --eni takes it.
func eniText(e intent.ENI) string {
	var b strings.Builder
	if e.Node != "" {
		b.WriteString(e.Node + ":")
	}
	switch {
	case e.MAC != "":
		b.WriteString("mac=" + e.MAC)
	case e.PCI != "":
		b.WriteString("pci=" + e.PCI)
	default:
		b.WriteString("name=" + e.Name)
	}
	for _, p := range e.Addresses {
		b.WriteString(",address=" + p.String())
	}
	if e.Gateway.IsValid() {
		b.WriteString(",gateway=" + e.Gateway.String())
	}
	return b.String()
}

// maxName is the length of a DNS label (RFC 1035 section 2.3.4).
const maxName = 63

// defaultName makes an attachment's name of its VPC and subnets, the same for
// the same set of subnets in whatever order: acme-172-16-101-0-24. What does
// not fit, or would not be unique when written so, ends in a hash.
func defaultName(vpc string, subnets []netip.Prefix) string {
	sorted := slices.SortedFunc(slices.Values(subnets), netip.Prefix.Compare)
	name := vpc + "-" + strings.NewReplacer(".", "-", "/", "-", ":", "-").Replace(sorted[0].String())
	plain := len(sorted) == 1 && sorted[0].Addr().Is4() && len(name) <= maxName
	if plain {
		return name
	}
	sum := sha256.Sum256([]byte(vpc + " " + textList(sorted)))
	suffix := "-" + hex.EncodeToString(sum[:4])
	return strings.TrimRight(name[:min(len(name), maxName-len(suffix))], "-") + suffix
}
