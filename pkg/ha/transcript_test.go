package ha

import (
	"bufio"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write what the machine does into testdata")

// TestTranscripts plays testdata/*.txt. A line is a time and an event; the
// indented lines below it are what the machine did. "config" begins anew.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d transcripts, error %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			wants, gots := strings.Split(string(want), "\n"), strings.Split(got, "\n")
			for i := range max(len(wants), len(gots)) {
				w, g := "(end)", "(end)"
				if i < len(wants) {
					w = wants[i]
				}
				if i < len(gots) {
					g = gots[i]
				}
				if w != g {
					t.Fatalf("%s:%d: the machine did\n%q, want\n%q", file, i+1, g, w)
				}
			}
		})
	}
}

func play(t *testing.T, script string) string {
	t.Helper()
	var out strings.Builder
	var m *Machine
	var cfg Config
	for sc := bufio.NewScanner(strings.NewReader(script)); sc.Scan(); {
		line := sc.Text()
		if strings.HasPrefix(line, " ") {
			continue // output of an earlier run
		}
		fmt.Fprintln(&out, line)
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		if f[0] == "config" {
			cfg = parseConfig(t, Config{}, f[1:])
			var err error
			if m, err = NewMachine(cfg); err != nil {
				t.Fatal(err)
			}
			continue
		}
		at := duration(t, f[0])
		// What timers do before the event, as in a node.
		for m.state != Initialize || m.timer != never {
			due, ok := m.Deadline()
			if !ok || due >= at || f[1] == "late" || f[1] == "unread" {
				break
			}
			tell(&out, due, m.Step(due, Tick{}))
		}
		tell(&out, at, m.Step(at, parseEvent(t, &cfg, f[1:])))
		if due, ok := m.Deadline(); ok {
			fmt.Fprintf(&out, "    %v until %v\n", m.state, due)
		} else {
			fmt.Fprintf(&out, "    %v\n", m.state)
		}
	}
	return out.String()
}

func tell(out *strings.Builder, at time.Duration, actions []Action) {
	for _, a := range actions {
		text := strings.TrimPrefix(fmt.Sprintf("%T", a), "ha.")
		switch a := a.(type) {
		case Send:
			text += fmt.Sprintf(" priority=%d", a.Priority)
			if a.To.IsValid() {
				text += fmt.Sprintf(" to=%v", a.To)
			}
		case Change:
			text += fmt.Sprintf(" %v -> %v: %s", a.From, a.To, a.Why)
		case Note:
			text += ": " + a.Text
		}
		fmt.Fprintf(out, "  %v %s\n", at, text)
	}
}

func parseEvent(t *testing.T, cfg *Config, f []string) Event {
	t.Helper()
	switch f[0] {
	case "startup":
		return Startup{}
	case "shutdown":
		return Shutdown{}
	case "tick", "late": // late: the timers were not served before
		return Tick{}
	case "up", "down":
		return Report{f[1], f[0] == "up"}
	case "yield":
		return Yield{duration(t, f[1])}
	case "resume":
		return Resume{}
	case "drain", "undrain":
		return Drain{f[0] == "drain"}
	case "reconfigure":
		*cfg = parseConfig(t, *cfg, f[1:])
		return Reconfigure{*cfg}
	case "advert", "unread": // unread: it waited while timers were not served either
		a := Advert{Interval: cfg.Interval, Addresses: cfg.Addresses}
		for _, kv := range f[1:] {
			switch k, v, _ := strings.Cut(kv, "="); k {
			case "from":
				a.From = netip.MustParseAddr(v)
			case "priority":
				a.Priority = uint8(number(t, v))
			case "interval":
				a.Interval = duration(t, v)
			case "waited":
				a.Waited = duration(t, v)
			case "address":
				a.Addresses = []netip.Addr{netip.MustParseAddr(v)}
			default:
				t.Fatalf("advert has no %s", k)
			}
		}
		return a
	}
	t.Fatalf("no event %q", f[0])
	return nil
}

func parseConfig(t *testing.T, c Config, f []string) Config {
	t.Helper()
	if c.VRID == 0 {
		c = testConfig()
	}
	for _, kv := range f {
		switch k, v, _ := strings.Cut(kv, "="); k {
		case "priority":
			c.Priority = uint8(number(t, v))
		case "interval":
			c.Interval = duration(t, v)
		case "local":
			c.Local = netip.MustParseAddr(v)
		case "nopreempt":
			c.NoPreempt = true
		case "preempt-delay":
			c.PreemptDelay = duration(t, v)
		case "startup-delay":
			c.StartupDelay = duration(t, v)
		case "down-adverts":
			c.DownAdverts = number(t, v)
		case "sends":
			c.Sends = number(t, v)
		case "peer":
			address, priority, _ := strings.Cut(v, "/")
			c.Peers = append(c.Peers[:len(c.Peers):len(c.Peers)], Peer{Addr: netip.MustParseAddr(address), Priority: uint8(number(t, priority))})
		case "track":
			name, weight, _ := strings.Cut(v, ":")
			c.Tracks = append(c.Tracks[:len(c.Tracks):len(c.Tracks)], Track{name, number(t, weight)})
		default:
			t.Fatalf("config has no %s", k)
		}
	}
	return c
}

// testConfig is priority 100 at 192.0.2.10, adverts every 100 ms: skew 60.9 ms,
// down interval 360.9 ms.
func testConfig() Config {
	return Config{
		Name: "test", VRID: 51, Priority: 100, Interval: 100 * time.Millisecond,
		Local: netip.MustParseAddr("192.0.2.10"), Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.100")},
	}
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
