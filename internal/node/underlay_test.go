package node

import (
	"net/netip"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/kernel/kerneltest"
)

// A HaVip that was left behind is not taken for the node's own address, and is
// no address of an ENI's.
func TestHaVipsAreNobodysOwn(t *testing.T) {
	host := kerneltest.New()
	t.Cleanup(func() { _ = host.Close() })
	host.Plug("", kernel.Link{Name: "eth0", MAC: "02:00:00:00:04:04"})
	h, err := host.In("")
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.LinkByName(t.Context(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParsePrefix("192.168.4.4/24")
	for _, a := range []kernel.Address{
		{Link: l.Index, Prefix: netip.MustParsePrefix("192.168.4.100/32"), Protocol: desired.HaVipProtocol}, {Link: l.Index, Prefix: own},
	} {
		if err := h.AddAddress(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := DefaultUnderlay(t.Context(), host, "eth0"); err != nil || got != own {
		t.Errorf("%v, %v; want %v", got, err, own)
	}
	seen, err := newFacts(host).observe(t.Context(), own.Addr())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range seen.Interfaces {
		if len(i.Addresses) != 1 || i.Addresses[0] != own {
			t.Errorf("%s has %v, want %v alone", i.Name, i.Addresses, own)
		}
	}
}
