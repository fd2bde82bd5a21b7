package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// TestClockSteps steps the wall clock under a pair that authenticates its adverts and
// its replication. Nobody notices, and who restarts after a step forward is not
// deaf to who has not.
func TestClockSteps(t *testing.T) {
	lab.RequireGuest(t)
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, fmt.Appendf(nil, "1 %x\n", bytes.Repeat([]byte{0x5a}, 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &sessionsPair{pair: &pair{world: newWorld(t, pairLayout)}}
	s.group(t, 100*time.Millisecond)
	s.launch(t, "ha: {keys: "+file+"}")
	s.outer = s.ask(t, s.Router, "proxies", outerVip)
	pod, vpc := s.Hosts[0].Pods[0].Machine, s.VPCs["red"].Machine
	const few = 100
	crowd, err := traffic.StartCrowd(t.Context(), pod, vpc, topo.ServerAddress, few, crowdEvery)
	if err != nil {
		t.Fatal(err)
	}
	defer crowd.Stop()
	s.replicated(t, 0, few)
	s.stands(t, 1)

	clock := &wallClock{}
	t.Cleanup(func() { clock.step(t, -clock.off) })
	for i, step := range []struct {
		name string
		by   time.Duration
	}{{"forward", time.Hour}, {"back", -62 * time.Minute}, {"right again", 2 * time.Minute}} { // a certificate is valid five minutes ago
		t.Run(step.name, func(t *testing.T) {
			stale := s.refused(t)
			s.undisturbed(t, func() {
				start := time.Now()
				clock.step(t, step.by)
				// A session that begins now comes to the standby.
				stream, err := traffic.StartStream(t.Context(), pod, topo.ServerAddress, 10*echoEvery)
				if err != nil {
					t.Fatal(err)
				}
				s.replicated(t, 0, few+i+1)
				if report := stream.Stop(soon / 10); report.Errors > 0 {
					t.Errorf("UDP: %d errors: %v", report.Errors, report.LastError)
				}
				eventually(t, soon, func(context.Context) error {
					if n := crowd.Answered(start.Add(crowdEvery)); n < few {
						return fmt.Errorf("%d of %d connections go on", n, few)
					}
					return nil
				})
			})
			if report := crowd.Report(); report.Errors > 0 || report.Longest > detection {
				t.Errorf("%d of %d connections ended, and the longest pause was %v: %v", report.Errors, few, report.Longest, report.FirstError)
			}
			if now := s.refused(t); now != stale {
				t.Errorf("%v adverts were refused", now-stale)
			}
			crowd.Forget()
		})
	}

	t.Run("forward, and the standby restarts", func(t *testing.T) {
		// An agent that starts may keep a guest's only processor from the other
		// for three short intervals.
		s.group(t, 300*time.Millisecond)
		s.becomes(t, 0, 300*time.Millisecond)
		clock.step(t, time.Hour)
		since, before := time.Now(), s.agents[s.Proxies[0].Name].roles()
		standby := s.agents[s.Proxies[1].Name]
		standby.kill(t)
		standby.restart(t)
		s.replicated(t, 0, few)
		s.stands(t, 1)
		if n := s.agents[s.Proxies[0].Name].roles() - before; n > 0 {
			t.Errorf("the active one changed its role %d times", n)
		}
		if err := claimed(s.outer, since, s.outerMAC(1)); err == nil {
			t.Error("the standby claimed the HaVip")
		}
		if n := s.refused(t); n > 0 {
			t.Errorf("%v adverts were refused", n)
		}
	})
}

// undisturbed does something during which no role may change.
func (s *sessionsPair) undisturbed(t *testing.T, during func()) {
	t.Helper()
	roles := func() int { return s.agents[s.Proxies[0].Name].roles() + s.agents[s.Proxies[1].Name].roles() }
	since, before := time.Now(), roles()
	during()
	if after := roles(); after != before {
		t.Errorf("roles changed %d times; the guest stood still for %v:\n%s", after-before, s.pauses.Lost(since, time.Now()), s.agents[s.Proxies[0].Name].process.Log())
	}
	if err := claimed(s.outer, since, s.outerMAC(1)); err == nil {
		t.Error("the standby claimed the HaVip")
	}
}

// stands waits until a proxy that has started is a backup.
func (s *sessionsPair) stands(t *testing.T, i int) {
	t.Helper()
	eventually(t, soon, func(ctx context.Context) error {
		families, err := s.agents[s.Proxies[i].Name].scrape(ctx)
		if err != nil {
			return err
		}
		if v, _ := value(families, "vpcproxy_ha_state", map[string]string{"group": "g1", "state": "Backup"}); v != 1 {
			return fmt.Errorf("%s is no backup", s.Proxies[i].Name)
		}
		return nil
	})
}

// refused counts the adverts that either proxy did not believe.
func (s *sessionsPair) refused(t *testing.T) (sum float64) {
	t.Helper()
	for _, p := range s.Proxies {
		families, err := s.agents[p.Name].scrape(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, reason := range []string{"auth_stale", "auth_replay"} {
			n, _ := value(families, "vpcproxy_ha_adverts_discarded_total", map[string]string{"reason": reason})
			sum += n
		}
	}
	return sum
}

// wallClock is the guest's.
type wallClock struct{ off time.Duration }

func (c *wallClock) step(t *testing.T, by time.Duration) {
	t.Helper()
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME, &now)
	if err == nil {
		next := unix.NsecToTimespec(now.Nano() + by.Nanoseconds())
		err = unix.ClockSettime(unix.CLOCK_REALTIME, &next)
	}
	if err != nil {
		t.Fatal(errors.Join(errors.New("the guest's clock is not what it was"), err))
	}
	c.off += by
}
