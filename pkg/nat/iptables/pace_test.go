package iptables

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

func TestPace(t *testing.T) {
	var p pace
	s := seat{"vpx-a", nat.Key{Family: nat.IPv4, Chain: nat.Forward}}
	now := time.Unix(0, 0)
	if !p.due(s, now) {
		t.Fatal("the first move is not due at once")
	}
	// An opponent who undoes each move at once: the pauses double.
	var pauses []time.Duration
	for range 13 {
		pause := p.moved(s, now)
		pauses = append(pauses, pause)
		if p.due(s, now.Add(pause-1)) {
			t.Errorf("due within the pause of %s", pause)
		}
		if now = now.Add(pause); !p.due(s, now) {
			t.Errorf("not due after the pause of %s", pause)
		}
	}
	for i, want := range []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600} {
		if pauses[i].Seconds() != want {
			t.Errorf("pause %d is %s, want %g s", i, pauses[i], want)
		}
	}
	if other := (seat{"vpx-b", s.Key}); !p.due(other, now) {
		t.Error("a fight in one namespace delays another")
	}
	now = now.Add(2*lastPause + time.Minute)
	if pause := p.moved(s, now); pause != firstPause {
		t.Errorf("pause after peace is %s, want %s", pause, firstPause)
	}
	p.forget("vpx-a")
	if !p.due(s, now) {
		t.Error("a namespace that was forgotten still waits")
	}
}

func TestFightIsToldOnce(t *testing.T) {
	var log strings.Builder
	now := time.Unix(0, 0)
	b := Backend{log: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
	s := seat{"vpx-a", nat.Key{Family: nat.IPv4, Chain: nat.Forward}}
	for i, want := range []int{0, 0, 0, 1, 1, 1} {
		b.noteMove(s, "-j ACCEPT")
		if n := strings.Count(log.String(), "another program"); n != want {
			t.Errorf("%d warnings after move %d, want %d:\n%s", n, i+1, want, log.String())
		}
		now = now.Add(time.Minute / 4)
	}
}
