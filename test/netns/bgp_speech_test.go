//go:debug multipathtcp=0
package netns

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/route/bgp"
	"github.com/vpcproxy/vpcproxy/pkg/route/bgp/gobgp"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// speechEnv makes the test binary a BGP speaker that says what it holds, and
// nothing else.
const speechEnv = "VPCPROXY_TEST_SPEECH"

// speech is what somebody says who runs no agent of ours.
type speech struct {
	Local netip.Addr
	Peers []netip.Addr
	Paths []bgp.Path
}

func TestMain(m *testing.M) {
	if os.Getenv(pausesEnv) != "" {
		if err := traffic.LookForPauses(os.Stdout); err != nil {
			slog.Error("look for pauses", "err", err)
			os.Exit(1)
		}
		return
	}
	if text := os.Getenv(speechEnv); text != "" {
		if err := speak(text); err != nil {
			slog.Error("speak", "err", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func speak(text string) error {
	var s speech
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	speaker, err := gobgp.New(bgp.Options{ASN: bgpASN, RouterID: s.Local, Local: s.Local, HoldTime: 9 * time.Second, GracefulRestart: bgpRestart}, slog.Default())
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- speaker.Run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-speaker.Ready():
	}
	for _, err := range speaker.Announce(ctx, s.Paths) {
		if err != nil {
			return err
		}
	}
	var n bgp.Neighbors
	for _, p := range s.Peers {
		n.Peers = append(n.Peers, bgp.Peer{Address: p})
	}
	if err := speaker.SetNeighbors(ctx, n); err != nil {
		return err
	}
	return <-done
}

// says starts a speaker on a machine.
func says(t *testing.T, m *topo.Machine, s speech) *topo.Process {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.Start([]string{speechEnv + "=" + string(text)}, self)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
