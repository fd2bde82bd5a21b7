package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/config"
	"github.com/vpcproxy/vpcproxy/internal/election"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/pki"
	"github.com/vpcproxy/vpcproxy/internal/rhythm"
	"github.com/vpcproxy/vpcproxy/pkg/ha/session"
)

// sessions has the elections tell session replication who is active where.
type sessions struct {
	manager *session.Manager // nil: not replicated
	why     string           // then
	port    uint16
	log     *slog.Logger
	warn    sync.Once
	changed func() // after somebody has got, or lost, a whole copy
}

// lookEvery is how soon a report of who has a copy may be late.
const lookEvery = 2 * time.Second

// newSessions opens the listener. Without certificates there is none: static
// intent needs them for nothing else, and a group that needs them says so.
func newSessions(ctx context.Context, cfg *config.Config, load func() (*pki.Credentials, error), changed func(), log *slog.Logger) (*sessions, error) {
	s := &sessions{log: log, changed: changed}
	if cfg.HA.SessionListen == config.Off {
		s.why = "ha.sessionListen is off"
		return s, nil
	}
	if cfg.TLS.Directory == "" {
		s.why = "tls.directory is empty; issue a bundle for each proxy with `vpcproxyctl pki issue`, and restart the agents"
		return s, nil
	}
	creds, err := load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.why = fmt.Sprintf("%v; issue a bundle for each proxy with `vpcproxyctl pki issue`, and restart the agents", err)
		return s, nil
	case err != nil:
		return nil, err
	}
	s.manager, err = session.Listen(ctx, session.Options{
		Listen:       cfg.HA.SessionListen,
		Credentials:  session.Credentials{Server: creds.ServerConfig(), Client: creds.MemberConfig, Peer: pki.MemberName},
		ChooseEvents: nft.New(log, nft.Options{FlowEvents: cfg.NATLog.Directory != ""}).AssuredEventsOnly,
		Age:          cfg.HA.SessionAge,
		Log:          log,
	})
	if err != nil {
		return nil, fmt.Errorf("ha.sessionListen: %w", err)
	}
	_, port, err := net.SplitHostPort(cfg.HA.SessionListen)
	if err != nil {
		return nil, fmt.Errorf("ha.sessionListen: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("ha.sessionListen: %w", err)
	}
	s.port = uint16(n)
	return s, nil
}

// Close releases what newSessions opened. Run must have returned, if it was called.
func (s *sessions) Close() error {
	if s.manager == nil {
		return nil
	}
	return s.manager.Close()
}

// Run replicates until the context ends.
func (s *sessions) Run(ctx context.Context) error {
	if s.manager == nil {
		<-ctx.Done()
		return nil
	}
	var looking sync.WaitGroup
	defer looking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	looking.Go(func() { s.look(ctx) })
	return s.manager.Run(ctx)
}

// look tells when the copies change.
func (s *sessions) look(ctx context.Context) {
	timer := time.NewTimer(rhythm.Until(lookEvery))
	defer timer.Stop()
	before := map[string]string{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			timer.Reset(rhythm.Until(lookEvery))
		}
		now := map[string]string{}
		for _, g := range s.manager.Status() {
			now[g.Group] = strings.Join(g.Standbys, " ")
		}
		if !maps.Equal(before, now) {
			before = now
			s.changed()
		}
	}
}

// report tells how far a group's connections are replicated.
func (s *sessions) report(group string) *apiv1.SessionReport {
	if s.manager == nil {
		return &apiv1.SessionReport{Problem: s.why}
	}
	for _, g := range s.manager.Status() {
		if g.Group == group {
			return &apiv1.SessionReport{Copies: g.Standbys, Entries: uint64(g.Entries), Pending: uint64(g.Pending)}
		}
	}
	return &apiv1.SessionReport{} // the election has only begun
}

// copied tells whether a group's connections would go on here. Where they are not
// replicated, there is nothing to wait for.
func (s *sessions) copied(group string) bool { return s.manager == nil || s.manager.Copied(group) }

// follow takes over what the elections say. It does not wait.
func (s *sessions) follow(groups []election.Group) {
	var want []session.Group
	for _, g := range groups {
		if len(g.Peers) == 0 {
			continue
		}
		if s.manager == nil {
			s.warn.Do(func() { s.log.Warn("connections will not survive a failover", "group", g.Name, "why", s.why) })
			continue
		}
		sg := session.Group{Name: g.Name}
		for _, p := range g.Peers {
			sg.Others = append(sg.Others, session.Member{Node: p.Node, Address: netip.AddrPortFrom(p.Addr, s.port)})
		}
		for _, v := range g.HaVips {
			sg.Namespaces = append(sg.Namespaces, v.Netns)
		}
		want = append(want, sg)
		s.manager.SetActive(g.Name, g.Active())
	}
	if s.manager != nil {
		s.manager.Set(want)
	}
}

var (
	sessionEntries  = desc("session_entries", "Connections that are replicated, or to be.")
	sessionPending  = desc("session_pending_entries", "Connections of the active proxy that not every standby is known to have.")
	sessionLag      = desc("session_lag_seconds", "How long the oldest change has waited for a standby's acknowledgement.")
	sessionStandbys = desc("session_standbys", "Standbys that have a whole copy; on a standby 1 if it has one.")
	sessionSent     = desc("session_changes_sent_total", "Changes sent to standbys.")
	sessionApplied  = desc("session_changes_applied_total", "Changes taken over from the active proxy.")
	sessionResyncs  = desc("session_resyncs_total", "Whole copies that were begun.")
	sessionLost     = desc("session_lost_events_total", "Times that events were lost and the kernel's table was listed instead.")
	sessionListings = desc("session_listings_total", "Times that the kernel's table was listed whole.")
	sessionFailures = desc("session_errors_total", "Failed attempts to read or write the kernel's table.")
)

// Describe implements prometheus.Collector.
func (*sessions) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sessionEntries, sessionPending, sessionLag, sessionStandbys, sessionSent, sessionApplied,
		sessionResyncs, sessionLost, sessionListings, sessionFailures} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s *sessions) Collect(out chan<- prometheus.Metric) {
	if s.manager == nil {
		return
	}
	for _, g := range s.manager.Status() {
		metric := func(d *prometheus.Desc, kind prometheus.ValueType, v float64) {
			out <- prometheus.MustNewConstMetric(d, kind, v, g.Group)
		}
		metric(sessionEntries, prometheus.GaugeValue, float64(g.Entries))
		metric(sessionPending, prometheus.GaugeValue, float64(g.Pending))
		metric(sessionLag, prometheus.GaugeValue, g.Lag.Seconds())
		metric(sessionStandbys, prometheus.GaugeValue, float64(len(g.Standbys)))
		metric(sessionSent, prometheus.CounterValue, float64(g.Sent))
		metric(sessionApplied, prometheus.CounterValue, float64(g.Applied))
		metric(sessionResyncs, prometheus.CounterValue, float64(g.Resyncs))
		metric(sessionLost, prometheus.CounterValue, float64(g.LostEvents))
		metric(sessionListings, prometheus.CounterValue, float64(g.Listings))
		metric(sessionFailures, prometheus.CounterValue, float64(g.Failures))
	}
}
