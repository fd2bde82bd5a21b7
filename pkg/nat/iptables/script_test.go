package iptables

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

var update = flag.Bool("update", false, "write golden files")

func ipv4(s nat.RuleSet) wanted {
	w := wanted{}
	for k, r := range s.Rules {
		if k.Family == nat.IPv4 {
			w[k.Chain] = r
		}
	}
	return w
}

// change applies a replacement to saved output.
func change(t *testing.T, old, new string) []table {
	t.Helper()
	b, err := os.ReadFile("testdata/legacy-ipv4.save")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), old, new)
	if text == string(b) {
		t.Fatalf("%q does not occur in the saved rules", old)
	}
	ts, err := parseSave(text)
	if err != nil {
		t.Fatal(err)
	}
	return ts
}

func TestScript(t *testing.T) {
	want := ipv4(proxyNAT)
	natJump := `[0:0] -A POSTROUTING -m comment --comment "vpcproxy: source NAT" -j VPCPROXY-POSTROUTING` + "\n"
	for name, c := range map[string]struct {
		have []table
		want wanted
	}{
		"from-nothing": {nil, want},
		"removal":      {read(t, "legacy-ipv4.save"), nil},
		"rule-edited":  {change(t, "-j MASQUERADE --random-fully", "-j MASQUERADE"), want},
		"jump-missing": {change(t, natJump, ""), want},
		"jump-doubled": {change(t, natJump, natJump+natJump), want},
		"shadowed":     {change(t, natJump, "[0:0] -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\n"+natJump), want},
		"one-less":     {read(t, "legacy-ipv4.save"), wanted{nat.Postrouting: want[nat.Postrouting], nat.Input: want[nat.Input]}},
		"old-chains": {change(t, ":VPCPROXY-POSTROUTING - [0:0]\n", ":VPCPROXY-POSTROUTING - [0:0]\n:VPCPROXY-OLD - [0:0]\n:VPCPROXY-OLDER - [0:0]\n"+
			"[0:0] -A VPCPROXY-OLD -j VPCPROXY-OLDER\n[0:0] -A POSTROUTING -o eth9 -j VPCPROXY-OLDER\n"), want},
	} {
		t.Run(name, func(t *testing.T) {
			got := script(c.have, c.want, func(nat.Chain, string) bool { return true })
			file := "testdata/" + name + ".golden"
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(b), got); d != "" {
				t.Errorf("transaction differs from %s (-want +got):\n%s", file, d)
			}
		})
	}
}

func TestScriptIsEmptyIfNothingIsToDo(t *testing.T) {
	for _, file := range []string{"legacy-ipv4.save", "nft-ipv4.save"} {
		if got := script(read(t, file), ipv4(proxyNAT), nil); got != "" {
			t.Errorf("%s: want nothing written, got\n%s", file, got)
		}
	}
	if got := script(nil, nil, nil); got != "" {
		t.Errorf("nothing wanted, nothing there: got\n%s", got)
	}
}

func TestScriptLeavesShadowedJumpDuringPause(t *testing.T) {
	jump := `[0:0] -A POSTROUTING -m comment --comment "vpcproxy: source NAT" -j VPCPROXY-POSTROUTING` + "\n"
	have := change(t, jump, "[0:0] -A POSTROUTING -j MASQUERADE\n"+jump)
	asked := ""
	got := script(have, ipv4(proxyNAT), func(_ nat.Chain, shadow string) bool {
		asked = shadow
		return false
	})
	if got != "" || asked != "-j MASQUERADE" {
		t.Errorf("asked to move because of %q; wrote %q, want nothing", asked, got)
	}
}
