package kernel

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// body is what the kernel sees of a request behind its header.
func body(t *testing.T, build func(*message)) []byte {
	t.Helper()
	var m message
	build(&m)
	msgs, err := syscall.ParseNetlinkMessage(m.b)
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d messages, %v", len(msgs), err)
	}
	return msgs[0].Data
}

func TestRouteSurvivesItsEncoding(t *testing.T) {
	tests := map[string]Route{
		"via":         {Dst: netip.MustParsePrefix("172.16.101.0/24"), Link: 7, Via: netip.MustParseAddr("100.64.0.2"), Onlink: true, Metric: 9},
		"default":     {Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: 7, Via: netip.MustParseAddr("100.64.0.2")},
		"on link":     {Dst: netip.MustParsePrefix("172.16.101.5/32"), Link: 7, Scope: unix.RT_SCOPE_LINK, Source: netip.MustParseAddr("100.64.0.1")},
		"unreachable": {Dst: netip.MustParsePrefix("0.0.0.0/0"), Type: RouteUnreachable},
		"IPv6":        {Dst: netip.MustParsePrefix("fd00::/64"), Link: 7, Via: netip.MustParseAddr("fe80::1"), Metric: 1024},
		"IPv4 by way of IPv6": {
			Dst: netip.MustParsePrefix("172.16.101.0/24"), Link: 7, Via: netip.MustParseAddr("fe80::1"), Onlink: true,
		},
	}
	for name, want := range tests {
		want.Table, want.Protocol = 70000, 176
		if want.Type == 0 {
			want.Type = RouteUnicast
		}
		got, ok, err := parseRoute(body(t, func(m *message) { putRoute(m, 1, 0, want) }), familyOf(want.Dst.Addr()))
		if err != nil || !ok || got != want {
			t.Errorf("%s: got %+v, %v, %v, want %+v", name, got, ok, err, want)
		}
	}
}

func TestParseRouteLeavesOut(t *testing.T) {
	r := Route{Dst: netip.MustParsePrefix("172.16.101.0/24"), Table: 1000, Protocol: 176, Link: 7}
	b := body(t, func(m *message) { putRoute(m, 1, 0, r) })
	if _, ok, err := parseRoute(b, unix.AF_INET6); ok || err != nil {
		t.Errorf("another family: %v, %v", ok, err)
	}
	native.PutUint32(b[8:], unix.RTM_F_CLONED)
	if _, ok, err := parseRoute(b, unix.AF_INET); ok || err != nil {
		t.Errorf("a cached route: %v, %v", ok, err)
	}
}

func TestMultipathRouteHasNoNextHop(t *testing.T) {
	b := body(t, func(m *message) {
		putRoute(m, 1, 0, Route{Dst: netip.MustParsePrefix("172.16.101.0/24"), Table: 1000, Protocol: 176, Link: 7, Via: netip.MustParseAddr("100.64.0.2")})
		m.attr(unix.RTA_MULTIPATH, make([]byte, unix.SizeofRtNexthop))
		m.end()
	})
	r, ok, err := parseRoute(b, unix.AF_INET)
	if err != nil || !ok || !r.Multipath || r.Link != 0 || r.Via.IsValid() {
		t.Errorf("got %+v, %v, %v", r, ok, err)
	}
}

func TestRuleSurvivesItsEncoding(t *testing.T) {
	for _, want := range []Rule{
		{Priority: 1000, Mark: 0x100, Mask: 0xff00, Table: 70000, Protocol: 176},
		{Priority: 1000, Mask: 0xff00, Table: 7, Protocol: 176, IPv6: true},
		{Table: 254, Protocol: 2},
	} {
		got, ok, err := parseRule(body(t, func(m *message) { putRule(m, unix.RTM_NEWRULE, 0, 1, want) }))
		if err != nil || !ok || got != want {
			t.Errorf("got %+v, %v, %v, want %+v", got, ok, err, want)
		}
	}
}

func TestRuleWithMoreIsOther(t *testing.T) {
	plain := Rule{Priority: 1000, Table: 254, Protocol: 176}
	tests := map[string]func(*message){
		"input interface":  func(m *message) { m.attr(3, []byte("eth0\x00")) },
		"suppress prefix":  func(m *message) { m.attrU32(fraSuppressPrefixlen, 0) },
		"IP protocol":      func(m *message) { m.attrU8(22, 6) },
		"unknown selector": func(m *message) { m.attrU32(99, 0) },
		"source prefix":    func(m *message) { m.b[unix.SizeofNlMsghdr+2] = 24 },
		"TOS":              func(m *message) { m.b[unix.SizeofNlMsghdr+3] = 4 },
		"unreachable":      func(m *message) { m.b[unix.SizeofNlMsghdr+7] = 7 },
		"inverted":         func(m *message) { native.PutUint32(m.b[unix.SizeofNlMsghdr+8:], unix.FIB_RULE_INVERT) },
	}
	for name, add := range tests {
		r, ok, err := parseRule(body(t, func(m *message) {
			putRule(m, unix.RTM_NEWRULE, 0, 1, plain)
			add(m)
			m.end()
		}))
		if err != nil || !ok || !r.Other {
			t.Errorf("%s: got %+v, %v, %v", name, r, ok, err)
		}
	}
	unset := func(m *message) {
		putRule(m, unix.RTM_NEWRULE, 0, 1, plain)
		m.attrU32(fraSuppressPrefixlen, ^uint32(0)) // always there, and means nothing
		m.end()
	}
	if r, _, err := parseRule(body(t, unset)); err != nil || r.Other {
		t.Errorf("suppress_prefixlength -1: got %+v, %v", r, err)
	}
}

