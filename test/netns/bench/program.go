package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/pkg/route"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
)

// How much a large node holds.
const (
	manyNeighbors = 5000
	manyRoutes    = 1000
	manyRules     = 1000
)

// checks is how often the unchanged state is checked again; the best counts.
const checks = 15

// programming is how long the engine takes with a large node's state.
type programming struct {
	First, Again time.Duration
}

// largeState is a device with many neighbors, and many tables, each with a
// route and a rule.
func largeState() desired.State {
	s := desired.New()
	const link = "vpx-large"
	s.Links[desired.LinkKey{Name: link}] = desired.Link{Local: netip.MustParseAddr("192.168.80.8"), Keyed: true, Key: 7, MTU: 1472, TTL: 64}
	addr := netip.MustParseAddr("100.64.0.1")
	for i := range manyNeighbors {
		s.Neighbors[desired.NeighborKey{Link: link, Addr: addr}] =
			desired.Neighbor{NBMA: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})}
		addr = addr.Next()
	}
	via := netip.MustParseAddr("100.64.0.1")
	for i := range uint32(manyRoutes) {
		s.Routes[desired.RouteKey{Table: 17600000 + i, Dst: netip.MustParsePrefix("172.16.101.0/24")}] =
			desired.Route{Link: link, Via: via, Onlink: true}
	}
	for i := range uint32(manyRules) {
		s.Rules[desired.RuleKey{Priority: 17600, Mark: i + 1, Mask: 0x3fff, Table: 17600000 + i}] = desired.Rule{}
	}
	return s
}

// programLarge runs in a machine of its own and prints what it measured.
func programLarge(ctx context.Context, out io.Writer) error {
	host, err := kernel.NewHost(kernel.HostOptions{})
	if err != nil {
		return err
	}
	want := largeState()
	loop, err := reconcile.New(reconcile.Config[desired.State]{Stages: []reconcile.Stage[desired.State]{
		reconcile.NewStage(tunnel.NewLinks(host), func(s desired.State) map[desired.LinkKey]desired.Link { return s.Links }, nil),
		reconcile.NewStage(tunnel.NewNeighbors(host, &tunnel.Table{}), func(s desired.State) map[desired.NeighborKey]desired.Neighbor { return s.Neighbors }, nil, reconcile.Requires("links")),
		reconcile.NewStage(route.NewRoutes(host), func(s desired.State) map[desired.RouteKey]desired.Route { return s.Routes }, nil, reconcile.Requires("links")),
		reconcile.NewStage(route.NewRules(host), func(s desired.State) map[desired.RuleKey]desired.Rule { return s.Rules }, nil),
	}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	var p programming
	loop.SetDesired(desired.State{Links: want.Links})
	if _, err := loop.Resync(ctx); err != nil {
		return err
	}
	start := time.Now()
	if err := loop.WaitConverged(ctx, loop.SetDesired(want)); err != nil {
		return err
	}
	p.First = time.Since(start)
	for range checks {
		start = time.Now()
		pass, err := loop.Resync(ctx)
		took := time.Since(start)
		switch {
		case err != nil:
			return err
		case !pass.Converged || pass.Writes() > 0:
			return errors.Join(fmt.Errorf("an unchanged state was written to: %d writes", pass.Writes()), pass.Err)
		case p.Again == 0 || took < p.Again:
			p.Again = took
		}
	}
	return json.NewEncoder(out).Encode(p)
}
