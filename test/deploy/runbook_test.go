package deploy

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestAlertsHaveAPage checks that each alert links to a heading of the runbook.
func TestAlertsHaveAPage(t *testing.T) {
	rules, runbook := read(t, "../../deploy/prometheus/vpcproxy.rules.yaml"), read(t, "../../docs/runbook.md")
	headings := map[string]bool{}
	for _, h := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(runbook, -1) {
		headings[strings.ReplaceAll(strings.ToLower(h[1]), " ", "-")] = true
	}
	links := regexp.MustCompile(`runbook: docs/runbook.md#(\S+)`).FindAllStringSubmatch(rules, -1)
	if alerts := strings.Count(rules, "- alert:"); len(links) != alerts {
		t.Errorf("%d alerts, but %d links to the runbook", alerts, len(links))
	}
	for _, l := range links {
		if !headings[l[1]] {
			t.Errorf("the runbook has no heading for #%s", l[1])
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
