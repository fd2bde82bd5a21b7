package netns

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

const (
	// crowdSize is few for a benchmark, and enough for a copy to take several
	// batches on a slow guest.
	crowdSize  = 1000
	crowdEvery = 500 * time.Millisecond
	echoEvery  = 5 * time.Millisecond
)

// TestSessions moves the role of a pair about while many connections are used:
// none of them may notice more than a pause, and none be lost, not even when the
// role goes back to a proxy that has had them before.
func TestSessions(t *testing.T) {
	s := newSessionsPair(t)
	pod, vpc := s.Hosts[0].Pods[0].Machine, s.VPCs["red"].Machine
	crowd, err := traffic.StartCrowd(t.Context(), pod, vpc, topo.ServerAddress, crowdSize, crowdEvery)
	if err != nil {
		t.Fatal(err)
	}
	defer crowd.Stop()
	echo, err := traffic.StartStream(t.Context(), pod, topo.ServerAddress, echoEvery)
	if err != nil {
		t.Fatal(err)
	}
	// UDP is assured after two seconds.
	s.replicated(t, 0, crowdSize+1)

	kill := func(i int) error { return s.agents[s.Proxies[i].Name].process.Signal(syscall.SIGKILL) }
	stop := func(i int) error { return s.agents[s.Proxies[i].Name].process.Signal(syscall.SIGTERM) }
	for _, step := range []struct {
		name     string
		interval time.Duration
		fault    func(i int) error
		limit    time.Duration // of the pause
	}{
		// 3 × interval + skew (RFC 9568 section 6.1) at priority 100, and 50 ms.
		// A killed agent's kernel goes on until the other has taken over: only
		// without power is there the whole pause.
		{"kill", 100 * time.Millisecond, kill, 411 * time.Millisecond},
		{"power off", 100 * time.Millisecond, s.powerOff, 411 * time.Millisecond},
		{"stop", 100 * time.Millisecond, stop, 150 * time.Millisecond},
		{"power off at short intervals", 30 * time.Millisecond, s.powerOff, 150 * time.Millisecond},
	} {
		t.Run(step.name, func(t *testing.T) {
			s.group(t, step.interval)
			from := s.active
			s.becomes(t, from, step.interval)
			crowd.Forget()
			echo.Gap()
			start := time.Now()
			if err := step.fault(from); err != nil {
				t.Fatal(err)
			}
			eventually(t, soon, func(context.Context) error {
				if n := crowd.Answered(start.Add(step.limit)); n < crowdSize {
					return fmt.Errorf("%d of %d connections go on: %+v", n, crowdSize, crowd.Report())
				}
				return nil
			})
			gap, report := echo.Gap(), crowd.Report()
			t.Logf("UDP paused for %v; TCP waited for at most %v, median %v", gap, report.Longest, report.Median)
			if report.Errors > 0 {
				t.Errorf("%d of %d connections ended, %d by a reset: %v", report.Errors, crowdSize, report.Resets, report.FirstError)
			}
			// A thousand connections keep the guest's one processor busy.
			if lost := s.pauses.Lost(start, time.Now()); gap > step.limit+jitter+min(lost, slack) {
				t.Errorf("UDP paused for %v, want at most %v; the guest stood still for %v", gap, step.limit, lost)
			}
			s.active = 1 - from
			s.repair(t, from)
			s.replicated(t, s.active, crowdSize+1)
		})
	}
	if report := echo.Stop(soon / 10); report.Errors > 0 {
		t.Errorf("UDP: %d errors: %v", report.Errors, report.LastError)
	}
	sources := map[string]bool{}
	for _, seen := range s.servers["red"].Seen() {
		sources[seen.Addr().String()] = true
	}
	if len(sources) != 1 || !sources[innerVip.String()] {
		t.Errorf("the server saw sources %v, want the HaVip alone", sources)
	}
}

// sessionsPair is a pair of proxies with certificates.
type sessionsPair struct {
	*pair
	active int
}

// newSessionsPair starts a pair that serves red. The active proxy stays active
// while it can.
func newSessionsPair(t *testing.T) *sessionsPair {
	t.Helper()
	s := &sessionsPair{pair: &pair{world: newWorld(t, pairLayout)}}
	s.group(t, 100*time.Millisecond)
	s.launch(t)
	return s
}

