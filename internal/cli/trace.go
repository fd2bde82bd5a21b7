package cli

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
)

const traceLong = `Trace walks the way of one packet from a pod of this machine into a user VPC: what
the kernel decides at each step, and where a packet that is sent just now, as the
pod would, is seen and where it stops. It says why, and what mends it.

The proxies that may get the packet are asked, too, through the controller or at
--proxy-socket, and the walk goes on there. The probe
opens a TCP connection half (one SYN), or with port 0 is a ping; the pod gets the
answer and ignores it.`

func (a *app) traceCommand() *cobra.Command {
	var from, to string
	var whom witnessFlags
	c := &cobra.Command{
		Use:     "trace --from POD|ADDRESS --to ADDRESS:PORT",
		Short:   "Follow a packet from a pod to a user VPC and say where it stops",
		Long:    traceLong,
		Example: "  vpcproxyctl trace --from 10.244.1.5 --to 172.16.101.4:3306",
		Args:    noArgs,
	}
	c.Flags().StringVar(&from, "from", "", "the pod's `address`, or the owner of its binding")
	c.Flags().StringVar(&to, "to", "", "the server's `address` and TCP port; port 0, or none, for a ping")
	whom.add(c, a, true)
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx, cancel := timeout(c, kernelTimeout)
		defer cancel()
		target, err := parseTarget(to)
		if err != nil {
			return err
		}
		pod, err := a.podAddress(ctx, from)
		if err != nil {
			return err
		}
		t, err := a.trace(ctx, pod, target, whom)
		if err != nil {
			return err
		}
		if out.word != "" {
			return errors.Join(a.write(encode(out, t)), traced(t))
		}
		return errors.Join(a.write([]byte(traceText(t)), nil), traced(t))
	}
	return c
}

func parseTarget(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, usagef("--to is missing; give an address and a port, such as 172.16.101.4:3306")
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, 0), nil
	}
	target, err := netip.ParseAddrPort(s)
	if err != nil {
		return target, usagef("--to: %q is not an address with a port, such as 172.16.101.4:3306", s)
	}
	return target, nil
}

// podAddress is the pod's address, or that of the binding with this owner.
func (a *app) podAddress(ctx context.Context, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, usagef("--from is missing; give the pod's address, such as 10.244.1.5")
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		return addr, nil
	}
	client, err := a.binder()
	if err != nil {
		return netip.Addr{}, err
	}
	resp, err := client.ListBindings(ctx, connect.NewRequest(&apiv1.ListBindingsRequest{}))
	if err != nil {
		return netip.Addr{}, a.nodeError(err)
	}
	for _, b := range resp.Msg.GetBindings() {
		if b.GetOwner() == s {
			return netip.ParseAddr(b.GetPodIp())
		}
	}
	return netip.Addr{}, &exitError{codeNotFound, fmt.Errorf("--from: %q is neither an address nor the owner of a binding; see `vpcproxyctl get bindings`", s)}
}

// trace asks both ends at once: the proxies watch while the host sends.
func (a *app) trace(ctx context.Context, pod netip.Addr, target netip.AddrPort, whom witnessFlags) (diagnose.Trace, error) {
	var token [4]byte
	if _, err := rand.Read(token[:]); err != nil {
		return diagnose.Trace{}, err
	}
	probe := &apiv1.Probe{From: pod.String(), To: target.String(), Token: binary.BigEndian.Uint32(token[:])}
	send := func(dry bool) *apiv1.DiagnoseRequest {
		return &apiv1.DiagnoseRequest{What: &apiv1.DiagnoseRequest_SendProbe{SendProbe: &apiv1.SendProbeRequest{Probe: probe, DryRun: dry}}}
	}
	first, err := whom.first(a)
	if err != nil {
		return diagnose.Trace{}, err
	}
	walk, err := ask[diagnose.Side](ctx, first, send(true))
	if found, down := a.down(whom, err); down {
		return diagnose.Trace{From: pod, To: target, Hops: []diagnose.Hop{}, Findings: found}, nil
	} else if err != nil {
		return diagnose.Trace{}, err
	}
	proxies, err := a.proxies(walk, whom)
	if err != nil {
		return diagnose.Trace{}, err
	}
	watch := &apiv1.DiagnoseRequest{What: &apiv1.DiagnoseRequest_WatchProbe{WatchProbe: &apiv1.WatchProbeRequest{Probe: probe, Attachment: walk.Attachment}}}
	far := a.watchAll(ctx, proxies, watch)
	host, err := ask[diagnose.Side](ctx, first, send(false))
	proxy := <-far
	if err != nil {
		return diagnose.Trace{}, err
	}
	return diagnose.Explain(pod, target, host, proxy), nil
}

// farWitness is the agent of a proxy that may get the packet.
type farWitness struct {
	name string // of the node, or its socket
	ask  witness
}

func (a *app) proxies(walk *diagnose.Side, whom witnessFlags) ([]farWitness, error) {
	if walk.Attachment == "" {
		return nil, nil
	}
	if whom.proxySocket != "" {
		w, err := a.witnessAt(whom.proxySocket, "--proxy-socket")
		return []farWitness{{whom.proxySocket, w}}, err
	}
	var all []farWitness
	for _, node := range walk.Proxies {
		w, err := a.witnessOf(node)
		if err != nil {
			return nil, err
		}
		all = append(all, farWitness{node, w})
	}
	return all, nil
}

// straggling is how long the others are waited for when one proxy has answered:
// all watch for the same time. One that has just died would hold the answer up
// until the controller notices.
const straggling = 3 * time.Second

var errStraggling = fmt.Errorf("no answer within %v of another's", straggling)

// watchAll has proxies watch for the probe. The one that has seen most of it is sent
// in the end, or nil if none can be asked.
func (a *app) watchAll(ctx context.Context, proxies []farWitness, req *apiv1.DiagnoseRequest) <-chan *diagnose.Side {
	type answer struct {
		name string
		side *diagnose.Side
		err  error
	}
	ctx, cancel := context.WithCancelCause(ctx)
	answers := make(chan answer, len(proxies))
	for _, w := range proxies {
		go func() {
			side, err := ask[diagnose.Side](ctx, w.ask, req)
			if err != nil && errors.Is(context.Cause(ctx), errStraggling) {
				err = errStraggling
			}
			answers <- answer{w.name, side, err}
		}()
	}
	best := make(chan *diagnose.Side, 1)
	go func() {
		defer cancel(nil)
		var most *diagnose.Side
		for range proxies {
			got := <-answers
			switch {
			case got.err != nil:
				a.message("note: proxy %s was not asked: %v", got.name, got.err)
			case most == nil:
				most = got.side
				late := time.AfterFunc(straggling, func() { cancel(errStraggling) })
				defer late.Stop()
			case len(got.side.Seen) > len(most.Seen):
				most = got.side
			}
		}
		best <- most
	}()
	return best
}

func traced(t diagnose.Trace) error {
	if err := judged(t.Findings); err != nil || t.Reached {
		return err
	}
	return &exitError{codeFound, errFound}
}

func traceText(t diagnose.Trace) string {
	rows := make([][]string, 0, len(t.Hops))
	for _, h := range t.Hops {
		rows = append(rows, []string{h.Node, h.What, h.State, h.Detail})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "from %s to %s\n", t.From, t.To)
	b.Write(table(rows))
	if t.Reached {
		b.WriteString("reached, and answered\n")
	} else {
		b.WriteString("not reached\n")
	}
	b.WriteString(findingsText(t.Findings))
	return b.String()
}