func TestParseNeighborLeavesOut(t *testing.T) {
	n := Neighbor{Link: 7, Addr: netip.MustParseAddr("100.64.0.2")}
	tests := map[string]struct {
		state NeighborState
		mac   []byte
		want  bool
	}{
		"tunnel":          {NeighborPermanent, []byte{192, 0, 2, 2}, true},
		"Ethernet":        {NeighborReachable, []byte{2, 0, 0, 0, 0, 1}, false},
		"kernel's own":    {unix.NUD_NOARP, []byte{192, 0, 2, 2}, false},
		"without address": {NeighborFailed, nil, true}, // the link decides
	}
	for name, test := range tests {
		n.State = test.state
		got, ok, err := parseNeighbor(body(t, func(m *message) {
			m.begin(unix.RTM_NEWNEIGH, 0, 1)
			putNeighbor(m, n)
			if test.mac != nil {
				m.attr(unix.NDA_LLADDR, test.mac)
			}
			m.end()
		}))
		if err != nil || ok != test.want {
			t.Errorf("%s: got %+v, %v, %v", name, got, ok, err)
		}
	}
}

func TestReplyError(t *testing.T) {
	code := func(errno unix.Errno) []byte {
		return native.AppendUint32(nil, uint32(-int32(errno)))
	}
	withText := append(code(unix.EINVAL), make([]byte, unix.SizeofNlMsghdr)...)
	native.PutUint32(withText[4:], unix.SizeofNlMsghdr)
	var text message
	text.attr(unix.NLMSGERR_ATTR_MSG, []byte("no\x00"))
	withText = append(withText, text.b...)
	tests := map[string]struct {
		flags uint16
		data  []byte
		want  error
		text  string
	}{
		"success":        {data: code(0)},
		"no code":        {},
		"plain":          {data: code(unix.EEXIST), want: unix.EEXIST, text: "file exists"},
		"text":           {flags: unix.NLM_F_ACK_TLVS, data: withText, want: unix.EINVAL, text: "invalid argument: no"},
		"truncated text": {flags: unix.NLM_F_ACK_TLVS, data: withText[:len(withText)-3], want: unix.EINVAL, text: "invalid argument"},
	}
	for name, test := range tests {
		err := replyError(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.NLMSG_ERROR, Flags: test.flags}, Data: test.data})
		if !errors.Is(err, test.want) || err != nil && err.Error() != test.text {
			t.Errorf("%s: got %v, want %q", name, err, test.text)
		}
	}
}

func TestPCIAddress(t *testing.T) {
	for bus, want := range map[string]string{
		"0000:00:05.0":   "0000:00:05.0",
		"10000:e1:00.7":  "10000:e1:00.7",
		"usb-0000:00:14": "",
		"virtio0":        "",
		"":               "",
		"eth0":           "",
	} {
		if got := pciAddress(bus); got != want {
			t.Errorf("%q: got %q, want %q", bus, got, want)
		}
	}
}

// FuzzDecoders feeds everything that reads what came from a socket.
func FuzzDecoders(f *testing.F) {
	var m message
	putRoute(&m, 1, 0, Route{Dst: netip.MustParsePrefix("fd00::/64"), Table: 1000, Protocol: 176, Link: 7, Via: netip.MustParseAddr("fe80::1")})
	f.Add(m.b[unix.SizeofNlMsghdr:], uint16(unix.RTM_NEWROUTE), uint16(0))
	m = message{}
	putRule(&m, unix.RTM_NEWRULE, 0, 1, Rule{Priority: 1, Mark: 1, Mask: 1, Table: 7, Protocol: 176})
	f.Add(m.b[unix.SizeofNlMsghdr:], uint16(unix.RTM_NEWRULE), uint16(unix.NLM_F_ACK_TLVS))
	f.Add(append([]byte{2, 0, 0, 0}, tuple(ctaTupleOrig, netip.MustParseAddr("100.64.0.3"), netip.MustParseAddr("172.16.101.4"))...), uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, typ, flags uint16) {
		_ = addFlow(map[netip.Addr]struct{}{}, b)
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if r, ok, err := parseRoute(b, family); ok && err == nil && !r.Dst.IsValid() {
				t.Errorf("an invalid route: %+v", r)
			}
		}
		if a, ok, err := parseAddress(b); ok && err == nil && !a.Prefix.IsValid() {
			t.Errorf("an invalid address: %+v", a)
		}
		if n, ok, err := parseNeighbor(b); ok && err == nil && !n.Addr.IsValid() {
			t.Errorf("an invalid neighbor: %+v", n)
		}
		_, _, _ = parseRule(b)
		msg := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: typ, Flags: flags}, Data: b}
		_ = routeHints(msg)
		_ = replyError(msg)
		if r, ok := parseRequest(msg); ok && !r.Addr.IsValid() {
			t.Errorf("an invalid request: %+v", r)
		}
		_ = (&nameWatch{dir: "/run/netns"}).concerned(b)
	})
}
