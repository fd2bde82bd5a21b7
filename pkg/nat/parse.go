package nat

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ParseRule reads a rule as Rule.String and iptables-save print it, whatever the order of its
// matches. A rule that package nat does not write is returned as Other.
func ParseRule(spec string) Rule {
	if spec == "" {
		return Rule{Other: "(matches everything, does nothing)"}
	}
	words := normalize(Words(spec))
	r, ok := readWords(words)
	if !ok {
		return Rule{Other: spec}
	}
	// What was not understood, or was left out, shows when the rule is
	// written again.
	again := Words(r.String())
	slices.Sort(words)
	slices.Sort(again)
	if !slices.Equal(words, again) {
		return Rule{Other: spec}
	}
	return r
}

// normalize undoes differences in spelling between versions of iptables.
func normalize(words []string) []string {
	for i := 1; i < len(words); i++ {
		switch words[i-1] {
		case "--ctstate", "--tcp-flags":
			words[i] = order(words[i])
		case "-p":
			if words[i] == "icmpv6" || words[i] == "58" {
				words[i] = "ipv6-icmp"
			}
		case "--icmpv6-type":
			if n, ok := icmpv6Names[words[i]]; ok {
				words[i] = n
			}
		}
	}
	return words
}

// icmpv6Names are the names that some versions print for the types that
// package nat uses (iptables: extensions/libxt_icmp.h).
var icmpv6Names = map[string]string{
	"neighbour-solicitation": "135", "neighbor-solicitation": "135",
	"neighbour-advertisement": "136", "neighbor-advertisement": "136",
}

// order brings a list of flags into the order that package nat writes.
func order(list string) string {
	for _, known := range []string{string(Known), string(Untranslated), "SYN,RST"} {
		a, b := strings.Split(list, ","), strings.Split(known, ",")
		slices.Sort(a)
		slices.Sort(b)
		if slices.Equal(a, b) {
			return known
		}
	}
	return list
}

func readWords(words []string) (Rule, bool) {
	var r Rule
	for i := 0; i < len(words); i++ {
		arg := ""
		if i+1 < len(words) {
			arg = words[i+1]
		}
		ok := true
		switch words[i] {
		case "-s":
			r.Source, ok = address(arg)
		case "-d":
			r.Dest, ok = prefix(arg)
		case "-i":
			r.In = LinkPattern(arg)
		case "-o":
			r.Out = LinkPattern(arg)
		case "-p", "-m": // implied by another word
		case "--tcp-flags":
			r.SYN = true
			i++
		case "--icmpv6-type":
			var n int
			n, ok = number(arg)
			r.ICMPv6 = uint8(n) // what is cut off shows in the comparison
		case "--ctstate":
			r.State = State(arg)
		case "--comment":
			r.Reason, ok = ReasonOf(arg)
		case "-j":
			r.Action = Action(arg)
		case "--to-source":
			r.To, ok = plainAddress(arg)
		case "--set-mss":
			r.Action = SetMSS
			r.MSS, ok = number(arg)
		case "--clamp-mss-to-pmtu":
			r.Action = ClampMSS
			i--
		case "--random-fully":
			i--
		default:
			ok = false
		}
		if !ok {
			return r, false
		}
		i++
	}
	return r, slices.Contains(Actions(), r.Action)
}

// address reads an address with the prefix length of a single one.
func address(s string) (netip.Addr, bool) {
	p, err := netip.ParsePrefix(s)
	return p.Addr(), err == nil && p.IsSingleIP()
}

func prefix(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	return p, err == nil
}

func plainAddress(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil
}

func number(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// Words cuts a rule into words, as iptables-restore does: double quotes group,
// a backslash within them escapes.
func Words(spec string) []string {
	var words []string
	var b strings.Builder
	quoted, escaped, any := false, false, false
	for _, c := range spec {
		switch {
		case escaped:
			b.WriteRune(c)
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted, any = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			if any {
				words = append(words, b.String())
			}
			b.Reset()
			any = false
		default:
			b.WriteRune(c)
			any = true
		}
	}
	if any {
		words = append(words, b.String())
	}
	return words
}
