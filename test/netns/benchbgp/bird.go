package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// Who reflects: vpcproxyd, or BIRD 2.0 of the Debian package.
const (
	ours = "vpcproxyd"
	bird = "bird"
)

const birdConfig = `log stderr all;
router id %[1]s;
vpn4 table vpntab;
protocol device {}
protocol bgp {
	local %[1]s as %[2]d;
	neighbor range 192.168.0.0/16 as %[2]d;
	multihop;
	rr client;
	hold time 9;
	error wait time 2, 10;
	graceful restart on;
	vpn4 mpls { table vpntab; import all; export all; import table; };
}
`

func startBIRD(m *topo.Machine, address netip.Addr) (*agent, error) {
	const path = "/run/bird.conf"
	if err := m.WriteFile(path, fmt.Sprintf(birdConfig, address, asn)); err != nil {
		return nil, err
	}
	p, err := m.Start(nil, "bird", "-f", "-c", path, "-s", "/run/bird.ctl")
	return &agent{m, p}, err
}

// awaitBIRD waits until BIRD has so many routes.
func awaitBIRD(ctx context.Context, m *topo.Machine, n int) error {
	var last string
	err := poll(ctx, 200*time.Millisecond, func() (bool, error) {
		out, err := m.Run(ctx, "birdc", "-s", "/run/bird.ctl", "show", "route", "count", "table", "vpntab")
		last = out
		return err == nil && strings.Contains(out, fmt.Sprintf("%d of %d routes", n, n)), err
	})
	if err != nil {
		return fmt.Errorf("bird has not %d routes: %w\n%s", n, err, last)
	}
	return nil
}
