package nft_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/nft"
)

func TestOnlyAssuredEvents(t *testing.T) {
	m := newMachine(t, "a")
	tables := nft.New(slog.New(slog.DiscardHandler), nft.Options{NetnsDir: m.dir})
	choose := func() {
		t.Helper()
		if err := tables.AssuredEventsOnly(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	list := func() string { return m.run("a", "nft", "-a", "list", "ruleset") }
	choose()
	first := list()
	if !strings.Contains(first, "ct event set assured") || !strings.Contains(first, "type nat hook postrouting priority srcnat - 10") {
		t.Fatalf("the rule is not as it should be:\n%s", first)
	}
	choose()
	if again := list(); again != first {
		t.Errorf("the second call changed something:\n%s", again)
	}
	for _, damage := range []string{"flush ruleset", "flush table inet " + nft.EventsTable, "add rule inet " + nft.EventsTable + " first-packet drop"} {
		m.run("a", "nft", damage)
		choose()
		if got := list(); strings.Count(got, "ct event set assured") != 1 || strings.Contains(got, "drop") {
			t.Errorf("after %q:\n%s", damage, got)
		}
	}
	if err := tables.AssuredEventsOnly(t.Context(), "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent namespace: %v", err)
	}
}
