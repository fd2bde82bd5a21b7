// Package survey gathers what package diagnose judges: what a node's kernel, its
// packet filters, its disk and clock, and the ways to its peers are like just now.
// It changes nothing that lasts.
package survey

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/meter"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/node"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/internal/probe"
	"github.com/vpcproxy/vpcproxy/pkg/nat/iptables"
)

// Options sets up a Surveyor.
type Options struct {
	Name           string
	Version        string
	Roles          []intent.Role
	Host           kernel.Host
	Node           *node.Node
	Tables         *nft.Tables
	Meter          *meter.Meter // that does not run
	IPTables       string       // the variant in use: nft or legacy
	StateDirectory string
	// Legacy returns what iptables-legacy decides in a namespace; nil if that is the
	// variant in use, or not installed.
	Legacy func(ctx context.Context, netns string) ([]iptables.BaseChain, error)
	// Intent says why an intent is held back, and why it is not followed.
	Intent func() (held string, problem error)
	// Groups says what this node is in the elections of its groups; may be nil.
	Groups func() []diagnose.Group
	// Certificate returns the node's; nil if it has none.
	Certificate func() *diagnose.Certificate
}

// Surveyor looks around on one node. Its methods are safe for concurrent use; one
// call works at a time.
type Surveyor struct {
	opts Options
	busy chan struct{} // holds a token while a call works
}

// New returns a Surveyor.
func New(o Options) *Surveyor { return &Surveyor{opts: o, busy: make(chan struct{}, 1)} }

// begin waits for the turn; end gives it back.
func (s *Surveyor) begin(ctx context.Context) error {
	select {
	case s.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("another diagnosis is going on: %w", ctx.Err())
	}
}

func (s *Surveyor) end() { <-s.busy }

// look is one look around.
type look struct {
	*Surveyor
	ctx        context.Context //nolint:containedctx // a look is one call
	plan       plan.Plan
	set        *intent.Set
	footprints []plan.Footprint
	e          *diagnose.Evidence
}

// Evidence looks at everything. pings is how many packets are sent to each peer, on
// the underlay and through each tunnel.
func (s *Surveyor) Evidence(ctx context.Context, pings int) (*diagnose.Evidence, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	return s.evidence(ctx, pings, pings), nil
}

// evidence looks at everything; packets is how many are sent through each tunnel.
func (s *Surveyor) evidence(ctx context.Context, pings, packets int) *diagnose.Evidence {
	l := s.look(ctx)
	var peers sync.WaitGroup
	peers.Go(func() { l.e.Peers = l.peers(pings) })
	var unmeasured error
	peers.Go(func() { l.e.Tunnels, unmeasured = l.tunnels(packets) })
	for _, part := range []struct {
		what string
		do   func() error
	}{
		{"differences", l.differences}, {"underlay", l.underlay}, {"attachments", l.attachments}, {"kernel parameters", l.sysctls},
		{"neighbors", l.neighbors}, {"namespaces", l.rooms}, {"packet filters", l.chains}, {"machine", l.machine},
	} {
		if err := part.do(); err != nil {
			l.e.Failed = append(l.e.Failed, part.what+": "+err.Error())
		}
	}
	for _, m := range kernel.Probe(ctx).Missing() {
		l.e.Missing = append(l.e.Missing, diagnose.MissingFeature{Name: m.Name, Error: m.Err.Error(), Fix: m.Fix})
	}
	l.e.Managers = managers("/")
	peers.Wait()
	if unmeasured != nil {
		l.e.Failed = append(l.e.Failed, "tunnels: "+unmeasured.Error())
	}
	return l.e
}

func (s *Surveyor) look(ctx context.Context) *look {
	p, set := s.opts.Node.Current()
	e := &diagnose.Evidence{Node: s.opts.Name, Version: s.opts.Version, Time: time.Now(), Sysctls: map[string]string{}}
	for _, r := range s.opts.Roles {
		e.Roles = append(e.Roles, string(r))
	}
	status := s.opts.Node.Status()
	e.Agent = diagnose.Agent{PlanProblem: status.Problem, InSync: status.InSync}
	held, problem := s.opts.Intent()
	if problem != nil {
		e.Agent.IntentProblem = problem.Error()
	}
	e.Agent.Held = held
	for _, p := range status.Problems {
		e.Agent.Problems = append(e.Agent.Problems, diagnose.Problem{Attachment: p.Attachment, Message: p.Message})
	}
	e.Certificate = s.opts.Certificate()
	if s.opts.Groups != nil {
		e.Groups = s.opts.Groups()
	}
	e.IPTables = s.opts.IPTables
	return &look{Surveyor: s, ctx: ctx, plan: p, set: set, footprints: s.opts.Node.Footprints(), e: e}
}

func (l *look) differences() error {
	changes, _, err := l.opts.Node.Plan(l.ctx)
	if err != nil {
		return err
	}
	for _, c := range changes {
		l.e.Differences = append(l.e.Differences, diagnose.Difference{
			Kind: c.Kind, Op: c.Op.String(), Key: hide(fmt.Sprintf("%+v", c.Key)), Reason: hide(c.Reason), Commands: hideAll(node.Commands(c)), Attachment: l.owner(c.Key),
		})
	}
	return nil
}

// owner is the attachment that needs an object; "" if several do, or none.
func (l *look) owner(key any) string {
	name := ""
	for _, f := range l.footprints {
		if f.Owns(key) {
			if name != "" {
				return ""
			}
			name = f.Attachment
		}
	}
	return name
}

// secret is a GRE key in commands, keys of objects and reasons.
var secret = regexp.MustCompile(`(?i)\b([io]?key)([ :=]+)\d[\d.]*`)