// launch starts the agents, the proxies with extra lines of configuration.
func (s *sessionsPair) launch(t *testing.T, extra ...string) {
	t.Helper()
	s.put(t, "red", s.movable("red", redKey, s.Hosts[0].Pods[0]))
	ca := filepath.Join(t.TempDir(), "pki")
	s.mustCtl(t, s.Control, "pki", "init", "--ca", ca)
	s.startAgent(t, s.Hosts[0].Machine, "function")
	for i, p := range s.Proxies {
		s.mustCtl(t, s.Control, "pki", "issue", p.Name, "--ca", ca)
		s.startAgent(t, p.Machine, "proxy", append([]string{"tls: {directory: " + filepath.Join(ca, p.Name) + "}", metricsConfig}, extra...)...).awaitReady(t)
		if i == 0 {
			s.becomes(t, 0, 0)
		}
	}
	s.listen(t)
	s.agents["host1"].awaitReady(t)
	answeredBy(t, s.Hosts[0].Pods[0].Machine, topo.ServerAddress, "red", innerVip)
}

// powerOff ends an agent and takes all cables of its machine out.
func (s *sessionsPair) powerOff(i int) error {
	err := s.cables(i, "down")
	return errors.Join(err, s.agents[s.Proxies[i].Name].process.Kill())
}

// cables sets the other ends of a proxy's cables up or down.
func (s *sessionsPair) cables(i int, state string) error {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	name := s.Proxies[i].Name
	return errors.Join(s.Router.Type(ctx, "ip link set "+name+" "+state),
		s.VPCs["red"].Machine.Type(ctx, "ip link set "+name+" "+state))
}

// repair has a proxy's agent, which has ended or is about to, run again.
func (s *sessionsPair) repair(t *testing.T, i int) {
	t.Helper()
	a := s.agents[s.Proxies[i].Name]
	<-a.process.Ended()
	if err := s.cables(i, "up"); err != nil {
		t.Fatal(err)
	}
	a.restart(t)
}

func (s *sessionsPair) group(t *testing.T, interval time.Duration) {
	t.Helper()
	s.put(t, "g1", fmt.Sprintf(`kind: ProxyGroup
metadata: {name: g1}
spec:
  members: [{node: proxy1, priority: 100}, {node: proxy2, priority: 100}]
  tunnelAddress: %s
  haVip: %s
  vrid: 51
  preempt: false
  advertisementInterval: %v
`, groupTunnel, outerVip, interval))
}

// becomes waits until a proxy is active, and the other, if there is one, has
// heard at what interval.
func (s *sessionsPair) becomes(t *testing.T, i int, interval time.Duration) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		families, err := s.agents[s.Proxies[i].Name].scrape(ctx)
		if err != nil {
			return err
		}
		if v, _ := value(families, "vpcproxy_ha_state", map[string]string{"group": "g1", "state": "Active"}); v != 1 {
			return fmt.Errorf("%s is not active", s.Proxies[i].Name)
		}
		return nil
	})
	if interval == 0 {
		return
	}
	// An agent reads its manifests when they change; a few adverts later the
	// backup has taken the interval over.
	eventually(t, soon, func(ctx context.Context) error {
		before, err := s.adverts(ctx, i)
		if err != nil {
			return err
		}
		const second = time.Second
		time.Sleep(second) // a rate needs a time
		after, err := s.adverts(ctx, i)
		if err != nil {
			return err
		}
		if rate := after - before; rate < 0.7*float64(second)/float64(interval) {
			return fmt.Errorf("%.0f adverts in a second, at an interval of %v", rate, interval)
		}
		return nil
	})
}

func (s *sessionsPair) adverts(ctx context.Context, i int) (float64, error) {
	families, err := s.agents[s.Proxies[i].Name].scrape(ctx)
	if err != nil {
		return 0, err
	}
	n, _ := value(families, "vpcproxy_ha_adverts_sent_total", map[string]string{"group": "g1"})
	return n, nil
}

// replicated waits until the active proxy knows that its standby has all of so
// many connections.
func (s *sessionsPair) replicated(t *testing.T, active, connections int) {
	t.Helper()
	group := map[string]string{"group": "g1"}
	eventually(t, soon, func(ctx context.Context) error {
		families, err := s.agents[s.Proxies[active].Name].scrape(ctx)
		if err != nil {
			return err
		}
		entries, _ := value(families, "vpcproxy_ha_session_entries", group)
		pending, _ := value(families, "vpcproxy_ha_session_pending_entries", group)
		standbys, _ := value(families, "vpcproxy_ha_session_standbys", group)
		if int(entries) < connections || pending > 0 || standbys != 1 {
			return fmt.Errorf("%.0f connections of %d, %.0f of them pending, %.0f standbys", entries, connections, pending, standbys)
		}
		return nil
	})
}
