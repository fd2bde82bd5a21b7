// Package deploy tests what is shipped beside the programs.
package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// promtool runs Prometheus' checker.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "../../scripts/promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestAlertRules(t *testing.T) {
	promtool(t, "check", "rules", "../../deploy/prometheus/vpcproxy.rules.yaml")
	promtool(t, "test", "rules", "../../deploy/prometheus/vpcproxy.rules.test.yaml")
}

// TestDashboardQueries has promtool read every query, as the expression of a
// rule. That what they name exists is for a scenario of test/netns to say.
func TestDashboardQueries(t *testing.T) {
	b, err := os.ReadFile("../../deploy/grafana/vpcproxy.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$instance", ".*", "$attachment", ".*", "$__rate_interval", "5m")
	rules, n, ids := "groups:\n  - name: dashboard\n    rules:\n", 0, map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the number %d", p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q asks nothing", p.Title)
		}
		for _, target := range p.Targets {
			n++
			rules += fmt.Sprintf("      - record: panel:query:%d\n        expr: %q\n", n, variables.Replace(target.Expr))
		}
	}
	if n < 20 {
		t.Fatalf("only %d queries were found", n)
	}
	path := filepath.Join(t.TempDir(), "queries.yaml")
	if err := os.WriteFile(path, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}