// hide takes GRE keys out: evidence is sent around.
func hide(s string) string { return secret.ReplaceAllString(s, "${1}${2}KEY") }

func hideAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = hide(s)
	}
	return out
}

func (l *look) underlay() error {
	if l.set == nil {
		return nil
	}
	self := l.set.Node(l.opts.Name)
	if self == nil {
		return nil
	}
	l.e.Underlay.Address = self.Spec.UnderlayAddress
	own, err := l.opts.Host.In("")
	if err != nil {
		return err
	}
	addresses, err := own.Addresses(l.ctx)
	if err != nil {
		return err
	}
	links, err := own.Links(l.ctx)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		for _, link := range links {
			if a.Prefix.Addr() == self.Spec.UnderlayAddress && link.Index == a.Link {
				l.e.Underlay.Link, l.e.Underlay.MTU, l.e.Underlay.Up = link.Name, link.MTU, link.Up && link.Lower
			}
		}
	}
	return nil
}

func (l *look) attachments() error {
	var errs []error
	status := map[string]node.AttachmentStatus{}
	for _, a := range l.opts.Node.Status().Attachments {
		status[a.Name] = a
	}
	for _, f := range l.footprints {
		a := diagnose.Attachment{Name: f.Attachment, Role: string(f.Role), Netns: f.Netns, Link: f.Link,
			Ready: status[f.Attachment].Ready, Message: status[f.Attachment].Message}
		h, err := l.opts.Host.In(f.Netns)
		if err == nil {
			if link, lerr := h.LinkByName(l.ctx, f.Link); lerr == nil {
				a.LinkMTU = link.MTU
			}
			if f.ENI != "" {
				a.ENI, err = l.eni(h, f)
			}
		}
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			errs = append(errs, fmt.Errorf("attachment %s: %w", f.Attachment, err))
		}
		l.e.Attachments = append(l.e.Attachments, a)
	}
	return errors.Join(errs...)
}

func (l *look) eni(h kernel.Handle, f plan.Footprint) (*diagnose.ENI, error) {
	link, err := h.LinkByName(l.ctx, f.ENI)
	if err != nil {
		return nil, err
	}
	i := &diagnose.ENI{Name: f.ENI, Up: link.Up, Carrier: link.Lower}
	addresses, err := h.Addresses(l.ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range addresses {
		if a.Link == link.Index && !a.LinkLocal {
			i.Addresses = append(i.Addresses, a.Prefix)
		}
	}
	for _, s := range l.plan.State.NAT[desired.NATKey{Netns: f.Netns}].SNAT {
		if s.Out == f.ENI {
			i.SNAT = s.To
		}
	}
	if i.Drops, err = h.EgressDrops(l.ctx, link.Index); err != nil && !errors.Is(err, kernel.ErrNotFound) {
		return nil, err
	}
	if a := l.set.Attachment(f.Attachment); a != nil {
		if e, ok := a.ENIOn(l.opts.Name); ok && e.Gateway.IsValid() && i.Up && i.Carrier {
			i.Gateway = e.Gateway
			i.Answers, err = l.answers(f, e)
		}
	}
	return i, err
}

// answers finds out whether a gateway answers ARP.
func (l *look) answers(f plan.Footprint, e intent.ENI) (*bool, error) {
	r, err := probe.Resolve(l.ctx, l.opts.Host, f.Netns, f.ENI, e.Gateway)
	if err != nil || r == kernel.Unasked {
		return nil, err
	}
	yes := r == kernel.Resolved
	return &yes, nil
}

func (l *look) sysctls() error {
	names := []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter"}
	for _, f := range l.footprints {
		if f.Netns == "" {
			names = append(names, "net/ipv4/conf/"+f.Link+"/rp_filter")
		}
	}
	own, err := l.opts.Host.In("")
	if err != nil {
		return err
	}
	for _, n := range names {
		v, err := own.Sysctl(l.ctx, n)
		if errors.Is(err, kernel.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		l.e.Sysctls[n] = v
	}
	return nil
}

// spaces are the namespaces of interest, and whose they are.
func (l *look) spaces() map[string]string {
	out := map[string]string{}
	for _, f := range l.footprints {
		if f.Netns == "" {
			out[""] = ""
		} else {
			out[f.Netns] = f.Attachment
		}
	}
	return out
}

// maxRules bounds how many rules of a chain are shown.
const maxRules = 5

func (l *look) chains() error {
	var errs []error
	names := l.spaces()
	names[""] = ""
	for _, netns := range sortedKeys(names) {
		all, err := l.opts.Tables.Foreign(l.ctx, netns)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		for _, c := range all {
			if c.Policy == "drop" || c.Drops > 0 {
				l.e.Chains = append(l.e.Chains, diagnose.Chain{Netns: netns, Family: c.Family, Table: c.Table, Name: c.Name, Hook: c.Hook,
					Priority: c.Priority, Policy: c.Policy, Drops: c.Drops, GRE: c.GRE, Dropped: c.Dropped})
			}
		}
	}
	if l.opts.Legacy != nil {
		for _, netns := range sortedKeys(names) {
			all, err := l.opts.Legacy(l.ctx, netns)
			if err != nil && !errors.Is(err, kernel.ErrNotFound) {
				errs = append(errs, err)
			}
			for _, c := range all {
				l.e.Legacy = append(l.e.Legacy, diagnose.LegacyChain{Netns: netns, Family: c.Family.String(), Table: c.Table, Name: c.Name, Policy: c.Policy,
					Rules: c.Rules[:min(len(c.Rules), maxRules)], More: max(0, len(c.Rules)-maxRules), GRE: c.GRE})
			}
		}
	}
	var err error
	l.e.Refused, err = l.opts.Tables.Counters(l.ctx, "")
	return errors.Join(append(errs, err)...)
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
