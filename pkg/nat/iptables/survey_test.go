package iptables

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// As ip-masq-agent writes them, the chain under another name the second time.
const besideMasqAgent = `*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:IP-MASQ-AGENT - [0:0]
:VPCPROXY-MASQ - [0:0]
:OTHER - [0:0]
:CNI-1 - [0:0]
-A POSTROUTING -s 10.244.0.0/16 -j CNI-1
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A POSTROUTING -m addrtype ! --dst-type LOCAL -m comment --comment "vpcproxy: masquerade" -j VPCPROXY-MASQ
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom OTHER chain" -m addrtype ! --dst-type LOCAL -j OTHER
-A IP-MASQ-AGENT -d 169.254.0.0/16 -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A IP-MASQ-AGENT -d 10.0.0.0/8 -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE --random-fully
-A OTHER -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN
-A OTHER -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)" -j MASQUERADE
COMMIT
`

func TestMasqAgents(t *testing.T) {
	tables, err := parseSave(besideMasqAgent)
	if err != nil {
		t.Fatal(err)
	}
	want := []nat.MasqAgent{
		{Family: nat.IPv4, Chain: "IP-MASQ-AGENT", First: true, Masquerades: true,
			Keep: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("10.0.0.0/8")}},
		{Family: nat.IPv4, Chain: "OTHER"},
	}
	if got := masqAgents(nat.IPv4, tables); !reflect.DeepEqual(got, want) {
		t.Errorf("masqAgents = %+v\nwant %+v", got, want)
	}
	if got := masqAgents(nat.IPv4, nil); got != nil {
		t.Errorf("masqAgents of nothing = %+v", got)
	}
}
