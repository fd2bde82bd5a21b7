package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// alternativesMode is the argument with which this program, within a machine,
// times what other designs do for a pod.
const alternativesMode = "alternatives"

// alternativePods is how many pods are timed, beside as many.
const alternativePods = 300

// alternative is what one design takes for a pod.
type alternative struct {
	Name     string
	P50, P99 time.Duration
}

// timeOthers runs in a machine and prints what it measured. All of it is
// by netlink, without a program to start.
func timeOthers(ctx context.Context, out io.Writer) error {
	host, err := kernel.NewHost(kernel.HostOptions{})
	if err != nil {
		return err
	}
	h, err := host.In("")
	if err != nil {
		return errors.Join(err, host.Close())
	}
	var list []alternative
	for _, design := range []struct {
		name string
		add  func(i int) error
	}{
		{"a policy rule for the pod", func(i int) error { return addRule(ctx, h, i) }},
		{"a tunnel device for the pod, with its address, route and rule", func(i int) error { return addDevice(ctx, h, i) }},
	} {
		var took []time.Duration
		for i := range alternativePods {
			start := time.Now()
			if err := design.add(i); err != nil {
				return errors.Join(fmt.Errorf("%s, %d: %w", design.name, i, err), host.Close())
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		list = append(list, alternative{design.name, at(took, 50), at(took, 99)})
	}
	return errors.Join(json.NewEncoder(out).Encode(list), host.Close())
}

func addRule(ctx context.Context, h kernel.Handle, i int) error {
	return errors.Join(h.AddRules(ctx, []kernel.Rule{{Priority: 9, Mark: uint32(i + 1), Mask: 0xffff0000 | 0xffff, Table: 9, Protocol: 9}})...)
}

// addDevice is what an interface for each pod takes at least; a cloud's
// interface takes as many seconds as this takes milliseconds.
func addDevice(ctx context.Context, h kernel.Handle, i int) error {
	name := fmt.Sprintf("pod%d", i)
	address := netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)})
	err := h.CreateGRE(ctx, name, kernel.GRE{Local: netip.MustParseAddr("192.168.80.8"), Keyed: true, Key: uint32(100000 + i), TTL: 64, PMTUDisc: true}, 1472)
	if err != nil {
		return err
	}
	link, err := h.LinkByName(ctx, name)
	if err != nil {
		return err
	}
	return errors.Join(
		h.AddAddress(ctx, kernel.Address{Link: link.Index, Prefix: netip.PrefixFrom(address, 32), Protocol: 9}),
		h.SetLinkUp(ctx, link.Index, true),
		errors.Join(h.ReplaceRoutes(ctx, []kernel.Route{{Table: uint32(1000 + i), Dst: netip.MustParsePrefix("172.16.101.0/24"), Link: link.Index, Protocol: 9}})...),
		errors.Join(h.AddRules(ctx, []kernel.Rule{{Priority: 10, Mark: uint32(i + 1), Mask: 0xffffffff, Table: uint32(1000 + i), Protocol: 9}})...),
	)
}

// benchAlternatives times what takes the place of a binding in other designs, on a
// host without an agent, which would look at each.
func benchAlternatives(ctx context.Context, files string) error {
	ctx, cancel := context.WithTimeout(ctx, bindPatience)
	defer cancel()
	var list []alternative
	if err := onBareHost(ctx, files, alternativesMode, &list); err != nil {
		return err
	}
	for _, a := range list {
		fmt.Printf("%s: p50 %v, p99 %v\n", a.Name, a.P50, a.P99)
	}
	return nil
}
