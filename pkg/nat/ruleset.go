package nat

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Family is an address family.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns "IPv4" or "IPv6".
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

func (f Family) program() string {
	if f == IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

func (f Family) other() Family {
	if f == IPv4 {
		return IPv6
	}
	return IPv4
}

// Chain names a chain of ours. Names are at most 28 characters long, which is
// what iptables allows (XT_EXTENSION_MAXNAMELEN less one).
type Chain string

// The chains, in the order in which they are written: translation stands before
// the filter lets anything through.
const (
	Postrouting Chain = "VPCPROXY-POSTROUTING" // source NAT of attachments
	Masq        Chain = "VPCPROXY-MASQ"        // masquerade of all else
	MSS         Chain = "VPCPROXY-MSS"         // of forwarded SYNs
	Input       Chain = "VPCPROXY-INPUT"       // to this machine
	Forward     Chain = "VPCPROXY-FORWARD"     // through this machine
)

// ChainPrefix begins the name of every chain of ours, of whatever version.
const ChainPrefix = "VPCPROXY-"

// Chains lists all chains in writing order.
func Chains() []Chain { return []Chain{Postrouting, Masq, MSS, Input, Forward} }

// Key identifies a chain in one family.
type Key struct {
	Family Family
	Chain  Chain
}

// Keys lists all keys in writing order.
func Keys() []Key {
	var ks []Key
	for _, f := range []Family{IPv4, IPv6} {
		for _, c := range Chains() {
			ks = append(ks, Key{f, c})
		}
	}
	return ks
}

// RuleSet is what our chains in one namespace hold.
type RuleSet struct {
	// Rules holds each chain's rules in order. A chain that is not a key
	// does not exist; one that exists empty has an empty list.
	Rules map[Key][]Rule
	// Faults says what else is wrong with a chain, in the backend's words:
	// packets do not reach it, or something before it decides first. Read only.
	Faults map[Key]string
	// Strays names what is ours but has no place here: chains of an older
	// version, or in a firewall that is no longer used. Read only.
	Strays []string
	// NoIPv6 says that this namespace has no IPv6 at all. Read only.
	NoIPv6 bool
}

// Empty says whether nothing of ours is there.
func (s RuleSet) Empty() bool { return len(s.Rules) == 0 && len(s.Faults) == 0 && len(s.Strays) == 0 }

// Commands returns the rules as an operator would type them, for plans and
// golden files.
func (s RuleSet) Commands() []string {
	var out []string
	for _, k := range Keys() {
		rules, ok := s.Rules[k]
		if !ok {
			continue
		}
		p := k.Chain.Place()
		prefix := k.Family.program() + " -t " + p.Table
		out = append(out, fmt.Sprintf("%s -N %s", prefix, k.Chain))
		for _, r := range rules {
			out = append(out, fmt.Sprintf("%s -A %s %s", prefix, k.Chain, r))
		}
		out = append(out, fmt.Sprintf("%s %s %s %s", prefix, p.option(), p.Hook, p.Jump(k.Chain)))
	}
	return out
}

// RemoveCommands returns the commands that take the chains away.
func (s RuleSet) RemoveCommands() []string {
	var out []string
	for _, k := range slices.Backward(Keys()) {
		if _, ok := s.Rules[k]; !ok {
			continue
		}
		p := k.Chain.Place()
		prefix := k.Family.program() + " -t " + p.Table
		out = append(out,
			fmt.Sprintf("%s -D %s %s", prefix, p.Hook, p.Jump(k.Chain)),
			fmt.Sprintf("%s -F %s", prefix, k.Chain),
			fmt.Sprintf("%s -X %s", prefix, k.Chain))
	}
	return out
}

// Place says where a chain of ours is called from, in netfilter's words.
type Place struct {
	Table   string
	Hook    string // built-in chain
	Comment string
	// Match restricts which packets are passed to the chain.
	Match string
	// Last puts the jump after the rules of others instead of before them.
	Last bool
}

func (p Place) option() string {
	if p.Last {
		return "-A"
	}
	return "-I"
}

// Jump returns the rule that calls the chain.
func (p Place) Jump(c Chain) string {
	match := ""
	if p.Match != "" {
		match = p.Match + " "
	}
	return fmt.Sprintf("%s-m comment --comment %q -j %s", match, p.Comment, c)
}

// Place returns the place of a chain of Chains, and the zero Place for others.
func (c Chain) Place() Place {
	switch c {
	case Postrouting:
		return Place{Table: "nat", Hook: "POSTROUTING", Comment: "vpcproxy: source NAT"}
	case Masq:
		return Place{Table: "nat", Hook: "POSTROUTING", Comment: "vpcproxy: masquerade", Match: NotToThisMachine, Last: true}
	case MSS:
		return Place{Table: "mangle", Hook: "FORWARD", Comment: "vpcproxy: TCP segment size", Match: Opening}
	case Input:
		return Place{Table: "filter", Hook: "INPUT", Comment: "vpcproxy: guarded links"}
	case Forward:
		return Place{Table: "filter", Hook: "FORWARD", Comment: "vpcproxy: guarded links"}
	}
	return Place{}
}

// NotToThisMachine matches packets to addresses that are not this machine's.
const NotToThisMachine = "-m addrtype ! --dst-type LOCAL"

// Opening matches TCP segments that open a connection. The rules of MSS match no
// others; asked for before the jump, it spares all other packets the chain.
const Opening = "-p tcp -m tcp --tcp-flags SYN,RST SYN"

// State selects packets by what conntrack knows of them.
type State string

// The selections that rules use. "" is any packet.
const (
	Known        State = "RELATED,ESTABLISHED"
	Invalid      State = "INVALID"
	Untranslated State = "INVALID,UNTRACKED" // source NAT does not touch them
)

// Action is a rule's verdict or change.
type Action string

// The actions.
const (
	Accept     Action = "ACCEPT"
	Drop       Action = "DROP"
	Return     Action = "RETURN"     // to the rules of others
	SNAT       Action = "SNAT"       // to Rule.To
	Masquerade Action = "MASQUERADE" // to the out link's primary address
	SetMSS     Action = "SETMSS"     // to Rule.MSS, if it is higher
	ClampMSS   Action = "CLAMPMSS"   // to the route's MTU, if it is higher
)

// Actions lists all actions.
func Actions() []Action { return []Action{Accept, Drop, Return, SNAT, Masquerade, SetMSS, ClampMSS} }

// Reason says why a packet was dropped.
type Reason string

// The reasons, which are also metric labels.
const (
	InboundUserVPC Reason = "inbound_user_vpc" // a new connection from a guarded link
	InvalidPacket  Reason = "invalid"          // conntrack does not understand it, so NAT leaves it alone
	NoSourceNAT    Reason = "no_source_nat"    // toward a link that is translated in the other family only
)

// Reasons lists all reasons.
func Reasons() []Reason { return []Reason{InboundUserVPC, InvalidPacket, NoSourceNAT} }

// Rule is one rule. Zero fields match everything.
type Rule struct {
	Source  netip.Addr
	Dest    netip.Prefix
	In, Out LinkPattern
	SYN     bool  // TCP segments with SYN and without RST
	ICMPv6  uint8 // ICMPv6 type
	State   State
	Action  Action
	To      netip.Addr // for SNAT
	MSS     int        // bytes, for SetMSS
	Reason  Reason     // for Drop
	// Other is the text of a rule that this package does not write. All
	// other fields are zero then. Read only.
	Other string
}

// String returns the rule as iptables takes and prints it.
func (r Rule) String() string {
	if r.Other != "" {
		return r.Other
	}
	var b strings.Builder
	opt := func(format string, args ...any) { fmt.Fprintf(&b, format+" ", args...) }
	if r.Source.IsValid() {
		opt("-s %s/%d", r.Source, r.Source.BitLen())
	}
	if r.Dest.IsValid() {
		opt("-d %s", r.Dest)
	}
	if r.In != "" {
		opt("-i %s", r.In)
	}
	if r.Out != "" {
		opt("-o %s", r.Out)
	}
	if r.SYN {
		opt(Opening)
	}
	if r.ICMPv6 != 0 {
		opt("-p ipv6-icmp -m icmp6 --icmpv6-type %d", r.ICMPv6)
	}
	if r.State != "" {
		opt("-m conntrack --ctstate %s", r.State)
	}
	if r.Reason != "" {
		opt("-m comment --comment %q", reasonPrefix+string(r.Reason))
	}
	return b.String() + "-j " + r.target()
}

const reasonPrefix = "vpcproxy: "

func (r Rule) target() string {
	switch r.Action {
	case SNAT:
		return fmt.Sprintf("SNAT --to-source %s --random-fully", r.To)
	case Masquerade:
		return "MASQUERADE --random-fully"
	case SetMSS:
		return fmt.Sprintf("TCPMSS --set-mss %d", r.MSS)
	case ClampMSS:
		return "TCPMSS --clamp-mss-to-pmtu"
	}
	return string(r.Action)
}

// ReasonOf returns the reason that a rule's comment stands for.
func ReasonOf(comment string) (Reason, bool) {
	s, ok := strings.CutPrefix(comment, reasonPrefix)
	r := Reason(s)
	return r, ok && slices.Contains(Reasons(), r)
}

// Smallest and largest MSS that a rule may set: the default segment size of
// IPv4 (RFC 9293 section 3.7.1), below which some stacks break, and what 16 bits hold.
const (
	minMSS = 536
	maxMSS = 65535
)

// Check refuses a rule that must not reach a firewall: one that matches more
// than a link of ours (but for Masq, which is for all), or whose values another
// program might read as something else.
func (r Rule) Check(k Key) error {
	f := k.Family
	var errs []error
	for _, l := range []LinkPattern{r.In, r.Out} {
		errs = append(errs, l.check())
	}
	switch r.Action {
	case SNAT:
		if !r.To.IsValid() || r.To.Zone() != "" || r.To.Is4() != (f == IPv4) {
			errs = append(errs, fmt.Errorf("new source %s is no %s address", r.To, f))
		}
		fallthrough
	case Masquerade:
		if r.Out == "" && k.Chain != Masq {
			errs = append(errs, errors.New("source NAT needs an out link"))
		}
	case SetMSS:
		if r.MSS < minMSS || r.MSS > maxMSS {
			errs = append(errs, fmt.Errorf("MSS %d is not between %d and %d: check the link's MTU", r.MSS, minMSS, maxMSS))
		}
	}
	if !slices.Contains(Actions(), r.Action) {
		errs = append(errs, fmt.Errorf("there is no action %q", r.Action))
	}
	if r.Dest.IsValid() && (r.Dest != r.Dest.Masked() || r.Dest.Addr().Is4() != (f == IPv4) || r.Dest.Addr().Is4In6()) {
		errs = append(errs, fmt.Errorf("destination %s is no %s range", r.Dest, f))
	}
	if r.In == "" && r.Out == "" && k.Chain != Masq {
		errs = append(errs, errors.New("a rule needs a link"))
	}
	return errors.Join(errs...)
}

// Check refuses a set that a backend cannot write as it is meant.
func (s RuleSet) Check() error {
	var errs []error
	for _, k := range Keys() {
		for i, r := range s.Rules[k] {
			if err := r.Check(k); err != nil {
				errs = append(errs, fmt.Errorf("%s rule %d of %s: %w", k.Family, i+1, k.Chain, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Counter counts what one Drop rule has dropped since the rule was written.
type Counter struct {
	Key
	Reason  Reason
	In, Out LinkPattern
	Packets uint64
}

// SortCounters orders counters by family, chain, link and reason.
func SortCounters(cs []Counter) {
	slices.SortFunc(cs, func(a, b Counter) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Chain, b.Chain),
			cmp.Compare(a.In, b.In), cmp.Compare(a.Out, b.Out), cmp.Compare(a.Reason, b.Reason))
	})
}
