package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// Addresses that move between the two proxies.
const outerVip, innerVip = "192.168.4.100", "172.16.101.100"

// The one that is to be killed is not the one that carries the first act.
const pairManifest = `apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: pair}
spec:
  members: [{node: proxy1, priority: 100}, {node: proxy2, priority: 200}]
  haVip: ` + outerVip + `
  vrid: 51
  advertisementInterval: 200ms
`

const (
	downloadBytes = 16 << 20
	// settled is how long the download runs before the proxy is killed: its
	// connection has been handed on to the standby by then.
	settled = 3 * time.Second
)

// survive kills the proxy that carries a download.
func (d *demo) survive(ctx context.Context) error {
	d.say("\nSecond act. A pair of proxies, one active and one standby, for a third user, initech:\n")
	path := filepath.Join(d.files, "pair.yaml")
	if err := os.WriteFile(path, []byte(pairManifest), 0o600); err != nil {
		return err
	}
	if err := d.ctl(ctx, "apply", "-f", path); err != nil {
		return err
	}
	t, proxies := d.downloader, d.lab.Proxies
	err := d.ctl(ctx, "attach", "--subnet", topo.Subnet.String(), "--vpc", t.name, "--group", "pair",
		"--eni", proxies[0].Name+":mac="+proxies[0].ENIs[t.name].MAC, "--eni", proxies[1].Name+":mac="+proxies[1].ENIs[t.name].MAC,
		"--havip", innerVip, "--pods", t.pod.Address.String(), "--wait")
	if err != nil {
		return err
	}
	left, carrier := proxies[0], proxies[1]
	if err := d.untilActive(ctx, carrier, left); err != nil {
		return err
	}
	if err := d.ctl(ctx, "ha", "status"); err != nil {
		return err
	}
	answer, err := traffic.Get(ctx, t.pod.Machine, topo.ServerAddress)
	if err != nil {
		return err
	}
	d.say("\n%s downloads %d MiB from http://%s/, which sees %s.", t.pod.Name, downloadBytes>>20, topo.ServerAddress, answer.Client.Addr())
	return d.download(ctx, carrier)
}

// report is what ha status says of a proxy.
type report struct {
	Node, State string
	Sessions    struct{ Copies []string }
}

// untilActive waits until one proxy is active, and the other stands by with a copy of
// its connections.
func (d *demo) untilActive(ctx context.Context, active, standby *topo.Proxy) error {
	for {
		out, err := d.lab.Control.Run(ctx, filepath.Join(d.programs, "vpcproxyctl"), "ha", "status", "-o", "json")
		var reports []report
		if err == nil {
			err = json.Unmarshal([]byte(out), &reports)
		}
		of := map[string]report{}
		for _, r := range reports {
			of[r.Node] = r
		}
		if of[active.Name].State == "Active" && of[standby.Name].State == "Backup" && slices.Contains(of[active.Name].Sessions.Copies, standby.Name) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s has not become active: %w", active.Name, errors.Join(err, ctx.Err()))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// download kills a proxy while bytes come through it.
func (d *demo) download(ctx context.Context, carrier *topo.Proxy) error {
	type outcome struct {
		longest time.Duration
		err     error
	}
	done := make(chan outcome, 1)
	go func() {
		longest, err := traffic.DownloadSlowly(ctx, d.downloader.pod.Machine, topo.ServerAddress, downloadBytes)
		done <- outcome{longest, err}
	}()
	select {
	case o := <-done:
		return fmt.Errorf("the download was over before its proxy could be killed: %w", o.err)
	case <-time.After(settled):
	}
	d.say("After %v %s loses its power: its agent is killed, all its cables are unplugged.", settled, carrier.Name)
	if err := d.powerOff(ctx, carrier); err != nil {
		return err
	}
	o := <-done
	if o.err != nil {
		return o.err
	}
	d.say("All %d MiB arrived, on the same connection. The longest time without a byte was %d ms.\n", downloadBytes>>20, o.longest.Milliseconds())
	return d.ctl(ctx, "ha", "status")
}

// powerOff kills a proxy's agent and unplugs its cables, whose other ends are
// named like the proxy.
func (d *demo) powerOff(ctx context.Context, p *topo.Proxy) error {
	ends := []*topo.Machine{d.lab.Router}
	for _, vpc := range d.lab.VPCs {
		ends = append(ends, vpc.Machine)
	}
	errs := []error{d.agents[p.Name].Kill()}
	for _, m := range ends {
		errs = append(errs, m.Type(ctx, "ip link set "+p.Name+" down"))
	}
	return errors.Join(errs...)
}
